"""Evaluation as a job: prediction rows in, tables on the terminal and plain files in a folder out. No torch, no GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offscript.evaluation.metrics.scores import Evaluation, evaluate
from offscript.evaluation.predictions import check_rows, check_together, load_predictions
from offscript.evaluation.report import figures, page, summary, tables
from offscript.storage.files import ensure_folder, write_json, write_text

__all__ = ["Evaluation", "evaluate", "evaluate_files", "evaluate_rows", "load_predictions", "write"]

_SHOWN = 3


def evaluate_files(
    paths: str | Path | Sequence[str | Path],
    out: Path,
    *,
    title: str = "",
    quiet: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluates files, folders or globs of prediction rows, prints the tables, and writes everything into ``out``.

    Args:
        settings: those of ``metrics.scores.evaluate``: resamples, confidence, seed, labels, planned, resample.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: a path or a row is not what it should be, or a setting does not fit the rows.
    """
    return _show_and_write(evaluate(load_predictions(paths), **settings), out, title, quiet)


def evaluate_rows(
    rows: Sequence[Mapping[str, Any]],
    out: Path | None = None,
    *,
    missing: Sequence[str] = (),
    title: str = "",
    quiet: bool = False,
    source: str = "predictions",
    **settings: Any,
) -> dict[str, Any]:
    """The same for rows in memory; with ``out`` None nothing is written.

    ``missing`` names the prediction files of the grid that are not there yet, so that the notes say so; ``source``
    names the rows in an error.
    """
    evaluation = evaluate(check_together(check_rows(rows, source)), **settings)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        note = f"incomplete: {len(missing)} of the grid's cells have no predictions yet: {shown}"
        evaluation = replace(evaluation, notes=(note, *evaluation.notes))
    return _show_and_write(evaluation, out, title, quiet)


def _show_and_write(evaluation: Evaluation, out: Path | None, title: str, quiet: bool) -> dict[str, Any]:
    if not quiet:
        print(tables.text(evaluation), end="")
    if out is not None:
        written = write(evaluation, out, title)
        if not quiet:
            print(f"\nwritten to {out}: {', '.join(str(path.relative_to(out)) for path in written)}")
    return summary.summary(evaluation)


def write(evaluation: Evaluation, folder: Path, title: str = "") -> list[Path]:
    """Writes summary.json, cells.csv, tables.txt, report.html and figures/ into ``folder``; returns their paths.

    The same evaluation gives the same bytes of the text files, whenever and wherever it is written.

    Raises:
        UserError: a file stands where a folder is needed.
    """
    place = ensure_folder(folder / "figures")
    pictures = figures.headline(evaluation, place) + figures.heatmap(evaluation, place)
    write_json(folder / "summary.json", summary.summary(evaluation))
    texts = {
        "cells.csv": summary.cells_csv(evaluation),
        "tables.txt": tables.text(evaluation),
        "report.html": page.page(
            evaluation, title or "offscript", "figures/headline.svg", "figures/personas.svg"
        ),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in ("report.html", "summary.json", *list(texts)[:2])] + pictures
