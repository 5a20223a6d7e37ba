# SPDX-License-Identifier: Apache-2.0
"""What every engine keeps: E1 to E3, and the rest of the protocol in durable/shared_log.py."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import LANDED, Found, Placing, SharedLog, TakenError, TrimmedError, UnreachableError
from tests.engines.kit import BYTES_MAX, ZEROS, all_of, filled, placed, record
from tests.engines.subjects import Subject
from tests.engines.writer import race

ROOT = Path(__file__).resolve().parents[2]
MIB = 1_048_576


@pytest.fixture
def log(subject: Subject) -> Iterator[SharedLog]:
    made = subject.log("one")
    made.open(1)
    yield made
    made.close()


# --- open -----------------------------------------------------------------------------------------------------------


def test_the_first_gives_the_log_its_id(subject: Subject) -> None:
    first, second = subject.log("one"), subject.log("one")
    info = first.open(2**64 - 1)
    assert info.cluster_id == 2**64 - 1
    assert second.open(7) == info
    assert first.open(8) == info
    first.close()
    second.close()


def test_nodes_that_make_the_log_at_once_agree(subject: Subject) -> None:
    ids: list[int] = []

    def node(own: int) -> None:
        log = subject.log("one")
        ids.append(log.open(own).cluster_id)
        log.close()

    threads = [threading.Thread(target=node, args=(own,)) for own in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1
    assert ids[0] in range(1, 7)


def test_logs_of_two_clusters_know_nothing_of_each_other(subject: Subject, log: SharedLog) -> None:
    other = subject.log("two")
    assert other.open(99).cluster_id == 99
    filled(log, 3)
    log.put_snapshot(2, iter([b"one"]))
    assert other.read(0, BYTES_MAX) == Found([], 0)
    assert other.newest_snapshot() is None
    made = record("other", ZEROS)
    other.append(0, ZEROS, made)
    log.trim(3)
    assert all_of(other) == [made]
    other.close()


# --- append and read ------------------------------------------------------------------------------------------------


def test_an_empty_log_has_no_records(log: SharedLog) -> None:
    assert log.read(0, 1) == Found([], 0)


def test_records_are_read_in_order_and_whole(subject: Subject, log: SharedLog) -> None:
    made = filled(log, 20)
    reader = subject.log("one")
    reader.open(2)
    assert reader.read(0, BYTES_MAX) == Found(made, 20)
    assert reader.read(12, BYTES_MAX) == Found(made[12:], 20)
    assert reader.read(20, BYTES_MAX) == Found([], 20)
    assert reader.read(31, BYTES_MAX) == Found([], 20)
    reader.close()


def test_a_read_keeps_to_its_bytes_but_brings_one_record(log: SharedLog) -> None:
    made = filled(log, 6, size_bytes=1_000)
    assert log.read(0, 1).records == made[:1]
    assert log.read(3, 1).records == made[3:4]
    some = log.read(0, 3_000).records
    assert some == made[: len(some)]
    assert 1 <= len(some) <= 4
    assert all_of(log) == made


@pytest.mark.parametrize(
    ("expect", "chain"),
    [(0, "zeros"), (1, "first"), (1, "second"), (2, "first"), (2, "zeros"), (3, "second"), (0, "second")],
)
def test_only_the_newest_records_place_and_chain_value_are_taken(log: SharedLog, expect: int, chain: str) -> None:
    made = filled(log, 2)
    chains = {"zeros": ZEROS, "first": made[0][-CHAIN_BYTES:], "second": made[1][-CHAIN_BYTES:]}
    with pytest.raises(TakenError):
        log.append(expect, chains[chain], record("wrong", chains[chain]))
    assert log.read(0, BYTES_MAX) == Found(made, 2)


def test_a_record_that_is_appended_twice_stands_once(log: SharedLog) -> None:
    made = filled(log, 1)
    with pytest.raises(TakenError):
        log.append(0, ZEROS, made[0])
    assert log.read(0, BYTES_MAX) == Found(made, 1)


@pytest.mark.parametrize("size_bytes", [1_500_000, 16 * MIB])
def test_large_records(subject: Subject, log: SharedLog, size_bytes: int) -> None:
    chance = random.Random(size_bytes)
    data = chance.randbytes(size_bytes)
    log.append(0, ZEROS, data)
    small = record("small", data[-CHAIN_BYTES:])
    log.append(1, data[-CHAIN_BYTES:], small)
    reader = subject.log("one")
    reader.open(2)
    assert reader.read(0, 1) == Found([data], 2)
    assert all_of(reader) == [data, small]
    reader.close()


def test_any_order_of_calls_is_that_of_a_list(subject: Subject, log: SharedLog) -> None:
    """Two nodes append, right and wrong, trim and read; a list says what has to come of it."""
    chance = random.Random(7)
    logs = [log, subject.log("one")]
    logs[1].open(2)
    model: list[bytes] = []
    chains, first = [ZEROS], 1
    for step in range(150):
        at = chance.choice(logs)
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
                    at.read(after, BYTES_MAX)
                assert raised.value.first == first
            else:
                assert at.read(after, BYTES_MAX) == Found(model[after:], len(model))
    assert len(model) > 30
    assert first > 1
    logs[1].close()


@pytest.mark.slow
@pytest.mark.parametrize("writers", [2, 8])
def test_of_many_that_want_one_place_one_gets_it(subject: Subject, log: SharedLog, writers: int) -> None:
    """Each writer is a process of its own, where the engine can be reached from one."""
    upto = 120
    place = subject.place("one")
    won = _threads(subject, writers, upto) if place is None else _processes(place, writers, upto)
    found = all_of(log)
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
        own = subject.log("one")
        own.open(1)
        won[name] = race(own, name, upto)

    threads = [threading.Thread(target=write, args=(f"w{number}",)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
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


def test_what_was_trimmed_is_an_error_that_says_what_is_left(subject: Subject, log: SharedLog) -> None:
    made = filled(log, 10)
    log.trim(7)
    for after in (0, 5):
        with pytest.raises(TrimmedError) as raised:
            log.read(after, BYTES_MAX)
        assert raised.value.first == 7
    assert log.read(6, BYTES_MAX) == Found(made[6:], 10)
    log.trim(3)  # is forgotten already
    other = subject.log("one")
    other.open(2)
    assert other.read(6, BYTES_MAX) == Found(made[6:], 10)
    other.close()


def test_the_newest_record_is_never_forgotten(log: SharedLog) -> None:
    log.trim(5)
    assert log.read(0, 1) == Found([], 0)
    made = filled(log, 3)
    log.trim(99)
    assert log.read(2, BYTES_MAX) == Found(made[2:], 3)
    fourth = record("r4", made[2][-CHAIN_BYTES:])
    log.append(3, made[2][-CHAIN_BYTES:], fourth)
    assert log.read(2, BYTES_MAX) == Found([made[2], fourth], 4)


def test_many_records_are_trimmed_in_steps(log: SharedLog) -> None:
    made = filled(log, 40, size_bytes=MIB)
    assert log.size_bytes() == 40 * MIB
    log.trim(39)
    assert all_of(log, after=38) == made[38:]
    assert log.size_bytes() == 2 * MIB


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_a_snapshot_comes_back_whole_in_pieces(subject: Subject, log: SharedLog) -> None:
    assert log.newest_snapshot() is None
    chance = random.Random(3)
    pieces = [chance.randbytes(size) for size in (5, 0, 3 * MIB, 17, MIB, MIB - 1)]
    log.put_snapshot(41, iter(pieces))
    reader = subject.log("one")
    reader.open(2)
    found = reader.newest_snapshot()
    assert found is not None
    position, read = found
    got = list(read)
    assert position == 41
    assert b"".join(got) == b"".join(pieces)
    assert max(map(len, got)) <= MIB
    reader.close()


def test_the_highest_position_is_the_newest_snapshot(log: SharedLog) -> None:
    for position in (3, 9, 5):
        log.put_snapshot(position, iter([str(position).encode()]))
    found = log.newest_snapshot()
    assert found is not None
    assert (found[0], b"".join(found[1])) == (9, b"9")


def test_an_empty_snapshot_is_one(log: SharedLog) -> None:
    log.put_snapshot(1, iter(()))
    found = log.newest_snapshot()
    assert found is not None
    assert (found[0], list(found[1])) == (1, [])


def test_half_a_snapshot_is_none(log: SharedLog) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        raise OSError("the disk of the one who makes it")

    log.put_snapshot(1, iter([b"whole"]))
    with pytest.raises(OSError, match="the disk"):
        log.put_snapshot(2, broken())
    found = log.newest_snapshot()
    assert found is not None
    assert (found[0], b"".join(found[1])) == (1, b"whole")
    log.put_snapshot(3, iter([b"next"]))
    found = log.newest_snapshot()
    assert found is not None
    assert (found[0], b"".join(found[1])) == (3, b"next")


def test_a_reader_of_a_snapshot_ends_though_a_newer_one_comes(subject: Subject, log: SharedLog) -> None:
    blob = random.Random(1).randbytes(4 * MIB)
    log.put_snapshot(5, iter([blob]))
    found = log.newest_snapshot()
    assert found is not None
    got = [next(found[1])]
    other = subject.log("one")
    other.open(2)
    other.put_snapshot(6, iter([b"newer"]))
    other.close()
    got += found[1]
    assert b"".join(got) == blob


def test_two_nodes_that_leave_snapshots_at_once_leave_whole_ones(subject: Subject, log: SharedLog) -> None:
    """The one that is overtaken may be told to try again; nobody ever sees a half."""
    other = subject.log("one")
    other.open(2)

    def slow() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        other.put_snapshot(6, iter([b"six"]))
        yield b"end"

    for position, newest in ((5, (6, b"six")), (9, (9, bytes(2 * MIB) + b"end"))):
        with suppress(UnreachableError):
            log.put_snapshot(position, slow())
        found = log.newest_snapshot()
        assert found is not None
        got = (found[0], b"".join(found[1]))
        assert got in (newest, (6, b"six"))
    other.close()


# --- the life of one record -----------------------------------------------------------------------------------------


def test_a_record_that_landed_is_known_again_by_its_bytes(log: SharedLog) -> None:
    made = filled(log, 2)
    placing = Placing(1, made[0][-CHAIN_BYTES:], made[1])
    assert placed(log, placing) == LANDED


def test_a_closed_log_answers_nothing(log: SharedLog) -> None:
    log.close()
    log.close()
    with pytest.raises(UnreachableError):
        log.read(0, 1)
