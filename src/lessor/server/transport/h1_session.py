# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 on one connection: one request after the other, as pages, JSON calls or a WebSocket.

Laws
- Replies leave in the order of their requests. A pipelined request begins when the reply before it is complete.
- If the peer does not take the replies, the rest of its pipeline waits.
- A pipelined request is a step, and so are some lines of a chunked body, and some frames of a WebSocket. The connection
  takes as many steps in a turn as its share allows.

The modules for WebSockets are loaded with the first one: loading them takes an eighth of the time of a server's start.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from lessor.api.methods import BY_ROUTE, Method
from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.gateway import routes
from lessor.gateway.routes import Headers
from lessor.server.loop.call import Waiting
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.loop.peer_address import address_of
from lessor.server.transport.connection import Connection
from lessor.server.transport.http_calls import Body, Exchange
from lessor.wire import h1

if TYPE_CHECKING:
    from lessor.server.transport.websocket_calls import WebSocketCall

_BAD_UPGRADE = routes.Answer(400, (*routes.TEXT_HEADERS, (b"sec-websocket-version", b"13")), b"Bad Request\n")


@lru_cache(maxsize=256)
def _block(headers: Headers) -> bytes:
    return h1.encode_headers(headers)


def _upgrades_to(core: Core, exchange: h1.Request) -> Method | None:
    """The streaming method that a request wants to call over a WebSocket; None for any other request."""
    if exchange.head.get(b"upgrade") is None:
        return None
    from lessor.server.transport.websocket_calls import streaming_method

    return streaming_method(core, exchange)


def _body_bytes_max(core: Core, exchange: h1.Request) -> int | None:
    """The bound of a request's body. None for a stream, which may have no end: its decoder bounds each message."""
    found = BY_ROUTE.get(exchange.path)
    # Base64 and names make JSON larger than the message. The message's own limit is checked when its size is known.
    return 2 * core.options.message_bytes_max if found is None or found.unary else None


class H1Session:
    """The requests of one connection.

    A pipelined request begins a little later than the protocol has read its head, see `replied`. Until then all other
    events of the connection wait, too: more bytes, their end, the stop of the server.
    """

    def __init__(self, connection: Connection, serve: Callable[[Core, Exchange], Body], *, websockets: bool) -> None:
        """`serve`: makes the Body of a request. `websockets`: whether a streaming call may come over a WebSocket."""
        self.core = connection.core
        self.connection = connection
        self.share_s_max = limits.TURN_BYTES_S_MIN  # clients in a hurry have no pipelines and no tiny chunks
        self.address = address_of(connection.transport)
        self.waiting_for_drain: set[Any] = set()
        self.serve = serve
        self.websockets = websockets
        self._websocket: WebSocketCall | None = None
        self._h1 = h1.H1Connection(partial(_body_bytes_max, self.core))
        self.lingers = False  # closed because of an error in the peer's bytes, while it may be sending more
        self.begun = False  # whether a request's head has come in whole
        self._deferred: list[h1.Event] = []  # of the next request of a pipeline
        self._kept = bytearray()  # the unread bytes behind those events
        self._unflushed_bytes = 0  # of replies of this turn
        self._eof = False
        self._stopped: EtcdError | None = None
        self._held_up = False  # whether requests of a stream wait for later turns
        self._unfinished_bytes = 0  # bytes kept of the request that has not come in whole

    @property
    def unread(self) -> bool:
        if self._deferred:
            return self._takes_replies
        return self._websocket.unread if self._websocket is not None else self._h1.unread

    @property
    def _takes_replies(self) -> bool:
        """Whether the peer has taken enough of the replies to earlier requests for another one to begin."""
        waiting_bytes = self._unflushed_bytes + self.backlog_bytes
        return not self._h1.unsent and waiting_bytes <= limits.CONNECTION_BACKLOG_BYTES_MAX

    def receive(self, data: bytes) -> None:
        if self._websocket is not None:
            self._receive_from_websocket(self._websocket, data)
        elif self._deferred:
            self._kept += data
        else:
            was_open = not self._h1.closing
            self._take(self._h1.receive(data))
            if was_open and self._h1.closing:
                self.lingers = True

    def go_on(self) -> None:
        if not self.unread:
            return
        if self._deferred:
            events, self._deferred = self._deferred, []
            self._take(events)
        elif self._websocket is not None:
            self._websocket.go_on()
            self._keep_count(self._websocket.unfinished_bytes)
        else:
            self._take(self._h1.go_on())
            self.lingers = self._h1.closing
        self._take_what_waited()

    def _take_what_waited(self) -> None:
        """After the last step: more bytes, the stop of the server and the end of the bytes, unless they bring steps."""
        if self._kept and not self._deferred:
            kept, self._kept = bytes(self._kept), bytearray()
            self.receive(kept)
        if self._stopped is not None and not self._in_steps:
            self.drain(self._stopped)
        if self._eof and not self._in_steps and not self.eof():
            self.lost()

    @property
    def _in_steps(self) -> bool:
        """Whether there are steps to take, now or when the peer has taken replies."""
        return bool(self._deferred) or self.unread

    def refuse(self) -> None:
        """Closes the connection without reading anything."""
        self._h1.abort()

    def eof(self) -> bool:
        """The peer sends no more. Returns whether a reply to it is still under way.

        A streaming reply has no end that the peer could wait for, and an open-ended wait may be long: a peer that
        half-closes during one of these has hung up.
        """
        self._eof = True
        if self._in_steps:
            return True
        if self._websocket is not None:
            return False
        self._take(self._h1.receive_eof())
        exchange = self._h1.request
        hung_up = exchange is not None and exchange.owner and exchange.owner.body.open_ended
        if self._h1.closing:
            return self._h1.has_output  # the socket is closed behind it
        return not hung_up

    def _take(self, events: list[h1.Event]) -> None:
        for kind, exchange, payload in events:
            if kind == h1.REQUEST:
                self.begun = True
                exchange.owner = H1Exchange(self, self._h1, exchange)
                self._h1.accept_body()
            elif kind == h1.END and exchange.owner.upgrades_to is not None:
                self._open_websocket(exchange, exchange.owner.upgrades_to)
            elif kind == h1.BODY:
                exchange.owner.body.on_body(payload)
            elif kind == h1.END:
                self._keep_count(0)
                exchange.owner.body.on_end()
            elif kind == h1.ABORT:
                self._keep_count(0)
                exchange.owner.body.gone()
        if events and events[-1][0] == h1.BODY:
            self._keep_count(events[-1][1].owner.body.unfinished_bytes)
        self.core.turn.flush_later(self.connection)

    def _keep_count(self, kept_bytes: int) -> None:
        if kept_bytes != self._unfinished_bytes:
            more_bytes, self._unfinished_bytes = kept_bytes - self._unfinished_bytes, kept_bytes
            self.core.unfinished.change(self, more_bytes)

    def refuse_unfinished(self, error: EtcdError) -> None:
        self._keep_count(0)
        exchange = self._h1.request
        if self._websocket is not None:
            self._websocket.end(error)
        elif exchange is not None and exchange.owner is not None:
            exchange.owner.body.end_now(error)

    def _open_websocket(self, exchange: h1.Request, method: Method) -> None:
        from lessor.server.transport.websocket_calls import WebSocketCall
        from lessor.wire import websocket

        opened = websocket.accept(exchange)
        if opened is None:
            exchange.owner.reply(*_BAD_UPGRADE)
            return
        exchange.owner.body.gone()  # the Body that would have answered a plain GET
        rest = self._h1.hand_over()
        self._websocket = WebSocketCall(self, exchange, method, opened)
        self._receive_from_websocket(self._websocket, rest)

    def _receive_from_websocket(self, call: "WebSocketCall", data: bytes) -> None:
        call.receive(data)
        self._keep_count(call.unfinished_bytes)

    def hold_up(self, waits: bool, unfinished_bytes: int) -> None:
        """A body, or requests of a stream, wait for later turns, or wait no more. `unfinished_bytes`: kept of it."""
        self._held_up = waits
        self.core.turn.hold_up(self.connection, waits)
        self._keep_count(unfinished_bytes)
        self.flush_later()

    def flush_later(self) -> None:
        self.core.turn.flush_later(self.connection)

    def wrote(self, size_bytes: int) -> None:
        """So many bytes of a reply are to be sent, and it is not complete."""
        self._unflushed_bytes += size_bytes
        self.core.turn.flush_later(self.connection)

    def replied(self, next_events: list[h1.Event], size_bytes: int) -> None:
        """A reply is complete, with so many bytes. `next_events`: of a pipelined request that has waited for that."""
        self._unflushed_bytes += size_bytes
        self.core.turn.flush_later(self.connection)
        if next_events:
            # Not called from here: the stack would grow with each request of a long pipeline.
            self._deferred = next_events
            self.core.turn.go_on_later(self.connection)

    @property
    def paused(self) -> bool:
        return self._h1.paused or self._held_up or len(self._kept) >= h1.WAITING_BYTES_MAX

    @property
    def backlog_bytes(self) -> int:
        return self.connection.transport.get_write_buffer_size()

    @property
    def unread_bytes(self) -> int:
        exchange = self._h1.request
        at_gate_bytes = exchange.owner.held.size_bytes if exchange is not None and exchange.owner is not None else 0
        return self._h1.output_bytes + int(at_gate_bytes)

    def wake_drained(self) -> None:
        if self._h1.unsent:
            self.core.turn.flush_later(self.connection)
        if self._deferred:
            self.go_on()
            if self.unread:
                self.core.turn.go_on_later(self.connection)
        waiting, self.waiting_for_drain = self.waiting_for_drain, set()
        for stream in waiting:
            self.core.turn.catch_up_later(stream)

    def take_output(self) -> bytes:
        if (self._deferred or self._h1.unsent) and not self._may_send():
            return b""  # `wake_drained` comes
        self._unflushed_bytes = 0
        output = self._h1.take_output()
        return output + self._websocket.take_output() if self._websocket is not None else output

    def _may_send(self) -> bool:
        """Asks for the next step of a long reply, and for the request behind it. False: the socket is full."""
        unsent = self._h1.unsent
        if unsent:
            if self.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
                return False
            self.core.turn.flush_later(self.connection)
        if self._deferred and (unsent or self._unflushed_bytes):  # one of these may be why it has not begun
            self.core.turn.go_on_later(self.connection)
        return True

    @property
    def closing(self) -> bool:
        if self._websocket is not None:
            return self._websocket.closing
        return self._h1.closing

    @property
    def unsent(self) -> bool:
        return self._h1.unsent

    def drain(self, error: EtcdError) -> None:
        self._stopped = error
        if self._websocket is not None:
            self._websocket.end(error)
            return
        exchange = self._h1.request
        self._h1.drain()
        if exchange is not None and exchange.owner is not None:
            exchange.owner.end_stream(error)

    def lost(self) -> None:
        self._keep_count(0)
        call, self._websocket = self._websocket, None  # it refers to us
        if call is not None:
            call.gone()
        exchange = self._h1.request
        self._deferred.clear()
        self._kept.clear()
        self._h1.abort()
        if exchange is not None and exchange.owner is not None:
            exchange.owner.body.gone()


class H1Exchange:
    """One HTTP/1.1 request."""

    def defer(self, size_bytes: int, go_on: Callable[[], None], wait: Callable[[Waiting], None]) -> bool:
        return False  # one request at a time is read, after the reply before it is complete

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return False

    def __init__(self, session: H1Session, connection: h1.H1Connection, exchange: h1.Request) -> None:
        self._session = session
        self.held = Held(session.address, session.connection)  # of one reply at the most
        self._h1 = connection
        self.method = exchange.method
        self.path = exchange.path
        self.query = exchange.query
        self.header = exchange.head.get
        self.upgrades_to = _upgrades_to(session.core, exchange) if session.websockets else None
        self.body = session.serve(session.core, self)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        self._session.replied(self._h1.reply(status, _block(headers), body), len(body))

    def start(self, status: int, headers: Headers) -> None:
        self._h1.start(status, _block(headers))
        self._session.flush_later()

    def write(self, data: bytes) -> None:
        self._h1.write(data)
        self._session.wrote(len(data))

    def finish(self) -> None:
        self._session.replied(self._h1.finish(), 0)

    def end_stream(self, error: EtcdError) -> None:
        """Ends a streaming reply when the server stops. A unary reply is under way and ends by itself."""
        streaming = self.body.streaming_call
        if streaming is not None:
            streaming.finish(error)

    @property
    def backlog_bytes(self) -> int:
        return self._session.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._session.waiting_for_drain.add(stream)

    def hold_up(self, waits: bool) -> None:
        self._session.hold_up(waits, self.body.unfinished_bytes)
