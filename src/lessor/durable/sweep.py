# SPDX-License-Identifier: Apache-2.0
"""What a compaction left in the tables and nobody needs: dead rows, ended leases, deleted users and roles, free pages.

Laws
- Dead rows are deleted oldest first, list by list as they were named: a tombstone that went before the values that it
  covers would, after a crash between the two, bring the key back.
- Nothing is named here before the record that named it is in the tables.
- What is lost in a crash is derived again at the next start, from the rows that are still there.

Theory of operation. Steps of a few milliseconds, one transaction each, so that commits get in between. First the dead
rows; then a walk over the leases, by id, that deletes the ended ones of batches before the compaction's; then the free
pages go back to the file system.

It does not: decide when a step is due (upkeep.py), or know which rows are dead (the state machine does).
"""

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Final

from lessor.durable import auth_tables, schema
from lessor.durable.tables import Tables
from lessor.durable.unfolded import Dead, Fold, sorted_pieces

SWEEP_ROWS_MAX: Final = 2_000  # rows that one step looks at: about as long as a commit
VACUUM_PAGES_MAX: Final = 256  # pages given back to the file system in one step


@dataclass(slots=True)
class _Walk:
    """Over the lease table."""

    before_batch: int
    swept_id: int = -(2**63)
    last_id: int | None = None  # known from the first step on; leases granted later cannot have ended before


class Sweep:
    """What is to be deleted from `tables`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._dead: deque[tuple[int, int]] = deque()
        self._walk: _Walk | None = None
        self._free = False  # whether there may be free pages
        self.shrink = False  # whether SQLite's log is to be cut when it is copied next: the file has become shorter

    @property
    def due(self) -> bool:
        """Whether there is something to do."""
        return bool(self._dead) or self._walk is not None or self._free

    @property
    def rows_due(self) -> bool:
        """Whether there are rows to delete; otherwise only free pages are left."""
        return bool(self._dead) or self._walk is not None

    def name(self, fold: Fold) -> None:
        """Takes what the records of a fold named, which are in the tables now."""
        self._name(fold.dead)
        if fold.compacted:
            self._walk = _Walk(fold.compacted)

    def name_dead(self, dead: Dead) -> None:
        """Takes dead rows that no record names. All records up to the one that made them dead are in the tables."""
        self._name(sorted_pieces(dead))

    def _name(self, pieces: list[list[tuple[int, int]]]) -> None:
        for dead in pieces:
            self._dead.extend(dead)

    def step(self) -> None:
        """Deletes a little. Raises `EngineError`; TablesLockedError when it would have to wait: try again then."""
        if self._dead:
            self._delete_dead()
        elif self._walk is not None:
            self._walk_on(self._walk)
        elif self._free:
            before = self._tables.free_pages()
            with self._tables.at_hand(wait=False) as connection:
                # A script, because this pragma yields a row without columns for each page, and `execute` stops at the
                # first of those.
                connection.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({VACUUM_PAGES_MAX}); COMMIT")
            # A file that somebody has rebuilt without the setting for it keeps its free pages: that is no work to do.
            self._free = 0 < self._tables.free_pages() < before
            self.shrink = not self._free
            return
        self._free = not self.rows_due and self._tables.free_pages() > 0

    def _delete_dead(self) -> None:
        step = list(islice(self._dead, SWEEP_ROWS_MAX))
        with self._tables.writing(wait=False) as connection:
            schema.execute_rows(connection, schema.DEAD_EVENTS, step)
        for _ in step:
            self._dead.popleft()

    def _walk_on(self, walk: _Walk) -> None:
        with self._tables.writing(wait=False) as connection:
            if walk.last_id is None:
                (walk.last_id,) = connection.execute("SELECT max(id) FROM lease").fetchone()
            looked_at = "SELECT id FROM lease WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
            (upto_id,) = connection.execute(
                f"SELECT max(id) FROM ({looked_at})", (walk.swept_id, walk.last_id, SWEEP_ROWS_MAX)
            ).fetchone()
            if upto_id is not None:
                connection.execute(
                    "DELETE FROM lease WHERE id > ? AND id <= ? AND ended AND batch < ?",
                    (walk.swept_id, upto_id, walk.before_batch),
                )
                walk.swept_id = upto_id
            ends = upto_id is None or upto_id == walk.last_id
            if ends:
                auth_tables.sweep(connection, walk.before_batch)
        if ends:
            self._walk = None
