"""A section of the report: what a chat model as a judge says of the texts, and whether it can be believed.

A judge chooses the persona of a text from a list, which it is shown in two orders, and rates how clearly the text shows the
true persona and another one. Replies that state no single answer are counted as no answer, and are in no other number.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.agreement import alpha, kappa
from offscript.evaluation.metrics.display import number, span
from offscript.evaluation.metrics.intervals import Contrast, Statistic, contrast
from offscript.evaluation.metrics.results import Options
from offscript.evaluation.order import formats_in_order, stages_in_order
from offscript.evaluation.report.section import Section, Table
from offscript.json_types import Json
from offscript.seeds import stable_hash

ALL = "all"
"""Stage and format of the numbers over all texts of a model."""

UNANSWERED = 0.1
"""A larger share of replies without an answer gets a note."""

BIASED = 0.01
"""A smaller p-value of the first or last place gets a note."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one text.

    ``choices`` and ``places`` are the chosen persona, and its place in the list from 0, for each of the two orders; ``own``
    and ``other`` are the ratings of the true persona and of another one, a sample each. None is no answer.
    ``predicted`` is the classifier's label.
    """

    model: str
    stage: str
    format: str
    scenario: str
    family: str
    persona: str
    predicted: str | None
    places: tuple[int | None, int | None]
    choices: tuple[str | None, ...]
    own: tuple[int | None, ...]
    other: tuple[int | None, ...]


@dataclass(frozen=True)
class Place:
    """``share`` of the answers that name the persona at one place of the list, and ``p`` of a two-sided binomial test that
    it is 1 / number of personas. (Two answers to one text that agree cannot both be at that place, so the test is
    conservative.)"""

    share: float
    p: float


@dataclass(frozen=True)
class Choices:
    """The forced choices of a group of texts; None: undefined.

    ``accuracy`` is over the answers of both orders, ``same`` the share of texts with the same answer in both. ``kappa`` is
    Cohen's, of the answers and the classifier's labels; ``alpha`` Krippendorff's (nominal), of both orders and the
    classifier.
    """

    texts: int
    no_answer: float
    accuracy: Contrast
    same: float | None
    first: Place | None
    last: Place | None
    kappa: float | None
    alpha: float | None


@dataclass(frozen=True)
class Ratings:
    """The ratings of a group of texts; None: undefined.

    ``own`` and ``other`` are mean ratings of the true persona and of another one, ``difference`` is own - other. ``sd`` is
    the mean standard deviation between the samples of one rating, ``alpha`` Krippendorff's (ordinal) of the samples.
    """

    no_answer: float
    own: float | None
    other: float | None
    difference: Contrast
    sd: float | None
    alpha: float | None


@dataclass(frozen=True)
class Group:
    """The numbers of one model, stage and format."""

    model: str
    stage: str
    format: str
    choices: Choices
    ratings: Ratings


def section(
    verdicts: Sequence[Verdict], judge: str, personas: Sequence[str], options: Options, unread: int = 0
) -> Section:
    """The section of one judge.

    Args:
        verdicts: of all texts.
        judge: its name.
        personas: the list that it chooses from.
        options: of the intervals.
        unread: number of groups of texts that it has not finished.
    """
    groups = _groups(verdicts, personas, options)
    notes = [note for group in groups if group.stage == ALL for note in _notes(group, judge, personas)]
    if unread:
        notes.append(
            f"judge {judge}: {unread} of the model, stage and format groups are not judged yet, or their rows were changed"
        )
    models = list(dict.fromkeys(group.model for group in groups))
    tables = [
        make([group for group in groups if group.model == model], model, judge, personas)
        for model in models
        for make in (_choice_table, _rating_table)
    ]
    return Section(
        name="judge",
        title="A second reader: a judge",
        explanation=_explanation(judge, len(personas)),
        tables=tuple(tables),
        data={
            "judge": judge,
            "personas": list(personas),
            "chance": 1 / len(personas),
            "groups": [_as_json(group) for group in groups],
        },
        notes=tuple(notes),
    )


def _groups(verdicts: Sequence[Verdict], personas: Sequence[str], options: Options) -> list[Group]:
    """The groups in display order, and for each model first that of all its texts."""
    found = []
    for model in dict.fromkeys(v.model for v in verdicts):
        mine = [v for v in verdicts if v.model == model]
        found.append(_group((model, ALL, ALL), mine, personas, options))
        for stage in stages_in_order(v.stage for v in mine):
            for fmt in formats_in_order(v.format for v in mine if v.stage == stage):
                members = [v for v in mine if (v.stage, v.format) == (stage, fmt)]
                found.append(_group((model, stage, fmt), members, personas, options))
    return found


def _group(
    names: tuple[str, str, str], verdicts: Sequence[Verdict], personas: Sequence[str], options: Options
) -> Group:
    resampled = _Resampled(verdicts, names, options)
    return Group(*names, _choices(verdicts, personas, resampled), _ratings(verdicts, resampled))


class _Resampled:
    """Ratios of sums over texts, in bootstrap resamples of their clusters."""

    def __init__(self, verdicts: Sequence[Verdict], names: Sequence[str], options: Options) -> None:
        by: dict[str, Callable[[int], str]] = {
            "family": lambda i: verdicts[i].family,
            "scenario": lambda i: verdicts[i].scenario,
            "rows": str,
        }
        clusters = [by[options.resample](i) for i in range(len(verdicts))]
        labels, self.cluster = np.unique(clusters, return_inverse=True)
        self.by_rows, self.confidence = options.resample == "rows", options.confidence
        rng = np.random.default_rng([options.seed, stable_hash("judge", *names)])
        k = len(labels)
        # How often each cluster is drawn, [R, K].
        self.drawn = rng.multinomial(k, np.full(k, 1 / k), size=options.resamples).astype(float)

    def ratio(self, sums: Sequence[float], counts: Sequence[float]) -> Statistic:
        """Sum of ``sums`` / sum of ``counts``, one entry of each per text."""
        above, below = (self._by_cluster(values) for values in (sums, counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = (self.drawn @ above) / (self.drawn @ below)
        held = int((below > 0).sum())
        value = float(above.sum() / below.sum()) if held else None
        return Statistic(value, draws, None if self.by_rows else held)

    def _by_cluster(self, values: Sequence[float]) -> NDArray[np.float64]:
        sums = np.zeros(self.drawn.shape[1])
        np.add.at(sums, self.cluster, np.asarray(values, dtype=float))
        return sums


# ---------------------------------------------------------------- choices


def _choices(verdicts: Sequence[Verdict], personas: Sequence[str], resampled: _Resampled) -> Choices:
    answers = [[c for c in v.choices if c is not None] for v in verdicts]
    places = [place for v in verdicts for place in v.places if place is not None]
    both = [given for given in answers if len(given) == 2]
    right = [sum(c == v.persona for c in given) for v, given in zip(verdicts, answers, strict=True)]
    accuracy = resampled.ratio(right, [len(given) for given in answers])
    pairs = [(c, v.predicted) for v in verdicts for c in v.choices if None not in (c, v.predicted)]
    return Choices(
        texts=len(verdicts),
        no_answer=1 - len(places) / (2 * len(verdicts)),
        accuracy=contrast([accuracy], resampled.confidence),
        same=sum(len(set(given)) == 1 for given in both) / len(both) if both else None,
        first=_place(places, 0, len(personas)),
        last=_place(places, len(personas) - 1, len(personas)),
        kappa=kappa([choice for choice, _ in pairs], [predicted for _, predicted in pairs]),
        alpha=alpha([(*v.choices, v.predicted) for v in verdicts], "nominal"),
    )


def _place(places: Sequence[int], place: int, options: int) -> Place | None:
    from scipy.stats import binomtest

    if not places:
        return None
    count = sum(p == place for p in places)
    return Place(count / len(places), float(binomtest(count, len(places), 1 / options).pvalue))


# ---------------------------------------------------------------- ratings


def _ratings(verdicts: Sequence[Verdict], resampled: _Resampled) -> Ratings:
    asked = [samples for v in verdicts for samples in (v.own, v.other)]
    given = [[rating for rating in samples if rating is not None] for samples in asked]
    planned = sum(map(len, asked))
    own, other = (
        resampled.ratio(list(map(sum, part)), list(map(len, part))) for part in (given[::2], given[1::2])
    )
    both = own.value is not None and other.value is not None
    clusters = None if own.clusters is None or other.clusters is None else min(own.clusters, other.clusters)
    difference = Statistic(
        own.value - other.value if own.value is not None and other.value is not None else None,
        own.draws - other.draws if both else np.array([]),
        clusters,
    )
    spread = [float(np.std(ratings, ddof=1)) for ratings in given if len(ratings) > 1]
    return Ratings(
        no_answer=1 - sum(map(len, given)) / planned if planned else 1.0,
        own=own.value,
        other=other.value,
        difference=contrast([difference], resampled.confidence),
        sd=sum(spread) / len(spread) if spread else None,
        alpha=alpha(asked, "ordinal"),
    )


# ---------------------------------------------------------------- words


def _notes(group: Group, judge: str, personas: Sequence[str]) -> list[str]:
    """What a reader has to know of a judge before its numbers on one model are read."""
    notes, name = [], f"judge {judge} on {group.model}"
    silent = [
        f"{share:.0%} of the {what}"
        for share, what in ((group.choices.no_answer, "choices"), (group.ratings.no_answer, "ratings"))
        if share > UNANSWERED
    ]
    if group.choices.no_answer == group.ratings.no_answer == 1:
        notes.append(f"{name}: none of its replies states an answer, so it says nothing about the texts")
    elif silent:
        notes.append(f"{name}: no answer in {' and '.join(silent)}; its other numbers are of the rest")
    chance = 1 / len(personas)
    for place, which in ((group.choices.first, "first"), (group.choices.last, "last")):
        if place is not None and place.share > chance and place.p < BIASED:
            notes.append(
                f"{name}: position bias: {place.share:.0%} of its answers name the {which} persona of the list "
                f"({chance:.0%} without a bias, {p_value(place.p)})"
            )
    return notes


def p_value(p: float) -> str:
    """``p = .021``, ``p < .001``."""
    return "p < .001" if p < 0.001 else f"p = {number(p)}"


def _explanation(judge: str, personas: int) -> tuple[str, ...]:
    return (
        f"The chat model {judge} has read a part of the texts as a second reader, without knowing stage, format or what the "
        "classifier says. Texts of base weights, which have no persona, are left out. A reply that does not state exactly "
        "one answer counts as no answer, and is in no other column.",
        f"Forced choice: the judge names the one of {personas} personas that the text shows most clearly. It is asked twice, "
        "with the list in a random order and in the reverse of it. Accuracy: answers that name the true persona, of all "
        f"answers (chance {number(1 / personas)}). Same: texts with the same answer to both lists. First: answers that name "
        "the first persona of the list; p: of a binomial test that this is chance, a low one shows that the place in the "
        "list decides. Kappa: agreement of the answers with the classifier (Cohen). Alpha: agreement of both answers and the "
        "classifier (Krippendorff, nominal). 0 is chance, 1 is full agreement.",
        "Rating: how clearly the text shows a persona, from 1 (not at all) to 5 (from beginning to end). True: mean rating of "
        "the true persona; other: of another one, drawn at random; the difference is 0 for a judge that does not see the "
        "persona. SD: between the samples of one rating. Alpha: agreement of the samples (Krippendorff, ordinal).",
    )


def _choice_table(groups: Sequence[Group], model: str, judge: str, personas: Sequence[str]) -> Table:
    rows = []
    for group in groups:
        c = group.choices
        rows.append(
            (
                group.stage,
                group.format,
                str(c.texts),
                f"{c.no_answer:.0%}",
                number(c.accuracy.estimate),
                span(c.accuracy.interval),
                number(c.same),
                number(c.first.share if c.first else None),
                number(c.first.p if c.first else None),
                number(c.kappa),
                number(c.alpha),
            )
        )
    title = f"{model}: the persona that judge {judge} chooses, of {len(personas)} (chance {number(1 / len(personas))})"
    header = (
        "stage", "format", "texts", "no\nanswer", "accuracy", "interval", "same", "first", "p", "kappa", "alpha",
    )  # fmt: skip
    return Table(title, header, tuple(rows))


def _rating_table(groups: Sequence[Group], model: str, judge: str, personas: Sequence[str]) -> Table:
    rows = []
    for group in groups:
        r = group.ratings
        rows.append(
            (
                group.stage,
                group.format,
                f"{r.no_answer:.0%}",
                number(r.own),
                number(r.other),
                number(r.difference.estimate),
                span(r.difference.interval),
                number(r.sd),
                number(r.alpha),
            )
        )
    title = f"{model}: how clearly judge {judge} sees the true persona, and another one (1 to 5)"
    header = ("stage", "format", "no\nanswer", "true", "other", "true -\nother", "interval", "SD", "alpha")
    return Table(title, header, tuple(rows))


def _as_json(group: Group) -> dict[str, Json]:
    """The numbers of a group as plain data."""
    return asdict(group)
