# SPDX-License-Identifier: Apache-2.0
"""How far one process knows the shared log, and whether a record is the next one.

Law: what was taken in is one history. A record that names another chain value than that of the newest record taken in,
or an older epoch, or that is another one at the same position, is never taken in, and is told apart from one that comes
too early or twice.

Does not do: reading, applying, deciding what follows.
"""

from typing import Final

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_record import CLAIM, GOES_ON, RELEASE, Entry

NEXT: Final = 0  # it follows
OLD: Final = 1  # it was taken in before, or is older
GAP: Final = 2  # records before it are missing
FORKED: Final = 3  # it belongs to another history


class Standing:
    """The newest record that a process has taken in."""

    __slots__ = ("batch", "chain", "clock_s", "epoch", "goes_on", "number", "primary", "released", "successor")

    def __init__(self) -> None:
        self.number = 0
        self.chain = bytes(CHAIN_BYTES)
        self.epoch = 0
        self.batch = 0  # number of the newest batch
        self.clock_s = 0.0  # the data clock
        self.primary = b""  # nonce of the process whose claim is the newest; b"" when it has released, or there is none
        self.released = False  # whether the record is a release: all deadlines are exact
        self.goes_on = False  # whether it is one whose node goes on as a follower, with its clients
        self.successor = 0  # the node that it names; 0: none

    def judge(self, entry: Entry) -> int:
        if entry.number > self.number + 1:
            return GAP
        if entry.number <= self.number:
            return FORKED if entry.number == self.number and entry.chain != self.chain else OLD
        return FORKED if entry.record.previous != self.chain or entry.epoch < self.epoch else NEXT

    def take(self, entry: Entry) -> None:
        """Takes in the next record."""
        self.batch = entry.record.rows.number  # before the number: another thread may look, and tell of both
        self.number = entry.number
        self.chain = entry.chain
        self.epoch = entry.epoch
        self.clock_s = entry.record.rows.clock_s
        self.released = entry.kind == RELEASE
        self.goes_on = entry.kind == RELEASE and GOES_ON in entry.texts
        self.successor = entry.subject if entry.kind == RELEASE else 0
        if entry.kind == CLAIM:
            self.primary = entry.nonce
        elif entry.kind == RELEASE:
            self.primary = b""
