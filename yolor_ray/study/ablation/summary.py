"""Estimates of an ablation, computed once for its Markdown, CSV, JSON and plots.

Numbers are COCO's, 0 to 1, NaN where unknown, as in `results`.
"""

from dataclasses import dataclass

import numpy as np

from yolor_ray.study.estimates import Estimate, mean_over_seeds, paired_differences
from yolor_ray.study.results import METRICS, Study, TrialResult
from yolor_ray.study.wording import points_decimals


@dataclass(frozen=True)
class SummaryRow:
    """Estimates of one variant under one setting."""

    setting: str
    variant: str
    seeds: tuple[int, ...]
    """Seeds of the finished trials."""
    metrics: dict[str, Estimate]
    """Means over the seeds."""
    paired: tuple[int, ...]
    """Seeds that the baseline finished as well; empty for the baseline itself."""
    differences: dict[str, Estimate]
    """Differences to the baseline of the same setting over the paired seeds; empty without paired seeds."""
    seed_differences: tuple[float, ...]
    """Differences in AP by paired seed."""

    @property
    def testable(self) -> bool:
        """True if the noise between seeds and between images is known for the difference in AP."""
        return len(self.paired) > 1 and not np.isnan(self.differences["AP"].low)

    def beyond_noise(self, metric: str) -> bool:
        """Return True if the difference is larger than noise; always False with one seed, whatever its interval over images."""
        return len(self.paired) > 1 and self.differences[metric].beyond_noise


@dataclass(frozen=True)
class Summary:
    """A study with its estimates."""

    study: Study
    rows: tuple[SummaryRow, ...]
    """Every variant under every setting, in the order of the study, the baseline of each setting first."""
    measured: tuple[str, ...]
    """Metrics that at least one trial has a number for."""

    def variant_rows(self, setting: str) -> list[SummaryRow]:
        """Return a setting's rows without the baseline."""
        return [row for row in self.rows if row.setting == setting and row.variant != self.study.variants[0]]


def summarise(study: Study) -> Summary:
    """Return the estimates of every variant under every setting."""
    rows = tuple(_row(study, setting, variant) for setting in study.settings for variant in study.variants)
    measured = tuple(name for name in METRICS if any(np.isfinite(trial.metrics[name]) for trial in study.trials))
    return Summary(study, rows, measured)


def best_variant(study: Study) -> str | None:
    """Return the variant with the highest mean AP, and its setting if there are several; None where no AP is known.

    Only variants with the largest number of seeds are compared: with fewer seeds, a mean could win because of the missing seeds.
    """
    rows = [row for row in summarise(study).rows if np.isfinite(row.metrics["AP"].mean)]
    most_seeds = max((len(row.seeds) for row in rows), default=0)
    best = max((row for row in rows if len(row.seeds) == most_seeds), key=lambda row: row.metrics["AP"].mean, default=None)
    return " ".join(filter(None, (best.variant, best.setting))) if best else None


def select_trials(study: Study, setting: str, variant: str) -> list[TrialResult]:
    """Return a variant's trials under a setting, by seed."""
    trials = [trial for trial in study.trials if (trial.setting, trial.variant) == (setting, variant)]
    return sorted(trials, key=lambda trial: trial.seed)


def _row(study: Study, setting: str, variant: str) -> SummaryRow:
    trials = select_trials(study, setting, variant)
    baseline_trials = [] if variant == study.variants[0] else select_trials(study, setting, study.variants[0])
    baseline = {trial.seed: trial for trial in baseline_trials}
    paired = [trial for trial in trials if trial.seed in baseline]
    return SummaryRow(
        setting,
        variant,
        tuple(trial.seed for trial in trials),
        {name: mean_over_seeds([trial.metrics[name] for trial in trials]) for name in METRICS},
        tuple(trial.seed for trial in paired),
        paired_differences(paired, baseline_trials) if paired else {},
        tuple(trial.metrics["AP"] - baseline[trial.seed].metrics["AP"] for trial in paired),
    )


def difference_decimals(summary: Summary) -> int:
    """Return the decimals of all differences in a report."""
    return points_decimals([row.differences["AP"] for row in summary.rows if row.paired])
