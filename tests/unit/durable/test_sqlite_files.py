# SPDX-License-Identifier: Apache-2.0
"""What is read of SQLite's log, against SQLite itself: random transactions, rollbacks, copies, rounds."""

import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import zlib
from array import array
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.durable.page_sums import UNKNOWN, Sums
from lessor.durable.sqlite_files import Frame, SqliteFiles, newest

PAGE_BYTES = 512


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, value BLOB)")
    return path


def connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("SELECT count(*) FROM t").fetchone()
    return connection


@pytest.fixture
def files(database: Path) -> Iterator[SqliteFiles]:
    files = SqliteFiles(database)
    yield files
    files.close()


def write(connection: sqlite3.Connection, chance: random.Random) -> None:
    """A transaction of any kind; some are rolled back, some spill into the log before they end."""
    kind = chance.choice(("insert", "insert", "update", "delete", "vacuum", "full vacuum", "table"))
    if kind == "full vacuum":
        connection.execute("VACUUM")
        return
    connection.execute("BEGIN")
    if kind == "vacuum":
        connection.executescript(f"PRAGMA incremental_vacuum({chance.randint(1, 20)})")
    elif kind == "table":
        connection.execute("DROP TABLE IF EXISTS u")
        connection.execute("CREATE TABLE u AS SELECT value FROM t LIMIT ?", (chance.randint(0, 20),))
    for _ in range(chance.randint(1, 30)):
        value = chance.randbytes(chance.choice((1, 50, 3_000)))
        if kind == "insert":
            connection.execute("INSERT INTO t (value) VALUES (?)", (value,))
        elif kind == "update":
            connection.execute("UPDATE t SET value = ? WHERE id % 17 = ?", (value, chance.randrange(17)))
        elif kind == "delete":
            connection.execute("DELETE FROM t WHERE id % 7 = ?", (chance.randrange(7),))
    connection.execute(chance.choice(("COMMIT", "COMMIT", "COMMIT", "ROLLBACK")))


def valid_frames(log: bytes) -> int:
    """How many frames count, by SQLite's checksums: a reader of its own, written from SQLite's documentation."""
    if len(log) < 32:
        return 0
    order = ">" if log[3] & 1 else "<"

    def checksum(data: bytes, one: int, two: int) -> tuple[int, int]:
        for x, y in struct.iter_unpack(f"{order}II", data):
            one = (one + x + two) & 0xFFFFFFFF
            two = (two + y + one) & 0xFFFFFFFF
        return one, two

    sums = checksum(log[:24], 0, 0)
    count = 0
    for number, at in enumerate(range(32, len(log) - 24 - PAGE_BYTES + 1, 24 + PAGE_BYTES), 1):
        frame = log[at : at + 24 + PAGE_BYTES]
        sums = checksum(frame[:8] + frame[24:], *sums)
        if frame[8:16] != log[16:24] or struct.unpack(">II", frame[16:24]) != sums:
            break
        if frame[4:8] != bytes(4):
            count = number
    return count


@pytest.mark.parametrize("seed", range(12))
def test_the_frames_of_each_round_lead_from_the_file_before_to_the_file_after(
    database: Path, files: SqliteFiles, seed: int
) -> None:
    """A reader holds on now and then: a round is copied in pieces, and the file shrinks and grows in between."""
    chance = random.Random(seed)
    with closing(connected(database)) as one, closing(connected(database)) as two:
        files.open_index()
        one.execute("PRAGMA cache_size = 5")  # so that transactions spill
        known: array[int] | None = None  # the file when the round with these salts began
        known_salts: bytes | None = None
        reader: sqlite3.Connection | None = None
        rounds = 0
        for _ in range(120):
            if reader is None and chance.random() < 0.1:
                reader = connected(database)
                reader.execute("BEGIN")
                reader.execute("SELECT count(*) FROM t").fetchone()
            elif reader is not None and chance.random() < 0.3:
                reader.close()
                reader = None
            with suppress(sqlite3.OperationalError):
                write(chance.choice((one, two)), chance)
            for connection in (one, two):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if reader is not None and chance.random() < 0.4:
                one.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if reader is not None or files.salts() is None or chance.random() < 0.7:
                continue
            count = files.frames_in_log()
            log = database.with_name("a.db-wal").read_bytes()
            assert count == valid_frames(log)
            salts = files.salts()
            assert salts == log[16:24]
            frames = files.frames(salts, count, PAGE_BYTES)
            assert frames is not None
            assert one.execute("PRAGMA wal_checkpoint(FULL)").fetchone() == (0, count, count)
            after = files.page_checksums(PAGE_BYTES)
            if known is not None and salts == known_salts:
                told = Sums(PAGE_BYTES, salts, known).after(frames)
                assert len(told) == len(after)
                assert all(is_told in (UNKNOWN, found) for is_told, found in zip(told, after, strict=True))
                rounds += 1
            known = after
            one.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            one.execute("UPDATE t SET value = 1 WHERE id = (SELECT min(id) FROM t)")
            one.execute("INSERT INTO t VALUES (NULL, 2)")
            known_salts = files.salts()
            assert known_salts != salts
        assert rounds > 5
        if reader is not None:
            reader.close()


def test_a_round_that_is_over_gives_no_frames(database: Path, files: SqliteFiles) -> None:
    with closing(connected(database)) as connection:
        connection.execute("INSERT INTO t VALUES (1, zeroblob(5000))")
        files.open_index()
        salts, count = files.salts(), files.frames_in_log()
        assert salts is not None
        whole = files.frames(salts, count, PAGE_BYTES)
        assert whole is not None
        assert len(whole) == count
        assert files.frames(salts, count + 1, PAGE_BYTES) is None
        assert files.frames(bytes(8), count, PAGE_BYTES) is None
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.execute("INSERT INTO t VALUES (2, 1)")
        assert files.frames(salts, 0, PAGE_BYTES) is None  # by the header alone
        assert files.frames(salts, count, PAGE_BYTES) is None
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert files.salts() is None
    assert not database.with_name("a.db-wal").exists()
    assert files.salts() is None


def test_pages_are_whole_ones(database: Path, files: SqliteFiles, tmp_path: Path) -> None:
    data = database.read_bytes()
    expected = [zlib.crc32(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)]
    assert list(files.page_checksums(PAGE_BYTES)) == expected
    cut = SqliteFiles(tmp_path / "cut.db")
    (tmp_path / "cut.db").write_bytes((data * 20)[: 40 * PAGE_BYTES + 100])
    assert list(cut.page_checksums(PAGE_BYTES)) == (expected * 20)[:40]
    cut.close()


def test_the_locks_of_this_process_stay_until_it_is_closed(database: Path, files: SqliteFiles) -> None:
    """Another process that closes the database would take itself for the last one, and delete the log."""
    with closing(connected(database)) as connection:
        connection.execute("INSERT INTO t VALUES (1, 1)")
        files.open_index()
        files.page_checksums(PAGE_BYTES)
        files.read(10, 0)
        script = "import sqlite3; c = sqlite3.connect('a.db'); c.execute('SELECT * FROM t').fetchall(); c.close()"
        subprocess.run([sys.executable, "-c", script], cwd=database.parent, check=True, stdout=subprocess.DEVNULL)
        assert database.with_name("a.db-wal").exists()


# --- what frames leave in the file ----------------------------------------------------------------------------------


def naive(before: list[int], frames: list[Frame]) -> list[int | None]:
    """The file after each commit in turn, copied at once; None: a page that was lost and came back without a frame."""
    file: list[int | None] = list(before)
    waiting: dict[int, int] = {}
    for page, pages_after, checksum in frames:
        waiting[page] = checksum
        if pages_after:
            file = file[:pages_after] + [None] * (pages_after - len(file))
            for number, value in waiting.items():
                if number <= pages_after:
                    file[number - 1] = value
            waiting.clear()
    return file


@given(
    st.integers(0, 8),
    st.lists(
        st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 12)), min_size=1, max_size=8
    ),
)
def test_like_copying_after_each_commit(pages: int, commits: list[tuple[list[int], int]]) -> None:
    before = [1_000 + page for page in range(pages)]
    frames: list[Frame] = []
    for changed, pages_after in commits:
        for page in changed:
            frames.append(Frame(page, 0, len(frames) + 1))
        frames[-1] = frames[-1]._replace(pages_after=pages_after)
    told = Sums(512, bytes(8), array("I", before)).after(frames)
    expected = naive(before, frames)
    assert [value or UNKNOWN for value in expected] == list(told)


def test_what_is_not_committed_is_left_out() -> None:
    assert newest([Frame(1, 3, 7), Frame(2, 0, 8)]) == ({1: 7}, 3)
    assert newest([]) == ({}, None)


def test_files_that_are_gone_are_errors(tmp_path: Path) -> None:
    files = SqliteFiles(tmp_path / "none.db")
    for call in (files.open_index, lambda: files.page_checksums(512), lambda: files.frames(bytes(8), 1, 512)):
        with pytest.raises(FileNotFoundError):
            call()
    files.close()
    shutil.rmtree(tmp_path)
