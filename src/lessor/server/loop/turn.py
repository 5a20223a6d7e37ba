# SPDX-License-Identifier: Apache-2.0
"""The order of one loop turn. Read this second, after main.py. The order itself is in `Turn._end_of_turn`.

Laws
- A call is applied to memory at once, in arrival order. Its rows join the open batch.
- The batch is sealed at the end of the turn when the committer is free. Otherwise it grows, up to BATCH_ROWS_MAX rows
  and BATCH_BYTES_MAX of keys and values. Beyond that, a connection that brings more is not read until the batch is
  sealed, and bytes of it that have been read wait too.
- One batch commits while the next one accumulates. There is no timer for that: a lone write is sealed in the turn in
  which it came.
- A write waits for its own batch. A read, or an error, waits for the newest batch that has rows when it is applied; if
  all is durable it leaves at once. A keepalive waits for the batch that last wrote its lease, which mostly is durable.
- Watch events pass the same gate as replies.
- Work that may take long is cut into steps of some milliseconds, one a turn: the end of leases, history for watchers,
  the sweep after a compaction, long replies (long_reply.py) and long writes (long_writes.py). While a long write is
  under way no lease ends. A batch that is sealed meanwhile has nothing of it.
- Connections that bring much share TURN_BYTES_S of a turn. Their further bytes wait, and are handled before the next
  leases end, as far as they were read by then. So are the requests of JSON streams that wait for later turns (pace.py).
- At most EXPIRE_PER_TURN_MAX leases end in a turn, with WRITE_STEP_KEYS keys together, or one lease with more begins to
  end. Keepalives are read before the next leases end.
- expiry.py decides when a lease may end.
- The TTL that a reply promises counts from the moment the reply leaves, not from the moment it was made. The deadline
  is set when the batch is durable, and once more at the end of a turn that took long.
- A batch with rows saves the data clock, as it read before the first of them. While leases live, the clock is saved
  every `clock_save_s` in any case, without rows if there are none.
- Where others may take over (`answering`), bytes leave only while they cannot have done so yet: that is asked once a
  turn, directly before its bytes leave. Otherwise all bytes but pages for monitors wait, and the data clock stands
  still meanwhile.
- When a commit fails, memory is ahead of disk and the outcome is unknown. When a step of the turn itself raises,
  memory may be half changed. In both cases nothing is answered any more, nothing is rolled back, nothing is saved, and
  the server stops with a message and an exit code of its own. A bug in a step for one connection, stream or watcher
  ends that call alone (bugs.py).

Theory of operation. The event loop runs its callbacks, then polls the sockets. Code that does something in a turn calls
`schedule` before it looks at the first bytes. The end of the turn then runs once, after all sockets that were readable
have been read. When the disk reports a durable batch, an end of turn follows at once.

Does not do: deciding when leases end (expiry.py); holding payloads for a batch (release.py); disk I/O (committer.py).
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final, Protocol

from lessor.base import limits
from lessor.base.clock import Clock
from lessor.base.errors import EtcdError
from lessor.durable.engine import Answering
from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable
from lessor.server.loop.committer import Committer
from lessor.server.loop.expiry import DUE, NOTHING, Expiry
from lessor.server.loop.long_writes import LongWrites
from lessor.server.loop.release import Gate, Outlet
from lessor.state.journal import Batch
from lessor.state.lease import Lease
from lessor.state.machine import StateMachine
from lessor.state.watch_hub import Publication

_NEVER_S: Final = math.inf
# Before leases end, connections handle what they have read: what the first poll has brought, and what the second has.
_READINGS: Final = 2


class Flushable(Answerable, Protocol):
    """A connection that has bytes to send."""

    def flush(self) -> None: ...

    def resume_reading(self) -> None: ...

    def go_on(self) -> None: ...


class CatchUp(Answerable, Protocol):
    """A watch stream whose watchers are behind."""

    def catch_up(self) -> bool:
        """Sends the next piece of history. Returns whether more can be sent right now."""
        ...


class _Crowd:
    """An outlet that stands for many. A bug in one of them ends that one alone."""

    def end_now(self, _error: EtcdError) -> None: ...


class _Audience(_Crowd):
    """The outlet for publications: hands them to the owners of the watchers."""

    def deliver(self, publication: Publication) -> None:
        changes = publication.changes
        for owner, watchers in publication.audience.items():
            try:
                owner.on_changes(watchers, changes)
            except Exception as error:  # the other owners get the changes
                bugs.end(owner, error)


_AUDIENCE = _Audience()


class _LeaseAudience(_Crowd):
    """The outlet for lease events: hands them to the watchers of leases."""

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

    # More than 30 attributes: Python 3.11 looks them up faster with slots.
    __slots__ = (
        "_answering",
        "_began_s",
        "_behind",
        "_broken",
        "_clock_saved_s",
        "_committer",
        "_ending_began_s",
        "_expiry",
        "_halted",
        "_held",
        "_held_up",
        "_leaving",
        "_loop",
        "_next",
        "_on_expired",
        "_opened_s",
        "_origin_s",
        "_paused",
        "_read_first",
        "_read_served",
        "_readings",
        "_resumed",
        "_sealed_put_bytes",
        "_sealed_revision",
        "_stood_s",
        "_timer",
        "_to_flush",
        "_unread",
        "_waking",
        "_without_data",
        "clock_save_s",
        "durable_revision",
        "following",
        "gate",
        "long_writes",
        "machine",
        "on_committed",
        "read_clock",
        "renewed",
        "scheduled",
    )

    def __init__(
        self,
        machine: StateMachine,
        gate: Gate,
        committer: Committer,
        clock: Clock,
        clock_s: float,
        on_expired: Callable[[int, float], None],
        answering: Answering | None = None,
        *,
        following: bool = False,
    ) -> None:
        """`clock_s`: the saved reading of the data clock, from which the clock goes on (decision 0004).

        `answering`: the engine's, to be asked before bytes leave; None when they always may. `following`: another
        server leads, until `lead` is called.

        `on_expired(ended, late_s)`: called when leases have ended, with their number and the lateness of the first.
        """
        self.machine = machine
        self.gate = gate
        self._committer = committer
        self.read_clock: Final = clock.now_s  # without the origin: for differences, where calls are many
        # The data clock, without its origin: it stands still while nobody may be answered.
        self._read_served = clock.now_s if answering is None else answering.served_s
        self._origin_s = self._read_served() - clock_s
        self._answering = answering
        self._stood_s = 0.0  # what `answering` said last
        self._held = False  # whether bytes wait for that
        self._without_data: set[Flushable] = set()  # connections whose bytes never do
        self._waking: asyncio.TimerHandle | None = None  # set to look again
        self._on_expired = on_expired
        self._loop: asyncio.AbstractEventLoop
        self.scheduled = False  # whether an end of turn is due; to be asked before `schedule` where calls are many
        self._to_flush: set[Flushable] = set()
        self._paused: set[Flushable] = set()
        self._behind: set[CatchUp] = set()
        self._unread: set[Flushable] = set()  # connections with bytes that no turn had time for yet
        self._next: set[Flushable] = set()  # those of them whose `go_on` is due
        self._held_up: set[Flushable] = set()  # connections with requests that wait in a `Pace`
        # Those of either whose bytes have to be handled before leases end, and how often that may still be said.
        self._read_first: set[Flushable] = set()
        self._readings = 0
        self._resumed = False  # whether a full batch was sealed since the sockets were last polled twice
        self._expiry = Expiry()
        self._timer: asyncio.TimerHandle | None = None  # set while the expiry is ARMED
        self._began_s = 0.0  # when this turn read its first bytes; the next turn, once that is scheduled
        self._ending_began_s = 0.0  # when the turn that ends now read its first bytes
        self._sealed_put_bytes = machine.store.put_bytes  # as it was when the last batch was sealed
        self._opened_s = clock_s  # an instant not later than the first row of the open batch
        self.renewed: list[Lease] = []  # leases whose renewal is answered in this turn
        self._clock_saved_s = clock_s
        self.clock_save_s = limits.CLOCK_SAVE_S  # how often the data clock is saved while leases live
        # `durable_revision`: the newest revision on disk; history is shown up to it. `_sealed_revision`: the newest
        # revision in the last sealed batch.
        self.durable_revision = self._sealed_revision = machine.revision
        self.on_committed: Callable[[], None] = lambda: None  # called for each batch that has become durable
        self.long_writes = LongWrites(self, machine, gate)
        self.following = following  # another server commits: see `follow`
        self._halted = following  # nothing is sealed and no lease ends
        self._leaving: Callable[[], None] | None = None  # see `leave`
        self._broken = False  # no turn ends any more

    def start(self, loop: asyncio.AbstractEventLoop, on_failure: Callable[[BaseException], None]) -> None:
        """Begins to run. `on_failure` is called once, when the server has to stop: a commit failed, or a turn broke."""
        self._loop = loop
        self.long_writes.start(loop)
        self._committer.start(loop, self._committed, on_failure)
        self.schedule()

    def now_s(self) -> float:
        """The data clock: seconds for which this data has been served, over all restarts."""
        return self._read_served() - self._origin_s

    def end_leases_exactly(self) -> None:
        """From now on a lease ends at its deadline, not a margin later: for a clock that waits for the server."""
        self._expiry.margin_s = 0.0

    # --- what the other parts ask for ---

    def schedule(self) -> None:
        """Asks for an end of turn, once all sockets that are readable now have been read. Cheap to repeat.

        To be called before the first bytes of a turn are looked at: the length of the turn is measured from here.
        """
        if not self.scheduled:
            self._begin(self.now_s())
            self._loop.call_soon(self._end_of_turn)

    def _begin(self, now_s: float) -> None:
        self.scheduled = True
        self._began_s = now_s
        if not self.machine.journal.has_rows:
            self._opened_s = now_s

    def flush_later(self, connection: Flushable) -> None:
        """The connection has output: it is written at the end of this turn, in one piece."""
        self._to_flush.add(connection)
        if not self.scheduled:
            self.schedule()

    def forget(self, connection: Flushable) -> None:
        """The connection has closed."""
        self._to_flush.discard(connection)
        self._paused.discard(connection)
        self._held_up.discard(connection)
        self._without_data.discard(connection)
        self.caught_up(connection)

    def shows_no_data(self, connection: Flushable) -> None:
        """The connection has got pages for monitors only: they leave also while another server may lead."""
        self._without_data.add(connection)

    def shows_data(self, connection: Flushable) -> None:
        """From now on the connection gets other replies as well. To be called before one of them is made."""
        self._without_data.discard(connection)

    def share_s(self, connection: Flushable) -> float:
        """For how long the connection may handle bytes in this turn, in seconds; others wait as well."""
        waiting = len(self._unread) + (connection not in self._unread)
        return max(limits.TURN_BYTES_S / waiting, limits.TURN_BYTES_S_MIN)

    def go_on_later(self, connection: Flushable) -> None:
        """The connection has had its share: its `go_on` is called after the sockets have been polled once more."""
        self._unread.add(connection)
        if connection not in self._next:
            self._next.add(connection)
            self._loop.call_soon(self._go_on, connection)

    def _go_on(self, connection: Flushable) -> None:
        self._next.discard(connection)
        try:
            connection.go_on()
        except Exception as error:  # leases would wait for its bytes for ever
            self._held_up.discard(connection)
            self.caught_up(connection)
            bugs.end(connection, error)

    def caught_up(self, connection: Flushable) -> None:
        """The connection has handled all its bytes, or has closed. Cheap to repeat."""
        self._unread.discard(connection)
        if connection in self._read_first and connection not in self._held_up:
            self._handled_first(connection)

    def hold_up(self, connection: Flushable, waits: bool) -> None:
        """Whether requests that the connection has read wait in a `Pace`. Cheap to repeat."""
        if waits:
            self._held_up.add(connection)
            return
        self._held_up.discard(connection)
        if connection in self._read_first and connection not in self._unread:
            self._handled_first(connection)

    def _handled_first(self, connection: Flushable) -> None:
        self._read_first.discard(connection)
        if not self._read_first:
            self._poll(2)

    @property
    def overloaded(self) -> bool:
        """Whether the open batch is full. A connection that brings requests then calls `pause` and stops reading."""
        journal = self.machine.journal
        return journal.newest_with_rows == journal.number and (  # `has_rows`, asked with each read
            journal.row_count > limits.BATCH_ROWS_MAX
            or self.machine.store.put_bytes - self._sealed_put_bytes > limits.BATCH_BYTES_MAX
        )

    def pause(self, connection: Flushable, unread: bool = False) -> None:
        """The connection has stopped reading; `resume_reading` is called when the batch is sealed.

        `unread`: it has bytes that it has not handled. Leases end behind these, as behind those of `go_on_later`.
        """
        self._paused.add(connection)
        if unread:
            self._unread.add(connection)

    def catch_up_later(self, stream: CatchUp) -> None:
        """The watch stream has history to send."""
        self._behind.add(stream)
        self.schedule()

    def after_everything(self, outlet: Outlet, payload: Any) -> int:
        """Delivers `payload` when all that has been applied until now is durable, at once if it is. Returns the batch
        that it waits for, so that the outlet's later payloads can wait for the same one. O(1).

        The watch events of those changes enter the gate first, so no answer overtakes an event that it depends on.
        Lease events do not: they leave once a turn, in one response, unless `hold_publications` is called.
        Does not ask for an end of turn.
        """
        machine = self.machine
        if machine.hub.outbox:
            self.hold_publications()
        batch = machine.journal.newest_with_rows
        self.gate.hold(batch, outlet, payload)
        return batch

    def after_all_writes(self, outlet: Outlet, payload: Any) -> int:
        """As `after_everything`, and after the long write that is under way, if there is one."""
        if self.machine.under_way is None:
            return self.after_everything(outlet, payload)
        self.hold_publications()
        batch = self.gate.promised
        self.gate.hold(batch, outlet, payload)
        return batch

    def hold_publications(self) -> None:
        """Puts the watch events and lease events of all changes until now into the gate.

        Watchers inside the server, which only decide which calls to answer (waiting_lines.py), get theirs at once.
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

    # --- on a shared log ---

    def follow(self, apply: Callable[[], None], batch: int) -> None:
        """Another server has committed a batch, which `apply` brings into memory. Its events leave with this turn."""
        if self._broken or not self.following:
            return
        self.schedule()
        try:
            apply()
            self.durable_revision = self._sealed_revision = self.machine.revision
            self.gate.committed(batch)
        except Exception as error:
            self.break_off(error)

    def lead(self, clock_s: float, answering: Answering | None) -> None:
        """From here on this server commits, and leases end. The data clock goes on at `clock_s`, the saved one."""
        self._answering = answering
        if answering is not None:
            self._read_served = answering.served_s
        self._origin_s = self._read_served() - clock_s
        self._clock_saved_s = self._opened_s = self._began_s = self._ending_began_s = clock_s
        self._sealed_put_bytes = self.machine.store.put_bytes
        self.following = self._halted = False
        self.schedule()

    def leave(self, then: Callable[[], None]) -> None:
        """Another server is to lead: from here on no lease ends, and no call is to come that changes anything.

        `then` is called once, at the end of the turn in which all that was applied is durable and has been sent. The
        turn is halted then.
        """
        self._leaving = then
        self.schedule()

    def _leave_if_done(self, leaving: Callable[[], None]) -> None:
        durable = self.gate.durable >= self.machine.journal.newest_with_rows
        # What is still on its way to watchers would be overtaken by the next leader's changes.
        given = not self.long_writes.pending and not self.machine.hub.waiting
        if durable and given and self._committer.free:
            self._leaving = None
            self._halted = True
            leaving()

    def follow_on(self, batch: int) -> None:
        """This server has led, and follows from here on. `batch` was its last one, and is durable."""
        now_s = self.now_s()
        self._answering, self._read_served = None, self.read_clock
        self._origin_s = self.read_clock() - now_s
        self._stood_s = 0.0
        self._held = False
        self.following = self._halted = True
        self.durable_revision = self._sealed_revision = self.machine.revision
        self.gate.committed(batch)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._expiry = Expiry()
        self._readings = 0
        self._read_first = set()
        self._resume_paused()
        self.schedule()

    def halt(self) -> None:
        """From now on nothing is sealed and no lease ends: the server is about to write its last batch itself."""
        self._halted = True

    @property
    def halted(self) -> bool:
        """Whether nothing is to be written any more: see `halt`; or a step has raised."""
        return self._halted or self._broken

    # --- the turn ---

    def _end_of_turn(self) -> None:
        if self._broken:
            return
        self.scheduled = False
        if not self._held:  # otherwise replies of an earlier turn wait as well
            self._ending_began_s = self._began_s
        try:
            if self._expiry.state == DUE:
                self._end_leases()
            self.hold_publications()
            self._seal()
            if self._behind:
                self._send_history()
            if self._answering is not None:
                self._held = bool(self._to_flush) and not self._answering.may_send()
            if self._held:
                self._hold_data()
            elif self._to_flush:
                self._flush()
            if self.machine.store.unswept and self.machine.under_way is None:
                self._sweep()
            if self.renewed and not self._held:
                self._count_promises()
            self._set_timer()
            if self._leaving is not None and not self._held:
                self._leave_if_done(self._leaving)
        except Exception as error:
            self.break_off(error)

    def _committed(self, batch: Batch) -> None:
        """The batch is on disk: the TTLs granted in it count from now, and the payloads that waited for it leave."""
        if self._broken:
            return
        try:
            now_s = self.now_s()
            if not self.scheduled:
                self._begin(now_s)  # and ends below: what is delivered now need not ask for another end
            self.machine.leases.acknowledged(batch.leases_touched, now_s)
            self.renewed += batch.leases_touched
            self.durable_revision = self._sealed_revision
            self.gate.committed(batch.number)
            self.on_committed()
            self._expiry.committed(now_s, self.machine.journal.newest_with_rows)
        except Exception as error:
            self.break_off(error)
        # At once, not scheduled: the next batch has waited for the disk long enough.
        self._end_of_turn()

    def break_off(self, error: Exception) -> None:
        """A step for no single call has raised: memory may be half changed, and none of it may be shown or saved."""
        self._broken = True
        self._committer.give_up(bugs.broken_turn(error))

    # --- its steps ---

    def _end_leases(self) -> None:
        """Ends leases that are due, unless expiry.py holds them up."""
        if self._halted or self._leaving is not None:
            return
        if self.machine.under_way is not None:  # the end of the write asks for another turn
            return
        if self._answering is not None:
            self._notice_lapse(self._answering)
            if self._expiry.state != DUE:
                return
        committing = self._committer.in_flight is not None
        cutoff_s = self._expiry.may_end(
            self.now_s(), full=self.overloaded, committing=committing, durable=self.gate.durable
        )
        if cutoff_s == NOTHING:
            return
        # The first entry of the queue is due at its time, even if its lease has been renewed since. So its lateness is
        # that of the leases that end now.
        head_s = self.machine.next_deadline()
        ended = self.machine.expire_in_steps(cutoff_s, limits.EXPIRE_PER_TURN_MAX)
        if self.machine.under_way is not None:
            self.long_writes.begin(self.machine.under_way)
        if ended and head_s is not None:
            self._on_expired(ended, self.now_s() - head_s)

    def _notice_lapse(self, answering: Answering) -> None:
        before_s, self._stood_s = self._stood_s, answering.stood_s
        self._expiry.lapsed(self.now_s(), self._stood_s - before_s)

    def _seal(self) -> None:
        journal = self.machine.journal
        if not self._committer.free or self._halted:
            return
        now_s = self.now_s()
        has_rows = journal.has_rows
        if not (has_rows or (self._leaving is None and (self._must_save_clock(now_s) or self._must_name_dead()))):
            return
        # With rows, the saved reading is from before the first of them. With a later reading beside its deadline, a
        # lease would lose, after a crash, the time for which the batch had waited for the disk.
        clock_s = max(self._opened_s, self._clock_saved_s) if has_rows else now_s
        self._clock_saved_s = clock_s
        batch = journal.seal(clock_s)
        self._sealed_put_bytes = self.machine.store.put_bytes
        self._sealed_revision = self.machine.revision
        self._committer.commit(batch)
        if self._paused:
            self._resumed = True
            self._resume_paused()
        if self._expiry.sealed(now_s):
            self._read_before_ending()

    def _resume_paused(self) -> None:
        paused, self._paused = self._paused, set()
        for connection in paused:
            try:
                connection.resume_reading()
            except Exception as error:
                bugs.end(connection, error)

    def _must_save_clock(self, now_s: float) -> bool:
        return bool(len(self.machine.leases)) and now_s - self._clock_saved_s >= self.clock_save_s

    def _must_name_dead(self) -> bool:
        """Whether a compaction is complete in memory and has left rows to be deleted."""
        return self.machine.journal.names_dead and not self.machine.store.unswept

    def _send_history(self) -> None:
        behind, self._behind = self._behind, set()
        for stream in behind:
            try:
                if stream.catch_up():
                    self.catch_up_later(stream)
            except Exception as error:
                bugs.end(stream, error)

    def _flush(self) -> None:
        to_flush, self._to_flush = self._to_flush, set()
        for connection in to_flush:
            try:
                connection.flush()
            except Exception as error:
                bugs.end(connection, error)

    def _hold_data(self) -> None:
        """Bytes of the data may not leave: others may commit by now. Looks again soon: nobody says when they may."""
        data, self._to_flush = self._to_flush - self._without_data, self._to_flush & self._without_data
        self._flush()
        self._to_flush |= data
        if self._waking is None:
            self._waking = self._loop.call_later(limits.SEND_RETRY_S, self._wake)

    def _wake(self) -> None:
        self._waking = None
        self.schedule()

    def _sweep(self) -> None:
        """Takes some of the dead versions out of memory, and asks for another turn, to go on or to seal."""
        store = self.machine.store
        if (self.following or not self._halted) and (store.sweep(limits.SWEEP_EVENTS_MAX) or not store.unswept):
            self.schedule()

    def _count_promises(self) -> None:
        """The replies have left. If the turn took long, the TTLs that they promise count from now."""
        now_s = self.now_s()
        if self._expiry.must_count_anew(self._ending_began_s, now_s):
            self.machine.leases.acknowledged(self.renewed, now_s)
        self.renewed.clear()

    # --- the expiry timer: expiry.py decides; the timer is set and the sockets are polled here ---

    def _set_timer(self) -> None:
        deadline_s = self.machine.next_deadline()
        if deadline_s is None or self._halted or self._leaving is not None:  # no lease ends, and no clock is saved
            return
        save_s = self._clock_saved_s + self.clock_save_s if self._committer.free else _NEVER_S
        timer_s = self._expiry.turn_ended(deadline_s, save_s, self._ending_began_s)
        if timer_s != NOTHING:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(timer_s - self.now_s(), 0.0), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        try:
            deadline_s = self.machine.next_deadline()
            if self._expiry.timer_fired(self.now_s(), deadline_s):
                self._read_before_ending()
            else:
                self.schedule()
        except Exception as error:  # no timer would ever be set again
            self.break_off(error)

    def _read_before_ending(self) -> None:
        """Leases are due: keepalives that have come, in the sockets or read already, count first."""
        self._readings = _READINGS
        self._resumed = False
        self._poll(2)

    def _poll(self, polls: int) -> None:
        # uvloop runs timers, then scheduled callbacks, then polls the sockets. asyncio polls first, and runs the
        # callbacks of the sockets after those scheduled before. With one step more than `polls`, either loop has polled
        # the sockets `polls` times since the first step.
        self._loop.call_soon(self._polled, polls)

    def _polled(self, still: int) -> None:
        """`still`: the number of polls that are still to be made."""
        try:
            if still:
                self._poll(still - 1)
            elif self._readings and (self._unread or self._held_up or self._resumed):
                # Keepalives may be among the bytes that have been read and not handled; `_handled_first` goes on.
                # Or else in sockets that were not read while the batch was full.
                self._readings -= 1
                self._resumed = False
                self._read_first = self._unread | self._held_up
                if not self._read_first:
                    self._poll(2)
            else:
                self._expiry.polled(self.now_s())
                self.schedule()
        except Exception as error:
            self.break_off(error)
