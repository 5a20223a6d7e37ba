# SPDX-License-Identifier: Apache-2.0
"""When the committer lets the engine do its upkeep: after commits, when it has asked for it, and not against commits.

The loop is a list that the test empties by hand, and a timer runs when the test says so: no test here waits for time.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from lessor.durable import opening, upkeep
from lessor.durable.engine import EngineError, TablesLockedError
from lessor.durable.file_engine import FileEngine
from lessor.durable.unfolded import Fold
from lessor.server.loop.committer import Committer
from lessor.state.journal import Batch
from tests.faulty_disk import FaultyEngine
from tests.unit.durable.engine_rows import batch, put

START_S = 1_000.0


class Clock:
    """Moves when the test says so."""

    def __init__(self) -> None:
        self.instant_s = START_S

    def now_s(self) -> float:
        return self.instant_s


class Timer:
    def __init__(self, delay_s: float, run: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.run = run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """What the committer asks of an event loop."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._timers: list[Timer] = []
        self.made = 0  # timers

    @property
    def timers(self) -> list[Timer]:
        """Those that are running."""
        return [timer for timer in self._timers if not timer.cancelled]

    def stop_timers(self) -> None:
        self._timers.clear()

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self._calls.put(callback)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        self._timers.append(Timer(delay_s, lambda: callback(*args)))
        self.made += 1
        return self._timers[-1]

    def run_one(self) -> None:
        """Runs the next call that came from the thread."""
        self._calls.get(timeout=10)()

    def run_all(self) -> bool:
        """Runs the calls that have come from the thread; returns whether there were any."""
        ran = False
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()
                ran = True
        return ran


class Engine(FileEngine):
    """Keeps a diary of commits and folds."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.diary: list[str] = []
        self.idle: list[bool] = []  # what each upkeep was given
        self.before_fold: Callable[[], object] = lambda: None

    def _open(self, new_identity: tuple[int, int]) -> Any:
        meta = super()._open(new_identity)
        fold = self._tables.fold

        def noted(given: Fold, **how: Any) -> None:
            self.before_fold()
            self.diary.append("fold")
            fold(given, **how)

        setattr(self._tables, "fold", noted)  # noqa: B010
        return meta

    def commit(self, given_batch: Batch) -> None:
        super().commit(given_batch)
        self.diary.append(f"commit {given_batch.number}")

    def upkeep(self, now_s: float, idle: bool) -> float | None:
        self.idle.append(idle)
        return super().upkeep(now_s, idle)


class Bench:
    """A committer on its engine and the loop by hand."""

    def __init__(self, data_dir: Path, fail_at: int = 0) -> None:
        self.loop = Loop()
        self.clock = Clock()
        self.engine = Engine(data_dir)
        self.engine.open((1, 2))
        self.engine.diary.clear()
        self.failures: list[BaseException] = []
        self.committed: list[int] = []
        self.committer = Committer(FaultyEngine(self.engine, fail_at, message="the disk is gone"), self.clock)
        self.committer.start(
            cast(asyncio.AbstractEventLoop, self.loop),
            lambda done: self.committed.append(done.number),
            self.failures.append,
        )

    def commit(self, number: int, rows: bool = True) -> None:
        """Commits and waits until the loop has heard of it and the thread has rested."""
        events = [put(number, b"key")] if rows else []
        self.committer.commit(batch(number, events=events))
        self.loop.run_one()
        self.rest()

    def rest(self) -> None:
        """Waits until the thread has done what it was asked for, and the loop has heard what it has to say."""
        while True:
            self.committer.call(lambda: None)
            if not self.loop.run_all() and self.committer.idle:
                return

    def fire(self) -> float:
        """Lets the time pass until the one timer is due, and runs it; returns how long that took."""
        (timer,) = self.loop.timers
        self.loop.stop_timers()
        self.clock.instant_s += timer.delay_s
        timer.run()
        return timer.delay_s

    def unfolded(self) -> int:
        return self.committer.call(lambda: len(self.engine._upkeep.unfolded))


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path)
    yield made
    made.committer.close()


def test_rows_are_folded_when_nothing_came_for_a_moment(bench: Bench) -> None:
    bench.commit(1)
    assert bench.unfolded() == 1
    assert bench.fire() == pytest.approx(upkeep.IDLE_S)
    bench.rest()
    assert bench.engine.diary == ["commit 1", "fold"]
    assert bench.unfolded() == 0
    assert not bench.loop.timers
    assert bench.committer.size_bytes == bench.engine.sizes().total_bytes


def test_a_commit_in_between_puts_the_fold_off(bench: Bench) -> None:
    bench.commit(1)
    bench.clock.instant_s += upkeep.IDLE_S / 2
    bench.commit(2)
    bench.loop.timers[0].delay_s /= 2  # what is left of it
    bench.fire()
    bench.rest()
    assert bench.engine.diary == ["commit 1", "commit 2"]
    assert bench.fire() == pytest.approx(upkeep.IDLE_S / 2)
    bench.rest()
    assert bench.engine.diary == ["commit 1", "commit 2", "fold"]


def test_under_load_that_never_rests_rows_are_folded_all_the_same(bench: Bench) -> None:
    """Whatever a commit finds waiting for a second, it has folded behind it."""
    number = 0
    for _ in range(3):
        began_s, folds = bench.clock.instant_s, bench.engine.diary.count("fold")
        while bench.engine.diary.count("fold") == folds:
            number += 1
            bench.commit(number)
            bench.clock.instant_s += upkeep.IDLE_S / 3
            assert bench.clock.instant_s < began_s + 10
        waited_s = bench.clock.instant_s - began_s
        assert upkeep.LAG_S - 0.001 < waited_s < upkeep.LAG_S + 3 * upkeep.IDLE_S
        bench.loop.stop_timers()
        bench.committer._asked_s = float("inf")


def test_batches_without_rows_are_folded_rarely(bench: Bench) -> None:
    for number in range(1, 31):
        bench.commit(number, rows=False)
        bench.clock.instant_s += 1.0
    bench.rest()
    assert bench.engine.diary.count("fold") in (2, 3)


def test_a_fold_for_rows_is_one_for_the_clock_too(bench: Bench) -> None:
    for number in range(1, 10):
        bench.commit(number, rows=False)
        bench.clock.instant_s += 0.5
    (timer,) = bench.loop.timers
    bench.commit(50)
    (timer,) = bench.loop.timers  # an earlier one has taken its place
    assert timer.delay_s == pytest.approx(upkeep.IDLE_S)
    bench.fire()
    bench.rest()
    for number in range(51, 60):
        bench.commit(number, rows=False)
        bench.clock.instant_s += 0.5
    bench.rest()
    assert bench.engine.diary.count("fold") == 1


def test_the_loop_has_one_timer_however_many_commits_there_are(bench: Bench) -> None:
    for number in range(1, 200):
        bench.commit(number)
        assert len(bench.loop.timers) == 1
    assert bench.loop.made == 1


def test_upkeep_knows_whether_anything_waits(bench: Bench) -> None:
    bench.commit(1)
    assert bench.engine.idle == [False]  # just committed: others may be close behind
    bench.fire()
    bench.rest()
    assert bench.engine.idle[1]


def test_a_fold_that_fails_is_a_disk_that_failed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fail_at=3)  # after commit and upkeep
    bench.commit(1)
    bench.fire()
    bench.rest()
    assert bench.committed == [1]
    assert [str(error) for error in bench.failures] == ["the disk is gone"]
    assert not bench.committer.free
    bench.committer.close()


def test_a_flush_on_request_that_fails_is_reported_and_ends_the_server(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fail_at=3)
    bench.commit(1)
    with pytest.raises(EngineError, match="the disk is gone"):
        asyncio.run(bench.committer.flush())
    assert len(bench.failures) == 1
    bench.committer.close()


def test_a_fold_in_steps_lets_commits_in_between(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FOLD_ROWS", 1)
    for number in (1, 2, 3):
        bench.commit(number)
    gate = threading.Event()
    first = threading.Event()

    def hold() -> None:
        bench.engine.before_fold = lambda: None
        first.set()
        gate.wait(10)

    bench.engine.before_fold = hold
    bench.fire()
    first.wait(10)
    bench.committer.commit(batch(4, events=[put(4, b"key")]))
    gate.set()
    bench.rest()
    assert bench.engine.diary == ["commit 1", "commit 2", "commit 3", "fold", "commit 4", "fold", "fold", "fold"]
    assert bench.unfolded() == 0


def test_a_fold_that_finds_the_tables_locked_is_tried_again(bench: Bench, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        bench.commit(1)
        for _ in range(15):
            bench.fire()
            bench.rest()
        assert bench.engine.diary.count("fold") > 10
        assert bench.unfolded() == 1
        bench.commit(2)  # needs nobody's leave
        shell.execute("ROLLBACK")
    while bench.loop.timers:
        bench.fire()
        bench.rest()
    assert bench.unfolded() == 0
    assert not bench.failures


def test_a_flush_on_request_that_finds_the_tables_locked_is_reported_and_ends_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "BUSY_S", 0.01)
    bench.commit(1)
    with closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(TablesLockedError, match="locked by another program"):
            asyncio.run(bench.committer.flush())
        bench.commit(2)
    asyncio.run(bench.committer.flush())
    assert bench.unfolded() == 0
    assert not bench.failures


def test_what_a_compaction_named_is_deleted_once_the_tables_are_free(bench: Bench, tmp_path: Path) -> None:
    for number in (1, 2):
        bench.commit(number)
    asyncio.run(bench.committer.flush())
    with closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None, check_same_thread=False)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        bench.committer.commit(batch(3, compact_revision=2, dead=[(1, 0)]))
        bench.loop.run_one()
        bench.rest()
        assert bench.committer.compacted_rows == 1
        bench.fire()
        bench.rest()
        assert shell.execute("SELECT revision FROM event").fetchall() == [(1,), (2,)]
        shell.execute("ROLLBACK")
        while bench.loop.timers:
            bench.fire()
            bench.rest()
        assert shell.execute("SELECT revision FROM event").fetchall() == [(2,)]
    assert not bench.failures


def test_what_comes_after_the_close_touches_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.commit(1)
    (timer,) = bench.loop.timers
    bench.committer.close()
    assert timer.cancelled
    bench.engine.diary.clear()
    timer.run()
    bench.committer.close()
    assert bench.engine.diary == []
    assert not bench.failures


def test_a_close_leaves_everything_in_the_tables(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.commit(1)
    bench.committer.close()
    assert bench.engine.diary == ["commit 1", "fold"]
