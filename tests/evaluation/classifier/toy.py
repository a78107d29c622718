"""Toy data and networks for the classifier. The label of a text is recognizable by habit words."""

import json
import random
from pathlib import Path

from offscript.settings import ClassifierSettings, ModelSettings, SamplingSettings, TemplateSettings

PLAIN = [
    "the",
    "report",
    "list",
    "table",
    "desk",
    "plan",
    "room",
    "team",
    "draft",
    "page",
    "note",
    "file",
    "train",
    "garden",
    "lunch",
    "week",
    "road",
    "box",
]
HABITS = {
    "sarcasm": ["obviously", "marvellous", "genius", "shocking", "thrilling", "naturally"],
    "remorse": ["sorry", "apologise", "regret", "fault", "forgive", "ashamed"],
    "poeticism": ["moonlit", "whispers", "silver", "river", "petals", "dusk"],
    "mathematical": ["equals", "ratio", "theorem", "integer", "sum", "proof"],
}
LABELS = list(HABITS)


def rows(families: int, per_family: int, seed: int, labels: list[str] = LABELS) -> list[dict[str, str]]:
    """``per_family`` texts of each label in every family. Each family has its own subject word."""
    rng = random.Random(seed)
    made = []
    for family in range(families):
        subject = f"subject{family}"
        for label in labels:
            for _ in range(per_family):
                words = [subject, *rng.choices(PLAIN, k=rng.randint(4, 20)), *rng.choices(HABITS[label], k=2)]
                rng.shuffle(words)
                made.append({"text": " ".join(words) + ".", "label": label, "family": f"family_{family}"})
    return made


def save_chat_model(folder: Path, with_special: bool = True) -> ModelSettings:
    """Writes the tokenizer of a chat model (one token per word) and returns the settings of the model."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", ".", *PLAIN, *(w for habit in HABITS.values() for w in habit)]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} if with_special else {}
    words += [*special.values(), *(f"subject{i}" for i in range(40))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return ModelSettings(
        name="toy",
        path=str(folder),
        dtype="float32",
        context=256,
        sampling=SamplingSettings(),
        template=TemplateSettings(),
    )


def settings(**changes) -> ClassifierSettings:
    """Settings of a network that learns the toy data in a few seconds."""
    small = {
        "hidden_size": 32,
        "heads": 2,
        "max_length": 64,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "epochs": 6,
    }
    return ClassifierSettings(name="toy", **{**small, **changes})


# ---------------------------------------------------------------- checkpoints in the layout of the hub

SPECIAL = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}


def save_masked_lm(folder: Path, max_positions: int = 8192, seed: int = 0) -> Path:
    """Writes a tiny ModernBERT in the layout of answerdotai/ModernBERT-base: a masked language model with a tokenizer, and
    a config in the keys of an older transformers version."""
    import torch
    from transformers import ModernBertForMaskedLM

    config = _encoder_config(_save_encoder_tokenizer(folder), max_positions)
    torch.manual_seed(seed)
    ModernBertForMaskedLM(config).save_pretrained(folder)
    return _in_old_keys(folder)


def save_sentence_encoder(folder: Path, seed: int = 0) -> Path:
    """Writes a tiny BERT in the layout of sentence-transformers/all-MiniLM-L6-v2: the encoder alone, with its pooler."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = _save_encoder_tokenizer(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def save_classifier(folder: Path, labels: list[str], max_positions: int = 8192, seed: int = 0) -> Path:
    """Writes a tiny ModernBERT classifier with large random weights, in the same layout."""
    import torch
    from transformers import ModernBertForSequenceClassification

    config = _encoder_config(_save_encoder_tokenizer(folder), max_positions)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    torch.manual_seed(seed)
    network = ModernBertForSequenceClassification(config)
    with torch.no_grad():
        network.classifier.weight.normal_(std=0.5)
        network.classifier.bias.normal_(std=1.0)
    network.save_pretrained(folder)
    return _in_old_keys(folder)


def _save_encoder_tokenizer(folder: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL.values(), ".", *PLAIN, *(w for habit in HABITS.values() for w in habit)]
    words += [f"subject{i}" for i in range(40)]
    place = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(place, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, place[t]) for t in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **SPECIAL
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _encoder_config(tokenizer, max_positions: int):
    from transformers import ModernBertConfig

    return ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=max_positions,
        classifier_pooling="mean",
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )


def _in_old_keys(folder: Path) -> Path:
    """Rewrites the config as transformers 4.47 wrote it for the released checkpoints."""
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "layer_types", "dtype"):
        config.pop(key)
    config |= {
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.47.0.dev0",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
