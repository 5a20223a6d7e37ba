# SPDX-License-Identifier: Apache-2.0
"""One process of a cluster: the parts of the server that decide, and around them as little as may be.

Real: Node with its tenure, the state machine, replay, the gate, the record format. In the place of turn.py,
committer.py and the sockets stand the steps of this file, each of which the process can be stopped before: to handle
what came; to end the turn (end leases, seal, submit); to send (R4's check, and then the bytes, are one step).

As in turn.py: a write waits for its own batch, a read for the newest one with rows, a renewal for its lease's; a TTL
counts from when its reply leaves; a batch saves the data clock of before its first row; no lease ends while a commit
takes long, nor before what was granted meanwhile is durable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from lessor.cluster.answering import Answering
from lessor.cluster.clock_watch import ClockWatch
from lessor.cluster.node import Append, Apply, Durable, Effect, Lead, Read, StepDown, Stop
from lessor.cluster.standing import Standing
from lessor.durable.shared_log import Found
from lessor.durable.shared_record import BATCH, BEAT, RELEASE, Entry
from lessor.server.loop.expiry import MARGIN_S, SLOW_COMMIT_S
from lessor.server.loop.release import Gate
from lessor.state import replay
from lessor.state.lease import Lease
from lessor.state.machine import Identity, StateMachine
from lessor.state.watch_hub import Publication
from lessor.state.watcher import Watcher
from tests.simulation.passing_on import Following, Leading, ToPeer
from tests.simulation.world import Clock

if TYPE_CHECKING:
    from tests.simulation.clients import Conn, Doing
    from tests.simulation.story import Story

EXPIRE_MAX = 50
TICK_S = 0.06


class Reply(NamedTuple):
    doing: Doing
    reply: Any
    error: EtcdError | None
    lease: Lease | None  # whose full TTL the reply promises
    sent_s: float | None = None  # when this node asked the primary for that, if it did


class Process:
    """Started with what its disk has; ends by `kill`."""

    def __init__(self, story: Story, name: str, node_id: int, disk: list[Entry]) -> None:
        world = story.world
        self.story = story
        self.world = world
        self.name = name
        self.node_id = node_id
        self.disk = disk  # the local tables: every record taken in
        self.clock = Clock(world, story.rates[node_id])
        self.dead = False
        self.paused = False
        self._frozen_since_s: float | None = None
        self._pause_before_sending_s = 0.0
        self.conns: dict[Conn, None] = {}
        standing = Standing()
        for entry in disk:
            standing.take(entry)
        self.node = story.rules.node(node_id, story.nonce(), story.rules.timing(node_id), standing)
        self._inbox: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._turn_due = self._flush_due = False
        self._clock_watch = ClockWatch(self.clock.now_s(), self.clock.wall_s())
        self._turn_ended_s = self.clock.now_s()
        self.following = Following(self)
        self._make_memory()
        world.after(world.chance.uniform(0.0, 0.05), self.hear, self._tick)

    def __repr__(self) -> str:
        return self.name

    def _make_memory(self) -> None:
        """Everything that is not on disk, anew."""
        identity = Identity(1, self.node_id, self.node.standing.epoch)
        self.machine = StateMachine(identity)
        for entry in self.disk:
            replay.apply(self.machine, entry.record.rows)
        self.gate = Gate(self.node.standing.batch)
        self.out: list[tuple[Conn | None, Any]] = []
        self.served: Callable[[], float] | None = None  # the data clock, while this node is primary
        self.leading: Leading | None = None
        self._opened_s = self._clock_saved_s = 0.0
        self._submitted_s = 0.0  # on the data clock: when the batch in hand was handed over
        self._held_until_batch = 0
        self._doing: list[Doing] = []  # whose rows are in the open batch
        self._in_hand: list[Doing] = []  # whose rows are in the record that was submitted last
        self._releasing = False
        self._timer_s = 0.0  # the deadline that the last timer was set for

    # --- running, or not ------------------------------------------------------------------------------------------

    def hear(self, what: Callable[..., None], *args: Any) -> None:
        """Something has come. A process that stands still finds it later."""
        if self.dead:
            return
        if self.paused:
            self._inbox.append((what, args))
            return
        self._look_at_clocks()
        what(*args)
        self._carry_out()
        if not self._turn_due and (self.out or self.node.leads or self.following.busy):
            self._turn_due = True
            self.world.after(self.world.chance.uniform(0.0, 0.001), self._step, self._end_of_turn)

    def _step(self, what: Callable[[], None]) -> None:
        """A step of a turn."""
        if self.dead:
            return
        if self.paused:
            self._inbox.append((self._step, (what,)))
            return
        self._look_at_clocks()
        what()
        self._carry_out()

    def _look_at_clocks(self) -> None:
        """R5: the wall clock has gone on while the other stood still."""
        if not self.trusts_its_clock:
            self._clock_watch.believe(self.clock.now_s(), self.clock.wall_s())
            self.node.tenure.distrust(self.clock.now_s())
            self.following.distrust(self.clock.now_s())

    @property
    def trusts_its_clock(self) -> bool:
        """Whether the next step finds nothing wrong with it."""
        return not (self.story.rules.r5 and self._clock_watch.differs(self.clock.now_s(), self.clock.wall_s()))

    def pause(self, *, before_sending_s: float = 0.0) -> None:
        """Stands still until `go_on`; or, for so long, when it is next about to send."""
        if before_sending_s:
            self._pause_before_sending_s = before_sending_s
        else:
            self.paused = True

    def freeze(self) -> None:
        """Stands still with its machine, and so with its clock, until `wake`."""
        self.paused = True
        self._frozen_since_s = self.world.now_s

    def wake(self) -> None:
        if self._frozen_since_s is not None:
            self.clock.frozen_s += self.world.now_s - self._frozen_since_s
            self._frozen_since_s = None
            self.go_on()

    def go_on(self) -> None:
        if self.paused and not self.dead and self._frozen_since_s is None:
            self.paused = False
            inbox, self._inbox = self._inbox, []
            for what, args in inbox:
                self.world.after(self.world.chance.uniform(0.0, 0.002), self.hear, what, *args)

    def kill(self) -> None:
        self.dead = True
        self._drop_all()

    def _drop_all(self) -> None:
        conns, self.conns = self.conns, {}
        for conn in conns:
            conn.drop_later()

    # --- the log --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self.world.after(self.world.chance.uniform(TICK_S / 2, TICK_S), self.hear, self._tick)
        self.node.tick(self.clock.now_s())

    def appended(self, ticket: int, outcome: str) -> None:
        now_s = self.clock.now_s()
        if outcome == "ok":
            self.node.append_ok(ticket, now_s)
        elif outcome == "refused":
            self.node.append_refused(ticket, now_s)
        else:
            self.node.append_unknown(ticket, now_s)

    def was_read(self, ticket: int, found: Found | None) -> None:
        if found is None:
            self.node.read_failed(ticket, self.clock.now_s())
        else:
            self.node.read_ok(ticket, found, self.clock.now_s())

    def shown(self, data: bytes) -> None:
        self.node.shown(data, self.clock.now_s())

    def _carry_out(self) -> None:
        while effects := self.node.take_effects():
            for effect in effects:
                self._carry_out_one(effect)

    def _carry_out_one(self, effect: Effect) -> None:
        match effect:
            case Append():
                self.story.checks.submits(self, effect.data, self._in_hand)
                self.story.engine.append(self, effect.ticket, effect.expect, effect.chain, effect.data)
            case Read():
                self.story.engine.read(self, effect.ticket, effect.after)
            case Apply():
                self._apply(effect.entry)
            case Durable():
                self._durable(effect.entry)
            case Lead():
                self._lead(effect)
            case StepDown():
                self.world.note(self, "steps down", "released" if effect.released else "fenced")
                if effect.released:
                    self.served = self.leading = None
                    self._releasing = False
                else:
                    self.story.rules.fence(self)
            case Stop():
                self.world.note(self, "stops:", effect.text)
                self._drop_all()
                self.out = []

    def be_fenced(self) -> None:
        self._drop_all()
        self.following.clear()
        self._make_memory()

    def cut_off(self, conn: Conn) -> None:
        self.conns.pop(conn, None)
        conn.drop_later()

    def _take_down(self, entry: Entry) -> None:
        self.disk.append(entry)
        self.story.checks.known(entry)

    def _apply(self, entry: Entry) -> None:
        self._take_down(entry)
        replay.apply(self.machine, entry.record.rows)
        self.gate.committed(entry.record.rows.number)
        self._publish()
        self.following.applied(entry)

    def _durable(self, entry: Entry) -> None:
        self._take_down(entry)
        served = self.served
        assert served is not None
        rows = entry.record.rows
        data_s = served()
        if data_s - self._submitted_s > SLOW_COMMIT_S:
            self._held_until_batch = self.machine.journal.newest_with_rows
        self.machine.leases.acknowledged(getattr(rows, "leases_touched", ()), data_s)
        self.gate.committed(rows.number)
        self.story.show(self, entry.data)

    def _lead(self, lead: Lead) -> None:
        self._take_down(lead.entry)
        self.world.note(self, "leads in epoch", lead.entry.epoch, "from record", lead.entry.number)
        self.story.rules.promote(self.machine, lead.entry.epoch, lead.clock_s, lead.clean, lead.goes_on)
        answering = Answering(self.node.tenure, self.clock.now_s, self.clock.wall_s)
        self.served = lambda: lead.clock_s + answering.served_s()
        self._clock_saved_s = self._opened_s = lead.clock_s
        self.leading = Leading(self, lead.entry.epoch)
        self.story.show(self, lead.entry.data)
        for conn, doing in self.following.lead():
            self.world.after(self.world.chance.uniform(0.0, 0.001), self.hear, self.on_request, conn, doing)

    # --- requests -------------------------------------------------------------------------------------------------

    def on_request(self, conn: Conn, doing: Doing) -> None:
        if conn not in self.conns:
            return
        if self.node.stopped:
            conn.refuse_later(doing)
        elif self.served is None or self._releasing or not self.node.leads:
            self.following.request(conn, doing)
        else:
            self._serve(conn, doing)

    def on_forward(self, *args: Any) -> None:
        if self.leading is not None and self.node.leads and not self._releasing:
            self.leading.on_forward(*args)

    def on_ask(self, *args: Any) -> None:
        if self.leading is not None and self.node.leads and not self._releasing:
            self.leading.on_ask(*args)

    def refused(self, *args: Any) -> None:
        self.following.refused(*args)

    def answered(self, *args: Any) -> None:
        self.following.answered(*args)

    def answer(self, conn: Conn, doing: Doing, reply: Any, error: EtcdError | None, sent_s: float | None) -> None:
        """A follower's answer. It waits for nothing but the turn: the log, or the primary, has said it."""
        self.out.append((conn, Reply(doing, reply, error, None, sent_s)))

    def hold(self, batch: int, payload: ToPeer) -> None:
        self.gate.hold(batch, self, payload)

    def _serve(self, conn: Conn, doing: Doing) -> None:
        reply, error, lease = self.carry_out(doing, 0.0)
        journal = self.machine.journal
        batch = journal.newest_with_rows
        if isinstance(doing.request, rpc.LeaseKeepAliveRequest) and lease is not None:
            batch = lease.batch
        if journal.newest_with_rows == journal.number:
            self.note_rows(doing)
        self._hold_publications()
        self.gate.hold(batch, conn.outlet, Reply(doing, reply, error, lease))

    def note_rows(self, doing: Doing) -> None:
        """The call has its rows, if it has made any, in the open batch."""
        self._doing.append(doing)

    def carry_out(self, doing: Doing, allowance_s: float) -> tuple[Any, EtcdError | None, Lease | None]:
        """Carries a request out in memory: its reply, or its error, and the lease that the reply promises time of.

        allowance_s: how much longer than its TTL the lease is to live.
        """
        assert self.served is not None
        machine, request = self.machine, doing.request
        journal = machine.journal
        data_s = self.served()
        if not journal.row_count:
            self._opened_s = data_s
        if isinstance(request, rpc.LeaseKeepAliveRequest | rpc.LeaseGrantRequest):
            data_s += allowance_s
        rows = journal.row_count
        reply: Any = None
        error, lease = None, None
        try:
            reply = machine.apply(request, data_s)
        except EtcdError as raised:
            error = raised
        if error is None and isinstance(request, rpc.LeaseKeepAliveRequest | rpc.LeaseGrantRequest):
            lease = machine.leases.get(request.ID)
        if isinstance(request, rpc.LeaseKeepAliveRequest) and reply is not None:
            reply.header.revision = self.durable_revision  # it need not wait for the newest rows
        doing.rows = journal.row_count > rows
        self.story.checks.served(doing)
        return reply, error, lease

    # --- watches --------------------------------------------------------------------------------------------------

    def on_watch(self, conn: Conn, watcher: Watcher) -> None:
        if conn not in self.conns or self.node.stopped:
            conn.drop_later()
            return
        conn.watcher = watcher
        watcher.owner = conn
        self.machine.watch(watcher)
        self.out.append((conn, self.durable_revision))
        self._catch_up(conn)

    @property
    def durable_revision(self) -> int:
        if self.served is None:
            return self.machine.revision
        revisions = self.story.checks.revisions
        return revisions[min(self.node.standing.number, len(revisions) - 1)]

    def _catch_up(self, conn: Conn) -> None:
        watcher = conn.watcher
        assert watcher is not None
        while watcher.lagging and watcher.next_revision <= self.durable_revision:
            changes = self.machine.hub.replay(watcher, self.durable_revision, 100)
            self.out += [(conn, one) for one in by_revision(changes)]

    def _hold_publications(self) -> None:
        hub = self.machine.hub
        if hub.outbox:
            batch = self.machine.journal.newest_with_rows
            for publication in hub.take_outbox():
                self.gate.hold(batch, self, publication)

    def _publish(self) -> None:
        """A follower's publications: what they report is in the log."""
        for publication in self.machine.hub.take_outbox():
            self.deliver(publication)

    def deliver(self, payload: Any) -> None:
        """A publication, or a word to another node, has passed the gate: the process is the outlet for these."""
        if isinstance(payload, ToPeer):
            self.out.append((None, payload))
            return
        assert isinstance(payload, Publication)
        for conn in payload.audience:
            if conn in self.conns:
                self.out.append((conn, payload.changes.events))

    def end_now(self, error: EtcdError) -> None:
        raise AssertionError(error)

    # --- the turn -------------------------------------------------------------------------------------------------

    def _end_of_turn(self) -> None:
        self._turn_due = False
        node, now_s = self.node, self.clock.now_s()
        served = self.served
        if served is not None and node.leads:
            data_s = served()
            self._end_leases(now_s, data_s)
            self._hold_publications()
            self._seal(now_s, data_s)
            self._set_timer(data_s)
        for conn in self.conns:
            if conn.watcher is not None and conn.watcher.lagging:
                self._catch_up(conn)
        self.following.turn(now_s)
        self._turn_ended_s = now_s
        if self.out and not self._flush_due:
            self._flush_due = True
            self.world.after(self.world.chance.uniform(0.0, 0.0005), self._step, self._flush)

    def _end_leases(self, now_s: float, data_s: float) -> None:
        node, machine = self.node, self.machine
        if not node.tenure.valid(now_s) or self.gate.durable < self._held_until_batch:
            return
        if not node.free and data_s - self._submitted_s > SLOW_COMMIT_S:
            return
        deadline_s = machine.next_deadline()
        if deadline_s is not None and deadline_s + MARGIN_S <= data_s:
            if not machine.journal.row_count:
                self._opened_s = data_s
            machine.expire(data_s - MARGIN_S, EXPIRE_MAX)

    def _set_timer(self, data_s: float) -> None:
        """A turn comes when the next lease is due, not when the next tick happens to be."""
        deadline_s = self.machine.next_deadline()
        if deadline_s is not None and deadline_s != self._timer_s and 0.0 < deadline_s + MARGIN_S - data_s < TICK_S:
            self._timer_s = deadline_s
            delay_s = (deadline_s + MARGIN_S - data_s) / self.clock.rate
            self.world.after(delay_s + 1e-6, self.hear, self._look_at_clocks)

    def _seal(self, now_s: float, data_s: float) -> None:
        node, journal, leading = self.node, self.machine.journal, self.leading
        assert leading is not None
        if not node.free:
            return
        if journal.row_count or leading.has_origins:
            kind, clock_s = BATCH, max(self._opened_s, self._clock_saved_s)
        elif self._releasing and not self.gate.waiting and not self.out:
            self.machine.checkpoint(data_s)
            kind, clock_s = RELEASE, data_s
        elif node.beat_due(now_s, self._turn_ended_s):
            kind, clock_s = BEAT, data_s
        else:
            return
        self._clock_saved_s = clock_s
        self._submitted_s = data_s
        batch = journal.seal(clock_s)
        self._in_hand, self._doing = self._doing, []
        node.submit(kind, batch, now_s, leading.take_origins(), goes_on=kind == RELEASE)

    def release(self) -> None:
        """Begins an orderly hand-over: once everything is durable and sent."""
        self._releasing = self.served is not None and self.node.leads

    def _flush(self) -> None:
        """R4: nothing leaves a primary that is not valid at this instant."""
        if self._pause_before_sending_s and self.node.leads:
            self.pause()
            self.world.after(self._pause_before_sending_s, self.go_on)
            self._pause_before_sending_s = 0.0
            self._inbox.append((self._step, (self._flush,)))
            return
        self._flush_due = False
        if not self.story.rules.may_send(self):
            return
        out, self.out = self.out, []
        served = self.served
        data_s = 0.0 if served is None else served()
        for conn, payload in out:
            if isinstance(payload, ToPeer):
                self.machine.leases.acknowledged(payload.leases, data_s + self.story.rules.allowance_s)
                self.story.checks.leaves(self, payload)
                self.story.send(self, payload.nonce, payload.method, *payload.args)
                continue
            if conn is None or conn not in self.conns:
                continue
            if isinstance(payload, Reply):
                if payload.lease is not None:
                    self.machine.leases.acknowledged([payload.lease], data_s)
                if payload.sent_s is not None and not self.following.passes(payload.doing, conn, payload.sent_s):
                    continue
            self.story.checks.leaves(self, payload)
            conn.send(payload)


def by_revision(changes: list[Any]) -> list[list[Any]]:
    """Changes, cut between revisions."""
    found: list[list[Any]] = []
    for change in changes:
        if found and found[-1][0][0].mod_revision == change[0].mod_revision:
            found[-1].append(change)
        else:
            found.append([change])
    return found
