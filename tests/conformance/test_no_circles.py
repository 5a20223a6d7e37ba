# SPDX-License-Identifier: Apache-2.0
"""What ends is gone at once, by reference count alone.

`lessor serve` sets aside what has lived for a while, so that the cycle collector never walks the state (main.py). A
connection or a stream that still held itself in a circle when it ended would then stay for ever.
"""

import gc
import http.client
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.server.services.keepalive import KeepAlive
from lessor.server.services.waiting_lines import WaitingLine
from lessor.server.services.watch import WatchStream
from lessor.server.transport.connection import Connection
from lessor.server.transport.grpc_calls import GrpcStream, GrpcUnary
from lessor.server.transport.h1_session import H1Exchange, H1Session
from lessor.server.transport.h2_session import H2Session
from lessor.server.transport.http_calls import JsonStream, JsonUnary
from lessor.server.transport.websocket_calls import WebSocketCall
from lessor.state.watcher import Watcher
from lessor.wire.h2 import Stream
from tests.conformance.auth_peer import CHEAP, As, enable_auth
from tests.conformance.grpc_peer import CALL_S_MAX
from tests.conformance.lock_peer import LockPeer
from tests.conformance.subject import Subject, server_of
from tests.conformance.websocket_peer import WebSocketPeer

GONE_S_MAX = 10.0  # connections linger for a second
# What is made for a connection or a call.
KINDS = (
    *(
        Connection,
        GrpcStream,
        GrpcUnary,
        H1Exchange,
        H1Session,
        H2Session,
        JsonStream,
        JsonUnary,
        KeepAlive,
        WaitingLine,
    ),
    *(Stream, WaitingLine, Watcher, WatchStream, WebSocketCall),
)


def alive() -> set[int]:
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, KINDS)}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def plain_calls(subject: Subject) -> None:
    lease = rpc.LeaseGrantRequest(ID=7, TTL=600)
    subject.call(lease)
    subject.call(lease)  # refused
    subject.call(rpc.LeaseKeepAliveRequest(ID=7))
    subject.call(rpc.LeaseRevokeRequest(ID=7))


def watches(subject: Subject) -> None:
    watch = subject.conversation("etcdserverpb.Watch/Watch")
    watch.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k")))
    watch.read()
    subject.put(b"k")
    watch.read()
    watch.cancel()


def malformed_messages(subject: Subject) -> None:
    with grpc.insecure_channel(subject.server.address) as channel:
        for name in ("Watch/Watch", "Lease/LeaseKeepAlive"):
            call = channel.stream_stream(f"/etcdserverpb.{name}", request_serializer=None, response_deserializer=None)
            with pytest.raises(grpc.RpcError):
                next(call(iter([b"\xff"]), timeout=CALL_S_MAX))


def locks_and_elections(subject: Subject) -> None:
    peer = LockPeer(subject)
    for name in (b"one", b"two"):
        peer.lock(name, peer.lease())
        peer.wait_for_lock(name, peer.lease()).cancel()
        election = name + b" election"
        peer.campaign(election, peer.lease())
        peer.wait_for_victory(election, peer.lease()).cancel()
        observing = peer.observe(election)
        observing.read()
        observing.cancel()


def http_requests(subject: Subject) -> None:
    connection = http.client.HTTPConnection(subject.server.address, timeout=CALL_S_MAX)
    for path, body in (
        ("/v3/kv/range", '{"key":"aw=="}'),
        ("/v3/kv/range", "{"),
        ("/v3/lease/keepalive", '{"ID":"7"}'),
        ("/v3/watch", "}"),
        ("/no/such/page", ""),
    ):
        connection.request("POST", path, body)
        connection.getresponse().read()
    connection.close()
    address = subject.server.address.split(":")
    with socket.create_connection(address, timeout=CALL_S_MAX) as half:  # type: ignore[arg-type]
        half.sendall(b"POST /v3/kv/put HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n{")


def websockets(subject: Subject) -> None:
    with WebSocketPeer(subject.server.address, "/v3/watch") as peer:
        peer.send('{"create_request":{"key":"aw=="}}')
        peer.result()
    with WebSocketPeer(subject.server.address, "/v3/lease/keepalive") as peer:
        peer.send("}")
        peer.read()


def logins(subject: Subject) -> None:
    root = enable_auth(subject)
    As(subject).call(rpc.AuthenticateRequest(name="root", password="wrong"))
    root.do(rpc.AuthDisableRequest())


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [plain_calls, watches, malformed_messages, locks_and_elections, http_requests, websockets, logins],
    ids=lambda use: use.__name__,
)
def test_nothing_of_a_connection_stays_when_it_has_ended(use: Callable[[Subject], None], no_collector: None) -> None:
    with server_of("in-process", CHEAP) as server:
        before = alive()
        with Subject(server) as subject:
            use(subject)
            assert alive() - before
        give_up = time.monotonic() + GONE_S_MAX
        while alive() - before and time.monotonic() < give_up:
            time.sleep(0.05)  # connections end in the server's thread
        left = alive() - before
        assert [thing for thing in gc.get_objects() if id(thing) in left and isinstance(thing, KINDS)] == []
