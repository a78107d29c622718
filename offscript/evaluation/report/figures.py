"""The figures: macro-F1 by format for each stage, with intervals, and the F1 of each persona as a heatmap; one panel per
model."""

import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from offscript.evaluation.metrics.scores import FORMATS, STAGES, Evaluation, GroupScore

# Okabe and Ito's colours, told apart with every common colour blindness; shapes say the same again
_LOOK = {
    "base": ("#7f7f7f", "o"),
    "prompted": ("#E69F00", "s"),
    "distillation": ("#0072B2", "^"),
    "full": ("#D55E00", "D"),
}
_SPARE = (("#009E73", "v"), ("#CC79A7", "P"), ("#56B4E9", "X"))
_PANEL_INCHES = (4.6, 3.9)
_DODGE = 0.16


def headline(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes ``headline.png`` and ``headline.svg`` into ``folder`` (which exists) and returns their paths.

    A point is the macro-F1 on emitted texts, its bar the interval by scenario, its pale bar the bounds that missing
    texts leave; the dashed line of a format is the mean macro-F1 with persona labels shuffled.
    """
    return _saved(_draw, evaluation, folder, "headline")


def heatmap(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Writes ``personas.png`` and ``personas.svg``: F1 on emitted texts, a row per persona, a column per stage and
    format. A column without texts is left white."""
    return _saved(_draw_heatmap, evaluation, folder, "personas")


def _saved(
    draw: Callable[[Any, Evaluation], Any], evaluation: Evaluation, folder: Path, name: str
) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {
        "svg.hashsalt": "offscript",
        "text.parse_math": False,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure = draw(plt, evaluation)
        paths = [folder / f"{name}.png", folder / f"{name}.svg"]
        figure.savefig(paths[0], dpi=160, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
        plt.close(figure)
    return paths


def _draw_heatmap(plt: Any, evaluation: Evaluation) -> Any:
    by_model: dict[str, list[GroupScore]] = {}
    for group in evaluation.groups:
        by_model.setdefault(group.model, []).append(group)
    widths = [0.62 * len(groups) for groups in by_model.values()]
    height = 0.3 * len(evaluation.labels) + 1.9
    figure, axes = plt.subplots(
        1, len(by_model), figsize=(sum(widths) + 2.4, height), sharey=True, squeeze=False,
        gridspec_kw={"width_ratios": widths}, layout="constrained",
    )  # fmt: skip
    shown = None
    for axis, (model, groups) in zip(axes[0], by_model.items(), strict=True):
        shown = _persona_panel(axis, model, groups, evaluation.labels)
    if shown is not None:
        figure.colorbar(shown, ax=list(axes[0]), label="F1 on the texts that exist", fraction=0.04, pad=0.02)
    return figure


def _persona_panel(axis: Any, model: str, groups: list[GroupScore], labels: tuple[str, ...]) -> Any:
    scores = np.full((len(labels), len(groups)), np.nan)
    for column, group in enumerate(groups):
        for persona in group.personas:
            if persona.emitted:
                scores[labels.index(persona.persona), column] = persona.f1
    shown = axis.imshow(scores, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(scores)):
        ink = "black" if scores[row, column] > 0.6 else "white"
        text = f"{scores[row, column]:.2f}".removeprefix("0")
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7.5)
    seeds = len({g.training_seed for g in groups}) > 1
    names = [f"{g.stage}{f'/{g.training_seed}' if seeds else ''} {g.format}" for g in groups]
    axis.set_xticks(range(len(groups)), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(length=0)
    axis.set_title(model, loc="left", fontweight="bold")
    return shown


def _draw(plt: Any, evaluation: Evaluation) -> Any:
    models = list(dict.fromkeys(g.model for g in evaluation.groups))
    formats = _ordered({g.format for g in evaluation.groups}, FORMATS)
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
        _panel(axis, [g for g in evaluation.groups if g.model == model], formats)
        axis.set_title(model, loc="left", fontweight="bold")
    axes[0][0].set_ylabel(f"macro-F1 over {len(evaluation.labels)} personas")
    inches = figure.get_figwidth()
    title = "How well a classifier tells the trained persona from a text, by the format it was written in"
    figure.suptitle(textwrap.fill(title, int(13 * inches)), x=0.01, ha="left", fontsize=10)
    caption = textwrap.fill(_caption(evaluation), int(17.5 * inches))
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color="#444444")
    return figure


def _caption(evaluation: Evaluation) -> str:
    confidence = f"{evaluation.options.confidence:.0%}"
    parts = [f"Points: texts that were emitted; bars: {confidence} bootstrap intervals over scenarios."]
    if any(_has_missing(g) for g in evaluation.groups):
        parts.append("Pale bars: the least and the most that the missing texts could have given.")
    if any(g.planned is None for g in evaluation.groups):
        parts.append("How many texts were planned is unknown for some points.")
    parts.append("Dashed: mean with the persona labels shuffled within each scenario.")
    return " ".join(parts)


def _has_missing(group: GroupScore) -> bool:
    return group.planned is not None and group.emitted < group.planned


def _ordered(names: set[str], known: tuple[str, ...]) -> list[str]:
    return [name for name in known if name in names] + sorted(names - set(known))


def _panel(axis: Any, groups: list[GroupScore], formats: list[str]) -> None:
    stages = _ordered({g.stage for g in groups}, STAGES)
    spare = iter(_SPARE * len(stages))
    labels: list[tuple[float, str, str]] = []
    for i, stage in enumerate(stages):
        colour, marker = _LOOK.get(stage) or next(spare)
        offset = _DODGE * (i - (len(stages) - 1) / 2)
        last = None
        for seed in sorted({g.training_seed for g in groups if g.stage == stage}, key=str):
            line = [g for g in groups if g.stage == stage and g.training_seed == seed]
            last = _stage_line(axis, line, formats, offset, colour, marker) or last
        if last is not None:
            labels.append((last, stage, colour))
    _null(axis, groups, formats)
    right = len(formats) - 1 + _DODGE * len(stages) / 2 + 0.1
    for y, (_, stage, colour) in zip(_spread([y for y, _, _ in labels]), labels, strict=True):
        axis.text(right, y, stage, color=colour, va="center", fontsize=8.5, fontweight="bold")
    axis.set_xticks(range(len(formats)), [_tick(f, groups, stages) for f in formats])
    axis.set_xlim(-0.5, right + 0.75)
    axis.set_ylim(0, 1.02)
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _stage_line(
    axis: Any, line: list[GroupScore], formats: list[str], offset: float, colour: str, marker: str
):
    """Draws one stage and returns the height of its right-most point, None where it has no scores."""
    points = [(formats.index(g.format), g.macro_f1.emitted, g.interval_scenario) for g in line]
    drawn = sorted((x, y, ends or (y, y)) for x, y, ends in points if y is not None)
    if not drawn:
        return None
    x = np.array([d[0] for d in drawn]) + offset
    y = np.array([d[1] for d in drawn])
    # a percentile interval need not hold its estimate; an error bar of negative length is refused
    reach = np.maximum([[d[1] - d[2][0] for d in drawn], [d[2][1] - d[1] for d in drawn]], 0)
    axis.plot(x, y, color=colour, linewidth=1, alpha=0.45)
    for g in line:
        if _has_missing(g):
            place, bounds = formats.index(g.format) + offset, (g.macro_f1.lower, g.macro_f1.upper)
            axis.plot([place, place], bounds, color=colour, linewidth=5, alpha=0.18, solid_capstyle="butt")
    axis.errorbar(x, y, yerr=reach, fmt=marker, color=colour, markersize=5, capsize=2.5, elinewidth=1.3)
    return float(y[-1])


def _null(axis: Any, groups: list[GroupScore], formats: list[str]) -> None:
    """A dashed grey line at the mean null of each format, named once."""
    named = False
    for x, format_ in enumerate(formats):
        nulls = [g.null.mean for g in groups if g.format == format_ and g.null and g.stage != "base"]
        if not nulls:
            continue
        level = float(np.mean(nulls))
        axis.plot([x - 0.42, x + 0.42], [level, level], color="#555555", linewidth=1, linestyle=(0, (3, 2)))
        if not named:
            axis.text(x - 0.42, level + 0.012, "labels shuffled", color="#555555", fontsize=7, va="bottom")
            named = True


def _tick(format_: str, groups: list[GroupScore], stages: list[str]) -> str:
    """Format name, and below it the lowest and highest emission rate of its stages."""
    rates = [g.emission_rate for g in groups if g.format == format_ and g.emission_rate is not None]
    if not rates:
        return f"{format_}\n"
    low, high = f"{min(rates):.0%}", f"{max(rates):.0%}"
    return f"{format_}\n{low if low == high else f'{low} to {high}'} emitted"


def _spread(heights: list[float], gap: float = 0.055) -> list[float]:
    """``heights`` moved apart so that labels of neighbours do not overlap, in the order given."""
    order = np.argsort(heights, kind="stable")
    placed = np.array(heights, dtype=float)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    over = max(0.0, placed.max(initial=0.0) - 1.0)
    return list(placed - over)
