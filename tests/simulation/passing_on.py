# SPDX-License-Identifier: Apache-2.0
"""The calls of clients that are connected to a follower: both ends of the way between it and the primary.

Writes are forwarded and held (cluster/forwarding.py). A read asks the primary once for all reads that wait, up to which
record everything is acknowledged, and is answered here when that has been applied. Renewals go in lists. What only the
primary knows, how much time leases have left, is read there. All that goes to another node can be lost, repeated and
overtaken; what gets no answer is asked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lessor.api.methods import METHODS
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from lessor.cluster.forwarding import RESEND_S, Forwarded, Forwards, Held
from lessor.durable.shared_record import Entry, Origin
from lessor.state.lease import Lease

if TYPE_CHECKING:
    from tests.simulation.clients import Conn, Doing
    from tests.simulation.process import Process

RESPONSES: dict[type, Any] = {method.request: method.response for method in METHODS if method.name != "RangeStream"}
Waiting = tuple["Conn", "Doing"]
INDEX, RENEW, READ = "index", "renew", "read"


class ToPeer(NamedTuple):
    """What a primary says to another node."""

    nonce: bytes  # of the process that it is for
    method: str  # of its Following
    args: tuple[Any, ...]
    leases: tuple[Lease, ...] = ()  # whose renewal this acknowledges


class Ask:
    def __init__(self, kind: str, epoch: int, sent_s: float, waiting: list[Waiting]) -> None:
        self.kind = kind
        self.epoch = epoch
        self.sent_s = sent_s
        self.waiting = waiting


class Following:
    """The end at the node that the clients are connected to."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._forwards = Forwards(process.node.nonce, process.story.rules.pass_on_s)
        self._waiting: dict[str, list[Waiting]] = {INDEX: [], RENEW: [], READ: []}
        self._asks: dict[int, Ask] = {}
        self._numbers = 0
        self._indexed: list[tuple[int, Waiting]] = []  # to be answered when that record has been applied

    @property
    def busy(self) -> bool:
        return bool(len(self._forwards) or self._asks or any(self._waiting.values()))

    # --- from the clients -----------------------------------------------------------------------------------------

    def request(self, conn: Conn, doing: Doing) -> None:
        match doing.request:
            case rpc.RangeRequest():
                self._waiting[INDEX].append((conn, doing))
            case rpc.LeaseKeepAliveRequest():
                self._waiting[RENEW].append((conn, doing))
            case rpc.LeaseTimeToLiveRequest() | rpc.LeaseLeasesRequest():
                self._waiting[READ].append((conn, doing))
            case _:
                self._forwards.hold((conn, doing))

    def lead(self) -> list[Waiting]:
        """This node is the primary now: all that waits, to be carried out here."""
        self._again(self._asks)
        waiting = [held.request for held in self._forwards.take_all()]
        waiting += [each for kind in self._waiting.values() for each in kind]
        waiting += [each for _, each in self._indexed]
        self.clear()
        return waiting

    def clear(self) -> None:
        """Nobody waits any more. Numbers go on: an answer that is under way must not meet a later question."""
        self._forwards.take_all()
        self._asks = {}
        self._waiting = {INDEX: [], RENEW: [], READ: []}
        self._indexed = []

    # --- to the primary -------------------------------------------------------------------------------------------

    def turn(self, now_s: float) -> None:
        process, standing = self._process, self._process.node.standing
        if standing.primary in (b"", process.node.nonce) or process.node.leads:
            return
        epoch, story = standing.epoch, process.story
        for held in self._forwards.due(epoch, now_s):
            _, doing = held.request
            below = self._forwards.finished_below
            story.send(process, standing.primary, "on_forward", epoch, process.node.nonce, held.counter, below, doing)
        self._again(n for n, ask in self._asks.items() if ask.epoch < epoch or now_s - ask.sent_s >= RESEND_S)
        for kind, waiting in self._waiting.items():
            if waiting:
                self._waiting[kind] = []
                self._numbers += 1
                self._asks[self._numbers] = Ask(kind, epoch, now_s, waiting)
                doings = [doing for _, doing in waiting]
                story.send(process, standing.primary, "on_ask", epoch, process.node.nonce, self._numbers, kind, doings)

    def _again(self, numbers: Any) -> None:
        for number in list(numbers):
            ask = self._asks.pop(number)
            self._waiting[ask.kind] += ask.waiting

    # --- from the log, and from the primary -------------------------------------------------------------------------

    def applied(self, entry: Entry) -> None:
        for held, reply in self._forwards.applied(entry):
            conn, doing = held.request
            shown = RESPONSES[type(doing.request)].FromString(reply)
            self._answer(
                (conn, doing), shown, None, held.since_s if isinstance(doing.request, rpc.LeaseGrantRequest) else None
            )
        ready = [waiting for number, waiting in self._indexed if number <= entry.number]
        if ready:
            self._indexed = [each for each in self._indexed if each[0] > entry.number]
            self._read_all(ready)

    def _read_all(self, ready: list[Waiting]) -> None:
        for conn, doing in ready:
            reply, error = None, None
            try:
                reply = self._process.machine.apply(doing.request, 0.0)
            except EtcdError as raised:
                error = raised
            self._answer((conn, doing), reply, error)

    def refused(self, epoch: int, counter: int, error: EtcdError) -> None:
        held: Held | None = self._forwards.refused(epoch, counter)
        if held is not None:
            self._answer(held.request, None, error)

    def answered(self, number: int, answer: Any) -> None:
        ask = self._asks.pop(number, None)
        if ask is None:
            return
        if ask.kind == INDEX:
            if answer <= self._process.node.applied:
                self._read_all(ask.waiting)
            else:
                self._indexed += [(answer, each) for each in ask.waiting]
        elif ask.kind == READ:
            for each, (reply, error) in zip(ask.waiting, answer, strict=True):
                self._answer(each, reply, error)
        else:
            for each, reply in zip(ask.waiting, answer, strict=True):
                self._answer(each, reply, None, ask.sent_s)

    def _answer(self, waiting: Waiting, reply: Any, error: EtcdError | None, sent_s: float | None = None) -> None:
        conn, doing = waiting
        self._process.answer(conn, doing, reply, error, sent_s)

    def distrust(self, now_s: float) -> None:
        self._forwards.distrust(now_s)

    def passes(self, doing: Doing, conn: Conn, sent_s: float) -> bool:
        """Directly before an acknowledgement leaves: whether it may. An old renewal is made again; of an old grant
        nobody can say how long the lease still lives, so its outcome is unknown to the client.
        """
        if self._forwards.may_pass(sent_s, self._process.clock.now_s()):
            return True
        if isinstance(doing.request, rpc.LeaseGrantRequest):
            self._process.cut_off(conn)
        else:
            self._waiting[RENEW].append((conn, doing))
        return False


class Leading:
    """The end at the primary. One for each epoch."""

    def __init__(self, process: Process, epoch: int) -> None:
        self._process = process
        self._forwarded = Forwarded(epoch)
        self._origins: list[Origin] = []

    def take_origins(self) -> list[Origin]:
        origins, self._origins = self._origins, []
        return origins

    @property
    def has_origins(self) -> bool:
        return bool(self._origins)

    def on_forward(self, epoch: int, nonce: bytes, counter: int, finished_below: int, doing: Doing) -> None:
        process, rules = self._process, self._process.story.rules
        if not rules.names_epoch:
            epoch = self._forwarded.epoch
        if not self._forwarded.take(epoch, nonce, counter, finished_below) and rules.takes_once:
            error = self._forwarded.refusal(nonce, counter) if epoch == self._forwarded.epoch else None
            if error is not None:
                self._say(nonce, "refused", (epoch, counter, error))
            return
        reply, error, _ = process.carry_out(doing, rules.allowance_s)
        if error is not None:
            self._forwarded.refuse(nonce, counter, error)
            self._say(nonce, "refused", (epoch, counter, error))
        else:
            self._origins.append(Origin(nonce, counter, reply.SerializeToString()))
            process.note_rows(doing)

    def on_ask(self, epoch: int, nonce: bytes, number: int, kind: str, doings: list[Doing]) -> None:
        process = self._process
        if epoch != self._forwarded.epoch:
            return
        if kind == INDEX:
            self._say(nonce, "answered", (number, process.node.standing.number), at_once=True)
            return
        answers = [process.carry_out(doing, process.story.rules.allowance_s) for doing in doings]
        if kind == READ:
            self._say(nonce, "answered", (number, [(reply, error) for reply, error, _ in answers]))
            return
        leases = tuple(lease for _, _, lease in answers if lease is not None)
        self._say(nonce, "answered", (number, [reply for reply, _, _ in answers]), leases)

    def _say(
        self, nonce: bytes, method: str, args: tuple[Any, ...], leases: tuple[Lease, ...] = (), *, at_once: bool = False
    ) -> None:
        process = self._process
        payload = ToPeer(nonce, method, args, leases)
        process.hold(0 if at_once else process.machine.journal.newest_with_rows, payload)
