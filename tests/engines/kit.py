# SPDX-License-Identifier: Apache-2.0
"""Records for shared logs, and ways of them into a log and out of it. A record ends with a digest, like real ones."""

import random
import threading
from collections.abc import Callable, Sequence

import pytest

from lessor.durable.record import CHAIN_BYTES, chain_of
from lessor.durable.shared_log import (
    LANDED,
    LOOK,
    TRY,
    Placing,
    SharedLog,
    TakenError,
    UnknownError,
    UnreachableError,
)

ZEROS = bytes(CHAIN_BYTES)  # the chain value that the first record stands behind
PAGE_BYTES = 100_000
STEPS_MAX = 2_000  # of one record on its way


def record(text: str, chain: bytes, size_bytes: int = 0) -> bytes:
    """A record behind the one with this chain value; of `size_bytes` if that is more than it needs."""
    content = text.encode() + b"|" + chain
    content += bytes(max(size_bytes - len(content) - CHAIN_BYTES, 0))
    return content + chain_of(content)


class Writer:
    """A node that does nothing but append: it knows the newest record, and makes the next one."""

    def __init__(self, log: SharedLog, seed: int = 1) -> None:
        self.log = log
        self.chain = ZEROS
        self.records: list[bytes] = []  # those that have landed
        self._chance = random.Random(seed)

    @property
    def position(self) -> int:
        return len(self.records)

    def next(self, size_bytes: int = 200) -> bytes:
        """A record behind the newest one, of so many bytes; no two are alike, and none can be compressed."""
        content = self._chance.randbytes(size_bytes - CHAIN_BYTES)
        return content + chain_of(content)

    def append(self, size_bytes: int = 200) -> bytes:
        data = self.next(size_bytes)
        self.log.append(self.position, self.chain, data)
        self.landed(data)
        return data

    def landed(self, data: bytes) -> None:
        self.records.append(data)
        self.chain = data[-CHAIN_BYTES:]

    def place(self, data: bytes) -> Placing:
        """Brings a record into the log whatever its appends meet, as a node does."""
        placing = Placing(self.position, self.chain, data)
        if placed(self.log, placing) == LANDED:
            self.landed(data)
        return placing


def filled(log: SharedLog, count: int, size_bytes: int = 200) -> list[bytes]:
    """Appends records to an empty log."""
    writer = Writer(log)
    for _ in range(count):
        writer.append(size_bytes)
    return writer.records


def left_open(log: SharedLog, placing: Placing) -> None:
    """The first try of a record, whose outcome is unknown."""
    placing.trying(0.0)
    with pytest.raises(UnknownError):
        log.append(placing.expect, placing.chain, placing.data)
    placing.unknown()


def placed(log: SharedLog, placing: Placing) -> int:
    """Goes the way that `Placing` says; how it ended."""
    for _ in range(STEPS_MAX):
        if placing.next == TRY:
            placing.trying(0.0)
            try:
                log.append(placing.expect, placing.chain, placing.data)
            except TakenError:
                placing.refused()
            except UnknownError:
                placing.unknown()
            else:
                placing.accepted()
        elif placing.next == LOOK:
            placing.looking(0.0)
            try:
                found = log.read(placing.look_after, PAGE_BYTES)
            except UnreachableError:
                continue
            placing.found(found)
        else:
            return placing.next
    raise AssertionError("not settled")


def all_records(log: SharedLog, after: int = 0, page_bytes: int = PAGE_BYTES) -> list[bytes]:
    found = log.read(after, page_bytes)
    records = list(found.records)
    while after + len(records) < found.last:
        assert found.records, "a read that has more brings at least one"
        found = log.read(after + len(records), page_bytes)
        records += found.records
    return records


def acknowledged_are_there(log: SharedLog, acknowledged: Sequence[bytes]) -> None:
    """All that was acknowledged, in this order, and at most one record behind it."""
    records = all_records(log)
    assert records[: len(acknowledged)] == list(acknowledged)
    assert len(records) <= len(acknowledged) + 1


def snapshot_of(log: SharedLog) -> tuple[int, bytes] | None:
    found = log.newest_snapshot()
    return None if found is None else (found[0], b"".join(found[1]))


def at_once(*calls: Callable[[], object]) -> list[object]:
    """The results of all, or the errors that they raised; all begin together."""
    gate = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def run(index: int) -> None:
        gate.wait()
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
