"""A stop-signal actor of a study in this process, for tests without Ray."""

from types import SimpleNamespace


class StopActor:
    """A stop-signal actor whose methods answer at once; `reason` is its answer."""

    def __init__(self, reason: str = "") -> None:
        self.stopped: set[str] = set()
        self.told: list[str] = []
        self.answers = {"reason": reason, "stopped_trials": self.stopped}

    def __getattr__(self, name: str) -> SimpleNamespace:
        calls = {"add_stopped_trial": self.stopped.add, "stop": self.told.append}
        return SimpleNamespace(remote=calls.get(name, lambda: self.answers[name]))
