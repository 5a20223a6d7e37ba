# SPDX-License-Identifier: Apache-2.0
"""A server on loopback for one `with` block: what the tests ask of any, and those that are a process of their own."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.ports import free_port

START_S_MAX = 30.0  # an etcd alone waits one to two seconds for its election; the machine may be busy
STOP_S_MAX = 10.0


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path, page: str = "health") -> None:
    """Returns once GET of the page answers 200; RuntimeError with the end of the log when that does not come."""
    give_up = time.monotonic() + START_S_MAX
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/{page}", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.02)  # waiting for another process, not for a clock
    raise RuntimeError(f"{process.args!r} does not serve {url}:\n{log.read_text(errors='replace')[-3000:]}")


def _asked(url: str, path: str, body: dict[str, str] | None = None, token: str = "") -> Any:
    request = urllib.request.Request(f"{url}/v3/{path}", json.dumps(body or {}).encode())
    if token:
        request.add_header("Authorization", token)
    with urllib.request.urlopen(request, timeout=2) as reply:
        return json.load(reply)


def logged_in(url: str, user: str, password: str) -> str:
    """A token of the user; "" if there is none to be had, as while auth is off."""
    try:
        return str(_asked(url, "auth/authenticate", {"name": user, "password": password})["token"])
    except OSError:
        return ""


def leads(url: str, token: str = "") -> bool:
    """Whether the server answers, and says that it leads its cluster."""
    try:
        status = _asked(url, "maintenance/status", token=token)
    except OSError:
        return False
    return bool(status.get("leader") == status["header"]["member_id"])


def hand_over(from_url: str, to_url: str, token: str = "") -> None:
    """Has the server lead that follows; returns when it says so. OSError when one of them does not answer in time."""
    target_id = _asked(to_url, "maintenance/status", token=token)["header"]["member_id"]
    _asked(from_url, "maintenance/transfer-leadership", {"targetID": target_id}, token)
    give_up = time.monotonic() + START_S_MAX
    while not leads(to_url, token):
        if time.monotonic() > give_up:
            raise TimeoutError(f"{to_url} was handed the lead, and does not lead")
        time.sleep(0.01)


class AnyServer(ABC):
    """Started and healthy from the moment the `with` block begins; its data is gone afterwards."""

    min_lease_ttl_s: int

    def __init__(self, flags: Sequence[str], client_url: str) -> None:
        self.flags = list(flags)
        self.client_url = client_url

    @property
    def address(self) -> str:
        """host:port, as gRPC wants it."""
        return self.client_url.removeprefix("http://")

    @abstractmethod
    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Ends the server, then deletes its data."""

    @abstractmethod
    def request_stop(self) -> None:
        """Tells it to stop, as its operator would, and does not wait."""

    @abstractmethod
    def wait(self) -> int:
        """Until it has stopped; returns its exit code."""

    @abstractmethod
    def start_again(self) -> None:
        """Starts it on the same data once it has stopped."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Lets time pass for the server."""

    @abstractmethod
    def now_s(self) -> float:
        """The server's own time, of some beginning."""


class ServerProcess(AnyServer):
    """One in a process and a directory of its own.

    A subclass says the command. `data_dir` and `client_url` are chosen here. No ETCD_ or LESSOR_ variable of the
    environment reaches the process: they would be options.
    """

    ready_page = "health"  # answered when it serves; "version" is, too, while an alarm is up

    def __init__(self, flags: Sequence[str] = ()) -> None:
        super().__init__(flags, f"http://127.0.0.1:{free_port()}")
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments; to serve `client_url` from `data_dir`."""

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        try:
            self.start_again()
        except BaseException:
            self.stop()
            raise
        return self

    def restart(self, signal_number: int = signal.SIGTERM) -> None:
        """Ends the process with a signal and starts it again on the same data and port."""
        assert self._process is not None
        self._process.send_signal(signal_number)
        self.wait()
        self.start_again()

    def start_again(self) -> None:
        log = self.folder / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "LESSOR_"))}
        with log.open("ab") as output:
            self._process = subprocess.Popen(self.command(), stdout=output, stderr=output, env=environment)
        wait_until_healthy(self.client_url, self._process, log, self.ready_page)

    def request_stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(STOP_S_MAX)

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds)

    def now_s(self) -> float:
        return time.monotonic()

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
