"""The same texts with the labels of another classifier, scored in the same way; and the baseline, one such classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offscript.evaluation.metrics.intervals import Contrast
from offscript.evaluation.metrics.model_scores import ModelScores
from offscript.evaluation.metrics.results import BaselineScore, GroupScore, Scores
from offscript.evaluation.order import formats_in_order, is_in_distribution
from offscript.evaluation.predictions import Prediction

GroupName = tuple[object, ...]


def name_of(group: GroupScore) -> GroupName:
    """Identifies a group among those of an evaluation."""
    return group.model, group.stage, group.format, group.training_seed, group.seeds


RELABELLED = " (relabelled)"
"""Ends the names of stages with the labels of another classifier, while both are scored together."""


@dataclass(frozen=True)
class Relabelled:
    """Groups with the labels of another classifier, by their names, and how its F1 differs from that of the predictions.

    ``seen`` is its F1 - F1 in the same group, ``lost`` is F1 in chat - its F1 in the group; absent where there is no such group.
    """

    groups: Mapping[GroupName, GroupScore]
    seen: Mapping[GroupName, Contrast]
    lost: Mapping[GroupName, Contrast]


def scored_with(
    scores: Scores, predictions: Sequence[Prediction], relabelled: Sequence[tuple[Prediction, str | None]]
) -> Relabelled:
    """Scores of predictions with the label that is given with each (None: no text), over the label set of ``scores`` with
    its options. Both classifiers are resampled together, so that differences in one group are paired."""
    probs = {label: {name: float(name == label) for name in scores.labels} for label in scores.labels}
    others = [
        replace(
            p,
            stage=p.stage + RELABELLED,
            predicted=label,
            probs=probs[label] if label else None,
            fits=None,
            baseline=None,
        )
        for p, label in relabelled
    ]
    groups: dict[GroupName, GroupScore] = {}
    seen: dict[GroupName, Contrast] = {}
    lost: dict[GroupName, Contrast] = {}
    options = replace(scores.options, planned=None)
    for model in dict.fromkeys(p.model for p in others):
        rows = [p for p in [*predictions, *others] if p.model == model]
        found = ModelScores(model, rows, list(scores.labels), options)
        chat = next(filter(is_in_distribution, formats_in_order(p.format for p in rows)), None)
        for group in found.groups:
            if not group.stage.endswith(RELABELLED):
                continue
            group = replace(group, stage=group.stage.removesuffix(RELABELLED))
            name, place = name_of(group), (group.stage + RELABELLED, group.format)
            seeds = (group.training_seed, group.seeds)
            groups[name] = group
            seen |= _named(name, found.difference_of(place, (group.stage, group.format), *seeds))
            if chat is not None:
                lost |= _named(name, found.difference_of((group.stage, chat), place, *seeds))
    return Relabelled(groups, seen, lost)


def _named(name: GroupName, found: Contrast | None) -> dict[GroupName, Contrast]:
    return {} if found is None else {name: found}


def with_baseline(scores: Scores, predictions: Sequence[Prediction]) -> Scores:
    """``scores`` with the ``baseline`` of every group of the models whose texts all have a label of it."""
    known = [p for p in predictions if p.persona is None or p.persona in scores.labels]
    without = {p.model for p in known if p.predicted is not None and p.baseline not in scores.labels}
    relabelled = [(p, p.baseline) for p in known if p.model not in without]
    found = scored_with(scores, [], relabelled).groups
    groups = [replace(group, baseline=_of(found.get(name_of(group)))) for group in scores.groups]
    return replace(scores, groups=tuple(groups))


def _of(group: GroupScore | None) -> BaselineScore | None:
    if group is None or group.macro_f1.emitted is None:
        return None
    return BaselineScore(group.macro_f1.emitted, group.interval, group.null.mean if group.null else None)
