# SPDX-License-Identifier: Apache-2.0
"""Replay: rows in, the same state out, and time counted only while the data is served."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.state.digest import hash_kv
from lessor.state.journal import AlarmRow, AuthRows, Batch, EventRow, LeaseRow
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import RECONNECT_GRACE_S, restore
from lessor.state.watcher import Watcher

IDENTITY = Identity(1, 2, 3)


class Meta(NamedTuple):
    compact_revision: int
    batch: int
    clock_s: float
    clean: bool
    peer_urls: tuple[str, ...] = ()


class Rows:
    """What an engine keeps: applies batches as one would. It deletes dead rows only when asked to."""

    def __init__(self) -> None:
        self.table: dict[tuple[int, int], EventRow] = {}
        self.lease_table: dict[int, LeaseRow] = {}
        self.alarm_table: dict[tuple[int, int], AlarmRow] = {}
        self.auth = AuthRows()
        self.meta = Meta(-1, 0, 0.0, False)
        self.dead: list[tuple[int, int]] = []

    def commit(self, batch: Batch) -> None:
        for row in batch.events:
            assert (row[0], row[1]) not in self.table
            self.table[row[0], row[1]] = row
        for lease in batch.leases:
            self.lease_table[lease[0]] = lease
        for alarm in batch.alarms:
            self.alarm_table[alarm[0], alarm[1]] = alarm
        if batch.auth is not None:
            self.auth.users |= batch.auth.users
            self.auth.roles |= batch.auth.roles
            self.auth.switch = batch.auth.switch or self.auth.switch
        compact_revision = self.meta.compact_revision if batch.compact_revision is None else batch.compact_revision
        peer_urls = self.meta.peer_urls if batch.peer_urls is None else batch.peer_urls
        self.meta = Meta(compact_revision, batch.number, batch.clock_s, batch.clean, peer_urls)
        self.dead += batch.dead

    def collect(self) -> None:
        for dead in self.dead:
            del self.table[dead]  # each was there, and is named once
        self.dead = []

    @property
    def events(self) -> Iterable[EventRow]:
        return [self.table[at] for at in sorted(self.table)]

    @property
    def leases(self) -> Iterable[LeaseRow]:
        return list(self.lease_table.values())

    @property
    def alarms(self) -> Iterable[AlarmRow]:
        return list(self.alarm_table.values())


def call(machine: StateMachine, request: Any, now: float = 0.0) -> Any:
    return machine.apply(request, now)


def grant(machine: StateMachine, lease_id: int, ttl_s: int, now: float) -> None:
    call(machine, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s), now)


def deadline(machine: StateMachine, lease_id: int) -> float:
    lease = machine.leases.get(lease_id)
    assert lease is not None
    return lease.deadline_s


def test_nothing() -> None:
    machine = restore(IDENTITY, Rows())
    assert (machine.revision, machine.compact_revision, len(machine.leases), machine.journal.number) == (1, -1, 0, 1)


def test_batches_go_on() -> None:
    rows = Rows()
    rows.meta = Meta(-1, 41, 7.0, True)
    machine = restore(IDENTITY, rows)
    assert machine.journal.number == 42
    assert machine.journal.newest_with_rows == 41


# --- time -------------------------------------------------------------------------------------------------------


def rows_of_one_lease(ttl_s: int, saved_deadline_s: float, clock_s: float, *, clean: bool) -> Rows:
    rows = Rows()
    rows.lease_table[1] = (1, ttl_s, saved_deadline_s, False)
    rows.meta = Meta(-1, 9, clock_s, clean)
    return rows


@pytest.mark.parametrize(
    ("saved_deadline_s", "clock_s", "clean", "wanted"),
    [
        (160.0, 120.0, True, 160.0),  # exact after a clean stop
        (160.0, 120.0, False, 160.0 + limits.CLOCK_SAVE_S),  # the clock may have been a little further on
        (181.0, 120.0, False, 180.0),  # never more than the TTL
        (120.5, 120.0, True, 120.0 + RECONNECT_GRACE_S),
        (120.5, 120.0, False, 120.0 + RECONNECT_GRACE_S),
        (20.0, 120.0, True, 120.0 + RECONNECT_GRACE_S),  # overdue, but its clients may come back first
    ],
)
def test_remaining_time(saved_deadline_s: float, clock_s: float, clean: bool, wanted: float) -> None:
    machine = restore(IDENTITY, rows_of_one_lease(60, saved_deadline_s, clock_s, clean=clean))
    assert deadline(machine, 1) == wanted
    assert machine.next_deadline() == wanted
    assert machine.journal.row_count == 0


def test_a_higher_minimum_is_applied_to_old_leases() -> None:
    machine = restore(IDENTITY, rows_of_one_lease(5, 105.0, 100.0, clean=True), min_lease_ttl_s=30)
    lease = machine.leases.renew(1, 100.0)
    assert lease is not None
    assert (lease.ttl_s, lease.deadline_s) == (30, 130.0)


def test_a_grace_is_not_taken_back_by_a_renewal_of_a_short_lease() -> None:
    machine = restore(IDENTITY, rows_of_one_lease(1, 100.5, 100.0, clean=True))
    machine.leases.renew(1, 100.1)
    assert machine.expire(100.0 + RECONNECT_GRACE_S - 0.1, 10) == 0
    assert machine.expire(100.0 + RECONNECT_GRACE_S, 10) == 1


def test_renewals_after_a_boot_know_what_is_saved() -> None:
    machine = restore(IDENTITY, rows_of_one_lease(10, 113.5, 104.0, clean=False))
    lease = machine.leases.renew(1, 103.0 + 0.4)
    assert lease is not None
    assert machine.journal.row_count == 0
    assert lease.batch == 9  # long durable
    machine.leases.renew(1, 103.6)
    assert machine.journal.row_count == 0  # the deadline did not move beyond the one given at boot
    machine.leases.renew(1, 105.0)
    assert machine.journal.row_count == 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.0, 8.0), st.booleans()), min_size=1, max_size=30))
def test_restarts_never_end_a_lease_early(steps: list[tuple[float, bool]]) -> None:
    """Renewals with crashes between: what was promised at a renewal holds, counted in time served."""
    rows = Rows()
    machine = restore(IDENTITY, rows)
    now = 0.0
    grant(machine, 1, 10, now)
    rows.commit(machine.journal.seal(now))
    promised_s = 10.0  # from the last renewal, of time served
    for pause_s, crashes in steps:
        now += pause_s
        promised_s -= pause_s
        if machine.expire(now, 10):
            assert promised_s <= 1e-6
            return
        machine.leases.renew(1, now)
        promised_s = 10.0
        rows.commit(machine.journal.seal(now))
        if crashes:
            machine = restore(IDENTITY, rows)
            assert deadline(machine, 1) - now >= promised_s - 1e-6


# --- everything -------------------------------------------------------------------------------------------------

KEYS = st.sampled_from((b"a", b"a\0", b"b", b"c", b"\xff"))
ENDS = st.sampled_from((b"", b"\0", b"b", b"c"))
LEASES = st.sampled_from((0, 1, 2, -3))
PUTS = st.builds(rpc_pb2.PutRequest, key=KEYS, value=st.sampled_from((b"", b"x", b"yy")), lease=LEASES)
DELETES = st.builds(rpc_pb2.DeleteRangeRequest, key=KEYS, range_end=ENDS)
OPS = st.one_of(
    st.builds(rpc_pb2.RequestOp, request_put=PUTS), st.builds(rpc_pb2.RequestOp, request_delete_range=DELETES)
)
REQUESTS = st.one_of(
    PUTS,
    PUTS,
    DELETES,
    st.builds(rpc_pb2.TxnRequest, success=st.lists(OPS, max_size=3)),
    st.builds(rpc_pb2.LeaseGrantRequest, ID=LEASES, TTL=st.integers(1, 9)),
    st.builds(rpc_pb2.LeaseGrantRequest, ID=LEASES, TTL=st.integers(1, 9)),
    st.builds(rpc_pb2.LeaseKeepAliveRequest, ID=LEASES),
    st.builds(rpc_pb2.LeaseRevokeRequest, ID=LEASES),
    st.builds(
        rpc_pb2.AlarmRequest, action=st.integers(0, 2), memberID=st.integers(0, 1), alarm=st.just(rpc_pb2.CORRUPT)
    ),
    st.integers(0, 4),  # compaction, so far back
    st.integers(0, 4),
    st.floats(0.1, 4.0),  # time passes, and what is due ends
    st.sampled_from(("commit", "collect", "restart")),
)


def answers(machine: StateMachine, now: float) -> list[Any]:
    """All that a client can find out, deadlines aside (a restart may lengthen them)."""
    everything: Any = {"key": b"\0", "range_end": b"\0"}
    found: list[Any] = [machine.revision, machine.compact_revision, hash_kv(machine.store)]
    for revision in range(max(1, machine.compact_revision), machine.revision + 1):
        found += [revision, call(machine, rpc_pb2.RangeRequest(**everything, revision=revision))]
    for lease_id in sorted(lease.id for lease in machine.leases):
        reply = call(machine, rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=True), now)
        found.append((lease_id, reply.grantedTTL, sorted(reply.keys)))
    found.append(call(machine, rpc_pb2.AlarmRequest()))
    watcher = Watcher(0, b"\0", b"", prev_kv=True, start_revision=max(1, machine.compact_revision))
    machine.hub.add(watcher)
    while watcher.lagging:
        replayed = machine.hub.replay(watcher, machine.revision, 1000)
        found += [(repr(event), repr(previous)) for event, previous in replayed]
    machine.hub.remove(watcher)
    return found


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(REQUESTS, min_size=10, max_size=40))
def test_a_restored_machine_answers_the_same_and_goes_on(steps: list[Any]) -> None:
    """One machine runs through; its twin is restarted now and then, dead rows collected or not."""
    rows = Rows()
    machine = StateMachine(IDENTITY)
    now = 0.0

    def restarted() -> StateMachine:
        rows.commit(machine.journal.seal(now))
        loaded = restore(IDENTITY, rows)
        assert answers(loaded, now) == answers(machine, now)
        again = loaded.journal.seal(now).dead
        # What is dead but still there vanishes again and is reported; what is gone already is not.
        assert sorted(again) == sorted(rows.dead)
        rows.dead = again
        rows.meta = rows.meta._replace(batch=rows.meta.batch + 1)
        return restore(IDENTITY, rows)

    for step in steps:
        if step == "commit":
            rows.commit(machine.journal.seal(now))
        elif step == "collect":
            rows.collect()
        elif step == "restart":
            machine = restarted()
            rows.dead = []  # the new machine names them in its first batch
        elif isinstance(step, float):
            now += step
            machine.expire(now, 10)
        else:
            if isinstance(step, int):
                step = rpc_pb2.CompactionRequest(revision=machine.revision - step)
            try:
                call(machine, step, now)
            except EtcdError:
                continue
    restarted()
    rows.collect()
    assert answers(restore(IDENTITY, rows), now) == answers(machine, now)
