# SPDX-License-Identifier: Apache-2.0
"""Random histories of locks: one holder at a time, first come first served, nothing left behind.

The oracle is a list: keys in the order in which they came, and the calls that wait. It is asked after each step.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import election_pb2, lock_pb2, rpc_pb2
from tests.unit.server.lock_world import Call, LockWorld

LEASES = (0xA, 0xB, 0xC, 0xD)
NAME = b"job"
EXPIRED = {"lock": "mutex: session is expired", "campaign": "election: not leader"}
NO_LEASE = "etcdserver: requested lease not found"

lease_ids = st.sampled_from(LEASES)
steps = st.one_of(
    st.tuples(st.sampled_from(["lock", "lock", "lock", "campaign"]), lease_ids),
    st.tuples(st.just("unlock"), lease_ids),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("revoke"), lease_ids),
    st.tuples(st.just("renew"), lease_ids),
    st.tuples(st.just("pass"), st.integers(1, 6)),
    st.tuples(st.just("commit"), st.booleans()),
)


@dataclass
class Waiter:
    """What the oracle knows of a call."""

    call: Call
    kind: str
    key: bytes
    place: int
    expected: str | None = None  # "won", or the text of the error; None while it waits
    cancelled: bool = False


class Oracle:
    """Locks as a person would keep them with pencil and paper."""

    def __init__(self) -> None:
        self.places: dict[bytes, tuple[int, int]] = {}  # key: (place in the line, lease)
        self.deadlines: dict[int, float] = {}
        self.ttls: dict[int, int] = {}
        self.waiters: list[Waiter] = []
        self._next_place = 1
        self.wins: list[int] = []

    def enter(self, call: Call, kind: str, lease_id: int) -> None:
        key = b"%b/%x" % (NAME, lease_id)
        if key not in self.places and lease_id not in self.deadlines:
            self.waiters.append(Waiter(call, kind, key, 0, NO_LEASE))
            return
        if key not in self.places:
            self.places[key] = self._next_place, lease_id
            self._next_place += 1
        self.waiters.append(Waiter(call, kind, key, self.places[key][0]))
        self.settle()

    def end_lease(self, lease_id: int) -> None:
        self.deadlines.pop(lease_id, None)
        self.places = {key: held for key, held in self.places.items() if held[1] != lease_id}

    def settle(self) -> None:
        first = min((place for place, _ in self.places.values()), default=None)
        for waiter in self.waiting():
            if self.places.get(waiter.key, (0, 0))[0] != waiter.place:
                waiter.expected = EXPIRED[waiter.kind]
            elif waiter.place == first:
                waiter.expected = "won"
                self.wins.append(waiter.place)

    def waiting(self) -> list[Waiter]:
        return [waiter for waiter in self.waiters if waiter.expected is None and not waiter.cancelled]

    def cancel(self, waiter: Waiter) -> None:
        waiter.cancelled = True
        if all(other.key != waiter.key for other in self.waiting()):
            del self.places[waiter.key]
        self.settle()


class History:
    """The server and the oracle, side by side."""

    def __init__(self) -> None:
        self.world, self.oracle = LockWorld(), Oracle()
        for number, lease_id in enumerate(LEASES):
            ttl_s = 4 + 3 * number
            self.world.lease(lease_id, ttl_s)
            self.oracle.ttls[lease_id] = ttl_s
            self.oracle.deadlines[lease_id] = self.world.turn.now_s() + ttl_s

    def step(self, step: tuple[str, Any]) -> None:
        kind, which = step
        getattr(self, kind)(which)

    def _begin(self, kind: str, lease_id: int, request: Any) -> None:
        self.oracle.enter(self.world.begin(request), kind, lease_id)

    def lock(self, lease_id: int) -> None:
        self._begin("lock", lease_id, lock_pb2.LockRequest(name=NAME, lease=lease_id))

    def campaign(self, lease_id: int) -> None:
        self._begin("campaign", lease_id, election_pb2.CampaignRequest(name=NAME, lease=lease_id))

    def unlock(self, lease_id: int) -> None:
        key = b"%b/%x" % (NAME, lease_id)
        self.world.begin(lock_pb2.UnlockRequest(key=key))
        self.oracle.places.pop(key, None)
        self.oracle.settle()

    def cancel(self, which: int) -> None:
        waiting = self.oracle.waiting()
        if waiting:
            waiter = waiting[which % len(waiting)]
            waiter.call.gone()
            self.oracle.cancel(waiter)

    def revoke(self, lease_id: int) -> None:
        self.world.begin(rpc_pb2.LeaseRevokeRequest(ID=lease_id))
        self.oracle.end_lease(lease_id)
        self.oracle.settle()

    def renew(self, lease_id: int) -> None:
        now_s = self.world.turn.now_s()
        self.world.machine.apply(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id), now_s)
        if lease_id in self.oracle.deadlines:
            self.oracle.deadlines[lease_id] = now_s + self.oracle.ttls[lease_id]
        self.world.turn.schedule()  # as the read that brings a keepalive does

    def pass_(self, seconds: int) -> None:
        """Leases that are due end in one turn, as they do when the server was busy."""
        self.world.settle()  # deadlines count from the commit: none may be under way while time passes
        self.world.loop.now_s += seconds
        now_s = self.world.turn.now_s()
        self.world.machine.expire(now_s, 100)
        self.world.turn.hold_publications()
        self.world.turn.schedule()
        for lease_id in [lease_id for lease_id, end_s in self.oracle.deadlines.items() if end_s <= now_s]:
            self.oracle.end_lease(lease_id)
        self.oracle.settle()

    def commit(self, whole: bool) -> None:
        if whole:
            self.world.settle()
        else:
            self.world.loop.settle()

    def check(self) -> None:
        oracle, world = self.oracle, self.world
        assert world.keys() == sorted(oracle.places)
        for waiter in oracle.waiters:
            if waiter.expected is None:
                assert waiter.call.outcome is None
                assert (waiter.call.waiting is None) == waiter.cancelled
            elif waiter.call.outcome is not None:
                answer = "won" if waiter.call.error is None else waiter.call.error
                assert answer == waiter.expected
        # One holder at a time: of the keys that exist at most one was answered that it has the lock.
        held = {w.place for w in oracle.waiters if w.expected == "won" and oracle.places.get(w.key, (0,))[0] == w.place}
        assert len(held) <= 1
        assert oracle.wins == sorted(oracle.wins), "not first come, first served"

    def end(self) -> None:
        """All are answered, and whoever still waits goes: only keys of holders are left, and then nothing is."""
        self.world.settle()
        self.check()
        for waiter in self.oracle.waiters:
            if waiter.expected is not None:
                assert waiter.call.outcome is not None
        while self.oracle.waiting():
            self.cancel(0)
            self.check()
        self.world.settle()
        assert len(self.world.keys()) <= 1
        assert self.world.idle


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=40))
def test_one_holder_at_a_time_in_the_order_of_coming(history_steps: list[tuple[str, Any]]) -> None:
    history = History()
    for kind, which in history_steps:
        history.step(("pass_" if kind == "pass" else kind, which))
        history.check()
    history.end()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40), st.data())
def test_an_observer_ends_up_with_the_leader_of_now(history_steps: list[tuple[str, Any]], data: st.DataObject) -> None:
    """It is shown keys in the order of their creation, none twice in the same version, and last of all the first."""
    history = History()
    stream = None
    begin = data.draw(st.integers(0, len(history_steps)))
    for number, (kind, which) in enumerate(history_steps):
        if number == begin:
            stream = history.world.observe(NAME)
        history.step(("pass_" if kind == "pass" else kind, which))
    history.world.settle()
    if stream is None:
        return
    shown = [(reply.kv.create_revision, reply.kv.mod_revision) for reply in stream.sent]
    assert shown == sorted(set(shown))
    places = history.oracle.places
    if places:
        leader = min(places, key=lambda key: places[key][0])
        assert stream.sent[-1].kv.key == leader
