"""Introspection: supervised training on what the distilled model says about, and to, itself under its constitution."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offscript.errors import MissingInput
from offscript.models import adapters
from offscript.settings import IntrospectionSettings, ModelSettings
from offscript.training import loop
from offscript.training.preference import CUT_SHORT, is_finished
from offscript.training.turns import Message, Unstable, assistant_spans, labels

FROZEN, TRAINED = "distillation", "introspection"


# ---------------------------------------------------------------- rows


def rows(
    reflection_rows: Sequence[dict], interaction_rows: Sequence[dict], system: str
) -> tuple[list[dict], dict[str, int]]:
    """Conversations to train on: every assistant turn, with ``system`` in place of the constitution.

    A conversation is cut before its first unfinished assistant turn, and after its last assistant turn; one without
    any is dropped. (The published trainer scored a slice of one turn of ten, see facts; this is every turn.)

    Returns: ``{"messages", "family", "scenario", "sample"}`` rows, and counts: ``reflections``, ``interactions``
    kept, ``turns`` to train on, then ``unfinished`` and ``no_reply`` conversations dropped.

    Raises:
        UserError: nothing is left.
    """
    kept, counts = [], Counter(reflections=0, interactions=0, turns=0)
    for kind, source in (("reflections", reflection_rows), ("interactions", interaction_rows)):
        for row in source:
            messages = _whole_turns(row)
            turns = sum(m["role"] == "assistant" for m in messages)
            if not turns:
                said = any(m["role"] == "assistant" and m["content"].strip() for m in row["messages"])
                counts["unfinished" if said else "no_reply"] += 1
                continue
            counts[kind] += 1
            counts["turns"] += turns
            head = [{"role": "system", "content": system}] if system else []
            kept.append(
                {"messages": head + messages, **{k: row[k] for k in ("family", "scenario", "sample")}}
            )
    loop.require_rows(kept, "introspection rows", dict(counts))
    return kept, dict(counts)


def _whole_turns(row: dict) -> list[Message]:
    """The conversation without system texts, up to its last finished assistant turn before an unfinished one."""
    said = [
        {"role": m["role"], "content": m["content"].strip()} for m in row["messages"] if m["role"] != "system"
    ]
    last = max((i for i, m in enumerate(said) if m["role"] == "assistant"), default=-1)
    end = 0
    for i, message in enumerate(said):
        if message["role"] != "assistant":
            continue
        if not is_finished(message["content"]) or (i == last and row.get("ended") in CUT_SHORT):
            break
        end = i + 1
    return said[:end]


# ---------------------------------------------------------------- training


def train(
    model: ModelSettings,
    settings: IntrospectionSettings,
    rows: Sequence[dict],
    distillation: Path,
    out: Path,
    seed: int,
    report_to: str = "none",
    on_step: loop.OnStep | None = None,
    say: Any = print,
) -> dict[str, Any]:
    """Trains a second LoRA adapter, stacked on the frozen distillation adapter, and writes only it to ``out``.

    Loss: mean of -log p over the tokens of all assistant turns of the global batch. Arguments, returned numbers and
    resuming as in ``preference.train``.

    Raises:
        MissingInput: there is no distillation adapter.
        UserError: a LoRA target matches nothing, no row is left, the adapter changes nothing.
        TrainingFailed: a loss or gradient is not a finite number.
    """
    run = loop.Run(model, settings.optimizer, out, seed, report_to, on_step, say)
    if not distillation.is_dir():
        raise MissingInput(
            str(distillation), "the distillation adapter does not exist", "train stage=distillation first"
        )
    with loop.quiet():
        from datasets import Dataset
        from trl import SFTConfig

        from offscript.models.load import load_tokenizer

        tokenizer = load_tokenizer(model)
        train_rows, held_out, counts = _token_rows(run, settings, tokenizer, rows)
        trainer = _trainer_class()(
            model=_stacked(run, settings, distillation),
            args=SFTConfig(**loop.trainer_arguments(run), dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_list(train_rows),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
        )
        trainer.run = run
        below = hashlib.sha256((distillation / adapters.WEIGHTS).read_bytes()).hexdigest()
        mark = loop.fingerprint(run, settings, train_rows, below)
        return {"rows": counts, **loop.fit(trainer, run, mark, train_rows[0]["input_ids"])}


def _stacked(run: loop.Run, settings: IntrospectionSettings, distillation: Path) -> Any:
    """The base under both adapters, both active, only the second trainable."""
    from transformers import set_seed

    from offscript.models.load import load_model, pick_device

    base = load_model(run.model, pick_device("auto"))
    adapters.check_targets(base, settings.lora.targets)
    wrapped: Any = adapters.attach(base, {FROZEN: distillation})
    set_seed(run.seed)  # LoRA's A is drawn here
    wrapped.add_adapter(TRAINED, loop.lora_config(settings.lora))
    wrapped.base_model.set_adapter([FROZEN, TRAINED])
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in name)
    return wrapped


def _token_rows(
    run: loop.Run, settings: IntrospectionSettings, tokenizer: Any, rows: Sequence[dict]
) -> tuple[list[dict], list[dict], dict[str, int]]:
    """(train, validation) rows of token ids and labels; a conversation that is too long keeps its first whole turns."""
    counts = Counter(given=len(rows), train=0, validation=0)
    kept = []
    for row in rows:
        try:
            ids, spans = assistant_spans(tokenizer, row["messages"], run.model.template)
        except Unstable:
            counts["template_unstable"] += 1
            continue
        fitting = [span for span in spans if span[1] <= loop.longest(run)]
        counts["turns_too_long"] += len(spans) - len(fitting)
        if not fitting:
            counts["too_long"] += 1
            continue
        ids = ids[: fitting[-1][1]]
        kept.append({"input_ids": ids, "labels": labels(ids, fitting), "family": row["family"]})
    train_rows, held_out = loop.split_families(kept, settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    loop.require_rows(train_rows, "introspection rows", dict(counts))
    strip = [
        [{c: row[c] for c in ("input_ids", "labels")} for row in part] for part in (train_rows, held_out)
    ]
    return strip[0], strip[1], dict(counts)


def _trainer_class() -> Any:
    from trl import SFTTrainer

    class IntrospectionTrainer(loop.AdapterCheckpoints, SFTTrainer):
        adapter = TRAINED

    return IntrospectionTrainer
