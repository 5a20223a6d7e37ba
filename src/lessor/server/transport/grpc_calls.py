# SPDX-License-Identifier: Apache-2.0
"""gRPC calls: what happens between an HTTP/2 stream that carries gRPC and the core.

A stream's owner is one of the two classes here. `GrpcUnary` gathers one request and sends one reply; `GrpcStream`
joins a streaming call to its handler. Both survive their stream: what the gate delivers after a reset goes nowhere.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from lessor.api.methods import Method
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.bugs import told
from lessor.server.loop.core import OVER
from lessor.server.observe.metrics import Metrics
from lessor.wire import grpc
from lessor.wire.h2 import Stream

if TYPE_CHECKING:
    from lessor.server.loop.core import StreamHandler, Waiting
    from lessor.server.transport.h2_session import H2Session


def token_of(stream: Stream | None) -> bytes | None:
    """The token in a call's metadata; None also when the call is gone."""
    head = stream.head if stream is not None else None
    if head is None:
        return None
    token = head.get(b"token")
    return token if token is not None else head.get(b"authorization")


class Route:
    """What is known of all calls with one head: the method, and where they are counted."""

    __slots__ = ("method", "parse", "requests", "started", "succeeded", "unary")

    def __init__(self, metrics: Metrics, method: Method, client_api_version: bytes) -> None:
        self.method = method
        self.unary = method.unary
        label = (method.unary, client_api_version)
        if label not in metrics.requests and len(metrics.requests) >= limits.CLIENT_VERSIONS_MAX:
            label = (method.unary, b"other")  # a peer may send anything
        self.parse = method.request.FromString
        self.started = metrics.started[method]
        self.requests = metrics.requests[label]
        self.succeeded = metrics.handled[method, Code.OK]


class GrpcUnary:
    """One unary call. The hot path of grants, puts and ranges.

    It is served when its first message is whole; what comes after that is not looked at, as in etcd.
    """

    __slots__ = ("_deframer", "_route", "_served", "_session", "_stream", "_timer", "deadline_s", "method", "waiting")

    def __init__(self, session: "H2Session", stream: Stream, route: Route) -> None:
        self._session = session
        self._stream: Stream | None = stream
        self._deframer: grpc.Deframer | None = None
        self._route = route
        self.method = route.method
        self._served = False  # its message has come
        self.deadline_s: float | None = None  # set where the peer named a timeout
        self.waiting: Waiting | None = None
        self._timer: Any = None

    @property
    def token(self) -> bytes | None:
        return token_of(self._stream)

    @property
    def peer_common_name(self) -> str | None:
        return self._session.peer_common_name

    def on_whole(self, data: bytes) -> None:
        """The request's whole body, as one frame: the usual case by far."""
        size = len(data) - 5
        if size >= 0 and data[0] == 0 and int.from_bytes(data[1:5], "big") == size <= self._session.message_bytes_max:
            self._serve(data[5:])
        else:
            self.on_data(data)
            self.on_end()

    def on_data(self, data: bytes) -> None:
        if self._served or self._stream is None:
            return
        if self._deframer is None:
            self._deframer = self._session.deframer(self._stream)
        try:
            messages = self._deframer.feed(data)
        except EtcdError as error:
            self.fail(error)
            return
        if messages:
            self._deframer = None
            self._serve(messages[0])

    @property
    def unfinished_bytes(self) -> int:
        return 0 if self._deframer is None else self._deframer.unfinished_bytes

    def on_end(self) -> None:
        if not self._served:
            half = self.unfinished_bytes >= grpc.PREFIX_BYTES
            self.fail((errors.HALF_A_MESSAGE if half else errors.NO_MESSAGE).error())

    def _serve(self, message: bytes) -> None:
        self._served = True
        if self.refused():
            return
        core = self._session.core
        try:
            request = self._route.parse(message)
        except DecodeError:
            self.fail(errors.MALFORMED_MESSAGE.error())
            return
        core.unary(self, request)
        if self.waiting is not None and self.deadline_s is not None:
            left_s = self.deadline_s - core.turn.now_s()
            self._timer = self._session.loop.call_later(left_s, self._out_of_time)

    def refused(self) -> bool:
        if not self._session.overfull:
            return False
        stream, self._stream = self._stream, None
        if stream is not None:
            self._session.core.metrics.handled[self.method, Code.UNAVAILABLE].n += 1
            self._session.refuse(stream)
        return True

    def _out_of_time(self) -> None:
        if self.waiting is not None:
            self._stop_waiting()
            self.fail(errors.DEADLINE_EXCEEDED.error())

    def _stop_waiting(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.on_gone()

    def on_reset(self) -> None:
        if self._stream is not None:
            self._session.core.metrics.handled[self.method, Code.CANCELED].n += 1
        self._stream = None
        if self._timer is not None:
            self._timer.cancel()
        self._stop_waiting()

    def encode(self, reply: bytes) -> bytes:
        framed = grpc.frame(reply)
        self._session.held_bytes += len(framed)
        return framed

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]:
        made = []
        for piece in pieces:
            made.append(piece)
            yield None
        yield self.encode(b"".join(made))

    def deliver(self, payload: Any) -> None:
        if not isinstance(payload, EtcdError):
            self._session.held_bytes -= len(payload)
        stream = self._stream
        if self._timer is not None:
            self._timer.cancel()
        if stream is None:
            return
        if isinstance(payload, EtcdError):
            self.fail(payload)
        elif self.deadline_s is not None and self._session.core.turn.now_s() >= self.deadline_s:
            self.fail(errors.DEADLINE_EXCEEDED.error())
        else:
            self._stream = None
            self._route.succeeded.n += 1
            self._session.respond(stream, payload)

    def fail(self, error: EtcdError) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._session.fail(self.method, stream, error, started=False)


class GrpcStream:
    """One streaming call, between its stream and its handler.

    Where only the server streams there is exactly one request, and the call begins when the peer has said so by ending
    its side.
    """

    __slots__ = ("_deframer", "_failed", "_handler", "_only", "_session", "_started", "_stream", "_timer", "method")

    def __init__(self, session: "H2Session", stream: Stream, method: Method) -> None:
        self.method = method
        self._session = session
        self._stream: Stream | None = stream
        self._deframer = session.deframer(stream)
        self._started = False
        self._only: bytes | None = None  # the request of a call that takes one, until its end
        self._failed = False  # a request was malformed or refused; those after it are not looked at
        self._timer: Any = None
        self._handler: StreamHandler = session.core.stream_handlers[method](session.core, self)

    def expire_after(self, timeout_s: float) -> None:
        """Ends the call with DEADLINE_EXCEEDED when the peer's grpc-timeout has passed."""
        self._timer = self._session.loop.call_later(timeout_s, self.finish, errors.DEADLINE_EXCEEDED.error())

    @property
    def token(self) -> bytes | None:
        return token_of(self._stream)

    @property
    def peer_common_name(self) -> str | None:
        return self._session.peer_common_name

    def on_data(self, data: bytes) -> None:
        if self._failed:
            return
        try:
            messages = self._deframer.feed(data)
            if messages and self._stream is not None:
                if self.method.client_streaming:
                    self._take(messages)
                else:
                    self._keep_only(messages)
            error = self._deframer.error  # in what came after these
        except Exception as raised:
            error = told(raised, self.method.path)
        if error is not None:
            self._fail(error)

    def _take(self, messages: list[bytes]) -> None:
        core = self._session.core
        if core.auth.enabled:
            core.permit_messages(self, messages)
        core.metrics.received[self.method] += len(messages)
        self._handler.on_messages(messages)

    def _keep_only(self, messages: list[bytes]) -> None:
        for message in messages:
            try:
                self.method.request.FromString(message)
            except DecodeError:
                raise errors.MALFORMED_IN_STREAM.error() from None
            if self._only is not None:
                raise errors.SEVERAL_REQUESTS.error()
            self._only = message

    @property
    def unfinished_bytes(self) -> int:
        return self._deframer.unfinished_bytes + len(self._only or b"")

    def fail(self, error: EtcdError) -> None:
        """Ends the call now."""
        self.finish(error)

    def _fail(self, error: EtcdError) -> None:
        """Ends the call, after the replies to earlier requests, which may still wait at the gate."""
        self._failed = True
        core = self._session.core
        core.gate.hold(core.machine.journal.newest_with_rows, self, error)

    def deliver(self, payload: EtcdError) -> None:
        """The gate has let out whatever came before this end."""
        self.finish(payload)

    def on_end(self) -> None:
        if self._stream is None or self._failed:
            return
        try:
            if self._deframer.unfinished_bytes >= grpc.PREFIX_BYTES:
                raise errors.HALF_A_MESSAGE_IN_STREAM.error()
            if not self.method.client_streaming:
                if self._only is None:
                    raise errors.NO_REQUEST.error()
                self._take([self._only])
            self._handler.on_requests_end()
        except Exception as error:
            self._fail(told(error, self.method.path))

    def on_reset(self) -> None:
        if self._close() is not None:
            self._session.core.metrics.handled[self.method, Code.CANCELED].n += 1

    def _close(self) -> Stream | None:
        stream, self._stream = self._stream, None
        if stream is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._session.streaming.discard(self)
            handler, self._handler = self._handler, OVER
            try:
                handler.on_gone()
            except Exception as error:  # the connection has other calls to end
                told(error, self.method.path)
        return stream

    def send(self, replies: list[bytes]) -> None:
        stream = self._stream
        if stream is not None:
            self._session.send(self.method, stream, replies, start=not self._started)
            self._started = True

    def finish(self, error: EtcdError | None = None) -> None:
        started = self._started
        stream = self._close()
        if stream is not None:
            self._session.fail(self.method, stream, error, started)

    @property
    def backlog_bytes(self) -> int:
        return self._session.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._session.waiting_for_drain.add(stream)


class GrpcRefused:
    """Stands at a stream that was answered already: whatever else the peer sends on it is dropped."""

    __slots__ = ()
    unfinished_bytes = 0

    def on_data(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_reset(self) -> None: ...


REFUSED = GrpcRefused()


def method_error(path: str) -> EtcdError:
    """What a call to something that does not exist is told, in the words of grpc-go."""
    from lessor.api import methods

    service, slash, name = path.removeprefix("/").rpartition("/")
    if not slash:
        return EtcdError(Code.UNIMPLEMENTED, f"malformed method name: {json.dumps(path)}")
    if service in methods.SERVICES:
        return EtcdError(Code.UNIMPLEMENTED, f"unknown method {name} for service {service}")
    return EtcdError(Code.UNIMPLEMENTED, f"unknown service {service}")
