# SPDX-License-Identifier: Apache-2.0
"""One run: three nodes, clients and watchers on a shared log, much harm, then calm, then all checks. A seed is a run.

The clocks of the nodes run at rates that differ by up to 20 %. Harm, drawn at random: processes are killed and started
anew with what their disk had some records ago; they stand still for up to some seconds, also with their clock; they are
cut off from the engine, in both directions or one; from each other; the engine goes away and comes back, or is slow;
the primary hands over; a second process of the same node is started while the first still runs.

Seeds are of several kinds, so that rare things meet. In one of three the load mostly reads and renews, so that answers
do not wait for writes; in another the primary hands over all the time, and messages are under way for long. In one of
ten messages between the nodes always take long. In another one of ten the engine loses its newest records: then nothing
but I8 is looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from lessor.api.proto.mvcc_pb2 import Event
from lessor.cluster.forwarding import FORWARD_ALLOWANCE_S, FORWARD_PASS_ON_S
from lessor.cluster.node import Node
from lessor.cluster.standing import Standing
from lessor.cluster.tenure import Timing
from lessor.durable.shared_record import NONCE_BYTES, Entry
from lessor.state import replay
from lessor.state.machine import StateMachine
from lessor.state.watch_changes import event_bytes
from lessor.state.watcher import Watcher
from tests.linear import leases, registers, revisions, watches
from tests.linear.check import group_of
from tests.linear.history import OK, UNKNOWN, History, Op
from tests.linear.load import Knowledge, Load
from tests.simulation.checks import Checks
from tests.simulation.clients import CALL_S, Client, Doing, Watching
from tests.simulation.engine import MemoryLog
from tests.simulation.process import Process
from tests.simulation.world import Broken, World

NODES, CLIENTS, WATCHERS = (1, 2, 3), 4, 2
RATE_SPREAD = 1.2
HARM_S, CALM_S, REST_S = 10.0, 3.0, 6.0
HARM_EVERY_S = 0.7
SHORT_TTL_S_MAX = 5


class Rules:
    """The rules that the processes follow. broken.py has others."""

    r5 = True
    has_nonce = True
    checks_chain = True
    names_epoch = True
    takes_once = True
    allowance_s = FORWARD_ALLOWANCE_S
    pass_on_s = FORWARD_PASS_ON_S

    def timing(self, node_id: int) -> Timing:
        return Timing(rank_s=0.1 * (node_id - 1))

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        return Node(node_id, nonce, timing, standing)

    def process(self, *args: Any) -> Process:
        return Process(*args)

    def promote(self, machine: StateMachine, epoch: int, clock_s: float, clean: bool, goes_on: bool = False) -> None:
        replay.promote(machine, epoch, clock_s, clean=clean, passed_on_s=self.allowance_s, goes_on=goes_on)

    def fence(self, process: Process) -> None:
        process.be_fenced()

    def may_send(self, process: Process) -> bool:
        return process.served is None or process.node.tenure.valid(process.clock.now_s())


class Story:
    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        self.world = world = World(seed)
        self.rules = rules or Rules()
        chance = world.chance
        spread = RATE_SPREAD**0.5
        self.rates = {
            node: chance.choice((1 / spread, 1.0, spread, chance.uniform(1 / spread, spread))) for node in NODES
        }
        self.fastest = max(self.rates.values())
        self.calm = False
        self.quiet = seed % 3 == 1  # a load that mostly reads and renews
        self._far = seed % 10 == 4  # messages between the nodes take up to 0.2 s
        self._restless = seed % 3 == 2  # the primary hands over all the time, and messages are under way for long
        self.processes: list[Process] = []
        self.cut_apart: dict[tuple[int, int], None] = {}  # pairs of nodes of which the first does not reach the second
        self.checks = Checks(self)
        self.engine = MemoryLog(world, self.checks.landed, checks_chain=self.rules.checks_chain)
        world.after_step = self.checks.step
        self.harm: Counter[str] = Counter()
        self._loses_tail = seed % 10 == 9
        self._started: Counter[int] = Counter()
        for node in NODES:
            self.start(node, [])
        self.knowledge = Knowledge()
        self.clients = [self._client(f"c{number}") for number in range(CLIENTS)]
        self.watchers = [Watching(self, f"w{number}") for number in range(WATCHERS)]

    def _client(self, name: str) -> Client:
        return Client(self, name, Load(name, self.world.chance, self.knowledge), self.knowledge)

    # --- processes ------------------------------------------------------------------------------------------------

    def nonce(self) -> bytes:
        drawn = self.world.chance.randbytes(NONCE_BYTES)
        return drawn if self.rules.has_nonce else bytes(NONCE_BYTES)

    def start(self, node: int, disk: list[Entry]) -> Process:
        self._started[node] += 1
        process = self.rules.process(self, f"n{node}.{self._started[node]}", node, disk)
        self.processes.append(process)
        self.world.note(process, "starts at record", len(disk))
        return process

    def kill(self, process: Process) -> None:
        if not process.dead:
            self.world.note(process, "is killed")
            process.kill()
            self.processes.remove(process)

    def some_process(self) -> Process | None:
        return self.world.chance.choice(self.processes) if self.processes else None

    def show(self, sender: Process, data: bytes) -> None:
        """A primary shows a record to the other nodes."""
        for process in self.processes:
            if process is not sender:
                self._send(sender, process, process.shown, data)

    def send(self, sender: Process, nonce: bytes, method: str, *args: Any) -> None:
        """Between two nodes. `nonce`: of the process that it is for."""
        for process in self.processes:
            if process.node.nonce == nonce and process is not sender:
                self._send(sender, process, getattr(process, method), *args)

    def _send(self, sender: Process, to: Process, what: Callable[..., None], *args: Any) -> None:
        """Messages are lost, repeated, late, and overtake each other."""
        world = self.world
        if (sender.node_id, to.node_id) in self.cut_apart:
            return
        for _ in range(1 if self.calm else world.chance.choice((0, *(1,) * 12, 2))):
            delay_s = world.chance.uniform(0.001, 0.2) if self._far else world.chance.uniform(0.0002, 0.003)
            if not self.calm and world.likely(0.1 if self._restless else 0.03):
                delay_s *= world.chance.choice((50, 200, 1000, 3000))
                delay_s = min(delay_s, HARM_S + CALM_S - world.now_s)  # while leases still may be renewed
            world.after(delay_s, to.hear, what, *args)

    # --- harm -----------------------------------------------------------------------------------------------------

    def _do_harm(self) -> None:
        if self.calm:
            return
        chance = self.world.chance
        kinds = (self._kill, self._pause, self._freeze, self._cut_engine, self._cut_nodes, self._outage, self._slow,
                 self._hand_over, self._twin)  # fmt: skip
        weights = (1, 1, 0, 1, 1, 1, 0, 8, 0) if self._restless else (3, 4, 1, 3, 1, 2, 1, 2, 3)
        (kind,) = chance.choices(kinds, weights)
        if self._loses_tail and self.world.now_s > HARM_S / 2 and not self.checks.tail_lost:
            kind = self._lose_tail
        self.harm[kind.__name__] += 1
        if self.processes:
            # The primary is the most worthwhile victim.
            leading = [process for process in self.processes if process.node.leads]
            victim = chance.choice(leading) if leading and chance.random() < 0.6 else chance.choice(self.processes)
            self.world.note("harm:", kind.__name__, victim)
            kind(victim)
        every_s = HARM_EVERY_S / 2 if self._restless else HARM_EVERY_S
        self.world.after(chance.expovariate(1 / every_s), self._do_harm)

    def _long_s(self) -> float:
        return self.world.chance.choice((0.05, 0.3, 1.0, 1.5, 2.0, 4.0)) * self.world.chance.uniform(0.5, 1.2)

    def _kill(self, victim: Process) -> None:
        self.kill(victim)
        self.world.after(self._long_s(), self._restart, victim)

    def _restart(self, victim: Process) -> None:
        """The local tables are not synced: they have lost their newest rows, or are gone as a whole."""
        kept = len(victim.disk) - self.world.chance.choice((0, 0, 1, 3, 10, 10_000))
        if not any(process.node_id == victim.node_id for process in self.processes):
            self.start(victim.node_id, list(victim.disk[: max(kept, 0)]))

    def _pause(self, victim: Process) -> None:
        if self.world.likely(0.4):
            victim.pause(before_sending_s=self._long_s())
        else:
            victim.pause()
            self.world.after(self._long_s(), victim.go_on)

    def _freeze(self, victim: Process) -> None:
        """The machine is suspended: its clock stands still with it."""
        if not victim.paused:
            victim.freeze()
            self.world.after(0.2 + self._long_s(), victim.wake)

    def _cut_engine(self, victim: Process) -> None:
        way = self.world.chance.choice(("there", "back", "both"))
        if way != "back":
            self.engine.cut_out[victim] = None
        if way != "there":
            self.engine.cut_back[victim] = None
        self.world.after(self._long_s(), self._mend_engine, victim)

    def _mend_engine(self, victim: Process) -> None:
        self.engine.cut_out.pop(victim, None)
        self.engine.cut_back.pop(victim, None)

    def _cut_nodes(self, victim: Process) -> None:
        pairs = [(victim.node_id, other) for other in NODES if other != victim.node_id]
        if self.world.likely(0.5):
            pairs += [(other, mine) for mine, other in pairs]
        self.cut_apart |= dict.fromkeys(pairs)
        self.world.after(self._long_s(), self._mend_nodes)

    def _mend_nodes(self) -> None:
        self.cut_apart = {}

    def _outage(self, victim: Process) -> None:
        if self.engine.up:
            self.engine.go_away()
            self.world.after(self._long_s(), self.engine.come_back)

    def _slow(self, victim: Process) -> None:
        self.engine.slow = self.world.chance.choice((5.0, 30.0, 80.0))
        self.world.after(self._long_s(), self._mend_slow)

    def _mend_slow(self) -> None:
        self.engine.slow = 1.0

    def _hand_over(self, victim: Process) -> None:
        if victim.node.leads:
            victim.release()

    def _twin(self, victim: Process) -> None:
        """Somebody starts the node again elsewhere; the old process still runs, or stands still."""
        if sum(process.node_id == victim.node_id for process in self.processes) == 1:
            if self.world.likely(0.3):
                victim.pause()
                self.world.after(self._long_s(), victim.go_on)
            twin = self.start(victim.node_id, list(victim.disk))
            self.world.after(self.world.chance.uniform(0.5, 6.0), self._end_twin, victim, twin)

    def _end_twin(self, victim: Process, twin: Process) -> None:
        if not victim.dead and not twin.dead:
            self.kill(self.world.chance.choice((victim, twin)))

    def _lose_tail(self, victim: Process) -> None:
        """Mostly few, and the primary stands still meanwhile: when it wakes up, others may have written as many."""
        lost = self.engine.lose_tail(self.world.chance.choice((1, 1, 1, 2, 3, 12)))
        self.checks.lost_tail(len(lost))
        if not victim.paused:
            victim.pause()
            self.world.after(self.world.chance.uniform(0.0, 2.5), victim.go_on)

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises Broken where a law does not hold."""
        world = self.world
        world.after(1.5, self._do_harm)
        world.run(HARM_S)
        self._mend_all()
        world.run(HARM_S + CALM_S)
        for client in self.clients:
            client.stopping = True
        # Far apart, a renewal may be made again and again until its answer is young enough, or its client gives up.
        world.run(HARM_S + CALM_S + REST_S + (CALL_S if self._far else 0.0))
        for client in self.clients:
            client.give_up()
        self._finish()

    def _mend_all(self) -> None:
        self.world.note("calm")
        self.calm = True
        engine = self.engine
        engine.slow, engine.loss, engine.cut_out, engine.cut_back = 1.0, 0.0, {}, {}
        if not engine.up:
            engine.come_back()
        self._mend_nodes()
        for process in list(self.processes):
            process.wake()
            process.go_on()
        for node in NODES:
            mine = [process for process in self.processes if process.node_id == node]
            for twin in mine[1:]:
                self.kill(twin)
            if not mine:
                self.start(node, [])

    # --- the end --------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        if self.checks.tail_lost:
            self._finish_after_loss()
            return
        leading = [process for process in self.processes if process.served is not None and process.node.leads]
        if len(leading) != 1:
            raise Broken(f"at the end {leading} lead")
        (primary,) = leading
        for process in self.processes:
            self._compare(process, primary)
        left = [lease.id for lease in primary.machine.leases if lease.ttl_s <= SHORT_TTL_S_MAX]
        if left:
            raise Broken(f"I6: leases {left} live long after the last call")
        found = self._findings(primary)
        if found:
            raise Broken(f"{len(found)} findings: " + "; ".join(found[:3]))

    def _compare(self, process: Process, primary: Process) -> None:
        if process.node.stopped:
            raise Broken(f"{process} has stopped: {process.node.stopped}")
        if len(self.engine.records) - process.node.applied > 3:
            raise Broken(f"{process} is at record {process.node.applied} of {len(self.engine.records)}")
        mine, other = state_of(process.machine), state_of(primary.machine)
        if mine != other:
            raise Broken(f"{process} has another state than {primary}: {mine} and {other}")

    def _finish_after_loss(self) -> None:
        """I8: whoever knew records that are lost has noticed."""
        records = self.engine.records
        for process in self.processes:
            known = [entry.data for entry in process.disk]
            if known != records[: len(known)] and not process.node.stopped:
                raise Broken(f"I8: {process} goes on with another history than the log's")
            if len(records) - len(known) > 3 and not process.node.stopped:
                raise Broken(f"{process} is at record {len(known)} of {len(records)}")

    def _findings(self, primary: Process) -> list[str]:
        history = self.history(primary)
        order = revisions.check(history)
        return [
            *order.findings,
            *registers.check(history, group_of),
            *watches.check(history),
            *leases.check(history, order, self.fastest, late=False),
        ]

    def history(self, primary: Process) -> History:
        history = History()
        doings = [doing for client in self.clients for doing in client.done]
        for doing in sorted(doings, key=lambda doing: doing.called_s):
            op = op_of(len(history.ops), doing)
            if op is not None:
                history.ops.append(op)
        store = primary.machine.store
        watcher = Watcher(1, b"\0", b"", start_revision=1, prev_kv=True)
        watcher.lagging = True
        while watcher.lagging:
            changes = primary.machine.hub.replay(watcher, store.revision, 10_000)
            history.events += [Event.FromString(event_bytes(event, previous)) for event, previous in changes]
        history.keys = [event_kv(event) for event in store.range(b"\0", b"")]
        for watching in self.watchers:
            history.sessions += watching.sessions
            if watching.sessions:
                watching.sessions[-1].last = True
        return history


def event_kv(event: Any) -> Any:
    return Event.FromString(event.event_bytes()).kv


def op_of(number: int, doing: Doing) -> Op | None:
    """The call as tests/linear sees it; None for one of unknown outcome that had no effect."""
    if doing.outcome == UNKNOWN and doing.settled_s is None:
        return None
    op = Op(number, doing.client.name, doing.endpoint, doing.request, doing.called_s, doing.returned_s, doing.outcome)
    if doing.outcome == OK:
        op.reply, op.silent_s = doing.reply, doing.left_s
    elif doing.outcome == UNKNOWN:
        op.settled_s = max(doing.settled_s or 0.0, doing.called_s)
    elif doing.error is not None:
        op.code, op.text = doing.error.code.value, str(doing.error)
    return op


def state_of(machine: StateMachine) -> Any:
    store = machine.store
    keys = [(event.key, event.value, event.mod_revision, event.lease) for event in store.range(b"\0", b"")]
    attached = sorted((lease.id, lease.ttl_s, sorted(lease.keys)) for lease in machine.leases)
    return store.revision, keys, attached


def tell(seed: int, rules: Rules | None = None) -> Story:
    """Runs one seed. Raises Broken."""
    story = Story(seed, rules)
    story.run()
    return story
