# SPDX-License-Identifier: Apache-2.0
"""Folds that do not sync, syncs beside the commits, and other programs that hold the write lock of the tables.

The thread that syncs is the test's: a sync ends when `later.run()` is called, or when the engine waits for it.
"""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lessor.durable import file_log, opening, upkeep
from lessor.durable.engine import EngineError, TablesLockedError
from lessor.durable.file_engine import FileEngine
from tests.faulty_disk import FSYNC_FAILED, Countdown, Later, PowerLoss, StatementFaults, run_at_once
from tests.unit.durable.engine_rows import ALARM, IDENTITY, batch, put, rest, rest_a_step, settle

FILE_BYTES = 5_120
VALUE = b"v" * 400  # a record takes two sectors, so four fill a file


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_log, "SEGMENT_BYTES", FILE_BYTES)
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 2 * FILE_BYTES)
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 1)
    monkeypatch.setattr(opening, "BUSY_S", 0.01)


@pytest.fixture
def later() -> Later:
    return Later()


@pytest.fixture
def power(tmp_path: Path) -> PowerLoss:
    return PowerLoss(tmp_path / "data")


@pytest.fixture
def engine(tmp_path: Path, power: PowerLoss, later: Later) -> Iterator[FileEngine]:
    engine = FileEngine(tmp_path / "data", connect=power.connect, disk=power, start=later.start)
    engine.open(IDENTITY)
    yield engine
    engine.close()


@pytest.fixture
def shell(engine: FileEngine, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A person with the sqlite3 shell."""
    with closing(sqlite3.connect(tmp_path / "data" / "lessor.db", isolation_level=None, timeout=0)) as connection:
        yield connection


def put_batch(engine: FileEngine, number: int) -> None:
    engine.commit(batch(number, events=[put(number, b"%d" % number, VALUE)]))


def revisions(engine: FileEngine) -> list[int]:
    return [event[0] for event in engine.load().events]


def in_tables(shell: sqlite3.Connection) -> list[int]:
    return [revision for (revision,) in shell.execute("SELECT revision FROM event ORDER BY revision")]


def after_power_loss(power: PowerLoss, tmp_path: Path) -> FileEngine:
    """An engine on what is left when nothing that was not synced is."""
    left = tmp_path / "left"
    shutil.copytree(tmp_path / "data", left)
    power.leave(left, Always())
    engine = FileEngine(left)
    engine.open(IDENTITY)
    return engine


class Always(random.Random):
    """Loses every sector."""

    def choice(self, seq: object) -> float:  # type: ignore[override]
        return 1.0

    def random(self) -> float:
        return 0.5


def test_a_fold_shows_rows_to_people_and_leaves_the_disk_to_the_next_sync(
    engine: FileEngine, power: PowerLoss, shell: sqlite3.Connection, later: Later
) -> None:
    put_batch(engine, 1)
    synced = power.synced
    engine.flush()
    assert in_tables(shell) == [1]
    assert power.synced == synced
    for number in range(2, 7):  # into the second file
        put_batch(engine, number)
        settle(engine)
    assert power.synced == synced
    later.run()
    assert power.synced == power.now() != synced


@pytest.mark.parametrize(
    "write",
    [
        lambda engine: engine.begin_term(7),
        lambda engine: engine.commit(batch(3, alarms=ALARM)),
        lambda engine: engine.commit(batch(3, compact_revision=1)),
        lambda engine: engine.commit(batch(3, events=[put(3, b"large", b"v" * FILE_BYTES)])),
        lambda engine: engine.commit(batch(3, clean=True, peer_urls=("http://a",))),
    ],
    ids=["term", "alarm", "compaction", "large", "peer URLs"],
)
@pytest.mark.parametrize("folded", [False, True])
def test_whatever_is_in_a_batch_survives_a_loss_of_power(
    engine: FileEngine, power: PowerLoss, tmp_path: Path, write: Callable[[FileEngine], None], folded: bool
) -> None:
    put_batch(engine, 1)
    engine.flush()
    write(engine)
    put_batch(engine, 4)
    if folded:
        engine.flush()
    found = after_power_loss(power, tmp_path)
    expected = engine.load().meta._replace(clean=False)
    assert found.load().meta._replace(clean=False) == expected
    assert revisions(found) == revisions(engine)
    assert list(found.load().alarms) == list(engine.load().alarms)
    found.close()


def test_a_file_that_grew_is_as_long_after_a_loss_of_power(
    engine: FileEngine, power: PowerLoss, tmp_path: Path
) -> None:
    """Growing is synced before a record is written there: otherwise the record would be gone with the blocks."""
    put_batch(engine, 1)
    engine.commit(batch(2, events=[put(2, b"large", b"v" * 3 * FILE_BYTES)]))
    put_batch(engine, 3)
    found = after_power_loss(power, tmp_path)
    assert revisions(found) == [1, 2, 3]
    found.close()


def test_what_a_start_finds_in_the_tables_is_synced_before_the_log_is_written_over(
    engine: FileEngine, tmp_path: Path
) -> None:
    """A killed server's last folds may be in the page cache alone, and somebody reads on while the next one starts."""
    for number in range(1, 4):
        put_batch(engine, number)
    engine.flush()
    left = tmp_path / "killed" / "data"
    shutil.copytree(tmp_path / "data", left)
    power = PowerLoss(left)  # nothing is on disk yet, for all we know
    with closing(sqlite3.connect(left / "lessor.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        next_one = FileEngine(left, connect=power.connect, disk=power)
        next_one.open(IDENTITY)
        put_batch(next_one, 4)
        found = after_power_loss(power, tmp_path / "killed")
        reader.execute("ROLLBACK")
    assert revisions(found) == [1, 2, 3, 4]
    found.close()
    next_one.close()


def test_after_a_term_has_begun_the_tables_do_not_say_any_more_that_the_stop_was_orderly(
    engine: FileEngine, power: PowerLoss, shell: sqlite3.Connection, tmp_path: Path
) -> None:
    """Not even after a loss of power: such tables would let the log be missing."""
    engine.commit(batch(1, clean=True))
    engine.flush()
    engine.begin_term(5)
    left = tmp_path / "left"
    shutil.copytree(tmp_path / "data", left)
    power.leave(left, Always())
    with closing(sqlite3.connect(left / "lessor.db")) as person:
        assert dict(person.execute("SELECT name, value FROM meta WHERE name IN ('clean', 'term')")) == {
            "clean": 0,
            "term": 5,
        }


def test_a_sync_runs_beside_commits_and_folds_wait_for_its_end(
    engine: FileEngine, shell: sqlite3.Connection, later: Later, tmp_path: Path
) -> None:
    for number in range(1, 6):
        put_batch(engine, number)
        settle(engine)
    assert engine._tables._syncing.running
    put_batch(engine, 6)
    settle(engine)
    rest_a_step(engine)
    assert in_tables(shell) == [1, 2, 3, 4, 5]
    later.run()
    assert engine._tables._syncing.synced == 5
    assert engine._tables._wal_pages() < 4  # the log was copied whole, and begun anew by the sync itself
    settle(engine)
    assert not engine._tables._syncing.running
    assert in_tables(shell) == [1, 2, 3, 4, 5, 6]


def test_a_sweep_waits_for_the_end_of_a_sync(engine: FileEngine, shell: sqlite3.Connection, later: Later) -> None:
    put_batch(engine, 1)
    put_batch(engine, 2)
    engine.commit(batch(3, compact_revision=2, dead=[(1, 0)]))
    engine.flush()
    engine._tables.begin_sync()
    rest_a_step(engine)
    assert in_tables(shell) == [1, 2]
    later.run()
    rest(engine)
    assert in_tables(shell) == [2]


def test_a_commit_waits_only_when_both_files_are_full(engine: FileEngine, tmp_path: Path) -> None:
    for number in range(1, 9):
        put_batch(engine, number)
        settle(engine)
    assert engine._tables._syncing.running
    assert engine._tables._syncing.synced == 0
    put_batch(engine, 9)  # waits for the sync, whose end the test has not asked for
    assert engine._tables._syncing.synced >= 4
    assert revisions(engine) == list(range(1, 10))
    for name in ("lessor.log.0", "lessor.log.1"):
        assert (tmp_path / "data" / name).stat().st_size == FILE_BYTES


@pytest.mark.parametrize("settles", [False, True])
def test_a_log_goes_round_and_round(engine: FileEngine, settles: bool, power: PowerLoss, tmp_path: Path) -> None:
    for number in range(1, 60):
        put_batch(engine, number)
        if settles:
            settle(engine)
    found = after_power_loss(power, tmp_path)
    assert revisions(found) == list(range(1, 60))
    found.close()


def test_with_a_thread_that_is_one(tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "data")
    engine.open(IDENTITY)
    for number in range(1, 100):
        put_batch(engine, number)
        settle(engine)
        if number % 9 == 0:
            engine.flush()
    assert engine._tables._syncing.synced > 50
    assert revisions(engine) == list(range(1, 100))
    engine.close()
    engine.open(IDENTITY)
    assert revisions(engine) == list(range(1, 100))
    engine.close()


@pytest.mark.parametrize("took_effect", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(1, 8))
def test_a_sync_that_fails_is_final_and_loses_nothing(tmp_path: Path, nth: int, took_effect: bool) -> None:
    """Whichever of its statements fails, the next write hears of it."""
    faults = StatementFaults(0, error=FSYNC_FAILED)

    def start(work: Callable[[], None]) -> Callable[[], None]:
        faults.countdown = Countdown(nth, took_effect=took_effect)
        return run_at_once(work)

    engine = FileEngine(tmp_path / "data", connect=faults.connect, start=start)
    engine.open(IDENTITY)
    for number in range(1, 6):
        put_batch(engine, number)
        settle(engine)
    assert faults.countdown.failed
    writes: tuple[Callable[[], object], ...] = (
        lambda: engine.commit(batch(6)),
        lambda: engine.commit(batch(6, alarms=ALARM)),
        lambda: settle(engine),
        lambda: engine.begin_term(9),
    )
    for write in writes:
        with pytest.raises(EngineError, match=r"disk failed to read or write \(SQLITE_IOERR_FSYNC\)") as caught:
            write()
        assert not isinstance(caught.value, TablesLockedError)
    engine.close()
    again = FileEngine(tmp_path / "data")
    again.open(IDENTITY)
    assert revisions(again) == [1, 2, 3, 4, 5]
    again.close()


# --- other programs -------------------------------------------------------------------------------------------------


def test_a_fold_that_another_program_keeps_from_the_tables_is_done_later(
    engine: FileEngine, shell: sqlite3.Connection
) -> None:
    shell.execute("BEGIN IMMEDIATE")
    for number in (1, 2, 3):
        put_batch(engine, number)
        settle(engine)
        assert not rest_a_step(engine)  # but a moment later
    with pytest.raises(TablesLockedError, match="locked by another program") as caught:
        engine.flush()
    assert "\n" not in str(caught.value)
    shell.execute("ROLLBACK")
    assert in_tables(shell) == []
    rest(engine)
    assert in_tables(shell) == [1, 2, 3]
    engine.commit(batch(4, alarms=ALARM))


def test_a_backlog_is_folded_faster(
    engine: FileEngine, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FOLD_ROWS", 1)
    shell.execute("BEGIN IMMEDIATE")
    for number in range(1, 5):
        put_batch(engine, number)
        settle(engine)
    shell.execute("ROLLBACK")
    put_batch(engine, 5)
    settle(engine)
    assert in_tables(shell) == [1, 2]


def test_under_load_it_folds_from_so_many_bytes_or_rows_on(
    engine: FileEngine, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 2 * FILE_BYTES)
    monkeypatch.setattr(upkeep, "FOLD_FROM_ROWS", 3)
    for number, expected in ((1, []), (2, []), (3, [1, 2, 3])):
        put_batch(engine, number)
        settle(engine)
        assert in_tables(shell) == expected
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 2 * len(VALUE))
    monkeypatch.setattr(upkeep, "FOLD_FROM_ROWS", 100)
    for number, expected in ((4, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (6, [1, 2, 3, 4, 5])):
        put_batch(engine, number)
        settle(engine)
        assert in_tables(shell) == expected


def test_a_commit_that_cannot_do_without_the_tables_fails_for_good(
    engine: FileEngine, shell: sqlite3.Connection
) -> None:
    """The log is full, and nothing could be folded."""
    shell.execute("BEGIN IMMEDIATE")
    for number in range(1, 9):
        put_batch(engine, number)
        settle(engine)
    with pytest.raises(EngineError, match="locked by another program") as caught:
        put_batch(engine, 9)
    assert not isinstance(caught.value, TablesLockedError)
    shell.execute("ROLLBACK")
    with pytest.raises(EngineError, match="no write after a failed one"):
        engine.commit(batch(10))


def test_any_kind_of_batch_is_committed_while_the_tables_are_locked(
    engine: FileEngine, shell: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the log is needed, and it grows."""
    monkeypatch.setattr(file_log, "LOG_BYTES_MAX", 20 * FILE_BYTES)
    shell.execute("BEGIN IMMEDIATE")
    engine.commit(batch(1, alarms=ALARM))
    engine.commit(batch(2, events=[put(2, b"large", b"v" * 5 * FILE_BYTES)]))
    engine.commit(batch(3, compact_revision=1, peer_urls=("http://a",)))
    settle(engine)
    shell.execute("ROLLBACK")
    rest(engine)
    assert in_tables(shell) == [2]


def test_a_sync_that_found_the_tables_locked_has_synced_nothing_and_is_tried_again(
    engine: FileEngine, shell: sqlite3.Connection, later: Later, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "data" / "lessor.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()  # so that SQLite's log cannot be copied whole
        for number in range(1, 6):
            put_batch(engine, number)
            settle(engine)
        shell.execute("BEGIN IMMEDIATE")
        later.run()
        assert engine._tables._syncing.synced == 0
        assert engine._tables._syncing.error is None
        shell.execute("ROLLBACK")
        put_batch(engine, 6)
        settle(engine)
        assert engine._tables._syncing.running
        later.run()
        assert engine._tables._syncing.synced == 6


def test_a_lock_that_stays_does_not_make_it_sync_again_and_again(
    engine: FileEngine, shell: sqlite3.Connection, later: Later
) -> None:
    for number in range(1, 6):
        put_batch(engine, number)
        settle(engine)
    shell.execute("BEGIN IMMEDIATE")
    later.run()
    for number in (6, 7, 8):
        put_batch(engine, number)
        settle(engine)
        assert not engine._tables._syncing.running
