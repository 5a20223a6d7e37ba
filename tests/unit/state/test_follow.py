# SPDX-License-Identifier: Apache-2.0
"""A machine that follows another: batch by batch it becomes what a restart from all rows would be."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2
from lessor.base.errors import EtcdError
from lessor.state import replay
from lessor.state.journal import Batch
from lessor.state.machine import StateMachine
from lessor.state.replay import RECONNECT_GRACE_S, restore
from lessor.state.watcher import Watcher
from tests.unit.state.test_replay import IDENTITY, REQUESTS, Rows, answers, call


def sweep(machine: StateMachine) -> None:
    machine.store.sweep(machine.store.unswept)


def told(machine: StateMachine) -> list[Any]:
    """What the watchers were sent, without the order among watchers of one revision."""
    return [
        (
            publication.changes.revision,
            [(repr(event), repr(previous)) for event, previous in publication.changes.events],
        )
        for publication in machine.hub.take_outbox()
    ]


def deadlines(machine: StateMachine) -> dict[int, tuple[int, float, float]]:
    return {lease.id: (lease.ttl_s, lease.deadline_s, lease.saved_deadline_s) for lease in machine.leases}


class Pair:
    """One machine that is written to, and one that follows it, from a restart on."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.machine = StateMachine(IDENTITY)
        self.follower: StateMachine | None = None
        self.sent: list[Any] = []
        self.now = 0.0

    def follow(self) -> None:
        self.seal()
        self.follower = restore(IDENTITY, self.rows)
        for machine in (self.machine, self.follower):
            machine.hub.add(Watcher(0, b"\0", b"", prev_kv=True))
        self.machine.hub.take_outbox()

    def seal(self) -> Batch:
        batch = self.machine.journal.seal(self.now)
        self.rows.commit(batch)
        self.sent += told(self.machine)
        if self.follower is not None:
            replay.apply(self.follower, batch)
            sweep(self.follower)
            assert told(self.follower) == self.sent
        self.sent = []
        return batch

    def step(self, step: Any) -> None:
        if step in ("commit", "collect"):
            self.seal()
        elif step == "restart":
            if self.follower is None:
                self.follow()
        elif isinstance(step, float):
            self.now += step
            self.machine.expire(self.now, 10)
        else:
            if isinstance(step, int):
                step = rpc_pb2.CompactionRequest(revision=self.machine.revision - step)
            try:
                call(self.machine, step, self.now)
            except EtcdError:
                return
            sweep(self.machine)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(REQUESTS, min_size=10, max_size=60))
def test_restoring_some_and_applying_the_rest_is_restoring_all(steps: list[Any]) -> None:
    pair = Pair()
    for step in steps:
        pair.step(step)
    if pair.follower is None:
        pair.follow()
    pair.seal()
    follower = pair.follower
    assert follower is not None
    restored = restore(IDENTITY, pair.rows)
    assert answers(follower, pair.now) == answers(restored, pair.now) == answers(pair.machine, pair.now)
    assert follower.journal.number == restored.journal.number
    replay.promote(follower, IDENTITY.term, pair.rows.meta.clock_s, clean=pair.rows.meta.clean, passed_on_s=0.0)
    assert deadlines(follower) == deadlines(restored)
    assert follower.next_deadline() == restored.next_deadline()
    # And it goes on as a primary.
    for machine in (follower, restored):
        machine.expire(pair.now + 100.0, 1_000)
    assert answers(follower, pair.now) == answers(restored, pair.now)


class HandingOver(Pair):
    """Two machines: the one that was written to follows the other one from then on, and to and fro."""

    def hand_over(self) -> None:
        assert self.follower is not None
        self.machine.checkpoint(self.now)
        self.seal()
        self.machine.stand_by()
        assert self.machine.next_deadline() is None  # a follower ends no lease
        self.machine, self.follower = self.follower, self.machine
        replay.promote(self.machine, IDENTITY.term, self.now, clean=True, passed_on_s=0.0)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(REQUESTS, min_size=10, max_size=60), st.integers(1, 12))
def test_machines_that_lead_in_turn_have_what_a_restart_from_all_rows_has(steps: list[Any], every: int) -> None:
    pair = HandingOver()
    pair.follow()
    for number, step in enumerate(steps):
        pair.step(step)
        if number % every == every - 1:
            pair.hand_over()
    pair.hand_over()
    machine, follower, restored = pair.machine, pair.follower, restore(IDENTITY, pair.rows)
    assert follower is not None
    assert answers(follower, pair.now) == answers(restored, pair.now) == answers(machine, pair.now)
    assert follower.journal.number == restored.journal.number == machine.journal.number
    assert deadlines(machine) == deadlines(restored)
    assert machine.next_deadline() == restored.next_deadline()
    for each in (machine, restored):
        each.expire(pair.now + 100.0, 1_000)
    assert answers(machine, pair.now) == answers(restored, pair.now)


class Copy:
    """A machine that follows, and its own tables: records bring no dead rows, so it names those that it finds."""

    def __init__(self, rows: Rows) -> None:
        self.rows = copy.deepcopy(rows)
        self._start()

    def _start(self) -> None:
        self.rows.dead = []  # not deleted yet: they are to be named again
        self.machine = restore(IDENTITY, self.rows)

    def take(self, batch: Batch, swept_max: int) -> None:
        named, self.rows.dead = self.rows.dead, []
        self.rows.commit(batch)
        replay.apply(self.machine, batch)
        self.machine.store.sweep(swept_max)
        self.rows.dead = named + self.machine.journal.take_dead()
        assert not self.machine.journal.names_dead

    def delete_some(self) -> None:
        """Stops in the midst of it."""
        some = len(self.rows.dead) // 2
        for row in self.rows.dead[:some]:
            del self.rows.table[row]  # each is there, and is named once
        del self.rows.dead[:some]

    def restart(self) -> None:
        before = answers(self.machine, 0.0)
        self._start()
        assert answers(self.machine, 0.0) == before

    def lead(self) -> None:
        meta = self.rows.meta
        replay.promote(self.machine, IDENTITY.term + 1, meta.clock_s, clean=meta.clean, passed_on_s=0.0)
        sweep(self.machine)
        self.rows.commit(self.machine.journal.seal(meta.clock_s))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(REQUESTS, min_size=10, max_size=60), st.integers(0, 5))
def test_what_a_follower_leaves_on_disk_is_what_a_restart_from_all_rows_leaves(
    steps: list[Any], swept_max: int
) -> None:
    """Dead rows are named once, by the machine that follows or, when it leads before it was swept, in its batch."""
    pair = Pair()
    found = Copy(pair.rows)
    for step in steps:
        if step == "collect":
            found.delete_some()
            continue
        if step in ("commit", "restart"):
            found.take(pair.seal(), swept_max)
        else:
            pair.step(step)
        if step == "restart":
            found.restart()
    found.take(pair.seal(), swept_max)
    found.lead()
    found.rows.collect()
    dead = restore(IDENTITY, pair.rows).journal.seal(0.0).dead
    assert set(found.rows.table) == set(pair.rows.table) - set(dead)


def test_a_lease_that_was_granted_and_has_ended_in_one_batch() -> None:
    pair = Pair()
    pair.follow()
    call(pair.machine, rpc_pb2.LeaseGrantRequest(ID=5, TTL=9))
    call(pair.machine, rpc_pb2.PutRequest(key=b"k", lease=5))
    call(pair.machine, rpc_pb2.LeaseRevokeRequest(ID=5))
    call(pair.machine, rpc_pb2.LeaseGrantRequest(ID=5, TTL=4))
    call(pair.machine, rpc_pb2.PutRequest(key=b"l", lease=5))
    pair.seal()
    assert pair.follower is not None
    assert answers(pair.follower, 0.0) == answers(pair.machine, 0.0)


def test_users_and_roles_that_go() -> None:
    pair = Pair()
    auth = pair.machine.auth
    auth.add_role("r")
    auth.add_user("u", b"hash", no_password=False)
    pair.follow()
    follower = pair.follower
    assert follower is not None
    assert (set(follower.auth.users), set(follower.auth.roles)) == ({"u"}, {"r"})
    auth.delete_user("u")
    auth.delete_role("r")
    pair.seal()
    assert (follower.auth.users, follower.auth.roles, follower.auth.revision) == ({}, {}, auth.revision)


def test_peer_urls_and_alarms_follow() -> None:
    pair = Pair()
    pair.follow()
    pair.machine.name_peer_urls(("http://a:2380",))
    call(pair.machine, rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=2, alarm=rpc_pb2.NOSPACE))
    pair.seal()
    follower = pair.follower
    assert follower is not None
    assert (follower.peer_urls, follower.alarms, follower.no_space) == (("http://a:2380",), {(2, 1)}, True)


@pytest.mark.parametrize(
    ("saved_deadline_s", "clean", "wanted"),
    [
        (130.0, True, 130.0),
        (130.0, False, 131.0),  # the clock may have been further on
        (181.0, False, 160.2),  # never more than the TTL, and what an acknowledgement that was passed on needs
        (100.5, True, 100.0 + RECONNECT_GRACE_S),
    ],
)
def test_deadlines_of_a_new_primary(saved_deadline_s: float, clean: bool, wanted: float) -> None:
    machine = StateMachine(IDENTITY)
    machine.leases.follow((1, 60, saved_deadline_s, 0), 3)
    assert machine.next_deadline() is None  # a follower ends no lease
    replay.promote(machine, 2, 100.0, clean=clean, passed_on_s=0.2)
    assert machine.next_deadline() == pytest.approx(wanted)
    assert machine.header().raft_term == 2
