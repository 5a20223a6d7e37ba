# SPDX-License-Identifier: Apache-2.0
"""The records that are in the log and not yet in the tables, oldest first.

Laws
- Records leave in the order in which they came, whole ones only.
- Records without rows, which save the data clock of an idle server, are kept as one: the newest says it all.

It does not write anywhere; tables.py does.
"""

from collections import deque
from collections.abc import Sequence

from lessor.durable.record import Record
from lessor.state.journal import AlarmRow, AuthRows, Rows

Row = tuple[object, ...]
Dead = Sequence[tuple[int, int]]  # (revision, sub) of rows

_SORTED_AT_ONCE = 10_000  # dead rows: 2 ms


def rows_of(rows: Rows) -> int:
    """How many rows a fold writes for it; 0 when it changes nothing but the data clock, the clean mark or the term.

    Cost: one call, for what nearly every batch is.
    """
    count = len(rows.events) + len(rows.leases)
    if rows.alarms or rows.auth is not None or rows.compact_revision is not None or rows.peer_urls is not None:
        count += len(rows.alarms) + (rows.auth.row_count if rows.auth is not None else 0) + 1
    return count


def sorted_pieces(dead: Dead) -> list[list[tuple[int, int]]]:
    """Dead rows as they are swept. Those of one key come oldest first, before and after.

    In pieces, since the interpreter does nothing else while it sorts.
    """
    return [sorted(dead[first : first + _SORTED_AT_ONCE]) for first in range(0, len(dead), _SORTED_AT_ONCE)]


class Fold:
    """The rows of the oldest records, to be written in one transaction; each ends with the number of its batch."""

    __slots__ = (
        "alarms",
        "auth",
        "compacted",
        "count",
        "dead",
        "events",
        "leases",
        "meta",
        "newest",
        "rows",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.events: list[Row] = []
        self.leases: dict[int, Row] = {}  # of several rows of a lease the last counts
        self.alarms: list[tuple[AlarmRow, int]] = []
        self.auth: list[tuple[AuthRows, int]] = []
        self.meta: list[tuple[str, object]] = []
        self.dead: list[list[tuple[int, int]]] = []  # rows that compactions named, to be swept in this order
        self.compacted = 0  # number of the newest batch with a compaction; 0: none
        self.newest: Record
        self.count = 0  # records
        self.size_bytes = 0
        self.rows = 0  # of those records; of `leases` there may be fewer

    def add(self, record: Record) -> None:
        """Adds the next record."""
        rows = record.rows
        number = rows.number
        self.events += [(*row, number) for row in rows.events]
        for row in rows.leases:
            self.leases[row[0]] = (*row, number)
        if rows.alarms:
            self.alarms += [(alarm, number) for alarm in rows.alarms]
        if rows.auth is not None:
            self.auth.append((rows.auth, number))
        if rows.compact_revision is not None:
            self.meta.append(("compact_revision", rows.compact_revision))
            self.compacted = number
        if rows.peer_urls is not None:
            self.meta.append(("peer_urls", " ".join(rows.peer_urls)))
        if rows.dead:
            self.dead += sorted_pieces(rows.dead)
        self.newest = record
        self.rows += rows_of(rows)


class Unfolded:
    """The queue. `size_bytes` is what these records take in the log, `rows` how many rows they have."""

    def __init__(self) -> None:
        # With the bytes of those that it stands for, and the dead rows that were named behind it.
        self._queue: deque[tuple[Record, int, tuple[Dead, ...]]] = deque()
        self.size_bytes = 0
        self.rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, record: Record) -> int:
        """Adds the newest record; returns how many rows it has."""
        size_bytes, rows = record.size_bytes, rows_of(record.rows)
        self.size_bytes += size_bytes
        self.rows += rows
        if not rows and self._queue:
            last, last_bytes, named = self._queue[-1]
            if not (rows_of(last.rows) or last.rows.dead or named):
                self._queue.pop()
                size_bytes += last_bytes
        self._queue.append((record, size_bytes, ()))
        return rows

    def name_dead(self, dead: Dead) -> bool:
        """Names dead rows behind the newest record, which does not name them itself. False: there is none."""
        if not self._queue:
            return False
        record, size_bytes, named = self._queue.pop()
        self._queue.append((record, size_bytes, (*named, dead)))
        return True

    def oldest(self, rows_min: int, bytes_min: int) -> Fold:
        """The oldest records, until they make so many rows or bytes or there are no more. There must be one."""
        fold = Fold()
        for record, size_bytes, named in self._queue:
            fold.add(record)
            for dead in named:
                fold.dead += sorted_pieces(dead)
            fold.count += 1
            fold.size_bytes += size_bytes
            if fold.rows >= rows_min or fold.size_bytes >= bytes_min:
                break
        return fold

    def remove(self, fold: Fold) -> None:
        """Forgets the records of `fold`, which `oldest` returned: they are in the tables."""
        for _ in range(fold.count):
            self._queue.popleft()
        self.size_bytes -= fold.size_bytes
        self.rows -= fold.rows
