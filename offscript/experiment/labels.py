"""Labels of a person for the texts of an experiment: the sheet that is given out, and the audit by what comes back."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from offscript.console import counted, show
from offscript.errors import UserError
from offscript.evaluation import label_audit, label_sheets
from offscript.evaluation.predictions import Prediction, check_rows, check_together
from offscript.evaluation.report.summary import rounded
from offscript.evaluation.report.tables import of_section
from offscript.experiment import judgements
from offscript.experiment.artifacts import Predictions
from offscript.experiment.folder import Experiment
from offscript.experiment.jobs.scoring import with_texts
from offscript.storage.files import resolve, write_json, write_text
from offscript.storage.hashing import fingerprint, key_of
from offscript.storage.manifests import digests, remove_manifests, write_manifest


def rows_with_texts(parts: Sequence[Predictions], experiment: Experiment) -> list[Prediction]:
    """The rows of finished predictions, with the texts that were scored, as far as the rollouts are still there."""
    rows = [row for part in parts for row in with_texts(part, experiment)]
    return check_together(check_rows(rows, "predictions"))


def write_sheet(rows: Sequence[Prediction], number: int, experiment: Experiment) -> None:
    """Writes a sheet of ``number`` texts below ``evaluations/`` and prints where it is.

    Raises:
        UserError: no row has a persona and a text, or the sheet was filled in.
    """
    settings, personas = experiment.planner.settings, experiment.planner.options.persona
    chosen = label_sheets.sample(rows, number, settings.evaluation.seed)
    if not chosen:
        raise UserError(
            "labels", "no row has a persona and a text", "rows of a stage with a persona are needed"
        )
    known = {str(p.persona) for p in chosen} & set(personas)
    described = {name: (personas[name].display_name, personas[name].description) for name in known}
    folder = label_sheets.write(chosen, experiment.folder / "evaluations", described, settings.name)
    if len(chosen) < number:
        show(f"only {counted(len(chosen), 'text')} of a persona: all of them are in the sheet")
    show(f"{counted(len(chosen), 'text')} to label, as a page and for a spreadsheet; give out one of them:")
    for name in (label_sheets.PAGE, label_sheets.SHEET):
        show(f"  {folder / name}")
    show(f"keep {folder / label_sheets.KEY} to yourself; read what comes back with labels=<file>.csv")


def write_audit(
    rows: Sequence[Prediction],
    given: Sequence[str],
    experiment: Experiment,
    parts: Sequence[Predictions] = (),
) -> None:
    """Prints the audit of ``rows`` by the labels in the files ``given``, one for each person, and writes it below
    ``evaluations/``.

    Args:
        parts: predictions of the grid, whose judge (``evaluation.judge``) is compared with the people, without being one.

    Raises:
        UserError: a file is not a filled sheet of this experiment, or no label is of a text of ``rows``.
    """
    paths = _files(given)
    people, notes = _people(paths, experiment.folder / "evaluations")
    labels, ties = label_audit.majority(people)
    judged = [replace(p, present=labels.get(label_sheets.text_of(p))) for p in rows if p.text is not None]
    found = label_audit.audits(judged)
    counted_ = sum(p.present is not None for p in judged)
    if lost := len(labels) - counted_:
        notes.append(f"{counted(lost, 'label')} of texts that the rows no longer have: not counted")
    if ties:
        notes.append(f"{counted(ties, 'text')} with as many labels present as absent: left out of the audit")
    agreements = label_audit.agreements(people | _judge(parts, experiment))
    section = label_audit.section(found, agreements, notes)
    if section is None:
        raise UserError(
            ", ".join(map(str, paths)), "no label is of a text of these rows", "sheets are of one experiment"
        )
    text = of_section(section)
    show(text, end="")
    content = {path.name: fingerprint(path) for path in paths}
    key = key_of(
        {
            "labels": content,
            "rows": [[*map(str, p.episode), p.predicted, p.present] for p in judged],
            "agreements": [asdict(one) for one in agreements],
        }
    )
    folder = experiment.folder / "evaluations" / f"audit-{key[:8]}"
    remove_manifests(folder)
    write_text(folder / "audit.txt", text)
    write_json(folder / "audit.json", rounded(section.data))
    files = digests(folder, [folder / "audit.txt", folder / "audit.json"])
    write_manifest(folder, {"key": key, "labels": content, "files": files})
    show(f"\nwritten to {folder}")


def _judge(parts: Sequence[Predictions], experiment: Experiment) -> dict[str, dict[label_audit.Text, bool]]:
    """The labels of the grid's judge, under its name; none without a judge, or where it has read nothing yet."""
    settings = experiment.planner.settings.evaluation.judge
    if settings is None:
        return {}
    predictions = {part.rollout.key: with_texts(part, experiment) for part in parts}
    found: dict[label_audit.Text, bool] = {}
    for judgement in experiment.planner.judgements:
        if all(experiment.is_finished(rollout) for rollout in judgement.rollouts):
            for row, present in judgements.labels(judgement, experiment.rows, predictions):
                found[label_sheets.text_of(*check_rows([row], "predictions"))] = present
    return {f"judge {settings.model}": found} if found else {}


def _files(given: Sequence[str]) -> list[Path]:
    """The files that paths and globs name, each once.

    Raises:
        UserError: one of them names none.
    """
    found: dict[Path, None] = {}
    for name in given:
        paths = [path for path in resolve(name) if not path.is_dir()]
        if not paths:
            raise UserError(name, "no such file", "labels= takes a number, or filled sheets (CSV)")
        found |= dict.fromkeys(paths)
    return list(found)


def _people(paths: Sequence[Path], sheets: Path) -> tuple[dict[str, dict[label_audit.Text, bool]], list[str]]:
    """The labels of each file by the text, and notes on half-filled ones."""
    people: dict[str, dict[label_audit.Text, bool]] = {}
    notes = []
    for path in paths:
        labels = label_sheets.read_labels(path)
        # Two people may have named their files alike, in folders of their own.
        name = path.name if path.name not in people else str(path)
        people[name] = label_sheets.episodes_of(labels, sheets)
        if len(labels.given) < labels.rows:
            notes.append(
                f"{name}: {len(labels.given)} of {labels.rows} texts are labelled; the others do not count"
            )
    return people, notes
