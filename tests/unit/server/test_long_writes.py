# SPDX-License-Identifier: Apache-2.0
"""A write takes many steps: what goes on meanwhile, what waits, and what nobody may see before it is durable."""

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import election_pb2, lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.base.errors import DEADLINE_EXCEEDED
from lessor.server.loop import bugs
from lessor.server.loop.bugs import BrokenTurnError
from lessor.server.loop.release import Gate
from lessor.server.options import Options
from lessor.server.services.compactor import Compactor
from lessor.state.journal import Batch
from lessor.state.mvcc import Store
from lessor.state.watcher import Watcher
from tests.unit.server.lock_world import Call, LockWorld, Stream
from tests.unit.server.turn_world import Peer

pytestmark = pytest.mark.inside

KEEPALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
LEASE, OTHER = 7, 8
DELETE = rpc.DeleteRangeRequest(key=b"k", range_end=b"l")
REVOKE = rpc.LeaseRevokeRequest(ID=LEASE)
GET = rpc.RangeRequest(key=b"k00")
ALL = rpc.RangeRequest(key=b"\0", range_end=b"\0")


@pytest.fixture(autouse=True)
def _short_steps() -> Iterator[None]:
    with mock.patch.object(limits, "WRITE_STEP_KEYS", 4):
        yield


def filled(keys: int = 20) -> LockWorld:
    world = LockWorld()
    world.lease(LEASE)
    world.lease(OTHER)
    for number in range(keys):
        world.do(rpc.PutRequest(key=b"k%02d" % number, lease=LEASE))
    return world


def renewing(world: LockWorld, *leases: int) -> Stream:
    stream = Stream(world, rpc.LeaseKeepAliveRequest(ID=leases[0]), KEEPALIVE)
    stream.take_requests(*[rpc.LeaseKeepAliveRequest(ID=lease) for lease in leases[1:]])
    return stream


def ttls(stream: Stream) -> list[tuple[int, int]]:
    return [(reply.ID, reply.TTL) for reply in stream.sent]


def turns(world: LockWorld, count: int) -> None:
    """So many turns of the loop, each with a disk that follows at once."""
    for _ in range(count):
        world.loop.run()
        if world.disk.in_flight:
            world.disk.succeed()


def until_written(world: LockWorld) -> int:
    """Turns until the write has ended; nothing is durable in between."""
    for turn in range(1, 200):
        world.loop.run()
        if world.machine.under_way is None:
            return turn
    raise AssertionError("it goes on and on")


def events_of(*batches: Batch) -> list[tuple[int, bytes]]:
    return [(row[0], row[2]) for batch in batches for row in batch.events]


@pytest.mark.parametrize("asked", [DELETE, REVOKE])
def test_it_takes_a_step_in_a_turn_and_is_answered_when_durable(asked: Any) -> None:
    world = filled()
    revision = world.machine.revision
    call = world.begin(asked)
    assert world.machine.under_way is not None
    assert until_written(world) >= 5
    assert world.machine.revision == revision + 1
    world.loop.settle()
    assert not call.answered
    world.disk.succeed()
    assert call.outcome.header.revision == revision + 1
    assert world.do(ALL).count == 0


def test_others_are_renewed_at_once_and_their_rows_are_saved_meanwhile() -> None:
    world = filled()
    world.begin(DELETE)
    before = len(world.disk.batches)
    revision = world.machine.revision
    world.loop.run()
    world.loop.now_s += 50.0  # so the renewal needs a row, and waits for it
    stream = renewing(world, OTHER)
    assert ttls(stream) == []
    turns(world, 2)
    assert ttls(stream) == [(OTHER, 60)]
    assert world.machine.under_way is not None
    saved = world.disk.batches[before:]
    assert saved
    assert not [row for row in events_of(*saved) if row[0] > revision]
    stream.take_requests(rpc.LeaseKeepAliveRequest(ID=OTHER))
    assert ttls(stream) == [(OTHER, 60)] * 2  # this one leaves in the same turn
    world.settle()
    assert len([row for row in events_of(*world.disk.batches) if row[0] == revision + 1]) == 20


def test_a_batch_has_all_of_the_write_or_nothing() -> None:
    world = filled()
    revision = world.machine.revision
    world.begin(REVOKE)
    for _ in range(30):
        world.machine.journal.alarm((1, 1, True))  # so that there is something to save in each turn
        turns(world, 1)
        with_events = [batch for batch in world.disk.batches if [r for r in batch.events if r[0] > revision]]
        with_end = [
            batch for batch in world.disk.batches if [row for row in batch.leases if row[0] == LEASE and row[3]]
        ]
        assert with_events == with_end
        assert len(with_events) <= 1
        assert sum(len(batch.events) for batch in with_events) in (0, 20)
    assert len(with_events) == 1
    assert world.machine.under_way is None


@pytest.mark.parametrize("asked", [REVOKE, "expiry"])
def test_the_lease_that_ends_is_told_so_only_when_that_is_durable(asked: Any) -> None:
    world = filled()
    if asked == "expiry":
        world.pass_time(59.0)
        renewing(world, OTHER)
        world.settle()
        for _ in range(50):
            if world.machine.under_way is None:
                world.loop.now_s += 0.05
                turns(world, 1)
        assert world.machine.under_way is not None
    else:
        world.begin(asked)
    world.loop.run()
    alone = renewing(world, OTHER)
    stream = renewing(world, LEASE, OTHER, LEASE)
    turns(world, 3)
    assert ttls(alone) == [(OTHER, 60)]
    assert ttls(stream) == []
    until_written(world)
    stream.take_requests(rpc.LeaseKeepAliveRequest(ID=OTHER))
    world.loop.settle()
    assert ttls(stream) == []
    world.disk.succeed()
    assert ttls(stream) == [(LEASE, 0), (OTHER, 60), (LEASE, 0), (OTHER, 60)]
    stream.take_requests(rpc.LeaseKeepAliveRequest(ID=OTHER), rpc.LeaseKeepAliveRequest(ID=LEASE))
    assert ttls(stream)[4:] == [(OTHER, 60), (LEASE, 0)]
    # The next long write has another number at the gate.
    for number in range(20):
        world.do(rpc.PutRequest(key=b"k%02d" % number, lease=OTHER))
    world.begin(rpc.LeaseRevokeRequest(ID=OTHER))
    stream.take_requests(rpc.LeaseKeepAliveRequest(ID=OTHER))
    until_written(world)
    world.loop.settle()
    assert len(stream.sent) == 6
    world.disk.succeed()
    assert ttls(stream)[6:] == [(OTHER, 0)]


def test_the_end_and_the_error_of_a_stream_follow_its_replies() -> None:
    world = filled()
    world.begin(REVOKE)
    closed, wrong = renewing(world, LEASE), renewing(world, LEASE)
    closed.requests_end()
    wrong.take([b"\xff"])
    turns(world, 2)
    assert not closed.over
    assert not wrong.over
    world.settle()
    for stream in closed, wrong:
        assert stream.over
        assert ttls(stream) == [(LEASE, 0)]


def test_calls_that_touch_keys_wait_and_are_served_in_order() -> None:
    world = filled()
    deleted = world.begin(DELETE)
    asked = [
        rpc.PutRequest(key=b"k00", value=b"1"),
        GET,
        rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"k00", value=b"2"))]),
        GET,
        rpc.LeaseGrantRequest(ID=9, TTL=60),
        rpc.LeaseTimeToLiveRequest(ID=LEASE, keys=True),
        rpc.LeaseLeasesRequest(),
        rpc.CompactionRequest(revision=2),
        rpc.LeaseRevokeRequest(ID=LEASE),
        lock_pb2.LockRequest(name=b"l", lease=OTHER),
        lock_pb2.UnlockRequest(key=b"nothing"),
        election_pb2.LeaderRequest(name=b"e"),
        rpc.AuthUserListRequest(),
    ]
    calls = [world.begin(request) for request in asked]
    turns(world, 3)
    assert not deleted.answered
    assert not any(call.answered for call in calls)
    assert world.core.long_replies.paused
    assert world.machine.under_way is not None
    world.settle()
    assert all(call.answered for call in calls)
    assert not world.core.long_replies.paused
    revisions = [call.outcome.header.revision for call in [deleted, *calls[:4]]]
    assert revisions == sorted(revisions)
    assert [calls[1].outcome.kvs[0].value, calls[3].outcome.kvs[0].value] == [b"1", b"2"]
    assert calls[5].outcome.keys == []
    assert calls[9].outcome.key == b"l/8"


def test_what_looks_at_no_keys_goes_on() -> None:
    world = filled()
    world.begin(DELETE)
    time, gone = world.begin(rpc.LeaseTimeToLiveRequest(ID=OTHER)), world.begin(rpc.MemberListRequest())
    assert time.outcome.TTL in (59, 60)
    assert gone.answered
    assert world.machine.under_way is not None
    world.settle()
    world2 = filled()
    world2.begin(REVOKE)
    ended = world2.begin(rpc.LeaseTimeToLiveRequest(ID=LEASE))
    turns(world2, 2)
    assert not ended.answered  # its lease is the one that ends
    world2.settle()
    assert ended.outcome.TTL == -1


def test_a_call_that_waits_counts_for_its_connection_until_its_peer_goes() -> None:
    world = filled()
    world.begin(DELETE)
    put = rpc.PutRequest(key=b"big", value=bytes(1_000))
    calls = [world.begin(put, held=world.held) for _ in range(3)]
    assert world.held.size_bytes == 3 * (put.ByteSize() + limits.LONG_REPLY_WAITING_BYTES)
    for call in calls[:2]:
        call.gone()
    assert world.held.size_bytes == put.ByteSize() + limits.LONG_REPLY_WAITING_BYTES
    world.settle()
    assert world.held.size_bytes == 0
    assert calls[2].answered
    assert world.do(rpc.RangeRequest(key=b"big")).kvs[0].version == 1


def test_a_write_whose_peer_goes_is_completed() -> None:
    world = filled()
    call = world.begin(DELETE)
    world.loop.run()
    call.gone()
    world.settle()
    assert not call.answered
    assert world.do(ALL).count == 0


def test_a_call_that_has_waited_for_too_long_is_not_carried_out() -> None:
    world = filled()
    world.begin(DELETE)
    late = Call(world.core, rpc.PutRequest(key=b"late"))
    late.deadline_s = world.turn.read_clock() + 5.0
    with mock.patch("asyncio.get_running_loop", return_value=world.loop):
        late.serve(late.request)
    turns(world, 1)
    world.loop.now_s += 6.0
    turns(world, 1)
    assert late.error == DEADLINE_EXCEEDED.message
    world.settle()
    assert world.do(rpc.RangeRequest(key=b"late")).count == 0


def test_rights_are_looked_at_when_a_call_is_served() -> None:
    world = filled()
    world.begin(DELETE)
    put = world.begin(rpc.PutRequest(key=b"k"))
    asked: list[Any] = []
    with (
        mock.patch.object(world.core, "auth", SimpleNamespace(enabled=True)),
        mock.patch.object(world.core, "permit", lambda call, request: asked.append(request)),
    ):
        world.settle()
    assert asked == [put.request]


def test_few_of_many_calls_that_have_waited_are_served_in_one_turn() -> None:
    world = filled()
    world.begin(DELETE)
    calls = [world.begin(rpc.PutRequest(key=b"p%03d" % number)) for number in range(100)]
    until_written(world)
    served = [world.machine.revision]
    with mock.patch.object(limits, "QUEUED_CALLS_PER_STEP", 10):
        world.loop.run()
        served.append(world.machine.revision)
        direct = world.begin(rpc.PutRequest(key=b"direct"))
        while world.machine.revision < served[0] + 101:
            world.loop.run()
            served.append(world.machine.revision)
        assert max(later - earlier for earlier, later in pairwise(served)) <= 11
    world.settle()
    assert direct.answered
    assert all(call.answered for call in calls)


def test_a_call_that_has_waited_may_begin_a_long_write_of_its_own() -> None:
    world = filled()
    first, second = world.begin(DELETE), None
    refill = [world.begin(rpc.PutRequest(key=b"k%02d" % number)) for number in range(20)]
    second = world.begin(DELETE)
    last = world.begin(GET)
    world.settle()
    assert first.outcome.deleted == second.outcome.deleted == 20
    assert all(call.answered for call in refill)
    assert last.outcome.count == 0
    assert not world.turn.long_writes.busy


def test_leases_that_come_due_meanwhile_end_after_it() -> None:
    world = filled()
    for lease in range(20, 30):
        world.lease(lease, 5)
    world.pass_time(4.99)
    world.begin(DELETE)
    for _ in range(50):
        if world.machine.under_way is not None:
            assert len(world.machine.leases) == 12
            world.loop.now_s += 0.005
            turns(world, 1)
    assert world.machine.under_way is None
    world.pass_time(0.1)
    assert len(world.machine.leases) == 2


def test_a_lease_with_many_keys_expires_in_steps_and_others_follow() -> None:
    world = filled()
    for lease in range(20, 30):
        world.lease(lease)
        for number in range(3):
            world.do(rpc.PutRequest(key=b"o%d/%d" % (lease, number), lease=lease))
    watcher = Watcher(1, b"\0", b"", owner=Peer())
    world.machine.watch(watcher)
    world.pass_time(59.0)
    left = [len(world.machine.store)]
    for _ in range(300):
        world.loop.now_s += 0.01
        turns(world, 1)
        left.append(len(world.machine.store))
    assert left[-1] == 0
    assert max(earlier - later for earlier, later in pairwise(left)) <= 4
    assert sum(ended for ended, _ in world.expired) == 12
    shown = [changes.revision for changes in watcher.owner.shown]
    assert shown == sorted(set(shown))
    assert len(shown) == 11


def test_a_step_that_raises_stops_the_server_and_saves_nothing() -> None:
    world = filled()
    before = len(world.disk.batches)
    call = world.begin(DELETE)
    waiting = world.begin(GET)
    turns(world, 2)
    with mock.patch.object(Store, "delete_all", side_effect=KeyError):
        world.loop.settle()
    assert isinstance(world.failures[0], BrokenTurnError)
    world.loop.settle()
    assert not call.answered
    assert not waiting.answered
    assert not events_of(*world.disk.batches[before:])


def test_a_bug_in_answering_the_call_ends_that_call_alone() -> None:
    world = filled()
    call = world.begin(DELETE)
    with mock.patch.object(Call, "written", side_effect=KeyError):
        until_written(world)
    assert call.error == bugs.TEXT
    assert not world.failures
    world.settle()
    assert world.do(ALL).count == 0


def test_an_orderly_stop_completes_it() -> None:
    world = filled()
    world.begin(REVOKE)
    turns(world, 2)
    world.turn.halt()
    world.turn.long_writes.complete()
    assert world.machine.under_way is None
    world.machine.checkpoint(world.turn.now_s())
    batch = world.machine.journal.seal(world.turn.now_s())
    assert len(batch.events) == 20
    assert [row[0] for row in batch.leases if row[3]] == [LEASE]
    turns(world, 3)


# --- what the server itself reads and writes ----------------------------------------------------------------------


def test_a_waiting_call_that_goes_leaves_its_line_and_its_key_goes_after_the_write() -> None:
    world = filled()
    world.lock(b"l", OTHER)
    waiting = world.begin(lock_pb2.LockRequest(name=b"l", lease=LEASE))
    world.settle()
    assert world.keys(b"l/") == [b"l/7", b"l/8"]
    world.begin(DELETE)
    waiting.gone()
    turns(world, 2)
    assert world.machine.under_way is not None
    world.settle()
    assert world.keys(b"l/") == [b"l/8"]


def test_an_observer_is_shown_no_leader_of_a_write_that_is_under_way() -> None:
    world = filled()
    world.campaign(b"e", OTHER, b"first")
    put = rpc.PutRequest(key=b"e/8", value=b"second", ignore_lease=True)
    asked = rpc.TxnRequest(success=[rpc.RequestOp(request_put=put), rpc.RequestOp(request_delete_range=DELETE)])
    world.begin(asked).gone()  # its reply would be a long one, which needs a real loop
    turns(world, 2)
    assert world.machine.store.changes > 1
    observer, gone = (Stream(world, election_pb2.LeaderRequest(name=b"e")) for _ in range(2))
    gone.gone()
    turns(world, 1)
    assert not observer.sent
    world.settle()
    assert observer.shown() == [(b"e/8", b"second")]
    assert not gone.sent
    observer.gone()
    assert world.idle


def test_an_observer_that_has_fallen_behind_is_shown_none_either() -> None:
    world = filled()
    world.campaign(b"e", OTHER, b"first")
    observer = world.observe(b"e")
    observer.shown()
    observer.to_take_bytes = limits.CONNECTION_BACKLOG_BYTES_MAX + 1
    world.do(rpc.PutRequest(key=b"e/8", value=b"skipped", ignore_lease=True))
    put = rpc.PutRequest(key=b"e/8", value=b"second", ignore_lease=True)
    asked = rpc.TxnRequest(success=[rpc.RequestOp(request_put=put), rpc.RequestOp(request_delete_range=DELETE)])
    world.begin(asked).gone()  # its reply would be a long one, which needs a real loop
    turns(world, 2)
    observer.to_take_bytes = 0
    observer.read()
    turns(world, 2)
    assert world.machine.under_way is not None
    assert not observer.sent
    world.settle()
    assert observer.shown()[-1] == (b"e/8", b"second")


def test_an_automatic_compaction_waits() -> None:
    world = filled()
    compactor = Compactor(world.core, Options(auto_compaction_mode="revision", auto_compaction_retention=1.0))
    world.begin(DELETE)
    compactor._tick(cast(Any, world.loop))
    assert world.machine.compact_revision == -1
    world.settle()
    assert world.machine.compact_revision > 0


def test_the_gate_gives_what_was_promised_to_the_batch_that_has_it() -> None:
    gate, peer, other = Gate(durable=3), Peer(), Peer()
    gate.hold(4, other, "4")
    gate.hold(gate.promised, peer, "promised")
    gate.hold(5, other, "5")
    gate.committed(5)
    assert (peer.got, other.got) == ([], ["4", "5"])
    gate.settle_promised(6)
    assert not peer.got
    gate.committed(6)
    assert peer.got == ["promised"]
    gate.settle_promised(6)  # with nothing held
    gate.hold(gate.promised, peer, "in no batch")
    gate.settle_promised(6)
    assert peer.got == ["promised", "in no batch"]
