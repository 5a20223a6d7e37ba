# SPDX-License-Identifier: Apache-2.0
"""A whole core without sockets: calls of locks and elections on a clock and a disk that the test moves."""

from collections.abc import Callable, Iterator
from typing import Any, cast

from google.protobuf.message import Message

from lessor.api.methods import METHODS, Method
from lessor.api.proto import election_pb2, lock_pb2, rpc_pb2
from lessor.base.errors import EtcdError
from lessor.server.loop.call import StreamCall, UnaryCall
from lessor.server.loop.committer import Committer
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.observe.metrics import Metrics
from lessor.server.options import Options
from lessor.server.services.table import Services
from tests.unit.server.turn_world import World

_BY_REQUEST = {method.request: method for method in METHODS if method.unary and method.service != "grpc.health"}
OBSERVE = next(method for method in METHODS if method.name == "Observe")


class Call(UnaryCall):
    """A unary call; `outcome` is its reply or its EtcdError once that has left the server."""

    __slots__ = ("__weakref__", "decided", "go_on", "is_overfull", "outcome", "request")

    token: bytes | None = None
    peer_common_name: str | None = None

    def __init__(self, core: Core, request: Message, held: Held | None = None) -> None:
        super().__init__(core, core.metrics.calls(_BY_REQUEST[type(request)], b"test"), held or Held())
        self.request = request
        self.outcome: Any = None
        self.decided = False  # whether the outcome is on its way
        self.is_overfull = False
        self.go_on: Callable[[], None] | None = None  # the peer has taken replies

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        if self.is_overfull:
            self.go_on = go_on
        return self.is_overfull

    def encode(self, reply: bytes) -> bytes:
        self.decided = True
        return reply

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[Any]:
        made = b""
        for piece in pieces:
            made += piece
            yield None
        yield self.encode(made)

    def _send(self, payload: bytes) -> None:
        self._end(self.method.response.FromString(payload))

    def _send_error(self, error: EtcdError) -> None:
        self._end(error)

    def _end(self, outcome: Any) -> None:
        assert self.outcome is None, "answered twice"
        self.outcome = outcome

    def _let_go(self) -> None: ...

    @property
    def answered(self) -> bool:
        return self.outcome is not None

    @property
    def error(self) -> str | None:
        return self.outcome.message if isinstance(self.outcome, EtcdError) else None


class Stream(StreamCall):
    """A streaming call. `to_take_bytes` is the test's to set; `read` is the peer's taking of all of it."""

    __slots__ = ("_drained", "_world", "sent", "to_take_bytes")

    token: bytes | None = None
    peer_common_name: str | None = None

    def __init__(self, world: "LockWorld", request: Message, method: Method = OBSERVE) -> None:
        self.to_take_bytes = 0
        self.sent: list[Any] = []
        self._world = world
        self._drained: set[Any] = set()
        super().__init__(world.core, world.core.metrics.calls(method, b"test"))
        self.take_requests(request)

    def take_requests(self, *requests: Message) -> None:
        self.take([request.SerializeToString() for request in requests])

    @property
    def held(self) -> Held:
        return self._world.held

    @property
    def backlog_bytes(self) -> int:
        return self.to_take_bytes

    def _send(self, replies: list[bytes]) -> None:
        self.sent += [self.method.response.FromString(reply) for reply in replies]

    def _send_end(self, error: EtcdError | None) -> None: ...

    def _let_go(self) -> None: ...

    def wake_when_drained(self, stream: Any) -> None:
        self._drained.add(stream)

    def read(self) -> None:
        self.to_take_bytes = 0
        for stream in self._drained:
            self._world.turn.catch_up_later(stream)
        self._drained.clear()

    def shown(self) -> list[tuple[bytes, bytes]]:
        """(key, value) of what was sent since the last time."""
        sent, self.sent = self.sent, []
        return [(reply.kv.key, reply.kv.value) for reply in sent]


class LockWorld(World):
    """The parts of a server as main.py puts them together, without the server."""

    def __init__(self) -> None:
        super().__init__()
        disk = cast(Committer, self.disk)
        options, unused = Options(), cast(Any, None)
        self.services = Services(options, self.machine, self.turn, unused, unused, unused)
        handlers = self.services.handlers()
        self.core = Core(options, self.machine, self.gate, self.turn, disk, Metrics(), unused, unused, handlers)
        self.held = Held()  # of a connection with several calls

    def begin(self, request: Message, held: Held | None = None) -> Call:
        """Sends a request; nothing is durable yet. `held`: of its connection; each call has its own otherwise."""
        call = Call(self.core, request, held)
        call.serve(request)
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
        return not len(self.services.lines) and not self.machine.hub.count
