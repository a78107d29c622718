"""Percentile bootstrap over clusters, vectorized over all groups of a model.

A *group* is one (model, stage, format[, training seed]) with all its personas. A *cluster* is the unit that is drawn
with replacement: a row, a scenario or a family. Groups that share clusters (chat_email and agentic_email of a model,
all of its stages) are resampled jointly; groups that share none (chat and the e-mails) are independent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.f1 import emitted_support, per_persona_f1
from offscript.seeds import stable_hash

RESAMPLE_UNITS = ("rows", "scenario", "family")
EVERY_PERSONA = -1
_CHUNK_BYTES = 64 * 2**20

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Episodes:
    """Scored and missing episodes of one model, as columns of length n.

    ``group`` is in 0..n_groups-1; ``persona`` in 0..n_labels-1, or EVERY_PERSONA for a base text, which is scored for
    every label; ``column`` is that of the confusion counts (see ``f1``); ``scenario`` and ``family`` are names.
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
    """Groups that are resampled jointly: ``counts [K, G, N, N + 2]`` of K clusters, and the stratum ``[K]`` of each."""

    groups: NDArray[np.int64]
    counts: NDArray[np.int32]
    stratum: NDArray[np.int64]


def cluster_codes(episodes: Episodes, by: str) -> NDArray[np.int64]:
    """Integer cluster of each episode, ``[n]``, for ``by`` = rows, scenario or family.

    Raises:
        ValueError: ``by`` is not one of RESAMPLE_UNITS.
    """
    if by not in RESAMPLE_UNITS:
        raise ValueError(f"resample={by!r}: one of {', '.join(RESAMPLE_UNITS)}")
    if by == "rows":
        return np.arange(len(episodes.group))
    names = episodes.scenario if by == "scenario" else episodes.family
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def partition(episodes: Episodes, by: str) -> Iterator[Block]:
    """Yields the episodes as blocks: groups connected by shared clusters, with their counts and strata.

    Personas connected by shared clusters form a stratum, and every resample keeps the number of clusters of a stratum.
    If each persona has clusters of its own, no persona can be absent from a resample. If all personas share all
    clusters, there is one stratum, and none can be absent either. ``rows`` has one stratum, as published.
    """
    codes = cluster_codes(episodes, by)
    component = _components(codes, episodes.group, episodes.n_groups)
    for c in np.unique(component[np.unique(episodes.group)]):
        groups = np.flatnonzero(component == c)
        inside = np.isin(episodes.group, groups)
        local = np.unique(codes[inside], return_inverse=True)[1]
        group = np.searchsorted(groups, episodes.group[inside])
        persona, column = episodes.persona[inside], episodes.column[inside]
        counts = _cluster_counts(local, group, persona, column, len(groups), episodes.n_labels)
        single = np.zeros(len(counts), dtype=np.int64)
        yield Block(
            groups, counts, single if by == "rows" else _strata(local, persona, episodes.n_labels, single)
        )


def _cluster_counts(
    cluster: NDArray[np.int64],
    group: NDArray[np.int64],
    persona: NDArray[np.int64],
    column: NDArray[np.int64],
    n_groups: int,
    n_labels: int,
) -> NDArray[np.int32]:
    """Counts ``[K, G, N, N + 2]``; a text with EVERY_PERSONA is counted in the row of each persona."""
    counts = np.zeros((cluster.max() + 1, n_groups, n_labels, n_labels + 2), dtype=np.int32)
    own = persona != EVERY_PERSONA
    np.add.at(counts, (cluster[own], group[own], persona[own], column[own]), 1)
    for p in range(n_labels):
        np.add.at(counts, (cluster[~own], group[~own], p, column[~own]), 1)
    return counts


def _strata(
    cluster: NDArray[np.int64], persona: NDArray[np.int64], n_labels: int, single: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Stratum ``[K]`` of each cluster: the component of its personas. Base texts connect no personas."""
    own = persona != EVERY_PERSONA
    component = _components(cluster[own], persona[own], n_labels)
    stratum = single - 1
    stratum[cluster[own]] = component[persona[own]]
    return single if len(np.unique(stratum[stratum >= 0])) <= 1 else stratum


def _components(cluster: NDArray[np.int64], item: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    """Connected component ``[n_items]`` of items that share clusters, as the index of its first item."""
    if not len(cluster):
        return np.arange(n_items)
    holds = np.zeros((cluster.max() + 1, n_items), dtype=np.float32)
    holds[cluster, item] = 1
    connected = (holds.T @ holds > 0) | np.eye(n_items, dtype=bool)
    # A path between two items has fewer than n_items edges; each squaring doubles the length covered.
    for _ in range(n_items.bit_length()):
        connected = connected.astype(np.float32) @ connected > 0
    first: NDArray[np.int64] = connected.argmax(axis=1)
    return first


def bootstrap_f1(
    episodes: Episodes, by: str, resamples: int, seed: int, name: str = ""
) -> NDArray[np.float64]:
    """F1 of each persona on emitted texts in every resample and group, ``[resamples, G, N]``.

    Resamples depend only on ``seed``, ``name`` (the model's) and the unit. A persona that has texts in a group but none
    in a resample of it is NaN there (see ``macro``): unobserved is not F1 0.
    """
    f1 = np.zeros((resamples, episodes.n_groups, episodes.n_labels))
    for block in partition(episodes, by):
        rng = np.random.default_rng([seed, stable_hash(name, by, *block.groups)])
        observed = emitted_support(block.counts.sum(axis=0)) > 0
        start = 0
        for confusion in _resampled_counts(block, resamples, rng):
            part = per_persona_f1(confusion)
            part[(emitted_support(confusion) == 0) & observed] = np.nan
            f1[start : start + len(part), block.groups] = part
            start += len(part)
    return f1


def _resampled_counts(
    block: Block, resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Yields the confusion counts ``[r, G, N, N + 2]`` of all resamples, in chunks of bounded memory.

    Clusters with equal counts form one type, which is drawn with their joint probability: for ``rows`` there are at
    most N (N + 1) types, however many rows. Counts are integers, so the sums are exact on every machine.
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
    """Distinct clusters, flattened ``[T, G * N * (N + 2)]``, and the number of clusters of each type, ``[T]``."""
    flat = counts.reshape(len(counts), -1)
    used = flat.any(axis=0)
    _, first, multiplicity = np.unique(flat[:, used], axis=0, return_index=True, return_counts=True)
    return flat[first].astype(float), multiplicity


def macro(f1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the personas of ``[..., N]`` that are not NaN; NaN where all are."""
    held = ~np.isnan(f1)
    mean: NDArray[np.float64] = np.where(held, f1, 0.0).sum(axis=-1) / np.where(
        held.any(axis=-1), held.sum(axis=-1), np.nan
    )
    return mean


def interval(draws: NDArray[np.float64], confidence: float) -> Interval:
    """Percentile interval of ``draws [R]`` without NaN entries; None if no entry is left.

    Efron and Tibshirani 1993, section 13.3.
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
