# SPDX-License-Identifier: Apache-2.0
"""Much work in few bytes, over HTTP/1.1, WebSockets and HTTP/2: a turn takes a bounded part of it.

Each look at the clock takes a connection's whole share of the turn, and so does each unary call. So a turn takes one
step, or two at its beginning.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import mvcc_pb2, rpc_pb2
from lessor.base import limits
from lessor.wire import frames, grpc, websocket
from lessor.wire.h2 import encode_headers
from tests.attack.floods import RANGE, WIDE, block, chunks, data, frame, headers, posted, upgrade
from tests.unit.server.connection_world import Accepted, run

STEPS_MAX = 2  # of a turn
READ_BYTES = 262_144  # what one read brings at most


def in_turns(opening: bytes, read: bytes, count: Callable[[Accepted], int]) -> list[int]:
    """What `count` says more after each turn, until the connection reads again. It reads nothing meanwhile."""
    counts: list[int] = []

    async def steps() -> None:
        peer = Accepted()
        core = cast(Any, peer.connection.core)
        core.stream_handlers = dict.fromkeys(BY_PATH.values(), Silent)

        def unary(_core: Any, _request: Any) -> bytes:
            peer.turn.time_s += limits.TURN_BYTES_S
            return b""

        core.unary_handlers = dict.fromkeys(BY_PATH.values(), unary)
        if opening:
            peer.receive(opening)
            peer.turn.end()
        peer.transport.written = b""
        peer.turn.step_s = limits.TURN_BYTES_S
        before = count(peer)
        peer.receive(read)
        while True:
            session = peer.connection._session
            assert session is not None
            more = session.unread or session.paused
            assert peer.transport.reading is not more
            peer.turn.end()
            counts.append(count(peer) - before)
            before += counts[-1]
            if not more:
                break
        assert not peer.transport.closed

    run(steps)
    return counts


class Silent:
    """Handles a streaming call and answers nothing."""

    def __init__(self, core: Any, call: Any) -> None: ...

    def on_messages(self, messages: list[bytes]) -> None: ...

    def on_requests_end(self) -> None: ...

    def on_over(self) -> None: ...


def heads(peer: Accepted) -> int:
    return peer.transport.written.count(b"HTTP/1.1 ")


def kept(peer: Accepted) -> int:
    return peer.connection.core.unfinished.total_bytes


@pytest.mark.parametrize(
    "request_",
    [b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /no HTTP/1.1\r\nHost: h\r\n\r\n", posted("/v3/kv/put", b"{")],
    ids=["pages", "404", "JSON errors"],
)
def test_a_pipeline(request_: bytes) -> None:
    counts = in_turns(b"", request_ * 300, heads)
    assert sum(counts) == 300
    assert max(counts) <= STEPS_MAX


@pytest.mark.parametrize("path", ["/v3/watch", "/v3/kv/put"])
def test_chunks_of_one_byte(path: str) -> None:
    opening = posted(path, b'2\r\n{"\r\n', chunked=True)
    bytes_ = READ_BYTES // len(chunks(b"a", 1))
    counts = in_turns(opening, chunks(b"a", bytes_), kept)
    assert sum(counts) == bytes_
    assert max(counts) <= STEPS_MAX * limits.H1_STEP_LINES


def test_chunks_that_nobody_wants() -> None:
    """The rest of a body whose reply is over is dropped, in steps too, up to its bound."""
    opening = posted("/v3/watch", b"1\r\n!\r\n", chunked=True)
    count = limits.H1_DRAIN_BYTES_MAX // 8
    counts = in_turns(opening, chunks(b"a", count) + b"0\r\n\r\n" + b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n", heads)
    assert len(counts) >= 2 * count // (STEPS_MAX * limits.H1_STEP_LINES)
    assert sum(counts) == 1  # the next request is served


def test_trailers() -> None:
    lines = b"a:\r\n" * (limits.H1_HEAD_BYTES_MAX // 4 - 1)
    request = posted("/version", b"0\r\n" + lines + b"\r\n", chunked=True, method="GET")
    counts = in_turns(b"", request, heads)
    assert len(counts) >= lines.count(b"\n") // (STEPS_MAX * limits.H1_STEP_LINES)
    assert sum(counts) == 1


def pongs(peer: Accepted) -> int:
    return peer.transport.written.count(b"\x8a\x00")


@pytest.mark.parametrize(
    ("opcode", "payload", "count"),
    [
        (0x89, b"", pongs),  # a ping
        (0x00, b"a", kept),  # a fragment
    ],
    ids=["pings", "fragments"],
)
def test_small_frames_on_a_websocket(opcode: int, payload: bytes, count: Callable[[Accepted], int]) -> None:
    counts = in_turns(upgrade("/v3/watch") + frame(0x01, b'{"x":"'), frame(opcode, payload) * 2_000, count)
    assert sum(counts) == 2_000
    assert max(counts) <= STEPS_MAX * limits.WEBSOCKET_STEP_FRAMES


def test_frames_wait_behind_each_other_and_a_goodbye_behind_them() -> None:
    opened = websocket.WebSocket(b"", None)
    received = frame(0x81, b"{}") * 200 + frame(0x88, b"")
    pieces = list(opened.receive(received[:-3]))
    assert len(pieces) == limits.WEBSOCKET_STEP_FRAMES
    pieces += opened.receive(received[-3:])
    while opened.unread:
        assert not opened.closing
        pieces += opened.go_on()
    assert pieces == [b"{}\n"] * 200
    assert opened.closing


def test_long_bodies_that_end_in_one_step_of_http_2() -> None:
    """One of them is read in a turn."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/v3/kv/put"),
        (b"content-type", b"application/json"),
    ]
    head = encode_headers(fields)
    streams = range(1, 40, 2)
    body = b'{"x":[' + b"0," * limits.JSON_VALUES_PER_TURN + b"0]}"
    opening, ends = WIDE, b""
    for stream_id in streams:
        opening += headers(stream_id, head) + data(stream_id, body)
        ends += data(stream_id, b"", end=True)
    answered = encode_headers([(b":status", b"200")])
    counts = in_turns(opening, ends, lambda peer: peer.transport.written.count(answered))
    assert sum(counts) == len(streams)
    assert max(counts) == 1


@pytest.mark.parametrize("end", [True, False])
def test_calls_over_many_keys_in_one_step_of_http_2(end: bool) -> None:
    """Few bytes can ask for much: one compare over all keys. Nothing but the clock shows it."""
    compare = rpc_pb2.Compare(key=b"a", range_end=b"z")
    message = grpc.frame(rpc_pb2.TxnRequest(compare=[compare]).SerializeToString())
    packed = block("/etcdserverpb.KV/Txn")
    read = b"".join(headers(at, packed) + data(at, message, end=end) for at in range(1, 201, 2))
    counts = in_turns(WIDE, read, lambda peer: peer.transport.written.count(grpc.TRAILERS_OK))
    assert sum(counts) == 100
    assert max(counts) <= STEPS_MAX


def test_long_messages_that_end_in_one_step_of_http_2() -> None:
    message = grpc.frame(rpc_pb2.PutRequest(key=b"k", value=bytes(limits.H2_STEP_MESSAGE_BYTES)).SerializeToString())
    streams = range(1, 20, 2)
    opening, ends = WIDE, b""
    for stream_id in streams:
        opening += headers(stream_id, block("/etcdserverpb.KV/Put"))
        opening += b"".join(
            data(stream_id, message[:-1][at : at + 16_000]) for at in range(0, len(message) - 1, 16_000)
        )
        ends += data(stream_id, message[-1:], end=True)
    counts = in_turns(opening, ends, lambda peer: peer.transport.written.count(b"grpc-status"))
    assert sum(counts) == len(streams)
    assert max(counts) <= STEPS_MAX


@pytest.mark.parametrize("gone", [False, True])
def test_a_long_body_that_waits_counts_for_the_memory_of_its_connection(gone: bool) -> None:
    async def steps() -> None:
        peer = Accepted()
        core = cast(Any, peer.connection.core)
        core.unary_handlers = dict.fromkeys(BY_PATH.values(), lambda core, request: b"")
        core.turn.forget = lambda connection: None
        body = b'{"x":"' + b"a" * limits.JSON_SHORT_VALUES * limits.JSON_VALUE_BYTES + b'"}'
        peer.receive(posted("/v3/kv/put", body))
        assert kept(peer) == len(body)
        assert not peer.transport.reading
        if gone:
            peer.connection.connection_lost(None)
        peer.turn.end()
        assert kept(peer) == 0
        assert heads(peer) == (0 if gone else 1)
        assert peer.transport.reading is not gone

    run(steps)


def test_a_long_reply_leaves_in_pieces_and_the_next_request_waits() -> None:
    reply = bytes(5 * limits.SEND_STEP_BYTES + 7)
    written: list[int] = []

    async def steps() -> None:
        peer = Accepted()
        core = cast(Any, peer.connection.core)
        asked: list[Any] = []

        def unary(core: Any, request: Any) -> bytes:
            asked.append(request)
            return rpc_pb2.RangeResponse(kvs=[mvcc_pb2.KeyValue(value=reply)]).SerializeToString()

        core.unary_handlers = dict.fromkeys(BY_PATH.values(), unary)
        peer.receive(posted("/v3/kv/range", b"{}") + posted("/v3/kv/range", b"{}"))
        whole = b""
        while peer.turn.to_flush:
            peer.turn.end()
            written.append(len(peer.transport.written))
            whole += peer.transport.written
            peer.transport.written = b""
            assert len(asked) == 1 or len(whole) > len(reply) * 4 // 3
        assert whole.count(b"HTTP/1.1 200 OK") == 2
        for part in whole.split(b"HTTP/1.1 200 OK")[1:]:
            assert len(part.partition(b"\r\n\r\n")[2]) == int(part.partition(b"Content-Length: ")[2].split(b"\r")[0])

    run(steps)
    assert max(written) <= limits.SEND_STEP_BYTES + 1_000
    assert sum(written) > 2 * len(reply) * 4 // 3


def test_a_long_reply_waits_for_a_peer_that_does_not_take_it() -> None:
    async def steps() -> None:
        peer = Accepted()
        core = cast(Any, peer.connection.core)
        reply = rpc_pb2.RangeResponse(kvs=[mvcc_pb2.KeyValue(value=bytes(20 * limits.SEND_STEP_BYTES))])
        core.unary_handlers = dict.fromkeys(BY_PATH.values(), lambda core, request: reply.SerializeToString())
        peer.receive(posted("/v3/kv/range", b"{}"))
        peer.turn.end()
        assert peer.connection.eof_received()
        while peer.turn.to_flush:  # nothing is tried again and again
            peer.turn.end()
        assert len(peer.transport.written) <= limits.CONNECTION_BACKLOG_BYTES_MAX + 2 * limits.SEND_STEP_BYTES
        assert not peer.transport.reading
        taken = 0
        while not peer.transport.closed:
            assert peer.transport.written
            taken += len(peer.transport.written)
            peer.transport.written = b""
            peer.connection.resume_writing()
            peer.turn.end()
        taken += len(peer.transport.written)
        assert taken > len(reply.kvs[0].value) * 4 // 3

    run(steps)


def test_a_long_reply_over_http_2_leaves_in_pieces_whatever_the_peer_would_take() -> None:
    """A stream that waits until its peer has taken some of the connection's output goes on behind it."""
    reply = rpc_pb2.RangeResponse(kvs=[mvcc_pb2.KeyValue(value=bytes(5 * limits.SEND_STEP_BYTES))])
    woken: list[Any] = []

    async def steps() -> None:
        peer = Accepted()
        core = cast(Any, peer.connection.core)
        core.unary_handlers = dict.fromkeys(BY_PATH.values(), lambda core, request: reply.SerializeToString())
        core.turn.catch_up_later = woken.append
        peer.receive(WIDE + headers(1, RANGE) + data(1, grpc.frame(b""), end=True))
        cast(Any, peer.connection._session).waiting_for_drain.add("a watch")
        body, ended = b"", False
        while peer.turn.to_flush:
            peer.turn.end()
            written, peer.transport.written = peer.transport.written, b""
            assert len(written) <= limits.SEND_STEP_BYTES + 100_000  # with a frame more, and all headers
            at = 0
            while at < len(written):
                end = at + frames.FRAME_HEADER_BYTES + int.from_bytes(written[at : at + 3], "big")
                body += written[at + frames.FRAME_HEADER_BYTES : end] if written[at + 3] == frames.DATA else b""
                ended = bool(written[at + 4] & frames.FLAG_END_STREAM)
                at = end
        assert body == grpc.frame(reply.SerializeToString())
        assert ended

    run(steps)
    assert woken == ["a watch"]
