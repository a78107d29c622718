"""What a format keeps of the F1 that a model has in chat, and whether chat had anything to keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.bootstrap import EVERY_PERSONA, interval
from offscript.evaluation.metrics.f1 import per_persona_f1

Interval = tuple[float, float] | None
_CHUNK_ROWS = 2_000_000


@dataclass(frozen=True)
class Null:
    """Macro-F1 with the persona labels shuffled: mean, the quantile that a score must pass, and the p-value.

    ``within`` is what the shuffle stayed inside: ``scenario``, or ``all`` where no scenario holds two personas.
    """

    mean: float
    threshold: float
    p: float
    within: str
    above: bool


@dataclass(frozen=True)
class Contrast:
    """A difference of two macro-F1 (F1 units) or a ratio of them, with its interval over joint draws."""

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
    """Null of macro-F1 on emitted texts (integer arrays ``[n]``): persona labels permuted within each scenario.

    One-sided, p = (1 + #(null >= observed)) / (1 + permutations); ``above`` is p <= 1 - confidence. Texts that stand
    for every persona have no label to permute: the null is the score itself. None where there are no texts.
    """
    if not len(persona):
        return None
    if (persona == EVERY_PERSONA).any():
        counts = np.bincount(column, minlength=n_labels + 2)
        score = float(per_persona_f1(np.tile(counts, (n_labels, 1))).mean())
        return Null(score, score, 1.0, "scenario", False)
    order = np.lexsort((column, persona, scenario))  # the draws must not depend on the order of rows
    persona, column, scenario = persona[order], column[order], scenario[order]
    pairs = np.unique(np.stack([scenario, persona]), axis=1)
    within = "scenario" if len(np.unique(pairs[0])) < pairs.shape[1] else "all"
    place = scenario if within == "scenario" else np.zeros_like(scenario)
    observed = _shuffled_macro_f1(persona[None], column, n_labels)[0]
    chunk = max(1, _CHUNK_ROWS // len(persona))
    scores = np.concatenate(
        [
            _shuffled_macro_f1(
                _shuffle(persona, place, min(chunk, permutations - start), rng), column, n_labels
            )
            for start in range(0, permutations, chunk)
        ]
    )
    p = (1 + int((scores >= observed - 1e-12).sum())) / (1 + permutations)
    threshold = float(np.quantile(scores, confidence))
    return Null(float(scores.mean()), threshold, p, within, p <= 1 - confidence + 1e-12)


def _shuffle(persona, place, times: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``[times, n]`` copies of ``persona``, each permuted inside the rows of equal ``place``."""
    order = np.argsort(place, kind="stable")
    keys = place[order] + rng.random((times, len(place)))  # sorting whole + fraction permutes inside a place
    out = np.empty((times, len(place)), dtype=np.int64)
    out[:, order] = persona[order][np.argsort(keys, axis=1)]
    return out


def _shuffled_macro_f1(persona, column, n_labels: int) -> NDArray[np.float64]:
    """Macro-F1 ``[times]`` of ``persona [times, n]`` against one ``column [n]``."""
    size = n_labels * (n_labels + 2)
    cell = persona * (n_labels + 2) + column + size * np.arange(len(persona))[:, None]
    counts = np.bincount(cell.ravel(), minlength=size * len(persona))
    return per_persona_f1(counts.reshape(len(persona), n_labels, n_labels + 2)).mean(axis=-1)


def difference(
    first: float | None, second: float | None, first_draws, second_draws, confidence: float
) -> Contrast:
    """``first - second``; draw r of both comes from one resample r, so a shared cluster is paired and others are
    independent."""
    if first is None or second is None:
        return Contrast(None, None)
    return Contrast(first - second, interval(first_draws - second_draws, confidence))


def ratio(part: float | None, whole: float | None, part_draws, whole_draws, confidence: float) -> Contrast:
    """``part / whole``; None where ``whole`` is not positive."""
    if part is None or not whole:
        return Contrast(None, None)
    draws = np.divide(part_draws, whole_draws, out=np.full_like(whole_draws, np.nan), where=whole_draws > 0)
    return Contrast(part / whole, interval(draws, confidence))
