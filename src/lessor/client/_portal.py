# SPDX-License-Identifier: Apache-2.0
"""The asynchronous client for threads: a thread with an event loop, and objects whose calls block until it answers.

Laws
- A call from any thread runs as a task of the loop's thread; the caller waits. What runs in the background (renewals,
  registrations, views) goes on whatever the callers do.
- The thread starts with the first call. A client that was made before a fork and not used yet works on both sides of
  it; one that was used belongs to the process that used it, and raises UsedAfterFork in another.
- After `close` no thread, task or socket is left. A call that still waits raises ClientClosed.
- Callbacks of the user run in threads of their own: they may call the client.
- Ctrl-C in a waiting thread cancels the call that it waits for.

`_sync.py` is generated on top of this: it adds names, arguments and types, and no behaviour.
"""

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from lessor.client._batches import AsyncBatches
from lessor.client._errors import ClientClosed, UsedAfterFork

A = TypeVar("A")
T = TypeVar("T")


class _Waiter:
    """One thread that waits for one result. A bare lock: half the cost of a Future with its condition."""

    __slots__ = ("_error", "_result", "done", "task")

    def __init__(self) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.task: asyncio.Task[None] | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    async def drive(self, work: Awaitable[Any]) -> None:
        try:
            self._result = await work
        except asyncio.CancelledError:
            self._error = ClientClosed("the client was closed while the call was underway")
        except BaseException as error:
            self._error = error

    def over(self, task: "asyncio.Task[None]", work: Awaitable[Any]) -> None:
        """The task has ended; perhaps it never began, being cancelled before."""
        if task.cancelled():
            self._error = ClientClosed("the client was closed before the call began")
            _discard(work)
        self.done.release()

    def result(self) -> Any:
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # its traceback holds this frame


def _discard(work: Awaitable[Any]) -> None:
    """Closes a coroutine that will never be awaited; otherwise Python warns of it."""
    close = getattr(work, "close", None)
    if close is not None:
        close()


class _OwnThreadError(RuntimeError):
    """A call in the loop's thread would wait for itself."""


class Portal:
    """A loop in a thread, started when it is needed. `last` runs in it before it ends."""

    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._last = last
        self._lock = threading.Lock()
        self._pid = 0  # of the process that the thread is in; 0: it is not started
        self._closed = False
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread

    def run(self, work: Awaitable[T]) -> T:
        """Waits for `work`, which runs in the loop; returns its result or raises its error.

        Cost: handing over to the other thread and back, about 0.1 ms on a machine with nothing else to do.
        """
        waiter = _Waiter()
        try:
            self._submit(lambda: self._start(waiter, work))
            waiter.done.acquire()
        except (ClientClosed, UsedAfterFork, _OwnThreadError):  # refused
            _discard(work)
            raise
        except BaseException:  # an interrupt of this thread, at any point
            if self._pid:
                self._loop.call_soon_threadsafe(_cancel, waiter, work)
            else:
                _discard(work)
            raise
        return cast(T, waiter.result())

    def leave(self, work: Coroutine[Any, Any, object]) -> None:
        """`run`, at the end of a block. Does nothing when the client is closed, and in a child that the owner forked.

        In the first case the work of the block is over, in the second it is the parent's.
        """
        with suppress(ClientClosed, UsedAfterFork):
            self.run(work)

    def close(self) -> None:
        """Ends the thread and waits for that; the second time does nothing. Raises what `last` raises, after that."""
        if self._pid and os.getpid() != self._pid:
            return  # the parent closes its client; here its lock may be held for ever
        with self._lock:
            if self._closed:
                return
            if not self._pid:
                self._closed = True
                return
        try:
            self.leave(self._last())
        finally:
            with self._lock:
                if not self._closed:
                    self._closed = True
                    self._finalizer.detach()
                    self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def elsewhere(self, callback: Callable[[T], object] | None) -> Callable[[T], None] | None:
        """A callback that runs the given one in a thread of its own."""
        if callback is None:
            return None

        def start(argument: T) -> None:
            threading.Thread(target=callback, args=(argument,), name="lessor-callback", daemon=True).start()

        return start

    def _submit(self, start: Callable[[], None]) -> None:
        if self._pid and os.getpid() != self._pid:
            raise UsedAfterFork(f"this client is process {self._pid}'s: make a new one after fork()")
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed")
            if not self._pid:
                self._begin()
            elif threading.current_thread() is self._thread:
                raise _OwnThreadError("the blocking client cannot wait in its own thread; use AsyncClient there")
            self._loop.call_soon_threadsafe(start)

    def _begin(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_serve, args=(self._loop,), name="lessor-client", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # an interrupt of this thread: the other one may have started
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        self._pid = os.getpid()
        # The leases of a client that is dropped without being closed should not live for ever.
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._pid, self._last)
        self._finalizer.atexit = False

    def _start(self, waiter: _Waiter, work: Awaitable[Any]) -> None:
        waiter.task = self._loop.create_task(waiter.drive(work))
        waiter.task.add_done_callback(lambda task: waiter.over(task, work))


def _cancel(waiter: _Waiter, work: Awaitable[Any]) -> None:
    if waiter.task is not None:
        asyncio.get_running_loop().call_soon(waiter.task.cancel)  # not before the task has begun, or `work` never would
    else:  # the interrupt came before it was handed over
        _discard(work)


def _stop(loop: asyncio.AbstractEventLoop, pid: int, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def end() -> None:
        try:
            await last()
        finally:
            loop.stop()

    if os.getpid() == pid and not loop.is_closed():
        loop.call_soon_threadsafe(lambda: loop.create_task(end()))


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """The thread. It knows the loop and not the portal, which can be collected while the thread runs."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Facade(Generic[A]):
    """An object of the asynchronous client, for other threads."""

    __slots__ = ("_inner", "_portal")

    def __init__(self, portal: Portal, inner: A) -> None:
        self._portal = portal
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner)


class Stream(Generic[T]):
    """The items of an endless call, one at a time. Ends when it is closed or dropped."""

    def __init__(self, portal: Portal, generator: AsyncGenerator[T, None]) -> None:
        self._portal = portal
        self._generator = generator

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self._portal.run(self._generator.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the call at the server."""
        self._portal.run(self._generator.aclose())


B = TypeVar("B", bound=AsyncBatches[Any])


class Batches(Facade[B], Generic[B, T]):
    """Iterates over items that come in batches: one hand-over between the threads for each batch."""

    def __init__(self, portal: Portal, inner: B) -> None:
        super().__init__(portal, inner)
        self._ready: deque[T] = deque()
        self._taking = threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._taking:
            try:
                while not self._ready:
                    self._ready.extend(self._portal.run(self._inner.take()))
            except StopAsyncIteration:
                raise StopIteration from None
            return self._ready.popleft()

    def next(self, *, timeout_s: float | None = None) -> T:
        """The next item; CallTimeout when none comes within `timeout_s` seconds (None: no limit). Safe to repeat."""
        with self._taking:
            if not self._ready:
                self._ready.append(self._portal.run(self._inner.next(timeout_s=timeout_s)))
            return self._ready.popleft()
