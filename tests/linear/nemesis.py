# SPDX-License-Identifier: Apache-2.0
"""The server processes, and what is done to them: kill -9 and a restart, a kill while starting, a pause by SIGSTOP.

A driver knows a `Nemesis` only: the endpoints of its servers, `strike`, and what the history has to know of strikes.
"""

import math
import os
import random
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from tests.conformance.proxy import Proxy
from tests.conformance.server_process import hand_over, leads, wait_until_healthy
from tests.engine_flags import engine_flags
from tests.ports import free_port

STOP_S_MAX = 20.0
START_S_MAX = 20.0
LESSOR = ("-m", "lessor")
TAKEN_OVER = "taken over: "  # how a line of the log begins when a server that led follows again


class Process(ABC):
    """A server on a data directory. A subclass says the command."""

    def __init__(self, data_dir: Path) -> None:
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.deaths: list[float] = []
        self.data_dir = data_dir
        self._log = data_dir.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self, url: str) -> list[str]:
        """The program and its arguments, to serve `url` from `data_dir`."""

    def spawn(self) -> None:
        """Starts the process and does not wait for it to serve."""
        # Variables of this name would be options of the server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "LESSOR_"))}
        command = self.command(f"http://{self.endpoint}")
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def has_ended(self) -> int:
        """Waits until it has ended by itself; returns its exit code."""
        assert self._process is not None
        code = self._process.wait(STOP_S_MAX)
        self.deaths.append(time.monotonic())
        return code

    def wait_until_taken_over(self, times: int) -> None:
        """Returns when it has said for that many times that it was taken over: it has forgotten its calls then."""
        until_s = time.monotonic() + STOP_S_MAX
        while self.log_text().count(TAKEN_OVER) < times:
            assert self.alive, f"it has ended: see {self._log}"
            assert time.monotonic() < until_s, f"it does not step down: see {self._log}"
            time.sleep(0.005)
        self.deaths.append(time.monotonic())

    def wait_until_serving(self) -> None:
        assert self._process is not None
        wait_until_healthy(f"http://{self.endpoint}", self._process, self._log)

    def wait_until_leading(self) -> None:
        """Returns when the server says that it leads its log."""
        until_s = time.monotonic() + START_S_MAX
        while not leads(f"http://{self.endpoint}"):
            assert self._process is not None
            assert self._process.poll() is None, f"it has ended: see {self._log}"
            assert time.monotonic() < until_s, f"it does not lead: see {self._log}"
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_S_MAX)
        self.deaths.append(time.monotonic())

    def terminate(self) -> int:
        self.signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(STOP_S_MAX)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")


def _urls(url: str, data_dir: Path) -> list[str]:
    return [f"--data-dir={data_dir}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"]


class LessorProcess(Process):
    """`lessor serve`. `launcher`: the arguments of Python that stand for the command `lessor`. `engine`: flags."""

    def __init__(self, data_dir: Path, launcher: Sequence[str] = LESSOR, engine: Sequence[str] | None = None) -> None:
        super().__init__(data_dir)
        self._launcher = launcher
        self._engine = engine_flags(data_dir) if engine is None else engine

    def command(self, url: str) -> list[str]:
        flags = ["--log-level=warn", "--min-lease-ttl=1", "--watch-progress-notify-interval=100ms"]
        flags += self._engine
        return [sys.executable, *self._launcher, "serve", *_urls(url, self.data_dir), *flags]


class EtcdProcess(Process):
    """One etcd. It writes with fsync, as its users run it."""

    def __init__(self, data_dir: Path, binary: Path) -> None:
        super().__init__(data_dir)
        self._binary = binary
        self._peer_url = f"http://127.0.0.1:{free_port()}"

    def command(self, url: str) -> list[str]:
        peers = [f"--listen-peer-urls={self._peer_url}", f"--initial-advertise-peer-urls={self._peer_url}"]
        flags = ["--name=peer", f"--initial-cluster=peer={self._peer_url}", "--log-level=error"]
        return [str(self._binary), *_urls(url, self.data_dir), *peers, *flags]


class Nemesis(ABC):
    """Servers, and the harm that comes to them.

    disturbed: (from, to) of each time in which a server did not run.
    """

    def __init__(self) -> None:
        self.disturbed: list[tuple[float, float]] = []

    @property
    @abstractmethod
    def endpoints(self) -> list[str]:
        """Where clients may call; each is used by some of them."""

    @property
    def serving(self) -> str:
        """An endpoint that serves, while nothing strikes."""
        return self.endpoints[0]

    @abstractmethod
    def start(self) -> None:
        """Starts all servers; returns when they serve."""

    @abstractmethod
    def strike(self, chance: random.Random) -> None:
        """Does one harm that kills, and makes it good: all servers run again, and serve, when this returns."""

    @abstractmethod
    def settled_s(self, endpoint: str, called_s: float) -> float:
        """When a call that was made there at that time can have no effect any more; infinity: never."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all servers, whatever their state."""


class OneServer(Nemesis):
    """One process, which forgets the calls that it had when it dies."""

    def __init__(self, server: Process) -> None:
        super().__init__()
        self.server = server

    @property
    def endpoints(self) -> list[str]:
        return [self.server.endpoint]

    def start(self) -> None:
        self.server.spawn()
        self.server.wait_until_serving()

    def strike(self, chance: random.Random) -> None:
        kind = chance.random()
        if kind < 0.15:
            self.pause(chance.uniform(0.05, 2.5))
        began_s = time.monotonic()
        self.server.kill()
        if kind > 0.9:  # a second time, somewhere in its start
            self.server.spawn()
            time.sleep(chance.uniform(0.0, 0.8))
            self.server.kill()
        self.start()
        self.disturbed.append((began_s, time.monotonic()))

    def pause(self, seconds: float) -> None:
        """The process stands still, as on a machine that is paused."""
        began_s = time.monotonic()
        self.server.signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.server.signal(signal.SIGCONT)
        self.disturbed.append((began_s, time.monotonic()))

    def settled_s(self, endpoint: str, called_s: float) -> float:
        return next((died_s for died_s in self.server.deaths if died_s > called_s), math.inf)

    def stop(self) -> None:
        if self.server.alive:
            self.server.kill()


class OnOneLog(Nemesis):
    """Servers on one log: one leads, the others follow it and serve. One of them takes over when the leader is struck.

    kinds: of strikes, from KINDS and LINK_KINDS, each as often as it stands there. `links`: the proxies between each
    server and the log. `in_order`: the strikes go through the kinds, and chance does not choose.
    """

    KINDS: ClassVar = {
        "kill": "the leader is killed",
        "stop": "the leader gets SIGSTOP until it was taken over, then SIGCONT",
        "end": "the leader gets SIGTERM",
        "hand": "the leader hands over, and follows then",
        "follower": "one that follows is killed",
    }
    LINK_KINDS: ClassVar = {
        "cut": "a server's connections to the log are reset, and refused for a while",
        "stall": "nothing passes between a server and the log for a while",
        "replies": "what a server sends reaches the log, and no answer comes for a while",
    }
    LINK_S_MAX = 4.0  # the take-over of a leader that is cut off takes 1.3 s

    def __init__(
        self, *servers: Process, kinds: Sequence[str], links: Sequence[Proxy] = (), in_order: bool = False
    ) -> None:
        super().__init__()
        self._kinds = kinds
        self._in_order = in_order
        self._servers = servers
        self._links = links
        self._leading = servers[0]
        self.strikes: Counter[str] = Counter()

    @property
    def endpoints(self) -> list[str]:
        return [server.endpoint for server in self._servers]

    @property
    def serving(self) -> str:
        return self._leading.endpoint

    def start(self) -> None:
        self._leading.spawn()
        self._leading.wait_until_leading()
        others = self._others(self._leading)
        for server in others:
            server.spawn()
        for server in others:
            server.wait_until_serving()

    def strike(self, chance: random.Random) -> None:
        struck = self.strikes.total()
        kind = self._kinds[struck % len(self._kinds)] if self._in_order else chance.choice(self._kinds)
        self.strikes[kind] += 1
        began_s = time.monotonic()
        if kind in self.LINK_KINDS:
            self._disturb_a_link(kind, chance)
        else:
            self._strike_a_server(kind, chance)
        for server in self._servers:
            server.wait_until_serving()
        self.disturbed.append((began_s, time.monotonic()))

    def _strike_a_server(self, kind: str, chance: random.Random) -> None:
        struck = self._leading
        others = self._others(struck)
        if kind == "follower":
            struck = chance.choice(others)
            struck.kill()
            time.sleep(chance.uniform(0.0, 1.0))
            struck.spawn()
        elif kind == "hand":
            self._leading = chance.choice(others)
            hand_over(f"http://{struck.endpoint}", f"http://{self._leading.endpoint}")
        elif kind == "stop":  # it stands still until it has been taken over, and wakes up
            times = struck.log_text().count(TAKEN_OVER)
            struck.signal(signal.SIGSTOP)
            self._leading = self._wait_for_a_leader(others)
            time.sleep(chance.uniform(0.0, 0.5))
            struck.signal(signal.SIGCONT)
            struck.wait_until_taken_over(times + 1)
        else:
            if kind == "kill":
                struck.kill()
            else:
                struck.terminate()
                struck.deaths.append(time.monotonic())
            self._leading = self._wait_for_a_leader(others)
            struck.spawn()

    def _disturb_a_link(self, kind: str, chance: random.Random) -> None:
        number = self._servers.index(self._leading)
        if chance.random() < 0.3:
            number = chance.randrange(len(self._servers))
        link = self._links[number]
        if kind == "cut":
            link.refuse(True)
            link.cut()
        elif kind == "stall":
            link.stall()
        else:
            link.stall_replies()
        time.sleep(chance.uniform(0.05, self.LINK_S_MAX))
        link.refuse(False)
        if chance.random() < 0.5:
            link.cut()
        link.resume()
        self._leading = self._wait_for_a_leader(self._servers)

    def _others(self, server: Process) -> list[Process]:
        return [other for other in self._servers if other is not server]

    def _wait_for_a_leader(self, servers: Sequence[Process]) -> Process:
        """Returns the one of them that leads, when there is one."""
        until_s = time.monotonic() + START_S_MAX
        while True:
            for server in servers:
                if leads(f"http://{server.endpoint}"):
                    return server
            assert time.monotonic() < until_s, "none of the servers leads"
            time.sleep(0.01)

    def settled_s(self, endpoint: str, called_s: float) -> float:
        server = next(server for server in self._servers if server.endpoint == endpoint)
        return next((died_s for died_s in server.deaths if died_s > called_s), math.inf)

    def stop(self) -> None:
        for server in self._servers:
            if server.alive:
                server.signal(signal.SIGCONT)
                server.kill()
