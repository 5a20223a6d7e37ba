# SPDX-License-Identifier: Apache-2.0
"""Carries out what `cluster/node.py` decides: appends and reads, one at a time, in the thread that asks.

Laws
- An instant that counts for a tenure is read before the engine is called (R3).
- What the node says is carried out in the order in which it was said.
- An answer that is neither success nor refusal is an unknown outcome. Nothing is concluded from it; the log is read.

Does not do: deciding anything; rows (`took` gets the records).
"""

import logging
from collections.abc import Callable
from typing import Final

from lessor.cluster.node import BEHIND, MOVED, Append, Apply, Durable, Lead, Node, Read, StepDown, Stop
from lessor.durable.engine import FencedError, HistoryError, MovedError
from lessor.durable.log import LogError
from lessor.durable.shared_log import LogRefusedError, SharedLog, TakenError, TrimmedError
from lessor.durable.shared_record import Entry

log = logging.getLogger("lessor")

TICK_S: Final = 0.05  # between two looks at what another process does, or at a log that does not answer
READ_BYTES: Final = 4 * 1024 * 1024  # of records that one read asks for
QUIET_S: Final = 5.0  # between two log lines that say the same


class BehindError(FencedError):
    """The log has forgotten what comes after our tables: a snapshot has it, which is read when the engine is opened."""


_ERRORS: Final = {MOVED: MovedError, BEHIND: BehindError}


class Carrying:
    """The hands of one node. Blocks."""

    def __init__(
        self,
        shared: SharedLog,
        node: Node,
        now_s: Callable[[], float],
        sleep: Callable[[float], None],
        took: Callable[[Entry, bool], None],
    ) -> None:
        """`took` gets each record that is in the log for good, in order, and whether it is this process's own."""
        self._log = shared
        self._node = node
        self._now_s = now_s
        self._sleep = sleep
        self._took = took
        self._failed_in_a_row = 0  # appends
        self.lead: Lead | None = None  # once the node leads
        self.released = False
        self.has_read = False  # whether the log was read to its end once
        self._silent_since_s: float | None = None  # since when the engine does not answer
        self._said_s = float("-inf")

    def stand_by(self) -> None:
        """The node has released, and follows from here on."""
        self.lead = None
        self.released = False

    def tick(self) -> None:
        self._node.tick(self._now_s())
        self.carry_out()

    def carry_out(self) -> None:
        """Until the node asks for nothing more. Raises FencedError, EngineError; neither helps to try again."""
        while effects := self._node.take_effects():
            for effect in effects:
                match effect:
                    case Append():
                        self._append(effect)
                    case Read():
                        self._read(effect)
                    case Apply():
                        self._took(effect.entry, False)
                    case Durable():
                        self._took(effect.entry, True)
                    case Lead():
                        self._took(effect.entry, True)
                        self.lead = effect
                    case StepDown():
                        if not effect.released:
                            raise FencedError("another process has taken over the log")
                        self.released = True
                    case Stop():
                        raise _ERRORS.get(effect.why, HistoryError)(effect.text)

    def _append(self, append: Append) -> None:
        if self._failed_in_a_row > 1:
            self._sleep(TICK_S)
        self._failed_in_a_row += 1
        try:
            self._log.append(append.expect, append.chain, append.data)
        except TakenError:
            self._node.append_refused(append.ticket, self._now_s())
        except LogError as error:
            self._say(error)
            self._node.append_unknown(append.ticket, self._now_s())
        else:
            self._answered()
            self._failed_in_a_row = 0
            self._node.append_ok(append.ticket, self._now_s())

    def _read(self, read: Read) -> None:
        try:
            found = self._log.read(read.after, READ_BYTES)
        except TrimmedError as error:
            raise BehindError(str(error)) from error
        except LogError as error:
            self._say(error)
            self._node.read_failed(read.ticket, self._now_s())
        else:
            self._answered()
            self.has_read = True
            self._node.read_ok(read.ticket, found, self._now_s())

    def _say(self, error: LogError) -> None:
        now_s = self._now_s()
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        if now_s - self._said_s >= QUIET_S:
            self._said_s = now_s
            said = {"silent_s": round(now_s - self._silent_since_s, 1), "reason": str(error)}
            if isinstance(error, LogRefusedError):
                log.error("the engine cannot be used as it is; waiting until somebody has acted", extra=said)
            else:
                log.warning("the engine does not answer; waiting for it", extra=said)

    def _answered(self) -> None:
        if self._silent_since_s is not None:
            silent_s = round(self._now_s() - self._silent_since_s, 1)
            log.info("the engine answers again", extra={"silent_s": silent_s})
            self._silent_since_s = None
            self._said_s = float("-inf")
