"""Intervals of few clusters, of several training seeds and of several fits of the classifier."""

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


def test_fits_that_differ_widen_it_to_that_of_their_mean():
    """Without other variance, it is the t interval of the mean over five fits; with much of it, little is added."""
    fits = np.array([0.4, 0.45, 0.5, 0.55, 0.6])
    reach = stats.t.ppf(0.975, 4) * fits.std(ddof=1) / np.sqrt(5)
    low, high = interval([Statistic(0.5, np.full(50, 0.5), 11, fits)], 0.95)
    assert (0.5 - low, high - 0.5) == (pytest.approx(reach), pytest.approx(reach))
    plain = interval([Statistic(0.5, 0.5 + 0.1 * NORMAL, 11)], 0.95)
    both = interval([Statistic(0.5, 0.5 + 0.1 * NORMAL, 11, fits)], 0.95)
    # Of 11 clusters with a variance of 0.011 and 5 fits with 0.00125: 12.1 degrees of freedom.
    reach = stats.t.ppf(0.975, 12.1) * fits.std(ddof=1) / np.sqrt(5)
    assert both[1] - 0.5 == pytest.approx(np.hypot(plain[1] - 0.5, reach), abs=1e-4)
    assert interval([Statistic(0.5, 0.5 + 0.1 * NORMAL, None, fits)], 0.95) == interval(
        [Statistic(0.5, 0.5 + 0.1 * NORMAL, None)], 0.95
    ), "the published way has one fit"


def test_all_training_seeds_are_read_by_the_same_fits():
    """What a fit adds to every seed stays in their mean; what it adds to one and takes from another cancels."""
    common, opposite = np.array([-0.1, 0.0, 0.1]), np.array([0.1, 0.0, -0.1])
    flat = np.full(50, 0.5)
    together = interval([Statistic(0.5, flat, 11, 0.5 + common)] * 2, 0.95)
    cancelled = interval(
        [Statistic(0.5, flat, 11, 0.5 + common), Statistic(0.5, flat, 11, 0.5 + opposite)], 0.95
    )
    assert together[1] - together[0] > 0.2 and cancelled == (0.5, 0.5)


def test_a_fit_without_a_value_is_left_out():
    fits = np.array([0.4, np.nan, 0.6])
    assert interval([Statistic(0.5, np.full(9, 0.5), 11, fits)], 0.95) == interval(
        [Statistic(0.5, np.full(9, 0.5), 11, fits[[0, 2]])], 0.95
    )
