# SPDX-License-Identifier: Apache-2.0
"""Calls and watches over gRPC and over JSON, with nothing of ours but the message classes and the table of methods.

grpcio speaks gRPC, http.client HTTP/1.1, protobuf's json_format the JSON: a fault of Lessor's codecs shows as a wrong
answer. A call never raises; it returns its `Answer`, one of the four outcomes of history.py.

Over JSON the socket is polled until the answer comes. Loopback has no way on which bytes could be: what the socket does
not have, the server has not sent.
"""

import contextlib
import http.client
import json
import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format

from lessor.api.methods import METHODS, Method
from lessor.api.proto import rpc_pb2 as rpc
from tests.linear.history import ERROR, OK, UNKNOWN, UNSENT

CALL_S_MAX = 20.0
POLL_S = 0.004
# INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE: the server says that it did nothing.
REFUSALS = {3, 5, 6, 9, 11}

_METHODS = {
    method.request: method
    for method in METHODS
    if method.name != "RangeStream"
    and method.service in ("etcdserverpb.KV", "etcdserverpb.Lease", "etcdserverpb.Watch")
}
_ROUTES: dict[type, str] = {
    rpc.RangeRequest: "kv/range",
    rpc.PutRequest: "kv/put",
    rpc.DeleteRangeRequest: "kv/deleterange",
    rpc.TxnRequest: "kv/txn",
    rpc.LeaseGrantRequest: "lease/grant",
    rpc.LeaseRevokeRequest: "lease/revoke",
    rpc.LeaseKeepAliveRequest: "lease/keepalive",
    rpc.LeaseTimeToLiveRequest: "lease/timetolive",
    rpc.LeaseLeasesRequest: "lease/leases",
}


class Answer(NamedTuple):
    outcome: str
    reply: Any = None
    code: int = 0
    text: str = ""
    silent_s: float = 0.0


class Transport(ABC):
    """A way to the server at an endpoint, host:port. For one thread, but for `interrupt`."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    @abstractmethod
    def call(self, request: Any) -> Answer:
        """One request and its one reply; of a keepalive stream, too."""

    @abstractmethod
    def watch(self, request: rpc.WatchCreateRequest) -> Iterator[rpc.WatchResponse]:
        """The responses to a watch, until its stream ends for any reason."""

    @abstractmethod
    def interrupt(self) -> None:
        """Ends what another thread waits for here."""

    @abstractmethod
    def close(self) -> None: ...


class GrpcTransport(Transport):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ]
        self._channel = grpc.insecure_channel(endpoint, options=options)
        self._stubs: dict[type, Any] = {}

    def _stub(self, method: Method) -> Any:
        stub = self._stubs.get(method.request)
        if stub is None:
            make = self._channel.unary_unary if method.unary else self._channel.stream_stream
            stub = self._stubs[method.request] = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return stub

    def call(self, request: Any) -> Answer:
        method = _METHODS[type(request)]
        try:
            if method.unary:
                return Answer(OK, self._stub(method)(request, timeout=CALL_S_MAX))
            replies = list(self._stub(method)(iter([request]), timeout=CALL_S_MAX))
            return Answer(OK, replies[0]) if len(replies) == 1 else Answer(UNKNOWN, text=f"{len(replies)} replies")
        except grpc.RpcError as error:
            status: Any = error
            code, text = status.code().value[0], status.details()
            if code in REFUSALS:
                return Answer(ERROR, code=code, text=text)
            return Answer(UNSENT if "failed to connect to all addresses" in text else UNKNOWN, code=code, text=text)
        except ValueError as error:  # the channel was closed
            return Answer(UNKNOWN, text=str(error))

    def watch(self, request: rpc.WatchCreateRequest) -> Iterator[rpc.WatchResponse]:
        stub = self._stub(_METHODS[rpc.WatchRequest])
        try:
            yield from stub(iter([rpc.WatchRequest(create_request=request)]))
        except grpc.RpcError as error:
            status: Any = error
            if status.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
        except ValueError:  # the channel was closed
            pass

    def interrupt(self) -> None:
        self._channel.close()

    def close(self) -> None:
        self._channel.close()


class JsonTransport(Transport):
    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._connection: http.client.HTTPConnection | None = None

    def _connect(self) -> http.client.HTTPConnection | None:
        if self._connection is None:
            host, _, port = self.endpoint.rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=CALL_S_MAX)
            try:
                connection.connect()
            except OSError:
                return None
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def call(self, request: Any) -> Answer:
        connection = self._connect()
        if connection is None:
            return Answer(UNSENT, text="cannot connect")
        body = json_format.MessageToJson(request, preserving_proto_field_name=True, indent=None)
        try:
            connection.request("POST", "/v3/" + _ROUTES[type(request)], body)
            silent_s = _wait_for_bytes(connection.sock)
            with connection.getresponse() as response:
                status, text = response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            return Answer(UNKNOWN, text=repr(error))
        answer = json.loads(text)
        if status != 200:
            return Answer(ERROR if answer["code"] in REFUSALS else UNKNOWN, code=answer["code"], text=answer["message"])
        method = _METHODS[type(request)]
        reply = json_format.ParseDict(answer if method.unary else answer["result"], method.response())
        return Answer(OK, reply, silent_s=silent_s)

    def watch(self, request: rpc.WatchCreateRequest) -> Iterator[rpc.WatchResponse]:
        connection = self._connect()
        if connection is None:
            return
        fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
        try:
            connection.sock.settimeout(None)
            connection.request("POST", "/v3/watch", json.dumps({"create_request": fields}))
            with connection.getresponse() as response:
                while (line := _line(response)).endswith(b"\n"):
                    answer = json.loads(line)
                    if "result" not in answer:
                        return  # the server ends the stream, because it stops
                    yield json_format.ParseDict(answer["result"], rpc.WatchResponse())
        except (OSError, http.client.HTTPException):
            pass
        finally:
            self._drop()

    def interrupt(self) -> None:
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._drop()


def _line(response: http.client.HTTPResponse) -> bytes:
    """The next line; without its end where the stream was cut."""
    try:
        return response.readline()
    except ValueError:  # cut in the size of a chunk
        return b""


def _wait_for_bytes(sock: socket.socket) -> float:
    """Until there are any, or CALL_S_MAX. Returns the last instant at which there were none; 0.0: never looked."""
    silent_s, now_s = 0.0, time.monotonic()
    give_up_s = now_s + CALL_S_MAX
    while now_s < give_up_s and not select.select([sock], [], [], POLL_S)[0]:
        silent_s, now_s = now_s, time.monotonic()
    return silent_s
