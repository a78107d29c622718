"""Folds of families: what is fitted on some of the families predicts the others."""

from collections.abc import Iterable

from offscript.seeds import unit_hash

FOLDS = 5


def folds(name: str, fitted: Iterable[str], families: Iterable[str] = ()) -> dict[str, int]:
    """The fold 0..FOLDS-1 of each family.

    Args:
        name: of what is fitted; another name gives other folds.
        fitted: families with something to fit on, which are divided evenly, in the order of their hashes.
        families: others, which are in no training set; they are in fold 0.
    """
    in_order = sorted(set(fitted), key=lambda family: unit_hash(name, family))
    fold = {family: i % FOLDS for i, family in enumerate(in_order)}
    return {family: fold.get(family, 0) for family in {*in_order, *families}}
