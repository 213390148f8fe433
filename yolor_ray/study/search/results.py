"""Results of a hyper-parameter search: its trials, their ranking, and the rank correlation of each setting with AP.

Settings have their dotted names, which are the flags of `jobs/train.py`. AP is COCO's, 0 to 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import spearmanr

from yolor_ray.config.search_space import Choice, Range

MIN_RANKED_TRIALS = 8
"""Minimum number of finished trials for a rank correlation."""


@dataclass(frozen=True)
class SearchTrialResult:
    """One trial of a search."""

    values: dict[str, Any]
    """Value of each name of the search space."""
    AP: float | None
    """AP of the best weights of a finished trial, else the last measured AP; None or NaN where AP could not be measured."""
    epochs: int
    """Number of trained epochs."""
    state: Literal["finished", "stopped", "failed"]
    run: str
    """URL of the run folder."""
    reason: str
    """Reason of the failure; empty for a trial that did not fail."""
    minutes: float


def ranked_trials(trials: Sequence[SearchTrialResult], state: str) -> list[tuple[float, SearchTrialResult]]:
    """Return pairs of AP and trial for the measured trials in a state, by descending AP; equal trials keep their order."""
    measured = [(trial.AP, trial) for trial in trials if trial.state == state and trial.AP is not None and math.isfinite(trial.AP)]
    return sorted(measured, key=lambda pair: -pair[0])


def best_trial(trials: Sequence[SearchTrialResult]) -> SearchTrialResult | None:
    """Return the finished trial with the highest AP, or without finished trials the stopped one with the highest AP."""
    ranked = ranked_trials(trials, "finished") or ranked_trials(trials, "stopped")
    return ranked[0][1] if ranked else None


def rank_correlations(trials: Sequence[SearchTrialResult], space: Mapping[str, Choice | Range]) -> dict[str, float]:
    """Return Spearman's correlation with AP of every range over the finished trials, the strongest correlation first.

    The result is empty with fewer than MIN_RANKED_TRIALS finished trials or with a single value of AP. A range with a single value is left
    out.
    """
    finished = ranked_trials(trials, "finished")
    scores = [score for score, _ in finished]
    if len(finished) < MIN_RANKED_TRIALS or len(set(scores)) == 1:
        return {}
    values = {name: [trial.values[name] for _, trial in finished] for name, dimension in space.items() if isinstance(dimension, Range)}
    correlations = {name: float(spearmanr(column, scores).statistic) for name, column in values.items() if len(set(column)) > 1}
    return dict(sorted(correlations.items(), key=lambda pair: -abs(pair[1])))
