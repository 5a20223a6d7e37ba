# SPDX-License-Identifier: Apache-2.0
"""A connection between a transport and a turn that are stand-ins; the protocols on it are real."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

from lessor.api.methods import BY_PATH
from lessor.base import limits
from lessor.server.loop.core import Core
from lessor.server.loop.pace import Pace
from lessor.server.loop.unfinished import Unfinished
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.pages import Pages
from lessor.server.transport.connection import Connection
from lessor.server.transport.speak import speak_to_clients
from lessor.wire.h2_keepalive import KeepaliveRules


class Transport:
    def __init__(self) -> None:
        self.reading = True
        self.closed = False
        self.written = b""

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


class Turn:
    """What connections and calls use of a turn. Outcomes leave at once, or go to `held` for the test."""

    def __init__(self) -> None:
        self.overloaded = False
        self.paused: list[Connection] = []
        self.waited_for: set[Connection] = set()  # leases end behind their bytes
        self.to_flush: list[Connection] = []
        self.time_s = 0.0
        self.held: list[Any] | None = None
        self.unread: list[Connection] = []
        self.held_up: set[Connection] = set()
        self.behind: list[Any] = []
        self.step_s = 0.0  # how long a look at the clock takes
        self.scheduled = False

    def shows_no_data(self, connection: Connection) -> None: ...

    def shows_data(self, connection: Connection) -> None: ...

    def now_s(self) -> float:
        self.time_s += self.step_s
        return self.time_s

    read_clock = now_s

    def share_s(self, connection: Connection) -> float:
        return limits.TURN_BYTES_S

    def go_on_later(self, connection: Connection) -> None:
        self.waited_for.add(connection)
        if connection not in self.unread:
            self.unread.append(connection)

    def pause(self, connection: Connection, unread: bool = False) -> None:
        if connection not in self.paused:
            self.paused.append(connection)
        if unread:
            self.waited_for.add(connection)

    def catch_up_later(self, stream: Any) -> None:
        if stream not in self.behind:
            self.behind.append(stream)

    def caught_up(self, connection: Connection) -> None:
        self.waited_for.discard(connection)

    def hold_up(self, connection: Connection, waits: bool) -> None:
        (self.held_up.add if waits else self.held_up.discard)(connection)

    def schedule(self) -> None: ...

    def flush_later(self, connection: Connection) -> None:
        if connection not in self.to_flush:
            self.to_flush.append(connection)

    def after_everything(self, outlet: Any, payload: Any) -> int:
        if self.held is None:
            outlet.deliver(payload)
        else:
            self.held.append((outlet, payload))
        return 0

    after_all_writes = after_everything  # no write is ever under way here

    def end(self) -> None:
        behind, self.behind = self.behind, []
        for stream in behind:
            if stream.catch_up():
                self.catch_up_later(stream)
        to_flush, self.to_flush = self.to_flush, []
        for connection in to_flush:
            connection.flush()
        unread, self.unread = self.unread, []
        for connection in unread:
            connection.go_on()


class Accepted:
    """A connection that was just accepted. To be made inside a running loop."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.transport = Transport()
        core = SimpleNamespace(
            turn=self.turn,
            options=SimpleNamespace(
                message_bytes_max=1_000_000,
                json_values_max=10_000,
                max_txn_ops=limits.TXN_OPS_MAX,
                grpc_keepalive=KeepaliveRules(),
            ),
            metrics=Metrics(),
            auth=SimpleNamespace(enabled=False),
            on_shared_log=False,
            unfinished=Unfinished(1_000_000),
            pages=Pages(self.turn.read_clock),
            body_pace=Pace(cast(Any, self.turn), limits.JSON_VALUES_PER_TURN),
            request_pace=Pace(cast(Any, self.turn), limits.STREAM_REQUESTS_PER_TURN_MAX),
            serves=lambda method: True,
            refuse_stranger=lambda call, request, size_bytes: None,
            refuse_to_keep=lambda call, request: None,
        )
        self.connection = Connection(cast(Core, core), set(), speak_to_clients)
        self.connection.connection_made(cast(Any, self.transport))

    def receive(self, data: bytes) -> None:
        self.connection.data_received(data)


class StreamHandler:
    """Handles a streaming call, and remembers its events."""

    def __init__(self, core: Any, call: Any) -> None:
        self.call = call
        self.seen: list[Any] = []

    def on_messages(self, messages: list[bytes]) -> None:
        self.seen += messages

    def on_requests_end(self) -> None:
        self.seen.append("end")

    def on_over(self) -> None:
        self.seen.append("over")


def serve(peer: Accepted) -> tuple[list[Any], list[StreamHandler]]:
    """Answers unary calls by a small reply; returns the requests and the handlers of the streaming calls."""
    asked: list[Any] = []
    handlers: list[StreamHandler] = []

    def unary(_core: Any, request: Any) -> bytes:
        asked.append(request)
        return b""

    def stream_handler(core: Any, call: Any) -> StreamHandler:
        handlers.append(StreamHandler(core, call))
        return handlers[-1]

    core = cast(Any, peer.connection.core)
    methods = BY_PATH.values()
    core.unary_handlers = dict.fromkeys(methods, unary)
    core.stream_handlers = dict.fromkeys(methods, stream_handler)
    return asked, handlers


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(steps())
