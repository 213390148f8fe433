"""Let a searcher propose each run once: two trials must not train in one folder."""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.search import Searcher

MAX_REPEATS = 100
"""Proposals in a row that are known already, after which the space is taken to be used up."""


class UniqueSearcher(Searcher):
    """Pass on what another searcher proposes, but for what it has proposed before."""

    def __init__(self, searcher: Searcher, name_of: Callable[[Mapping[str, Any]], str]) -> None:
        """Take `name_of`, which tells two proposals apart."""
        super().__init__(metric=searcher.metric, mode=searcher.mode)
        self._searcher, self._name_of = searcher, name_of
        self._proposed: set[str] = set()
        self._inner: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Give the space to the other searcher."""
        return self._searcher.set_search_properties(metric, mode, config, **spec)

    def suggest(self, trial_id: str) -> Any:
        """Return the next proposal that is new, or that there is none any more."""
        for attempt in range(MAX_REPEATS):
            inner = f"{trial_id}-{attempt}"
            values = self._searcher.suggest(inner)
            if not isinstance(values, dict):
                return values
            name = self._name_of(values)
            if name not in self._proposed:
                self._proposed.add(name)
                self._inner[trial_id] = inner
                return values
            self._searcher.on_trial_complete(inner, error=True)
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a trial reports."""
        self._searcher.on_trial_result(self._inner[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on how a trial ended."""
        self._searcher.on_trial_complete(self._inner[trial_id], result, error)

    def save(self, checkpoint_path: str) -> None:
        """Save the other searcher, as Tune asks for now and then."""
        self._searcher.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Restore the other searcher."""
        self._searcher.restore(checkpoint_path)
