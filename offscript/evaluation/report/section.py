"""What the report is made of beside the scores: sections, each with tables, plain data and a figure.

A section is computed elsewhere (a list of them is in ``evaluation.evaluate``) and is shown by ``tables.txt``, ``summary.json``
and ``report.html`` alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from offscript.json_types import Json


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of equal length; the first ``left`` columns are words, the others numbers. A column title
    may have several lines."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 2

    def text(self) -> str:
        """The title and aligned lines, without a final newline."""
        height = max(title.count("\n") + 1 for title in self.header)
        titles = [["", "", *title.split("\n")][-height:] for title in self.header]
        lines = [*zip(*titles, strict=True), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        aligned = [
            " ".join(
                value.ljust(width) if i < self.left else value.rjust(width)
                for i, (value, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, aligned))
        return "\n".join([self.title, *aligned[:height], rule, *aligned[height:]])


Draw = Callable[[Path], list[Path]]


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        name: its key in ``summary.json``, below ``sections``; its id on the page; letters, digits and ``_``.
        title: of the section on the page.
        explanation: what its numbers mean, one paragraph each.
        tables: may be empty.
        data: its numbers as plain data, unrounded.
        notes: what a reader of all scores has to know; they join the notes of the scores.
        draw: writes its figure into a folder and returns the paths, an SVG file among them; None: no figure.
        description: the figure in words, for a screen reader.
        related: names of other sections, which the page links to if it has them.
    """

    name: str
    title: str
    explanation: tuple[str, ...]
    tables: tuple[Table, ...]
    data: Json
    notes: tuple[str, ...] = ()
    draw: Draw | None = None
    description: str = ""
    related: tuple[str, ...] = ()
