# SPDX-License-Identifier: Apache-2.0
"""The SQLite engine: one file, `lessor.db`, in the data directory, and the batch log before it.

Laws
- A batch is one write: of keys and leases, into the batch log (batch_log.py); of anything else, and large ones, into
  the tables, as one transaction. The tables always show the state after some batch, whole, and every batch up to it.
- What is logged is *folded* into the tables later, many batches in one transaction, by `settle`, `fold_step` and
  `fold`, which the caller runs after the replies have left. Before anything else is written to the tables all of it is
  folded, so they change in the order of batches.
- A fold does not wait for the disk: until the tables are *synced* a loss of power takes the newest folds out of them,
  the last one first, and the log still has those batches. What is in the tables alone syncs at its COMMIT.
- A file of the log starts over when all its batches are synced. Syncs run beside the commits (table_sync.py); a
  commit waits for one only when both files of the log are full.
- After the first error of a write every further write is refused. Nothing is rolled back by hand: closing does that.
  That another program holds the write lock is no error of a write; but a commit that cannot do without it fails.

Theory of operation. WAL mode: a COMMIT with synchronous=NORMAL appends pages to SQLite's log, one with FULL syncs it
too, with all that older transactions left in it; checksums end the log where a loss of power has spoilt it. One
connection writes, in the caller's thread. It folds without waiting for the write lock: what does not get it tries
later.

    batch log    | 41 | 42 | 43 | 44 | 45 | 46 |     committed
    tables       | 41 | 42 | 43 | 44 |               folded: what people see, and what a killed server finds
    disk         | 41 | 42 |                         synced: what a loss of power leaves at least, beside the log

A new file is built whole under another name and renamed, so a `lessor.db` that exists was complete once. Opening looks
whether all is there before it writes anything; then it folds what a crash left in the batch log, copies SQLite's log
into the file and syncs that: what a failed fsync left in the page cache alone is written again before anybody is told
about it. People may read the file with the `sqlite3` shell while the server runs (a reader that never ends its
transaction keeps SQLite's log from starting over: it grows until then).

Superfluous rows are deleted oldest first. The order matters: a tombstone that went before the values that it covers
would, after a crash between the two, bring the key back.

It does not: check every page at boot (a damaged one is met by `load`), or share the directory with a second server.

Why these settings, with figures: docs/decisions/0003-sqlite-engine.md; why the batch log: 0007-batch-log.md; why folds
do not sync: 0010-folds-without-a-sync.md.
"""

import contextlib
import os
import secrets
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lessor.durable import auth_tables, batch_log, directory, explain, meta_rows, schema
from lessor.durable.batch_log import BatchLog, Record, Write
from lessor.durable.engine import COLLECT_ROWS_MAX, DataDirError, EngineError, Loaded, Meta, TablesLockedError
from lessor.durable.table_sync import COUNT_SYNC, Start, TableSync, is_locked, start_thread
from lessor.durable.unfolded import Unfolded
from lessor.state.journal import AlarmRow, Batch, EventRow, LeaseRow

PAGE_BYTES = 4_096
WAL_PAGES_SETTLE = 2_000  # new log pages from which `settle` has the log copied into the file
WAL_PAGES_MAX = 8_000  # log pages from which `commit` waits for that
CACHE_BYTES = 16 * 1024 * 1024  # pages that SQLite keeps in memory
BUSY_S = 5.0  # how long a commit waits for a person who writes with the sqlite3 shell
VACUUM_PAGES_MAX = 256  # pages given back to the file system in one `collect` step
LOAD_ROWS = 1_000  # rows fetched at once
# From so much in the batch log on `settle` folds: a burst of 20,000 puts. To fold all of it takes 40 to 100 ms.
FOLD_BYTES = 2 * 1024 * 1024
FOLD_FROM_ROWS = 40_000
FOLD_ROWS = 500  # rows that one step folds: one to four milliseconds, for a commit that comes in just then
FOLD_ROWS_AT_ONCE = 5_000  # the same where nothing gets in between: larger steps take less time in all
LOGGED_BYTES_MAX = 128 * 1024  # larger batches go to the tables at once: writing them twice would cost more
FULL, NORMAL = "FULL", "NORMAL"  # levels of synchronous: a COMMIT syncs, or leaves that to the next one that does
STOP_LOOK_STEPS = 20_000  # steps of SQLite's machine, about a millisecond, after which a backup looks whether to stop

_WAL_INDEX_PAGES_AT = 16  # where the wal-index header says, in the machine's byte order, how many pages the log has
_UINT64_MAX = 2**64 - 1

Connect = Callable[..., sqlite3.Connection]


@dataclass(slots=True)
class Sweep:
    """A walk over the lease table, by id, that deletes the ended ones of batches before `before_batch`."""

    before_batch: int
    swept_id: int = -(2**63)
    last_id: int | None = None  # known from the first step on; leases granted later cannot have ended before


class SqliteEngine:
    """Implements `Engine` on the directory `data_dir`.

    `sync` False breaks the law of this file on purpose, for tests: the disk is never waited for, so a loss of power
    may lose everything. A crash of the process loses nothing.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        connect: Connect = sqlite3.connect,
        write: Write = os.pwrite,
        start: Start = start_thread,
        sync: bool = True,
    ) -> None:
        """`connect`, `write` and `start` stand in for sqlite3.connect, os.pwrite and a new thread in tests."""
        self._sync = sync
        self._dir = data_dir
        self._path = data_dir / directory.DATABASE_NAME
        self._connect_with = connect
        self._write_with = write
        self._start_with = start
        self._log: BatchLog | None = None
        self._salt = b""
        self._unfolded = Unfolded()
        self._folded = 0  # up to this batch, all that was logged is in the tables, where a loss of power may undo it
        self._table_sync: TableSync | None = None  # knows up to where it cannot any more
        self._wal_pages_then = 0  # how long SQLite's log was when the last sync began
        self._manner = (FULL, True)  # of the connection: synchronous, and whether it waits for the write lock
        self._shrink_wal = False  # whether the next one gives back the space of SQLite's log
        self._lock: int | None = None
        self._open: sqlite3.Connection | None = None
        # Held open as long as the connection: closing any descriptor of a file drops all POSIX locks that this process
        # holds on it, SQLite's included.
        self._wal_index: int | None = None
        self._unsettled = False  # whether the tables were written since the last `settle`
        self._refusal: str | None = None  # why writes are refused: the first one that failed
        self._batch = 0
        self._term = 0
        self._dead: deque[tuple[int, int]] = deque()
        self._no_backups = False
        self._sweep: Sweep | None = None

    @classmethod
    def reading(cls, path: Path) -> "SqliteEngine":
        """One database file to `load` and `close`, a snapshot say: nothing is locked, and nothing written anywhere.

        A file of an older schema is copied to memory and brought up to date there. Raises `DataDirError` when it is
        damaged or of a newer schema.
        """
        engine = cls(path.parent)
        engine._path = path
        with engine._explained():
            engine._open = engine._connect(path, "ro&immutable=1")
            try:
                if engine._check_schema(engine._open) < schema.SCHEMA_VERSION:
                    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
                    engine._open.backup(copy)
                    engine._open.close()
                    engine._open = copy
                    engine._migrate(copy)
            except BaseException:
                engine.close()
                raise
        return engine

    # --- open ------------------------------------------------------------------------------------------------------

    def open(self, new_identity: tuple[int, int]) -> Meta:
        assert self._open is None, "open once"
        directory.refuse_etcd(self._dir, self._path)
        directory.prepare(self._dir)
        self._lock = directory.lock(self._dir)
        try:
            if not directory.exists(self._path):
                self._create(new_identity)
            with self._explained():
                left = self._read_batch_log()
                self._open = self._connect(self._path, "rw")
                self._use_log(self._open)
                self._migrate(self._open)
                meta = meta_rows.read(self._open, self._path)
                meta_rows.check_newest_rows(self._open, self._path, meta)
            self._batch = self._folded = meta.batch
            self._term = meta.term
            self._begin_batch_log(left)
            with self._explained():
                self._open.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                meta = meta_rows.read(self._open, self._path)
                self._table_sync = TableSync(self._connect(self._path, "rw", waits=False), meta.batch, self._start_with)
            self._wal_index = os.open(f"{self._path}-shm", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise
        return meta

    def _read_batch_log(self) -> list[Record]:
        """What a crash left in the batch log alone. Refuses a newer schema.

        Reads the tables through a connection that cannot write, not even by closing.
        """
        with contextlib.closing(self._connect(self._path, "ro")) as connection:
            if self._check_schema(connection) < schema.BATCH_LOG_VERSION:
                return []
            meta = meta_rows.read(connection, self._path)
            row = connection.execute("SELECT value FROM meta WHERE name = 'batch_log'").fetchone()
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        try:
            salt = bytes.fromhex(row[0])
            if len(salt) not in (0, batch_log.SALT_BYTES):
                raise ValueError("not a salt")
        except (TypeError, ValueError):
            raise directory.damaged(self._path, f"meta.batch_log is {row!r}") from None
        if not salt or mode != "wal":  # nothing was ever logged; or a backup, and the log of what it was made from
            return []
        for name in directory.LOG_NAMES:
            if not (self._dir / name).exists():
                if meta.clean:  # the last batch of an orderly stop is in the tables
                    return []
                raise DataDirError(
                    f"{self._dir / name}: missing, and the newest writes may be in it alone: put the file back, "
                    "or make an empty one to go without them"
                )
        try:
            return batch_log.read(self._dir, salt, meta.batch)
        except OSError as error:
            raise DataDirError(explain.system_error(error, self._dir)) from None

    def _begin_batch_log(self, left: list[Record]) -> None:
        """Brings what a crash has left in the batch log into the tables and begins it anew."""
        try:
            for record in left:
                self._unfolded.add(record, 0)
            self.fold()
            self._log = BatchLog(self._dir, self._write_with, sync=self._sync)
            # Only now that the files are there: from here on one that is missing is a loss.
            self._salt = secrets.token_bytes(batch_log.SALT_BYTES)
            with self._writing() as connection:
                schema.execute_rows(connection, schema.META, [("batch_log", self._salt.hex())])
        except OSError as error:
            raise DataDirError(explain.system_error(error, self._dir)) from None
        except EngineError as error:
            raise DataDirError(str(error)) from None
        self._batch = self._folded

    def _connect(self, path: Path, mode: str, *, waits: bool = True) -> sqlite3.Connection:
        connection = self._connect_with(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S if waits else 0.0,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in (
            f"synchronous = {FULL if self._sync else 'OFF'}",
            f"cache_size = {-CACHE_BYTES // 1024}",
            "wal_autocheckpoint = 0",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    def _create(self, identity: tuple[int, int]) -> None:
        """Builds the file under another name, whole and synced, then gives it its own."""
        cluster_id, member_id = identity
        assert 0 < cluster_id <= _UINT64_MAX
        assert 0 < member_id <= _UINT64_MAX
        part = self._path.with_name(self._path.name + ".new")
        try:
            for suffix in ("", "-journal", "-wal", "-shm"):  # what a crash in here left behind
                part.with_name(part.name + suffix).unlink(missing_ok=True)
            connection = self._connect(part, "rwc")
            with contextlib.closing(connection):
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                connection.execute("BEGIN IMMEDIATE")
                self._run_migration(connection, 0)
                rows = {
                    "cluster_id": f"{cluster_id:016x}",
                    "member_id": f"{member_id:016x}",
                    "term": 0,
                    "compact_revision": -1,
                    "batch": 0,
                    "uptime_s": 0.0,
                    "clean": 1,  # nothing was lost
                    "schema_version": 1,
                }
                schema.execute_rows(connection, schema.META, list(rows.items()))
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
            part.chmod(0o600)  # values may be secrets; the log takes over the mode
            os.replace(part, self._path)
            if self._sync:
                directory.sync_directory(self._dir)
        except sqlite3.Error as error:
            raise DataDirError(explain.sqlite_error(error, part)) from error
        except OSError as error:
            raise directory.cannot_use(self._path, error) from error

    def _check_schema(self, connection: sqlite3.Connection) -> int:
        version = meta_rows.read_schema_version(connection, self._path)
        if version > schema.SCHEMA_VERSION:
            raise DataDirError(
                f"{self._path}: written by a newer Lessor (schema {version}, this one knows {schema.SCHEMA_VERSION}): "
                "run the newer one, or restore a backup of before the upgrade"
            )
        return version

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """A backup comes without the mark that says so. The mode needs shared memory, which some file systems lack."""
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise DataDirError(f"{self._path}: its file system cannot share memory: give --data-dir a local disk")

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Runs what is missing in one transaction: the file is at its old version or at ours."""
        version = meta_rows.read_schema_version(connection, self._path)
        if version == schema.SCHEMA_VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        for index in range(version, schema.SCHEMA_VERSION):
            self._run_migration(connection, index)
        schema.execute_rows(connection, schema.META, [("schema_version", schema.SCHEMA_VERSION)])
        connection.execute("COMMIT")

    @staticmethod
    def _run_migration(connection: sqlite3.Connection, index: int) -> None:
        # Not executescript: that would end the transaction first.
        for statement in schema.split_statements(schema.MIGRATIONS[index]):
            connection.execute(statement)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns SQLite's errors into `DataDirError`. For what happens before serving."""
        try:
            yield
        except sqlite3.Error as error:
            raise DataDirError(explain.sqlite_error(error, self._path)) from error

    # --- read ------------------------------------------------------------------------------------------------------

    def load(self) -> Loaded:
        self.fold()
        with self._explained():
            meta = meta_rows.read(self._connection, self._path)
            auth = auth_tables.load(self._connection, self._path)
        return Loaded(
            meta=meta,
            events=self._load_events(),
            leases=self._load_leases(),
            alarms=self._load_alarms(),
            auth=auth,
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
        with self._explained():
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(LOAD_ROWS):
                yield rows

    # --- write -----------------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._open is not None, "the engine is not open"
        return self._open

    @contextlib.contextmanager
    def _failing_once(self) -> Iterator[sqlite3.Connection]:
        """For what must not go wrong: the first error ends the engine's writing for good."""
        self._refuse_after_failure()
        try:
            yield self._connection
        except BaseException as error:
            if is_locked(error):  # only a BEGIN meets that: nothing was done
                raise TablesLockedError(self._explain(error)) from error
            self._refusal = self._explain(error)
            if isinstance(error, (sqlite3.Error, OSError)):
                raise EngineError(self._refusal) from error
            raise

    def _refuse_after_failure(self) -> None:
        if self._refusal is None and self._table_sync is not None and self._table_sync.error is not None:
            self._refusal = self._explain(self._table_sync.error)
            raise EngineError(self._refusal) from self._table_sync.error
        if self._refusal is not None:
            raise EngineError(f"no write after a failed one: {self._refusal}")

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, sqlite3.Error):
            return explain.sqlite_error(error, self._path)
        if isinstance(error, OSError):
            return explain.system_error(error, self._dir)
        return f"{self._path}: {error!r}"

    @contextlib.contextmanager
    def _at_tables(self, level: str, *, wait: bool) -> Iterator[sqlite3.Connection]:
        """The connection for a write. Without `wait`, TablesLockedError when a sync, or another program, is at it."""
        if self._table_sync is not None:
            if self._table_sync.running and not wait:
                raise TablesLockedError(f"{self._path}: being synced: try again")
            self._table_sync.wait()
        with self._failing_once() as connection:
            self._behave(level, wait)
            yield connection
        self._unsettled = True

    def _behave(self, level: str, wait: bool) -> None:
        if self._manner != (level, wait):
            self._connection.execute(f"PRAGMA synchronous = {level if self._sync else 'OFF'}").fetchall()
            self._connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1e3) if wait else 0}").fetchall()
            self._manner = level, wait

    @contextlib.contextmanager
    def _writing(self, level: str = FULL, *, wait: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction that ends in COMMIT. There is no ROLLBACK: closing does that."""
        with self._at_tables(level, wait=wait) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        if level == FULL and self._table_sync is not None:
            self._table_sync.synced = self._folded

    def begin_term(self, term: int) -> None:
        assert term > self._term, f"term {term} after {self._term}"
        with self._writing() as connection:
            schema.execute_rows(connection, schema.META, [("term", term), ("clean", 0)])
        self._term = term

    def commit(self, batch: Batch) -> None:
        assert batch.number > self._batch, f"batch {batch.number} after {self._batch}"
        try:
            self._commit(batch)
        except TablesLockedError as error:
            self._refusal = str(error)
            raise EngineError(self._refusal) from error
        self._batch = batch.number
        if batch.compact_revision is not None:
            self._sweep = Sweep(batch.number)
        if self._unsettled and self._new_wal_pages() >= WAL_PAGES_MAX:  # nobody calls `settle`
            self._syncing.wait()
            self._begin_sync()
            self._syncing.wait()

    def _commit(self, batch: Batch) -> None:
        record = self._record_of(batch)
        if record is None:
            self.fold()
            self._commit_to_tables(batch)
            return
        assert self._log is not None, "the engine is not open"
        if not self._log.has_room(len(record), self._syncing.synced):
            self._syncing.wait()
            if not self._log.has_room(len(record), self._syncing.synced):  # nobody calls `settle`, or it cannot fold
                self._make_room()
        with self._failing_once():
            self._log.append(record, batch.number, self._syncing.synced)
        self._unfolded.add(batch, len(record))

    def _make_room(self) -> None:
        """Folds and syncs all, so that the log may start over."""
        self.fold()
        with self._writing() as connection:
            connection.execute(COUNT_SYNC)

    def _record_of(self, batch: Batch) -> bytes | None:
        """The batch as a record of the batch log, or None when it goes to the tables at once."""
        if batch.row_count > len(batch.events) + len(batch.leases):
            return None  # the log knows no other rows
        if batch.row_count * batch_log.ROW_BYTES_MIN > LOGGED_BYTES_MAX:
            return None
        record = batch_log.encode(batch, self._batch, self._salt)
        return record if len(record) <= LOGGED_BYTES_MAX else None

    def _commit_to_tables(self, batch: Batch) -> None:
        number = batch.number
        with self._writing() as connection:
            schema.execute_rows(connection, schema.EVENTS, [(*row, number) for row in batch.events])
            schema.execute_rows(connection, schema.LEASES, [(*row, number) for row in batch.leases])
            if batch.alarms:
                rows = [(f"{member_id:016x}", alarm, active, number) for member_id, alarm, active in batch.alarms]
                schema.execute_rows(connection, schema.ALARMS, rows)
            meta: list[tuple[str, object]] = [
                ("batch", number),
                ("uptime_s", batch.clock_s),
                ("clean", int(batch.clean)),
            ]
            if batch.compact_revision is not None:
                meta.append(("compact_revision", batch.compact_revision))
            if batch.peer_urls is not None:
                meta.append(("peer_urls", " ".join(batch.peer_urls)))
            if batch.auth is not None:
                meta += auth_tables.write(connection, batch.auth, number)
            schema.execute_rows(connection, schema.META, meta)

    def fold(self) -> None:
        while self._unfolded:
            self._fold_some(FOLD_ROWS_AT_ONCE, wait=True)

    def fold_step(self) -> bool:
        if self._unfolded:
            self._fold_some(FOLD_ROWS, wait=False)
        return bool(self._unfolded)

    def _fold_some(self, rows_min: int, *, wait: bool) -> None:
        """Brings the oldest batches into the tables, `rows_min` rows or a little more, in one transaction."""
        fold = self._unfolded.oldest(rows_min)
        with self._writing(NORMAL, wait=wait) as connection:
            schema.execute_rows(connection, schema.EVENTS, fold.events)
            leases = [fold.leases[lease_id] for lease_id in sorted(fold.leases)]  # neighbours share a page
            schema.execute_rows(connection, schema.LEASES, leases)
            meta = [("batch", fold.number), ("uptime_s", fold.clock_s), ("clean", 0)]
            schema.execute_rows(connection, schema.META, meta)
        self._folded = fold.number
        self._unfolded.remove(fold)

    def settle(self) -> bool:
        self._refuse_after_failure()
        if self._syncing.running:
            return False
        backlog = max(self._unfolded.size_bytes / FOLD_BYTES, self._unfolded.rows / FOLD_FROM_ROWS)
        if backlog >= 1:
            with contextlib.suppress(TablesLockedError):
                # Twice as much when a sync, or another program, has kept it waiting.
                self._fold_some(FOLD_ROWS * (2 if backlog >= 2 else 1), wait=False)
        if not self._unsettled:
            return False
        self._unsettled = False
        if self._shrink_wal or self._log_wants_sync() or self._new_wal_pages() >= WAL_PAGES_SETTLE:
            self._begin_sync()
        return True

    # --- sync ------------------------------------------------------------------------------------------------------

    @property
    def _syncing(self) -> TableSync:
        assert self._table_sync is not None, "the engine is not open"
        return self._table_sync

    def _begin_sync(self) -> None:
        self._refuse_after_failure()
        self._wal_pages_then = self._wal_pages()
        mode, self._shrink_wal = "TRUNCATE" if self._shrink_wal else "PASSIVE", False
        self._syncing.begin(self._folded, mode)

    def _log_wants_sync(self) -> bool:
        """Whether one file of the log is full, and all of it folded, so that a sync would free it."""
        assert self._log is not None
        return self._syncing.synced < self._log.resting <= self._folded

    def _new_wal_pages(self) -> int:
        """By how many pages SQLite's log has grown since it was copied, or tried to be, or since it started over."""
        pages = self._wal_pages()
        if pages < self._wal_pages_then:
            self._wal_pages_then = 0
        return pages - self._wal_pages_then

    def _wal_pages(self) -> int:
        """Pages in the log now; the log's size says how many there ever were. From the header of the wal-index."""
        assert self._wal_index is not None
        return int.from_bytes(os.pread(self._wal_index, 4, _WAL_INDEX_PAGES_AT), sys.byteorder)

    # --- space -----------------------------------------------------------------------------------------------------

    def collect(self, dead: Sequence[tuple[int, int]] = (), rows_max: int = COLLECT_ROWS_MAX) -> bool:
        self._dead.extend(sorted(dead))
        if self._dead:
            step = list(islice(self._dead, rows_max))
            with self._writing(NORMAL, wait=False) as connection:
                schema.execute_rows(connection, schema.DEAD_EVENTS, step)
            for _ in step:
                self._dead.popleft()
        elif self._sweep is not None:
            self._sweep_leases(self._sweep, rows_max)
        elif self._free_pages() > 0:
            with self._at_tables(NORMAL, wait=False) as connection:
                # A script, because this pragma yields a row without columns for each page, and `execute` stops at the
                # first of those.
                connection.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({VACUUM_PAGES_MAX}); COMMIT")
            self._shrink_wal = self._free_pages() == 0
        return bool(self._dead) or self._sweep is not None or self._free_pages() > 0

    def _sweep_leases(self, sweep: Sweep, rows_max: int) -> None:
        with self._writing(NORMAL, wait=False) as connection:
            if sweep.last_id is None:
                (sweep.last_id,) = connection.execute("SELECT max(id) FROM lease").fetchone()
            looked_at = "SELECT id FROM lease WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
            (upto_id,) = connection.execute(
                f"SELECT max(id) FROM ({looked_at})", (sweep.swept_id, sweep.last_id, rows_max)
            ).fetchone()
            if upto_id is not None:
                connection.execute(
                    "DELETE FROM lease WHERE id > ? AND id <= ? AND ended AND batch < ?",
                    (sweep.swept_id, upto_id, sweep.before_batch),
                )
                sweep.swept_id = upto_id
            if upto_id is None or upto_id == sweep.last_id:
                auth_tables.sweep(connection, sweep.before_batch)
        if upto_id is None or upto_id == sweep.last_id:
            self._sweep = None

    def _pages(self, pragma: str) -> int:
        try:
            return int(self._connection.execute(f"PRAGMA {pragma}").fetchone()[0])
        except sqlite3.Error as error:
            raise EngineError(explain.sqlite_error(error, self._path)) from error

    def _free_pages(self) -> int:
        return self._pages("freelist_count")

    def size_bytes(self) -> int:
        size = self._path.stat().st_size
        with contextlib.suppress(FileNotFoundError):
            size += os.stat(f"{self._path}-wal").st_size
        return size

    def in_use_bytes(self) -> int:
        return (self._pages("page_count") - self._free_pages()) * PAGE_BYTES

    def defragment(self) -> None:
        self._syncing.wait()
        self._refuse_after_failure()
        try:
            self._behave(FULL, wait=True)
            self._connection.execute("VACUUM")
        except sqlite3.Error as error:
            # VACUUM builds the new file aside and switches in one transaction: the data is as it was.
            raise EngineError(explain.sqlite_error(error, self._path)) from error
        with self._failing_once() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def backup(self, path: Path) -> None:
        part = path.with_name(path.name + ".part")
        try:
            if path.exists():
                raise EngineError(f"{path}: exists already: name another file, or move it away")
            part.unlink(missing_ok=True)
            with contextlib.closing(self._connect(self._path, "ro")) as source:
                source.set_progress_handler(lambda: int(self._no_backups), STOP_LOOK_STEPS)
                source.execute("VACUUM INTO ?", (str(part),))
            # The copy has no batch log, and whoever holds it is not to know how our records are marked.
            with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
                schema.execute_rows(copy, schema.META, [("batch_log", "")])
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

    def stop_backups(self) -> None:
        self._no_backups = True

    def close(self) -> None:
        table_sync, self._table_sync = self._table_sync, None
        if table_sync is not None:
            table_sync.close()
        connection, self._open = self._open, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # closing cannot lose what was committed
                connection.close()
        log, self._log = self._log, None
        if log is not None:
            log.close()
        descriptor, self._wal_index = self._wal_index, None
        if descriptor is not None:
            os.close(descriptor)
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            directory.unlock(descriptor)
