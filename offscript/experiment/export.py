"""Exports of an experiment: what its finished predictions, and the rows that they are of, are written as."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from offscript.console import say
from offscript.errors import UserError
from offscript.evaluation.evaluate import incomplete, options_from
from offscript.evaluation.export import documents, inspect_logs, parquet
from offscript.evaluation.export.cells import ExportedCell, joined
from offscript.evaluation.metrics.results import Scores
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import Prediction, check_rows, check_together
from offscript.experiment.artifacts import Predictions
from offscript.experiment.folder import Experiment, code_revision, now, versions
from offscript.settings import check_name
from offscript.storage.hashing import key_of
from offscript.storage.locks import claim
from offscript.storage.manifests import read_manifest, replace_files

OF_CELLS: dict[str, Callable[[Iterator[ExportedCell], Path], None]] = {
    "parquet": parquet.write,
    "inspect": inspect_logs.write,
}
"""Forms that hold rows."""

OF_SCORES: dict[str, str] = {"latex": ".tex", "markdown": ".md"}
"""Forms that hold tables, with the ending of their files."""


def export(
    forms: Sequence[str], parts: Sequence[Predictions], missing: Sequence[str], experiment: Experiment
) -> dict[str, list[Path]]:
    """Writes the predictions ``parts`` in each of ``forms``, in a folder of its own, and returns the files by form.

    Only files of an earlier export in the same form are replaced.

    Args:
        missing: names of the predictions that are not finished, for the notes of the tables.

    Raises:
        UserError: the files of the experiment do not fit together, a name cannot be that of a file, or a file that is
            not of an export is in the way. No file of that form is replaced then.
    """
    if "inspect" in forms:
        inspect_logs.check_installed()
    predictions = [prediction for part in parts for prediction in _predictions(part, experiment)]
    check_together(predictions)
    _check_names(predictions)
    written = {}
    for form in dict.fromkeys(forms):
        folder = experiment.folder / "export" / form
        manifest = {
            "key": key_of({"export": form, "predictions": sorted(part.key for part in parts)}),
            "predictions": {str(part.path): part.key for part in parts},
            "missing": list(missing),
            "versions": versions(),
            "code": code_revision(),
            "finished": now(),
        }
        with claim(folder, say=say), replace_files(folder, manifest) as scratch:
            if form in OF_CELLS:
                OF_CELLS[form]((_cell(part, experiment) for part in parts), scratch)
            else:
                documents.write(_scores(predictions, missing, experiment), scratch, OF_SCORES[form])
        written[form] = sorted(folder / name for name in (read_manifest(folder) or {})["files"])
    return written


def _predictions(part: Predictions, experiment: Experiment) -> list[Prediction]:
    return check_rows(experiment.predictions(part), str(experiment.path(part)))


def _check_names(predictions: Sequence[Prediction]) -> None:
    """Checks the models' names, which become names of files."""
    for prediction in predictions:
        try:
            check_name(prediction.model)
        except ValueError as error:
            raise UserError(prediction.where, f"model: {error}") from None


def _scores(predictions: list[Prediction], missing: Sequence[str], experiment: Experiment) -> Scores:
    options = options_from(experiment.planner.settings.evaluation)
    scores = evaluate(predictions, labels=list(experiment.planner.personas), **options)
    return incomplete(scores, missing)


def _cell(part: Predictions, experiment: Experiment) -> ExportedCell:
    rollout, where = part.rollout, experiment.path(part)
    lines = experiment.predictions(part)
    checked = check_rows(lines, str(where))
    manifest = read_manifest(experiment.path(rollout)) or {}
    rows = joined(experiment.rows(rollout), list(zip(lines, checked, strict=True)), str(where))
    return ExportedCell(
        path=rollout.path.relative_to("rollouts"),
        labels=rollout.labels,
        key=rollout.key,
        predictions_key=part.key,
        personas=part.classifier.personas,
        started=str(manifest.get("started", now())),
        finished=str(manifest.get("finished", now())),
        rows=rows,
    )
