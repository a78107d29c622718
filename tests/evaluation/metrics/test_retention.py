"""The permutation null, gaps and ratios."""

import numpy as np
import pytest

from offscript.evaluation.metrics.bootstrap import EVERY_PERSONA
from offscript.evaluation.metrics.f1 import confusion, per_persona_f1
from offscript.evaluation.metrics.retention import _shuffle, difference, permutation_null, ratio


def null(persona, column, scenario, n=2, permutations=999, confidence=0.95):
    columns = (np.array(part) for part in (persona, column, scenario))
    return permutation_null(*columns, n, permutations, confidence, np.random.default_rng(0))


def test_labels_stay_inside_their_scenario():
    place = np.array([1, 0, 1, 0, 2, 1])
    persona = np.array([0, 1, 2, 3, 4, 5])
    shuffled = _shuffle(persona, place, 200, np.random.default_rng(0))
    for p in np.unique(place):
        assert {tuple(sorted(row)) for row in shuffled[:, place == p]} == {tuple(sorted(persona[place == p]))}
    assert len({tuple(row) for row in shuffled}) == 12  # 3! orders of one scenario, 2! of another


def test_a_model_that_writes_by_persona_is_above_its_null():
    found = null([0, 1] * 20, [0, 1] * 20, np.repeat(range(20), 2))
    assert found.above
    assert found.p == pytest.approx(1 / 1000)
    assert found.mean == pytest.approx(0.5, abs=0.02)
    assert found.within == "scenario"


def test_a_constant_prediction_is_its_own_null():
    found = null([0, 1] * 20, [0] * 40, np.repeat(range(20), 2))
    assert not found.above
    assert (found.p, found.mean) == (1.0, pytest.approx(1 / 3))


def test_a_prediction_that_only_reads_the_scenario_is_not_above_the_null():
    """By scenario alone it scores well above 1/2 when scenarios favour personas: the null knows that, chance does not."""
    persona = np.array([0, 0, 0, 1, 1, 1, 1, 0] * 15)
    column = np.array(([0] * 4 + [1] * 4) * 15)
    scenario = np.repeat(np.arange(30), 4)
    score = per_persona_f1(confusion(persona, column, 2)).mean()
    found = null(persona, column, scenario)
    assert score == pytest.approx(0.75)
    assert found.mean == pytest.approx(0.75)
    assert not found.above


def test_scenarios_of_one_persona_each_are_permuted_over_all_rows():
    found = null([0, 1] * 20, [0, 1] * 20, range(40))
    assert found.within == "all"
    assert found.above


def test_base_texts_have_no_label_to_permute():
    found = null([EVERY_PERSONA] * 4, [0, 0, 1, 2], range(4))
    assert not found.above
    assert found.mean == pytest.approx((2 * 2 / (4 + 4) + 2 * 1 / (4 + 2)) / 2)
    assert null([], [], []) is None


def test_difference_pairs_the_draws():
    draws = np.linspace(0.2, 0.8, 100)
    found = difference(0.5, 0.4, draws, draws - 0.1, 0.95)
    assert found.estimate == pytest.approx(0.1)
    assert found.interval == (pytest.approx(0.1), pytest.approx(0.1))
    assert difference(0.5, None, draws, draws, 0.95).estimate is None


def test_ratio_leaves_out_draws_without_a_whole():
    found = ratio(0.4, 0.8, np.array([0.4, 0.3, 0.2]), np.array([0.8, 0.6, 0.0]), 0.95)
    assert found.estimate == pytest.approx(0.5)
    assert found.interval == (pytest.approx(0.5), pytest.approx(0.5))
    assert ratio(0.4, None, np.ones(3), np.ones(3), 0.95).interval is None
    assert ratio(0.4, 0.0, np.ones(3), np.zeros(3), 0.95).estimate is None
