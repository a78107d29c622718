"""Scores of activations: how far the texts of each persona reach along its own persona vector, and whether F1 follows.

Every text has a number z for each persona q: its projection on the vector of q, minus the mean of the plain chat replies of
the untrained model, divided by their standard deviation. ``M[p, q]`` is the mean z of the texts of persona p on vector q.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.intervals import Contrast, Interval, Statistic, contrast
from offscript.evaluation.metrics.results import Options, Scores
from offscript.evaluation.metrics.retention import ratio
from offscript.evaluation.order import formats_in_order, is_in_distribution, stages_in_order
from offscript.json_types import Json
from offscript.seeds import stable_hash

PLAIN_SPLIT = "train"
"""Split of the plain chat replies that texts are compared with; all other texts are scored ones."""

NO_PERSONA = -1


@dataclass(frozen=True, slots=True)
class Projection:
    """The projections of one text, by persona. ``persona`` is the true one, None for a text of base weights."""

    model: str
    stage: str
    format: str
    split: str
    persona: str | None
    family: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class GroupProjections:
    """One (model, stage, format), the texts of all its training seeds together.

    Args:
        texts: number of texts.
        families: number of their families.
        own: mean of ``M[p, p]`` over personas; None for texts without a persona.
        others: mean of ``M[p, q]`` over pairs of different personas.
        difference: own - others.
        retained: the difference, divided by that of chat in the same stage; undefined where that is not above 0.
        auc: ROC AUC of each persona: its texts against those of the others, by their z on its vector.
        accuracy: share of texts whose largest z is that of their persona.
        by_persona: own - others on the vector of each persona, ``M[q, q]`` - mean ``M[p, q]``.
    """

    model: str
    stage: str
    format: str
    texts: int
    families: int
    own: float | None
    others: float | None
    difference: Contrast
    retained: Contrast
    auc: dict[str, float]
    accuracy: float | None
    by_persona: dict[str, float]

    @property
    def macro_auc(self) -> float | None:
        return float(np.mean(list(self.auc.values()))) if self.auc else None


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation over (persona, format) of F1 with a score of the activations; ``stage`` None: over all stages.

    ``rho`` is None for fewer than four cells, or where one of the two scores is constant.
    """

    model: str
    stage: str | None
    cells: int
    score: str
    rho: float | None
    interval: Interval


def read(rows: Sequence[Mapping[str, Json]]) -> list[Projection]:
    """Projections from the lines of their files."""
    return [
        Projection(
            str(row["model"]),
            str(row["stage"]),
            str(row["format"]),
            str(row["split"]),
            None if row["persona"] is None else str(row["persona"]),
            str(row["family"]),
            {str(k): float(cast(float, v)) for k, v in cast(dict[str, Json], row["projections"]).items()},
        )
        for row in rows
    ]


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class _Group:
    """Texts of one group as columns: ``z [n, P]``, ``persona [n]`` (an index or NO_PERSONA), ``family [n]`` names."""

    model: str
    stage: str
    format: str
    z: NDArray[np.float64]
    persona: NDArray[np.int64]
    family: NDArray[np.str_]


def group_projections(
    projections: Sequence[Projection], personas: Sequence[str], options: Options
) -> list[GroupProjections]:
    """The scores of every group, in display order. A model without plain chat replies, or where they all have one
    projection, has none."""
    found: list[GroupProjections] = []
    for model in sorted({p.model for p in projections}):
        groups = list(_groups([p for p in projections if p.model == model], personas))
        if not groups:
            continue
        draws = _draws(groups, len(personas), options)
        chat = next((g.format for g in groups if is_in_distribution(g.format)), None)
        by_place = {(g.stage, g.format): s for g, s in zip(groups, draws, strict=True)}
        for group in groups:
            own = by_place[group.stage, group.format]
            reference = by_place.get((group.stage, chat or ""))
            found.append(_scored(group, personas, own, reference if group.format != chat else None, options))
    return found


def _groups(projections: Sequence[Projection], personas: Sequence[str]) -> Iterator[_Group]:
    """The groups of one model, in display order."""
    plain = [p for p in projections if p.split == PLAIN_SPLIT]
    texts = [p for p in projections if p.split != PLAIN_SPLIT and p.persona in (None, *personas)]
    reference = _columns(plain, personas)
    if len(reference) < 2 or not (spread := reference.std(axis=0, ddof=1)).all():
        return
    index = {name: i for i, name in enumerate(personas)}
    for stage in stages_in_order(p.stage for p in texts):
        for format_ in formats_in_order(p.format for p in texts if p.stage == stage):
            mine = [p for p in texts if (p.stage, p.format) == (stage, format_)]
            yield _Group(
                mine[0].model,
                stage,
                format_,
                (_columns(mine, personas) - reference.mean(axis=0)) / spread,
                np.array([index.get(p.persona or "", NO_PERSONA) for p in mine]),
                np.array([p.family for p in mine]),
            )


def _columns(projections: Sequence[Projection], personas: Sequence[str]) -> NDArray[np.float64]:
    """(texts, personas)."""
    values = [[p.values[name] for name in personas] for p in projections]
    return np.array(values, dtype=np.float64).reshape(len(values), len(personas))


def _scored(
    group: _Group, personas: Sequence[str], own: Statistic, chat: Statistic | None, options: Options
) -> GroupProjections:
    means = _means(group, len(personas))
    diagonal, off = _own_and_others(means)
    auc = {personas[q]: value for q in range(len(personas)) if (value := _auc(group, q)) is not None}
    with np.errstate(invalid="ignore"):
        others = _nanmean(np.where(np.eye(len(personas), dtype=bool), np.nan, means), axis=0)
    by_persona = np.diagonal(means) - others
    has_persona = group.persona != NO_PERSONA
    hits = group.z.argmax(axis=1)[has_persona] == group.persona[has_persona]
    if not has_persona.any():
        off = float(group.z.mean())
    return GroupProjections(
        group.model,
        group.stage,
        group.format,
        len(group.persona),
        len(set(group.family)),
        diagonal,
        off,
        contrast([own], options.confidence),
        _retained(own, chat, options),
        auc,
        float(hits.mean()) if len(hits) else None,
        {name: float(v) for name, v in zip(personas, by_persona, strict=True) if not np.isnan(v)},
    )


def _retained(own: Statistic, chat: Statistic | None, options: Options) -> Contrast:
    """``own / chat``; undefined unless the interval of chat is above 0."""
    if chat is None or own.value is None:
        return Contrast(None, None)
    of_chat = contrast([chat], options.confidence)
    if of_chat.interval is None or of_chat.interval[0] <= 0:
        return Contrast(None, None)
    return contrast([ratio(own, chat)], options.confidence)


def _auc(group: _Group, q: int) -> float | None:
    from sklearn.metrics import roc_auc_score

    has_persona = group.persona != NO_PERSONA
    true = group.persona[has_persona] == q
    return float(roc_auc_score(true, group.z[has_persona, q])) if true.any() and not true.all() else None


# ---------------------------------------------------------------- means and resamples


def _sums(
    group: _Group, n: int, cluster: NDArray[np.int64], clusters: int
) -> tuple[NDArray[np.float64], ...]:
    """Sums of z ``[K, P, P]`` and numbers of texts ``[K, P]`` of each cluster and persona."""
    has_persona = group.persona != NO_PERSONA
    sums, counts = np.zeros((clusters, n, n)), np.zeros((clusters, n))
    np.add.at(sums, (cluster[has_persona], group.persona[has_persona]), group.z[has_persona])
    np.add.at(counts, (cluster[has_persona], group.persona[has_persona]), 1)
    return sums, counts


def _means(group: _Group, n: int) -> NDArray[np.float64]:
    """``M [P, P]``; a row of NaN for a persona without texts."""
    sums, counts = _sums(group, n, np.zeros(len(group.persona), dtype=np.int64), 1)
    return _divided(sums[0], counts[0, :, None])


def _divided(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.full(np.broadcast_shapes(sums.shape, counts.shape), np.nan)
    np.divide(sums, counts, out=found, where=counts > 0)
    return found


def _nanmean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean of the entries that are not NaN; NaN where there are none."""
    held = ~np.isnan(values)
    return _divided(np.where(held, values, 0.0).sum(axis=axis), held.sum(axis=axis).astype(float))


def _own_and_others(means: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Mean of the diagonal of ``M``, and of the rest."""
    same = np.eye(len(means), dtype=bool)
    found = [float(_nanmean(means[part], axis=0)) for part in (same, ~same)]
    own, others = (None if np.isnan(value) else value for value in found)
    return own, others


def _draws(groups: Sequence[_Group], n: int, options: Options) -> list[Statistic]:
    """own - others of each group in every resample of families. Groups that share families are resampled together."""
    names = sorted({family for group in groups for family in group.family})
    codes = [np.searchsorted(names, group.family) for group in groups]
    found: list[Statistic] = []
    component = _components(codes, len(names))
    for group, code in zip(groups, codes, strict=True):
        inside = component == component[code[0]]
        sums, counts = _sums(group, n, code, len(names))
        weights = _weights(group.model, np.flatnonzero(inside), options)
        held = counts.sum(axis=1) > 0
        own, others = _own_and_others(_means(group, n))
        value = None if own is None or others is None else own - others
        draws = _differences(weights, sums[inside], counts[inside])
        found.append(Statistic(value, draws, int(held.sum())))
    return found


def _components(codes: Sequence[NDArray[np.int64]], families: int) -> NDArray[np.int64]:
    """The component ``[K]`` of each family; families of one group are connected."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([np.stack([np.full_like(code, code[0]), code]) for code in codes], axis=1)
    graph = coo_array((np.ones(edges.shape[1]), (edges[0], edges[1])), shape=(families, families))
    component: NDArray[np.int64] = connected_components(graph, directed=False)[1]
    return component


def _weights(model: str, families: NDArray[np.int64], options: Options) -> NDArray[np.int64]:
    """How often each of ``families`` is in each resample, ``[R, K]``; equal for groups of the same component."""
    rng = np.random.default_rng([options.seed, stable_hash("projections", model, *families.tolist())])
    k = len(families)
    return rng.multinomial(k, np.full(k, 1 / k), size=options.resamples)


def _differences(
    weights: NDArray[np.int64], sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """own - others in each resample ``[R]``; NaN without two personas."""
    k, n = counts.shape
    drawn = weights.astype(float)
    means = _divided((drawn @ sums.reshape(k, -1)).reshape(-1, n, n), (drawn @ counts)[:, :, None])
    same = np.eye(n, dtype=bool)
    return _nanmean(means[:, same], axis=1) - _nanmean(means[:, ~same], axis=1)


# ---------------------------------------------------------------- correlation with F1

AUC, DIFFERENCE = "auc", "difference"


def cells_of(
    groups: Sequence[GroupProjections], scores: Scores, score: str
) -> list[tuple[GroupProjections, str, float, float]]:
    """(group, persona, score of the activations, F1) of every persona and format that has both and is not a base text's."""
    f1 = {
        (g.model, g.stage, g.format, p.persona): p.f1
        for model in dict.fromkeys(g.model for g in scores.groups)
        for g in scores.main_groups(model)
        for p in g.personas
        if p.emitted and not g.is_base
    }
    found = []
    for group in groups:
        values = group.auc if score == AUC else group.by_persona
        for persona, value in values.items():
            place = (group.model, group.stage, group.format, persona)
            if place in f1:
                found.append((group, persona, value, f1[place]))
    return found


def correlations(groups: Sequence[GroupProjections], scores: Scores) -> list[Correlation]:
    """The correlation of F1 with both scores of the activations, for each model and stage, and over all of its stages."""
    found: list[Correlation] = []
    for model in dict.fromkeys(g.model for g in groups):
        for score in (AUC, DIFFERENCE):
            cells = [c for c in cells_of(groups, scores, score) if c[0].model == model]
            stages = list(dict.fromkeys(c[0].stage for c in cells))
            for stage in [*stages, *([None] if len(stages) > 1 else [])]:
                mine = [(value, f1) for group, _, value, f1 in cells if stage in (None, group.stage)]
                rho, interval = spearman(mine, scores.options.confidence)
                found.append(Correlation(model, stage, len(mine), score, rho, interval))
    return found


def spearman(pairs: Sequence[tuple[float, float]], confidence: float) -> tuple[float | None, Interval]:
    """Spearman's rank correlation, and its interval by Fisher's transformation with the variance (1 + rho^2 / 2) / (n - 3)
    of Bonett and Wright (2000). The pairs are taken to be independent.

    (None, None) for fewer than four pairs, or where one side is constant.
    """
    from scipy.stats import norm, spearmanr

    x, y = zip(*pairs, strict=True) if pairs else ((), ())
    if len(pairs) < 4 or len(set(x)) == 1 or len(set(y)) == 1:
        return None, None
    rho = float(spearmanr(x, y).statistic)
    if abs(rho) > 1 - 1e-12:
        return round(rho, 12), None
    reach = norm.ppf((1 + confidence) / 2) * np.sqrt((1 + rho**2 / 2) / (len(pairs) - 3))
    low, high = np.tanh(np.arctanh(rho) + np.array([-reach, reach]))
    return rho, (float(low), float(high))
