"""Hold what a hyper-parameter search tried, put its trials in order and compare ranks.

Settings stand under their dotted names, which are the flags of `jobs/train.py`. AP is COCO's, 0 to 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import spearmanr

from yolor_ray.config.search_space import Choice, Range

LEAST_TRIALS = 8
"""Fewest finished trials whose ranks are worth comparing."""


@dataclass(frozen=True)
class SearchTrialResult:
    """One trial of a search."""

    values: dict[str, Any]
    """What was chosen for it: a value for each name of the search space."""
    AP: float | None
    """Of its best weights if it finished, else what it measured last; None or NaN where it could not be measured."""
    epochs: int
    """How many it trained."""
    state: Literal["finished", "stopped", "failed"]
    run: str
    """URL of the run folder."""
    reason: str
    """Why it failed; empty if it did not."""
    minutes: float


def measured(tried: Sequence[SearchTrialResult], state: str) -> list[tuple[float, SearchTrialResult]]:
    """Return the trials in a state that have an AP, with it, the best first and of equals the earliest."""
    found = [(trial.AP, trial) for trial in tried if trial.state == state and trial.AP is not None and math.isfinite(trial.AP)]
    return sorted(found, key=lambda pair: -pair[0])


def best(tried: Sequence[SearchTrialResult]) -> SearchTrialResult | None:
    """Return the trial with the highest AP of those that finished, or of those that were stopped if none did."""
    found = measured(tried, "finished") or measured(tried, "stopped")
    return found[0][1] if found else None


def rank_correlations(tried: Sequence[SearchTrialResult], space: Mapping[str, Choice | Range]) -> dict[str, float]:
    """Return Spearman's correlation with AP of every range over the finished trials, the strongest first.

    There is none where fewer than LEAST_TRIALS finished, or where all have the same value or the same AP.
    """
    finished = measured(tried, "finished")
    scores = [score for score, _ in finished]
    if len(finished) < LEAST_TRIALS or len(set(scores)) == 1:
        return {}
    values = {name: [trial.values[name] for _, trial in finished] for name, dimension in space.items() if isinstance(dimension, Range)}
    found = {name: float(spearmanr(column, scores).statistic) for name, column in values.items() if len(set(column)) > 1}
    return dict(sorted(found.items(), key=lambda pair: -abs(pair[1])))
