"""The permutation null, and its exact mean."""

import numpy as np
import pytest

from offscript.evaluation.metrics.bootstrap import EVERY_PERSONA
from offscript.evaluation.metrics.chance import (
    _permute,
    expected_hits,
    macro_of_hits,
    permutation_null,
    permuted_scores,
    several_in_a_scenario,
)
from offscript.evaluation.metrics.f1 import confusion, per_persona_f1


def exact_mean(persona, column, scenario, n, within):
    zero = np.zeros(len(persona), dtype=int)
    hits = expected_hits(zero, zero, scenario, persona, column, 1, n)
    if (persona == EVERY_PERSONA).all():
        counts = np.tile(np.bincount(column, minlength=n + 2), (n, 1))
    else:
        counts = confusion(persona, column, n)
    return float(macro_of_hits(counts[None].astype(float), hits[0], np.array([within]))[0])


def null(persona, column, scenario, n=2, permutations=999, confidence=0.95):
    persona, column, scenario = (np.array(part) for part in (persona, column, scenario))
    within = several_in_a_scenario(persona, scenario)
    rng = np.random.default_rng(0)
    permuted = permuted_scores(persona, column, scenario, n, permutations, within, rng)
    mean = exact_mean(persona, column, scenario, n, within)
    if (persona == EVERY_PERSONA).all():
        return permutation_null(mean, mean, permuted, within, confidence)
    score = float(per_persona_f1(confusion(persona, column, n)).mean())
    return permutation_null(score, mean, permuted, within, confidence)


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
    assert found.mean == pytest.approx(0.5)
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


@pytest.mark.parametrize("within", [True, False])
def test_the_exact_mean_is_that_of_many_permutations(within):
    """Unbalanced texts, with predictions outside the set, missing texts, and predictions that depend on the scenario."""
    rng, n = np.random.default_rng(1), 4
    persona, scenario = rng.integers(n, size=90), rng.integers(12, size=90)
    column = np.where(rng.random(90) < 0.4, scenario % n, rng.integers(n + 2, size=90))
    emitted = column <= n
    scores = permuted_scores(persona[emitted], column[emitted], scenario[emitted], n, 20_000, within, rng)
    error = 4 * scores.std() / np.sqrt(len(scores))
    assert exact_mean(persona, column, scenario, n, within) == pytest.approx(scores.mean(), abs=error)


def test_the_mean_with_missing_texts_as_errors_is_that_of_many_permutations():
    """Labels of emitted texts are permuted within their scenario; each missing text stays a miss of its persona."""
    rng = np.random.default_rng(3)
    scenario = np.repeat(np.arange(12), 3)
    persona, column = np.tile(np.arange(3), 12), rng.integers(0, 5, size=36)
    seen = column <= 3
    counts = confusion(persona, column, 3)[None].astype(float)
    zero = np.zeros_like(scenario)
    hits = expected_hits(zero, zero, scenario, persona, column, 1, 3)[0]
    found = macro_of_hits(counts, hits, np.ones(1, dtype=bool), missing_is_miss=True)
    scores = []
    for _ in range(4000):
        permuted = persona.copy()
        for s in range(12):
            mine = np.flatnonzero(seen & (scenario == s))
            permuted[mine] = rng.permutation(permuted[mine])
        scores.append(per_persona_f1(confusion(permuted, column, 3), missing_is_miss=True).mean())
    assert found[0] == pytest.approx(np.mean(scores), abs=4 * np.std(scores) / np.sqrt(len(scores)))
