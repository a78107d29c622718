"""Intervals of few clusters and of several training seeds."""

import numpy as np
import pytest
from scipy import stats

from offscript.evaluation.metrics.intervals import Statistic, expanded_percentile, interval

NORMAL = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)


def test_nan_entries_are_ignored():
    low, high = expanded_percentile(np.array([np.nan, *np.linspace(0, 1, 101)]), 0.9)
    assert (low, high) == (pytest.approx(0.05), pytest.approx(0.95))
    assert expanded_percentile(np.array([np.nan]), 0.9) is None


def test_few_clusters_widen_the_interval_to_that_of_student():
    """The bootstrap variance of a mean over K clusters is (K - 1) / K of the unbiased one."""
    for clusters in (5, 11, 30):
        low, high = expanded_percentile(NORMAL * np.sqrt((clusters - 1) / clusters), 0.95, clusters)
        assert high == pytest.approx(stats.t.ppf(0.975, clusters - 1), abs=0.02) == -low
    assert expanded_percentile(NORMAL, 0.95)[1] == pytest.approx(1.96, abs=0.01)


def test_there_is_no_interval_below_five_clusters():
    assert interval([Statistic(0.0, NORMAL, 4)], 0.95) is None
    assert interval([Statistic(0.0, NORMAL, 5)], 0.95) is not None
    assert interval([Statistic(0.0, NORMAL, None)], 0.95) is not None, "the published way has no such rule"
    assert interval([Statistic(None, NORMAL, 20)], 0.95) is None


def seeds(values, clusters=11, spread=0.01):
    shared = np.random.default_rng(0).normal(size=4000)
    return [Statistic(v, v + spread * shared, clusters) for v in values]


def test_training_seeds_that_agree_leave_the_variance_of_the_clusters():
    low, high = interval(seeds([0.5, 0.5, 0.5]), 0.95)
    reach = stats.t.ppf(0.975, 10) * 0.01 * np.sqrt(11 / 10)
    assert (low, high) == (pytest.approx(0.5 - reach, rel=0.03), pytest.approx(0.5 + reach, rel=0.03))


def test_training_seeds_that_differ_widen_it_to_that_of_three_values():
    low, high = interval(seeds([0.4, 0.5, 0.6], spread=1e-6), 0.95)
    assert high - 0.5 == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3), rel=1e-3) == 0.5 - low
    assert interval(seeds([0.4, 0.5, 0.6]), 0.95, limits=(0.3, 0.7)) == (0.3, 0.7)
    assert interval([*seeds([0.4]), Statistic(None, NORMAL, 11)], 0.95) is None


def test_equal_seeds_without_variance_give_a_point():
    assert interval([Statistic(1.0, np.ones(50), 11)] * 2, 0.95) == (1.0, 1.0)
