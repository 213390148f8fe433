"""Settings files as version 0.1 wrote them, with the setting names of that version."""

from dataclasses import asdict
from typing import Any

from yolor_ray.config import TrainConfig
from yolor_ray.config.renamed import SETTINGS


def former_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the nested settings of a run by the names of version 0.1."""
    settings = asdict(config)
    for old, new in SETTINGS.items():
        section, name = new.split(".")
        settings[section][old.split(".")[1]] = settings[section].pop(name)
    return settings
