"""How two macro-F1 compare: the gap, and what is kept of a score in another format.

Functions of ``Statistic``, so that a comparison has its value in every joint resample. ``scores`` applies them to all groups.
"""

import numpy as np
from numpy.typing import NDArray

from offscript.evaluation.metrics.intervals import Statistic, fewest_clusters


def difference(first: Statistic, second: Statistic) -> Statistic:
    """``first - second``: paired where both are computed from the same resampled clusters."""
    value = None if first.value is None or second.value is None else first.value - second.value
    fits = None if first.fits is None or second.fits is None else first.fits - second.fits
    return Statistic(value, first.draws - second.draws, fewest_clusters([first, second]), fits)


def ratio(part: Statistic, whole: Statistic) -> Statistic:
    """``part / whole``; undefined where ``whole`` is not positive."""
    value = None
    if part.value is not None and whole.value is not None and whole.value > 0:
        value = part.value / whole.value
    fits = None if part.fits is None or whole.fits is None else _quotient(part.fits, whole.fits)
    draws = _quotient(part.draws, whole.draws)
    return Statistic(value, draws, fewest_clusters([part, whole]), fits)


def _quotient(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """``part / whole``, NaN where ``whole`` is not positive."""
    found = np.full_like(whole, np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def above_chance(score: Statistic, null: Statistic, chat: Statistic, chat_null: Statistic) -> Statistic:
    """``(score - null) / (chat - chat_null)``: 0 if the format keeps nothing of the persona, 1 if it keeps all of it.

    ``score / chat`` is not 0 at chance: with ten personas a blind classifier keeps about .1 of a perfect score.
    """
    return ratio(difference(score, null), difference(chat, chat_null))
