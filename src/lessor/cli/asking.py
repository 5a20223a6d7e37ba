# SPDX-License-Identifier: Apache-2.0
"""How a command asks a server: opens a client, makes the calls, turns their errors into a `Failure`.

Laws
- The client library is imported here, when a command has something to ask, and not before.
- A command that makes calls one after another asks with `ask_once`: without an event loop, whose import takes as long
  as all the rest of such a command.
"""

import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from lessor.base.errors import EtcdError
from lessor.cli.failure import BAD_ARGS, BAD_CONNECTION, ERROR, Failure
from lessor.cli.options import Settings

if TYPE_CHECKING:
    import ssl

    from lessor.client import AsyncClient, ClientError
    from lessor.client._finite import FiniteCalls

T = TypeVar("T")

# By `Trouble`: which flag mends it.
_MENDS = {
    "maybe tls": "if it speaks TLS, write https:// before the endpoint, and name its authority with --cacert; otherwise"
    " a server's log says why it closes connections, for instance for lack of open files",
    "no tls": "write http:// before the endpoint, and leave out --cacert, --cert, --key and --insecure-transport=false",
    "maybe no tls": "if it speaks no TLS, write http:// before the endpoint",
    "unknown ca": "name its authority with --cacert",
    "wrong name": "write the endpoint with a name that is in its certificate",
    "own certificate": "show it another one with --cert and --key",
}

# Go's gRPC, and so etcdctl, raises a shorter --keepalive-time to this, and takes a --keepalive-timeout of 0 for 20 s.
PING_AFTER_S_MIN = 10.0
PING_ANSWER_S = 20.0
NEVER_S = 100_000_000.0  # three years


def ask(
    settings: Settings,
    question: "Callable[[AsyncClient], Awaitable[T]]",
    *,
    exit_code: int = ERROR,
    failed_to: str = "",
) -> T:
    """Runs `question` with a connected client and returns its result.

    Failure with `exit_code` when the server refuses or cannot be reached; `failed_to` names the failed work ("grant
    lease") for the errors in which etcdctl names it.
    """

    async def answered() -> T:
        async with client_of(settings) as client:
            return await question(client)

    def run_it() -> T:
        from lessor.client import run  # a slow import: a command that is refused for its arguments does not wait for it

        return run(answered())

    return _asked(settings, run_it, exit_code, failed_to)


def ask_once(
    settings: Settings,
    question: "Callable[[FiniteCalls], Coroutine[Any, Any, T]]",
    *,
    exit_code: int = ERROR,
    failed_to: str = "",
) -> T:
    """As `ask`, for calls one after another that end by themselves: those of `FiniteCalls`."""

    def run_it() -> T:
        from lessor.client._blocking import at_once, blocking_calls

        calls = blocking_calls(settings.command_timeout_s, **_identity(settings), **_channel(settings))

        async def answered() -> T:
            try:
                return await question(calls)
            finally:
                await calls.channel.aclose()

        return at_once(answered())

    return _asked(settings, run_it, exit_code, failed_to)


def _asked(settings: Settings, run_it: Callable[[], T], exit_code: int, failed_to: str) -> T:
    from lessor.client import ClientError, InvalidCertificate, InvalidEndpoint, LoginFailed

    if settings.debug:
        print(settings, file=sys.stderr)
    try:
        return run_it()
    except InvalidCertificate as error:
        raise Failure(BAD_ARGS, str(error)) from None
    except InvalidEndpoint as error:
        raise Failure(BAD_CONNECTION, str(error)) from None
    except LoginFailed as error:
        raise Failure(BAD_CONNECTION, words(error)) from None
    except ClientError as error:
        text = words(error)
        raise Failure(exit_code, f"failed to {failed_to} ({text})" if failed_to else text) from error


def client_of(settings: Settings) -> "AsyncClient":
    """A client with these settings. To be used within `ask`, which turns its errors into a Failure."""
    from lessor.client import AsyncClient

    return AsyncClient(timeout_s=settings.command_timeout_s, **_identity(settings), **_channel(settings))


def _identity(settings: Settings) -> dict[str, Any]:
    return {"user": settings.user, "password": settings.password, "token": settings.token}


def _channel(settings: Settings) -> dict[str, Any]:
    if 0 < settings.max_recv_bytes < settings.max_request_bytes:
        limits = f"recv limit ({settings.max_recv_bytes} bytes)", f"send limit ({settings.max_request_bytes} bytes)"
        raise Failure(BAD_CONNECTION, f"gRPC message {limits[0]} must be greater than {limits[1]}")
    return {
        "endpoints": settings.endpoints,
        "connect_timeout_s": settings.dial_timeout_s,
        "ssl": tls_of(settings),
        "server_name": settings.server_name,
        "request_bytes_max": max(settings.max_request_bytes, 0) or None,
        "reply_bytes_max": max(settings.max_recv_bytes, 0) or None,
        "ping_after_s": max(settings.keepalive_time_s, PING_AFTER_S_MIN) if settings.keepalive_time_s > 0 else NEVER_S,
        "ping_answer_s_max": settings.keepalive_timeout_s if settings.keepalive_timeout_s > 0 else PING_ANSWER_S,
    }


def tls_of(settings: Settings) -> "ssl.SSLContext | None":
    """The context for TLS; None when no flag asks for one: then https:// servers need a trusted certificate."""
    files = (settings.cacert, settings.cert, settings.key)
    if not any(files) and settings.insecure_transport and not settings.insecure_skip_tls_verify:
        return None
    from lessor.client import tls_context

    cacert, cert, key = files
    return tls_context(ca_file=cacert, cert_file=cert, key_file=key, verify=not settings.insecure_skip_tls_verify)


def words(error: "ClientError") -> str:
    """An error for people: the server's own words, or what happened to the connection and what to do about it."""
    from lessor.client import CallTimeout, ConnectionLost, ServerError

    if isinstance(error, ServerError):
        # What etcdctl does not know as an error of etcd's it prints as Go's gRPC does.
        known = error.message.startswith("etcdserver: ")
        return error.message if known else EtcdError(error.code, error.message).go_text
    if isinstance(error, CallTimeout):
        # etcdctl's words first: scripts look for them.
        maybe = "it may have taken effect; " if error.outcome_unknown else ""
        return f"context deadline exceeded: {error}; {maybe}allow more with --command-timeout"
    if error.outcome_unknown:
        return f"{error}; it may have taken effect: look before you repeat it"
    if isinstance(error, ConnectionLost) and error.trouble:
        return f"{error.what}; {_MENDS[error.trouble]}"
    if isinstance(error, ConnectionLost) and error.taken:
        return f"{error}; a server's log says why it closes connections, for instance for lack of open files"
    if isinstance(error, ConnectionLost):
        return f"{error}; is a server running there? --endpoints names another"
    return str(error)
