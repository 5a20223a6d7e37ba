# SPDX-License-Identifier: Apache-2.0
"""HTTP requests that are not gRPC, over HTTP/1.1 and HTTP/2: the JSON codec of calls (loop/call.py), and plain pages.

`answer` looks at a request's head and returns the `Body` for it: a page, a unary call or a streaming call. An
`Exchange` is a request and the way to its reply: `H1Exchange`, `H2Exchange`, or `WebSocketCall`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_codec, routes, stream
from lessor.gateway.routes import Headers
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import StreamCall, UnaryCall, Waiting
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.observe.metrics import CallCounts

_LONG_STEP_COST_BYTES: Final = 524_288  # of a step of a long message: half a millisecond to one


class Exchange(Protocol):
    """One HTTP request and the way to its reply. Replying to a peer that went away does nothing."""

    method: str
    path: str
    query: str

    @property
    def held(self) -> Held:
        """The connection's count of replies that wait at the gate."""
        ...

    def header(self, name: bytes, /) -> bytes | None:
        """The value of the request's first header of that name (in lower case)."""
        ...

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """Sends a whole reply."""
        ...

    def start(self, status: int, headers: Headers) -> None:
        """Sends the head of a reply whose length is not known yet."""
        ...

    def write(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    @property
    def backlog_bytes(self) -> int: ...

    def defer(self, size_bytes: int, go_on: Callable[[], None], wait: Callable[[Waiting], None]) -> bool:
        """Whether a request that came in whole, of so many bytes, has to wait until its peer has taken replies.

        If so `wait` is called with what it waits for. The body may be ended before this returns, if too much is kept.
        `go_on` is called when its turn comes, unless `on_gone` was called before.
        """
        ...

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        """As UnaryCall.waits_for_peer."""
        ...

    def wake_when_drained(self, stream: Any) -> None: ...

    def hold_up(self, waits: bool) -> None:
        """Reads no more from the peer while its body, or requests of its stream, wait for their turn."""
        ...


class Body(Protocol):
    """Takes the body of a request."""

    @property
    def streaming_call(self) -> StreamCall | None:
        """The streaming call whose requests the body carries, or None. Such a body may have no end."""
        ...

    @property
    def open_ended(self) -> bool:
        """Whether the wait for the reply has no bound. A peer that half-closes during such a wait has hung up."""
        ...

    @property
    def unfinished_bytes(self) -> int:
        """The bytes kept of a request, or of one message in a stream, that has not come in whole."""
        ...

    def end_now(self, error: EtcdError) -> None:
        """Ends the call with an error, whatever else the peer sends."""
        ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def gone(self) -> None:
        """The peer went away, or the connection did."""
        ...


def answer(core: Core, exchange: Exchange) -> Body:
    """The Body for a request, by its method and path."""
    if core.pages.has(exchange.path):
        head = (exchange.method, exchange.path, exchange.query)
        conditions = (exchange.header(b"accept"), exchange.header(b"if-none-match"))
        return Plain(exchange, partial(core.pages.page, core, *head, *conditions))
    found = routes.match(exchange.method, exchange.path)
    if not isinstance(found, Method):
        return Plain(exchange, partial(_same, found))
    counts = core.metrics.calls(found, CLIENT_API_VERSION)
    if core.serves(found):
        try:
            timeout_s = timeout_of(exchange)
        except EtcdError as refusal:
            return Plain(exchange, partial(routes.error_answer, refusal))
        call = JsonUnary if found.unary else JsonStream
        return call(core, exchange, counts, timeout_s)
    counts.begin()
    counts.end(Code.UNIMPLEMENTED)
    error = EtcdError(Code.UNIMPLEMENTED, f"unknown method {found.name} for service {found.service}")
    return Plain(exchange, partial(routes.error_answer, error))


def _same(known: routes.Answer) -> routes.Answer:
    return known


CLIENT_API_VERSION: Final = b"unknown"  # a JSON client names none
_TIMEOUT = re.compile(rb"([+-]?\d{1,19})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_S_MAX = 1e9  # decades: a timer takes no more


def timeout_of(exchange: Exchange) -> float | None:
    """The peer's Grpc-Timeout in seconds; None: no bound. Raises INVALID_ARGUMENT.

    As in etcd's gateway the number may have a sign and up to 19 digits, and zero means no bound.
    """
    value = exchange.header(b"grpc-timeout")
    if not value:
        return None
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise EtcdError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {value.decode('latin-1')}")
    return min(int(found[1]) * _UNIT_S[found[2]], _TIMEOUT_S_MAX) or None


class Plain:
    """A request whose head says all. `reply` makes its reply, when the request has come in whole and need not wait."""

    def __init__(self, exchange: Exchange, reply: Callable[[], routes.Answer]) -> None:
        self._exchange: Exchange | None = exchange
        self._reply = reply
        self._waiting: Waiting | None = None  # until the peer has taken replies

    streaming_call = None
    open_ended = False
    unfinished_bytes = 0

    def end_now(self, error: EtcdError) -> None:
        exchange = self._exchange
        if self._waiting is not None and exchange is not None:  # else nothing is kept
            self.gone()
            exchange.reply(*routes.error_answer(error))

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._waiting = None
        if not exchange.defer(0, self.on_end, self._wait):
            self._exchange = None  # it refers to us
            exchange.reply(*self._reply())

    def _wait(self, waiting: Waiting) -> None:
        self._waiting = waiting

    def gone(self) -> None:
        self._exchange = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.on_gone()


def _token_of(exchange: Exchange | None) -> bytes | None:
    """The token in a request's headers. As in etcd's gateway, Grpc-Metadata-X is the metadata field X."""
    if exchange is None:
        return None
    token = exchange.header(b"grpc-metadata-token")
    return token if token is not None else exchange.header(b"authorization")


def _requires_leader(exchange: Exchange | None) -> bool:
    """Whether a request's headers ask for a leader, as metadata in etcd's gateway."""
    return exchange is not None and exchange.header(b"grpc-metadata-hasleader") == b"true"


class JsonUnary(UnaryCall):
    """A unary call in JSON. A body that takes long to read has its turn, see loop/pace.py."""

    __slots__ = ("_body", "_exchange", "_values")

    def __init__(self, core: Core, exchange: Exchange, counts: CallCounts, timeout_s: float | None = None) -> None:
        UnaryCall.__init__(self, core, counts, exchange.held)
        self._exchange: Exchange | None = exchange
        self._body = bytearray()  # not a list: pieces of a few bytes each would take many times their size
        self._values = 0  # while the body waits for its turn: what it costs to read it, in names and values
        if timeout_s is not None:
            self.expire_after(timeout_s)

    @property
    def token(self) -> bytes | None:
        return _token_of(self._exchange)

    @property
    def requires_leader(self) -> bool:
        return _requires_leader(self._exchange)

    @property
    def peer_common_name(self) -> str | None:
        """None, as in etcd: a proxy has a certificate of its own, so the certificate does not name the caller."""
        return None

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return self._exchange is not None and self._exchange.waits_for_peer(go_on)

    @property
    def streaming_call(self) -> StreamCall | None:
        return None

    @property
    def open_ended(self) -> bool:
        return self.waiting is not None and self.waiting.open_ended

    # --- in ---

    def on_body(self, data: bytes) -> None:
        if self.over:
            return
        before_bytes = len(self._body)
        self._body += data
        if before_bytes <= limits.STRANGER_BYTES_MAX:
            try:
                self.core.refuse_stranger(self, self.method.request, len(self._body))
            except EtcdError as refusal:
                self.end_now(refusal)

    @property
    def unfinished_bytes(self) -> int:
        return len(self._body)

    def on_end(self) -> None:
        if self.over or self._deferred():
            return
        if len(self._body) > limits.JSON_SHORT_BYTES and self._is_long():
            return
        self._read(bytes(self._body))

    def _deferred(self) -> bool:
        """Whether the request waits until the peer has taken replies, or is refused for that it may not."""
        exchange = self._exchange
        if exchange is None or not exchange.defer(len(self._body), self._go_on, self.wait):
            return False
        try:
            self.core.refuse_to_keep(self, self.method.request)
        except EtcdError as refusal:
            self.end_now(refusal)
        return True

    def _go_on(self) -> None:
        self.wait_no_more()
        self.on_end()

    def _is_long(self) -> bool:
        """Lets a body that takes long to read wait for its turn, or refuses it. Returns whether it did so."""
        count = json_codec.count_values(self._body)
        try:
            json_codec.refuse_many_values(count, self.core.options.json_values_max)
        except EtcdError as refusal:
            self.end_now(refusal)
            return True
        values = count + len(self._body) // limits.JSON_VALUE_BYTES
        if values <= limits.JSON_SHORT_VALUES:
            return False
        self._values = values
        self.core.body_pace.later(self)
        if self._exchange is not None:
            self._exchange.hold_up(True)
        return True

    def take_share(self) -> tuple[int, bool]:
        """Reads the body, see loop/pace.py."""
        self.core.turn.schedule()  # this turn's batch is sealed already, and the request may leave rows
        cost, body = self._values, bytes(self._body)
        self._drop_body()
        self._body += body
        if not self._deferred():
            self._read(body)
        return cost, False

    def _drop_body(self) -> None:
        """The body waits no more."""
        self._body.clear()
        if self._values:
            self._values = 0
            self.core.body_pace.forget(self)
            if self._exchange is not None:
                self._exchange.hold_up(False)

    def _read(self, body: bytes) -> None:
        self._body.clear()
        try:
            request = json_codec.decode(self.method.request, body)
        except Exception as error:
            self.end_now(as_answer(error, self.method.path))
            return
        size, size_max = request.ByteSize(), self.core.options.message_bytes_max
        if size > size_max:
            text = f"grpc: received message larger than max ({size} vs. {size_max})"
            self.end_now(EtcdError(Code.RESOURCE_EXHAUSTED, text))
            return
        self.serve(request)

    # --- out ---

    def encode(self, reply: bytes) -> bytes:
        return json_codec.encode(self.method.response.FromString(reply))

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]:
        made = BytesIO()  # as in GrpcUnary
        for piece in json_codec.encode_in_pieces(self.method.response, pieces):
            made.write(piece)
            yield None
        yield made.getvalue()

    def _send(self, payload: bytes) -> None:
        exchange, self._exchange = self._exchange, None  # it refers to us
        assert exchange is not None
        exchange.reply(200, routes.JSON_HEADERS, payload)

    def _send_error(self, error: EtcdError) -> None:
        self._drop_body()
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        exchange.reply(*routes.error_answer(error))

    def _let_go(self) -> None:
        self._drop_body()
        self._exchange = None


class JsonStream(StreamCall):
    """A streaming call in JSON: the request body is a row of JSON objects, the reply a row of result lines."""

    __slots__ = ("_asked", "_decoder", "_exchange", "_requests_ended", "_started", "_waits")

    def __init__(self, core: Core, exchange: Exchange, counts: CallCounts, timeout_s: float | None = None) -> None:
        self._exchange: Exchange | None = exchange
        options = core.options
        self._decoder = stream.StreamDecoder(counts.method.request, options.message_bytes_max, options.json_values_max)
        self._started = False
        self._asked = False  # whether a request has come
        self._waits = False  # whether requests wait for later turns
        self._requests_ended = False  # whether those are the last
        StreamCall.__init__(self, core, counts)
        if timeout_s is not None:
            self.expire_after(timeout_s)

    @property
    def token(self) -> bytes | None:
        return _token_of(self._exchange)

    def metadata(self, name: bytes) -> bytes | None:
        return None if self._exchange is None else self._exchange.header(b"grpc-metadata-" + name)

    @property
    def requires_leader(self) -> bool:
        return _requires_leader(self._exchange)

    @property
    def peer_common_name(self) -> str | None:
        """None, as in JsonUnary."""
        return None

    @property
    def streaming_call(self) -> StreamCall | None:
        return self

    @property
    def open_ended(self) -> bool:
        return True

    @property
    def held(self) -> Held:
        assert self._exchange is not None
        return self._exchange.held

    @property
    def peer_address(self) -> str:
        return self._exchange.held.address if self._exchange is not None else ""

    @property
    def backlog_bytes(self) -> int:
        return self._exchange.backlog_bytes if self._exchange is not None else 0

    def wake_when_drained(self, stream: Any) -> None:
        if self._exchange is not None:
            self._exchange.wake_when_drained(stream)

    # --- in ---

    def on_body(self, data: bytes) -> None:
        if self.ending:
            return
        try:
            size_bytes = len(data) + self._decoder.unfinished_bytes
            self.core.refuse_stranger(self, self.method.request, size_bytes)
            # Behind requests that wait, the data waits too.
            self._take(self._decoder.feed(data, 0 if self._waits else limits.STREAM_REQUESTS_AT_ONCE_MAX))
        except Exception as error:
            self.end_in_order(as_answer(error, self.method.path))

    def take_share(self) -> tuple[int, bool]:
        """Takes the next requests that wait, see loop/pace.py."""
        self.core.turn.schedule()  # this turn's batch is sealed already, and the requests may leave rows
        if self.over or self.ending:
            self._wait(False)
            return 1, False
        messages = self._decoder.feed(b"", limits.STREAM_REQUESTS_AT_ONCE_MAX)
        self._take(messages)
        if self._requests_ended and not self._waits:
            self._end_requests()
        return max(self._decoder.cost, 1), self._waits

    def _take(self, messages: list[Message]) -> None:
        if messages:
            self._asked = True
            self.take([message.SerializeToString() for message in messages])
        self._end_if_malformed()
        self._wait(self._decoder.waiting and not self.over and not self.ending)

    def _wait(self, waits: bool) -> None:
        if waits is self._waits:
            return
        self._waits = waits
        if waits:
            self.core.request_pace.later(self)
        else:
            self.core.request_pace.forget(self)
        if self._exchange is not None:
            self._exchange.hold_up(waits)

    @property
    def unfinished_bytes(self) -> int:
        return self._decoder.unfinished_bytes

    def on_end(self) -> None:
        self._requests_ended = True
        if not self._waits:
            self._end_requests()

    def _end_requests(self) -> None:
        self._decoder.finish()
        self._end_if_malformed()
        self.requests_end(without_any=not self._asked)

    def _end_if_malformed(self) -> None:
        if self._decoder.error is not None and not self.ending:
            self.end_in_order(self._decoder.error)

    # --- out ---

    def _send(self, replies: list[bytes]) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._start(exchange)
        for reply in replies:
            exchange.write(stream.result_frame(self.method.response.FromString(reply)))

    def _send_long(self, head: bytes, chunks: Sequence[bytes]) -> Iterator[int]:
        made = BytesIO()
        for piece in stream.result_frame_in_pieces(self.method.response, [head, *chunks]):
            made.write(piece)
            yield _LONG_STEP_COST_BYTES
        exchange = self._exchange
        assert exchange is not None
        self._start(exchange)
        exchange.write(made.getvalue())

    def _start(self, exchange: Exchange) -> None:
        if not self._started:
            self._started = True
            exchange.start(200, routes.JSON_HEADERS)

    def _send_end(self, error: EtcdError | None) -> None:
        self._decoder.drop()
        self._wait(False)
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        if error is not None and not self._started:
            exchange.reply(*routes.error_answer(error))
            return
        self._start(exchange)
        if error is not None:
            exchange.write(stream.error_frame(error))
        exchange.finish()

    def _let_go(self) -> None:
        self._decoder.drop()
        self._wait(False)
        self._exchange = None
