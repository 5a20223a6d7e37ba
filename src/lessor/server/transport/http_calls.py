# SPDX-License-Identifier: Apache-2.0
"""HTTP requests that are not gRPC: the JSON gateway's calls and the plain pages, over HTTP/1.1 and HTTP/2 alike.

`answer` looks at a request's head and gives the object that takes its body: a page, a unary call or a stream. An
`Exchange` is a request with a way to reply to it; h1_session.py and h2_session.py have one each.
"""

import asyncio
import re
from collections.abc import Iterator
from typing import Any, Protocol

from lessor.api.methods import Method
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_codec, routes, stream
from lessor.gateway.routes import Headers
from lessor.server.loop.bugs import told
from lessor.server.loop.core import OVER, Core, StreamHandler, Waiting


class Exchange(Protocol):
    """One HTTP request and the way to its reply. Replying to a peer that went away does nothing."""

    method: str
    path: str
    query: str

    def header(self, name: bytes, /) -> bytes | None:
        """The value of the request's first header of that name (in lower case)."""
        ...

    def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole reply in one piece."""
        ...

    def start(self, status: int, headers: Headers) -> None:
        """The head of a reply whose length is not known yet."""
        ...

    def write(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    @property
    def backlog_bytes(self) -> int: ...

    @property
    def overfull(self) -> bool:
        """Whether the peer has asked for more than it takes."""
        ...

    def wake_when_drained(self, stream: Any) -> None: ...


class Body(Protocol):
    """Takes the body of a request."""

    @property
    def unfinished_bytes(self) -> int:
        """What is kept of a request, or of one message in a stream of them, that has not come in whole."""
        ...

    def fail(self, error: EtcdError) -> None:
        """Ends the call with an error, whatever else the peer sends."""
        ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_gone(self) -> None:
        """The peer went away, or the connection did."""
        ...


def answer(core: Core, exchange: Exchange) -> Body:
    """Decides by method and path what serves the request."""
    made = core.pages.page(core, exchange.method, exchange.path, exchange.query)
    if made is not None:
        return Plain(exchange, made)
    found = routes.match(exchange.method, exchange.path)
    if not isinstance(found, Method):
        return Plain(exchange, found)
    if core.serves(found):
        try:
            timeout_s = timeout_of(exchange)
        except EtcdError as refusal:
            return Plain(exchange, routes.error_answer(refusal))
        call = JsonUnary if found.unary else JsonStream
        return call(core, exchange, found, timeout_s)
    core.metrics.started[found].n += 1
    core.metrics.handled[found, Code.UNIMPLEMENTED].n += 1
    error = EtcdError(Code.UNIMPLEMENTED, f"unknown method {found.name} for service {found.service}")
    return Plain(exchange, routes.error_answer(error))


_TIMEOUT = re.compile(rb"([+-]?\d{1,19})([HMSmun])")
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_S_MAX = 1e9  # decades: a timer takes no more


def timeout_of(exchange: Exchange) -> float | None:
    """How long the peer waits, in seconds, by its Grpc-Timeout; None: as long as it takes. Raises INVALID_ARGUMENT.

    As in etcd's gateway the number may have a sign and any length, and zero means no bound.
    """
    value = exchange.header(b"grpc-timeout")
    if not value:
        return None
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise EtcdError(Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {value.decode('latin-1')}")
    return min(int(found[1]) * _UNIT_S[found[2]], _TIMEOUT_S_MAX) or None


class Plain:
    """A reply that is known from the head; sent when the request has come in whole."""

    def __init__(self, exchange: Exchange, reply: routes.Answer) -> None:
        self._exchange: Exchange | None = exchange
        self._reply = reply

    unfinished_bytes = 0

    def fail(self, error: EtcdError) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None:
        exchange, self._exchange = self._exchange, None  # which knows us
        if exchange is not None:
            exchange.reply(*self._reply)

    def on_gone(self) -> None:
        self._exchange = None


def _token_of(exchange: Exchange | None) -> bytes | None:
    """The token in a request's headers; as in etcd's gateway, Grpc-Metadata-X is the metadata field X."""
    if exchange is None:
        return None
    token = exchange.header(b"grpc-metadata-token")
    return token if token is not None else exchange.header(b"authorization")


class JsonUnary:
    """A unary call in JSON."""

    # Proxies hold certificates of their own, so that of an HTTP client says nothing about who calls, as in etcd.
    peer_common_name = None

    def __init__(self, core: Core, exchange: Exchange, method: Method, timeout_s: float | None = None) -> None:
        self._core = core
        self._exchange: Exchange | None = exchange
        self._deadline_s = None if timeout_s is None else core.turn.now_s() + timeout_s
        self._timer: asyncio.TimerHandle | None = None  # while the call waits for its turn
        self._body = bytearray()  # no list: of pieces of a few bytes each that would take many times their size
        self.method = method
        self.waiting: Waiting | None = None
        core.metrics.started[method].n += 1
        core.metrics.requests[True, b"unknown"].n += 1

    @property
    def token(self) -> bytes | None:
        return _token_of(self._exchange)

    def on_body(self, data: bytes) -> None:
        self._body += data

    @property
    def unfinished_bytes(self) -> int:
        return len(self._body)

    def fail(self, error: EtcdError) -> None:
        self._body.clear()
        self.deliver(error)

    def refused(self) -> bool:
        if self._exchange is None or not self._exchange.overfull:
            return False
        self.fail(errors.TOO_MANY_REQUESTS.error())
        return True

    def on_end(self) -> None:
        try:
            request = json_codec.decode(self.method.request, bytes(self._body))
            self._body.clear()
        except Exception as error:
            self.deliver(told(error, self.method.path))
            return
        size, size_max = request.ByteSize(), self._core.options.message_bytes_max
        if size > size_max:
            text = f"grpc: received message larger than max ({size} vs. {size_max})"
            self.deliver(EtcdError(Code.RESOURCE_EXHAUSTED, text))
            return
        if self._late():
            self.deliver(errors.DEADLINE_EXCEEDED.error())
            return
        self._core.unary(self, request)
        if self.waiting is not None and self._deadline_s is not None:
            left_s = self._deadline_s - self._core.turn.now_s()
            self._timer = asyncio.get_running_loop().call_later(left_s, self._out_of_time)

    def _late(self) -> bool:
        return self._deadline_s is not None and self._core.turn.now_s() > self._deadline_s

    def _out_of_time(self) -> None:
        if self.waiting is not None:
            self._stop_waiting()
            self.deliver(errors.DEADLINE_EXCEEDED.error())

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.on_gone()

    def on_gone(self) -> None:
        self._exchange = None
        self._stop_waiting()

    def encode(self, reply: bytes) -> bytes:
        return json_codec.encode(self.method.response.FromString(reply))

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]:
        made = []
        for piece in json_codec.encode_in_pieces(self.method.response, pieces):
            made.append(piece)
            yield None
        yield b"".join(made)

    def deliver(self, payload: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._late():
            payload = errors.DEADLINE_EXCEEDED.error()
        code = payload.code if isinstance(payload, EtcdError) else Code.OK
        self._core.metrics.handled[self.method, code].n += 1
        exchange, self._exchange = self._exchange, None  # which knows us
        if exchange is None:
            return
        if isinstance(payload, EtcdError):
            exchange.reply(*routes.error_answer(payload))
        else:
            exchange.reply(200, routes.JSON_HEADERS, payload)


class JsonStream:
    """A streaming call in JSON: the request body is a row of JSON objects, the reply a row of result lines."""

    # Proxies hold certificates of their own, so that of an HTTP client says nothing about who calls, as in etcd.
    peer_common_name = None

    def __init__(self, core: Core, exchange: Exchange, method: Method, timeout_s: float | None = None) -> None:
        self.method = method
        self._core = core
        self._exchange: Exchange | None = exchange
        self._decoder = stream.StreamDecoder(method.request, core.options.message_bytes_max)
        self._started = False
        self._asked = False  # whether a request has come
        self._failed = False  # a request was refused; those after it are not looked at
        self._handler: StreamHandler = core.stream_handlers[method](core, self)
        core.metrics.started[method].n += 1
        core.metrics.requests[False, b"unknown"].n += 1
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(timeout_s, self.finish, errors.DEADLINE_EXCEEDED.error())

    @property
    def token(self) -> bytes | None:
        return _token_of(self._exchange)

    def on_body(self, data: bytes) -> None:
        if self._failed:
            return
        try:
            messages = [message.SerializeToString() for message in self._decoder.feed(data)]
            if messages and self._exchange is not None:
                self._asked = True
                if self._core.auth.enabled:
                    self._core.permit_messages(self, messages)
                self._core.metrics.received[self.method] += len(messages)
                self._handler.on_messages(messages)
        except Exception as error:
            self._fail(told(error, self.method.path))
        self._check()

    @property
    def unfinished_bytes(self) -> int:
        return self._decoder.unfinished_bytes

    def fail(self, error: EtcdError) -> None:
        self.finish(error)

    def _fail(self, error: EtcdError) -> None:
        """Ends the call, after the replies to earlier requests, which may still wait at the gate."""
        self._failed = True
        self._core.gate.hold(self._core.machine.journal.newest_with_rows, self, error)

    def on_end(self) -> None:
        self._decoder.finish()
        self._check()
        if self._exchange is None or self._failed or self._decoder.error is not None:
            return
        try:
            if self._core.auth.enabled and not self._asked:
                self._core.permit_messages(self, [b""])
            self._handler.on_requests_end()
        except Exception as error:
            self._fail(told(error, self.method.path))

    def _check(self) -> None:
        """A malformed request ends the call, after the replies to those before it, which may wait at the gate."""
        if self._decoder.error is not None:
            self._core.gate.hold(self._core.machine.journal.newest_with_rows, self, self._decoder.error)

    def deliver(self, payload: EtcdError) -> None:
        """The gate has let out whatever came before this end."""
        self.finish(payload)

    def on_gone(self) -> None:
        self._close(errors.REQUEST_CANCELED.error())

    def _close(self, error: EtcdError | None) -> Exchange | None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._core.metrics.handled[self.method, error.code if error else Code.OK].n += 1
            handler, self._handler = self._handler, OVER
            try:
                handler.on_gone()
            except Exception as problem:  # the connection has other calls to end
                told(problem, self.method.path)
        return exchange

    def send(self, replies: list[bytes]) -> None:
        if self._exchange is None:
            return
        self._start(self._exchange)
        self._core.metrics.sent[self.method] += len(replies)
        for reply in replies:
            self._exchange.write(stream.result_frame(self.method.response.FromString(reply)))

    def _start(self, exchange: Exchange) -> None:
        if not self._started:
            self._started = True
            exchange.start(200, routes.JSON_HEADERS)

    def finish(self, error: EtcdError | None = None) -> None:
        exchange = self._close(error)
        if exchange is None:
            return
        if error is not None and not self._started:
            exchange.reply(*routes.error_answer(error))
            return
        self._start(exchange)
        if error is not None:
            exchange.write(stream.error_frame(error))
        exchange.finish()

    @property
    def backlog_bytes(self) -> int:
        return self._exchange.backlog_bytes if self._exchange is not None else 0

    def wake_when_drained(self, stream: Any) -> None:
        if self._exchange is not None:
            self._exchange.wake_when_drained(stream)
