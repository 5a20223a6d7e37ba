# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/client.md, run as it says: in processes of their own, one of which is killed."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lessor.client import Client
from tests.conformance.server_process import AnyServer
from tests.conformance.subject import server_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[AnyServer]:
    with server_of("lessor") as server:
        yield server


@contextmanager
def running(name: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until_it_waits(process: "subprocess.Popen[str]") -> None:
    """Until its main thread has slept for 20 ms: as people press Ctrl-C, not in the middle of a call of a function."""
    asleep = 0
    while asleep < 20:
        state = Path(f"/proc/{process.pid}/task/{process.pid}/stat").read_text().rpartition(") ")[2][0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.001)


def test_a_service_is_seen_to_appear_and_to_vanish_when_it_is_killed(server: AnyServer) -> None:
    with running("finder.py", server.address) as finder:
        assert line(finder) == "there are []"
        with running("service.py", "10.0.0.5:8080", server.address) as service:
            assert line(service) == "registered 10.0.0.5:8080"
            assert line(finder) == "appeared 10.0.0.5:8080"
            service.send_signal(signal.SIGKILL)
        assert line(finder) == "vanished 10.0.0.5:8080"


@pytest.mark.parametrize(
    ("name", "arguments", "begins"),
    [
        ("finder.py", (), "there are"),
        ("service.py", ("10.0.0.6:80",), "registered"),
        ("leader.py", ("carl",), "carl leads"),
    ],
)
def test_ctrl_c_ends_an_example_in_one_line(
    server: AnyServer, name: str, arguments: tuple[str, ...], begins: str
) -> None:
    with running(name, *arguments, server.address) as process:
        assert line(process).startswith(begins)
        wait_until_it_waits(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (130, "", "interrupted\n")
    with Client(server.address) as client:
        assert client.get("web/10.0.0.6:80").count == client.get("scheduler/", prefix=True).count == 0


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("finder.py", ("a", "b"), "usage: python finder.py [ENDPOINT]\n"),
        ("service.py", (), "usage: python service.py ADDRESS [ENDPOINT]\n"),
        ("leader.py", ("--help",), "usage: python leader.py NAME [ENDPOINT]\n"),
        ("finder.py", ("127.0.0.1:1",), "finder: cannot connect to 127.0.0.1:1: "),
        ("leader.py", ("ann", "x://y"), "leader: endpoint 'x://y': unknown scheme x"),
    ],
)
def test_an_example_that_cannot_run_says_so_in_one_line(name: str, arguments: tuple[str, ...], said: str) -> None:
    with running(name, *arguments) as process:
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(said)


def test_one_of_several_leads_and_the_next_when_it_is_gone(server: AnyServer) -> None:
    with running("leader.py", "ann", server.address) as ann:
        first = line(ann)
        assert first.startswith("ann leads with token ")
        with running("leader.py", "bob", server.address) as bob, Client(server.address) as client:
            while client.get("scheduler/", prefix=True).count < 2:
                pass
            ann.kill()
            leader = client.election("scheduler").leader()
            assert leader is not None
            client.revoke(leader.lease_id)  # instead of waiting for its 5 seconds
            second = line(bob)
            assert second.startswith("bob leads with token ")
            assert int(second.split()[-1]) > int(first.split()[-1])
            client.put("stop")
            assert bob.wait(10) == 0
