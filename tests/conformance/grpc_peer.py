# SPDX-License-Identifier: Apache-2.0
"""A gRPC client for the tests that shares nothing with ours: grpcio, and the method table.

A call returns its reply, or `Failure(code, text)` where the server answered an error; only a server that cannot be
reached raises.
"""

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from lessor.api.methods import METHODS, Method
from lessor.base.errors import EtcdError

CALL_S_MAX = 20.0

# LeaseKeepAlive and Watch are streams; a request message of their kind still names them.
_SERVICES = [f"etcdserverpb.{name}" for name in ("KV", "Lease", "Cluster", "Maintenance", "Auth")]
_BY_REQUEST: dict[type[Message], Method] = {
    method.request: method
    for method in METHODS
    if method.service in _SERVICES and method.name != "RangeStream"  # which has the request of Range
}
_WATCH = next(method for method in METHODS if method.name == "Watch" and method.service == "etcdserverpb.Watch")


class Failure(NamedTuple):
    """What a call was answered instead of a reply."""

    code: int
    text: str

    @classmethod
    def of(cls, error: EtcdError) -> "Failure":
        return cls(int(error.code), error.message)


class GrpcPeer:
    """A connection to the server at `address` (host:port) for one `with` block."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._calls: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> "GrpcPeer":
        self.channel = grpc.insecure_channel(self._address, options=[("grpc.max_receive_message_length", -1)])
        grpc.channel_ready_future(self.channel).result(CALL_S_MAX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def call(self, request: Message) -> Message | Failure:
        """Sends one request to the method that takes it. On a stream: one message, its one reply, half-close."""
        method = _BY_REQUEST[type(request)]
        try:
            if method.unary:
                reply: Message = self._stub(method)(request, timeout=CALL_S_MAX)
            else:
                (reply,) = self._stub(method)(iter([request]), timeout=CALL_S_MAX)
        except grpc.RpcError as error:
            status: Any = error
            if status.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            return Failure(status.code().value[0], status.details())
        return reply

    def watch(self, request: Message) -> Generator[Any]:
        """Opens a watch stream with one WatchRequest and yields its replies. Closing the iterator ends the stream."""
        replies = self._stub(_WATCH)(iter([request]), timeout=CALL_S_MAX)
        try:
            yield from replies
        finally:
            replies.cancel()

    def _stub(self, method: Method) -> Callable[..., Any]:
        stub = self._calls.get(method.path)
        if stub is None:
            open_stub = self.channel.unary_unary if method.unary else self.channel.stream_stream
            stub = open_stub(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            self._calls[method.path] = stub
        return stub
