# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: a server process goes on, or stops in order when its terminal is gone; it never ends without a word."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.lessor_server import LessorServer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """A test run under nohup ignores SIGHUP, and the servers that it starts would, too."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def test_sighup_without_a_terminal_is_answered_in_the_log_and_ends_nothing() -> None:
    class Daemon(LessorServer):
        def command(self) -> list[str]:
            return ["setsid", *super().command()]

    with Daemon() as server:
        os.kill(server.pid, signal.SIGHUP)
        until(lambda: "SIGHUP: going on" in (server.folder / "log").read_text())
        with urllib.request.urlopen(f"{server.client_url}/version", timeout=10) as reply:
            assert reply.status == 200


def test_sighup_during_the_start_ends_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_START, "serve", f"--data-dir={tmp_path / 'd'}"]
    command.append(f"--listen-client-urls=unix://{tmp_path / 's.sock'}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr)
        assert "the start waits" in next(lines)
        process.send_signal(signal.SIGHUP)
        assert "SIGHUP: going on with the start" in next(lines)
        assert any("serving client traffic" in line for line in lines)
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0


# The engine opens the data a second later than it could.
SLOW_START = """
import sys, time
from lessor.durable.file_engine import FileEngine
from lessor.__main__ import main

def slowly(*args, of=FileEngine.open):
    print("the start waits", file=sys.stderr, flush=True)
    time.sleep(1)
    return of(*args)

FileEngine.open = slowly
main()
"""


def test_when_its_terminal_closes_the_server_stops_in_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = [f"--data-dir={tmp_path / 'data'}", f"--listen-client-urls=unix://{tmp_path / 's.sock'}"]
    pid, terminal = pty.fork()
    if pid == 0:
        with log.open("w") as file:
            os.dup2(file.fileno(), 2)
        os.execv(sys.executable, [sys.executable, "-m", "lessor", "serve", *flags])
    try:
        until(lambda: log.exists() and "serving client traffic" in log.read_text())
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    said = [json.loads(line)["msg"] for line in log.read_text().splitlines()]
    assert said[-3:] == ["SIGHUP: the terminal has closed; stopping", "stopping", "stopped"]
