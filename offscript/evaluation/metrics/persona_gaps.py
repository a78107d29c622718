"""Which personas lose more, or less, than the others: the gap of each against the mean gap of the rest.

For persona i the hypothesis is that gap_i = mean of gap_j over the other personas j, where gap = chat F1 - F1 in a format. All
gaps come from the same resamples, so the two sides are compared within each of them. The p-values of the personas of one
stage and format are corrected by the method of Holm (1979, "A simple sequentially rejective multiple test procedure"), which
bounds the probability of any false claim, however the personas depend on each other.
"""

from collections.abc import Sequence

import numpy as np

from offscript.evaluation.metrics.bootstrap import macro
from offscript.evaluation.metrics.intervals import Statistic, contrast, fewest_clusters, p_value
from offscript.evaluation.metrics.results import PersonaGap
from offscript.evaluation.metrics.retention import difference

Names = tuple[str, str, str, int | None, int]
"""Model, stage, format, training seed and number of training seeds."""


def against_others(
    names: Names, personas: Sequence[str], gaps: Sequence[Sequence[Statistic]], confidence: float
) -> list[PersonaGap]:
    """The gap of each persona against the mean of the others, with corrected p-values.

    Args:
        names: of the stage and format.
        personas: N names.
        gaps: of each persona, its gap for each training seed, with joint resamples.
        confidence: of the intervals.
    """
    excess = [
        [difference(gap, _mean_of_others(gaps, i, s)) for s, gap in enumerate(of_seeds)]
        for i, of_seeds in enumerate(gaps)
    ]
    p = [p_value(of_seeds) for of_seeds in excess]
    model, stage, format_, training_seed, n_seeds = names
    return [
        PersonaGap(
            model=model,
            stage=stage,
            format=format_,
            training_seed=training_seed,
            seeds=n_seeds,
            persona=persona,
            gap=contrast(gap, confidence),
            excess=contrast(more, confidence),
            p=own,
            p_holm=corrected,
        )
        for persona, gap, more, own, corrected in zip(personas, gaps, excess, p, holm(p), strict=True)
    ]


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number; None stays None, and is not counted.

    The k-th smallest of n is multiplied by n - k + 1, and is at least as great as those before it and at most 1.
    """
    # statsmodels' ``multipletests`` gives the same, and collects garbage at every call: 0.1 to 0.3 s with torch loaded.
    defined = np.array([value for value in p if value is not None])
    order = np.argsort(defined)
    raised = np.maximum.accumulate(defined[order] * np.arange(len(defined), 0, -1))
    corrected = np.empty_like(defined)
    corrected[order] = np.minimum(raised, 1.0)
    values = iter(corrected.tolist())
    return [None if value is None else next(values) for value in p]


def _mean_of_others(gaps: Sequence[Sequence[Statistic]], i: int, seed: int) -> Statistic:
    """The mean gap of the personas but i, of those that have one; in a resample, of those that have texts in it."""
    others = [of_seeds[seed] for j, of_seeds in enumerate(gaps) if j != i]
    held = [gap for gap in others if gap.value is not None]
    if not held:
        return Statistic(None, np.full_like(gaps[i][seed].draws, np.nan), None)
    draws = macro(np.stack([gap.draws for gap in held], axis=-1))
    of_fits = [gap.fits for gap in held if gap.fits is not None]
    fits = np.mean(of_fits, axis=0) if len(of_fits) == len(held) else None
    return Statistic(float(np.mean([gap.value for gap in held])), draws, fewest_clusters(held), fits)
