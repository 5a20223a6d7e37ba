# SPDX-License-Identifier: Apache-2.0
"""The log and the tables together: large batches, a log that grows or is full, what a close leaves."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.durable import directory, file_log
from lessor.durable.file_engine import FileEngine
from tests.unit.durable.engine_rows import ALARM, IDENTITY, batch, put, rest, settle


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def engine(data_dir: Path) -> Iterator[FileEngine]:
    engine = FileEngine(data_dir)
    engine.open(IDENTITY)
    yield engine
    engine.close()


def log_sizes(data_dir: Path) -> list[int]:
    return [(data_dir / name).stat().st_size for name in directory.LOG_NAMES]


def test_a_batch_larger_than_a_file_of_the_log_is_one_record_and_its_space_is_given_back(
    engine: FileEngine, data_dir: Path, tmp_path: Path
) -> None:
    large = [put(2 + row, b"key%d" % row, b"%d" % row * 1_500_000) for row in range(5)]
    engine.commit(batch(1, events=large))
    assert sum(log_sizes(data_dir)) > 2 * file_log.SEGMENT_BYTES
    shutil.copytree(data_dir, tmp_path / "crashed")
    crashed = FileEngine(tmp_path / "crashed")
    crashed.open(IDENTITY)
    assert list(crashed.load().events) == large
    crashed.close()
    for number in range(2, 20):
        engine.commit(batch(number, leases=[(number, 60, 61.0, False)]))
        rest(engine)
        engine._tables.wait_for_sync()
    settle(engine)
    assert log_sizes(data_dir) == [file_log.SEGMENT_BYTES] * 2
    assert list(engine.load().events) == large


def test_a_log_that_is_full_makes_room_by_itself(
    engine: FileEngine, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody calls `upkeep`: commits fold and sync, and the files stay within the bound."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 3 * file_log.SEGMENT_BYTES)
    for number in range(1, 30):
        engine.commit(batch(number, events=[put(number, b"key", b"v" * 1_500_000)]))
        assert sum(log_sizes(data_dir)) <= 3 * file_log.SEGMENT_BYTES
        assert engine._upkeep.unfolded.size_bytes <= 3 * file_log.SEGMENT_BYTES
    assert [event[0] for event in engine.load().events] == list(range(1, 30))


def test_rows_that_wait_in_memory_are_bounded(engine: FileEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lessor.durable.file_engine.UNFOLDED_ROWS_MAX", 100)
    for number in range(1, 50):
        engine.commit(batch(number, leases=[(number * 7 + row, 60, 61.0, False) for row in range(7)]))
        assert engine._upkeep.unfolded.rows <= 107


def test_a_close_leaves_the_tables_complete(engine: FileEngine, data_dir: Path) -> None:
    engine.begin_term(3)
    engine.commit(batch(1, events=[put(2, b"a")], alarms=ALARM))
    engine.commit(batch(2, leases=[(7, 60, 61.0, False)], clean=True))
    engine.close()
    with contextlib.closing(sqlite3.connect(f"file:{data_dir / 'lessor.db'}?mode=ro&immutable=1", uri=True)) as person:
        meta = dict(person.execute("SELECT name, value FROM meta"))
        assert (meta["batch"], meta["clean"], meta["term"], meta["record"]) == (2, 1, 3, 3)
        assert person.execute("SELECT count(*) FROM event").fetchone() == (1,)
        assert person.execute("SELECT count(*) FROM alarm").fetchone() == (1,)
