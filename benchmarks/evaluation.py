"""Bootstrap resamples per second of one model's grid, compared with loops over resamples.

    python benchmarks/evaluation.py                           # three stages, three formats, ten personas, 11 families of 5
    python benchmarks/evaluation.py --loop 10000              # as many resamples of a loop as of offscript

All compute macro-F1 of every stage and format from the same episodes. The loops draw families and join their episodes, resample
by resample; one calls scikit-learn's ``f1_score``, as scripts do, the other counts with numpy. An evaluation computes more, which
is the last side: the readings of missing texts, their bounds and the null of every resample.
"""

import argparse
from collections.abc import Callable

import numpy as np
from pairs import add_options, compare, report
from sklearn.metrics import f1_score

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


def plain_loop(episodes: Episodes, resamples: int, score: Callable[..., float]) -> np.ndarray:
    """Macro-F1 ``[resamples, G]``, by ``score(personas, predicted columns)``."""
    found = np.zeros((resamples, episodes.n_groups))
    for g in range(episodes.n_groups):
        rng = np.random.default_rng(g)
        mine = np.flatnonzero(episodes.group == g)
        of_family = [mine[episodes.family[mine] == f] for f in np.unique(episodes.family[mine])]
        for r in range(resamples):
            drawn = np.concatenate([of_family[k] for k in rng.integers(len(of_family), size=len(of_family))])
            found[r, g] = score(episodes.persona[drawn], episodes.column[drawn])
    return found


def of_scikit_learn(personas: np.ndarray, columns: np.ndarray) -> float:
    """Macro-F1 of the emitted texts, by scikit-learn."""
    emitted = columns <= PERSONAS
    labels = list(range(PERSONAS))
    return float(
        f1_score(personas[emitted], columns[emitted], labels=labels, average="macro", zero_division=0)
    )


def of_counts(personas: np.ndarray, columns: np.ndarray) -> float:
    """Macro-F1 of the emitted texts, from their confusion counts."""
    return float(per_persona_f1(confusion(personas, columns, PERSONAS)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resamples", type=int, default=10_000, help="of offscript")
    parser.add_argument("--loop", type=int, default=100, help="resamples of the loop over scikit-learn")
    add_options(parser)
    options = parser.parse_args()
    episodes = grid(np.random.default_rng(0))
    found: dict[str, np.ndarray] = {}

    def scikit_learn() -> float:
        found["scikit-learn"] = plain_loop(episodes, options.loop, of_scikit_learn)
        return options.loop

    def counts() -> float:
        # Faster: so many more that the clock can measure it.
        found["counts"] = plain_loop(episodes, 10 * options.loop, of_counts)[: options.loop]
        return 10 * options.loop

    def ours() -> float:
        f1 = bootstrap_f1(episodes, "family", options.resamples, 0)
        found["offscript"] = f1.mean(axis=(0, 2))
        return options.resamples

    def everything() -> float:
        within, null = np.ones(GROUPS, dtype=bool), np.zeros(GROUPS)
        bootstrap(episodes, "family", options.resamples, 0, within=within, null=null)
        return options.resamples

    sides = {
        "loop, scikit-learn": scikit_learn,
        "loop, counts": counts,
        "offscript": ours,
        "offscript, all that is computed": everything,
    }
    result = compare("macro-F1", "resamples", sides, options.pairs)
    assert np.allclose(found["scikit-learn"][: len(found["counts"])], found["counts"]), "the loops differ"
    result["difference_of_means"] = float(np.abs(found["counts"].mean(axis=0) - found["offscript"]).max())
    print(f"{len(episodes.group):,} episodes, {GROUPS} groups; {options.resamples:,} resamples")
    print(f"the means of macro-F1 differ by at most {result['difference_of_means']:.3f}")
    report("evaluation", [result], options.out)


if __name__ == "__main__":
    main()
