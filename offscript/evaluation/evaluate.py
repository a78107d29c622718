"""Evaluation: reads prediction rows, prints tables and writes plain files. Needs neither torch nor a GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack

from offscript.console import show
from offscript.evaluation import label_audit
from offscript.evaluation.metrics.readouts import with_readouts
from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.oracle import FILE, oracles_of, with_oracle
from offscript.evaluation.predictions import (
    Prediction,
    check_rows,
    check_together,
    load_predictions,
    load_rows,
)
from offscript.evaluation.relabelled import with_baseline
from offscript.evaluation.report import confusion, figures, page, recipes, summary, tables
from offscript.evaluation.report.calibration import calibration
from offscript.evaluation.report.multiverse import multiverse_section
from offscript.evaluation.report.page import Texts
from offscript.evaluation.report.provenance import Provenance
from offscript.evaluation.report.section import Section
from offscript.evaluation.report.texts import Read
from offscript.evaluation.report.transcripts import transcript_of
from offscript.evaluation.report.wandb_results import wandb_results
from offscript.evaluation.side_effects.elsewhere import side_effects_elsewhere
from offscript.settings import EvaluationSettings
from offscript.storage.files import Json, ensure_folder, write_json, write_text
from offscript.tracking.results import log_results
from offscript.tracking.tracker import Tracker

__all__ = ["Scores", "evaluate", "evaluate_files", "evaluate_rows", "load_predictions", "write"]

RESULTS = (page.PAGE, "summary.json", "cells.csv", "overview.txt", "tables.txt")
"""Names of the files of an evaluation, without its figures."""

MakeSection = Callable[[Scores, Sequence[Prediction]], Section | None]
"""Computes a section from the scores and the predictions; None: there is nothing to show."""

SECTIONS: tuple[MakeSection, ...] = (
    calibration,
    label_audit.audit,
    confusion.confusions,
)
"""The sections of the report that are computed from predictions, in order."""

Classifiers = Mapping[str, Sequence[str | None]]
"""Labels of classifiers by name: one for each prediction, None where there is no text."""

MAX_NAMED = 3
"""Number of missing prediction files that a note names."""


class BootstrapOptions(TypedDict, total=False):
    """The keyword arguments of ``metrics.scores.evaluate`` that are settings; it describes them."""

    resamples: int
    confidence: float
    seed: int
    resample: str


class EvaluateOptions(BootstrapOptions, total=False):
    """All keyword arguments of ``metrics.scores.evaluate``."""

    labels: Sequence[str] | None
    planned: int | None


def options_from(settings: EvaluationSettings) -> BootstrapOptions:
    """The settings of an evaluation as keyword arguments."""
    return {
        "resamples": settings.resamples,
        "confidence": settings.confidence,
        "seed": settings.seed,
        "resample": settings.resample,
    }


def evaluate_files(
    paths: str | Path | Sequence[str | Path],
    out: Path,
    *,
    title: str = "",
    quiet: bool = False,
    provenance: Provenance | None = None,
    oracle: bool = True,
    format_: str | None = None,
    multiverse: bool = False,
    **options: Unpack[EvaluateOptions],
) -> dict[str, Json]:
    """Evaluates prediction rows of files, folders or globs, prints the main table, and writes all results into ``out``.

    Args:
        title: of the HTML page.
        quiet: print nothing.
        provenance: what the page says that was run.
        oracle: fit a classifier of each format, see ``evaluation.oracle``.
        format_: format of rows without ``format``; by default the name of their file.
        multiverse: compute the headline under every combination of choices, see ``report.multiverse``.
        options: those of ``metrics.scores.evaluate``.

    Returns:
        The content of ``summary.json``.

    Raises:
        UserError: a path or a row is invalid, or an option does not fit the rows.
    """
    loaded = load_rows(paths, format_)
    predictions, rows = [prediction for prediction, _ in loaded], [row for _, row in loaded]
    texts = Texts(predictions, lambda i: transcript_of(rows[i]))
    scores, classifiers = _with_all(evaluate(predictions, **options), predictions, out, oracle)
    others = classifiers if multiverse else None
    effects = side_effects_elsewhere(predictions, rows, scores)
    sections: list[Section | MakeSection] = [effects] if effects is not None else []
    sections.append(recipes.elsewhere)
    return _report(scores, out, title, quiet, texts, provenance, others, sections)


def evaluate_rows(
    rows: Sequence[Mapping[str, Json]],
    out: Path | None = None,
    *,
    missing: Sequence[str] = (),
    title: str = "",
    quiet: bool = False,
    source: str = "predictions",
    tracker: Tracker | None = None,
    read: Read | None = None,
    provenance: Provenance | None = None,
    oracle: bool = True,
    multiverse: bool = False,
    sections: Sequence[Section | MakeSection] = (),
    **options: Unpack[EvaluateOptions],
) -> dict[str, Json]:
    """As ``evaluate_files``, for rows in memory; writes no files if ``out`` is None.

    Args:
        missing: names of the grid's prediction files that do not exist yet; a note lists them.
        source: name of the rows in error messages.
        tracker: run that the results are logged to; needs ``out``.
        read: reads the transcript of the row with a number; by default from the row itself.
        provenance: what the page says that was run.
        sections: further sections of the report, after those of ``SECTIONS``, or functions that make them of the scores.
    """
    predictions = check_together(check_rows(rows, source))
    texts = Texts(predictions, read or (lambda i: transcript_of(rows[i])))
    scores = incomplete(evaluate(predictions, **options), missing)
    scores, classifiers = _with_all(scores, predictions, out, oracle)
    others = classifiers if multiverse else None
    found = _report(scores, out, title, quiet, texts, provenance, others, sections)
    if tracker is not None and out is not None:
        log_results(tracker, wandb_results(scores), out / "figures" / "personas.png")
    return found


def _with_all(
    scores: Scores, predictions: Sequence[Prediction], out: Path | None, oracle: bool
) -> tuple[Scores, Classifiers]:
    """``scores`` with readouts, the baseline and, if asked for, the oracle; and the labels of these classifiers."""
    scores = with_baseline(with_readouts(scores, predictions), predictions)
    classifiers: Classifiers = {"baseline": [p.baseline for p in predictions]}
    if not oracle:
        return scores, classifiers
    oracles = oracles_of(scores, predictions, ensure_folder(out) / FILE if out is not None else None)
    return with_oracle(scores, oracles), {"oracle": oracles.labels(len(predictions)), **classifiers}


def incomplete(scores: Scores, missing: Sequence[str]) -> Scores:
    """``scores`` with a note on the prediction files ``missing``, if there are any."""
    if not missing:
        return scores
    shown = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
    note = f"incomplete: {len(missing)} of the grid's cells have no predictions yet: {shown}"
    return replace(scores, notes=(note, *scores.notes))


def _report(
    scores: Scores,
    out: Path | None,
    title: str,
    quiet: bool,
    texts: Texts,
    provenance: Provenance | None,
    classifiers: Classifiers | None,
    further: Sequence[Section | MakeSection] = (),
) -> dict[str, Json]:
    """Prints and writes the report; the multiverse is in it if ``classifiers`` are given, which may be empty."""
    made = [section for make in SECTIONS if (section := make(scores, texts.predictions)) is not None]
    if classifiers is not None and (section := multiverse_section(scores, texts.predictions, classifiers)):
        made.append(section)
    others = [s if isinstance(s, Section) else s(scores, texts.predictions) for s in further]
    sections = [*made, *(section for section in others if section is not None)]
    scores = replace(scores, notes=(*scores.notes, *(note for s in sections for note in s.notes)))
    if not quiet:
        show(tables.overview(scores), end="")
    if out is not None:
        written = write(scores, out, title, texts, provenance, sections)
        if not quiet:
            show(f"\nwritten to {out}: {', '.join(_shown(written, out))}")
    return summary.summary(scores, sections)


def _shown(written: Sequence[Path], out: Path) -> list[str]:
    """Names of the files in ``out``; of those of transcripts, their folder and number."""
    names = [str(path.relative_to(out)) for path in written if path.parent.name != page.TEXTS]
    beside = len(written) - len(names)
    return [*names, f"{page.TEXTS}/ ({beside} files)"] if beside else names


def result_files(folder: Path) -> list[Path]:
    """The files that ``write`` has written into ``folder``."""
    beside = folder / page.TEXTS
    transcripts = sorted(beside.iterdir()) if beside.is_dir() else []
    oracles = [folder / FILE] if (folder / FILE).exists() else []
    return (
        [folder / name for name in RESULTS] + oracles + sorted((folder / "figures").iterdir()) + transcripts
    )


def write(
    scores: Scores,
    folder: Path,
    title: str = "",
    texts: Texts | None = None,
    provenance: Provenance | None = None,
    sections: Sequence[Section] = (),
) -> list[Path]:
    """Writes summary.json, cells.csv, overview.txt, tables.txt, report.html and figures/ into ``folder``, and for a large
    evaluation report_texts/; returns their paths.

    Equal scores, texts and provenance give equal bytes, except that figures may differ between versions of matplotlib.

    Raises:
        UserError: a file exists where a folder is needed.
    """
    place = ensure_folder(folder / "figures")
    sessions = figures.drift(scores, place)
    images = figures.headline(scores, place) + figures.heatmap(scores, place) + sessions
    drawn = {section.name: section.draw(place) for section in sections if section.draw is not None}
    _remove_others(place, images + [path for paths in drawn.values() for path in paths])
    write_json(folder / "summary.json", summary.summary(scores, sections))
    plain = {
        "cells.csv": summary.cells_csv(scores),
        "overview.txt": tables.overview(scores),
        "tables.txt": tables.text(scores, sections),
    }
    for name, text in plain.items():
        write_text(folder / name, text)
    _, *beside = page.write_page(
        scores,
        folder,
        page.Figures(
            place / "headline.svg",
            place / "drift.svg" if sessions else None,
            {name: _svg(paths) for name, paths in drawn.items()},
        ),
        title or "offscript",
        texts,
        provenance or Provenance(),
        sections,
    )
    images += [path for paths in drawn.values() for path in paths]
    return [folder / name for name in RESULTS] + images + beside


def _svg(paths: Sequence[Path]) -> Path:
    return next(path for path in paths if path.suffix == ".svg")


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Removes the figures of an earlier evaluation that this one does not have."""
    for path in folder.iterdir():
        if path not in kept and path.suffix in (".svg", ".png", ".csv"):
            path.unlink()
