"""Check a service against the applications that the Ray Serve of a cluster runs already.

Ray Serve has one address for all applications of a cluster, which the first of them chooses. Ray replaces an application of the same name
without a word, and ignores another address.
"""

from collections.abc import Mapping
from typing import Any

from yolor_ray import config
from yolor_ray.errors import ConfigError

REPLACEABLE = ("DEPLOY_FAILED", "NOT_STARTED")
"""States of an application that serves nobody."""


def check_beside(settings: config.ServeConfig, http_options: Any, applications: Mapping[str, tuple[str, str | None]]) -> None:
    """Refuse an address that Ray Serve will not open, and a name or a prefix that another application has.

    Args:
        settings: settings of the service.
        http_options: `ray.serve.config.HTTPOptions` of the Ray Serve that runs.
        applications: status and route prefix of each application, by name.

    Raises:
        ConfigError: the service would not be reachable, or would replace an application.
    """
    for name in ("host", "port"):
        wanted, there = getattr(settings, name), getattr(http_options, name)
        if wanted != there:
            reason = "Ray Serve of this cluster listens there already"
            raise ConfigError(
                f"{name}: found {wanted}, expected {there}, because {reason}: give --host {http_options.host} --port {http_options.port}"
            )
    if (settings.tls_cert or None) != http_options.ssl_certfile:
        expected = http_options.ssl_certfile or "none"
        raise ConfigError(f"tls_cert: found {settings.tls_cert or 'none'}, expected {expected}, as Ray Serve of this cluster was started")
    live = {name: (status, prefix) for name, (status, prefix) in applications.items() if status not in REPLACEABLE}
    if settings.name in live:
        status, names = live[settings.name][0], ", ".join(sorted(live))
        expected = f"a name of its own beside {names}: give --name and --prefix, or stop the other one first"
        raise ConfigError(f"name: found {settings.name}, an application of this cluster ({status}), expected {expected}")
    owners = {prefix: name for name, (_, prefix) in live.items()}
    if settings.prefix in owners:
        taken = ", ".join(sorted(filter(None, owners)))
        raise ConfigError(
            f"prefix: found {settings.prefix}, that of the application {owners[settings.prefix]}, expected another than {taken}"
        )
