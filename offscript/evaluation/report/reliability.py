"""The reliability diagram: accuracy by confidence, a row of panels per model, as the probabilities are and after the
temperature."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.evaluation.metrics.display import number
from offscript.evaluation.metrics.readouts import BINS, mean_calibration
from offscript.evaluation.metrics.results import Calibration, GroupScore, Readouts, Scores
from offscript.evaluation.order import is_in_distribution, stages_in_order
from offscript.evaluation.report.figures import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito; markers are redundant with them.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "D"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "P"))
FORMATS_SHOWN = len(_LOOKS) - 1
"""With more formats beside chat, these are shown together."""
_PANEL_INCHES = 3.5
_LARGEST = 260.0
"""Area, in square points, of the marker of a bin that has all texts of its curve."""


def draw(scores: Scores, folder: Path) -> list[Path]:
    """Writes ``calibration.png`` and ``calibration.svg`` into ``folder`` (which exists) and returns their paths."""
    return save(lambda: _draw(scores), folder, "calibration")


def _draw(scores: Scores) -> "Figure":
    import matplotlib.pyplot as plt

    last = _last_stages(scores)
    scaled = any(readouts.scaled for groups in last.values() for _, readouts in groups)
    columns = 2 if scaled else 1
    figure, axes = plt.subplots(
        len(last),
        columns,
        figsize=(_PANEL_INCHES * columns + 0.6, (_PANEL_INCHES - 0.2) * len(last) + 0.9),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (model, groups) in zip(axes, last.items(), strict=True):
        curves = _curves(groups)
        _panel(row[0], [(name, raw) for name, raw, _ in curves])
        row[0].set_title(f"{model}, {groups[0][0].stage}", loc="left", fontweight="bold")
        row[0].set_ylabel("accuracy")
        if not scaled:
            continue
        _panel(row[1], [(name, found) for name, _, found in curves if found])
        temperature = groups[0][1].temperature
        row[1].set_title("no temperature" if temperature is None else f"T = {temperature:.2f}", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("confidence")
    inches = figure.get_figwidth()
    title = "Is the classifier as often right as it is sure?"
    figure.suptitle(textwrap.fill(title, int(13 * inches)), x=0.01, ha="left", fontsize=10)
    caption = (
        f"A marker is one of {BINS} bins of confidence, its area the share of texts in it; dashed: right as often as sure. "
        + (
            "Left: as the classifier gives them; right: after the temperature T fitted on chat. "
            if scaled
            else ""
        )
        + "In brackets: expected calibration error."
    )
    figure.supxlabel(
        textwrap.fill(caption, int(17.5 * inches)), x=0.01, ha="left", fontsize=7.5, color="#444444"
    )
    return figure


def _last_stages(scores: Scores) -> dict[str, list[tuple[GroupScore, Readouts]]]:
    """The groups of each model's last stage that have readouts, with these."""
    found = {}
    for model in dict.fromkeys(g.model for g in scores.groups):
        groups = [(g, g.readouts) for g in scores.main_groups(model) if g.readouts is not None]
        if groups:
            stage = stages_in_order(g.stage for g, _ in groups)[-1]
            found[model] = [(g, readouts) for g, readouts in groups if g.stage == stage]
    return found


def _curves(
    groups: Sequence[tuple[GroupScore, Readouts]],
) -> list[tuple[str, Calibration, Calibration | None]]:
    """Name, calibration as it is and after the temperature: of chat, and of the other formats or all of them together."""
    chat = [pair for pair in groups if is_in_distribution(pair[0].format)]
    others = [pair for pair in groups if not is_in_distribution(pair[0].format)]
    curves = [(g.format, r.raw, r.scaled) for g, r in chat]
    if len(others) <= FORMATS_SHOWN:
        return curves + [(g.format, r.raw, r.scaled) for g, r in others]
    scaled = [r.scaled for _, r in others if r.scaled is not None]
    name = f"{len(others)} other formats"
    return [
        *curves,
        (name, mean_calibration([r.raw for _, r in others]), mean_calibration(scaled) if scaled else None),
    ]


def _panel(axis: "Axes", curves: Sequence[tuple[str, Calibration]]) -> None:
    axis.plot([0, 1], [0, 1], color="#555555", linewidth=1, linestyle=(0, (3, 2)))
    for (name, found), (colour, marker) in zip(curves, _LOOKS, strict=False):
        texts = sum(b.texts for b in found.bins)
        x, y = [b.confidence for b in found.bins], [b.accuracy for b in found.bins]
        axis.plot(x, y, color=colour, linewidth=1, alpha=0.45)
        axis.scatter(
            x,
            y,
            s=[max(6.0, _LARGEST * b.texts / texts) for b in found.bins],
            color=colour,
            marker=marker,
            alpha=0.8,
            linewidths=0,
            clip_on=False,
        )
        axis.plot([], [], color=colour, marker=marker, markersize=5, label=f"{name} ({number(found.ece)})")
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.03)
    axis.set_aspect("equal")
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, loc="upper left", fontsize=7.5)
