# SPDX-License-Identifier: Apache-2.0
"""From options to a running server. Read this first, then turn.py.

    options -> engine (opens the data) -> state machine (replayed) -> gate, committer, turn -> core -> listeners

`Server` owns the parts, and starts and stops them in order. It is used by the command line (command.py) and by tests
that want a server in their own process.
"""

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import resource
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from lessor.base import errors, limits
from lessor.base.clock import Clock, MonotonicClock, wall_clock_ms
from lessor.durable import directory
from lessor.durable.engine import (
    Begun,
    DamagedError,
    Engine,
    EngineError,
    FencedError,
    GivenUpError,
    HistoryError,
    Meta,
    MovedError,
    TwinError,
)
from lessor.durable.file_engine import FileEngine
from lessor.durable.shared_log import LogRefusedError
from lessor.durable.shared_record import Origin
from lessor.server import supervisor
from lessor.server.listening import Listening, Sockets
from lessor.server.loop.bugs import BrokenTurnError
from lessor.server.loop.committer import Committer
from lessor.server.loop.core import Core
from lessor.server.loop.release import Gate
from lessor.server.loop.token_uses import TokenUses
from lessor.server.loop.turn import Turn
from lessor.server.observe.disk_space import DiskSpace
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.shortages import OPEN_FILES, QUOTA
from lessor.server.options import Listen, OptionError, Options, parse_auth_token
from lessor.server.role import IMPOSSIBLE_ROWS, NotAppliedError, Role, apply_rows, promote_machine
from lessor.server.services.compactor import Compactor
from lessor.server.services.passwords import Passwords
from lessor.server.services.signed_tokens import SignedTokens
from lessor.server.services.snapshots import Snapshots, remove_leftovers
from lessor.server.services.table import Services
from lessor.server.services.tokens import SimpleTokens, Tokens
from lessor.server.tls.listeners import tls_for
from lessor.server.tls.secure import Handshakes
from lessor.server.transport.connection import Connection, Speak
from lessor.server.transport.door import Accept, Door, files_for_clients, files_limit
from lessor.server.transport.speak import speak_to_clients, speak_to_monitors
from lessor.state.journal import Rows
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore

log = logging.getLogger("lessor")

EXIT_DISK_FAILED = 74  # sysexits.h: EX_IOERR
EXIT_BUG = 70  # sysexits.h: EX_SOFTWARE
EXIT_HISTORY = 65  # sysexits.h: EX_DATAERR; a new start says it again
EXIT_AT_ONCE = 130  # as after Ctrl-C

LAST_COMMIT_S = limits.STOP_COMMIT_S_MAX
DRAIN_S = limits.STOP_CALLS_S_MAX
# The commit thread and the loop take turns with the interpreter; decision 0003 has the measurements.
SWITCH_INTERVAL_S = 0.0002
# The collector looks at new objects after 1,000 more of them, at survivors after eleven such looks, and at all that is
# not frozen after three looks of the second kind. The third kind, on some 30,000 objects, takes 4 ms at most.
GC_THRESHOLDS = (1_000, 10, 2)


@dataclass
class Remains:
    """What a server leaves to the one that takes its place in the same process.

    step_downs: how often a server of this process was taken over.
    """

    sockets: Sockets = field(default_factory=Sockets)
    step_downs: int = 0


class Server:
    """One server on one data directory. `boot`, `start`, then `stop`; each once, in that order."""

    def __init__(
        self,
        options: Options,
        clock: Clock | None = None,
        engine: Engine | None = None,
        after: Remains | None = None,
    ) -> None:
        """`after`: of the server of this process in whose place this one comes."""
        self.options = options
        self.remains = after or Remains()
        self.core: Core
        self.services: Services
        self.role: Role
        self.disk_space: DiskSpace
        self.exit_code = 0
        self.follows_on = False  # it stops because it was taken over, and a new Server is to follow who leads
        self._clock = clock or MonotonicClock()
        self._jwt_tokens = self._make_jwt_tokens()
        self._engine = engine or _engine_of(options)
        self._committer = Committer(self._engine, self._clock)
        self._connections: set[Connection] = set()
        self._listening = Listening(self.remains.sockets)
        self._abandoned = False
        self.handshakes: Handshakes | None = None  # None without a URL with TLS
        # Wraps the protocol of each accepted socket. Tests put faults there.
        self.in_front: Callable[[Accept], Accept] = lambda accept: accept
        self._stopping = asyncio.Event()

    def boot(self) -> None:
        """Opens the data and replays it. Blocks.

        Raises DataDirError when the directory cannot be served, OptionError when the certificates cannot be used.
        """
        try:
            # The engine belongs to its thread from the first call on.
            machine, begun, clock_s = self._committer.call(self._open)
            if begun is not None and self._engine.answering is not None:
                self._committer.keep_up()
            # After the data is open: --auto-tls keeps its certificate in the data directory.
            metrics = Metrics()
            self.handshakes = tls_for(self.options, metrics.shortages)
        except BaseException:
            self._committer.close()
            raise
        answering = metrics.answering = self._engine.answering
        gate = Gate(durable=machine.journal.number - 1)
        following = begun is None
        if following:
            metrics.leader_changes = 0  # none is known yet
        turn = Turn(
            machine, gate, self._committer, self._clock, clock_s, metrics.expiry, answering, following=following
        )
        on_shared_log = following or answering is not None
        ttl_s = self.options.auth_token_ttl_s
        uses = TokenUses(self._clock.now_s, ttl_s)
        tokens = self._jwt_tokens
        if tokens is None and on_shared_log:
            tokens = SignedTokens(machine, turn.now_s, uses)
        elif tokens is None:
            tokens = SimpleTokens(self._clock, ttl_s, lambda: machine.journal.number)
        data_dir = Path(self.options.data_dir)
        remove_leftovers(data_dir)
        self.services = Services(
            self.options,
            machine,
            turn,
            tokens,
            Passwords(self.options.bcrypt_cost, metrics.shortages),
            Snapshots(self._engine, data_dir),
        )
        handlers = self.services.handlers()
        self.core = Core(self.options, machine, gate, turn, self._committer, metrics, tokens, uses, handlers)
        self.core.log_end = lambda: self._engine.end
        self.core.landed = self._engine.landed
        self.role = Role(
            self.core, self._engine, self._committer, self.services, self.options.tls, self._stop_unanswered
        )
        self.core.hand_over = self.role.hand_over
        self.core.on_shared_log = on_shared_log
        metrics.claims = int(answering is not None and not following)
        metrics.step_downs = self.remains.step_downs

    def _make_jwt_tokens(self) -> Tokens | None:
        """None: tokens are simple ones. Raises OptionError for an --auth-token that cannot work."""
        kind, settings = parse_auth_token(self.options.auth_token)
        if kind == "jwt":
            from lessor.server.services.jwt_tokens import JwtTokens

            return JwtTokens(settings, wall_clock_ms)
        return None

    def _open(self) -> tuple[StateMachine, Begun | None, float]:
        """In the engine's thread. Returns the term that begins here, or None while another server leads; and where the
        data clock stands.
        """
        meta = self._engine.open(_new_identity(self.options))
        if meta.not_compared:
            log.info("the pages of the tables were not compared with their sums", extra={"reason": meta.not_compared})
        try:
            machine = self._restored(meta)
        except DamagedError as error:
            meta = self._engine.make_anew(error)
            machine = self._restored(meta)
        machine.set_quota(self.options.quota_backend_bytes, self.options.max_request_bytes)
        followed = False

        def follow(rows: Rows, term: int, _origins: Sequence[Origin]) -> None:
            nonlocal followed
            followed = True
            apply_rows(machine, rows, term)
            while machine.store.unswept:
                machine.store.sweep(limits.SWEEP_EVENTS_MAX)

        begun = self._engine.try_to_lead(follow)
        if begun is None:
            return machine, None, meta.clock_s
        if followed:
            promote_machine(machine, begun)
        else:
            machine.lead(begun.term)
        return machine, begun, begun.clock_s

    def _restored(self, meta: Meta) -> StateMachine:
        """What the tables hold. Raises DataDirError."""
        try:
            return restore(
                Identity(meta.cluster_id, meta.member_id, meta.term),
                self._engine.load(),
                min_lease_ttl_s=self.options.min_lease_ttl_s,
                max_txn_ops=self.options.max_txn_ops,
                lease_id_seed=(meta.member_id & 0xFFFF) << 48 | (wall_clock_ms() & 0xFFFFFFFFFF) << 8,
            )
        except IMPOSSIBLE_ROWS as error:
            database = Path(self.options.data_dir) / directory.DATABASE_NAME
            raise directory.damaged(database, f"rows that cannot be, {error!r}") from error

    async def start(self) -> None:
        """Begins to serve. Raises OptionError when it cannot listen on an address."""
        loop = asyncio.get_running_loop()
        turn = self.core.turn
        self.core.machine.on_no_space = self._no_space
        turn.start(loop, self._stop_unanswered)
        self._notify_progress(loop)
        Compactor(self.core, self.options).start(loop)
        self.disk_space = DiskSpace(self.options.data_dir, self.core.metrics)
        self.disk_space.start(loop)
        if turn.following:
            self.role.stand_by()
        await self.listen()

    @property
    def addresses(self) -> list[tuple[str, int] | str]:
        """Where it listens: host and port, or the path of a socket file."""
        return self._listening.addresses

    async def listen(self) -> None:
        """Begins to listen, as `start` does, and again after `stop_listening`. Raises OptionError."""
        for listen in self.options.listen_client_urls:
            await self._listen(listen, "--listen-client-urls", speak_to_clients, shows_data=True)
        for listen in self.options.listen_metrics_urls:
            await self._listen(listen, "--listen-metrics-urls", speak_to_monitors, shows_data=False)

    def stop_listening(self) -> None:
        """Takes no new connections; existing ones stay."""
        self._listening.end()

    async def _listen(self, listen: Listen, flag: str, speak: Speak, *, shows_data: bool) -> None:
        def connection(peer_common_name: str | None = None) -> asyncio.Protocol:
            made = Connection(self.core, self._connections, speak, peer_common_name, shows_data=shows_data)
            return cast(asyncio.Protocol, made)

        accept: Accept = connection
        if listen.tls:
            assert self.handshakes is not None
            accept = self.handshakes.secured(connection)
        await self._listening.begin(listen, flag, Door(self.core.metrics.shortages).before(self.in_front(accept)))
        traffic = "serving client traffic securely" if listen.tls else "serving client traffic"
        log.info(traffic, extra={"address": listen.url})

    async def serve(self) -> int:
        """Serves until `request_stop`, a failing disk or a broken turn; returns the exit code."""
        await self._stopping.wait()
        if not self.follows_on:
            supervisor.tell(supervisor.STOPPING)
        await self.stop()
        return self.exit_code

    def read_certificates(self) -> None:
        """Reads the certificates again if they have changed, as each handshake does. Safe in a signal handler."""
        if self.handshakes is not None:
            self.handshakes.files.current()

    def request_stop(self) -> None:
        """Ends `serve`. Safe in a signal handler of the loop. A second call ends the process at once.

        That loses nothing that was acknowledged; only the exact remaining times of leases are not saved.
        """
        if self.follows_on:
            self.follows_on = False  # it stops already, and does not begin again
            return
        if self._stopping.is_set():
            log.warning("asked twice to stop; going at once")
            os._exit(EXIT_AT_ONCE)
        self._stopping.set()

    async def stop(self) -> None:
        """Drains the connections, saves each lease's remaining time, closes the data.

        After a failed disk or a broken turn nothing is drained or saved.
        """
        if self.follows_on:
            self._listening.hand_on()
        else:
            self.stop_listening()
        if self.handshakes is not None:
            self.handshakes.close()
        if not self._committer.failed:
            log.info("stopping", extra={"connections": len(self._connections)})
            if self.role.can_hand_over:
                await self._hand_over()
            await self._drain()
        if self.role.follower is not None:
            self.role.follower.stop()
        elif not self._committer.failed:
            await self._save()
        self._break_connections()
        self.services.passwords.close()
        await self.services.snapshots.close()
        self._committer.close()
        if not self.follows_on:  # also when a signal has come while it stopped to follow on
            self._listening.remove_files()
        log.info("stopped", extra={"exit_code": self.exit_code})

    def abandon(self) -> None:
        """Ends everything at once and saves nothing: after a `start` that failed, or as if the process were killed.

        A batch that is on its way to the disk gets there; calls that wait for it are never answered.
        """
        self._abandoned = True
        self.core.turn.halt()
        if self.role.follower is not None:
            self.role.follower.stop()
        self._engine.stop_waiting()
        self.stop_listening()
        if self.handshakes is not None:
            self.handshakes.close()
        self._break_connections()
        self.services.passwords.close()
        self.services.snapshots.abandon()
        self._committer.close()

    async def _hand_over(self) -> None:
        """Lets another server lead first: then calls that are under way here are answered by that one."""
        giving_up = asyncio.get_running_loop().call_later(limits.STOP_ENGINE_S_MAX, self._engine.stop_waiting)
        await asyncio.wait([self.role.hand_over(goes_on=False)], timeout=LAST_COMMIT_S)
        giving_up.cancel()

    async def _drain(self) -> None:
        self.services.lines.stop(errors.SERVER_STOPPED)
        for connection in list(self._connections):
            connection.drain(errors.SERVER_STOPPED.error())
        deadline = asyncio.get_running_loop().time() + DRAIN_S
        while self._connections and not self._committer.failed and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)

    async def _save(self) -> None:
        """Writes the last batch: exact deadlines and the clean mark. Nothing is applied after it."""
        turn = self.core.turn
        turn.halt()
        turn.long_writes.complete()
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + LAST_COMMIT_S
        # On a shared log others will lead: what this one does not save makes leases end later, and loses nothing.
        patience_s = LAST_COMMIT_S if self._engine.answering is None else limits.STOP_ENGINE_S_MAX
        giving_up = loop.call_later(patience_s, self._engine.stop_waiting)
        try:
            await self._save_within(give_up_s)
        finally:
            giving_up.cancel()

    async def _save_within(self, give_up_s: float) -> None:
        turn = self.core.turn
        machine = self.core.machine
        loop = asyncio.get_running_loop()
        while not self._committer.free and not self._committer.failed:
            if loop.time() > give_up_s:
                log.critical("a commit hangs; going without it", extra={"waited_s": LAST_COMMIT_S})
                os._exit(EXIT_DISK_FAILED)  # the engine's thread cannot be stopped
            await asyncio.sleep(0.001)
        if self._committer.failed:
            return
        now_s = turn.now_s()
        machine.checkpoint(now_s)
        batch = machine.journal.seal(now_s)
        try:
            await self._committer.run(lambda: self._engine.commit(batch))
        except EngineError as error:
            if not self._committer.failed:
                self._stop_unanswered(error)

    # --- while it serves ---

    def _stop_unanswered(self, error: BaseException) -> None:
        """Memory is ahead of disk for good, or a bug has half changed it: answers nobody any more, and stops."""
        self.role.settle()
        if isinstance(error, FencedError):
            self._step_down(error)
            return
        if self._abandoned:
            return
        # The engine on a shared log waits for that; what fails it is the disk of its copy.
        what, self.exit_code = "cannot write to disk", EXIT_DISK_FAILED
        if isinstance(error, GivenUpError):
            what = "cannot write to the engine"
        elif isinstance(error, NotAppliedError):
            what = "cannot take in what the leader has written"
        elif isinstance(error, BrokenTurnError):
            what, self.exit_code = "a bug broke off a turn", EXIT_BUG
        elif isinstance(error, TwinError):
            what, self.exit_code = "two servers have one member id", EXIT_HISTORY
        elif isinstance(error, MovedError):
            what, self.exit_code = "the data has moved", EXIT_HISTORY
        elif isinstance(error, HistoryError):
            what, self.exit_code = "the log in the engine is not the one that this server knows", EXIT_HISTORY
        log.critical(f"{what}; stopping without answering", extra={"error": str(error)})
        self._break_connections()
        self._stopping.set()

    def _break_connections(self) -> None:
        for connection in list(self._connections):
            connection.transport.abort()

    def _step_down(self, error: FencedError) -> None:
        """The log went on without this server, and memory may have what the log has not: a new Server follows on.

        Connections break at once, and no call gets an error of its own. Before it in the buffer of its connection may
        stand replies that must never leave; and a lost connection is Unavailable to clients as well.
        """
        if self._stopping.is_set():  # it ends in any case, or follows on already, and has nothing more to save
            return
        self.note_step_down(error)
        self._break_connections()
        self.follows_on = True
        self._stopping.set()

    def note_step_down(self, error: FencedError) -> None:
        """Says that the log went on without this server, and counts it if this one led."""
        connections = len(self._connections)
        if self.core.turn.following:
            text = "the log has forgotten what this server has not read: starting anew from the snapshot in the engine"
            log.warning(text, extra={"reason": str(error), "connections": connections})
            return
        self.remains.step_downs += 1
        log.warning(
            "taken over: dropping all connections and what the log does not have, and following from now on. Calls "
            "that were not answered here were not carried out, unless the log has them",
            extra={
                "reason": str(error),
                "connections": connections,
                "remedy": "find out why this process stood still, or did not reach the engine, for longer than "
                "--cluster-lease",
            },
        )

    def _no_space(self) -> None:
        """A request did not fit into --quota-backend-bytes: the alarm is up now."""
        self.core.metrics.shortages.reached(QUOTA, self.options.quota_backend_bytes)

    def _notify_progress(self, loop: asyncio.AbstractEventLoop) -> None:
        for stream in list(self.core.watch_streams):
            stream.notify_progress()
        loop.call_later(self.options.watch_progress_notify_interval_s, self._notify_progress, loop)


def _engine_of(options: Options) -> Engine:
    """Raises OptionError for an --engine that cannot be."""
    if not options.engine:
        return FileEngine(Path(options.data_dir))
    from lessor.replicated.opening import replicated_engine

    try:
        return replicated_engine(
            Path(options.data_dir),
            options.engine,
            may_lose_commits=options.engine_may_lose_commits,
            lease_s=options.cluster_lease_s,
            client_urls=options.advertise_client_urls,
        )
    except LogRefusedError as error:
        raise OptionError(f"--engine: {error}") from None


def _new_identity(options: Options) -> tuple[int, int]:
    """(cluster_id, member_id) for a directory without data: two stable, non-zero 64-bit numbers."""
    seed = uuid.uuid4().bytes + options.name.encode()
    digest = hashlib.sha256(seed).digest()
    return int.from_bytes(digest[:8], "big") | 1, int.from_bytes(digest[8:16], "big") | 1


def _tame_the_collector() -> None:
    """Keeps the cycle collector from looking at the state again and again.

    Keys and leases hold no circles: the reference count frees them. The collector, left alone, walks all of them
    whenever their number has grown by a quarter. This takes half a second at 600,000 leases, and a third of the time of
    grants and puts. So an object that has outlived two looks is set aside for good. An object that lives long and may
    hold a circle, such as a connection, has to undo the circle when it ends; a test holds that.
    Figures: docs/performance-notes.md.
    """
    gc.freeze()  # without a look first: the loaded state has no garbage, and modules leave only some hundred objects
    gc.set_threshold(*GC_THRESHOLDS)
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)
    gc.enable()


def _set_aside(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


def _forget_the_old() -> None:
    """Frees the state of a server that has ended, which the collector had set aside, before another state is loaded."""
    gc.unfreeze()
    gc.collect()


def _raise_file_limit() -> None:
    """Raises the soft limit of open files to the hard one: each connection is a file, and 1,024 are soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems name a hard limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = files_limit()
    if limit < limits.FILES_FEW:
        log.warning(
            "few open files are allowed: each connection is one",
            extra={"limit": limit, "for-connections-and-data": files_for_clients(limit), "remedy": OPEN_FILES.remedy},
        )


class Signals(Protocol):
    """Takes the signals of the process."""

    def starting(self) -> None:
        """From now on a server starts, without a loop that could take them."""

    def install(self, loop: asyncio.AbstractEventLoop, server: Server) -> None:
        """From now on the loop takes them, for that server."""


def run(options: Options, signals: Signals) -> int:
    """Serves until asked to stop; returns the exit code. Raises DataDirError or OptionError before it serves.

    On a shared log a server that was taken over is followed by a new one here. All of the old one is given up, with its
    loop, and the new one starts as a new process would: from the tables and the log. To mend the old one would be
    quicker, but its memory is ahead of the log, and each of its parts would have to know how to forget; and a timer, a
    call or a stream that was overlooked would show what the log does not have. The listening sockets alone pass on, so
    that the addresses stay ours and clients wait a moment instead of being refused. (A server that hands the lead over
    has nothing to forget, and goes on: role.py.)
    """
    import uvloop

    _raise_file_limit()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    remains = Remains()
    while True:
        # While the state is loaded: looking at all of it again and again would be a third of the time.
        gc.disable()
        server = Server(options, after=remains)
        code = uvloop.run(_serve(server, signals))
        if code or not server.follows_on:
            server.remains.sockets.close()
            return code
        remains = server.remains
        del server
        signals.starting()  # which lets go of it, too
        _forget_the_old()


async def _serve(server: Server, signals: Signals) -> int:
    server.boot()
    signals.install(asyncio.get_running_loop(), server)
    try:
        await server.start()
    except FencedError as error:  # it led for a moment, and stood still in its start
        server.note_step_down(error)
        server.abandon()
        server.follows_on = True
        return 0
    except BaseException:  # a signal during the start cancels this task
        server.abandon()
        raise
    _tame_the_collector()
    supervisor.tell(supervisor.READY)
    _tell_that_it_lives(asyncio.get_running_loop())
    return await server.serve()


def _tell_that_it_lives(loop: asyncio.AbstractEventLoop) -> None:
    """As long as the loop goes round."""
    every_s = supervisor.alive_every_s()
    if every_s is not None:
        supervisor.tell(supervisor.ALIVE)
        loop.call_later(every_s, _tell_that_it_lives, loop)
