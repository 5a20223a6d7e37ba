# SPDX-License-Identifier: Apache-2.0
"""A whole core without sockets: calls of locks and elections on a clock and a disk that the test moves."""

from collections.abc import Iterator
from typing import Any, cast

from google.protobuf.message import Message

from lessor.api.methods import METHODS, Method
from lessor.api.proto import election_pb2, lock_pb2, rpc_pb2
from lessor.base.errors import EtcdError
from lessor.server.loop.committer import Committer
from lessor.server.loop.core import Core, Waiting
from lessor.server.observe.metrics import Metrics
from lessor.server.options import Options
from lessor.server.services import table as services
from tests.unit.server.turn_world import World

_BY_REQUEST = {method.request: method for method in METHODS if method.unary and method.service != "grpc.health"}
OBSERVE = next(method for method in METHODS if method.name == "Observe")


class Call:
    """A unary call; `outcome` is its reply or its EtcdError once that has left the server."""

    token: bytes | None = None
    peer_common_name: str | None = None

    def __init__(self, request: Message) -> None:
        self.method: Method = _BY_REQUEST[type(request)]
        self.request = request
        self.waiting: Waiting | None = None
        self.outcome: Any = None
        self.decided = False  # whether the outcome is on its way
        self.overfull = False

    def encode(self, reply: bytes) -> Any:
        self.decided = True
        return self.method.response.FromString(reply)

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[Any]:
        made = b""
        for piece in pieces:
            made += piece
            yield None
        yield self.encode(made)

    def deliver(self, payload: Any) -> None:
        assert self.outcome is None, "answered twice"
        self.outcome = payload

    def fail(self, error: EtcdError) -> None:
        self.deliver(error)

    def refused(self) -> bool:
        if self.overfull:
            self.outcome = "refused"
        return self.overfull

    def cancel(self) -> None:
        """The peer goes away, as the connections tell it."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.on_gone()

    @property
    def answered(self) -> bool:
        return self.outcome is not None

    @property
    def error(self) -> str | None:
        return self.outcome.message if isinstance(self.outcome, EtcdError) else None


class Stream:
    """A streaming call. `backlog_bytes` is the test's to set; `read` is what the peer does about it."""

    token: bytes | None = None
    peer_common_name: str | None = None

    def __init__(self, world: "LockWorld", request: Message) -> None:
        self.method = OBSERVE
        self.backlog_bytes = 0
        self.sent: list[Any] = []
        self._world = world
        self._drained: set[Any] = set()
        self.handler = world.core.stream_handlers[self.method](world.core, self)
        self.handler.on_messages([request.SerializeToString()])

    def send(self, replies: list[bytes]) -> None:
        self.sent += [self.method.response.FromString(reply) for reply in replies]

    def finish(self, error: EtcdError | None = None) -> None:
        self.handler.on_gone()

    def wake_when_drained(self, stream: Any) -> None:
        self._drained.add(stream)

    def read(self) -> None:
        self.backlog_bytes = 0
        for stream in self._drained:
            self._world.turn.catch_up_later(stream)
        self._drained.clear()

    def take(self) -> list[tuple[bytes, bytes]]:
        """(key, value) of what was sent since the last time."""
        sent, self.sent = self.sent, []
        return [(reply.kv.key, reply.kv.value) for reply in sent]


class LockWorld(World):
    """The parts of a server as main.py puts them together, without the server."""

    def __init__(self) -> None:
        super().__init__()
        disk = cast(Committer, self.disk)
        self.core = Core(Options(), self.machine, self.gate, self.turn, disk, Metrics())
        self.core.unary_handlers = services.UNARY
        self.core.waiting_handlers = services.WAITING
        self.core.stream_handlers = services.STREAMS

    def begin(self, request: Message) -> Call:
        """Sends a request; nothing is durable yet."""
        call = Call(request)
        self.core.unary(call, request)
        return call

    def do(self, request: Message) -> Any:
        """Sends a request and lets the disk follow; returns the outcome, None while the call waits."""
        call = self.begin(request)
        self.settle()
        return call.outcome

    def lease(self, lease_id: int, ttl_s: int = 60) -> int:
        assert lease_id == self.do(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s)).ID
        return lease_id

    def revoke(self, lease_id: int) -> None:
        self.do(rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    def lock(self, name: bytes, lease_id: int) -> Call:
        call = self.begin(lock_pb2.LockRequest(name=name, lease=lease_id))
        self.settle()
        return call

    def unlock(self, key: bytes) -> Any:
        return self.do(lock_pb2.UnlockRequest(key=key))

    def campaign(self, name: bytes, lease_id: int, value: bytes = b"") -> Call:
        call = self.begin(election_pb2.CampaignRequest(name=name, lease=lease_id, value=value))
        self.settle()
        return call

    def observe(self, name: bytes) -> Stream:
        stream = Stream(self, election_pb2.LeaderRequest(name=name))
        self.settle()
        return stream

    def keys(self, prefix: bytes = b"") -> list[bytes]:
        """All keys that begin with `prefix`."""
        return [event.key for event in self.machine.store.range(b"\0", b"") if event.key.startswith(prefix)]

    @property
    def idle(self) -> bool:
        """Whether nobody is kept in mind who waits or observes."""
        return not len(self.core.waiting_lines) and not len(self.machine.hub)
