# SPDX-License-Identifier: Apache-2.0
"""Hands batches to the engine's thread, one at a time, and reports what became of them to the loop.

Laws
- One thread calls the engine; it does nothing else. One batch is in flight at the most. (The engine syncs its tables in
  a thread of its own. Upkeep that would have to wait for that, or for another program, is put off.)
- A failed commit is final: memory is ahead of disk and nobody knows what the disk holds, so nothing is committed after
  it and the failure goes to `on_failure`, which ends the server.
- The thread does nothing between a commit's report and the replies on their way, unless much waits for the tables:
  whatever it did there would compete with the replies for the interpreter.

After each commit the same thread calls the engine's upkeep, whose steps are short beside the wait for a disk. The
engine says when to come back: at once means behind what waits for the thread, later is a timer of the loop, so that it
lives by the loop's time.
"""

import asyncio
import contextlib
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from lessor.base.clock import Clock, MonotonicClock
from lessor.durable.engine import Begun, Engine, EngineError, Follow, Sizes, TablesLockedError
from lessor.server.observe.histogram import DISK_BUCKETS_S, Histogram
from lessor.state.journal import Batch

T = TypeVar("T")
KEEP_UP_S_MAX: Final = 0.05  # between two looks at the upkeep while no loop runs


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
        self._sizes = Sizes(0, 0)
        # For the metrics. Written by the engine's thread, read by the loop's: a figure may be a batch old.
        self.commit_s = Histogram(DISK_BUCKETS_S)
        self.defragment_s = Histogram(DISK_BUCKETS_S)
        self.defragmenting = False
        self._defragment_waits: Future[None] | None = None  # given to the engine's thread, and not begun
        self.compacted_rows = 0
        self._since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None  # until the engine's upkeep is due; the loop's
        # Of the engine's thread: for when the loop was asked to come back, and whether upkeep stands in line.
        self._asked_s = math.inf
        self._in_line = False
        self._loop_begins = threading.Event()
        self._kept_up: Future[None] | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._look_again = False
        self._follow: Follow = lambda rows, term, origins: None
        self._on_lead: Callable[[Begun], None] = lambda begun: None
        self.on_looked: Callable[[], None] = lambda: None  # called after each look at the log, while another one leads

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

    def keep_up(self) -> None:
        """Has the engine's upkeep done until `start` is called, or the committer is closed: no loop runs yet.

        What it raises, `start` raises.
        """

        self._kept_up = self._submit(self._keep_up)

    def _keep_up(self) -> None:
        while not self._loop_begins.is_set():
            now_s = self._clock.now_s()
            next_s = self._engine.upkeep(now_s, True)
            self._loop_begins.wait(KEEP_UP_S_MAX if next_s is None else min(next_s - now_s, KEEP_UP_S_MAX))

    def _end_keep_up(self) -> None:
        self._loop_begins.set()
        kept_up, self._kept_up = self._kept_up, None
        if kept_up is not None:
            kept_up.result()

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
        self._end_keep_up()
        self.call(self._look_at_sizes)
        if self._engine.answering is not None:
            self._begin_beats()

    def _begin_beats(self) -> None:
        """The engine has beats to append, whether or not there are commits."""
        self._give(self._upkeep_in_time)

    def stand_by(self, follow: Follow, on_lead: Callable[[Begun], None]) -> None:
        """Has the engine follow those who lead the log, until it leads itself.

        To be called after `start`, and again when this process has ended its term with a clean batch.
        `follow` gets what they commit, `on_lead` the term that begins here; both in the loop's thread. The engine's
        upkeep goes on until `on_lead` has returned.
        """
        self._follow = lambda rows, term, origins: self._tell_loop(lambda: follow(rows, term, origins))
        self._on_lead = on_lead
        self._loop_begins.clear()
        self._give(self._look)

    @property
    def size_bytes(self) -> int:
        """What the data takes, for the metrics; a figure may be a batch old."""
        return self._sizes.total_bytes

    @property
    def in_use_bytes(self) -> int:
        return self._sizes.in_use_bytes

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
        """Rewrites the data without free space, between two commits. Raises EngineError; the data is as it was then.

        Callers that come while one waits for its turn share that one.
        """
        waiting = self._defragment_waits
        if waiting is None:
            waiting = self._defragment_waits = self._submit(self._defragment)
        await asyncio.wrap_future(waiting)

    async def flush(self) -> None:
        """Brings everything that is committed into the engine's tables.

        Raises EngineError, which ends the server, but for TablesLockedError.
        """
        try:
            await self.run(self._flush)
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
            with contextlib.suppress(EngineError):
                self._end_keep_up()
            if self._timer is not None:
                self._timer.cancel()
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
            self.compacted_rows += len(batch.dead)
            # All else comes after the loop has heard of the commit.
            self._upkeep(idle=False)

    def _flush(self) -> None:
        self._engine.flush()
        self._look_at_sizes()

    def _upkeep(self, idle: bool) -> None:
        """A step of the engine's own work; a failure is that of a commit."""
        if self._closed:
            return
        now_s = self._clock.now_s()
        try:
            next_s = self._engine.upkeep(now_s, idle)
            self._look_at_sizes()
        except BaseException as error:
            failure = error
            self._tell_loop(lambda: self._fail(failure))
            return
        if next_s is None or self._in_line:
            return
        if next_s <= now_s:
            self._in_line = True
            self._given_by_itself += 1
            self._jobs.put(self._upkeep_in_line)
        elif next_s < self._asked_s:
            self._asked_s = at_s = next_s
            self._tell_loop(lambda: self._come_back(at_s))

    def _look(self) -> None:
        """Whether this process may lead."""
        if self._closed:
            return
        try:
            begun = self._engine.try_to_lead(self._follow)
            self._look_at_sizes()
            if begun is None:
                again_s = self._engine.look_again_s
                self._tell_loop(lambda: self._look_later(again_s))
            else:
                self._tell_loop(lambda: self._lead(begun))
                self._keep_up()
        except BaseException as error:
            failure = error
            self._tell_loop(lambda: self._fail(failure))

    def _upkeep_in_line(self) -> None:
        self._in_line = False
        self._upkeep(idle=self.in_flight is None)

    def _upkeep_in_time(self) -> None:
        self._asked_s = math.inf
        self._upkeep(idle=self.in_flight is None)

    def _tell_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for an answer
            self._loop.call_soon_threadsafe(callback)

    def _look_at_sizes(self) -> None:
        self._sizes = self._engine.sizes()

    def _defragment(self) -> None:
        began_s = self._clock.now_s()
        self._defragment_waits = None
        self.defragmenting = True
        try:
            self._engine.defragment()
            self._look_at_sizes()
        finally:
            self.defragmenting = False
        self.defragment_s.observe(self._clock.now_s() - began_s)

    # --- in the loop's thread ---

    def _report(self, batch: Batch, error: BaseException | None) -> None:
        self.in_flight = None
        if error is not None:
            self._fail(error)
            return
        self._on_committed(batch)

    def _come_back(self, at_s: float) -> None:
        """Has upkeep called at that instant; an earlier call than one that was asked for replaces it."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        if not (self.failed or self._closed):
            self._timer = self._loop.call_later(max(at_s - self._clock.now_s(), 0.0), self._due)

    def look_now(self) -> None:
        """While this process stands by: has the engine look at the log at once. Cheap to repeat."""
        if self._look_timer is None:
            self._look_again = True  # it looks at this moment
        else:
            self._look_timer.cancel()
            self._give_look()

    def _look_later(self, again_s: float) -> None:
        if self._look_again:
            self._give_look()
        else:
            assert self._loop is not None
            self._look_timer = self._loop.call_later(again_s, self._give_look)
        self.on_looked()

    def _give_look(self) -> None:
        self._look_timer = None
        self._look_again = False
        if not (self.failed or self._closed):
            self._give(self._look)

    def _lead(self, begun: Begun) -> None:
        try:
            if not self.failed:
                self._on_lead(begun)
        except BaseException as error:
            self._fail(error)
        self._loop_begins.set()
        if not self.failed:
            self._begin_beats()

    def _due(self) -> None:
        self._timer = None
        if not (self.failed or self._closed):
            self._give(self._upkeep_in_time)

    def _fail(self, error: BaseException) -> None:
        if not self.failed:
            self.failed = True
            self._on_failure(error)
