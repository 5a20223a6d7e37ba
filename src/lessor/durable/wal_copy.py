# SPDX-License-Identifier: Apache-2.0
"""Copies SQLite's log into `lessor.db`, begins it anew, and keeps the page sums in step. Every copy goes through here.

Laws
- What is committed when `run` returns survives the loss of power, whether the copy was whole or not.
- The sums are renewed only when the copy was whole and the log has begun anew, both seen by a reader of our own. As
  long as that reader reads, SQLite cannot do either once more.
- SQLite deletes the log when the last connection is closed, unless that cannot write. It may do so when `finish` has
  emptied the log. Otherwise the log stays, and with it the round that the sums name.

Theory of operation. A copy (a checkpoint) syncs the log and then the file. The counter that is committed behind it is
what makes a COMMIT that syncs, whatever the copy has left out. The first transaction behind a whole copy begins the log
anew, unless somebody still reads its frames.

It does not: decide when to run (upkeep.py); run beside itself.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from lessor.durable.opening import Connector
from lessor.durable.page_sums import PageSums

# A value that stays the same would leave its page as it is, and a COMMIT without pages does not sync.
COUNT_SYNC = "INSERT INTO meta VALUES ('syncs', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"


class WalCopy:
    """Of one database, whose tables are in WAL mode and which a connection of this process has open."""

    def __init__(self, connector: Connector, path: Path, sums: PageSums) -> None:
        self._reader = connector.open(path, "ro")
        self._reader.execute("PRAGMA schema_version").fetchone()  # so that it takes part in the log
        self._sums = sums
        self.empty = False  # SQLite's log, for good
        sums.files.open_index()

    def run(self, connection: sqlite3.Connection, *, wait: bool = False, shrink: bool = False) -> bool:
        """Copies, through a connection with synchronous=FULL. Returns whether the copy was whole.

        `wait`: for others who read, as long as the connection waits for locks. `shrink` gives back the log's space.
        Raises sqlite3.Error; that of a locked database when the counter could not be committed.
        """
        mode = "FULL" if wait else "PASSIVE"
        busy, frames, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        if busy or frames != copied:
            self._count(connection)
            return False
        with self._file_stands_still():
            end = self._sums.ended()
            if shrink:
                self._empty(connection)
            self._count(connection)
            self._sums.begun(end)
        return True

    def finish(self, connection: sqlite3.Connection) -> None:
        """Copies, and empties the log, unless others keep it from that. Nothing is to be committed any more.

        Raises sqlite3.Error.
        """
        busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or frames != copied:
            return
        with self._file_stands_still():
            end = self._sums.ended()
            if self._empty(connection):
                self._sums.stopped(end)
                self.empty = True

    def _count(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(COUNT_SYNC)
        connection.execute("COMMIT")

    def _empty(self, connection: sqlite3.Connection) -> bool:
        """Cuts the log to nothing, if nobody else reads it just now. Returns whether it did."""
        (waits_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute("PRAGMA busy_timeout = 0").fetchall()
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {waits_ms}").fetchall()
        return not busy

    @contextlib.contextmanager
    def _file_stands_still(self) -> Iterator[None]:
        """A read transaction: SQLite copies nothing into the file that was committed after its begin."""
        self._reader.execute("BEGIN")
        try:
            self._reader.execute("PRAGMA schema_version").fetchone()
            yield
        finally:
            if self._reader.in_transaction:
                self._reader.execute("ROLLBACK")

    def close(self) -> None:
        """Before the other connections when the log is empty, otherwise behind them."""
        with contextlib.suppress(sqlite3.Error):
            self._reader.close()
