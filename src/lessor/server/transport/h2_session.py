# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 on one connection: its streams become gRPC calls (grpc_calls.py) or plain HTTP requests (`H2Exchange`).

Laws
- What one read brings is taken in order; the pieces that belong to one stream and follow each other are taken as one.
- Which method a head calls is worked out once per kind of head and remembered in it.
- A peer that asks for more than it takes is refused, unseen: see `overfull`.
"""

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lessor.api.methods import BY_PATH, Method
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import routes
from lessor.gateway.routes import Headers
from lessor.server.transport.grpc_calls import REFUSED, GrpcStream, GrpcUnary, Route, method_error
from lessor.server.transport.http_calls import JsonStream, answer
from lessor.wire import grpc, h2
from lessor.wire.frames import ErrorCode

if TYPE_CHECKING:
    from lessor.server.transport.connection import Connection

_TOO_LARGE = routes.page(413, "request body too large")


@lru_cache(maxsize=256)
def _block(status: int, headers: Headers) -> bytes:
    return h2.encode_headers([(b":status", b"%d" % status), *headers])


def _is_text(value: bytes | None) -> bool:
    """Whether it is UTF-8. Go's strings are bytes, so that etcd has an error for those that are not."""
    try:
        return value is None or value.isascii() or value.decode() is not None
    except UnicodeDecodeError:
        return False


class H2Session:
    """The streams of one connection."""

    begun = True  # its preface is more than a stray peer sends
    paused = False  # flow control holds an HTTP/2 peer back, stream by stream

    def __init__(self, connection: "Connection") -> None:
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
        self._h2 = h2.H2Server(self.core.options.grpc_keepalive, self.core.turn.now_s(), whole_requests=True)
        self._peer_timer = self.loop.call_later(self.core.options.grpc_keepalive.interval_s, self._look_after_peer)
        self._draining = False  # the server stops: no new streaming calls, they would have no end
        self.cut_off = False
        self._metrics = self.core.metrics
        self._unfinished: dict[h2.Stream, int] = {}  # bytes kept of requests that have not come in whole

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
                if stream is not last:
                    self._keep_count(last)
                last = None
            if kind == h2.WHOLE:
                self._open(stream)
                owner = stream.owner
                if isinstance(owner, GrpcUnary):
                    owner.on_whole(payload)
                else:
                    owner.on_data(payload)
                    stream.owner.on_end()  # another one, if the data ended the call
            elif kind == h2.DATA:
                last, gathered = stream, [payload]
            elif kind == h2.HEADERS:
                self._open(stream)
            elif kind == h2.END:
                self.uncount(stream)
                stream.owner.on_end()
            elif kind == h2.RESET:
                self.uncount(stream)
                stream.owner.on_reset()
        if last is not None:
            last.owner.on_data(b"".join(gathered))
            self._keep_count(last)
        if self.waiting_for_drain:
            self.wake_drained()

    def _open(self, stream: h2.Stream) -> None:
        head = stream.head
        assert head is not None
        route = head.route
        if route is None:  # the first request with this header block
            route = head.route = self._route(head)
        if isinstance(route, Route):
            route.started.n += 1
            route.requests.n += 1
            timeout = head.get(b"grpc-timeout")
            if route.unary:
                unary = stream.owner = GrpcUnary(self, stream, route)
                if timeout is not None:
                    unary.deadline_s = self.core.turn.now_s() + self._timeout_s(unary, timeout)
            elif self._draining:
                self.fail(route.method, stream, errors.SERVER_STOPPED.error(), started=False)
            else:
                streaming = stream.owner = GrpcStream(self, stream, route.method)
                self.streaming.add(streaming)
                if timeout is not None:
                    streaming.expire_after(self._timeout_s(streaming, timeout))
        elif isinstance(route, EtcdError):
            stream.owner = REFUSED
            self._h2.send_headers(stream, grpc.trailers_only(route.code, route.message), end_stream=True)
        else:
            exchange = stream.owner = H2Exchange(self, stream)
            if isinstance(exchange.body, JsonStream):
                self.streaming.add(exchange.body)
                if self._draining:
                    exchange.body.finish(errors.SERVER_STOPPED.error())

    def _route(self, head: h2.Head) -> Route | EtcdError | str:
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
        if not _is_text(head.get(b"client-api-version")):
            return errors.INVALID_CLIENT_API_VERSION.error()
        path = head.path.decode("latin-1")
        method = BY_PATH.get(path)
        if method is None or not self.core.serves(method):
            return method_error(path)
        return Route(self._metrics, method, head.get(b"client-api-version") or b"unknown")

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

    # --- requests that have not come in whole ---

    def _keep_count(self, stream: h2.Stream) -> None:
        """More has come of a request, without its end."""
        kept_bytes, before_bytes = stream.owner.unfinished_bytes, self._unfinished.get(stream, 0)
        if not kept_bytes:
            self.uncount(stream)
        elif kept_bytes != before_bytes:
            self._unfinished[stream] = kept_bytes
            self.core.unfinished.change(self, kept_bytes - before_bytes)

    def uncount(self, stream: h2.Stream) -> None:
        """The request has come in whole, or is over."""
        if self._unfinished and (kept_bytes := self._unfinished.pop(stream, 0)):
            self.core.unfinished.change(self, -kept_bytes)

    def refuse_unfinished(self, error: EtcdError) -> None:
        stream = next(reversed(self._unfinished))
        stream.owner.fail(error)
        self.uncount(stream)

    # --- replies, from the calls ---

    def respond(self, stream: h2.Stream, framed: bytes) -> None:
        """The whole successful reply of a unary call."""
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
        self.uncount(stream)
        code, text = (error.code, error.message) if error else (Code.OK, "")
        self._metrics.handled[method, code].n += 1
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
        block = _block(status, headers)
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
        self.uncount(stream)
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
        output = self._h2.take_output()
        self._metrics.grpc_sent_bytes += len(output)
        return output

    @property
    def closing(self) -> bool:
        return self._h2.closing

    def eof(self) -> bool:
        return False  # an HTTP/2 peer that half-closes the connection has given it up

    def drain(self, error: EtcdError) -> None:
        self._draining = True
        for call in list(self.streaming):
            call.finish(error)
        self._h2.drain()

    def _look_after_peer(self) -> None:
        """Pings a peer that has been silent for long, and lets go of one that does not answer."""
        wait_s = self._h2.look_after_peer(self.core.turn.now_s())
        if not wait_s and self._connection.reading:
            # We may have stood still, with the answer waiting in the socket: see it first.
            self.loop.call_soon(self.loop.call_soon, self._let_go)
            return
        # While we do not read, because of what it has not taken, nothing can be heard: TCP finds out about that one.
        self._peer_timer = self.loop.call_later(wait_s or limits.GRPC_KEEPALIVE_TIMEOUT_S, self._look_after_peer)
        self.core.turn.flush_later(self._connection)

    def _let_go(self) -> None:
        if self._h2.look_after_peer(self.core.turn.now_s()):
            self._look_after_peer()
        else:
            self._connection.transport.abort()

    def lost(self) -> None:
        self._peer_timer.cancel()
        for stream in list(self._unfinished):
            self.uncount(stream)
        for stream in self._h2.open_streams():
            owner, stream.owner = stream.owner, REFUSED
            owner.on_reset()
        self.waiting_for_drain.clear()


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

    @property
    def unfinished_bytes(self) -> int:
        return self.body.unfinished_bytes

    def fail(self, error: EtcdError) -> None:
        self.body.fail(error)

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
            self._session.uncount(stream)
            stream.owner = REFUSED
            self._session.write_http(stream, data, end=True)

    @property
    def overfull(self) -> bool:
        return self._session.overfull

    @property
    def backlog_bytes(self) -> int:
        return self._session.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._session.waiting_for_drain.add(stream)
