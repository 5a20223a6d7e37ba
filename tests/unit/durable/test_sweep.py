# SPDX-License-Identifier: Apache-2.0
"""The engine and space: what a compaction left goes, files stay bounded, sizes are true."""

import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lessor.durable import file_log, schema, sweep, upkeep
from lessor.durable.file_engine import FileEngine
from lessor.durable.opening import PAGE_BYTES
from tests.faulty_disk import run_at_once
from tests.unit.durable.engine_rows import IDENTITY, batch, files, put, rest, rest_a_step, settle, tombstone


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def engine(data_dir: Path) -> Iterator[FileEngine]:
    engine = FileEngine(data_dir, start=run_at_once)
    engine.open(IDENTITY)
    yield engine
    engine.close()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MAX", 10)


@pytest.mark.usefixtures("small_steps")
def test_a_sweep_deletes_the_dead_and_nothing_else(engine: FileEngine) -> None:
    events = [put(revision, b"key", sub=sub) for revision in range(2, 300) for sub in range(2)]
    dead = [(event[0], event[1]) for event in events if event[0] % 3 or event[1]]
    engine.commit(batch(1, events=events))
    engine.commit(batch(2, compact_revision=299, dead=dead))
    assert rest(engine) >= len(dead) // 10
    assert [(event[0], event[1]) for event in engine.load().events] == [
        (revision, 0) for revision in range(2, 300) if revision % 3 == 0
    ]
    assert engine.load().meta.compact_revision == 299


@pytest.mark.usefixtures("small_steps")
def test_a_sweep_goes_on_between_commits(engine: FileEngine) -> None:
    engine.commit(batch(1, events=[put(revision, b"key") for revision in range(2, 102)]))
    dead = [(revision, 0) for revision in range(2, 101)]
    engine.commit(batch(2, compact_revision=101, dead=dead))
    engine.flush()
    number, more = 3, rest_a_step(engine)
    left = [sum(1 for _ in engine.load().events)]
    while more:
        engine.commit(batch(number, leases=[(number, 60, 60.0, False)]))
        more = rest_a_step(engine)
        left.append(sum(1 for _ in engine.load().events))
        number += 1
    assert left[0] == 90
    assert all(before - after <= 10 for before, after in pairwise(left))
    assert left[-1] == 1


def test_a_sweep_deletes_the_oldest_rows_first(engine: FileEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tombstone must not go before the value that it covers, whatever order the rows are named in."""
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MAX", 2)
    engine.commit(batch(1, events=[put(2, b"a"), put(3, b"b"), tombstone(4, b"a"), tombstone(5, b"b")]))
    engine.commit(batch(2, compact_revision=5, dead=[(5, 0), (4, 0), (3, 0), (2, 0)]))
    engine.flush()
    rest_a_step(engine)
    assert [event[0] for event in engine.load().events] == [4, 5]


def test_lists_of_dead_rows_are_deleted_in_the_order_in_which_they_were_named(
    engine: FileEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second list is of a batch without rows, and names an older row: what it covers is of the first."""
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MAX", 1)
    engine.commit(batch(1, events=[put(2, b"a"), put(3, b"b"), tombstone(4, b"b"), put(5, b"c")]))
    engine.commit(batch(2, compact_revision=4, dead=[(3, 0), (4, 0)]))
    engine.commit(batch(3, dead=[(2, 0)]))
    engine.commit(batch(4))
    engine.flush()
    left = []
    while rest_a_step(engine):
        left.append([event[0] for event in engine.load().events])
    assert left[:3] == [[2, 4, 5], [2, 5], [5]]


def test_nothing_is_deleted_before_the_compaction_is_in_the_tables(engine: FileEngine, data_dir: Path) -> None:
    """The other way round a crash could leave rows that are gone beside a compaction that never was."""
    engine.commit(batch(1, events=[put(2, b"a"), put(3, b"a")]))
    engine.flush()
    engine.commit(batch(2, compact_revision=3, dead=[(2, 0)]))
    settle(engine)
    person = sqlite3.connect(data_dir / "lessor.db")
    assert person.execute("SELECT count(*) FROM event").fetchone() == (2,)
    assert person.execute("SELECT value FROM meta WHERE name = 'compact_revision'").fetchone() == (-1,)
    rest(engine)
    assert person.execute("SELECT count(*) FROM event").fetchone() == (1,)
    assert person.execute("SELECT value FROM meta WHERE name = 'compact_revision'").fetchone() == (3,)
    person.close()


def test_a_sweep_removes_leases_that_ended_before_the_compaction(
    engine: FileEngine, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MAX", 7)
    leases = [(number, 60, 61.0, number % 2 == 0) for number in range(1, 101)]
    engine.commit(batch(1, leases=leases))
    engine.commit(batch(2, compact_revision=1, leases=[(1, 60, 61.0, True)]))
    engine.commit(batch(3, leases=[(3, 60, 61.0, True)]))
    assert rest(engine) > 100 // 7
    with sqlite3.connect(data_dir / "lessor.db") as person:
        assert person.execute("SELECT id FROM lease WHERE ended").fetchall() == [(1,), (3,)]
    person.close()
    assert [lease[0] for lease in engine.load().leases] == list(range(5, 101, 2))


def test_nothing_to_do_is_said_at_once(engine: FileEngine) -> None:
    assert engine.upkeep(0.0, True) is None


def test_a_sweep_looks_at_the_dead_rows_alone() -> None:
    """The cost of a step must not grow with the table."""
    connection = sqlite3.connect(":memory:")
    for migration in schema.MIGRATIONS:
        for statement in schema.split_statements(migration):
            connection.execute(statement)
    for rows in (1, schema.ROWS_PER_STATEMENT):
        sql = schema.rows_sql(schema.DEAD_EVENTS, rows)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [0] * 2 * rows).fetchall()
        assert any(
            row[3].startswith("SEARCH event USING INDEX sqlite_autoindex_event_1 (revision=? AND sub=?)")
            for row in plan
        )
        assert not any(row[3].startswith("SCAN event") for row in plan)
    connection.close()


@pytest.mark.slow
def test_compaction_shrinks_the_file(engine: FileEngine, data_dir: Path) -> None:
    rows = 50_000
    for number in range(1, 11):
        first = 2 + (number - 1) * rows // 10
        engine.commit(batch(number, events=[put(first + row, b"key%d" % (row % 100)) for row in range(rows // 10)]))
        settle(engine)
    engine.flush()
    full = engine.sizes()
    dead = [(revision, 0) for revision in range(2, 2 + rows - 100)]
    engine.commit(batch(11, compact_revision=1 + rows, dead=dead))
    assert rest(engine) < 100  # 50 of deleting, the rest gives back many pages at once
    settle(engine)
    assert engine.sizes().total_bytes < full.total_bytes / 20
    assert (data_dir / "lessor.db").stat().st_size < full.total_bytes / 20
    assert engine.sizes().in_use_bytes < full.in_use_bytes / 20
    assert sum(1 for _ in engine.load().events) == 100


@pytest.mark.parametrize("flushed", [False, True])
def test_sizes_follow_the_data(engine: FileEngine, flushed: bool) -> None:
    empty = engine.sizes()
    engine.commit(batch(1, events=[put(2 + row, b"key", b"v" * 1_000) for row in range(500)]))
    if flushed:
        engine.flush()
    assert engine.sizes().in_use_bytes >= empty.in_use_bytes + 500_000
    assert engine.sizes().total_bytes >= empty.total_bytes + 500_000


def test_the_size_is_that_of_the_tables_files(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.flush()
    content = files(data_dir)
    assert engine.sizes().total_bytes == len(content["lessor.db"]) + len(content["lessor.db-wal"])


def test_defragment_keeps_the_data_and_gives_free_space_back(
    engine: FileEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SWEEP_ROWS_MAX", 500)
    events = [put(2 + row, b"key", b"v" * 1_000) for row in range(500)]
    engine.commit(batch(1, events=events))
    engine.commit(batch(2, compact_revision=480, dead=[(event[0], 0) for event in events[:-20]]))
    engine.flush()
    rest_a_step(engine)  # rows are gone, their pages are free
    assert engine.sizes().in_use_bytes < 200_000
    assert engine.sizes().total_bytes > 500_000
    engine.commit(batch(3, events=[put(590, b"in the log")]))
    engine.defragment()
    assert engine.sizes().total_bytes < 200_000
    assert list(engine.load().events) == [*events[-20:], put(590, b"in the log")]
    engine.commit(batch(4, events=[put(600, b"after")]))
    rest(engine)
    assert engine.upkeep(1e9, True) is None


def test_the_size_is_true_after_the_sync_that_shortens_sqlites_log(engine: FileEngine, data_dir: Path) -> None:
    """Otherwise the quota would see what is gone, and raise an alarm that was disarmed."""
    events = [put(2 + row, b"key", b"v" * 10_000) for row in range(200)]
    engine.commit(batch(1, events=events))
    rest(engine)
    engine.commit(batch(2, compact_revision=201, dead=[(event[0], 0) for event in events[:-1]]))
    rest(engine)
    content = files(data_dir)
    assert engine.sizes().total_bytes == len(content["lessor.db"]) + len(content["lessor.db-wal"]) < 200_000


def test_a_file_that_somebody_has_rebuilt_with_another_setting_gives_no_work_without_end(data_dir: Path) -> None:
    engine = FileEngine(data_dir, start=run_at_once)
    engine.open(IDENTITY)
    engine.close()
    with sqlite3.connect(data_dir / "lessor.db", isolation_level=None) as person:
        person.execute("PRAGMA auto_vacuum = NONE")
        person.execute("VACUUM")
    person.close()
    engine.open(IDENTITY)
    events = [put(2 + row, b"key", b"v" * 10_000) for row in range(50)]
    engine.commit(batch(1, events=events))
    engine.commit(batch(2, compact_revision=51, dead=[(event[0], 0) for event in events[:-1]]))
    assert rest(engine) < 1_000
    assert list(engine.load().events) == events[-1:]
    engine.close()


@pytest.mark.usefixtures("small_steps")
def test_defragment_right_after_a_compaction_gives_its_room_back(engine: FileEngine) -> None:
    """Clients compact, defragment and look at the size, and no upkeep need have come in between."""
    events = [put(2 + row, b"key", b"v" * 1_000) for row in range(500)]
    engine.commit(batch(1, events=events, leases=[(7, 60, 60.0, True)]))
    engine.commit(batch(2, compact_revision=480))
    engine.commit(batch(3, dead=[(event[0], 0) for event in events[:-20]]))
    engine.defragment()
    assert engine.sizes().total_bytes < 200_000
    assert list(engine.load().events) == events[-20:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_bytes", "settled_pages", "unsettled_pages"),
    [(40_960, 60, 60), (file_log.LOG_BYTES_MAX, 60, 250)],
    ids=["a log that is full again and again", "a log that takes all"],
)
def test_sqlites_log_is_bounded_by_upkeep_or_by_commit(
    engine: FileEngine,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_bytes: int,
    settled_pages: int,
    unsettled_pages: int,
) -> None:
    monkeypatch.setattr(upkeep, "WAL_PAGES_SYNC", 20)
    monkeypatch.setattr(upkeep, "WAL_PAGES_MAX", 100)
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 10_000)
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", log_bytes)
    if log_bytes < file_log.SEGMENT_BYTES:
        monkeypatch.setattr(file_log, "SEGMENT_BYTES", log_bytes // 2)
        engine.close()
        for name in ("lessor.log.0", "lessor.log.1"):
            (data_dir / name).write_bytes(b"lost")  # to be made anew, and shorter
        engine.open(IDENTITY)
    log = data_dir / "lessor.db-wal"
    page_bytes = PAGE_BYTES + 24  # with the header that SQLite puts before each page of the log
    for number in range(1, 101):
        engine.commit(batch(number, events=[put(number * 100 + row, b"k", b"v" * 400) for row in range(50)]))
        settle(engine)
    assert 0 < log.stat().st_size < (20 + 2 * settled_pages) * page_bytes
    for number in range(101, 201):
        engine.commit(batch(number, events=[put(number * 100 + row, b"k", b"v" * 400) for row in range(50)]))
    assert log.stat().st_size < (100 + 2 * unsettled_pages) * page_bytes
    assert sum(1 for _ in engine.load().events) == 10_000
