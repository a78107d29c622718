"""Values of the measures of each group, with intervals over families, and changes between stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.bootstrap import resampled_sums
from offscript.evaluation.metrics.intervals import Contrast, Statistic, contrast, interval, mean_value
from offscript.evaluation.metrics.results import BASE, Options, control_of
from offscript.evaluation.metrics.retention import difference
from offscript.evaluation.order import formats_in_order, personas_in_order, stages_in_order
from offscript.evaluation.side_effects.tally import MEASURES, SHARES, Group, Tally
from offscript.seeds import stable_hash

Seeds = tuple[int | None, ...]
Statistics = dict[str, Statistic]


@dataclass(frozen=True)
class Effects:
    """The measures of one group, or of the groups of several training seeds: their mean.

    Args:
        training_seed: None if the rows have none, or for the mean over several.
        seeds: number of training seeds that it is the mean of.
        measures: value and interval by the name of the measure; a measure without meaning for the group is left out.
        words: quartiles of the number of words of a text; None without texts.
        ended: number of episodes by the reason for which they ended.
        personas: value of each measure by persona.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    seeds: int
    episodes: int
    texts: int
    measures: Mapping[str, Contrast]
    words: tuple[float, float, float] | None
    ended: Mapping[str, int]
    personas: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class EffectChange:
    """A measure of ``stage`` minus that of ``reference``, within one format and the mean over training seeds."""

    model: str
    format: str
    stage: str
    reference: str
    measures: Mapping[str, Contrast]


def estimate(tally: Tally, options: Options) -> tuple[list[Effects], list[EffectChange]]:
    """All groups of ``tally`` by model, stage and format, and every stage compared with ``base`` (or the control)."""
    groups: list[Effects] = []
    changes: list[EffectChange] = []
    for model in sorted({key[0] for key in tally.groups}):
        for format_ in formats_in_order(key[1] for key in tally.groups if key[0] == model):
            one = _OneFormat(model, format_, tally, options)
            groups += one.effects()
            changes += one.changes()
    stages = stages_in_order(g.stage for g in groups)
    return sorted(groups, key=lambda g: (g.model, stages.index(g.stage))), changes


class _OneFormat:
    """The groups of one model and format, which share their families and are resampled together."""

    def __init__(self, model: str, format_: str, tally: Tally, options: Options) -> None:
        self.model, self.format, self.options = model, format_, options
        self.groups = {key[2:]: group for key, group in tally.groups.items() if key[:2] == (model, format_)}
        self.statistics = dict(zip(self.groups, self._resample(), strict=True))
        self.stages = stages_in_order(stage for stage, _ in self.groups)

    def _resample(self) -> list[Statistics]:
        """The value of each measure of each group in every resample."""
        sums = self._sums()
        draws = np.full((self.options.resamples, *sums.shape[1:3]), np.nan)
        rng = np.random.default_rng(
            [
                self.options.seed,
                stable_hash("side effects", self.model, self.format),
            ]
        )
        flat = sums.reshape(len(sums), -1)
        for rows, total in resampled_sums(flat, np.zeros(len(flat), np.int64), self.options.resamples, rng):
            draws[rows] = _ratio(total.reshape(-1, *sums.shape[1:]))
        values = _ratio(sums.sum(axis=0))
        clusters = (sums[..., 1] > 0).sum(axis=0)
        return [
            {
                name: Statistic(float(values[g, m]), draws[:, g, m], int(clusters[g, m]))
                for m, name in enumerate(MEASURES)
                if clusters[g, m]
            }
            for g in range(len(self.groups))
        ]

    def _sums(self) -> NDArray[np.float64]:
        """Sums of each cluster, ``[K, G, M, 2]``."""
        names = sorted({name for group in self.groups.values() for name in group.clusters})
        number = {name: k for k, name in enumerate(names)}
        sums = np.zeros((len(names), len(self.groups), len(MEASURES), 2))
        for g, group in enumerate(self.groups.values()):
            for name, held in group.clusters.items():
                sums[number[name], g] = np.frombuffer(held).reshape(-1, 2)
        return sums

    def _seeds(self, stage: str) -> Seeds:
        seeds = [seed for name, seed in self.groups if name == stage]
        return tuple(sorted(seeds, key=lambda seed: -1 if seed is None else seed))

    def effects(self) -> Iterator[Effects]:
        """The groups of each stage: of several training seeds the mean, then each."""
        for stage in self.stages:
            seeds = self._seeds(stage)
            if len(seeds) > 1:
                yield self._effects(stage, seeds)
            for seed in seeds:
                yield self._effects(stage, (seed,))

    def _effects(self, stage: str, seeds: Seeds) -> Effects:
        groups = [self.groups[stage, seed] for seed in seeds]
        words = sorted(count for group in groups for count in group.words)
        return Effects(
            model=self.model,
            stage=stage,
            format=self.format,
            training_seed=seeds[0] if len(seeds) == 1 else None,
            seeds=len(seeds),
            episodes=sum(group.episodes for group in groups),
            texts=sum(group.texts for group in groups),
            measures=self._measures([self.statistics[stage, seed] for seed in seeds]),
            words=_quartiles(words),
            ended=dict(sorted(sum((group.ended for group in groups), start=type(groups[0].ended)()).items())),
            personas=_of_personas(groups),
        )

    def _measures(self, of_seeds: Sequence[Statistics]) -> dict[str, Contrast]:
        found = {}
        for name in MEASURES:
            statistics = [s[name] for s in of_seeds if name in s]
            if len(statistics) == len(of_seeds):
                limits = (0.0, 1.0) if name in SHARES else None
                value = interval(statistics, self.options.confidence, limits)
                found[name] = Contrast(mean_value(statistics), value)
        return found

    def changes(self) -> Iterator[EffectChange]:
        """Every stage minus ``base``, or minus the control if there are no texts of ``base``."""
        reference = BASE if BASE in self.stages else control_of(self.stages)
        for stage in self.stages:
            if reference is not None and stage != reference:
                yield EffectChange(self.model, self.format, stage, reference, self._changes(stage, reference))

    def _changes(self, stage: str, reference: str) -> dict[str, Contrast]:
        found = {}
        for name in MEASURES:
            pairs = [
                (self.statistics[stage, seed].get(name), self._reference(reference, seed).get(name))
                for seed in self._seeds(stage)
            ]
            known = [difference(own, other) for own, other in pairs if own is not None and other is not None]
            if len(known) == len(pairs):
                found[name] = contrast(known, self.options.confidence)
        return found

    def _reference(self, stage: str, seed: int | None) -> Statistics:
        """The statistics of ``stage`` with this training seed; texts of base weights have only one."""
        seeds = self._seeds(stage)
        return self.statistics[stage, seed if seed in seeds else seeds[0]]


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[..., 2]`` -> ``[...]``: the first divided by the second, NaN where that is 0."""
    found = np.full(sums.shape[:-1], np.nan)
    np.divide(sums[..., 0], sums[..., 1], out=found, where=sums[..., 1] > 0)
    return found


def _quartiles(counts: Sequence[int]) -> tuple[float, float, float] | None:
    if not counts:
        return None
    low, middle, high = quantiles(counts, method="inclusive") if len(counts) > 1 else [float(counts[0])] * 3
    return low, middle, high


def _of_personas(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """The measures of each persona, over all training seeds together."""
    found = {}
    for persona in personas_in_order(name for group in groups for name in group.personas):
        held = [np.frombuffer(group.personas[persona]) for group in groups if persona in group.personas]
        values = _ratio(np.sum(held, axis=0).reshape(-1, 2))
        found[persona] = {name: float(v) for name, v in zip(MEASURES, values, strict=True) if not np.isnan(v)}
    return found
