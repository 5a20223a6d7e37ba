# SPDX-License-Identifier: Apache-2.0
"""The commands' use of asyncio: several jobs at a time, Ctrl-C, lines of input, other programs.

Laws
- This is the one file of the command line that imports asyncio.
- Each of these ends what it began when it is left, in whichever way it is left.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

sleep = asyncio.sleep
Event = asyncio.Event
Task = asyncio.Task


async def first_of(*jobs: Coroutine[Any, Any, T]) -> T:
    """Runs the jobs together until one ends; returns its result or raises its error. The others are cancelled.

    When several end at once, the first of them in the arguments counts.
    """
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def crew() -> AsyncIterator[Callable[[Coroutine[Any, Any, Any]], object]]:
    """Yields a function that starts jobs, and waits for them at the end of the block.

    The first failure, of a job or of the block, ends all of them.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group.create_task
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


@asynccontextmanager
async def beside(job: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the job while the block runs. A job that fails has ended, and its error is dropped. See `ended`."""
    task = asyncio.ensure_future(job)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ended(task: asyncio.Task[None]) -> None:
    """Waits until a task has ended, in whichever way."""
    await asyncio.wait((task,))


@contextmanager
def signals(*numbers: int) -> Iterator[asyncio.Event]:
    """Inside the block these signals set the event and do nothing else. For the main thread only."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    for number in numbers:
        loop.add_signal_handler(number, came.set)
    try:
        yield came
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def now_s() -> float:
    """Seconds on the event loop's clock."""
    return asyncio.get_running_loop().time()


@contextmanager
def cbreak(file: int) -> Iterator[None]:
    """Inside the block a terminal hands over each key as it is pressed, without showing it; others are left alone."""
    if not os.isatty(file):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(file)
    tty.setcbreak(file)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


async def key_pressed(file: int, keys: bytes) -> None:
    """Waits until one of the keys is pressed at a terminal in `cbreak`; for ever when there is no terminal."""
    loop = asyncio.get_running_loop()
    pressed = loop.create_future()

    def read() -> None:
        piece = os.read(file, 1_024)
        if not piece:  # the terminal is closed
            loop.remove_reader(file)
        elif any(key in keys for key in piece) and not pressed.done():
            pressed.set_result(None)

    if os.isatty(file):
        loop.add_reader(file, read)
    try:
        await pressed
    finally:
        loop.remove_reader(file)


async def program(command: list[str], variables: Mapping[str, str]) -> int:
    """Runs a program with our terminal and environment, and these variables; returns its return code.

    Raises OSError when it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **variables})
    return await process.wait()


async def lines(file: int) -> AsyncIterator[bytes]:
    """The lines of a file descriptor, each with its newline, as they come; the last one may lack it.

    A thread reads them, and nothing waits for its end: a terminal may never send anything again. For the same reason it
    reads the descriptor and not a file object of Python's, which the interpreter would lock when it ends.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        piece = b"?"
        while piece:
            try:
                piece = os.read(file, 65_536)
            except OSError:
                piece = b""
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:
                return  # the loop has ended, and the lines are not needed any more

    threading.Thread(target=read, name="lines", daemon=True).start()
    rest = b""
    while piece := await pieces.get():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


Process = asyncio.subprocess.Process
NOTHING = asyncio.subprocess.DEVNULL


async def start(
    command: Sequence[str],
    output: int,
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
    keep_open: Sequence[int] = (),
    stdin: int = NOTHING,
) -> Process:
    """Starts a program in a session of its own, so that Ctrl-C at our terminal does not reach it.

    `output` is the descriptor for stdout and stderr; `keep_open` are descriptors that it inherits. Raises OSError.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=stdin,
        stdout=output,
        stderr=output,
        env=dict(environment),
        cwd=folder,
        pass_fds=tuple(keep_open),
        start_new_session=True,
    )


async def ended_within(process: Process, seconds: float) -> bool:
    """Waits for the end of the process, at most so long; returns whether it has ended."""
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def all_of(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs jobs that do not fail together, and returns their results in this order."""
    return list(await asyncio.gather(*jobs))


async def in_thread(function: Callable[[], T]) -> T:
    """Runs a function that blocks in another thread."""
    return await asyncio.to_thread(function)
