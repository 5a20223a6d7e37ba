# SPDX-License-Identifier: Apache-2.0
"""Runs clients and watchers against the servers of a nemesis, and returns the history.

    server = OneServer(LessorProcess(tmp_path / "data"))
    history = run(server, kills=5, seed=1)
    assert not findings(history)

Theory of operation. Each client is a thread that makes one call after the other, over gRPC or JSON by turns, at an
endpoint that it keeps while that answers. Each watcher is a thread that holds one watch after the other. The main
thread lets them run for a random time, strikes, and so on. Then the clients stop, and the leases are left to end. Each
watched prefix gets a last key, before the last kill and after it again. The watchers are given time to see these, and
the history is read from the server. So an event that a watcher saw and a kill took back is not in the history.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event
from tests.linear.clients import Answer, GrpcTransport, JsonTransport, Transport
from tests.linear.history import OK, UNKNOWN, UNSENT, History, Op, Session
from tests.linear.load import Knowledge, Load
from tests.linear.nemesis import Nemesis
from tests.model import in_range

CLIENTS, WATCHERS = 6, 5
Make = Callable[[str], Transport]
TRANSPORTS: tuple[Make, ...] = (GrpcTransport, JsonTransport)
END_S_MAX = 10.0  # for a watcher to see what there is
LEASES_S_MAX = 15.0
READ_S_MAX = 60.0  # for the history at the end
SURELY_S_MAX = 30.0
LONG_LEASE_S = 30  # of those that live longer the end is not waited for
ALL: dict[str, Any] = {"key": b"\0", "range_end": b"\0"}
LAST_KEYS = (b"l/end", b"p/end", b"z/end")  # one below each prefix that is watched, the last for those that watch all


class Client:
    """Makes calls until it is told to stop, and notes them."""

    def __init__(self, name: str, endpoints: list[str], make: Make, stop: threading.Event, first: int = 0) -> None:
        """`first`: the number of the endpoint to begin with, counted around."""
        self.name = name
        self.ops: list[Op] = []
        self._endpoints = endpoints
        self._make = make
        self._stop = stop
        self._transport = make(endpoints[first % len(endpoints)])

    def run(self, load: Load, knowledge: Knowledge, chance: random.Random) -> None:
        while not self._stop.is_set():
            request = load.next()
            answer = self.call(request)
            knowledge.learn(request, answer)
            if answer.outcome in (UNSENT, UNKNOWN):
                self._transport.close()
                self._transport = self._make(chance.choice(self._endpoints))
                self._stop.wait(0.05)
            elif chance.random() < 0.3:
                self._stop.wait(chance.uniform(0.0, 0.004))
        self._transport.close()

    def call(self, request: Any) -> Answer:
        called_s = time.monotonic()
        answer = self._transport.call(request)
        self.ops.append(
            Op(0, self.name, self._transport.endpoint, request, called_s, time.monotonic(), answer.outcome,
               answer.reply, answer.code, answer.text, silent_s=answer.silent_s)
        )  # fmt: skip
        return answer

    def surely(self, request: Any) -> Any:
        """The reply; calls again until there is one. RuntimeError when there is none for SURELY_S_MAX."""
        give_up_s = time.monotonic() + SURELY_S_MAX
        while time.monotonic() < give_up_s:
            answer = self.call(request)
            if answer.outcome == OK:
                return answer.reply
            if answer.outcome in (UNSENT, UNKNOWN) and len(self._endpoints) > 1:
                self._transport.close()
                other = self._endpoints.index(self._transport.endpoint) + 1
                self._transport = self._make(self._endpoints[other % len(self._endpoints)])
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} is not served: {self.ops[-1]}")

    def close(self) -> None:
        self._transport.close()


class Watcher:
    """Holds a watch, and another one when it is cut off. `goes_on(session)`: where the next one starts."""

    def __init__(
        self,
        name: str,
        endpoints: list[str],
        make: Make,
        goes_on: Callable[[Session | None], int],
        stop: threading.Event,
        **request: Any,
    ) -> None:
        self.name = name
        self.sessions: list[Session] = []
        self._endpoints = endpoints
        self._make = make
        self._goes_on = goes_on
        self._stop = stop
        self._request = request
        self._transport: Transport | None = None

    def run(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            start = self._goes_on(self.sessions[-1] if self.sessions else None)
            request = rpc.WatchCreateRequest(**self._request, start_revision=start)
            session = Session(self.name, request, time.monotonic())
            self._transport = self._make(chance.choice(self._endpoints))
            self._hold(session)
            self._transport.close()
            self._stop.wait(0.02)

    def _hold(self, session: Session) -> None:
        assert self._transport is not None
        for response in self._transport.watch(session.request):
            now_s = time.monotonic()
            if response.created:
                session.created_s, session.created_revision = now_s, response.header.revision
                self.sessions.append(session)
            if response.canceled:
                session.canceled = response.cancel_reason or "without a reason"
                return
            if response.events:
                session.responses.append((now_s, list(response.events)))
            elif not response.created:
                session.responses.append((now_s, response.header.revision))

    def has_seen(self, goals: dict[bytes, int]) -> bool:
        """Whether it was sent all that it watches of these last keys and their revisions."""
        if not self.sessions:
            return False
        session = self.sessions[-1]
        request = session.request
        first = request.start_revision or session.created_revision + 1
        due = [at for key, at in goals.items() if at >= first and in_range(key, request.key, request.range_end)]
        return session.newest_revision >= max(due, default=0)

    def end(self, future: "Future[None]") -> None:
        """Ends its thread, which was told to stop, and marks its last session."""
        while not wait([future], 0.1).done:
            if self._transport is not None:
                self._transport.interrupt()
        future.result()
        if self.sessions:
            self.sessions[-1].last = True


def _onward(session: Session | None) -> int:
    if session is None:
        return 1
    return session.newest_revision + 1 if session.newest_revision else session.request.start_revision


def _again(session: Session | None) -> int:
    return max(_onward(session) - 40, 1)


def _from_now(session: Session | None) -> int:
    return 0


def _clients(endpoints: list[str], stop: threading.Event) -> list[Client]:
    return [Client(f"c{n}", endpoints, TRANSPORTS[n % len(TRANSPORTS)], stop, n) for n in range(CLIENTS)]


def _watchers(endpoints: list[str], stop: threading.Event) -> list[Watcher]:
    leases = {"key": b"l/", "range_end": b"l0"}
    pairs = {"key": b"p", "range_end": b"q"}
    return [
        Watcher("gRPC, all", endpoints, GrpcTransport, _onward, stop, **ALL, prev_kv=True, progress_notify=True),
        Watcher("JSON, all", endpoints, JsonTransport, _onward, stop, **ALL, prev_kv=True),
        Watcher("gRPC, again", endpoints, GrpcTransport, _again, stop, **ALL, prev_kv=True),
        Watcher("gRPC, leases from now", endpoints, GrpcTransport, _from_now, stop, **leases, prev_kv=True),
        Watcher("JSON, pairs", endpoints, JsonTransport, _onward, stop, **pairs),
    ]


def run(
    nemesis: Nemesis, kills: int, seed: int, *, load_s: tuple[float, float] = (0.05, 0.6), end_s: float = END_S_MAX
) -> History:
    """Starts the servers, kills `kills` times, and returns what was seen. load_s: how long load runs between kills.

    end_s: how long watchers are given at the end to see what there is.
    """
    chance = random.Random(seed)
    stop, stop_watching = threading.Event(), threading.Event()
    with ThreadPoolExecutor(CLIENTS + WATCHERS) as pool:
        try:
            nemesis.start()
            knowledge = Knowledge()
            clients = _clients(nemesis.endpoints, stop)
            watchers = _watchers(nemesis.endpoints, stop_watching)
            watching = [pool.submit(watcher.run, random.Random(chance.random())) for watcher in watchers]
            calling = []
            for client in clients:
                seeded = random.Random(chance.random())
                calling.append(pool.submit(client.run, Load(client.name, seeded, knowledge), knowledge, seeded))
            for number in range(kills - 1):
                # Now and then leases have the time to end while nobody kills.
                time.sleep(2.5 if number % 10 == 4 else chance.uniform(*load_s))
                nemesis.strike(chance)
            time.sleep(chance.uniform(*load_s))
            stop.set()
            for future in calling:
                future.result()
            history = _end(nemesis, clients, watchers, chance, end_s)
            stop_watching.set()
            for watcher, future in zip(watchers, watching, strict=True):
                watcher.end(future)
            history.sessions = [session for watcher in watchers for session in watcher.sessions]
            return history
        finally:
            stop.set()
            stop_watching.set()
            nemesis.stop()


def _end(
    nemesis: Nemesis, clients: list[Client], watchers: list[Watcher], chance: random.Random, end_s: float
) -> History:
    """Lets the leases end, kills once more, waits for the watchers and reads the history."""
    history = History()
    last = Client("last", nemesis.endpoints, GrpcTransport, threading.Event())
    short = {op.request.ID for client in clients for op in client.ops if _is_short(op.request)}
    _wait(lambda: not short & {each.ID for each in last.surely(rpc.LeaseLeasesRequest()).leases}, LEASES_S_MAX)
    for again in (False, True):
        ends = [last.surely(rpc.PutRequest(key=key, value=b"%d" % again)) for key in LAST_KEYS]
        if not again:
            nemesis.strike(chance)
    goals = dict(zip(LAST_KEYS, (end.header.revision for end in ends), strict=True))
    _wait(lambda: all(watcher.has_seen(goals) for watcher in watchers), end_s)
    history.keys = list(last.surely(rpc.RangeRequest(**ALL)).kvs)
    history.events = _all_events(nemesis.serving, goals[LAST_KEYS[-1]])
    last.close()
    history.ops = sorted((op for client in (*clients, last) for op in client.ops), key=lambda op: op.called_s)
    for number, op in enumerate(history.ops):
        op.number = number
        op.settled_s = nemesis.settled_s(op.endpoint, op.called_s)
    history.disturbed = nemesis.disturbed
    return history


def _is_short(request: Any) -> bool:
    return isinstance(request, rpc.LeaseGrantRequest) and request.TTL < LONG_LEASE_S


def _wait(ready: Callable[[], bool], seconds: float) -> None:
    """Until it is, or that time has passed: the checks say what is missing then."""
    give_up_s = time.monotonic() + seconds
    while not ready() and time.monotonic() < give_up_s:
        time.sleep(0.05)


def _all_events(endpoint: str, newest: int) -> list[Event]:
    """The events from the first revision to `newest`, as a watch is sent them; fewer where they do not come."""
    transport = GrpcTransport(endpoint)
    timer = threading.Timer(READ_S_MAX, transport.close)
    timer.start()
    events: list[Event] = []
    for response in transport.watch(rpc.WatchCreateRequest(**ALL, start_revision=1, prev_kv=True)):
        events += response.events
        if events and events[-1].kv.mod_revision >= newest:
            break
    timer.cancel()
    timer.join()
    transport.close()
    return events
