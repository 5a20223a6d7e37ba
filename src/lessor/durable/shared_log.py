# SPDX-License-Identifier: Apache-2.0
"""The shared log: what several nodes ask of the one place where their batches become durable.

Laws that an engine keeps
- E1: at most one record stands at a position, for ever.
- E2: once `append` has returned, the record survives the loss of any minority of the engine, power included.
- E3: once an `append` at position n has returned, every `read` that is made later shows n and everything before it.

Positions are the numbers of records: 1, 2, 3 without a gap. An append names the position and the chain value of the
record that it is to stand behind, and is refused when the newest record is another one. Both, because a position alone
does not tell one history from another: an engine that has lost its newest records, and been given others, has the same
positions again.

Law of `Placing`: the outcome of an append is never guessed. When an append has not returned in peace, the log is read:

- our record is there, byte for byte: it has landed;
- another's is there: the position is taken, for ever;
- nothing is there: the same bytes are tried again, because the first try may still be under way;
- the record that it was to stand behind is not there any more: the engine has lost what it had acknowledged.

So a second record for a position is never made while the first may land. Also an append that was refused is settled by
reading: the refusal may be that of the second try after a first one that landed.

`Placing.since_s` is the instant from which a tenure may count: our record cannot have been seen before it. That is the
instant before the first try; or, when a look found nothing there, the instant before that look, for the record has
landed after it then.

Does not do: I/O, clocks, deciding when to look again. Of all implementations of this protocol none is served yet.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from lessor.durable.log import LogError
from lessor.durable.record import CHAIN_BYTES


class TakenError(LogError):
    """The newest record is not the one that was named: nothing was appended by this try. Look what stands there."""


class UnknownError(LogError):
    """Perhaps the record is there, or will be. Only `read` can say; see `Placing`."""


class UnreachableError(LogError):
    """The engine did not answer. Reading again is safe."""


class Found(NamedTuple):
    """What a read found."""

    records: Sequence[bytes]  # those behind the position that was asked for, in order, without a gap; perhaps not all
    last: int  # position of the newest record of the log


class SharedLog(Protocol):
    """A log to which several nodes append. Blocks; one call at a time from one thread."""

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        """Adds a record directly behind position `expect`, whose record has the chain value `chain`.

        Position 0, with a chain value of zeros, is the beginning. Raises TakenError, UnknownError.
        """
        ...

    def read(self, after: int, bytes_max: int) -> Found:
        """The records behind position `after`: at least one if there is any, about `bytes_max` in all. E3 holds.

        Raises UnreachableError.
        """
        ...


TRY: Final = 0  # call `append`
LOOK: Final = 1  # call `read`, after `look_after`
LANDED: Final = 2
TAKEN: Final = 3
LOST: Final = 4


class Placing:
    """The way of one record into the log. `next` says what to do, or how it ended."""

    __slots__ = ("_looked_s", "_tried", "chain", "data", "expect", "look_after", "next", "others", "since_s")

    def __init__(self, expect: int, chain: bytes, data: bytes) -> None:
        self.expect = expect
        self.chain = chain
        self.data = data
        self.next = TRY
        self.since_s = 0.0
        self.others: Sequence[bytes] = ()  # once TAKEN: the records behind `expect`, as far as they were read
        self._tried = False
        self._looked_s = 0.0
        # The position to read after. At first the record that ours is to stand behind is looked at too.
        self.look_after = max(expect - 1, 0)

    def trying(self, now_s: float) -> None:
        """To be called before `append` is, and before the bytes are handed to anything."""
        if not self._tried:
            self._tried = True
            self.since_s = now_s

    def looking(self, now_s: float) -> None:
        """To be called before `read` is."""
        self._looked_s = now_s

    def accepted(self) -> None:
        """`append` has returned."""
        self.next = LANDED

    def refused(self) -> None:
        """`append` has raised TakenError."""
        self.next = LOOK

    def unknown(self) -> None:
        """`append` has raised UnknownError, or was given up."""
        self.next = LOOK

    def found(self, found: Found) -> None:
        """`read` after `look_after` has returned."""
        records = found.records
        if found.last < self.expect:
            self.next = LOST
            return
        if self.look_after < self.expect:
            if records[0][-CHAIN_BYTES:] != self.chain:
                self.next = LOST
                return
            self.look_after = self.expect
            records = records[1:]
        if found.last == self.expect:
            self.since_s = self._looked_s
            self.next = TRY
        elif records:
            self.others = records
            self.next = LANDED if records[0] == self.data else TAKEN
        # Otherwise the read brought the record before alone: the next look brings the one behind it.

    def known(self, data: bytes) -> None:
        """Another node has shown the record that stands behind `expect`."""
        self.others = (data,)
        self.next = LANDED if data == self.data else TAKEN
