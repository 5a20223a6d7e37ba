# SPDX-License-Identifier: Apache-2.0
"""The gRPC codec of calls: from an HTTP/2 stream that carries gRPC to a call (loop/call.py), and back.

The owner of a gRPC stream is one of the two classes here. `GrpcUnary` gathers one request and sends one reply.
`GrpcStream` cuts the requests of a streaming call. Both may outlive their stream: a payload that the gate delivers
after a reset is dropped.

Compressed messages are inflated when they are about to be read: of a unary call the first, of a streaming call as many
as a step has room for. STRANGER_BYTES_MAX of each are inflated before the caller is asked for a valid token.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Any, Final

from google.protobuf.message import DecodeError

from lessor.api import methods
from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import AGAIN_HEADER, CALLER_HEADER, FORWARDED_HEADER, PassedAs, StreamCall, UnaryCall
from lessor.server.loop.held import Held
from lessor.server.observe.metrics import CallCounts
from lessor.server.transport.h2_output import DeferredRequest, H2Output
from lessor.state.txn_scan import too_many_operations
from lessor.wire import grpc
from lessor.wire.grpc import pack_prefix, unpack_prefix
from lessor.wire.h2 import Stream

_PASSED_AS: Final = re.compile(rb"([0-9a-f]{32}):([0-9]{1,18}):([0-9]{1,18})")  # see PassedAs


def token_of(stream: Stream | None) -> bytes | None:
    """The token in a call's metadata; None without a token, and when the call has let go of its stream."""
    head = stream.head if stream is not None else None
    if head is None:
        return None
    token = head.get(b"token")
    return token if token is not None else head.get(b"authorization")


def is_forwarded(stream: Stream | None) -> bool:
    """Whether another server passes the call on. The certificate of its connection names no caller then."""
    head = stream.head if stream is not None else None
    return head is not None and head.get(FORWARDED_HEADER) is not None


def _common_name(output: H2Output, stream: Stream | None, path: str) -> str | None:
    """The name in the certificate of a call's client, which is not the one of the connection if a server passes it on.

    That server has to vouch for the name. Raises EtcdError for a call that was on its way when this server has let go
    of that one: nobody can say any more whom it is from, and the next leader can.
    """
    if not is_forwarded(stream):
        return output.peer_common_name
    assert stream is not None
    assert stream.head is not None
    said = stream.head.get(CALLER_HEADER)
    name = None if said is None else output.core.vouched_name(output.held, stream.id, path, said)
    if name is None and said is not None and output.h2.draining:
        raise errors.LEADER_CHANGED.error()
    return name


def requires_leader(stream: Stream | None) -> bool:
    """Whether a call's metadata ask for a leader, as etcd's clients do."""
    head = stream.head if stream is not None else None
    return head is not None and head.get(b"hasleader") == b"true"


def _passed_as(value: bytes) -> PassedAs:
    match = _PASSED_AS.fullmatch(value)
    if match is None:
        raise EtcdError(Code.INVALID_ARGUMENT, "malformed header lessor-forwarded")
    return PassedAs(bytes.fromhex(match[1].decode()), int(match[2]), int(match[3]))


class Route:
    """What calls whose heads differ at most in PER_CALL_FIELDS have in common. Kept in the head: none looks it up."""

    __slots__ = ("counts", "method", "parse", "unary")

    def __init__(self, counts: CallCounts) -> None:
        self.counts = counts
        self.method = counts.method
        self.unary = counts.method.unary
        self.parse = counts.method.request.FromString


class GrpcUnary(UnaryCall):
    """One unary call. The hot path of grants, puts and ranges.

    It is served when its first message is whole. Bytes after that are ignored, as in etcd.
    """

    __slots__ = ("_deframer", "_output", "_route", "_served", "_stream")

    def __init__(self, output: H2Output, stream: Stream, route: Route) -> None:
        UnaryCall.__init__(self, output.core, route.counts, output.held)
        self._route = route
        self._output = output
        self._stream: Stream | None = stream
        self._deframer: grpc.Deframer | None = None
        self._served = False  # its message has come

    @property
    def token(self) -> bytes | None:
        return token_of(self._stream)

    @property
    def peer_common_name(self) -> str | None:
        return _common_name(self._output, self._stream, self.method.path)

    @property
    def requires_leader(self) -> bool:
        return requires_leader(self._stream)

    @property
    def passed_as(self) -> PassedAs | None:
        head = self._stream.head if self._stream is not None else None
        value = head.get(FORWARDED_HEADER) if head is not None else None
        return None if value is None else _passed_as(value)

    @property
    def passed_again(self) -> bool:
        head = self._stream.head if self._stream is not None else None
        return head is not None and head.get(AGAIN_HEADER) is not None and is_forwarded(self._stream)

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return self._output.waits_for_peer(go_on)

    # --- in ---

    def on_whole(self, data: bytes) -> None:
        """The request's whole body in one DATA frame: the usual case by far."""
        size = len(data) - 5
        if size >= 0:
            flag, announced = unpack_prefix(data)
            if flag == 0 and announced == size <= self._output.message_bytes_max:
                self._read(data[5:])
                return
        self.on_data(data)
        self.on_end()

    def on_data(self, data: bytes) -> None:
        if self._served or self._stream is None:
            return
        if self._deframer is None:
            self._deframer = self._output.deframer(self._stream)
        before_bytes = self._deframer.unfinished_bytes
        try:
            messages = self._deframer.feed(data, self._may_send, 1)
            if self._deframer.inflated_bytes:
                self._output.inflated(self._deframer.inflated_bytes)
            size_bytes = len(messages[0]) if messages else self._deframer.unfinished_bytes
            if before_bytes <= limits.STRANGER_BYTES_MAX:
                self._may_send(size_bytes)
        except EtcdError as error:
            self.end_now(error)
            return
        if messages:
            self._deframer = None
            if len(messages[0]) > limits.H2_STEP_MESSAGE_BYTES:  # many may end in a step, and each takes long to read
                self._served = True
                self._output.kept_back[self] = messages[0]
            else:
                self._read(messages[0])

    def _may_send(self, size_bytes: int) -> None:
        self.core.refuse_stranger(self, self.method.request, size_bytes)

    def take_kept(self, message: bytes) -> None:
        """Reads a long message, which is a step of its own."""
        self._output.step_messages = 0
        if self._stream is not None:
            self._output.uncount(self._stream)
            if self.method.request is rpc_pb2.TxnRequest and self._has_too_many(message):
                self.end_now(errors.TOO_MANY_OPS.error())
            else:
                self._read(message)

    def _has_too_many(self, txn: bytes) -> bool:
        """Whether it has too many operations, which takes protobuf long to find out."""
        return too_many_operations(txn, self.core.machine.max_txn_ops * limits.TXN_OPS_IN_ALL)

    def on_end(self) -> None:
        if not self._served:
            half = self.unfinished_bytes >= grpc.PREFIX_BYTES
            self._end_unserved((errors.HALF_A_MESSAGE if half else errors.NO_MESSAGE).error())
        elif (self._output.kept_back or self._output.deferred is not None) and self._stream is not None:
            self._output.keep_count(self._stream)

    @property
    def unfinished_bytes(self) -> int:
        if self._deframer is not None:
            return self._deframer.unfinished_bytes
        if isinstance(self.waiting, DeferredRequest):
            return self.waiting.size_bytes
        return len(self._output.kept_back.get(self) or b"")

    def _defer(self, message: bytes) -> None:
        """Keeps the request until the peer has taken replies."""
        stream = self._stream
        assert stream is not None
        try:
            self.core.refuse_to_keep(self, self.method.request)
        except EtcdError as error:
            self.end_now(error)
            return
        self.wait(self._output.defer(stream, len(message), partial(self._go_on, message)))
        self._output.keep_count(stream)

    def _go_on(self, message: bytes) -> None:
        self.wait_no_more()
        self._read(message)

    def _read(self, message: bytes) -> None:
        self._served = True
        if self.over:
            return
        if self._output.defers:
            self._defer(message)
            return
        try:
            request = self._route.parse(message)
        except DecodeError:
            self._end_unserved(errors.MALFORMED_MESSAGE.error())
            return
        self.serve(request)

    def _end_unserved(self, error: EtcdError) -> None:
        """Ends a call that has no request that can be read."""
        stream = self._stream
        self.end_now(error)
        if stream is not None:
            self._output.h2.no_call(stream)

    # --- out ---

    def encode(self, reply: bytes) -> bytes:
        return pack_prefix(0, len(reply)) + reply  # grpc.frame, without the call

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]:
        # Not a list to be joined: its end would be one long step. The buffer grows where it lies and is not copied.
        made = BytesIO()
        made.write(pack_prefix(0, 0))
        for piece in pieces:
            made.write(piece)
            yield None
        size = made.tell() - grpc.PREFIX_BYTES
        made.seek(0)
        made.write(pack_prefix(0, size))
        yield made.getvalue()

    def _send(self, payload: bytes) -> None:
        stream, self._stream = self._stream, None
        assert stream is not None
        self._output.respond(stream, payload)

    def _send_error(self, error: EtcdError) -> None:
        stream, self._stream = self._stream, None
        assert stream is not None
        self._output.end(stream, error, started=False)

    def _let_go(self) -> None:
        self._stream = None


class GrpcStream(StreamCall):
    """One streaming call.

    If only the server streams there is exactly one request, which the handler gets when the peer has ended its side.
    """

    __slots__ = ("_deframer", "_ended", "_kept_back", "_only", "_output", "_started", "_stream", "_when_taken")

    def __init__(self, output: H2Output, stream: Stream, route: Route) -> None:
        self._output = output
        self._stream: Stream | None = stream
        self._deframer = output.deframer(stream)
        self._started = False
        self._kept_back: list[bytes] = []  # requests that came in one piece, and wait for the next steps
        self._ended = False  # behind those, the peer has ended its side
        self._when_taken: Callable[[], None] | None = None
        self._only: bytes | None = None  # the request of a call that takes one, kept until the peer has ended its side
        StreamCall.__init__(self, output.core, route.counts)
        output.streaming.add(self)

    @property
    def token(self) -> bytes | None:
        return token_of(self._stream)

    @property
    def peer_common_name(self) -> str | None:
        return _common_name(self._output, self._stream, self.method.path)

    def metadata(self, name: bytes) -> bytes | None:
        head = self._stream.head if self._stream is not None else None
        return None if head is None else head.get(name)

    @property
    def requires_leader(self) -> bool:
        return requires_leader(self._stream)

    @property
    def held(self) -> Held:
        return self._output.held

    @property
    def peer_address(self) -> str:
        return self._output.held.address

    @property
    def forwarded(self) -> bool:
        return is_forwarded(self._stream)

    @property
    def backlog_bytes(self) -> int:
        return self._output.backlog_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self._output.waiting_for_drain.add(stream)

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return self._output.waits_for_peer(go_on)

    def when_taken(self, left_bytes: int, go_on: Callable[[], None]) -> bool:
        stream = self._stream
        if stream is None or stream.queued_bytes <= left_bytes:
            return False
        stream.wake_below = left_bytes
        self._when_taken = go_on
        return True

    def taken(self) -> None:
        """The peer has taken so much that the next reply can be made: see `when_taken`."""
        go_on, self._when_taken = self._when_taken, None
        if go_on is not None and not self.over:
            go_on()

    # --- in ---

    def on_data(self, data: bytes) -> None:
        if self.ending:
            return
        error: EtcdError | None
        deframer, output = self._deframer, self._output
        try:
            messages = deframer.feed(data, self._may_send, limits.H2_STEP_MESSAGE_BYTES)
            if deframer.inflated_bytes:
                output.inflated(deframer.inflated_bytes)
            if self.core.auth.enabled:  # also asked within, but the size costs time
                unfinished_bytes = 0 if deframer.waiting else deframer.unfinished_bytes
                self._may_send(max(unfinished_bytes, 0, *map(len, messages)))
            if messages and not self.over:
                if not self.method.client_streaming:
                    self._keep_only(messages)
                elif len(messages) > output.step_messages or self._kept_back:
                    self._kept_back += messages
                    self.go_on()
                    return
                else:
                    output.step_messages -= len(messages)
                    self.take(messages)
            if deframer.waiting and not self.over:
                output.kept_back[self] = None
            error = deframer.error  # in the bytes behind these messages
            if error is not None and self._kept_back:
                error = None
        except Exception as raised:
            error = as_answer(raised, self.method.path)
        if error is not None and not self.ending:
            self.end_in_order(error)

    def _may_send(self, size_bytes: int) -> None:
        self.core.refuse_stranger(self, self.method.request, size_bytes)

    def go_on(self) -> None:
        """Takes the requests that were kept back, as many as this step has room for; then the bytes behind them."""
        output = self._output
        room = max(output.step_messages, 0)
        messages, self._kept_back = self._kept_back[:room], self._kept_back[room:]
        output.step_messages -= len(messages)
        if messages:
            self.take(messages)
        if self.over or self.ending:
            self._kept_back.clear()
        elif self._kept_back:
            output.kept_back[self] = None
        elif self._deframer.waiting:
            self._inflate_more()
        elif self._deframer.error is not None:
            self.end_in_order(self._deframer.error)
        elif self._ended:
            self.on_end()

    def _inflate_more(self) -> None:
        """All that was inflated has been taken. If the step has room, the rest of the bytes is looked at."""
        if self._output.step_messages <= 0:
            self._output.kept_back[self] = None
            return
        self.on_data(b"")
        if self._ended and not (self._deframer.waiting or self._kept_back):
            self.on_end()

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

    def on_end(self) -> None:
        if self.over or self.ending:
            return
        if self._kept_back or self._deframer.waiting:
            self._ended = True
            return
        if self._deframer.unfinished_bytes >= grpc.PREFIX_BYTES:
            self.end_in_order(errors.HALF_A_MESSAGE_IN_STREAM.error())
            return
        if not self.method.client_streaming:
            if self._only is None:
                self.end_in_order(errors.NO_REQUEST.error())
                return
            only, self._only = self._only, None
            self.take([only])
        self.requests_end()

    # --- out ---

    def _send(self, replies: list[bytes]) -> None:
        stream = self._stream
        assert stream is not None
        self._output.send(stream, replies, not self._started)
        self._started = True

    def _send_long(self, head: bytes, chunks: Sequence[bytes]) -> Iterator[int]:
        """One step: the chunks wait as they are, however many streams they wait in."""
        stream, h2 = self._stream, self._output.h2
        assert stream is not None
        if not self._started:
            self._started = True
            h2.send_headers(stream, grpc.RESPONSE_HEADERS)
        h2.send_data(stream, pack_prefix(0, len(head) + sum(map(len, chunks))) + head)
        for chunk in chunks:
            h2.send_data(stream, chunk)
        self.core.turn.flush_later(self._output.connection)
        yield from ()

    def _send_end(self, error: EtcdError | None) -> None:
        stream = self._stream
        assert stream is not None
        self._let_go()
        self._output.end(stream, error, self._started)

    def _drop_waiting(self) -> None:
        assert self._stream is not None
        self._output.drop_waiting(self._stream)

    def _let_go(self) -> None:
        self._stream = None
        self._when_taken = None
        self._output.streaming.discard(self)


def method_error(path: str) -> EtcdError:
    """The error for a path that names no method of this server, in the words of grpc-go."""
    service, slash, name = path.removeprefix("/").rpartition("/")
    if not slash:
        return EtcdError(Code.UNIMPLEMENTED, f"malformed method name: {json.dumps(path)}")
    if service in methods.SERVICES:
        return EtcdError(Code.UNIMPLEMENTED, f"unknown method {name} for service {service}")
    return EtcdError(Code.UNIMPLEMENTED, f"unknown service {service}")
