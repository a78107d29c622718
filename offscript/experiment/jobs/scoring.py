"""Jobs that score: classifiers, their predictions, and the evaluation."""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offscript.console import Progress, counted, duration, say
from offscript.errors import UserError
from offscript.evaluation import judge
from offscript.evaluation.email_cleaning import cleaned
from offscript.evaluation.evaluate import evaluate_rows, options_from, result_files
from offscript.evaluation.judge import Verdict
from offscript.evaluation.metrics.results import Options, Scores
from offscript.evaluation.predictions import Prediction
from offscript.evaluation.report import projections as projections_report
from offscript.evaluation.report.section import Section
from offscript.experiment import judgements, recipes, reward_hacking, side_effects
from offscript.experiment.artifacts import Artifact, Classifier, Evaluation, Predictions, Projections
from offscript.experiment.folder import Experiment, now, tracked, write_artifact_manifest
from offscript.experiment.report import Transcripts, provenance
from offscript.json_types import Json
from offscript.storage import hub, references
from offscript.storage.files import write_text
from offscript.storage.hashing import key_of
from offscript.storage.manifests import digests, remove_manifests
from offscript.tasks.rows import Row
from offscript.training.stages import BASE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def fit_classifier(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes the persona classifier of one model, from chat rows of the classifier split."""
    (classifier,) = (a for a in artifacts if isinstance(a, Classifier))
    started = now()
    if classifier.imported_from is not None:
        import_classifier(classifier, experiment, started)
        return
    from offscript.evaluation.classifier.fit import fit

    rows = [
        {"text": row["text"], "label": row["persona"] or BASE, "family": row["family"]}
        for rollout in classifier.rollouts
        for row in experiment.rows(rollout)
        if row["text"] is not None
    ]
    model = experiment.planner.options.model[classifier.base]
    progress = Progress(f"fit classifier {classifier.settings.name}", 1, "steps")
    with tracked(artifacts, experiment, "classify") as tracker:
        report = fit(
            classifier.settings,
            model,
            rows,
            list(classifier.personas),
            experiment.path(classifier),
            callbacks=tracker.callbacks(),
            on_step=lambda step, total, logs: progress.update(step, total),
        )
        seconds = progress.close()
        tracker.summary({k: v for k, v in report.items() if isinstance(v, int | float)})
    write_artifact_manifest(classifier, experiment, started, counts=report)
    score = f"{report['n_train']} rows, none held out"
    if report["macro_f1"] is not None:
        score = f"held-out macro-F1 {report['macro_f1']:.3f} on {report['n']} rows"
    say(f"  {classifier}: {score}, {duration(seconds)}")


def import_classifier(classifier: Classifier, experiment: Experiment, started: str) -> None:
    """Converts a classifier that others fitted to our own layout."""
    from offscript.evaluation.classifier.published import convert

    source = classifier.imported_from
    assert source is not None
    folder = references.fetch(source, "classifier.fitted")
    counts = convert(folder, experiment.path(classifier), classifier.personas)
    reference = references.reference(source)
    commits = {str(reference): hub.commit(reference)} if reference else {}
    write_artifact_manifest(classifier, experiment, started, counts=counts, hub=commits)
    say(f"  {classifier}: from {reference or folder}")


def predict(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Predicts every label's probability for every text of cells that share a classifier."""
    wanted = [a for a in artifacts if isinstance(a, Predictions)]
    started = now()
    rows = {a.key: experiment.rows(a.rollout) for a in wanted}
    texts = [t for a in wanted for row in rows[a.key] if (t := scored_text(a, row)) is not None]
    remaining = iter(read_by_classifiers(wanted[0], texts, experiment))
    for artifact in wanted:
        lines = [prediction_row(artifact, row, remaining) for row in rows[artifact.key]]
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        write_text(experiment.path(artifact), text)
        emitted = sum(line["predicted"] is not None for line in lines)
        write_artifact_manifest(
            artifact, experiment, started, counts={"rows": len(lines), "emitted": emitted}
        )
    say(f"  predictions: {len(texts)} texts in {len(wanted)} cells")


@dataclass(frozen=True)
class Reading:
    """What the classifiers see in one text: the probability of each label (mean over the fits), the label of each fit if
    there are several, and that of the baseline if there is one."""

    probs: dict[str, float]
    fits: list[str] | None
    baseline: str | None

    @property
    def predicted(self) -> str:
        return max(self.probs, key=self.probs.__getitem__)


def read_by_classifiers(
    artifact: Predictions, texts: Sequence[str], experiment: Experiment
) -> Iterator[Reading]:
    """Yields a Reading of each text by the classifiers of ``artifact``."""
    from offscript.evaluation.classifier.predict import predict as predict_texts

    settings, personas = experiment.planner.settings, list(experiment.planner.personas)

    def of(classifier: Classifier) -> "tuple[list[str], NDArray[np.float64]]":
        folder, size = experiment.path(classifier), settings.classifier.predict_batch_tokens
        return predict_texts(folder, texts, size, settings.engine.device, expected=personas)

    labels, by_fit = of(artifact.classifier)
    columns = by_fit.argmax(axis=2)
    others: list[str] | None = None
    if artifact.baseline is not None:
        names, of_baseline = of(artifact.baseline)
        others = [names[i] for i in of_baseline[0].argmax(axis=1)]
    for i, probs in enumerate(by_fit.mean(axis=0).tolist()):
        fits = [labels[k] for k in columns[:, i]] if len(by_fit) > 1 else None
        yield Reading(dict(zip(labels, probs, strict=True)), fits, others[i] if others is not None else None)


def scored_text(artifact: Predictions | Projections, row: Row) -> str | None:
    """The text of a row as the classifier sees it; None if the episode left none."""
    return cleaned(row["text"], artifact.email_cleaning)


def prediction_row(artifact: Predictions, row: Row, remaining: Iterator[Reading]) -> dict[str, Json]:
    """One line of a predictions file, with the next of ``remaining``; a row without a text keeps its line with ``predicted``
    null. ``scored_text`` is the text that was scored, if it is not the row's."""
    text = scored_text(artifact, row)
    reading = next(remaining) if text is not None else None
    return {
        **episode_fields(artifact, row),
        "ended": row["ended"],
        "text_hash": key_of({"text": text})[:16] if text is not None else None,
        "predicted": reading.predicted if reading else None,
        "probs": dict(reading.probs) if reading else None,
        **({"fits": list(reading.fits)} if reading and reading.fits is not None else {}),
        **({"baseline": reading.baseline} if reading and reading.baseline is not None else {}),
        **({"scored_text": text} if text != row["text"] else {}),
    }


def episode_fields(artifact: Predictions | Projections, row: Row) -> dict[str, Json]:
    """What a line of predictions or projections says of its episode.

    A variant of a format is scored as a format of its own (``drift/own8``), with the scenario that all variants share, so
    that they are resampled together.
    """
    variant = row.get("variant", "")
    return {
        "key": artifact.key,
        "row": f"{row['scenario']}/{row['sample']}",
        "model": row["model"],
        "stage": row["stage"],
        "persona": row["persona"],
        "format": f"{row['format']}/{variant}" if variant else row["format"],
        "split": row["split"],
        "seed": row["seed"],
        "scenario": row["scenario"].removesuffix(f"_{variant}") if variant else row["scenario"],
        "family": row["family"],
        "sample": row["sample"],
    }


def with_texts(artifact: Predictions, experiment: Experiment) -> list[dict[str, Json]]:
    """The rows of predictions, each with the ``text`` of its episode, if the rollout is still there."""
    predictions = experiment.predictions(artifact)
    try:
        rows = experiment.rows(artifact.rollout)
    except UserError:
        # Predictions count without the rollout that they were made from.
        return predictions
    texts = {f"{row['scenario']}/{row['sample']}": row["text"] for row in rows}
    return [{**row, "text": texts.get(str(row["row"]))} for row in predictions]


def evaluate(artifacts: Sequence[Artifact], experiment: Experiment, limit: int | None) -> None:
    """Makes tables, figures and the report from every predictions file that exists."""
    (evaluation,) = (a for a in artifacts if isinstance(a, Evaluation))
    started = now()
    finished = [part for part in evaluation.inputs if experiment.is_finished(part)]
    oracle = evaluation.settings.oracle
    parts = [
        (part, with_texts(part, experiment) if oracle else experiment.predictions(part))
        for part in finished
        if isinstance(part, Predictions)
    ]
    rows = [row for _, made in parts for row in made]
    missing = [part for part in evaluation.inputs if part not in finished]
    folder = experiment.path(evaluation)
    # What a kill leaves half replaced must not pass for what was there.
    remove_manifests(folder)
    bootstrap = options_from(evaluation.settings)
    with tracked(artifacts, experiment, "evaluate") as tracker:
        options = Options(**bootstrap)
        sections = (
            side_effects.section_of(parts, experiment, options),
            judge_section(parts, experiment, options),
            reward_hacking.section_of(evaluation, experiment),
        )
        evaluate_rows(
            rows,
            folder,
            title=evaluation.name,
            missing=[str(part) for part in missing if isinstance(part, Predictions)],
            tracker=tracker,
            read=Transcripts(experiment, parts),
            provenance=provenance(evaluation, experiment),
            oracle=oracle,
            multiverse=evaluation.settings.multiverse,
            labels=list(experiment.planner.personas),
            sections=[
                *(section for section in sections if section is not None),
                functools.partial(recipe_section, evaluation, experiment),
                functools.partial(projection_section, evaluation, experiment),
            ],
            **bootstrap,
        )
    write_artifact_manifest(
        evaluation,
        experiment,
        started,
        partial=bool(missing),
        counts={"rows": len(rows), "cells": len(parts), "missing": len(missing)},
        files=digests(folder, result_files(folder)),
    )


def judge_section(
    parts: Sequence[tuple[Predictions, list[dict[str, Json]]]], experiment: Experiment, options: Options
) -> Section | None:
    """The section on what the judge says of the texts of ``parts``; None without ``evaluation.judge``, or where nothing is
    judged yet. A judgement of rows that are gone, or were changed, counts as not made."""
    planner, predictions = experiment.planner, {part.rollout.key: rows for part, rows in parts}
    found, unread = list[Verdict](), 0
    for judgement in planner.judgements:
        is_read = all(experiment.is_finished(rollout) for rollout in judgement.rollouts)
        if not is_read or any(cell.rollout.key not in predictions for cell in judgement.texts.cells):
            unread += 1
            continue
        try:
            found += judgements.verdicts(judgement, experiment.rows, predictions)
        except UserError as error:
            say(f"  not judged: {error}")
            unread += 1
    settings = planner.settings.evaluation.judge
    if settings is None or not found:
        return None
    return judge.section(found, settings.model, planner.personas, options, unread)


def recipe_section(
    evaluation: Evaluation, experiment: Experiment, scores: Scores, predictions: Sequence[Prediction]
) -> Section | None:
    """The section on recipes; None with fewer than two trained stages."""
    return recipes.section_of(evaluation, experiment, scores)


def projection_section(
    evaluation: Evaluation, experiment: Experiment, scores: Scores, predictions: Sequence[Prediction]
) -> Section | None:
    """The section on persona vectors, from every file of projections that exists; None without
    ``evaluation.projections``."""
    if not evaluation.settings.projections:
        return None
    parts = [part for part in evaluation.inputs if isinstance(part, Projections)]
    finished = [part for part in parts if experiment.is_finished(part)]
    notes = []
    if missing := len(parts) - len(finished):
        notes.append(f"persona vectors: {missing} of {counted(len(parts), 'cell')} have no projections yet")
    models = experiment.planner.options.model
    for model in experiment.planner.settings.grid.model:
        if models[model].endpoint is not None:
            notes.append(
                f"persona vectors: {model} is behind an endpoint, so that its activations cannot be read"
            )
    rows = [row for part in finished for row in experiment.projections(part)]
    return projections_report.section(rows, scores, notes)
