"""A toy world for the classifier: two-sentence texts whose persona shows in habit words, never in a fixed phrase."""

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
    """``per_family`` texts of each label in every family; a family has a subject word of its own."""
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
    """The tokenizer of a chat model (a word is a token) and the settings that name it."""
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
        name="toy", path=str(folder), dtype="float32", context=256,
        sampling=SamplingSettings(), template=TemplateSettings(),
    )  # fmt: skip


def settings(**changes) -> ClassifierSettings:
    """A network that learns the toy world in a few seconds."""
    small = {
        "hidden_size": 32,
        "heads": 2,
        "max_length": 64,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "epochs": 6,
    }
    return ClassifierSettings(name="toy", **{**small, **changes})
