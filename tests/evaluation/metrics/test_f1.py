"""F1 against scikit-learn, and its bounds against a brute-force search over the labels of missing texts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from offscript.evaluation.metrics.f1 import MACRO_F1, accuracy, confusion, per_persona_f1, readings


def counts_of(pairs: list[tuple[int, int]], n: int) -> np.ndarray:
    true, column = np.array(pairs, dtype=int).reshape(-1, 2).T
    return confusion(true, column, n)


@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_equals_scikit_learn_with_predictions_outside_the_set(n, seed, rows):
    rng = np.random.default_rng(seed)
    true, column = rng.integers(n, size=rows), rng.integers(n + 1, size=rows)
    counts, labels = confusion(true, column, n), list(range(n))
    per = f1_score(true, column, labels=labels, average=None, zero_division=0)
    macro = f1_score(true, column, labels=labels, average="macro", zero_division=0)
    np.testing.assert_allclose(per_persona_f1(counts), per, atol=1e-12)
    assert readings(counts).emitted == pytest.approx(macro, abs=1e-12)
    assert accuracy(counts) == pytest.approx(accuracy_score(true, column), abs=1e-12)


def test_a_prediction_outside_the_set_is_a_false_negative_only():
    counts = counts_of([(0, 0), (0, 2), (1, 1)], 2)
    np.testing.assert_allclose(per_persona_f1(counts), [2 / 3, 1.0])


def test_leading_axes_are_arbitrary():
    counts = np.stack([counts_of([(0, 0), (1, 0)], 2), counts_of([(0, 0), (1, 1)], 2)])
    np.testing.assert_allclose(per_persona_f1(counts), [[2 / 3, 0], [1, 1]])


def brute_force(pairs: list[tuple[int, int]], n: int) -> tuple[float, float]:
    """Minimum and maximum of macro-F1 over all labels in the set for each missing text."""
    emitted = [pair for pair in pairs if pair[1] <= n]
    missing = [true for true, column in pairs if column == n + 1]
    scores = [
        per_persona_f1(counts_of(emitted + list(zip(missing, guess, strict=True)), n)).mean()
        for guess in itertools.product(range(n), repeat=len(missing))
    ]
    return min(scores), max(scores)


@given(st.integers(2, 3), st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6))
@settings(max_examples=120, deadline=None)
def test_bounds_equal_the_brute_force_minimum_and_maximum(n, seed, emitted, missing):
    rng = np.random.default_rng(seed)
    pairs = [(int(rng.integers(n)), int(rng.integers(n + 1))) for _ in range(emitted)]
    pairs += [(int(t), n + 1) for t in rng.integers(n, size=missing)]
    found = readings(counts_of(pairs, n))
    low, high = brute_force(pairs, n)
    assert found.lower == pytest.approx(low, abs=1e-12)
    assert found.upper == pytest.approx(high, abs=1e-12)
    assert found.lower <= found.own_class + 1e-12 <= found.upper + 2e-12


@given(st.integers(2, 3), st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_bounds_of_base_texts_equal_the_brute_force_minimum_and_maximum(n, seed, emitted, missing):
    known = np.random.default_rng(seed).integers(n + 1, size=emitted)

    def crossed(columns) -> np.ndarray:
        return np.tile(np.bincount(columns, minlength=n + 2), (n, 1))

    found = readings(crossed([*known, *[n + 1] * missing]), crossed=True)
    every = [
        per_persona_f1(crossed([*known, *guess])).mean()
        for guess in itertools.product(range(n + 1), repeat=missing)
    ]
    assert found.upper == pytest.approx(max(every), abs=1e-12)
    assert found.lower == pytest.approx(min(every), abs=1e-12)


def test_own_class_is_not_a_lower_bound():
    counts = counts_of([(0, 0), (1, 1), (1, 3)], 2)
    found = readings(counts)
    assert found.emitted == 1.0
    assert found.own_class == pytest.approx((1 + 2 / 3) / 2)
    # The missing text of persona 1 gets label 0.
    assert found.lower == pytest.approx(2 / 3)
    assert found.upper == 1.0


def test_readings_are_equal_without_missing_texts():
    found = readings(counts_of([(0, 0), (1, 0), (1, 1)], 2))
    assert found.emitted == found.own_class == found.lower == found.upper


def test_readings_without_emitted_texts():
    found = readings(counts_of([(0, 3), (1, 3)], 2))
    assert (found.emitted, found.own_class, found.lower, found.upper) == (None, 0.0, 0.0, 1.0)


def test_only_the_emitted_reading_is_defined_if_the_planned_number_is_unknown():
    found = readings(counts_of([(0, 0), (1, 1)], 2), planned_known=False)
    assert (found.emitted, found.own_class, found.lower, found.upper) == (1.0, None, None, None)


def test_readings_of_a_single_label():
    found = readings(counts_of([(0, 0), (0, 2)], 1))
    assert (found.lower, found.own_class, found.upper) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0)


@pytest.mark.parametrize(("true", "column"), [([2], [0]), ([-1], [0]), ([0], [4])])
def test_an_index_out_of_range_is_rejected(true, column):
    with pytest.raises(ValueError, match=r"0\.\.1 \(true\) and 0\.\.3 \(predicted\)"):
        confusion(np.array(true), np.array(column), 2)


def test_the_name_of_the_metric_has_the_number_of_labels():
    assert MACRO_F1.format(n=3) == "macro_f1_3"
