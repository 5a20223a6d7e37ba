# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 on a connection: pipelines, and bodies and WebSockets in steps. Transport and turn are stand-ins."""

import asyncio
from typing import Any, cast

import pytest

from lessor.api.proto import mvcc_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.wire.h1 import WAITING_BYTES_MAX
from tests.attack.floods import frame as small_frame
from tests.attack.floods import upgrade
from tests.unit.server.connection_world import Accepted, run, serve
from tests.unit.server.test_connection import REQUESTS, serve_large_replies

# With its headers a little more than a peer may leave untaken before its next request begins, so all of it is written.
SLOW = rpc_pb2.RangeResponse(
    kvs=[mvcc_pb2.KeyValue(value=bytes(3 * (limits.CONNECTION_BACKLOG_BYTES_MAX // 4 - 6)))]
).SerializeToString()


def post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


PUT = post("/v3/kv/put", b'{"key":"aw=="}')
PUTS_KEY = rpc_pb2.PutRequest(key=b"k")


async def turns(peer: Accepted) -> None:
    for _ in range(8):
        peer.turn.end()
        await asyncio.sleep(0)


def test_the_body_of_a_pipelined_request_may_come_before_the_request_begins() -> None:
    async def steps() -> None:
        for cut in range(1, len(PUT)):
            peer = Accepted()
            asked, _ = serve(peer)
            peer.receive(PUT + PUT[:cut])
            peer.receive(PUT[cut : cut + 1])
            peer.receive(PUT[cut + 1 :] + PUT)
            await turns(peer)
            assert asked == [PUTS_KEY] * 3
            assert peer.transport.written.count(b"HTTP/1.1 200 OK\r\n") == 3
            assert not peer.transport.closed

    run(steps)


def test_what_comes_behind_a_request_that_waits_for_a_slow_peer_is_kept_but_not_without_bound() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked = serve_large_replies(peer, reply=SLOW)
        ask = post("/v3/kv/range", b"{}")
        peer.receive(ask + ask[:-1])
        await turns(peer)
        assert len(asked) == 1
        peer.receive(ask[-1:])
        assert peer.transport.reading
        # The reply is below the connection's own bound for a slow reader: only what is kept can pause it.
        peer.connection.pause_writing()
        assert peer.transport.reading
        peer.receive(post("/v3/kv/put", b" " * WAITING_BYTES_MAX))
        assert not peer.transport.reading
        assert len(asked) == 1
        peer.transport.written = b""
        peer.connection.resume_writing()
        assert len(asked) == 2
        await turns(peer)
        peer.transport.written = b""
        peer.connection.resume_writing()
        await turns(peer)
        assert peer.transport.reading

    run(steps)


def test_the_end_of_a_pipeline_waits_for_the_requests_before_it() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, _ = serve(peer)
        peer.turn.step_s = limits.TURN_BYTES_S  # a step takes the whole share of a turn
        peer.receive(PUT + PUT[:-1])
        peer.receive(PUT[-1:] + PUT)
        assert peer.connection.eof_received()
        await turns(peer)
        assert asked == [PUTS_KEY] * 3
        assert peer.transport.written.count(b"HTTP/1.1 200 OK\r\n") == 3
        assert peer.transport.closed

    run(steps)


@pytest.mark.parametrize("late", [b"", b"}"], ids=["cut short", "cut short later"])
def test_a_pipelined_request_that_never_comes_in_whole_is_given_up(late: bytes) -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, handlers = serve(peer)
        peer.turn.step_s = limits.TURN_BYTES_S  # a step takes the whole share of a turn
        peer.receive(PUT + post("/v3/lease/keepalive", b'{"ID":"7"} {"ID":"8"}')[:-2])
        if late:
            peer.receive(late)
        assert peer.connection.eof_received()
        await turns(peer)
        assert asked == [PUTS_KEY]
        assert handlers[0].seen[-1] == "over"
        assert peer.transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
        assert peer.transport.closed

    run(steps)


def test_a_pipelined_stream_that_has_not_begun_when_the_server_stops_is_told() -> None:
    async def steps() -> None:
        peer = Accepted()
        serve(peer)
        peer.turn.step_s = limits.TURN_BYTES_S  # a step takes the whole share of a turn
        peer.receive(PUT + post("/v3/watch", b'{"create_request":{}}'))
        peer.connection.drain(errors.SERVER_STOPPED.error())
        await turns(peer)
        assert peer.transport.written.count(b"HTTP/1.1 ") == 2
        assert b"HTTP/1.1 503 " in peer.transport.written
        assert b"etcdserver: server stopped" in peer.transport.written
        assert peer.transport.closed

    run(steps)


def test_a_pipelined_request_of_a_lost_connection_does_not_begin() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, handlers = serve(peer)
        cast(Any, peer.turn).forget = lambda connection: None
        peer.turn.step_s = limits.TURN_BYTES_S  # a step takes the whole share of a turn
        peer.receive(PUT + post("/v3/watch", b'{"create_request":{}}'))
        peer.connection.connection_lost(None)
        await turns(peer)
        assert (asked, handlers) == ([PUTS_KEY], [])

    run(steps)


def small_chunks(path: str, body: bytes) -> bytes:
    lines = b"".join(b"1\r\n%c\r\n" % letter for letter in body)
    return f"POST {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + lines + b"0\r\n\r\n"


LONG_PUT = small_chunks("/v3/kv/put", b" " * limits.H1_STEP_LINES + b'{"key":"aw=="}')


def test_the_end_of_a_peers_bytes_waits_for_its_last_steps() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, _ = serve(peer)
        peer.turn.step_s = limits.TURN_BYTES_S
        peer.receive(PUT + LONG_PUT)
        assert peer.connection.eof_received()
        await turns(peer)
        assert asked == [PUTS_KEY] * 2
        assert peer.transport.written.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert peer.transport.closed

    run(steps)


def test_a_stopping_server_answers_a_request_that_is_read_in_steps() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, _ = serve(peer)
        peer.turn.step_s = limits.TURN_BYTES_S
        peer.receive(LONG_PUT + PUT)
        peer.connection.drain(errors.SERVER_STOPPED.error())
        await turns(peer)
        assert asked == [PUTS_KEY]
        assert b"Connection: close" in peer.transport.written
        assert peer.connection._session is not None
        assert peer.connection._session.closing

    run(steps)


def test_a_connection_that_is_lost_between_steps_is_over() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked, _ = serve(peer)
        cast(Any, peer.turn).forget = lambda connection: None
        peer.turn.step_s = limits.TURN_BYTES_S
        peer.receive(LONG_PUT)
        peer.connection.connection_lost(None)
        await turns(peer)
        assert asked == []

    run(steps)


@pytest.mark.parametrize("behind", [b"", small_frame(0x88, b"")], ids=["a cut", "a goodbye"])
def test_a_websocket_handles_all_frames_before_its_end(behind: bytes) -> None:
    async def steps() -> None:
        peer = Accepted()
        _, handlers = serve(peer)
        peer.receive(upgrade("/v3/lease/keepalive"))
        peer.turn.step_s = limits.TURN_BYTES_S
        peer.receive(small_frame(0x81, b"{}") * 4 * limits.WEBSOCKET_STEP_FRAMES + behind)
        assert not peer.transport.reading
        if not behind:
            assert peer.connection.eof_received()
        await turns(peer)
        assert handlers[0].seen == [b""] * 4 * limits.WEBSOCKET_STEP_FRAMES + ["over"]
        assert peer.transport.closed

    run(steps)


def test_a_pipeline_waits_until_the_peer_takes_the_replies() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked = serve_large_replies(peer, reply=SLOW)
        peer.receive(b"POST /v3/kv/range HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}" * REQUESTS)
        for _ in range(REQUESTS):
            peer.turn.end()
            await asyncio.sleep(0)
        assert len(asked) == 1
        peer.transport.written = b""
        peer.connection.resume_writing()
        assert len(asked) == 2

    run(steps)
