"""The score that a classifier reaches without seeing the persona: macro-F1 with permuted persona labels, on average.

A permutation within scenarios moves no text to another scenario and no prediction, so that both totals in
F1_p = 2 hits_p / (true_p + predicted_p) stay as they are. Its expectation is therefore exact: the hits that are expected in
scenario s are true_sp * predicted_sp / texts_s. It is a sum over scenarios, and thus over clusters, which can be resampled.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.f1 import emitted_support, per_persona_f1

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


def permutation_null(
    score: float, mean: float, permuted: NDArray[np.float64], within: bool, confidence: float
) -> Null:
    """The null of a ``score`` from its values ``permuted [P]``.

    One-sided; p = (1 + #(permuted >= score)) / (1 + P) (Phipson and Smyth 2010).
    """
    p = (1 + int((permuted >= score - 1e-12).sum())) / (1 + len(permuted))
    threshold = float(np.quantile(permuted, confidence))
    return Null(mean, threshold, p, "scenario" if within else "all", p <= 1 - confidence + 1e-12)


def several_in_a_scenario(persona: NDArray[np.int64], scenario: NDArray[np.int64]) -> bool:
    """Whether texts ``[n]`` of several personas share a scenario, so that labels can be permuted within scenarios. Base
    texts belong to every persona."""
    pairs = np.unique(np.stack([scenario, persona]), axis=1)
    return bool((persona < 0).any()) or len(np.unique(pairs[0])) < pairs.shape[1]


def permuted_scores(
    persona: NDArray[np.int64],
    column: NDArray[np.int64],
    scenario: NDArray[np.int64],
    n_labels: int,
    permutations: int,
    within: bool,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Macro-F1 ``[P]`` of emitted texts (columns ``[n]``, n > 0), with persona labels permuted within each scenario, or
    else among all texts. Base texts are scored for every persona and have no label to permute."""
    if (persona < 0).any():
        counts = np.bincount(column, minlength=n_labels + 2)
        score = float(per_persona_f1(np.tile(counts, (n_labels, 1))).mean())
        return np.full(permutations, score)
    # The permutations must not depend on the order of rows.
    order = np.lexsort((column, persona, scenario))
    persona, column, scenario = persona[order], column[order], scenario[order]
    block = scenario if within else np.zeros_like(scenario)
    chunk = max(1, _CHUNK_ROWS // len(persona))
    return np.concatenate(
        [
            _macro_f1(_permute(persona, block, min(chunk, permutations - start), rng), column, n_labels)
            for start in range(0, permutations, chunk)
        ]
    )


def expected_hits(
    cluster: NDArray[np.int64],
    group: NDArray[np.int64],
    scenario: NDArray[np.int64],
    persona: NDArray[np.int64],
    column: NDArray[np.int64],
    n_groups: int,
    n_labels: int,
) -> NDArray[np.float64]:
    """Expected hits ``[K, G, N]`` of each persona with labels permuted within each scenario, from columns ``[n]``.

    A base text (persona < 0) is scored for every persona: its hits are certain.
    """
    found = np.zeros((int(cluster.max()) + 1, n_groups, n_labels))
    labelled = column < n_labels
    base = (persona < 0) & labelled
    np.add.at(found, (cluster[base], group[base], column[base]), 1.0)
    emitted = (persona >= 0) & (column <= n_labels)
    places = np.stack([cluster, group, scenario])
    _, first, place = np.unique(places[:, emitted], axis=1, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    true, predicted = (np.zeros((len(first), n_labels)) for _ in range(2))
    np.add.at(true, (place, persona[emitted]), 1.0)
    inside = labelled[emitted]
    np.add.at(predicted, (place[inside], column[emitted][inside]), 1.0)
    texts = np.bincount(place, minlength=len(first))[:, None]
    np.add.at(
        found, (cluster[emitted][first], group[emitted][first]), true * predicted / np.maximum(texts, 1)
    )
    return found


def macro_of_hits(
    counts: NDArray[np.float64],
    hits: NDArray[np.float64],
    within: NDArray[np.bool_],
    missing_is_miss: bool = False,
) -> NDArray[np.float64]:
    """Mean macro-F1 ``[..., G]`` under permuted labels, from counts ``[..., G, N, N + 2]``.

    ``hits [..., G, N]`` are the expected ones of permutations within scenarios. Where ``within [G]`` is False, labels are
    permuted among all texts of the group. With ``missing_is_miss`` every missing text is a false negative, as in
    ``per_persona_f1``.
    """
    n_labels = counts.shape[-2]
    true, predicted = emitted_support(counts), counts[..., :n_labels].sum(axis=-2)
    texts = np.maximum(true.sum(axis=-1, keepdims=True), 1)
    hits = np.where(within[:, None], hits, true * predicted / texts)
    if missing_is_miss:
        true = counts.sum(axis=-1)
    found: NDArray[np.float64] = (2.0 * hits / np.maximum(true + predicted, 1)).mean(axis=-1)
    return found


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
