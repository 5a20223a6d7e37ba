# SPDX-License-Identifier: Apache-2.0
"""When a connection reads, pauses and gives up a peer. Transport and turn are stand-ins, the protocols are real."""

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import hpack
import pytest
import uvloop

from lessor.api.methods import BY_PATH
from lessor.api.proto import mvcc_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code
from lessor.server.loop.core import Core
from lessor.server.transport.connection import Connection
from lessor.server.transport.speak import speak_to_clients
from lessor.wire import frames
from lessor.wire.h2 import encode_headers
from tests.unit.server.connection_world import Accepted, run, serve


def unknown_frames(size_bytes: int) -> bytes:
    """HTTP/2 frames of a type that a receiver passes over, together at least as large as asked for."""
    body = bytes(16_000)
    one = len(body).to_bytes(3, "big") + b"\x63\x00" + bytes(4) + body
    return one * (size_bytes // len(one) + 1)


SETTINGS = bytes(3) + b"\x04\x00" + bytes(4)


def test_a_large_read_is_the_connections_last_one_in_its_turn() -> None:
    async def steps() -> None:
        peer = Accepted()
        peer.receive(frames.PREFACE + SETTINGS)
        peer.turn.end()
        peer.receive(unknown_frames(limits.LARGE_READ_BYTES))
        assert not peer.transport.reading
        peer.turn.end()
        assert peer.transport.reading
        assert not peer.transport.closed

    run(steps)


def calls(first: int, count: int) -> bytes:
    """Requests of a method that there is not, one frame each."""
    block = encode_headers([*hpack_fields(), (b":path", b"/no"), (b"content-type", b"application/grpc")])
    flags = frames.FLAG_END_HEADERS | frames.FLAG_END_STREAM
    return b"".join(frames.frame(frames.HEADERS, flags, first + 2 * n, block) for n in range(count))


def hpack_fields() -> list[tuple[bytes, bytes]]:
    return [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"h")]


def ends_in(output: bytes) -> int:
    """The streams that an output ends."""
    found, at = 0, 0
    while at < len(output):
        found += output[at + 3] == frames.HEADERS and output[at + 4] & frames.FLAG_END_STREAM
        at += 9 + int.from_bytes(output[at : at + 3], "big")
    return found


def test_a_read_of_much_work_is_spread_over_turns_and_nothing_is_read_meanwhile() -> None:
    async def steps() -> None:
        peer = Accepted()
        peer.receive(frames.PREFACE + SETTINGS)
        peer.turn.end()
        peer.transport.written = b""
        peer.turn.step_s = limits.TURN_BYTES_S  # each step takes the whole share
        peer.receive(calls(1, 400))
        in_turns = []
        while peer.turn.unread:
            assert not peer.transport.reading
            peer.turn.end()
            in_turns.append(ends_in(peer.transport.written))
            peer.transport.written = b""
        peer.turn.end()
        in_turns.append(ends_in(peer.transport.written))
        assert sum(in_turns) == 400
        assert max(in_turns) <= limits.H2_STEP_FRAMES
        assert peer.transport.reading

    run(steps)


def test_a_read_of_little_work_is_handled_at_once() -> None:
    async def steps() -> None:
        peer = Accepted()
        peer.receive(frames.PREFACE + SETTINGS)
        peer.receive(calls(1, 400))
        assert not peer.turn.unread
        assert peer.transport.reading
        peer.turn.end()
        assert ends_in(peer.transport.written) == 400

    run(steps)


def test_a_peer_that_is_cut_off_between_steps_is_forgotten() -> None:
    async def steps() -> None:
        peer = Accepted()
        peer.receive(frames.PREFACE + SETTINGS)
        peer.turn.step_s = limits.TURN_BYTES_S
        peer.receive(frames.frame(frames.SETTINGS, frames.FLAG_ACK, 0, b"") * 5_000)
        for _ in range(100):
            peer.turn.end()
        assert peer.transport.closed
        assert not peer.turn.unread

    run(steps)


KEEP_ALIVES = b'{"ID":1}' * (limits.STREAM_REQUESTS_AT_ONCE_MAX + 1)
ROUTE = b"/v3/lease/keepalive"


def over_http1() -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (ROUTE, len(KEEP_ALIVES), KEEP_ALIVES)


def over_http2() -> bytes:
    head = encode_headers([*hpack_fields(), (b":path", ROUTE), (b"content-type", b"application/json")])
    flags = frames.FLAG_END_HEADERS
    streams = [
        frames.frame(frames.HEADERS, flags, stream, head) + frames.frame(frames.DATA, 0, stream, KEEP_ALIVES)
        for stream in (1, 3)
    ]
    return frames.PREFACE + SETTINGS + b"".join(streams)


def over_a_websocket() -> bytes:
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    head = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n%b\r\n\r\n" % (ROUTE, key)
    return head + b"\x81\xfe" + len(KEEP_ALIVES).to_bytes(2, "big") + bytes(4) + KEEP_ALIVES


@pytest.mark.parametrize("request_of", [over_http1, over_http2, over_a_websocket])
def test_the_turn_knows_of_a_connection_whose_requests_wait_for_later_turns(request_of: Callable[[], bytes]) -> None:
    async def steps() -> None:
        peer = Accepted()
        _, handlers = serve(peer)
        peer.receive(request_of())
        while peer.turn.unread:
            assert sum(len(handler.seen) for handler in handlers) < len(handlers) * limits.STREAM_REQUESTS_AT_ONCE_MAX
            peer.turn.unread.pop().go_on()
        assert peer.turn.held_up == {peer.connection}
        peer.turn.end()
        assert not peer.turn.held_up
        assert all(handler.seen.count(handler.seen[0]) == KEEP_ALIVES.count(b"{") for handler in handlers)

    run(steps)


def test_small_reads_do_not_pause() -> None:
    async def steps() -> None:
        peer = Accepted()
        peer.receive(frames.PREFACE + SETTINGS)
        for _ in range(20):
            peer.receive(unknown_frames(1))
            assert peer.transport.reading

    run(steps)


@pytest.mark.parametrize(
    "first_bytes",
    [b"", b"PRI * HTTP/2.0\r\n\r\n", b"POST /v3/lease/grant HTTP/1.1\r\nHost: h\r\n", b"\r\n"],
    ids=["silent", "half a preface", "half a head", "an empty line"],
)
def test_a_peer_that_stops_in_its_first_words_is_given_up(monkeypatch: pytest.MonkeyPatch, first_bytes: bytes) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_S_MAX", 0.0)

    async def steps() -> None:
        peer = Accepted()
        if first_bytes:
            peer.receive(first_bytes)
        assert not peer.transport.closed
        for _ in range(3):
            await asyncio.sleep(0)
        assert peer.transport.closed

    run(steps)


@pytest.mark.parametrize(
    "first_bytes",
    [
        frames.PREFACE,
        b"GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
    ],
    ids=["a preface", "a request", "a head"],
)
def test_a_peer_that_has_said_what_it_wants_is_not(monkeypatch: pytest.MonkeyPatch, first_bytes: bytes) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_S_MAX", 0.0)

    async def steps() -> None:
        peer = Accepted()
        peer.receive(first_bytes)
        for _ in range(3):
            await asyncio.sleep(0)
        assert not peer.transport.closed

    run(steps)


LARGE = rpc_pb2.RangeResponse(
    kvs=[mvcc_pb2.KeyValue(value=bytes(limits.CONNECTION_SEND_BYTES_MAX // 3))]
).SerializeToString()
REQUESTS = 20


def serve_large_replies(peer: Accepted, held: list[Any] | None = None, reply: bytes = LARGE) -> list[Any]:
    """Lets each unary call be answered by `reply`: at once, or when the test delivers what is in `held`."""
    asked: list[Any] = []

    def unary(_core: Any, request: Any) -> bytes:
        asked.append(request)
        return reply

    peer.turn.held = held
    core = cast(Any, peer.connection.core)
    core.unary_handlers = dict.fromkeys(BY_PATH.values(), unary)
    return asked


def h2_request(stream_id: int, path: bytes, content_type: bytes, body: bytes) -> bytes:
    head = encode_headers(
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"content-type", content_type)]
    )
    at = stream_id.to_bytes(4, "big")
    data = len(body).to_bytes(3, "big") + b"\0\x01" + at + body
    return len(head).to_bytes(3, "big") + b"\x01\x04" + at + head + data


def grpc_request(stream_id: int) -> bytes:
    return h2_request(stream_id, b"/etcdserverpb.KV/Range", b"application/grpc", bytes(5))


def json_request(stream_id: int) -> bytes:
    return h2_request(stream_id, b"/v3/kv/range", b"application/json", b"{}")


def resets(output: bytes) -> list[int]:
    """The error codes of the RST_STREAM frames."""
    codes = []
    at = 0
    while at < len(output):
        if output[at + 3] == frames.RST_STREAM:
            codes.append(int.from_bytes(output[at + 9 : at + 13], "big"))
        at += 9 + int.from_bytes(output[at : at + 3], "big")
    return codes


@pytest.mark.parametrize("window", [65_535, 2**31 - 1], ids=["no window", "any window"])
def test_a_burst_of_requests_for_large_replies_is_bounded(window: int) -> None:
    async def steps() -> None:
        peer = Accepted()
        asked = serve_large_replies(peer)
        initial_window = b"\0\0\x06\x04\0\0\0\0\0\0\x04" + window.to_bytes(4, "big")
        more = b"\0\0\x04\x08\0\0\0\0\0" + (window - 65_535).to_bytes(4, "big") if window > 65_535 else b""
        burst = b"".join(grpc_request(2 * number + 1) for number in range(REQUESTS))
        peer.receive(frames.PREFACE + initial_window + more + burst)
        for _ in range(50):
            peer.turn.end()
        assert 1 < len(asked) <= 4  # what is one too many is noticed when it is there
        assert not peer.turn.unread
        assert peer.transport.reading
        output, peer.transport.written = peer.transport.written, b""
        while window > 65_535 and len(asked) < REQUESTS:  # it takes them all
            peer.connection.resume_writing()
            peer.turn.end()
            output, peer.transport.written = output + peer.transport.written, b""
            assert len(asked) * len(LARGE) - len(output) <= limits.CONNECTION_SEND_BYTES_MAX + len(LARGE)
        assert resets(output) == []

    run(steps)


@pytest.mark.parametrize("request_of", [grpc_request, json_request])
def test_replies_that_wait_at_the_gate_count_and_then_leave(request_of: Callable[[int], bytes]) -> None:
    async def steps() -> None:
        peer = Accepted()
        held: list[Any] = []
        asked = serve_large_replies(peer, held)
        initial_window = b"\0\0\x06\x04\0\0\0\0\0\0\x04" + (2**31 - 1).to_bytes(4, "big")
        more = b"\0\0\x04\x08\0\0\0\0\0" + (2**31 - 1 - 65_535).to_bytes(4, "big")
        burst = b"".join(request_of(2 * number + 1) for number in range(REQUESTS))
        peer.receive(frames.PREFACE + initial_window + more + burst)
        assert 1 < len(asked) <= 4
        while len(asked) < REQUESTS or peer.turn.to_flush:
            before, leave = len(asked), held[:]
            held.clear()
            for call, payload in leave:
                call.deliver(payload)
            peer.turn.end()
            peer.transport.written = b""
            assert len(asked) - before <= 4
        assert len(asked) == REQUESTS

    run(steps)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_kernel_finds_out_about_peers_that_vanished(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def steps() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[Connection] = loop.create_future()

        class Accept(Connection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                made.set_result(self)

        core = SimpleNamespace(metrics=SimpleNamespace(connections=0), turn=SimpleNamespace(forget=lambda one: None))
        accept = cast(Callable[[], asyncio.Protocol], lambda: Accept(cast(Core, core), set(), speak_to_clients))
        server = await loop.create_server(accept, "127.0.0.1", 0)
        peer, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        connection = await made
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        timing = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        assert [accepted.getsockopt(socket.IPPROTO_TCP, option) for option in timing] == [60, 20, 3]
        peer.close()
        connection.transport.close()
        server.close()
        await server.wait_closed()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(steps())


# --- streams over HTTP/2 ----------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def open_stream(stream_id: int, path: bytes, content_type: bytes) -> bytes:
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"content-type", content_type)]
    return frame(frames.HEADERS, 4, stream_id, encode_headers(pairs))


def replies(output: bytes) -> dict[int, tuple[list[dict[str, str]], bytes, bool]]:
    """By stream: its header blocks, its data, and whether it has ended."""
    decoder = hpack.Decoder()
    found: dict[int, tuple[list[dict[str, str]], bytes, bool]] = {}
    at = 0
    while at < len(output):
        size, kind, flags = int.from_bytes(output[at : at + 3], "big"), output[at + 3], output[at + 4]
        stream_id = int.from_bytes(output[at + 5 : at + 9], "big")
        payload = output[at + 9 : at + 9 + size]
        at += 9 + size
        if kind in (frames.DATA, frames.HEADERS):
            blocks, data, _ = found.get(stream_id, ([], b"", False))
            if kind == frames.HEADERS:
                blocks.append({str(name): str(value) for name, value in decoder.decode(payload)})
            else:
                data += payload
            found[stream_id] = (blocks, data, bool(flags & 1))
    return found


def test_a_json_stream_over_http2_has_no_end_of_its_own_but_its_objects_are_bounded() -> None:
    async def steps() -> None:
        peer = Accepted()
        _, handlers = serve(peer)
        core = cast(Any, peer.connection.core)
        core.options.message_bytes_max = 1_000
        core.gate = SimpleNamespace(hold=lambda batch, outlet, payload: outlet.deliver(payload))
        core.machine = SimpleNamespace(journal=SimpleNamespace(newest_with_rows=0))
        peer.receive(frames.PREFACE + SETTINGS + open_stream(1, b"/v3/lease/keepalive", b"application/json"))
        for _ in range(10):
            peer.receive(frame(frames.DATA, 0, 1, b'{"ID":"7"}'.ljust(900)))
        peer.turn.end()
        assert len(handlers[0].seen) == 10
        assert replies(peer.transport.written) == {}
        peer.receive(frame(frames.DATA, 0, 1, b'{"ID":"7' + b"7" * 2_000))
        peer.turn.end()
        blocks, data, ended = replies(peer.transport.written)[1]
        assert [block[":status"] for block in blocks] == ["429"]
        assert b"larger than max" in data
        assert ended

    run(steps)


def test_a_unary_call_in_json_over_http2_is_bounded() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, _ = serve(peer)
        cast(Any, peer.connection.core).options.message_bytes_max = 1_000
        body = frame(frames.DATA, 0, 1, b" " * 2_001)
        peer.receive(frames.PREFACE + SETTINGS + open_stream(1, b"/v3/kv/put", b"application/json") + body)
        peer.turn.end()
        assert [block[":status"] for block in replies(peer.transport.written)[1][0]] == ["413"]
        assert asked == []

    run(steps)


def test_a_stopping_server_ends_the_streams_it_has_and_those_that_still_come() -> None:
    async def steps() -> None:
        peer = Accepted()
        _, handlers = serve(peer)
        json, grpc = (b"/v3/watch", b"application/json"), (b"/etcdserverpb.Watch/Watch", b"application/grpc")
        peer.receive(frames.PREFACE + SETTINGS + open_stream(1, *json) + open_stream(3, *grpc))
        handlers[0].call.send([b""])
        peer.connection.drain(errors.SERVER_STOPPED.error())
        peer.receive(open_stream(5, *json) + open_stream(7, *grpc) + grpc_request(9))
        peer.turn.end()
        found = replies(peer.transport.written)
        stopped = b'"code":14,"message":"etcdserver: server stopped"}'
        assert found[1][1].endswith(stopped + b"}\n")
        assert [block[":status"] for block in found[1][0]] == ["200"]
        assert found[5][0][0][":status"] == "503"
        assert found[5][1].endswith(stopped)
        for number in (3, 7):
            assert found[number][0][-1]["grpc-status"] == "14"
            assert found[number][0][-1]["grpc-message"] == "etcdserver: server stopped"
        assert found[9][0][-1]["grpc-status"] == "0"  # a short call is still served
        assert all(ended for _, _, ended in found.values())
        assert not cast(Any, peer.connection)._session.streaming

    run(steps)


def test_a_call_that_the_peer_gives_up_is_counted_as_ended() -> None:
    async def steps() -> None:
        peer = Accepted()
        serve(peer)
        paths = ("/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Put")
        begun = b"".join(
            open_stream(number, path.encode(), b"application/grpc") for number, path in zip((1, 3), paths, strict=True)
        )
        peer.receive(frames.PREFACE + SETTINGS + begun)
        for number in (1, 3):
            peer.receive(frame(frames.RST_STREAM, 0, number, (8).to_bytes(4, "big")))
        handled = peer.connection.core.metrics.handled
        assert [handled[BY_PATH[path], Code.CANCELED].n for path in paths] == [1, 1]

    run(steps)


def test_json_streams_that_are_over_are_forgotten() -> None:
    async def steps() -> None:
        peer = Accepted()
        _, handlers = serve(peer)
        begun = open_stream(1, b"/v3/watch", b"application/json") + open_stream(3, b"/v3/watch", b"application/json")
        peer.receive(frames.PREFACE + SETTINGS + begun)
        session = cast(Any, peer.connection)._session
        assert len(session.streaming) == 2
        peer.receive(frame(frames.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        handlers[1].call.finish()
        assert not session.streaming

    run(steps)


def test_a_unary_call_is_served_whatever_comes_behind_its_message() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, _ = serve(peer)
        broken = frame(frames.DATA, 1, 1, bytes(5) + b"\x02" + bytes(4))
        peer.receive(frames.PREFACE + SETTINGS + open_stream(1, b"/etcdserverpb.KV/Put", b"application/grpc") + broken)
        peer.turn.end()
        assert replies(peer.transport.written)[1][0][-1]["grpc-status"] == "0"
        assert len(asked) == 1

    run(steps)


# --- peers that may be gone -------------------------------------------------------------------------------------------

PONG = frames.frame(frames.PING, frames.FLAG_ACK, 0, bytes(8))


async def asked(accepted: Accepted) -> Callable[[], None]:
    """Lets a connection be silent until it is asked for a sign of life; returns what its timer calls."""
    accepted.receive(frames.PREFACE + SETTINGS)
    look: Callable[[], None] = cast(Any, accepted.connection)._session._look_after_peer
    accepted.turn.time_s = limits.GRPC_KEEPALIVE_INTERVAL_S
    accepted.transport.written = b""
    accepted.turn.end()
    look()
    accepted.turn.end()
    assert accepted.transport.written.endswith(frames.frame(frames.PING, 0, 0, bytes(8)))
    accepted.transport.written = b""
    accepted.turn.time_s += limits.GRPC_KEEPALIVE_TIMEOUT_S
    return look


@pytest.mark.parametrize("answers", [True, False])
def test_a_silent_peer_is_let_go_unless_its_answer_waits_in_the_socket(answers: bool) -> None:
    async def steps() -> None:
        accepted = Accepted()
        look = await asked(accepted)
        look()
        assert not accepted.transport.closed
        if answers:  # the process stood still, and reads only now
            accepted.receive(PONG)
        for _ in range(3):
            await asyncio.sleep(0)
        assert accepted.transport.closed is not answers
        cast(Any, accepted.connection)._session.lost()

    run(steps)


def test_a_peer_that_we_do_not_read_from_is_not_let_go() -> None:
    async def steps() -> None:
        accepted = Accepted()
        look = await asked(accepted)
        accepted.connection.reading = False
        look()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not accepted.transport.closed
        cast(Any, accepted.connection)._session.lost()

    run(steps)
