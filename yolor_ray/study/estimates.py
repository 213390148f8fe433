"""Estimates with 95 % intervals: means over seeds, and differences between two variants.

Two sources of noise are counted: the training seed and the choice of validation images.
Legend: S seeds, R resamples of the validation images, M metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from yolor_ray.study.results import METRICS, TrialResult

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """One number with its 95 % interval."""

    mean: float
    low: float
    """NaN where the noise is unknown: a single seed has no variance between seeds."""
    high: float

    @property
    def beyond_noise(self) -> bool:
        """True if the interval is known and excludes 0."""
        return self.low > 0 or self.high < 0


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's t interval over seeds; all NaN where a value is NaN or there is no value."""
    if not values:
        return UNKNOWN
    return _interval(np.array(values), image_variance=0.0) if len(values) > 1 else Estimate(values[0], np.nan, np.nan)


def paired_differences(variant: Sequence[TrialResult], baseline: Sequence[TrialResult]) -> dict[str, Estimate]:
    """Return variant - baseline of each metric, paired by seed; seeds that only one of the two finished are left out.

    The interval is Student's t with the sum of two variances. The first variance is that of the mean between seeds. The second is that of
    the mean over seeds when images are resampled; all seeds share the second variance. Welch and Satterthwaite's degrees of freedom lie
    between S - 1, with which the first variance is known, and infinity for the second. Without noise of images the result is therefore
    the t interval over seeds. With one seed, or with equal seeds, the result is the interval of the bootstrap over images. The interval is
    centred on the measured difference, because resampling with repeated images biases AP. Percentiles over images and seeds drawn
    together would be too narrow with few seeds, and widened draws of seeds would be too wide.
    """
    baseline_by_seed = {trial.seed: trial for trial in baseline}
    pairs = [(trial, baseline_by_seed[trial.seed]) for trial in variant if trial.seed in baseline_by_seed]
    if not pairs:
        return dict.fromkeys(METRICS, UNKNOWN)
    measured = np.array([[a.metrics[name] - b.metrics[name] for name in METRICS] for a, b in pairs])
    resampled = np.mean([a.resampled - b.resampled for a, b in pairs], axis=0)
    return {name: _interval(measured[:, m], _finite_variance(resampled[:, m])) for m, name in enumerate(METRICS)}


def _finite_variance(values: np.ndarray) -> float:
    # A resample without any object of a size has no number for that size, for every network.
    finite = values[np.isfinite(values)]
    return float(finite.var(ddof=1)) if len(finite) > 1 else np.nan


def _interval(values: np.ndarray, image_variance: float) -> Estimate:
    """Return the mean of (S,) values, with an interval from the variance between seeds and that of their mean over images."""
    seeds = len(values)
    mean, seed_variance = float(values.mean()), float(values.var(ddof=1) / seeds) if seeds > 1 else 0.0
    total = seed_variance + image_variance
    degrees_of_freedom = (seeds - 1) * (total / seed_variance) ** 2 if seed_variance else np.inf
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees_of_freedom) * np.sqrt(total))
    return Estimate(mean, mean - half_width, mean + half_width)


def median_half_width(estimates: Sequence[Estimate]) -> float:
    """Return the median half-width of the intervals; NaN where no interval is known."""
    widths = [(e.high - e.low) / 2 for e in estimates if np.isfinite([e.low, e.high]).all()]
    return float(np.median(widths)) if widths else float("nan")
