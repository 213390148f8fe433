"""Hold what an ablation found, for its statistics and its report.

Numbers are COCO's, 0 to 1, NaN where the validation set has no object that they could be measured on.
Legend: S seeds, R resamples of the validation images, M metrics, A anchors per cell, F = 5 + classes outputs per anchor.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""What variants are compared by, in this order wherever there is an axis M."""


@dataclass(frozen=True)
class Prior:
    """One learned constant of a network, as its operator applies it."""

    place: Literal["align", "refine"]
    level: int
    """Prediction level, 0 is the finest."""
    operator: str
    """add and concat start around 0, multiply and project around 1."""
    values: np.ndarray
    """(channels,) for align; (A, F) for refine: x, y, width, height, objectness, then the classes."""


@dataclass(frozen=True)
class TrialResult:
    """One network that was trained to its end."""

    variant: str
    """Name in `variants.VARIANTS`."""
    setting: str
    """Values of the further dimensions as they are typed, such as `optim.lr=0.01 loss.box=0.1`; empty where there are none."""
    seed: int
    run: str
    """URL of the run folder."""
    metrics: dict[str, float]
    """Every metric of METRICS."""
    resampled: np.ndarray
    """(R, M): the same over resamples of the validation images; resample r draws the same images for every trial of a study."""
    priors: tuple[Prior, ...]
    minutes: float
    """Time that training took."""


@dataclass(frozen=True)
class Failure:
    """One network that could not be trained."""

    variant: str
    setting: str
    seed: int
    run: str
    reason: str


@dataclass(frozen=True)
class Cost:
    """What one variant costs for one image."""

    parameters: int
    """As trained."""
    flops: float
    """As trained: 2 per multiply-add of a convolution, 1 per number that implicit knowledge changes."""
    fused_parameters: int
    """Folded for inference."""
    fused_flops: float
    unfused_ms: float
    """Latency as trained, median over rounds in which all variants take turns."""
    fused_ms: float
    """Latency folded, in the same rounds."""


@dataclass(frozen=True)
class Study:
    """Everything that the report of an ablation tells."""

    variants: tuple[str, ...]
    """Names in `variants.VARIANTS`, the baseline first."""
    settings: tuple[str, ...]
    """Each has a baseline of its own; `("",)` where there are no further dimensions."""
    trials: tuple[TrialResult, ...]
    failures: tuple[Failure, ...]
    costs: dict[str, Cost]
    """By variant, of the first setting; a variant without a finished trial has none."""
    classes: tuple[str, ...]
    summary: dict[str, Any]
    """What was done on what with which command, in the order in which it is told: text, numbers."""
