"""Estimate once what Markdown, CSV, JSON and plots of an ablation all tell.

Numbers are COCO's, 0 to 1, NaN where unknown, as in `study`.
"""

from dataclasses import dataclass

import numpy as np

from yolor_ray.study.estimates import Estimate, differences, over_seeds
from yolor_ray.study.results import METRICS, Study, TrialResult
from yolor_ray.study.wording import decimals


@dataclass(frozen=True)
class Row:
    """What one variant did under one setting."""

    setting: str
    variant: str
    seeds: tuple[int, ...]
    """Trained to the end."""
    metrics: dict[str, Estimate]
    """Over the seeds."""
    paired: tuple[int, ...]
    """Seeds that the baseline finished as well; none for the baseline itself."""
    differences: dict[str, Estimate]
    """To the baseline of the same setting, over the paired seeds; empty where there are none."""
    seed_differences: tuple[float, ...]
    """In AP, by paired seed."""

    @property
    def judged(self) -> bool:
        """Noise between seeds and between images is known for the difference in AP."""
        return len(self.paired) > 1 and not np.isnan(self.differences["AP"].low)

    def beyond_noise(self, metric: str) -> bool:
        """Tell whether the difference is larger than noise; one seed cannot say so, however sure its images are."""
        return len(self.paired) > 1 and self.differences[metric].beyond_noise


@dataclass(frozen=True)
class Summary:
    """A study with its estimates."""

    study: Study
    rows: tuple[Row, ...]
    """Every variant under every setting, in the order of the study, the baseline of each setting first."""
    measured: tuple[str, ...]
    """Metrics that at least one trial has a number for."""

    def rows_of(self, setting: str) -> list[Row]:
        """Return a setting's rows but the baseline's."""
        return [row for row in self.rows if row.setting == setting and row.variant != self.study.variants[0]]


def summarise(study: Study) -> Summary:
    """Return the estimates of every variant under every setting."""
    rows = tuple(_row(study, setting, variant) for setting in study.settings for variant in study.variants)
    measured = tuple(name for name in METRICS if any(np.isfinite(trial.metrics[name]) for trial in study.trials))
    return Summary(study, rows, measured)


def best(study: Study) -> str | None:
    """Return the variant, and its setting if there are several, with the highest mean AP; None where no AP is known.

    Only what was trained with as many seeds as any other is compared: a mean over fewer would win by the seeds that it lacks.
    """
    rows = [row for row in summarise(study).rows if np.isfinite(row.metrics["AP"].mean)]
    most = max((len(row.seeds) for row in rows), default=0)
    first = max((row for row in rows if len(row.seeds) == most), key=lambda row: row.metrics["AP"].mean, default=None)
    return " ".join(filter(None, (first.variant, first.setting))) if first else None


def trials_of(study: Study, setting: str, variant: str) -> list[TrialResult]:
    """Return a variant's trials under a setting, by seed."""
    found = [trial for trial in study.trials if (trial.setting, trial.variant) == (setting, variant)]
    return sorted(found, key=lambda trial: trial.seed)


def _row(study: Study, setting: str, variant: str) -> Row:
    trials = trials_of(study, setting, variant)
    is_baseline = variant == study.variants[0]
    others = {} if is_baseline else {trial.seed: trial for trial in trials_of(study, setting, study.variants[0])}
    pairs = [trial for trial in trials if trial.seed in others]
    return Row(
        setting,
        variant,
        tuple(trial.seed for trial in trials),
        {name: over_seeds([trial.metrics[name] for trial in trials]) for name in METRICS},
        tuple(trial.seed for trial in pairs),
        differences(pairs, list(others.values())) if pairs else {},
        tuple(trial.metrics["AP"] - others[trial.seed].metrics["AP"] for trial in pairs),
    )


def difference_decimals(summary: Summary) -> int:
    """Return the decimals of all differences in a report, so that the report writes each of them in one way."""
    return decimals([row.differences["AP"] for row in summary.rows if row.paired])
