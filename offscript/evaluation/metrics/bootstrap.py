"""Percentile bootstrap over clusters, fast enough for a model's whole grid.

A *group* is one (model, stage, format[, training seed]): all its personas. A *cluster* is what is drawn with
replacement: a row, a scenario or a family. Two groups that share a cluster share every draw of it (chat_email and
agentic_email of a model, all of its stages); groups that share none (chat against the e-mails) are independent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.f1 import emitted_support, per_persona_f1
from offscript.seeds import stable_hash

RESAMPLE_UNITS = ("rows", "scenario", "family")
EVERY_PERSONA = -1
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Episodes:
    """Scored and missing episodes of one model, as columns of length n.

    ``group`` in 0..n_groups-1; ``persona`` in 0..n_labels-1, or EVERY_PERSONA for a base text, which is crossed with
    the labels; ``column`` of the confusion counts (see ``f1``); ``scenario`` and ``family`` are any names.
    """

    n_groups: int
    n_labels: int
    group: NDArray[np.int64]
    persona: NDArray[np.int64]
    column: NDArray[np.int64]
    scenario: NDArray[np.str_]
    family: NDArray[np.str_]


@dataclass(frozen=True)
class Block:
    """Groups that are resampled together: ``counts [K, G, N, N + 2]`` over K clusters, and each cluster's stratum."""

    groups: NDArray[np.int64]
    counts: NDArray[np.int32]
    stratum: NDArray[np.int64]


def cluster_codes(episodes: Episodes, by: str) -> NDArray[np.int64]:
    """The one partition: an integer cluster per episode, ``[n]``, for ``by`` = rows, scenario or family.

    Raises:
        ValueError: ``by`` is none of RESAMPLE_UNITS.
    """
    if by not in RESAMPLE_UNITS:
        raise ValueError(f"resample={by!r}: one of {', '.join(RESAMPLE_UNITS)}")
    if by == "rows":
        return np.arange(len(episodes.group))
    names = episodes.scenario if by == "scenario" else episodes.family
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def cluster_sizes(episodes: Episodes, by: str) -> list[int]:
    """Number of clusters in each group."""
    codes = cluster_codes(episodes, by)
    return [len(np.unique(codes[episodes.group == g])) for g in range(episodes.n_groups)]


def partition(episodes: Episodes, by: str) -> Iterator[Block]:
    """The episodes in blocks: groups linked by shared clusters, with their counts and strata.

    Personas linked by shared clusters form a stratum, which keeps its number of clusters in every draw. Where each
    persona has clusters of its own no persona can vanish from a draw; where all share them there is one stratum,
    and a persona that was planned in each cluster cannot vanish either. Rows are one stratum: the published way.
    """
    codes = cluster_codes(episodes, by)
    component = _linked(codes, episodes.group, episodes.n_groups)
    for c in np.unique(component[np.unique(episodes.group)]):
        groups = np.flatnonzero(component == c)
        inside = np.isin(episodes.group, groups)
        local = np.unique(codes[inside], return_inverse=True)[1]
        group = np.searchsorted(groups, episodes.group[inside])
        persona, column = episodes.persona[inside], episodes.column[inside]
        counts = _cluster_counts(local, group, persona, column, len(groups), episodes.n_labels)
        one = np.zeros(len(counts), dtype=np.int64)
        yield Block(groups, counts, one if by == "rows" else _strata(local, persona, episodes.n_labels, one))


def _cluster_counts(cluster, group, persona, column, n_groups: int, n_labels: int) -> NDArray[np.int32]:
    """Counts ``[K, G, N, N + 2]``; a text for every persona is added to each persona's row."""
    counts = np.zeros((cluster.max() + 1, n_groups, n_labels, n_labels + 2), dtype=np.int32)
    own = persona != EVERY_PERSONA
    np.add.at(counts, (cluster[own], group[own], persona[own], column[own]), 1)
    for p in range(n_labels):
        np.add.at(counts, (cluster[~own], group[~own], p, column[~own]), 1)
    return counts


def _strata(cluster, persona, n_labels: int, one: NDArray[np.int64]) -> NDArray[np.int64]:
    """Stratum of each cluster: the component of the personas it holds. Base texts hold all and link nothing."""
    own = persona != EVERY_PERSONA
    component = _linked(cluster[own], persona[own], n_labels)
    stratum = one - 1
    stratum[cluster[own]] = component[persona[own]]
    return one if len(np.unique(stratum[stratum >= 0])) <= 1 else stratum


def _linked(cluster, item, n_items: int) -> NDArray[np.int64]:
    """Component ``[n_items]`` of items that are linked through shared clusters, named by its first item."""
    if not len(cluster):
        return np.arange(n_items)
    holds = np.zeros((cluster.max() + 1, n_items), dtype=np.float32)
    holds[cluster, item] = 1
    linked = (holds.T @ holds > 0) | np.eye(n_items, dtype=bool)
    for _ in range(n_items.bit_length()):  # a path between two items has fewer than n_items steps
        linked = linked.astype(np.float32) @ linked > 0
    return linked.argmax(axis=1)


def bootstrap_f1(
    episodes: Episodes, by: str, resamples: int, seed: int, name: str = ""
) -> NDArray[np.float64]:
    """Per-persona F1 on emitted texts of every resample and group, ``[resamples, G, N]``.

    Draws depend on ``seed``, ``name`` (the model's) and the unit only. A persona that has texts in a group but none
    in a draw of it is NaN there (see ``macro``): not observed is not the same as wrong.
    """
    f1 = np.zeros((resamples, episodes.n_groups, episodes.n_labels))
    for block in partition(episodes, by):
        rng = np.random.default_rng([seed, stable_hash(name, by, *block.groups)])
        observed = emitted_support(block.counts.sum(axis=0)) > 0
        start = 0
        for confusion in _draws(block, resamples, rng):
            part = per_persona_f1(confusion)
            part[(emitted_support(confusion) == 0) & observed] = np.nan
            f1[start : start + len(part), block.groups] = part
            start += len(part)
    return f1


def _draws(block: Block, resamples: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Confusion counts ``[r, G, N, N + 2]`` of all resamples, in chunks of bounded memory.

    Clusters with equal counts are one type that is drawn with their joint probability: for ``rows`` that leaves at
    most N (N + 1) types however many rows there are. Counts are integers, so the sums are exact on any machine.
    """
    shape = block.counts.shape[1:]
    strata = [_types(block.counts[block.stratum == s]) for s in np.unique(block.stratum)]
    widest = max(int(np.prod(shape)), max(len(types) for types, _ in strata))
    chunk = max(1, _CHUNK_BYTES // (8 * widest))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        confusion = np.zeros((size, int(np.prod(shape))))
        for types, multiplicity in strata:
            n = int(multiplicity.sum())
            weights = rng.multinomial(n, multiplicity / n, size=size)
            confusion += np.einsum("rk,kc->rc", weights.astype(float), types, optimize=True)
        yield confusion.reshape(size, *shape)


def _types(counts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct clusters, flattened ``[T, G * N * (N + 2)]``, and how many clusters are each, ``[T]``."""
    flat = counts.reshape(len(counts), -1)
    used = flat.any(axis=0)
    _, first, multiplicity = np.unique(flat[:, used], axis=0, return_index=True, return_counts=True)
    return flat[first].astype(float), multiplicity


def macro(f1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the personas of ``[..., N]`` that a draw holds; NaN where it holds none."""
    held = ~np.isnan(f1)
    return np.where(held, f1, 0.0).sum(axis=-1) / np.where(held.any(axis=-1), held.sum(axis=-1), np.nan)


def interval(draws: NDArray[np.float64], confidence: float) -> tuple[float, float] | None:
    """Percentile interval of ``draws [R]``, leaving out NaN; None where nothing is left.

    Efron and Tibshirani 1993, section 13.3.
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def intervals(columns: NDArray[np.float64], confidence: float) -> Sequence[tuple[float, float] | None]:
    """``interval`` of each column of ``[R, N]``."""
    return [interval(columns[:, i], confidence) for i in range(columns.shape[1])]
