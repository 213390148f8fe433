"""Load the models of a list from their URLs."""

from yolor_ray import config
from yolor_ray.serve.catalog.model_list import ModelList, Source
from yolor_ray.serve.engine import Engine, load_version


class ListedModels:
    """Loader of the models of a list."""

    def __init__(self, settings: config.ServeConfig, listed: ModelList) -> None:
        """Keep settings and list; nothing is read."""
        self.names = tuple(listed.urls)
        self._settings, self._listed = settings, listed

    def source(self, name: str, release: str = "") -> Source:
        """Return the weights of a model, or of one of its versions; raises as `ModelList.source` does."""
        return self._listed.source(name, release)

    def load(self, source: Source, engine: str | None = None) -> Engine:
        """Return the engine of weights; raises as `load_version` does."""
        return load_version(self._settings, source.url, source.name, engine)
