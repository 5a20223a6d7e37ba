# SPDX-License-Identifier: Apache-2.0
"""When a connection reads, pauses and gives up a peer. Transport and turn are stand-ins, the protocols are real."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lessor.base import limits
from lessor.server.connection import Connection
from lessor.server.core import Core
from lessor.wire import frames


class Transport:
    def __init__(self) -> None:
        self.reading = True
        self.closed = False
        self.written = b""

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


class Turn:
    overloaded = False

    def __init__(self) -> None:
        self.to_flush: list[Connection] = []

    def now_s(self) -> float:
        return 0.0

    def flush_later(self, connection: Connection) -> None:
        self.to_flush.append(connection)

    def end(self) -> None:
        to_flush, self.to_flush = self.to_flush, []
        for connection in to_flush:
            connection.flush()


class Accepted:
    """A connection that was just accepted. To be made inside a running loop."""

    def __init__(self) -> None:
        self.turn = Turn()
        self.transport = Transport()
        core = SimpleNamespace(
            turn=self.turn,
            options=SimpleNamespace(message_bytes_max=1_000_000),
            metrics=SimpleNamespace(connections=0),
        )
        self.connection = Connection(cast(Core, core), set())
        self.connection.connection_made(cast(Any, self.transport))

    def receive(self, data: bytes) -> None:
        self.connection.data_received(data)


def run(steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(steps())


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
