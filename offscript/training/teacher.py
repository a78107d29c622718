"""The next-token distributions of a teacher that no step changes: the base without adapters, under the prompt in role. They
are computed once per row, before the first step, and kept in CPU memory: 8 x ``top`` bytes for each trained token."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from offscript.training.data.base import TrainingRow
from offscript.training.spans import IGNORED
from offscript.training.trainers import AdapterTrainer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

TOP, LOG_PROBS = "teacher_top", "teacher_log_probs"
"""Keys in a row, for each of its trained tokens: the ids of the teacher's most probable tokens (tokens, k), and their
log-probabilities, followed by that of all other tokens together: (tokens, k + 1), or (tokens, k) if there are no others."""


def add_teacher(trainer: AdapterTrainer, top: int) -> None:
    """Adds to each row of ``trainer``, in place, the teacher's distributions over its ``top`` most probable tokens.

    A row has its conversation in role in ``teacher_ids`` and ``teacher_labels``. Every rank has to call it, once the
    trainer has prepared the model: each computes a part of the rows, in as many forward passes as the others, which ZeRO
    stage 3 needs.
    """
    import torch
    from accelerate.utils import gather_object

    assert trainer.model is not None
    rows = [*trainer.train_rows, *trainer.eval_rows]
    own: dict[int, tuple[Tensor, Tensor]] = {}
    trained = trainer.model.training
    trainer.model.eval()
    with torch.no_grad(), trainer.peft_model.disable_adapter():
        for part in trainer.own_parts(rows, lambda row: len(row["teacher_ids"])):
            read = trainer.rows_of(rows, part)
            logits = own_logits(trainer.model, _inputs(trainer, read))
            counts = [trainer.amount(row) for row in read]
            found = zip(*(tensor.cpu().split(counts) for tensor in most_probable(logits, top)), strict=True)
            own |= {
                i: (ids.clone(), log_probs.clone()) for i, (ids, log_probs) in zip(part, found, strict=False)
            }
    trainer.model.train(trained)
    for part_of_rank in gather_object([own]):
        for i, (ids, log_probs) in part_of_rank.items():
            rows[i][TOP], rows[i][LOG_PROBS] = ids, log_probs


def _inputs(trainer: AdapterTrainer, rows: Sequence[TrainingRow]) -> "dict[str, Tensor]":
    """The conversations in role as tensors on the device of the model."""
    read = [{"input_ids": row["teacher_ids"], "labels": row["teacher_labels"]} for row in rows]
    inputs: dict[str, Tensor] = trainer._prepare_inputs(trainer.data_collator(read))  # type: ignore[assignment]
    return inputs


def own_logits(model: "Module", inputs: "dict[str, Tensor]") -> "Tensor":
    """Float32 logits (tokens, vocabulary) of the distributions that the labelled tokens are drawn from, row after row. The
    language-model head is applied to these positions alone."""
    from torch.nn.functional import pad

    # A position predicts the token after it.
    scored = pad(inputs["labels"][:, 1:] != IGNORED, (0, 1))
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    logits: Tensor = model(**given, use_cache=False, logits_to_keep=scored).logits
    return logits.float()


def most_probable(logits: "Tensor", top: int) -> "tuple[Tensor, Tensor]":
    """The ids (tokens, k) of the ``top`` most probable tokens of ``logits`` (tokens, vocabulary), int32, and their
    log-probabilities and that of the rest, as ``grouped`` returns them."""
    ids = logits.topk(min(top, logits.size(-1)), dim=-1).indices
    return ids.int(), grouped(logits, ids)


def grouped(logits: "Tensor", ids: "Tensor") -> "Tensor":
    """Log-probabilities of the tokens ``ids`` (tokens, k) under ``logits`` (tokens, vocabulary), followed by that of all other
    tokens together: (tokens, k + 1), which sum to 1, or (tokens, k) if ``ids`` is the whole vocabulary."""
    import torch

    total = logits.logsumexp(-1, keepdim=True)
    found = logits.gather(-1, ids) - total
    if ids.size(-1) == logits.size(-1):
        return found
    others = logits.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([found, others - total], -1)
