# SPDX-License-Identifier: Apache-2.0
"""What a server tells the supervisor that has started it, in systemd's protocol; and the console form of its log."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port


def serve(data_dir: Path, *flags: str, **environment: str) -> "subprocess.Popen[str]":
    url = f"http://127.0.0.1:{free_port()}"
    words = [f"--data-dir={data_dir}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "lessor", "serve", *words],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_is_told_when_it_serves_lives_and_stops(tmp_path: Path, abstract: bool) -> None:
    address = f"@lessor-{os.getpid()}-{free_port()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind("\0" + address[1:] if abstract else address)
        supervisor.settimeout(30)
        server = serve(tmp_path / "data", NOTIFY_SOCKET=address, WATCHDOG_USEC="100000")
        try:
            assert [supervisor.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
            server.send_signal(signal.SIGTERM)
            while (told := supervisor.recv(100)) == b"WATCHDOG=1":
                pass
            assert told == b"STOPPING=1"
        finally:
            server.terminate()
            server.communicate(timeout=30)


@pytest.mark.parametrize("others", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"NOTIFY_SOCKET": "/no/such"}])
def test_what_is_not_meant_for_it_does_no_harm(tmp_path: Path, others: dict[str, str]) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address)
        supervisor.settimeout(30)
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", **others}
        server = serve(tmp_path / "data", **environment)
        assert server.stderr is not None
        while "serving client traffic" not in (line := server.stderr.readline()):
            assert line
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
        assert server.returncode == 0
        if environment["NOTIFY_SOCKET"] == address:
            assert [supervisor.recv(100), supervisor.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_the_log_for_people(tmp_path: Path) -> None:
    server = serve(tmp_path / "data", "--log-format=console")
    assert server.stderr is not None
    while "serving client traffic" not in (line := server.stderr.readline()):
        assert line
    server.terminate()
    server.communicate(timeout=30)
    moment, level, caller, message, fields = line.rstrip("\n").split("\t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert (level, message) == ("info", "serving client traffic")
    assert re.fullmatch(r"\w+\.py:\d+", caller)
    assert json.loads(fields)["address"].startswith("http://127.0.0.1:")
