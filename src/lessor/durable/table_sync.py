# SPDX-License-Identifier: Apache-2.0
"""Makes what was folded durable in the tables, and copies SQLite's log into the file, while commits go on.

Laws
- `synced` is raised to a record only after a COMMIT with synchronous=FULL that came after its fold: SQLite's promise
  for that is that the transaction, and so everything before it in the same log, survives the loss of power.
- While `running`, nobody else in this process writes to the tables. So the copy meets a log that stands still, copies
  all of it (unless a reader from outside holds on to older pages), and the log starts over (wal_copy.py).
- An error is final: nobody knows what the disk holds, and nothing is tried again. A write lock that another program
  holds is no error: nothing was done, and `synced` stays.

Theory of operation. A sync of a disk that has other work takes tenths of a second, so it has a thread, and a
connection of its own that never waits for a lock. A run copies the log, which syncs it and then the file, and commits a
counter, which begins the log anew and takes one more sync: better here than in the next fold.

It does not: decide when to run; upkeep.py does.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable

from lessor.durable.wal_copy import WalCopy

Start = Callable[[Callable[[], None]], Callable[[], None]]  # starts the work; returns what waits for its end


def start_thread(work: Callable[[], None]) -> Callable[[], None]:
    thread = threading.Thread(target=work, name="sync", daemon=True)
    thread.start()
    return thread.join


def is_locked(error: BaseException) -> bool:
    """Whether this is SQLite's word for a lock that another program holds."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


class TableSync:
    """Runs on `connection`, whose level is synchronous=FULL and which it closes. All calls come from one thread."""

    def __init__(self, connection: sqlite3.Connection, copy: WalCopy, synced: int, start: Start = start_thread) -> None:
        self._connection = connection
        self._copy = copy
        self._start = start
        self._join: Callable[[], None] = lambda: None
        self.synced = synced  # up to this record, the tables keep what they have
        # These and `synced` are written by the thread that runs, `running` last.
        self.runs = 0
        self.error: BaseException | None = None
        self.running = False

    def begin(self, folded: int, *, shrink: bool) -> None:
        """Starts a run, for everything up to record `folded`. `shrink` gives back the space of SQLite's log."""
        assert not self.running, "one at a time"
        self.running = True
        self._join = self._start(lambda: self._run(folded, shrink))

    def _run(self, folded: int, shrink: bool) -> None:
        try:
            self._copy.run(self._connection, shrink=shrink)
            self.synced = folded
        except BaseException as error:
            if not is_locked(error):
                self.error = error
        finally:
            self.runs += 1
            self.running = False

    def wait(self) -> None:
        """Until nothing is under way."""
        join, self._join = self._join, lambda: None
        join()

    def close(self) -> None:
        self.wait()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
