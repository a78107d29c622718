"""Macro-F1 over a fixed label set, and its bounds under missing texts.

All functions take confusion counts of shape ``[..., N, N + 2]`` for N labels. A row is a true persona. Columns 0..N-1
are the predicted persona; column N is a prediction *outside* the label set (a false negative for the true persona, a
false positive for no label); column N + 1 is a *missing* text. Leading axes (resamples, groups) are arbitrary.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", bound=np.int64 | np.int32 | np.float64)
Counts = NDArray[np.int64 | np.int32 | np.float64]

MACRO_F1 = "macro_f1_{n}"
"""Name of the metric for ``n`` labels. Scores over label sets of different sizes cannot be compared."""


def confusion(true: NDArray[np.int64], column: NDArray[np.int64], n_labels: int) -> NDArray[np.int64]:
    """Confusion counts ``[N, N + 2]`` from two integer arrays ``[n]``.

    Raises:
        ValueError: an index is out of range: ``true`` is in 0..N-1, ``column`` in 0..N+1.
    """
    width = n_labels + 2
    if true.size and not (
        true.min() >= 0 and true.max() < n_labels and column.min() >= 0 and column.max() < width
    ):
        raise ValueError(f"labels must be in 0..{n_labels - 1} (true) and 0..{width - 1} (predicted)")
    flat = np.bincount(true * width + column, minlength=n_labels * width)
    return flat.reshape(n_labels, width)


def emitted_support(counts: NDArray[_Number]) -> NDArray[_Number]:
    """Number of emitted texts of each true persona, shape ``[..., N]``."""
    support: NDArray[_Number] = counts[..., :-1].sum(axis=-1)
    return support


def per_persona_f1(counts: Counts, missing_is_miss: bool = False) -> NDArray[np.float64]:
    """F1 of each persona, shape ``[..., N]``: 2 TP / (true + predicted), 0 where both are 0.

    Equals scikit-learn's ``f1_score(labels=set, average=None, zero_division=0)`` on the emitted texts. With
    ``missing_is_miss`` a missing text has a class of its own: a false negative for its persona, a false positive for
    no label.
    """
    n_labels = counts.shape[-2]
    hits = np.einsum("...ii->...i", counts[..., :n_labels])
    true = counts.sum(axis=-1) if missing_is_miss else emitted_support(counts)
    predicted = counts[..., :n_labels].sum(axis=-2)
    f1: NDArray[np.float64] = 2.0 * hits / np.maximum(true + predicted, 1)
    return f1


def accuracy(counts: Counts) -> float | None:
    """Share of emitted texts whose predicted persona is the true one; None without emitted texts."""
    n_labels = counts.shape[-2]
    emitted = emitted_support(counts).sum()
    return float(np.trace(counts[:, :n_labels]) / emitted) if emitted else None


@dataclass(frozen=True)
class Readings:
    """Macro-F1 under four assumptions about the missing texts; None where it is undefined.

    ``emitted``: of the emitted texts alone (as published). ``own_class``: every missing text is a false negative and
    never a false positive. ``lower`` and ``upper``: minimum and maximum over all labels that the missing texts could
    have been given.
    """

    emitted: float | None
    own_class: float | None
    lower: float | None
    upper: float | None


def readings(counts: Counts, crossed: bool = False, planned_known: bool = True) -> Readings:
    """The four readings of one matrix ``[N, N + 2]``.

    ``crossed``: all rows of ``counts`` are equal, because one base text per scenario is scored for every persona.
    Without the number of planned texts only ``emitted`` is defined.
    """
    has_text = bool(emitted_support(counts).sum())
    has_any = has_text or bool(counts.sum())
    emitted = float(per_persona_f1(counts).mean()) if has_text else None
    if not (planned_known and has_any):
        return Readings(emitted, None, None, None)
    own_class = float(per_persona_f1(counts, missing_is_miss=True).mean())
    lower, upper = _crossed_bounds(counts, own_class) if crossed else map(float, bounds(counts))
    return Readings(emitted, own_class, lower, upper)


def bounds(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimum and maximum ``[...]`` of macro-F1 over all labels that the missing texts could have been given.

    Maximum: every missing text is predicted correctly. Minimum: every one gets a wrong label of the set. A false
    positive for label q lowers only F1_q = 2 TP_q / (true_q + predicted_q + x_q), by less each time, so the sum is
    separable and convex in x. The feasible x are sum(x) = M with x_q <= M - missing_q (a text of q cannot be a false
    positive for q), and taking the M largest single drops reaches the minimum.
    """
    n_labels = counts.shape[-2]
    missing = counts[..., -1].astype(np.float64)
    hits = np.einsum("...ii->...i", counts[..., :n_labels]).astype(np.float64)
    size = counts.sum(axis=-1) + counts[..., :n_labels].sum(axis=-2)
    upper = (2.0 * (hits + missing) / np.maximum(size + missing, 1)).mean(axis=-1)
    start = 2.0 * hits / np.maximum(size, 1)
    total = missing.sum(axis=-1, keepdims=True)
    drop = _largest_drops(2.0 * hits, np.maximum(size, 1.0), total - missing, total[..., 0])
    lower: NDArray[np.float64] = (start.sum(axis=-1) - drop) / n_labels
    return lower, upper


def _largest_drops(
    above: NDArray[np.float64],
    below: NDArray[np.float64],
    most: NDArray[np.float64],
    total: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Sum ``[...]`` of the ``total [...]`` largest drops of ``above / (below + x)`` (``[..., N]``) for x = 0, 1, ...,
    ``most - 1``.

    Without rounding, the drops that are taken end where all curves have one slope. With it, a curve ends less than two
    steps from there, so those steps alone have to be compared.
    """
    fraction = _equal_slope(np.sqrt(above), below, most, total)
    taken = np.maximum(np.floor(fraction) - 1, 0)
    steps = taken[..., None] + np.arange(3)
    left = (total - taken.sum(axis=-1)).astype(np.int64)
    drops = above[..., None] / ((below[..., None] + steps) * (below[..., None] + steps + 1))
    drops = np.where(steps < most[..., None], drops, 0.0).reshape(*total.shape, -1)
    largest = np.zeros((*total.shape, drops.shape[-1] + 1))
    np.cumsum(-np.sort(-drops, axis=-1), axis=-1, out=largest[..., 1:])
    last = np.take_along_axis(largest, np.clip(left, 0, drops.shape[-1])[..., None], axis=-1)
    whole: NDArray[np.float64] = (above / below - above / (below + taken)).sum(axis=-1) + last[..., 0]
    return whole


def _equal_slope(
    root: NDArray[np.float64],
    below: NDArray[np.float64],
    most: NDArray[np.float64],
    total: NDArray[np.float64],
) -> NDArray[np.float64]:
    """x ``[..., N]`` with sum ``total`` at which all root^2 / (below + x) have one slope, where 0 < x < most.

    x = clip(root * level - below, 0, most) for one level. Its sum is piecewise linear in the level.
    """
    used = root > 0
    safe = np.where(used, root, 1.0)
    bends = np.concatenate(
        [np.where(used, below / safe, 0.0), np.where(used, (below + most) / safe, 0.0)], axis=-1
    )
    order = np.argsort(bends, axis=-1)
    bends = np.take_along_axis(bends, order, axis=-1)
    slope = np.cumsum(np.take_along_axis(np.concatenate([root, -root], axis=-1), order, axis=-1), axis=-1)
    sums = np.zeros_like(bends)
    np.cumsum(slope[..., :-1] * np.diff(bends, axis=-1), axis=-1, out=sums[..., 1:])
    piece = np.maximum((sums < total[..., None]).sum(axis=-1, keepdims=True) - 1, 0)
    start, height, steep = (np.take_along_axis(a, piece, axis=-1) for a in (bends, sums, slope))
    level = start + (total[..., None] - height) / np.where(steep > 1e-9, steep, np.inf)
    return np.clip(np.where(used, root * level - below, 0.0), 0.0, most)


def _crossed_bounds(counts: Counts, own_class: float) -> tuple[float, float]:
    """Minimum and maximum for base texts: each is scored for all N personas and is right for exactly one label.

    F1_q = 2 (n_q + x_q) / (n + N (n_q + x_q)) for n_q texts labelled q and n planned: increasing and concave in x_q.
    Maximum: the M largest single increases. Minimum: no missing text gets a label of the set, which is ``own_class``.
    """
    n_labels = counts.shape[-2]
    labelled, planned, total = counts[0, :n_labels], counts[0].sum(), int(counts[0, -1])
    got = labelled[:, None] + np.arange(total + 1)
    f1 = 2.0 * got / (planned + n_labels * got)
    best = np.sort((f1[:, 1:] - f1[:, :-1]).ravel())[::-1][:total].sum()
    return own_class, float((f1[:, 0].sum() + best) / n_labels)
