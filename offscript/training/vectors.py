"""Persona vectors: differences of mean activations, and the layer and strength that are used of them.

A vector of a layer is the mean of the layer's output over the tokens of replies under the constitution, minus that of
replies without it (Chen et al. 2025, arXiv 2507.21509). All replies count the same, whatever their length.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from offscript.errors import UserError
from offscript.models.steering import mean_outputs
from offscript.settings import ModelSettings, SteeringSettings
from offscript.tasks.rows import Row
from offscript.training.run import split_families
from offscript.training.spans import IGNORED, Unstable, assistant_turns, labels

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AUC_TOLERANCE = 0.01
"""Layers whose AUC differs by less separate the replies equally well."""

BATCH = 8
"""Conversations of one forward pass. Their logits have to fit beside the weights."""


@dataclass(frozen=True)
class Layers:
    """``vectors`` (layers, width); of each layer the ``auc`` on the held-out replies; the chosen ``layer``."""

    vectors: "Tensor"
    auc: list[float]
    layer: int


class Strength(TypedDict):
    """Perplexity of the replies that are steered with ``strength``; None if all of them are empty."""

    strength: float
    perplexity: float | None


# ---------------------------------------------------------------- rows


def split_rows(
    prompted: Sequence[Row], plain: Sequence[Row], settings: SteeringSettings, where: str
) -> tuple[tuple[list[Row], list[Row]], tuple[list[Row], list[Row]]]:
    """The replies as (to fit on, held out), each as (prompted, plain). Rows without a text are left out.

    Raises:
        UserError: one of the four is empty.
    """
    parts = [
        split_families([dict(row) for row in rows if row["text"]], settings.validation)
        for rows in (prompted, plain)
    ]
    (fit_prompted, held_prompted), (fit_plain, held_plain) = parts
    sizes = [len(fit_prompted), len(fit_plain), len(held_prompted), len(held_plain)]
    if not all(sizes):
        found = "{} replies with and {} without the constitution, and {} and {} held out".format(*sizes)
        raise UserError(where, found, "raise format.count.train, or change steering.validation")
    return (fit_prompted, fit_plain), (held_prompted, held_plain)  # type: ignore[return-value]


def batches_of(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], model: ModelSettings
) -> "Iterator[tuple[Tensor, Tensor, Tensor]]":
    """Batches of at most ``BATCH`` conversations, in order, padded on the right: token ids, attention mask, and labels,
    which are ``IGNORED`` outside the replies. Each (rows, length).

    A conversation that the chat template renders turn by turn counts as its last turn.
    """
    import torch

    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    for start in range(0, len(rows), BATCH):
        encoded = [_encoded(tokenizer, row, model) for row in rows[start : start + BATCH]]
        width = max(len(ids) for ids, _ in encoded)
        ids = torch.tensor([i + [pad] * (width - len(i)) for i, _ in encoded])
        mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in encoded])
        targets = torch.tensor([t + [IGNORED] * (width - len(t)) for _, t in encoded])
        yield ids, mask, targets


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", row: Row, model: ModelSettings
) -> tuple[list[int], list[int]]:
    where = f"row {row['scenario']}/{row['sample']}"
    try:
        ids, spans = assistant_turns(tokenizer, row["messages"], model.template)[-1]
    except Unstable as error:
        found = f"the chat template changes its reply ({error})"
        raise UserError(where, found, "leave out stages with steering") from None
    return ids, labels(ids, spans)


# ---------------------------------------------------------------- activations


def reply_means(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: ModelSettings,
) -> "Tensor":
    """The mean output of every layer over the tokens of each reply: (rows, layers, width), float32 on the CPU."""
    import torch

    found = []
    for ids, mask, targets in batches_of(tokenizer, rows, settings):
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        means = mean_outputs(model, targets != IGNORED, functools.partial(model, **inputs, logits_to_keep=1))
        found.append(torch.stack([means[layer] for layer in sorted(means)], dim=1))
    return torch.cat(found).clone()


def fit_layers(fit: "tuple[Tensor, Tensor]", held_out: "tuple[Tensor, Tensor]") -> Layers:
    """The vector of each layer, and the layer that is used.

    It is the one nearest to the middle of those that separate the held-out replies best: by the ROC AUC of their
    projection on the vector, up to ``AUC_TOLERANCE``. On most models several layers separate them perfectly, and middle
    layers change the replies most.

    Args:
        fit: mean activations of prompted and of plain replies, each (rows, layers, width).
        held_out: those of the held-out replies.
    """
    import torch
    from sklearn.metrics import roc_auc_score

    prompted, plain = fit
    vectors = prompted.mean(dim=0) - plain.mean(dim=0)
    scores = torch.einsum("rlw,lw->rl", torch.cat(held_out), vectors).numpy()
    true = [1] * len(held_out[0]) + [0] * len(held_out[1])
    auc = [float(roc_auc_score(true, scores[:, layer])) for layer in range(len(vectors))]
    best = [layer for layer, value in enumerate(auc) if value >= max(auc) - AUC_TOLERANCE]
    middle = (len(auc) - 1) / 2
    return Layers(vectors, auc, min(best, key=lambda layer: (abs(layer - middle), layer)))


# ---------------------------------------------------------------- strength


def perplexity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    settings: ModelSettings,
) -> float:
    """exp of the mean -ln p of the replies' tokens (end token included) under ``model`` without a system prompt."""
    import torch

    total, count = 0.0, 0
    for ids, mask, targets in batches_of(tokenizer, [_plain(row) for row in rows], settings):
        with torch.inference_mode():
            output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
            logits, wanted = output.logits[:, :-1].float(), targets[:, 1:].to(model.device)
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
            )
        total += float(losses)
        count += int((wanted != IGNORED).sum())
    return float(torch.tensor(total / count).exp())


def _plain(row: Row) -> Row:
    messages = [message for message in row["messages"] if message["role"] != "system"]
    return {**row, "messages": messages}


def choose_strength(found: Sequence[Strength], plain: float, settings: SteeringSettings) -> float | None:
    """The largest strength up to which no perplexity is over the limit; None if that of the smallest one is.

    A text that repeats itself has a low perplexity again, so a strength beyond the first one that is over the limit is
    not considered.
    """
    chosen = None
    for entry in sorted(found, key=lambda entry: entry["strength"]):
        if entry["perplexity"] is None or entry["perplexity"] > settings.max_perplexity * plain:
            break
        chosen = entry["strength"]
    return chosen


def describe(report: Mapping[str, Any]) -> str:
    """One line for the console."""
    layer, layers = report["layer"], len(report["auc"])
    text = f"layer {layer + 1} of {layers}, held-out AUC {report['auc'][layer]:.3f}"
    used = next(s["perplexity"] for s in report["strengths"] if s["strength"] == report["strength"])
    shown = "none, all replies are empty" if used is None else f"{used:.2f}"
    return f"{text}; strength {report['strength']:g}, perplexity {shown} (plain {report['plain_perplexity']:.2f})"
