# SPDX-License-Identifier: Apache-2.0
"""The log by itself: what comes back, what ends it, what is refused, and that nothing needed is written over."""

import contextlib
import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lessor.durable import directory, file_log, sectors
from lessor.durable.engine import DataDirError
from lessor.durable.file_log import Disk, FileLog
from lessor.durable.log import Log, LogFullError, OutcomeUnknownError, RefusedError
from lessor.durable.record import CHAIN_BYTES, encode
from lessor.durable.sectors import SECTOR_BYTES, ZEROS
from tests.faulty_disk import WriteFaults, log_file
from tests.unit.durable.engine_rows import batch, put

SEGMENT_BYTES = 10 * SECTOR_BYTES  # eight sectors of records: none goes into the first and the last one
NO_CHAIN = bytes(CHAIN_BYTES)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_log, "SEGMENT_BYTES", SEGMENT_BYTES)
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 2 * SEGMENT_BYTES)


class Writer:
    """Appends records to a log, each of so many bytes of value; knows their chain."""

    def __init__(self, data_dir: Path, disk: Disk | None = None, sync: bool = True) -> None:
        data_dir.mkdir(exist_ok=True)
        self.log = FileLog(data_dir, b"", disk, sync=sync)
        assert self.log.begin(0)
        self.number = 0
        self.chains = {0: NO_CHAIN}

    def record(self, size: int) -> bytes:
        number = self.number + 1
        return encode(number, 1, self.chains[self.number], batch(number, events=[put(number, b"key", b"v" * size)]))

    def append(self, size: int) -> None:
        data = self.record(size)
        self.log.append(data, self.number + 1)
        self.number += 1
        self.chains[self.number] = data[-CHAIN_BYTES:]


def numbers(data_dir: Path, writer: Writer, after: int) -> list[int]:
    log = FileLog(data_dir, writer.log.log_id)
    return [record.number for record in log.read(after, writer.chains[after])]


def is_a_log(log: FileLog) -> Log:
    return log  # checked by mypy


class Written(Disk):
    """Notes where each record went."""

    def __init__(self) -> None:
        self.records: list[tuple[str, int, int]] = []  # name of the file, from, to

    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        if position:
            self.records.append((log_file(descriptor), position, position + len(data)))
        return os.pwrite(descriptor, data, position)


Filled = tuple[Path, Writer, int, list[tuple[str, int, int]]]


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    """A log whose files have both started over several times, with needed records in both.

    Gives the directory, its writer, the newest record in the tables, and where each record above it stands, ascending.
    """
    written = Written()
    writer = Writer(tmp_path, written)
    chance = random.Random(3)
    trimmed = 0
    for number in range(1, 101):
        writer.append(chance.choice([5, 5, 5, 400, 700]))
        while sum(end - start for _, start, end in written.records[trimmed:]) > 7 * SECTOR_BYTES:
            trimmed += 1
        if number < 100:
            writer.log.trim(trimmed)
    writer.log.close()
    starts = [name for name, start, _ in written.records if start == SECTOR_BYTES]
    assert starts.count("lessor.log.0") > 3
    assert starts.count("lessor.log.1") > 3
    needed = written.records[trimmed:]
    assert all(sum(where == name for where, _, _ in needed) > 1 for name in directory.LOG_NAMES)
    assert any(end - start > SECTOR_BYTES for _, start, end in needed)
    return tmp_path, writer, trimmed, needed


def test_what_is_needed_comes_back_in_order(filled: Filled) -> None:
    data_dir, writer, trimmed, needed = filled
    records = FileLog(data_dir, writer.log.log_id).read(trimmed, writer.chains[trimmed])
    assert [record.number for record in records] == list(range(trimmed + 1, 101))
    assert [record.rows.events[0][0] for record in records] == list(range(trimmed + 1, 101))
    assert [record.chain for record in records] == [writer.chains[number] for number in range(trimmed + 1, 101)]
    assert len(records) == len(needed)
    assert numbers(data_dir, writer, 100) == []


def refusal(data_dir: Path, writer: Writer, after: int) -> str | None:
    """Why the log is refused; None when it is not, and everything is there."""
    why = None
    try:
        assert numbers(data_dir, writer, after) == list(range(after + 1, 101)), "something is left out silently"
    except DataDirError as error:
        why = str(error)
    assert "\n" not in (why or "")
    return why


@pytest.mark.slow
def test_a_file_cut_anywhere_is_refused(filled: Filled) -> None:
    data_dir, writer, trimmed, _ = filled
    for name in directory.LOG_NAMES:
        whole = (data_dir / name).read_bytes()
        for offset in reversed(range(1, len(whole))):
            os.truncate(data_dir / name, offset)
            assert "damaged" in (refusal(data_dir, writer, trimmed) or "")
        (data_dir / name).write_bytes(whole)


@pytest.mark.slow
def test_a_bit_flipped_anywhere_is_harmless_or_refused(filled: Filled) -> None:
    """In what is needed, the newest record too, it is refused; nothing is left out."""
    data_dir, writer, trimmed, needed = filled
    for name in directory.LOG_NAMES:
        with (data_dir / name).open("r+b", buffering=0) as file:
            for offset, byte in enumerate(file.readall()):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << offset % 8]), offset)
                why = refusal(data_dir, writer, trimmed)
                spoilt = any(where == name and start <= offset < end for where, start, end in needed)
                if offset < 64 - 20 or spoilt:
                    assert why is not None
                    assert "damaged" in why
                elif offset > SECTOR_BYTES:
                    assert why is None
                os.pwrite(file.fileno(), bytes([byte]), offset)


@pytest.mark.slow
def test_bad_bytes_anywhere_but_at_the_end_of_the_newest_record_are_refused(filled: Filled) -> None:
    """There they look like what a crash may leave of a write."""
    data_dir, writer, trimmed, needed = filled
    chance = random.Random(5)
    for name, start, end in needed:
        with (data_dir / name).open("r+b", buffering=0) as file:
            data = file.readall()
            for offset in range(start, end - 8, 7):
                os.pwrite(file.fileno(), chance.randbytes(8), offset)
                if end == needed[-1][2] and name == needed[-1][0] and offset >= end - SECTOR_BYTES - 8:
                    assert newest_is_refused_or_torn(data_dir, writer, trimmed)
                else:
                    assert "damaged" in (refusal(data_dir, writer, trimmed) or "")
                os.pwrite(file.fileno(), data[offset : offset + 8], offset)


def newest_is_refused_or_torn(data_dir: Path, writer: Writer, after: int) -> bool:
    try:
        return numbers(data_dir, writer, after) == list(range(after + 1, 100))
    except DataDirError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 900, 3_000], ids=["one sector", "three", "a file and more"])
@pytest.mark.parametrize("trim", [False, True], ids=["over zeros", "over old records"])
def test_a_write_torn_at_any_byte_ends_the_log(tmp_path: Path, size: int, trim: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    disk = Torn()
    writer = Writer(tmp_path / "log", disk, sync=False)
    after = 0
    for _ in range(8):
        writer.append(700)
        writer.append(10)
        if trim:
            after = writer.number - 1
            writer.log.trim(after)
    step = 1 if size == 10 else 37
    disk.crash = lambda whole: assert_ends(tmp_path, writer, after, whole)
    disk.step = step
    writer.append(size)
    disk.crash = None
    assert disk.crashes > size // step
    assert numbers(tmp_path / "log", writer, after)[-1] == writer.number


class Torn(Disk):
    """Looks at what a crash would leave after every few bytes of a write."""

    def __init__(self) -> None:
        self.crash: Any = None
        self.step = 1
        self.crashes = 0

    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        if self.crash is None:
            return os.pwrite(descriptor, data, position)
        written = os.pwrite(descriptor, data[: self.step], position)
        if written < len(data):
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                file.seek(position)
                # What is missing may be there already: records end with zeros.
                self.crash(file.read(len(data)) == data)
            self.crashes += 1
        return written


def assert_ends(home: Path, writer: Writer, after: int, whole: bool) -> None:
    """All that was acknowledged is there, and nothing else but a record that happens to be whole."""
    assert numbers(home / "log", writer, after) == list(range(after + 1, writer.number + 1 + whole))


@pytest.mark.slow
@pytest.mark.parametrize("size", [900, 3_000])
@pytest.mark.parametrize("trim", [False, True], ids=["over zeros", "over old records"])
def test_a_write_of_which_any_sectors_are_missing_ends_the_log(
    tmp_path: Path, size: int, trim: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a loss of power: the disk has written some sectors of the record, in any order."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    writer = Writer(tmp_path / "log", sync=False)
    after = 0
    for _ in range(8):
        writer.append(700)
        writer.append(10)
        if trim:
            after = writer.number - 1
            writer.log.trim(after)
    before = {name: (tmp_path / "log" / name).read_bytes() for name in directory.LOG_NAMES}
    acknowledged = writer.number
    writer.append(size)
    full = {name: (tmp_path / "log" / name).read_bytes() for name in directory.LOG_NAMES}
    (name,) = (name for name in directory.LOG_NAMES if full[name] != before[name])
    old, new = before[name].ljust(len(full[name]), b"\0"), full[name]
    changed = [at for at in range(0, len(new), SECTOR_BYTES) if old[at : at + 512] != new[at : at + 512]]
    chance = random.Random(size)
    for _ in range(200):
        left = bytearray(new)
        lost = [at for at in changed if chance.random() < 0.5]
        for at in lost:
            left[at : at + SECTOR_BYTES] = old[at : at + SECTOR_BYTES]
        (tmp_path / "log" / name).write_bytes(left)
        found = numbers(tmp_path / "log", writer, after)
        assert found == list(range(after + 1, acknowledged + 1 + (not lost)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 600])
def test_nothing_that_is_needed_is_written_over_however_late_the_trims(tmp_path: Path, size: int) -> None:
    """Records of one size, so that new ones fall exactly over old ones."""
    writer = Writer(tmp_path)
    chance, trimmed, full = random.Random(size), 0, 0
    for number in range(1, 400):
        try:
            writer.append(size)
        except LogFullError:
            assert numbers(tmp_path, writer, trimmed) == list(range(trimmed + 1, number))
            trimmed, full = number - 1, full + 1
            writer.log.trim(trimmed)
            writer.append(size)
        assert numbers(tmp_path, writer, trimmed) == list(range(trimmed + 1, number + 1))
        if chance.random() < 0.1:
            trimmed = chance.randint(trimmed, number)
            writer.log.trim(trimmed)
        assert all((tmp_path / name).stat().st_size == SEGMENT_BYTES for name in directory.LOG_NAMES)
    assert 5 < full < 100
    writer.log.close()


def test_what_looks_like_a_record_in_a_value_is_none(tmp_path: Path) -> None:
    """A client knows the form, and even the chain. Its sectors stand whole in a value, wherever they begin."""
    writer = Writer(tmp_path)
    writer.append(5)
    forged = encode(3, 1, NO_CHAIN, batch(9, events=[put(9, b"secret", b"forged")]))
    framed = sectors.frame(forged, 3, writer.log._salt)
    for shift in range(0, SECTOR_BYTES, 17):
        value = b"k" * shift + framed * 3
        data = encode(2, 1, writer.chains[1], batch(2, events=[put(2, b"key", value)]))
        log = FileLog(tmp_path / str(shift), b"")
        (tmp_path / str(shift)).mkdir()
        log.begin(0)
        log.append(encode(1, 1, NO_CHAIN, batch(1)), 1)
        log.append(data, 2)
        log.close()
        other = FileLog(tmp_path / str(shift), log.log_id)
        content = (tmp_path / str(shift) / "lessor.log.0").read_bytes()
        heads = {sectors.head_of(content[at : at + 512]) for at in range(512, len(content), 512)} - {None}
        assert {head.number for head in heads if head} == {1, 2}
        with pytest.raises(DataDirError, match="does not follow"):  # the writer's chain is not this one's
            other.read(1, writer.chains[1])


def test_an_earlier_logs_records_do_not_count(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(10)
    writer.log.close()
    assert FileLog(tmp_path, b"").read(0, NO_CHAIN) == []
    with pytest.raises(DataDirError, match="the log of another data directory"):
        FileLog(tmp_path, b"another log's id").read(0, NO_CHAIN)
    assert numbers(tmp_path, writer, 0) == [1]


def test_two_crashes_in_the_same_record_leave_nothing_that_looks_like_one(tmp_path: Path) -> None:
    """The first leaves all but the first sector, the second the first sector alone, of a record of the same number."""
    first = Writer(tmp_path / "first")
    first.append(10)
    log_id = first.log.log_id
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    first.append(1_200)
    data = (tmp_path / "first" / "lessor.log.0").read_bytes()
    head = sectors.head_of(data[2 * SECTOR_BYTES : 3 * SECTOR_BYTES])
    assert head is not None
    assert sectors.sectors_of(head.record_bytes) == 3
    second = FileLog(tmp_path / "second", log_id)
    second.begin(0)
    other = encode(2, 1, first.chains[1], batch(2, events=[put(2, b"key", b"w" * 1_200)]))
    second._current.end = 2 * SECTOR_BYTES
    second.append(other, 2)
    fresh = (tmp_path / "second" / "lessor.log.0").read_bytes()
    mixed = fresh[: 3 * SECTOR_BYTES] + data[3 * SECTOR_BYTES :]
    (tmp_path / "first" / "lessor.log.0").write_bytes(mixed)
    assert numbers(tmp_path / "first", first, 0) == [1]


def test_the_files_are_the_owners_alone_and_keep_their_size(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for number in range(1, 20):
        writer.append(1_000)
        writer.log.trim(number)
    for name in directory.LOG_NAMES:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
        assert (tmp_path / name).stat().st_size == SEGMENT_BYTES
    writer.log.close()
    writer.log.close()


def test_a_record_that_does_not_follow_the_one_before_is_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(10)
    writer.log.append(encode(2, 1, b"another's chain.", batch(2)), 2)
    with pytest.raises(DataDirError, match="record 2 does not follow what the tables have"):
        numbers(tmp_path, writer, 0)


@pytest.mark.parametrize("sector", [0, 1], ids=["first", "second"])
def test_a_newest_record_with_garbage_before_its_last_sector_is_damaged_and_not_torn(
    tmp_path: Path, sector: int
) -> None:
    writer = Writer(tmp_path)
    writer.append(10)
    writer.append(1_000)  # three sectors
    writer.log.close()
    with (tmp_path / "lessor.log.0").open("r+b") as file:
        file.seek((2 + sector) * SECTOR_BYTES + 100)
        file.write(b"garbage")
    with pytest.raises(DataDirError, match="damaged"):
        numbers(tmp_path, writer, 0)


def test_what_two_crashes_left_side_by_side_is_not_taken_for_one_record(tmp_path: Path) -> None:
    """The second one tore a write in the middle of the sector before that in which the first one's begins."""
    writer = Writer(tmp_path)
    writer.append(10)
    writer.append(1_200)  # three sectors
    data = bytearray((tmp_path / "lessor.log.0").read_bytes())
    data[4 * SECTOR_BYTES + 50 : 5 * SECTOR_BYTES] = bytes(SECTOR_BYTES - 50)
    data[SECTOR_BYTES + 50 : 2 * SECTOR_BYTES] = bytes(SECTOR_BYTES - 50)
    (tmp_path / "lessor.log.0").write_bytes(data)
    assert numbers(tmp_path, writer, 1) == []


@pytest.mark.parametrize("sectors_left", [10, 11, 17, 18])
def test_a_grown_file_that_is_cut_in_the_middle_of_a_record_is_refused(
    tmp_path: Path, sectors_left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    writer = Writer(tmp_path)
    writer.append(10)
    writer.append(2 * SEGMENT_BYTES)
    os.truncate(tmp_path / "lessor.log.1", sectors_left * SECTOR_BYTES)
    with pytest.raises(DataDirError, match="cut short, in the middle of record 2"):
        numbers(tmp_path, writer, 0)


@pytest.mark.slow
def test_a_grown_file_that_is_cut_between_two_records_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or in the first sector of one, or where a segment ends: that looks like a file that has not grown so far."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    written = Written()
    writer = Writer(tmp_path, written, sync=False)
    for _ in range(12):
        writer.append(10)
        writer.append(600)
    path = tmp_path / "lessor.log.1"
    end = max(end for name, _, end in written.records if name == path.name)
    assert 2 * SEGMENT_BYTES < end < path.stat().st_size
    whole = path.read_bytes()
    for after, step in ((0, 1), (writer.number - 1, 7), (writer.number - 9, 7)):
        for size in range(SEGMENT_BYTES, end, step):
            path.write_bytes(whole[:size])
            with pytest.raises(DataDirError, match="cut short"):
                numbers(tmp_path, writer, after)
    path.write_bytes(whole[: end + SECTOR_BYTES])
    assert numbers(tmp_path, writer, 0) == list(range(1, writer.number + 1))


def test_where_a_crash_broke_off_the_growth_of_a_file_no_record_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its end held records, it would look like a file that was cut."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    writer = Writer(tmp_path, sync=False)
    writer.append(10)
    writer.log.close()
    for name in directory.LOG_NAMES:
        os.truncate(tmp_path / name, SEGMENT_BYTES + 3 * SECTOR_BYTES)
    assert numbers(tmp_path, writer, 0) == [1]
    writer.log = FileLog(tmp_path, writer.log.log_id, sync=False)
    writer.log.begin(1)
    for _ in range(40):
        writer.append(10)
        assert numbers(tmp_path, writer, 1) == list(range(2, writer.number + 1))
    writer.log.trim(writer.number)
    writer.append(10)
    assert writer.log.size_bytes == 2 * SEGMENT_BYTES


@pytest.mark.parametrize("sectors_written", [3, 8, 12])
def test_starts_that_end_before_their_first_record_leave_a_torn_one_as_it_is(
    tmp_path: Path, sectors_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reaches into the part by which its file has grown, and a cut would leave its head alone."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    writer = Writer(tmp_path, sync=False)
    writer.append(10)
    record = writer.record(2 * SEGMENT_BYTES)
    writer.append(2 * SEGMENT_BYTES)
    writer.log.close()
    torn = tmp_path / "lessor.log.1"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: (1 + sectors_written) * SECTOR_BYTES].ljust(len(whole), b"\0"))
    for _ in range(3):
        log = FileLog(tmp_path, writer.log.log_id)
        assert [found.number for found in log.read(0, writer.chains[0])] == [1]
        log.begin(1)
        log.close()
    log = FileLog(tmp_path, writer.log.log_id)
    log.begin(1)
    log.append(record, 2)
    log.trim(2)
    log.append(encode(3, 1, writer.chains[2], batch(3)), 3)
    assert log.size_bytes == 2 * SEGMENT_BYTES
    log.close()
    assert [found.number for found in FileLog(tmp_path, log.log_id).read(2, writer.chains[2])] == [3]


# --- growing --------------------------------------------------------------------------------------------------------


class Ordered(Disk):
    """Keeps a diary of everything but the making of files."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        if position:
            self.diary.append(f"write to {position + len(data)}")
        return super().write(descriptor, data, position)

    def grow(self, descriptor: int, from_bytes: int, to_bytes: int) -> None:
        self.diary.append(f"grow to {to_bytes}")
        super().grow(descriptor, from_bytes, to_bytes)

    def sync(self, descriptor: int) -> None:
        self.diary.append("sync")
        super().sync(descriptor)

    def cut(self, descriptor: int, to_bytes: int) -> None:
        self.diary.append(f"cut to {to_bytes}")
        super().cut(descriptor, to_bytes)


def test_a_file_is_grown_and_that_is_synced_before_a_record_goes_there(tmp_path: Path) -> None:
    disk = Ordered()
    writer = Writer(tmp_path, disk)
    disk.diary.clear()
    writer.append(SEGMENT_BYTES)
    assert disk.diary == [f"grow to {2 * SEGMENT_BYTES}", "sync", "write to 6144"]
    assert writer.log.trimmable == 1
    assert writer.log.size_bytes == 3 * SEGMENT_BYTES
    writer.log.trim(1)
    assert disk.diary[3:] == []  # a cut would take the newest record out of the log
    writer.append(10)
    assert disk.diary[3:] == ["write to 1024", f"write to {SEGMENT_BYTES}", f"cut to {SEGMENT_BYTES}"]
    assert (writer.log.trimmable, writer.log.size_bytes) == (0, 2 * SEGMENT_BYTES)


def test_the_newest_record_is_there_whatever_is_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So tables that have lost what they had synced cannot be taken for complete."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    writer = Writer(tmp_path, sync=False)
    chance = random.Random(7)
    for number in range(1, 200):
        writer.append(chance.choice([10, 10, 600, 3 * SEGMENT_BYTES]))
        if chance.random() < 0.5:
            writer.log.trim(number)
        assert numbers(tmp_path, writer, number - 1) == [number]
        log = FileLog(tmp_path, writer.log.log_id)  # of tables that are far behind
        with contextlib.suppress(DataDirError):
            assert [record.number for record in log.read(0, NO_CHAIN)] == list(range(1, number + 1))


def test_files_of_an_earlier_moment_than_the_tables_are_refused_unless_nothing_can_be_missing(tmp_path: Path) -> None:
    writer = Writer(tmp_path, sync=False)
    writer.append(10)
    writer.append(10)
    writer.chains[3] = b"of newer tables."
    with pytest.raises(DataDirError, match="the newest record is 2, but the tables have 3: the files are of different"):
        numbers(tmp_path, writer, 3)
    log = FileLog(tmp_path, writer.log.log_id, complete=True)
    assert log.read(3, writer.chains[3]) == []


def test_a_record_larger_than_all_that_the_log_may_take_is_written_when_nothing_else_is_needed(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(10)
    with pytest.raises(LogFullError, match="the log is full"):
        writer.append(10 * SEGMENT_BYTES)
    writer.log.trim(1)
    writer.append(10 * SEGMENT_BYTES)
    assert numbers(tmp_path, writer, 1) == [2]
    writer.append(10)  # into the other file
    with pytest.raises(LogFullError):
        writer.append(SEGMENT_BYTES)
    assert numbers(tmp_path, writer, 1) == [2, 3]
    writer.log.trim(3)
    writer.append(10)
    writer.append(10)
    assert writer.log.size_bytes == 2 * SEGMENT_BYTES


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_file_that_cannot_grow_is_as_before_and_nothing_of_the_record_is_there(
    tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * SEGMENT_BYTES)
    disk = WriteFaults(error=error)
    writer = Writer(tmp_path, disk)
    for fail_at in (1, 2):  # to grow, and to sync that
        disk.countdown.calls = 0
        disk.countdown._fail_at = fail_at
        with pytest.raises(RefusedError, match="disk is full" if error == errno.ENOSPC else "disk failed"):
            writer.append(SEGMENT_BYTES)
        disk.countdown._fail_at = 0
        assert writer.log.size_bytes == sum((tmp_path / name).stat().st_size for name in directory.LOG_NAMES)
        writer.append(10)
        assert numbers(tmp_path, writer, 0) == list(range(1, writer.number + 1))


def test_a_write_that_fails_is_of_unknown_outcome_and_the_last_one(tmp_path: Path) -> None:
    disk = WriteFaults()
    writer = Writer(tmp_path, disk)
    writer.append(10)
    disk.countdown.calls, disk.countdown._fail_at = 0, 1
    with pytest.raises(OutcomeUnknownError, match="disk failed to read or write"):
        writer.append(10)
    disk.countdown._fail_at = 0
    with pytest.raises(RefusedError, match="no write after a failed one"):
        writer.append(10)


# --- sectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 485, 486, 487, 972, 973, 100_000])
def test_a_record_comes_back_out_of_its_sectors(size: int) -> None:
    record = random.Random(size).randbytes(size)
    framed = sectors.frame(record, 7, 9)
    assert len(framed) == sectors.sectors_of(size) * SECTOR_BYTES
    heads = [sectors.head_of(framed[at : at + 512]) for at in range(0, len(framed), 512)]
    assert heads == [(7, size, 9, part) for part in range(len(heads))]
    assert sectors.payload(framed, size) == record


def test_any_bit_of_a_sector_is_found_and_mended() -> None:
    whole = sectors.frame(random.Random(1).randbytes(300), 2**63, 2**32 - 1)
    for bit in range(SECTOR_BYTES * 8):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        assert sectors.head_of(bytes(spoilt)) is None
        assert sectors.head_but_for_a_bit(bytes(spoilt)) == (2**63, 300, 2**32 - 1, 0)


def test_a_sector_that_is_written_in_part_never_looks_as_if_a_bit_were_off() -> None:
    """Over zeros and over older records, torn at any byte: otherwise a crash would be taken for damage."""
    chance = random.Random(6)
    for number in range(20_000, 22_000):
        new = sectors.frame(chance.randbytes(chance.choice([1, 100, 130, 486])), number, 7)
        older = sectors.frame(chance.randbytes(chance.choice([1, 100, 130, 486])), number - chance.randint(1, 9_000), 9)
        for old in (ZEROS, older):
            for size in range(1, SECTOR_BYTES):
                torn = new[:size] + old[size:]
                if torn not in (new, old):
                    head = sectors.head_of(torn) or sectors.head_but_for_a_bit(torn)
                    assert head is None or head.number != number


def test_zeros_and_garbage_are_no_sectors() -> None:
    chance = random.Random(2)
    for sector in (ZEROS, *(chance.randbytes(SECTOR_BYTES) for _ in range(1_000))):
        assert sectors.head_of(sector) is None
        assert sectors.head_but_for_a_bit(sector) is None


def test_garbage_in_the_files_is_refused_or_nothing(tmp_path: Path) -> None:
    """Whatever stands there, nothing is raised but a refusal."""
    chance = random.Random(4)
    writer = Writer(tmp_path)
    writer.append(10)
    writer.log.close()
    first = (tmp_path / "lessor.log.0").read_bytes()[:SECTOR_BYTES]
    for size in (0, 1, 512, SEGMENT_BYTES, SEGMENT_BYTES + 100):
        for start in (b"", first):
            (tmp_path / "lessor.log.0").write_bytes((start + chance.randbytes(size))[: max(size, len(start))])
            with contextlib.suppress(DataDirError):
                assert numbers(tmp_path, writer, 0) == []
