"""Ask a Ray cluster whether it lets everyone in, and whether it lets this process in, before anything joins it.

Whoever reaches an open cluster runs code on it, with its rights in S3.
"""

import logging
import os

import grpc
from ray._common.tls_utils import load_certs_from_env
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import AuthenticationError

from yolor_ray.errors import ConfigError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""What a cluster's head answers to anyone who may ask it anything, and to nobody else."""


def check_access(address: str, allow_unauthenticated: bool = False) -> None:
    """Refuse a cluster that does not answer, that refuses this process, or, unless allowed, that lets everyone in.

    The cluster itself is asked, without a token: what this process has in RAY_AUTH_MODE says nothing about it, because an open
    cluster lets in clients with a token too.

    Args:
        address: what RAY_ADDRESS holds, HOST:PORT or `auto`.
        allow_unauthenticated: only warn of an open cluster.

    Raises:
        ConfigError: no cluster answers there, it refuses this process's token or there is none, or it is open to everyone.

    """
    head = None if address.startswith("ray://") else _head(address)
    # Ray Client has a server of its own, which answers strangers whatever the cluster does.
    found = "Ray Client, which cannot tell whether the cluster asks for a token" if head is None else _how_open(head, address)
    if found and not allow_unauthenticated:
        raise ConfigError(
            f"RAY_ADDRESS: found {found} at {address!r}, expected token authentication: start Ray on every node with "
            "RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN (`openssl rand -hex 32`), export both here, or say --cluster.allow_unauthenticated"
        )
    if found:
        log.warning("event=open_cluster address=%s found=%r", address, found)
    if head is not None:
        _check_token(head, address)


def _head(address: str) -> str:
    """Return HOST:PORT of the cluster's head."""
    try:
        head = canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as error:
        # OSError: the host has no address, or with `auto` no cluster runs on this machine.
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected HOST:PORT of a running cluster: {error}") from error
    if head is None:
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected a running cluster on this machine")
    return head


def _how_open(head: str, address: str) -> str:
    """Return what is open about a cluster, nothing if it asks for a token."""
    status, detail = _ask(_channel_without_token(head))
    if status is grpc.StatusCode.OK:
        return "a cluster that lets everyone in"
    if status is not grpc.StatusCode.UNAUTHENTICATED:
        # The dashboard's address, http://HOST:8265, is for `ray job submit` alone.
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected a running cluster's HOST:PORT: {detail}")
    return ""


def _check_token(head: str, address: str) -> None:
    """Raise ConfigError if the cluster refuses this process, or if this process is to show a token and has none."""
    try:
        # Ray itself would try for 20 s before it said so.
        if _ask(init_grpc_channel(head, options=GLOBAL_GRPC_OPTIONS))[0] is not grpc.StatusCode.UNAUTHENTICATED:
            return
        fault = f"a cluster at {address!r} that refuses this process (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'unset')})"
    except AuthenticationError as error:
        # Its first sentence says where no token was found; the others are advice.
        fault = f"no token for the cluster at {address!r} ({str(error).partition('. ')[0]})"
    expected = "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    raise ConfigError(f"RAY_ADDRESS: found {fault}, expected {expected}")


def _ask(channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
    """Return how a head answers, and its words where it does not answer well; closes the channel."""
    try:
        channel.unary_unary(CHECK_ALIVE)(b"", timeout=CONNECT_TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code(), error.details()
    finally:
        channel.close()
    return grpc.StatusCode.OK, ""


def _channel_without_token(head: str) -> grpc.Channel:
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(head, options=GLOBAL_GRPC_OPTIONS)
    certificate, key, authority = load_certs_from_env()
    return grpc.secure_channel(head, grpc.ssl_channel_credentials(authority, key, certificate), options=GLOBAL_GRPC_OPTIONS)
