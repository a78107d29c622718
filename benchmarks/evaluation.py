"""Seconds of 10,000 bootstrap resamples of one model's grid, compared with a plain loop over resamples.

    python benchmarks/evaluation.py                           # three stages, three formats, ten personas, 11 families of 5
    python benchmarks/evaluation.py --loop 10000              # the whole loop, not a part of it

Both compute macro-F1 of every stage and format from the same episodes, in processor time of one process. The loop draws
families, joins their episodes and counts them, resample by resample; of its time a part is measured and multiplied. An
evaluation computes more: the readings of missing texts, their bounds and the null of every resample.
"""

import argparse
import time

import numpy as np

from offscript.evaluation.metrics.bootstrap import Episodes, bootstrap, bootstrap_f1
from offscript.evaluation.metrics.f1 import confusion, per_persona_f1

FAMILIES, VARIANTS, PERSONAS, GROUPS = 11, 5, 10, 9
EMITTED = 0.7


def grid(rng: np.random.Generator) -> Episodes:
    """The first third of the groups is chat, whose prompts share no family with the others."""
    group, family, variant, persona = (
        part.ravel() for part in np.indices((GROUPS, FAMILIES, VARIANTS, PERSONAS))
    )
    family = family + FAMILIES * (group < GROUPS // 3)
    column = np.where(rng.random(len(group)) < 0.5, persona, rng.integers(PERSONAS + 1, size=len(group)))
    missing = (group >= 2 * GROUPS // 3) & (rng.random(len(group)) > EMITTED)
    column = np.where(missing, PERSONAS + 1, column)
    scenario = family * VARIANTS + variant
    return Episodes(GROUPS, PERSONAS, group, persona, column, scenario, family)


def plain_loop(episodes: Episodes, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Macro-F1 ``[resamples, G]``."""
    found = np.zeros((resamples, episodes.n_groups))
    for g in range(episodes.n_groups):
        mine = np.flatnonzero(episodes.group == g)
        of_family = [mine[episodes.family[mine] == f] for f in np.unique(episodes.family[mine])]
        for r in range(resamples):
            drawn = np.concatenate([of_family[k] for k in rng.integers(len(of_family), size=len(of_family))])
            counts = confusion(episodes.persona[drawn], episodes.column[drawn], episodes.n_labels)
            found[r, g] = per_persona_f1(counts).mean()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--loop", type=int, default=500, help="resamples of the plain loop")
    options = parser.parse_args()
    episodes = grid(np.random.default_rng(0))
    start = time.process_time()
    draws = bootstrap(
        episodes,
        "family",
        options.resamples,
        0,
        within=np.ones(GROUPS, dtype=bool),
        null=np.zeros(GROUPS),
    )
    everything = time.process_time() - start
    start = time.process_time()
    bootstrap_f1(episodes, "family", options.resamples, 0)
    vectorized = time.process_time() - start
    start = time.process_time()
    loop = plain_loop(episodes, options.loop, np.random.default_rng(0))
    looped = (time.process_time() - start) * options.resamples / options.loop
    print(f"{len(episodes.group):,} episodes, {GROUPS} groups, {options.resamples:,} resamples")
    print(f"vectorized, F1             {vectorized:6.2f} s")
    print(f"vectorized, all of it      {everything:6.2f} s")
    print(f"plain loop, F1             {looped:6.2f} s: {looped / vectorized:.0f} times as long")
    difference = np.abs(np.mean(draws.f1, axis=(0, 2)) - loop.mean(axis=0)).max()
    print(f"the means of macro-F1 differ by at most {difference:.3f}")


if __name__ == "__main__":
    main()
