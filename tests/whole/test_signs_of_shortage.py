# SPDX-License-Identifier: Apache-2.0
"""A server process that lacks descriptors says so in its log, and its clients are told the truth."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.lessor_server import LessorServer

pytestmark = pytest.mark.slow

FILES = 40


class FewFiles(LessorServer):
    """A server that may open FILES files."""

    def command(self) -> list[str]:
        return ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh", *super().command()]


def log_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def lessor(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "lessor", *args], capture_output=True, text=True, timeout=60)


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def refusals(server: LessorServer) -> list[dict[str, Any]]:
    return [line for line in log_lines(server.folder / "log") if line["msg"].startswith("too many open files")]


def test_without_descriptors_the_log_has_the_limit_and_the_client_is_not_told_that_nobody_listens() -> None:
    with FewFiles() as server:
        endpoint = server.client_url.removeprefix("http://")
        address = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        with socket.create_connection(address) as early:
            # All at once, before the server looks at one of them: then the limit itself is reached, too.
            os.kill(server.pid, signal.SIGSTOP)
            crowd = [socket.create_connection(address) for _ in range(60)]
            os.kill(server.pid, signal.SIGCONT)
            until(lambda: bool(refusals(server)) and sum(map(ended, crowd)) >= 30)
            refused = lessor("--endpoints", endpoint, "get", "a")
            assert refused.returncode == 1
            assert "is a server running there" not in refused.stderr
            assert "a server's log says why it closes connections" in refused.stderr
            early.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            metrics = b"".join(iter(lambda: early.recv(65_536), b"")).decode()
        for each in crowd:
            each.close()
        counted = metrics.partition('\nlessor_limit_reached_total{limit="open_files"} ')[2].partition("\n")[0]
        assert float(counted) >= 10
        (line,) = refusals(server)  # one for all of them
        assert line["limit"] == FILES
        assert "ulimit -n" in line["remedy"]
        (warning,) = (each for each in log_lines(server.folder / "log") if "few open files" in each["msg"])
        assert warning["limit"] == FILES
        until(lambda: lessor("--endpoints", endpoint, "put", "a", "b").returncode == 0)
        assert server.alive
