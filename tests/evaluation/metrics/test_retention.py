"""The permutation null, gaps and ratios."""

import numpy as np
import pytest

from offscript.evaluation.metrics.bootstrap import EVERY_PERSONA
from offscript.evaluation.metrics.f1 import confusion, per_persona_f1
from offscript.evaluation.metrics.retention import _permute, difference, permutation_null, ratio


def null(persona, column, scenario, n=2, permutations=999, confidence=0.95):
    columns = (np.array(part) for part in (persona, column, scenario))
    return permutation_null(*columns, n, permutations, confidence, np.random.default_rng(0))


def test_labels_are_permuted_within_their_scenario():
    scenario = np.array([1, 0, 1, 0, 2, 1])
    persona = np.array([0, 1, 2, 3, 4, 5])
    permuted = _permute(persona, scenario, 200, np.random.default_rng(0))
    for s in np.unique(scenario):
        assert {tuple(sorted(row)) for row in permuted[:, scenario == s]} == {
            tuple(sorted(persona[scenario == s]))
        }
    # 3! orders in one scenario, 2! in another.
    assert len({tuple(row) for row in permuted}) == 12


def test_predictions_that_follow_the_persona_are_above_the_null():
    found = null([0, 1] * 20, [0, 1] * 20, np.repeat(range(20), 2))
    assert found.above
    assert found.p == pytest.approx(1 / 1000)
    assert found.mean == pytest.approx(0.5, abs=0.02)
    assert found.within == "scenario"


def test_a_constant_prediction_equals_its_null():
    found = null([0, 1] * 20, [0] * 40, np.repeat(range(20), 2))
    assert not found.above
    assert (found.p, found.mean) == (1.0, pytest.approx(1 / 3))


def test_predictions_that_follow_the_scenario_are_not_above_the_null():
    """They score above chance (1/2) if scenarios differ in their personas, but not above the permutation null."""
    persona = np.array([0, 0, 0, 1, 1, 1, 1, 0] * 15)
    column = np.array(([0] * 4 + [1] * 4) * 15)
    scenario = np.repeat(np.arange(30), 4)
    score = per_persona_f1(confusion(persona, column, 2)).mean()
    found = null(persona, column, scenario)
    assert score == pytest.approx(0.75)
    assert found.mean == pytest.approx(0.75)
    assert not found.above


def test_labels_are_permuted_over_all_rows_if_scenarios_have_one_persona_each():
    found = null([0, 1] * 20, [0, 1] * 20, range(40))
    assert found.within == "all"
    assert found.above


def test_the_null_of_base_texts_is_their_score():
    found = null([EVERY_PERSONA] * 4, [0, 0, 1, 2], range(4))
    assert not found.above
    assert found.mean == pytest.approx((2 * 2 / (4 + 4) + 2 * 1 / (4 + 2)) / 2)
    assert null([], [], []) is None


def test_difference_is_taken_within_resamples():
    draws = np.linspace(0.2, 0.8, 100)
    found = difference(0.5, 0.4, draws, draws - 0.1, 0.95)
    assert found.estimate == pytest.approx(0.1)
    assert found.interval == (pytest.approx(0.1), pytest.approx(0.1))
    assert difference(0.5, None, draws, draws, 0.95).estimate is None


def test_ratio_ignores_resamples_with_a_denominator_of_zero():
    found = ratio(0.4, 0.8, np.array([0.4, 0.3, 0.2]), np.array([0.8, 0.6, 0.0]), 0.95)
    assert found.estimate == pytest.approx(0.5)
    assert found.interval == (pytest.approx(0.5), pytest.approx(0.5))
    assert ratio(0.4, None, np.ones(3), np.ones(3), 0.95).interval is None
    assert ratio(0.4, 0.0, np.ones(3), np.zeros(3), 0.95).estimate is None
