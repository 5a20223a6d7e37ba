# SPDX-License-Identifier: Apache-2.0
"""Runs a cluster on this machine: an engine, and nodes that are `lessor serve` processes.

Laws
- Whatever happens, nothing that was started here is left running: the end of `run`, however it comes, ends the nodes,
  the one that leads last, and then the engine. What is still there after that is killed. When this process itself is
  killed with -9, the kernel ends them (see tether.py).
- A node that has ended, or was killed, is not started again: whoever did it wants to see what comes of it.
- The nodes are processes like any other's. Who leads is found by asking them.

A node that a person has started again by hand is not ours: it is asked who leads, and otherwise left alone.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lessor.base.clock import MonotonicClock
from lessor.cli import tasks
from lessor.cli.failure import ERROR, Failure
from lessor.cli.local_directory import Directory
from lessor.cli.local_engine import Engine, tethered
from lessor.cli.local_plan import HOST, Plan, answers, how_ended, last_words, shell_line
from lessor.durable.directory import LOCK_NAME

if TYPE_CHECKING:
    from lessor.client import AsyncClient

START_S_MAX = 60.0  # until the engine listens, and then until a node leads; it takes two to four seconds
ASK_S_MAX = 1.0
LOOK_S, LOOK_SOON_S = 0.5, 0.1  # between two questions who leads: while somebody does, and while nobody does
STOP_S_MAX = 15.0  # a node gives up an engine that does not answer after 3 s; connections may take 5


@dataclass
class Node:
    """`process` is None before the first start."""

    number: int
    name: str
    client: "AsyncClient"
    process: tasks.Process | None = None

    @property
    def lives(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def where(self) -> str:
        return f"pid {self.process.pid}" if self.process and self.lives else "not started from here"


@dataclass
class LocalCluster:
    """`say` prints one line for people."""

    plan: Plan
    directory: Directory
    engine: Engine
    say: Callable[[str], None]
    _nodes: list[Node] = field(default_factory=list)
    _engine_process: tasks.Process | None = None
    _engine_log_size: int = 0
    _leader: Node | None = None
    _up: bool = False  # a node has led since the start
    _left_s: float | None = None  # when the node that led has ended

    async def run(self) -> None:
        """Until it is cancelled, or the engine ends. Failure when the cluster does not start, or its engine ends."""
        self._clock = MonotonicClock()
        for number in range(len(self.plan.ports)):
            holder = user_of(self.plan.folder(number))
            if holder:
                text = f"{self.plan.name(number)} of {self.plan.data_dir} runs already, as process {holder}"
                raise Failure(ERROR, f"{text}, which was started by hand: end it first")
        try:
            await self.engine.prepare()
            await self._start_engine()
            self._make_nodes()
            async with tasks.crew() as begin:
                begin(self._tend_engine())
                for node in self._nodes:
                    begin(self._tend(node))
                begin(self._follow())
        finally:
            await self._end()

    # --- the engine -----------------------------------------------------------------------------------------------

    async def _start_engine(self) -> None:
        log = self.plan.log(self.engine.name)
        account = f", as user {self.engine.account.name}" if self.engine.account else ""
        self._engine_process = await self._start(
            self.engine.name, self.engine.command(), self.engine.environment, self.engine
        )
        give_up_s = self._clock.now_s() + START_S_MAX
        while not answers(self.engine.ports[0]):
            if await tasks.ended_within(self._engine_process, 0.05):
                raise self._engine_failed("could not be started")
            if self._clock.now_s() > give_up_s:
                raise Failure(ERROR, f"{self.engine.title} does not listen after {START_S_MAX:.0f} s: see {log}")
        where = f"port {self.engine.ports[0]}, pid {self._engine_process.pid}{account}"
        self.say(f"engine: {self.engine.title}, {where}, data in {self.plan.data_dir}")
        if self.engine.warning:
            self.say(f"warning: {self.engine.warning}")
        self.say("survives: the end of any node, and kill -9 of them all, with each acknowledged write and lease")
        self.say("does not survive: the loss of this machine, where all of it is; without the engine nobody answers")

    def _engine_failed(self, how: str) -> Failure:
        log = self.plan.log(self.engine.name)
        reason = last_words(log, self._engine_log_size)
        return Failure(ERROR, f"{self.engine.title} {how}: {reason or 'it said nothing'} (more in {log})")

    async def _tend_engine(self) -> None:
        assert self._engine_process is not None
        code = await self._engine_process.wait()
        raise self._engine_failed(f"{how_ended(code)}, so the nodes are ended too; start again to go on")

    # --- the nodes ------------------------------------------------------------------------------------------------

    def _make_nodes(self) -> None:
        from lessor.client import AsyncClient

        for number, port in enumerate(self.plan.ports):
            client = AsyncClient(f"{HOST}:{port}", connect_timeout_s=ASK_S_MAX, timeout_s=ASK_S_MAX)
            self._nodes.append(Node(number, self.plan.name(number), client))

    def _command(self, node: Node) -> list[str]:
        return self.plan.serve_command(node.number, self.engine.url, may_lose_commits=self.engine.may_lose_commits)

    async def _tend(self, node: Node) -> None:
        """Starts the node, and says it when it has ended."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        log = self.plan.log(node.name)
        since = log.stat().st_size if log.exists() else 0
        command = tethered(self._command(node), signal.SIGKILL)
        node.process = await self._start(node.name, command, environment)
        code = await node.process.wait()
        if self._leader is node:
            self._leader, self._left_s = None, self._clock.now_s()
        if not self._up:
            raise Failure(ERROR, f"{node.name} did not start: {last_words(log, since)} (more in {log})")
        others = f"{self._leader.name} leads" if self._leader else "another one will lead in a moment"
        if not any(other.lives for other in self._nodes):
            others = "none is left"
        self.say(f"{node.name} {how_ended(code)}; {others}. To start it again, in another terminal:")
        self.say(f"    {shell_line(self._command(node))}")

    # --- who leads ------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Says who leads, whenever that changes."""
        give_up_s = self._clock.now_s() + START_S_MAX
        while True:
            leader = await self._find_leader()
            if leader is not None and leader is not self._leader:
                self._leader = leader
                if not self._up:
                    self._up = True
                    self._introduce(leader)
                else:
                    later = "" if self._left_s is None else f", {self._clock.now_s() - self._left_s:.1f} s later"
                    self.say(f"{leader.name} leads now ({leader.where}){later}")
                self._left_s = None
            elif not self._up and self._clock.now_s() > give_up_s:
                raise Failure(ERROR, f"no node leads after {START_S_MAX:.0f} s: see {self.plan.log('n1')}")
            await tasks.sleep(LOOK_SOON_S if self._leader is None else LOOK_S)

    async def _find_leader(self) -> Node | None:
        """The node that answers and says that it leads."""
        terms = await tasks.all_of(_term_of(node.client) for node in self._nodes)
        term, node = max(zip(terms, self._nodes, strict=True), key=lambda each: each[0])
        return node if term else None

    def _introduce(self, leader: Node) -> None:
        for node in self._nodes:
            role = "leads" if node is leader else "follows"
            self.say(f"{node.name}: http://{HOST}:{self.plan.ports[node.number]}, {node.where}, {role}")
        self.say(f"endpoints: {self.plan.endpoints}")
        lessor = ["lessor"] if shutil.which("lessor") else [sys.executable, "-m", "lessor"]
        look = shell_line([*lessor, "cluster", "status", "--endpoints", self.plan.endpoints])
        self.say(f"to look, in another terminal: {look}")
        if len(self._nodes) > 1 and leader.process:
            self.say(f"to watch a take-over: kill -9 {leader.process.pid}")
        self.say("to end all of it: Ctrl-C")

    # --- processes ------------------------------------------------------------------------------------------------

    async def _start(
        self, name: str, command: list[str], environment: dict[str, str], engine: Engine | None = None
    ) -> tasks.Process:
        try:
            with self.plan.log(name).open("ab") as log:
                if engine is not None:
                    self._engine_log_size = log.tell()
                return await tasks.start(
                    command,
                    log.fileno(),
                    environment=environment,
                    folder=engine.folder if engine else None,
                    keep_open=[self.directory.descriptor],
                )
        except OSError as error:
            raise Failure(ERROR, f"{name} cannot be started: {error.filename}: {error.strerror}") from None

    async def _end(self) -> None:
        """Ends the nodes, the one that leads last, and then the engine."""
        if self._up:
            self._say_if_heard("ending the nodes, then the engine")
        await tasks.all_of(_ended(node.process, signal.SIGTERM) for node in self._nodes if node is not self._leader)
        for node in self._nodes:
            await _ended(node.process, signal.SIGTERM)
            await node.client.aclose()
        await _ended(self._engine_process, self.engine.stop_signal)
        self.engine.close()
        for node in self._nodes:
            holder = user_of(self.plan.folder(node.number))
            if holder:
                self._say_if_heard(f"{node.name} was started by hand and is still there (process {holder}): end it too")

    def _say_if_heard(self, text: str) -> None:
        """For the end: that nobody reads it, after `... | head`, is no reason to leave processes behind."""
        with contextlib.suppress(OSError):
            self.say(text)


def user_of(folder: Path) -> str:
    """The process id of the server that uses this data directory; "" when none does."""
    try:
        with (folder / LOCK_NAME).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(32).decode("ascii", "replace").strip()
    except OSError:  # never started, or of another user
        return ""
    return ""


async def _term_of(client: "AsyncClient") -> int:
    """The term in which this node leads; 0: it does not, or does not answer."""
    from lessor.client import ClientError

    try:
        reply = await client.maintenance.status()
    except ClientError:
        return 0
    return reply.raftTerm if reply.leader == reply.header.member_id else 0


async def _ended(process: tasks.Process | None, number: signal.Signals) -> None:
    """Ends the process: with the signal, or after STOP_S_MAX with SIGKILL."""
    if process is None or process.returncode is not None:
        return
    for each in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(each)
        if await tasks.ended_within(process, STOP_S_MAX):
            return
