# SPDX-License-Identifier: Apache-2.0
"""Engines that fail at the Nth call, for tests: SQLite's habit of failing every step once and looking at what is left.

Three places to fail. `FaultyEngine` wraps any engine and fails at the Nth write, to test what the server does then.
`StatementFaults` sits between the tables and SQLite and fails at the Nth statement, `WriteFaults` under the log and
fails at its Nth write, which tests the engine itself:

    faults = StatementFaults(fail_at=7, took_effect=True)
    engine = FileEngine(data_dir, connect=faults.connect, disk=WriteFaults(3))

A disk that failed once goes on failing: every later call fails too. `took_effect` says whether the call that fails did
its work first, as a COMMIT may have done whose answer was lost.

`PowerLoss` keeps account of what SQLite has synced, as its documentation has it, and of how long the files of the log
are for good; it makes of a data directory what a loss of power may leave of it. `run_at_once` and `Later` take the
place of the thread that syncs.

It does not: cut a sync short (the log and SQLite's log are cut by tests of their own).
"""

import errno
import os
import random
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from lessor.durable import directory
from lessor.durable.engine import (
    Answering,
    Begun,
    DamagedError,
    Engine,
    EngineError,
    Follow,
    Leader,
    Loaded,
    LogEnd,
    Meta,
    Sizes,
)
from lessor.durable.file_log import Disk
from lessor.durable.sectors import SECTOR_BYTES
from lessor.state.journal import Batch

T = TypeVar("T")

# What SQLite says: (result code, its name, its text).
DISK_FULL = (sqlite3.SQLITE_FULL, "SQLITE_FULL", "database or disk is full")
WRITE_FAILED = (sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE", "disk I/O error")
FSYNC_FAILED = (sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC", "disk I/O error")


class Countdown:
    """Counts calls and says from which one on they fail. `fail_at` counts from 1; 0 never fails."""

    def __init__(self, fail_at: int, *, took_effect: bool = False) -> None:
        self.calls = 0
        self._fail_at = fail_at
        self._took_effect = took_effect
        self.on_failure: Callable[[], object] = lambda: None  # called at the first one, to look at what is left then

    @property
    def failed(self) -> bool:
        """Whether a call has failed yet."""
        return 0 < self._fail_at <= self.calls

    def run(self, work: Callable[[], T], error: Callable[[], Exception]) -> T:
        """Returns what `work` returns, or raises `error()`."""
        self.calls += 1
        if not self.failed:
            return work()
        if self.calls == self._fail_at:
            if self._took_effect:
                work()
            self.on_failure()
        raise error()


class FaultyEngine:
    """Passes everything on to `engine`; its `fail_at`th write, and every later one, raises `EngineError`.

    Writes are `lead`, `commit`, `upkeep`, `flush` and `defragment`.
    """

    def __init__(
        self, engine: Engine, fail_at: int, *, took_effect: bool = False, message: str = "disk failed"
    ) -> None:
        self._engine = engine
        self._countdown = Countdown(fail_at, took_effect=took_effect)
        self._message = message

    @property
    def answering(self) -> Answering | None:
        return self._engine.answering

    @property
    def failed(self) -> bool:
        """Whether a call has failed yet."""
        return self._countdown.failed

    def _write(self, work: Callable[[], T]) -> T:
        return self._countdown.run(work, lambda: EngineError(self._message))

    def open(self, new_identity: tuple[int, int]) -> Meta:
        return self._engine.open(new_identity)

    def load(self) -> Loaded:
        return self._engine.load()

    @property
    def leader(self) -> Leader | None:
        return self._engine.leader

    @property
    def end(self) -> LogEnd | None:
        return self._engine.end

    @property
    def released(self) -> LogEnd | None:
        return self._engine.released

    @property
    def look_again_s(self) -> float:
        return self._engine.look_again_s

    @property
    def hears_log(self) -> bool:
        return self._engine.hears_log

    @property
    def claim_s(self) -> float:
        return self._engine.claim_s

    def name_successor(self, member_id: int, *, goes_on: bool) -> None:
        self._engine.name_successor(member_id, goes_on=goes_on)

    def told(self, epoch: int, record: int, records: Sequence[bytes] = ()) -> None:
        self._engine.told(epoch, record, records)

    def landed(self, after: int) -> Sequence[bytes]:
        return self._engine.landed(after)

    def name_dead(self, dead: Sequence[tuple[int, int]]) -> None:
        self._engine.name_dead(dead)

    def try_to_lead(self, follow: Follow) -> Begun | None:
        return self._write(lambda: self._engine.try_to_lead(follow))

    def commit(self, batch: Batch) -> None:
        self._write(lambda: self._engine.commit(batch))

    def upkeep(self, now_s: float, idle: bool) -> float | None:
        return self._write(lambda: self._engine.upkeep(now_s, idle))

    def flush(self) -> None:
        self._write(self._engine.flush)

    def sizes(self) -> Sizes:
        return self._engine.sizes()

    def defragment(self) -> None:
        self._write(self._engine.defragment)

    def backup(self, path: Path, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._engine.backup(path, unwanted)

    def view(self, unwanted: Callable[[], bool] = lambda: False) -> AbstractContextManager[Loaded]:
        return self._engine.view(unwanted)

    def stop_backups(self) -> None:
        self._engine.stop_backups()

    def make_anew(self, error: DamagedError) -> Meta:
        return self._engine.make_anew(error)

    def stop_waiting(self) -> None:
        self._engine.stop_waiting()

    def close(self) -> None:
        self._engine.close()


class StatementFaults:
    """Makes connections whose `fail_at`th statement, and every later one, fails. Counts over all of its connections."""

    def __init__(self, fail_at: int, *, took_effect: bool = False, error: tuple[int, str, str] = WRITE_FAILED) -> None:
        self.countdown = Countdown(fail_at, took_effect=took_effect)
        self._error = error

    def connect(self, database: str, **options: Any) -> sqlite3.Connection:
        """Takes the place of `sqlite3.connect`."""
        connection = sqlite3.connect(database, factory=_FaultyConnection, **options)
        connection.faults = self
        return connection

    def error(self) -> sqlite3.Error:
        code, name, text = self._error
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code
        error.sqlite_errorname = name
        return error


class _FaultyConnection(sqlite3.Connection):
    faults: StatementFaults

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        run = super().execute
        return self.faults.countdown.run(lambda: run(sql, parameters), self.faults.error)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        run = super().executescript
        return self.faults.countdown.run(lambda: run(sql), self.faults.error)


class WriteFaults(Disk):
    """Makes the `fail_at`th write of the log, and every later one, fail with `error` (of errno).

    To make a file longer, and to sync it, is a write too, of which nothing gets through.

    Before it fails, `written_max` bytes of that write get through; None: all of them. Writes that do not fail take
    `step_bytes_max` bytes at a time, as a kernel may that was interrupted; every piece counts as a write.
    """

    def __init__(
        self,
        fail_at: int = 0,
        *,
        written_max: int | None = 0,
        step_bytes_max: int | None = None,
        error: int = errno.EIO,
    ) -> None:
        self.countdown = Countdown(fail_at, took_effect=True)
        self._written_max = written_max
        self._step_bytes_max = step_bytes_max
        self._error = error
        self.growing = False  # whether a write that failed was none of a record
        self.shortening = False  # or was one behind the record, of zeros

    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        def work() -> int:
            self.shortening = self.countdown.failed and position > 0 and bytes(data) == bytes(SECTOR_BYTES)
            size_max = self._written_max if self.countdown.failed else self._step_bytes_max
            return super(WriteFaults, self).write(descriptor, data[:size_max], position)

        return self.countdown.run(work, self._failure)

    def grow(self, descriptor: int, from_bytes: int, to_bytes: int) -> None:
        self._unless_failed(lambda: super(WriteFaults, self).grow(descriptor, from_bytes, to_bytes))

    def sync(self, descriptor: int) -> None:
        self._unless_failed(lambda: super(WriteFaults, self).sync(descriptor))

    def _unless_failed(self, work: Callable[[], None]) -> None:
        failed = self.countdown.failed
        try:
            self.countdown.run(lambda: None, self._failure)
        finally:
            self.growing = self.growing or (self.countdown.failed and not failed)
        work()

    def _failure(self) -> OSError:
        return OSError(self._error, os.strerror(self._error))


def run_at_once(work: Callable[[], None]) -> Callable[[], None]:
    """Takes the place of a thread: the caller does the work itself."""
    work()
    return lambda: None


class Later:
    """Takes the place of a thread: the work waits until `run` is called, or somebody waits for its end."""

    def __init__(self) -> None:
        self._work: list[Callable[[], None]] = []

    def start(self, work: Callable[[], None]) -> Callable[[], None]:
        self._work.append(work)
        return self.run

    def run(self) -> None:
        while self._work:
            self._work.pop()()


class PowerLoss(Disk):
    """Which bytes of the database, of SQLite's log and of our own are on disk for good, for an engine on `data_dir`.

    A COMMIT that wrote something syncs SQLite's log when the connection's level is FULL, and does not at NORMAL. A copy
    of the whole log into the file syncs both. What was written since may be there or not, sector by sector; but for the
    first one, which says which round of the log this is: SQLite syncs that before it writes the first page of a round.

    Our own log is written with O_DSYNC: each write stays, unless it lies where the file grew without a sync.
    """

    SECTOR_BYTES = 512

    def __init__(self, data_dir: Path, fail_at: int = 0, *, found_synced: bool = False) -> None:
        """The `fail_at`th statement, and every later one, fails; 0: none. `found_synced`: what is there is for good."""
        self.countdown = Countdown(fail_at)
        self._files = (data_dir / directory.DATABASE_NAME, data_dir / f"{directory.DATABASE_NAME}-wal")
        self.synced: list[bytes] = [b"", b""]
        if found_synced:
            self.sync_tables()
        self._lengths: dict[str, tuple[int, int]] = {}  # of our log's files that were made longer: for good, and now

    def connect(self, database: str, **options: Any) -> sqlite3.Connection:
        """Takes the place of `sqlite3.connect`."""
        connection = sqlite3.connect(database, factory=_WatchedConnection, **options)
        connection.power = self
        return connection

    def grow(self, descriptor: int, from_bytes: int, to_bytes: int) -> None:
        super().grow(descriptor, from_bytes, to_bytes)
        name = log_file(descriptor)
        self._lengths[name] = self._lengths.get(name, (from_bytes, 0))[0], to_bytes

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        name = log_file(descriptor)
        if name in self._lengths:
            self._lengths[name] = self._lengths[name][1], self._lengths[name][1]

    def now(self) -> list[bytes]:
        return [path.read_bytes() if path.exists() else b"" for path in self._files]

    def sync_tables(self) -> None:
        self.synced = self.now()

    def leave(self, copied_to: Path, chance: random.Random) -> None:
        """Makes of a copy of the directory, made at this instant, what may be left."""
        lost = chance.choice((0.0, 0.1, 0.5, 1.0))
        for path, old, new in zip(self._files, self.synced, self.now(), strict=True):
            left = bytearray(new)
            for start in range(self.SECTOR_BYTES, len(new), self.SECTOR_BYTES):
                if chance.random() < lost:
                    size = len(new[start : start + self.SECTOR_BYTES])
                    left[start : start + size] = old[start : start + size].ljust(size, b"\0")
            (copied_to / path.name).write_bytes(left)
        for name, (for_good, now) in self._lengths.items():
            if for_good < now and lost and (copied_to / name).stat().st_size > for_good:
                os.truncate(copied_to / name, for_good)


def log_file(descriptor: int) -> str:
    """The name of the log's file that a descriptor is open on."""
    return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))


class _WatchedConnection(sqlite3.Connection):
    power: PowerLoss
    level = "FULL"
    before: list[bytes]

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return self.power.countdown.run(lambda: self._execute(sql, parameters), StatementFaults(0).error)

    def _execute(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        if sql.startswith("BEGIN"):
            self.before = self.power.now()
        cursor = super().execute(sql, parameters)
        if sql.startswith("PRAGMA synchronous = "):
            self.level = sql.split()[-1]
        elif sql == "COMMIT" and self.level == "FULL" and self.power.now() != self.before:
            self.power.sync_tables()
        elif sql.startswith("PRAGMA wal_checkpoint"):
            row = busy, pages, copied = cursor.fetchone()
            if not busy and pages == copied:
                self.power.sync_tables()
            elif copied > 0:  # it syncs its log before it copies anything
                self.power.synced[1] = self.power.now()[1]
            return super().execute("SELECT ?, ?, ?", row)  # to be fetched again
        return cursor
