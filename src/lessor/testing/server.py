# SPDX-License-Identifier: Apache-2.0
"""A whole server in a thread of the test's process: a fresh port, an empty state, a clock that can be jumped.

    with InProcessServer("--max-txn-ops=64") as server:
        ...  # any client, in any language, at server.address
        server.clock.jump(3600)

Laws
- Clients cannot tell it from `lessor serve`: it has the same parts behind the same sockets, and the same flags.
  Environment variables are not read, so variables for another server change no test.
- Tests cause faults with the methods under "faults". After each of them the server's view of its own state is right.
- The port and the data stay over `restart` and `kill`. Only the end of the `with` block deletes the data.

Theory of operation. The loop runs in the thread, and `call` runs work there. Between runs a bound socket keeps the port
(Linux lets a second socket listen beside it; on other systems the port is free for that moment). By default the data is
an SQLite file in a temporary directory, and is never synced to disk: tests do not cover power failures.
"""

import asyncio
import base64
import contextlib
import math
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import bcrypt
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.client import AsyncClient, Client, tls_context
from lessor.durable.engine import Engine
from lessor.durable.file_engine import FileEngine
from lessor.server.command import parse
from lessor.server.main import Server
from lessor.server.options import Options
from lessor.testing.faults import Faults
from lessor.testing.virtual_clock import VirtualClock, VirtualLoop, check_seconds

T = TypeVar("T")
END_S_MAX = 30.0  # a server that stops gives its calls five seconds; the machine may be busy
CALL_S_MAX = 10.0
DELAY_S_MAX = 86_400  # of replies
JUMPING_LOOK_S = 1e6  # how often the space on the disk is looked at during a jump, in virtual time


def quick_engine(data_dir: Path) -> Engine:
    """SQLite without fsync."""
    return FileEngine(data_dir, sync=False)


class InProcessServer:
    """One server, started by `start` or a `with` block. For any thread but the server's own.

    flags          flags of `lessor serve`; of two for one option the later one counts
    tls            serve only https://, with a certificate that clients verify with `ca_file`; needs `cryptography`
    root_password  switches auth on at the first start, with the user root
    clock          a frozen one, unless you pass a flowing one
    data_dir       a temporary directory, which is deleted at the end, unless you pass one
    make_engine    is called with the data directory at each start
    """

    def __init__(
        self,
        *flags: str,
        tls: bool = False,
        root_password: str | None = None,
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
        self.client_url = f"{'https' if tls else 'http'}://{self.address}"
        self.tls = tls
        self.root_password = root_password
        if sys.platform != "linux":
            self._reserved.close()
        self._thread: threading.Thread | None = None
        self._loop: VirtualLoop
        self._faults: Faults
        self._main: asyncio.Task[None]
        self._problem: BaseException | None = None
        self._ending = False

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
        """The options of the next start. Raises OptionError, or click.UsageError for an unknown flag."""
        if self._data_dir is None and self._own_folder is None:
            self._own_folder = Path(tempfile.mkdtemp(prefix="lessor-"))
        return parse(
            [
                f"--data-dir={self._data_dir or self._own_folder}",
                f"--listen-client-urls={self.client_url}",
                f"--advertise-client-urls={self.client_url}",
                "--bcrypt-cost=4",  # the lowest value: tests log in often
                *(["--auto-tls"] if self.tls else []),
                *self.flags,
            ]
        )

    def start(self) -> None:
        """Starts the server; returns when it serves. Raises the errors for which `lessor serve` would not start."""
        assert self._thread is None, "it runs already"
        options = self.options()
        started = threading.Event()
        self._problem = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, args=(options, started), name="lessor", daemon=True)
        self._thread.start()
        started.wait()
        if self._problem is not None:
            self.wait()
            raise self._problem
        if self.root_password is not None and not self.server.core.auth.enabled:
            self._enable_auth(self.root_password)

    def stop(self) -> None:
        """Stops as after SIGTERM: ends all calls, saves each lease's remaining time. Waits until that is done."""
        self.request_stop()
        self.wait()

    def request_stop(self) -> None:
        """Begins to stop, as `stop` does, and does not wait."""
        self._begin_end(self._request_stop)

    def kill(self) -> None:
        """Ends as after kill -9: connections break, and writes that were not acknowledged may be lost."""
        self._begin_end(lambda: self._main.cancel())
        self.wait()

    def _begin_end(self, end: Callable[[], object]) -> None:
        async def stop_listening_and_end() -> None:
            await self._stop_listening()
            end()

        if self.running and not self._ending:
            self._ending = True
            work = stop_listening_and_end()
            try:
                asyncio.run_coroutine_threadsafe(work, self._loop)
            except RuntimeError:  # the loop has just ended by itself
                work.close()

    def restart(self) -> None:
        """Stops, then starts on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stops for good, and deletes the data unless the directory was passed in."""
        self.stop()
        self._reserved.close()
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits until the server has ended, by itself or on request. Raises TimeoutError after END_S_MAX."""
        if self._thread is not None:
            self._thread.join(END_S_MAX)
            if self._thread.is_alive():
                raise TimeoutError(f"the server does not end within {END_S_MAX:g} s")
            self._thread = None

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` in the server's loop, between two turns. Returns its result or raises its error."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_S_MAX)

    # --- for clients ---

    @property
    def ca_file(self) -> Path | None:
        """The certificate with which clients verify the server; None without `tls`. The first start makes it."""
        return Path(self.server.options.data_dir, "fixtures", "client", "cert.pem") if self.tls else None

    def client(self, **settings: Any) -> Client:
        """A new client of this server. It trusts `ca_file`, and is root if there is one. Close it yourself.

        `settings` are those of `Client`, and replace these.
        """
        return Client(self.client_url, **self._to_connect() | settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """As `client`, for asyncio."""
        return AsyncClient(self.client_url, **self._to_connect() | settings)

    def _to_connect(self) -> dict[str, Any]:
        known: dict[str, Any] = {}
        if self.tls:
            known["ssl"] = tls_context(ca_file=str(self.ca_file))
        if self.root_password is not None:
            known |= {"user": "root", "password": self.root_password}
        return known

    # --- faults ---

    def drop_connections(self) -> int:
        """Breaks all connections now; returns how many. Clients can connect again at once."""
        return self.call(lambda: self._faults.drop_connections())

    @contextlib.contextmanager
    def delay_replies(self, seconds: float) -> Iterator[None]:
        """Within the block all that the server sends leaves `seconds` later, in real time.

        Raises TypeError and ValueError for anything but a number from 0 to a day.
        """
        if check_seconds("a delay", seconds) > DELAY_S_MAX:
            raise ValueError(f"a delay of {seconds!r} s: it takes {DELAY_S_MAX} s at the most")
        self._delay(seconds)
        try:
            yield
        finally:
            self._delay(0.0)

    @contextlib.contextmanager
    def refuse_connections(self) -> Iterator[None]:
        """Within the block new connections are refused. Existing ones stay: for an outage, drop them first."""
        refusing = self.server
        asyncio.run_coroutine_threadsafe(self._stop_listening(), self._loop).result(CALL_S_MAX)
        try:
            yield
        finally:
            if self.running and self.server is refusing:  # it was not stopped or started again meanwhile
                asyncio.run_coroutine_threadsafe(self.server.listen(), self._loop).result(CALL_S_MAX)

    def expire_lease(self, lease_id: int) -> None:
        """Ends a lease as if its time were over: its keys are deleted, and watchers get the events. Others stay.

        Raises EtcdError when there is no such lease.
        """
        self._apply(rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    def compact(self, revision: int | None = None) -> None:
        """Deletes the history before `revision`; None: all but the present. Watches from before it are canceled.

        Raises EtcdError for a revision that is compacted already, or that is in the future.
        """
        if revision is None:
            revision = self.call(lambda: self.server.core.machine.revision)
        self._apply(rpc_pb2.CompactionRequest(revision=revision))

    def _apply(self, *requests: Message) -> None:
        """Carries out requests without a caller. Returns when they are on disk and their events are sent."""
        core = self.server.core

        def apply() -> None:
            for request in requests:
                core.machine.apply(request, core.turn.now_s())
            core.turn.schedule()

        self.call(apply)
        self.clock.jump(0)

    def _enable_auth(self, password: str) -> None:
        hashed = base64.b64encode(bcrypt.hashpw(password.encode(), bcrypt.gensalt(4))).decode()
        self._apply(
            rpc_pb2.AuthUserAddRequest(name="root", hashedPassword=hashed),
            rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"),
            rpc_pb2.AuthEnableRequest(),
        )

    def _delay(self, seconds: float) -> None:
        def set_delay() -> None:
            self._faults.delay_s = seconds

        if self.running:
            self.call(set_delay)

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
            self._faults = Faults(loop)
            server.in_front = self._faults.in_front_of
            server.boot()
            await server.start()
            main = asyncio.current_task()
            assert main is not None
            self._main = main
            self.clock.attach(loop, _Timed(server, self.clock))
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
            server.remains.sockets.close()  # one that would follow on ends here

    async def _stop_listening(self) -> None:
        # When a listener is closed after a connection was accepted and before it has a transport, asyncio loses the
        # socket of that connection, and the socket stays open until the collector finds it.
        while any("accept" in getattr(task.get_coro(), "__name__", "") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        self.server.stop_listening()

    def _request_stop(self) -> None:
        self._let_go()
        self.server.request_stop()

    def _let_go(self) -> None:
        self.clock.detach()
        self._loop.let_go()


class _Timed:
    """A running server, as the clock sees it. Implements `Timed`."""

    def __init__(self, server: Server, clock: VirtualClock) -> None:
        self._core = server.core
        self._disk_space = server.disk_space
        self._loop = asyncio.get_running_loop()
        self._passwords = server.services.passwords
        self._clock = clock
        self._core.turn.end_leases_exactly()
        if not clock.flowing:
            self._core.pages.metrics_page_s = 0.0  # the page would be as old as the last jump

    def busy(self) -> bool:
        return self._core.committer.in_flight is not None or self._passwords.waiting > 0

    def settled(self) -> bool:
        return self._core.committer.idle

    def next_deadline(self) -> float | None:
        deadline_s = self._core.machine.next_deadline()
        return None if deadline_s is None else self._clock.now_s() + deadline_s - self._core.turn.now_s()

    def hurry(self, jumping: bool) -> None:
        # The data clock is saved once a second and the disk looked at every ten: most of the work of a long jump.
        self._core.turn.clock_save_s = math.inf if jumping else limits.CLOCK_SAVE_S
        self._disk_space.look_every(JUMPING_LOOK_S if jumping else limits.DISK_LOOK_S, self._loop)
        self._core.turn.schedule()


def _reserve_port() -> socket.socket:
    """A socket that is bound to a free port of loopback and does not listen."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved
