# SPDX-License-Identifier: Apache-2.0
"""The plan of a cluster on this machine: names, ports, command lines. Pure, but for the look whether a port is free."""

import errno
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lessor.cli.failure import ERROR, Failure

HOST = "127.0.0.1"
# etcd's own example of several members on one machine has 2379, 22379 and 32379; these go on from there.
PORTS = (2379, 22379, 32379, 42379, 52379, 62379)
ENGINE_PORT = 12379  # an etcd takes the next one for its peers, too


@dataclass(frozen=True)
class Plan:
    """Which nodes there shall be, and where. `data_dir` is absolute."""

    data_dir: Path
    ports: tuple[int, ...]
    engine_port: int
    cluster_lease: str = ""  # the flag of `lessor serve`; "": its default

    @property
    def endpoints(self) -> str:
        return ",".join(f"{HOST}:{port}" for port in self.ports)

    def name(self, number: int) -> str:
        """`number` counts from 0."""
        return f"n{number + 1}"

    def folder(self, number: int) -> Path:
        return self.data_dir / self.name(number)

    def log(self, name: str) -> Path:
        return self.data_dir / f"{name}.log"

    def serve_command(self, number: int, engine: str, *, may_lose_commits: bool) -> list[str]:
        """The command line of a node on the engine with this URL; it can be run from any folder."""
        url = f"http://{HOST}:{self.ports[number]}"
        command = [sys.executable, "-m", "lessor", "serve"]
        command += ["--name", self.name(number), "--data-dir", str(self.folder(number))]
        command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--engine", engine]
        command += ["--engine-may-lose-commits"] if may_lose_commits else []
        return command + (["--cluster-lease", self.cluster_lease] if self.cluster_lease else [])


def make_plan(count: int, ports: str, engine_port: int, data_dir: str, cluster_lease: str) -> Plan:
    """`ports` as in the flag: numbers with commas, or "" for the usual ones. Failure for what cannot be."""
    if ports:
        try:
            chosen = tuple(int(port) for port in ports.split(","))
        except ValueError:
            raise Failure(ERROR, f"--ports: {ports!r} is no list of numbers such as 2379,22379,32379") from None
        if len(chosen) != count:
            raise Failure(ERROR, f"--ports names {len(chosen)} ports, and --local asks for {count} nodes: name {count}")
    elif count > len(PORTS):
        raise Failure(ERROR, f"there are {len(PORTS)} usual ports: name {count} with --ports")
    else:
        chosen = PORTS[:count]
    every = (*chosen, engine_port, engine_port + 1)
    if not all(0 < port < 65_536 for port in every):
        raise Failure(ERROR, "--ports, --engine-port: a port is a number from 1 to 65535, and 65534 for the engine")
    if len(set(every)) != len(every):
        text = f"each node needs a port of its own, and the engine {engine_port} and {engine_port + 1}"
        raise Failure(ERROR, f"{text}: choose others with --ports or --engine-port")
    return Plan(Path(data_dir).absolute(), chosen, engine_port, cluster_lease)


def check_ports(plan: Plan, engine_ports: Sequence[int]) -> None:
    """Failure when somebody listens on one of the ports, or when this user may not."""
    for port in (*engine_ports, *plan.ports):
        fault = _fault(port)
        if fault:
            flag = "--engine-port NUMBER" if port in engine_ports else f"--ports {','.join(map(str, plan.ports))}"
            what = "the engine's port" if port in engine_ports else "port"
            raise Failure(ERROR, f"{what} {port} {fault} choose another with {flag}")


def _fault(port: int) -> str:
    with socket.socket() as probe:
        # As servers do: otherwise the connections of the run before would hold the port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is taken: end the program that listens there, or"
            return f"cannot be used ({error.strerror}):"
    return ""


def answers(port: int) -> bool:
    """Whether somebody on this machine listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def shell_line(command: Sequence[str]) -> str:
    """The command as a person types it."""
    return shlex.join(command)


def how_ended(code: int) -> str:
    """What a return code of a process means, as the end of a sentence."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def last_words(log: Path, since: int) -> str:
    """The line of a log that says why its program has ended: the last fatal one, or the last one. `since`: a size."""
    try:
        with log.open("rb") as file:
            file.seek(since)
            lines = file.read()[-65_536:].decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    fatal = [line for line in said if "FATAL" in line or '"fatal"' in line]
    line = (fatal or said or [""])[-1]
    return line[max(line.find("FATAL"), 0) :][:400]  # PostgreSQL's lines begin with the time
