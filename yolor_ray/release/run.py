"""Release weights into a release folder, from which running services take them, or go back to the version before.

This job only writes to the folder. The services load, compare and judge a version themselves: see `serve/rollout/`.
"""

import logging
from typing import Any

from yolor_ray.config import ReleaseConfig
from yolor_ray.errors import ConfigError, UserError
from yolor_ray.inference.models import load_model
from yolor_ray.io import manifest, storage
from yolor_ray.io.release_folder import Event, ReleaseFolder
from yolor_ray.io.weights_url import BUILTIN, CONFIG_FILE, weights_folder

logger = logging.getLogger(__name__)


def release(config: ReleaseConfig) -> dict[str, Any]:
    """Release a version, or go back to the version before; return `version`, the version `before` (None for the first) and the folder `to`.

    Raises:
        ConfigError: `to` is a folder of weights, or there is no version to go back to.
        StorageError: weights or folder cannot be read or written.
        WeightsError: the weights are incomplete or do not fit the network.
    """
    folder = ReleaseFolder(storage.absolute(config.to).rstrip("/"))
    if manifest.is_published(folder.url) or storage.exists(storage.join(folder.url, CONFIG_FILE)):
        raise ConfigError(f"to: found a folder of weights or of a run, {folder.url}, expected a release folder, or one that is empty")
    version, before = _go_back(folder) if config.back else _publish(folder, config)
    logger.info("event=version_released version=%s before=%s to=%s", version, before, folder.url)
    return {"version": version, "before": before, "to": folder.url}


def _publish(folder: ReleaseFolder, config: ReleaseConfig) -> tuple[str, str | None]:
    """Copy the weights or the export, check the copy, and release it; return its name and the version before."""
    if config.weights == BUILTIN:
        raise ConfigError(f"weights: found {BUILTIN}, expected the URL of a weights folder: every installation has the built-in weights")
    url = weights_folder(storage.absolute(config.weights))
    target = folder.read().target
    version = folder.publish(manifest.read_published(url))
    try:
        load_model(folder.version_url(version))
    except UserError:
        storage.delete(folder.version_url(version))
        raise
    folder.add(Event("release", version, allow_changes=config.allow_changes))
    return version, target.version if target else None


def _go_back(folder: ReleaseFolder) -> tuple[str, str]:
    """Return to the version before the present one; return its name and the name of the present one."""
    releases = folder.read()
    target = releases.target
    version = releases.before(target.version) if target else None
    if target is None or version is None:
        found = f"no version before {target.version}" if target else "no version"
        raise ConfigError(f"back: found {found} in {folder.url}, expected one that is not rejected")
    if not manifest.is_published(folder.version_url(version)):
        raise ConfigError(f"back: found no weights in {folder.version_url(version)}, expected those of the version before {target.version}")
    folder.add(Event("back", version))
    return version, target.version
