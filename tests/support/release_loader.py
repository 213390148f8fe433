"""Loader of named models with release folders, whose versions detect a red rectangle."""

import threading
from dataclasses import replace

from fake_loader import MB, FakeLoader
from yolor_ray.io.release_folder import Event, ReleaseFolder, starting_version
from yolor_ray.serve.catalog.model_list import Source

V1, V2, V3 = "0001-aaaaaaaaaaaa", "0002-bbbbbbbbbbbb", "0003-cccccccccccc"


class ReleaseLoader(FakeLoader):
    """Loader of models, of which some have releases; `release_gate` holds up the loads of versions beside the one that answers."""

    def __init__(self):
        super().__init__()
        self.folders = {}
        self.versions = {}
        """Engine of each version, or the error of its load, by name and version."""
        self.release_gate = threading.Event()
        self.release_gate.set()

    def follow(self, name, root, engine):
        """Give a model a release folder with its first version, and return the folder."""
        self.folders[name] = ReleaseFolder(f"{root}/{name}")
        self.release(name, V1, engine)
        self.engines[name] = engine
        return self.folders[name]

    def release(self, name, version, engine, size_mb=10, **options):
        if not isinstance(engine, Exception):
            engine.info = replace(engine.info, name=name, version=f"{name}-{version[:4]}")
        self.versions[name, version] = engine
        self.sizes[version, name] = size_mb * MB
        self.folders[name].add(Event("release", version, **options))

    def source(self, name, release=""):
        if name not in self.folders:
            return super().source(name)
        url = self.folders[name].url
        release = release or starting_version(ReleaseFolder(url))
        return Source(name, f"{url}/{release}", self.sizes[release, name], release, url)

    def load(self, source, engine=None):
        if not source.release:
            return super().load(source, engine)
        self.loads.append((source.name, source.release))
        assert source.release == V1 or self.release_gate.wait(20)
        loaded = self.versions[source.name, source.release]
        if isinstance(loaded, Exception):
            raise loaded
        return loaded
