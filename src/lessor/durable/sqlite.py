# SPDX-License-Identifier: Apache-2.0
"""The SQLite engine: one file, `lessor.db`, in the data directory, and the batch log before it.

Laws
- A batch is one write: of keys and leases, into the batch log (batch_log.py); of anything else, and large ones, into
  the tables, as one transaction. The tables always show the state after some batch, whole, and every batch up to it.
- What is logged is *folded* into the tables later, many batches in one transaction, by `settle` and `fold`, which the
  caller runs after the replies have left. Before anything else is written to the tables all of it is folded, so they
  change in the order of batches. No more than UNFOLDED_BYTES_MAX and a record wait for it.
- WAL mode with synchronous=FULL syncs once at each COMMIT, so what is folded is durable in the tables, and the batch
  log may start over.
- After the first error of a write every further write is refused. Nothing is rolled back by hand: closing does that.

Theory of operation. A new file is built whole under another name and renamed, so a `lessor.db` that exists was complete
once. Opening looks whether all is there before it writes anything; then it folds what a crash left in the batch log,
copies SQLite's log into the file and syncs that: what a failed fsync left in the page cache alone is written again
before anybody is told about it. People may read the file with the `sqlite3` shell while the server runs (a reader that
never ends its transaction keeps SQLite's log from starting over: it grows until then).

Superfluous rows are deleted oldest first. The order matters: a tombstone that went before the values that it covers
would, after a crash between the two, bring the key back.

It does not: check every page at boot (a damaged one is met by `load`), or share the directory with a second server.

Why these settings, with figures: docs/decisions/0003-sqlite-engine.md; why the batch log: 0007-batch-log.md.
"""

import contextlib
import math
import os
import secrets
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lessor.durable import auth_tables, batch_log, directory, explain, schema
from lessor.durable.batch_log import BatchLog, Record, Write
from lessor.durable.engine import COLLECT_ROWS_MAX, DataDirError, EngineError, Loaded, Meta
from lessor.durable.unfolded import Unfolded
from lessor.state.journal import AlarmRow, Batch, EventRow, LeaseRow

PAGE_BYTES = 4_096
WAL_PAGES_SETTLE = 1_000  # log pages from which `settle` copies the log into the file
WAL_PAGES_MAX = 8_000  # log pages from which `commit` itself does
CACHE_BYTES = 16 * 1024 * 1024  # pages that SQLite keeps in memory
BUSY_S = 5.0  # how long a commit waits for a person who writes with the sqlite3 shell
VACUUM_PAGES_MAX = 256  # pages given back to the file system in one `collect` step
LOAD_ROWS = 1_000  # rows fetched at once
FOLD_BYTES = 64 * 1024  # bytes in the batch log from which `settle` folds a step
FOLD_ROWS = 1_000  # rows that one step folds: two milliseconds
LOGGED_BYTES_MAX = 128 * 1024  # larger batches go to the tables at once: writing them twice would cost more
# Bytes in the batch log from which `commit` itself folds. A file that cannot take another record holds more than this,
# so the other one holds nothing that is needed then, and neither ever grows.
UNFOLDED_BYTES_MAX = batch_log.FILE_BYTES - LOGGED_BYTES_MAX
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
        self, data_dir: Path, *, connect: Connect = sqlite3.connect, write: Write = os.pwrite, sync: bool = True
    ) -> None:
        """`connect` and `write` stand in for sqlite3.connect and os.pwrite in tests of faults."""
        self._sync = sync
        self._dir = data_dir
        self._path = data_dir / directory.DATABASE_NAME
        self._connect_with = connect
        self._write_with = write
        self._log: BatchLog | None = None
        self._salt = b""
        self._unfolded = Unfolded()
        self._folded = 0  # up to this batch, all that was logged is in the tables
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
                meta = self._read_meta(self._open)
                self._check_newest_rows(self._open, meta)
            self._batch = self._folded = meta.batch
            self._term = meta.term
            self._begin_batch_log(left)
            with self._explained():
                self._open.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                meta = self._read_meta(self._open)
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
            meta = self._read_meta(connection)
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

    def _connect(self, path: Path, mode: str) -> sqlite3.Connection:
        connection = self._connect_with(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in (
            f"synchronous = {'FULL' if self._sync else 'OFF'}",
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
        version = self._read_schema_version(connection)
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

    def _read_schema_version(self, connection: sqlite3.Connection) -> int:
        row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
        if row is None or not isinstance(row[0], int) or row[0] < 1:
            raise directory.damaged(self._path, "meta.schema_version is not a number")
        return row[0]

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Runs what is missing in one transaction: the file is at its old version or at ours."""
        version = self._read_schema_version(connection)
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

    def _read_meta(self, connection: sqlite3.Connection) -> Meta:
        """The meta rows, each checked for type and range. Raises `DataDirError`."""
        rows: dict[str, Any] = dict(connection.execute("SELECT name, value FROM meta").fetchall())

        def whole(name: str, least: int) -> int:
            value = rows.get(name)
            if not isinstance(value, int) or value < least:
                raise directory.damaged(self._path, f"meta.{name} is {value!r}")
            return value

        def identity(name: str) -> int:
            value = rows.get(name)
            try:
                number = int(value, 16) if isinstance(value, str) else 0
            except ValueError:
                number = 0
            if not 0 < number <= _UINT64_MAX:
                raise directory.damaged(self._path, f"meta.{name} is {value!r}")
            return number

        uptime_s = rows.get("uptime_s")
        if not isinstance(uptime_s, (int, float)) or not math.isfinite(uptime_s) or uptime_s < 0:
            raise directory.damaged(self._path, f"meta.uptime_s is {uptime_s!r}")
        return Meta(
            cluster_id=identity("cluster_id"),
            member_id=identity("member_id"),
            term=whole("term", 0),
            compact_revision=whole("compact_revision", -1),
            batch=whole("batch", 0),
            uptime_s=float(uptime_s),
            clean=bool(whole("clean", 0)),
            schema_version=whole("schema_version", 1),
            peer_urls=tuple(str(rows.get("peer_urls") or "").split()),
        )

    def _check_newest_rows(self, connection: sqlite3.Connection, meta: Meta) -> None:
        """Touches the root of every table and the path to the newest event: cheap, and finds a file cut short."""
        newest = connection.execute("SELECT batch FROM event ORDER BY revision DESC, sub DESC LIMIT 1").fetchone()
        if newest is not None and newest[0] > meta.batch:
            raise directory.damaged(self._path, f"an event of batch {newest[0]}, but meta.batch is {meta.batch}")
        connection.execute("SELECT id FROM lease ORDER BY id DESC LIMIT 1").fetchone()
        connection.execute("SELECT count(*) FROM alarm").fetchone()

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
            meta = self._read_meta(self._connection)
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
        if self._refusal is not None:
            raise EngineError(f"no write after a failed one: {self._refusal}")
        try:
            yield self._connection
        except sqlite3.Error as error:
            self._refusal = explain.sqlite_error(error, self._path)
            raise EngineError(self._refusal) from error
        except OSError as error:
            self._refusal = explain.system_error(error, self._dir)
            raise EngineError(self._refusal) from error
        except BaseException as error:
            self._refusal = f"{self._path}: {error!r}"
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that ends in COMMIT. There is no ROLLBACK: closing does that."""
        with self._failing_once() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        self._unsettled = True

    def begin_term(self, term: int) -> None:
        assert term > self._term, f"term {term} after {self._term}"
        with self._writing() as connection:
            schema.execute_rows(connection, schema.META, [("term", term), ("clean", 0)])
        self._term = term

    def commit(self, batch: Batch) -> None:
        assert batch.number > self._batch, f"batch {batch.number} after {self._batch}"
        record = self._record_of(batch)
        if record is not None:
            if self._unfolded.size_bytes >= UNFOLDED_BYTES_MAX:  # nobody calls `settle`
                self.fold()
            with self._failing_once():
                assert self._log is not None, "the engine is not open"
                self._log.append(record, batch.number, self._folded)
            self._unfolded.add(batch, len(record))
        else:
            self.fold()
            self._commit_to_tables(batch)
        self._batch = batch.number
        if batch.compact_revision is not None:
            self._sweep = Sweep(batch.number)
        if self._unsettled and self._wal_pages() >= WAL_PAGES_MAX:  # nobody calls `settle`
            self._copy_log("PASSIVE")

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
            meta: list[tuple[str, object]] = [("batch", number), ("uptime_s", batch.now_s), ("clean", int(batch.clean))]
            if batch.compact_revision is not None:
                meta.append(("compact_revision", batch.compact_revision))
            if batch.peer_urls is not None:
                meta.append(("peer_urls", " ".join(batch.peer_urls)))
            if batch.auth is not None:
                meta += auth_tables.write(connection, batch.auth, number)
            schema.execute_rows(connection, schema.META, meta)

    def fold(self) -> None:
        while self._unfolded:
            self._fold_some()

    def _fold_some(self) -> None:
        """Brings the oldest batches of the log into the tables, FOLD_ROWS rows or a little more, in one transaction."""
        fold = self._unfolded.oldest(FOLD_ROWS)
        with self._writing() as connection:
            schema.execute_rows(connection, schema.EVENTS, fold.events)
            schema.execute_rows(connection, schema.LEASES, list(fold.leases.values()))
            meta = [("batch", fold.number), ("uptime_s", fold.now_s), ("clean", 0)]
            schema.execute_rows(connection, schema.META, meta)
        self._folded = fold.number
        self._unfolded.remove(fold)

    def settle(self) -> bool:
        if self._unfolded.size_bytes >= FOLD_BYTES:
            self._fold_some()
        if not self._unsettled:
            return False
        self._unsettled = False
        if self._wal_pages() >= WAL_PAGES_SETTLE:
            self._copy_log("PASSIVE")
        return True

    def _wal_pages(self) -> int:
        """Pages in the log now; the log's size says how many there ever were. From the header of the wal-index."""
        assert self._wal_index is not None
        return int.from_bytes(os.pread(self._wal_index, 4, _WAL_INDEX_PAGES_AT), sys.byteorder)

    def _copy_log(self, mode: str) -> None:
        with self._failing_once() as connection:
            connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    # --- space -----------------------------------------------------------------------------------------------------

    def collect(self, dead: Sequence[tuple[int, int]] = (), rows_max: int = COLLECT_ROWS_MAX) -> bool:
        self._dead.extend(sorted(dead))
        if self._dead:
            step = [self._dead.popleft() for _ in range(min(rows_max, len(self._dead)))]
            with self._writing() as connection:
                schema.execute_rows(connection, schema.DEAD_EVENTS, step)
        elif self._sweep is not None:
            self._sweep_leases(self._sweep, rows_max)
        elif self._free_pages() > 0:
            with self._failing_once() as connection:
                # A script, because this pragma yields a row without columns for each page, and `execute` stops at the
                # first of those. It is a transaction of its own.
                connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES_MAX})")
            if self._free_pages() == 0:
                self._copy_log("TRUNCATE")
        return bool(self._dead) or self._sweep is not None or self._free_pages() > 0

    def _sweep_leases(self, sweep: Sweep, rows_max: int) -> None:
        with self._writing() as connection:
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
        return size + (self._log.size_bytes() if self._log is not None else 0)

    def in_use_bytes(self) -> int:
        return (self._pages("page_count") - self._free_pages()) * PAGE_BYTES

    def defragment(self) -> None:
        if self._refusal is not None:
            raise EngineError(f"no write after a failed one: {self._refusal}")
        try:
            self._connection.execute("VACUUM")
        except sqlite3.Error as error:
            # VACUUM builds the new file aside and switches in one transaction: the data is as it was.
            raise EngineError(explain.sqlite_error(error, self._path)) from error
        self._copy_log("TRUNCATE")

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
