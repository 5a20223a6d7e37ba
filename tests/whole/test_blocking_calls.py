# SPDX-License-Identifier: Apache-2.0
"""Calls without an event loop: the same replies and errors as with one, in the caller's thread."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import (
    CallTimeout,
    ClientClosed,
    ConnectionLost,
    LoginFailed,
    OutcomeUnknown,
    ServerError,
    tls_context,
)
from lessor.client._blocking import at_once, blocking_calls
from lessor.client._finite import FiniteCalls
from lessor.testing.server import InProcessServer

SETTINGS = bytes(3) + b"\x04" + bytes(5)  # a server's first frame


@contextmanager
def calls_to(*endpoints: str, user: str = "", password: str = "", **channel: Any) -> Iterator[FiniteCalls]:
    calls = blocking_calls(5.0, user, password, endpoints=endpoints, **channel)
    try:
        yield calls
    finally:
        at_once(calls.channel.aclose())


@contextmanager
def peer(serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server of bytes: each connection is handed to `serve` in a thread."""

    def run(taken: socket.socket) -> None:
        with taken:
            serve(taken)

    def accept() -> None:
        while True:
            try:
                taken, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=run, args=(taken,), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_calls_and_their_errors_are_those_of_the_client() -> None:
    with InProcessServer() as server, calls_to(server.address) as calls:
        assert at_once(calls.put("a", b"x" * 1_000_000)).header.revision == 2
        assert at_once(calls.get("a")).kvs[0].value == b"x" * 1_000_000
        assert at_once(calls.grant(60, lease_id=7)).ID == 7
        assert at_once(calls.keep_alive_once(7)).TTL == 60
        with pytest.raises(ServerError, match="etcdserver: requested lease not found") as caught:
            at_once(calls.revoke(8))
        assert caught.value.code is Code.NOT_FOUND
        assert not caught.value.outcome_unknown

        async def pieces() -> list[rpc.RangeResponse]:
            return [piece async for piece in calls.get_stream("a", prefix=True)]

        assert sum(len(piece.kvs) for piece in at_once(pieces())) == 1


def test_over_tls_and_as_a_user() -> None:
    with InProcessServer(tls=True, root_password="root") as server:
        ssl = tls_context(ca_file=str(server.ca_file))
        with calls_to(server.client_url, user="root", password="root", ssl=ssl) as calls:
            at_once(calls.put("a", "b"))
            for _ in range(3):
                assert at_once(calls.get("a")).count == 1
        with calls_to(server.client_url, user="root", password="no", ssl=ssl) as calls, pytest.raises(LoginFailed):
            at_once(calls.get("a"))
        with (
            calls_to(server.client_url, user="root", password="root") as calls,
            pytest.raises(ConnectionLost, match="certificate verify failed"),
        ):
            at_once(calls.get("a"))


def test_a_connection_that_has_ended_meanwhile_is_made_again() -> None:
    with InProcessServer() as server, calls_to(server.address) as calls:
        at_once(calls.put("a", "b"))
        server.restart()
        at_once(calls.put("a", "c"))
        server.drop_connections()
        assert at_once(calls.get("a")).kvs[0].value == b"c"


def test_the_next_endpoint_is_asked_when_one_is_away() -> None:
    with InProcessServer() as away, InProcessServer() as server:
        away.stop()
        with calls_to(away.address, server.address) as calls:
            at_once(calls.put("a", "b"))
            server.stop()
            with pytest.raises(ConnectionLost, match=f"{away.address}: connection refused") as caught:
                at_once(calls.put("a", "b"))
        assert not caught.value.outcome_unknown


def test_no_answer_in_time_says_whether_a_write_may_have_happened() -> None:
    with InProcessServer() as server, calls_to(server.address) as calls:
        at_once(calls.get("a"))
        with server.delay_replies(60):
            with pytest.raises(CallTimeout) as caught:
                at_once(calls.put("a", "b", timeout_s=0.05))
            assert isinstance(caught.value, OutcomeUnknown)


def test_a_silent_server_is_asked_for_a_sign_of_life_and_given_up() -> None:
    def be_silent(taken: socket.socket) -> None:
        taken.sendall(SETTINGS)
        while taken.recv(10_000):
            pass

    with peer(be_silent) as address, calls_to(address, ping_after_s=0.05, ping_answer_s_max=0.05) as calls:
        with pytest.raises(ConnectionLost, match="no sign of life") as caught:
            at_once(calls.put("a", "b"))
        assert isinstance(caught.value, OutcomeUnknown)


def test_a_server_that_takes_no_bytes_does_not_hold_a_call_beyond_its_deadline() -> None:
    over = threading.Event()
    largest = (2**31 - 1).to_bytes(4, "big")
    windows = bytes((0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4)) + largest  # SETTINGS: of a stream
    windows += bytes((0, 0, 4, 8, 0, 0, 0, 0, 0)) + (2**31 - 1 - 65_535).to_bytes(4, "big")  # and of the connection

    def take_nothing(taken: socket.socket) -> None:
        taken.sendall(windows)
        over.wait()

    with peer(take_nothing) as address, calls_to(address, ping_after_s=1.5, ping_answer_s_max=1.5) as calls:
        with pytest.raises(CallTimeout) as caught:
            at_once(calls.put("a", b"x" * 30_000_000, timeout_s=0.2))
        over.set()
        assert isinstance(caught.value, OutcomeUnknown)


def test_a_connection_that_is_taken_and_closed_is_told() -> None:
    with peer(lambda taken: taken.close()) as address, calls_to(address) as calls:
        with pytest.raises(ConnectionLost) as caught:
            at_once(calls.get("a"))
        assert caught.value.taken


def test_a_server_of_another_protocol_is_told() -> None:
    def speak(taken: socket.socket) -> None:
        taken.recv(1_024)
        taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        taken.recv(1_024)

    with peer(speak) as address, calls_to(address) as calls, pytest.raises(ConnectionLost) as caught:
        at_once(calls.put("a", "b"))
    assert not caught.value.outcome_unknown


def test_after_its_end_no_call_is_made() -> None:
    with InProcessServer() as server, calls_to(server.address) as calls:
        at_once(calls.get("a"))
        at_once(calls.channel.aclose())
        with pytest.raises(ClientClosed):
            at_once(calls.get("a"))


def test_an_interrupt_leaves_no_half_read_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with InProcessServer() as server, calls_to(server.address) as calls:
        at_once(calls.put("a", "b"))
        connection = calls.channel._idle[0]  # type: ignore[attr-defined]

        def interrupt(deadline: float | None) -> bool:
            raise KeyboardInterrupt

        monkeypatch.setattr(connection, "read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            at_once(calls.get("a"))
        assert connection.lost
        assert at_once(calls.get("a")).count == 1


def test_a_call_that_needs_an_event_loop_says_so() -> None:
    async def wait() -> None:
        await _Forever()

    with pytest.raises(RuntimeError, match="cannot be made without one"):
        at_once(wait())


class _Forever:
    def __await__(self) -> Any:
        yield


def test_the_time_limit_includes_connecting() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        with calls_to(f"127.0.0.1:{address[1]}", connect_timeout_s=3600) as calls, pytest.raises(CallTimeout):
            at_once(calls.get("a", timeout_s=0.1))
        for each in waiting:
            each.close()
