# SPDX-License-Identifier: Apache-2.0
"""Rules that are broken on purpose, each in one way. They prove that the simulation can fail, and why each rule is
there.

`python -m tests.simulation --rules WAY` shows what comes of it.
"""

from __future__ import annotations

from typing import Any

from lessor.base.errors import Code, EtcdError
from lessor.cluster.forwarding import FORWARD_ALLOWANCE_S
from lessor.cluster.node import Node
from lessor.cluster.standing import Standing
from lessor.cluster.tenure import FOLLOWER, Tenure, Timing
from lessor.durable.shared_log import Placing
from lessor.durable.shared_record import Entry
from lessor.state.lease import Lease
from lessor.state.machine import StateMachine
from tests.simulation.process import Process, Reply
from tests.simulation.story import Rules


class ReturnTime(Rules):
    """R3: a tenure counts from when the engine said that the record had landed."""

    class Broken(Node):
        def _landed(self, placing: Placing, now_s: float) -> None:
            placing.since_s = now_s
            super()._landed(placing, now_s)

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        return self.Broken(node_id, nonce, timing, standing)


class RetryTime(Rules):
    """R3: an append of unknown outcome is tried again at once, and the tenure counts from the last try."""

    class Broken(Node):
        def append_unknown(self, ticket: int, now_s: float) -> None:
            placing = self._of_append(ticket)
            if placing is not None:
                placing.since_s = now_s
                self._go_on(placing, now_s)

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        return self.Broken(node_id, nonce, timing, standing)


class NoCheck(Rules):
    """R4: what a primary has to say leaves, whether its tenure is valid or not."""

    def may_send(self, process: Process) -> bool:
        return True


class EarlyCheck(Rules):
    """R4: the tenure is looked at when the work begins, and not when the bytes leave."""

    def process(self, *args: Any) -> Process:
        return _ChecksEarly(*args)

    def may_send(self, process: Process) -> bool:
        return process.served is None or getattr(process, "was_valid", False)


class _ChecksEarly(Process):
    def _end_of_turn(self) -> None:
        self.was_valid = self.node.tenure.valid(self.clock.now_s())
        super()._end_of_turn()


class _Impatient(Rules):
    """A candidate waits for its own claim_s, whatever that is, and whatever the records say of their nodes' times."""

    class Times(Timing):
        def check(self) -> None: ...

    class Broken(Node):
        def _learn(self, entry: Entry, now_s: float) -> None:
            super()._learn(entry, now_s)
            self.tenure.others_lease_s = 0.0

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        return self.Broken(node_id, nonce, timing, standing)


class Hasty(_Impatient):
    """A candidate waits for less than a primary may go on."""

    def timing(self, node_id: int) -> Timing:
        return self.Times(claim_s=0.8, rank_s=0.1 * (node_id - 1))


class NoMargin(_Impatient):
    """A candidate waits exactly as long as a primary may go on: enough if all clocks ran alike."""

    def timing(self, node_id: int) -> Timing:
        return self.Times(claim_s=1.0, rank_s=0.0)


class NoNonce(Rules):
    """The records of two processes of one node can be the same, byte for byte."""

    has_nonce = False


class UnknownIsDone(Rules):
    """An append of unknown outcome is taken for one that has landed."""

    class Broken(Node):
        def append_unknown(self, ticket: int, now_s: float) -> None:
            self.append_ok(ticket, now_s)

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        return self.Broken(node_id, nonce, timing, standing)


class UnknownIsFailed(Rules):
    """An append of unknown outcome is taken for one that has failed: its calls are told that nothing was done."""

    def process(self, *args: Any) -> Process:
        return _TakesForFailed(*args)


class _TakesForFailed(Process):
    def appended(self, ticket: int, outcome: str) -> None:
        node = self.node
        if outcome != "unknown" or ticket != node._append_ticket or self.served is None:
            super().appended(ticket, outcome)
            return
        failed = EtcdError(Code.FAILED_PRECONDITION, "the write has failed")
        waiting = [payload for _, held in self.gate._held for _, payload in held if isinstance(payload, Reply)]
        conns = {conn.owner: conn for conn in self.conns}
        node._forget_placing()
        served, leading = self.served, self.leading
        self._make_memory()
        standing = node.standing
        self.story.rules.promote(self.machine, standing.epoch, standing.clock_s, False)
        self.served, self.leading = served, leading
        for reply in waiting:
            conn = conns.get(reply.doing.client)
            if conn is not None:
                self.out.append((conn, Reply(reply.doing, None, failed, None)))


class OutageIsDeath(Rules):
    """R1: silence counts also while the engine does not answer."""

    class Broken(Tenure):
        def answered(self, now_s: float) -> None:
            self._answered_s = now_s
            if self._silent_since_s is None:
                self._silent_since_s = now_s

        def unanswered(self) -> None: ...

        def may_claim(self, now_s: float) -> bool:
            self._answered_s = now_s
            return super().may_claim(now_s)

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        node = super().node(node_id, nonce, timing, standing)
        node.tenure = self.Broken(timing)
        return node


class NoDistrust(Rules):
    """R5: a clock that has stood still is believed."""

    r5 = False


class NoGrace(Rules):
    """R6: a new primary ends leases by the deadlines in the rows."""

    def promote(self, machine: StateMachine, epoch: int, clock_s: float, clean: bool, goes_on: bool = False) -> None:
        machine.lead(epoch)
        machine.leases.promote(_saved)


def _saved(lease: Lease) -> float:
    return lease.saved_deadline_s


class ValidAfterRelease(Rules):
    """A primary answers until it knows that its release has landed."""

    class Broken(Tenure):
        def valid(self, now_s: float) -> bool:
            return self.state != FOLLOWER and now_s < self.until_s

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        node = super().node(node_id, nonce, timing, standing)
        node.tenure = self.Broken(timing)
        return node


class ShowsUnconfirmed(Rules):
    """A follower shows a record as soon as it has read it, though its writer may not know yet that it has landed."""

    class Broken(Node):
        def _take_entry(self, entry: Entry, now_s: float, *, confirmed: bool) -> None:
            super()._take_entry(entry, now_s, confirmed=True)

    def node(self, node_id: int, nonce: bytes, timing: Timing, standing: Standing) -> Node:
        return self.Broken(node_id, nonce, timing, standing)


class PositionAlone(Rules):
    """The engine compares the position that a record is to stand behind, and not its chain value."""

    checks_chain = False


class KeepsMemory(Rules):
    """A node that was fenced goes on with the memory that it has."""

    def fence(self, process: Process) -> None:
        process._drop_all()
        process.served = process.leading = None
        process.machine.journal._open()


class NoAllowance(Rules):
    """An acknowledgement that a follower passes on gets no more time than one that leaves at once."""

    allowance_s = 0.0


class LongPassingOn(Rules):
    """An acknowledgement may be passed on for as long as its allowance, by a clock that may be slower."""

    pass_on_s = FORWARD_ALLOWANCE_S


class AnyEpoch(Rules):
    """A forward counts in whatever epoch it arrives."""

    names_epoch = False


class TakesTwice(Rules):
    """A primary carries out a forward as often as it arrives."""

    takes_once = False


WAYS: dict[str, type[Rules]] = {
    "return-time": ReturnTime,
    "retry-time": RetryTime,
    "no-check": NoCheck,
    "early-check": EarlyCheck,
    "hasty": Hasty,
    "no-margin": NoMargin,
    "no-nonce": NoNonce,
    "unknown-is-done": UnknownIsDone,
    "unknown-is-failed": UnknownIsFailed,
    "outage-is-death": OutageIsDeath,
    "no-distrust": NoDistrust,
    "no-grace": NoGrace,
    "valid-after-release": ValidAfterRelease,
    "shows-unconfirmed": ShowsUnconfirmed,
    "keeps-memory": KeepsMemory,
    "no-allowance": NoAllowance,
    "long-passing-on": LongPassingOn,
    "any-epoch": AnyEpoch,
    "takes-twice": TakesTwice,
}
