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

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from lessor.durable.log import LogError
from lessor.durable.record import CHAIN_BYTES


class TakenError(LogError):
    """The newest record is not the one that was named: nothing was appended by this try. Look what stands there."""


class UnknownError(LogError):
    """Perhaps the record is there, or will be. Only `read` can say; see `Placing`."""


class UnreachableError(LogError):
    """The engine did not answer. Reading again is safe."""


class LogRefusedError(LogError):
    """The engine cannot be used as it is; the message says what to set. To try again helps only after a person acted.

    An `append` that raises it has added nothing by this try. It is settled by reading like any other.
    """


class TrimmedError(LogError):
    """What was asked for was forgotten. A snapshot that stands for `first` - 1 or more has what it said."""

    def __init__(self, first: int) -> None:
        super().__init__(f"the log has forgotten what stood before record {first}")
        self.first = first  # position of the first record that is left


class Info(NamedTuple):
    """What `open` found."""

    cluster_id: int  # drawn once for the log: below 2**64, not 0
    format: int  # of the engine's own layout of the log
    warnings: tuple[str, ...]  # what the operator should know, one line each


class Found(NamedTuple):
    """What a read found."""

    records: Sequence[bytes]  # those behind the position that was asked for, in order, without a gap; perhaps not all
    last: int  # position of the newest record of the log


class SharedLog(Protocol):
    """A log to which several nodes append. Blocks; one call at a time from one thread.

    `open` comes before all others, and is called again until it has returned once. After that the engine may go away
    and come back: each call connects anew when it has to, and finds the same log, or raises.

    No message of an error, and no `repr`, names a password or a key.
    """

    def open(self, new_cluster_id: int) -> Info:
        """Connects, makes the log if there is none, and finds out whether the engine keeps E1 to E3.

        `new_cluster_id` becomes the cluster's id if the log is made; several nodes may do it at once, and all get the
        id of one of them. Raises LogRefusedError where the engine must not be used as it is, or holds a log of another
        format; UnreachableError where it is not there: trying again is safe.
        """
        ...

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        """Adds a record directly behind position `expect`, whose record has the chain value `chain`.

        Position 0, with a chain value of zeros, is the beginning. The last CHAIN_BYTES of `data` are its own chain
        value. Raises TakenError, UnknownError, LogRefusedError; after each of them only a `read` says what holds.
        """
        ...

    def read(self, after: int, bytes_max: int) -> Found:
        """The records behind position `after`: at least one if there is any, about `bytes_max` in all. E3 holds.

        What it shows is as durable as what was appended: also a record whose `append` was given up before it was.
        Raises UnreachableError, LogRefusedError, and TrimmedError when the record behind `after` was forgotten.
        """
        ...

    def put_snapshot(self, position: int, pieces: Iterator[bytes]) -> None:
        """Keeps a blob that stands for everything up to `position`. The pieces may have any size.

        It is there whole, or not at all; then older ones may be forgotten, but not the one before it at once, so that
        a node that reads that one comes to its end. Raises UnreachableError, LogRefusedError: perhaps it is there;
        trying again with the same blob is safe.
        """
        ...

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]] | None:
        """The snapshot of the highest position, in pieces of at most about 1 MiB; None when there is none.

        The iterator reads as it goes, and may be left before its end. Both raise UnreachableError, LogRefusedError; the
        iterator also UnreachableError when the snapshot was forgotten meanwhile: ask for the newest one then.
        """
        ...

    def trim(self, before: int) -> None:
        """Forgets the records below position `before`, in steps, each of which holds up nobody for long.

        Never forgets the newest record, and does nothing when all that is forgotten already. Raises UnreachableError,
        LogRefusedError: perhaps a part is done; trying again is safe. Costs time by what there is to forget.
        """
        ...

    def size_bytes(self) -> int:
        """What the log takes in the engine, with its snapshots. Raises UnreachableError, LogRefusedError."""
        ...

    def close(self) -> None:
        """Lets go of the engine; what was under way has an unknown outcome. Does nothing when closed already."""
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
