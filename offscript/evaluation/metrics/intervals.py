"""Confidence intervals from bootstrap resamples of clusters, from several training seeds, and from several fits of the
classifier.

A percentile interval over few clusters is too narrow: with 11 families of five scenarios, a nominal 95% interval covers
.90 to .94. ``expanded_percentile`` widens it to about the nominal level (``benchmarks/coverage.py`` measures that).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float] | None

MIN_CLUSTERS = 5
"""With fewer clusters there is no interval."""

FEW_CLUSTERS = 10
"""With fewer clusters a note warns of the interval."""

NO_VARIANCE = 1e-9
"""A standard error (in units of F1) up to this is that of rounding."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """A number with its value in every resample.

    Args:
        value: of the data; None if it is undefined.
        draws: ``[R]``; entry r of every statistic comes from resample r. NaN where it is undefined.
        clusters: number of clusters that it is computed from; None for a plain percentile interval, as published.
        fits: ``[F]``, its value by each fit of the classifier alone, NaN where it is undefined; None if there is one fit.
    """

    value: float | None
    draws: NDArray[np.float64]
    clusters: int | None
    fits: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Contrast:
    """A comparison of two scores (a difference in F1 units, or a ratio) and its interval."""

    estimate: float | None
    interval: Interval


def contrast(of_seeds: Sequence[Statistic], confidence: float) -> Contrast:
    """The mean of a comparison over training seeds, with its interval; undefined if it is for one of them."""
    return Contrast(mean_value(of_seeds), interval(of_seeds, confidence))


def mean_value(of_seeds: Sequence[Statistic]) -> float | None:
    """The mean over training seeds; None if a value is."""
    values = [s.value for s in of_seeds if s.value is not None]
    return sum(values) / len(values) if values and len(values) == len(of_seeds) else None


def interval(
    of_seeds: Sequence[Statistic], confidence: float, limits: tuple[float, float] | None = None
) -> Interval:
    """Interval of the mean over training seeds, for one seed that of the seed itself; None if it is undefined.

    Args:
        of_seeds: the statistic of each training seed, with joint resamples.
        confidence: between 0 and 1.
        limits: the least and the largest possible value.
    """
    clusters = fewest_clusters(of_seeds)
    if mean_value(of_seeds) is None or (clusters is not None and clusters < MIN_CLUSTERS):
        return None
    if len(of_seeds) == 1:
        found = expanded_percentile(of_seeds[0].draws, confidence, clusters)
    else:
        found = _two_way(of_seeds, confidence, clusters)
    if clusters is not None:
        found = _with_fits(found, of_seeds, confidence, clusters)
    return found if found is None or limits is None else (max(found[0], limits[0]), min(found[1], limits[1]))


def spread_of_fits(of_seeds: Sequence[Statistic]) -> float | None:
    """Standard deviation over the fits of the classifier of the mean over training seeds; None for one fit, or if the
    statistic is defined for fewer than two."""
    fits = _mean_by_fit(of_seeds)
    return float(fits.std(ddof=1)) if len(fits) > 1 else None


def _mean_by_fit(of_seeds: Sequence[Statistic]) -> NDArray[np.float64]:
    """The mean over training seeds ``[F]`` by each fit for which it is defined. All seeds are read by the same fits."""
    by_seed = [s.fits for s in of_seeds if s.fits is not None]
    if not by_seed:
        return np.zeros(0)
    mean: NDArray[np.float64] = np.mean(by_seed, axis=0)
    return mean[~np.isnan(mean)]


def _with_fits(found: Interval, of_seeds: Sequence[Statistic], confidence: float, clusters: int) -> Interval:
    """``found``, wider by what another F fits of the classifier would change: the variance over fits divided by F.

    The distance of each end from the value and the reach of the fits, t x SD / sqrt(F), are combined as the root of the sum
    of their squares (Zou and Donner 2008, "Construction of confidence limits about effect measures", for independent
    parts). t has the degrees of freedom of the variances of clusters and fits together.
    """
    value, of_fits, draws = mean_value(of_seeds), _variance_of_fits(of_seeds), _mean_draws(of_seeds)
    if found is None or value is None or of_fits is None or len(draws) < 2:
        return found
    _, degrees = _of_draws(draws, np.zeros(0), clusters, of_fits)
    reach = -_student_t(degrees, (1 - confidence) / 2) * math.sqrt(of_fits[0])
    return value - math.hypot(value - found[0], reach), value + math.hypot(found[1] - value, reach)


def _variance_of_fits(of_seeds: Sequence[Statistic]) -> tuple[float, int] | None:
    """Variance over the F fits divided by F, and its degrees of freedom; None if fits do not differ."""
    spread, fits = spread_of_fits(of_seeds), len(_mean_by_fit(of_seeds))
    return (spread**2 / fits, fits - 1) if spread else None


def expanded_percentile(
    draws: NDArray[np.float64], confidence: float, clusters: int | None = None
) -> Interval:
    """Percentile interval of ``draws [R]`` without NaN entries; None if no entry is left.

    The tail probability is Phi(sqrt(K / (K - 1)) t(K - 1)) for K clusters, with the lower quantile t of Student's
    distribution (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3.3). Without
    ``clusters`` it is (1 - confidence) / 2 (Efron and Tibshirani 1993, section 13.3).
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return None
    tail = (1 - confidence) / 2
    if clusters is not None:
        tail = NormalDist().cdf(math.sqrt(clusters / (clusters - 1)) * _student_t(clusters - 1, tail))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _two_way(of_seeds: Sequence[Statistic], confidence: float, clusters: int | None) -> Interval:
    """Interval of a mean over S training seeds, which share K clusters, from ``standard_error``."""
    values = np.array([s.value for s in of_seeds], dtype=float)
    draws = _mean_draws(of_seeds)
    if len(draws) < 2:
        return None
    return student_interval(float(values.mean()), *_of_draws(draws, values, clusters), confidence)


def p_value(of_seeds: Sequence[Statistic]) -> float | None:
    """Two-sided p-value of the hypothesis that the mean over training seeds is 0; None if it is undefined.

    It is that of Student's t for mean / standard error (Efron and Tibshirani 1993, section 12.4): unlike a share of
    resamples, it has no least value other than 0, so that it can be corrected for many comparisons.
    """
    from scipy.special import stdtr

    value, clusters, draws = mean_value(of_seeds), fewest_clusters(of_seeds), _mean_draws(of_seeds)
    if value is None or len(draws) < 2 or (clusters is not None and clusters < MIN_CLUSTERS):
        return None
    values = np.array([s.value for s in of_seeds], dtype=float)
    error, degrees = _of_draws(draws, values, clusters, _variance_of_fits(of_seeds))
    # Without variance, as of resamples that are all alike, the resamples say nothing about chance.
    return float(2 * stdtr(degrees, -abs(value) / error)) if error > NO_VARIANCE else None


def student_interval(middle: float, error: float, degrees: float, confidence: float) -> tuple[float, float]:
    """``middle`` +- t x ``error``, with ``degrees`` of freedom."""
    reach = -_student_t(degrees, (1 - confidence) / 2) * error if error > 0 else 0.0
    return middle - reach, middle + reach


def standard_error(
    of_clusters: float,
    of_seeds: NDArray[np.float64],
    clusters: int | None,
    of_fits: tuple[float, int] | None = None,
) -> tuple[float, float]:
    """Standard error of a mean over S training seeds, which share K clusters, and its degrees of freedom.

    The variance is that of the mean over clusters, with the seeds as they are, plus that of the seeds divided by S. Its
    degrees of freedom are those of Satterthwaite 1946. The noise within a seed is in both parts, so that the interval is
    rather too wide than too narrow.

    Args:
        of_clusters: variance of the mean over clusters, for K - 1 degrees of freedom.
        of_seeds: the value of each training seed ``[S]``.
        clusters: K; None: the variance of clusters has infinitely many degrees of freedom.
        of_fits: a further variance, that of the fits of the classifier, and its degrees of freedom.
    """
    seeds = len(of_seeds)
    parts: list[tuple[float, float]] = [(of_clusters, math.inf if clusters is None else clusters - 1)]
    if seeds > 1:
        parts.append((float(of_seeds.var(ddof=1)) / seeds, seeds - 1))
    if of_fits is not None:
        parts.append(of_fits)
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, math.inf
    spread = sum(part**2 / freedom for part, freedom in parts)
    return math.sqrt(variance), variance**2 / spread if spread else math.inf


def _mean_draws(of_seeds: Sequence[Statistic]) -> NDArray[np.float64]:
    """The mean over training seeds in every resample in which it is defined."""
    draws = np.mean([s.draws for s in of_seeds], axis=0)
    defined: NDArray[np.float64] = draws[~np.isnan(draws)]
    return defined


def _of_draws(
    draws: NDArray[np.float64],
    of_seeds: NDArray[np.float64],
    clusters: int | None,
    of_fits: tuple[float, int] | None = None,
) -> tuple[float, float]:
    """``standard_error`` from resamples, whose variance is too small by the factor (K - 1) / K."""
    factor = 1.0 if clusters is None else clusters / (clusters - 1)
    return standard_error(float(draws.var(ddof=1)) * factor, of_seeds, clusters, of_fits)


def fewest_clusters(statistics: Sequence[Statistic]) -> int | None:
    """The smallest number of clusters; None if no statistic has one."""
    return min((s.clusters for s in statistics if s.clusters is not None), default=None)


def _student_t(degrees: float, probability: float) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
