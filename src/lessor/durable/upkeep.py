# SPDX-License-Identifier: Apache-2.0
"""What the engine does between commits: folds, sweeps, syncs, and giving back the log's room. And when.

Laws
- A step is a few milliseconds, so that commits get in between, and waits for nobody.
- Records are in the tables IDLE_S after the last one with rows, LAG_S after it under load that never rests; those that
  only save the data clock after CLOCK_LAG_S. Later only while a sync, or another program, is at the tables.
- The log is trimmed up to where the tables are synced, and no further.

Theory of operation. A burst stays in the log: folding is work, and somebody waits for the next commit. So under load
nothing is folded until FOLD_BYTES or FOLD_FROM_ROWS wait; from then on a step after each commit, and two steps' worth
when twice as much waits. What waits is folded to the end, step by step, when nothing comes for a moment, or when it has
waited too long. A sync is due when it would give room in the log back, or when SQLite's own log has grown; it runs in
a thread of its own, and folds wait for its end.

It does not: read clocks, or run by itself; the committer calls.
"""

from typing import Final, Protocol

from lessor.durable.engine import TablesLockedError
from lessor.durable.opening import NORMAL
from lessor.durable.record import Record
from lessor.durable.sweep import Sweep
from lessor.durable.tables import Tables
from lessor.durable.unfolded import Dead, Unfolded

IDLE_S: Final = 0.1
LAG_S: Final = 1.0
CLOCK_LAG_S: Final = 10.0
RETRY_S: Final = 0.1  # until the tables are tried again that a sync, or another program, was at

# From so much on a step is due after each commit: a burst of 20,000 puts. To fold all of it takes 40 to 100 ms.
FOLD_BYTES: Final = 2 * 1024 * 1024
FOLD_FROM_ROWS: Final = 40_000
FOLD_ROWS: Final = 500  # rows that one step folds: one to four milliseconds, for a commit that comes in just then
FOLD_STEP_BYTES: Final = 256 * 1024  # the same for large values
FOLD_ROWS_AT_ONCE: Final = 5_000  # where nothing gets in between: larger steps take less time in all
FOLD_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
WAL_PAGES_SYNC: Final = 2_000  # new pages of SQLite's log from which on it is copied into the file
WAL_PAGES_MAX: Final = 8_000  # from which on a commit that had to fold waits for that


class Room(Protocol):
    """The part of a log (log.py) that takes up room."""

    def trim(self, upto: int) -> None: ...

    @property
    def trimmable(self) -> int: ...


class Upkeep:
    """Of one engine. `step` may be called at any time; nothing here is called while another call is under way."""

    def __init__(self, tables: Tables, log: Room) -> None:
        self._tables = tables
        self._log = log
        self._sweep = Sweep(tables)
        self.unfolded = Unfolded()
        self._trimmed = 0
        self._looked_at = 0  # writes to the tables when it was last seen whether a sync is due
        self._draining = False  # what waits is folded to the end
        self._new_rows = self._new_clock = False  # what was committed since the last step
        self._first_s: float | None = None  # when the oldest record with rows that waits was committed, about
        self._last_s = 0.0  # and the newest
        self._clock_s: float | None = None  # and the oldest that only saves the data clock

    def committed(self, record: Record) -> None:
        """The record is in the log."""
        if self.unfolded.add(record) or record.rows.dead:
            self._new_rows = True
        else:
            self._new_clock = True

    def name_dead(self, dead: Dead) -> None:
        """Has rows deleted that records which were committed have made dead, and that none of them names."""
        if self.unfolded.name_dead(dead):
            self._new_rows = True
        else:
            self._sweep.name_dead(dead)

    def step(self, now_s: float, idle: bool) -> float | None:
        """Does a little of what is due. `idle`: no commit waits. Returns when to come back; None: after a commit.

        What is not after `now_s` means at once, but after whatever else waits. Raises `EngineError`.
        """
        tables = self._tables
        self._note(now_s)
        self.trim()
        locked = False
        try:
            self._work(now_s, idle)
        except TablesLockedError:
            locked = True
        if not tables.syncing and tables.writes != self._looked_at:
            self._looked_at = tables.writes
            self._sync_if_due()
        if locked or tables.syncing:
            return now_s + RETRY_S
        return self._next_s(now_s)

    def _note(self, now_s: float) -> None:
        if self._new_rows:
            self._new_rows = False
            self._last_s = now_s
            if self._first_s is None:
                self._first_s = now_s
        if self._new_clock:
            self._new_clock = False
            if self._clock_s is None:
                self._clock_s = now_s

    def _work(self, now_s: float, idle: bool) -> None:
        if not self._draining:
            self._draining = self._waited_enough(now_s, idle)
        if self.unfolded and (self._draining or self._much_waits(1)):
            # Twice as much when a sync, or another program, has kept it waiting.
            times = 2 if self._much_waits(2) else 1
            self._fold(FOLD_ROWS * times, FOLD_STEP_BYTES * times, wait=False)
        elif self._sweep.due:
            self._sweep.step()

    def _much_waits(self, times: int) -> bool:
        return self.unfolded.size_bytes >= FOLD_BYTES * times or self.unfolded.rows >= FOLD_FROM_ROWS * times

    def _waited_enough(self, now_s: float, idle: bool) -> bool:
        if self._clock_s is not None and now_s >= self._clock_s + CLOCK_LAG_S:
            return True
        if self._first_s is None:
            return False
        return (idle and now_s >= self._last_s + IDLE_S) or now_s >= self._first_s + LAG_S

    def _next_s(self, now_s: float) -> float | None:
        if self._draining or self._sweep.due:
            return now_s
        instants = []
        if self._first_s is not None:
            instants.append(min(self._last_s + IDLE_S, self._first_s + LAG_S))
        if self._clock_s is not None:
            instants.append(self._clock_s + CLOCK_LAG_S)
        if not instants:
            return None
        next_s = min(instants)
        return next_s if next_s > now_s else now_s + IDLE_S

    def _fold(self, rows_min: int, bytes_min: int, *, wait: bool, level: str = NORMAL) -> None:
        """Brings the oldest records into the tables, in one transaction."""
        fold = self.unfolded.oldest(rows_min, bytes_min)
        self._tables.fold(fold, level=level, wait=wait)
        self.unfolded.remove(fold)
        self._sweep.name(fold)
        if not self.unfolded:
            self._draining = False
            self._first_s = self._clock_s = None

    def flush(self, level: str = NORMAL) -> None:
        """Folds everything. Waits for others who write to the tables. Raises `EngineError`."""
        self._tables.failure.refuse_after()
        while self.unfolded:
            self._fold(FOLD_ROWS_AT_ONCE, FOLD_BYTES_AT_ONCE, wait=True, level=level)
        self._new_rows = self._new_clock = False

    def finish_sweep(self) -> None:
        """Folds everything and deletes all dead rows, so that the tables take the room that the data needs.

        Raises `EngineError`; after a TablesLockedError the steps go on with the rest.
        """
        self._tables.wait_for_sync()
        self.flush()
        while self._sweep.rows_due:
            self._sweep.step()

    def make_room(self) -> None:
        """Folds and syncs everything, so that the log can be trimmed. Raises `EngineError`."""
        self._tables.wait_for_sync()
        self.flush()
        self._tables.sync()
        self.trim()
        if self._tables.new_wal_pages() >= WAL_PAGES_MAX:  # nobody calls `step`
            self._tables.begin_sync()
            self._tables.wait_for_sync()

    def trim(self) -> None:
        """Lets the log forget what the tables keep for good. Raises `EngineError`."""
        synced = self._tables.synced
        if synced > self._trimmed:
            with self._tables.failure.watch():
                self._log.trim(synced)
            self._trimmed = synced

    def _sync_if_due(self) -> None:
        """Once after the tables were written: a lock that stays does not make it sync again and again."""
        tables = self._tables
        room = tables.synced < self._log.trimmable <= tables.folded
        if self._sweep.shrink or room or tables.new_wal_pages() >= WAL_PAGES_SYNC:
            shrink, self._sweep.shrink = self._sweep.shrink, False
            tables.begin_sync(shrink=shrink)
