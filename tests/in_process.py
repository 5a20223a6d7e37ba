# SPDX-License-Identifier: Apache-2.0
"""A server in a thread of the test's own process, so that a test can hand it an engine or a clock and look inside."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from lessor.durable.engine import Engine
from lessor.server.main import Server
from lessor.server.options import Options, parse_listen_url

T = TypeVar("T")


class InProcess:
    """Serves for one `with` block on a free port; `address` is host:port. `exit_code` is there after the block."""

    def __init__(self, data_dir: Path, engine: Engine | None = None, **options: Any) -> None:
        listen = (parse_listen_url("http://127.0.0.1:0"),)
        self._options = Options(data_dir=str(data_dir), listen_client_urls=listen, log_level="error", **options)
        self._engine = engine
        self._thread = threading.Thread(target=self._run, name="server")
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._problem: BaseException | None = None
        self.server: Server
        self.exit_code: int | None = None
        self.address = ""

    def __enter__(self) -> "InProcess":
        self._thread.start()
        self._started.wait()
        if self._problem is not None:
            raise self._problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.server.request_stop)
        self.wait()

    def wait(self) -> None:
        """Until the server has ended by itself."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def call(self, work: Callable[[], T]) -> T:
        """Runs `work` in the server's loop, between two turns."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self.server = Server(self._options, engine=self._engine)
            self.server.boot()
            await self.server.start()
            self.address = "{}:{}".format(*self.server.addresses[0])
        except BaseException as error:
            self._problem = error
            return
        finally:
            self._started.set()
        self.exit_code = await self.server.serve()
