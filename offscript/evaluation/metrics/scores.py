"""Scores of all groups in a set of predictions: macro-F1 with intervals, retention, contrasts and notes.

A *group* is one (model, stage, format[, training seed]) with all of its personas.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.errors import UserError, command_line, one_of
from offscript.evaluation.metrics import bootstrap
from offscript.evaluation.metrics.bootstrap import (
    EVERY_PERSONA,
    RESAMPLE_UNITS,
    Episodes,
    Interval,
    interval,
)
from offscript.evaluation.metrics.f1 import (
    MACRO_F1,
    Readings,
    accuracy,
    confusion,
    emitted_support,
    per_persona_f1,
    readings,
)
from offscript.evaluation.metrics.retention import Contrast, Null, difference, permutation_null, ratio
from offscript.evaluation.order import (
    formats_in_order,
    is_in_distribution,
    personas_in_order,
    stages_in_order,
)
from offscript.evaluation.predictions import Prediction
from offscript.seeds import stable_hash

# Contrasts of the published study.
STAGE_PAIRS = (("full", "distillation"),)
FORMAT_PAIRS = (("chat", "chat_email"), ("chat_email", "agentic_email"))
MIN_SCENARIOS = 30
MAX_PERMUTATIONS = 1000


@dataclass(frozen=True)
class PersonaScore:
    """Scores of one persona within a group.

    ``planned`` is None if the number of planned episodes is unknown, ``recall`` is None if the persona has no texts.
    """

    persona: str
    planned: int | None
    emitted: int
    f1: float
    recall: float | None
    interval_rows: Interval
    interval_scenario: Interval


@dataclass(frozen=True)
class GroupScore:
    """Scores of one group.

    Args:
        crossed: whether all personas share the texts of the group: base texts under a plain system text belong to no
            persona, and each is scored for every persona. An episode is nevertheless counted once.
        planned: number of planned episodes; None if unknown, because the rows contain scored texts only.
        emitted: number of episodes with a text to score.
        emission_rate: ``emitted / planned``; None where ``planned`` is.
        ended: number of episodes by the reason for which they ended.
        unique_texts: number of distinct texts; None if unknown.
        macro_f1: macro-F1 under four assumptions about the missing texts. The intervals and ``null`` are those of the
            first, ``emitted``.
        counts: the confusion matrix ``[N][N + 2]``, see ``f1``.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    crossed: bool
    planned: int | None
    emitted: int
    emission_rate: float | None
    ended: dict[str, int]
    unique_texts: int | None
    scenarios: int
    families: int
    accuracy: float | None
    macro_f1: Readings
    interval_rows: Interval
    interval_scenario: Interval
    interval_family: Interval
    null: Null | None
    personas: tuple[PersonaScore, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return f"{self.model} {self.stage} {self.format}"


@dataclass(frozen=True)
class Retention:
    """An off-distribution format compared with chat (the in-distribution format), by macro-F1 on emitted texts.

    ``chat`` and ``score`` are the macro-F1 of chat and of ``format``; ``gap`` is chat - score, and ``retention`` is
    score / chat. ``retention`` is undefined if chat is not above its permutation null, or if one of the two formats has
    no texts; ``why_not`` then gives the reason, otherwise it is None.
    """

    model: str
    stage: str
    format: str
    training_seed: int | None
    chat: float | None
    score: float | None
    gap: Contrast
    retention: Contrast
    why_not: str | None


@dataclass(frozen=True)
class Change:
    """Macro-F1 of ``first`` minus that of ``second``.

    The two are either stages, compared within one format, or formats, compared within one stage. ``within`` is that
    format or stage.
    """

    model: str
    training_seed: int | None
    within: str
    first: str
    second: str
    difference: Contrast


@dataclass(frozen=True)
class Options:
    """The options of ``evaluate``, which describes them."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    resample: str = "scenario"
    planned: int | None = None


@dataclass(frozen=True)
class Scores:
    """All numbers of a report; a pure function of predictions and options."""

    labels: tuple[str, ...]
    metric: str
    options: Options
    groups: tuple[GroupScore, ...]
    retention: tuple[Retention, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def evaluate(
    predictions: Sequence[Prediction],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    planned: int | None = None,
    resample: str = "scenario",
) -> Scores:
    """Scores of all groups in ``predictions``, over one fixed label set.

    Args:
        resamples: number of bootstrap resamples; at most MAX_PERMUTATIONS permutations are made for the null.
        confidence: of all intervals, between 0 and 1; the null is tested at 1 - confidence.
        seed: of the resamples and permutations.
        labels: the label set; by default every true persona (the classifier's labels if there is none).
        planned: episodes planned per (model, stage, format), for rows that hold scored texts only.
        resample: unit of resampling for retention and contrasts: rows, scenario or family.

    Raises:
        UserError: no predictions, or an option that is out of range or does not fit them.
    """
    options = Options(resamples, confidence, seed, resample, planned)
    _check(options)
    if not predictions:
        raise UserError(
            "predictions", "there are none", f"run {command_line('classify')} first, or give a file of rows"
        )
    label_set = _label_set(predictions, labels)
    in_label_set = [p for p in predictions if p.persona is None or p.persona in label_set]
    if not in_label_set:
        true = personas_in_order(p.persona for p in predictions if p.persona is not None)
        raise UserError("labels", f"no row has one of {', '.join(label_set)}", one_of(true))
    notes = []
    if len(in_label_set) < len(predictions):
        left_out = personas_in_order(
            p.persona for p in predictions if p.persona and p.persona not in label_set
        )
        notes.append(
            f"{len(predictions) - len(in_label_set)} rows are left out: {', '.join(left_out)} not in the label set"
        )
    groups: list[GroupScore] = []
    retention: list[Retention] = []
    changes: list[Change] = []
    for model in sorted({p.model for p in in_label_set}):
        scored = _Model(model, [p for p in in_label_set if p.model == model], label_set, options)
        groups += scored.groups
        retention += scored.retention()
        changes += scored.changes()
    notes += _improbable(in_label_set) + _notes(groups, label_set, options)
    return Scores(
        tuple(label_set),
        MACRO_F1.format(n=len(label_set)),
        options,
        tuple(groups),
        tuple(retention),
        tuple(changes),
        tuple(notes),
    )


def _check(options: Options) -> None:
    if options.resamples < 1:
        raise UserError("evaluation.resamples", f"{options.resamples}", "an integer of at least 1")
    if not 0 < options.confidence < 1:
        raise UserError("evaluation.confidence", f"{options.confidence}", "a number between 0 and 1")
    if options.resample not in RESAMPLE_UNITS:
        raise UserError("evaluation.resample", repr(options.resample), one_of(RESAMPLE_UNITS))


def _label_set(predictions: Sequence[Prediction], labels: Sequence[str] | None) -> list[str]:
    """The personas that are scored: ``labels``, or by default every true persona, or the classifier's labels.

    Raises:
        UserError: ``labels`` is empty, repeats a name, or has one that no row knows.
    """
    known = personas_in_order(label for p in predictions for label in p.probs or ())
    true = personas_in_order(p.persona for p in predictions if p.persona is not None)
    chosen = list(labels) if labels is not None else true or known
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError("labels", f"{chosen}", "distinct names, at least one")
    for label in chosen:
        if label not in known and label not in true:
            raise UserError("labels", f"{label!r} is not a label of the classifier", one_of(known))
    return chosen


# ---------------------------------------------------------------- one model


class _Model:
    """The groups of one model with their joint resamples."""

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
        self.f1_draws = {
            unit: bootstrap.bootstrap_f1(self.episodes, unit, options.resamples, options.seed, name)
            for unit in RESAMPLE_UNITS
        }
        self.macro_draws = {unit: bootstrap.macro(f1) for unit, f1 in self.f1_draws.items()}
        self.groups = [self._score(g) for g in range(len(self.keys))]

    def _columns(self) -> Episodes:
        label_index = {label: i for i, label in enumerate(self.labels)}
        # The two columns of the confusion matrix after those of the labels, see f1.
        outside, missing = len(label_index), len(label_index) + 1
        rows = [(g, p) for g, members in enumerate(self.members) for p in members]

        def column(p: Prediction) -> int:
            return missing if p.predicted is None else label_index.get(p.predicted, outside)

        def persona(p: Prediction) -> int:
            return EVERY_PERSONA if p.persona is None else label_index[p.persona]

        return Episodes(
            n_groups=len(self.keys),
            n_labels=len(label_index),
            group=np.array([g for g, _ in rows]),
            persona=np.array([persona(p) for _, p in rows]),
            column=np.array([column(p) for _, p in rows]),
            scenario=np.array([p.scenario for _, p in rows]),
            family=np.array([p.family for _, p in rows]),
        )

    def _counts(self, g: int) -> NDArray[np.int64]:
        """The confusion matrix ``[N, N + 2]`` of group g. Base texts are counted in the row of every persona."""
        mine = self.episodes.group == g
        persona, column, n = self.episodes.persona[mine], self.episodes.column[mine], len(self.labels)
        if (persona == EVERY_PERSONA).all():
            return np.tile(np.bincount(column, minlength=n + 2), (n, 1))
        return confusion(persona, column, n)

    def _score(self, g: int) -> GroupScore:
        (training_seed, stage, format_), members, n = self.keys[g], self.members[g], len(self.labels)
        counts = self._counts(g)
        crossed = members[0].persona is None
        known = all(p.ended is not None for p in members)
        if not known and self.options.planned is not None:
            counts[:, -1] = self._missing(g, counts)
            known = True
        # In a crossed group every row of the matrix counts the same episodes, so one row is the number of episodes.
        rows_to_sum = 1 if crossed else n
        emitted = int(emitted_support(counts)[:rows_to_sum].sum())
        planned = int(counts[:rows_to_sum].sum()) if known else None
        hashes = {p.text_hash for p in members if p.predicted is not None}
        mine = self.episodes.group == g
        return GroupScore(
            model=self.name,
            stage=stage,
            format=format_,
            training_seed=training_seed,
            crossed=crossed,
            planned=planned,
            emitted=emitted,
            emission_rate=emitted / planned if planned else None,
            ended=dict(sorted(Counter(p.ended for p in members if p.ended is not None).items())),
            unique_texts=None if None in hashes else len(hashes),
            scenarios=len(np.unique(self.episodes.scenario[mine])),
            families=len(np.unique(self.episodes.family[mine])),
            accuracy=accuracy(counts),
            macro_f1=readings(counts, crossed, known),
            interval_rows=self._interval("rows", g, emitted),
            interval_scenario=self._interval("scenario", g, emitted),
            interval_family=self._interval("family", g, emitted),
            null=self._null(g),
            personas=self._personas(g, counts, known),
            counts=tuple(tuple(int(c) for c in row) for row in counts),
        )

    def _interval(self, unit: str, g: int, emitted: int) -> Interval:
        return interval(self.macro_draws[unit][:, g], self.options.confidence) if emitted else None

    def _missing(self, g: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Missing texts per persona ``[N]``, if ``planned`` episodes are divided evenly among the personas."""
        planned, n = self.options.planned or 0, len(self.labels)
        _, stage, format_ = self.keys[g]
        if planned % n:
            raise UserError("planned", f"{planned} episodes for {n} personas", f"a multiple of {n}")
        emitted = emitted_support(counts)
        if emitted.max() > planned // n:
            worst = self.labels[int(emitted.argmax())]
            raise UserError(
                "planned",
                f"{planned // n} a persona, but {self.name} {stage} {format_} has {emitted.max()} texts of {worst}",
                f"at least {emitted.max() * n}",
            )
        return planned // n - emitted

    def _null(self, g: int) -> Null | None:
        mine = (self.episodes.group == g) & (self.episodes.column <= len(self.labels))
        scenario = np.unique(self.episodes.scenario[mine], return_inverse=True)[1]
        rng = np.random.default_rng([self.options.seed, stable_hash("null", self.name, *self.keys[g])])
        return permutation_null(
            self.episodes.persona[mine],
            self.episodes.column[mine],
            scenario,
            len(self.labels),
            min(self.options.resamples, MAX_PERMUTATIONS),
            self.options.confidence,
            rng,
        )

    def _personas(self, g: int, counts: NDArray[np.int64], known: bool) -> tuple[PersonaScore, ...]:
        f1, support = per_persona_f1(counts), emitted_support(counts)

        def persona_interval(unit: str, i: int) -> Interval:
            return interval(self.f1_draws[unit][:, g, i], self.options.confidence) if support[i] else None

        return tuple(
            PersonaScore(
                persona=label,
                planned=int(counts[i].sum()) if known else None,
                emitted=int(support[i]),
                f1=float(f1[i]),
                recall=float(counts[i, i] / support[i]) if support[i] else None,
                interval_rows=persona_interval("rows", i),
                interval_scenario=persona_interval("scenario", i),
            )
            for i, label in enumerate(self.labels)
        )

    # ------------------------------------------------------------ between groups

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Yields the numbers (i, j) of every two groups with the same training seed, in both orders."""
        for i, (seed, _, _) in enumerate(self.keys):
            for j, (other_seed, _, _) in enumerate(self.keys):
                if seed == other_seed and i != j:
                    yield i, j

    def _difference(self, first: int, second: int) -> Contrast:
        draws = self.macro_draws[self.options.resample]
        a, b = self.groups[first].macro_f1.emitted, self.groups[second].macro_f1.emitted
        return difference(a, b, draws[:, first], draws[:, second], self.options.confidence)

    def retention(self) -> list[Retention]:
        """Every off-distribution format compared with the in-distribution format of the same stage and training seed.

        If several formats are in-distribution, the first in display order is the reference.
        """
        draws, found = self.macro_draws[self.options.resample], []
        formats = formats_in_order(format_ for _, _, format_ in self.keys)
        reference = next(filter(is_in_distribution, formats), None)
        for chat, other in self._pairs():
            whole, part = self.groups[chat], self.groups[other]
            if whole.stage != part.stage or whole.format != reference or is_in_distribution(part.format):
                continue
            why_not = _why_no_retention(whole, part)
            found.append(
                Retention(
                    model=self.name,
                    stage=part.stage,
                    format=part.format,
                    training_seed=part.training_seed,
                    chat=whole.macro_f1.emitted,
                    score=part.macro_f1.emitted,
                    gap=self._difference(chat, other),
                    retention=ratio(
                        part.macro_f1.emitted,
                        None if why_not else whole.macro_f1.emitted,
                        draws[:, other],
                        draws[:, chat],
                        self.options.confidence,
                    ),
                    why_not=why_not,
                )
            )
        return found

    def changes(self) -> list[Change]:
        """Stage contrasts within a format (STAGE_PAIRS), then format contrasts within a stage (FORMAT_PAIRS)."""
        of_stages, of_formats = [], []
        for i, j in self._pairs():
            seed, stage, format_ = self.keys[i]
            _, other_stage, other_format = self.keys[j]
            if format_ == other_format and (stage, other_stage) in STAGE_PAIRS:
                of_stages.append(Change(self.name, seed, format_, stage, other_stage, self._difference(i, j)))
            if stage == other_stage and (format_, other_format) in FORMAT_PAIRS:
                of_formats.append(
                    Change(self.name, seed, stage, format_, other_format, self._difference(i, j))
                )
        return of_stages + of_formats


def _why_no_retention(chat: GroupScore, other: GroupScore) -> str | None:
    """Why the retention of ``other`` against ``chat`` is undefined; None if it is defined."""
    if chat.null is None:
        return "no chat texts"
    if not chat.null.above:
        return "chat is not above its null"
    return "no texts" if other.macro_f1.emitted is None else None


# ---------------------------------------------------------------- notes


def _improbable(predictions: Sequence[Prediction]) -> list[str]:
    """A note on predicted labels that are less probable than another label of the same row."""
    counts = Counter(
        f"{p.model} {p.stage} {p.format}"
        for p in predictions
        if p.predicted is not None and p.probs and p.probs[p.predicted] < max(p.probs.values())
    )
    if not counts:
        return []
    shown = "; ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return [
        f"predicted labels that are not the most probable of their row, scored as they are given: {shown}"
    ]


def _notes(groups: Sequence[GroupScore], labels: Sequence[str], options: Options) -> list[str]:
    """What a reader of the scores has to know, one sentence each, with the names of the groups that it is about."""

    def where(test: Callable[[GroupScore], bool]) -> str:
        return "; ".join(g.name for g in groups if test(g))

    unknown = where(lambda g: g.planned is None)
    few = where(lambda g: 0 < g.scenarios < MIN_SCENARIOS)
    unused = options.planned is not None and all(g.ended for g in groups)
    notes = [
        f"{g.name}: the {g.emitted} rows contain {g.unique_texts} distinct texts, each scored for several personas; "
        "the interval by rows treats the rows as independent, which they are not"
        for g in groups
        if not g.crossed and g.stage == "base" and g.unique_texts is not None and g.unique_texts < g.emitted
    ]
    if any(g.crossed for g in groups):
        shown = "; ".join(f"{g.name} {g.unique_texts or g.emitted}" for g in groups if g.crossed)
        notes.append(f"each base text is scored for all {len(labels)} personas; distinct texts: {shown}")
    for g in groups:
        absent = [p.persona for p in g.personas if not p.emitted]
        if absent and g.emitted:
            notes.append(f"{g.name}: no text of {', '.join(absent)}, counted as F1 0")
    notes += [
        f"{g.name}: no text was emitted; the score on emitted texts is undefined"
        for g in groups
        if not g.emitted
    ]
    if unknown:
        notes.append(
            f"the number of planned texts is unknown, so missing texts have no bounds (set planned=): {unknown}"
        )
    if unused:
        notes.append("planned= is ignored: the rows hold every planned episode")
    if few:
        notes.append(
            f"with fewer than {MIN_SCENARIOS} scenarios, percentile bootstrap intervals are too narrow: {few}"
        )
    if not any(is_in_distribution(g.format) for g in groups):
        notes.append("no chat rows: gap and retention are undefined")
    return notes
