# SPDX-License-Identifier: Apache-2.0
"""The shared log in memory: the smallest thing that keeps the protocol, to compare engines with, and for tests.

Laws: E1 to E3, and nothing ever fails. Any thread may call. Logs on one `Store` are one log. As in other engines, the
two newest snapshots are kept.
"""

import threading
from collections.abc import Iterator

from lessor.durable.log import LogError
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import Found, Info, TakenError, TrimmedError, UnknownError, UnreachableError

FORMAT = 1
PIECE_BYTES = 1_048_576


class Store:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cluster_id = 0
        self.first = 1
        self.records: list[bytes] = []  # from `first` on
        self.chain = bytes(CHAIN_BYTES)
        self.snapshots: list[tuple[int, bytes]] = []

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1


class MemoryLog:
    """Implements `SharedLog`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._closed = False

    def open(self, new_cluster_id: int) -> Info:
        self._check()
        with self._store.lock:
            self._store.cluster_id = self._store.cluster_id or new_cluster_id
            return Info(self._store.cluster_id, FORMAT, ())

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        self._check(UnknownError)
        store = self._store
        with store.lock:
            if (expect, chain) != (store.last, store.chain):
                raise TakenError("another record is the newest")
            store.records.append(data)
            store.chain = data[-CHAIN_BYTES:]

    def read(self, after: int, bytes_max: int) -> Found:
        self._check()
        store = self._store
        with store.lock:
            if after + 1 < store.first:
                raise TrimmedError(store.first)
            found: list[bytes] = []
            size_bytes = 0
            for record in store.records[after + 1 - store.first :]:
                size_bytes += len(record)
                if found and size_bytes > bytes_max:
                    break
                found.append(record)
            return Found(found, store.last)

    def put_snapshot(self, position: int, pieces: Iterator[bytes]) -> None:
        self._check()
        if any(kept >= position for kept, _ in self._store.snapshots):
            return
        blob = b"".join(pieces)
        with self._store.lock:
            self._store.snapshots = [*self._store.snapshots[-1:], (position, blob)]

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]] | None:
        self._check()
        with self._store.lock:
            if not self._store.snapshots:
                return None
            position, blob = max(self._store.snapshots, key=lambda kept: kept[0])
        return position, self._pieces((position, blob))

    def _pieces(self, snapshot: tuple[int, bytes]) -> Iterator[bytes]:
        for start in range(0, len(snapshot[1]), PIECE_BYTES):
            if snapshot not in self._store.snapshots:
                raise UnreachableError("the snapshot was forgotten while it was read")
            yield snapshot[1][start : start + PIECE_BYTES]

    def trim(self, before: int) -> None:
        self._check()
        store = self._store
        with store.lock:
            count = min(before, store.last) - store.first
            if count > 0:
                del store.records[:count]
                store.first += count

    def size_bytes(self) -> int:
        self._check()
        with self._store.lock:
            return sum(map(len, self._store.records)) + sum(len(blob) for _, blob in self._store.snapshots)

    def close(self) -> None:
        self._closed = True

    def _check(self, error: type[LogError] = UnreachableError) -> None:
        if self._closed:
            raise error("the log was closed")
