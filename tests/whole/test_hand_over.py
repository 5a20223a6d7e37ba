# SPDX-License-Identifier: Apache-2.0
"""A server that hands the lead over goes on as a follower: what is open there sees a pause, and no error."""

import contextlib
import queue
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import election_pb2, leases_pb2, lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.version import CLUSTER_VERSION
from lessor.base import limits
from lessor.server.main import EXIT_HISTORY
from lessor.server.services.compactor import Compactor
from lessor.testing.server import InProcessServer
from tests.conformance.grpc_peer import GrpcPeer
from tests.memory_log import MemoryRecords
from tests.whole.test_followers import is_linked, leads, server_on
from tests.whole.test_move_leader import member_id
from tests.whole.test_on_a_shared_log import eventually, put

LOCK = BY_PATH["/v3lockpb.Lock/Lock"]
UNLOCK = BY_PATH["/v3lockpb.Lock/Unlock"]
CAMPAIGN = BY_PATH["/v3electionpb.Election/Campaign"]
RESIGN = BY_PATH["/v3electionpb.Election/Resign"]
OBSERVE = BY_PATH["/v3electionpb.Election/Observe"]
KEEPALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
WATCH = BY_PATH["/etcdserverpb.Watch/Watch"]
LEASE_WATCH = BY_PATH["/lessorpb.Leases/Watch"]
WAIT_S = 20.0
PREVIOUS = f"{CLUSTER_VERSION.split('.')[0]}.{int(CLUSTER_VERSION.split('.')[1]) - 1}"


class Group:
    """Three servers on one log in memory; the first leads at the start."""

    def __init__(self, kept: MemoryRecords, servers: list[InProcessServer]) -> None:
        self.kept = kept
        self.servers = servers
        self.peers = [GrpcPeer(server.address) for server in servers]

    def hand_over(self, before: int, after: int) -> None:
        """Returns when all three know it."""
        self.peers[before].call(rpc.MoveLeaderRequest(targetID=member_id(self.peers[after])))
        others = [server for server in self.servers if server is not self.servers[after]]
        eventually(lambda: leads(self.servers[after]) and not any(leads(server) for server in others))
        eventually(lambda: all(is_linked(server) for server in others))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    kept = MemoryRecords()
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("a", "b", "c"):
            servers.append(stack.enter_context(server_on(kept, tmp_path / name)))
            eventually(lambda: leads(servers[0]))
        eventually(lambda: all(is_linked(server) for server in servers[1:]))
        made = Group(kept, servers)
        for peer in made.peers:
            stack.enter_context(peer)
        yield made


class Stream:
    """A streaming call; requests are sent when they are given."""

    def __init__(self, peer: GrpcPeer, method: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._replies = peer._stub(method)(iter(self._requests.get, None), timeout=2 * WAIT_S)

    def send(self, request: Any) -> None:
        self._requests.put(request)

    def next(self) -> Any:
        return next(self._replies)

    def end(self) -> None:
        self._requests.put(None)
        self._replies.cancel()


def call(peer: GrpcPeer, method: Any, request: Any) -> Any:
    return peer._stub(method)(request, timeout=2 * WAIT_S)


@contextlib.contextmanager
def stream(peer: GrpcPeer, method: Any, *requests: Any) -> Iterator[Stream]:
    opened = Stream(peer, method)
    for request in requests:
        opened.send(request)
    if not method.client_streaming:
        opened.send(None)
    try:
        yield opened
    finally:
        opened.end()


def watch_of(key: bytes) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key))


def test_a_watch_goes_on_at_the_server_that_has_handed_over_and_misses_and_repeats_nothing(group: Group) -> None:
    first, second, third = group.peers
    with stream(first, WATCH, watch_of(b"k")) as watch:
        assert watch.next().created
        for number, writer in enumerate((first, first, second, third)):
            writer.call(put(b"k", b"%d" % number))
            if number == 1:
                group.hand_over(0, 1)
        group.hand_over(1, 0)
        first.call(put(b"k", b"4"))
        seen: list[bytes] = []
        while len(seen) < 5:
            seen += [event.kv.value for event in watch.next().events]
        assert seen == [b"0", b"1", b"2", b"3", b"4"]


def test_renewals_go_on_on_the_stream_that_was_open(group: Group) -> None:
    first = group.peers[0]
    first.call(rpc.LeaseGrantRequest(ID=7, TTL=60))
    with stream(first, KEEPALIVE) as renewals:
        for turn in range(4):
            renewals.send(rpc.LeaseKeepAliveRequest(ID=7))
            assert renewals.next().TTL == 60
            group.hand_over(turn % 2, 1 - turn % 2)
        first.call(rpc.LeaseRevokeRequest(ID=7))
        renewals.send(rpc.LeaseKeepAliveRequest(ID=7))
        assert renewals.next().TTL == 0


def test_a_renewal_that_waits_for_the_next_leader_is_answered_by_it(group: Group) -> None:
    first = group.peers[0]
    first.call(rpc.LeaseGrantRequest(ID=7, TTL=60))
    with stream(first, KEEPALIVE) as renewals, ThreadPoolExecutor() as pool:
        renewals.send(rpc.LeaseKeepAliveRequest(ID=7))
        assert renewals.next().TTL == 60
        moving = pool.submit(group.hand_over, 0, 1)
        answered = 0
        while not moving.done():
            renewals.send(rpc.LeaseKeepAliveRequest(ID=7))
            assert renewals.next().TTL == 60
            answered += 1
        moving.result()
        assert answered


@pytest.mark.parametrize("with_lease", [True, False])
def test_a_lock_that_waits_at_the_server_that_hands_over_is_given_in_its_turn(group: Group, with_lease: bool) -> None:
    first, second, _ = group.peers
    for lease_id in (1, 2, 3):
        first.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=60))
    holder = call(first, LOCK, lock_pb2.LockRequest(name=b"l", lease=1))
    with ThreadPoolExecutor() as pool:
        asked = lock_pb2.LockRequest(name=b"l", lease=2 if with_lease else 0)
        waiting = pool.submit(call, first, LOCK, asked)
        eventually(lambda: keys_below(second, b"l/") == 2)
        last = pool.submit(call, second, LOCK, lock_pb2.LockRequest(name=b"l", lease=3))
        eventually(lambda: keys_below(second, b"l/") == 3)
        group.hand_over(0, 1)
        group.hand_over(1, 2)
        assert not waiting.done()
        assert not last.done()
        assert keys_below(second, b"l/") == 3  # each has its one place
        call(second, UNLOCK, lock_pb2.UnlockRequest(key=holder.key))
        won = waiting.result(WAIT_S)
        assert not last.done()
        call(first, UNLOCK, lock_pb2.UnlockRequest(key=won.key))
        assert last.result(WAIT_S).key == b"l/3"


def test_a_lock_whose_client_goes_away_while_another_server_leads_gives_up_its_place(group: Group) -> None:
    first, second, _ = group.peers
    for lease_id in (1, 2):
        first.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=60))
    call(first, LOCK, lock_pb2.LockRequest(name=b"l", lease=1))
    waiting = first._stub(LOCK).future(lock_pb2.LockRequest(name=b"l", lease=2))  # type: ignore[attr-defined]
    eventually(lambda: keys_below(second, b"l/") == 2)
    group.hand_over(0, 1)
    waiting.cancel()
    eventually(lambda: keys_below(second, b"l/") == 1)


@pytest.mark.parametrize("at", [0, 2])  # the server that hands over, and one that has passed the call on to it
def test_a_value_that_was_proclaimed_meanwhile_is_not_taken_back(group: Group, at: int) -> None:
    peer, second = group.peers[at], group.peers[1]
    for lease_id in (1, 2):
        peer.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=60))
    call(peer, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=1, value=b"one"))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(call, peer, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=2, value=b"two"))
        eventually(lambda: keys_below(second, b"e/") == 2)
        second.call(put(b"e/2", b"changed", 2))
        group.hand_over(0, 1)
        again: Any = call(peer, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=1, value=b"one"))
        assert again.leader.key == b"e/1"  # behind the call that waits, on the same link
        found: Any = second.call(rpc.RangeRequest(key=b"e/2"))
        assert found.kvs[0].value == b"changed"
        second.call(rpc.LeaseRevokeRequest(ID=1))
        assert waiting.result(WAIT_S).leader.key == b"e/2"


def keys_below(peer: GrpcPeer, prefix: bytes) -> int:
    found: Any = peer.call(rpc.RangeRequest(key=prefix, range_end=prefix[:-1] + b"0", count_only=True))
    return int(found.count)


def test_a_candidate_that_waits_there_leads_in_its_turn_with_the_value_that_it_proclaimed_last(group: Group) -> None:
    first, second, third = group.peers
    for lease_id in (1, 2):
        first.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=60))
    leader = call(first, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=1, value=b"one")).leader
    with ThreadPoolExecutor() as pool, stream(third, OBSERVE, election_pb2.LeaderRequest(name=b"e")) as observer:
        assert observer.next().kv.value == b"one"
        waiting = pool.submit(call, first, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=2, value=b"two"))
        eventually(lambda: keys_below(second, b"e/") == 2)
        first.call(put(b"e/2", b"changed", 2))
        group.hand_over(0, 1)
        assert not waiting.done()
        call(third, RESIGN, election_pb2.ResignRequest(leader=leader))
        assert waiting.result(WAIT_S).leader.key == b"e/2"
        assert observer.next().kv.value == b"changed"


def test_observers_go_on_at_each_server_over_hand_overs(group: Group) -> None:
    first = group.peers[0]
    first.call(rpc.LeaseGrantRequest(ID=1, TTL=60))
    call(first, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=1, value=b"0"))
    asked = election_pb2.LeaderRequest(name=b"e")
    with contextlib.ExitStack() as stack:
        observers = [stack.enter_context(stream(peer, OBSERVE, asked)) for peer in group.peers]
        assert [observer.next().kv.value for observer in observers] == [b"0"] * 3
        for turn in range(3):
            group.hand_over(turn % 3, (turn + 1) % 3)
            value = b"%d" % (turn + 1)
            call(first, CAMPAIGN, election_pb2.CampaignRequest(name=b"e", lease=1, value=value))
            assert [observer.next().kv.value for observer in observers] == [value] * 3


def test_lease_events_end_with_an_error_behind_those_until_then(group: Group) -> None:
    first = group.peers[0]
    with stream(first, LEASE_WATCH, leases_pb2.LeaseWatchRequest()) as watch:
        assert watch.next().created
        first.call(rpc.LeaseGrantRequest(ID=7, TTL=60))
        group.hand_over(0, 1)
        assert [event.ID for event in watch.next().events] == [7]
        with pytest.raises(grpc.RpcError, match="etcdserver: leader changed"):
            watch.next()


def test_leases_have_their_exact_time_and_end_after_hand_overs_to_and_fro(group: Group) -> None:
    first, second, _ = group.peers
    first.call(rpc.LeaseGrantRequest(ID=7, TTL=3))
    first.call(rpc.LeaseGrantRequest(ID=8, TTL=60))
    first.call(put(b"k", b"v", 7))
    group.hand_over(0, 1)
    second.call(rpc.LeaseRevokeRequest(ID=8))
    second.call(rpc.LeaseGrantRequest(ID=9, TTL=4))
    group.hand_over(1, 0)
    left: Any = first.call(rpc.LeaseTimeToLiveRequest(ID=8))
    assert left.TTL == -1
    eventually(lambda: keys_below(second, b"k") == 0)
    eventually(lambda: len(first.call(rpc.LeaseLeasesRequest()).leases) == 0)  # type: ignore[union-attr]


def test_a_server_that_stops_lets_another_one_lead_first_and_answers_what_is_under_way(group: Group) -> None:
    first, second, _ = group.peers
    written: list[int] = []

    def write() -> None:
        with contextlib.suppress(grpc.RpcError):  # once it has stopped
            while True:
                reply: Any = first.call(put(b"k", b"v"))
                written.append(reply.header.revision)

    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write)
        eventually(lambda: len(written) > 5)
        group.servers[0].stop()
        writing.result(WAIT_S)
    eventually(lambda: leads(group.servers[1]) or leads(group.servers[2]))
    found: Any = second.call(rpc.RangeRequest(key=b"k"))
    assert written == list(range(written[0], written[0] + len(written)))
    assert found.kvs[0].mod_revision == written[-1]


def downgrade_at(peer: GrpcPeer) -> str:
    status: Any = peer.call(rpc.StatusRequest())
    return str(status.downgradeInfo.targetVersion)


def test_an_enabled_downgrade_is_known_at_each_server_and_outlives_hand_overs(group: Group) -> None:
    first, second, third = group.peers
    enable = rpc.DowngradeRequest(action=rpc.DowngradeRequest.ENABLE, version=PREVIOUS)
    second.call(enable)
    eventually(lambda: [downgrade_at(peer) for peer in group.peers] == [f"{PREVIOUS}.0"] * 3)
    group.hand_over(0, 2)
    assert downgrade_at(third) == f"{PREVIOUS}.0"
    first.call(rpc.DowngradeRequest(action=rpc.DowngradeRequest.CANCEL))
    eventually(lambda: [downgrade_at(peer) for peer in group.peers] == [""] * 3)


def test_puts_and_deletes_are_counted_at_each_server(group: Group) -> None:
    first, second, _ = group.peers
    before = counted(group)
    for writer in (first, second):
        writer.call(put(b"k", b"v"))
        writer.call(put(b"l", b"v"))
        writer.call(rpc.DeleteRangeRequest(key=b"k"))
        puts = [rpc.RequestOp(request_put=rpc.PutRequest(key=key)) for key in (b"m", b"n")]
        writer.call(rpc.TxnRequest(success=puts))
    eventually(lambda: [plus(one, (8, 2, 2)) for one in before] == counted(group))


def counted(group: Group) -> list[tuple[int, int, int]]:
    def counts(server: InProcessServer) -> tuple[int, int, int]:
        machine = server.server.core.machine
        return machine.store.puts, machine.store.deletes, machine.txns

    return [server.call(lambda server=server: counts(server)) for server in group.servers]  # type: ignore[misc]


def plus(counts: tuple[int, int, int], more: tuple[int, int, int]) -> tuple[int, int, int]:
    return counts[0] + more[0], counts[1] + more[1], counts[2] + more[2]


@pytest.mark.parametrize("of", [0, 1])  # the one that leads, and one that follows
def test_a_server_on_a_copy_of_a_directory_ends_with_a_line_that_says_so(
    group: Group, tmp_path: Path, caplog: pytest.LogCaptureFixture, of: int
) -> None:
    """The other one, which was there before, goes on."""
    shutil.copytree(tmp_path / "ab"[of], tmp_path / "copy")
    with server_on(group.kept, tmp_path / "copy") as copy:
        eventually(lambda: not copy.running)
        assert copy.server.exit_code == EXIT_HISTORY
    (line,) = [record for record in caplog.records if "two servers have one member id" in record.message]
    assert "Start this one with an empty directory" in line.error  # type: ignore[attr-defined]
    eventually(lambda: all(is_linked(server) for server in group.servers[1:]))
    group.peers[of].call(put(b"k", b"v"))


def test_nothing_of_a_large_write_is_lost_to_watchers_when_its_server_hands_over_in_its_midst(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WATCH_AT_ONCE_EVENTS", 10)
    monkeypatch.setattr(limits, "WATCH_SCATTER_LOOKS", 1)  # a turn gives few watchers their events
    first, second, _ = group.peers
    keys = [b"k%03d" % number for number in range(200)]
    first.call(rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=key)) for key in keys[:100]]))
    first.call(rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=key)) for key in keys[100:]]))
    core = group.servers[0].server.core
    hub, target = core.machine.hub, member_id(second)
    begin = hub.on_large
    assert begin is not None

    def hand_over_then() -> None:
        begin()
        core.turn._loop.call_soon(lambda: core.hand_over(target))

    with stream(first, WATCH, *(watch_of(key) for key in keys)) as watch:
        for _ in keys:
            assert watch.next().created
        group.servers[0].call(lambda: setattr(hub, "on_large", hand_over_then))
        first.call(rpc.DeleteRangeRequest(key=b"k", range_end=b"l"))
        eventually(lambda: leads(group.servers[1]))
        second.call(put(keys[-1], b"after"))
        seen: list[tuple[int, bytes]] = []
        while (0, keys[-1]) not in seen:
            seen += [(event.type, event.kv.key) for event in watch.next().events]
        assert sorted(key for kind, key in seen if kind == 1) == keys


def test_a_compaction_that_is_due_while_the_release_is_written_is_left_to_the_next_leader(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = group.peers
    for number in range(10):
        first.call(put(b"k", b"%d" % number))
    server = group.servers[0]
    core = server.server.core
    go_on = threading.Event()
    monkeypatch.setattr(group.kept, "before_append", lambda: go_on.wait(WAIT_S))
    target = member_id(second)
    server.call(lambda: core.hand_over(target))
    eventually(lambda: core.turn.halted)
    assert not core.turn.following
    compactor = Compactor(core, server.server.options)
    monkeypatch.setattr(compactor, "target", lambda revision: revision - 5)
    server.call(compactor._compact)
    go_on.set()
    eventually(lambda: leads(group.servers[1]))
    second.call(put(b"k", b"after"))
    eventually(lambda: core.machine.revision == group.servers[1].server.core.machine.revision)
    assert server.running
    assert core.machine.store.compact_revision <= 0


def test_a_server_that_stops_while_it_hands_over_says_that_its_clients_cannot_stay(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = group.servers[0]
    core = server.server.core
    seen: list[bool] = []
    engine = group.servers[1].server._engine
    begin_term = engine.try_to_lead

    def noting(follow: Any) -> Any:
        begun = begin_term(follow)
        if begun is not None:
            seen.append(begun.goes_on)
        return begun

    monkeypatch.setattr(engine, "try_to_lead", noting)
    role = server.server.role
    target = member_id(group.peers[1])

    def both() -> None:
        core.hand_over(target)
        role.hand_over(goes_on=False)

    server.call(both)
    eventually(lambda: leads(group.servers[1]))
    assert seen == [False]
