# SPDX-License-Identifier: Apache-2.0
"""The rows of table `meta`, read with suspicion, and a first look at the other tables.

Law: what is not of the right type and range is a damaged directory, said as such; nothing is guessed.

It does not write; tables.py does.
"""

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from lessor.durable import directory
from lessor.durable.engine import Meta
from lessor.durable.moved import Mark
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.schema import ONE_LOG_VERSION

_UINT64_MAX = 2**64 - 1
_COUNT_MAX = 2**62  # of batches, records, revisions, terms: far from where sums leave 64 bits
_CLOCK_S_MAX = 2.0**33  # 272 years; sums of it and a time to live are exact to a microsecond


class LogPosition(NamedTuple):
    """Up to where the tables follow the log."""

    record: int  # number of the newest record in the tables; 0 when there is none
    chain: bytes  # its chain value
    log_id: bytes  # of the log's files; b"": whatever files there are do not count


def read_schema_version(connection: sqlite3.Connection, path: Path) -> int:
    row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
    if row is None or not isinstance(row[0], int) or row[0] < 1:
        raise directory.damaged(path, "meta.schema_version is not a number")
    return row[0]


def read(connection: sqlite3.Connection, path: Path) -> Meta:
    """The meta rows, each checked for type and range. Raises `DataDirError`."""
    rows: dict[str, Any] = dict(connection.execute("SELECT name, value FROM meta").fetchall())

    def whole(name: str, least: int) -> int:
        value = rows.get(name)
        if not isinstance(value, int) or not least <= value <= _COUNT_MAX:
            raise directory.damaged(path, f"meta.{name} is {value!r}")
        return value

    def identity(name: str) -> int:
        value = rows.get(name)
        try:
            number = int(value, 16) if isinstance(value, str) else 0
        except ValueError:
            number = 0
        if not 0 < number <= _UINT64_MAX:
            raise directory.damaged(path, f"meta.{name} is {value!r}")
        return number

    clock = "clock_s" if whole("schema_version", 1) >= ONE_LOG_VERSION else "uptime_s"
    clock_s = rows.get(clock)
    if not isinstance(clock_s, (int, float)) or not 0 <= clock_s <= _CLOCK_S_MAX:  # NaN is neither
        raise directory.damaged(path, f"meta.{clock} is {clock_s!r}")
    return Meta(
        cluster_id=identity("cluster_id"),
        member_id=identity("member_id"),
        term=whole("term", 0),
        compact_revision=whole("compact_revision", -1),
        batch=whole("batch", 0),
        clock_s=float(clock_s),
        clean=bool(whole("clean", 0)),
        schema_version=whole("schema_version", 1),
        peer_urls=tuple(str(rows.get("peer_urls") or "").split()),
    )


def read_log_position(connection: sqlite3.Connection, path: Path) -> LogPosition:
    """Up to where the tables follow the log. Raises `DataDirError`."""
    rows = dict(connection.execute("SELECT name, value FROM meta WHERE name IN ('record', 'chain', 'log')"))

    def digest(name: str, sizes: tuple[int, ...]) -> bytes:
        try:
            value = bytes.fromhex(rows[name])
            if len(value) not in sizes:
                raise ValueError(name)
        except (KeyError, TypeError, ValueError):
            raise directory.damaged(path, f"meta.{name} is {rows.get(name)!r}") from None
        return value

    record = rows.get("record")
    if not isinstance(record, int) or not 0 <= record <= _COUNT_MAX:
        raise directory.damaged(path, f"meta.record is {record!r}")
    return LogPosition(record, digest("chain", (CHAIN_BYTES,)), digest("log", (0, directory.LOG_ID_BYTES)))


def check_newest_rows(connection: sqlite3.Connection, path: Path, meta: Meta) -> None:
    """Touches the root of every table and the path to the newest event: cheap, and finds a file cut short."""
    newest = connection.execute("SELECT batch FROM event ORDER BY revision DESC, sub DESC LIMIT 1").fetchone()
    if newest is not None and newest[0] > meta.batch:
        raise directory.damaged(path, f"an event of batch {newest[0]}, but meta.batch is {meta.batch}")
    connection.execute("SELECT id FROM lease ORDER BY id DESC LIMIT 1").fetchone()
    connection.execute("SELECT count(*) FROM alarm").fetchone()


def read_shared(connection: sqlite3.Connection) -> bool:
    """Whether the tables follow a log that others write to as well, and are only a copy of what is in it."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'shared'").fetchone()
    return bool(row is not None and row[0])


def read_mark(connection: sqlite3.Connection, path: Path) -> Mark | None:
    """What a move of the data has left here; None when there was none. Raises `DataDirError`."""
    row = connection.execute("SELECT value FROM meta WHERE name = 'moved'").fetchone()
    if row is None:
        return None
    mark = Mark.read(row[0])
    if mark is None:
        raise directory.damaged(path, f"meta.moved is {row[0]!r}")
    return mark
