# SPDX-License-Identifier: Apache-2.0
"""The tables as of one instant, for a reader that takes its time while the server goes on.

Laws
- All rows of a view are of one transaction of SQLite: what is folded meanwhile is not in it.
- No dead rows: what the newest compaction in the view gave up is not in it, whether it is swept yet or not.
- Rows come one at a time; what SQLite sorts, it sorts in a temporary file when it is much.

Theory of operation. As long as a view is open SQLite's own log does not start over: it grows by what is folded
meanwhile. So the reader should not wait for others.

Which rows a compaction left dead is not written anywhere, and to ask for each row whether a newer one follows would
take an index of keys. One sort of the rows up to the compaction tells all dead ones, in the order of the rows; they are
left out by walking both.

Does not do: knowing what the rows are for.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from lessor.durable import auth_tables, explain, meta_rows
from lessor.durable.engine import EngineError, Loaded
from lessor.durable.opening import Connector
from lessor.state.journal import AlarmRow, EventRow

STOP_LOOK_STEPS: Final = 20_000  # of SQLite's machine, a millisecond or so, after which a reader looks whether to stop

_EVENTS: Final = "SELECT revision, sub, key, value, create_revision, version, lease FROM event ORDER BY revision, sub"
_DEAD: Final = (
    "SELECT revision, sub FROM ("
    "SELECT revision, sub, value IS NULL AS gone, lead(1, 1, 0) OVER (PARTITION BY key ORDER BY revision, sub) AS older"
    " FROM event WHERE revision <= ?) WHERE gone OR older ORDER BY revision, sub"
)
# By their ids as unsigned numbers.
_LEASES: Final = "SELECT id, ttl_s, deadline_s, ended FROM lease WHERE NOT ended ORDER BY id < 0, id"
_ALARMS: Final = "SELECT member_id, type FROM alarm WHERE active ORDER BY member_id, type"


@contextlib.contextmanager
def opened(connector: Connector, path: Path, unwanted: Callable[[], bool]) -> Iterator[Loaded]:
    """The rows of the tables `path`, for one `with` block. Leases come in the order of their ids as unsigned numbers.

    `unwanted` is asked now and then; True ends the work. Raises EngineError, also within the block.
    """
    try:
        with contextlib.closing(connector.open(path, "ro")) as connection:
            connection.set_progress_handler(lambda: int(unwanted()), STOP_LOOK_STEPS)
            connection.execute("BEGIN")
            meta = meta_rows.read(connection, path)
            yield Loaded(
                meta=meta,
                events=_events(connection, meta.compact_revision),
                leases=connection.execute(_LEASES),
                alarms=_alarms(connection),
                auth=auth_tables.load(connection, path),
            )
    except sqlite3.Error as error:
        raise EngineError(explain.sqlite_error(error, path)) from error


def _events(connection: sqlite3.Connection, compact_revision: int) -> Iterator[EventRow]:
    rows: Iterator[Any] = connection.execute(_EVENTS)
    if compact_revision < 0:
        return rows
    return _without(rows, connection.execute(_DEAD, (compact_revision,)))


def _without(rows: Iterator[EventRow], dead: Iterator[tuple[int, int]]) -> Iterator[EventRow]:
    """Those of `rows` that `dead` does not name. Both are in order."""
    for skipped in dead:
        for row in rows:
            if row[:2] == skipped:
                break
            yield row
    yield from rows


def _alarms(connection: sqlite3.Connection) -> Iterator[AlarmRow]:
    for member_id, alarm in connection.execute(_ALARMS):
        yield int(member_id, 16), alarm, True
