"""Loader of named models whose engines detect a red rectangle."""

import threading
from dataclasses import replace

from red_engine import RedEngine
from yolor_ray.serve.catalog.model_list import Source

MB = 10**6
NAMES = ("cars", "cats", "dogs", "cows")
"""Names of the models; the first one is the default."""


def engine_of(name):
    """Return an engine whose one class is the singular of its name."""
    engine = RedEngine((name[:-1],))
    engine.info = replace(engine.info, name=name, version=f"{name}-version")
    return engine


class FakeLoader:
    """Loader of engines, each of 10 MB; `errors` has those that are raised, and a load waits while `gate` is cleared."""

    def __init__(self, names=NAMES):
        self.names = names
        self.engines = {name: engine_of(name) for name in names}
        self.sizes = dict.fromkeys(names, 10 * MB)
        self.errors = {}
        self.loads = []
        self.gate = threading.Event()
        self.gate.set()

    def source(self, name, release=""):
        return Source(name, f"weights/{name}", self.sizes[name])

    def load(self, source, engine=None):
        self.loads.append((source.name, engine))
        assert self.gate.wait(20)
        if source.name in self.errors:
            raise self.errors[source.name]
        return self.engines[source.name]
