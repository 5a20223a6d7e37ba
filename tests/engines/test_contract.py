# SPDX-License-Identifier: Apache-2.0
"""What every engine keeps: E1 to E3, and the rest of the protocol in durable/shared_log.py.

Tried in memory, on PostgreSQL, on an etcd (ETCD_BIN names another), and on a Lessor in the place of the etcd.
"""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import (
    LANDED,
    TAKEN,
    Found,
    Info,
    SharedLog,
    TakenError,
    TrimmedError,
    UnknownError,
    UnreachableError,
)
from tests.engines.kit import PAGE_BYTES, ZEROS, Writer, all_records, at_once, filled, record, snapshot_of
from tests.engines.subjects import Subject
from tests.engines.writer import race

ROOT = Path(__file__).resolve().parents[2]
MIB = 1_048_576


# --- open -----------------------------------------------------------------------------------------------------------


def test_the_first_gives_the_log_its_id(subject: Subject) -> None:
    first = subject.log()
    info = first.open(2**64 - 1)
    assert info.cluster_id == 2**64 - 1
    made = filled(first, 1)
    assert subject.log().open(7) == info
    assert first.open(8) == info
    assert all_records(first) == made


def test_nodes_that_make_the_log_at_once_agree(subject: Subject) -> None:
    logs = [subject.log() for _ in range(6)]
    infos = at_once(*(partial(log.open, own) for own, log in enumerate(logs, 1)))
    ids = {info.cluster_id for info in infos if isinstance(info, Info)}
    assert all(isinstance(info, Info) for info in infos), infos
    assert len(ids) == 1
    assert ids < set(range(1, 7))
    assert logs[0].read(0, PAGE_BYTES) == Found([], 0)


def test_logs_of_two_clusters_know_nothing_of_each_other(subject: Subject, writer: Writer) -> None:
    for _ in range(3):
        writer.append()
    writer.log.put_snapshot(2, iter([b"ours"]))
    log = subject.log("two")
    assert log.open(77).cluster_id == 77
    assert log.read(0, PAGE_BYTES) == Found([], 0)
    assert log.newest_snapshot() is None
    theirs = Writer(log, seed=9)
    for _ in range(4):
        theirs.append()
        writer.append()
    log.put_snapshot(3, iter([b"theirs"]))
    log.trim(3)
    assert all_records(writer.log) == writer.records
    assert all_records(log, 2) == theirs.records[2:]
    writer.log.trim(6)
    assert all_records(log, 2) == theirs.records[2:]
    assert (snapshot_of(writer.log), snapshot_of(log)) == ((2, b"ours"), (3, b"theirs"))


# --- append and read ------------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_by_all(writer: Writer, other: SharedLog) -> None:
    """E3, for each record as soon as its append has returned."""
    assert other.read(0, 1) == Found([], 0)
    for size in (16, 17, 200, 5_000, 100):
        data = writer.append(size)
        assert other.read(writer.position - 1, PAGE_BYTES) == Found([data], writer.position)
    assert all_records(other) == writer.records
    for after in range(7):
        assert other.read(after, PAGE_BYTES) == Found(writer.records[after:], 5)


def test_a_record_behind_another_than_the_newest_is_refused(writer: Writer, other: SharedLog) -> None:
    """E1: at a wrong position, and at the right one with the chain value of another history."""
    first, second = writer.append(), writer.append()
    third = writer.next()
    chains = (ZEROS, first[-CHAIN_BYTES:], second[-CHAIN_BYTES:], third[-CHAIN_BYTES:])
    for log in (writer.log, other):
        for expect, chain in itertools.product((0, 1, 2, 3, 900), chains):
            if (expect, chain) != (2, second[-CHAIN_BYTES:]):
                with pytest.raises(TakenError):
                    log.append(expect, chain, third)
    assert all_records(writer.log) == [first, second]
    other.append(2, second[-CHAIN_BYTES:], third)
    assert all_records(writer.log) == [first, second, third]


def test_a_second_append_of_a_record_that_landed_is_refused_and_harmless(writer: Writer, other: SharedLog) -> None:
    """As after a first try whose answer was lost: `other` knows of nothing behind the record before."""
    for size in (3_000_000, 200, 3_000_000):
        all_records(other)
        expect, chain = writer.position, writer.chain
        data = writer.append(size)
        for log in (other, writer.log):
            with pytest.raises(TakenError):
                log.append(expect, chain, data)
    assert all_records(writer.log) == writer.records


def test_a_refusal_is_settled_by_reading(writer: Writer, other: SharedLog) -> None:
    ours = writer.next()
    writer.log.append(0, ZEROS, ours)
    assert writer.place(ours).next == LANDED
    theirs = writer.next()
    other.append(1, ours[-CHAIN_BYTES:], theirs)
    at = writer.place(writer.next())
    assert (at.next, at.others) == (TAKEN, [theirs])


@pytest.mark.parametrize("size_bytes", [MIB, MIB + 1, 1_500_000, 16 * MIB])
def test_large_records_are_records_like_others(writer: Writer, other: SharedLog, size_bytes: int) -> None:
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


def test_reads_bring_about_as_much_as_was_asked_for(writer: Writer, other: SharedLog) -> None:
    for size in [200] * 40 + [60_000] * 5 + [300] * 30:
        writer.append(size)
    for page_bytes in (1, 1_000, 50_000, 1_000_000):
        assert all_records(other, 0, page_bytes) == writer.records
        for after in range(0, writer.position, 7):
            records = other.read(after, page_bytes).records
            assert len(records) == 1 or sum(map(len, records)) <= page_bytes
    assert len(other.read(0, 100_000).records) > 20, "a page of many small records"


def test_any_order_of_calls_is_that_of_a_list(subject: Subject, writer: Writer, other: SharedLog) -> None:
    """Two nodes append, right and wrong, trim and read; a list says what has to come of it."""
    chance = random.Random(7)
    model: list[bytes] = []
    chains, first = [ZEROS], 1
    for step in range(150):
        at = chance.choice([writer.log, other])
        choice = chance.random()
        if choice < 0.6:
            expect = max(len(model) - chance.choice([0, 0, 0, 1, 2, -1]), 0)
            chain = chance.choice([chains[min(expect, len(model))], chance.choice(chains)])
            data = record(f"step {step}", chain)
            if (expect, chain) == (len(model), chains[-1]):
                at.append(expect, chain, data)
                model.append(data)
                chains.append(data[-CHAIN_BYTES:])
            else:
                with pytest.raises(TakenError):
                    at.append(expect, chain, data)
        elif choice < 0.65:
            before = chance.randint(0, len(model) + 2)
            at.trim(before)
            first = max(first, min(before, len(model)))
        else:
            after = chance.randint(0, len(model) + 1)
            if after + 1 < first:
                with pytest.raises(TrimmedError) as raised:
                    at.read(after, PAGE_BYTES)
                assert raised.value.first == first
            else:
                assert at.read(after, PAGE_BYTES) == Found(model[after:], len(model))
    assert len(model) > 30
    assert first > 1


@pytest.mark.parametrize("writers", [2, 8])
def test_of_several_appends_at_one_instant_one_succeeds(subject: Subject, writer: Writer, writers: int) -> None:
    """Also of nodes that have not read what they stand behind."""
    logs = [subject.log() for _ in range(writers)]
    for log in logs:
        log.open(1)
    seats = [Writer(log, seed) for seed, log in enumerate(logs, 1)]
    for position in range(12):
        records = [seat.next(250) for seat in seats]
        tries = zip(seats, records, strict=True)
        results = at_once(*(partial(seat.log.append, position, seat.chain, data) for seat, data in tries))
        won = [index for index, result in enumerate(results) if result is None]
        assert len(won) == 1, results
        assert all(isinstance(result, TakenError) for result in results if result is not None), results
        for seat in seats:
            seat.landed(records[won[0]])
        assert writer.log.read(position, PAGE_BYTES) == Found([records[won[0]]], position + 1)
    assert all_records(writer.log) == seats[0].records


@pytest.mark.slow
@pytest.mark.parametrize("writers", [2, 4])
def test_of_many_that_race_one_gets_each_place(subject: Subject, writer: Writer, writers: int) -> None:
    """Each writer is a process of its own, where the engine can be reached from one."""
    upto = 120
    place = subject.place("one")
    won = _threads(subject, writers, upto) if place is None else _processes(place, writers, upto)
    found = all_records(writer.log)
    assert len(found) == upto
    winners = {position: name for name, positions in won.items() for position in positions}
    assert sum(map(len, won.values())) == len(winners) == upto  # nobody was told so of another's place
    chain = ZEROS
    for position, data in enumerate(found, 1):
        assert data == record(f"{winners[position]} {position}", chain)
        chain = data[-CHAIN_BYTES:]


def _threads(subject: Subject, writers: int, upto: int) -> dict[str, list[int]]:
    won: dict[str, list[int]] = {}

    def write(name: str) -> None:
        own = subject.log()
        own.open(1)
        won[name] = race(own, name, upto)

    assert at_once(*(partial(write, f"w{number}") for number in range(writers))) == [None] * writers
    return won


def _processes(place: tuple[str, str], writers: int, upto: int) -> dict[str, list[int]]:
    names = [f"w{number}" for number in range(writers)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engines.writer", *place, name, str(upto)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in names
    ]
    won: dict[str, list[int]] = {}
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for name, process in zip(names, started, strict=True):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        won[name] = json.loads(out)
    return won


# --- trim -----------------------------------------------------------------------------------------------------------


def test_trimmed_records_are_refused_by_name(writer: Writer, other: SharedLog) -> None:
    for size in [200] * 8 + [2_000_000, 200]:
        writer.append(size)
    assert writer.log.size_bytes() == other.size_bytes() == sum(map(len, writer.records))
    writer.log.trim(1)
    assert all_records(other) == writer.records
    for before, first in ((5, 5), (3, 5), (10, 10), (10, 10), (400, 10)):
        other.trim(before)
        for log in (writer.log, other):
            assert all_records(log, first - 1) == writer.records[first - 1 :]
            for after in range(first - 1):
                with pytest.raises(TrimmedError) as caught:
                    log.read(after, PAGE_BYTES)
                assert caught.value.first == first
            assert log.size_bytes() == sum(map(len, writer.records[first - 1 :]))
    writer.append()
    assert all_records(other, 9) == writer.records[9:]


def test_a_log_without_records_is_trimmed_and_measured(writer: Writer) -> None:
    writer.log.trim(5)
    assert writer.log.size_bytes() == 0
    assert writer.log.read(0, 1) == Found([], 0)
    writer.append()
    assert all_records(writer.log) == writer.records


@pytest.mark.parametrize(("count", "size_bytes", "before"), [(40, MIB, 39), (2_100, 30, 2_050)])
def test_much_is_read_and_trimmed_in_steps(writer: Writer, count: int, size_bytes: int, before: int) -> None:
    """More than an engine reads or forgets in one step, in bytes or in records."""
    for _ in range(count):
        writer.append(size_bytes)
    assert writer.log.size_bytes() == count * size_bytes
    assert all_records(writer.log, page_bytes=10_000_000) == writer.records
    writer.log.trim(before)
    assert all_records(writer.log, before - 1) == writer.records[before - 1 :]
    assert writer.log.size_bytes() == (count - before + 1) * size_bytes
    with pytest.raises(TrimmedError):
        writer.log.read(before - 2, 1)


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_a_snapshot_comes_back_whole_in_pieces(writer: Writer, other: SharedLog) -> None:
    assert other.newest_snapshot() is None
    chance = random.Random(3)
    pieces = [chance.randbytes(size) for size in (5, 0, 3 * MIB, 17, MIB, MIB - 1)]
    writer.log.put_snapshot(41, iter(pieces))
    found = other.newest_snapshot()
    assert found is not None
    position, read = found
    got = list(read)
    assert position == 41
    assert b"".join(got) == b"".join(pieces)
    assert 0 < min(map(len, got)) <= max(map(len, got)) <= MIB


def test_the_highest_position_is_the_newest_snapshot(writer: Writer, other: SharedLog) -> None:
    content = random.Random(5).randbytes(3_000_000)
    writer.log.put_snapshot(4, iter([content[:10], content[10:]]))
    other.put_snapshot(3, iter([b"older"]))
    other.put_snapshot(4, iter([b"another of that position"]))
    for log in (writer.log, other):
        assert snapshot_of(log) == (4, content)
        assert log.size_bytes() == len(content)
    other.put_snapshot(9, iter([]))
    found = writer.log.newest_snapshot()
    assert found is not None
    assert (found[0], list(found[1])) == (9, [])


def test_a_snapshot_that_was_broken_off_is_not_shown(writer: Writer, other: SharedLog) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        raise OSError("the disk of the one who makes it")

    writer.log.put_snapshot(1, iter([b"one"]))
    with pytest.raises(OSError, match="the disk"):
        writer.log.put_snapshot(2, broken())
    assert snapshot_of(other) == (1, b"one")
    other.put_snapshot(2, iter([b"two"]))
    assert snapshot_of(writer.log) == (2, b"two")
    writer.log.put_snapshot(3, iter([b"three"]))
    assert snapshot_of(other) == (3, b"three")


def test_a_snapshot_is_readable_while_the_next_one_comes(writer: Writer, other: SharedLog) -> None:
    content = random.Random(1).randbytes(4 * MIB)
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


def test_two_nodes_that_leave_snapshots_at_once_leave_whole_ones(writer: Writer, other: SharedLog) -> None:
    """The one that is overtaken may be told to try again; nobody ever sees a half."""

    def slow() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        other.put_snapshot(6, iter([b"six"]))
        yield b"end"

    for position, newest in ((5, (6, b"six")), (9, (9, bytes(2 * MIB) + b"end"))):
        with suppress(UnreachableError):
            writer.log.put_snapshot(position, slow())
        assert snapshot_of(writer.log) in (newest, (6, b"six"))


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_closed_log_does_nothing(writer: Writer, other: SharedLog) -> None:
    data = writer.next()
    writer.log.close()
    writer.log.close()
    with pytest.raises(UnknownError):
        writer.log.append(0, ZEROS, data)
    with pytest.raises(UnreachableError):
        writer.log.read(0, PAGE_BYTES)
    assert other.read(0, PAGE_BYTES) == Found([], 0)
