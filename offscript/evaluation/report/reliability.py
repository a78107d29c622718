"""The reliability diagram: accuracy by confidence, a row of panels per model, as the probabilities are and after the
temperature."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.evaluation.metrics.display import number
from offscript.evaluation.metrics.readouts import BINS, mean_calibration
from offscript.evaluation.metrics.results import Calibration, GroupScore, Readouts, Scores
from offscript.evaluation.order import headline_stage, is_in_distribution
from offscript.evaluation.report.figures import headings, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito; markers are redundant with them.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "D"), ("#E69F00", "s"), ("#009E73", "^"), ("#CC79A7", "P"))
FORMATS_SHOWN = len(_LOOKS) - 1
"""With more formats beside chat, these are shown together."""
MIN_JOINED = 5
"""Bins with fewer texts are not joined by the line."""
_PANEL_INCHES = 3.5
_LARGEST = 260.0
"""Area, in square points, of the marker of a bin that has all texts of its curve."""


def draw(scores: Scores, folder: Path) -> list[Path]:
    """Writes ``calibration.png`` and ``calibration.svg`` into ``folder`` (which exists) and returns their paths."""
    return save(lambda: _draw(scores), folder, "calibration")


def _draw(scores: Scores) -> "Figure":
    import matplotlib.pyplot as plt

    last = _headline_stages(scores)
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
    curves_of = {model: _curves(groups) for model, groups in last.items()}
    looks = _looks(name for curves in curves_of.values() for name, *_ in curves)
    for row, (model, curves) in zip(axes, curves_of.items(), strict=True):
        group, readouts = last[model][0]
        _panel(row[0], [(name, raw) for name, raw, _ in curves], looks)
        row[0].set_title(f"{model}, {group.stage}", loc="left", fontweight="bold")
        row[0].set_ylabel("accuracy")
        if scaled:
            _panel(row[1], [(name, found) for name, _, found in curves if found], looks)
            row[1].set_title(_of_temperature(readouts.temperature), loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("confidence")
    _write_around(figure, scaled)
    return figure


def _looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each curve, the same in all panels; the first are those of chat."""
    others = itertools.cycle(_LOOKS[1:])
    return {name: _LOOKS[0] if is_in_distribution(name) else next(others) for name in dict.fromkeys(names)}


def _of_temperature(temperature: float | None) -> str:
    return "no temperature" if temperature is None else f"after the temperature, T = {temperature:.2f}"


def _write_around(figure: "Figure", scaled: bool) -> None:
    """Writes the title and the caption of the figure."""
    title = "Is the classifier as often right as it is sure?"
    marks = (
        f"A marker is one of {BINS} bins of confidence, its area the share of texts in it; bins of fewer than {MIN_JOINED} "
        "texts are not joined. Dashed: right as often as sure."
    )
    panels = (
        " Left: as the classifier gives them; right: after the temperature T fitted on chat."
        if scaled
        else ""
    )
    headings(figure, title, f"{marks}{panels} In brackets: expected calibration error.")


def _headline_stages(scores: Scores) -> dict[str, list[tuple[GroupScore, Readouts]]]:
    """The groups of each model's headline stage (``order.headline_stage``) that have readouts, with these."""
    found = {}
    for model in dict.fromkeys(g.model for g in scores.groups):
        groups = [(g, g.readouts) for g in scores.main_groups(model) if g.readouts is not None]
        if groups:
            stage = headline_stage(g.stage for g, _ in groups)
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


def _panel(
    axis: "Axes", curves: Sequence[tuple[str, Calibration]], looks: Mapping[str, tuple[str, str]]
) -> None:
    axis.plot([0, 1], [0, 1], color="#555555", linewidth=1, linestyle=(0, (3, 2)))
    for name, found in curves:
        colour, marker = looks[name]
        texts = sum(b.texts for b in found.bins)
        x, y = [b.confidence for b in found.bins], [b.accuracy for b in found.bins]
        joined = [b for b in found.bins if b.texts >= MIN_JOINED]
        axis.plot(
            [b.confidence for b in joined],
            [b.accuracy for b in joined],
            color=colour,
            linewidth=1,
            alpha=0.45,
        )
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
    if curves:
        axis.legend(frameon=False, loc="upper left", fontsize=7.5)
