# SPDX-License-Identifier: Apache-2.0
"""Calls of one read that take long: a step of HTTP/2 ends behind the one that uses it up. Nothing behind it is lost."""

import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.server.transport import grpc_calls, h2_session
from lessor.wire import frames, grpc
from lessor.wire.h2 import encode_headers
from tests.attack.floods import WATCH, WIDE, block, data, headers
from tests.unit.server.connection_world import Accepted, run, serve

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


def test_a_call_alone_looks_at_the_clock_for_its_duration_and_not_behind_it() -> None:
    """Once as its bytes come, once as it begins, once as its reply leaves; several calls look in between too."""

    def test(world: World) -> None:
        world.turn.step_s = 1.0
        before_s = world.turn.time_s
        world.session.receive(whole(0))
        assert world.asked == [b"0"]
        assert world.turn.time_s - before_s == 3.0

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


# --- compressed messages ------------------------------------------------------------------------------------------


GZIP = (b"grpc-encoding", b"gzip")
LARGE_BYTES = 900_000  # inflated; a few hundred on the wire


def compressed(message: bytes) -> bytes:
    packed = zlib.compress(message, wbits=31)
    return b"\1" + len(packed).to_bytes(4, "big") + packed


def large(number: int) -> bytes:
    request = rpc_pb2.PutRequest(key=b"%d" % number, value=bytes(LARGE_BYTES))
    return compressed(request.SerializeToString())


@pytest.fixture
def inflated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is inflated, piece by piece."""
    sizes: list[int] = []
    real = zlib.decompressobj

    class Counted:
        def __init__(self, wbits: int) -> None:
            self._inflater = real(wbits)

        def decompress(self, data: bytes, bytes_max: int) -> bytes:
            found = self._inflater.decompress(data, bytes_max)
            sizes.append(len(found))
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inflater, name)

    monkeypatch.setattr(zlib, "decompressobj", Counted)
    return sizes


@pytest.mark.parametrize("end", [True, False])
def test_a_step_inflates_a_message_though_the_clock_stands_still(inflated: list[int], end: bool) -> None:
    packed = block("/etcdserverpb.KV/Put", GZIP)

    def test(world: World) -> None:
        world.turn.step_s = 0.0
        read = b"".join(headers(2 * at + 1, packed) + data(2 * at + 1, large(at), end=end) for at in range(CALLS))
        world.session.receive(read)
        assert sum(inflated) < 2 * LARGE_BYTES
        while world.session.unread:
            inflated.clear()
            world.session.go_on()
            assert sum(inflated) < 2 * LARGE_BYTES
        world.turn.end()
        assert world.asked == [b"%d" % number for number in range(CALLS)]
        assert world.ended() == CALLS
        assert world.connection.core.unfinished.total_bytes == 0

    steps(test, 0.0)


def test_of_a_unary_call_only_the_request_is_inflated(inflated: list[int]) -> None:
    def test(world: World) -> None:
        request = compressed(rpc_pb2.PutRequest(key=b"k").SerializeToString())
        world.receive(headers(1, block("/etcdserverpb.KV/Put", GZIP)) + data(1, request + large(1) * 10, end=True))
        assert world.asked == [b"k"]
        assert sum(inflated) < 100

    steps(test)


@pytest.mark.parametrize(
    "behind", [b"", b"\1\0\0\0\5half", b"\7\0\0\0\0"], ids=["the end", "half of one", "no message"]
)
def test_the_messages_of_a_stream_are_inflated_step_by_step(inflated: list[int], behind: bytes) -> None:
    def test(world: World) -> None:
        _, handlers = serve(world)
        body = b"".join(compressed(bytes((number,)) * 500_000) for number in range(12))
        behind_them = compressed(b"small") + grpc.frame(b"plain") + behind
        world.session.receive(
            headers(1, block("/etcdserverpb.Watch/Watch", GZIP)) + data(1, body + behind_them, end=True)
        )
        most = sum(inflated)
        while world.session.unread:
            inflated.clear()
            world.session.go_on()
            most = max(most, sum(inflated))
        assert most <= limits.H2_STEP_MESSAGE_BYTES + 500_000
        seen = handlers[0].seen
        assert [message[:1] for message in seen[:12]] == [bytes((number,)) for number in range(12)]
        assert seen[12:14] == [b"small", b"plain"]
        assert seen[14:].count("end") == (not behind)
        assert seen.count("over") == bool(behind)

    steps(test)


@pytest.mark.parametrize("path", ["/etcdserverpb.KV/Put", "/etcdserverpb.Watch/Watch"])
@pytest.mark.parametrize("stranger", [True, False])
def test_the_message_of_a_stranger_is_inflated_up_to_the_bound(inflated: list[int], path: str, stranger: bool) -> None:
    def test(world: World) -> None:
        def refuse(_call: Any, _request: Any, size_bytes: int) -> None:
            if stranger and size_bytes > limits.STRANGER_BYTES_MAX:
                raise errors.USER_EMPTY.error()

        core = cast(Any, world.connection.core)
        core.refuse_stranger = refuse
        world.receive(headers(1, block(path, GZIP)) + data(1, large(0), end=True))
        world.finish()
        assert (sum(inflated) <= limits.STRANGER_BYTES_MAX + 1) == stranger
        assert world.transport.written.count(b"user name is empty") == stranger

    steps(test)


def test_a_full_batch_holds_up_what_has_been_read_too() -> None:
    def test(world: World) -> None:
        world.turn.overloaded = True
        world.receive(b"".join(map(whole, range(5))))
        begun = len(world.asked)
        assert begun == 1
        assert not world.turn.unread
        assert world.turn.paused == [world.connection]
        assert world.turn.waited_for == {world.connection}
        for _ in range(5):
            world.turn.end()
        assert len(world.asked) == begun
        assert not world.transport.reading
        world.turn.overloaded = False
        world.connection.resume_reading()
        world.turn.end()
        assert len(world.asked) == begun + 1
        world.turn.overloaded = True
        world.turn.end()
        assert len(world.asked) == begun + 1
        assert not world.turn.unread
        world.turn.overloaded = False
        world.connection.resume_reading()
        world.finish()
        assert world.ended() == 5
        assert world.transport.reading
        assert not world.turn.waited_for

    steps(test)


def test_leases_do_not_wait_for_bytes_that_went_away_while_the_batch_was_full() -> None:
    def test(world: World) -> None:
        world.turn.overloaded = True
        world.receive(b"".join(map(whole, range(5))))
        assert world.turn.waited_for
        world.session._rest = None
        world.turn.overloaded = False
        world.connection.resume_reading()
        assert not world.turn.waited_for
        assert world.transport.reading

    steps(test)


@pytest.mark.parametrize("deflated", [False, True])
def test_a_txn_of_very_many_compares_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, deflated: bool
) -> None:
    message = b"\x0a\x00" * 300_000
    path = "/etcdserverpb.KV/Txn"

    def test(world: World) -> None:
        cast(Any, world.connection.core).machine = SimpleNamespace(max_txn_ops=128)
        parsed: list[bytes] = []
        monkeypatch.setattr(grpc_calls.Route, "parse", property(lambda route: parsed.append, lambda route, parse: None))
        if deflated:
            world.receive(headers(1, block(path, GZIP)) + data(1, compressed(message), end=True))
        else:
            body = grpc.frame(message)
            pieces = b"".join(data(1, body[at : at + 16_384]) for at in range(0, len(body), 16_384))
            world.receive(headers(1, block(path)) + pieces + data(1, b"", end=True))
        world.finish()
        assert b"too many operations in txn request" in world.transport.written
        assert parsed == []
        assert world.connection.core.unfinished.total_bytes == 0

    steps(test, 0.0)
