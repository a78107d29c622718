"""The section of confusions: for what each persona is taken most often where it is missed."""

from collections.abc import Sequence

from offscript.evaluation.metrics.display import NOT_AVAILABLE, number
from offscript.evaluation.metrics.results import GroupScore, Scores
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report.section import Section, Table
from offscript.json_types import Json

NAME = "confusions"
OUTSIDE = "another"
"""What a prediction outside the label set is called."""
FORMATS_IN_A_TABLE = 3

EXPLANATION = (
    "For each persona, the label that its texts get most often in place of their own, and the share of its texts that get it; "
    "empty: no text has a wrong label. In the row of all personas: the label that is predicted most often, and its share. If all "
    "personas are taken for the same one, the classifier falls back on that label; if each is taken for another, they are mixed up.",
)


def confusions(scores: Scores, predictions: Sequence[Prediction]) -> Section | None:
    """The section, for every stage whose texts have a persona; None if there is none, or only one persona."""
    groups = [
        g
        for model in dict.fromkeys(g.model for g in scores.groups)
        for g in scores.main_groups(model)
        if not g.is_base and g.emitted
    ]
    if not groups or len(scores.labels) < 2:
        return None
    return Section(
        NAME,
        "What each persona is taken for",
        EXPLANATION,
        tuple(_tables(scores, groups)),
        [_data(scores, group) for group in groups],
    )


def most_frequent_error(counts: Sequence[int], own: int, labels: Sequence[str]) -> tuple[str, float] | None:
    """The wrong label that the texts of persona ``own`` get most often, and the share of its texts that get it.

    ``counts`` are those of the persona: of each label, of labels outside the set, and of missing texts. None if no text is
    wrong.
    """
    texts = sum(counts[:-1])
    wrong = [(count, -i) for i, count in enumerate(counts[:-1]) if i != own and count]
    if not wrong:
        return None
    count, place = max(wrong)
    return (*labels, OUTSIDE)[-place], count / texts


def most_predicted(group: GroupScore, labels: Sequence[str]) -> tuple[str, float]:
    """The label that the texts of a group get most often, and its share."""
    columns = [sum(column) for column in zip(*group.counts, strict=True)][:-1]
    place = columns.index(max(columns))
    return (*labels, OUTSIDE)[place], columns[place] / sum(columns)


def _tables(scores: Scores, groups: Sequence[GroupScore]) -> list[Table]:
    """A table of each model and stage, with a column of each format; several tables where the formats are many."""
    made = []
    for model, stage in dict.fromkeys((g.model, g.stage) for g in groups):
        mine = [g for g in groups if (g.model, g.stage) == (model, stage)]
        for start in range(0, len(mine), FORMATS_IN_A_TABLE):
            shown = mine[start : start + FORMATS_IN_A_TABLE]
            rows = [
                (label, *(_error(g, i, scores.labels) for g in shown))
                for i, label in enumerate(scores.labels)
            ]
            rows.append(("all personas", *(_named(most_predicted(g, scores.labels)) for g in shown)))
            header = ("persona", *(g.format for g in shown))
            made.append(
                Table(f"{model}: what each persona is taken for, {stage}", header, tuple(rows), left=1)
            )
    return made


def _error(group: GroupScore, i: int, labels: Sequence[str]) -> str:
    if not group.personas[i].emitted:
        return NOT_AVAILABLE
    found = most_frequent_error(group.counts[i], i, labels)
    return "" if found is None else _named(found)


def _named(found: tuple[str, float]) -> str:
    return f"{found[0]} {number(found[1], 2)}"


def _data(scores: Scores, group: GroupScore) -> Json:
    errors = {
        label: found
        for i, label in enumerate(scores.labels)
        if (found := most_frequent_error(group.counts[i], i, scores.labels)) is not None
    }
    label, share = most_predicted(group, scores.labels)
    return {
        "model": group.model,
        "stage": group.stage,
        "format": group.format,
        "seeds": group.seeds,
        "personas": {name: {"label": wrong, "share": part} for name, (wrong, part) in errors.items()},
        "most_predicted": {"label": label, "share": share},
    }
