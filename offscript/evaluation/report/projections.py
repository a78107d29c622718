"""The section of the report on persona vectors: where the persona is in the activations, and whether F1 follows."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from offscript.evaluation.metrics.display import NOT_AVAILABLE, number, span
from offscript.evaluation.metrics.projections import (
    AUC,
    DIFFERENCE,
    Correlation,
    GroupProjections,
    cells_of,
    correlations,
    group_projections,
    read,
)
from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.order import formats_in_order, stages_in_order
from offscript.evaluation.report.figures import headings, save
from offscript.evaluation.report.section import Section, Table
from offscript.json_types import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "projections"

# Okabe and Ito; stages are told apart by their markers.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

EXPLANATION = (
    "A persona vector is the mean activation of chat replies under the constitution minus that of plain chat replies, in one "
    "layer of the untrained model (Chen et al. 2025, arXiv 2507.21509). Here every text is read once more by the weights that "
    "wrote it, after the prompt that it answers, and the mean activation over the text's tokens is projected on the vector of "
    "each persona. The projections are in standard deviations of the untrained model's plain chat replies on the same vector, "
    "from their mean.",
    "own: mean projection on the vector of the true persona. others: mean projection on the vectors of the other personas. "
    "retained: own - others, divided by that of chat in the same stage; n/a if the interval of that of chat is not above 0. "
    "AUC: how well the projection on a persona's vector separates its texts from those of the other personas (0.5: not at "
    "all), mean over personas. accuracy: the share of texts whose largest projection is that of their persona.",
    "Where F1 falls and own - others and AUC do not, the persona is still in the activations, but the text does not show it to "
    "the classifier. Where all fall, the activations do not hold it either. Under a constitution (prompted) the activations "
    "show the prompt too, not only the text, and those of steered hold the vector that is added to them. Trained weights of a "
    "persona may shift the activations of every text along its vector, whatever the text says.",
    "The correlations are Spearman's, over the pairs of persona and format of a stage. Their intervals take the pairs to be "
    "independent, which pairs of one persona or one format are not: they are too narrow.",
)


def section(rows: Sequence[Mapping[str, Json]], scores: Scores, notes: Sequence[str] = ()) -> Section | None:
    """The section of the lines of files of projections; None if there are no numbers and no notes.

    Args:
        rows: the plain chat replies that the others are compared with are among them.
        notes: what is missing.
    """
    projections = read(rows)
    groups = group_projections(projections, scores.labels, scores.options)
    without = sorted({p.model for p in projections} - {g.model for g in groups})
    notes = [*notes, *(_without(model) for model in without)]
    if not groups and not notes:
        return None
    found = correlations(groups, scores)
    models = list(dict.fromkeys(g.model for g in groups))
    tables = [
        make(model) for model in models for make in (_Tables(groups, found).groups, _Tables(groups, found).f1)
    ]
    drawn = cells_of(groups, scores, AUC)
    return Section(
        NAME,
        "Persona vectors",
        EXPLANATION,
        tuple(table for table in tables if table.rows),
        {
            "groups": [_plain(group) for group in groups],
            "correlations": [cast(Json, dataclasses.asdict(c)) for c in found],
        },
        tuple(notes),
        (lambda folder: save(lambda: _draw(groups, scores), folder, NAME)) if drawn else None,
        "F1 of each persona and format against the AUC of its texts on its persona vector, a panel per model; formats by "
        "colour, stages by marker."
        if drawn
        else "",
    )


def _without(model: str) -> str:
    return f"persona vectors: {model} has no projections of plain chat replies, so that those of its texts have no unit"


def _plain(group: GroupProjections) -> Json:
    return cast(Json, {**dataclasses.asdict(group), "macro_auc": group.macro_auc})


@dataclasses.dataclass(frozen=True)
class _Tables:
    all_groups: Sequence[GroupProjections]
    correlations: Sequence[Correlation]

    def groups(self, model: str) -> Table:
        header = (
            "stage",
            "format",
            "texts",
            "own",
            "others",
            "own - others\n(95%)",
            "retained",
            "(95%)",
            "AUC",
            "accuracy",
        )
        rows = tuple(
            (
                g.stage,
                g.format,
                str(g.texts),
                number(g.own, 2) if g.own is not None else "-",
                number(g.others, 2),
                f"{number(g.difference.estimate, 2)} ({span(g.difference.interval)})",
                number(g.retained.estimate),
                span(g.retained.interval),
                number(g.macro_auc),
                number(g.accuracy),
            )
            for g in self.all_groups
            if g.model == model
        )
        return Table(f"{model}: projections on persona vectors", header, rows)

    def f1(self, model: str) -> Table:
        mine = [c for c in self.correlations if c.model == model]
        rows = tuple(
            (
                stage or "all",
                *(text for score in (AUC, DIFFERENCE) for text in self._of(mine, stage, score)),
            )
            for stage in dict.fromkeys(c.stage for c in mine)
        )
        header = ("stage", "pairs", "F1 and AUC", "(95%)", "pairs", "F1 and own - others", "(95%)")
        return Table(f"{model}: correlation over personas and formats", header, rows, left=1)

    @staticmethod
    def _of(found: Sequence[Correlation], stage: str | None, score: str) -> tuple[str, str, str]:
        one = next((c for c in found if (c.stage, c.score) == (stage, score)), None)
        if one is None:
            return "0", NOT_AVAILABLE, NOT_AVAILABLE
        return str(one.cells), number(one.rho), span(one.interval)


# ---------------------------------------------------------------- figure


def _draw(groups: Sequence[GroupProjections], scores: Scores) -> "Figure":
    import matplotlib.pyplot as plt

    cells = cells_of(groups, scores, AUC)
    models = list(dict.fromkeys(group.model for group, *_ in cells))
    figure, axes = plt.subplots(
        1,
        len(models),
        figsize=(4.6 * len(models) + 1.6, 4.3),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    formats = formats_in_order(group.format for group, *_ in cells)
    stages = stages_in_order(group.stage for group, *_ in cells)
    for axis, model in zip(axes[0], models, strict=True):
        for group, _, auc, f1 in cells:
            if group.model == model:
                _point(axis, auc, f1, formats.index(group.format), stages.index(group.stage))
        axis.set_title(model, loc="left", fontweight="bold")
        axis.set_xlabel("AUC of the projection on the persona's vector")
        axis.set_ylim(-0.03, 1.03)
        axis.axvline(0.5, color="#999999", linewidth=0.8, linestyle="--")
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0][0].set_ylabel("F1 of the persona")
    _legends(axes[0][-1], formats, stages)
    caption = "A point is one persona in one format and stage. Dashed: the activations do not tell the persona apart."
    headings(figure, "Does the classifier find the persona where the activations hold it?", caption)
    return figure


def _point(axis: "Axes", x: float, y: float, format_: int, stage: int) -> None:
    axis.plot(
        x,
        y,
        _MARKERS[stage % len(_MARKERS)],
        color=_COLOURS[format_ % len(_COLOURS)],
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.4,
        alpha=0.85,
    )


def _legends(axis: "Axes", formats: Sequence[str], stages: Sequence[str]) -> None:
    """Colours of formats and markers of stages, to the right of the last panel."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=_COLOURS[i % len(_COLOURS)], label=name)
        for i, name in enumerate(formats)
    ]
    handles += [
        Line2D([], [], marker=_MARKERS[i % len(_MARKERS)], linestyle="", color="#777777", label=name)
        for i, name in enumerate(stages)
    ]
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
