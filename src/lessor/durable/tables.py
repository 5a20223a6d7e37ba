# SPDX-License-Identifier: Apache-2.0
"""The tables: one SQLite file, `lessor.db`, which follows the log.

Laws
- Rows come out of the log's records and nowhere else, in the order of records. The tables always show the state after
  some record, whole, and every record up to it; `meta` says which one, and its chain value.
- A fold does not wait for the disk. Until the tables are *synced* a loss of power takes the newest folds out of them,
  the last one first, and the log still has those records.
- After the first error of a write every further write is refused (first_failure.py). Nothing is rolled back by hand:
  closing does that. That another program holds the write lock is no error of a write.

Theory of operation. WAL mode: a COMMIT with synchronous=NORMAL appends pages to SQLite's log, one with FULL syncs it
too, with all that older transactions left in it; checksums end the log where a loss of power has spoilt it. One
connection writes, in the caller's thread; syncs have another one and a thread of their own (table_sync.py). A write
that may be put off does not wait for the write lock.

    log      | 41 | 42 | 43 | 44 | 45 | 46 |     committed
    tables   | 41 | 42 | 43 | 44 |               folded: what people see, and what a killed server finds
    disk     | 41 | 42 |                         synced: what a loss of power leaves at least, beside the log

People may read the file with the `sqlite3` shell while the server runs (a reader that never ends its transaction keeps
SQLite's log from starting over: it grows until then).

Pages have no checksum in the file; those of page_sums.py are compared before it is opened.

It does not: decide when to fold, sync or sweep (upkeep.py), delete rows (sweep.py).

Why these settings, with figures: docs/decisions/0003-sqlite-engine.md; why folds do not sync:
0010-folds-without-a-sync.md.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from lessor.durable import auth_tables, directory, explain, meta_rows, opening, schema, view
from lessor.durable.engine import EngineError, Loaded, Meta, TablesLockedError
from lessor.durable.first_failure import FirstFailure
from lessor.durable.meta_rows import LogPosition
from lessor.durable.moved import Mark
from lessor.durable.opening import FULL, NORMAL, PAGE_BYTES, Connector, Seen, explained
from lessor.durable.page_sums import PageSums
from lessor.durable.record import Record
from lessor.durable.table_sync import Start, TableSync, is_locked, start_thread
from lessor.durable.unfolded import Fold
from lessor.durable.wal_copy import COUNT_SYNC, WalCopy
from lessor.state.journal import AlarmRow, EventRow, LeaseRow, Rows

LOAD_ROWS: Final = 1_000  # rows fetched at once
_NOT_OPEN: Final = "the tables are not open"


class Tables:
    """The file `path`. All calls come from one thread, but for `backup`, `view` and `stop_backups`."""

    def __init__(
        self,
        path: Path,
        connector: Connector | None = None,
        start: Start = start_thread,
        failure: FirstFailure | None = None,
    ) -> None:
        self._path = path
        self._connector = connector or Connector()
        self._start = start
        self.failure = failure or FirstFailure(path)
        self.failure.elsewhere = self._sync_error
        self.folded = 0  # number of the newest record in here, where a loss of power may undo it
        self.writes = 0  # how often anything in here was changed
        self._wal_pages_then = 0  # how long SQLite's log was when the last sync began
        self._manner = (FULL, True)  # of the connection: synchronous, and whether it waits for the write lock
        self._open: sqlite3.Connection | None = None
        self.sums = PageSums(path, sync=self._connector.sync)
        self._copy: WalCopy | None = None
        self._sync: TableSync | None = None
        self._no_backups = False

    @classmethod
    def reading(cls, path: Path) -> "Tables":
        """One file to `load` and `close`, a snapshot say: nothing is locked, and nothing written anywhere.

        A file of an older schema is copied to memory and brought up to date there. Raises `DataDirError` when it is
        damaged or of a newer schema.
        """
        tables = cls(path)
        with explained(path):
            tables._open = connection = tables._connector.open(path, "ro&immutable=1")
            try:
                if opening.check_schema(connection, path) < schema.SCHEMA_VERSION:
                    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                    connection.backup(copy)
                    connection.close()
                    tables._open = copy
                    opening.migrate(copy, path)
            except BaseException:
                tables.close()
                raise
        return tables

    # --- open -------------------------------------------------------------------------------------------------------

    def open(self, seen: Seen) -> tuple[Meta, LogPosition]:
        """Opens the tables that a look has shown, and brings them up to date. Raises `DataDirError`."""
        with explained(self._path):
            self._open = connection = self._connector.open(self._path, "rw")
            opening.use_wal(connection, self._path)
            self._copy = WalCopy(self._connector, self._path, self.sums)
            opening.migrate(connection, self._path, lambda within: _write_old(within, seen))
            meta = meta_rows.read(connection, self._path)
            meta_rows.check_newest_rows(connection, self._path, meta)
            position = meta_rows.read_log_position(connection, self._path)
        self.folded = position.record
        return meta, position

    def begin(self) -> Meta:
        """Syncs all that is there, and makes ready for syncs beside commits. Raises `DataDirError`, `EngineError`.

        SQLite's log is copied into the file: what a failed fsync left in the page cache alone is thereby written again
        before any client is answered. Somebody who reads on may keep it from that, so a COMMIT syncs too.
        """
        self._copy_wal(wait=True)
        with explained(self._path):
            meta = meta_rows.read(self._connection, self._path)
            connection = self._connector.open(self._path, "rw", waits=False)
            self._sync = TableSync(connection, self._copying, self.folded, self._start)
        return meta

    @property
    def _copying(self) -> WalCopy:
        assert self._copy is not None, _NOT_OPEN
        return self._copy

    def _copy_wal(self, *, wait: bool) -> bool:
        """Syncs all that is there; SQLite's log gives its space back. Returns whether all of it is in the file."""
        with self.at_hand(FULL, wait=wait) as connection:
            return self._copying.run(connection, wait=wait, shrink=True)

    @property
    def position(self) -> LogPosition:
        """Up to where the file follows a log. Raises `DataDirError`."""
        with explained(self._path):
            return meta_rows.read_log_position(self._connection, self._path)

    # --- read -------------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """All rows, streamed. Raises `DataDirError`."""
        with explained(self._path):
            meta = meta_rows.read(self._connection, self._path)
            auth = auth_tables.load(self._connection, self._path)
        return Loaded(
            meta=meta, events=self._load_events(), leases=self._load_leases(), alarms=self._load_alarms(), auth=auth
        )

    def _load_events(self) -> Iterator[EventRow]:
        return self._stream(
            "SELECT revision, sub, key, value, create_revision, version, lease FROM event ORDER BY revision, sub"
        )

    def _load_leases(self) -> Iterator[LeaseRow]:
        return self._stream("SELECT id, ttl_s, deadline_s, ended FROM lease WHERE NOT ended ORDER BY id")

    def _load_alarms(self) -> Iterator[AlarmRow]:
        for member_id, alarm in self._stream("SELECT member_id, type FROM alarm WHERE active ORDER BY member_id, type"):
            yield int(member_id, 16), alarm, True

    def _stream(self, query: str) -> Iterator[Any]:
        """The rows one by one, as SQLite's own tuples: no code of ours runs for each."""
        return chain.from_iterable(self._pieces(query))

    def _pieces(self, query: str) -> Iterator[list[Any]]:
        with explained(self._path):
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(LOAD_ROWS):
                yield rows

    # --- write ------------------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._open is not None, _NOT_OPEN
        return self._open

    @contextlib.contextmanager
    def at_hand(self, level: str = NORMAL, *, wait: bool) -> Iterator[sqlite3.Connection]:
        """The connection for a write. Without `wait`, TablesLockedError when a sync, or another program, is at it."""
        if self._sync is not None:
            if self._sync.running and not wait:
                raise TablesLockedError(f"{self._path}: being synced: try again")
            self._sync.wait()
        with self.failure.watch():
            self._behave(level, wait)
            yield self._connection
        self.writes += 1

    @contextlib.contextmanager
    def writing(self, level: str = NORMAL, *, wait: bool) -> Iterator[sqlite3.Connection]:
        """A transaction that ends in COMMIT. There is no ROLLBACK: closing does that."""
        with self.at_hand(level, wait=wait) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _behave(self, level: str, wait: bool) -> None:
        if self._manner != (level, wait):
            self._connection.execute(f"PRAGMA synchronous = {level if self._connector.sync else 'OFF'}").fetchall()
            self._connection.execute(f"PRAGMA busy_timeout = {int(opening.BUSY_S * 1e3) if wait else 0}").fetchall()
            self._manner = level, wait

    def fold(self, fold: Fold, *, level: str = NORMAL, wait: bool) -> None:
        """Writes the rows of some records, in one transaction. Raises `EngineError`."""
        record = fold.newest
        with self.writing(level, wait=wait) as connection:
            _write(connection, fold)
            meta = [("record", record.number), ("chain", record.chain.hex()), ("term", record.term)]
            schema.execute_rows(connection, schema.META, meta)
        self.folded = record.number
        if level == FULL and self._sync is not None:
            self._sync.synced = self.folded

    def keep_log_id(self, log_id: bytes) -> None:
        """From here on the files of that log count. Raises `EngineError`.

        The id goes into the file itself: when SQLite's log is damaged before its first copy, it may not be lost with
        all that only the log has.
        """
        with self.writing(FULL, wait=True) as connection:
            schema.execute_rows(connection, schema.META, [("log", log_id.hex())])
        if not self._copy_wal(wait=True):
            raise TablesLockedError(explain.locked(self._path))

    def keep_shared(self, member_id: int) -> None:
        """From here on the tables are those of this member, and follow a log that others write to as well."""
        with self.writing(FULL, wait=True) as connection:
            schema.execute_rows(connection, schema.META, opening.shared_by(member_id))

    def keep_mark(self, mark: Mark) -> None:
        """From here on nobody serves the tables, as the mark says; nor does a Lessor that knows no marks."""
        with self.writing(FULL, wait=True) as connection:
            schema.execute_rows(connection, schema.META, [("moved", str(mark)), ("shared", 1)])

    # --- sync -------------------------------------------------------------------------------------------------------

    @property
    def synced(self) -> int:
        """Up to this record the tables keep what they have."""
        assert self._sync is not None, _NOT_OPEN
        return self._sync.synced

    @property
    def changes(self) -> int:
        """Grows when the files may have another size: with each write, and with each sync that has ended."""
        assert self._sync is not None, _NOT_OPEN
        return self.writes + self._sync.runs

    @property
    def syncing(self) -> bool:
        assert self._sync is not None, _NOT_OPEN
        return self._sync.running

    @property
    def _syncing(self) -> TableSync:
        """For everything but the three above, which are asked around each commit: a property in a property costs."""
        assert self._sync is not None, _NOT_OPEN
        return self._sync

    def _sync_error(self) -> BaseException | None:
        return self._sync.error if self._sync is not None else None

    def begin_sync(self, *, shrink: bool = False) -> None:
        """Starts a sync beside what comes next. `shrink` gives back the space of SQLite's log."""
        self.failure.refuse_after()
        self._wal_pages_then = self._wal_pages()
        self._syncing.begin(self.folded, shrink=shrink)

    def wait_for_sync(self) -> None:
        self._syncing.wait()

    def sync(self) -> None:
        """Syncs all that is folded, and returns when it is. Raises `EngineError`."""
        with self.writing(FULL, wait=True) as connection:
            connection.execute(COUNT_SYNC)
        self._syncing.synced = self.folded

    def new_wal_pages(self) -> int:
        """By how many pages SQLite's log has grown since it was copied, or tried to be, or since it started over."""
        pages = self._wal_pages()
        if pages < self._wal_pages_then:
            self._wal_pages_then = 0
        return pages - self._wal_pages_then

    def _wal_pages(self) -> int:
        """Pages in the log now; the log's size says how many there ever were."""
        try:
            return self.sums.files.frames_in_log()
        except OSError as error:
            self.failure.raise_for(error)

    # --- space ------------------------------------------------------------------------------------------------------

    def _pages(self, pragma: str) -> int:
        try:
            return int(self._connection.execute(f"PRAGMA {pragma}").fetchone()[0])
        except sqlite3.Error as error:
            raise EngineError(explain.sqlite_error(error, self._path)) from error

    def free_pages(self) -> int:
        return self._pages("freelist_count")

    def size_bytes(self) -> int:
        try:
            size = self._path.stat().st_size
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(f"{self._path}-wal").st_size
        except OSError as error:
            raise EngineError(explain.system_error(error, self._path)) from error
        return size

    def in_use_bytes(self) -> int:
        return (self._pages("page_count") - self.free_pages()) * PAGE_BYTES

    def defragment(self) -> None:
        """Rewrites the file without free space. Raises EngineError; the data is as it was then."""
        self._syncing.wait()
        self.failure.refuse_after()
        try:
            self._behave(FULL, True)
            self._connection.execute("VACUUM")
        except sqlite3.Error as error:
            # VACUUM builds the new file aside and switches in one transaction: the data is as it was. But a disk that
            # failed may have lost what was written to it before, too.
            problem = EngineError(explain.sqlite_error(error, self._path))
            harmless = is_locked(error) or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
            raise (problem if harmless else self.failure.final(problem)) from error
        self._copy_wal(wait=True)

    def backup(self, path: Path, unwanted: Callable[[], bool]) -> None:
        """Writes a copy to `path`, which must not exist. From any thread. Raises `EngineError`; see Engine.backup."""
        part = path.with_name(path.name + ".part")
        try:
            if path.exists():
                raise EngineError(f"{path}: exists already: name another file, or move it away")
            part.unlink(missing_ok=True)
            with contextlib.closing(self._connector.open(self._path, "ro")) as source:
                source.set_progress_handler(lambda: int(self._no_backups or unwanted()), view.STOP_LOOK_STEPS)
                source.execute("VACUUM INTO ?", (str(part),))
            # The copy has no log: whatever files lie where it is put, they are not its own.
            with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
                schema.execute_rows(copy, schema.META, [("log", "")])
                copy.execute("DELETE FROM meta WHERE name = 'shared'")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            directory.sync_directory(path.parent)
        except sqlite3.Error as error:
            raise EngineError(explain.sqlite_error(error, part)) from error
        except OSError as error:
            raise EngineError(f"{path}: {error.strerror}: name a file where this user may write") from error
        finally:
            part.unlink(missing_ok=True)

    def view(self, unwanted: Callable[[], bool]) -> contextlib.AbstractContextManager[Loaded]:
        """What is folded, as of one instant. From any thread; see Engine.view."""
        return view.opened(self._connector, self._path, lambda: self._no_backups or unwanted())

    def stop_backups(self) -> None:
        self._no_backups = True

    def finish(self) -> None:
        """Copies SQLite's log into the file for good, unless others keep it from that. Raises `EngineError`."""
        self._syncing.wait()
        with self.at_hand(FULL, wait=False) as connection:
            self._copying.finish(connection)

    def close(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None and copy.empty:
            copy.close()
        table_sync, self._sync = self._sync, None
        if table_sync is not None:
            table_sync.close()
        connection, self._open = self._open, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # closing cannot lose what was committed
                connection.close()
        if copy is not None and not copy.empty:
            copy.close()
        self.sums.close()


def _write(connection: sqlite3.Connection, fold: Fold) -> None:
    """The rows of a fold, within a transaction, and what `meta` says of its newest batch."""
    schema.execute_rows(connection, schema.EVENTS, fold.events)
    leases = [fold.leases[lease_id] for lease_id in sorted(fold.leases)]  # neighbours share a page
    schema.execute_rows(connection, schema.LEASES, leases)
    if fold.alarms:
        rows = [(f"{member_id:016x}", kind, active, batch) for (member_id, kind, active), batch in fold.alarms]
        schema.execute_rows(connection, schema.ALARMS, rows)
    meta = fold.meta
    for auth, batch in fold.auth:
        meta += auth_tables.write(connection, auth, batch)
    newest = fold.newest.rows
    meta += [("batch", newest.number), ("clock_s", newest.clock_s), ("clean", int(newest.clean))]
    schema.execute_rows(connection, schema.META, list(dict(meta).items()))


def _write_old(connection: sqlite3.Connection, seen: Seen) -> None:
    """What the batch log of an older version has above the tables. It has no number in the one log."""
    if seen.old:
        _write(connection, fold_of(seen.old))


def fold_of(batches: Iterable[Rows]) -> Fold:
    fold = Fold()
    for batch in batches:
        fold.add(Record(0, 0, b"", b"", batch, 0))
    return fold
