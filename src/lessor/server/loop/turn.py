# SPDX-License-Identifier: Apache-2.0
"""The order of one loop turn. Read this second, after main.py.

The write rule
- A call is applied to memory at once, in arrival order; its rows join the open batch.
- The batch is sealed at the end of the turn when the committer is free. Otherwise it grows, up to BATCH_ROWS_MAX rows;
  beyond that, connections that bring more are not read until it is sealed.
- One batch commits while the next one accumulates. There is no timer: a lone write is sealed in the turn it came in.
- A write waits for its own batch. A read, and an error too, waits for the newest batch with rows at its moment; if all
  is durable it leaves at once. A keepalive waits for the batch that last wrote its lease, mostly none.
- Watch events pass the same gate.
- What may take long is cut into steps of some milliseconds, one a turn: ends of leases, history for watchers, the sweep
  after a compaction; and long replies (long_reply.py). The end of one lease with all its keys is one step.
- When a commit fails, memory is ahead of disk and the outcome is unknown: nothing is answered any more, nothing is
  rolled back, the server stops with a message and an exit code of its own.

When leases expire
- One timer, at the earliest deadline. When it fires, the loop first reads whatever the sockets hold: a keepalive that
  arrived in time must not lose against an expiry that merely ran first, not even when the process was stopped for
  minutes. So `cutoff`, the instant up to which leases may end, is always an instant after which the sockets have been
  polled, twice: a client that has connected anew meanwhile is accepted by the first poll and read by the second.
- That is all that a client needs whose connection has survived. After a timer that is late by STALL_S or more, some
  have not, and nothing ends until they had the time to come back: as long as the stall took, at most what they get
  after a restart. Decision 0006 has the reasons.
- At most EXPIRE_PER_TURN_MAX leases end per turn; the rest goes to the next turn, keepalives get in between.
- A promise counts from the moment its reply leaves, not from when it was made. Replies leave at the end of a turn, so
  after a turn that took longer than MARGIN_S can hide, the leases renewed in it get their deadline once more.
- While a commit hangs, nothing expires, nor before the batch is durable that gathered meanwhile: a lease whose grant or
  renewal nobody was told of yet must not end before that.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from lessor.base import limits
from lessor.base.clock import Clock
from lessor.base.errors import EtcdError
from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable
from lessor.server.loop.committer import Committer
from lessor.server.loop.release import Gate
from lessor.state.journal import Batch
from lessor.state.lease import Lease
from lessor.state.machine import StateMachine
from lessor.state.replay import RECONNECT_GRACE_S
from lessor.state.watch_hub import Publication

# A timer that is so late tells of a process that stood still for longer than a client waits before it gives up its
# connection. Whoever waits longer finds its keepalive read, and a busy machine is never that late.
STALL_S = 1.0
# How much later than its deadline a lease ends at least: covers the way of a reply from the loop to the socket. A turn
# may take half of it before deadlines are set again.
MARGIN_S = 0.001
# A commit that takes longer holds up expiry. A reply waits for two commits at the most, so with the least TTL of 1 s no
# lease comes due before its reply has left.
SLOW_COMMIT_S = 0.25


class Flushable(Answerable, Protocol):
    """A connection that has bytes to send."""

    def flush(self) -> None: ...

    def resume_reading(self) -> None: ...


class CatchUp(Answerable, Protocol):
    """A watch stream whose watchers are behind."""

    def catch_up(self) -> bool:
        """Sends the next piece of history; returns whether there is more to send right now."""
        ...


class _Crowd:
    """Many outlets in one; each of them fails for itself."""

    def fail(self, _error: EtcdError) -> None: ...


class _Audience(_Crowd):
    """Where publications go when they may be seen: to the owners of the watchers."""

    def deliver(self, publication: Publication) -> None:
        changes = publication.changes
        for owner, watchers in publication.audience.items():
            try:
                owner.on_changes(watchers, changes)
            except Exception as error:  # the others are told
                bugs.end(owner, error)


_AUDIENCE = _Audience()


class _LeaseAudience(_Crowd):
    """The same for what became of leases."""

    def deliver(self, payload: tuple[list[Any], bytes]) -> None:
        watchers, response = payload
        for watcher in watchers:
            try:
                watcher.on_lease_events(response)
            except Exception as error:
                bugs.end(watcher, error)


_LEASE_AUDIENCE = _LeaseAudience()


class Turn:
    """Runs the steps of a loop turn in their order. One per server; loop thread only."""

    def __init__(
        self,
        machine: StateMachine,
        gate: Gate,
        committer: Committer,
        clock: Clock,
        clock_s: float,
        on_expired: Callable[[int, float], None],
    ) -> None:
        self.machine = machine
        self.gate = gate
        self._committer = committer
        self._clock = clock
        # The state machine's time is how long this data has been served (decision 0004), so it goes on across restarts.
        self._origin_s = clock.now_s() - clock_s
        self._on_expired = on_expired
        self._loop: asyncio.AbstractEventLoop
        self._scheduled = False
        self._to_flush: set[Flushable] = set()
        self._paused: set[Flushable] = set()
        self._behind: set[CatchUp] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0
        self._expiring = False
        self._spared_until_s = 0.0  # no lease ends before, after a stall
        self._cutoff_s = 0.0  # leases due until here may end in this turn
        self._began_s = 0.0  # when this turn read its first bytes, or the next one if it has been asked for
        self._ending_began_s = 0.0  # when the turn that ends now read its first bytes
        self._commit_began_s = 0.0
        self._expire_after_batch = 0  # nothing ends before this batch is durable
        self._opened_s = clock_s  # not later than the first row of the open batch
        self.renewed: list[Lease] = []  # leases whose renewal is told in this turn
        self._clock_saved_s = clock_s
        self.clock_save_s = limits.CLOCK_SAVE_S  # how often the served time is saved while leases live
        # The newest revision that is on disk: history is shown up to here. `_sealed_revision` is that of the last
        # batch.
        self.durable_revision = self._sealed_revision = machine.revision
        self._halted = False

    def start(self, loop: asyncio.AbstractEventLoop, on_failure: Callable[[BaseException], None]) -> None:
        self._loop = loop
        self._committer.start(loop, self._committed, on_failure)
        self.schedule()

    def now_s(self) -> float:
        """The data directory's own clock: see decision 0004."""
        return self._clock.now_s() - self._origin_s

    # --- what the other parts ask for ---

    def schedule(self) -> None:
        """Asks for an end of turn, once all sockets that are readable now have been read. Cheap to repeat.

        Called before the first bytes of a turn are looked at: the turn is as long as what follows.
        """
        if not self._scheduled:
            self._scheduled = True
            self._began_s = self.now_s()
            if not self.machine.journal.row_count:
                self._opened_s = self._began_s
            self._loop.call_soon(self._end_of_turn)

    def flush_later(self, connection: Flushable) -> None:
        """The connection has output: it is written at the end of this turn, in one piece."""
        self._to_flush.add(connection)
        if not self._scheduled:
            self.schedule()

    def forget(self, connection: Flushable) -> None:
        """The connection is gone."""
        self._to_flush.discard(connection)
        self._paused.discard(connection)

    @property
    def overloaded(self) -> bool:
        """Whether the open batch is full. A connection that brings requests then calls `pause` and stops reading."""
        journal = self.machine.journal
        return journal.newest_with_rows == journal.number and journal.row_count > limits.BATCH_ROWS_MAX

    def pause(self, connection: Flushable) -> None:
        """The connection has stopped reading; it is told to resume when the batch is sealed."""
        self._paused.add(connection)

    def catch_up_later(self, stream: CatchUp) -> None:
        """The watch stream has history to send."""
        self._behind.add(stream)
        self.schedule()

    def halt(self) -> None:
        """Seals nothing and expires nothing any more: the server is about to write its last batch itself."""
        self._halted = True

    # --- the turn ---

    def _end_of_turn(self) -> None:
        self._scheduled = False
        self._ending_began_s = self._began_s
        self._expire_due()
        self.hold_publications()
        self._seal()
        self._send_history()
        self._flush()
        self._sweep()
        self._count_promises()
        self._arm_timer()

    def _expire_due(self) -> None:
        if self._cutoff_s == 0.0 or self.overloaded or self._halted:
            return
        slow = self._committer.in_flight is not None and self.now_s() - self._commit_began_s > SLOW_COMMIT_S
        if slow or self.gate.durable < self._expire_after_batch:
            return  # the cutoff stays for the turn that follows the commit
        cutoff_s, self._cutoff_s = self._cutoff_s, 0.0
        self._expiring = False
        # The queue's head comes due at its time, be it a lease to end or one that was renewed since: as late as it is,
        # the leases that end now are.
        head_s = self.machine.next_deadline()
        ended = self.machine.expire(cutoff_s, limits.EXPIRE_PER_TURN_MAX)
        if ended and head_s is not None:
            self._on_expired(ended, self.now_s() - head_s)

    def hold_publications(self) -> None:
        """Sends what watchers are to see through the gate; called after every change that may concern one.

        Those who only decide what others are to see (waiting_lines.py) are told at once.
        """
        hub = self.machine.hub
        if hub.outbox:
            batch = self.machine.journal.newest_with_rows
            for publication in hub.take_outbox():
                if publication.at_once:
                    _AUDIENCE.deliver(publication)
                else:
                    self.gate.hold(batch, _AUDIENCE, publication)
        lease_events = self.machine.lease_events
        if lease_events.pending:
            payload = lease_events.take(self.machine.header())
            self.gate.hold(self.machine.journal.newest_with_rows, _LEASE_AUDIENCE, payload)

    def _seal(self) -> None:
        journal = self.machine.journal
        if not self._committer.free or self._halted:
            return
        now_s = self.now_s()
        # Served time is saved with every batch; while leases live it is saved once a second in any case.
        if journal.row_count == 0 and not (self._must_save_clock(now_s) or self._must_name_dead()):
            return
        # With rows, the clock of before the first of them is saved: a deadline beside a later clock would take from the
        # lease, after a crash, what the batch had waited for the disk.
        clock_s = max(self._opened_s, self._clock_saved_s) if journal.row_count else now_s
        self._clock_saved_s = clock_s
        batch = journal.seal(clock_s)
        self._sealed_revision = self.machine.revision
        self._commit_began_s = now_s
        self._committer.commit(batch)
        if self._paused:
            for connection in self._paused:
                connection.resume_reading()
            self._paused.clear()
        if self._cutoff_s:
            # The full batch has held up expiry, and reading: what waits in the sockets comes first.
            cutoff_s, self._cutoff_s = self._cutoff_s, 0.0
            self._before_poll(cutoff_s, now_s)

    def _must_save_clock(self, now_s: float) -> bool:
        return bool(len(self.machine.leases)) and now_s - self._clock_saved_s >= self.clock_save_s

    def _must_name_dead(self) -> bool:
        """Whether a compaction is through in memory and has left rows to be deleted."""
        return self.machine.journal.names_dead and not self.machine.store.unswept

    def _committed(self, batch: Batch) -> None:
        """The batch is on disk: the promises in it begin to count now, and what waited for it leaves."""
        now_s = self.now_s()
        if not self._scheduled:
            self._began_s = now_s
        self.machine.leases.acknowledged(batch.leases_touched, now_s)
        self.renewed += batch.leases_touched
        self.durable_revision = self._sealed_revision
        self.gate.committed(batch.number)
        if now_s - self._commit_began_s > SLOW_COMMIT_S:
            # What came meanwhile may have come due meanwhile, and is in a batch that nobody has been told of yet.
            self._expire_after_batch = self.machine.journal.newest_with_rows
        # Not scheduled but done at once: whoever waits for the disk has waited long enough.
        self._end_of_turn()

    def _send_history(self) -> None:
        if self._behind:
            behind, self._behind = self._behind, set()
            for stream in behind:
                try:
                    if stream.catch_up():
                        self.catch_up_later(stream)
                except Exception as error:
                    bugs.end(stream, error)

    def _flush(self) -> None:
        to_flush = self._to_flush
        if to_flush:
            self._to_flush = set()
            for connection in to_flush:
                try:
                    connection.flush()
                except Exception as error:
                    bugs.end(connection, error)

    def _sweep(self) -> None:
        """Takes some of what a compaction gave up out of memory, and asks for a turn to go on in, or to seal in."""
        store = self.machine.store
        if store.unswept and not self._halted:
            store.sweep(limits.SWEEP_EVENTS_MAX)
            self.schedule()

    def _count_promises(self) -> None:
        """The replies have left: what they promise counts from now, if the turn took noticeably long."""
        if self.renewed:
            now_s = self.now_s()
            if now_s - self._ending_began_s > MARGIN_S / 2:
                self.machine.leases.acknowledged(self.renewed, now_s)
            self.renewed.clear()

    # --- the expiry timer ---

    def _arm_timer(self) -> None:
        """Sets the one timer to the earliest deadline, or to the next saving of the uptime if that comes first."""
        deadline_s = self.machine.next_deadline()
        if deadline_s is None or self._expiring:
            return
        deadline_s = max(deadline_s + MARGIN_S, self._spared_until_s)
        if self._committer.free:
            deadline_s = min(deadline_s, self._clock_saved_s + self.clock_save_s)
        # In a storm the earliest deadline is long past: the timer is late against the moment it could come at, which is
        # not this one but the beginning of the turn. A turn that took long is a stall, too.
        due_s = max(deadline_s, self._ending_began_s)
        if self._timer is not None:
            if self._timer_due_s <= due_s:
                return
            self._timer.cancel()
        self._timer_due_s = due_s
        self._timer = self._loop.call_later(max(self._timer_due_s - self.now_s(), 0.0), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        now_s = self._spare_after_stall(self._timer_due_s)
        deadline_s = self.machine.next_deadline()
        if deadline_s is None or max(deadline_s + MARGIN_S, self._spared_until_s) > now_s:
            self.schedule()
            return
        self._expiring = True
        self._before_poll(now_s - MARGIN_S, now_s)

    def _spare_after_stall(self, due_s: float) -> float:
        """Called by what was to come at `due_s`: how late it is tells whether the process stood still. Returns now."""
        now_s = self.now_s()
        stall_s = now_s - due_s
        if stall_s >= STALL_S:
            # What could not get through for some time gets through within as much more: TCP doubles its waiting.
            self._spared_until_s = now_s + min(stall_s, RECONNECT_GRACE_S)
        return now_s

    def _before_poll(self, cutoff_s: float, began_s: float, polls: int = 2) -> None:
        # uvloop runs timers, then what is scheduled, then polls the sockets; asyncio polls first and runs what it read
        # after what was scheduled before. With one step more than polls, both have polled so often after `cutoff_s`.
        if polls:
            self._loop.call_soon(self._before_poll, cutoff_s, began_s, polls - 1)
        else:
            self._loop.call_soon(self._after_poll, cutoff_s, began_s)

    def _after_poll(self, cutoff_s: float, began_s: float) -> None:
        # The polls follow each other at once. No timer is set meanwhile, so this is where a stall among them shows.
        if self._spare_after_stall(began_s) < self._spared_until_s:
            self._expiring = False
        else:
            self._cutoff_s = cutoff_s
        self.schedule()
