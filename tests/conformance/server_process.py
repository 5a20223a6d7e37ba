# SPDX-License-Identifier: Apache-2.0
"""A server in a process and a directory of its own, on loopback, for one `with` block."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

START_S_MAX = 30.0  # an etcd alone waits one to two seconds for its election; the machine may be busy
STOP_S_MAX = 10.0


def free_port() -> int:
    """A TCP port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Returns once GET /health answers 200; RuntimeError with the end of the log when that does not come."""
    give_up = time.monotonic() + START_S_MAX
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)  # waiting for another process, not for a clock
    raise RuntimeError(f"{process.args!r} does not serve {url}:\n{log.read_text(errors='replace')[-3000:]}")


class ServerProcess(ABC):
    """Started and healthy from the moment the `with` block begins; its data is gone afterwards.

    A subclass says the command. `data_dir` and `client_url` are chosen here. No ETCD_ or LESSOR_ variable of the
    environment reaches the process: they would be options.
    """

    min_lease_ttl_s: int

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self.flags = list(flags)
        self.client_url = f"http://127.0.0.1:{free_port()}"
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments; to serve `client_url` from `data_dir`."""

    @property
    def address(self) -> str:
        """host:port, as gRPC wants it."""
        return self.client_url.removeprefix("http://")

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        self._start()
        return self

    def restart(self, signal_number: int = signal.SIGTERM) -> None:
        """Ends the process with a signal and starts it again on the same data and port."""
        assert self._process is not None
        self._process.send_signal(signal_number)
        self._process.wait(STOP_S_MAX)
        self._start()

    def _start(self) -> None:
        log = self.folder / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "LESSOR_"))}
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(self.command(), stdout=output, stderr=output, env=environment)
            wait_until_healthy(self.client_url, self._process, log)
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to what does not go by itself; then the data is deleted."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
