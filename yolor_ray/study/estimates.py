"""Say how large a difference between two kinds of network is, and how far chance could have made it.

Two chances are counted: the seed that a network was trained with, and the images that it happened to be validated on.
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
    """NaN where chance is unknown: of the scatter between seeds one seed says nothing."""
    high: float

    @property
    def beyond_noise(self) -> bool:
        """The interval is known and does not hold 0."""
        return self.low > 0 or self.high < 0


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's t interval over seeds; NaN throughout where a value is NaN or there is none."""
    if not values:
        return UNKNOWN
    return _interval(np.array(values), of_images=0.0) if len(values) > 1 else Estimate(values[0], np.nan, np.nan)


def differences(variant: Sequence[TrialResult], baseline: Sequence[TrialResult]) -> dict[str, Estimate]:
    """Return variant - baseline of each metric, paired by seed; seeds that only one of them finished are left out.

    The interval is Student's t with two variances added: that of the mean between seeds, and that of the mean over seeds when images are
    resampled, which all seeds share. Welch and Satterthwaite's degrees of freedom lie between S - 1, with which the first is known, and
    infinity for the second; so without noise of images this is the t interval over seeds, and with one seed, or with equal ones, that of
    the bootstrap over images. It is centred on the measured difference, because resampling with repeated images biases AP.
    Percentiles over images and seeds drawn together would be too narrow with few seeds, and wider drawn seeds too wide.
    """
    others = {trial.seed: trial for trial in baseline}
    pairs = [(trial, others[trial.seed]) for trial in variant if trial.seed in others]
    if not pairs:
        return dict.fromkeys(METRICS, UNKNOWN)
    measured = np.array([[a.metrics[name] - b.metrics[name] for name in METRICS] for a, b in pairs])
    resampled = np.mean([a.resampled - b.resampled for a, b in pairs], axis=0)
    return {name: _interval(measured[:, m], _known_variance(resampled[:, m])) for m, name in enumerate(METRICS)}


def _known_variance(values: np.ndarray) -> float:
    # A resample without any object of a size has no number for it, whatever the network.
    known = values[np.isfinite(values)]
    return float(known.var(ddof=1)) if len(known) > 1 else np.nan


def _interval(values: np.ndarray, of_images: float) -> Estimate:
    """Return the mean of (S,) values, with an interval from their own variance and that of their mean over images."""
    seeds = len(values)
    mean, of_seeds = float(values.mean()), float(values.var(ddof=1) / seeds) if seeds > 1 else 0.0
    total = of_seeds + of_images
    freedom = (seeds - 1) * (total / of_seeds) ** 2 if of_seeds else np.inf
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(total))
    return Estimate(mean, mean - reach, mean + reach)


def half_width(estimates: Sequence[Estimate]) -> float:
    """Return the median half-width of the intervals, NaN where none is known."""
    widths = [(e.high - e.low) / 2 for e in estimates if np.isfinite([e.low, e.high]).all()]
    return float(np.median(widths)) if widths else float("nan")
