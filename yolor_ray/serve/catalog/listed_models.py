"""Load the models of a list from their URLs."""

from yolor_ray import config
from yolor_ray.serve.catalog.model_list import ModelList
from yolor_ray.serve.engine import Engine, load_version


class ListedModels:
    """Loader of the models of a list."""

    def __init__(self, settings: config.ServeConfig, listed: ModelList) -> None:
        """Keep settings and list; nothing is read."""
        self.names = tuple(listed.urls)
        self._settings, self._listed = settings, listed

    def size_bytes(self, name: str) -> int:
        """Return the bytes of the files of a model; raises as `ModelList.size_bytes` does."""
        return self._listed.size_bytes(name)

    def load(self, name: str, engine: str | None = None) -> Engine:
        """Return the engine of a model; raises as `load_version` and `ModelList.folder` do."""
        return load_version(self._settings, self._listed.folder(name), name, engine)
