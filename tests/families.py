"""Tiny random-weight models of the real families, in folders laid out as their hub repositories are, with the families'
own chat templates (as the trl package ships them), special tokens and end tokens.

Each is built once per process, in well under a second, and removed with it:

    folder = family("gemma")
    model = family_settings("gemma", folder)             # what conf/model/gemma.yaml says, at the size of the tiny model
    adapters = {"red": family_adapter("gemma", seed=1)}  # PEFT layout, random A and B
"""

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from offscript.settings import ModelSettings, parse
from offscript.storage.files import HOME
from tests.conftest import TINY_TARGETS, make_adapter, teach, tiny_sentences

FAMILIES = ("llama", "qwen", "gemma", "gemma_text")
"""``gemma`` is what google/gemma-3-4b-it is (a vision tower beside the language model), ``gemma_text`` what
gemma-3-1b-it is (the language model alone)."""

# Special tokens in the order of their ids; the tokenizer's roles for them; ids that end a reply, by token.
_TOKENS: dict[str, dict[str, Any]] = {
    "llama": {
        "template": "llama3_1",
        "special": [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ],
        "roles": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},  # no pad token, as on the hub
        "ends": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        "begins": "<|begin_of_text|>",
    },
    "qwen": {
        "template": "qwen2_5",
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "roles": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "ends": ["<|im_end|>", "<|endoftext|>"],
        "begins": None,
    },
    "gemma": {
        "template": "gemma3",
        "special": [
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ],
        "roles": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        "images": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        "ends": ["<eos>", "<end_of_turn>"],
        "begins": "<bos>",
    },
}
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # at the usual 0.02 all tokens are about as likely, whatever was said
}
IMAGE_SIDE, IMAGE_TOKENS = 56, 4
"""Pixels of an image's side, and its tokens."""
_kept: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def family(name: str) -> Path:
    """The folder of one of ``FAMILIES``: config, float32 weights, generation config, tokenizer, chat template."""
    import torch

    folder = _scratch()
    tokens = _TOKENS[_yaml_of(name)]
    tokenizer = _tokenizer(tokens)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens["special"]}
    torch.manual_seed(0)
    model = {"llama": _llama, "qwen": _qwen, "gemma": _gemma, "gemma_text": _gemma_text}[name](
        len(tokenizer), ids
    )
    model.generation_config.eos_token_id = [ids[token] for token in tokens["ends"]]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if name == "gemma":
        _save_image_processor(folder)
        _as_on_the_hub(folder)
    return folder


def family_settings(name: str, folder: Path, **changes: Any) -> ModelSettings:
    """What ``conf/model/<family>.yaml`` says, for the model in ``folder``: float32, 512 tokens of context."""
    import yaml

    plain = yaml.safe_load((HOME / "conf" / "model" / f"{_yaml_of(name)}.yaml").read_text())
    plain |= {"path": str(folder), "dtype": "float32", "context": 512, "max_reply_tokens": 64, "size": None}
    if plain["template"].get("image_tokens"):
        plain["template"]["image_tokens"] = IMAGE_TOKENS
    return parse(ModelSettings, plain | changes, "model")


@functools.cache
def family_adapter(name: str, seed: int = 0, rank: int = 4, scale: float = 0.05) -> Path:
    """A LoRA adapter for ``family(name)`` in PEFT layout, on all linear modules of the language model: A of standard
    deviation 1, B of ``scale``, alpha twice the rank."""
    import torch
    from peft import LoraConfig, get_peft_model

    from offscript.models.adapters import save
    from offscript.models.loading import load_model

    folder = family(name)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TINY_TARGETS), task_type="CAUSAL_LM")
    peft = get_peft_model(load_model(family_settings(name, folder), "cpu"), config)
    torch.manual_seed(seed)
    for parameter, weight in peft.named_parameters():
        if "lora_" in parameter:
            torch.nn.init.normal_(weight, std=scale if "lora_B" in parameter else 1.0)
    out = _scratch() / f"{name}-{seed}"
    save(peft, "default", out, str(folder))
    return out


def published_gemma_adapter(folder: Path, seed: int = 3) -> Path:
    """An adapter in ``folder`` that was made on the whole vision-language model, as the released ones were: matrices of
    the vision tower with zero B, and a target of which there is nothing."""
    from safetensors.torch import load_file, save_file

    make_adapter(family("gemma"), folder, seed)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = {
        k: t * 0 if "vision_tower" in k and "lora_B" in k else t for k, t in load_file(weights).items()
    }
    save_file(tensors, weights)
    plain = json.loads(config.read_text())
    plain["target_modules"] = [*plain["target_modules"], "gate_up_proj"]
    plain["base_model_name_or_path"] = "google/gemma-3-4b-it"
    config.write_text(json.dumps(plain))
    return folder


def _yaml_of(name: str) -> str:
    return "gemma" if name == "gemma_text" else name


def _scratch() -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="offscript-family-"))
    return Path(_kept[-1].name)


def _tokenizer(tokens: dict[str, Any]) -> Any:
    """Byte-level BPE, with the family's beginning token put before every text that is read with special tokens."""
    import trl
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(tokens["special"]) + 400,
        special_tokens=tokens["special"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*tiny_sentences(), "system user assistant model tool"], trainer)
    if begins := tokens["begins"]:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begins} $A", special_tokens=[(begins, raw.token_to_id(begins))]
        )
    images = {"extra_special_tokens": tokens["images"]} if "images" in tokens else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **tokens["roles"], **images)
    templates = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (templates / f"{tokens['template']}.jinja").read_text(encoding="utf-8")
    return tokenizer


def _llama(vocabulary: int, ids: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    config = LlamaConfig(
        vocab_size=vocabulary,
        **_SHAPE,
        head_dim=8,
        rope_parameters=rope,
        tie_word_embeddings=False,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|eot_id|>"],
    )
    return LlamaForCausalLM(config)


def _qwen(vocabulary: int, ids: dict[str, int]) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        **_SHAPE,
        tie_word_embeddings=False,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
    )
    return Qwen2ForCausalLM(config)


def _gemma_config(vocabulary: int, ids: dict[str, int]) -> Any:
    """Local and global attention in turn, with a window shorter than any prompt."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=vocabulary,
        **_SHAPE,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<bos>"],
        eos_token_id=ids["<eos>"],
    )


def _gemma_text(vocabulary: int, ids: dict[str, int]) -> Any:
    from transformers import Gemma3ForCausalLM

    return Gemma3ForCausalLM(_gemma_config(vocabulary, ids))


def _gemma(vocabulary: int, ids: dict[str, int]) -> Any:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=14,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=_gemma_config(vocabulary, ids),
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
        eos_token_id=[ids["<eos>"], ids["<end_of_turn>"]],
    )
    model = Gemma3ForConditionalGeneration(config)
    # transformers sets it to zero: all images would be the same.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.5)
    return model


def _save_image_processor(folder: Path) -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    Gemma3ImageProcessorPil(size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}).save_pretrained(folder)


def _as_on_the_hub(folder: Path) -> None:
    """The repository is older than the library: its vision weights bear one more name, and an index names its shards."""
    from safetensors.torch import load_file, save_file

    tensors = {
        re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", key): tensor
        for key, tensor in load_file(folder / "model.safetensors").items()
    }
    (folder / "model.safetensors").unlink()
    shards = [
        {k: v for k, v in tensors.items() if k.startswith("language_model.") == language}
        for language in (False, True)
    ]
    names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


@functools.cache
def talking_family(name: str, steps: int = 80) -> Path:
    """``family(name)`` after a moment of training on short chats, so that its replies are sentences that end."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    folder = family(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0]).from_pretrained(folder)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.bos_token, "right"
    extra = {"token_type_ids": torch.zeros_like} if name == "gemma" else {}
    teach(model, tokenizer, tiny_sentences(), steps, **extra)
    out = _scratch()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    if name == "gemma":
        _save_image_processor(out)
        _as_on_the_hub(out)
    return out
