# SPDX-License-Identifier: Apache-2.0
"""A streaming call of the JSON gateway over a WebSocket: each line of the stream is a message of its own.

The call itself is the `JsonStream` of http_calls.py, which sees an exchange like any other. If a call fails, the error
is sent in a message, as on any stream, and the code of the close frame shows it again.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lessor.api.methods import BY_ROUTE, Method
from lessor.base.errors import EtcdError
from lessor.gateway.routes import Headers, error_answer
from lessor.server.loop.call import Waiting
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.transport.http_calls import CLIENT_API_VERSION, JsonStream, timeout_of
from lessor.wire import h1, websocket


class Carrier(Protocol):
    """The connection below a WebSocket. An HTTP/1.1 session is one."""

    core: Core
    waiting_for_drain: set[Any]

    @property
    def backlog_bytes(self) -> int: ...

    @property
    def address(self) -> str:
        """The peer's, see peer_address.py."""
        ...

    def flush_later(self) -> None: ...

    def hold_up(self, waits: bool, unfinished_bytes: int, /) -> None: ...


def streaming_method(core: Core, exchange: h1.Request) -> Method | None:
    """The method that a request for a WebSocket calls; None for any other request, and for unary methods."""
    if not websocket.wants_websocket(exchange):
        return None
    method = BY_ROUTE.get(exchange.path)
    return method if method is not None and not method.unary and core.serves(method) else None


class WebSocketCall:
    """One call, and the exchange of its JsonStream. `method` is POST, whatever the method of the request was."""

    method = "POST"

    def defer(self, size_bytes: int, go_on: Callable[[], None], wait: Callable[[Waiting], None]) -> bool:
        return False  # there is one call on the connection

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return False

    def __init__(self, session: Carrier, exchange: h1.Request, method: Method, opened: websocket.WebSocket) -> None:
        self._session = session
        self.held = Held(session.address)  # a streaming call holds no reply here
        self._ws = opened
        self._started = False
        self.path = exchange.path
        self.query = exchange.query
        self.exchange = exchange
        self._body: JsonStream | None = None
        try:
            timeout_s = timeout_of(self)
            counts = session.core.metrics.calls(method, CLIENT_API_VERSION)
            self._body = JsonStream(session.core, self, counts, timeout_s)
        except EtcdError as error:
            self.reply(*error_answer(error))

    def header(self, name: bytes, /) -> bytes | None:
        """A header of the request that opened the WebSocket. A token in its subprotocols counts as `authorization`."""
        if name == b"authorization" and self._ws.token is not None:
            return b"Bearer " + self._ws.token
        return self.exchange.get(name)

    # from the connection

    def receive(self, data: bytes) -> None:
        self._take(self._ws.receive(data))

    def go_on(self) -> None:
        """While `unread`: takes the next step through the frames."""
        self._take(self._ws.go_on())

    @property
    def unread(self) -> bool:
        return self._ws.unread and not self._ws.closing

    def _take(self, pieces: Iterator[bytes]) -> None:
        for piece in pieces:
            if self._body is not None:
                self._body.on_body(piece)
        if self._ws.closing:
            self.gone()
        self._session.flush_later()

    @property
    def unfinished_bytes(self) -> int:
        """The bytes kept of a message that has not come in whole."""
        return self._body.unfinished_bytes if self._body is not None else 0

    def gone(self) -> None:
        """The peer has closed the WebSocket, or vanished."""
        body, self._body = self._body, None
        if body is not None:
            body.gone()

    def end(self, error: EtcdError) -> None:
        """The server ends the call: it stops, or refuses the message under way."""
        if self._body is not None:
            self._body.finish(error)

    def take_output(self) -> bytes:
        return self._ws.take_output()

    @property
    def closing(self) -> bool:
        return self._ws.closing

    # from the call

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """The call failed before its first message; `body` says why."""
        self.write(b'{"error":%b}' % body)
        self._close(websocket.BAD_MESSAGE if status == 400 else websocket.INTERNAL)

    def start(self, status: int, headers: Headers) -> None: ...

    def write(self, data: bytes) -> None:
        self._ws.send(data.rstrip(b"\n"))
        self._session.flush_later()

    def finish(self) -> None:
        self._close(websocket.NORMAL)

    def _close(self, code: int) -> None:
        self._body = None
        self._ws.close(code)
        self._session.flush_later()

    @property
    def backlog_bytes(self) -> int:
        return self._session.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._session.waiting_for_drain.add(stream)

    def hold_up(self, waits: bool) -> None:
        self._session.hold_up(waits, self.unfinished_bytes)
