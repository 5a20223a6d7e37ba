# SPDX-License-Identifier: Apache-2.0
"""The server for tests: what a jump does to leases and everything else that is timed; restarts, kills, flags."""

import contextlib
import gc
import socket
import sqlite3
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import pytest

from lessor.api.methods import METHODS
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.server.options import OptionError
from lessor.state.journal import Batch
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.raw_h2 import ACK, PING, RawH2, framed

CALL_S_MAX = 20.0


class Calls:
    """Calls by grpcio, as from any client."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, name: str, request: Any, token: str = "") -> Any:
        return self.stub(name)(request, timeout=CALL_S_MAX, metadata=[("token", token)] if token else None)

    def stub(self, name: str) -> Any:
        method = next(each for each in METHODS if each.path == f"/etcdserverpb.{name}")
        kind = self._channel.unary_unary if method.unary else self._channel.stream_stream
        return kind(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

    def grant(self, ttl_s: int, *keys: bytes) -> int:
        lease_id = int(self("Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=ttl_s)).ID)
        for key in keys:
            self("KV/Put", rpc.PutRequest(key=key, lease=lease_id))
        return lease_id

    def watch(self, **create: Any) -> Any:
        """The replies to a watch, after the first one. Without a deadline, which a jump would pass."""
        requests = [rpc.WatchRequest(create_request=rpc.WatchCreateRequest(**create))]
        replies = self.stub("Watch/Watch")(iter(requests))
        assert next(replies).created
        return replies

    def left_s(self, lease_id: int) -> int:
        return int(self("Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=lease_id)).TTL)

    def count(self, key: bytes) -> int:
        return int(self("KV/Range", rpc.RangeRequest(key=key)).count)


@contextlib.contextmanager
def calls_to(server: InProcessServer) -> Iterator[Calls]:
    with grpc.insecure_channel(server.address) as channel:
        yield Calls(channel)


@pytest.fixture
def server() -> Iterator[InProcessServer]:
    with InProcessServer() as server:
        yield server


@pytest.fixture
def calls(server: InProcessServer) -> Iterator[Calls]:
    with calls_to(server) as calls:
        yield calls


# --- leases and the clock ---


def test_the_hash_of_nothing_is_a_hash(calls: Calls) -> None:
    """etcd's own tests take 0 for no answer."""
    assert calls("Maintenance/Hash", rpc.HashRequest()).hash != 0


@pytest.mark.parametrize("ttl_s", [1, 60, 3600, 1_000_000])
def test_a_lease_ends_with_the_jump_that_reaches_its_ttl(server: InProcessServer, calls: Calls, ttl_s: int) -> None:
    lease_id = calls.grant(ttl_s, b"k")
    server.clock.jump(ttl_s - 0.01)
    assert calls.left_s(lease_id) == 0
    assert calls.count(b"k") == 1
    server.clock.jump(0.01)
    assert calls.left_s(lease_id) == -1
    assert calls.count(b"k") == 0


def test_time_does_not_pass_by_itself(server: InProcessServer, calls: Calls) -> None:
    lease_id = calls.grant(60)
    server.clock.jump(0)
    assert calls.left_s(lease_id) == 60
    server.clock.jump(59)
    assert calls.left_s(lease_id) == 1


def test_a_long_jump_ends_each_lease_at_its_own_deadline(server: InProcessServer, calls: Calls) -> None:
    """Not after a stall's grace, and not all at the jump's end."""
    for ttl_s in (3000, 60, 600):
        calls.grant(ttl_s, b"%d" % ttl_s)
    replies = calls.watch(key=b"\0", range_end=b"\0")
    ended: list[tuple[float, int]] = []
    core, began_s = server.server.core, server.clock.now_s()
    core.turn._on_expired = lambda count, late_s: ended.append((round(server.clock.now_s() - began_s, 1), count))
    server.clock.jump(3600)
    assert ended == [(60, 1), (600, 1), (3000, 1)]
    assert [next(replies).events[0].kv.key for _ in ended] == [b"60", b"600", b"3000"]
    assert server.call(lambda: core.turn.durable_revision == core.machine.revision)
    replies.cancel()


def test_a_keepalive_that_was_sent_before_the_jump_counts(server: InProcessServer, calls: Calls) -> None:
    lease_id = calls.grant(60)
    server.clock.jump(50)
    stream = calls.stub("Lease/LeaseKeepAlive")(iter([rpc.LeaseKeepAliveRequest(ID=lease_id)]), timeout=CALL_S_MAX)
    assert next(stream).TTL == 60
    server.clock.jump(59)
    assert calls.left_s(lease_id) == 1
    server.clock.jump(1)
    assert calls.left_s(lease_id) == -1


def test_bytes_that_wait_in_a_socket_are_read_before_a_lease_ends(server: InProcessServer, calls: Calls) -> None:
    lease_id = calls.grant(60)
    body = b'{"ID": "%d"}' % lease_id
    request = b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    host, _, port = server.address.partition(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
        peer.recv(10_000)
        server.clock.jump(30)
        peer.sendall(request)  # and nobody waits for the reply
        server.clock.jump(59)
        assert calls.left_s(lease_id) == 1


def test_keepalives_in_json_that_wait_for_later_turns_count_before_a_lease_ends(server: InProcessServer) -> None:
    """The process has stood still while they came. They are more than one turn takes."""
    leases = 10 * limits.STREAM_REQUESTS_PER_TURN_MAX

    def grant() -> None:
        core = server.server.core
        for number in range(leases):
            core.machine.apply(rpc.LeaseGrantRequest(ID=number + 1, TTL=60), core.turn.now_s())
        core.turn.schedule()

    body = b"".join(b'{"ID":%d}' % number for number in range(leases, 0, -1))
    request = b"POST /v3/lease/keepalive HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    host, _, port = server.address.partition(":")
    with socket.create_connection((host, int(port))) as peer:
        peer.sendall(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
        peer.recv(10_000)
        server.call(grant)
        server.clock.jump(59.9)

        def stand_still() -> None:
            peer.sendall(request)
            server.clock._move_to(server.clock._now_us() + 500_000)

        server.call(stand_still)
        server.clock.jump(1)
        assert server.call(lambda: len(server.server.core.machine.leases)) == leases
    server.clock.jump(60)
    assert server.call(lambda: len(server.server.core.machine.leases)) == 0


def test_thousands_of_leases_are_gone_when_the_jump_is_over(server: InProcessServer, calls: Calls) -> None:
    def grant() -> None:
        core = server.server.core
        for number in range(3_000):
            core.machine.apply(rpc.LeaseGrantRequest(ID=number + 1, TTL=30), core.turn.now_s())
        core.turn.schedule()

    server.call(grant)
    server.clock.jump(30)
    assert server.call(lambda: len(server.server.core.machine.leases)) == 0
    assert server.call(lambda: server.server.core.committer.idle)


def test_auto_jump_takes_who_waits_to_the_expiry(server: InProcessServer, calls: Calls) -> None:
    calls.grant(3600, b"k")
    replies = calls.watch(key=b"k")
    with server.clock.auto_jump():
        assert next(replies).events[0].type == 1
    replies.cancel()


# --- what else is timed ---


def test_automatic_compaction_follows_the_clock() -> None:
    flags = ("--auto-compaction-retention=10h", "--grpc-keepalive-interval=100h")  # nobody answers a ping in a jump
    with InProcessServer(*flags) as server, calls_to(server) as calls:
        for _ in range(5):
            revision = calls("KV/Put", rpc.PutRequest(key=b"k")).header.revision
        server.clock.jump(9 * 3600)
        assert calls("KV/Range", rpc.RangeRequest(key=b"k", revision=revision - 1)).count == 1
        server.clock.jump(11 * 3600)
        with pytest.raises(grpc.RpcError, match="compacted"):
            calls("KV/Range", rpc.RangeRequest(key=b"k", revision=revision - 1))


def test_the_deadline_of_a_call_in_hand_is_passed_by_a_jump(server: InProcessServer, calls: Calls) -> None:
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k"))
    replies = calls.stub("Watch/Watch")(iter([create]), timeout=CALL_S_MAX)
    assert next(replies).created
    server.clock.jump(CALL_S_MAX)
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        next(replies)


def test_notifications_of_progress_follow_the_clock(server: InProcessServer, calls: Calls) -> None:
    replies = calls.watch(key=b"k", progress_notify=True)
    server.clock.jump(601)
    reply = next(replies)
    assert (reply.watch_id, list(reply.events)) == (0, [])
    replies.cancel()


def test_tokens_live_by_the_clock() -> None:
    with InProcessServer("--bcrypt-cost=4", "--auth-token-ttl=300") as server, calls_to(server) as calls:
        calls("Auth/UserAdd", rpc.AuthUserAddRequest(name="root", password="r"))
        calls("Auth/UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        calls("Auth/AuthEnable", rpc.AuthEnableRequest())
        token = calls("Auth/Authenticate", rpc.AuthenticateRequest(name="root", password="r")).token
        server.clock.jump(200)
        calls("Auth/UserList", rpc.AuthUserListRequest(), token)
        server.clock.jump(200)
        calls("Auth/UserList", rpc.AuthUserListRequest(), token)
        server.clock.jump(301)
        with pytest.raises(grpc.RpcError, match="invalid auth token"):
            calls("Auth/UserList", rpc.AuthUserListRequest(), token)


# --- restart, kill, flags ---


def test_a_restart_keeps_data_port_and_the_time_that_leases_had_left(server: InProcessServer) -> None:
    address = server.address
    with calls_to(server) as calls:
        lease_id = calls.grant(60, b"k")
        server.clock.jump(20.5)
    server.restart()
    assert server.exit_code == 0
    assert server.address == address
    server.clock.jump(0)
    with calls_to(server) as calls:
        assert calls.left_s(lease_id) == 39
        server.clock.jump(39.5)
        assert calls.count(b"k") == 0


def test_a_kill_loses_nothing_acknowledged_and_down_time_does_not_count(server: InProcessServer) -> None:
    with calls_to(server) as calls:
        lease_id = calls.grant(60, b"k")
        server.clock.jump(20)
        server.kill()
        assert not server.running
        with pytest.raises(grpc.RpcError):
            calls.count(b"k")
    assert server.exit_code is None
    server.clock.jump(1000)
    server.start()
    with calls_to(server) as calls:
        assert calls.count(b"k") == 1
        assert 40 <= calls.left_s(lease_id) <= 42
        server.clock.jump(42)
        assert calls.count(b"k") == 0


class SlowEngine(FileEngine):
    """Its commits wait while `disk` is not set."""

    disk = threading.Event()

    def commit(self, batch: Batch) -> None:
        self.disk.wait(CALL_S_MAX)
        super().commit(batch)


def test_a_kill_takes_what_waits_for_the_disk(caplog: pytest.LogCaptureFixture) -> None:
    SlowEngine.disk.set()
    with InProcessServer(make_engine=lambda path: SlowEngine(path, sync=False)) as server:
        with calls_to(server) as calls:
            calls.grant(60)
            SlowEngine.disk.clear()
            put = calls.stub("KV/Put")
            committing = put.future(rpc.PutRequest(key=b"committing"), timeout=CALL_S_MAX)
            while server.call(lambda: server.server.core.committer.in_flight) is None:
                pass
            waiting = put.future(rpc.PutRequest(key=b"waiting"), timeout=CALL_S_MAX)
            while server.call(lambda: server.server.core.machine.journal.row_count) == 0:
                pass
            threading.Timer(0.02, SlowEngine.disk.set).start()
            server.kill()
            assert not committing.cancelled()
            assert all(call.exception(CALL_S_MAX) is not None for call in (committing, waiting))
        server.start()
        with calls_to(server) as calls:
            assert [calls.count(b"committing"), calls.count(b"waiting")] == [1, 0]
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_the_data_is_gone_afterwards_and_a_given_directory_is_not(tmp_path: Path) -> None:
    with InProcessServer() as server:
        own = Path(server.options().data_dir)
        assert (own / "lessor.db").exists()
    assert not own.exists()
    with InProcessServer(data_dir=tmp_path), pytest.raises(DataDirError, match="in use"):
        InProcessServer(data_dir=tmp_path).__enter__()
    assert (tmp_path / "lessor.db").exists()


def test_flags_are_those_of_the_command_line_and_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_NAME", "from/the/environment")
    monkeypatch.setenv("ETCD_MAX_TXN_OPS", "nonsense")
    with InProcessServer("--name=given", "--min-lease-ttl=5") as server, calls_to(server) as calls:
        assert server.server.options.name == "given"
        assert calls("Lease/LeaseGrant", rpc.LeaseGrantRequest(TTL=1)).TTL == 5
        members = calls("Cluster/MemberList", rpc.MemberListRequest()).members
        assert [list(member.clientURLs) for member in members] == [[server.client_url]]


@pytest.mark.parametrize(
    ("flag", "problem"),
    [("--bcrypt-cost=3", click.UsageError), ("--nope", click.UsageError), ("--name=a/b", OptionError)],
)
def test_flags_that_cannot_be_are_refused(flag: str, problem: type[Exception]) -> None:
    with pytest.raises(problem), InProcessServer(flag):
        pass


def test_two_servers_have_nothing_in_common() -> None:
    with InProcessServer() as one, InProcessServer() as other:
        with calls_to(one) as calls:
            calls.grant(60, b"k")
        with calls_to(other) as calls:
            assert calls.count(b"k") == 0
        one.clock.jump(100)
        assert other.clock.now_s() == VirtualClock().now_s()


def test_a_server_leaves_nothing_behind_and_spares_the_collector() -> None:
    frozen = gc.get_freeze_count()
    with InProcessServer() as server:
        assert urllib.request.urlopen(f"{server.client_url}/health", timeout=5).status == 200
    assert gc.get_freeze_count() == frozen
    server.stop()  # once more does nothing


def test_an_idle_http2_peer_is_pinged_after_two_hours_and_let_go_after_twenty_seconds_more() -> None:
    """The defaults of --grpc-keepalive-interval and --grpc-keepalive-timeout."""
    with InProcessServer() as server, RawH2(server.address) as answering, RawH2(server.address) as silent:
        for peer in (answering, silent):
            assert peer.call("/etcdserverpb.KV/Put", framed(rpc.PutRequest(key=b"k"))).status == (0, "")
        server.clock.jump(7_199)
        answering.send(PING, ACK, 0, bytes(8))  # a sign of life, so that nobody asks it for the next two hours
        server.clock.jump(2)
        assert read_until_ping(silent)
        server.clock.jump(17)
        assert server.call(lambda: len(server.server._connections)) == 2
        server.clock.jump(4)
        with contextlib.suppress(ConnectionResetError):
            assert silent.read() is None
        assert answering.call("/etcdserverpb.KV/Put", framed(rpc.PutRequest(key=b"k"))).status == (0, "")


def read_until_ping(peer: RawH2) -> bool:
    while (frame := peer.read()) is not None:
        if frame.kind == PING and not frame.flags:
            return True
    return False


def test_the_log_says_at_the_start_that_pages_could_not_be_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lessor")
    with InProcessServer(data_dir=tmp_path) as server:
        server.restart()
        server.stop()
        assert [record.message for record in caplog.records if "compared" in record.message] == []
        with contextlib.closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as person:
            person.execute("CREATE TABLE note (text)")
        server.start()
    said = [record.__dict__["reason"] for record in caplog.records if "compared" in record.message]
    assert len(said) == 1
    assert "lessor.db-sums is of another moment than lessor.db" in said[0]
