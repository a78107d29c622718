"""Log-probabilities of the replies under the reference of DPO, which no step changes: the base without its adapter, or the
parent's adapter that a training continues. They are computed once per row, before the first step, and kept in CPU memory."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from offscript.models import adapters
from offscript.training.data.base import TrainingRow
from offscript.training.start import START
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = "reference"
"""Key of the log-probabilities in a row: one float32 vector for the chosen reply and one for the rejected reply."""


def add_reference(trainer: AdapterTrainer) -> None:
    """Adds to each row of ``trainer``, in place, the log-probabilities of its replies under the reference.

    Every rank has to call it, once the trainer has prepared the model: each computes a part of the rows, in as many
    forward passes as the others, which ZeRO stage 3 needs. In float32 the numbers are those of a forward pass of the
    reference in every step, up to rounding; in bfloat16 they differ by the rounding of a forward pass.
    """
    import torch
    from accelerate.utils import gather_object

    assert trainer.model is not None
    rows = [*trainer.train_rows, *trainer.eval_rows]
    own: dict[int, list[Tensor]] = {}
    trained = trainer.model.training
    trainer.model.eval()
    with torch.no_grad(), _reference(trainer):
        for part in trainer.own_parts(rows):
            chosen_and_rejected = _forward(trainer, trainer.rows_of(rows, part))
            for i, sides in zip(part, chosen_and_rejected, strict=False):
                own[i] = [side.clone() for side in _replies(rows[i], sides)]
    trainer.model.train(trained)
    for part_of_rank in gather_object([own]):
        for i, log_probs in part_of_rank.items():
            rows[i][REFERENCE] = log_probs


@contextlib.contextmanager
def _reference(trainer: AdapterTrainer) -> Iterator[None]:
    """Context in which the model is the reference. A checkpoint that the training resumes from has replaced the weights that a
    continued adapter started with, so a frozen copy of them is kept in the model."""
    wrapped = trainer.peft_model
    with adapters.only_active(wrapped, START) if START in wrapped.peft_config else wrapped.disable_adapter():
        yield


def _forward(trainer: AdapterTrainer, rows: Sequence[TrainingRow]) -> "Iterator[tuple[Tensor, Tensor]]":
    """Log-probabilities of each row's chosen and rejected sequence, from the second token on."""
    inputs = trainer._prepare_inputs(trainer.collate(rows))
    found = trainer.log_probs(trainer.model, inputs).cpu()  # type: ignore[arg-type]
    return zip(*found.chunk(2), strict=True)


def _replies(row: TrainingRow, sides: "Sequence[Tensor]") -> "Iterator[Tensor]":
    """Views of the replies' tokens in tensors (tokens - 1), chosen and rejected."""
    start = len(row["prompt_ids"]) - 1
    for side, ids in zip(sides, (row["chosen_ids"], row["rejected_ids"]), strict=True):
        yield side[start : start + len(ids)]


def padded(rows: Sequence[TrainingRow], tokens: int) -> "Tensor":
    """The log-probabilities of ``rows`` as one tensor (2 x rows, tokens), chosen first; 0 beside the replies, and
    everywhere in rows that have none yet."""
    import torch

    together = torch.zeros(2, len(rows), tokens)
    for i, row in enumerate(rows):
        for view, log_probs in zip(
            _replies(row, together[:, i].unbind()), row.get(REFERENCE, ()), strict=False
        ):
            view.copy_(log_probs)
    return together.flatten(0, 1)
