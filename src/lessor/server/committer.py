# SPDX-License-Identifier: Apache-2.0
"""Hands batches to the engine's thread, one at a time, and reports what became of them to the loop.

Laws
- One thread touches the engine; it does nothing else. One batch is in flight at the most.
- A failed commit is final: memory is ahead of disk and nobody knows what the disk holds, so nothing is committed after
  it and the failure goes to `on_failure`, which ends the server.

Between commits the same thread does the engine's housekeeping (rows made superfluous by a compaction), in steps that
are short beside a commit.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from lessor.base.clock import Clock, MonotonicClock
from lessor.durable.engine import Engine
from lessor.server.histogram import DISK_BUCKETS_S, Histogram
from lessor.state.journal import Batch

T = TypeVar("T")


class Committer:
    """The loop's end of the engine thread."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or MonotonicClock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_committed: Callable[[Batch], None] = lambda batch: None
        self._on_failure: Callable[[BaseException], None] = lambda error: None
        self.in_flight: Batch | None = None
        self.failed = False
        self.size_bytes = 0
        self.in_use_bytes = 0
        self.quota_bytes: int | None = None  # above this size, `on_oversize` is called after each commit
        self.on_oversize: Callable[[], None] = lambda: None
        # For the metrics. Written by the engine's thread, read by the loop's: a figure may be a batch old.
        self.commit_s = Histogram(DISK_BUCKETS_S)
        self.defragment_s = Histogram(DISK_BUCKETS_S)
        self.defragmenting = False
        self.put_bytes = 0
        self.compacted_rows = 0
        self._since_s = 0.0
        self._newest: Future[Any] | None = None  # what the thread was given last

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` in the engine's thread and waits for it. For boot and shutdown, when the loop serves nobody."""
        return self._thread.submit(work).result()

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` in the engine's thread between two commits, while the loop goes on. Raises what `work` raises."""
        return await asyncio.wrap_future(self._queue(work))

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
        self.size_bytes = self.call(self._engine.size_bytes)
        self.in_use_bytes = self.call(self._engine.in_use_bytes)

    @property
    def free(self) -> bool:
        """Whether a batch may be handed over now."""
        return self.in_flight is None and not self.failed

    @property
    def idle(self) -> bool:
        """Whether the thread has nothing to do, upkeep included, and the loop has heard of the last commit."""
        # Work queues further work before it ends, so when the newest is done all is.
        return self.in_flight is None and (self._newest is None or self._newest.done())

    def commit(self, batch: Batch) -> None:
        """Hands a sealed batch over; `free` must be true. Returns at once."""
        assert self.free, "one batch at a time, and none after a failure"
        self.in_flight = batch
        self._since_s = self._clock.now_s()
        self._queue(lambda: self._commit(batch)).add_done_callback(self._done)

    @property
    def waiting_s(self) -> float:
        """How long the commit in hand has taken so far; 0 when there is none."""
        return 0.0 if self.in_flight is None else self._clock.now_s() - self._since_s

    async def defragment(self) -> None:
        """Rewrites the data without free space, between two commits. Raises EngineError; the data is as it was then."""
        await self.run(self._defragment)

    def close(self) -> None:
        """Waits for the work in hand, closes the engine, ends the thread."""
        self._thread.submit(self._engine.close)
        self._thread.shutdown(wait=True)

    # --- in the engine's thread ---

    def _commit(self, batch: Batch) -> None:
        began_s = self._clock.now_s()
        self._engine.commit(batch)
        self.commit_s.observe(self._clock.now_s() - began_s)
        # All else comes after the loop has heard of the commit.
        if batch.dead or batch.compact_revision is not None:
            self._submit(lambda: self._collect(batch.dead))
        self._submit(lambda: self._keep_house(batch))

    def _collect(self, dead: Sequence[tuple[int, int]]) -> None:
        """One step of deleting what a compaction made superfluous; queues the next, so that commits get in between."""
        self.compacted_rows += len(dead)
        if self._engine.collect(dead):
            self._submit(lambda: self._collect(()))
        self._measure()

    def _keep_house(self, batch: Batch) -> None:
        self._engine.settle()
        self._measure()
        self.put_bytes += sum([len(row[2]) + len(row[3]) for row in batch.events if row[3] is not None])
        if self.quota_bytes is not None and self.size_bytes > self.quota_bytes and self._loop is not None:
            self._loop.call_soon_threadsafe(self.on_oversize)

    def _measure(self) -> None:
        self.size_bytes = self._engine.size_bytes()
        self.in_use_bytes = self._engine.in_use_bytes()

    def _defragment(self) -> None:
        began_s = self._clock.now_s()
        self.defragmenting = True
        try:
            self._engine.defragment()
            self._measure()
        finally:
            self.defragmenting = False
        self.defragment_s.observe(self._clock.now_s() - began_s)

    def _submit(self, work: Callable[[], None]) -> None:
        # The executor refuses work once it is shutting down; what is left uncollected is found again at the next boot.
        with contextlib.suppress(RuntimeError):
            self._queue(work).add_done_callback(self._housekeeping_done)

    def _queue(self, work: Callable[[], T]) -> "Future[T]":
        self._newest = future = self._thread.submit(work)
        return future

    def _housekeeping_done(self, future: "Future[None]") -> None:
        error = future.exception()
        if error is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._fail, error)

    def _done(self, future: "Future[None]") -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._report, future)

    # --- in the loop's thread ---

    def _report(self, future: "Future[None]") -> None:
        batch, self.in_flight = self.in_flight, None
        assert batch is not None
        error = future.exception()
        if error is None:
            self._on_committed(batch)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            self._on_failure(error)
