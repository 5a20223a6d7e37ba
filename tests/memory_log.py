# SPDX-License-Identifier: Apache-2.0
"""A shared log in memory, for tests of what stands on one. It keeps E1 to E3, and forgets everything with the process.

    kept = MemoryRecords()
    one, another = MemoryLog(kept), MemoryLog(kept)

`before_append` and `after_append` of the records are called within each append; what they raise, it raises.
"""

import threading
from collections.abc import Callable, Iterator

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import Found, Info, TakenError, TrimmedError, UnreachableError


class MemoryRecords:
    """What the engine keeps."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cluster_id = 0
        self.records: list[bytes] = []
        self.first = 1  # position of the oldest that is left
        self.snapshot: tuple[int, list[bytes]] | None = None
        self.up = True
        self.before_append: Callable[[], None] = lambda: None
        self.after_append: Callable[[], None] = lambda: None

    @property
    def chain(self) -> bytes:
        return self.records[-1][-CHAIN_BYTES:] if self.records else bytes(CHAIN_BYTES)


class MemoryLog:
    """One process's way to them. Implements `SharedLog`."""

    def __init__(self, kept: MemoryRecords) -> None:
        self._kept = kept

    def _reach(self) -> MemoryRecords:
        if not self._kept.up:
            raise UnreachableError("the memory is away")
        return self._kept

    def open(self, new_cluster_id: int) -> Info:
        kept = self._reach()
        with kept.lock:
            kept.cluster_id = kept.cluster_id or new_cluster_id
            return Info(kept.cluster_id, 1, ())

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        kept = self._reach()
        kept.before_append()
        with kept.lock:
            if expect != len(kept.records) or chain != kept.chain:
                raise TakenError(f"the newest record is {len(kept.records)}, not {expect}")
            kept.records.append(data)
        kept.after_append()

    def read(self, after: int, bytes_max: int) -> Found:
        kept = self._reach()
        with kept.lock:
            if after + 1 < kept.first:
                raise TrimmedError(f"record {kept.first} is the oldest that is left")
            found: list[bytes] = []
            for data in kept.records[after:]:
                found.append(data)
                bytes_max -= len(data)
                if bytes_max <= 0:
                    break
            return Found(found, len(kept.records))

    def put_snapshot(self, position: int, pieces: Iterator[bytes]) -> None:
        self._reach().snapshot = position, list(pieces)

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]] | None:
        snapshot = self._reach().snapshot
        return None if snapshot is None else (snapshot[0], iter(snapshot[1]))

    def trim(self, before: int) -> None:
        kept = self._reach()
        kept.first = max(kept.first, before)

    def size_bytes(self) -> int:
        kept = self._reach()
        return sum(len(data) for data in kept.records[kept.first - 1 :])

    def close(self) -> None: ...
