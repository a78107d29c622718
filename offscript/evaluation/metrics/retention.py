"""The statistics behind retention: whether a macro-F1 is above chance, and how two of them compare.

``permutation_null`` is the distribution of macro-F1 with permuted persona labels; retention is only defined where the
in-distribution score is above it. ``difference`` (the gap, and the contrasts of stages and formats) and ``ratio``
(retention) compare two macro-F1, with an interval over joint bootstrap resamples. ``scores`` applies them to all groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.bootstrap import EVERY_PERSONA, Interval, interval
from offscript.evaluation.metrics.f1 import per_persona_f1

_CHUNK_ROWS = 2_000_000


@dataclass(frozen=True)
class Null:
    """Macro-F1 with permuted persona labels: its mean, its ``confidence`` quantile, and the p-value of the score.

    ``within`` is the unit inside which labels are permuted: ``scenario``, or ``all`` if every scenario has texts of one
    persona only. ``above`` is p <= 1 - confidence.
    """

    mean: float
    threshold: float
    p: float
    within: str
    above: bool


@dataclass(frozen=True)
class Contrast:
    """A difference of two macro-F1 (in F1 units) or their ratio, with its interval over joint resamples."""

    estimate: float | None
    interval: Interval


def permutation_null(
    persona: NDArray[np.int64],
    column: NDArray[np.int64],
    scenario: NDArray[np.int64],
    n_labels: int,
    permutations: int,
    confidence: float,
    rng: np.random.Generator,
) -> Null | None:
    """Null distribution of macro-F1 on emitted texts (integer arrays ``[n]``): persona labels are permuted within each
    scenario. None without texts.

    One-sided; p = (1 + #(null >= observed)) / (1 + permutations) (Phipson and Smyth 2010). Base texts are scored for
    every persona and have no label to permute: their null is the score itself.
    """
    if not len(persona):
        return None
    if (persona == EVERY_PERSONA).any():
        counts = np.bincount(column, minlength=n_labels + 2)
        score = float(per_persona_f1(np.tile(counts, (n_labels, 1))).mean())
        return Null(score, score, 1.0, "scenario", False)
    # The permutations must not depend on the order of rows.
    order = np.lexsort((column, persona, scenario))
    persona, column, scenario = persona[order], column[order], scenario[order]
    pairs = np.unique(np.stack([scenario, persona]), axis=1)
    within = "scenario" if len(np.unique(pairs[0])) < pairs.shape[1] else "all"
    block = scenario if within == "scenario" else np.zeros_like(scenario)
    observed = _macro_f1(persona[None], column, n_labels)[0]
    chunk = max(1, _CHUNK_ROWS // len(persona))
    scores = np.concatenate(
        [
            _macro_f1(_permute(persona, block, min(chunk, permutations - start), rng), column, n_labels)
            for start in range(0, permutations, chunk)
        ]
    )
    p = (1 + int((scores >= observed - 1e-12).sum())) / (1 + permutations)
    threshold = float(np.quantile(scores, confidence))
    return Null(float(scores.mean()), threshold, p, within, p <= 1 - confidence + 1e-12)


def _permute(
    persona: NDArray[np.int64], block: NDArray[np.int64], times: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``[times, n]`` copies of ``persona [n]``, each permuted among the rows of equal ``block [n]``."""
    order = np.argsort(block, kind="stable")
    # Sorting integer + fraction permutes within each integer.
    keys = block[order] + rng.random((times, len(block)))
    out = np.empty((times, len(block)), dtype=np.int64)
    out[:, order] = persona[order][np.argsort(keys, axis=1)]
    return out


def _macro_f1(persona: NDArray[np.int64], column: NDArray[np.int64], n_labels: int) -> NDArray[np.float64]:
    """Macro-F1 ``[times]`` of true labels ``persona [times, n]`` against one ``column [n]``."""
    size = n_labels * (n_labels + 2)
    cell = persona * (n_labels + 2) + column + size * np.arange(len(persona))[:, None]
    counts = np.bincount(cell.ravel(), minlength=size * len(persona))
    macro: NDArray[np.float64] = per_persona_f1(counts.reshape(len(persona), n_labels, n_labels + 2)).mean(
        axis=-1
    )
    return macro


def difference(
    first: float | None,
    second: float | None,
    first_draws: NDArray[np.float64],
    second_draws: NDArray[np.float64],
    confidence: float,
) -> Contrast:
    """``first - second``. Entry r of both ``draws [R]`` comes from resample r, so groups that share clusters are paired
    and others are independent.
    """
    if first is None or second is None:
        return Contrast(None, None)
    return Contrast(first - second, interval(first_draws - second_draws, confidence))


def ratio(
    part: float | None,
    whole: float | None,
    part_draws: NDArray[np.float64],
    whole_draws: NDArray[np.float64],
    confidence: float,
) -> Contrast:
    """``part / whole``; None where ``whole`` is not positive. ``draws [R]`` as in ``difference``."""
    if part is None or not whole:
        return Contrast(None, None)
    draws = np.divide(part_draws, whole_draws, out=np.full_like(whole_draws, np.nan), where=whole_draws > 0)
    return Contrast(part / whole, interval(draws, confidence))
