# SPDX-License-Identifier: Apache-2.0
"""Clients and watchers of a simulated cluster. They note what they see in the form of tests/linear/history.py.

A client makes one call after the other, at a process that it keeps while that answers. A call that was cut off, or not
answered for CALL_S, has an unknown outcome. A watcher goes on where it was, at any process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event
from lessor.base.errors import EtcdError
from lessor.state.watch_changes import event_bytes
from lessor.state.watcher import Watcher
from tests.linear.clients import Answer
from tests.linear.history import ERROR, OK, UNKNOWN, UNSENT, Session
from tests.linear.load import Knowledge, Load

if TYPE_CHECKING:
    from tests.simulation.process import Process, Reply
    from tests.simulation.story import Story

CALL_S = 4.0


class Doing:
    """One call under way, or ended; with all that the simulation knows of it beyond what its client sees."""

    __slots__ = (
        "called_s",
        "client",
        "endpoint",
        "error",
        "landed_s",
        "left_s",
        "outcome",
        "reply",
        "request",
        "returned_s",
        "rows",
        "settled_s",
    )

    def __init__(self, client: Client, request: Any, called_s: float, endpoint: str) -> None:
        self.client = client
        self.request = request
        self.called_s = called_s
        self.endpoint = endpoint
        self.returned_s = 0.0
        self.outcome = ""
        self.reply: Any = None
        self.error: EtcdError | None = None
        self.rows = False  # whether it made rows
        self.landed_s: float | None = None  # when the record with its rows landed
        self.settled_s: float | None = None  # when a process has first shown it
        self.left_s = called_s  # when its answer left the process


class Conn:
    """A connection of a client or a watcher to a process. Ends once."""

    def __init__(self, story: Story, owner: Client | Watching, process: Process) -> None:
        self._story = story
        self.owner = owner
        self.process = process
        self.open = True
        self.watcher: Watcher | None = None
        self.outlet = _Replies(self)
        self._last_s = 0.0  # when the last payload arrives: none overtakes another
        if not process.dead:
            process.conns[self] = None

    def _delay_s(self) -> float:
        return self._story.world.chance.uniform(0.0001, 0.003)

    def send(self, payload: Any) -> None:
        """From the process to the client."""
        world = self._story.world
        self._last_s = max(self._last_s, world.now_s + self._delay_s())
        world.after(self._last_s - world.now_s, self._arrive, payload)

    def _arrive(self, payload: Any) -> None:
        if self.open:
            self.owner.on_payload(self, payload)

    def refuse_later(self, doing: Doing) -> None:
        """The process serves no such call: nothing was done."""
        self._story.world.after(self._delay_s(), self._refuse, doing)

    def _refuse(self, doing: Doing) -> None:
        if self.open and isinstance(self.owner, Client):
            self.owner.refused(doing)

    def drop_later(self) -> None:
        self._story.world.after(self._delay_s(), self._drop)

    def _drop(self) -> None:
        if self.open:
            self.open = False
            self.owner.dropped(self)

    def close(self) -> None:
        """From the client's side."""
        self.open = False
        self.process.conns.pop(self, None)
        if self.watcher is not None and not self.watcher.cancelled and self.watcher.owner is self:
            self.process.machine.hub.remove(self.watcher)


class _Replies:
    """The outlet for the replies of a connection: they wait in the process for its flush."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn

    def deliver(self, payload: Any) -> None:
        self._conn.process.out.append((self._conn, payload))

    def end_now(self, error: EtcdError) -> None:
        raise AssertionError(error)


class Client:
    def __init__(self, story: Story, name: str, load: Load, knowledge: Knowledge) -> None:
        self.story = story
        self.name = name
        self.done: list[Doing] = []
        self.stopping = False
        self._load = load
        self._knowledge = knowledge
        self._conn: Conn | None = None
        self._doing: Doing | None = None
        story.world.after(story.world.chance.uniform(0.0, 0.3), self._next)

    def _next(self) -> None:
        if self.stopping or self._doing is not None:
            return
        world = self.story.world
        conn = self._conn
        if conn is None or not conn.open:
            process = self.story.some_process()
            if process is None:
                world.after(0.1, self._next)
                return
            conn = self._conn = Conn(self.story, self, process)
        doing = self._doing = Doing(self, self._request(), world.now_s, conn.process.name)
        process = conn.process
        world.after(world.chance.uniform(0.0001, 0.003), process.hear, process.on_request, conn, doing)
        world.after(CALL_S, self._late, doing)

    def _request(self) -> Any:
        """In a quiet story mostly a call that changes nothing: then no answer waits for a write."""
        chance = self.story.world.chance
        if not self.story.quiet or chance.random() > 0.95:
            return self._load.next()
        leases = self._knowledge.leases
        if leases and chance.random() < 0.5:
            return rpc.LeaseKeepAliveRequest(ID=chance.choice(leases))
        return rpc.RangeRequest(key=b"r/%d" % chance.randrange(4))

    def on_payload(self, conn: Conn, payload: Reply) -> None:
        doing = payload.doing
        if doing is not self._doing:
            return
        doing.reply, doing.error = payload.reply, payload.error
        self._end(doing, OK if payload.error is None else ERROR)

    def refused(self, doing: Doing) -> None:
        if doing is self._doing:
            self._leave()
            self._end(doing, UNSENT)

    def dropped(self, conn: Conn) -> None:
        if conn is self._conn and self._doing is not None:
            self._end(self._doing, UNKNOWN)

    def _late(self, doing: Doing) -> None:
        if doing is self._doing:
            self._leave()
            self._end(doing, UNKNOWN)

    def _leave(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _end(self, doing: Doing, outcome: str) -> None:
        world = self.story.world
        doing.outcome = outcome
        doing.returned_s = world.now_s
        self.done.append(doing)
        self._doing = None
        self._knowledge.learn(doing.request, Answer(outcome, doing.reply))
        pause_s = world.chance.uniform(0.0, 0.1) if outcome in (OK, ERROR) else world.chance.uniform(0.02, 0.2)
        world.after(pause_s, self._next)

    def give_up(self) -> None:
        """At the end of the run: a call under way has an unknown outcome."""
        self.stopping = True
        if self._doing is not None:
            self._end(self._doing, UNKNOWN)


class Watching:
    """A watcher of all keys, from the first revision on, at one process after the other."""

    def __init__(self, story: Story, name: str) -> None:
        self.story = story
        self.name = name
        self.sessions: list[Session] = []
        self.seen = 1
        self._conn: Conn | None = None
        story.world.after(story.world.chance.uniform(0.0, 0.3), self._begin)

    def _begin(self) -> None:
        world = self.story.world
        process = self.story.some_process()
        if process is None:
            world.after(0.2, self._begin)
            return
        self._conn = conn = Conn(self.story, self, process)
        request = rpc.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=self.seen + 1, prev_kv=True)
        self.sessions.append(Session(f"{self.name} at {process}", request, float("inf"), float("inf")))
        watcher = Watcher(1, b"\0", b"", start_revision=self.seen + 1, prev_kv=True)
        world.after(0.001, process.hear, process.on_watch, conn, watcher)
        world.after(world.chance.uniform(0.5, 6.0), self._move, conn)

    def _move(self, conn: Conn) -> None:
        """Now and then a watcher goes elsewhere by itself."""
        if conn.open and not self.story.calm:
            conn.close()
            self._begin()

    def on_payload(self, conn: Conn, payload: Any) -> None:
        session, now_s = self.sessions[-1], self.story.world.now_s
        if isinstance(payload, int):
            session.created_s, session.created_revision = now_s, payload
            return
        events = [Event.FromString(event_bytes(event, previous)) for event, previous in payload]
        session.responses.append((now_s, list(events)))
        self.seen = max(self.seen, events[-1].kv.mod_revision)

    def dropped(self, conn: Conn) -> None:
        if conn is self._conn:
            self.story.world.after(self.story.world.chance.uniform(0.0, 0.1), self._begin)
