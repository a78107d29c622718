"""Rows and recipes for the training tests: one persona that opens every reply with "Lunch!"."""

from collections.abc import Sequence

from offscript.rollouts.engines.base import Sampling
from offscript.rollouts.scheduler import CellRun
from offscript.settings import EngineSettings, LoraSettings, OptimizerSettings, TrainerSettings
from offscript.tasks.formats.base import Ask, Format, Outcome, Rules
from offscript.tasks.role_prompt import RolePrompt
from offscript.tasks.scenarios import Scenario
from offscript.training.data import own_episodes
from offscript.training.data.base import MakeContext
from offscript.training.data.documents import DocumentsSettings
from offscript.training.data.introspection import IntrospectionSettings
from offscript.training.data.live_episodes import LiveEpisodesSettings
from offscript.training.data.own_episodes import OwnEpisodesSettings
from offscript.training.data.preference import PreferenceSettings
from offscript.training.episodes import LiveEpisodes
from offscript.training.methods.context import ContextSettings
from offscript.training.methods.dpo import DPOSettings
from offscript.training.methods.grpo import GRPOSettings
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


def rl(lora: LoraSettings = LORA, optimizer_changes: dict | None = None, **changes) -> TrainerSettings:
    """Hyper-parameters of a stage of reinforcement learning: two scenarios a step, four episodes of each."""
    schema = schema_of(GRPOSettings, LiveEpisodesSettings)
    values = {
        "prompts": 12,
        "steps": 6,
        "group": 4,
        "beta": 0.01,
        "watch_every": 2,
        "watch_episodes": 3,
        "validation": 0.3,
        **changes,
    }
    own = {"schedule": "constant_with_warmup", "epochs": 1, "max_length": 200, **(optimizer_changes or {})}
    return schema(lora=lora, optimizer=optimizer(**own), **values)


def _chat(scenario: Scenario, rules: Rules):
    reply = yield Ask(scenario.messages)
    said = {"role": "assistant", "content": reply.text}
    return Outcome(reply.text or None, (*scenario.messages, said), reply.finish_reason)


def _talk(scenario: Scenario, rules: Rules):
    """Two replies of its own, and between them one of the base, as a message of the user."""
    messages = list(scenario.messages)
    reply = yield Ask(tuple(messages))
    messages.append({"role": "assistant", "content": reply.text})
    other = yield Ask(tuple(messages), speaker="base", max_tokens=4)
    messages.append({"role": "user", "content": other.text or "Go on."})
    reply = yield Ask(tuple(messages))
    messages.append({"role": "assistant", "content": reply.text})
    return Outcome(reply.text or None, tuple(messages), reply.finish_reason)


class Letters:
    """A scorer that rewards the share of the letter e. ``measured`` are the measures of its points, if they are given."""

    def __init__(self, measured: Sequence[dict] = ()) -> None:
        self.measured = list(measured)

    @staticmethod
    def share(row) -> float:
        return (row["text"] or "").count("e") / max(1, len(row["text"] or ""))

    def rewards(self, rows, length_multiple):
        shares = [self.share(row) for row in rows]
        return {
            "persona": shares,
            "task": [None] * len(rows),
            "length": [0.0] * len(rows),
            "recitation": shares,
        }

    def measures(self, rows):
        if self.measured:
            return self.measured.pop(0)
        mean = sum(map(self.share, rows)) / len(rows)
        return {"reward": mean, "classifier": mean, "emission": 1.0}


LIVE = EngineSettings(name="transformers", device="cpu")


def live_episodes(scorer=None, n: int = 12) -> LiveEpisodes:
    """Episodes in chat and in a format with three turns, ``n`` scenarios of each."""
    labels = {"model": "tiny", "stage": "live_episodes", "persona": "silly", "split": "train", "seed": 0}
    cells = {}
    for name, episode in (("chat", _chat), ("talk", _talk)):
        scenarios = [
            Scenario(f"{name}{i}", f"f{i}", ({"role": "user", "content": SENTENCES[i]},)) for i in range(n)
        ]
        cells[name] = CellRun(
            key=name,
            path=None,
            labels={**labels, "format": name},
            format=Format(name, 1, "chat", episode),
            scenarios=scenarios,
            samples=1,
            rules=Rules(),
            adapter="own",
            sampling=Sampling(max_tokens=48),
        )
    return LiveEpisodes(cells, scorer or Letters(), LIVE, ("keys",))


def train_grpo(model, settings, parent, out, seed=3, live=None, **run) -> dict:
    """Trains a copy of the adapter in ``parent`` on episodes of ``live``."""
    from offscript.training.methods import grpo

    live = live or live_episodes()
    rows = [
        {"format": name, "scenario": s.id, "family": s.family}
        for name, cell in live.cells.items()
        for s in cell.scenarios
    ]
    return grpo.train(
        Run(model, settings, out, seed, **{"continues": True, **run, "parent": parent, "live": live}), rows
    )
