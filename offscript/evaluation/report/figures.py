"""Figures with one panel per model: macro-F1 by format and stage with intervals, a heatmap of F1 by persona, and macro-F1 by
the turns before a question (format ``drift``)."""

import itertools
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offscript.evaluation.metrics.notes import UNITS
from offscript.evaluation.metrics.results import GroupScore, Scores
from offscript.evaluation.order import formats_in_order, stages_in_order
from offscript.tasks.formats import drift as drift_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Colours of Okabe and Ito, distinguishable with the common colour vision deficiencies; markers are redundant with them.
_LOOK = {
    "base": ("#7f7f7f", "o"),
    "prompted": ("#E69F00", "s"),
    "prompted_examples": ("#E69F00", "p"),
    "steered": ("#009E73", "v"),
    "distillation": ("#0072B2", "^"),
    "full": ("#D55E00", "D"),
}
_SPARE = (("#CC79A7", "P"), ("#56B4E9", "X"))
_PANEL_INCHES = (4.6, 3.9)
_DODGE = 0.16
_MOST_STAGES = 8
"""Stages that have room beside each other in one panel. More of them have a row each, and a panel for each format."""
_MOST_COLUMNS = 32
"""Columns of a heatmap. Above, its rows and columns are exchanged."""
_TITLE = "How well a classifier recognizes the persona in each format"
_PALE = "Pale bars: minimum and maximum over all labels of the missing texts."


def headline(scores: Scores, folder: Path) -> list[Path]:
    """Writes ``headline.png`` and ``headline.svg`` into ``folder`` (which exists) and returns their paths.

    A panel per model, with the formats beside each other; with more than eight stages a panel per model and format, with the
    stages below each other. A point is the macro-F1 on emitted texts, its bar the interval, its pale bar the bounds under missing
    texts. The dashed line of a format is the mean macro-F1 with permuted persona labels.
    """
    return save(lambda: _draw_headline(scores), folder, "headline")


def heatmap(scores: Scores, folder: Path) -> list[Path]:
    """Writes ``personas.png`` and ``personas.svg``: F1 on emitted texts, with a row per persona and a column per stage
    and format, or the other way round if these are many. A cell without texts is white."""
    return save(lambda: _draw_heatmap(scores), folder, "personas")


def drift(scores: Scores, folder: Path) -> list[Path]:
    """Writes ``drift.png`` and ``drift.svg`` if there are scores of sessions (format ``drift``).

    A point is the macro-F1 after so many turns, with its interval: filled for sessions with the model's own
    replies, hollow for those with the replies of the untrained model.
    """
    if any(_session(g) for g in scores.groups):
        return save(lambda: _draw_drift(scores), folder, "drift")
    return []


def save(draw: Callable[[], "Figure"], folder: Path, name: str) -> list[Path]:
    """Writes what ``draw`` draws as ``<name>.png`` and ``<name>.svg`` into ``folder`` and returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, object] = {
        "svg.hashsalt": "offscript",
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure = draw()
        paths = [folder / f"{name}.png", folder / f"{name}.svg"]
        # The positions are computed once, and not for each file: that takes most of the time of a figure.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(paths[0], dpi=160, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    return paths


def headings(figure: "Figure", title: str, caption: str) -> None:
    """Writes ``title`` above and ``caption`` below a figure, in lines that are as long as it is wide."""
    inches = figure.get_figwidth()
    figure.suptitle(textwrap.fill(title, int(13 * inches)), x=0.01, ha="left", fontsize=10)
    below = textwrap.fill(caption, int(17.5 * inches))
    figure.supxlabel(below, x=0.01, ha="left", fontsize=7.5, color="#444444")


def _draw_heatmap(scores: Scores) -> "Figure":
    import matplotlib.pyplot as plt

    models = dict.fromkeys(g.model for g in scores.groups)
    by_model = {model: scores.main_groups(model) for model in models}
    most = max(map(len, by_model.values()))
    upright = most > _MOST_COLUMNS
    # Inches: 0.62 and 0.3 for a cell, or 0.5 and 0.2 for one of a long column; stages differ from model to model.
    widths = [0.5 * len(scores.labels) + 1.6 if upright else 0.62 * len(g) for g in by_model.values()]
    height = 0.2 * most + 1.5 if upright else 0.3 * len(scores.labels) + 1.9
    figure, axes = plt.subplots(
        1,
        len(by_model),
        figsize=(sum(widths) + 2.4, height),
        sharey=not upright,
        squeeze=False,
        gridspec_kw={"width_ratios": widths},
        layout="constrained",
    )
    image = None
    for axis, (model, groups) in zip(axes[0], by_model.items(), strict=True):
        image = _persona_panel(axis, model, groups, scores.labels, upright)
    if image is not None:
        bar = {"location": "top", "fraction": 0.5 / height, "aspect": 40} if upright else {"fraction": 0.04}
        figure.colorbar(image, ax=list(axes[0]), label="F1 on emitted texts", pad=0.02, **bar)
    return figure


def _persona_panel(
    axis: "Axes", model: str, groups: list[GroupScore], labels: tuple[str, ...], upright: bool
) -> "AxesImage":
    f1 = np.full((len(labels), len(groups)), np.nan)
    for column, group in enumerate(groups):
        for persona in group.personas:
            if persona.emitted:
                f1[labels.index(persona.persona), column] = persona.f1
    names = [f"{g.stage} {g.format}" for g in groups]
    rows, columns = (names, labels) if upright else (labels, names)
    f1 = f1.T if upright else f1
    image = axis.imshow(f1, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(f1)):
        ink = "black" if f1[row, column] > 0.6 else "white"
        text = f"{f1[row, column]:.2f}".removeprefix("0")
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7.5)
    axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.set_title(model, loc="left", fontweight="bold")
    return image


def _session(group: GroupScore) -> tuple[bool, int] | None:
    """Whether a session has the model's own replies, and its turns; None for a group of another format."""
    name, _, variant = group.format.partition("/")
    found = re.fullmatch(rf"({drift_format.OWN}|{drift_format.PLAIN})(\d+)", variant)
    if name != drift_format.FORMAT.name or not found:
        return None
    return found[1] == drift_format.OWN, int(found[2])


def _draw_drift(scores: Scores) -> "Figure":
    import matplotlib.pyplot as plt

    sessions = [(g, *found) for g in scores.groups if (found := _session(g))]
    models = list(dict.fromkeys(g.model for g, *_ in sessions))
    width, height = _PANEL_INCHES
    figure, axes = plt.subplots(
        1,
        len(models),
        figsize=((width + 0.8) * len(models) + 0.4, height),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, model in zip(axes[0], models, strict=True):
        _drift_panel(axis, [session for session in sessions if session[0].model == model])
        axis.set_title(model, loc="left", fontweight="bold")
        axis.set_xlabel("turns before the question")
    axes[0][0].set_ylabel(f"macro-F1 over {len(scores.labels)} personas")
    kinds = "Filled: the session has the model's own replies; hollow: those of the untrained model."
    bars = f"Bars: {scores.options.confidence:.0%} bootstrap intervals over {UNITS[scores.options.resample]}."
    pale = _PALE if any(_has_missing(g) for g, *_ in sessions) else ""
    headings(figure, "Does the persona wear off in a long session?", f"{kinds} {bars} {pale}")
    return figure


def _drift_panel(axis: "Axes", sessions: list[tuple[GroupScore, bool, int]]) -> None:
    turns = sorted({n for _, _, n in sessions})
    stages = stages_in_order(g.stage for g, *_ in sessions)
    spare = iter(_SPARE * len(stages))
    labels: list[tuple[float, str, str]] = []
    for i, stage in enumerate(stages):
        colour, marker = _LOOK.get(stage) or next(spare)
        ends = []
        for own in (True, False):
            # Beside each other: each stage and kind has a place of its own within a length.
            shift = 2 ** (_DODGE / 2 * (2 * i + (not own) - len(stages) + 0.5))
            points = [(n * shift, g) for g, kind, n in sessions if (g.stage, kind) == (stage, own)]
            ends.append(_stage_line(axis, points, colour, marker, hollow=not own))
        if heights := [end for end in ends if end is not None]:
            labels.append((float(np.mean(heights)), stage, colour))
    axis.set_xscale("log", base=2)
    axis.set_xticks(turns, [str(n) for n in turns])
    axis.set_xlim(turns[0] / 1.5, turns[-1] * 2.6)
    for y, (_, stage, colour) in zip(_spread([y for y, _, _ in labels]), labels, strict=True):
        axis.text(turns[-1] * 1.45, y, stage, color=colour, va="center", fontsize=8.5, fontweight="bold")
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _draw_headline(scores: Scores) -> "Figure":
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(g.model for g in scores.groups))
    formats = formats_in_order(g.format for g in scores.groups)
    if max(len({g.stage for g in scores.main_groups(model)}) for model in models) > _MOST_STAGES:
        return _draw_stage_rows(scores, models, formats)
    width, height = _PANEL_INCHES
    wide = max(width, 1.2 * len(formats) + 1.6)
    figure, axes = plt.subplots(
        1,
        len(models),
        figsize=(wide * len(models) + 0.4, height),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, model in zip(axes[0], models, strict=True):
        _panel(axis, scores.main_groups(model), formats)
        axis.set_title(model, loc="left", fontweight="bold")
    axes[0][0].set_ylabel(f"macro-F1 over {len(scores.labels)} personas")
    headings(figure, _TITLE, _caption(scores))
    return figure


def _draw_stage_rows(scores: Scores, models: list[str], formats: list[str]) -> "Figure":
    """A row of panels per model, one for each format, in which every stage has a row."""
    import matplotlib.pyplot as plt

    stages = {model: stages_in_order(g.stage for g in scores.main_groups(model)) for model in models}
    heights = [0.2 * len(stages[model]) + 0.8 for model in models]
    figure, axes = plt.subplots(
        len(models),
        len(formats),
        figsize=(1.75 * len(formats) + 2.2, sum(heights) + 0.9),
        sharex=True,
        sharey="row",
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for row, model in zip(axes, models, strict=True):
        groups = scores.main_groups(model)
        for axis, format_ in zip(row, formats, strict=True):
            _stage_rows(axis, [g for g in groups if g.format == format_], stages[model])
            axis.set_title(_tick(format_, groups), loc="left", fontsize=8.5)
        row[0].set_ylabel(model, fontweight="bold")
    for axis in axes[-1]:
        axis.set_xlabel(f"macro-F1 over\n{len(scores.labels)} personas")
    headings(figure, _TITLE, _caption(scores))
    return figure


def _stage_rows(axis: "Axes", groups: list[GroupScore], stages: list[str]) -> None:
    """The groups of one format, a row for each of ``stages``, from above."""
    for group in groups:
        value, row = group.macro_f1.emitted, stages.index(group.stage)
        colour, marker = _LOOK.get(group.stage, ("#222222", "o"))
        low, high = group.macro_f1.lower, group.macro_f1.upper
        if _has_missing(group) and low is not None and high is not None:
            axis.plot([low, high], [row, row], color=colour, linewidth=5, alpha=0.18, solid_capstyle="butt")
        if value is None:
            continue
        ends = group.interval or (value, value)
        # A percentile interval need not contain its estimate, and matplotlib rejects error bars of negative length.
        reach = np.maximum([[value - ends[0]], [ends[1] - value]], 0)
        axis.errorbar([value], [row], xerr=reach, fmt=marker, color=colour, markersize=4, capsize=2)
    if nulls := [g.null.mean for g in groups if g.null and g.stage != "base"]:
        axis.axvline(float(np.mean(nulls)), color="#555555", linewidth=1, linestyle=(0, (3, 2)))
    axis.set_yticks(range(len(stages)), stages)
    axis.set_ylim(len(stages) - 0.4, -0.6)
    axis.set_xlim(0, 1.02)
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _caption(scores: Scores) -> str:
    confidence = f"{scores.options.confidence:.0%}"
    parts = [
        f"Points: emitted texts; bars: {confidence} bootstrap intervals over {UNITS[scores.options.resample]}."
    ]
    if any(g.seeds > 1 for g in scores.groups):
        parts.append("Several training seeds: their mean, with the variance of both.")
    if any(_has_missing(g) for g in scores.groups):
        parts.append(_PALE)
    if any(g.planned is None for g in scores.groups):
        parts.append("The number of planned texts is unknown for some points.")
    parts.append("Dashed: mean with persona labels permuted within each scenario.")
    return " ".join(parts)


def _has_missing(group: GroupScore) -> bool:
    return group.planned is not None and group.emitted < group.planned


def _panel(axis: "Axes", groups: list[GroupScore], formats: list[str]) -> None:
    stages = stages_in_order(g.stage for g in groups)
    spare = iter(_SPARE * len(stages))
    labels: list[tuple[float, str, str]] = []
    for i, stage in enumerate(stages):
        colour, marker = _LOOK.get(stage) or next(spare)
        offset = _DODGE * (i - (len(stages) - 1) / 2)
        points = [(formats.index(g.format) + offset, g) for g in groups if g.stage == stage]
        last = _stage_line(axis, points, colour, marker)
        if last is not None:
            labels.append((last, stage, colour))
    _null(axis, groups, formats)
    right = len(formats) - 1 + _DODGE * len(stages) / 2 + 0.1
    for y, (_, stage, colour) in zip(_spread([y for y, _, _ in labels]), labels, strict=True):
        axis.text(right, y, stage, color=colour, va="center", fontsize=8.5, fontweight="bold")
    axis.set_xticks(range(len(formats)), [_tick(f, groups) for f in formats])
    axis.set_xlim(-0.5, right + 0.75)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _stage_line(
    axis: "Axes", points: list[tuple[float, GroupScore]], colour: str, marker: str, hollow: bool = False
) -> float | None:
    """Draws the groups of one stage, each at its place on the x axis; ``hollow`` markers have a dashed line. Returns the
    height of the right-most point, None if the stage has no scores."""
    scored = [(place, g.macro_f1.emitted, g.interval) for place, g in points]
    drawn = sorted((x, y, ends or (y, y)) for x, y, ends in scored if y is not None)
    if not drawn:
        return None
    x, y = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
    # A percentile interval need not contain its estimate, and matplotlib rejects error bars of negative length.
    reach = np.maximum([[d[1] - d[2][0] for d in drawn], [d[2][1] - d[1] for d in drawn]], 0)
    axis.plot(x, y, color=colour, linewidth=1, alpha=0.45, linestyle="--" if hollow else "-")
    for place, g in points:
        low, high = g.macro_f1.lower, g.macro_f1.upper
        if _has_missing(g) and low is not None and high is not None:
            axis.plot(
                [place, place], [low, high], color=colour, linewidth=5, alpha=0.18, solid_capstyle="butt"
            )
    axis.errorbar(
        x,
        y,
        yerr=reach,
        fmt=marker,
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=5,
        capsize=2.5,
        elinewidth=1.3,
    )
    return float(y[-1])


def _null(axis: "Axes", groups: list[GroupScore], formats: list[str]) -> None:
    """Draws a dashed grey line at the mean null of each format, and labels the first one."""
    named = False
    for x, format_ in enumerate(formats):
        nulls = [g.null.mean for g in groups if g.format == format_ and g.null and g.stage != "base"]
        if not nulls:
            continue
        level = float(np.mean(nulls))
        axis.plot([x - 0.42, x + 0.42], [level, level], color="#555555", linewidth=1, linestyle=(0, (3, 2)))
        if not named:
            axis.text(x - 0.42, level + 0.012, "labels permuted", color="#555555", fontsize=7, va="bottom")
            named = True


def _tick(format_: str, groups: list[GroupScore]) -> str:
    """Name of the format, and on a second line the lowest and highest emission rate of its stages."""
    rates = [g.emission_rate for g in groups if g.format == format_ and g.emission_rate is not None]
    if not rates:
        return f"{format_}\n"
    low, high = f"{min(rates):.0%}", f"{max(rates):.0%}"
    return f"{format_}\n{low if low == high else f'{low} to {high}'} emitted"


def _spread(heights: list[float], gap: float = 0.055) -> list[float]:
    """``heights`` at least ``gap`` apart and at most 1, in the given order: positions of labels that do not overlap."""
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, dtype=float)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    over = max(0.0, placed.max(initial=0.0) - 1.0)
    return list(placed - over)
