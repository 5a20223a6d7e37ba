# SPDX-License-Identifier: Apache-2.0
"""A client's connection: bytes from the socket to the protocol, the protocol's output back at the end of the turn.

Laws
- Whatever arrives is processed at once; nothing is written to a socket except by `flush`, which the turn calls.
- A peer that does not read is not read from: beyond CONNECTION_SEND_BYTES_MAX unwritten bytes its socket pauses. What
  one read has brought by then is refused (HTTP/2) or waits (HTTP/1.1), so that a few small requests for large replies
  cannot fill the memory.
- A connection gets one large read per turn. libuv goes on reading a socket that a peer fills as fast as it is emptied,
  32 times over, and everybody else would wait for seconds.
- When the open batch is full, a connection that brings more pauses until the batch is sealed (turn.py).
- A connection that goes takes its calls along: each owner of a stream is told once.

The first bytes decide between HTTP/2 and HTTP/1.1, which share each port, as in etcd.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from lessor.api.methods import BY_PATH, BY_ROUTE, Method
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import routes
from lessor.gateway.routes import Headers
from lessor.server.core import Core
from lessor.server.grpc_calls import REFUSED, GrpcStream, GrpcUnary, method_error
from lessor.server.http_calls import Body, Exchange, JsonStream, JsonUnary, answer
from lessor.server.websocket_calls import WebSocketCall, streaming_method
from lessor.wire import grpc, h1, h2, sniff, websocket
from lessor.wire.frames import ErrorCode

LINGER_S = 1.0

_TOO_LARGE = routes.page(413, "request body too large")
_BAD_UPGRADE = routes.Answer(400, (*routes.TEXT_HEADERS, (b"sec-websocket-version", b"13")), b"Bad Request\n")


@lru_cache(maxsize=256)
def _h1_block(headers: Headers) -> bytes:
    return h1.encode_headers(headers)


@lru_cache(maxsize=256)
def _h2_block(status: int, headers: Headers) -> bytes:
    return h2.encode_headers([(b":status", b"%d" % status), *headers])


def _ask_silent_peers(transport: asyncio.Transport) -> None:
    """Has the kernel find out when the peer has vanished without a FIN; else its calls and watches stay for ever.

    Where a system lacks one of the options its own timing holds. Cost: four system calls.
    """
    accepted = transport.get_extra_info("socket")
    if accepted is None or accepted.family not in (socket.AF_INET, socket.AF_INET6):
        return
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", limits.TCP_KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", limits.TCP_KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", limits.TCP_KEEPALIVE_PROBES),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            accepted.setsockopt(socket.IPPROTO_TCP, option, value)


class Connection(asyncio.Protocol):
    """One accepted socket."""

    def __init__(self, core: Core, connections: "set[Connection]", peer_common_name: str | None = None) -> None:
        self.core = core
        self._connections = connections
        self.transport: asyncio.Transport
        # Of the client's certificate, verified, under --client-cert-auth: the user that gRPC calls come from.
        self.peer_common_name = peer_common_name
        self._session: H2Session | H1Session | None = None
        self._first_bytes = b""
        self._handshake: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._batch_full = False
        self._unsent = False  # whether the transport's buffer is filling
        self._had_its_turn = False
        self._reading = True

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        # The bound of a stream's backlog, not the larger one of the connection: a watch that has stopped there waits to
        # hear that the buffer has drained, and the transport tells only of what it once called full.
        transport.set_write_buffer_limits(high=limits.H2_STREAM_SEND_BYTES_MAX)
        _ask_silent_peers(transport)
        self._connections.add(self)
        self.core.metrics.connections += 1
        loop = asyncio.get_running_loop()
        self._handshake = loop.call_later(limits.HANDSHAKE_S_MAX, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._session is None:
            self._first_bytes += data
            kind = sniff.sniff(self._first_bytes)
            if kind is None:
                return
            self._session = self._speak(kind)
            data, self._first_bytes = self._first_bytes, b""
        self.core.turn.schedule()
        self._session.receive(data)
        if self._handshake is not None and self._session.begun:
            self._handshake.cancel()
            self._handshake = None
        turn = self.core.turn
        turn.flush_later(self)
        if turn.overloaded and not self._batch_full:
            self._batch_full = True
            turn.pause(self)
        self._had_its_turn = self._had_its_turn or len(data) >= limits.LARGE_READ_BYTES
        self._read_or_pause()

    def _speak(self, kind: str) -> "H2Session | H1Session":
        return H2Session(self) if kind == "h2" else H1Session(self, answer)

    def eof_received(self) -> bool:
        """Keeps the socket open while a reply to a request that came in whole is still under way."""
        return self._session is not None and self._session.eof()

    def pause_writing(self) -> None:
        self._unsent = True
        self._read_or_pause()

    def resume_writing(self) -> None:
        self._unsent = False
        self._read_or_pause()
        if self._session is not None:
            self._session.wake_drained()

    def resume_reading(self) -> None:
        """The batch that was full is sealed."""
        self._batch_full = False
        self._read_or_pause()

    def _read_or_pause(self) -> None:
        session = self._session
        peer_slow = self._unsent and self.transport.get_write_buffer_size() > limits.CONNECTION_SEND_BYTES_MAX
        wanted = not (peer_slow or self._batch_full or self._had_its_turn or (session is not None and session.paused))
        if wanted is not self._reading and not self.transport.is_closing():
            self._reading = wanted
            self.transport.resume_reading() if wanted else self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._handshake, self._lingering):
            if timer is not None:
                timer.cancel()
        self.core.turn.forget(self)
        self._connections.discard(self)
        self.core.metrics.connections -= 1
        if self._session is not None:
            self._session.lost()

    # --- the server's ---

    def flush(self) -> None:
        self._had_its_turn = False
        session = self._session
        if session is None or self.transport.is_closing():
            return
        output = session.take_output()
        if output:
            if isinstance(session, H2Session):
                self.core.metrics.grpc_sent_bytes += len(output)
            self.transport.write(output)
        self._read_or_pause()
        if session.closing:
            self._hang_up(session.cut_off)

    def _hang_up(self, cut_off: bool) -> None:
        """Ends the connection after its last bytes.

        Closing a socket that holds unread bytes resets it, and the peer loses the reply that says what was wrong. So a
        peer that was cut off while it was sending gets LINGER_S to stop and read; what it sends is dropped.
        """
        if not cut_off:
            self.transport.close()
        elif self._lingering is None:
            if self.transport.can_write_eof():  # TLS has no end of one direction
                with contextlib.suppress(OSError):  # reset by the peer already: not every loop keeps that to itself
                    self.transport.write_eof()
            self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self.transport.close)

    def drain(self, error: EtcdError) -> None:
        """Lets the calls in hand finish, ends the streaming ones with `error`, takes no new ones."""
        if self._session is None:
            self.transport.close()
        else:
            self._session.drain(error)
            self.core.turn.flush_later(self)


class H2Session:
    """The HTTP/2 half: streams of gRPC calls and of plain HTTP requests."""

    begun = True  # its preface is more than a stray peer sends

    def __init__(self, connection: Connection) -> None:
        self.core = connection.core
        self.peer_common_name = connection.peer_common_name
        self.loop = asyncio.get_running_loop()
        self.message_bytes_max = self.core.options.message_bytes_max
        self.streaming: set[GrpcStream | JsonStream] = set()
        self.waiting_for_drain: set[Any] = set()
        # Replies that are in no other count yet: those that wait at the gate, and those of this turn.
        self.held_bytes = 0
        self._unflushed_bytes = 0
        self._connection = connection
        self._h2 = h2.H2Server()
        self._draining = False  # the server stops: no new streaming calls, they would have no end
        self.cut_off = False
        self._metrics = self.core.metrics

    def receive(self, data: bytes) -> None:
        self._metrics.grpc_received_bytes += len(data)
        gathered: list[bytes] = []  # a client's burst on one stream is taken as one piece
        last: h2.Stream | None = None
        for kind, stream, payload in self._h2.receive(data, self.core.turn.now_s()):
            if kind == h2.DATA and stream is last:
                gathered.append(payload)
                continue
            if last is not None:
                last.owner.on_data(b"".join(gathered))
                last = None
            if kind == h2.DATA:
                last, gathered = stream, [payload]
            elif kind == h2.HEADERS:
                self._open(stream)
            elif kind == h2.END:
                stream.owner.on_end()
            elif kind == h2.RESET:
                stream.owner.on_reset()
        if last is not None:
            last.owner.on_data(b"".join(gathered))
        if self.waiting_for_drain:
            self.wake_drained()

    def _open(self, stream: h2.Stream) -> None:
        head = stream.head
        assert head is not None
        route = head.route
        if route is None:  # the first request with this header block
            route = head.route = self._route(head)
        if isinstance(route, EtcdError):
            stream.owner = REFUSED
            self._h2.send_headers(stream, grpc.trailers_only(route.code, route.message), end_stream=True)
        elif isinstance(route, Method):
            self._metrics.started[route] += 1
            self._metrics.requests[route.unary, head.get(b"client-api-version") or b"unknown"] += 1
            timeout = head.get(b"grpc-timeout")
            if route.unary:
                unary = stream.owner = GrpcUnary(self, stream, route)
                if timeout is not None:
                    unary.deadline_s = self.core.turn.now_s() + self._timeout_s(unary, timeout)
            elif self._draining:
                self.fail(route, stream, errors.SERVER_STOPPED.error(), started=False)
            else:
                streaming = stream.owner = GrpcStream(self, stream, route)
                self.streaming.add(streaming)
                if timeout is not None:
                    streaming.expire_after(self._timeout_s(streaming, timeout))
        else:
            exchange = stream.owner = H2Exchange(self, stream)
            if isinstance(exchange.body, JsonStream):
                self.streaming.add(exchange.body)
                if self._draining:
                    exchange.body.finish(errors.SERVER_STOPPED.error())

    def _route(self, head: h2.Head) -> Method | EtcdError | str:
        """The method that a head calls, the error it gets, or "http" for what is not gRPC."""
        if not grpc.is_grpc(head.get(b"content-type")):
            return "http"
        if head.method != b"POST":
            verb = head.method.decode("latin-1")
            text = f'Received a HEADERS frame with :method "{verb}" which should be POST'
            return EtcdError(Code.INTERNAL, text)
        try:
            grpc.check_encoding(head.get(b"grpc-encoding"))
        except EtcdError as error:
            return error
        path = head.path.decode("latin-1")
        method = BY_PATH.get(path)
        if method is None or not self.core.serves(method):
            return method_error(path)
        return method

    @staticmethod
    def _timeout_s(call: GrpcUnary | GrpcStream, timeout: bytes) -> float:
        try:
            return grpc.parse_timeout(timeout)
        except EtcdError as error:
            call.fail(error) if isinstance(call, GrpcUnary) else call.finish(error)
            return 0.0

    def deframer(self, stream: h2.Stream) -> grpc.Deframer:
        assert stream.head is not None
        return grpc.Deframer(self.message_bytes_max, stream.head.get(b"grpc-encoding"))

    # --- replies, from the calls ---

    def respond(self, method: Method, stream: h2.Stream, framed: bytes) -> None:
        """The whole successful reply of a unary call."""
        self._metrics.handled[method, Code.OK] += 1
        self._unflushed_bytes += len(framed)
        self._h2.send_response(stream, grpc.RESPONSE_HEADERS, framed, grpc.TRAILERS_OK)
        self.core.turn.flush_later(self._connection)

    def send(self, method: Method, stream: h2.Stream, replies: list[bytes], start: bool) -> None:
        """Messages of a streaming call, its response headers before the first ones."""
        self._metrics.sent[method] += len(replies)
        if start:
            self._h2.send_headers(stream, grpc.RESPONSE_HEADERS)
        self._h2.send_data(stream, b"".join(map(grpc.frame, replies)))
        self.core.turn.flush_later(self._connection)

    def fail(self, method: Method, stream: h2.Stream, error: EtcdError | None, started: bool) -> None:
        """Ends a call with an error, or a streaming call with OK (`error` None)."""
        code, text = (error.code, error.message) if error else (Code.OK, "")
        self._metrics.handled[method, code] += 1
        stream.owner = REFUSED
        if started:
            self._h2.send_headers(stream, grpc.trailers(code, text), end_stream=True)
        elif error is None:
            self._h2.send_headers(stream, grpc.RESPONSE_HEADERS)
            self._h2.send_headers(stream, grpc.TRAILERS_OK, end_stream=True)
        else:
            self._h2.send_headers(stream, grpc.trailers_only(code, text), end_stream=True)
        self.core.turn.flush_later(self._connection)

    def start_http(self, stream: h2.Stream, status: int, headers: Headers, length: int | None) -> None:
        block = _h2_block(status, headers)
        if length is not None:
            block += h2.encode_headers([(b"content-length", b"%d" % length)])
        self._h2.send_headers(stream, block)
        self.core.turn.flush_later(self._connection)

    def write_http(self, stream: h2.Stream, data: bytes, end: bool) -> None:
        self._unflushed_bytes += len(data)
        self._h2.send_data(stream, data, end_stream=end)
        self.core.turn.flush_later(self._connection)

    @property
    def overfull(self) -> bool:
        """Whether the peer has asked for more than it takes: what it asks now is refused, unseen, with `refuse`."""
        return self.held_bytes + self._unflushed_bytes + self._h2.queued_bytes > limits.CONNECTION_SEND_BYTES_MAX

    def refuse(self, stream: h2.Stream) -> None:
        """The request was not looked at, and the peer may send it again: that is what REFUSED_STREAM says."""
        stream.owner = REFUSED
        self._h2.reset(stream, ErrorCode.REFUSED_STREAM)
        self.core.turn.flush_later(self._connection)

    # --- the connection's ---

    @property
    def backlog_bytes(self) -> int:
        return self._h2.queued_bytes + self._connection.transport.get_write_buffer_size()

    def wake_drained(self) -> None:
        waiting, self.waiting_for_drain = self.waiting_for_drain, set()
        for stream in waiting:
            self.core.turn.catch_up_later(stream)

    def take_output(self) -> bytes:
        self._unflushed_bytes = 0
        return self._h2.take_output()

    @property
    def closing(self) -> bool:
        return self._h2.closing

    def eof(self) -> bool:
        return False  # an HTTP/2 peer that half-closes the connection has given it up

    @property
    def paused(self) -> bool:
        return False  # flow control holds an HTTP/2 peer back, stream by stream

    def drain(self, error: EtcdError) -> None:
        self._draining = True
        for call in list(self.streaming):
            call.finish(error)
        self._h2.drain()

    def lost(self) -> None:
        for stream in self._h2.open_streams():
            stream.owner.on_reset()


class H2Exchange:
    """A plain HTTP request on an HTTP/2 stream."""

    def __init__(self, session: H2Session, stream: h2.Stream) -> None:
        self._session = session
        self._stream: h2.Stream | None = stream
        head = stream.head
        assert head is not None
        self.method = head.method.decode("latin-1")
        self.path, _, self.query = head.path.decode("latin-1").partition("?")
        self._head = head
        self._taken_bytes = 0
        self.body = answer(session.core, self)

    def header(self, name: bytes) -> bytes | None:
        return self._head.get(name)

    # from the stream

    def on_data(self, data: bytes) -> None:
        self._taken_bytes += len(data)
        too_large = self._taken_bytes > 2 * self._session.message_bytes_max
        # A stream may go on without end; its decoder bounds each message in it.
        if too_large and self._stream is not None and not isinstance(self.body, JsonStream):
            self.body.on_gone()
            self.reply(*_TOO_LARGE)
            return
        self.body.on_body(data)

    def on_end(self) -> None:
        stream = self._stream
        if stream is None:
            return
        if self._session.overfull:
            self.on_reset()
            self._session.refuse(stream)
        else:
            self.body.on_end()

    def on_reset(self) -> None:
        if self._leave() is not None:
            self.body.on_gone()

    def _leave(self) -> h2.Stream | None:
        stream, self._stream = self._stream, None
        if isinstance(self.body, JsonStream):
            self._session.streaming.discard(self.body)
        return stream

    # to the stream

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        if self._stream is not None:
            self._session.start_http(self._stream, status, headers, len(body))
            self._end(body if self.method != "HEAD" else b"")

    def start(self, status: int, headers: Headers) -> None:
        if self._stream is not None:
            self._session.start_http(self._stream, status, headers, None)

    def write(self, data: bytes) -> None:
        if self._stream is not None:
            self._session.write_http(self._stream, data, end=False)

    def finish(self) -> None:
        self._end(b"")

    def _end(self, data: bytes) -> None:
        stream = self._leave()
        if stream is not None:
            stream.owner = REFUSED
            self._session.write_http(stream, data, end=True)

    @property
    def backlog_bytes(self) -> int:
        return self._session.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._session.waiting_for_drain.add(stream)


class H1Session:
    """The HTTP/1.1 half: one request after the other.

    A pipelined request begins a little later than the protocol has read its head, see `replied`. Until then whatever
    else happens to the connection waits, too: more bytes, their end, the end of the server.
    """

    def __init__(self, connection: Connection, serve: Callable[[Core, Exchange], Body]) -> None:
        self.core = connection.core
        self.connection = connection
        self.waiting_for_drain: set[Any] = set()
        self.serve = serve
        self._websocket: WebSocketCall | None = None
        self._h1 = h1.H1Connection(self._body_bytes_max)
        self.cut_off = False  # closed for what the peer sent, while it may be sending more
        self.begun = False  # whether a request's head has come in whole
        self._deferred: list[h1.Event] = []  # of the next request of a pipeline
        self._kept = bytearray()  # what came behind them and was not looked at
        self._eof = False
        self._stopped: EtcdError | None = None

    def _body_bytes_max(self, exchange: h1.Exchange) -> int | None:
        """A stream's body may be without end; its decoder bounds each message in it."""
        found = BY_ROUTE.get(exchange.path)
        # Base64 and names make JSON larger than the message, whose own limit is checked when it is known.
        return 2 * self.core.options.message_bytes_max if found is None or found.unary else None

    def receive(self, data: bytes) -> None:
        if self._websocket is not None:
            self._websocket.receive(data)
            return
        if self._deferred:
            self._kept += data
            return
        was_open = not self._h1.closing
        self._take(self._h1.receive(data))
        if was_open and self._h1.closing:
            self.cut_off = True

    def refuse(self) -> None:
        """Reads nothing, and closes."""
        self._h1.abort()

    def eof(self) -> bool:
        """The peer will send no more. Returns whether a reply to it is still under way.

        A streaming reply has no end that it could be waiting for, and a call that waits for its turn may wait for long:
        their peers have hung up.
        """
        self._eof = True
        if self._deferred:
            return True
        if self._websocket is not None:
            return False
        self._take(self._h1.receive_eof())
        exchange = self._h1.exchange
        body = exchange.owner.body if exchange is not None and exchange.owner else None
        hung_up = isinstance(body, JsonStream) or (isinstance(body, JsonUnary) and body.waiting is not None)
        return not (self._h1.closing or hung_up)

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
                exchange.owner.body.on_end()
            elif kind == h1.ABORT:
                exchange.owner.body.on_gone()
        self.core.turn.flush_later(self.connection)

    def _open_websocket(self, exchange: h1.Exchange, method: Method) -> None:
        opened = websocket.accept(exchange)
        if opened is None:
            exchange.owner.reply(*_BAD_UPGRADE)
            return
        rest = self._h1.hand_over()
        self._websocket = WebSocketCall(self, exchange, method, opened)
        self._websocket.receive(rest)

    def flush_later(self) -> None:
        self.core.turn.flush_later(self.connection)

    def replied(self, next_events: list[h1.Event]) -> None:
        """A reply is complete; a pipelined request may have been waiting for that."""
        self.core.turn.flush_later(self.connection)
        if next_events:
            # Not from here: a long pipeline of cheap requests would nest as deep as it is long.
            self._deferred = next_events
            asyncio.get_running_loop().call_soon(self._take_next)

    def _take_next(self) -> None:
        """The next request of a pipeline: now, or when the peer has taken the replies to those before it."""
        if self._deferred and self.backlog_bytes <= limits.H2_STREAM_SEND_BYTES_MAX:
            self._take_deferred()

    def _take_deferred(self) -> None:
        events, self._deferred = self._deferred, []
        self._take(events)
        # Each of these may find the request answered and the one behind it deferred, and then waits again.
        if self._kept and not self._deferred:
            kept, self._kept = bytes(self._kept), bytearray()
            self.receive(kept)
        if self._stopped is not None and not self._deferred:
            self.drain(self._stopped)
        if self._eof and not self._deferred and not self.eof():
            self.lost()

    @property
    def paused(self) -> bool:
        return self._h1.paused or len(self._kept) >= h1.WAITING_BYTES_MAX

    @property
    def backlog_bytes(self) -> int:
        return self.connection.transport.get_write_buffer_size()

    def wake_drained(self) -> None:
        if self._deferred:
            self._take_deferred()
        waiting, self.waiting_for_drain = self.waiting_for_drain, set()
        for stream in waiting:
            self.core.turn.catch_up_later(stream)

    def take_output(self) -> bytes:
        output = self._h1.take_output()
        return output + self._websocket.take_output() if self._websocket is not None else output

    @property
    def closing(self) -> bool:
        return self._websocket.closing if self._websocket is not None else self._h1.closing

    def drain(self, error: EtcdError) -> None:
        self._stopped = error
        if self._websocket is not None:
            self._websocket.end(error)
            return
        exchange = self._h1.exchange
        self._h1.drain()
        if exchange is not None and exchange.owner is not None:
            exchange.owner.end_stream(error)

    def lost(self) -> None:
        if self._websocket is not None:
            self._websocket.gone()
            return
        exchange = self._h1.exchange
        self._deferred.clear()
        self._kept.clear()
        self._h1.abort()
        if exchange is not None and exchange.owner is not None:
            exchange.owner.body.on_gone()


class H1Exchange:
    """One HTTP/1.1 request."""

    def __init__(self, session: H1Session, connection: h1.H1Connection, exchange: h1.Exchange) -> None:
        self._session = session
        self._h1 = connection
        self.method = exchange.method
        self.path = exchange.path
        self.query = exchange.query
        self.header = exchange.get
        self.upgrades_to = streaming_method(session.core, exchange) if session.serve is answer else None
        self.body = session.serve(session.core, self)

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        self._session.replied(self._h1.reply(status, _h1_block(headers), body))

    def start(self, status: int, headers: Headers) -> None:
        self._h1.start(status, _h1_block(headers))
        self._session.core.turn.flush_later(self._session.connection)

    def write(self, data: bytes) -> None:
        self._h1.write(data)
        self._session.core.turn.flush_later(self._session.connection)

    def finish(self) -> None:
        self._session.replied(self._h1.finish())

    def end_stream(self, error: EtcdError) -> None:
        """Ends a streaming reply at shutdown; a unary one is under way and ends by itself."""
        if isinstance(self.body, JsonStream):
            self.body.finish(error)

    @property
    def backlog_bytes(self) -> int:
        return self._session.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._session.waiting_for_drain.add(stream)
