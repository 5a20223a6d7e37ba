# SPDX-License-Identifier: Apache-2.0
"""What ends is gone at once, by reference count alone.

`lessor serve` sets aside what has lived for a while, so that the cycle collector never walks the state (main.py). A
connection or a stream that still held itself in a circle when it ended would then stay for ever.
"""

import gc
import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.server.connection import Connection
from lessor.server.grpc_calls import GrpcStream, GrpcUnary
from lessor.server.h1_session import H1Exchange, H1Session
from lessor.server.h2_session import H2Session
from lessor.server.keepalive import KeepAlive
from lessor.server.watch import WatchStream
from lessor.wire.h2 import Stream
from tests.conformance.grpc_peer import CALL_S_MAX, GrpcPeer
from tests.in_process import in_process

GONE_S_MAX = 10.0  # connections linger for a second


# What is made for a connection or a call.
KINDS = (Connection, GrpcStream, GrpcUnary, H1Exchange, H1Session, H2Session, KeepAlive, Stream, WatchStream)


def alive() -> set[int]:
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, KINDS)}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def use_grpc(address: str) -> None:
    with GrpcPeer(address) as peer:
        lease = rpc.LeaseGrantRequest(ID=7, TTL=600)
        peer.call(lease)
        peer.call(lease)  # refused
        peer.call(rpc.LeaseKeepAliveRequest(ID=7))
        watch = peer._stub(BY_PATH["/etcdserverpb.Watch/Watch"])
        replies = watch(iter([rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))]), timeout=CALL_S_MAX)
        next(replies)
        peer.call(rpc.PutRequest(key=b"k", lease=7))
        peer.call(rpc.LeaseRevokeRequest(ID=7))
        next(replies)
        replies.cancel()


def use_http(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=CALL_S_MAX)
    for path, body in (
        ("/v3/kv/range", '{"key":"aw=="}'),
        ("/v3/kv/range", "{"),
        ("/v3/lease/keepalive", '{"ID":"7"}'),
        ("/no/such/page", ""),
    ):
        connection.request("POST", path, body)
        connection.getresponse().read()
    connection.close()
    with socket.create_connection(address.split(":"), timeout=CALL_S_MAX) as half:  # type: ignore[arg-type]
        half.sendall(b"POST /v3/kv/put HTTP/1.1\r\nHost: h\r\nContent-Length: 50\r\n\r\n{")


@pytest.mark.slow
def test_nothing_of_a_connection_stays_when_it_has_ended(tmp_path: Path, no_collector: None) -> None:
    with in_process(tmp_path) as served:
        before = alive()
        use_grpc(served.address)
        use_http(served.address)
        assert len(served.server.core.metrics.started) >= 6  # kinds of calls were served
        give_up = time.monotonic() + GONE_S_MAX
        while alive() > before and time.monotonic() < give_up:
            time.sleep(0.05)  # connections end in the server's thread
        left = alive() - before
        assert [thing for thing in gc.get_objects() if id(thing) in left and isinstance(thing, KINDS)] == []
