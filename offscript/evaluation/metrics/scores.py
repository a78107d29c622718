"""Scores of all groups in a set of predictions: macro-F1 with intervals, retention, contrasts and notes."""

from collections.abc import Sequence

from offscript.errors import UserError, command_line, one_of
from offscript.evaluation.copies import cross_copies
from offscript.evaluation.metrics.bootstrap import RESAMPLE_UNITS
from offscript.evaluation.metrics.f1 import MACRO_F1
from offscript.evaluation.metrics.model_scores import ModelScores
from offscript.evaluation.metrics.notes import improbable, notes_on
from offscript.evaluation.metrics.results import (
    Change,
    GroupScore,
    Options,
    PersonaGap,
    RecipeScore,
    Retention,
    Scores,
)
from offscript.evaluation.order import personas_in_order
from offscript.evaluation.predictions import Prediction


def evaluate(
    predictions: Sequence[Prediction],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    planned: int | None = None,
    resample: str = "family",
) -> Scores:
    """Scores of all groups in ``predictions``, over one fixed label set.

    Args:
        resamples: number of bootstrap resamples; at most MAX_PERMUTATIONS permutations are made for the null.
        confidence: of all intervals, between 0 and 1; the null is tested at 1 - confidence.
        seed: of the resamples and permutations.
        labels: the label set; by default every true persona (the classifier's labels if there is none).
        planned: episodes planned per (model, stage, format), for rows that hold scored texts only.
        resample: unit of resampling. family or scenario: intervals are corrected for their number. rows: plain percentile
            intervals, as published, and copies of one text under several personas stay rows of their own.

    Raises:
        UserError: no predictions, or an option that is out of range or does not fit them.
    """
    options = Options(resamples, confidence, seed, resample, planned)
    _check(options)
    if not predictions:
        raise UserError(
            "predictions", "there are none", f"run {command_line('classify')} first, or give a file of rows"
        )
    label_set = _label_set(predictions, labels)
    in_label_set = [p for p in predictions if p.persona is None or p.persona in label_set]
    if not in_label_set:
        true = personas_in_order(p.persona for p in predictions if p.persona is not None)
        raise UserError("labels", f"no row has one of {', '.join(label_set)}", one_of(true))
    notes = []
    if len(in_label_set) < len(predictions):
        left_out = personas_in_order(
            p.persona for p in predictions if p.persona and p.persona not in label_set
        )
        notes.append(
            f"{len(predictions) - len(in_label_set)} rows are left out: {', '.join(left_out)} not in the label set"
        )
    if resample != "rows":
        in_label_set, copied = cross_copies(in_label_set, label_set)
        notes += copied
    groups: list[GroupScore] = []
    retention: list[Retention] = []
    changes: list[Change] = []
    persona_gaps: list[PersonaGap] = []
    recipes: list[RecipeScore] = []
    for model in sorted({p.model for p in in_label_set}):
        scored = ModelScores(model, [p for p in in_label_set if p.model == model], label_set, options)
        groups += scored.groups
        retention += scored.retention()
        changes += scored.changes()
        persona_gaps += scored.persona_gaps()
        recipes += scored.recipes()
    notes += improbable(in_label_set) + notes_on(groups, label_set, options)
    return Scores(
        tuple(label_set),
        MACRO_F1.format(n=len(label_set)),
        options,
        tuple(groups),
        tuple(retention),
        tuple(changes),
        tuple(notes),
        tuple(persona_gaps),
        tuple(recipes),
    )


def _check(options: Options) -> None:
    if options.resamples < 1:
        raise UserError("evaluation.resamples", f"{options.resamples}", "an integer of at least 1")
    if not 0 < options.confidence < 1:
        raise UserError("evaluation.confidence", f"{options.confidence}", "a number between 0 and 1")
    if options.resample not in RESAMPLE_UNITS:
        raise UserError("evaluation.resample", repr(options.resample), one_of(RESAMPLE_UNITS))


def _label_set(predictions: Sequence[Prediction], labels: Sequence[str] | None) -> list[str]:
    """The personas that are scored: ``labels``, or by default every true persona, or the classifier's labels.

    Raises:
        UserError: ``labels`` is empty, repeats a name, or has one that no row knows.
    """
    known = personas_in_order(label for p in predictions for label in p.probs or ())
    true = personas_in_order(p.persona for p in predictions if p.persona is not None)
    chosen = list(labels) if labels is not None else true or known
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError("labels", f"{chosen}", "distinct names, at least one")
    for label in chosen:
        if label not in known and label not in true:
            raise UserError("labels", f"{label!r} is not a label of the classifier", one_of(known))
    return chosen
