# SPDX-License-Identifier: Apache-2.0
"""A whole server in a thread of the test's process: a fresh port, an empty state, a clock that can be jumped.

    with InProcessServer("--max-txn-ops=64") as server:
        ...  # any client, in any language, at server.address
        server.clock.jump(3600)

Laws
- Clients cannot tell it from `lessor serve`: the same parts behind the same sockets, and the same flags. Environment
  variables are not read, so what is set for another server changes no test.
- The port and the data outlive `restart` and `kill`; only the end of the `with` block deletes the data.

Theory of operation. The loop runs in the thread; `call` takes work there. Between runs a bound socket keeps the port
(Linux lets a second one listen beside it; elsewhere the port is free for that moment). By default the data is an SQLite
file in a temporary directory that is never synced to disk: a test does not care for power failures.
"""

import asyncio
import math
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from lessor.base import limits
from lessor.durable.engine import Engine
from lessor.durable.sqlite import SqliteEngine
from lessor.server.command import parse
from lessor.server.core import Core
from lessor.server.main import Server
from lessor.server.options import Options
from lessor.testing.virtual_clock import VirtualClock, VirtualLoop

T = TypeVar("T")
END_S_MAX = 30.0  # a server that is asked to stop has five seconds for its calls; the machine may be busy
CALL_S_MAX = 10.0


def quick_engine(data_dir: Path) -> Engine:
    """SQLite without fsync."""
    return SqliteEngine(data_dir, sync=False)


class InProcessServer:
    """One server, started by `start` or a `with` block. For any thread but the server's own.

    `flags` are those of `lessor serve`; later ones win. `clock` is frozen unless you give a flowing one. `data_dir` is
    made and deleted here unless given. `make_engine` gets the data directory at each start.
    """

    def __init__(
        self,
        *flags: str,
        clock: VirtualClock | None = None,
        data_dir: Path | None = None,
        make_engine: Callable[[Path], Engine] = quick_engine,
    ) -> None:
        self.flags = list(flags)
        self.clock = clock or VirtualClock()
        self.server: Server
        self.exit_code: int | None = None  # of the last run, once it has ended
        self._own_folder: Path | None = None
        self._data_dir = data_dir
        self._make_engine = make_engine
        self._reserved = _reserve_port()
        self.address = f"127.0.0.1:{self._reserved.getsockname()[1]}"
        self.client_url = f"http://{self.address}"
        if sys.platform != "linux":
            self._reserved.close()
        self._thread: threading.Thread | None = None
        self._loop: VirtualLoop
        self._main: asyncio.Task[None]
        self._problem: BaseException | None = None
        self._stopping = False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def options(self) -> Options:
        """What the next start goes by. Raises OptionError, or click.UsageError for an unknown flag."""
        if self._data_dir is None and self._own_folder is None:
            self._own_folder = Path(tempfile.mkdtemp(prefix="lessor-"))
        return parse(
            [
                f"--data-dir={self._data_dir or self._own_folder}",
                f"--listen-client-urls={self.client_url}",
                f"--advertise-client-urls={self.client_url}",
                *self.flags,
            ]
        )

    def start(self) -> None:
        """Returns when it serves. Raises what `lessor serve` would refuse to start for."""
        assert self._thread is None, "it runs already"
        options = self.options()
        started = threading.Event()
        self._problem = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, args=(options, started), name="lessor", daemon=True)
        self._thread.start()
        started.wait()
        if self._problem is not None:
            self.wait()
            raise self._problem

    def stop(self) -> None:
        """As SIGTERM would: calls are ended, each lease's remaining time is saved. Waits until that is done."""
        self.request_stop()
        self.wait()

    def request_stop(self) -> None:
        """Begins what `stop` does, and does not wait."""
        if self.running:
            self._loop.call_soon_threadsafe(self._begin_stop)

    def kill(self) -> None:
        """As kill -9 would: connections break, and what was not acknowledged may be lost."""
        if self.running:
            self._loop.call_soon_threadsafe(self._main.cancel)
        self.wait()

    def restart(self) -> None:
        """Stops, and starts on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops it for good, and deletes the data unless the directory was given."""
        self.stop()
        self._reserved.close()
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until the server has ended, by itself or because it was told to. Raises TimeoutError."""
        if self._thread is not None:
            self._thread.join(END_S_MAX)
            if self._thread.is_alive():
                raise TimeoutError(f"the server does not end within {END_S_MAX:g} s")
            self._thread = None

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` in the server's loop, between two turns; returns or raises what it does."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_S_MAX)

    # --- in the server's thread ---

    def _run(self, options: Options, started: threading.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(self.clock)) as runner:
            runner.run(self._serve(options, started))

    async def _serve(self, options: Options, started: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop = loop
        try:
            server = self.server = Server(options, self.clock, self._make_engine(Path(options.data_dir)))
            server.boot()
            await server.start()
            main = asyncio.current_task()
            assert main is not None
            self._main = main
            self.clock.attach(loop, _Timed(server.core, self.clock))
        except BaseException as problem:
            self._problem = problem
            return
        finally:
            started.set()
        try:
            self.exit_code = await server.serve()
        except asyncio.CancelledError:
            self.exit_code = None
            self._let_go()
            server.abandon()
        finally:
            self._let_go()

    def _begin_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._let_go()
            self.server.request_stop()

    def _let_go(self) -> None:
        self.clock.detach()
        self._loop.let_go()


class _Timed:
    """What the clock asks of a running server. Implements `Timed`."""

    def __init__(self, core: Core, clock: VirtualClock) -> None:
        self._core = core
        self._clock = clock

    def busy(self) -> bool:
        return self._core.committer.in_flight is not None or self._core.passwords.waiting > 0

    def settled(self) -> bool:
        return self._core.committer.idle

    def next_deadline(self) -> float | None:
        deadline_s = self._core.machine.next_deadline()
        return None if deadline_s is None else self._clock.now_s() + deadline_s - self._core.turn.now_s()

    def hurry(self, jumping: bool) -> None:
        # The served time is saved once a second, which would be most of the work of a long jump.
        self._core.turn.uptime_save_s = math.inf if jumping else limits.UPTIME_SAVE_S
        self._core.turn.schedule()


def _reserve_port() -> socket.socket:
    """A socket that is bound to a free port of loopback and does not listen."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
