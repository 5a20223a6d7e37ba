# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a running server: peers that read, that do not, that go away; and what the disk holds afterwards."""

import hashlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.base.errors import Code
from lessor.client import AsyncClient, ServerError, run
from lessor.durable import view
from lessor.durable.engine import EngineError, Loaded
from lessor.durable.file_engine import FileEngine
from lessor.server.services import snapshot
from lessor.testing.server import InProcessServer
from lessor.wire import h2
from tests.in_process import in_process

SNAPSHOT = BY_PATH["/etcdserverpb.Maintenance/Snapshot"]
BIG = b"x" * 1_000_000

both_forms = pytest.mark.parametrize("form", ["etcd", "lessor"])


async def fill(address: str, values: int) -> None:
    async with AsyncClient(address) as client:
        for index in range(values):
            await client.put(b"big%d" % index, BIG)


async def save(address: str, form: str = "etcd") -> bytes:
    async with AsyncClient(address) as client:
        return b"".join([reply.blob async for reply in client.snapshot(form=form)])


def eventually(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)  # waiting for another thread, not for a clock


def leftovers(data_dir: Path) -> list[str]:
    return [path.name for path in data_dir.iterdir() if path.name.startswith("snapshot-")]


def idle(server: InProcessServer, data_dir: Path) -> bool:
    return server.call(lambda: server.server.core.metrics.snapshots) == 0 and not leftovers(data_dir)


class SlowEngine(FileEngine):
    """Its backups wait until they may begin, and can be made to fail."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.begun = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.problem: Exception | None = None
        self.finished = 0

    def backup(self, path: Path, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._wait()
        super().backup(path, unwanted)
        self._end()

    @contextmanager
    def view(self, unwanted: Callable[[], bool] = lambda: False) -> Iterator[Loaded]:
        self._wait()
        with super().view(unwanted) as loaded:
            yield loaded
        self._end()

    def _wait(self) -> None:
        self.begun.release()
        assert self.may_go_on.wait(10)

    def _end(self) -> None:
        self.finished += 1
        if self.problem is not None:
            raise self.problem


@both_forms
def test_a_snapshot_is_whole_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    with in_process(tmp_path) as server:
        run(fill(server.address, 2))
        data = run(save(server.address, form))
        assert data[-32:] == hashlib.sha256(data[:-32]).digest()
        assert data.count(BIG[:3000]) >= 2
        eventually(lambda: idle(server, tmp_path))


def test_another_form_is_refused_with_the_names_of_those_there_are(tmp_path: Path) -> None:
    text = "lessor-snapshot-format: not a format of snapshots: lessor, etcd are"
    with in_process(tmp_path) as server:
        with pytest.raises(ServerError, match=f"^{text}$") as caught:
            run(save(server.address, "tar"))
        assert caught.value.code is Code.INVALID_ARGUMENT
        headers = {"Grpc-Metadata-Lessor-Snapshot-Format": "tar"}
        request = urllib.request.Request(f"{server.client_url}/v3/maintenance/snapshot", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        assert json.loads(refused.value.read())["message"] == text


@both_forms
def test_calls_are_served_while_a_copy_is_made_and_are_not_in_it(tmp_path: Path, form: str) -> None:
    engine = SlowEngine(tmp_path)
    with in_process(tmp_path, engine=engine) as server:
        run(fill(server.address, 1))
        found: list[bytes] = []
        saver = threading.Thread(target=lambda: found.append(run(save(server.address, form))))
        saver.start()
        assert engine.begun.acquire(timeout=10)
        run(fill(server.address, 1))  # answered although the copy is under way
        engine.may_go_on.set()
        saver.join(10)
        assert hashlib.sha256(found[0][:-32]).digest() == found[0][-32:]


@pytest.mark.slow
def test_a_peer_that_does_not_read_holds_up_the_reading_of_the_copy(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(snapshot, "LOOK_S", 0.001)
    with in_process(tmp_path) as server:
        run(fill(server.address, 12))
        host, _, port = server.address.partition(":")
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            peer.connect((host, int(port)))
            peer.sendall(b"POST /v3/maintenance/snapshot HTTP/1.0\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
            peer.recv(1)
            (connection,) = server.call(lambda: list(server.server._connections))
            backlog = [0]

            def settled() -> bool:
                backlog.append(server.call(lambda: connection.transport.get_write_buffer_size()))
                return backlog[-1] == backlog[-2] > snapshot.BACKLOG_BYTES

            eventually(settled)
            # One more read may stand in it, in base64; the copy has 12 MB.
            assert backlog[-1] < snapshot.BACKLOG_BYTES + 2 * snapshot.READ_BYTES
            # It goes on as soon as the peer does.
            received = bytearray()
            while piece := peer.recv(1 << 20):
                received += piece
        lines = bytes(received).partition(b"\r\n\r\n")[2].splitlines()
        blobs = [b64decode(json.loads(line)["result"]["blob"]) for line in lines]
        assert hashlib.sha256(b"".join(blobs[:-1])).digest() == blobs[-1]
        assert sum(map(len, blobs)) > 12_000_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_peer_that_goes_away_takes_the_copy_along(tmp_path: Path, kind: str) -> None:
    async def look_in(address: str) -> None:
        async with AsyncClient(address) as client, client.channel.stream(SNAPSHOT) as call:
            await call.send(rpc.SnapshotRequest(), last=True)
            await call.receive()

    with in_process(tmp_path) as server:
        run(fill(server.address, 16))
        if kind == "grpc":
            run(look_in(server.address))
        else:
            host, _, port = server.address.partition(":")
            with socket.create_connection((host, int(port))) as peer:
                peer.sendall(b"POST /v3/maintenance/snapshot HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
                peer.recv(1)
        eventually(lambda: idle(server, tmp_path))


def test_the_copy_for_a_peer_that_goes_away_is_not_finished(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(view, "STOP_LOOK_STEPS", 10)
    engine = SlowEngine(tmp_path)
    with in_process(tmp_path, engine=engine) as server:
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(b"POST /v3/maintenance/snapshot HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            assert engine.begun.acquire(timeout=10)
        eventually(lambda: server.call(lambda: not server.server._connections))
        engine.may_go_on.set()
        eventually(lambda: idle(server, tmp_path))
        assert engine.finished == 0


@both_forms
def test_a_copy_that_fails_is_told_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    engine = SlowEngine(tmp_path)
    engine.may_go_on.set()
    engine.problem = EngineError("the disk is full")
    with in_process(tmp_path, engine=engine) as server:
        with pytest.raises(ServerError, match="the disk is full"):
            run(save(server.address, form))
        eventually(lambda: idle(server, tmp_path))
        engine.problem = None
        assert run(save(server.address, form))


def test_there_is_a_bound_on_snapshots_at_a_time(tmp_path: Path) -> None:
    engine = SlowEngine(tmp_path)
    with in_process(tmp_path, engine=engine) as server:
        savers = [threading.Thread(target=lambda: run(save(server.address))) for _ in range(limits.SNAPSHOTS_MAX)]
        for saver in savers:
            saver.start()
            assert engine.begun.acquire(timeout=10)
        with pytest.raises(ServerError, match=r"^etcdserver: too many requests$"):
            run(save(server.address))
        engine.may_go_on.set()
        for saver in savers:
            saver.join(10)
        assert run(save(server.address))


def test_a_server_that_stops_lets_go_of_its_snapshots(tmp_path: Path) -> None:
    engine = SlowEngine(tmp_path)
    with in_process(tmp_path, engine=engine) as server:

        def save_in_vain() -> None:
            with pytest.raises(ServerError, match="server stopped"):
                run(save(server.address))

        saver = threading.Thread(target=save_in_vain)
        saver.start()
        assert engine.begun.acquire(timeout=10)
        threading.Timer(0.05, engine.may_go_on.set).start()
    saver.join(10)
    assert server.exit_code == 0
    assert leftovers(tmp_path) == []


def test_what_a_killed_server_left_behind_is_removed_at_the_next_start(tmp_path: Path) -> None:
    for name in ("snapshot-1.tmp", "snapshot-1.tmp.part", "snapshot-1.tmp.part-journal", "snapshot-mine.db"):
        (tmp_path / name).write_text("x")
    with in_process(tmp_path):
        assert leftovers(tmp_path) == ["snapshot-mine.db"]


class Stalled:
    """A peer that asks for a snapshot and reads none of it, over HTTP/1.1."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self._socket.connect((host, int(port)))
        self._socket.sendall(b"POST /v3/maintenance/snapshot HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
        self._socket.recv(1)

    def rest(self) -> bytes:
        self._socket.settimeout(10)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += self._socket.recv(1 << 20)
        return received

    def close(self) -> None:
        self._socket.close()


def stalled(server: InProcessServer, count: int) -> None:
    """Returns when so many snapshots wait for their peers, and nothing else goes on."""

    def waits() -> bool:
        connections = list(server.server._connections)
        return sum(one.transport.get_write_buffer_size() > snapshot.BACKLOG_BYTES for one in connections) == count

    eventually(lambda: server.call(waits))


ENDED = b"snapshot was not read fast enough and has been ended"


def test_a_peer_that_stops_reading_gives_its_place_up(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "LOOK_S", 0.5)
    with in_process(tmp_path) as server:
        run(fill(server.address, 12))
        peer = Stalled(server.address)
        stalled(server, 1)
        server.clock.jump(limits.SNAPSHOT_READ_S_MAX - 1)
        assert server.call(lambda: server.server.core.metrics.snapshots) == 1

        def is_idle_later() -> bool:
            server.clock.jump(1)  # once may be between two looks of the stream, and count as time of its own
            return idle(server, tmp_path)

        eventually(is_idle_later)
        assert ENDED in peer.rest()
        peer.close()
    (line,) = [record for record in caplog.records if "reader is too slow" in record.getMessage()]
    assert vars(line)["remote-addr"] == "127.0.0.1"


def test_time_in_which_the_server_stood_still_is_not_the_peers(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(snapshot, "LOOK_S", limits.SNAPSHOT_READ_S_MAX)
    with in_process(tmp_path) as server:
        run(fill(server.address, 12))
        peer = Stalled(server.address)
        stalled(server, 1)
        server.clock.jump(3 * limits.SNAPSHOT_READ_S_MAX)  # three looks
        assert server.call(lambda: server.server.core.metrics.snapshots) == 1
        peer.close()


def test_a_new_call_gets_the_place_of_a_peer_that_has_stopped_reading(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(snapshot, "LOOK_S", 0.5)
    with in_process(tmp_path) as server:
        run(fill(server.address, 12))
        peers = []
        for count in range(limits.SNAPSHOTS_MAX):
            peers.append(Stalled(server.address))
            stalled(server, count + 1)
            server.clock.jump(0.5)
        with pytest.raises(ServerError, match=r"^etcdserver: too many requests$"):
            run(save(server.address))
        server.clock.jump(limits.SNAPSHOT_YIELD_S)
        data = run(save(server.address))
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]
        assert ENDED in peers[0].rest()
        assert server.call(lambda: server.server.core.metrics.snapshots) == limits.SNAPSHOTS_MAX - 1
        for peer in peers:
            peer.close()


def test_a_stalled_stream_is_told_so_past_the_bytes_that_wait_for_it(tmp_path: Path, monkeypatch: Any) -> None:
    """Over HTTP/2 the window of a stream can be shut: the error does not wait behind its data, which is dropped."""
    monkeypatch.setattr(snapshot, "LOOK_S", 0.5)
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", SNAPSHOT.path.encode()), (b":authority", b"h")]
    block = h2.encode_headers([*head, (b"content-type", b"application/grpc"), (b"te", b"trailers")])
    asked = frame(4, 0, 0, b"") + frame(1, 4, 1, block) + frame(0, 1, 1, bytes(5))
    with in_process(tmp_path) as server:

        def queued_bytes() -> int:
            sessions = [one._session for one in server.server._connections]  # None before the first bytes
            return sum(session.h2.queued_bytes for session in sessions if session is not None)  # type: ignore[attr-defined]

        run(fill(server.address, 3))
        host, _, port = server.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as peer:
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + asked)  # and never opens the window again
            eventually(lambda: server.call(queued_bytes) > snapshot.BACKLOG_BYTES)
            server.clock.jump(limits.SNAPSHOT_READ_S_MAX + 1)

            def dropped() -> bool:
                server.clock.jump(snapshot.LOOK_S)  # the look may come after the one that the first jump was for
                return server.call(queued_bytes) == 0

            eventually(dropped)
            received = b""
            while ENDED not in received:
                received += peer.recv(1 << 20)
            assert len(received) < 70_000
        eventually(lambda: idle(server, tmp_path))


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload
