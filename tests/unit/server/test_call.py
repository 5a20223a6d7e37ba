# SPDX-License-Identifier: Apache-2.0
"""The life of a call is one, whichever codec it came through: every test here runs over gRPC and over JSON.

The calls are the real ones of transport/, on a clock and a disk that the test moves; what they send ends up in a list.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import lock_pb2, rpc_pb2
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_codec
from lessor.server.loop import call as call_module
from lessor.server.loop.call import StreamCall, UnaryCall
from lessor.server.loop.held import Held
from lessor.server.observe.metrics import CallCounts
from lessor.server.transport.grpc_calls import GrpcStream, GrpcUnary, Route
from lessor.server.transport.http_calls import JsonStream, JsonUnary
from lessor.state.watcher import Watcher
from lessor.wire import grpc
from tests.unit.server.lock_world import LockWorld

PUT = BY_PATH["/etcdserverpb.KV/Put"]
RANGE = BY_PATH["/etcdserverpb.KV/Range"]
LOCK = BY_PATH["/v3lockpb.Lock/Lock"]
KEEP_ALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
LATE = (Code.DEADLINE_EXCEEDED, errors.DEADLINE_EXCEEDED.message)

Outcome = tuple[Code, str]


class Peer:
    """The other end of one call. `outcomes`: a (code, error text) for each end that is sent to it."""

    def __init__(self, world: LockWorld) -> None:
        self.world = world
        self.outcomes: list[Outcome] = []
        self.replies = 0
        self.defers = False  # whether requests wait until the peer has taken replies
        self.turn_comes: Callable[[], None] | None = None  # for the request that does
        self.gave_up = 0  # requests that do so no more
        self.held = Held()

    @property
    def open_ended(self) -> bool:
        return False

    def on_gone(self) -> None:
        self.gave_up += 1

    def unary(self, request: Any, timeout_s: float | None = None) -> UnaryCall:
        """Sends a whole request."""
        raise NotImplementedError

    def stream(self) -> StreamCall:
        """Begins a stream of keepalives."""
        raise NotImplementedError

    def send(self, call: StreamCall, data: Any) -> None:
        """Sends a request of the stream, or garbage (None)."""
        raise NotImplementedError

    def counts(self, method: Any) -> CallCounts:
        return self.world.core.metrics.calls(method, b"test")

    def handled(self, method: Any) -> dict[Code, int]:
        return {
            code: count.n for (of, code), count in self.world.core.metrics.handled.items() if of is method and count.n
        }


class GrpcPeer(Peer):
    """What an HTTP/2 connection is to its calls."""

    message_bytes_max = 1_000_000
    peer_common_name = None
    backlog_bytes = 0

    def defer(self, _stream: Any, _size_bytes: int, go_on: Callable[[], None]) -> Any:
        self.turn_comes = go_on
        return self

    def keep_count(self, _stream: Any) -> None: ...

    def __init__(self, world: LockWorld) -> None:
        super().__init__(world)
        self.core = world.core
        self.streaming: set[Any] = set()

    def deframer(self, _stream: Any) -> grpc.Deframer:
        return grpc.Deframer(self.message_bytes_max, None)

    def respond(self, _stream: Any, _framed: bytes) -> None:
        self.outcomes.append((Code.OK, ""))

    def send_replies(self, _stream: Any, replies: list[bytes], start: bool) -> None:
        self.replies += len(replies)

    def end(self, _stream: Any, error: EtcdError | None, started: bool) -> None:
        self.outcomes.append((Code.OK, "") if error is None else (error.code, error.message))

    def unary(self, request: Any, timeout_s: float | None = None) -> UnaryCall:
        method = next(method for method in (PUT, RANGE, LOCK) if method.request is type(request))
        call = GrpcUnary(cast(Any, self), cast(Any, SimpleNamespace(head=None)), Route(self.counts(method)))
        if timeout_s is not None:
            call.expire_after(timeout_s)
        self.before_serving()
        call.on_whole(grpc.frame(request.SerializeToString()))
        return call

    def before_serving(self) -> None:
        """For tests that let time pass between the head of a request and its body."""

    def stream(self) -> StreamCall:
        output = SimpleNamespace(**{name: getattr(self, name) for name in ("core", "deframer", "end", "streaming")})
        output.step_messages = 1_000
        output.send = self.send_replies
        return GrpcStream(cast(Any, output), cast(Any, SimpleNamespace(head=None)), Route(self.counts(KEEP_ALIVE)))

    def send(self, call: StreamCall, data: Any) -> None:
        assert isinstance(call, GrpcStream)
        call.on_data(grpc.frame(b"\xff" if data is None else data.SerializeToString()))


class JsonPeer(Peer):
    """What an HTTP request is to its call."""

    path = query = ""
    method = "POST"
    backlog_bytes = 0

    def header(self, _name: bytes, /) -> bytes | None:
        return None

    def reply(self, status: int, _headers: Any, body: bytes) -> None:
        said = json.loads(body)
        code = Code(said["code"]) if status != 200 else Code.OK
        self.outcomes.append((code, said.get("message", "") if code else ""))

    def defer(self, _size_bytes: int, go_on: Callable[[], None], wait: Callable[[Any], None]) -> bool:
        if self.defers:
            self.turn_comes = go_on
            wait(self)
        return self.defers

    def hold_up(self, waits: bool) -> None:
        self.held_up = waits

    def start(self, _status: int, _headers: Any) -> None: ...

    def write(self, data: bytes) -> None:
        said = json.loads(data)
        if "error" in said:
            self.outcomes.append((Code(said["error"]["code"]), said["error"]["message"]))
        else:
            self.replies += 1

    def finish(self) -> None:
        if not self.outcomes:
            self.outcomes.append((Code.OK, ""))

    def unary(self, request: Any, timeout_s: float | None = None) -> UnaryCall:
        method = next(method for method in (PUT, RANGE, LOCK) if method.request is type(request))
        call = JsonUnary(self.world.core, cast(Any, self), self.counts(method), timeout_s)
        self.before_serving()
        call.on_body(json_codec.encode(request))
        call.on_end()
        return call

    def before_serving(self) -> None:
        """As GrpcPeer's."""

    def stream(self) -> StreamCall:
        return JsonStream(self.world.core, cast(Any, self), self.counts(KEEP_ALIVE))

    def send(self, call: StreamCall, data: Any) -> None:
        assert isinstance(call, JsonStream)
        call.on_body(b"}" if data is None else json_codec.encode(data))


@pytest.fixture(params=[GrpcPeer, JsonPeer], ids=["gRPC", "JSON"])
def peer(request: pytest.FixtureRequest) -> Iterator[Any]:
    async def no_loop() -> None: ...

    world = LockWorld()
    made: Peer = request.param(world)
    # Deadlines of calls that wait are timers of the running loop: here they are timers of the test's.
    running = SimpleNamespace(get_running_loop=lambda: world.loop, TimerHandle=asyncio.TimerHandle)
    with mock.patch.object(call_module, "asyncio", running):
        yield made


def later(peer: Any, seconds: float) -> None:
    peer.world.loop.now_s += seconds


@pytest.mark.parametrize("passed_s", [1.0, 1.5], ids=["at the deadline exactly", "after it"])
def test_a_request_whose_deadline_has_passed_when_it_is_read_is_not_carried_out(peer: Any, passed_s: float) -> None:
    peer.before_serving = lambda: later(peer, passed_s)
    peer.unary(rpc_pb2.PutRequest(key=b"k"), timeout_s=1.0)
    peer.world.settle()
    assert peer.outcomes == [LATE]
    assert peer.world.keys() == []
    assert peer.handled(PUT) == {Code.DEADLINE_EXCEEDED: 1}


def test_a_request_that_is_read_before_its_deadline_is_carried_out(peer: Any) -> None:
    peer.before_serving = lambda: later(peer, 0.999)
    peer.unary(rpc_pb2.PutRequest(key=b"k"), timeout_s=1.0)
    peer.world.settle()
    assert peer.outcomes == [(Code.OK, "")]
    assert peer.world.keys() == [b"k"]


@pytest.mark.parametrize(("waited_s", "outcome"), [(0.999, (Code.OK, "")), (1.0, LATE), (2.0, LATE)])
def test_a_reply_that_is_not_out_before_the_deadline_is_not_sent(peer: Any, waited_s: float, outcome: Outcome) -> None:
    peer.unary(rpc_pb2.PutRequest(key=b"k"), timeout_s=1.0)
    peer.world.loop.settle()
    assert peer.outcomes == []
    later(peer, waited_s)
    peer.world.disk.succeed()
    assert peer.outcomes == [outcome]
    assert peer.world.keys() == [b"k"]
    assert peer.handled(PUT) == {outcome[0]: 1}


@pytest.mark.parametrize("waited_s", [1.0, 1.5])
def test_at_the_deadline_an_error_is_late_as_a_reply_is(peer: Any, waited_s: float) -> None:
    peer.world.begin(rpc_pb2.PutRequest(key=b"other"))
    peer.unary(rpc_pb2.RangeRequest(key=b"k", revision=99), timeout_s=1.0)
    peer.world.loop.settle()
    assert peer.outcomes == []
    later(peer, waited_s)
    peer.world.disk.succeed()
    assert peer.outcomes == [LATE]


def test_a_call_that_waits_ends_at_its_deadline_and_gives_its_place_up(peer: Any) -> None:
    world = peer.world
    world.lease(0xA), world.lease(0xB)
    world.lock(b"l", 0xA)
    peer.unary(lock_pb2.LockRequest(name=b"l", lease=0xB), timeout_s=1.0)
    world.settle()
    assert world.keys() == [b"l/a", b"l/b"]
    later(peer, 1.0)
    world.settle()
    assert peer.outcomes == [LATE]
    assert world.keys() == [b"l/a"]
    assert peer.handled(LOCK) == {Code.OK: 1, Code.DEADLINE_EXCEEDED: 1}  # the first one is the other holder's


def test_a_peer_that_goes_away_ends_its_call_once(peer: Any) -> None:
    call = peer.unary(rpc_pb2.PutRequest(key=b"k"))
    call.gone()
    call.gone()
    call.end_now(errors.CORRUPT.error())
    peer.world.settle()
    assert peer.outcomes == []
    assert peer.handled(PUT) == {Code.CANCELED: 1}
    assert peer.world.keys() == [b"k"]
    assert peer.held.size_bytes == 0


def test_a_reply_counts_while_it_waits_at_the_gate(peer: Any) -> None:
    peer.unary(rpc_pb2.PutRequest(key=b"k"))
    peer.world.loop.settle()
    assert peer.held.size_bytes > 0
    peer.world.settle()
    assert (peer.held.size_bytes, peer.outcomes) == (0, [(Code.OK, "")])


def test_a_call_that_has_ended_is_not_ended_again(peer: Any) -> None:
    call = peer.unary(rpc_pb2.PutRequest(key=b"k"))
    peer.world.settle()
    call.end_now(errors.CORRUPT.error())
    call.gone()
    call.deliver(errors.CORRUPT.error())
    assert peer.outcomes == [(Code.OK, "")]
    assert peer.handled(PUT) == {Code.OK: 1}


def test_a_bug_is_answered_and_counted_once(peer: Any) -> None:
    with mock.patch.object(type(peer.world.machine), "apply_in_pieces", side_effect=ValueError("a bug")):
        peer.unary(rpc_pb2.RangeRequest(key=b"k"))
    peer.world.settle()
    assert peer.handled(RANGE) == {Code.INTERNAL: 1}
    assert [code for code, _ in peer.outcomes] == [Code.INTERNAL]


def deferred(peer: Any, timeout_s: float | None = None) -> UnaryCall:
    """A put that waits until the peer has taken replies."""
    peer.defers = True
    call: UnaryCall = peer.unary(rpc_pb2.PutRequest(key=b"k"), timeout_s)
    peer.defers = False
    return call


@pytest.mark.parametrize("timeout_s", [None, 1.0])
def test_a_request_that_waits_for_its_peer_is_carried_out_when_its_turn_comes(
    peer: Any, timeout_s: float | None
) -> None:
    deferred(peer, timeout_s)
    later(peer, 0.9)
    peer.world.settle()
    assert peer.world.keys() == peer.outcomes == []
    peer.turn_comes()
    peer.world.settle()
    later(peer, 5.0)  # its deadline ends nothing any more
    peer.world.settle()
    assert peer.world.keys() == [b"k"]
    assert peer.outcomes == [(Code.OK, "")]
    assert peer.gave_up == 0
    assert peer.handled(PUT) == {Code.OK: 1}


def test_a_request_that_waits_for_its_peer_ends_at_its_deadline_and_is_not_carried_out(peer: Any) -> None:
    deferred(peer, 1.0)
    later(peer, 1.0)
    peer.world.settle()
    assert peer.outcomes == [LATE]
    assert peer.gave_up == 1
    assert peer.world.keys() == []
    assert peer.handled(PUT) == {Code.DEADLINE_EXCEEDED: 1}


def test_a_request_that_waits_for_its_peer_is_given_up_with_it(peer: Any) -> None:
    call = deferred(peer)
    call.gone()
    call.gone()
    peer.world.settle()
    assert (peer.outcomes, peer.gave_up) == ([], 1)
    assert peer.handled(PUT) == {Code.CANCELED: 1}


def test_the_end_of_a_stream_follows_the_replies_to_its_earlier_requests(peer: Any) -> None:
    world = peer.world
    world.begin(rpc_pb2.LeaseGrantRequest(ID=7, TTL=60))
    call = peer.stream()
    peer.send(call, rpc_pb2.LeaseKeepAliveRequest(ID=7))
    peer.send(call, None)
    peer.send(call, rpc_pb2.LeaseKeepAliveRequest(ID=7))
    world.loop.settle()
    assert (peer.replies, peer.outcomes) == (0, [])
    world.settle()
    assert peer.replies == 1
    assert [code for code, _ in peer.outcomes] in ([Code.INTERNAL], [Code.INVALID_ARGUMENT])
    assert sum(peer.handled(KEEP_ALIVE).values()) == 1


class Owner:
    """Notes when its watcher sees a change."""

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def on_changes(self, _watchers: Any, _changes: Any) -> None:
        self._order.append("event")


def test_the_end_of_a_stream_does_not_overtake_the_event_of_a_change_before_it(peer: Any) -> None:
    world = peer.world
    order: list[str] = []
    world.machine.hub.add(Watcher(0, b"k", owner=cast(Any, Owner(order))))
    call = peer.stream()
    world.machine.apply(rpc_pb2.PutRequest(key=b"k"), world.turn.now_s())  # in this turn, and not published yet
    with mock.patch.object(type(call), "_send_end", side_effect=lambda error: order.append("end")):
        call.end_in_order(errors.CORRUPT.error())
        world.turn.schedule()
        world.settle()
    assert order == ["event", "end"]


def test_a_stream_that_has_ended_sends_nothing_and_is_counted_once(peer: Any) -> None:
    call = peer.stream()
    call.finish()
    call.finish(errors.CORRUPT.error())
    call.gone()
    call.send([b""])
    assert peer.outcomes == [(Code.OK, "")]
    assert peer.replies == 0
    assert peer.handled(KEEP_ALIVE) == {Code.OK: 1}
    gone = peer.stream()
    gone.gone()
    gone.finish()
    assert peer.handled(KEEP_ALIVE) == {Code.OK: 1, Code.CANCELED: 1}
