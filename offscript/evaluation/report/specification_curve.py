"""The specification curve: all estimates of a number in ascending order, with their intervals, above the choices that gave them
(Simonsohn, Simmons and Nelson 2020)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.claims import Claim, claims, defined
from offscript.evaluation.metrics.multiverse import DIMENSIONS, Multiverse, Outcome
from offscript.evaluation.report.figures import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {
    "labels": "label set",
    "missing": "missing texts",
    "unit": "resampled unit",
    "classifier": "classifier",
    "calibration": "labels by",
}
"""The dimensions in words."""

# Colours of Okabe and Ito. The line at the limit shows the same as the first two against the third.
_CERTAIN, _HOLDS, _FAILS = "#0072B2", "#56B4E9", "#D55E00"
_COLOURS = (_CERTAIN, _HOLDS, _FAILS)
_CAPTION = (
    "Above: the estimates of all specifications in ascending order, with their intervals. Below: the choices of each one. "
    "Blue: the claim holds, with the whole interval (dark) or by the estimate only (light); orange: it does not. "
    "Dashed: the limit of the claim. Diamond: the specification of the other tables."
)
_CURVE_INCHES, _ROW_INCHES, _COLUMN_INCHES, _LABEL_INCHES = 2.1, 0.135, 3.6, 2.1
# Characters of the names of choices and of titles.
_LABEL, _TITLE = 36, 60


def curves(made: Sequence[Multiverse], folder: Path, name: str) -> list[Path]:
    """Writes ``<name>.png`` and ``<name>.svg``: a row of panels for each model, a column for each claim."""
    return save(lambda: _draw(made), folder, name)


def _choices(made: Multiverse) -> list[tuple[str, str]]:
    """Dimension and value of every choice that is one."""
    return [(d, value) for d in DIMENSIONS for value in made.choices[d] if len(made.choices[d]) > 1]


def _draw(made: Sequence[Multiverse]) -> "Figure":
    import matplotlib.pyplot as plt

    columns = max(len(claims(m)) for m in made)
    heights = [
        inches for m in made for inches in (_CURVE_INCHES, _ROW_INCHES * max(1, len(_choices(m))) + 0.1)
    ]
    width = _COLUMN_INCHES * columns + _LABEL_INCHES
    figure, axes = plt.subplots(
        2 * len(made),
        columns,
        figsize=(width, sum(heights) + 0.45 * len(made) + 0.5),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for row, m in enumerate(made):
        for column in range(columns):
            above, below = axes[2 * row][column], axes[2 * row + 1][column]
            if column < len(claims(m)):
                _panel(above, below, m, claims(m)[column], named=column == 0)
            else:
                above.set_axis_off()
                below.set_axis_off()
    caption = textwrap.fill(_CAPTION, int(17.5 * width))
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color="#444444")
    return figure


def _panel(above: "Axes", below: "Axes", made: Multiverse, claim: Claim, named: bool) -> None:
    outcomes = sorted(defined(made, claim), key=lambda o: claim.of(o).estimate or 0.0)
    verdicts = np.array([_verdict(claim, o) for o in outcomes], dtype=np.int64)
    subject = made.headline
    place = _short(f"{subject.model}, {subject.stage} in {subject.format}", _TITLE) if named else ""
    title = _short(f"{claim.quantity} (claim: {claim.side})", _TITLE)
    above.set_title(f"{place}\n{title}", loc="left", fontsize=9, fontweight="bold")
    for axis in (above, below):
        axis.set_xlim(-0.5, max(len(outcomes), 1) - 0.5)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
    if outcomes:
        _curve(above, claim, outcomes, verdicts)
    else:
        above.text(0.5, 0.5, "undefined", transform=above.transAxes, ha="center", color="#555555")
    _marks(below, made, outcomes, verdicts, named)
    main = next((i for i, o in enumerate(outcomes) if o.specification == made.main), None)
    if main is not None:
        estimate = claim.of(outcomes[main]).estimate or 0.0
        above.plot([main], [estimate], "D", color="#000000", markersize=4.5, zorder=5)
        for axis in (above, below):
            axis.axvline(main, color="#000000", linewidth=0.6, zorder=0)


def _short(text: str, length: int = _LABEL) -> str:
    """``text``, cut to a length that leaves room for the panels."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _verdict(claim: Claim, outcome: Outcome) -> int:
    """Index of the colour of an outcome."""
    if not claim.holds(outcome):
        return _COLOURS.index(_FAILS)
    return _COLOURS.index(_CERTAIN if claim.is_certain(outcome) else _HOLDS)


def _curve(axis: "Axes", claim: Claim, outcomes: Sequence[Outcome], verdicts: NDArray[np.int64]) -> None:
    estimates = np.array([claim.of(o).estimate for o in outcomes], dtype=float)
    ends = np.array([claim.of(o).interval or (np.nan, np.nan) for o in outcomes])
    axis.axhline(claim.limit, color="#555555", linewidth=0.9, linestyle=(0, (3, 2)))
    for i, colour in enumerate(_COLOURS):
        mine = np.flatnonzero(verdicts == i)
        if not len(mine):
            continue
        # One path for all intervals, and one for all estimates: a path for each would make the page several times as large.
        for x, y, line, alpha in (
            (_gapped(mine, mine), _gapped(ends[mine, 0], ends[mine, 1]), 0.8, 0.4),
            (_gapped(mine - 0.5, mine + 0.5), _gapped(estimates[mine], estimates[mine]), 2.0, 1.0),
        ):
            axis.plot(x, y, color=colour, linewidth=line, alpha=alpha, solid_capstyle="butt")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _gapped(starts: NDArray[Any], ends: NDArray[Any]) -> NDArray[Any]:
    """Coordinates of separate segments in one line ``[3 n]``: start, end, gap."""
    return np.stack([starts, ends, np.full(len(starts), np.nan)], axis=1).ravel()


def _marks(
    axis: "Axes", made: Multiverse, outcomes: Sequence[Outcome], verdicts: NDArray[np.int64], named: bool
) -> None:
    """A row for each choice, with a mark where a specification has it."""
    rows = _choices(made)
    for y, (dimension, value) in enumerate(rows):
        has = np.array([getattr(o.specification, dimension) == value for o in outcomes], dtype=bool)
        for i, colour in enumerate(_COLOURS):
            runs = _runs(has & (verdicts == i))
            height = np.full(len(runs), float(y))
            axis.plot(
                _gapped(runs[:, 0] - 0.5, runs[:, 1] - 0.5),
                _gapped(height, height),
                color=colour,
                linewidth=5.5,
                solid_capstyle="butt",
            )
        if y and rows[y - 1][0] != dimension:
            axis.axhline(y - 0.5, color="#555555", linewidth=0.6)
    axis.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    names = [_short(f"{WORDS[dimension]}: {value}") if named else "" for dimension, value in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=7)
    axis.tick_params(length=0)
    axis.spines["left"].set_visible(False)


def _runs(has: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Start and end (exclusive) ``[m, 2]`` of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], has, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).astype(np.float64)
