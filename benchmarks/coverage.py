"""How often the nominal 95% intervals contain the true value, in simulated grids.

    python benchmarks/coverage.py                     # 1,000 grids of each kind, about two minutes of one core
    python benchmarks/coverage.py --unit rows         # the published way
    python benchmarks/coverage.py --grids 200 --personas 6
    python benchmarks/coverage.py --fits 1 5          # fits of the classifier that differ, as one and as five of them

A grid has one model, chat (50 prompts) and the tool loop (11 families of 5 scenarios) for the stage ``full``, and the tool
loop for ``distillation``. Whether the classifier names the persona depends on the persona, on the family, on both
together, on the scenario and on the training seed (normal effects on the logit scale). A wrong label is often the
favourite of the family or of the classifier. Whether an e-mail is sent depends on the family and persona, too: what is
missing is not random. With one training seed, the true value is that of these weights; with three, the mean over seeds.

With ``--fits``, each fit of the classifier has effects of its own on each format and persona, and the true value is that of
the mean of infinitely many fits.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics import bootstrap
from offscript.evaluation.metrics.bootstrap import RESAMPLE_UNITS, Draws, Episodes
from offscript.evaluation.metrics.chance import expected_hits, macro_of_hits
from offscript.evaluation.metrics.f1 import confusion, per_persona_f1
from offscript.evaluation.metrics.intervals import Statistic, interval
from offscript.evaluation.metrics.retention import above_chance, difference

FAMILIES, VARIANTS, PROMPTS = 11, 5, 50
CHAT, FULL, DISTILLATION = range(3)
LEVEL = {CHAT: 2.5, FULL: 0.0, DISTILLATION: -1.0}
"""Logit of a hit, by group."""
FAMILY_SD, FAMILY_PERSONA_SD, FAMILY_STAGE_SD, SCENARIO_SD = 0.6, 0.6, 0.3, 0.3
SEED_SD, SEED_PERSONA_SD = 0.3, 0.2
FIT_SD, FIT_PERSONA_SD = 0.15, 0.3
"""Of a fit of the classifier: F1 then has a standard deviation of about .03 over fits."""
EMISSION = {FULL: 0.5, DISTILLATION: 1.0}
"""Logit of an e-mail."""
FAVOURITES = 0.3
"""Share of wrong labels that are the favourite of the family, and of those that are that of the classifier."""
QUANTITIES = ("F1", "gap", "retention above chance", "full - distillation")
RESAMPLES, CONFIDENCE = 1000, 0.95


@dataclass(frozen=True)
class Kind:
    """A kind of grid: the number of personas, of training seeds, and of fits of the classifier (0: fits do not differ)."""

    personas: int
    seeds: int
    fits: int = 0

    def __str__(self) -> str:
        seeds = f"{self.personas} personas, {self.seeds} seed{'s' if self.seeds > 1 else ''}"
        return seeds + (f", {self.fits} fit{'s' if self.fits > 1 else ''}" if self.fits else "")


# ---------------------------------------------------------------- simulated rows


def simulate(
    kind: Kind, rng: np.random.Generator, size: int = 1, seed_effects: bool | None = None
) -> list[Episodes]:
    """The emitted texts of a grid, or of one with ``size`` times as many families and prompts: by the average of all fits,
    then by each of them if there are several.

    Groups 0, 1, 2 are chat, loop and loop after distillation of the first training seed, 3, 4, 5 those of the second.
    """
    effects = kind.seeds > 1 if seed_effects is None else seed_effects
    columns: list[tuple[NDArray[np.int64], ...]] = []
    shared = {
        CHAT: _effects(PROMPTS * size, 1, kind.personas, rng),
        FULL: _effects(FAMILIES * size, VARIANTS, kind.personas, rng),
    }
    stages = rng.normal(0, FAMILY_STAGE_SD, (2, FAMILIES * size))
    of_fits = rng.normal(0, FIT_SD, (kind.fits, 3, 1)) + rng.normal(
        0, FIT_PERSONA_SD, (kind.fits, 3, kind.personas)
    )
    for s in range(kind.seeds):
        of_seed = rng.normal(0, SEED_SD, 3)[:, None] + rng.normal(0, SEED_PERSONA_SD, (3, kind.personas))
        for group in (CHAT, FULL, DISTILLATION):
            logit, favourite = shared[CHAT if group == CHAT else FULL]
            logit = logit + LEVEL[group] + (of_seed[group] if effects else 0.0)
            if group != CHAT:
                logit = logit + stages[group - 1][:, None, None]
            columns.append(_texts(3 * s + group, group, logit, favourite, of_fits[:, group], rng))
    number, persona, scenario, family, *by_fit = (np.concatenate(part) for part in zip(*columns, strict=True))
    return [
        Episodes(3 * kind.seeds, kind.personas, number, persona, column, scenario, family)
        for column in by_fit
    ]


def _effects(
    families: int, variants: int, personas: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Effects ``[families, variants, personas]`` that all stages and seeds share, and the favourite label of a family."""
    logit = np.linspace(-0.7, 0.7, personas) + rng.normal(0, FAMILY_SD, (families, 1, 1))
    logit = logit + rng.normal(0, FAMILY_PERSONA_SD, (families, 1, personas))
    logit = logit + rng.normal(0, SCENARIO_SD, (families, variants, 1))
    return logit, rng.integers(personas, size=families)


def _texts(
    number: int,
    group: int,
    logit: NDArray[np.float64],
    favourite: NDArray[np.int64],
    of_fits: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], ...]:
    """Columns of the emitted texts of one group: group, persona, scenario, family, and the predicted label by the average of
    the fits, then by each if there are several. ``of_fits [fits, personas]`` are their effects."""
    _, variants, personas = logit.shape
    family, variant, persona = np.indices(logit.shape)
    share = rng.random(logit.shape)
    wrong = np.where(share < FAVOURITES, favourite[:, None, None], rng.integers(personas, size=logit.shape))
    wrong = np.where(share > 1 - FAVOURITES, 0, wrong)
    effects = [of_fits.mean(axis=0) if len(of_fits) else 0.0, *(of_fits if len(of_fits) > 1 else ())]
    threshold = rng.random(logit.shape)
    predicted = [np.where(threshold < _sigmoid(logit + effect), persona, wrong) for effect in effects]
    sent = np.ones(logit.shape, dtype=bool)
    if group in EMISSION:
        sent = rng.random(logit.shape) < _sigmoid(EMISSION[group] + 0.8 * (logit - LEVEL[group]))
    # Chat prompts and office tasks have no family in common.
    offset = 10**7 if group == CHAT else 0
    scenario = family * variants + variant + offset
    columns = (np.full(logit.shape, number), persona, scenario, family + offset, *predicted)
    return tuple(part[sent].astype(np.int64) for part in columns)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))


# ---------------------------------------------------------------- what is estimated


def scores_and_nulls(e: Episodes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Macro-F1 ``[G]`` and its mean ``[G]`` with permuted personas."""
    counts = np.stack(
        [confusion(e.persona[e.group == g], e.column[e.group == g], e.n_labels) for g in range(e.n_groups)]
    )
    whole, scenario = np.zeros_like(e.group), np.unique(e.scenario, return_inverse=True)[1].astype(np.int64)
    hits = expected_hits(whole, e.group, scenario, e.persona, e.column, e.n_groups, e.n_labels)[0]
    within = np.ones(e.n_groups, dtype=bool)
    return per_persona_f1(counts).mean(axis=-1), macro_of_hits(counts.astype(float), hits, within)


def quantities(
    f1: NDArray[np.float64],
    null: NDArray[np.float64],
    draws: Draws | None,
    by_rows: bool = False,
    fits: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]] = (),
) -> Iterator[list[Statistic]]:
    """Yields each of QUANTITIES, as a statistic of every training seed. ``fits`` are f1 and null by each fit."""
    macro = bootstrap.macro(draws.f1) if draws else np.zeros((1, len(f1)))

    def of(g: int, value: NDArray[np.float64], drawn: NDArray[np.float64], which: int) -> Statistic:
        clusters = int(draws.clusters[g]) if draws and not by_rows else None
        by_fit = np.array([fit[which][g] for fit in fits]) if fits else None
        return Statistic(float(value[g]), drawn[:, g], clusters, by_fit)

    score = [of(g, f1, macro, 0) for g in range(len(f1))]
    chance = [of(g, null, draws.null if draws else macro, 1) for g in range(len(f1))]
    seeds = range(0, len(f1), 3)
    yield [score[s + FULL] for s in seeds]
    yield [difference(score[s + CHAT], score[s + FULL]) for s in seeds]
    yield [above_chance(score[s + FULL], chance[s + FULL], score[s + CHAT], chance[s + CHAT]) for s in seeds]
    yield [difference(score[s + FULL], score[s + DISTILLATION]) for s in seeds]


def true_values(kind: Kind, rng: np.random.Generator) -> list[float]:
    """The QUANTITIES of a population: many families, and for several training seeds many seeds."""
    if kind.seeds == 1:
        populations = simulate(Kind(kind.personas, 1), rng, size=300)
    else:
        populations = [
            simulate(Kind(kind.personas, 1), rng, size=25, seed_effects=True)[0] for _ in range(200)
        ]
    found = [
        [float(of_seed.value or 0.0) for (of_seed,) in quantities(*scores_and_nulls(p), None)]
        for p in populations
    ]
    return [float(mean) for mean in np.mean(found, axis=0)]


# ---------------------------------------------------------------- coverage


def coverage(kind: Kind, grids: int, unit: str = "family", seed: int = 0) -> dict[str, tuple[float, float]]:
    """For each of QUANTITIES: the share of intervals that contain the true value, and their mean width."""
    rng = np.random.default_rng([seed, kind.personas, kind.seeds, *([kind.fits] if kind.fits else [])])
    true = true_values(kind, rng)
    hits, widths = np.zeros(len(QUANTITIES)), np.zeros(len(QUANTITIES))
    for number in range(grids):
        episodes, *by_fit = simulate(kind, rng)
        f1, null = scores_and_nulls(episodes)
        fits = [scores_and_nulls(e) for e in by_fit]
        within = np.ones(len(f1), dtype=bool)
        draws = bootstrap.bootstrap(episodes, unit, RESAMPLES, number, within=within, null=null)
        for q, of_seeds in enumerate(quantities(f1, null, draws, unit == "rows", fits)):
            low, high = interval(of_seeds, CONFIDENCE) or (np.nan, np.nan)
            hits[q] += low <= true[q] <= high
            widths[q] += high - low
    return {name: (float(hits[q] / grids), float(widths[q] / grids)) for q, name in enumerate(QUANTITIES)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grids", type=int, default=1000, help="simulated grids of each kind")
    parser.add_argument("--unit", choices=RESAMPLE_UNITS, default="family", help="unit of resampling")
    parser.add_argument("--personas", type=int, nargs="+", default=[6, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3], help="numbers of training seeds")
    parser.add_argument(
        "--fits", type=int, nargs="+", default=[0], help="numbers of fits of the classifier; 0: equal fits"
    )
    options = parser.parse_args()
    error = np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / options.grids)
    print(f"coverage of nominal {CONFIDENCE:.0%} intervals by {options.unit}, and their mean width")
    print(f"({options.grids} grids of each kind; the simulation has a standard error of {error:.3f})")
    for kind in itertools.starmap(Kind, itertools.product(options.personas, options.seeds, options.fits)):
        start = time.process_time()
        found = coverage(kind, options.grids, options.unit)
        print(f"{kind} ({time.process_time() - start:.0f} s)")
        for name, (covered, width) in found.items():
            print(f"  {name:24}{covered:6.3f}{width:8.3f}", flush=True)


if __name__ == "__main__":
    main()
