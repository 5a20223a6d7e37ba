# SPDX-License-Identifier: Apache-2.0
"""A server that follows, on bad days: strangers, leaders that stand still, wrong addresses, calls without end."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.replicated.engine import ReplicatedEngine
from lessor.server.main import EXIT_BUG, EXIT_DISK_FAILED
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.memory_log import MemoryLog, MemoryRecords
from tests.whole.test_followers import cut_off, follower_of, is_linked, leads, link_of, revision_of, server_on, two
from tests.whole.test_on_a_shared_log import FAST, eventually, put


def post(server: InProcessServer, path: str) -> socket.socket:
    """A JSON call without a body and without a token."""
    host, port = server.address.split(":")
    raw = socket.create_connection((host, int(port)))
    raw.settimeout(15)
    raw.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
    return raw


@pytest.mark.parametrize("path", ["/v3/maintenance/snapshot", "/v3/lessor/leases/watch"])
def test_a_stranger_who_waits_at_a_follower_is_refused_when_it_leads(tmp_path: Path, path: str) -> None:
    with two(tmp_path) as (leader, follower):
        leader._enable_auth("secret")
        eventually(lambda: bool(follower.call(lambda: follower.server.core.auth.enabled)))
        cut_off(follower)
        with post(follower, path) as raw:
            eventually(lambda: bool(follower.call(lambda: follower_of(follower)._streams)))
            leader.kill()
            assert b"user name is empty" in raw.recv(65536)


def test_a_json_stream_without_a_body_is_passed_on_with_an_empty_request(tmp_path: Path) -> None:
    path = "/v3/lessor/leases/watch"
    with two(tmp_path) as (leader, follower), post(leader, path) as there, post(follower, path) as here:
        assert b"created" in there.recv(65536)
        assert b"created" in here.recv(65536)


def test_a_compaction_during_a_long_read_does_not_stop_a_follower(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(leader.address) as peer:
        written: Any = None
        for number in range(10):
            written = peer.call(put(b"k", b"%d" % number))
        newest = written.header.revision
        eventually(lambda: revision_of(follower) == newest)
        store = follower.server.core.machine.store
        pin = follower.call(lambda: store.pin(5))
        peer.call(rpc.CompactionRequest(revision=newest))
        eventually(lambda: bool(follower.call(lambda: store.compact_revision) == newest))
        follower.call(lambda: store.unpin(5) if pin is None else None)
        assert follower.call(lambda: True)


def test_auto_compaction_is_the_leaders(tmp_path: Path) -> None:
    flags = ("--auto-compaction-mode=revision", "--auto-compaction-retention=2")
    with two(tmp_path, *flags) as (leader, follower), GrpcPeer(leader.address) as peer:
        for number in range(10):
            peer.call(put(b"k", b"%d" % number))
        newest = revision_of(leader)
        eventually(lambda: revision_of(follower) == newest)
        from lessor.server.services.compactor import Compactor

        def tick(server: InProcessServer) -> None:
            core = server.server.core
            compactor = Compactor(core, server.options())
            server.call(compactor._compact)

        tick(follower)
        assert follower.call(lambda: follower.server.core.machine.compact_revision) <= 0
        tick(leader)
        eventually(lambda: bool(follower.call(lambda: follower.server.core.machine.compact_revision) == newest - 2))


def test_reads_under_way_at_a_leader_that_stands_still_are_answered_by_the_next(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(1) as threads:
        peer.call(put(b"k", b"v"))
        call = peer.channel.unary_unary(
            "/etcdserverpb.KV/Range", rpc.RangeRequest.SerializeToString, rpc.RangeResponse.FromString
        )
        threads.submit(leader.call, lambda: time.sleep(4 * FAST.claim_s))
        asked = [call.future(rpc.RangeRequest(key=b"k"), timeout=15) for _ in range(10)]
        eventually(lambda: leads(follower))
        assert [each.result().kvs[0].value for each in asked] == [b"v"] * 10


def misled(kept: MemoryRecords, data_dir: Path, url: Callable[[], str]) -> InProcessServer:
    """A server that names a wrong URL as its own."""
    return InProcessServer(
        clock=VirtualClock(flowing=True),
        data_dir=data_dir,
        make_engine=lambda path: ReplicatedEngine(path, lambda: MemoryLog(kept), FAST, urls=(url(),), sync=False),
    )


def test_calls_are_passed_on_to_nobody_but_the_leader_that_the_log_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NO_LEADER_S_MAX", 0.5)
    kept = MemoryRecords()
    with (
        InProcessServer(data_dir=tmp_path / "other") as other,
        misled(kept, tmp_path / "a", lambda: other.client_url) as leader,
    ):
        eventually(lambda: leads(leader))
        with server_on(kept, tmp_path / "b") as follower, GrpcPeer(follower.address) as peer:
            with pytest.raises(grpc.RpcError, match="etcdserver: no leader"):
                peer.call(put(b"k", b"v"))
            assert revision_of(other) == 1


def test_a_follower_does_not_take_itself_for_the_leader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NO_LEADER_S_MAX", 0.5)
    kept = MemoryRecords()
    follower = server_on(kept, tmp_path / "b")
    with misled(kept, tmp_path / "a", lambda: follower.client_url) as leader:
        eventually(lambda: leads(leader))
        with follower, GrpcPeer(follower.address) as peer, pytest.raises(grpc.RpcError, match="etcdserver: no leader"):
            peer.call(put(b"k", b"v"))


def test_a_server_that_cannot_begin_to_lead_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two(tmp_path) as (leader, follower):

        def fails(*args: Any, **named: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr("lessor.server.role.promote", fails)
        leader.stop()
        eventually(lambda: not follower.running)
        assert follower.exit_code in (EXIT_BUG, EXIT_DISK_FAILED)


def test_a_lease_whose_grant_is_answered_late_has_its_whole_time(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(1) as threads:
        link = link_of(follower)
        received: list[bytes] = []
        take = link.data_received
        follower.call(lambda: setattr(link, "data_received", received.append))
        granting = threads.submit(peer.call, rpc.LeaseGrantRequest(TTL=60, ID=7))
        eventually(lambda: bool(leader.call(lambda: leader.server.core.machine.leases.get(7))))
        renewed = leader.call(lambda: leader.server.core.metrics.renewed)
        time.sleep(0.05)  # the answer is on its way for longer than an answer may be

        def deliver() -> None:
            link.data_received = take
            for data in received:
                take(data)

        follower.call(deliver)
        granted: Any = granting.result(20)
        assert granted.TTL == 60
        assert leader.call(lambda: leader.server.core.metrics.renewed) == renewed + 1


def test_many_cancelled_calls_cost_nobody_else(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(follower.address) as other:
        peer.call(rpc.LeaseGrantRequest(TTL=60, ID=7))
        link = link_of(follower)
        lock = peer.channel.unary_unary("/v3lockpb.Lock/Lock")
        name = b"\x0a\x01l\x10\x07"  # LockRequest: name "l", lease 7; all but the first wait
        assert lock(name, timeout=10)
        other.call(rpc.LeaseGrantRequest(TTL=60, ID=8))
        waiting = [lock.future(b"\x0a\x01l\x10\x08", timeout=20) for _ in range(600)]
        eventually(lambda: len(follower.call(lambda: link.h2.open_streams())) > 600)
        for call in waiting:
            call.cancel()
        eventually(lambda: len(follower.call(lambda: link.h2.open_streams())) < 10)
        assert other.call(put(b"k", b"v"))
        assert link_of(follower) is link
        assert leads(leader)


def test_a_follower_lets_go_of_a_leader_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINK_SILENT_S_MAX", 0.3)
    monkeypatch.setattr(limits, "FOLLOWERS_TELL_S", 0.05)
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer:
        link = link_of(follower)
        time.sleep(0.5)
        assert link_of(follower) is link  # what the leader says keeps it
        follower.call(lambda: setattr(link, "data_received", lambda data: None))
        eventually(lambda: link.lost)
        assert peer.call(put(b"k", b"v"))
        assert link_of(follower) is not link


def test_what_waits_for_a_leader_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PASSED_BYTES_MAX", 100_000)
    monkeypatch.setattr(limits, "PASSED_STREAM_BYTES_MAX", 1_000)
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, ThreadPoolExecutor(1) as threads:
        cut_off(follower)
        first = threads.submit(peer.call, put(b"k", bytes(90_000)))
        eventually(lambda: bool(follower.call(lambda: follower_of(follower)._held)))
        assert peer.call(put(b"k", bytes(20_000))) == Failure(8, "too many requests wait for the leader")
        renew = peer.channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
        with pytest.raises(grpc.RpcError) as error:
            list(renew(iter([b"\x08\x07"] * 600), timeout=10))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        leader.kill()
        assert first.result(20)
        assert leads(follower)
        assert revision_of(follower) == 2


def test_a_client_reads_its_own_write_at_a_follower(tmp_path: Path) -> None:
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer:
        for number in range(50):
            written: Any = peer.call(put(b"k", b"%d" % number))
            found: Any = peer.call(rpc.RangeRequest(key=b"k", serializable=True))
            assert (found.kvs[0].value, found.header.revision) == (b"%d" % number, written.header.revision)
        assert is_linked(follower)


def test_a_link_whose_stream_ids_are_used_up_is_replaced(tmp_path: Path) -> None:
    with two(tmp_path) as (_leader, follower), GrpcPeer(follower.address) as peer:
        link = link_of(follower)
        follower.call(lambda: setattr(link.h2, "_next_id", 2**31 - 11))
        for number in range(20):
            assert peer.call(put(b"k", b"%d" % number))
        assert link_of(follower) is not link
        assert revision_of(follower) == 21
