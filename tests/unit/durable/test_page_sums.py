# SPDX-License-Identifier: Apache-2.0
"""Pages of the tables that are not as they were written are refused, and the sums themselves refuse nothing."""

import errno
import os
import random
import re
import shutil
import sqlite3
import stat
import struct
import zlib
from array import array
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.durable.page_sums import UNKNOWN, Sums, parse
from lessor.durable.sqlite_files import SqliteFiles
from lessor.state.journal import EventRow
from tests.faulty_disk import Later
from tests.unit.durable.engine_rows import IDENTITY, batch, files
from tests.unit.durable.page_sums_kit import (
    NAME,
    PAGE,
    copied,
    damage,
    fill,
    flip,
    home,
    killed_of,
    logged_pages,
    opened,
    small,
    start,
    stopped_of,
)

__all__ = ["home", "small"]  # fixtures


# --- damage ---------------------------------------------------------------------------------------------------------


def _killed_behind_a_copy(engine: FileEngine) -> Path:
    engine._tables.begin_sync()
    fill(engine, range(90, 92))
    return killed_of(engine)


@pytest.mark.parametrize("stop", [stopped_of, killed_of, _killed_behind_a_copy])
def test_a_bit_flipped_in_any_page_is_refused_or_harmless(home: Path, stop: Callable[[FileEngine], Path]) -> None:
    engine = opened(home / "data")
    fill(engine, range(1, 30))
    engine._tables.begin_sync()
    fill(engine, range(30, 40))
    left = stop(engine)
    expected = start(copied(left, "whole"))[0]
    chance = random.Random(5)
    pages = (left / "lessor.db").stat().st_size // PAGE
    logged = logged_pages(left)
    refused: dict[int, str] = {}
    for page in range(1, pages + 1):
        damaged = copied(left, "damaged")
        flip(damaged / "lessor.db", (page - 1) * PAGE + chance.randrange(PAGE), chance.randrange(8))
        try:
            assert start(damaged) == (expected, "")
        except DataDirError as error:
            refused[page] = str(error)
    assert pages > 20
    assert set(range(1, pages + 1)) - set(refused) <= logged
    remedy = "restore a backup; if another program was meant to change the file, remove lessor.db-sums"
    for page, message in refused.items():
        assert "\n" not in message
        assert page == 1 or (f"page {page} is not as it was written" in message and remedy in message)


def test_a_refusal_changes_nothing_and_counts_the_pages(home: Path) -> None:
    engine = opened(home / "data")
    fill(engine, range(1, 20))
    engine.close()
    data = (home / "data" / "lessor.db").read_bytes()
    damage(home / "data" / "lessor.db", data[: 10 * PAGE] + bytes(3 * PAGE) + data[13 * PAGE :])
    before = files(home / "data")
    for _ in range(2):
        with pytest.raises(DataDirError, match="page 11 and 2 more are not as they were written"):
            start(home / "data")
    assert {name: content for name, content in files(home / "data").items() if content} == before


@pytest.mark.parametrize("left_bytes", [8 * PAGE, 8 * PAGE + 100, 12 * PAGE - 1])
def test_a_file_cut_short_is_refused(home: Path, left_bytes: int) -> None:
    engine = opened(home / "data")
    fill(engine, range(1, 20))
    engine.close()
    damage(home / "data" / "lessor.db", (home / "data" / "lessor.db").read_bytes()[:left_bytes])
    with pytest.raises(DataDirError, match="damaged"):  # which SQLite itself may notice first
        start(home / "data")


def test_a_file_with_something_behind_its_end_is_served(home: Path) -> None:
    engine = opened(home / "data")
    expected = fill(engine, range(1, 20))
    engine.close()
    damage(home / "data" / "lessor.db", (home / "data" / "lessor.db").read_bytes() + b"x" * (PAGE + 77))
    assert start(home / "data") == (expected, "")


def test_a_page_that_sqlites_log_has_is_not_looked_at(home: Path) -> None:
    engine = opened(home / "data")
    expected = fill(engine, range(1, 20))
    left = killed_of(engine)
    for page in logged_pages(left) - {1}:
        if page <= (left / "lessor.db").stat().st_size // PAGE:
            flip(left / "lessor.db", page * PAGE - 9)
    assert start(left) == (expected, "")


def test_sqlites_log_that_was_damaged_behind_a_copy_of_it_does_not_mix_with_the_file(home: Path) -> None:
    """The file has all of the log, since somebody reads on the log did not start over; SQLite sees its first frames."""
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    engine._tables.begin_sync()
    with closing(sqlite3.connect(home / "data" / "lessor.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        for number in range(20, 30):
            events += fill(engine, range(number, number + 1), 100)
        with closing(sqlite3.connect(home / "data" / "lessor.db", isolation_level=None)) as later:
            later.execute("BEGIN")
            later.execute("SELECT * FROM meta").fetchall()
            reader.execute("ROLLBACK")
            engine._tables.begin_sync()
            left = copied(engine._dir, "killed")
    engine.close()
    log = left / "lessor.db-wal"
    messages: list[str] = []
    for at in range(32 + 100, log.stat().st_size, 24 + PAGE):
        damaged = copied(left, "damaged")
        flip(damaged / log.name, at)
        try:
            assert start(damaged) == (events, "")
        except DataDirError as error:
            messages.append(str(error))
    assert sum("as it was written" in message or "as they were written" in message for message in messages) > 0


# --- the file of the sums -------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(home: Path) -> tuple[Path, list[EventRow]]:
    engine = opened(home / "data")
    events = fill(engine, range(1, 6))
    engine.close()
    return home / "data", events


def test_damage_to_the_sums_refuses_nothing(stopped: tuple[Path, list[EventRow]]) -> None:
    data_dir, events = stopped
    data = content(data_dir)
    chance = random.Random(1)
    places = [*range(44), *(chance.randrange(len(data)) for _ in range(20)), *range(len(data) - 4, len(data))]
    for at in places:
        left = copied(data_dir, "damaged")
        flip(left / NAME, at, chance.randrange(8))
        found, not_compared = start(left)
        assert found == events
        assert not_compared == "lessor.db-sums is damaged, half written, or of a newer Lessor"
        assert start(left) == (events, "")


def content(data_dir: Path) -> bytes:
    """The sums, without the zeros behind them."""
    data = (data_dir / NAME).read_bytes()
    return data[: 44 + 4 * int.from_bytes(data[24:28], "little")]


@pytest.mark.parametrize("size", [0, 1, 35, 39, 40, 47, -4, -1])
def test_sums_that_were_cut_refuse_nothing(stopped: tuple[Path, list[EventRow]], size: int) -> None:
    data_dir, events = stopped
    (data_dir / NAME).write_bytes(content(data_dir)[:size])
    assert start(data_dir) == (events, "lessor.db-sums is damaged, half written, or of a newer Lessor")


@pytest.mark.parametrize("behind", [b"", b"x", b"x" * 100_000])
def test_what_stands_behind_the_sums_does_not_matter(stopped: tuple[Path, list[EventRow]], behind: bytes) -> None:
    data_dir, events = stopped
    (data_dir / NAME).write_bytes(content(data_dir) + behind)
    assert start(data_dir) == (events, "")
    assert (data_dir / NAME).stat().st_size == 65_536


@pytest.mark.parametrize("written", range(0, 400, 30))
def test_sums_of_which_a_part_was_written_refuse_nothing(home: Path, written: int) -> None:
    """As a kill may leave them: the new ones over the old ones."""
    engine = opened(home / "data")
    fill(engine, range(1, 20))
    old = (home / "data" / NAME).read_bytes()
    engine._tables.begin_sync()
    events = list(engine.load().events)
    new = (home / "data" / NAME).read_bytes()
    left = killed_of(engine)
    (left / NAME).write_bytes(new[:written] + old[written:])
    found, not_compared = start(left)
    assert found == events
    assert not_compared or new[:written] + old[written:] == new


def _newer(sums: Sums) -> bytes:
    data = bytearray(sums.encode())
    end = 40 + 4 * len(sums.of_pages)
    data[16] += 1
    data[end : end + 4] = struct.pack("<I", zlib.crc32(data[:end]))
    return bytes(data)


def test_sums_of_a_newer_format_refuse_nothing(stopped: tuple[Path, list[EventRow]]) -> None:
    data_dir, events = stopped
    sums = parse((data_dir / NAME).read_bytes())
    assert sums is not None
    (data_dir / NAME).write_bytes(_newer(sums))
    assert start(data_dir) == (events, "lessor.db-sums is damaged, half written, or of a newer Lessor")


@pytest.mark.parametrize("pages", [-3, 3])
def test_sums_of_fewer_or_more_pages_than_there_are(stopped: tuple[Path, list[EventRow]], pages: int) -> None:
    """Fewer, and the rest is not compared; more, and the file has been cut."""
    data_dir, events = stopped
    sums = parse((data_dir / NAME).read_bytes())
    assert sums is not None
    of_pages = sums.of_pages[:pages] if pages < 0 else sums.of_pages + array("I", [1] * pages)
    (data_dir / NAME).write_bytes(Sums(sums.page_bytes, sums.since, of_pages).encode())
    if pages < 0:
        assert start(data_dir) == (events, "")
    else:
        with pytest.raises(DataDirError, match="and 2 more are not as they were written"):
            start(data_dir)


def test_without_sums_nothing_is_compared_and_nothing_said(stopped: tuple[Path, list[EventRow]]) -> None:
    data_dir, events = stopped
    (data_dir / NAME).unlink()
    assert start(data_dir) == (events, "")
    assert parse((data_dir / NAME).read_bytes()) is not None


def test_sums_that_cannot_be_read_or_replaced_refuse_nothing(
    stopped: tuple[Path, list[EventRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir, events = stopped

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **options: Any) -> Any:
            if str(path).endswith(NAME):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *rest, **options)

        return call

    monkeypatch.setattr(Path, "read_bytes", refusing(Path.read_bytes))
    monkeypatch.setattr(os, "open", refusing(os.open))
    for _ in range(2):
        assert start(data_dir) == (events, "lessor.db-sums: Permission denied")


def test_the_sums_are_readable_by_their_owner_only(stopped: tuple[Path, list[EventRow]]) -> None:
    assert stat.S_IMODE((stopped[0] / NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync", "fstat"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_sums_that_cannot_be_written_end_nothing_and_are_written_later(
    home: Path, call: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    real = getattr(os, call)

    def fails(first: Any, *rest: Any, **options: Any) -> Any:
        name = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if name.endswith(NAME):
            raise OSError(error, os.strerror(error))
        return real(first, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        engine._tables.begin_sync()
        events += fill(engine, range(20, 30))
        found, not_compared = start(copied(engine._dir, "killed"))
        assert found == events
        assert not_compared or call in ("fdatasync", "fstat")
        engine._tables.begin_sync()
    events += fill(engine, range(30, 40))
    engine._tables.begin_sync()
    assert start(copied(engine._dir, "killed")) == (events, "")
    engine.close()


def test_old_sums_that_come_back_after_a_loss_of_power_refuse_nothing(home: Path) -> None:
    """As if they had not been written over."""
    engine = opened(home / "data")
    events: list[EventRow] = []
    older: list[bytes] = []
    for number in range(1, 60, 10):
        events += fill(engine, range(number, number + 10))
        engine._tables.begin_sync()
        older.append((home / "data" / NAME).read_bytes())
    left = copied(engine._dir, "killed")
    engine.close()
    for data in older[:-1]:
        again = copied(left, "again")
        (again / NAME).write_bytes(data)
        found, not_compared = start(again)
        assert found == events
        assert "is of another moment than lessor.db" in not_compared


# --- other files in their place -------------------------------------------------------------------------------------


def test_a_backup_in_the_place_of_the_tables_is_served(home: Path) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    engine.backup(home / "backup.db")
    fill(engine, range(20, 30))
    engine.close()
    os.replace(home / "backup.db", home / "data" / "lessor.db")
    assert start(home / "data") == (events, "")
    assert start(home / "data") == (events, "")


def test_a_copy_of_the_tables_alone_is_complete_after_a_stop(home: Path) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    engine.commit(batch(20, clean=True))
    engine.close()
    (home / "alone").mkdir()
    shutil.copy(home / "data" / "lessor.db", home / "alone")
    assert start(home / "alone") == (events, "")


def test_a_copy_of_all_files_is_compared(home: Path) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    engine.close()
    left = copied(home / "data", "copy")
    assert start(left) == (events, "")
    flip(left / "lessor.db", 9 * PAGE + 5)
    with pytest.raises(DataDirError, match="page 10 is not as it was written"):
        start(left)


def test_a_file_of_before_or_behind_the_stop_is_not_compared(home: Path) -> None:
    """The tables alone are put back, as they were at another stop; the log has what they lack."""
    engine = opened(home / "data")
    fill(engine, range(1, 4))
    engine.close()
    older = copied(home / "data", "older")
    engine = opened(home / "data")
    fill(engine, range(4, 6))
    engine.close()
    expected = start(home / "data")[0]
    shutil.copy2(older / "lessor.db", home / "data")
    found, not_compared = start(home / "data")
    assert found == expected
    assert not_compared


def test_a_file_system_without_nanoseconds_has_nothing_compared_after_a_stop(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    real = os.utime

    def utime(path: Any, *, ns: tuple[int, int]) -> None:
        real(path, ns=(ns[0], ns[1] // 10**9 * 10**9))

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", utime)
        engine.close()
    found, not_compared = start(home / "data")
    assert found == events
    assert not_compared


def test_a_stop_leaves_nothing_of_sqlites_log_even_while_a_copy_is_under_way(home: Path) -> None:
    engine = FileEngine(home / "data", start=Later().start)
    engine.open(IDENTITY)
    fill(engine, range(1, 40))
    engine._tables.begin_sync()
    engine.close()
    assert sorted(path.name for path in (home / "data").iterdir()) == [
        "lessor.db",
        "lessor.db-sums",
        "lessor.lock",
        "lessor.log.0",
        "lessor.log.1",
    ]


# --- the form of the file -------------------------------------------------------------------------------------------


def test_a_reader_made_from_the_page_about_the_format(home: Path) -> None:
    """docs/page-sums.md, and nothing else."""
    engine = opened(home / "data")
    fill(engine, range(1, 20))
    engine.close()
    data = (home / "data" / NAME).read_bytes()
    tables = (home / "data" / "lessor.db").read_bytes()
    assert data[:16] == b"lessor sums\n\0\0\0\0"
    form, page_bytes, pages = struct.unpack("<III", data[16:28])
    assert (form, page_bytes, pages) == (1, int.from_bytes(tables[16:18], "big"), len(tables) // PAGE)
    assert struct.unpack("<I", data[28:32]) == (2,)
    assert struct.unpack("<q", data[32:40]) == ((home / "data" / "lessor.db").stat().st_mtime_ns,)
    end = 40 + 4 * pages
    assert len(data) % 65_536 == 0
    assert struct.unpack("<I", data[end : end + 4]) == (zlib.crc32(data[:end]),)
    assert not any(data[end + 4 :])
    sums = struct.unpack(f"<{pages}I", data[40:end])
    assert UNKNOWN not in sums
    assert sums == tuple(zlib.crc32(tables[at : at + PAGE]) for at in range(0, len(tables), PAGE))
    engine = opened(home / "data")
    data = (home / "data" / NAME).read_bytes()
    assert struct.unpack("<I", data[28:32]) == (1,)
    assert data[32:40] == (home / "data" / "lessor.db-wal").read_bytes()[16:24]
    engine.close()
    text = (Path(__file__).parents[3] / "docs" / "page-sums.md").read_text()
    assert re.search(r"\| 32-39 \|.*salts", text)


def test_the_pages_are_compared_in_bounded_reads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(home / "data")
    fill(engine, range(1, 60))
    engine.close()
    reads: list[int] = []
    real = SqliteFiles.read

    def read(files: SqliteFiles, size: int, position: int) -> bytes:
        data = real(files, size, position)
        reads.append(len(data))
        return data

    monkeypatch.setattr(SqliteFiles, "read", read)
    start(home / "data")
    assert sum(reads) == (home / "data" / "lessor.db").stat().st_size  # once, and not again by the first copy
    assert max(reads) <= 65_536


def test_a_copy_of_sqlites_log_reads_each_frame_once_and_nothing_of_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(home / "data")
    fill(engine, range(1, 60))
    counted: list[int] = []
    real = SqliteFiles.frames

    def frames(files: SqliteFiles, salts: bytes, count: int, page_bytes: int) -> Any:
        counted.append(count)
        return real(files, salts, count, page_bytes)

    monkeypatch.setattr(SqliteFiles, "frames", frames)
    monkeypatch.setattr(SqliteFiles, "read", None)
    expected = engine._tables._wal_pages()
    engine._tables.begin_sync()
    assert counted == [expected]
    assert engine._tables._syncing.error is None
    monkeypatch.undo()
    engine.close()
