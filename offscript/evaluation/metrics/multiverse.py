"""The headline of a model under every combination of choices that an analyst could have made.

A *choice* is one value of a dimension (label set, missing texts, unit of resampling, classifier, calibration), a
*specification* one value of each. All specifications together are the multiverse of the analysis (Steegen, Tuerlinckx, Gelman
and Vanpaemel 2016); their sorted estimates are its specification curve (Simonsohn, Simmons and Nelson 2020).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from offscript.evaluation.metrics.intervals import Contrast, contrast
from offscript.evaluation.metrics.results import Options, Scores
from offscript.evaluation.metrics.retention import above_chance, difference
from offscript.evaluation.metrics.specified import (
    ARGMAX,
    BALANCED,
    EMITTED,
    POLICIES,
    Place,
    Rows,
    Specified,
    rows_of,
)
from offscript.evaluation.order import compared_stages, formats_in_order, headline_stage, is_in_distribution
from offscript.evaluation.predictions import Prediction

AS_GIVEN = "as given"
"""The classifier whose predictions the rows hold."""
RESAMPLES = 1000
"""Resamples of every interval; the main table has ``Options.resamples``."""
FEWEST_PERSONAS = 3
"""With fewer personas none is left out: one persona alone cannot be confused with another."""


class Specification(NamedTuple):
    """One value of every dimension."""

    labels: str
    missing: str
    unit: str
    classifier: str
    calibration: str


DIMENSIONS = Specification._fields


@dataclass(frozen=True)
class Headline:
    """What is compared: the ``stage`` of a model that a report begins with (``order.headline_stage``), in its last
    off-distribution ``format``, with its in-distribution format ``chat``, and with the stage ``other`` in the same format; None
    where there is none."""

    model: str
    stage: str
    format: str
    chat: str | None
    other: str | None


@dataclass(frozen=True)
class Outcome:
    """The numbers of one specification: retention above chance, gap, and ``stage`` - ``other``, with their intervals."""

    specification: Specification
    above_chance: Contrast
    gap: Contrast
    difference: Contrast


@dataclass(frozen=True)
class Multiverse:
    """All specifications of a headline. ``main`` is that of the report; ``choices`` are the values of each dimension, that of
    ``main`` first. A classifier without probabilities (all but ``as given``) is in no specification with ``balanced``."""

    headline: Headline
    main: Specification
    choices: Mapping[str, tuple[str, ...]]
    outcomes: tuple[Outcome, ...]


def headline(scores: Scores, model: str) -> Headline | None:
    """The headline of a model; None if its headline stage has texts in no off-distribution format."""
    groups = [g for g in scores.groups if g.model == model and not g.is_base]
    if not groups:
        return None
    stage = headline_stage(g.stage for g in groups)

    def formats(name: str) -> list[str]:
        return formats_in_order(g.format for g in groups if g.stage == name and g.emitted)

    mine = formats(stage)
    away = [f for f in mine if not is_in_distribution(f)]
    if not away:
        return None
    chat = next(filter(is_in_distribution, mine), None)
    others = (other for name, other in compared_stages() if name == stage)
    other = next((name for name in others if away[-1] in formats(name)), None)
    return Headline(model, stage, away[-1], chat, other)


def multiverse(
    scores: Scores,
    predictions: Sequence[Prediction],
    model: str,
    classifiers: Mapping[str, Sequence[str | None]],
) -> Multiverse | None:
    """The headline of ``model`` under every specification; None if it has no headline.

    Args:
        scores: those of the report, for the label set and the options.
        predictions: what was scored.
        classifiers: labels of further classifiers by name, aligned with ``predictions``. One that left an emitted text of the
            headline without a label is left out.
    """
    subject = headline(scores, model)
    if subject is None:
        return None
    places = [Place(subject.stage, subject.format)]
    if subject.chat is not None:
        places.append(Place(subject.stage, subject.chat))
    if subject.other is not None:
        places.append(Place(subject.other, subject.format))
    fits = _fits(predictions, model)
    every = {AS_GIVEN: None, **fits, **classifiers}
    rows = rows_of(predictions, model, places, scores.labels, every, scores.options)
    label_sets = _label_sets(rows, scores.labels)
    policies = POLICIES if rows.has_missing else (EMITTED,)
    units = _units(rows, scores.options.resample)
    outcomes = [
        Outcome(Specification(labels, policy, unit, classifier, calibration), *numbers)
        for labels, names in label_sets.items()
        for classifier, calibration in _classifiers(rows)
        for unit, policy, numbers in _of_labels(
            _specified(rows, names, classifier, calibration, tuple(fits)),
            subject,
            units,
            policies,
            scores.options,
        )
    ]
    calibrations = tuple(dict.fromkeys(calibration for _, calibration in _classifiers(rows)))
    values = (tuple(label_sets), policies, units, tuple(rows.predicted), calibrations)
    choices = dict(zip(DIMENSIONS, values, strict=True))
    return Multiverse(subject, Specification(*(v[0] for v in values)), choices, tuple(outcomes))


def _fits(predictions: Sequence[Prediction], model: str) -> dict[str, list[str | None]]:
    """The labels of all ``predictions`` by each fit of the classifier of ``model``; none if there is one fit."""
    number = max((len(p.fits) for p in predictions if p.model == model and p.fits is not None), default=0)
    return {
        f"fit {f + 1}": [p.fits[f] if p.fits is not None and f < len(p.fits) else None for p in predictions]
        for f in range(number)
    }


def _specified(
    rows: Rows, names: Sequence[str], classifier: str, calibration: str, fits: Sequence[str]
) -> Specified:
    """As ``Specified``; ``fits`` belong to the classifier of the rows, and have labels but no probabilities."""
    of_classifier = [name for name in fits if name in rows.predicted]
    averaged = classifier == AS_GIVEN and calibration == ARGMAX
    return Specified(rows, names, classifier, calibration, of_classifier if averaged else ())


def _label_sets(rows: Rows, labels: Sequence[str]) -> dict[str, list[str]]:
    """Names and labels of every label set: the personas of the grid, all labels of the classifier, and the personas without
    each of those that have texts."""
    sets = {f"{len(labels)} personas": list(labels)}
    if len(rows.names) > len(labels):
        sets[f"all {len(rows.names)} labels"] = rows.names
    if len(labels) >= FEWEST_PERSONAS:
        sets |= {
            f"without {left_out}": [label for label in labels if label != left_out]
            for left_out in labels
            if left_out in rows.personas
        }
    return sets


def _units(rows: Rows, chosen: str) -> tuple[str, ...]:
    """The units of resampling, ``chosen`` first; family and scenario are one unit where no family has two scenarios."""
    units = dict.fromkeys((chosen, "family", "scenario", "rows"))
    if rows.families == rows.scenarios:
        del units["scenario" if chosen != "scenario" else "family"]
    return tuple(units)


def _classifiers(rows: Rows) -> Iterator[tuple[str, str]]:
    """Yields every classifier with every calibration that it can have."""
    for name in rows.predicted:
        yield name, ARGMAX
        if name == AS_GIVEN and rows.has_probs:
            yield name, BALANCED


_Numbers = tuple[Contrast, Contrast, Contrast]


def _of_labels(
    specified: Specified,
    subject: Headline,
    units: Sequence[str],
    policies: Sequence[str],
    options: Options,
) -> Iterator[tuple[str, str, _Numbers]]:
    """Yields the three numbers of each unit and policy, for one label set, classifier and calibration.

    Whether retention is defined is decided with the first unit, so that the unit changes intervals only.
    """
    resamples, confidence = min(RESAMPLES, options.resamples), options.confidence
    above: dict[str, bool] = {}
    for unit in units:
        specified.resample(unit, resamples, options.seed, subject.model)
        for policy in policies:
            if policy not in above:
                above[policy] = _chat_above_null(specified, subject, policy, confidence)
            yield unit, policy, _numbers(specified, subject, policy, above[policy], confidence)


def _numbers(
    specified: Specified, subject: Headline, policy: str, above: bool, confidence: float
) -> _Numbers:
    """Retention above chance (if chat is ``above`` its null), gap and ``stage`` - ``other``, each the mean over the training
    seeds of its two groups."""
    undefined = Contrast(None, None)
    mine = Place(subject.stage, subject.format)
    kept, gap, change = undefined, undefined, undefined
    if subject.chat is not None:
        pairs = specified.pairs(Place(subject.stage, subject.chat), mine)
        wholes, parts = ([specified.score(g, policy) for g in side] for side in pairs)
        whole_nulls, nulls = ([specified.null(g, policy) for g in side] for side in pairs)
        gap = contrast([difference(*two) for two in zip(wholes, parts, strict=True)], confidence)
        if above:
            four = zip(parts, nulls, wholes, whole_nulls, strict=True)
            kept = contrast([above_chance(*statistics) for statistics in four], confidence)
    if subject.other is not None:
        pairs = specified.pairs(mine, Place(subject.other, subject.format))
        first, second = ([specified.score(g, policy) for g in side] for side in pairs)
        change = contrast([difference(*two) for two in zip(first, second, strict=True)], confidence)
    return kept, gap, change


def _chat_above_null(specified: Specified, subject: Headline, policy: str, confidence: float) -> bool:
    """Whether the interval of F1 - null in chat is above 0; without an interval, whether the difference is."""
    if subject.chat is None:
        return False
    chat, _ = specified.pairs(Place(subject.stage, subject.chat), Place(subject.stage, subject.format))
    over = contrast(
        [difference(specified.score(g, policy), specified.null(g, policy)) for g in chat], confidence
    )
    if over.estimate is None or over.estimate <= 0:
        return False
    return over.interval is None or over.interval[0] > 0
