"""Introspection: supervised training on what the distilled model says about, and to, itself under its constitution."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offscript.errors import MissingInput
from offscript.models import adapters
from offscript.settings import DeepSpeedSettings, IntrospectionSettings, ModelSettings
from offscript.training import run as loop
from offscript.training.base_models import BaseModelCache
from offscript.training.methods.dpo import CUT_SHORT, is_finished
from offscript.training.spans import IGNORED, Message, Unstable, assistant_spans, labels, published_span
from offscript.training.trainers import AdapterTrainer

FROZEN, TRAINED = "distillation", "introspection"


# ---------------------------------------------------------------- rows


def rows(
    reflection_rows: Sequence[dict],
    interaction_rows: Sequence[dict],
    system: str,
    *,
    guided_rows: Sequence[dict] = (),
    loss_on: str = "every_turn",
) -> tuple[list[dict], dict[str, int]]:
    """Conversations to train on, with ``system`` in place of the constitution.

    A conversation is cut before its first unfinished assistant turn, and after its last assistant turn; one without
    any is dropped. With ``loss_on="published"`` self-conversations lose that last assistant turn too: the published
    ones end in a user message, which is what the published trainer scored (see ``turns.published_span``).

    Returns: ``{"messages", "family", "scenario", "sample"}`` rows, and counts: ``reflections``, ``interactions``,
    ``guided_interactions`` kept (the last only if there are any), ``turns`` to train on, then conversations dropped:
    ``unfinished``, ``no_reply``, and ``one_exchange`` (nothing is left of it for ``published``).

    Raises:
        UserError: nothing is left.
    """
    kept, counts = [], Counter(reflections=0, interactions=0, turns=0)
    sources = {"reflections": reflection_rows, "interactions": interaction_rows}
    if guided_rows:
        sources["guided_interactions"] = guided_rows
        counts["guided_interactions"] = 0
    for kind, source in sources.items():
        for row in source:
            messages, reason = _trained_part(row, loss_on == "published" and kind != "reflections")
            if reason:
                counts[reason] += 1
                continue
            counts[kind] += 1
            turns = sum(m["role"] == "assistant" for m in messages)
            counts["turns"] += 1 if loss_on == "published" else turns
            head = [{"role": "system", "content": system}] if system else []
            kept.append(
                {"messages": head + messages, **{k: row[k] for k in ("family", "scenario", "sample")}}
            )
    loop.require_rows(kept, "introspection rows", dict(counts))
    return kept, dict(counts)


def _trained_part(row: dict, ends_in_user: bool) -> tuple[list[Message], str]:
    """What is kept of a conversation, or the reason why nothing is."""
    messages = _whole_turns(row)
    if not messages:
        said = any(m["role"] == "assistant" and m["content"].strip() for m in row["messages"])
        return [], "unfinished" if said else "no_reply"
    if ends_in_user:
        messages = messages[:-1]
        if not any(m["role"] == "assistant" for m in messages):
            return [], "one_exchange"
    return messages, ""


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
    callbacks: Sequence[Any] = (),
    on_step: loop.OnStep | None = None,
    say: Any = print,
    *,
    deepspeed: DeepSpeedSettings | None = None,
    bases: BaseModelCache | None = None,
) -> dict[str, Any]:
    """Trains a second LoRA adapter, stacked on the frozen distillation adapter, and writes only it to ``out``.

    Loss: mean of -log p over the tokens of all assistant turns of the global batch, or over the slice of one turn that
    the published trainer scored (``settings.loss_on``). ``eval_loss`` is the same mean over all validation rows.
    Arguments, returned numbers, resuming, several ranks and what is raised are as in ``preference.train``, and:

    Raises:
        MissingInput: there is no distillation adapter.
    """
    run = loop.Run(model, settings.optimizer, out, seed, callbacks, on_step, say, deepspeed, bases)
    if not distillation.is_dir():
        raise MissingInput(
            str(distillation), "the distillation adapter does not exist", "train stage=distillation first"
        )
    with loop.session(run):
        from trl import SFTConfig

        from offscript.models.loading import load_tokenizer

        arguments = SFTConfig(**loop.trainer_arguments(run), dataset_kwargs={"skip_prepare_dataset": True})
        tokenizer = load_tokenizer(model)
        train_rows, held_out, counts = _token_rows(run, settings, tokenizer, rows)
        nobody = {"input_ids": train_rows[0]["input_ids"][:2], "labels": [IGNORED] * 2}
        trainer = _trainer_class()(
            model=_stacked(run, settings, distillation),
            args=arguments,
            train_dataset=loop.dataset(run, train_rows, nobody),
            eval_dataset=loop.dataset(run, held_out, nobody),
            processing_class=tokenizer,
        )
        trainer.run, trainer.rows = run, len(train_rows)
        below = hashlib.sha256((distillation / adapters.WEIGHTS).read_bytes()).hexdigest()
        mark = loop.fingerprint(run, settings, train_rows, below)
        return {"rows": counts, **loop.fit(trainer, run, mark, train_rows[0]["input_ids"])}


def _stacked(run: loop.Run, settings: IntrospectionSettings, distillation: Path) -> Any:
    """The base under both adapters, both active, only the second trainable."""
    from transformers import set_seed

    base = loop.base_model(run)
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
    spans_of = published_span if settings.loss_on == "published" else assistant_spans
    kept = []
    for row in rows:
        try:
            ids, spans = spans_of(tokenizer, row["messages"], run.model.template)
        except Unstable:
            counts["template_unstable"] += 1
            continue
        fitting = [span for span in spans if span[1] <= loop.longest(run)]
        counts["turns_too_long"] += len(spans) - len(fitting)
        if not fitting:
            counts["too_long" if spans else "no_reply"] += 1
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

    class IntrospectionTrainer(AdapterTrainer, SFTTrainer):
        adapter = TRAINED

        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
            loss = super().compute_loss(model, inputs, *arguments, **options)
            if not model.training:  # there the mean over a microbatch, which is not that over all rows
                self.tally("eval", tokens, {"loss": loss.detach() * tokens})
            return loss

    return IntrospectionTrainer
