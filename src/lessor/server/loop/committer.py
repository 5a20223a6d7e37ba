# SPDX-License-Identifier: Apache-2.0
"""Hands batches to the engine's thread, one at a time, and reports what became of them to the loop.

Laws
- One thread calls the engine; it does nothing else. One batch is in flight at the most. (The engine syncs its tables in
  a thread of its own. Upkeep that would have to wait for that, or for another program, is put off.)
- A failed commit is final: memory is ahead of disk and nobody knows what the disk holds, so nothing is committed after
  it and the failure goes to `on_failure`, which ends the server.
- Between the loop's hearing of a commit and the replies on their way the thread rests: whatever it did there would
  compete with the replies for the interpreter.

Between commits the same thread does the engine's upkeep and its housekeeping (rows made superfluous by a compaction),
in steps that are short beside the wait for a disk.

When committed rows are brought into the tables, where people read them: once no commit came for IDLE_S; under load that
never rests after LAG_S, if the engine has not seen to it by then; as soon after that as the tables are free. Batches
that save nothing but the uptime do not make the disk work for that: one in BARE_MAX does.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from lessor.base.clock import Clock, MonotonicClock
from lessor.durable.engine import Engine, EngineError, TablesLockedError
from lessor.server.observe.histogram import DISK_BUCKETS_S, Histogram
from lessor.state.journal import Batch

T = TypeVar("T")

IDLE_S = 0.1  # so long after a commit without a next one, everything is brought into the tables
LAG_S = 1.0  # so long after a commit at the latest
BARE_MAX = 10  # batches without rows, one a second, until the tables have a newer uptime


class Committer:
    """The loop's end of the engine thread."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or MonotonicClock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="commit", daemon=True)
        # Jobs, each count kept by one thread only so that none needs a lock: given by others, by the engine's, done.
        self._given = self._given_by_itself = self._done = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_committed: Callable[[Batch], None] = lambda batch: None
        self._on_failure: Callable[[BaseException], None] = lambda error: None
        self.in_flight: Batch | None = None
        self.failed = False
        self.size_bytes = 0
        self.in_use_bytes = 0
        self.quota_bytes: int | None = None  # above this size, `on_oversize` is called
        self.on_oversize: Callable[[], None] = lambda: None
        # For the metrics. Written by the engine's thread, read by the loop's: a figure may be a batch old.
        self.commit_s = Histogram(DISK_BUCKETS_S)
        self.defragment_s = Histogram(DISK_BUCKETS_S)
        self.defragmenting = False
        self.compacted_rows = 0
        self._since_s = 0.0
        # When to fold. Loop thread only.
        self._collecting_later = False  # a timer runs until housekeeping that met a lock is tried again
        self._fold_timer: asyncio.TimerHandle | None = None  # runs while committed rows wait for a fold
        self._fold_looks = 0  # how often it has run since those came
        self._newest = 0  # number of the newest batch that is durable
        self._bare = 0  # batches without rows since the last fold

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` in the engine's thread and waits for it. For boot and shutdown, when the loop serves nobody."""
        return self._submit(work).result()

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` in the engine's thread between two commits, while the loop goes on. Raises what `work` raises."""
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        if self._closed:
            raise RuntimeError("the committer is closed")
        if not self._thread.is_alive():
            self._thread.start()
        self._give(job)
        return future

    def _give(self, job: Callable[[], None]) -> None:
        self._given += 1
        self._jobs.put(job)

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        on_committed: Callable[[Batch], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Names the loop and the two callbacks, both of which run in the loop's thread."""
        self._loop = loop
        self._on_committed = on_committed
        self._on_failure = on_failure
        self.call(self._measure)

    @property
    def free(self) -> bool:
        """Whether a batch may be handed over now."""
        return self.in_flight is None and not self.failed

    @property
    def idle(self) -> bool:
        """Whether the thread has nothing to do, upkeep included, and the loop has heard of the last commit."""
        return self.in_flight is None and self._done == self._given + self._given_by_itself

    def commit(self, batch: Batch) -> None:
        """Hands a sealed batch over; `free` must be true. Returns at once."""
        assert self.free, "one batch at a time, and none after a failure"
        self.in_flight = batch
        self._since_s = self._clock.now_s()
        self._give(lambda: self._commit(batch))

    @property
    def waiting_s(self) -> float:
        """How long the commit in hand has taken so far; 0 when there is none."""
        return 0.0 if self.in_flight is None else self._clock.now_s() - self._since_s

    async def defragment(self) -> None:
        """Rewrites the data without free space, between two commits. Raises EngineError; the data is as it was then."""
        await self.run(self._defragment)

    async def fold(self) -> None:
        """Brings everything that is committed into the engine's tables.

        Raises EngineError, which ends the server, but for TablesLockedError.
        """
        try:
            await self.run(self._fold)
        except TablesLockedError:
            raise
        except EngineError as error:
            self._fail(error)
            raise

    def give_up(self, error: Exception) -> None:
        """Commits nothing any more and reports `error`, as after a failed commit: memory must not be saved."""
        self._fail(error)

    def close(self) -> None:
        """Waits for the work in hand, closes the engine, ends the thread."""
        if not self._closed:
            if self._fold_timer is not None:
                self._fold_timer.cancel()
            try:
                self.call(self._close)
            finally:
                self._jobs.put(None)
                self._thread.join()

    # --- in the engine's thread ---

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._done += 1

    def _close(self) -> None:
        self._closed = True  # before: jobs that stand in line behind this one must not touch the engine
        self._engine.close()

    def _commit(self, batch: Batch) -> None:
        began_s = self._clock.now_s()
        error: BaseException | None = None
        try:
            self._engine.commit(batch)
        except BaseException as raised:
            error = raised
        self.commit_s.observe(self._clock.now_s() - began_s)
        self._tell_loop(lambda: self._report(batch, error))
        if error is None:
            # All else comes after the loop has heard of the commit.
            if batch.dead or batch.compact_revision is not None:
                self._upkeep(lambda: self._collect(batch.dead))
            self._upkeep(self._settle)

    def _settle(self) -> None:
        if self._engine.settle():
            self._measure()

    def _fold(self) -> None:
        self._engine.fold()
        self._settle()

    def _fold_step(self) -> None:
        """One step of bringing rows into the tables; queues the next, so that commits get in between."""
        try:
            more = self._engine.fold_step()
        except TablesLockedError:
            self._tell_loop(self._look_later)
            return
        self._settle()
        if more:
            self._again(self._fold_step)

    def _collect(self, dead: Sequence[tuple[int, int]]) -> None:
        """One step of deleting what a compaction made superfluous; queues the next, so that commits get in between."""
        self.compacted_rows += len(dead)
        try:
            more = self._engine.collect(dead)
        except TablesLockedError:
            self._tell_loop(self._collect_later)
            return
        if more:
            self._again(lambda: self._collect(()))
        self._engine.settle()
        self._measure()

    def _again(self, work: Callable[[], None]) -> None:
        self._given_by_itself += 1
        self._jobs.put(lambda: self._upkeep(work))

    def _upkeep(self, work: Callable[[], None]) -> None:
        """Runs what must not fail in the engine's thread; a failure is that of a commit."""
        if self._closed:
            return  # what is left uncollected is found again at the next boot
        try:
            work()
        except BaseException as error:
            failure = error
            self._tell_loop(lambda: self._fail(failure))

    def _tell_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for an answer
            self._loop.call_soon_threadsafe(callback)

    def _measure(self) -> None:
        self.size_bytes = self._engine.size_bytes()
        self.in_use_bytes = self._engine.in_use_bytes()
        if self.quota_bytes is not None and self.size_bytes > self.quota_bytes:
            self._tell_loop(self.on_oversize)

    def _defragment(self) -> None:
        began_s = self._clock.now_s()
        self.defragmenting = True
        try:
            self._engine.defragment()
            self._measure()
        finally:
            self.defragmenting = False
        self.defragment_s.observe(self._clock.now_s() - began_s)

    # --- in the loop's thread ---

    def _report(self, batch: Batch, error: BaseException | None) -> None:
        self.in_flight = None
        self._newest = batch.number
        if error is not None:
            self._fail(error)
            return
        self._on_committed(batch)
        self._plan_fold(bool(batch.row_count))

    def _plan_fold(self, rows: bool) -> None:
        if rows:
            if self._fold_timer is None:
                self._fold_looks = 0
                self._look_later()
        else:
            self._bare += 1
            if self._bare >= BARE_MAX:
                self._fold_soon()

    def _collect_later(self) -> None:
        if not self._collecting_later:
            assert self._loop is not None
            self._collecting_later = True
            self._loop.call_later(IDLE_S, self._collect_again)

    def _collect_again(self) -> None:
        self._collecting_later = False
        self._give(lambda: self._upkeep(lambda: self._collect(())))

    def _look_later(self) -> None:
        assert self._loop is not None
        if self._fold_timer is None and not self._closed:
            self._fold_timer = self._loop.call_later(IDLE_S, self._look_whether_idle, self._newest)

    def _look_whether_idle(self, seen: int) -> None:
        """Folds when no commit has come since batch `seen`, or it has been put off for too long."""
        self._fold_timer = None
        self._fold_looks += 1
        idle = self.in_flight is None and seen == self._newest
        if self.failed or self._closed:
            return
        if idle or self._fold_looks * IDLE_S >= LAG_S:
            self._fold_soon()
        else:
            self._look_later()

    def _fold_soon(self) -> None:
        self._bare = 0
        self._give(lambda: self._upkeep(self._fold_step))

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            self._on_failure(error)
