"""Recipes compared: every trained stage of a model in every format, against one of them.

All scores of a model come from the same resamples, so that the difference of two stages in one format is paired by family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offscript.evaluation.metrics.intervals import (
    Contrast,
    Statistic,
    contrast,
    fewest_clusters,
    interval,
    mean_value,
)
from offscript.evaluation.metrics.results import RecipeScore
from offscript.evaluation.metrics.retention import difference
from offscript.evaluation.order import PUBLISHED, formats_in_order, is_in_distribution, stages_in_order

NONE = Contrast(None, None)


@dataclass(frozen=True)
class Measured:
    """Macro-F1 of a group, and what is kept of that of chat, above chance; None for chat, or if it is undefined."""

    f1: Statistic
    kept: Statistic | None


BySeed = Mapping[int | None, Measured]
"""The groups of a stage and format by their training seed."""


def compare_recipes(
    model: str, groups: Mapping[tuple[str, str], BySeed], confidence: float
) -> list[RecipeScore]:
    """The stages of ``groups`` in every format, and in all formats off chat that every stage has together.

    Args:
        groups: trained stages, by stage and format.
        confidence: of the intervals.

    Returns: none if there are fewer than two stages. Of several training seeds the mean; a difference is that over the seeds
    that both stages have.
    """
    stages = stages_in_order(stage for stage, _ in groups)
    if len(stages) < 2:
        return []
    reference = PUBLISHED if PUBLISHED in stages else stages[0]
    formats: list[str | None] = [*formats_in_order(name for _, name in groups)]
    found: dict[tuple[str, str | None], BySeed] = {(s, f): by_seed for (s, f), by_seed in groups.items()}
    off = [f for f in formats if f and not is_in_distribution(f) and all((s, f) in groups for s in stages)]
    if off:
        formats.append(None)
        found |= {(stage, None): _mean_of_formats([groups[stage, f] for f in off]) for stage in stages}
    return [
        _score((model, stage, reference, name), own, found.get((reference, name), {}), confidence)
        for stage in stages
        for name in formats
        if (own := found.get((stage, name)))
    ]


def _score(
    names: tuple[str, str, str, str | None], own: BySeed, other: BySeed, confidence: float
) -> RecipeScore:
    model, stage, reference, name = names
    f1, kept = [m.f1 for m in own.values()], [m.kept for m in own.values()]
    shared = [] if stage == reference else [(own[seed], other[seed]) for seed in own if seed in other]
    f1_changes = [difference(a.f1, b.f1) for a, b in shared]
    kept_changes = [difference(a.kept, b.kept) if a.kept and b.kept else None for a, b in shared]
    return RecipeScore(
        model=model,
        stage=stage,
        reference=reference,
        format=name,
        training_seed=next(iter(own)) if len(own) == 1 else None,
        seeds=len(own),
        f1=Contrast(mean_value(f1), interval(f1, confidence, (0.0, 1.0))),
        kept=_contrast(kept, confidence),
        f1_change=_contrast(f1_changes, confidence),
        kept_change=_contrast(kept_changes, confidence),
    )


def _contrast(of_seeds: Sequence[Statistic | None], confidence: float) -> Contrast:
    """As ``contrast``; undefined without seeds, or if it is for one of them."""
    known = [statistic for statistic in of_seeds if statistic is not None]
    return contrast(known, confidence) if known and len(known) == len(of_seeds) else NONE


def _mean_of_formats(formats: Sequence[BySeed]) -> BySeed:
    """The mean over formats, for each training seed that all of them have."""
    seeds = [seed for seed in formats[0] if all(seed in groups for groups in formats)]
    found = {}
    for seed in seeds:
        kept = [k for groups in formats if (k := groups[seed].kept) is not None]
        found[seed] = Measured(
            _mean([groups[seed].f1 for groups in formats]), _mean(kept) if len(kept) == len(formats) else None
        )
    return found


def _mean(of: Sequence[Statistic]) -> Statistic:
    """The mean of scores with joint resamples; undefined where one of them is."""
    values = [s.value for s in of if s.value is not None]
    value = sum(values) / len(values) if len(values) == len(of) else None
    fits = [s.fits for s in of if s.fits is not None]
    return Statistic(
        value,
        np.mean([s.draws for s in of], axis=0),
        fewest_clusters(of),
        np.mean(fits, axis=0) if len(fits) == len(of) else None,
    )
