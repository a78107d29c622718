"""Scores of a few groups of one model under one label set, classifier and calibration, for all assumptions about missing texts.

``Rows`` holds the episodes as columns, whatever the specification; ``Specified`` counts them under one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics import bootstrap
from offscript.evaluation.metrics.bootstrap import Draws, Episodes
from offscript.evaluation.metrics.chance import expected_hits, macro_of_hits, several_in_a_scenario
from offscript.evaluation.metrics.f1 import Readings, confusion, emitted_support, readings
from offscript.evaluation.metrics.intervals import Statistic
from offscript.evaluation.metrics.rebalance import balanced_labels
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.order import personas_in_order
from offscript.evaluation.predictions import Prediction

EMITTED, ERRORS, LOWER, UPPER = "emitted", "errors", "lower bound", "upper bound"
POLICIES = (EMITTED, ERRORS, LOWER, UPPER)
"""What is assumed about missing texts, see ``f1.Readings``."""
ARGMAX, BALANCED = "argmax", "balanced"
"""The most probable label, as given; and after ``rebalance.balanced_labels``."""


class Place(NamedTuple):
    """A stage and a format."""

    stage: str
    format: str


@dataclass(frozen=True)
class Rows:
    """Episodes of n rows in G groups (a place and a training seed), as columns.

    Args:
        names: all labels of the classifier and all personas, in display order.
        keys: place and training seed of each group.
        group, persona: ``[n]``, indices into ``keys`` and ``names``.
        scenario, family: names ``[n]``.
        predicted: by classifier, indices into ``names`` ``[n]``; ``len(names)`` is any other label, -1 a missing text.
        probs: of each name, ``[n, len(names)]``; all 0 for a missing text.
        planned: planned episodes of each persona ``[G]``, -1 where the rows hold the missing texts.
        has_missing: whether episodes without a text are known, and there are any.
    """

    names: list[str]
    keys: list[tuple[Place, int | None]]
    group: NDArray[np.int64]
    persona: NDArray[np.int64]
    scenario: NDArray[np.str_]
    family: NDArray[np.str_]
    predicted: dict[str, NDArray[np.int64]]
    probs: NDArray[np.float64]
    planned: NDArray[np.int64]
    has_missing: bool

    @property
    def has_probs(self) -> bool:
        return bool(self.probs.any())

    @property
    def personas(self) -> list[str]:
        """Personas with a row."""
        return [self.names[i] for i in np.unique(self.persona)]

    @property
    def scenarios(self) -> int:
        return len(np.unique(self.scenario))

    @property
    def families(self) -> int:
        return len(np.unique(self.family))


def rows_of(
    predictions: Sequence[Prediction],
    model: str,
    places: Sequence[Place],
    labels: Sequence[str],
    classifiers: Mapping[str, Sequence[str | None] | None],
    options: Options,
) -> Rows:
    """The rows of one model in ``places`` whose persona is one of ``labels``.

    ``classifiers`` has labels aligned with ``predictions`` by name, None for those of the predictions themselves. A classifier
    that has no label for an emitted text is left out.
    """
    wanted, personas = set(places), set(labels)
    chosen = [
        (i, p)
        for i, p in enumerate(predictions)
        if p.model == model and Place(p.stage, p.format) in wanted and p.persona in personas
    ]
    members = [p for _, p in chosen]
    of_classifier = next((p.probs for p in members if p.probs is not None), {})
    names = personas_in_order([*labels, *of_classifier])
    index = {name: i for i, name in enumerate(names)}
    seeds = {(Place(p.stage, p.format), p.training_seed) for p in members}
    keys = sorted(seeds, key=lambda k: (places.index(k[0]), -1 if k[1] is None else k[1]))
    group_of = {key: g for g, key in enumerate(keys)}
    emitted = np.array([p.predicted is not None for p in members])
    predicted = {}
    for name, given in classifiers.items():
        shown = [p.predicted if given is None else given[i] for i, p in chosen]
        codes = np.array([-1 if label is None else index.get(label, len(names)) for label in shown])
        if (codes[emitted] >= 0).all():
            predicted[name] = np.where(emitted, codes, -1)
    group = np.array([group_of[Place(p.stage, p.format), p.training_seed] for p in members])
    planned = _planned(members, group, len(keys), len(labels), options.planned)
    known = all(planned[g] >= 0 or p.ended is not None for g, p in zip(group, members, strict=True))
    return Rows(
        names=names,
        keys=keys,
        group=group,
        persona=np.array([index[p.persona] for p in members if p.persona is not None]),
        scenario=np.array([p.scenario for p in members]),
        family=np.array([p.family for p in members]),
        predicted=predicted,
        probs=np.array([[(p.probs or {}).get(name, 0.0) for name in names] for p in members]),
        planned=planned,
        has_missing=known and (not emitted.all() or bool((planned >= 0).any())),
    )


def _planned(
    members: Sequence[Prediction], group: NDArray[np.int64], n_groups: int, n_labels: int, planned: int | None
) -> NDArray[np.int64]:
    """Planned episodes of each persona ``[G]``, as in ``ModelScores``."""
    found = np.full(n_groups, -1)
    if planned is not None:
        without_end = [g for g, p in zip(group, members, strict=True) if p.ended is None]
        found[without_end] = planned // n_labels
    return found


@dataclass(frozen=True)
class Counted:
    """For each group, the readings of macro-F1, and by policy its mean with permuted personas ``[G]``."""

    readings: list[Readings]
    nulls: dict[str, NDArray[np.float64]]


class Specified:
    """Scores of the groups of ``rows`` over the label set ``names``.

    ``fits`` are names of classifiers whose mean ``classifier`` is; their spread is in the intervals. ``resample`` has to be called before ``score`` and ``null``, which have their values in its resamples.
    """

    def __init__(
        self, rows: Rows, names: Sequence[str], classifier: str, calibration: str, fits: Sequence[str] = ()
    ) -> None:
        self.rows, self.n_labels = rows, len(names)
        index = {name: i for i, name in enumerate(names)}
        # The last entry is found by index -1, that of a missing text.
        columns = [index.get(name, self.n_labels) for name in rows.names] + [self.n_labels, self.n_labels + 1]
        own = np.isin(rows.persona, [i for i, name in enumerate(rows.names) if name in index])
        predicted = rows.predicted[classifier][own]
        if calibration == BALANCED:
            predicted = _balanced(rows.probs[own], rows.persona[own], rows.group[own], predicted)
        lookup = np.array(columns)
        self.episodes = Episodes(
            n_groups=len(rows.keys),
            n_labels=self.n_labels,
            group=rows.group[own],
            persona=lookup[rows.persona[own]],
            column=lookup[predicted],
            scenario=rows.scenario[own],
            family=rows.family[own],
        )
        e = self.episodes
        seen = [(e.group == g) & (e.column <= e.n_labels) for g in range(e.n_groups)]
        self.within = np.array(
            [
                bool(mine.any()) and several_in_a_scenario(e.persona[mine], self._scenarios[mine])
                for mine in seen
            ]
        )
        self.whole = self._counted(e.column)
        self.by_fit = [self._counted(lookup[rows.predicted[name][own]]) for name in fits]

    @cached_property
    def _scenarios(self) -> NDArray[np.int64]:
        return np.unique(self.episodes.scenario, return_inverse=True)[1].astype(np.int64)

    def _counted(self, column: NDArray[np.int64]) -> "Counted":
        """The scores of all rows with these predictions."""
        e = self.episodes
        mine = [e.group == g for g in range(e.n_groups)]
        counts = np.stack([confusion(e.persona[m], column[m], e.n_labels) for m in mine])
        filled = self.rows.planned[:, None] >= 0
        missing = self.rows.planned[:, None] - emitted_support(counts)
        counts[..., -1] = np.where(filled, np.maximum(missing, 0), counts[..., -1])
        one = np.zeros_like(e.group)
        hits = expected_hits(one, e.group, self._scenarios, e.persona, column, e.n_groups, e.n_labels)[0]
        return Counted(
            [readings(of_group, planned_known=self.rows.has_missing) for of_group in counts],
            {
                policy: macro_of_hits(counts.astype(float), hits, self.within, policy == ERRORS)
                for policy in POLICIES
            },
        )

    def resample(self, unit: str, resamples: int, seed: int, name: str) -> None:
        """Resamples all groups by ``unit``; ``name`` is the model's."""
        self.by_rows = unit == "rows"
        self.draws: Draws = bootstrap.bootstrap(
            self.episodes,
            unit,
            resamples,
            seed,
            name,
            within=self.within,
            null=self.whole.nulls[EMITTED],
            planned=self.rows.planned,
        )
        self.macro = bootstrap.macro(self.draws.f1)

    def pairs(self, first: Place, second: Place) -> tuple[list[int], list[int]]:
        """The groups of two places, of the training seeds that both have."""
        at = [
            {seed: g for g, (place, seed) in enumerate(self.rows.keys) if place == p} for p in (first, second)
        ]
        seeds = [seed for seed in at[0] if seed in at[1]]
        return [at[0][seed] for seed in seeds], [at[1][seed] for seed in seeds]

    def score(self, g: int, policy: str) -> Statistic:
        """Macro-F1 of a group."""
        reading = _READINGS[policy]
        draws, clusters = {
            EMITTED: (self.macro, self.draws.clusters),
            ERRORS: (self.draws.own_class, self.draws.planned_clusters),
            LOWER: (self.draws.lower, self.draws.planned_clusters),
            UPPER: (self.draws.upper, self.draws.planned_clusters),
        }[policy]
        value = reading(self.whole.readings[g])
        # None becomes NaN.
        fits = np.array([reading(fit.readings[g]) for fit in self.by_fit], dtype=float)
        return self._statistic(g, value, draws[:, g], clusters, fits)

    def null(self, g: int, policy: str) -> Statistic:
        """Mean macro-F1 of a group with permuted personas. That of the bounds is that of the emitted texts: what the missing
        texts might have been says nothing of what a blind classifier reaches."""
        value = None if self.whole.readings[g].emitted is None else float(self.whole.nulls[policy][g])
        draws = self.draws.own_class_null if policy == ERRORS else self.draws.null
        of_group = np.full(len(draws), self.whole.nulls[policy][g]) if self.by_rows else draws[:, g]
        fits = np.array([fit.nulls[policy][g] for fit in self.by_fit])
        return self._statistic(g, value, of_group, self.draws.clusters, fits)

    def _statistic(
        self,
        g: int,
        value: float | None,
        draws: NDArray[np.float64],
        clusters: NDArray[np.int64],
        fits: NDArray[np.float64],
    ) -> Statistic:
        of_units = None if self.by_rows else int(clusters[g])
        return Statistic(value, draws, of_units, fits if len(fits) else None)


_READINGS: dict[str, Callable[[Readings], float | None]] = {
    EMITTED: lambda r: r.emitted,
    ERRORS: lambda r: r.own_class,
    LOWER: lambda r: r.lower,
    UPPER: lambda r: r.upper,
}


def _balanced(
    probs: NDArray[np.float64],
    persona: NDArray[np.int64],
    group: NDArray[np.int64],
    predicted: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Predicted names ``[n]`` with all personas that have rows equally frequent among the texts of each group."""
    found = predicted.copy()
    target = np.zeros(probs.shape[1])
    present = np.unique(persona)
    target[present] = 1 / len(present)
    for g in np.unique(group):
        texts = (group == g) & (predicted >= 0)
        if texts.any():
            found[texts] = balanced_labels(probs[texts], target)
    return found
