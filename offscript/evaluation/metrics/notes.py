"""What a reader of the scores has to know, in sentences."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from offscript.evaluation.metrics.intervals import FEW_CLUSTERS, MIN_CLUSTERS
from offscript.evaluation.metrics.results import GroupScore, Options
from offscript.evaluation.order import is_in_distribution, is_trained
from offscript.evaluation.predictions import Prediction

MANY_SEEDS = 3
"""Training seeds from which on the interval of their mean has a useful width."""
UNITS = {"family": "families", "scenario": "scenarios", "rows": "rows"}


def improbable(predictions: Sequence[Prediction]) -> list[str]:
    """A note on predicted labels that are less probable than another label of the same row."""
    counts = Counter(
        f"{p.model} {p.stage} {p.format}"
        for p in predictions
        if p.predicted is not None and p.probs and p.probs[p.predicted] < max(p.probs.values())
    )
    if not counts:
        return []
    shown = "; ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return [
        f"predicted labels that are not the most probable of their row, scored as they are given: {shown}"
    ]


def notes_on(groups: Sequence[GroupScore], labels: Sequence[str], options: Options) -> list[str]:
    """What a reader of the scores has to know, one sentence each, with the names of the groups that it is about."""
    reach = _training_seeds(groups)
    groups = [g for g in groups if g.seeds == 1]

    def where(test: Callable[[GroupScore], bool]) -> str:
        return _listed(g for g in groups if test(g))

    unknown = where(lambda g: g.planned is None)
    unused = options.planned is not None and all(g.ended for g in groups)
    notes = [
        f"{g.name}: the {g.emitted} rows contain {g.unique_texts} distinct texts, each scored for several personas; "
        "the interval by rows treats the rows as independent, which they are not"
        for g in groups
        if not g.crossed and g.stage == "base" and g.unique_texts is not None and g.unique_texts < g.emitted
    ]
    if any(g.crossed for g in groups):
        shown = "; ".join(f"{g.name} {g.unique_texts or g.emitted}" for g in groups if g.crossed)
        notes.append(f"each base text is scored for all {len(labels)} personas; distinct texts: {shown}")
    for g in groups:
        absent = [p.persona for p in g.personas if not p.emitted]
        if absent and g.emitted:
            notes.append(f"{g.name}: no text of {', '.join(absent)}, counted as F1 0")
    notes += [
        f"{g.name}: no text was emitted; the score on emitted texts is undefined"
        for g in groups
        if not g.emitted
    ]
    if unknown:
        notes.append(
            f"the number of planned texts is unknown, so missing texts have no bounds (set planned=): {unknown}"
        )
    if unused:
        notes.append("planned= is ignored: the rows hold every planned episode")
    notes += _few_clusters(groups, UNITS[options.resample]) + reach
    if options.resample != "rows" and any(g.emitted and g.fit_sd is None for g in groups):
        notes.append(
            "one fit of the classifier: the intervals do not contain what another fit of it would change"
        )
    if not any(is_in_distribution(g.format) for g in groups):
        notes.append("no chat rows: gap and retention are undefined")
    return list(dict.fromkeys(notes))


def _listed(groups: Iterable[GroupScore]) -> str:
    """The names of groups, those of several training seeds once."""
    return "; ".join(dict.fromkeys(g.name for g in groups))


def _few_clusters(groups: Sequence[GroupScore], units: str) -> list[str]:
    """Notes on groups with few resampled clusters."""

    def where(least: int, most: int) -> str:
        found = [g for g in groups if g.clusters is not None and least <= g.clusters < most]
        return "all groups" if len(found) == len(groups) > 1 else _listed(found)

    none, few = where(1, MIN_CLUSTERS), where(MIN_CLUSTERS, FEW_CLUSTERS)
    notes = []
    if none:
        notes.append(f"no interval, because fewer than {MIN_CLUSTERS} {units} have texts: {none}")
    if few:
        notes.append(
            f"fewer than {FEW_CLUSTERS} {units} have texts, so the intervals are wide and uncertain: {few}"
        )
    return notes


def _training_seeds(groups: Sequence[GroupScore]) -> list[str]:
    """A note on how far the intervals reach: to these weights, or to other training seeds."""
    most: dict[str, int] = {}
    for g in groups:
        if is_trained(g.stage):
            most[g.stage] = max(most.get(g.stage, 1), g.seeds)
    single = ", ".join(stage for stage, seeds in most.items() if seeds == 1)
    few = ", ".join(stage for stage, seeds in most.items() if 1 < seeds < MANY_SEEDS)
    notes = []
    if single:
        notes.append(
            f"one training seed of {single}: the intervals hold for these trained weights only, not for another training"
        )
    if few:
        notes.append(f"two training seeds of {few}: intervals of the mean are wide; three make them useful")
    return notes
