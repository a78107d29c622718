"""Gaps, ratios and retention above chance."""

import numpy as np
import pytest

from offscript.evaluation.metrics.intervals import Statistic
from offscript.evaluation.metrics.retention import above_chance, difference, ratio


def statistic(value, draws=(0.0, 0.0), clusters=10):
    return Statistic(value, np.array(draws, dtype=float), clusters)


def test_difference_is_taken_within_resamples():
    draws = np.linspace(0.2, 0.8, 100)
    found = difference(statistic(0.5, draws, 12), statistic(0.4, draws - 0.1, 11))
    assert found.value == pytest.approx(0.1)
    np.testing.assert_allclose(found.draws, 0.1)
    assert found.clusters == 11
    assert difference(statistic(0.5), statistic(None)).value is None


def test_ratio_is_undefined_in_resamples_with_a_denominator_of_zero():
    found = ratio(statistic(0.4, [0.4, 0.3, 0.2]), statistic(0.8, [0.8, 0.6, 0.0]))
    assert found.value == pytest.approx(0.5)
    np.testing.assert_allclose(found.draws, [0.5, 0.5, np.nan])
    assert ratio(statistic(0.4), statistic(None)).value is None
    assert ratio(statistic(0.4), statistic(0.0)).value is None


def test_above_chance_is_zero_for_a_score_at_chance_and_one_for_all_of_it():
    chat, chat_null = statistic(0.9, [0.9, 0.8]), statistic(0.15, [0.15, 0.14])
    null = statistic(0.12, [0.12, 0.12])
    assert above_chance(null, null, chat, chat_null).value == pytest.approx(0.0)
    assert above_chance(chat, chat_null, chat, chat_null).value == pytest.approx(1.0)
    half = above_chance(statistic(0.495, [0.42, 0.45]), null, chat, chat_null)
    assert half.value == pytest.approx(0.5)
    np.testing.assert_allclose(half.draws, [0.3 / 0.75, 0.33 / 0.66])
