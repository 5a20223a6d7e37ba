# SPDX-License-Identifier: Apache-2.0
"""One loop turn after the other, on a loop and a clock that the test moves: when batches are sealed and leases end."""

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.server.loop.expiry import MARGIN_S, SLOW_COMMIT_S, STALL_S
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import RECONNECT_GRACE_S, apply, promote
from lessor.state.watch_changes import Changes
from lessor.state.watcher import Watcher
from tests.unit.server.turn_world import Peer, World, once


def test_a_lone_write_is_sealed_in_its_turn_and_answered_by_its_commit() -> None:
    world, peer = World(), Peer()
    world.grant(60, peer=peer)
    world.loop.run()
    assert len(world.disk.batches) == 1
    assert peer.got == []
    world.disk.succeed()
    assert len(peer.got) == 1


def test_what_comes_during_a_commit_joins_one_batch_that_follows_at_once() -> None:
    world, first, later = World(), Peer(), Peer()
    world.grant(60, peer=first)
    world.loop.settle()
    for _ in range(3):
        world.grant(60, peer=later)
        world.loop.settle()
    assert len(world.disk.batches) == 1
    world.disk.succeed()
    assert (len(first.got), len(later.got)) == (1, 0)
    assert [len(batch.leases) for batch in world.disk.batches] == [1, 3]
    world.disk.succeed()
    assert len(later.got) == 3


def test_a_read_waits_for_the_write_that_it_saw() -> None:
    world, reader = World(), Peer()
    world.call(rpc_pb2.PutRequest(key=b"k", value=b"v"))
    world.loop.settle()
    assert len(world.call(rpc_pb2.RangeRequest(key=b"k"), reader).kvs) == 1
    world.loop.settle()
    assert reader.got == []
    world.disk.succeed()
    assert len(reader.got) == 1


def test_after_a_failed_commit_nobody_is_answered_and_nothing_is_committed() -> None:
    world, peer = World(), Peer()
    world.grant(60, peer=peer)
    world.loop.settle()
    world.grant(60, peer=peer)
    world.disk.fail()
    world.loop.settle()
    assert len(world.failures) == 1
    assert peer.got == []
    assert len(world.disk.batches) == 1


def test_a_lease_ends_at_its_deadline_and_not_before() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(60)
    assert lease in world.machine.leases
    world.pass_time(MARGIN_S)
    assert lease not in world.machine.leases
    ((leases, late_s),) = world.expired
    assert leases == 1
    assert late_s == pytest.approx(MARGIN_S)


def test_the_promise_counts_from_the_acknowledgement() -> None:
    world = World()
    lease = world.grant(60)
    world.loop.settle()
    world.loop.now_s += 5  # a slow disk
    world.settle()
    world.pass_time(60)
    assert lease in world.machine.leases
    world.pass_time(MARGIN_S)
    assert lease not in world.machine.leases


def test_a_promise_counts_from_the_end_of_a_long_turn() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(1)
    world.turn.schedule()
    world.turn.renewed.append(cast(Any, world.machine.leases.renew(lease, world.turn.now_s())))
    world.loop.now_s += 0.2  # what else came in this turn
    world.settle()
    world.pass_time(60)
    assert lease in world.machine.leases
    world.pass_time(MARGIN_S)
    assert lease not in world.machine.leases


def test_a_batch_saves_the_clock_of_before_its_first_row() -> None:
    """After a crash a lease gets its deadline less that clock, and its client was promised a full TTL at the commit."""
    world = World()
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.loop.settle()  # this batch is in flight for long
    world.loop.now_s += 1
    world.grant(60)
    world.loop.settle()
    world.loop.now_s += 10
    world.disk.succeed()
    ((_, _, deadline_s, _),) = world.disk.batches[-1].leases
    assert deadline_s - world.disk.batches[-1].clock_s >= 60


def test_a_lease_does_not_end_before_its_grant_is_told() -> None:
    """The disk hangs for longer than the TTL: success is answered afterwards, so the lease has to be there."""
    world, peer = World(), Peer()
    lease = world.grant(1, peer=peer)
    for _ in range(30):
        world.loop.settle()
        world.loop.now_s += 0.1
        world.turn.schedule()
    assert (peer.got, lease in world.machine.leases) == ([], True)
    world.disk.succeed()
    world.settle()
    assert len(peer.got) == 1
    world.pass_time(1)
    assert lease in world.machine.leases
    world.pass_time(SLOW_COMMIT_S)
    assert lease not in world.machine.leases


def behind_a_hung_commit(world: World) -> None:
    """For longer than a TTL a batch does not get to the disk; then it does, and after it what has come meanwhile."""
    for _ in range(30):
        world.loop.settle()
        world.loop.now_s += 0.1
        world.turn.schedule()
    world.disk.succeed()
    world.settle()


def test_a_grant_that_waits_behind_a_hung_commit_does_not_end_before_it_is_told() -> None:
    world, peer = World(), Peer()
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.loop.settle()  # the put's batch is on its way to the disk
    lease = world.grant(1, peer=peer)
    behind_a_hung_commit(world)
    assert len(peer.got) == 1
    assert lease in world.machine.leases
    world.pass_time(1 - SLOW_COMMIT_S)
    assert lease in world.machine.leases
    world.pass_time(2 * SLOW_COMMIT_S)
    assert lease not in world.machine.leases


def test_a_renewal_that_waits_behind_a_hung_commit_is_not_told_of_a_dead_lease() -> None:
    world, peer = World(), Peer()
    lease = world.grant(1)
    world.settle()
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.loop.settle()
    world.loop.now_s += 0.3
    renewed = world.machine.leases.renew(lease, world.turn.now_s())
    assert renewed is not None
    world.gate.hold(renewed.batch, peer, "renewed")
    world.turn.schedule()
    behind_a_hung_commit(world)
    assert peer.got == ["renewed"]
    assert lease in world.machine.leases


def test_a_keepalive_that_is_waiting_to_be_read_wins_against_the_timer() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59.9)
    world.loop.now_s += 0.1 + STALL_S / 2  # the timer is due, and so is a socket
    unread = [lambda: world.machine.leases.renew(lease, world.turn.now_s())]
    world.loop.run(once(unread))
    world.settle()
    assert lease in world.machine.leases
    world.pass_time(60 + MARGIN_S)
    assert lease not in world.machine.leases


def test_who_connects_anew_during_a_stall_is_accepted_and_then_read() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59.9)
    world.loop.now_s += 0.1 + STALL_S / 2
    # The first poll accepts; another connection's bytes ask for an end of turn at the same time.
    polls: list[Callable[[], Any]] = [
        world.turn.schedule,
        lambda: world.machine.leases.renew(lease, world.turn.now_s()),
    ]

    def poll() -> None:
        if polls:
            polls.pop(0)()

    for _ in range(4):
        world.loop.run(poll)
    world.settle()
    assert lease in world.machine.leases


def test_after_a_stall_clients_get_time_to_reconnect() -> None:
    world = World()
    kept, lost = world.grant(60), world.grant(60)
    world.settle()
    world.pass_time(1)
    world.loop.now_s += 600  # the process was stopped
    world.loop.settle()
    world.pass_time(RECONNECT_GRACE_S * 0.9)
    assert lost in world.machine.leases
    world.machine.leases.renew(kept, world.turn.now_s())
    world.pass_time(RECONNECT_GRACE_S)
    assert kept in world.machine.leases
    assert lost not in world.machine.leases


@pytest.mark.parametrize(
    ("late_s", "spared_s"),
    [
        (0.99 * STALL_S, 0.0),  # a busy machine: their connections have survived that
        (STALL_S, STALL_S),
        (1.5 * STALL_S, 1.5 * STALL_S),
        (RECONNECT_GRACE_S, RECONNECT_GRACE_S),
        (600.0, RECONNECT_GRACE_S),
    ],
)
def test_a_stall_spares_leases_for_as_long_as_it_took(late_s: float, spared_s: float) -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59.5)
    (timer_s,) = [world.loop.next_timer_s]
    assert timer_s is not None
    world.loop.now_s = timer_s + late_s + 1e-6  # whatever the timer is for: a deadline, or saving the clock
    resumed_s = world.loop.now_s
    deadline_s = 160.0 + MARGIN_S  # the test's clock begins with 100
    end_s = max(resumed_s + spared_s, deadline_s)
    world.loop.settle()
    assert (lease in world.machine.leases) is (spared_s > 0 or resumed_s < deadline_s)
    world.pass_time(end_s - resumed_s - 2e-3)
    assert (lease in world.machine.leases) is (end_s - 2e-3 > resumed_s)
    world.pass_time(4e-3)
    assert lease not in world.machine.leases


def test_a_lease_that_comes_due_after_a_stall_is_over_ends_in_time() -> None:
    world = World()
    world.grant(60)
    later = world.grant(70)
    world.settle()
    world.pass_time(1)
    world.loop.now_s += 60
    world.loop.settle()
    world.pass_time(9 + MARGIN_S)
    assert later not in world.machine.leases
    assert [ended for ended, _ in world.expired] == [1, 1]


_PASSED_S = st.one_of(st.floats(0.001, 0.4), st.floats(0.4, 5.0))


@pytest.mark.slow
@given(steps=st.lists(st.tuples(st.sampled_from(["idle", "stalled", "keepalive", "disk"]), _PASSED_S), max_size=30))
def test_whatever_stands_still_keepalives_that_came_in_time_count(steps: list[tuple[str, float]]) -> None:
    """The kernel takes keepalives while the process stands still; they are read by the poll after it goes on."""
    world = World()
    ttl_s = 3
    lease = world.grant(ttl_s)
    world.settle()
    promised_s = world.loop.now_s + ttl_s
    unread: list[float] = []

    def poll() -> None:
        nonlocal promised_s
        while unread:
            came_s = unread.pop()
            alive = world.machine.leases.renew(lease, world.turn.now_s()) is not None
            assert alive or came_s > promised_s, "a keepalive that came in time was too late"
            if alive:
                world.turn.schedule()
                promised_s = world.loop.now_s + ttl_s

    def go_on() -> None:
        for _ in range(8):
            world.loop.run(poll)
            assert lease in world.machine.leases or world.loop.now_s > promised_s, "ended early"

    for what, seconds in steps:
        if what == "keepalive":
            unread.append(world.loop.now_s)
        if what == "stalled":
            world.loop.now_s += seconds  # nothing runs in between
        else:
            end_s = world.loop.now_s + seconds
            while (timer_s := world.loop.next_timer_s) is not None and timer_s <= end_s:
                world.loop.now_s = max(world.loop.now_s, timer_s) + 1e-9
                go_on()
            world.loop.now_s = max(world.loop.now_s, end_s)
        if what == "disk" and world.disk.in_flight:
            world.disk.succeed()
        if what != "stalled":
            go_on()


def test_a_storm_is_spread_over_turns_so_that_others_get_in_between() -> None:
    world = World()
    leases = 2 * limits.EXPIRE_PER_TURN_MAX + 1
    for _ in range(leases):
        world.grant(60)
    world.settle()
    world.pass_time(61)
    assert len(world.machine.leases) == 0
    assert [ended for ended, _ in world.expired] == [limits.EXPIRE_PER_TURN_MAX, limits.EXPIRE_PER_TURN_MAX, 1]


def storm(turns: int, turn_s: float) -> tuple[World, list[float]]:
    """Leases that come due at once; the turns that end them take so long each. Returns when each of them was over."""
    world = World()
    for _ in range(turns * limits.EXPIRE_PER_TURN_MAX):
        world.grant(60)
    world.settle()
    begun_s = world.loop.now_s
    ended_s: list[float] = []

    def on_expired(_leases: int, _late_s: float) -> None:
        world.loop.now_s += turn_s
        ended_s.append(world.loop.now_s - begun_s)

    world.turn._on_expired = on_expired
    return world, ended_s


def test_a_storm_that_takes_long_is_not_taken_for_a_stall() -> None:
    world, ended_s = storm(turns=3, turn_s=0.9 * STALL_S)
    world.pass_time(70)
    assert ended_s == [pytest.approx(60 + MARGIN_S + turn * 0.9 * STALL_S) for turn in (1, 2, 3)]


def test_a_turn_of_ours_that_takes_long_is_a_stall() -> None:
    world, ended_s = storm(turns=2, turn_s=1.5 * STALL_S)
    world.pass_time(70)
    assert ended_s == [pytest.approx(60 + MARGIN_S + taken_s) for taken_s in (1.5 * STALL_S, 4.5 * STALL_S)]


def test_a_lease_that_comes_due_in_a_turn_that_stalls_is_spared_as_long() -> None:
    """The timer is set in that turn, when the deadline is past: it is late all the same."""
    world = World()
    world.grant(60)
    later = world.grant(61)
    world.settle()
    resumed_s: list[float] = []

    def on_expired(_leases: int, _late_s: float) -> None:
        if not resumed_s:
            world.loop.now_s += 600
            resumed_s.append(world.loop.now_s)

    world.turn._on_expired = on_expired
    world.pass_time(60 + MARGIN_S)
    assert resumed_s == [world.loop.now_s]
    world.pass_time(RECONNECT_GRACE_S - MARGIN_S)
    assert later in world.machine.leases
    world.pass_time(2 * MARGIN_S)
    assert later not in world.machine.leases


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stop_between_the_timer_and_the_end_of_a_lease_spares_it(steps: int) -> None:
    """No timer is set while the sockets are polled before an expiry: the stop shows all the same."""
    world = World()
    lease, later = world.grant(60), world.grant(61)
    world.settle()
    world.pass_time(59.9)
    world.loop.now_s = 160 + 2 * MARGIN_S  # the test's clock begins with 100
    for _ in range(steps):
        world.loop.run()
    assert lease in world.machine.leases
    world.loop.now_s += 600
    world.loop.settle()
    world.pass_time(RECONNECT_GRACE_S - MARGIN_S)
    assert later in world.machine.leases
    world.pass_time(2 * MARGIN_S)
    assert lease not in world.machine.leases
    assert later not in world.machine.leases


def test_a_slow_disk_is_not_taken_for_a_stall() -> None:
    """The sockets are read while a commit hangs, so nobody needs time to come back."""
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59)
    world.call(rpc_pb2.PutRequest(key=b"k"))
    for _ in range(30):
        world.loop.settle()
        world.loop.now_s += 0.1
        world.turn.schedule()
    world.disk.succeed()
    world.settle()
    world.pass_time(2 * MARGIN_S)
    assert lease not in world.machine.leases


@pytest.mark.parametrize("hangs", [False, True])
def test_a_compaction_is_swept_between_others_and_its_rows_are_named_though_nobody_writes(hangs: bool) -> None:
    world = World()
    versions = 5 * limits.SWEEP_EVENTS_MAX + 1
    for _ in range(versions):
        world.call(rpc_pb2.PutRequest(key=b"a"))
    world.settle()
    before, turns = len(world.disk.batches), 0
    world.call(rpc_pb2.CompactionRequest(revision=1 + versions))
    while world.machine.store.unswept and turns < 10:
        turns += 1
        peer = Peer()
        world.call(rpc_pb2.RangeRequest(key=b"a"), peer)
        world.loop.run()
        if not hangs:
            while world.disk.in_flight:
                world.disk.succeed()
            assert len(peer.got) == 1
    assert 2 <= turns <= 4
    world.settle()
    batches = world.disk.batches[before:]
    assert sorted(row for batch in batches for row in batch.dead) == [(2 + number, 0) for number in range(versions - 1)]
    assert [batch.row_count for batch in batches] == [1, 0]


def test_while_it_follows_the_turn_sweeps_what_a_long_read_has_kept() -> None:
    other, world = StateMachine(Identity(1, 2, 3)), World()
    world.turn.following = True
    world.turn.halt()
    for _ in range(5):
        other.apply(rpc_pb2.PutRequest(key=b"a"), 0.0)
    other.apply(rpc_pb2.CompactionRequest(revision=6), 0.0)
    batch = other.journal.seal(0.0)
    batches = [batch, other.journal.seal(0.0)]
    batches[1].compact_revision, batch.compact_revision = batch.compact_revision, None
    store = world.machine.store
    world.turn.follow(lambda: apply(world.machine, batches[0]), 1)
    store.pin(3)
    world.turn.follow(lambda: apply(world.machine, batches[1]), 2)
    world.settle()
    assert store.unswept
    store.unpin(3)
    world.turn.schedule()
    world.settle()
    assert not store.unswept
    assert sorted(world.machine.journal.take_dead()) == [(revision, 0) for revision in range(2, 6)]
    assert (world.disk.batches, world.failures) == ([], [])


def test_a_turn_that_is_to_leave_does_so_when_all_is_durable_and_sent() -> None:
    world, peer, left = World(), Peer(), []
    world.grant(2, 7)
    world.settle()
    world.call(rpc_pb2.PutRequest(key=b"a"), peer)
    world.loop.settle()  # one batch is under way
    world.call(rpc_pb2.PutRequest(key=b"b"), peer)
    world.turn.leave(lambda: left.append((len(peer.got), peer.flushed)))
    world.turn.flush_later(peer)
    world.loop.settle()
    world.loop.now_s += 10.0  # the lease is due, and does not end any more
    for _ in range(2):
        assert left == []
        world.disk.succeed()
        world.turn.flush_later(peer)
        world.loop.settle()
    assert left == [(2, 2)]
    assert (len(world.disk.batches), world.expired, world.turn.halted) == (3, [], True)


def test_a_turn_that_follows_on_ends_no_lease_until_it_leads_again() -> None:
    world, other = World(), StateMachine(Identity(1, 2, 3))
    world.grant(2, 7)
    world.settle()
    apply(other, world.disk.batches[0])
    world.turn.leave(lambda: None)
    world.settle()
    now_s = world.turn.now_s()
    world.machine.checkpoint(now_s)
    release = world.machine.journal.seal(now_s)
    world.machine.stand_by()
    world.turn.follow_on(release.number)
    assert world.turn.now_s() == now_s
    world.pass_time(60.0)
    apply(other, release)
    other.apply(rpc_pb2.PutRequest(key=b"a"), 0.0)
    world.turn.follow(lambda: apply(world.machine, other.journal.seal(3.0)), release.number + 1)
    world.settle()
    assert (world.expired, world.turn.durable_revision, world.gate.durable) == ([], 2, release.number + 1)
    promote(world.machine, 4, 3.0, clean=True, passed_on_s=0.0)
    world.turn.lead(3.0, None)
    world.pass_time(RECONNECT_GRACE_S - 0.1)
    assert world.expired == []
    world.pass_time(0.2)
    assert [ended for ended, _ in world.expired] == [1]
    world.call(rpc_pb2.PutRequest(key=b"b"), peer := Peer())
    world.settle()
    assert len(peer.got) == 1


def swept_beside_leases() -> World:
    """A compaction that takes many turns, and leases of 2 s whose grants have been answered."""
    world = World()
    versions = 60 * limits.SWEEP_EVENTS_MAX + 1
    for _ in range(versions):
        world.call(rpc_pb2.PutRequest(key=b"a"))
    for lease_id in (1, 2, 3):
        world.grant(2, lease_id)
    world.settle()
    world.pass_time(1.9)
    world.call(rpc_pb2.CompactionRequest(revision=1 + versions))
    return world


def test_a_promise_of_a_long_turn_counts_from_its_end_while_a_compaction_is_swept() -> None:
    world = swept_beside_leases()
    world.loop.run()
    assert world.machine.store.unswept
    told_s = 0.0

    class SlowPeer(Peer):
        def flush(self) -> None:
            nonlocal told_s
            world.loop.now_s += 0.4
            told_s = world.turn.now_s()

    world.turn.schedule()
    renewed = world.machine.leases.renew(1, world.turn.now_s())
    assert renewed is not None
    world.turn.renewed.append(renewed)
    world.turn.flush_later(SlowPeer())
    world.loop.run()
    assert told_s
    assert renewed.deadline_s >= told_s + 2


def test_leases_end_while_a_compaction_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPIRE_PER_TURN_MAX", 1)
    world = swept_beside_leases()
    world.loop.now_s += 0.2
    turns = 0
    while len(world.machine.leases) and turns < 20:
        turns += 1
        world.loop.now_s += 1e-4
        world.loop.run()
        while world.disk.in_flight:
            world.disk.succeed()
    assert not len(world.machine.leases)
    assert world.machine.store.unswept


def test_served_time_is_saved_while_leases_live_and_only_then() -> None:
    world = World()
    world.pass_time(10)
    assert world.disk.batches == []
    lease = world.grant(100)
    world.settle()
    before = len(world.disk.batches)
    world.pass_time(10)
    saved = [batch.clock_s for batch in world.disk.batches[before:]]
    assert 8 <= len(saved) <= 12
    assert saved[-1] >= world.turn.now_s() - limits.CLOCK_SAVE_S
    world.call(rpc_pb2.LeaseRevokeRequest(ID=lease))
    world.settle()
    before = len(world.disk.batches)
    world.pass_time(10)
    assert len(world.disk.batches) - before <= 1


def test_output_is_flushed_once_a_turn_and_forgotten_with_its_connection() -> None:
    world, peer, gone = World(), Peer(), Peer()
    for _ in range(3):
        world.turn.flush_later(peer)
    world.turn.flush_later(gone)
    world.turn.forget(gone)
    world.loop.settle()
    assert (peer.flushed, gone.flushed) == (1, 0)


def test_watchers_are_told_when_the_change_is_durable() -> None:
    world, owner = World(), Peer()
    world.machine.hub.add(Watcher(0, b"k", owner=owner))
    lease = world.grant(60)
    world.call(rpc_pb2.PutRequest(key=b"k", lease=lease))
    world.turn.hold_publications()
    world.settle()
    world.loop.now_s += 61
    world.loop.settle()
    world.pass_time(RECONNECT_GRACE_S)
    assert [event.value for changes in owner.shown for event, _ in changes.events] == [b"", None]
    assert world.turn.durable_revision == owner.shown[-1].revision == 3


class OrderedPeer(Peer):
    """An outlet and an owner of watchers that notes both in one list."""

    def on_changes(self, _watchers: list[Watcher], changes: Changes) -> None:
        self.got.append(changes.revision)


def test_what_comes_after_everything_waits_for_the_newest_rows_and_for_the_events_of_them() -> None:
    world, peer = World(), OrderedPeer()
    world.machine.hub.add(Watcher(0, b"k", owner=peer))
    world.call(rpc_pb2.PutRequest(key=b"k"))
    batch = world.turn.after_everything(peer, "an answer")
    assert batch == world.machine.journal.newest_with_rows
    world.loop.run()
    assert peer.got == []
    world.disk.succeed()
    assert peer.got == [2, "an answer"]


def test_what_comes_after_everything_leaves_at_once_when_all_is_durable() -> None:
    world, peer = World(), OrderedPeer()
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.settle()
    assert world.turn.after_everything(peer, "an answer") == world.gate.durable
    assert peer.got == ["an answer"]
