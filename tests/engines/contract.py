# SPDX-License-Identifier: Apache-2.0
"""What every adapter of a shared log has to do: a suite, parametrised over engines by whoever inherits it.

    class TestEtcd(SharedLogContract):
        @pytest.fixture
        def engine(self) -> Iterator[Engine]: ...

`Engine.log()` makes one more adapter of the same log, not opened yet; the fixture closes them.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import pytest

from lessor.durable.record import CHAIN_BYTES, chain_of
from lessor.durable.shared_log import (
    LANDED,
    TAKEN,
    Found,
    Info,
    Placing,
    SharedLog,
    TakenError,
    TrimmedError,
    UnknownError,
    UnreachableError,
)

NO_CHAIN = bytes(CHAIN_BYTES)
CLUSTER = 0x1234
PAGE_BYTES = 100_000
TRIES_MAX = 60  # of one record, or of one read


class Engine(Protocol):
    def log(self) -> SharedLog: ...


class Writer:
    """A node that does nothing but append: it knows the newest record, and makes the next one."""

    def __init__(self, log: SharedLog, seed: int = 1) -> None:
        self.log = log
        self.chain = NO_CHAIN
        self.records: list[bytes] = []  # those that have landed
        self._chance = random.Random(seed)

    @property
    def position(self) -> int:
        return len(self.records)

    def next(self, size_bytes: int = 200) -> bytes:
        """A record behind the newest one, of so many bytes; no two are alike."""
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

    def place(self, data: bytes, *, then: Callable[[], object] = lambda: None) -> Placing:
        """Brings a record into the log whatever its appends meet, as a node does. `then`: after the first look."""
        at = Placing(self.position, self.chain, data)
        for attempt in range(TRIES_MAX):
            if at.next >= LANDED:
                break
            if at.next == 0:
                at.trying(float(attempt))
                try:
                    self.log.append(at.expect, at.chain, data)
                    at.accepted()
                except TakenError:
                    at.refused()
                except UnknownError:
                    at.unknown()
                    then()
            else:
                try:
                    at.found(self.log.read(at.look_after, PAGE_BYTES))
                except UnreachableError:
                    continue
        if at.next == LANDED:
            self.landed(data)
        return at


def all_records(log: SharedLog, after: int = 0, page_bytes: int = PAGE_BYTES) -> list[bytes]:
    found = log.read(after, page_bytes)
    records = list(found.records)
    while after + len(records) < found.last:
        assert found.records, "a read that has more brings at least one"
        found = log.read(after + len(records), page_bytes)
        records += found.records
    return records


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


class SharedLogContract:
    """The suite. A subclass gives the fixture `engine`."""

    @pytest.fixture
    def writer(self, engine: Engine) -> Writer:
        log = engine.log()
        assert log.open(CLUSTER).cluster_id == CLUSTER
        return Writer(log)

    @pytest.fixture
    def other(self, engine: Engine, writer: Writer) -> SharedLog:
        """Another node's adapter of the log."""
        log = engine.log()
        log.open(CLUSTER + 1)
        return log

    # --- the beginning ----------------------------------------------------------------------------------------------

    def test_who_opens_it_first_gives_it_its_number(self, engine: Engine, writer: Writer) -> None:
        writer.append()
        assert engine.log().open(7).cluster_id == CLUSTER
        assert writer.log.open(8).cluster_id == CLUSTER
        assert all_records(writer.log) == writer.records

    def test_of_several_that_begin_it_at_once_one_gives_the_number(self, engine: Engine) -> None:
        logs = [engine.log() for _ in range(4)]
        infos = at_once(*(partial(log.open, own) for own, log in enumerate(logs, 1)))
        ids = {info.cluster_id for info in infos if isinstance(info, Info)}
        assert len(infos) == 4
        assert len(ids) == 1
        assert ids < {1, 2, 3, 4}
        assert logs[0].read(0, PAGE_BYTES) == Found([], 0)

    # --- append and read --------------------------------------------------------------------------------------------

    def test_what_was_appended_is_read_by_all(self, writer: Writer, other: SharedLog) -> None:
        """E3, for each record as soon as its append has returned."""
        for size in (16, 17, 200, 5_000, 100):
            data = writer.append(size)
            assert other.read(writer.position - 1, PAGE_BYTES) == Found([data], writer.position)
        assert all_records(other) == writer.records
        assert other.read(5, PAGE_BYTES) == Found([], 5)
        assert other.read(9, PAGE_BYTES) == Found([], 5)

    def test_a_record_behind_another_than_the_newest_is_refused(self, writer: Writer, other: SharedLog) -> None:
        """E1: at a wrong position, and at the right one with the chain value of another history."""
        first, second = writer.append(), writer.append()
        third = writer.next()
        chains = (NO_CHAIN, first[-CHAIN_BYTES:], second[-CHAIN_BYTES:], third[-CHAIN_BYTES:])
        for log in (writer.log, other):
            for expect, chain in itertools.product((0, 1, 2, 3, 900), chains):
                if (expect, chain) != (2, second[-CHAIN_BYTES:]):
                    with pytest.raises(TakenError):
                        log.append(expect, chain, third)
        assert all_records(writer.log) == [first, second]
        other.append(2, second[-CHAIN_BYTES:], third)
        assert all_records(writer.log) == [first, second, third]

    @pytest.mark.parametrize("writers", [2, 8])
    def test_of_several_appends_at_one_position_one_succeeds(
        self, engine: Engine, writer: Writer, writers: int
    ) -> None:
        logs = [engine.log() for _ in range(writers)]
        for log in logs:
            log.open(1)
        seats = [Writer(log, seed) for seed, log in enumerate(logs, 1)]
        for position in range(12):
            records = [seat.next(250) for seat in seats]
            results = at_once(
                *(
                    partial(seat.log.append, position, seat.chain, data)
                    for seat, data in zip(seats, records, strict=True)
                )
            )
            won = [index for index, result in enumerate(results) if result is None]
            assert len(won) == 1, results
            assert all(isinstance(result, TakenError) for result in results if result is not None), results
            for seat in seats:
                seat.landed(records[won[0]])
            assert writer.log.read(position, PAGE_BYTES) == Found([records[won[0]]], position + 1)
        assert all_records(writer.log) == seats[0].records

    def test_a_second_append_of_a_record_that_landed_is_refused_and_harmless(
        self, writer: Writer, other: SharedLog
    ) -> None:
        """As after a first try whose answer was lost: `other` knows of nothing behind the record before."""
        for size in (3_000_000, 200, 3_000_000):
            all_records(other)
            expect, chain = writer.position, writer.chain
            data = writer.append(size)
            for log in (other, writer.log):
                with pytest.raises(TakenError):
                    log.append(expect, chain, data)
        assert all_records(writer.log) == writer.records

    def test_a_refusal_is_settled_by_reading(self, writer: Writer, other: SharedLog) -> None:
        ours = writer.next()
        writer.log.append(0, NO_CHAIN, ours)
        assert writer.place(ours).next == LANDED
        theirs = writer.next()
        other.append(1, ours[-CHAIN_BYTES:], theirs)
        at = writer.place(writer.next())
        assert (at.next, at.others) == (TAKEN, [theirs])

    @pytest.mark.parametrize("size_bytes", [1_048_576, 1_048_577, 1_500_000, 16_777_216])
    def test_large_records_are_records_like_others(self, writer: Writer, other: SharedLog, size_bytes: int) -> None:
        writer.append()
        large = writer.append(size_bytes)
        writer.append()
        assert other.read(1, 1) == Found([large], 3)
        assert all_records(other) == writer.records
        # Another's append behind a large record, and a large one that comes too late.
        follower = Writer(other, seed=2)
        for data in writer.records:
            follower.landed(data)
        with pytest.raises(TakenError):
            other.append(1, writer.records[0][-CHAIN_BYTES:], follower.next(size_bytes))
        follower.append(size_bytes)
        assert all_records(writer.log) == follower.records

    def test_reads_bring_about_as_much_as_was_asked_for(self, writer: Writer, other: SharedLog) -> None:
        for size in [200] * 40 + [60_000] * 5 + [300] * 30:
            writer.append(size)
        for page_bytes in (1, 1_000, 50_000, 1_000_000):
            assert all_records(other, 0, page_bytes) == writer.records
            for after in range(0, writer.position, 7):
                records = other.read(after, page_bytes).records
                assert len(records) == 1 or sum(map(len, records)) <= page_bytes
        assert len(other.read(0, 100_000).records) > 20, "a page of many small records"

    # --- room -------------------------------------------------------------------------------------------------------

    def test_trimmed_records_are_refused_by_name(self, writer: Writer, other: SharedLog) -> None:
        for size in [200] * 8 + [2_000_000, 200]:
            writer.append(size)
        assert writer.log.size_bytes() == other.size_bytes() == sum(map(len, writer.records))
        writer.log.trim(1)
        assert all_records(other) == writer.records
        for before, first in ((5, 5), (3, 5), (10, 10), (10, 10), (400, 10)):
            other.trim(before)
            assert all_records(writer.log, first - 1) == writer.records[first - 1 :]
            for after in range(first - 1):
                with pytest.raises(TrimmedError) as caught:
                    writer.log.read(after, PAGE_BYTES)
                assert caught.value.first == first
            assert writer.log.size_bytes() == sum(map(len, writer.records[first - 1 :]))
        writer.append()
        assert all_records(other, 9) == writer.records[9:]

    def test_a_log_without_records_is_trimmed_and_measured(self, writer: Writer) -> None:
        writer.log.trim(5)
        assert writer.log.size_bytes() == 0
        writer.append()
        assert all_records(writer.log) == writer.records

    def test_the_newest_whole_snapshot_is_found(self, writer: Writer, other: SharedLog) -> None:
        assert other.newest_snapshot() is None
        content = random.Random(5).randbytes(3_000_000)
        writer.log.put_snapshot(4, iter([content[:10], content[10:2_500_000], b"", content[2_500_000:]]))
        assert snapshot_of(other) == (4, content)
        other.put_snapshot(3, iter([b"older"]))
        other.put_snapshot(4, iter([b"another of that position"]))
        assert snapshot_of(writer.log) == (4, content)
        assert writer.log.size_bytes() == len(content)
        other.put_snapshot(9, iter([]))
        assert snapshot_of(writer.log) == (9, b"")

    def test_a_snapshot_that_was_broken_off_is_not_shown(self, writer: Writer, other: SharedLog) -> None:
        writer.log.put_snapshot(1, iter([b"one"]))

        def breaks() -> Iterator[bytes]:
            yield b"x" * 2_000_000
            raise KeyError("the disk")

        with pytest.raises(KeyError):
            writer.log.put_snapshot(2, breaks())
        assert snapshot_of(other) == (1, b"one")
        other.put_snapshot(2, iter([b"two"]))
        assert snapshot_of(writer.log) == (2, b"two")

    def test_a_snapshot_is_readable_while_the_next_one_comes(self, writer: Writer, other: SharedLog) -> None:
        content = b"a" * 2_500_000
        writer.log.put_snapshot(1, iter([content]))
        found = other.newest_snapshot()
        assert found is not None
        begin = next(found[1])
        writer.log.put_snapshot(2, iter([b"two"]))
        assert begin + b"".join(found[1]) == content
        found = other.newest_snapshot()
        assert found is not None
        writer.log.put_snapshot(3, iter([b"three"]))
        writer.log.put_snapshot(4, iter([b"four"]))
        with pytest.raises(UnreachableError):
            list(found[1])
        assert snapshot_of(other) == (4, b"four")

    def test_a_closed_log_does_nothing(self, writer: Writer) -> None:
        data = writer.next()
        writer.log.close()
        writer.log.close()
        with pytest.raises(UnknownError):
            writer.log.append(0, NO_CHAIN, data)
        with pytest.raises(UnreachableError):
            writer.log.read(0, PAGE_BYTES)


def snapshot_of(log: SharedLog) -> tuple[int, bytes] | None:
    found = log.newest_snapshot()
    return None if found is None else (found[0], b"".join(found[1]))


def acknowledged_are_there(log: SharedLog, acknowledged: Sequence[bytes]) -> None:
    """All that was acknowledged, in this order, and at most one record behind it."""
    records = all_records(log)
    assert records[: len(acknowledged)] == list(acknowledged)
    assert len(records) <= len(acknowledged) + 1
