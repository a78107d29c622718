"""Does the classifier see what a person sees? Its predictions against a person's judgement of the same texts."""

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from offscript.evaluation.metrics.agreement import alpha, kappa
from offscript.evaluation.metrics.display import NOT_AVAILABLE, number
from offscript.evaluation.metrics.results import BASE, Scores
from offscript.evaluation.order import formats_in_order, stages_in_order
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.section import Section, Table
from offscript.json_types import Json

EXPLANATION = (
    "A person read texts and judged of each whether its true persona is present in it or absent. As true: the share of these "
    "texts for which the classifier predicts the true persona. A classifier that sees what the person sees has a large share "
    "where the persona is present and a small one where it is absent.",
    "Kappa is Cohen's: the agreement of two judgements, that of the person (present) and that of the classifier (predicted = "
    "true), beyond what their frequencies would give by chance. 1: they always agree; 0: as often as by chance, or one of the two is the same for every text; n/a: "
    "both are the same for every text. All: without the texts of base weights.",
)

SEVERAL = (
    "Same label: texts to which two people gave one label. Alpha is Krippendorff's for nominal data, which takes any number of "
    "people and missing labels. The audit takes the label that most people gave; texts with a tie are left out. A judge (present: "
    "it names the true persona in both lists, absent: in neither) is compared with the people and does not count in the audit.",
)


@dataclass(frozen=True)
class Audit:
    """Counts of the judged texts of one group; stage and format are None for all groups of the model but those of ``base``.

    ``present`` and ``absent`` are the numbers of texts by the person's judgement, ``present_true`` and ``absent_true`` those
    of them whose predicted persona is the true one. ``kappa`` is None if it is undefined.
    """

    model: str
    stage: str | None
    format: str | None
    present: int
    present_true: int
    absent: int
    absent_true: int
    kappa: float | None


def audit(scores: Scores, predictions: Sequence[Prediction]) -> Section | None:
    """The section ``audit`` of the report; None if no person has judged a text. Rows of personas outside the label set of
    ``scores`` are left out."""
    return section(audits([p for p in predictions if p.persona in scores.labels]))


def audits(predictions: Iterable[Prediction]) -> list[Audit]:
    """The audit of each model, stage and format with judged texts, and of all of them without ``base`` where a model has several.

    Counted are rows with a judgement, a persona and a text, each row by itself: copies of one text are judged for one persona
    each.
    """
    judged = [p for p in predictions if None not in (p.present, p.persona, p.predicted)]
    stages, formats = stages_in_order(p.stage for p in judged), formats_in_order(p.format for p in judged)
    found = []
    for model in sorted({p.model for p in judged}):
        of_model = [p for p in judged if p.model == model]
        groups = {(stage, fmt): _of(of_model, stage, fmt) for stage in stages for fmt in formats}
        rows = [_audit(model, *group, members) for group, members in groups.items() if members]
        # Base texts may be copies, and are absent of every persona: they would raise the agreement.
        pooled = [p for p in of_model if p.stage != BASE]
        found += [*rows, *([_audit(model, None, None, pooled)] if pooled and len(rows) > 1 else [])]
    return found


def _of(members: Sequence[Prediction], stage: str, fmt: str) -> list[Prediction]:
    return [p for p in members if (p.stage, p.format) == (stage, fmt)]


def _audit(model: str, stage: str | None, fmt: str | None, members: Sequence[Prediction]) -> Audit:
    present = [p.predicted == p.persona for p in members if p.present]
    absent = [p.predicted == p.persona for p in members if not p.present]
    agreement = kappa([bool(p.present) for p in members], [p.predicted == p.persona for p in members])
    return Audit(model, stage, fmt, len(present), sum(present), len(absent), sum(absent), agreement)


Text = Hashable
"""What names a text that several people label."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two people, or of all.

    ``texts`` is the number of texts that both have labelled (of all people: that at least two have), ``equal`` the number of
    those with one label throughout. ``kappa`` is Cohen's, of two people; ``alpha`` is Krippendorff's, of all. None: undefined.
    """

    people: str
    texts: int
    equal: int
    kappa: float | None
    alpha: float | None


def agreements(labels: Mapping[str, Mapping[Text, bool]]) -> list[Agreement]:
    """The agreement of every two people, then of all, from the labels of each by the names of texts; none of one person."""
    pairs = [_pair(*two, labels) for two in itertools.combinations(labels, 2)]
    if not pairs:
        return []
    texts = dict.fromkeys(text for given in labels.values() for text in given)
    given = [[own[text] for own in labels.values() if text in own] for text in texts]
    several = [answers for answers in given if len(answers) > 1]
    equal = sum(len(set(answers)) == 1 for answers in several)
    ratings = [[own.get(text) for own in labels.values()] for text in texts]
    return [*pairs, Agreement("all", len(several), equal, None, alpha(ratings, "nominal"))]


def _pair(first: str, second: str, labels: Mapping[str, Mapping[Text, bool]]) -> Agreement:
    one, two = labels[first], labels[second]
    both = [(one[text], two[text]) for text in one if text in two]
    found = kappa([a for a, _ in both], [b for _, b in both])
    return Agreement(f"{first} and {second}", len(both), sum(a == b for a, b in both), found, None)


def majority(labels: Mapping[str, Mapping[Text, bool]]) -> tuple[dict[Text, bool], int]:
    """The label of each text that most people gave it, and the number of texts with a tie, which have none."""
    votes: dict[Text, list[bool]] = {}
    for given in labels.values():
        for text, present in given.items():
            votes.setdefault(text, []).append(present)
    ties = sum(2 * sum(v) == len(v) for v in votes.values())
    return {text: 2 * sum(v) > len(v) for text, v in votes.items() if 2 * sum(v) != len(v)}, ties


def section(
    found: Sequence[Audit], people: Sequence[Agreement] = (), notes: Sequence[str] = ()
) -> Section | None:
    """Audits, and the agreement of people, as a section of the report; None if there are no audits."""
    if not found:
        return None
    header = ("model", "stage", "format", "present", "as true", "absent", "as true", "texts", "kappa")
    rows = tuple(
        (
            a.model,
            a.stage or "all",
            a.format or "all",
            str(a.present),
            _share(a.present_true, a.present),
            str(a.absent),
            _share(a.absent_true, a.absent),
            str(a.present + a.absent),
            number(a.kappa, 2),
        )
        for a in found
    )
    return Section(
        name="audit",
        title="Label audit",
        explanation=EXPLANATION + (SEVERAL if people else ()),
        tables=(
            Table("Label audit: predictions by a person's judgement", header, rows, left=3),
            *_agreement_table(people),
        ),
        data={"groups": [as_json(a) for a in found], "people": [asdict(a) for a in people]},
        notes=tuple(notes),
    )


def _agreement_table(people: Sequence[Agreement]) -> tuple[Table, ...]:
    header = ("labels", "texts", "same label", "kappa", "alpha")
    rows = tuple(
        (
            a.people,
            str(a.texts),
            _share(a.equal, a.texts),
            number(a.kappa, 2),
            number(a.alpha, 2),
        )
        for a in people
    )
    return (Table("Agreement of the labels of the same texts", header, rows, left=1),) if rows else ()


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else NOT_AVAILABLE


def as_json(found: Audit) -> dict[str, Json]:
    """An audit as plain data."""
    return {
        "model": found.model,
        "stage": found.stage,
        "format": found.format,
        "present_n": found.present,
        "present_predicted_true": found.present_true,
        "absent_n": found.absent,
        "absent_predicted_true": found.absent_true,
        "kappa": found.kappa,
    }
