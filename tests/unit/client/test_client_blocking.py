# SPDX-License-Identifier: Apache-2.0
"""A blocking connection on a socket that takes what the test says, when it says so, and a clock that the test moves."""

import socket
from collections.abc import Callable
from typing import Any, cast

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import CallTimeout, ConnectionLost, OutcomeUnknown, _blocking
from lessor.client._blocking import BlockingCall, BlockingChannel, BlockingConnection, at_once

PUT = BY_PATH["/etcdserverpb.KV/Put"]
PIECE = 10_000  # bytes that the socket takes at once
REQUEST = rpc.PutRequest(key=b"k", value=b"x" * (5 * PIECE))  # within the window that a connection begins with


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def now_s(self) -> float:
        return self.s


class Uplink:
    """Stands for a socket. `take` says how many bytes of a write leave, or raises; `arrived` is there to be read."""

    def __init__(self, take: Callable[["Uplink", int], int]) -> None:
        self.take = take
        self.limit_s = 0.0
        self.written = 0
        self.writes = 0
        self.closed = False
        self.arrived: list[bytes] = []
        self.waited_s = -1.0  # the limit under which it was last read in vain

    def settimeout(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def recv(self, _: int) -> bytes:
        if self.arrived:
            return self.arrived.pop(0)
        self.waited_s = self.limit_s
        raise BlockingIOError if self.limit_s == 0 else TimeoutError

    def send(self, data: memoryview) -> int:
        assert not self.closed
        self.writes += 1
        taken = self.take(self, len(data))
        self.written += taken
        return taken

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_blocking, "_clock", clock)
    return clock


def call_on(uplink: Uplink, timeout_s: float | None, silence_s: float = 2.0) -> BlockingCall:
    """A put over a connection whose server may be silent for `silence_s`."""
    channel = BlockingChannel("127.0.0.1:1")
    plain = cast(Any, uplink)
    connection = BlockingConnection(channel.endpoints[0], plain, 1 << 20, 1 << 20, silence_s / 2, silence_s / 2)
    deadline = None if timeout_s is None else channel.now_s() + timeout_s
    return BlockingCall(channel, connection, PUT, connection.headers(PUT, timeout_s, ()), timeout_s, deadline)


async def ask(call: BlockingCall) -> None:
    await call.send(REQUEST, last=True)
    await call.receive()


@pytest.mark.parametrize("timeout_s", [None, 100.0])
def test_a_slow_write_goes_on_while_pieces_leave(clock: Clock, timeout_s: float | None) -> None:
    def slowly(uplink: Uplink, offered: int) -> int:
        assert uplink.limit_s == 2.0
        clock.s += 1.5
        return min(offered, PIECE)

    uplink = Uplink(slowly)
    call = call_on(uplink, timeout_s)
    at_once(call.send(REQUEST, last=True))
    assert uplink.written > 5 * PIECE
    assert clock.s > 1000.0 + 5 * 1.5  # far beyond what a silent server has
    assert not call.connection.lost


def test_a_write_ends_at_the_deadline_of_its_call_though_pieces_leave(clock: Clock) -> None:
    def slowly(uplink: Uplink, offered: int) -> int:
        clock.s += 1.5
        return min(offered, PIECE)

    uplink = Uplink(slowly)
    call = call_on(uplink, 3.0)
    with pytest.raises(CallTimeout) as caught:
        at_once(ask(call))
    assert isinstance(caught.value, OutcomeUnknown)
    assert uplink.writes == 2
    assert uplink.closed


def test_a_write_that_nobody_takes_ends_at_the_deadline_of_its_call(clock: Clock) -> None:
    def once(uplink: Uplink, offered: int) -> int:
        if uplink.writes == 1:
            clock.s += 1.0
            return min(offered, PIECE)
        clock.s += uplink.limit_s
        raise TimeoutError("timed out")

    uplink = Uplink(once)
    call = call_on(uplink, 3.0, silence_s=1e9)
    with pytest.raises(CallTimeout) as caught:
        at_once(ask(call))
    assert isinstance(caught.value, OutcomeUnknown)
    assert clock.s == 1003.0
    assert uplink.closed
    call.cancel()
    assert uplink.writes == 2  # nothing is written behind half a frame


def test_a_write_that_nobody_takes_ends_with_the_connection_when_the_server_is_silent(clock: Clock) -> None:
    def never(uplink: Uplink, offered: int) -> int:
        clock.s += uplink.limit_s
        raise TimeoutError("timed out")

    uplink = Uplink(never)
    with pytest.raises(ConnectionLost, match="connection was taken, and closed") as caught:
        at_once(ask(call_on(uplink, 100.0)))
    assert isinstance(caught.value, OutcomeUnknown)
    assert clock.s == 1002.0
    assert uplink.closed


def test_an_interrupt_in_a_write_leaves_nothing_to_be_written(clock: Clock) -> None:
    def interrupted(uplink: Uplink, offered: int) -> int:
        if uplink.writes == 2:
            raise KeyboardInterrupt
        return min(offered, PIECE)

    uplink = Uplink(interrupted)
    call = call_on(uplink, 3.0)
    with pytest.raises(KeyboardInterrupt):
        at_once(ask(call))
    assert uplink.closed
    call.cancel()
    call.connection.close()
    assert uplink.writes == 2


def test_what_came_between_two_calls_is_taken_without_waiting_for_more(clock: Clock) -> None:
    limits = []

    def all_of_it(uplink: Uplink, offered: int) -> int:
        limits.append(uplink.limit_s)
        return offered

    uplink = Uplink(all_of_it)
    connection = call_on(uplink, 1.0).connection
    clock.s += 100.0
    settings, ping = bytes(3) + b"\x04" + bytes(5), b"\0\0\x08\x06" + bytes(5) + b"areyouup"
    uplink.arrived = [settings, ping]
    connection.catch_up(clock.s + 0.5)
    assert uplink.waited_s == 0.0
    assert limits == [0.5, 0.5]  # the answers have the time of the call to come, not of the one before
    assert connection.usable


def test_the_handshake_of_tls_has_what_connecting_has_left_of_the_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    class Tls:
        def set_alpn_protocols(self, names: list[str]) -> None:
            pass

        def wrap_socket(self, plain: socket.socket, server_hostname: str) -> socket.socket:
            limits.append(plain.gettimeout())
            raise TimeoutError

    def connected(address: tuple[str, int], limit_s: float) -> socket.socket:
        clock.s += 1.5
        plain = socket.socket()
        plain.settimeout(limit_s)
        return plain

    monkeypatch.setattr(socket, "create_connection", connected)
    channel = BlockingChannel("https://127.0.0.1:1", connect_timeout_s=2.0, ssl=cast(Any, Tls()))
    with pytest.raises(ConnectionLost):
        at_once(channel.start(PUT))
    assert limits == [0.5]
