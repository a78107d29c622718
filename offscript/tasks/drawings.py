"""Images that are drawn from a few numbers and texts, so that scenario files and rows hold what they show and no pixels."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from offscript.tasks.messages import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw

VERSION = 1
"""Raised when equal fields lead to other pixels than before; part of the key of every cell whose prompts have images."""

SIDE = 896
"""Width and height in pixels; Gemma-3 reads images of this size."""

_MARGIN, _TITLE, _TEXT = 70, 40, 26
_INK, _PAPER, _GRID = "#202124", "#ffffff", "#c8ccd1"
_COLORS = {
    "red": "#c5221f",
    "blue": "#1a56b0",
    "green": "#1e7d3c",
    "yellow": "#f2b600",
    "orange": "#e8710a",
    "purple": "#7b2d9e",
    "grey": "#80868b",
    "black": "#202124",
    "white": "#ffffff",
}

Color = Literal["red", "blue", "green", "yellow", "orange", "purple", "grey", "black", "white"]
# The font has no other characters for sure.
Label = Annotated[str, Field(min_length=1, max_length=60, pattern="^[ -~]+$")]
Cell = Annotated[str, Field(max_length=60, pattern="^[ -~]*$")]
Coordinate = Annotated[float, Field(ge=0, le=10)]
"""From 0 to 10, from the left to the right and from the top to the bottom."""


class _Drawing(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    title: Label


class _Series(_Drawing):
    """Numbers by label, with a ``unit`` at the axis."""

    labels: list[Label] = Field(min_length=2, max_length=12)
    values: list[Annotated[float, Field(ge=0)]] = Field(min_length=2, max_length=12)
    unit: Label

    @model_validator(mode="after")
    def _one_value_each(self) -> "_Series":
        if len(self.labels) != len(self.values):
            raise ValueError(
                f"found {len(self.labels)} labels and {len(self.values)} values; allowed: as many"
            )
        return self


class Bars(_Series):
    """A bar chart; each bar has its value above it."""

    kind: Literal["bars"]


class Line(_Series):
    """A line chart, whose values have to be read from the axis."""

    kind: Literal["line"]


class Table(_Drawing):
    """A table, such as a rota, a timetable or a price list."""

    kind: Literal["table"]
    columns: list[Cell] = Field(min_length=2, max_length=7)
    rows: list[list[Cell]] = Field(min_length=1, max_length=12)

    @model_validator(mode="after")
    def _rectangular(self) -> "Table":
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(
                f"a row has {len(wrong[0])} cells; allowed: {len(self.columns)}, as there are columns"
            )
        return self


class Sign(_Drawing):
    """A notice: the title in large letters on a coloured band, and lines below it."""

    kind: Literal["sign"]
    color: Color
    lines: list[Label] = Field(min_length=1, max_length=9)


class Place(BaseModel):
    """A named place of a map or a plan."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Label
    at: list[Coordinate] = Field(min_length=2, max_length=2)


class Map(_Drawing):
    """Places, and the straight ways between pairs of them. North is at the top."""

    kind: Literal["map"]
    places: list[Place] = Field(min_length=2, max_length=12)
    ways: list[list[str]]

    @model_validator(mode="after")
    def _known_places(self) -> "Map":
        names = [place.name for place in self.places]
        for way in self.ways:
            if len(way) != 2 or not {*way} <= {*names}:
                raise ValueError(f"found the way {way!r}; allowed: two of {', '.join(names)}")
        return self


class Shape(BaseModel):
    """A coloured shape ``size`` wide, with its middle ``at`` a point."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    shape: Literal["circle", "square", "triangle"]
    color: Color
    at: list[Coordinate] = Field(min_length=2, max_length=2)
    size: float = Field(gt=0, le=5)


class Shapes(_Drawing):
    """Coloured shapes; later ones are in front."""

    kind: Literal["shapes"]
    shapes: list[Shape] = Field(min_length=1, max_length=12)


Drawing = Annotated[Bars | Line | Table | Sign | Map | Shapes, Field(discriminator="kind")]
"""Every kind of image, by its ``kind``."""

_ANY: TypeAdapter[Bars | Line | Table | Sign | Map | Shapes] = TypeAdapter(Drawing)


def draw(image: Image) -> "Picture":
    """The picture (``SIDE`` x ``SIDE`` pixels, RGB) of the fields of a ``Drawing``. Equal fields give equal pixels.

    Raises:
        pydantic.ValidationError: the fields are not those of a drawing.
    """
    from PIL import Image as pictures
    from PIL import ImageDraw

    drawing = _ANY.validate_python(image)
    picture = pictures.new("RGB", (SIDE, SIDE), _PAPER)
    _DRAW[type(drawing)](ImageDraw.Draw(picture), drawing)
    return picture


def png(image: Image) -> bytes:
    """The picture of ``image`` as a PNG file.

    Raises:
        pydantic.ValidationError: the fields are not those of a drawing.
    """
    file = io.BytesIO()
    draw(image).save(file, "PNG")
    return file.getvalue()


# ---------------------------------------------------------------- how each kind is drawn


def _write(
    canvas: "ImageDraw", at: tuple[float, float], text: str, size: int = _TEXT, anchor: str = "mm", fill: str = _INK,
    width: float = SIDE,
) -> None:  # fmt: skip
    """Writes ``text``, smaller where it would be wider than ``width`` pixels."""
    from PIL import ImageFont

    # The font that is part of Pillow: pixels do not depend on what is installed on the machine.
    font = ImageFont.load_default(size)
    if (wide := font.getlength(text)) > width:
        font = ImageFont.load_default(max(8, math.floor(size * width / wide)))
    # White around the letters, where they stand on a line.
    stroke = 4 if anchor == "ms" else 0
    canvas.text(at, text, font=font, anchor=anchor, fill=fill, stroke_width=stroke, stroke_fill=_PAPER)


def _head(canvas: "ImageDraw", title: str) -> None:
    _write(canvas, (SIDE / 2, _MARGIN * 0.7), title, _TITLE, width=SIDE - 2 * _MARGIN)


def _axes(canvas: "ImageDraw", series: _Series) -> Callable[[float], float]:
    """Draws title, axes and grid; returns the height on the canvas of a value."""
    _head(canvas, series.title)
    top, bottom = 2 * _MARGIN, SIDE - 1.5 * _MARGIN
    step = _round_step(max([*series.values, 1e-9]))
    steps = math.ceil(max([*series.values, 1e-9]) / step)

    def height(value: float) -> float:
        return bottom - (bottom - top) * value / (step * steps)

    for number in range(steps + 1):
        y = height(number * step)
        canvas.line([(1.5 * _MARGIN, y), (SIDE - _MARGIN, y)], fill=_GRID, width=2)
        _write(canvas, (1.4 * _MARGIN, y), f"{number * step:g}", anchor="rm")
    _write(canvas, (1.5 * _MARGIN, 1.6 * _MARGIN), series.unit, anchor="lm")
    slot = _slot(series)
    for i, label in enumerate(series.labels):
        _write(canvas, (_middle(series, i), SIDE - _MARGIN), label, width=0.95 * slot)
    return height


def _round_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are at most five steps to ``largest``."""
    power = 10.0 ** math.floor(math.log10(largest / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= largest)


def _slot(series: _Series) -> float:
    return (SIDE - 2.5 * _MARGIN) / len(series.labels)


def _middle(series: _Series, number: int) -> float:
    return 1.5 * _MARGIN + (number + 0.5) * _slot(series)


def _draw_bars(canvas: "ImageDraw", bars: Bars) -> None:
    height = _axes(canvas, bars)
    half = 0.32 * _slot(bars)
    for i, value in enumerate(bars.values):
        x, y = _middle(bars, i), height(value)
        canvas.rectangle([x - half, y, x + half, height(0)], fill=_COLORS["blue"])
        _write(canvas, (x, y - 18), f"{value:g}", width=2.6 * half)


def _draw_line(canvas: "ImageDraw", line: Line) -> None:
    height = _axes(canvas, line)
    points = [(_middle(line, i), height(value)) for i, value in enumerate(line.values)]
    canvas.line(points, fill=_COLORS["red"], width=6)
    for x, y in points:
        canvas.ellipse([x - 9, y - 9, x + 9, y + 9], fill=_COLORS["red"])


def _draw_table(canvas: "ImageDraw", table: Table) -> None:
    _head(canvas, table.title)
    left, top = _MARGIN / 2, 1.6 * _MARGIN
    wide = (SIDE - _MARGIN) / len(table.columns)
    high = min(76.0, (SIDE - top - _MARGIN / 2) / (len(table.rows) + 1))
    for i, row in enumerate([table.columns, *table.rows]):
        for j, text in enumerate(row):
            x, y = left + j * wide, top + i * high
            fill = "#e3e8ef" if i == 0 or j == 0 else _PAPER
            canvas.rectangle([x, y, x + wide, y + high], fill=fill, outline=_INK, width=2)
            _write(canvas, (x + wide / 2, y + high / 2), text, width=wide - 14)


def _draw_sign(canvas: "ImageDraw", sign: Sign) -> None:
    light = sign.color in ("yellow", "white")
    canvas.rectangle([30, 30, SIDE - 30, SIDE - 30], outline=_INK, width=6)
    canvas.rectangle([36, 36, SIDE - 36, 200], fill=_COLORS[sign.color])
    _write(
        canvas, (SIDE / 2, 118), sign.title, 76, fill=_INK if light else "#ffffff", width=SIDE - 2 * _MARGIN
    )
    space = (SIDE - 270) / len(sign.lines)
    for i, text in enumerate(sign.lines):
        _write(canvas, (SIDE / 2, 225 + (i + 0.5) * space), text, 44, width=SIDE - 2 * _MARGIN)


def _point(at: Sequence[float]) -> tuple[float, float]:
    scale = (SIDE - 3 * _MARGIN) / 10
    return 1.5 * _MARGIN + at[0] * scale, 2 * _MARGIN + at[1] * scale


def _draw_map(canvas: "ImageDraw", plan: Map) -> None:
    _head(canvas, plan.title)
    at = {place.name: _point(place.at) for place in plan.places}
    for start, end in plan.ways:
        canvas.line([at[start], at[end]], fill=_COLORS["grey"], width=10)
    for name, (x, y) in at.items():
        canvas.ellipse([x - 14, y - 14, x + 14, y + 14], fill=_COLORS["green"], outline=_INK, width=3)
        _write(canvas, (x, y - 22), name, anchor="ms")
    x, y = SIDE - 0.6 * _MARGIN, 1.2 * _MARGIN
    canvas.polygon([(x, y - 34), (x - 16, y + 16), (x + 16, y + 16)], fill=_INK)
    _write(canvas, (x, y + 36), "N")


def _draw_shapes(canvas: "ImageDraw", drawing: Shapes) -> None:
    _head(canvas, drawing.title)
    for one in drawing.shapes:
        (x, y), half = _point(one.at), one.size * (SIDE - 3 * _MARGIN) / 20
        box, fill = [x - half, y - half, x + half, y + half], _COLORS[one.color]
        if one.shape == "circle":
            canvas.ellipse(box, fill=fill, outline=_INK, width=3)
        elif one.shape == "square":
            canvas.rectangle(box, fill=fill, outline=_INK, width=3)
        else:
            corners = [(x, y - half), (x - half, y + half), (x + half, y + half)]
            canvas.polygon(corners, fill=fill, outline=_INK, width=3)


_DRAW: dict[type[BaseModel], Callable[..., None]] = {
    Bars: _draw_bars,
    Line: _draw_line,
    Table: _draw_table,
    Sign: _draw_sign,
    Map: _draw_map,
    Shapes: _draw_shapes,
}
