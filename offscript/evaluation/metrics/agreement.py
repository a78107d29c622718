"""Agreement of readers of the same texts beyond chance: Cohen's kappa of two, Krippendorff's alpha of any number."""

import math
from collections.abc import Hashable, Sequence
from typing import Literal


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa (1960) of two readers' labels ``[n]``; None if n is 0, or if both have one and the same label
    throughout."""
    if len({*first, *second}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(list(first), list(second)))


def alpha(units: Sequence[Sequence[str | int | None]], level: Literal["nominal", "ordinal"]) -> float | None:
    """Krippendorff's alpha of ``units``, each with one value per reader; None where no two readers have a value for one
    unit, or where all values are equal.

    Args:
        level: of measurement.
    """
    import krippendorff
    import numpy as np

    paired = [unit for unit in units if sum(value is not None for value in unit) > 1]
    domain = sorted({value for unit in paired for value in unit if value is not None}, key=str)
    if len(domain) < 2:
        return None
    codes = {value: code for code, value in enumerate(domain)}
    data = [[math.nan if value is None else codes[value] for value in unit] for unit in paired]
    values = list(range(len(domain)))
    found = krippendorff.alpha(np.array(data).T, value_domain=values, level_of_measurement=level)
    return float(found)
