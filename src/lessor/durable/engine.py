# SPDX-License-Identifier: Apache-2.0
"""The engine: what the server asks of the thing that keeps rows on disk.

Laws
- An engine speaks rows and batches, never requests. Revisions, deadlines and batch numbers come to it.
- A batch is there whole or not at all. `commit` returns only when the batch would survive the loss of power at once.
- After a failed commit nobody knows what the disk holds, so an engine that failed once refuses every further write.

Theory of operation: the state machine keeps everything in memory and writes what changed into batches with
ascending numbers. One thread hands them to the engine, one at a time. At boot `open` and `load` give the rows back.

An engine is a log and tables that follow it (log.py, tables.py). A batch is durable in the log before it is in the
tables that people and `backup` read. What it takes to bring it there, to delete the dead rows that batches name and to
keep the log short is `upkeep`, in steps short enough that commits get in between.

It does not: read clocks, retry, log, or run on the event loop. Every call blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from lessor.durable.shared_record import Origin
from lessor.state.journal import AlarmRow, AuthRows, Batch, EventRow, LeaseRow, Rows

FIRST_TERM: Final = 2  # what a fresh etcd answers too: the term of its first election


class DataDirError(Exception):
    """The data directory cannot be served. The message is one line: which file, what is wrong, what to do.

    Nothing in the directory was changed. Trying again helps only after a person has acted.
    """


class DamagedError(DataDirError):
    """What is in the directory is not as it was written. A copy of a log can be made anew.

    `what`: the part of the message that says what is wrong.
    """

    def __init__(self, text: str, what: str) -> None:
        super().__init__(text)
        self.what = what


class EngineError(Exception):
    """A write failed. The message is one line. What the disk holds is unknown until the next boot."""


class TablesLockedError(EngineError):
    """The tables cannot be written at this moment; nothing was done. Trying again is safe, and may succeed."""


class GivenUpError(EngineError):
    """Nobody waits for the engine any more: the server ends. What was not committed yet never is."""


class FencedError(EngineError):
    """Another process commits to the log now. What this one had not committed is lost, and was not acknowledged.

    A new engine on the same directory can go on.
    """


class HistoryError(EngineError):
    """The log is not the one that this process knows: it has lost records, or has others. A person has to decide."""


class TwinError(EngineError):
    """Another process with the member id of this one is alive: a data directory was copied. A person has to act."""


class MovedError(EngineError):
    """The data is elsewhere now, as the one line says. For good."""


# Gets the batch of another process, the term in which it was committed, and the requests in it that were passed on.
Follow = Callable[[Rows, int, Sequence[Origin]], None]
FOLLOW_S: Final = 0.05  # between two looks of a process that stands by
FOLLOW_SOON_S: Final = 0.005  # the same, when another process is about to lead


class Sizes(NamedTuple):
    """What the data takes: the tables, and what is in the log alone. Without the room that is set aside for a log."""

    total_bytes: int  # on disk
    in_use_bytes: int  # of those, what holds data: the rest is free and will be used again


class Meta(NamedTuple):
    """What is known about the data as a whole."""

    cluster_id: int  # uint64
    member_id: int  # uint64
    term: int  # the last one; answered as raft_term
    compact_revision: int  # `NOTHING_COMPACTED` (-1) when nothing was compacted yet
    batch: int  # number of the newest batch; 0 when there is none
    clock_s: float  # seconds that this data was served, over all restarts, as of the newest batch
    clean: bool  # whether the newest batch was the last act of an orderly stop
    schema_version: int
    peer_urls: tuple[str, ...] = ()  # those that the member was given; () when it was given none
    not_compared: str = ""  # why pages were not compared with their checksums; "": they were, or there were none


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that is on disk. Read `events`, then `leases`, then `alarms`, each once, before the first commit.

    The iterators raise `DataDirError` when they meet a damaged page.
    """

    meta: Meta
    events: Iterator[EventRow]  # ordered by (revision, sub); may hold dead rows
    leases: Iterator[LeaseRow]  # those that have not ended, ordered by id
    alarms: Iterator[AlarmRow]  # those that are active
    auth: AuthRows = field(default_factory=AuthRows)  # read at once: it is little


class Begun(NamedTuple):
    """A term in which this process alone commits."""

    term: int
    clock_s: float  # where the data clock goes on
    clean: bool  # whether the deadlines in the rows are exact
    goes_on: bool = False  # whether the process before has kept its clients, as a follower


class Leader(NamedTuple):
    """The process that leads a shared log, as its records say."""

    member_id: int
    urls: tuple[str, ...]  # for clients; () while no record has named them yet
    nonce: bytes  # of the process, as its records have it: nobody else knows it
    epoch: int  # in which it leads


class LogEnd(NamedTuple):
    """How far a process that leads a shared log has come."""

    epoch: int  # in which it writes
    record: int  # the newest one that has landed
    batch: int  # the newest one up to there
    nonce: bytes  # of the process


class Answering(Protocol):
    """What a server has to ask if others may commit in its place. Its loop asks; each call reads a clock or two."""

    @property
    def lapses(self) -> int:
        """How often bytes had to wait."""
        ...

    @property
    def stood_s(self) -> float:
        """For how long the clock of `served_s` has stood still in all, as far as it has gone on since."""
        ...

    def may_send(self) -> bool:
        """Whether nobody else can have taken the lead yet, so that bytes may leave at this instant."""
        ...

    def served_s(self) -> float:
        """Seconds on a clock that stands still while bytes may not leave. It never runs backwards."""
        ...


class Engine(Protocol):
    """Keeps the rows of one data directory. All calls come from one thread unless they say otherwise."""

    @property
    def answering(self) -> Answering | None:
        """None when nobody else can ever commit. Otherwise to be asked once this process leads."""
        ...

    @property
    def leader(self) -> Leader | None:
        """Another process that leads the log; None when none is known. May be asked from any thread."""
        ...

    @property
    def end(self) -> LogEnd | None:
        """How far this process has come as the leader; None when it does not lead a shared log. From any thread."""
        ...

    @property
    def released(self) -> LogEnd | None:
        """How far this process had come when a clean batch ended its term; None unless that was its last act so.

        From any thread.
        """
        ...

    @property
    def look_again_s(self) -> float:
        """Seconds until `try_to_lead` is to be called again: FOLLOW_S, or less when another process leads soon."""
        ...

    def landed(self, after: int) -> Sequence[bytes]:
        """This process's newest records behind number `after`, as shared_record.without_nonce; () if not all are kept.

        Those with users or roles are not kept: what the log guards best goes no other way. From any thread.
        """
        ...

    @property
    def hears_log(self) -> bool:
        """Whether the log has answered when it was asked last. From any thread."""
        ...

    @property
    def claim_s(self) -> float:
        """For how long the process that leads is silent before another one may lead; 0.0: none other can."""
        ...

    def name_successor(self, member_id: int, *, goes_on: bool) -> None:
        """The process that is to lead next, when a clean batch ends the term of this one. 0: any.

        `goes_on`: whether this one follows then, with its clients.
        """
        ...

    def told(self, epoch: int, record: int, records: Sequence[bytes] = ()) -> None:
        """The leader says that its record is in the log for good: `try_to_lead` takes it in. From any thread.

        `records`: some up to that one, as the leader has shown them. Those that are not shown are read from the log.
        Record 0: `try_to_lead` reads the log at once.
        """
        ...

    def name_dead(self, dead: Sequence[tuple[int, int]]) -> None:
        """Rows, by (revision, sub), that are dead by batches which `follow` was given: they are to be deleted.

        The log does not name them. Those of one key come oldest first, over several calls too. To be called before the
        first `commit`, or never: what nobody has named is dead at the next start too. From any thread.
        """
        ...

    def open(self, new_identity: tuple[int, int]) -> Meta:
        """Takes the directory and brings its schema up to date.

        `new_identity` is (cluster_id, member_id), both uint64, for a directory that holds no data yet; it is ignored
        when there is data. Raises `DataDirError` when the directory is in use, unwritable, of a newer schema
        or damaged.
        """
        ...

    def load(self) -> Loaded:
        """All rows, streamed. Costs a read of the whole data."""
        ...

    def try_to_lead(self, follow: Follow) -> Begun | None:
        """Begins a new term, in which this process alone may commit; None while another process leads.

        The term is durable then, and the clean mark is cleared. `follow` is called with each batch that others have
        committed since `load`, in order, and with its term. To be called again within FOLLOW_S: who does not look does
        not learn when it may lead. Raises `EngineError`.
        """
        ...

    def commit(self, batch: Batch) -> None:
        """Makes one batch durable, whole. Its number is above the last one's. Raises `EngineError`.

        A clean batch is the last one of an orderly stop. On a shared log it ends the term of this process, and
        `try_to_lead` may be called again, with rows that go on from it.
        """
        ...

    def upkeep(self, now_s: float, idle: bool) -> float | None:
        """Does a step of the engine's own work if one is due: mostly none, or a few milliseconds'. Waits for nobody.

        Brings what is committed into the tables: 0.1 s after the last batch with rows, or 1 s after the first one that
        waits, or at once where much waits. Deletes what compactions left, syncs the tables, shortens the log.

        `now_s`: an instant in seconds, on any clock that does not run backwards, always the same one. `idle`: no commit
        waits. Call it after each commit, when the replies to that have been handed over, and at the instant that it
        returned last: an instant not after `now_s` means as soon as whatever else waits is done; None means that there
        is nothing to do until the next commit. Raises `EngineError`: as that of a commit, but what was committed is
        safe.
        """
        ...

    def flush(self) -> None:
        """Brings everything that is committed into the tables, where `backup`, and people, find it.

        Waits for others who write to them, a few seconds. Raises `TablesLockedError` then, otherwise `EngineError`, as
        `upkeep` does. Costs 2 microseconds a row.
        """
        ...

    def sizes(self) -> Sizes:
        """What the data takes now. Costs a look at the files when the tables were written to, otherwise nothing.

        Raises `EngineError`.
        """
        ...

    def defragment(self) -> None:
        """Rewrites the data without free space, and without the rows that compactions before it have made dead.

        Nothing is committed meanwhile. Costs what `flush` costs, and a read and two writes of the data. Raises
        `EngineError`; the data is as it was then.
        """
        ...

    def backup(self, path: Path, unwanted: Callable[[], bool] = lambda: False) -> None:
        """Writes a consistent copy of the tables to `path`, which must not exist. From any thread, while serving.

        It holds whatever was committed before the last `flush` at least. `unwanted` is asked now and then, in the same
        thread; True ends the work.

        Raises `EngineError` when the copy could not be written, or is unwanted; the data is not touched and the engine
        goes on.
        """
        ...

    def view(self, unwanted: Callable[[], bool] = lambda: False) -> AbstractContextManager[Loaded]:
        """The rows in the tables as of one instant, for one `with` block. From any thread, while serving.

        They are those that `backup` would write, without dead ones. Leases are in the order of their ids as unsigned
        numbers. `unwanted` is as there. Raises EngineError, also while the rows are read; the engine goes on.
        """
        ...

    def stop_backups(self) -> None:
        """Ends backups and views under way, and those still to come, with `EngineError`, soon. From any thread."""
        ...

    def make_anew(self, error: DamagedError) -> Meta:
        """What was loaded since `open` was damaged: makes the data of the directory anew, as `open` does, or raises
        `error`: there is no other place that has the data.
        """
        ...

    def stop_waiting(self) -> None:
        """Ends, with `EngineError`, what waits for others: `open`, and a commit to a log that does not answer.

        May be called from any thread. Nothing is committed after it.
        """
        ...

    def close(self) -> None:
        """Brings what is committed into the tables, if it can, and lets the directory go. Nothing when closed."""
        ...
