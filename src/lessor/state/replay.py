# SPDX-License-Identifier: Apache-2.0
"""Rows in, state out: how a server boots, and how a node follows another.

Laws
- The restored state answers every request as the state that wrote the rows would have, ids of watchers aside.
- Dead rows that were not deleted yet vanish again, and are named for deletion.
- No lease ends earlier than its last acknowledged renewal allows, counted on the data clock.
- To restore some rows and `apply` the batches after them gives the state that restoring all rows gives.

Theory of operation. The versions of keys come in their order, each linked to the one before; then the leases; then each
key's newest version is hung on its lease. What remains of a lease is its saved deadline less the saved data clock.
After a clean stop that is exact. After a crash both may be too early. An early clock only lengthens a lease: a batch
with rows saves the clock of before the first of them. The deadline was set before the commit that made it durable, and
the promise counts from the reply after that commit: ACKNOWLEDGE_S at most may lack (leases.py), and CLOCK_SAVE_S, which
is more, is added, up to the full TTL. Either way a lease has RECONNECT_GRACE_S, so that its client can come back.

Worked example, TTL 10: renewed at 100, row says 118, crash at 104.6, last saved clock 104.1. What remains is
min(118 - 104.1 + 1, 10) = 10 from a clock that goes on at 104.1: due at 114.1, where 110 was promised.

A node that follows applies each batch whole: live leases first, then the events, revision by revision, then the leases
that have ended. Deadlines are only kept, as the rows have them, until `promote` makes them count by the rules of a
boot. That differs in two things. An acknowledgement that another node passed on may have left a little after the claim,
so the full TTL at most is raised by `passed_on_s`. And a primary that hands over and goes on as a follower keeps the
connections of its clients: they need no time to come back, only some for renewals that wait for the next primary.

Does not do: reading rows from anywhere; lease events of a follower, whose rows do not say how a lease has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final, Protocol

from lessor.base import limits
from lessor.state.journal import AlarmRow, AuthRows, EventRow, LeaseRow, Rows
from lessor.state.lease import Lease
from lessor.state.machine import Identity, StateMachine

RECONNECT_GRACE_S: Final = 2.0  # the least that a lease has left at boot
HAND_OVER_GRACE_S: Final = 0.5  # and when no client has lost its connection


class LoadedMeta(Protocol):
    """The values that belong to all rows together."""

    @property
    def compact_revision(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def clock_s(self) -> float: ...
    @property
    def clean(self) -> bool: ...
    @property
    def peer_urls(self) -> tuple[str, ...]: ...


class Loaded(Protocol):
    """The content of a data directory."""

    @property
    def meta(self) -> LoadedMeta: ...
    @property
    def events(self) -> Iterable[EventRow]: ...
    @property
    def leases(self) -> Iterable[LeaseRow]: ...
    @property
    def alarms(self) -> Iterable[AlarmRow]: ...
    @property
    def auth(self) -> AuthRows: ...


def restore(
    identity: Identity,
    loaded: Loaded,
    *,
    min_lease_ttl_s: int = limits.LEASE_TTL_S_MIN,
    max_txn_ops: int = limits.TXN_OPS_MAX,
    lease_id_seed: int = 1,
) -> StateMachine:
    """Builds the state that the rows describe. `events` come in ascending (revision, sub).

    The arguments are those of `StateMachine`. The data clock goes on at `loaded.meta.clock_s`, the batches after
    `loaded.meta.batch`. Cost: one pass over the rows, and sorting the keys.
    """
    meta = loaded.meta
    machine = StateMachine(
        identity,
        min_lease_ttl_s=min_lease_ttl_s,
        max_txn_ops=max_txn_ops,
        lease_id_seed=lease_id_seed,
        batch_number=meta.batch + 1,
    )
    # In the order in which `Loaded` is to be read: one pass over each, nothing kept.
    machine.store.load(loaded.events, meta.compact_revision)
    machine.leases.load(_live_leases(loaded.leases, meta, min_lease_ttl_s))
    machine.store.attach_loaded()
    for member_id, alarm, active in loaded.alarms:
        machine.state_for_alarm(member_id, alarm, active)
    machine.auth.load(loaded.auth)
    machine.peer_urls = meta.peer_urls
    return machine


def _live_leases(rows: Iterable[LeaseRow], meta: LoadedMeta, min_ttl_s: int) -> Iterator[Lease]:
    """The leases that have not ended, each with its deadline by the rules above."""
    clock_s, clean, batch = meta.clock_s, meta.clean, meta.batch
    for lease_id, ttl_s, saved_deadline_s, ended in rows:
        if ended:
            continue
        ttl_s = max(ttl_s, min_ttl_s)
        deadline_s = clock_s + _remaining_s(saved_deadline_s - clock_s, ttl_s, clean)
        yield Lease(lease_id, ttl_s, deadline_s, saved_deadline_s, batch)


def _remaining_s(saved_s: float, at_most_s: float, clean: bool, least_s: float = RECONNECT_GRACE_S) -> float:
    """What remains of a lease whose saved deadline is `saved_s` after the saved clock."""
    if not clean:
        saved_s = min(saved_s + limits.CLOCK_SAVE_S, at_most_s)
    return max(saved_s, least_s)


# --- following another node ------------------------------------------------------------------------------------------


def apply(machine: StateMachine, rows: Rows) -> None:
    """Brings the next batch of another node into a machine that makes none itself. Watchers get its events.

    What the metrics count is what rows tell of: puts, deleted keys, and txns that have put one of several keys.

    After a compaction the store has to be swept as ever. What is dead then, no record names and no batch of this
    machine: the journal gives it out (`take_dead`), for the engine to delete. Cost: O(1) a row.
    """
    leases, store, hub = machine.leases, machine.store, machine.hub
    for row in rows.leases:
        if not row[3]:
            leases.follow(row, rows.number)
    first, events = 0, rows.events
    while first < len(events):
        revision, end = events[first][0], first + 1
        while end < len(events) and events[end][0] == revision:
            end += 1
        found = store.follow(events[first:end])
        machine.txns += end - first > 1 and any(event.value is not None for event in found)
        if hub.count:
            hub.notify(revision, found, [store.previous_of(event) for event in found])
        first = end
    for row in rows.leases:
        if row[3]:
            leases.follow_end(row[0])
    if rows.compact_revision is not None:
        store.follow_compaction(rows.compact_revision)
    for member_id, alarm, active in rows.alarms:
        machine.state_for_alarm(member_id, alarm, active)
    if rows.auth is not None:
        machine.auth.load(rows.auth)
    if rows.peer_urls is not None:
        machine.peer_urls = rows.peer_urls
    machine.journal.follow(rows.number)


def promote(
    machine: StateMachine, term: int, clock_s: float, *, clean: bool, passed_on_s: float, goes_on: bool = False
) -> None:
    """Makes the machine of a follower that of a primary. Its data clock goes on at `clock_s`, the saved one.

    clean: whether the deadlines in the rows are exact, after an orderly end of the primary before. passed_on_s: how
    much later than the primary's its acknowledgements may have left another node. goes_on: whether that primary follows
    now, with its clients. Cost: O(n) for n leases.
    """
    machine.lead(term)
    least_s = HAND_OVER_GRACE_S if goes_on else RECONNECT_GRACE_S
    machine.leases.promote(partial(_promoted_deadline_s, clock_s, clean, passed_on_s, least_s))


def _promoted_deadline_s(clock_s: float, clean: bool, passed_on_s: float, least_s: float, lease: Lease) -> float:
    return clock_s + _remaining_s(lease.saved_deadline_s - clock_s, lease.ttl_s + passed_on_s, clean, least_s)
