# SPDX-License-Identifier: Apache-2.0
"""Calls of one read that take long: a step of HTTP/2 ends behind the one that uses it up. Nothing behind it is lost."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.server.transport import h2_session
from lessor.wire import frames, grpc
from lessor.wire.h2 import encode_headers
from tests.attack.floods import WATCH, WIDE, block, data, headers
from tests.unit.server.connection_world import Accepted, run

DEAR_S = 0.05  # what a call takes that goes over many keys
CALLS = 40
STEPS_MAX = 2  # of the turn in which the read comes; then one a turn
PUT = block("/etcdserverpb.KV/Put")
JSON_PUT = encode_headers(
    [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/v3/kv/put"), (b"content-type", b"application/json")]
)


def body(number: int) -> bytes:
    return grpc.frame(rpc_pb2.PutRequest(key=b"%d" % number).SerializeToString())


def whole(number: int) -> bytes:
    return headers(2 * number + 1, PUT) + data(2 * number + 1, body(number), end=True)


def in_two(number: int) -> bytes:
    at = 2 * number + 1
    return headers(at, PUT) + data(at, body(number)[:4]) + data(at, body(number)[4:]) + data(at, b"", end=True)


def without_an_end(number: int) -> bytes:
    return headers(2 * number + 1, PUT) + data(2 * number + 1, body(number))


def in_json(number: int) -> bytes:
    text = b'{"key":"%b"}' % (b"%04d" % number)
    return headers(2 * number + 1, JSON_PUT) + data(2 * number + 1, text, end=True)


FORMS = pytest.mark.parametrize("form", [whole, in_two, without_an_end, in_json])


class World(Accepted):
    """A connection on which each unary call takes `call_s`."""

    def __init__(self, call_s: float = DEAR_S) -> None:
        super().__init__()
        self.asked: list[bytes] = []
        self.streams = 0

        def unary(_core: Any, request: Any) -> bytes:
            self.asked.append(request.key)
            self.turn.time_s += call_s
            return b""

        core = cast(Any, self.connection.core)
        core.turn.forget = lambda connection: None
        core.unary_handlers = dict.fromkeys(BY_PATH.values(), unary)
        core.stream_handlers = dict.fromkeys(BY_PATH.values(), self._streaming)
        self.receive(WIDE)
        self.turn.end()
        self.transport.written = b""

    def _streaming(self, core: Any, call: Any) -> Any:
        self.streams += 1
        return _Silent()

    @property
    def session(self) -> h2_session.H2Session:
        session = self.connection._session
        assert isinstance(session, h2_session.H2Session)
        return session

    def finish(self) -> list[int]:
        """The number of calls in this turn and in each of those that it takes to handle the rest."""
        counts = [len(self.asked)]
        while self.session.unread:
            before = len(self.asked)
            self.turn.end()
            counts.append(len(self.asked) - before)
        self.turn.end()
        return counts

    def ended(self) -> int:
        return self.transport.written.count(grpc.TRAILERS_OK)


class _Silent:
    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_requests_end(self) -> None: ...

    def on_over(self) -> None: ...


def steps(test: Callable[[World], None], call_s: float = DEAR_S) -> None:
    async def body() -> None:
        test(World(call_s))

    run(body)


@FORMS
def test_a_turn_takes_one_call_that_uses_it_up(form: Callable[[int], bytes]) -> None:
    def test(world: World) -> None:
        world.receive(b"".join(map(form, range(CALLS))))
        assert not world.transport.reading
        counts = world.finish()
        assert max(counts) <= STEPS_MAX
        assert len(counts) >= CALLS - 1
        assert sum(counts) == CALLS
        assert len(set(world.asked)) == CALLS
        assert world.asked == sorted(world.asked, key=lambda key: (len(key), key))
        assert world.transport.reading

    steps(test)


@FORMS
def test_calls_that_do_little_are_one_step(form: Callable[[int], bytes]) -> None:
    def test(world: World) -> None:
        world.receive(b"".join(map(form, range(CALLS))))
        assert len(world.asked) == CALLS
        assert not world.session.unread

    steps(test, limits.H2_STEP_S / CALLS)


def test_a_call_alone_does_not_look_at_the_clock_behind_it() -> None:
    def test(world: World) -> None:
        world.turn.step_s = 1.0
        before_s = world.turn.time_s
        world.session.receive(whole(0))
        assert world.asked == [b"0"]
        assert world.turn.time_s - before_s == 1.0

    steps(test, 0.0)


def test_more_bytes_come_behind_those_that_wait() -> None:
    def test(world: World) -> None:
        world.receive(b"".join(map(whole, range(5))))
        world.receive(b"".join(map(whole, range(5, 10))))  # the transport had read them before it was told to stop
        world.finish()
        assert world.asked == [b"%d" % number for number in range(10)]
        assert world.ended() == 10

    steps(test)


def test_the_rest_of_a_body_and_its_reset_wait_behind_each_other() -> None:
    def test(world: World) -> None:
        cut = data(1, body(0)[:4]) + whole(1) + whole(2) + whole(3) + data(1, body(0)[4:], end=True)
        reset = whole(4) + whole(5) + headers(13, PUT) + data(13, b"\0")
        reset += frames.frame(frames.RST_STREAM, 0, 13, (8).to_bytes(4, "big"))
        world.receive(headers(1, PUT) + cut + reset)
        world.finish()
        assert world.asked == [b"1", b"2", b"3", b"0", b"4", b"5"]
        assert world.ended() == 6
        assert not world.session.h2.open_streams()
        assert world.connection.core.unfinished.total_bytes == 0

    steps(test)


def test_a_server_that_stops_serves_those_that_wait_and_begins_no_stream() -> None:
    def test(world: World) -> None:
        world.receive(b"".join(map(whole, range(5))) + headers(11, WATCH))
        world.connection.drain(errors.SERVER_STOPPED.error())
        world.finish()
        assert world.ended() == len(world.asked) == 5
        assert world.streams == 0
        assert world.transport.written.count(b"grpc-status\x0214") == 1

    steps(test)


@pytest.mark.parametrize("fault", [True, False])
def test_the_socket_closes_behind_those_that_wait(fault: bool) -> None:
    """Behind a frame that ends the connection, or behind the GOAWAY of a peer that wants its answers."""

    def test(world: World) -> None:
        goaway = frames.frame(frames.GOAWAY, 0, 0, bytes(8))
        too_short = frames.frame(frames.PING, 0, 0, b"")
        world.receive(b"".join(map(whole, range(5))) + (too_short if fault else goaway))
        assert not world.transport.closed
        world.finish()
        assert world.ended() == len(world.asked) == 5
        assert world.transport.closed

    steps(test)


def test_they_are_dropped_with_the_socket() -> None:
    def test(world: World) -> None:
        world.receive(b"".join(map(in_two, range(5))) + headers(11, WATCH))
        begun = len(world.asked)
        assert begun < 5
        session = world.session
        world.connection.connection_lost(None)
        assert not session.unread
        world.turn.end()
        assert len(world.asked) == begun
        assert world.connection.core.unfinished.total_bytes == 0

    steps(test)


def test_a_call_whose_reset_waits_ends_with_the_socket() -> None:
    """Nothing else would tell a waiter for a lock that its caller has gone."""

    def test(world: World) -> None:
        reset = frames.frame(frames.RST_STREAM, 0, 11, (8).to_bytes(4, "big"))
        world.receive(headers(11, WATCH) + b"".join(map(whole, range(6, 10))) + reset)
        session = world.session
        assert session.unread
        assert session.streaming
        world.connection.connection_lost(None)
        assert not session.streaming

    steps(test)


def test_while_requests_of_a_stream_wait_they_are_handled_and_nothing_is_read() -> None:
    def test(world: World) -> None:
        world.receive(b"".join(map(whole, range(5))))
        exchange: Any = object()
        world.session.keep_count = lambda stream: None  # type: ignore[method-assign]
        world.session.hold_up(exchange, True)
        world.finish()
        assert len(world.asked) == 5
        assert not world.transport.reading
        world.session.hold_up(exchange, False)
        world.turn.end()
        assert world.transport.reading

    steps(test)
