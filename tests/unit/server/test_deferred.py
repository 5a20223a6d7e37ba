# SPDX-License-Identifier: Apache-2.0
"""Requests of an HTTP/2 connection that wait until its peer has taken replies: order, room, and what is let go of.

The same over sockets, with deadlines and rights: tests/whole/test_untaken.py.
"""

from typing import Any

import pytest

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.server.transport.h2_session import H2Session
from lessor.wire import frames, grpc
from tests.attack.floods import WIDE
from tests.unit.server.connection_world import Accepted, run
from tests.unit.server.test_connection import grpc_request, h2_request, json_request, resets, serve_large_replies

NO_WINDOW = frames.PREFACE + frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, 0)])


def get(number: int) -> bytes:
    """A request on the stream 2 * number + 1."""
    message = rpc_pb2.RangeRequest(key=b"%d" % number).SerializeToString()
    return h2_request(2 * number + 1, b"/etcdserverpb.KV/Range", b"application/grpc", grpc.frame(message))


def reset(*numbers: int) -> bytes:
    return b"".join(frames.rst_stream_frame(2 * number + 1, 0) for number in numbers)


def keys(asked: list[Any]) -> list[int]:
    return [int(request.key) for request in asked]


def waiting(peer: Accepted) -> int:
    session = peer.connection._session
    assert isinstance(session, H2Session)
    assert session.deferred is not None
    return len(session.deferred._requests)


def test_a_request_that_comes_when_there_is_room_again_does_not_overtake_those_that_wait() -> None:
    async def steps() -> None:
        peer = Accepted()
        asked = serve_large_replies(peer)
        peer.receive(NO_WINDOW + b"".join(map(get, range(3))))
        peer.turn.end()
        peer.turn.end()
        peer.receive(get(3) + get(4))
        peer.turn.end()
        assert keys(asked) == [0, 1, 2]
        peer.receive(reset(0, 1, 2) + get(5))
        assert keys(asked) == [0, 1, 2]
        peer.turn.end()
        peer.turn.end()
        assert keys(asked) == [0, 1, 2, 3, 4, 5]
        peer.receive(reset(3, 4, 5))
        peer.turn.end()
        peer.receive(get(6))
        assert keys(asked)[-1] == 6  # nothing waits any more, so it need not either

    run(steps)


def test_requests_that_wait_go_on_when_replies_at_the_gate_are_dropped() -> None:
    async def steps() -> None:
        peer = Accepted()
        held: list[Any] = []
        asked = serve_large_replies(peer, held)
        peer.receive(NO_WINDOW + b"".join(map(get, range(6))))
        assert len(asked) == 3
        peer.receive(reset(0, 1, 2))
        peer.turn.end()
        assert len(asked) == 3
        dropped, held[:] = held[:], []
        for call, payload in dropped:
            call.deliver(payload)
        peer.turn.end()
        assert len(asked) == 6
        assert resets(peer.transport.written) == []

    run(steps)


def test_small_replies_to_requests_that_have_waited_do_not_fill_the_sockets_buffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CONNECTION_SEND_BYTES_MAX", 200_000)
    monkeypatch.setattr(limits, "CONNECTION_BACKLOG_BYTES_MAX", 100_000)
    count, reply = 200, bytes(10_000)

    async def steps() -> None:
        peer = Accepted()
        asked = serve_large_replies(peer, reply=reply)
        peer.receive(WIDE + b"".join(map(get, range(count))))
        taken_bytes = 0
        while len(asked) < count:
            before = len(asked)
            for _ in range(20):
                peer.turn.end()
            assert len(peer.transport.written) <= 3 * limits.CONNECTION_SEND_BYTES_MAX
            taken_bytes += len(peer.transport.written)
            peer.transport.written = b""
            peer.connection.resume_writing()
            peer.turn.end()
            assert len(asked) > before
        for _ in range(20):
            peer.turn.end()
        assert keys(asked) == list(range(count))
        assert taken_bytes + len(peer.transport.written) > count * len(reply)

    run(steps)


@pytest.mark.parametrize("lost", [False, True], ids=["reset", "lost"])
def test_what_waits_is_let_go_of_with_its_stream(lost: bool) -> None:
    async def steps() -> None:
        peer = Accepted()
        serve_large_replies(peer)
        peer.connection.core.turn.forget = lambda connection: None  # type: ignore[method-assign]
        page = h2_request(15, b"/version", b"text/plain", b"").replace(b"POST", b"GET")
        session = peer.connection
        peer.receive(NO_WINDOW + b"".join(map(get, range(5))) + json_request(11) + grpc_request(13) + page)
        peer.turn.end()
        assert waiting(peer) == 5
        unfinished = peer.connection.core.unfinished
        assert unfinished.total_bytes > 5 * limits.DEFERRED_REQUEST_BYTES
        if lost:
            session.connection_lost(None)
        else:
            peer.receive(reset(3, 4, 5, 6, 7))
            assert waiting(peer) == 0
        assert unfinished.total_bytes == 0

    run(steps)
