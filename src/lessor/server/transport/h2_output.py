# SPDX-License-Identifier: Apache-2.0
"""The output of an HTTP/2 connection, as its calls see it: replies, refusals, and the bytes that wait for the peer.

Laws
- While too many bytes of replies wait for a peer, its new requests wait unread, in order: see `Deferred`. They count
  among the unfinished requests of the connection. Streams go on: the bytes that wait for the peer bound each of them.
- Nothing is written to the socket here. The connection takes the output at the end of the turn.

The input, which opens the calls, is h2_session.py.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway.routes import Headers
from lessor.server.loop.call import StreamCall
from lessor.server.loop.held import Held
from lessor.server.loop.peer_address import address_of
from lessor.server.transport.connection import Connection
from lessor.wire import grpc, h2


@lru_cache(maxsize=256)
def _block(status: int, headers: Headers) -> bytes:
    return h2.encode_headers([(b":status", b"%d" % status), *headers])


class Refused:
    """The owner of a stream that has been answered: drops all that the peer still sends on it."""

    __slots__ = ()
    unfinished_bytes = 0

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def gone(self) -> None: ...

    def end_now(self, error: EtcdError) -> None: ...


REFUSED = Refused()


class DeferredRequest:
    """A request that came in whole waits for this until its peer has taken replies (call.Waiting)."""

    __slots__ = ("_deferred", "_go_on", "_stream", "size_bytes")

    def __init__(self, deferred: "Deferred", stream: h2.Stream, size_bytes: int, go_on: Callable[[], None]) -> None:
        """`size_bytes`: what is kept of the request."""
        self._deferred = deferred
        self._stream = stream
        self._go_on = go_on
        self.size_bytes = size_bytes + limits.DEFERRED_REQUEST_BYTES

    @property
    def open_ended(self) -> bool:
        return False

    def on_gone(self) -> None:
        self._deferred.drop(self)

    def go_on(self) -> None:
        self._deferred.output.uncount(self._stream)
        self._go_on()


class Deferred:
    """What waits until the peer has taken replies, because more than CONNECTION_SEND_BYTES_MAX of them are not taken.

    Requests wait here in their order, and a request that comes behind them waits too. So does what is left of the
    connection's line of long replies (loop/long_reply.py). Frames are read meanwhile: windows that open and resets are
    what lets all this go on. Requests go on in steps of the connection, like bytes that were read.
    """

    def __init__(self, output: "H2Output") -> None:
        self.output = output
        self._requests: OrderedDict[DeferredRequest, None] = OrderedDict()
        self.long_replies: Callable[[], None] | None = None  # lets them go on

    def add(self, request: DeferredRequest) -> None:
        self._requests[request] = None
        self.output.room_bytes = -1

    def drop(self, request: DeferredRequest) -> None:
        self._requests.pop(request, None)

    def look(self) -> None:
        """Replies have left, or were dropped: lets go on what may."""
        output = self.output
        if self.long_replies is not None and not output.overfull:
            go_on, self.long_replies = self.long_replies, None
            go_on()
        if not self._requests:
            if self.long_replies is None:
                output.room_bytes = limits.CONNECTION_SEND_BYTES_MAX
        elif self._has_room and self not in output.kept_back:
            output.kept_back[self] = None
            output.core.turn.go_on_later(output.connection)

    @property
    def _has_room(self) -> bool:
        """Whether the next request may go on. If not, the peer has to take something, and `look` is called then."""
        output = self.output
        return (
            output.unread_bytes <= limits.CONNECTION_SEND_BYTES_MAX
            and output.connection.transport.get_write_buffer_size() <= limits.CONNECTION_BACKLOG_BYTES_MAX
        )

    def go_on(self) -> None:
        """A step: requests go on while there is room for their replies, and time."""
        output, requests = self.output, self._requests
        output.room_bytes = limits.CONNECTION_SEND_BYTES_MAX
        while requests and self._has_room:
            request, _ = requests.popitem(last=False)
            request.go_on()
            if output.core.turn.read_clock() > output.step_until_s:
                break
        if requests:
            output.room_bytes = -1
            if self._has_room:
                output.kept_back[self] = None
                output.step_messages = 0
        elif self.long_replies is not None:
            output.room_bytes = -1

    def end(self) -> None:
        """The connection is over, and so are the calls."""
        self._requests.clear()
        go_on, self.long_replies = self.long_replies, None
        if go_on is not None:
            go_on()


class H2Output:
    """The output of one connection."""

    def __init__(self, connection: Connection) -> None:
        self.core = connection.core
        self.connection = connection
        self.peer_common_name = connection.peer_common_name
        self.message_bytes_max = self.core.options.message_bytes_max
        self.loop = asyncio.get_running_loop()
        self.h2 = h2.H2Server(
            self.core.options.grpc_keepalive,
            self.core.turn.read_clock(),
            whole_requests=True,
            step_bytes=limits.H2_STEP_BYTES,
        )
        self.step_until_s = 0.0  # on `Turn.read_clock`
        self.step_messages = limits.H2_STEP_MESSAGES  # requests of streaming calls that this step still takes
        self.step_inflate_bytes = limits.H2_STEP_MESSAGE_BYTES  # of compressed messages, that this step still inflates
        # What waits for the next steps, in order: streaming calls with more requests, unary ones with a long message.
        self.kept_back: dict[Any, bytes | None] = {}
        self.streaming: set[StreamCall] = set()  # the server ends them when it stops
        self.waiting_for_drain: set[Any] = set()
        self.held = Held(address_of(connection.transport), connection)
        self.deferred: Deferred | None = None
        self.room_bytes = limits.CONNECTION_SEND_BYTES_MAX  # of replies that are not taken; -1 while `deferred` waits
        self._unflushed_bytes = 0  # of replies of this turn
        self._unfinished: dict[h2.Stream, int] = {}  # bytes kept of each request that has not come in whole

    @property
    def address(self) -> str:
        """The peer's, see peer_address.py."""
        return self.held.address

    @property
    def defers(self) -> bool:
        """Whether a new request has to wait (`defer`): too much waits for the peer, or requests do."""
        return self.held.size_bytes + self._unflushed_bytes + self.h2.queued_bytes > self.room_bytes

    @property
    def overfull(self) -> bool:
        """Whether too much waits for the peer without the long replies that are not made, and what these keep.

        Also while its socket is full: then its windows bound nothing.
        """
        return (
            self.unread_bytes - self.held.unmade_bytes > limits.CONNECTION_SEND_BYTES_MAX
            or self.connection.transport.get_write_buffer_size() > limits.CONNECTION_BACKLOG_BYTES_MAX
        )

    @property
    def unread_bytes(self) -> int:
        return self.held.size_bytes + self._unflushed_bytes + self.h2.queued_bytes

    @property
    def backlog_bytes(self) -> int:
        return self.h2.queued_bytes + self.connection.transport.get_write_buffer_size()

    def deframer(self, stream: h2.Stream) -> grpc.Deframer:
        assert stream.head is not None
        return grpc.Deframer(self.message_bytes_max, stream.head.get(b"grpc-encoding"))

    def inflated(self, size_bytes: int) -> None:
        """Messages have become so large by inflating. When they are too many bytes, the step ends behind this call."""
        self.step_inflate_bytes -= size_bytes
        if self.step_inflate_bytes <= 0:
            self.step_messages = 0
            self.step_until_s = -math.inf

    # --- gRPC ---

    def respond(self, stream: h2.Stream, framed: bytes) -> None:
        """Sends the whole reply to a successful unary call."""
        if not self._unflushed_bytes:  # else it was said in this turn
            self.core.turn.flush_later(self.connection)
        self._unflushed_bytes += len(framed)
        self.h2.send_response(stream, grpc.RESPONSE_HEADERS, framed, grpc.TRAILERS_OK)

    def send(self, stream: h2.Stream, replies: list[bytes], start: bool) -> None:
        """Sends messages of a streaming call. `start`: they are the first, so the response headers go before them."""
        if start:
            self.h2.send_headers(stream, grpc.RESPONSE_HEADERS)
        self.h2.send_data(stream, b"".join(map(grpc.frame, replies)))
        self.core.turn.flush_later(self.connection)

    def end(self, stream: h2.Stream, error: EtcdError | None, started: bool) -> None:
        """Ends a call with an error, or a streaming call with OK (None). `started`: its response headers were sent."""
        self.uncount(stream)
        stream.owner = REFUSED
        code, text = (error.code, error.message) if error else (Code.OK, "")
        if started:
            self.h2.send_headers(stream, grpc.trailers(code, text), end_stream=True)
        elif error is None:
            self.h2.send_headers(stream, grpc.RESPONSE_HEADERS)
            self.h2.send_headers(stream, grpc.TRAILERS_OK, end_stream=True)
        else:
            self.h2.send_headers(stream, grpc.trailers_only(code, text), end_stream=True)
        self.core.turn.flush_later(self.connection)

    def drop_waiting(self, stream: h2.Stream) -> None:
        """Drops what waits for the peer on the stream, which is ended with an error next."""
        self.h2.drop_queue(stream)

    # --- plain HTTP ---

    def start_http(self, stream: h2.Stream, status: int, headers: Headers, length: int | None) -> None:
        block = _block(status, headers)
        if length is not None:
            block += h2.encode_headers([(b"content-length", b"%d" % length)])
        self.h2.send_headers(stream, block)
        self.core.turn.flush_later(self.connection)

    def write_http(self, stream: h2.Stream, data: bytes, end: bool) -> None:
        self._unflushed_bytes += len(data)
        self.h2.send_data(stream, data, end_stream=end)
        self.core.turn.flush_later(self.connection)

    # --- requests that wait ---

    def defer(self, stream: h2.Stream, size_bytes: int, go_on: Callable[[], None]) -> DeferredRequest:
        """Keeps a request of so many bytes. `go_on` is called when its turn comes. The bytes are not counted yet."""
        deferred = self._deferring()
        request = DeferredRequest(deferred, stream, size_bytes, go_on)
        deferred.add(request)
        return request

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        """As UnaryCall.waits_for_peer."""
        if not self.overfull:
            return False
        deferred = self._deferring()
        deferred.long_replies = go_on
        self.room_bytes = -1
        return True

    def _deferring(self) -> Deferred:
        if self.deferred is None:
            self.deferred = Deferred(self)
        return self.deferred

    # --- requests that have not come in whole, or wait ---

    def keep_count(self, stream: h2.Stream) -> None:
        """More bytes of a request have come, but not its end; or it waits."""
        kept_bytes = stream.owner.unfinished_bytes
        if kept_bytes or self._unfinished:
            self.count(stream, kept_bytes)

    def count(self, stream: h2.Stream, kept_bytes: int) -> None:
        before_bytes = self._unfinished.get(stream, 0)
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
        """Ends the request that began last; see loop/unfinished.py."""
        stream = next(reversed(self._unfinished))
        stream.owner.end_now(error)
        self.uncount(stream)

    def uncount_all(self) -> None:
        for stream in list(self._unfinished):
            self.uncount(stream)
