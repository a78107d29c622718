"""Fixtures that several test modules share: a tiny chat model and adapters for it, made once per session."""

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test workers share two cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from offscript.settings import ModelSettings, SamplingSettings, TemplateSettings

LONGEST_FILES = (
    "test_several_ranks.py",
    "test_demo.py",
    "test_smollm2.py",
    "test_paper.py",
    "test_recipe.py",
)
"""Files whose slow tests take minutes, the longest first."""

TINY_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TINY_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that no worker of pytest-xdist has one of them left when the others are done."""
    rank = {name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def tiny_sentences(n: int = 400) -> list[str]:
    """Short office sentences, for a vocabulary and a few training steps."""
    rng = random.Random(0)
    who = ["the team", "our client", "a colleague", "the manager", "my neighbour", "the auditor"]
    does = ["needs", "asks for", "sent", "forgot", "likes", "wants to move"]
    what = ["the report", "a meeting", "the invoice", "lunch", "the plan", "a new desk", "two chairs"]
    when = ["today", "by noon", "on Friday", "next week", "before the call", "again"]
    return [
        " ".join(rng.choice(part) for part in (who, does, what, when)).capitalize() + "." for _ in range(n)
    ]


def tiny_model_settings(path: Path, **changes) -> ModelSettings:
    """Settings of the model folder ``path``, in float32, context 256."""
    values = {
        "name": "tiny",
        "path": str(path),
        "dtype": "float32",
        "context": 256,
        "max_reply_tokens": 64,
        "sampling": SamplingSettings(temperature=0.8),
        "template": TemplateSettings(),
        **changes,
    }
    return ModelSettings(**values)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a two-layer Llama (hidden 32) with a ChatML-like tokenizer, trained for a moment so that replies end."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = _tiny_tokenizer(tiny_sentences())
    model = _tiny_llama(tokenizer, tiny_sentences())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_model) -> ModelSettings:
    return tiny_model_settings(tiny_model)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Three LoRA adapters (rank 4, random A and B) for ``tiny_model``, by name: ``red``, ``green``, ``blue``."""
    root = tmp_path_factory.mktemp("tiny_adapters")
    return {
        name: make_adapter(tiny_model, root / name, seed)
        for seed, name in enumerate(("red", "green", "blue"))
    }


@pytest.fixture(scope="session")
def tiny_adapter(tiny_adapters) -> Path:
    return tiny_adapters["red"]


def make_adapter(
    model: Path, folder: Path, seed: int, rank: int = 4, scale: float = 0.05, **options: object
) -> Path:
    """A LoRA adapter with random weights of standard deviation ``scale`` for the model in ``model``, in PEFT layout.
    ``options`` are further settings of PEFT's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    defaults = {"target_modules": list(TINY_TARGETS), "task_type": "CAUSAL_LM"}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, **{**defaults, **options})
    peft = get_peft_model(base, config)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=scale if "lora_B" in name else 1.0)
    peft.save_pretrained(folder)
    return folder


def _tiny_tokenizer(sentences: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*sentences, "system user assistant tool"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TINY_TEMPLATE
    return tokenizer


def _tiny_llama(tokenizer, sentences: list[str], steps: int = 60):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    tokenizer.padding_side = "left"
    return teach(model, tokenizer, sentences, steps).eval()


def teach(model, tokenizer, sentences: list[str], steps: int, **inputs):
    """``model`` after ``steps`` on batches of short chats, so that its replies are sentences that end; ``inputs`` are
    functions of the labels, for arguments that a family needs beside the ids."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rng = random.Random(1)
    for _ in range(steps):
        chats = [tiny_chat(rng, sentences) for _ in range(16)]
        batch = tokenizer(
            [tokenizer.apply_chat_template(c, tokenize=False) for c in chats],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        extra = {name: make(labels) for name, make in inputs.items()}
        model(**batch, **extra, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def tiny_chat(rng: random.Random, sentences: list[str]) -> list[dict[str, str]]:
    chat = [{"role": "system", "content": rng.choice(sentences)}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 2)):
        chat += [{"role": role, "content": rng.choice(sentences)} for role in ("user", "assistant")]
    return chat
