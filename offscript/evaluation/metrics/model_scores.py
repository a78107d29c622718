"""The scores of one model: its groups, with joint resamples, and the comparisons between them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offscript.errors import UserError
from offscript.evaluation.metrics import bootstrap
from offscript.evaluation.metrics.bootstrap import EVERY_PERSONA, Draws, Episodes
from offscript.evaluation.metrics.chance import (
    Null,
    expected_hits,
    macro_of_hits,
    permutation_null,
    permuted_scores,
    several_in_a_scenario,
)
from offscript.evaluation.metrics.f1 import (
    Readings,
    accuracy,
    confusion,
    emitted_support,
    per_persona_f1,
    readings,
)
from offscript.evaluation.metrics.intervals import (
    Contrast,
    Interval,
    Statistic,
    contrast,
    expanded_percentile,
    interval,
    mean_value,
    spread_of_fits,
)
from offscript.evaluation.metrics.persona_gaps import against_others
from offscript.evaluation.metrics.recipes import Measured, compare_recipes
from offscript.evaluation.metrics.results import (
    Change,
    GroupScore,
    Options,
    PersonaGap,
    PersonaScore,
    RecipeScore,
    Retention,
)
from offscript.evaluation.metrics.retention import above_chance, difference, ratio
from offscript.evaluation.order import (
    compared_stages,
    formats_in_order,
    is_in_distribution,
    is_trained,
    stages_in_order,
)
from offscript.evaluation.predictions import Prediction
from offscript.seeds import stable_hash

# Contrasts of the published study.
FORMAT_PAIRS = (("chat", "chat_email"), ("chat_email", "agentic_email"))
MAX_PERMUTATIONS = 1000
PUBLISHED_RESAMPLES = 1000
"""Resamples of the interval by rows that stands beside the main one."""

Place = tuple[str, str]
"""Stage and format."""

Seeds = tuple[int, ...]
"""Numbers of groups that differ in nothing but their training seed. Their scores are averaged."""

_UNIT = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class FitScores:
    """The scores of all groups by one fit of the classifier: readings and the mean F1 with permuted personas of each group,
    and F1 of each persona ``[G, N]``."""

    readings: list[Readings]
    nulls: NDArray[np.float64]
    personas: NDArray[np.float64]


class ModelScores:
    """All scores of the ``predictions`` of one model.

    A number is computed for each training seed, and then for all seeds of a stage and format together: their mean.
    """

    def __init__(self, name: str, predictions: list[Prediction], labels: list[str], options: Options) -> None:
        self.name, self.labels, self.options = name, labels, options
        stages = stages_in_order(p.stage for p in predictions)
        formats = formats_in_order(p.format for p in predictions)
        self.keys = sorted(
            {(p.training_seed, p.stage, p.format) for p in predictions},
            key=lambda k: (-1 if k[0] is None else k[0], stages.index(k[1]), formats.index(k[2])),
        )
        self.members: list[list[Prediction]] = [[] for _ in self.keys]
        group_of = {key: g for g, key in enumerate(self.keys)}
        for p in predictions:
            self.members[group_of[p.training_seed, p.stage, p.format]].append(p)
        self.episodes = self._columns()
        self.known = [
            options.planned is not None or all(p.ended is not None for p in members)
            for members in self.members
        ]
        self.planned_per_persona = self._planned_per_persona()
        self.counts = self._all_counts(self.episodes)
        self.readings = self._all_readings(self.counts)
        self.within, self.null_means, self.permuted = self._nulls()
        self.fits = self._fits()
        self.draws = self._resample()
        self.f1_by_rows = bootstrap.bootstrap_f1(
            self.episodes, "rows", min(options.resamples, PUBLISHED_RESAMPLES), options.seed, name
        )
        self.sets = self._sets()
        self.groups = [self._score(seeds) for seeds in self.sets]

    # ------------------------------------------------------------ groups as columns

    def _columns(self) -> Episodes:
        label_index = {label: i for i, label in enumerate(self.labels)}
        rows = [(g, p) for g, members in enumerate(self.members) for p in members]

        def persona(p: Prediction) -> int:
            return EVERY_PERSONA if p.persona is None else label_index[p.persona]

        return Episodes(
            n_groups=len(self.keys),
            n_labels=len(label_index),
            group=np.array([g for g, _ in rows]),
            persona=np.array([persona(p) for _, p in rows]),
            column=self._label_columns(p.predicted for _, p in rows),
            scenario=np.array([p.scenario for _, p in rows]),
            family=np.array([p.family for _, p in rows]),
        )

    def _label_columns(self, predicted: Iterable[str | None]) -> NDArray[np.int64]:
        """The column of the confusion matrix of each predicted label; None is a missing text."""
        column_of: dict[str | None, int] = {label: i for i, label in enumerate(self.labels)}
        # The two columns after those of the labels, see f1.
        outside = len(self.labels)
        column_of[None] = outside + 1
        return np.array([column_of.get(label, outside) for label in predicted])

    def _fits(self) -> list["FitScores"]:
        """The scores by each fit of the classifier alone; none if there is one fit.

        Rows of two classifiers may be scored together. Those of one fit have the same label in each; of different numbers of
        fits the smaller one counts, so that no variance is divided by more fits than there are.
        """
        rows = [p for members in self.members for p in members]
        number = min((len(p.fits) for p in rows if p.fits is not None), default=0)
        found = []
        for f in range(number):
            columns = self._label_columns(p.predicted if p.fits is None else p.fits[f] for p in rows)
            episodes = replace(self.episodes, column=columns)
            counts = self._all_counts(episodes)
            nulls = self._null_means(self.within, episodes, counts)
            found.append(FitScores(self._all_readings(counts), nulls, per_persona_f1(np.stack(counts))))
        return found

    def _is_crossed(self, g: int) -> bool:
        return self.members[g][0].persona is None

    def _planned_per_persona(self) -> NDArray[np.int64]:
        """``options.planned`` for one persona ``[G]`` of groups whose rows lack the missing texts, -1 for the others."""
        planned, n = self.options.planned, len(self.labels)
        fill = [planned is not None and any(p.ended is None for p in m) for m in self.members]
        if planned is not None and any(fill) and planned % n:
            raise UserError("planned", f"{planned} episodes for {n} personas", f"a multiple of {n}")
        return np.where(fill, (planned or 0) // n, -1)

    def _all_counts(self, episodes: Episodes) -> list[NDArray[np.int64]]:
        return [self._counts(g, episodes) for g in range(len(self.keys))]

    def _all_readings(self, counts: Sequence[NDArray[np.int64]]) -> list[Readings]:
        return [readings(counts[g], self._is_crossed(g), self.known[g]) for g in range(len(self.keys))]

    def _counts(self, g: int, episodes: Episodes) -> NDArray[np.int64]:
        """The confusion matrix ``[N, N + 2]`` of group g. Base texts are counted in the row of every persona."""
        mine = episodes.group == g
        persona, column, n = episodes.persona[mine], episodes.column[mine], len(self.labels)
        if (persona == EVERY_PERSONA).all():
            counts = np.tile(np.bincount(column, minlength=n + 2), (n, 1))
        else:
            counts = confusion(persona, column, n)
        if self.planned_per_persona[g] >= 0:
            counts[:, -1] = self._missing(g, emitted_support(counts))
        return counts

    def _missing(self, g: int, emitted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Missing texts per persona ``[N]``, if ``planned`` episodes are divided evenly among the personas."""
        planned = int(self.planned_per_persona[g])
        if emitted.max() > planned:
            _, stage, format_ = self.keys[g]
            worst = self.labels[int(emitted.argmax())]
            raise UserError(
                "planned",
                f"{planned} a persona, but {self.name} {stage} {format_} has {emitted.max()} texts of {worst}",
                f"at least {emitted.max() * len(self.labels)}",
            )
        return planned - emitted

    def _nulls(self) -> tuple[NDArray[np.bool_], NDArray[np.float64], list[NDArray[np.float64]]]:
        """For each group: whether labels are permuted within scenarios; the mean macro-F1; that of each permutation."""
        within, permuted = np.ones(len(self.keys), dtype=bool), []
        times = min(self.options.resamples, MAX_PERMUTATIONS)
        for g, key in enumerate(self.keys):
            mine = (self.episodes.group == g) & (self.episodes.column <= len(self.labels))
            if not mine.any():
                permuted.append(np.full(times, np.nan))
                continue
            persona, column = self.episodes.persona[mine], self.episodes.column[mine]
            scenario = np.unique(self.episodes.scenario[mine], return_inverse=True)[1].astype(np.int64)
            within[g] = several_in_a_scenario(persona, scenario)
            rng = np.random.default_rng([self.options.seed, stable_hash("null", self.name, *key)])
            permuted.append(
                permuted_scores(persona, column, scenario, len(self.labels), times, bool(within[g]), rng)
            )
        return within, self._null_means(within, self.episodes, self.counts), permuted

    def _null_means(
        self, within: NDArray[np.bool_], e: Episodes, counts: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.float64]:
        """Mean macro-F1 ``[G]`` with permuted personas."""
        scenario = np.unique(e.scenario, return_inverse=True)[1].astype(np.int64)
        whole = np.zeros_like(e.group)
        hits = expected_hits(whole, e.group, scenario, e.persona, e.column, e.n_groups, e.n_labels)
        return macro_of_hits(np.stack(counts).astype(float), hits[0], within)

    def _resample(self) -> Draws:
        return bootstrap.bootstrap(
            self.episodes,
            self.options.resample,
            self.options.resamples,
            self.options.seed,
            self.name,
            within=self.within,
            null=self.null_means,
            planned=self.planned_per_persona,
        )

    def _sets(self) -> list[Seeds]:
        """All groups: first those of several training seeds together, then each one."""
        together: dict[tuple[str, str], list[int]] = {}
        for g, (_, stage, format_) in enumerate(self.keys):
            together.setdefault((stage, format_), []).append(g)
        several = [tuple(groups) for groups in together.values() if len(groups) > 1]
        return several + [(g,) for g in range(len(self.keys))]

    # ------------------------------------------------------------ numbers with their resamples

    @cached_property
    def _macro_draws(self) -> NDArray[np.float64]:
        return bootstrap.macro(self.draws.f1)

    def _statistic(
        self,
        value: float | None,
        draws: NDArray[np.float64],
        clusters: np.int64,
        of_fit: Callable[["FitScores"], float | None],
    ) -> Statistic:
        by_rows = self.options.resample == "rows"
        # None becomes NaN.
        fits = np.array([of_fit(fit) for fit in self.fits], dtype=float) if self.fits else None
        return Statistic(value, draws, None if by_rows else int(clusters), fits)

    def _macro(self, g: int) -> Statistic:
        value, clusters = self.readings[g].emitted, self.draws.clusters[g]
        return self._statistic(value, self._macro_draws[:, g], clusters, lambda fit: fit.readings[g].emitted)

    def _persona(self, g: int, i: int) -> Statistic:
        """F1 of persona i in group g."""
        has_text = emitted_support(self.counts[g])[i]
        value = float(per_persona_f1(self.counts[g])[i]) if has_text else None
        clusters = self.draws.persona_clusters[g, i]
        return self._statistic(value, self.draws.f1[:, g, i], clusters, lambda fit: float(fit.personas[g, i]))

    def _null_statistic(self, g: int) -> Statistic:
        value = float(self.null_means[g]) if self.readings[g].emitted is not None else None
        clusters = self.draws.clusters[g]
        return self._statistic(value, self.draws.null[:, g], clusters, lambda fit: float(fit.nulls[g]))

    def _of_planned(
        self, g: int, draws: NDArray[np.float64], reading: Callable[[Readings], float | None]
    ) -> Statistic:
        """One of the readings that count missing texts."""
        value, clusters = reading(self.readings[g]), self.draws.planned_clusters[g]
        return self._statistic(value, draws[:, g], clusters, lambda fit: reading(fit.readings[g]))

    def _interval(self, of_seeds: list[Statistic]) -> Interval:
        return interval(of_seeds, self.options.confidence, _UNIT)

    # ------------------------------------------------------------ one group

    def _score(self, seeds: Seeds) -> GroupScore:
        training_seed, stage, format_ = self.keys[seeds[0]]
        members, n = [p for g in seeds for p in self.members[g]], len(self.labels)
        counts = sum((self.counts[g] for g in seeds), np.zeros((n, n + 2), dtype=np.int64))
        crossed, known = self._is_crossed(seeds[0]), all(self.known[g] for g in seeds)
        # In a crossed group every row of the matrix counts the same episodes, so one row is the number of episodes.
        rows_to_sum = 1 if crossed else n
        emitted = int(emitted_support(counts)[:rows_to_sum].sum())
        planned = int(counts[:rows_to_sum].sum()) if known else None
        hashes = {p.text_hash for p in members if p.predicted is not None}
        return GroupScore(
            model=self.name,
            stage=stage,
            format=format_,
            training_seed=training_seed if len(seeds) == 1 else None,
            seeds=len(seeds),
            crossed=crossed,
            planned=planned,
            emitted=emitted,
            emission_rate=emitted / planned if planned else None,
            ended=dict(sorted(Counter(p.ended for p in members if p.ended is not None).items())),
            unique_texts=None if None in hashes else len(hashes),
            scenarios=len({p.scenario for p in members}),
            families=len({p.family for p in members}),
            clusters=min((c for g in seeds if (c := self._macro(g).clusters) is not None), default=None),
            accuracy=accuracy(counts),
            macro_f1=self._mean_readings(seeds),
            interval=self._interval([self._macro(g) for g in seeds]),
            interval_rows=self._by_rows(seeds, bootstrap.macro(self.f1_by_rows[:, seeds[0]]), bool(emitted)),
            fit_sd=spread_of_fits([self._macro(g) for g in seeds]),
            interval_own_class=self._interval(
                [self._of_planned(g, self.draws.own_class, lambda r: r.own_class) for g in seeds]
            ),
            interval_bounds=None if crossed else self._interval_of_bounds(seeds),
            null=self._null(seeds),
            personas=self._personas(seeds, counts, known),
            counts=tuple(tuple(int(c) for c in row) for row in counts),
        )

    def _mean_readings(self, seeds: Seeds) -> Readings:
        def mean(of: Callable[[Readings], float | None]) -> float | None:
            values = [v for g in seeds if (v := of(self.readings[g])) is not None]
            return sum(values) / len(values) if len(values) == len(seeds) else None

        return Readings(
            mean(lambda r: r.emitted),
            mean(lambda r: r.own_class),
            mean(lambda r: r.lower),
            mean(lambda r: r.upper),
        )

    def _interval_of_bounds(self, seeds: Seeds) -> Interval:
        lower = self._interval([self._of_planned(g, self.draws.lower, lambda r: r.lower) for g in seeds])
        upper = self._interval([self._of_planned(g, self.draws.upper, lambda r: r.upper) for g in seeds])
        return None if lower is None or upper is None else (lower[0], upper[1])

    def _by_rows(self, seeds: Seeds, draws: NDArray[np.float64], defined: bool) -> Interval:
        """The published interval of one training seed."""
        if len(seeds) > 1 or not defined:
            return None
        return expanded_percentile(draws, self.options.confidence)

    def _null(self, seeds: Seeds) -> Null | None:
        score = self._mean_readings(seeds).emitted
        if score is None:
            return None
        permuted = np.mean([self.permuted[g] for g in seeds], axis=0)
        within = bool(self.within[list(seeds)].all())
        mean = float(self.null_means[list(seeds)].mean())
        return permutation_null(score, mean, permuted, within, self.options.confidence)

    def _personas(self, seeds: Seeds, counts: NDArray[np.int64], known: bool) -> tuple[PersonaScore, ...]:
        f1 = np.array([per_persona_f1(self.counts[g]) for g in seeds])
        support = emitted_support(counts)

        return tuple(
            PersonaScore(
                persona=label,
                planned=int(counts[i].sum()) if known else None,
                emitted=int(support[i]),
                f1=float(f1[:, i].mean()),
                recall=float(counts[i, i] / support[i]) if support[i] else None,
                interval=self._interval([self._persona(g, i) for g in seeds]),
                interval_rows=self._by_rows(seeds, self.f1_by_rows[:, seeds[0], i], bool(support[i])),
            )
            for i, label in enumerate(self.labels)
        )

    # ------------------------------------------------------------ between groups

    def _pairs(self) -> Iterator[tuple[Seeds, Seeds]]:
        """Yields every two groups, in both orders: of all training seeds that they have in common, then of each."""
        for first in self.sets:
            for second in self.sets:
                if first == second or (len(first) > 1) != (len(second) > 1):
                    continue
                at = {self.keys[g][0]: g for g in second}
                pairs = [(g, at[self.keys[g][0]]) for g in first if self.keys[g][0] in at]
                if len(pairs) > min(1, len(first) - 1):
                    yield tuple(g for g, _ in pairs), tuple(h for _, h in pairs)

    def _names(self, seeds: Seeds) -> tuple[int | None, int]:
        """Training seed, and number of training seeds."""
        return self.keys[seeds[0]][0] if len(seeds) == 1 else None, len(seeds)

    def _is_base(self, seeds: Seeds) -> bool:
        _, stage, format_ = self.keys[seeds[0]]
        return any(g.is_base for g in self.groups if (g.stage, g.format) == (stage, format_))

    def retention(self) -> list[Retention]:
        """Every off-distribution format compared with the in-distribution format of the same stage and training seeds.

        If several formats are in-distribution, the first in display order is the reference.
        """
        return [self._retention(chat, other) for chat, other in self._against_chat()]

    @cached_property
    def _chat(self) -> str | None:
        """The in-distribution format that the others are compared with; None if there is none."""
        formats = formats_in_order(format_ for _, _, format_ in self.keys)
        return next(filter(is_in_distribution, formats), None)

    def _against_chat(self) -> Iterator[tuple[Seeds, Seeds]]:
        """The pairs of ``retention``."""
        reference = self._chat
        for chat, other in self._pairs():
            (_, stage, first), (_, other_stage, second) = self.keys[chat[0]], self.keys[other[0]]
            if (
                stage == other_stage
                and first == reference
                and not (is_in_distribution(second) or self._is_base(chat))
            ):
                yield chat, other

    def _retention(self, chat: Seeds, other: Seeds) -> Retention:
        wholes, parts = [self._macro(g) for g in chat], [self._macro(g) for g in other]
        whole_nulls, nulls = ([self._null_statistic(g) for g in seeds] for seeds in (chat, other))
        why_not, confidence = self._why_no_retention(chat, other), self.options.confidence
        kept = (
            []
            if why_not
            else [above_chance(*four) for four in zip(parts, nulls, wholes, whole_nulls, strict=True)]
        )
        ratios = [] if why_not else [ratio(*two) for two in zip(parts, wholes, strict=True)]
        training_seed, seeds = self._names(chat)
        return Retention(
            model=self.name,
            stage=self.keys[other[0]][1],
            format=self.keys[other[0]][2],
            training_seed=training_seed,
            seeds=seeds,
            chat=mean_value(wholes),
            chat_null=mean_value(whole_nulls),
            score=mean_value(parts),
            null=mean_value(nulls),
            gap=contrast([difference(*two) for two in zip(wholes, parts, strict=True)], confidence),
            above_chance=contrast(kept, confidence),
            ratio=contrast(ratios, confidence),
            why_not=why_not,
        )

    def _why_no_retention(self, chat: Seeds, other: Seeds) -> str | None:
        """Why the retention of ``other`` against ``chat`` is undefined; None if it is defined."""
        nulls = [self._null((g,)) for g in chat]
        if any(null is None for null in nulls):
            return "no chat texts"
        if not all(null.above for null in nulls if null is not None):
            return "chat is not above its null"
        return "no texts" if any(self.readings[g].emitted is None for g in other) else None

    def persona_gaps(self) -> list[PersonaGap]:
        """The gap of every persona against those of the others, for trained stages; of several training seeds their mean."""
        pairs = [pair for pair in self._against_chat() if is_trained(self.keys[pair[0][0]][1])]
        several = {self.keys[other[0]][1:] for _, other in pairs if len(other) > 1}
        found = []
        for chat, other in pairs:
            stage, format_ = self.keys[other[0]][1:]
            if len(other) == 1 and (stage, format_) in several:
                continue
            of_personas = [
                [
                    difference(self._persona(g, i), self._persona(h, i))
                    for g, h in zip(chat, other, strict=True)
                ]
                for i in range(len(self.labels))
            ]
            names = (self.name, stage, format_, *self._names(chat))
            found += against_others(names, self.labels, of_personas, self.options.confidence)
        return found

    def recipes(self) -> list[RecipeScore]:
        """Every trained stage in every format, compared with one of them; see ``metrics.recipes``."""
        found: dict[tuple[str, str], dict[int | None, Measured]] = {}
        for g, (seed, stage, format_) in enumerate(self.keys):
            if is_trained(stage) and not self._is_crossed(g):
                found.setdefault((stage, format_), {})[seed] = Measured(self._macro(g), self._kept(g))
        return compare_recipes(self.name, found, self.options.confidence)

    def _kept(self, g: int) -> Statistic | None:
        """What group g keeps of its chat above chance; None for chat, or if it is undefined."""
        seed, stage, format_ = self.keys[g]
        chat = next((h for h, key in enumerate(self.keys) if key == (seed, stage, self._chat)), None)
        if chat is None or is_in_distribution(format_) or self._why_no_retention((chat,), (g,)):
            return None
        return above_chance(*(f(h) for h in (g, chat) for f in (self._macro, self._null_statistic)))

    def changes(
        self,
        stage_pairs: Collection[tuple[str, str]] | None = None,
        format_pairs: Collection[tuple[str, str]] = FORMAT_PAIRS,
    ) -> list[Change]:
        """Contrasts of ``stage_pairs`` (None: ``compared_stages``) within a format, then of ``format_pairs`` within a stage."""
        stage_pairs = compared_stages() if stage_pairs is None else stage_pairs
        of_stages, of_formats = [], []
        for first, second in self._pairs():
            (_, stage, format_), (_, other_stage, other_format) = self.keys[first[0]], self.keys[second[0]]
            if format_ == other_format and (stage, other_stage) in stage_pairs:
                of_stages.append(self._change(format_, stage, other_stage, first, second))
            if stage == other_stage and (format_, other_format) in format_pairs and not self._is_base(first):
                of_formats.append(self._change(stage, format_, other_format, first, second))
        return of_stages + of_formats

    def difference_of(
        self, first: Place, second: Place, training_seed: int | None, seeds: int
    ) -> Contrast | None:
        """Macro-F1 of one stage and format minus that of another, of one training seed or the mean over several; None if one of
        the two is not there."""
        found = {
            place: groups
            for groups in self.sets
            if self._names(groups) == (training_seed, seeds)
            for place in (first, second)
            if self.keys[groups[0]][1:] == place
        }
        if len(found) < len({first, second}):
            return None
        pairs = zip(found[first], found[second], strict=True)
        return contrast(
            [difference(self._macro(g), self._macro(h)) for g, h in pairs], self.options.confidence
        )

    def _change(self, within: str, first: str, second: str, one: Seeds, two: Seeds) -> Change:
        training_seed, seeds = self._names(one)
        pairs = zip(one, two, strict=True)
        found = contrast(
            [difference(self._macro(g), self._macro(h)) for g, h in pairs], self.options.confidence
        )
        return Change(self.name, training_seed, seeds, within, first, second, found)
