# SPDX-License-Identifier: Apache-2.0
"""A server on a log that others may write to: what its clients see while the log is away, and after a take-over."""

import asyncio
import contextlib
import re
import select
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.cluster.tenure import Timing
from lessor.durable import shared_record
from lessor.durable.engine import FIRST_TERM, Begun, EngineError, Follow
from lessor.replicated.engine import ReplicatedEngine
from lessor.server.command import parse
from lessor.server.main import EXIT_DISK_FAILED, Server
from lessor.server.options import OptionError
from lessor.state.replay import promote
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.grpc_peer import GrpcPeer
from tests.memory_log import MemoryLog, MemoryRecords
from tests.ports import free_port

FAST = Timing(lease_s=0.4, claim_s=0.5, beat_s=0.1, link_s=0.3)


def server_on(kept: MemoryRecords, data_dir: Path, *flags: str) -> InProcessServer:
    return InProcessServer(
        *flags,
        clock=VirtualClock(flowing=True),
        data_dir=data_dir,
        make_engine=lambda path: ReplicatedEngine(path, lambda: MemoryLog(kept), FAST, sync=False),
    )


def eventually(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@contextlib.contextmanager
def back_at_the_end(kept: MemoryRecords) -> Iterator[None]:
    """Otherwise a server whose test has failed would wait for the log."""
    try:
        yield
    finally:
        kept.up = True


def put(key: bytes, value: bytes, lease: int = 0) -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value, lease=lease)


def test_what_was_acknowledged_is_there_at_the_next_process_also_elsewhere(tmp_path: Path) -> None:
    kept = MemoryRecords()
    with server_on(kept, tmp_path / "a") as server, GrpcPeer(server.address) as peer:
        first: Any = peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        assert first.header.raft_term == FIRST_TERM
        for number in range(20):
            peer.call(put(b"k%d" % number, b"v", 7))
        server.kill()
    with server_on(kept, tmp_path / "b") as server, GrpcPeer(server.address) as peer:
        found: Any = peer.call(rpc.RangeRequest(key=b"k", range_end=b"l", count_only=True))
        lease: Any = peer.call(rpc.LeaseTimeToLiveRequest(ID=7, keys=True))
        assert (found.count, found.header.raft_term, found.header.revision) == (20, FIRST_TERM + 1, 21)
        assert found.header.cluster_id == first.header.cluster_id
        assert (lease.grantedTTL, len(lease.keys)) == (60, 20)
        assert 55 < lease.TTL <= 60


def test_a_copy_whose_damage_shows_while_it_is_loaded_is_made_anew(tmp_path: Path) -> None:
    kept = MemoryRecords()
    with server_on(kept, tmp_path) as server, GrpcPeer(server.address) as peer:
        for number in range(300):
            peer.call(put(b"k%03d" % number, bytes(500)))
    (tmp_path / "lessor.db-sums").unlink()  # nothing is compared, as on a backup
    tables = bytearray((tmp_path / "lessor.db").read_bytes())
    middle = len(tables) // 2 // 4096 * 4096
    tables[middle : middle + 8 * 4096] = bytes(8 * 4096)
    (tmp_path / "lessor.db").write_bytes(tables)
    with server_on(kept, tmp_path) as server, GrpcPeer(server.address) as peer:
        found: Any = peer.call(rpc.RangeRequest(key=b"k", range_end=b"l"))
        assert [kv.value for kv in found.kvs] == [bytes(500)] * 300
    assert (tmp_path / "damaged" / "lessor.db").read_bytes() == tables


def test_a_connection_that_has_asked_for_data_gets_no_page_either_while_somebody_else_may_lead(tmp_path: Path) -> None:
    kept = MemoryRecords()
    body = b'{"key":"aw=="}'
    post = b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with server_on(kept, tmp_path) as server, GrpcPeer(server.address) as peer, back_at_the_end(kept):
        peer.call(put(b"k", b"v"))
        host, _, port = server.address.partition(":")
        with contextlib.ExitStack() as stack:
            page, data, both, after = (
                stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(4)
            )
            after.sendall(post)
            assert b"200 OK" in after.recv(1000)
            answering = server.server.core.turn._answering
            assert answering is not None
            kept.up = False
            eventually(lambda: not server.call(answering.may_send))
            data.sendall(post)
            both.sendall(get + post)
            after.sendall(get)
            sent = server.server.core.metrics.handled
            eventually(lambda: sum(n.n for (of, _), n in sent.items() if of.path == "/etcdserverpb.KV/Range") == 3)
            page.sendall(get)  # handled behind them, and its reply leaves alone
            assert b"200 OK" in page.recv(1000)
            assert select.select([data, both, after], [], [], 0)[0] == []
            kept.up = True
            for each in (data, both, after):
                assert b"200 OK" in each.recv(1000)


def test_nothing_leaves_while_somebody_else_may_lead_and_no_lease_ages(tmp_path: Path) -> None:
    kept = MemoryRecords()
    monitors = f"http://127.0.0.1:{free_port()}"
    with (
        server_on(kept, tmp_path, f"--listen-metrics-urls={monitors}") as server,
        GrpcPeer(server.address) as peer,
        ThreadPoolExecutor(3) as threads,
        back_at_the_end(kept),
    ):
        peer.call(rpc.LeaseGrantRequest(TTL=2, ID=7))
        peer.call(put(b"k", b"v", 7))
        answering = server.server.core.turn._answering
        assert answering is not None
        kept.up = False
        eventually(lambda: not server.call(answering.may_send))
        asked: list[Future[Any]] = [
            threads.submit(peer.call, rpc.RangeRequest(key=b"k", serializable=True)),
            threads.submit(peer.call, rpc.LeaseKeepAliveRequest(ID=7)),
            threads.submit(peer.call, put(b"l", b"w")),
        ]
        turn = server.server.core.turn
        eventually(lambda: server.server.core.metrics.renewed == 1)
        clock_s = server.call(turn.now_s)
        time.sleep(3)  # longer than the lease lives
        assert not any(call.done() for call in asked)
        assert server.call(turn.now_s) == clock_s
        for url in (monitors, server.client_url):
            with urllib.request.urlopen(f"{url}/livez", timeout=10) as page:
                assert page.status == 200
            with pytest.raises(urllib.error.HTTPError, match="503") as unready:
                urllib.request.urlopen(f"{url}/readyz", timeout=10)
            assert "linearizable_read failed: etcdserver: no leader" in unready.value.read().decode()
        kept.up = True
        found, renewed, written = (call.result(10) for call in asked)
        assert [kv.value for kv in found.kvs] == [b"v"]
        assert renewed.TTL == 2
        assert written.header.revision == found.header.revision + 1
        assert server.server.core.machine.leases.get(7) is not None
        with urllib.request.urlopen(f"{server.client_url}/metrics", timeout=10) as page:
            assert re.search(rb"^lessor_tenure_lapses_total [1-9]", page.read(), re.M)


def test_a_server_whose_log_is_away_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STOP_ENGINE_S_MAX", 0.2)
    kept = MemoryRecords()
    with server_on(kept, tmp_path) as server, back_at_the_end(kept):
        with GrpcPeer(server.address) as peer:
            peer.call(put(b"k", b"v"))
        kept.up = False
        server.stop()
        assert server.exit_code == EXIT_DISK_FAILED
    kept.up = True
    with server_on(kept, tmp_path) as server, GrpcPeer(server.address) as peer:
        found: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert found.kvs[0].value == b"v"


def test_a_full_disk_is_not_laid_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(engine: ReplicatedEngine, now_s: float, idle: bool) -> float | None:
        raise EngineError("lessor.db: the disk is full")

    with server_on(MemoryRecords(), tmp_path) as server:
        monkeypatch.setattr(ReplicatedEngine, "upkeep", full)
        eventually(lambda: server.exit_code == EXIT_DISK_FAILED)
    assert [each.message for each in caplog.records if each.levelname == "CRITICAL"] == [
        "cannot write to disk; stopping without answering"
    ]


class _LateLook(ReplicatedEngine):
    """Looks whether it may lead at its start, and then not before it is given up."""

    looked = False

    def try_to_lead(self, follow: Follow) -> Begun | None:
        if self.looked:
            self._given_up.wait(10)
        self.looked = True
        return super().try_to_lead(follow)


def test_an_address_in_use_is_the_only_complaint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = MemoryRecords()
    with server_on(kept, tmp_path / "a") as leader:
        eventually(lambda: claims(kept) == 1)
        caplog.clear()
        options = parse([f"--data-dir={tmp_path / 'b'}", f"--listen-client-urls={leader.client_url}"])
        server = Server(options, engine=_LateLook(tmp_path / "b", lambda: MemoryLog(kept), FAST, sync=False))
        server.boot()

        async def start() -> None:
            try:
                await server.start()
            finally:
                server.abandon()

        with pytest.raises(OptionError, match="Address already in use"):
            asyncio.run(start())
    assert [each.message for each in caplog.records if each.levelname in ("ERROR", "CRITICAL")] == []


def test_a_server_that_needs_long_to_begin_keeps_the_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its claim and its serving there may be many leases to promote."""
    kept = MemoryRecords()

    def slowly(*args: Any, **named: Any) -> None:
        time.sleep(3 * FAST.claim_s)
        promote(*args, **named)

    monkeypatch.setattr("lessor.server.role.promote", slowly)
    with server_on(kept, tmp_path / "a") as one:
        eventually(lambda: claims(kept) == 1)
        monkeypatch.setattr("lessor.server.role.promote", promote)
        with server_on(kept, tmp_path / "b"):
            with GrpcPeer(one.address) as peer:
                peer.call(put(b"k", b"v"))
            assert claims(kept) == 1
            one.stop()
            eventually(lambda: claims(kept) == 2)


def claims(kept: MemoryRecords) -> int:
    with kept.lock:
        entries = [shared_record.decode(data) for data in kept.records]
    return sum(entry is not None and entry.kind == shared_record.CLAIM for entry in entries)
