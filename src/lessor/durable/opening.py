# SPDX-License-Identifier: Apache-2.0
"""The tables until they are served from: connecting, making them, looking at them, bringing old ones up to date.

Laws
- A new file is built whole under another name, synced, and renamed: a `lessor.db` that exists was complete once.
- Whether all is there that was durable once is looked at before anything is written.
- An old directory becomes a new one in one transaction: its schema, and what its batch log has above its tables. So a
  crash leaves the old one, with its batch log, or the new one, which does not need it.

Does not do: writing rows of batches (tables.py), reading the log (file_log_reading.py).
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lessor.durable import directory, explain, meta_rows, old_log, schema
from lessor.durable.engine import DataDirError, Meta
from lessor.durable.meta_rows import LogPosition
from lessor.durable.moved import Mark
from lessor.durable.page_sums import PageSums
from lessor.durable.record import Changes

PAGE_BYTES: Final = 4_096
CACHE_BYTES: Final = 16 * 1024 * 1024  # pages that SQLite keeps in memory
BUSY_S: Final = 5.0  # how long a write that cannot be put off waits for a person who writes with the sqlite3 shell
FULL: Final = "FULL"  # levels of synchronous: a COMMIT syncs,
NORMAL: Final = "NORMAL"  # or leaves that to the next one that does

_UINT64_MAX: Final = 2**64 - 1
_SALTED_VERSION: Final = 3  # whose batch log has a salt, in `meta.batch_log`
_UNSALTED_VERSION: Final = 2  # which may have a batch log without one

Connect = Callable[..., sqlite3.Connection]


@dataclass(frozen=True, slots=True)
class Connector:
    """How connections are made. `sync` False, for tests: the disk is not waited for."""

    connect: Connect = sqlite3.connect
    sync: bool = True

    def open(self, path: Path, mode: str, *, waits: bool = True) -> sqlite3.Connection:
        connection = self.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S if waits else 0.0,
            isolation_level=None,
            check_same_thread=False,
        )
        for pragma in (
            f"synchronous = {FULL if self.sync else 'OFF'}",
            f"cache_size = {-CACHE_BYTES // 1024}",
            "wal_autocheckpoint = 0",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the tables has shown."""

    meta: Meta
    log: LogPosition | None = None  # None for tables of before the one log
    old: list[Changes] = field(default_factory=list)  # what the batch log of those has and they lack, ascending
    shared: bool = False  # the log is one that others write to as well
    mark: Mark | None = None  # of a move


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into `DataDirError`. For what happens before serving."""
    try:
        yield
    except sqlite3.Error as error:
        if explain.is_damage(error):
            raise explain.damage(error, path) from error
        raise DataDirError(explain.sqlite_error(error, path)) from error


def create(connector: Connector, path: Path, identity: tuple[int, int]) -> None:
    """Makes the tables of a new directory. Raises `DataDirError`."""
    cluster_id, member_id = identity
    assert 0 < cluster_id <= _UINT64_MAX
    assert 0 < member_id <= _UINT64_MAX
    part = path.with_name(path.name + ".new")
    try:
        for suffix in ("", "-journal", "-wal", "-shm"):  # what a crash in here left behind
            part.with_name(part.name + suffix).unlink(missing_ok=True)
        with contextlib.closing(connector.open(part, "rwc")) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            connection.execute("BEGIN IMMEDIATE")
            _run_migration(connection, 0)
            rows = {
                "cluster_id": f"{cluster_id:016x}",
                "member_id": f"{member_id:016x}",
                "term": 0,
                "compact_revision": -1,
                "batch": 0,
                "uptime_s": 0.0,  # as the first schema calls it
                "clean": 1,  # nothing was lost
                "schema_version": 1,
            }
            schema.execute_rows(connection, schema.META, list(rows.items()))
            _run_migrations(connection, 1)
            connection.execute("COMMIT")
            _give_back(connection)
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        part.chmod(0o600)  # values may be secrets; the log takes over the mode
        os.replace(part, path)
        if connector.sync:
            directory.sync_directory(path.parent)
    except sqlite3.Error as error:
        raise DataDirError(explain.sqlite_error(error, part)) from error
    except OSError as error:
        raise directory.cannot_use(path, error) from error


def check_schema(connection: sqlite3.Connection, path: Path) -> int:
    """The version of the tables. Raises `DataDirError` for a newer one."""
    version = meta_rows.read_schema_version(connection, path)
    if version > schema.SCHEMA_VERSION:
        raise DataDirError(
            f"{path}: written by a newer Lessor (schema {version}, this one knows {schema.SCHEMA_VERSION}): "
            "run the newer one, or restore a backup of before the upgrade"
        )
    return version


def look(connector: Connector, path: Path, sums: PageSums) -> Seen:
    """Reads through a connection that cannot write, not even by closing. Raises `DataDirError`, OSError."""
    _roll_back(connector, path)
    with explained(path), contextlib.closing(connector.open(path, "ro")) as connection:
        connection.execute("BEGIN")  # for `compare`
        connection.execute("PRAGMA schema_version").fetchone()
        if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            sums.compare()
        version = check_schema(connection, path)
        meta = meta_rows.read(connection, path)
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if version >= schema.ONE_LOG_VERSION:
            position = meta_rows.read_log_position(connection, path)
            mark = meta_rows.read_mark(connection, path)
            if mode == "wal":
                return Seen(meta, position, shared=meta_rows.read_shared(connection), mark=mark)
            # A file that was copied out of a data directory, whose log is elsewhere.
            return Seen(meta, position._replace(log_id=b""), mark=mark)
        salt = _old_salt(connection, path) if version == _SALTED_VERSION else b""
    if version < _UNSALTED_VERSION or mode != "wal" or (version == _SALTED_VERSION and not salt):
        return Seen(meta)
    return Seen(meta, old=_old_batches(path.parent, salt, meta))


def _roll_back(connector: Connector, path: Path) -> None:
    """Has SQLite undo the change of its mode that a crash cut short, which only a connection that may write can do.

    The tables themselves are in WAL mode; a backup is not, until its first start.
    """
    if path.with_name(path.name + "-journal").exists():
        with explained(path), contextlib.closing(connector.open(path, "rw")) as connection:
            connection.execute("SELECT count(*) FROM meta").fetchone()


def _old_salt(connection: sqlite3.Connection, path: Path) -> bytes:
    row = connection.execute("SELECT value FROM meta WHERE name = 'batch_log'").fetchone()
    try:
        salt = bytes.fromhex(row[0])
        if len(salt) not in (0, old_log.SALT_BYTES):
            raise ValueError("not a salt")
    except (TypeError, ValueError):
        raise directory.damaged(path, f"meta.batch_log is {row!r}") from None
    return salt


def _old_batches(data_dir: Path, salt: bytes, meta: Meta) -> list[Changes]:
    missing = [data_dir / name for name in directory.LOG_NAMES if not (data_dir / name).exists()]
    if missing:
        # The last batch of an orderly stop is in the tables; most directories of schema 2 never had such files.
        if meta.clean or (not salt and len(missing) == len(directory.LOG_NAMES)):
            return []
        raise directory.log_missing(missing[0])
    try:
        return old_log.read(data_dir, salt, meta.batch)
    except OSError as error:
        raise DataDirError(explain.system_error(error, data_dir)) from None


def use_wal(connection: sqlite3.Connection, path: Path) -> None:
    """Puts a backup, or a copy, into the mode of the tables, which needs shared memory: some file systems lack that.

    The mode says that the log beside the file is its own. So the file forgets the log that it was copied from first.
    """
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("UPDATE meta SET value = '' WHERE name IN ('log', 'batch_log')")
        connection.execute("DELETE FROM meta WHERE name = 'shared'")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise DataDirError(f"{path}: its file system cannot share memory: give --data-dir a local disk")


def adopt(connector: Connector, path: Path, member_id: int) -> None:
    """Makes of a snapshot the tables of that member, which follow a log that others write to as well."""
    with explained(path), contextlib.closing(connector.open(path, "rw")) as connection:
        use_wal(connection, path)
        schema.execute_rows(connection, schema.META, shared_by(member_id))


def shared_by(member_id: int) -> list[tuple[str, object]]:
    """The rows of `meta` that say so."""
    return [("shared", 1), ("member_id", f"{member_id:016x}")]


def migrate(
    connection: sqlite3.Connection, path: Path, then: Callable[[sqlite3.Connection], None] = lambda connection: None
) -> None:
    """Runs what is missing, and `then`, in one transaction: the file is at its old version or at ours."""
    version = meta_rows.read_schema_version(connection, path)
    if version == schema.SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    _run_migrations(connection, version)
    then(connection)
    connection.execute("COMMIT")
    _give_back(connection)


def _give_back(connection: sqlite3.Connection) -> None:
    """Returns the pages of tables that a migration has made anew to the file system."""
    connection.executescript("PRAGMA incremental_vacuum")  # `execute` stops at the first page


def _run_migrations(connection: sqlite3.Connection, version: int) -> None:
    for index in range(version, schema.SCHEMA_VERSION):
        _run_migration(connection, index)
    schema.execute_rows(connection, schema.META, [("schema_version", schema.SCHEMA_VERSION)])


def _run_migration(connection: sqlite3.Connection, index: int) -> None:
    # Not executescript: that would end the transaction first.
    for statement in schema.split_statements(schema.MIGRATIONS[index]):
        connection.execute(statement)
