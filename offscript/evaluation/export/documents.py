"""Tables of an evaluation as LaTeX (with the package booktabs) and as Markdown."""

import re
from collections.abc import Callable
from pathlib import Path

from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.report.section import Table
from offscript.evaluation.report.tables import main_table, overview_legend, persona_table
from offscript.evaluation.report.visible import visible

Writer = Callable[[str, Table, list[str], tuple[str, ...]], str]
"""From a label, a table, its legend and notes, the text of a document."""

LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_"},
}


def write(scores: Scores, folder: Path, suffix: str) -> None:
    """Writes ``<model>-main`` and ``<model>-personas`` for every model into ``folder``.

    Args:
        suffix: ``.tex`` or ``.md``.
    """
    document = DOCUMENTS[suffix]
    for model in dict.fromkeys(g.model for g in scores.groups):
        legend = overview_legend(scores)
        about_f1 = [f"F1 of each of the {len(scores.labels)} personas, on emitted texts; n/a: no text."]
        for name, table, explained in (
            ("main", main_table(scores, model), legend),
            ("personas", persona_table(scores, model), about_f1),
        ):
            text = document(f"{model}-{name}", table, explained, scores.notes)
            (folder / f"{model}-{name}{suffix}").write_text(text, encoding="utf-8")


def latex(label: str, table: Table, explained: list[str], notes: tuple[str, ...]) -> str:
    """A ``table`` environment, to be read with ``\\input``. The notes are comments."""
    columns = "".join("l" if i < table.left else "r" for i in range(len(table.header)))
    numbers = [
        [_latex_number(cell) if i >= table.left else _latex(cell) for i, cell in enumerate(cells)]
        for cells in table.rows
    ]
    rows = [" & ".join(cells) + r" \\" for cells in ([*map(_latex, _header(table))], *numbers)]
    caption = " ".join([f"{table.title}.", *explained])
    lines = [
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
        *(f"% {_line(note)}" for note in notes),
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rows[0],
        r"\midrule",
        *rows[1:],
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_latex(caption)}}}",
        rf"\label{{tab:{label}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def markdown(label: str, table: Table, explained: list[str], notes: tuple[str, ...]) -> str:
    """A heading, a table, its legend, and the notes as a list."""
    rule = [":--" if i < table.left else "--:" for i in range(len(table.header))]
    rows = [[_markdown(cell) for cell in cells] for cells in (_header(table), *table.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:])]
    parts = [f"## {_markdown(table.title)}", "\n".join(lines), *map(_markdown, explained)]
    if notes:
        parts.append("\n".join(f"- {_markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


DOCUMENTS: dict[str, Writer] = {".tex": latex, ".md": markdown}


def _header(table: Table) -> list[str]:
    return [title.replace("\n", " ") for title in table.header]


def _line(text: str) -> str:
    return visible(" ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(LATEX_ESCAPES.get(character, character) for character in _line(text))


def _latex_number(text: str) -> str:
    """``text`` with en dashes in ranges and minus signs before negative numbers."""
    dashed = re.sub(r"(?<=\d)-(?=[\d.])", "--", _latex(text))
    return re.sub(r"(?<![\d-])-(?=[\d.])", "$-$", dashed)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", _line(text))
