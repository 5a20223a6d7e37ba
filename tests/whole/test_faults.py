# SPDX-License-Identifier: Apache-2.0
"""The faults that a test can switch on: what clients see of them, and what stays as it was."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from lessor.base.errors import EtcdError
from lessor.client import ConnectionLost
from lessor.testing.faults import Faults, Front
from lessor.testing.server import InProcessServer

ANSWER_S_MAX = 20.0


@pytest.fixture
def server() -> Iterator[InProcessServer]:
    with InProcessServer() as server:
        yield server


def connect(server: InProcessServer) -> socket.socket:
    host, _, port = server.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=ANSWER_S_MAX)


def version(peer: socket.socket) -> bytes:
    peer.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
    return peer.recv(10_000)


def post(server: InProcessServer, path: str, **body: Any) -> Any:
    with urlopen(server.client_url + path, json.dumps(body).encode(), timeout=ANSWER_S_MAX) as reply:
        return json.load(reply)


def test_dropped_connections_are_gone_and_new_ones_are_taken(server: InProcessServer) -> None:
    with connect(server) as one, connect(server) as other:
        assert version(one).startswith(b"HTTP/1.1 200")
        assert version(other).startswith(b"HTTP/1.1 200")
        assert server.drop_connections() == 2
        for peer in (one, other):
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""
    with connect(server) as again:
        assert version(again).startswith(b"HTTP/1.1 200")


def test_refused_connections(server: InProcessServer) -> None:
    with connect(server) as old:
        assert version(old).startswith(b"HTTP/1.1 200")
        with server.refuse_connections():
            with pytest.raises(ConnectionRefusedError):
                connect(server)
            assert version(old).startswith(b"HTTP/1.1 200")
        with connect(server) as new:
            assert version(new).startswith(b"HTTP/1.1 200")


def test_a_server_may_be_restarted_while_it_refuses(server: InProcessServer) -> None:
    with server.refuse_connections():
        server.restart()
        connect(server).close()
    connect(server).close()
    with server.refuse_connections():
        server.stop()


def test_delayed_replies_come_late_in_order_and_whole(server: InProcessServer) -> None:
    with connect(server) as peer:
        assert version(peer).startswith(b"HTTP/1.1 200")
        with server.delay_replies(0.05):
            asked_s = time.monotonic()
            peer.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
            peer.setblocking(True)
            assert peer.recv(10_000).startswith(b"HTTP/1.1 200")
            assert time.monotonic() - asked_s >= 0.05
            peer.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
        peer.sendall(b"GET /nope HTTP/1.1\r\nHost: a\r\n\r\n")  # must not overtake the one that is late
        received = b""
        while received.count(b"HTTP/1.1") < 2:
            received += peer.recv(10_000)
        assert received.index(b"HTTP/1.1 200") < received.index(b"HTTP/1.1 404")


def test_a_connection_that_ends_sends_what_was_held_back_first(server: InProcessServer) -> None:
    with connect(server) as peer, server.delay_replies(0.02):
        peer.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := peer.recv(10_000):
            received += piece
        assert b'"etcdserver"' in received


def test_a_lease_can_be_ended_at_once_and_others_live_on(server: InProcessServer) -> None:
    doomed, other = (post(server, "/v3/lease/grant", TTL=600)["ID"] for _ in range(2))
    for lease, key in ((doomed, "YQ=="), (other, "Yg==")):
        post(server, "/v3/kv/put", key=key, lease=lease)
    server.expire_lease(int(doomed))
    assert post(server, "/v3/lease/timetolive", ID=doomed)["TTL"] == "-1"
    assert "kvs" not in post(server, "/v3/kv/range", key="YQ==")
    assert "kvs" in post(server, "/v3/kv/range", key="Yg==")
    with pytest.raises(EtcdError, match="lease not found"):
        server.expire_lease(int(doomed))


def test_compaction_at_once(server: InProcessServer) -> None:
    revisions = [post(server, "/v3/kv/put", key="YQ==")["header"]["revision"] for _ in range(4)]
    server.compact(int(revisions[1]))
    core = server.server.core
    assert server.call(lambda: core.machine.compact_revision) == int(revisions[1])
    server.compact()
    assert server.call(lambda: core.machine.compact_revision) == int(revisions[3])
    with pytest.raises(EtcdError, match="compacted"):
        server.compact(int(revisions[0]))
    with pytest.raises(EtcdError, match="future"):
        server.compact(1_000)


def test_faults_lie_below_tls(tmp_path: Path) -> None:
    with InProcessServer(tls=True) as server:

        async def story() -> None:
            async with server.async_client() as client:
                await client.put("k", "1")
                server.drop_connections()
                with contextlib.suppress(ConnectionLost):  # it may not have noticed yet
                    await client.get("k")
                with server.delay_replies(0.02):
                    await client.put("k", "2")
                reply = await client.get("k")
                assert reply.kvs[0].value == b"2"

        asyncio.run(story())


class Socket(asyncio.Transport):
    """Records what a Front hands to its socket."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.done.append(bytes(data))

    def write_eof(self) -> None:
        self.done.append("eof")

    def close(self) -> None:
        self.done.append("close")

    def is_closing(self) -> bool:
        return "close" in self.done

    def get_write_buffer_size(self) -> int:
        return 0


def test_what_is_held_back_counts_as_unsent_and_closing_waits_for_it() -> None:
    loop = asyncio.new_event_loop()
    faults, below = Faults(loop), Socket()
    front = Front(faults, asyncio.Protocol())
    front.connection_made(below)
    front.write(b"a")
    assert below.done == [b"a"]
    faults.delay_s = 0.01
    buffer = bytearray(b"bc")
    front.write(buffer)
    buffer[:] = b"xx"  # whoever wrote it may use it again
    faults.delay_s = 0.0
    front.write(b"d")  # must not overtake what is late
    front.write_eof()
    front.close()
    assert (front.is_closing(), front.get_write_buffer_size(), below.done) == (True, 3, [b"a"])
    threading.Timer(0.05, loop.call_soon_threadsafe, (loop.stop,)).start()
    loop.run_forever()
    loop.close()
    assert below.done == [b"a", b"bc", b"d", "eof", "close"]
    assert front.get_write_buffer_size() == 0


@pytest.mark.parametrize(
    ("seconds", "error"),
    [("1", TypeError), (None, TypeError), (-1, ValueError), (float("nan"), ValueError), (1e9, ValueError)],
)
def test_a_delay_that_cannot_be_says_why(server: InProcessServer, seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="a delay of "), server.delay_replies(seconds):
        pass


@pytest.mark.parametrize(("seconds", "error"), [("1", TypeError), (-1, ValueError), (float("nan"), ValueError)])
def test_an_idle_time_that_cannot_be_says_why(server: InProcessServer, seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="an idle time of "), server.clock.auto_jump(seconds):
        pass
