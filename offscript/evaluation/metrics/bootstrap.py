"""Bootstrap resamples of clusters, vectorized over all groups of a model.

A *group* is one (model, stage, format[, training seed]) with all its personas. A *cluster* is the unit that is drawn
with replacement: a row, a scenario or a family. Groups that share clusters (chat_email and agentic_email of a model,
all of its stages) are resampled jointly; groups that share none (chat and the e-mails) are independent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.chance import expected_hits, macro_of_hits
from offscript.evaluation.metrics.f1 import bounds, emitted_support, per_persona_f1
from offscript.seeds import stable_hash

RESAMPLE_UNITS = ("family", "scenario", "rows")
EVERY_PERSONA = -1
_CHUNK_BYTES = 64 * 2**20


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
    """Groups that are resampled jointly.

    ``counts [K, G, N, N + 2]`` of K clusters; ``chance [K, G, N]``, the expected hits of each persona with labels permuted
    within each scenario (see ``chance``); the stratum ``[K]`` of each cluster, and how many equal clusters it stands for.
    """

    groups: NDArray[np.int64]
    counts: NDArray[np.int32]
    chance: NDArray[np.float64]
    stratum: NDArray[np.int64]
    multiplicity: NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """The scores of all groups in every resample, and what they are computed from.

    Args:
        f1: of each persona on emitted texts, ``[R, G, N]``. A persona that has texts in a group but none in a resample
            of it is NaN there (see ``macro``): unobserved is not F1 0.
        own_class: macro-F1 with every missing text as a false negative, ``[R, G]``.
        lower, upper: bounds of macro-F1 over all labels of the missing texts, ``[R, G]``.
        null: mean macro-F1 with permuted persona labels, ``[R, G]``.
        own_class_null: the same with every missing text as a false negative, ``[R, G]``; NaN by rows.
        clusters: number of clusters with an emitted text, ``[G]``.
        persona_clusters: the same for each persona, ``[G, N]``.
        planned_clusters: number of clusters with an episode, ``[G]``.
    """

    f1: NDArray[np.float64]
    own_class: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    null: NDArray[np.float64]
    own_class_null: NDArray[np.float64]
    clusters: NDArray[np.int64]
    persona_clusters: NDArray[np.int64]
    planned_clusters: NDArray[np.int64]


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
        if by == "rows":
            yield _block_of_rows(groups, group, persona, column, episodes.n_labels)
            continue
        counts = _cluster_counts(local, group, persona, column, len(groups), episodes.n_labels)
        single = np.zeros(len(counts), dtype=np.int64)
        scenario = np.unique(episodes.scenario[inside], return_inverse=True)[1]
        chance = expected_hits(local, group, scenario, persona, column, len(groups), episodes.n_labels)
        strata = _strata(local, persona, episodes.n_labels, single)
        yield Block(groups, counts, chance, strata, np.ones_like(single))


def _block_of_rows(
    groups: NDArray[np.int64],
    group: NDArray[np.int64],
    persona: NDArray[np.int64],
    column: NDArray[np.int64],
    n_labels: int,
) -> Block:
    """Rows as clusters: equal ones are one cluster with a multiplicity, however many there are."""
    (group, persona, column), times = np.unique(
        np.stack([group, persona, column]), axis=1, return_counts=True
    )
    counts = _cluster_counts(np.arange(len(times)), group, persona, column, len(groups), n_labels)
    # A row is no cluster of scenarios; ``bootstrap`` keeps the null of all rows.
    return Block(groups, counts, np.zeros(counts.shape[:3]), np.zeros_like(times), times)


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
    """``Draws.f1`` alone, ``[R, G, N]``: the intervals by rows need no more."""
    f1 = np.zeros((resamples, episodes.n_groups, episodes.n_labels))
    for block in partition(episodes, by):
        observed = np.asarray(emitted_support(block.counts.sum(axis=0)) > 0)
        for rows, confusion, _ in _resampled(block, resamples, _rng(block, by, seed, name)):
            f1[rows, block.groups] = _observed_f1(confusion, observed)
    return f1


def bootstrap(
    episodes: Episodes,
    by: str,
    resamples: int,
    seed: int,
    name: str = "",
    *,
    within: NDArray[np.bool_],
    null: NDArray[np.float64],
    planned: NDArray[np.int64] | None = None,
) -> Draws:
    """All scores in every resample. Resamples depend only on ``seed``, ``name`` (the model's) and the unit ``by``.

    Args:
        within: whether the null of a group permutes labels within each scenario, ``[G]``; otherwise among all texts.
        null: mean macro-F1 with permuted labels of all rows, ``[G]``: that of every resample by rows, which breaks
            scenarios up.
        planned: planned episodes of each persona ``[G]``, -1 where the rows hold the missing texts.
    """
    shape = (resamples, episodes.n_groups)
    f1 = np.zeros((*shape, episodes.n_labels))
    own, lower, upper, nulls, own_nulls = (np.full(shape, np.nan) for _ in range(5))
    clusters, planned_clusters = (np.zeros(episodes.n_groups, dtype=np.int64) for _ in range(2))
    persona_clusters = np.zeros((episodes.n_groups, episodes.n_labels), dtype=np.int64)
    for block in partition(episodes, by):
        mine = block.groups
        held = emitted_support(block.counts) > 0
        persona_clusters[mine] = np.tensordot(block.multiplicity, held, axes=1)
        clusters[mine] = block.multiplicity @ held.any(axis=2)
        planned_clusters[mine] = block.multiplicity @ block.counts.any(axis=(2, 3))
        observed = np.asarray(held.any(axis=0))
        for rows, confusion, chance in _resampled(block, resamples, _rng(block, by, seed, name)):
            if planned is not None:
                _fill_missing(confusion, planned[mine])
            f1[rows, mine] = _observed_f1(confusion, observed)
            own[rows, mine] = per_persona_f1(confusion, missing_is_miss=True).mean(axis=-1)
            lower[rows, mine] = upper[rows, mine] = own[rows, mine]
            absent = confusion[..., -1].any(axis=(0, 2))
            if absent.any():
                lower[rows, mine[absent]], upper[rows, mine[absent]] = bounds(confusion[:, absent])
            if by == "rows":
                nulls[rows, mine] = null[mine]
                continue
            nulls[rows, mine] = macro_of_hits(confusion, chance, within[mine])
            own_nulls[rows, mine] = macro_of_hits(confusion, chance, within[mine], missing_is_miss=True)
    return Draws(f1, own, lower, upper, nulls, own_nulls, clusters, persona_clusters, planned_clusters)


def _rng(block: Block, by: str, seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, stable_hash(name, by, *block.groups)])


def _observed_f1(confusion: NDArray[np.float64], observed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F1 on emitted texts, NaN for a persona whose ``observed`` texts are absent from the resample."""
    f1 = per_persona_f1(confusion)
    f1[(emitted_support(confusion) == 0) & observed] = np.nan
    return f1


def _fill_missing(confusion: NDArray[np.float64], planned: NDArray[np.int64]) -> None:
    """Sets the missing texts of groups whose rows do not hold them. Every cluster is taken to have the same number of
    planned episodes, so that each resample has as many as the data."""
    known = planned >= 0
    missing = planned[known][:, None] - emitted_support(confusion[:, known])
    column = confusion[..., -1]
    column[:, known] = np.maximum(missing, 0)


def _resampled(
    block: Block, resamples: int, rng: np.random.Generator
) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
    """Yields slices of resamples with their counts ``[r, G, N, N + 2]`` and expected hits ``[r, G, N]``, in chunks of
    bounded memory."""
    k, size = len(block.counts), int(np.prod(block.counts.shape[1:]))
    flat = np.concatenate([block.counts.reshape(k, -1), block.chance.reshape(k, -1)], axis=1)
    for rows, total in resampled_sums(flat, block.stratum, resamples, rng, block.multiplicity):
        yield (
            rows,
            total[:, :size].reshape(-1, *block.counts.shape[1:]),
            total[:, size:].reshape(-1, *block.chance.shape[1:]),
        )


def resampled_sums(
    flat: NDArray[np.float64],
    stratum: NDArray[np.int64],
    resamples: int,
    rng: np.random.Generator,
    multiplicity: NDArray[np.int64] | None = None,
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yields slices of resamples with the sums ``[r, C]`` of the clusters' values, in chunks of bounded memory.

    Args:
        flat: values of each cluster, ``[K, C]``.
        stratum: of each cluster, ``[K]``; a resample draws as many clusters of a stratum as it has.
        multiplicity: number of equal clusters that each entry stands for, ``[K]``; None: one.

    Equal clusters form one type, which is drawn with their joint probability. Sums of integers are exact on every machine.
    """
    times = np.ones_like(stratum) if multiplicity is None else multiplicity
    strata = [_types(flat[stratum == s], times[stratum == s]) for s in np.unique(stratum)]
    widest = max(flat.shape[1], max(len(types) for types, _ in strata))
    chunk = max(1, _CHUNK_BYTES // (8 * widest))
    for start in range(0, resamples, chunk):
        rows = slice(start, min(start + chunk, resamples))
        total = np.zeros((rows.stop - start, flat.shape[1]))
        for types, multiplicity in strata:
            n = int(multiplicity.sum())
            weights = rng.multinomial(n, multiplicity / n, size=len(total))
            total += weights.astype(float) @ types
        yield rows, total


def _types(
    flat: NDArray[np.float64], multiplicity: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The distinct rows ``[T, C]`` of clusters ``[K, C]``, and the number of clusters of each, ``[T]``."""
    used = flat.any(axis=0)
    _, first, type_of = np.unique(flat[:, used], axis=0, return_index=True, return_inverse=True)
    times = np.zeros(len(first), dtype=np.int64)
    np.add.at(times, type_of.reshape(-1), multiplicity)
    return flat[first], times


def macro(f1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the personas of ``[..., N]`` that are not NaN; NaN where all are."""
    held = ~np.isnan(f1)
    mean: NDArray[np.float64] = np.where(held, f1, 0.0).sum(axis=-1) / np.where(
        held.any(axis=-1), held.sum(axis=-1), np.nan
    )
    return mean
