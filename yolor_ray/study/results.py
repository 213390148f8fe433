"""Results of an ablation, as its statistics and its report need them.

Metrics are COCO's, 0 to 1, and NaN where the validation set has no object to measure on.
Legend: S seeds, R resamples of the validation images, M metrics, A anchors per cell, F = 5 + classes outputs per anchor.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from yolor_ray.evaluate.against.bootstrap import METRICS as METRICS


@dataclass(frozen=True)
class Prior:
    """One learned constant of a network, as its operator applies the constant."""

    role: Literal["align", "refine"]
    level: int
    """Prediction level; 0 is the finest."""
    operator: str
    """add and concat start around 0, multiply around 1."""
    values: np.ndarray
    """(channels,) for align, under project the length of the part of z that acts on each channel; (A, F) for refine: x, y, width, height,
    objectness with anchors, or left, top, right, bottom without anchors, then the classes. NaN where another operator acts."""


@dataclass(frozen=True)
class TrialResult:
    """One finished trial of an ablation."""

    variant: str
    """Name in `config.variants.VARIANTS`."""
    setting: str
    """Values of the further dimensions as command-line text, such as `optim.lr=0.01 loss.box=0.1`; empty without further dimensions."""
    seed: int
    run: str
    """URL of the run folder."""
    metrics: dict[str, float]
    """Value of each metric of METRICS."""
    resampled: np.ndarray
    """(R, M): METRICS on resamples of the validation images; resample r draws the same images for every trial of a study."""
    priors: tuple[Prior, ...]
    minutes: float
    """Training time."""


@dataclass(frozen=True)
class Failure:
    """One trial that failed."""

    variant: str
    setting: str
    seed: int
    run: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """Cost of one variant for one image."""

    parameters: int
    """As trained."""
    flops: float
    """As trained: 2 per multiply-add of a convolution, 1 per number that implicit knowledge changes."""
    fused_parameters: int
    """Fused for inference."""
    fused_flops: float
    unfused_ms: float
    """Latency as trained: median over interleaved rounds of all variants."""
    fused_ms: float
    """Latency fused, in the same rounds."""


@dataclass(frozen=True)
class Study:
    """Content of an ablation's report."""

    variants: tuple[str, ...]
    """Names in `config.variants.VARIANTS`, the baseline first."""
    settings: tuple[str, ...]
    """Settings of the further dimensions, each with its own baseline; `("",)` without further dimensions."""
    trials: tuple[TrialResult, ...]
    failures: tuple[Failure, ...]
    costs: dict[str, Cost]
    """Cost by variant under the first setting; a variant without a finished trial is absent."""
    classes: tuple[str, ...]
    summary: dict[str, Any]
    """Data, schedule, command and commit in the order of the report: text or numbers."""
