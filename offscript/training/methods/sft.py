"""Supervised fine-tuning on the assistant turns of conversations, also on top of a parent's frozen adapter."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from offscript.settings import TemplateSettings, TrainerSettings, identity, runtime
from offscript.tasks.messages import Image, images_of
from offscript.training.data.base import Counts, TrainingRow, require_rows
from offscript.training.fit import fit
from offscript.training.methods.base import Method
from offscript.training.packing import pack
from offscript.training.run import (
    Metrics,
    Run,
    dataset,
    fingerprint,
    image_encoder,
    longest,
    say_dropped,
    session,
    split_families,
    trainer_arguments,
)
from offscript.training.spans import (
    IGNORED,
    Unstable,
    assistant_turns,
    labels,
    last_turns,
    published_span,
    special_token,
)
from offscript.training.start import OWN, adapted_base, check_parent, parent_digest
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SFTSettings(TrainerSettings):
    """``too_long``: of a conversation with more tokens than ``optimizer.max_length``, the whole turns that fit are trained
    (``whole_turns``), or it is cut there and made to end in an end token (``cut``, as published). ``packing``: the rows of a
    micro-batch follow one another in one sequence, in which no row sees another, in place of being padded. The rows of a
    step, and its loss, are the same."""

    too_long: Literal["whole_turns", "cut"] = identity("whole_turns", unhashed="whole_turns")
    packing: bool = runtime(False)


def train(run: Run, conversations: Sequence[TrainingRow]) -> Metrics:
    """Trains a LoRA adapter and writes only it to ``run.out``: a new one, stacked on the frozen adapter in ``run.parent`` if
    there is one, or with ``run.continues`` a copy of that adapter.

    Loss: mean of -log p over the tokens of all assistant turns of the global batch, or over the slice of one turn that
    the published trainer scored (rows with ``loss_on`` published). ``eval_loss`` is the same mean over all validation
    rows. Returned numbers, resuming, several ranks and what is raised are as in ``dpo.train``.

    Args:
        run: the training.
        conversations: rows ``{"family", "messages": [message], "loss_on", "trained_turns"}``. The last ``trained_turns``
            assistant turns are trained (left out: all). ``loss_on`` may be left out.

    Raises:
        MissingInput: the parent's adapter does not exist.
    """
    # A method of a user that trains by this function may have settings of its own.
    packing = isinstance(run.settings, SFTSettings) and run.settings.packing
    return train_tokens(run, partial(_token_rows, run, rows=conversations), packing=packing)


TokenRows = tuple[list[TrainingRow], list[TrainingRow], Counts]
"""Rows ``{"input_ids", "labels"}`` (a method may have further columns) for training and for validation, and counts."""


def train_tokens(
    run: Run,
    token_rows: "Callable[[PreTrainedTokenizerBase], TokenRows]",
    *,
    packing: bool = False,
    trainer_class: "Callable[[], Callable[..., AdapterTrainer]] | None" = None,
    prepare: Callable[[AdapterTrainer], None] | None = None,
) -> Metrics:
    """As ``train``, on the rows that ``token_rows`` makes with the tokenizer of the model.

    Args:
        packing: whether micro-batches are packed.
        trainer_class: makes the class of the trainer, if its loss is another one.
        prepare: called with the trainer before it trains.
    """
    check_parent(run)
    with session(run):
        from trl import SFTConfig

        from offscript.models.loading import load_tokenizer

        arguments = SFTConfig(**trainer_arguments(run), dataset_kwargs={"skip_prepare_dataset": True})
        tokenizer = load_tokenizer(run.model)
        train_rows, held_out, counts = token_rows(tokenizer)
        images = any(row.get("images") for row in (*train_rows, *held_out))
        trainer = (trainer_class or _trainer_class)()(
            model=adapted_base(run),
            args=arguments,
            train_dataset=dataset(train_rows),
            eval_dataset=dataset(held_out),
            processing_class=tokenizer,
        )
        trainer.run, trainer.train_rows, trainer.eval_rows = run, train_rows, held_out
        trainer.padding_row = {"input_ids": train_rows[0]["input_ids"][:2], "labels": [IGNORED] * 2}
        if images:
            trainer.encoder = image_encoder(run)
        if packing:
            pack(trainer, tokenizer.pad_token_id)
        if prepare is not None:
            prepare(trainer)
        return {
            "rows": counts,
            **fit(
                trainer, run, fingerprint(run, train_rows, *parent_digest(run)), train_rows[0]["input_ids"]
            ),
        }


def _token_rows(run: Run, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[TrainingRow]) -> TokenRows:
    """(train, validation) rows of token ids and labels; a conversation that is too long keeps its first whole turns."""
    counts = Counter(given=len(rows), train=0, validation=0)
    kept = []
    for row in rows:
        if special_token(tokenizer, row["messages"]):
            counts["special_token"] += 1
            continue
        images = images_of(row["messages"])
        try:
            sequences = _sequences(tokenizer, row, run.model.template)
        except Unstable:
            counts["template_unstable"] += 1
            continue
        counts["turn_by_turn"] += len(sequences) > 1
        # A method of a user that trains by this function may have settings of its own.
        if isinstance(run.settings, SFTSettings) and run.settings.too_long == "cut":
            sequences = [_cut(ids, spans, longest(run), tokenizer.eos_token_id) for ids, spans in sequences]
        fitting = _fitting(sequences, row["family"], longest(run), counts)
        kept += [_with_images(fit, images, tokenizer, run.model.template) for fit in fitting]
    train_rows, held_out = split_families(kept, run.settings.validation)
    counts.update(train=len(train_rows), validation=len(held_out))
    say_dropped(run, counts)
    require_rows(train_rows, "introspection rows", dict(counts))
    return token_columns(train_rows), token_columns(held_out), dict(counts)


def token_columns(rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """``rows`` without what the trainer does not read."""
    columns = ("input_ids", "labels", "images")
    return [{column: row[column] for column in columns if column in row} for row in rows]


def _with_images(
    row: TrainingRow, images: list[Image], tokenizer: "PreTrainedTokenizerBase", template: TemplateSettings
) -> TrainingRow:
    """``row`` with those of the ``images`` of its conversation that it has tokens of; without the column if there are none."""
    if not images:
        return row
    token: int = tokenizer.image_token_id  # type: ignore[attr-defined]
    count, rest = divmod(row["input_ids"].count(token), template.image_tokens)
    assert rest == 0 and count <= len(images), "an image is in a row in part"
    return {**row, "images": images[:count]} if count else row


def _sequences(
    tokenizer: "PreTrainedTokenizerBase", row: TrainingRow, template: TemplateSettings
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """The token sequences of a conversation, each with the spans that are trained."""
    if row.get("loss_on") == "published":
        return [published_span(tokenizer, row["messages"], template)]
    sequences = assistant_turns(tokenizer, row["messages"], template)
    count = row.get("trained_turns")
    return sequences if count is None else last_turns(sequences, count)


def _cut(
    ids: list[int], spans: list[tuple[int, int]], longest: int, end_token: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """A sequence cut after ``longest`` tokens, the last of which becomes the end token, as the published trainer does. A
    turn that begins within the last two tokens is not trained."""
    if len(ids) <= longest:
        return ids, spans
    fitting = [(start, min(end, longest)) for start, end in spans if start < longest - 2]
    return [*ids[: longest - 1], end_token], fitting


def _fitting(
    sequences: Sequence[tuple[list[int], list[tuple[int, int]]]],
    family: str,
    longest: int,
    counts: Counter[str],
) -> list[TrainingRow]:
    """Rows of the sequences, up to the last turn that ends within ``longest`` tokens; updates ``counts``."""
    rows = []
    for ids, spans in sequences:
        fitting = [span for span in spans if span[1] <= longest]
        counts["turns_too_long"] += len(spans) - len(fitting)
        if fitting:
            cut = ids[: fitting[-1][1]]
            rows.append({"input_ids": cut, "labels": labels(cut, fitting), "family": family})
    if not rows:
        counts["too_long" if any(spans for _, spans in sequences) else "no_reply"] += 1
    return rows


def _trainer_class() -> "Callable[..., AdapterTrainer]":
    from torch import Tensor
    from torch.nn import Module
    from trl import SFTTrainer

    class ConversationTrainer(AdapterTrainer, SFTTrainer):
        adapter = OWN

        def loss(self, model: Module, inputs: dict[str, Tensor]) -> Tensor:
            loss = -self.log_probs(model, inputs).sum()
            if model.training:
                return self.step_loss(loss)
            # The trainer's evaluation loss is a mean over micro-batches, which is not the mean over all tokens.
            tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
            self.tally("eval", tokens, {"loss": loss})
            return loss / tokens.clamp(min=1)

    return ConversationTrainer


METHOD = Method(
    name="sft",
    settings=SFTSettings,
    takes="conversations",
    train=train,
    stacks=True,
    continues=True,
    reads_images=True,
)
