"""Wrapper around a Ray Tune searcher that proposes each run once: two trials must not train in one folder."""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

MAX_REPEATS = 100
"""Repeated proposals in a row after which the search space counts as exhausted."""


class UniqueSearcher(Searcher):
    """Searcher with the proposals of another searcher, without the repeated ones."""

    def __init__(self, searcher: Searcher, name_of: Callable[[Mapping[str, Any]], str]) -> None:
        """Wrap `searcher`; proposals with equal `name_of` are repeats."""
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._searcher, self._name_of = searcher, name_of
        self._proposed_names: set[str] = set()
        self._inner_ids: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Forward the search space to the other searcher."""
        return self._searcher.set_search_properties(metric, mode, config, **spec)

    def suggest(self, trial_id: str) -> Any:
        """Return the next new proposal, or FINISHED when the search space is exhausted."""
        for attempt in range(MAX_REPEATS):
            inner_id = f"{trial_id}-{attempt}"
            values = self._searcher.suggest(inner_id)
            if not isinstance(values, dict):
                return values
            name = self._name_of(values)
            if name not in self._proposed_names:
                self._proposed_names.add(name)
                self._inner_ids[trial_id] = inner_id
                return values
            self._searcher.on_trial_complete(inner_id, error=True)
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Forward a report of a trial."""
        self._searcher.on_trial_result(self._inner_ids[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Forward the end of a trial."""
        self._searcher.on_trial_complete(self._inner_ids[trial_id], result, error)

    def save(self, checkpoint_path: str) -> None:
        """Save the other searcher; Tune calls this method periodically."""
        self._searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Restore the other searcher."""
        self._searcher.restore(checkpoint_path)
