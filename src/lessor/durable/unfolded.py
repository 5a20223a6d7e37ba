# SPDX-License-Identifier: Apache-2.0
"""What is in the batch log and not yet in the tables: batches, oldest first, and the bytes that they take in the log.

Laws
- Batches leave in the order in which they came, whole ones only.
- Batches without rows, which save the uptime of an idle server, are kept as one: the newest says it all.

It does not write anywhere; sqlite.py does.
"""

from collections import deque

from lessor.durable.batch_log import Record
from lessor.state.journal import Batch

Row = tuple[object, ...]


class Fold:
    """The rows of the oldest batches, to be written in one transaction; each ends with the number of its batch."""

    __slots__ = ("batches", "clock_s", "events", "leases", "number", "rows", "size_bytes")

    def __init__(self) -> None:
        self.events: list[Row] = []
        self.leases: dict[int, Row] = {}  # of several rows of a lease the last counts
        self.number = 0  # of the newest batch
        self.clock_s = 0.0  # of the newest batch
        self.batches = 0
        self.size_bytes = 0
        self.rows = 0  # of those batches; of `leases` there may be fewer


class Unfolded:
    """The queue. `size_bytes` is what these batches take in the log, `rows` how many they have."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Batch | Record, int]] = deque()
        self.size_bytes = 0
        self.rows = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, batch: Batch | Record, size_bytes: int) -> None:
        """Adds the newest batch, whose record has that many bytes."""
        self.size_bytes += size_bytes
        self.rows += len(batch.events) + len(batch.leases)
        if self._queue and not (batch.events or batch.leases):
            last, last_bytes = self._queue[-1]
            if not (last.events or last.leases):
                self._queue.pop()
                size_bytes += last_bytes
        self._queue.append((batch, size_bytes))

    def oldest(self, rows_min: int) -> Fold:
        """The oldest batches, until they make `rows_min` rows or there are no more. There must be one."""
        fold = Fold()
        for batch, size_bytes in self._queue:
            number = batch.number
            fold.events += [(*row, number) for row in batch.events]
            for row in batch.leases:
                fold.leases[row[0]] = (*row, number)
            fold.number, fold.clock_s = number, batch.clock_s
            fold.batches += 1
            fold.size_bytes += size_bytes
            fold.rows += len(batch.events) + len(batch.leases)
            if fold.rows >= rows_min:
                break
        return fold

    def remove(self, fold: Fold) -> None:
        """Forgets the batches of `fold`, which `oldest` returned: they are in the tables."""
        for _ in range(fold.batches):
            self._queue.popleft()
        self.size_bytes -= fold.size_bytes
        self.rows -= fold.rows
