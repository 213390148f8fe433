"""Check the authentication of a Ray cluster before a process joins it.

Whoever can reach an unauthenticated cluster can run code on it, with the cluster's rights in S3.
"""

import logging
import os

import grpc
from ray.exceptions import AuthenticationError

from yolor_ray.cluster.ray_internals import (
    CHECK_ALIVE,
    GLOBAL_GRPC_OPTIONS,
    canonicalize_bootstrap_address,
    init_grpc_channel,
    load_certs_from_env,
)
from yolor_ray.errors import ConfigError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0


def check_access(address: str, allow_unauthenticated: bool = False) -> None:
    """Refuse a cluster that does not answer, that rejects this process, or that has no authentication.

    The first request to the cluster's head carries no token. RAY_AUTH_MODE of this process proves nothing about the cluster, because
    an unauthenticated cluster accepts clients with a token too.

    Args:
        address: value of RAY_ADDRESS, HOST:PORT or `auto`.
        allow_unauthenticated: log a warning about an unauthenticated cluster instead of refusing it.

    Raises:
        ConfigError: no cluster answers at the address, the cluster rejects this process's token, this process has no token, or
            the cluster has no authentication.

    """
    # Ray Client has a server of its own, which answers clients without a token even where the cluster's head does not.
    head = None if address.startswith("ray://") else _head_address(address)
    fault = "Ray Client, which cannot tell whether the cluster asks for a token" if head is None else _missing_authentication(head, address)
    if fault and not allow_unauthenticated:
        raise ConfigError(
            f"RAY_ADDRESS: found {fault} at {address!r}, expected token authentication: start Ray on every node with RAY_AUTH_MODE=token "
            "and one RAY_AUTH_TOKEN (`openssl rand -hex 32`), export both here, or pass --cluster.allow_unauthenticated"
        )
    if fault:
        logger.warning("event=unauthenticated_cluster address=%s fault='%s'", address, fault)
    if head is not None:
        _check_token(head, address)


def _head_address(address: str) -> str:
    """Return HOST:PORT of the cluster's head."""
    try:
        head = canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as error:
        # OSError: the host name does not resolve, or with `auto` no cluster runs on this machine.
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected HOST:PORT of a running cluster: {error}") from error
    if head is None:
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected a running cluster on this machine")
    return head


def _missing_authentication(head: str, address: str) -> str:
    """Return the fault of a cluster without authentication; empty for a cluster that asks for a token."""
    status, detail = _check_alive(_channel_without_token(head))
    if status is grpc.StatusCode.OK:
        return "a cluster without authentication"
    if status is not grpc.StatusCode.UNAUTHENTICATED:
        # The dashboard's address, http://HOST:8265, is for `ray job submit` alone.
        raise ConfigError(f"RAY_ADDRESS: found {address!r}, expected a running cluster's HOST:PORT: {detail}")
    return ""


def _check_token(head: str, address: str) -> None:
    """Raise ConfigError if the cluster rejects this process, or if RAY_AUTH_MODE is token and this process has no token."""
    try:
        # ray.init() would retry for 20 s before it reports a rejected token.
        if _check_alive(init_grpc_channel(head, options=GLOBAL_GRPC_OPTIONS))[0] is not grpc.StatusCode.UNAUTHENTICATED:
            return
        fault = f"a cluster at {address!r} that refuses this process (RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'unset')})"
    except AuthenticationError as error:
        # The first sentence of the error names the places without a token; the other sentences are advice.
        fault = f"no token for the cluster at {address!r} ({str(error).partition('. ')[0]})"
    expected = "RAY_AUTH_MODE=token and the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    raise ConfigError(f"RAY_ADDRESS: found {fault}, expected {expected}")


def _check_alive(channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
    """Return the status of a head's answer, and the details of an error; closes the channel."""
    try:
        channel.unary_unary(CHECK_ALIVE)(b"", timeout=CONNECT_TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code(), error.details()
    finally:
        channel.close()
    return grpc.StatusCode.OK, ""


def _channel_without_token(head: str) -> grpc.Channel:
    """Open a channel as Ray does, with TLS where RAY_USE_TLS asks for it, but without a token."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(head, options=GLOBAL_GRPC_OPTIONS)
    certificate, key, authority = load_certs_from_env()
    return grpc.secure_channel(head, grpc.ssl_channel_credentials(authority, key, certificate), options=GLOBAL_GRPC_OPTIONS)
