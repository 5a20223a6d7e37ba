# SPDX-License-Identifier: Apache-2.0
"""The SQLite engine and space: what a compaction made superfluous goes, files stay bounded, sizes are true."""

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lessor.durable import schema, sqlite
from lessor.durable.sqlite import SqliteEngine
from tests.faulty_disk import run_at_once
from tests.unit.durable.engine_rows import IDENTITY, batch, files, put, tombstone


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def engine(data_dir: Path) -> Iterator[SqliteEngine]:
    engine = SqliteEngine(data_dir, start=run_at_once)
    engine.open(IDENTITY)
    yield engine
    engine.close()


def collect_all(engine: SqliteEngine, dead: list[tuple[int, int]], rows_max: int = 1_000) -> int:
    """Collects until nothing is left; returns the number of steps."""
    steps = 1
    more = engine.collect(dead, rows_max)
    while more:
        more = engine.collect(rows_max=rows_max)
        steps += 1
    return steps


def test_collect_deletes_the_dead_and_nothing_else(engine: SqliteEngine) -> None:
    events = [put(revision, b"key", sub=sub) for revision in range(2, 300) for sub in range(2)]
    dead = [(event[0], event[1]) for event in events if event[0] % 3 or event[1]]
    engine.commit(batch(1, events=events))
    engine.commit(batch(2, compact_revision=299, dead=dead))
    assert collect_all(engine, dead, rows_max=50) >= len(dead) // 50
    assert [(event[0], event[1]) for event in engine.load().events] == [
        (revision, 0) for revision in range(2, 300) if revision % 3 == 0
    ]
    assert engine.load().meta.compact_revision == 299


def test_collect_goes_on_between_commits(engine: SqliteEngine) -> None:
    engine.commit(batch(1, events=[put(revision, b"key") for revision in range(2, 102)]))
    dead = [(revision, 0) for revision in range(2, 101)]
    engine.commit(batch(2, compact_revision=101, dead=dead))
    number, more = 3, engine.collect(dead, 10)
    left = [sum(1 for _ in engine.load().events)]
    while more:
        engine.commit(batch(number, leases=[(number, 60, 60.0, False)]))
        more = engine.collect(rows_max=10)
        left.append(sum(1 for _ in engine.load().events))
        number += 1
    assert left[0] == 90
    assert all(before - after <= 10 for before, after in pairwise(left))
    assert left[-1] == 1


def test_collect_deletes_the_oldest_rows_first(engine: SqliteEngine) -> None:
    """A tombstone must not go before the value that it covers, whatever order the rows are named in."""
    engine.commit(batch(1, events=[put(2, b"a"), put(3, b"b"), tombstone(4, b"a"), tombstone(5, b"b")]))
    engine.commit(batch(2, compact_revision=5))
    engine.collect([(5, 0), (4, 0), (3, 0), (2, 0)], 2)
    assert [event[0] for event in engine.load().events] == [4, 5]


def test_collect_removes_leases_that_ended_before_the_compaction(engine: SqliteEngine, data_dir: Path) -> None:
    leases = [(number, 60, 61.0, number % 2 == 0) for number in range(1, 101)]
    engine.commit(batch(1, leases=leases))
    engine.commit(batch(2, compact_revision=1, leases=[(1, 60, 61.0, True)]))
    engine.commit(batch(3, leases=[(3, 60, 61.0, True)]))
    collect_all(engine, [], rows_max=7)
    engine.fold()
    with sqlite3.connect(data_dir / "lessor.db") as person:
        assert person.execute("SELECT id FROM lease WHERE ended").fetchall() == [(1,), (3,)]
    person.close()
    assert [lease[0] for lease in engine.load().leases] == list(range(5, 101, 2))


def test_nothing_to_collect_is_said_at_once(engine: SqliteEngine) -> None:
    assert engine.collect() is False


def test_collect_looks_at_the_dead_rows_alone() -> None:
    """The cost of a step must not grow with the table."""
    connection = sqlite3.connect(":memory:")
    for statement in schema.split_statements(schema.MIGRATIONS[0]):
        connection.execute(statement)
    for rows in (1, schema.ROWS_PER_STATEMENT):
        sql = schema.rows_sql(schema.DEAD_EVENTS, rows)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [0] * 2 * rows).fetchall()
        assert any(row[3].startswith("SEARCH event USING PRIMARY KEY (revision=? AND sub=?)") for row in plan)
        assert not any(row[3].startswith("SCAN event") for row in plan)
    connection.close()


@pytest.mark.slow
def test_compaction_shrinks_the_file(engine: SqliteEngine, data_dir: Path) -> None:
    rows = 50_000
    for number in range(1, 11):
        first = 2 + (number - 1) * rows // 10
        engine.commit(batch(number, events=[put(first + row, b"key%d" % (row % 100)) for row in range(rows // 10)]))
        engine.settle()
    engine.fold()
    full_bytes, full_in_use_bytes = engine.size_bytes(), engine.in_use_bytes()
    dead = [(revision, 0) for revision in range(2, 2 + rows - 100)]
    engine.commit(batch(11, compact_revision=1 + rows, dead=dead))
    assert collect_all(engine, dead) < 100  # 50 of deleting, the rest gives back many pages at once
    engine.settle()
    assert engine.size_bytes() < full_bytes / 20
    assert (data_dir / "lessor.db").stat().st_size < full_bytes / 20
    assert engine.in_use_bytes() < full_in_use_bytes / 20
    assert sum(1 for _ in engine.load().events) == 100


def test_sizes_follow_the_data(engine: SqliteEngine) -> None:
    empty_bytes, empty_in_use_bytes = engine.size_bytes(), engine.in_use_bytes()
    engine.commit(batch(1, events=[put(2 + row, b"key", b"v" * 1_000) for row in range(500)]))
    assert engine.in_use_bytes() >= empty_in_use_bytes + 500_000
    assert engine.size_bytes() >= empty_bytes + 500_000


def test_the_size_is_that_of_the_tables_files(engine: SqliteEngine, data_dir: Path) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.fold()
    content = files(data_dir)
    assert engine.size_bytes() == len(content["lessor.db"]) + len(content["lessor.db-wal"])


def test_defragment_keeps_the_data_and_gives_free_space_back(engine: SqliteEngine) -> None:
    events = [put(2 + row, b"key", b"v" * 1_000) for row in range(500)]
    engine.commit(batch(1, events=events))
    engine.commit(batch(2, compact_revision=480))
    engine.collect([(event[0], 0) for event in events[:-20]], 500)  # one step: rows are gone, their pages are free
    assert engine.in_use_bytes() < 200_000
    assert engine.size_bytes() > 500_000
    engine.commit(batch(3, events=[put(590, b"in the log")]))
    engine.defragment()
    assert engine.size_bytes() < 200_000
    assert list(engine.load().events) == [*events[-20:], put(590, b"in the log")]
    engine.commit(batch(4, events=[put(600, b"after")]))
    assert engine.collect() is False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logged_bytes_max", "settled_pages", "unsettled_pages"),
    [(10_000, 12, 12), (sqlite.LOGGED_BYTES_MAX, 60, 250)],
    ids=["batches that go to the tables at once", "batches that are folded, several in one transaction"],
)
def test_sqlites_log_is_bounded_by_settle_or_by_commit(
    engine: SqliteEngine,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged_bytes_max: int,
    settled_pages: int,
    unsettled_pages: int,
) -> None:
    monkeypatch.setattr(sqlite, "WAL_PAGES_SETTLE", 20)
    monkeypatch.setattr(sqlite, "WAL_PAGES_MAX", 100)
    monkeypatch.setattr(sqlite, "LOGGED_BYTES_MAX", logged_bytes_max)
    log = data_dir / "lessor.db-wal"
    page_bytes = sqlite.PAGE_BYTES + 24  # with the header that SQLite puts before each page of the log
    for number in range(1, 101):
        engine.commit(batch(number, events=[put(number * 100 + row, b"k", b"v" * 400) for row in range(50)]))
        engine.settle()
    assert 0 < log.stat().st_size < (20 + 2 * settled_pages) * page_bytes
    for number in range(101, 201):
        engine.commit(batch(number, events=[put(number * 100 + row, b"k", b"v" * 400) for row in range(50)]))
    assert log.stat().st_size < (100 + 2 * unsettled_pages) * page_bytes
    assert sum(1 for _ in engine.load().events) == 10_000
