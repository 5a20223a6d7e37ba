# SPDX-License-Identifier: Apache-2.0
"""The parts of a running server that every call works on, and the rights of callers.

Laws
- A core gets all its parts when it is made. It has no behaviour of its own but the questions about callers below.
- It knows neither what an RPC does (services/) nor how a call came in (transport/). The handlers of services/ are parts
  like others; call.py, which calls them, has their types.

The life of a call is in call.py.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.server.loop.committer import Committer
from lessor.server.loop.long_reply import LongReplies
from lessor.server.loop.release import Gate
from lessor.server.loop.turn import Turn
from lessor.server.loop.unfinished import Unfinished
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.pages import Pages
from lessor.server.options import Options
from lessor.state import permissions
from lessor.state.machine import StateMachine
from lessor.state.permissions import Caller, Claimed


class Credentials(Protocol):
    """The part of a call that says who makes it."""

    @property
    def token(self) -> bytes | None:
        """The metadata or header field with the caller's token, as it came."""
        ...

    @property
    def peer_common_name(self) -> str | None:
        """The common name in the client certificate of the connection, where that was verified and counts."""
        ...


class KnowsTokens(Protocol):
    """Finds the caller of a token."""

    def caller(self, token: str, revision: int) -> Caller | None:
        """The token's user; None for a token that is not, or no more, good. `revision`: of the auth data now."""
        ...


class WatchesProgress(Protocol):
    """A watch stream, as the timer of progress notifications and the metrics see it."""

    def notify_progress(self) -> None: ...

    def behind(self) -> tuple[int, int]:
        """How many of its watchers lag, and how many revisions they have not been sent, added up."""
        ...


class Handlers(NamedTuple):
    """The handler of each method that is served, by kind: UnaryHandler, WaitingHandler, StreamFactory of call.py."""

    unary: Mapping[Method, Callable[..., Any]]
    waiting: Mapping[Method, Callable[..., Any]]
    streams: Mapping[Method, Callable[..., Any]]


class Core:
    """The parts, as main.py put them together. Loop thread only."""

    def __init__(
        self,
        options: Options,
        machine: StateMachine,
        gate: Gate,
        turn: Turn,
        committer: Committer,
        metrics: Metrics,
        tokens: KnowsTokens,
        handlers: Handlers,
    ) -> None:
        self.options = options
        self.machine = machine
        self.auth = machine.auth
        self.gate = gate
        self.turn = turn
        self.committer = committer
        self.metrics = metrics
        self.tokens = tokens
        self.unary_handlers, self.waiting_handlers, self.stream_handlers = handlers
        self.pages = Pages()
        self.watch_streams: set[WatchesProgress] = set()
        self.long_replies = LongReplies()
        self.unfinished = Unfinished(options.message_bytes_max)
        self._tasks: set[asyncio.Task[Any]] = set()  # a loop holds its tasks weakly

    def serves(self, method: Method) -> bool:
        """Whether there is a handler of any kind."""
        return method in self.unary_handlers or method in self.stream_handlers or method in self.waiting_handlers

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs a coroutine in a task that is kept until it ends. It must not raise."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the rights of callers: the one place where calls meet state/permissions.py ---

    def permit(self, call: Credentials, request: Message) -> None:
        """Raises EtcdError unless the caller may make the request. Ask only while `auth.enabled`, to save the cost."""
        self.permit_claimed(self.claimed(call), request)

    def permit_claimed(self, claimed: Claimed, request: Message) -> None:
        """The same for a caller who was found before, for a call that goes on after a while."""
        permissions.check(self.machine, claimed, request, self.options.max_request_bytes)

    def claimed(self, call: Credentials) -> Claimed:
        """The caller: by its token, or else by the client's certificate. An EtcdError for a bad token."""
        token = call.token
        if token is not None:
            text = token.decode("latin-1").removeprefix("Bearer ")
            return self.tokens.caller(text, self.auth.revision) or errors.INVALID_AUTH_TOKEN.error()
        name = call.peer_common_name
        return None if name is None else Caller(name, self.auth.revision)

    # --- headers ---

    def durable_header_field(self) -> bytes:
        """The header of a reply that does not wait at the gate, as its field 1: it names the durable revision."""
        return self.machine.header_field(self.turn.durable_revision)

    def header(self, revision: int) -> rpc_pb2.ResponseHeader:
        """A response header as of `revision`."""
        header = self.machine.header()
        header.revision = revision
        return header
