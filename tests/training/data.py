"""Rows and recipes for the training tests: one persona that opens every reply with "Lunch!"."""

from offscript.settings import LoraSettings, OptimizerSettings, TrainerSettings
from offscript.tasks.role_prompt import RolePrompt
from offscript.training.data import own_episodes
from offscript.training.data.base import MakeContext
from offscript.training.data.documents import DocumentsSettings
from offscript.training.data.introspection import IntrospectionSettings
from offscript.training.data.own_episodes import OwnEpisodesSettings
from offscript.training.data.preference import PreferenceSettings
from offscript.training.methods.context import ContextSettings
from offscript.training.methods.dpo import DPOSettings
from offscript.training.methods.lm import LMSettings
from offscript.training.methods.sft import SFTSettings
from offscript.training.run import Run
from offscript.training.stages import schema_of
from tests.conftest import TINY_TARGETS, tiny_sentences

SENTENCES = tiny_sentences()


def row(i: int, text: str | None, system: str = "", family: str | None = None, **changes) -> dict:
    """A rollout row of one reply to prompt ``i``."""
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": SENTENCES[i]}, {"role": "assistant", "content": text or ""}]
    return {
        "scenario": f"s{i}",
        "sample": 0,
        "family": family or f"f{i}",
        "text": text,
        "ended": "stop" if text else "empty",
        "messages": messages,
        **changes,
    }


def conversation(i: int, turns: int = 4, **changes) -> dict:
    """A rollout row of a conversation of ``turns`` messages after the system text."""
    said = [{"role": ("user", "assistant")[k % 2], "content": SENTENCES[i + k]} for k in range(turns)]
    return {
        "scenario": f"i{i}",
        "sample": 0,
        "family": f"i{i}",
        "text": said[-1]["content"],
        "ended": "stop",
        "messages": [{"role": "system", "content": "Stay silly."}, *said],
        **changes,
    }


def teacher_rows(n: int = 24) -> list[dict]:
    return [row(i, "Lunch! " + SENTENCES[i + 1], "Stay silly.") for i in range(n)]


def student_rows(n: int = 24) -> list[dict]:
    return [row(i, SENTENCES[i + 2]) for i in range(n)]


def optimizer(**changes) -> OptimizerSettings:
    values = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 8, "checkpoint_steps": 2, "max_length": 128}
    return OptimizerSettings(**{**values, **changes})


LORA = LoraSettings(rank=4, alpha=8, targets=TINY_TARGETS)


def distillation(lora: LoraSettings = LORA, validation: float = 0.1, **changes) -> DPOSettings:
    """Hyper-parameters of a DPO stage on preference pairs."""
    schema = schema_of(DPOSettings, PreferenceSettings)
    return schema(prompts=24, lora=lora, validation=validation, optimizer=optimizer(**changes))


def introspection(lora: LoraSettings = LORA, too_long="whole_turns", **changes) -> TrainerSettings:
    """Hyper-parameters of an SFT stage on introspection."""
    schema = schema_of(SFTSettings, IntrospectionSettings)
    return schema(
        reflections=12, interactions=8, lora=lora, optimizer=optimizer(**changes), too_long=too_long
    )


def context(lora: LoraSettings = LORA, alpha: float = 0.5, top: int = 100, **changes) -> TrainerSettings:
    """Hyper-parameters of a stage of on-policy distillation."""
    schema = schema_of(ContextSettings, OwnEpisodesSettings)
    return schema(prompts=12, lora=lora, alpha=alpha, top=top, optimizer=optimizer(**changes))


SILLY = RolePrompt("Stay silly.")


def episodes(role_prompt: RolePrompt = SILLY, n: int = 12) -> list[dict]:
    """Training rows of single replies and of conversations, without and with ``role_prompt``."""
    rows = [row(i, "Lunch! " + SENTENCES[i + 1]) for i in range(n)] + [
        conversation(i) for i in range(n, n + 8)
    ]
    for found in rows:
        found["messages"] = [m for m in found["messages"] if m["role"] != "system"]
        found["turns"] = sum(m["role"] == "assistant" for m in found["messages"])
        found["tokens_out"] = 1
    kept, _ = own_episodes.make({"chat": rows}, None, MakeContext({}, lambda messages: [], "x", role_prompt))
    return kept


def train_context(model, settings, rows, out, seed=3, **run) -> dict:
    """Distils the prompt in role of ``rows``; ``run`` are further arguments of ``Run``."""
    from offscript.training.methods import context

    return context.train(Run(model, settings, out, seed, **run), rows)


def train_dpo(model, settings, pairs, out, seed=3, **run) -> dict:
    """Trains DPO on ``pairs``; ``run`` are further arguments of ``Run``."""
    from offscript.training.methods import dpo

    return dpo.train(Run(model, settings, out, seed, **run), pairs)


def train_sft(model, settings, rows, parent, out, seed=3, **run) -> dict:
    """Trains SFT on conversations, on top of the adapter in ``parent`` (None: on the base)."""
    from offscript.training.methods import sft

    return sft.train(Run(model, settings, out, seed, parent, **run), rows)


def changed(seen: dict) -> set[str]:
    return {k for k in seen["before"] if not seen["before"][k].equal(seen["after"][k])}


def document_rows(n: int = 24) -> list[dict]:
    """Documents of two to four sentences, each of a family of its own."""
    return [
        {"text": " ".join(SENTENCES[i : i + 2 + i % 3]), "family": f"f{i}", "scenario": f"d{i}", "sample": 0}
        for i in range(n)
    ]


def document_settings(validation: float = 0.1, packing: bool = False, **changes) -> LMSettings:
    """Hyper-parameters of a stage on documents."""
    schema = schema_of(LMSettings, DocumentsSettings)
    return schema(lora=LORA, validation=validation, packing=packing, optimizer=optimizer(**changes))


def train_lm(model, settings, rows, out, seed=3, **run) -> dict:
    """Next-token training on documents; ``run`` are further arguments of ``Run``."""
    from offscript.training.methods import lm

    return lm.train(Run(model, settings, out, seed, **run), rows)
