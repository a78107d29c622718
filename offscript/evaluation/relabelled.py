"""The same texts with the labels of another classifier, scored in the same way; and the baseline, one such classifier."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from offscript.evaluation.metrics.results import BaselineScore, GroupScore, Scores
from offscript.evaluation.metrics.scores import evaluate
from offscript.evaluation.predictions import Prediction

GroupName = tuple[object, ...]


def name_of(group: GroupScore) -> GroupName:
    """Identifies a group among those of an evaluation."""
    return group.model, group.stage, group.format, group.training_seed, group.seeds


def scored_with(
    scores: Scores, relabelled: Iterable[tuple[Prediction, str | None]]
) -> dict[GroupName, GroupScore]:
    """The groups of predictions with the label that is given with each (None: no text), by their names; scored over the
    label set of ``scores`` with its options."""
    probs = {label: {name: float(name == label) for name in scores.labels} for label in scores.labels}
    rows = [
        replace(p, predicted=label, probs=probs[label] if label else None, fits=None, baseline=None)
        for p, label in relabelled
    ]
    if not rows:
        return {}
    options = scores.options
    found = evaluate(
        rows,
        labels=scores.labels,
        resamples=options.resamples,
        confidence=options.confidence,
        seed=options.seed,
        resample=options.resample,
    )
    return {name_of(group): group for group in found.groups}


def with_baseline(scores: Scores, predictions: Sequence[Prediction]) -> Scores:
    """``scores`` with the ``baseline`` of every group of the models whose texts all have a label of it."""
    known = [p for p in predictions if p.persona is None or p.persona in scores.labels]
    without = {p.model for p in known if p.predicted is not None and p.baseline not in scores.labels}
    found = scored_with(scores, [(p, p.baseline) for p in known if p.model not in without])
    groups = [replace(group, baseline=_of(found.get(name_of(group)))) for group in scores.groups]
    return replace(scores, groups=tuple(groups))


def _of(group: GroupScore | None) -> BaselineScore | None:
    if group is None or group.macro_f1.emitted is None:
        return None
    return BaselineScore(group.macro_f1.emitted, group.interval, group.null.mean if group.null else None)
