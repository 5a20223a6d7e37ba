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

Does not do: I/O, clocks, deciding when to look again.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from lessor.durable.log import LogError
from lessor.durable.record import CHAIN_BYTES


class TakenError(LogError):
    """The newest record is not the one that was named: nothing was appended by this try. Look what stands there."""


class UnknownError(LogError):
    """Perhaps the record is there, or will be. Only `read` can say; see `Placing`."""


class UnreachableError(LogError):
    """The engine did not answer. The same call again is safe."""


class LogRefusedError(LogError):
    """The engine cannot be used as it is; one line says what to set. Trying again helps only after a person has acted.

    After an `append` it says no more about the record than UnknownError does: an engine that runs full may have taken
    the record that it complains about.
    """


class TrimmedError(LogError):
    """The records that were asked for are forgotten: a snapshot has what was in them."""

    def __init__(self, first: int) -> None:
        super().__init__(f"the log begins at record {first}: what came before it is trimmed")
        self.first = first  # the first position that is left


class Info(NamedTuple):
    """What `open` found out."""

    cluster_id: int  # of the Lessor cluster whose log this is, drawn by the node that opened it first
    format: int  # of the log, as its engine keeps it
    warnings: tuple[str, ...]  # what the operator should know, one line each


class Found(NamedTuple):
    """What a read found."""

    records: Sequence[bytes]  # those behind the position that was asked for, in order, without a gap; perhaps not all
    last: int  # position of the newest record of the log


class SharedLog(Protocol):
    """A log to which several nodes append. Blocks; one call at a time from one thread.

    Every call may raise LogRefusedError. No text of an error, a warning or a `repr` has a password in it.
    """

    def open(self, new_cluster_id: int) -> Info:
        """To be called before all else, and again after it has failed: looks the engine over, begins the log if needed.

        `new_cluster_id`: 1 to 2^64 - 1; names the log if there is none yet. Of several nodes that begin one at the same
        time one succeeds, and all get its number. LogRefusedError: the engine would lose records, is of another kind or
        version, or does not let us in. UnreachableError: it does not answer, or has no majority; waiting may help.
        """
        ...

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        """Adds a record directly behind position `expect`, whose record has the chain value `chain`.

        Position 0, with a chain value of zeros, is the beginning. `data` ends with the record's own chain value. Of
        several appends behind one record, by whatever nodes, one succeeds. Raises TakenError, UnknownError.
        """
        ...

    def read(self, after: int, bytes_max: int) -> Found:
        """The records behind position `after`: at least one if there is any, about `bytes_max` in all. E3 holds.

        Raises UnreachableError; TrimmedError when record `after + 1` is forgotten.
        """
        ...

    def put_snapshot(self, position: int, pieces: Iterator[bytes]) -> None:
        """Keeps what `pieces` bring as the snapshot of everything up to record `position`, durably and as a whole.

        Until it has returned, `newest_snapshot` shows the one before. Does nothing when the log has one of this
        position or a later one. Raises UnreachableError, after which the same may be put again: perhaps it is there.
        """
        ...

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]] | None:
        """The position of the newest whole snapshot and its pieces, cut as the engine likes; None: there is none.

        The pieces are read as they are taken, while other calls may be made. UnreachableError, also from the iterator:
        begin again. The snapshot stays readable until two newer ones have been put.
        """
        ...

    def trim(self, before: int) -> None:
        """Forgets the records below position `before`, in steps, oldest first; never the newest record.

        May be called by several nodes. Raises UnreachableError: some of it may be done.
        """
        ...

    def size_bytes(self) -> int:
        """What the log's records and snapshots take, without what the engine adds to them. Raises UnreachableError."""
        ...

    def close(self) -> None:
        """Lets go of the engine; does nothing the second time. Later calls raise UnreachableError or UnknownError."""
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
