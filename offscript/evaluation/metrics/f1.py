"""Macro-F1 over a fixed label set, and what the texts that are missing could do to it.

Everything works on confusion counts of shape ``[..., N, N + 2]`` for a set of N labels: a row is a true persona;
columns 0..N-1 are the predicted persona, column N a prediction *outside* the set (a miss for the true persona and a
false positive for nobody), column N + 1 a text that is *missing*. Leading axes (resamples, cells) are free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[Any]


def metric_name(labels: Sequence[str]) -> str:
    """``macro_f1_10`` for ten labels: two tables compare only where their sets are of one size."""
    return f"macro_f1_{len(labels)}"


def confusion(true: NDArray[np.integer], column: NDArray[np.integer], n_labels: int) -> NDArray[np.int64]:
    """Confusion counts ``[N, N + 2]`` from two integer arrays ``[n]``.

    Raises:
        ValueError: an index does not fit: ``true`` in 0..N-1, ``column`` in 0..N+1.
    """
    width = n_labels + 2
    if true.size and not (
        true.min() >= 0 and true.max() < n_labels and column.min() >= 0 and column.max() < width
    ):
        raise ValueError(f"labels must lie in 0..{n_labels - 1} (true) and 0..{width - 1} (predicted)")
    flat = np.bincount(true * width + column, minlength=n_labels * width)
    return flat.reshape(n_labels, width)


def emitted_support(counts: Counts) -> Counts:
    """Texts per true persona that exist, shape ``[..., N]``."""
    return counts[..., :-1].sum(axis=-1)


def per_persona_f1(counts: Counts, missing_is_miss: bool = False) -> NDArray[np.float64]:
    """F1 of each persona, shape ``[..., N]``: 2 TP / (true + predicted), 0 where both are 0.

    Equals scikit-learn's ``f1_score(labels=set, average=None, zero_division=0)`` on the texts that exist. With
    ``missing_is_miss`` a missing text is a class of its own: a miss for its persona, a false positive for nobody.
    """
    n_labels = counts.shape[-2]
    hits = np.einsum("...ii->...i", counts[..., :n_labels])
    true = counts.sum(axis=-1) if missing_is_miss else emitted_support(counts)
    predicted = counts[..., :n_labels].sum(axis=-2)
    return 2.0 * hits / np.maximum(true + predicted, 1)


def accuracy(counts: Counts) -> float | None:
    """Share of existing texts whose predicted persona is the true one; None where there are no texts."""
    n_labels = counts.shape[-2]
    emitted = emitted_support(counts).sum()
    return float(np.trace(counts[:, :n_labels]) / emitted) if emitted else None


@dataclass(frozen=True)
class Readings:
    """Macro-F1 under four assumptions about the missing texts; None where nothing can be said.

    ``emitted``: on the texts that exist (the published reading). ``own_class``: a missing text is always a miss and
    never a false positive. ``lower`` and ``upper``: the least and the most that it could have been.
    """

    emitted: float | None
    own_class: float | None
    lower: float | None
    upper: float | None


def readings(counts: Counts, crossed: bool = False, planned_known: bool = True) -> Readings:
    """The four readings of one matrix ``[N, N + 2]``.

    ``crossed``: every row of ``counts`` is the same, because one text per scenario stands for all personas (base).
    Where the number of planned texts is unknown, only ``emitted`` can be given.
    """
    has_text = bool(emitted_support(counts).sum())
    has_any = has_text or bool(counts.sum())
    emitted = float(per_persona_f1(counts).mean()) if has_text else None
    if not (planned_known and has_any):
        return Readings(emitted, None, None, None)
    own_class = float(per_persona_f1(counts, missing_is_miss=True).mean())
    lower, upper = _crossed_bounds(counts, own_class) if crossed else _bounds(counts)
    return Readings(emitted, own_class, lower, upper)


def _bounds(counts: Counts) -> tuple[float, float]:
    """Least and greatest macro-F1 over all labels that the missing texts could have got.

    Greatest: each was right. Least: each got a wrong label of the set. A false positive for label q lowers only
    F1_q = 2 TP_q / (true_q + predicted_q + x_q), by less each time, so the sum is separable and convex in x. The
    feasible x are sum(x) = M with x_q <= M - missing_q (q's own texts cannot wrongly be q), and taking the M
    largest single drops reaches the minimum.
    """
    n_labels = counts.shape[-2]
    missing = counts[:, -1]
    total = int(missing.sum())
    right = counts[:, :-1].copy()
    right[np.arange(n_labels), np.arange(n_labels)] += missing
    upper = float(per_persona_f1(np.pad(right, ((0, 0), (0, 1)))).mean())
    start = per_persona_f1(counts, missing_is_miss=True)
    if n_labels == 1 or not total:
        return float(start.mean()), upper
    hits = np.diagonal(counts[:, :n_labels])
    size = counts.sum(axis=1) + counts[:, :n_labels].sum(axis=0)
    f1 = 2.0 * hits[:, None] / np.maximum(size[:, None] + np.arange(total + 1), 1)
    drops = f1[:, :-1] - f1[:, 1:]
    allowed = np.arange(total) < (total - missing)[:, None]
    worst = np.sort(drops[allowed])[::-1][:total].sum()
    return float((start.sum() - worst) / n_labels), upper


def _crossed_bounds(counts: Counts, own_class: float) -> tuple[float, float]:
    """The same for base texts, each of which stands for all N personas and so is right for exactly one.

    F1_q = 2 (n_q + x_q) / (n + N (n_q + x_q)) for n_q texts labelled q and n planned: rising and concave in x_q. Most:
    the M largest single rises. Least: no missing text gets a label of the set, which is the class of its own.
    """
    n_labels = counts.shape[-2]
    labelled, planned, total = counts[0, :n_labels], counts[0].sum(), int(counts[0, -1])
    got = labelled[:, None] + np.arange(total + 1)
    f1 = 2.0 * got / (planned + n_labels * got)
    best = np.sort((f1[:, 1:] - f1[:, :-1]).ravel())[::-1][:total].sum()
    return own_class, float((f1[:, 0].sum() + best) / n_labels)
