# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 on one connection: its streams become gRPC calls (grpc_calls.py) or plain HTTP requests (`H2Exchange`).

Laws
- The events of one read are taken in order. Pieces of data that follow each other on one stream are taken as one.
- A large read is taken in steps, so that the connection can leave the rest for another turn. A step has few calls, and
  few requests of streaming calls; what is left of those goes first in the next step.
- A step ends behind the call that used up its time, H2_STEP_S, or has inflated many bytes. The events that are left
  then are taken in the next steps, in order. So are those before a fault that ends the connection, or before its last
  call. They are dropped only with the socket.
- The method that a head calls is looked up once per header block and remembered in the head.
- While the server stops, new streaming calls are refused: they would have no end, but for those in ENDING. These and
  unary calls that still come are served.
"""

from collections.abc import Callable
from typing import Any

from lessor.api.methods import BY_PATH
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import routes
from lessor.gateway.routes import Headers
from lessor.server.loop.call import ENDING, Waiting
from lessor.server.transport.connection import Connection
from lessor.server.transport.grpc_calls import GrpcStream, GrpcUnary, Route, method_error
from lessor.server.transport.h2_output import REFUSED, H2Output
from lessor.server.transport.http_calls import answer
from lessor.wire import grpc, h2
from lessor.wire.h2 import DATA, END, HEADERS, RESET, WHOLE

_TOO_LARGE = routes.page(413, "request body too large")


def _is_text(value: bytes | None) -> bool:
    """Whether the value is UTF-8. Go's strings are bytes, so etcd has an error for a value that is not."""
    try:
        return value is None or value.isascii() or value.decode() is not None
    except UnicodeDecodeError:
        return False


class H2Session(H2Output):
    """The streams of one connection."""

    begun = True  # the peer has sent a preface, which a stray peer does not
    paused = False  # while requests wait; else flow control holds an HTTP/2 peer back, stream by stream
    lingers = False

    def __init__(self, connection: Connection) -> None:
        H2Output.__init__(self, connection)
        self.share_s_max = limits.TURN_BYTES_S
        self._metrics = self.core.metrics
        self._read_clock = self.core.turn.read_clock
        self._rest: list[h2.Event] | None = None  # for which the step had no time; never empty
        self._held_up: set[H2Exchange] = set()  # those of whose streams requests wait for later turns
        self._draining = False  # the server stops: new streaming calls are refused
        self._peer_timer = self.loop.call_later(self.core.options.grpc_keepalive.interval_s, self._look_after_peer)

    @property
    def unread(self) -> bool:
        if self.h2.unread or self.kept_back:
            return self._rest is not None or not self.h2.closing
        return self._rest is not None

    def receive(self, data: bytes) -> None:
        self._metrics.grpc_received_bytes += len(data)
        now_s = self._read_clock()
        events = self.h2.receive(data, now_s)
        if self._rest is not None:
            self._rest += events
            return
        self.step_until_s = now_s + limits.H2_STEP_S
        self.step_messages = limits.H2_STEP_MESSAGES
        self.step_inflate_bytes = limits.H2_STEP_MESSAGE_BYTES
        self._take(events)

    def go_on(self) -> None:
        now_s = self._read_clock()
        self.step_until_s = now_s + limits.H2_STEP_S
        self.step_messages = limits.H2_STEP_MESSAGES
        self.step_inflate_bytes = limits.H2_STEP_MESSAGE_BYTES
        while self.kept_back and self.step_messages > 0:
            call = next(iter(self.kept_back))
            message = self.kept_back.pop(call)
            if message is None:
                call.go_on()
            else:
                call.take_kept(message)
        if not self.kept_back:
            rest, self._rest = self._rest, None
            self._take(rest or self.h2.go_on(now_s))

    def _take(self, events: list[h2.Event]) -> None:
        """Handles the events, and keeps those for which the step has no time."""
        if len(events) == 1 and events[0][0] == DATA:  # a message of a streaming call comes alone
            _, stream, payload = events[0]
            stream.owner.on_data(payload)
            self.keep_count(stream)
        else:
            self._take_several(events)
        if self.waiting_for_drain:
            self.wake_drained()
        if self.h2.drained:
            self._wake_streams()

    def _take_several(self, events: list[h2.Event]) -> None:
        gathered: list[bytes] = []  # a client's burst on one stream is taken as one piece
        last: h2.Stream | None = None
        several = len(events) > 1  # else the clock need not be looked at
        left = iter(events)
        for event in left:
            kind, stream, payload = event
            if last is not None:
                if kind == DATA and stream is last:
                    gathered.append(payload)
                    continue
                last.owner.on_data(b"".join(gathered))
                over = self._read_clock() > self.step_until_s
                if over or stream is not last:
                    self.keep_count(last)
                last = None
                if over:
                    self._rest = [event, *left]
                    break
            if kind == WHOLE:
                unary = self._open(stream)
                if unary is not None:
                    unary.on_whole(payload)
                else:
                    stream.owner.on_data(payload)
                    stream.owner.on_end()  # looked up anew: a call that has ended is REFUSED now
            elif kind == DATA:
                last, gathered = stream, [payload]
                continue
            elif kind == HEADERS:
                self._open(stream)
                continue
            elif kind == END:
                self.uncount(stream)
                stream.owner.on_end()
            elif kind == RESET:
                self.uncount(stream)
                stream.owner.gone()
            if several and self._read_clock() > self.step_until_s:
                self._rest = list(left) or None
                break
        if last is not None:
            last.owner.on_data(b"".join(gathered))
            self.keep_count(last)

    def _open(self, stream: h2.Stream) -> GrpcUnary | None:
        """Gives the stream its owner; returns it if it is a unary gRPC call."""
        head = stream.head
        assert head is not None
        route = head.route
        if route is None:  # the first request with this header block
            route = head.route = self._route(head)
        if isinstance(route, Route):
            if route.unary:
                unary = stream.owner = GrpcUnary(self, stream, route)
                timeout = head.get(b"grpc-timeout")  # not the route's: it differs from call to call
                if timeout is not None:
                    self._limit(unary, timeout)
                return unary
            if self._draining and route.method not in ENDING:
                stopped = errors.SERVER_STOPPED.error()
                route.counts.begin()
                route.counts.end(stopped.code)
                self.end(stream, stopped, started=False)
                return None
            stream.owner = GrpcStream(self, stream, route)
            timeout = head.get(b"grpc-timeout")
            if timeout is not None:
                self._limit(stream.owner, timeout)
        elif isinstance(route, EtcdError):
            stream.owner = REFUSED
            self.h2.send_headers(stream, grpc.trailers_only(route.code, route.message), end_stream=True)
            self.h2.no_call(stream)
        else:
            exchange = stream.owner = H2Exchange(self, stream)
            streaming = exchange.body.streaming_call
            if streaming is not None:
                self.streaming.add(streaming)
                if self._draining:
                    streaming.finish(errors.SERVER_STOPPED.error())
        return None

    def _route(self, head: h2.Head) -> Route | EtcdError | str:
        """The route of the calls with this head; or their error; or "http" if it is not gRPC."""
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
        counts = self._metrics.calls(method, head.get(b"client-api-version") or b"unknown")
        return Route(counts)

    @staticmethod
    def _limit(call: GrpcUnary | GrpcStream, timeout: bytes) -> None:
        try:
            call.expire_after(grpc.parse_timeout(timeout))
        except EtcdError as error:
            call.end_now(error)

    # --- the connection's ---

    def wake_drained(self) -> None:
        waiting, self.waiting_for_drain = self.waiting_for_drain, set()
        for stream in waiting:
            self.core.turn.catch_up_later(stream)
        if self.h2.unsent or self.room_bytes < 0:
            self.core.turn.flush_later(self.connection)

    def _wake_streams(self) -> None:
        """Peers have taken what waited for them: the next chunks of these streams can be made."""
        drained = self.h2.drained[:]
        self.h2.drained.clear()
        for stream in drained:
            if isinstance(stream.owner, GrpcStream):
                stream.owner.taken()

    def take_output(self) -> bytes:
        self._unflushed_bytes = 0
        if self.h2.queued_bytes and self.h2.unsent:
            self._send_more()
        output = self.h2.take_output()
        self._metrics.grpc_sent_bytes += len(output)
        if self.h2.drained:
            self._wake_streams()
        if self.deferred is not None:
            self.deferred.look()
        return output

    def _send_more(self) -> None:
        """The next step of long replies, unless the socket is full: then `wake_drained` comes."""
        if self.connection.transport.get_write_buffer_size() <= limits.CONNECTION_BACKLOG_BYTES_MAX:
            self.h2.send_more()
            self.core.turn.flush_later(self.connection)
            self.wake_drained()

    @property
    def closing(self) -> bool:
        return self.h2.closing

    @property
    def unsent(self) -> bool:
        return self._rest is not None  # a stream that has something left keeps the connection open

    def eof(self) -> bool:
        return False  # an HTTP/2 peer that half-closes the connection has hung up

    def drain(self, error: EtcdError) -> None:
        self._draining = True
        for call in list(self.streaming):
            if call.method not in ENDING:
                call.finish(error)
        self.h2.drain()

    def hold_up(self, exchange: "H2Exchange", waits: bool) -> None:
        """Requests of the exchange's stream wait for later turns, or wait no more."""
        if waits:
            self._held_up.add(exchange)
        else:
            self._held_up.discard(exchange)
        self.paused = bool(self._held_up)
        self.core.turn.hold_up(self.connection, self.paused)
        self.core.turn.flush_later(self.connection)

    def _look_after_peer(self) -> None:
        """Pings a peer that has been silent for long, and drops one that does not answer."""
        wait_s = self.h2.look_after_peer(self._read_clock())
        if not wait_s and self.connection.reading:
            # The process may have stood still while the answer waits in the socket: read the socket first.
            self.loop.call_soon(self.loop.call_soon, self._abort_if_silent)
            return
        # While reading is paused no answer can arrive here: TCP keepalive finds out about a peer that has vanished.
        self._peer_timer = self.loop.call_later(wait_s or limits.GRPC_KEEPALIVE_TIMEOUT_S, self._look_after_peer)
        self.core.turn.flush_later(self.connection)

    def _abort_if_silent(self) -> None:
        """Looks at the peer once more, after the socket has been read."""
        if self.h2.look_after_peer(self._read_clock()):
            self._look_after_peer()
        else:
            self.connection.transport.abort()

    def lost(self) -> None:
        self._peer_timer.cancel()
        self.uncount_all()
        self.kept_back.clear()
        rest, self._rest = self._rest or [], None
        reset = [stream for kind, stream, _ in rest if kind == RESET]
        for stream in self.h2.open_streams() + reset:
            owner, stream.owner = stream.owner, REFUSED
            if owner is not None:  # None: its first event was left, too
                owner.gone()
        self.waiting_for_drain.clear()
        deferred, self.deferred = self.deferred, None  # it refers to us
        if deferred is not None:
            deferred.end()


class H2Exchange:
    """A plain HTTP request on an HTTP/2 stream (http_calls.Exchange)."""

    def __init__(self, output: H2Session, stream: h2.Stream) -> None:
        self._output = output
        self.held = output.held
        self._stream: h2.Stream | None = stream
        head = stream.head
        assert head is not None
        self.method = head.method.decode("latin-1")
        self.path, _, self.query = head.path.decode("latin-1").partition("?")
        self._head = head
        self._taken_bytes = 0
        self.body = answer(output.core, self)

    def header(self, name: bytes) -> bytes | None:
        return self._head.get(name)

    @property
    def unfinished_bytes(self) -> int:
        return self.body.unfinished_bytes

    def end_now(self, error: EtcdError) -> None:
        self.body.end_now(error)

    # from the stream

    def on_data(self, data: bytes) -> None:
        self._taken_bytes += len(data)
        too_large = self._taken_bytes > 2 * self._output.message_bytes_max
        # A stream may have no end: its decoder bounds each message in it.
        if too_large and self._stream is not None and self.body.streaming_call is None:
            self.body.gone()
            self.reply(*_TOO_LARGE)
            return
        self.body.on_body(data)

    def on_end(self) -> None:
        if self._stream is not None:
            self.body.on_end()

    def gone(self) -> None:
        if self._leave() is not None:
            self.body.gone()

    def _leave(self) -> h2.Stream | None:
        stream, self._stream = self._stream, None
        streaming = self.body.streaming_call
        if streaming is not None:
            self._output.streaming.discard(streaming)
        return stream

    # to the stream

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        if self._stream is not None:
            self._output.start_http(self._stream, status, headers, len(body))
            self._end(body if self.method != "HEAD" else b"")

    def start(self, status: int, headers: Headers) -> None:
        if self._stream is not None:
            self._output.start_http(self._stream, status, headers, None)

    def write(self, data: bytes) -> None:
        if self._stream is not None:
            self._output.write_http(self._stream, data, end=False)

    def finish(self) -> None:
        self._end(b"")

    def _end(self, data: bytes) -> None:
        stream = self._leave()
        if stream is not None:
            self._output.uncount(stream)
            stream.owner = REFUSED
            self._output.write_http(stream, data, end=True)

    def defer(self, size_bytes: int, go_on: Callable[[], None], wait: Callable[[Waiting], None]) -> bool:
        stream = self._stream
        if stream is None or not self._output.defers:
            return False
        request = self._output.defer(stream, size_bytes, go_on)
        wait(request)
        self._output.count(stream, request.size_bytes)
        return True

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return self._output.waits_for_peer(go_on)

    @property
    def backlog_bytes(self) -> int:
        return self._output.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._output.waiting_for_drain.add(stream)

    def hold_up(self, waits: bool) -> None:
        self._output.hold_up(self, waits)
        if self._stream is not None:
            self._output.keep_count(self._stream)
