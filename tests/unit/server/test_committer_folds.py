# SPDX-License-Identifier: Apache-2.0
"""When the committer has committed rows brought into the tables: when it is quiet, and not for ever later under load.

The loop is a list that the test empties by hand, and a timer runs when the test says so: no test here waits for time.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from lessor.durable import sqlite
from lessor.durable.engine import COLLECT_ROWS_MAX, EngineError, TablesLockedError
from lessor.durable.file_engine import FileEngine
from lessor.server.loop import committer as module
from lessor.server.loop.committer import Committer
from lessor.state.journal import Batch
from tests.faulty_disk import FaultyEngine
from tests.unit.durable.engine_rows import batch, put


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
        self.timers: list[Timer] = []

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self._calls.put(callback)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        self.timers.append(Timer(delay_s, lambda: callback(*args)))
        return self.timers[-1]

    def run_one(self) -> None:
        """Runs the next call that came from the thread."""
        self._calls.get(timeout=10)()

    def fire(self) -> float:
        """Runs the one timer; returns how long it would have taken."""
        (timer,) = self.timers
        self.timers.clear()
        timer.run()
        return timer.delay_s


class Engine(FileEngine):
    """Keeps a diary of commits and folds."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.diary: list[str] = []
        self.before_collect: Callable[[], object] = lambda: None

    def collect(self, dead: Sequence[tuple[int, int]] = (), rows_max: int = COLLECT_ROWS_MAX) -> bool:
        self.before_collect()
        return super().collect(dead, rows_max)

    def commit(self, given_batch: Batch) -> None:
        super().commit(given_batch)
        self.diary.append(f"commit {given_batch.number}")

    def fold_step(self) -> bool:
        self.diary.append("fold")
        return super().fold_step()


class Bench:
    """A committer on its engine and the loop by hand."""

    def __init__(self, data_dir: Path, fail_at: int = 0) -> None:
        self.loop = Loop()
        self.engine = Engine(data_dir)
        self.engine.open((1, 2))
        self.engine.diary.clear()
        self.failures: list[BaseException] = []
        self.committed: list[int] = []
        self.committer = Committer(FaultyEngine(self.engine, fail_at, message="the disk is gone"))
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
        """Waits until the thread has done what it was asked for."""
        self.committer.call(lambda: None)

    def unfolded(self) -> int:
        return self.committer.call(lambda: len(self.engine._unfolded))


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path)
    yield made
    made.committer.close()


def test_rows_are_folded_when_nothing_came_for_a_moment(bench: Bench) -> None:
    bench.commit(1)
    assert bench.unfolded() == 1
    assert bench.loop.fire() == module.IDLE_S
    bench.rest()
    assert bench.engine.diary == ["commit 1", "fold"]
    assert bench.unfolded() == 0
    assert not bench.loop.timers
    assert bench.committer.size_bytes == bench.engine.size_bytes()


def test_a_commit_in_between_puts_the_fold_off(bench: Bench) -> None:
    bench.commit(1)
    bench.commit(2)
    bench.loop.fire()
    bench.rest()
    assert bench.engine.diary == ["commit 1", "commit 2"]
    bench.loop.fire()
    bench.rest()
    assert bench.engine.diary == ["commit 1", "commit 2", "fold"]


def test_under_load_that_never_rests_rows_are_folded_all_the_same(bench: Bench) -> None:
    waited_s, number = 0.0, 0
    while bench.engine.diary.count("fold") < 2:
        number += 2
        bench.commit(number)
        bench.commit(number + 1)  # one more than the timer has seen
        waited_s += bench.loop.fire()
        bench.rest()
        assert waited_s < 10
    assert 2 * module.LAG_S - 0.001 < waited_s < 2 * module.LAG_S + 3 * module.IDLE_S


def test_batches_without_rows_are_folded_rarely(bench: Bench) -> None:
    for number in range(1, 3 * module.BARE_MAX + 1):
        bench.commit(number, rows=False)
        bench.rest()
    assert not bench.loop.timers
    assert bench.engine.diary.count("fold") == 3


def test_a_fold_for_rows_is_one_for_the_uptime_too(bench: Bench) -> None:
    for number in range(1, module.BARE_MAX):
        bench.commit(number, rows=False)
    bench.commit(50)
    bench.loop.fire()
    for number in range(51, 50 + module.BARE_MAX):
        bench.commit(number, rows=False)
    bench.rest()
    assert bench.engine.diary.count("fold") == 1


def test_a_fold_that_fails_is_a_disk_that_failed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fail_at=3)  # after commit and settle
    bench.commit(1)
    bench.loop.fire()
    bench.loop.run_one()
    assert bench.committed == [1]
    assert [str(error) for error in bench.failures] == ["the disk is gone"]
    assert not bench.committer.free
    bench.committer.close()


def test_a_fold_on_request_that_fails_is_told_and_ends_the_server(tmp_path: Path) -> None:
    bench = Bench(tmp_path, fail_at=3)
    bench.commit(1)
    with pytest.raises(EngineError, match="the disk is gone"):
        asyncio.run(bench.committer.fold())
    assert len(bench.failures) == 1
    bench.committer.close()


def test_a_fold_in_steps_lets_commits_in_between(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "FOLD_ROWS", 1)
    for number in (1, 2, 3):
        bench.commit(number)
    bench.loop.fire()
    gate = threading.Event()

    def hold() -> None:
        gate.wait(10)

    bench.committer._give(hold)
    bench.loop.fire()
    bench.committer.commit(batch(4, events=[put(4, b"key")]))
    gate.set()
    for _ in range(5):
        bench.rest()
    assert bench.engine.diary == ["commit 1", "commit 2", "commit 3", "fold", "commit 4", "fold", "fold", "fold"]
    assert bench.unfolded() == 0


def test_a_fold_that_finds_the_tables_locked_is_tried_again(bench: Bench, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        bench.commit(1)
        for _ in range(15):
            bench.loop.fire()
            bench.rest()
            if bench.engine.diary[-1] == "fold":
                bench.loop.run_one()
        assert bench.engine.diary.count("fold") > 10
        assert bench.unfolded() == 1
        bench.commit(2)  # needs nobody's leave
        shell.execute("ROLLBACK")
    while bench.loop.timers:
        bench.loop.fire()
        bench.rest()
    assert bench.unfolded() == 0
    assert not bench.failures


def test_a_fold_on_request_that_finds_the_tables_locked_is_told_and_ends_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.01)
    bench.commit(1)
    with closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(TablesLockedError, match="locked by another program"):
            asyncio.run(bench.committer.fold())
        bench.commit(2)
    asyncio.run(bench.committer.fold())
    assert bench.unfolded() == 0
    assert not bench.failures


def test_what_a_compaction_named_is_deleted_once_the_tables_are_free(bench: Bench, tmp_path: Path) -> None:
    for number in (1, 2):
        bench.commit(number)
    with closing(sqlite3.connect(tmp_path / "lessor.db", isolation_level=None, check_same_thread=False)) as shell:
        bench.engine.before_collect = lambda: shell.execute("BEGIN IMMEDIATE")
        bench.committer.commit(batch(3, compact_revision=2, dead=[(1, 0)]))
        bench.loop.run_one()
        bench.rest()
        bench.loop.timers.clear()  # that of the fold
        bench.loop.run_one()
        bench.engine.before_collect = lambda: None
        assert [event[0] for event in bench.committer.call(lambda: list(bench.engine.load().events))] == [1, 2]
        shell.execute("ROLLBACK")
    assert bench.loop.fire() == module.IDLE_S
    bench.rest()
    assert [event[0] for event in bench.committer.call(lambda: list(bench.engine.load().events))] == [2]
    assert not bench.failures


def test_what_comes_after_the_close_touches_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.commit(1)
    (timer,) = bench.loop.timers
    bench.committer.close()
    assert timer.cancelled
    timer.run()
    bench.committer.close()
    assert bench.engine.diary == ["commit 1"]
    assert not bench.failures


def test_the_quota_is_looked_at_when_sizes_are_measured(bench: Bench) -> None:
    told: list[int] = []
    bench.committer.quota_bytes = bench.committer.size_bytes
    bench.committer.on_oversize = lambda: told.append(1)
    bench.committer.commit(batch(1, events=[put(2, b"key", b"v" * 200_000)]))  # goes to the tables at once
    bench.loop.run_one()
    bench.loop.run_one()
    assert told == [1]
