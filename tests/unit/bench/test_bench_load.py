# SPDX-License-Identifier: Apache-2.0
"""The load programs take no wrong answer for a right one. The peer is a script of frames, on a real socket.

Laws: a reply with another status, another lease, no message, two messages or cut short ends the run; a right one is
counted, whatever pieces it comes in.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator

import hpack
import pytest

from bench import population
from bench.h1_client import JsonCalls
from bench.h2_calls import Keepalives, UnaryCalls
from bench.h2_client import DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, frame, message
from bench.load_loop import Report, WrongReplyError, percentiles, run_through
from lessor.api.proto import rpc_pb2

Script = Callable[[socket.socket], None]
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
PREFACE_BYTES = 24


@pytest.fixture
def peer() -> Iterator[Callable[[Script], tuple[str, int]]]:
    """Serves one connection with a script, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def start(script: Script) -> tuple[str, int]:
            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(5)
                    script(connection)
                    while connection.recv(65_536):
                        pass

            threads.append(threading.Thread(target=serve, daemon=True))
            threads[-1].start()
            return "127.0.0.1", listener.getsockname()[1]

        yield start
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()


def frames(connection: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """What the client sends: kind, flags, stream and payload of each frame."""
    stream = connection.makefile("rb")
    stream.read(PREFACE_BYTES)
    while head := stream.read(9):
        high, low, kind, flags, number = struct.unpack(">BHBBI", head)
        yield kind, flags, number, stream.read(high << 16 | low)


def block(fields: list[tuple[str, str]]) -> bytes:
    """A header block that needs no table."""
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields
    )


def reply(stream: int, *payloads: bytes, status: str = "0") -> bytes:
    body = b"".join(frame(DATA, 0, stream, message(payload)) for payload in payloads)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream, block([("grpc-status", status)]))
    return frame(HEADERS, END_HEADERS, stream, block(HEAD)) + body + trailers


def granting(answer: Callable[[int, rpc_pb2.LeaseGrantRequest], bytes], cut: int = 0) -> Script:
    """Answers each grant with the bytes of `answer`, in pieces of `cut` bytes."""

    def script(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for kind, _, stream, payload in frames(connection):
            if kind == DATA:
                data = answer(stream, rpc_pb2.LeaseGrantRequest.FromString(payload[5:]))
                for start in range(0, len(data), cut or len(data)):
                    connection.sendall(data[start : start + (cut or len(data))])

    def forgiving(connection: socket.socket) -> None:
        try:
            script(connection)
        except OSError:  # the client had enough
            return

    return forgiving


def right(stream: int, request: rpc_pb2.LeaseGrantRequest) -> bytes:
    return reply(stream, rpc_pb2.LeaseGrantResponse(ID=request.ID, TTL=request.TTL).SerializeToString())


IDS = population.new_ids(12)


def grant_all(address: tuple[str, int]) -> UnaryCalls:
    seen = []

    def check(number: int, data: bytes) -> None:
        granted = rpc_pb2.LeaseGrantResponse.FromString(data).ID
        if granted != IDS[number]:
            raise WrongReplyError(f"lease {granted} for {IDS[number]}")
        seen.append(granted)

    requests = [rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=60) for lease_id in IDS]
    client = UnaryCalls(address, 5, population.GRANT_PATH, requests, check, once=True)
    try:
        run_through([client])
    finally:
        client.close()
    assert sorted(seen) == list(IDS)
    return client


@pytest.mark.parametrize("cut", [0, 1, 7, 20])
def test_each_request_of_a_list_is_made_once(peer: Callable[[Script], tuple[str, int]], cut: int) -> None:
    client = grant_all(peer(granting(right, cut)))
    assert client.sent == client.answered == len(IDS)


def other_lease(stream: int, request: rpc_pb2.LeaseGrantRequest) -> bytes:
    request.ID += stream == 9
    return right(stream, request)


WRONG: dict[str, Callable[[int, rpc_pb2.LeaseGrantRequest], bytes]] = {
    "another lease": other_lease,
    "a status": lambda stream, _: reply(stream, status="14"),
    "no message": lambda stream, _: reply(stream),
    "two messages": lambda stream, request: reply(stream, request.SerializeToString(), request.SerializeToString()),
    "HTTP status": lambda stream, _: frame(HEADERS, END_HEADERS, stream, block([(":status", "503")])),
    "reset": lambda stream, _: frame(RST_STREAM, 0, stream, bytes((0, 0, 0, 2))),
    "half a message": lambda stream, _: frame(DATA, 0, stream, message(b"1234")[:-1]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reply_ends_the_run(peer: Callable[[Script], tuple[str, int]], wrong: str) -> None:
    with pytest.raises((WrongReplyError, ConnectionError)):
        grant_all(peer(granting(WRONG[wrong])))


def renewing(connection: socket.socket, ping: bytes = frame(PING, 0, 0, bytes(8)), off: int = 0) -> None:
    """Renews leases, or those `off` from them; after eight, one of another TTL.

    A PING before a reply must be answered before the next one.
    """
    connection.sendall(frame(HEADERS, END_HEADERS, 1, block(HEAD)))
    renewed = pings = 0
    try:
        for kind, _, _, payload in frames(connection):
            if kind == PING:
                pings += 1
            elif kind == DATA:
                assert not ping or pings >= renewed - 1
                lease_id = rpc_pb2.LeaseKeepAliveRequest.FromString(payload[5:]).ID
                ttl_s = 60 if renewed < 8 else 59
                whole = rpc_pb2.LeaseKeepAliveResponse(ID=lease_id + off, TTL=ttl_s).SerializeToString()
                connection.sendall(ping + frame(DATA, 0, 1, message(whole)))
                renewed += 1
    except OSError:  # the client had enough
        return


@pytest.mark.parametrize(("count", "fine"), [(8, True), (9, False)])
def test_renewals_are_of_the_lease_and_the_ttl_asked_for(
    peer: Callable[[Script], tuple[str, int]], count: int, fine: bool
) -> None:
    client = Keepalives(peer(renewing), 1, 60, population.new_ids(count), once=True)
    report = Report("keepalive", 1, 1)
    try:
        if fine:
            run_through([client], report)
            assert client.answered == count == report.replies
        else:
            with pytest.raises(WrongReplyError, match="for 60 s and got 59"):
                run_through([client], report)
    finally:
        client.close()


def test_one_lease_answered_with_the_same_bytes_is_still_looked_at(peer: Callable[[Script], tuple[str, int]]) -> None:
    client = Keepalives(peer(lambda connection: renewing(connection, b"")), 1, 60, population.new_ids(1))
    try:
        with pytest.raises(WrongReplyError, match="for 60 s and got 59"):
            run_through([client])
        assert client.answered == 8
    finally:
        client.close()


def test_a_renewal_of_another_lease_ends_the_run(peer: Callable[[Script], tuple[str, int]]) -> None:
    client = Keepalives(peer(lambda connection: renewing(connection, off=1)), 2, 60, population.new_ids(4), once=True)
    try:
        with pytest.raises(WrongReplyError, match="out of order"):
            run_through([client])
    finally:
        client.close()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", None),
        (b"HTTP/1.1 503 no\r\nContent-Length: 2\r\n\r\n{}", "unexpected reply"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "no Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}{}", "more than was asked for"),
    ],
)
def test_a_json_reply_is_read_whole(
    peer: Callable[[Script], tuple[str, int]], answer: bytes, problem: str | None
) -> None:
    got: list[object] = []
    client = JsonCalls(
        peer(lambda connection: connection.sendall(answer)), "/v3/x", [b"{}"], lambda _, it: got.append(it)
    )
    client.refill(0.0)
    try:
        if problem is None:
            while not client.answered:
                client.read(0.0)
            assert got == [{}]
        else:
            with pytest.raises(WrongReplyError, match=problem):
                client.read(0.0)
    finally:
        client.close()


def test_percentiles_are_of_the_ordered_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentiles(values, (0.0, 0.5, 0.99, 1.0)) == [1.0, 51.0, 100.0, 100.0]


def test_hpack_understands_the_blocks_of_these_tests() -> None:
    assert [tuple(map(str, field)) for field in hpack.Decoder().decode(block(HEAD))] == HEAD
