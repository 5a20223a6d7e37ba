# SPDX-License-Identifier: Apache-2.0
"""The batch log by itself: what comes back, what ends it, what is refused, and that nothing needed is written over."""

import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.durable import batch_log, directory
from lessor.durable.batch_log import BatchLog, decode, encode, read
from lessor.durable.engine import DataDirError
from lessor.durable.unfolded import Unfolded
from lessor.state.journal import Batch
from tests.unit.durable.engine_rows import batch, put

SALT = b"\xf1salted\xf2"
INT64 = st.integers(-(2**63), 2**63 - 1)
events_rows = st.tuples(
    INT64, st.integers(0, 2**32 - 1), st.binary(max_size=50), st.none() | st.binary(max_size=50), INT64, INT64, INT64
)
leases_rows = st.tuples(INT64, INT64, st.floats(allow_nan=False), st.booleans())


Filled = tuple[Path, int, list[tuple[str, int, int]]]


class Written:
    """Stands in for os.pwrite; notes where each record went."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, int]] = []  # name of the file, from, to

    def write(self, descriptor: int, data: memoryview, position: int) -> int:
        if bytes(data[: len(SALT)]) == SALT:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.records.append((name, position, position + len(data)))
        return os.pwrite(descriptor, data, position)


@given(st.integers(1, 2**64 - 1), st.lists(events_rows, max_size=5), st.lists(leases_rows, max_size=5), st.binary())
def test_a_record_comes_back_as_it_was(number: int, events: list[Any], leases: list[Any], around: bytes) -> None:
    given_batch = batch(number, events=events, leases=leases, clock_s=number / 3)
    record = decode(around + encode(given_batch, number - 1, SALT) + around, len(around), 0)
    assert record is not None
    assert (record.number, record.follows, record.clock_s) == (number, number - 1, number / 3)
    assert (record.events, record.leases) == (events, leases)


@given(st.binary(max_size=300), st.integers(0, 320))
def test_garbage_is_no_record(data: bytes, position: int) -> None:
    assert decode(data, position, 0) is None


def sized(number: int, size: int) -> Batch:
    return batch(number, events=[put(number, b"key", b"v" * size)])


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filled:
    """A log whose files have both started over several times, with needed records in both.

    Gives the directory, the newest batch in the tables, and where each record above it stands, ascending.
    """
    monkeypatch.setattr(batch_log, "FILE_BYTES", 1_000)
    written = Written()
    log = BatchLog(tmp_path, written.write)
    chance = random.Random(3)
    folded, unfolded_bytes = 0, [0]
    for number in range(1, 101):
        record = encode(sized(number, chance.choice([5, 5, 80, 200])), number - 1, SALT)
        log.append(record, number, folded)
        unfolded_bytes.append(len(record))
        while sum(unfolded_bytes[folded + 1 :]) > 750:
            folded += 1
    log.close()
    starts = [name for name, start, _ in written.records if start == 0]
    assert starts.count("lessor.log.0") > 3
    assert starts.count("lessor.log.1") > 3
    needed = written.records[folded:]
    assert all(sum(where == name for where, _, _ in needed) > 1 for name in directory.LOG_NAMES)
    return tmp_path, folded, needed


def assert_prefix_or_refused(data_dir: Path, folded: int, spoilt: list[bool]) -> None:
    """`spoilt`: for each needed record, whether it is not whole any more."""
    numbers = [folded + 1 + index for index, bad in enumerate(spoilt) if not bad]
    if numbers == list(range(folded + 1, folded + 1 + len(numbers))):
        assert [record.number for record in read(data_dir, SALT, folded)] == numbers
    else:
        with pytest.raises(DataDirError, match=r"damaged \(batch .* is there, but") as caught:
            read(data_dir, SALT, folded)
        assert "\n" not in str(caught.value)


def test_what_is_needed_comes_back_in_order(filled: Filled) -> None:
    data_dir, folded, needed = filled
    records = read(data_dir, SALT, folded)
    assert [record.number for record in records] == list(range(folded + 1, 101))
    assert [record.events[0][0] for record in records] == list(range(folded + 1, 101))
    assert len(records) == len(needed)
    assert read(data_dir, SALT, 100) == []


@pytest.mark.slow
def test_a_file_cut_anywhere_is_a_prefix_or_refused(filled: Filled) -> None:
    data_dir, folded, needed = filled
    outcomes = set()
    for name in directory.LOG_NAMES:
        whole = (data_dir / name).read_bytes()
        for offset in reversed(range(len(whole))):
            os.truncate(data_dir / name, offset)
            spoilt = [where == name and end > offset for where, _, end in needed]
            assert_prefix_or_refused(data_dir, folded, spoilt)
            outcomes.add(tuple(spoilt))
        (data_dir / name).write_bytes(whole)
    assert len(outcomes) >= len(needed)


@pytest.mark.slow
def test_a_bad_byte_anywhere_is_harmless_or_ends_the_log_or_is_refused(
    filled: Filled,
) -> None:
    data_dir, folded, needed = filled
    for name in directory.LOG_NAMES:
        with (data_dir / name).open("r+b", buffering=0) as file:
            for offset, byte in enumerate(file.readall()):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << offset % 8]), offset)
                spoilt = [where == name and start <= offset < end for where, start, end in needed]
                assert_prefix_or_refused(data_dir, folded, spoilt)
                os.pwrite(file.fileno(), bytes([byte]), offset)


@pytest.mark.slow
@pytest.mark.parametrize("file_bytes", [1_000, 1_001])
def test_nothing_that_is_needed_is_written_over_however_late_the_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    """Records of one size, so that new ones fall exactly over old ones."""
    monkeypatch.setattr(batch_log, "FILE_BYTES", file_bytes)
    log = BatchLog(tmp_path)
    chance, folded, full = random.Random(file_bytes), 0, 0
    for number in range(1, 400):
        record = encode(sized(number, 10), number - 1, SALT)
        if not log.has_room(len(record), folded):
            with pytest.raises(AssertionError):
                log.append(record, number, folded)
            folded, full = number - 1, full + 1
        log.append(record, number, folded)
        assert [record.number for record in read(tmp_path, SALT, folded)] == list(range(folded + 1, number + 1))
        if chance.random() < 0.1:
            folded = chance.randint(folded, number)
        assert all((tmp_path / name).stat().st_size == file_bytes for name in directory.LOG_NAMES)
    assert 5 < full < 100
    log.close()


def test_what_looks_like_a_record_in_a_value_is_none(tmp_path: Path) -> None:
    """A client knows the form but not the salt. Its record stands whole behind a shorter one of a new round."""
    forged = encode(batch(9, events=[put(9, b"secret", b"forged")]), 1, b"guessed!")
    log = BatchLog(tmp_path)
    log.append(encode(batch(1, events=[put(1, b"k" * 100, forged)]), 0, SALT), 1, 0)
    log.append(encode(batch(2), 1, SALT), 2, 1)
    log.close()
    assert forged in (tmp_path / "lessor.log.0").read_bytes()
    assert [record.number for record in read(tmp_path, SALT, 1)] == [2]


def test_an_earlier_runs_records_do_not_count(tmp_path: Path) -> None:
    log = BatchLog(tmp_path)
    log.append(encode(sized(1, 10), 0, SALT), 1, 0)
    log.close()
    assert read(tmp_path, b"the next", 0) == []
    assert len(read(tmp_path, SALT, 0)) == 1


def test_the_files_are_the_owners_alone_and_keep_their_size(tmp_path: Path) -> None:
    log = BatchLog(tmp_path)
    for number in range(1, 20):
        log.append(encode(sized(number, 100_000), number - 1, SALT), number, number - 1)
    for name in directory.LOG_NAMES:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / name).stat().st_size == batch_log.FILE_BYTES
    log.close()
    log.close()


def test_a_length_that_leads_beyond_the_file_is_no_record() -> None:
    record = bytearray(encode(sized(1, 10), 0, SALT))
    struct.pack_into("<I", record, len(SALT) + 4, 2**32 - 1)
    assert decode(bytes(record), 0, 0) is None


# --- what waits for a fold ------------------------------------------------------------------------------------------


def test_the_oldest_batches_are_folded_whole_and_the_newest_row_of_a_lease_counts() -> None:
    unfolded = Unfolded()
    unfolded.add(batch(1, leases=[(7, 60, 1.0, False)], events=[put(2, b"a")]), 100)
    unfolded.add(batch(3, leases=[(7, 60, 2.0, False), (8, 60, 2.0, False)], clock_s=3.5), 50)
    unfolded.add(batch(4, leases=[(7, 60, 4.0, True)]), 50)
    fold = unfolded.oldest(3)
    assert (fold.number, fold.clock_s) == (3, 3.5)
    assert fold.events == [(*put(2, b"a"), 1)]
    assert list(fold.leases.values()) == [(7, 60, 2.0, False, 3), (8, 60, 2.0, False, 3)]
    assert (len(unfolded), unfolded.size_bytes) == (3, 200)
    unfolded.remove(fold)
    assert (len(unfolded), unfolded.size_bytes) == (1, 50)
    assert unfolded.oldest(1_000).number == 4


def test_batches_without_rows_are_kept_as_one_but_their_bytes_are_counted() -> None:
    unfolded = Unfolded()
    for number in range(1, 1_000):
        unfolded.add(batch(number, clock_s=number / 2), 10)
    assert (len(unfolded), unfolded.size_bytes) == (1, 9_990)
    unfolded.add(batch(1_000, events=[put(2, b"a")]), 10)
    unfolded.add(batch(1_001, clock_s=900.0), 10)
    assert len(unfolded) == 3
    fold = unfolded.oldest(2)
    assert (fold.number, fold.clock_s, fold.batches) == (1_001, 900.0, 3)
    unfolded.remove(fold)
    assert (len(unfolded), unfolded.size_bytes) == (0, 0)
