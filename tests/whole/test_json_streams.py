# SPDX-License-Identifier: Apache-2.0
"""Streams in JSON that bring more requests than a turn takes, on real connections: each is answered, in its order."""

import base64
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.testing.server import InProcessServer
from tests.conformance.raw_h2 import DATA, END_STREAM, RawH2
from tests.in_process import in_process

COUNT = 10_000
REQUESTS = b"".join(b'{"ID":%d}' % number for number in range(1, COUNT + 1))
ROUTE = "/v3/lease/keepalive"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with in_process(Path(tmp_path_factory.mktemp("data"))) as running:
        yield running


def ids(replies: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb'"ID":"([0-9]+)"', replies)]


def connect(server: InProcessServer) -> socket.socket:
    host, _, port = server.address.partition(":")
    return socket.create_connection((host, int(port)), 20)


def read_until(one: socket.socket, end: bytes) -> bytes:
    got = bytearray()
    while end not in got[-1_000:]:
        more = one.recv(65_536)
        assert more
        got += more
    return bytes(got)


def test_over_http_1(server: InProcessServer) -> None:
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(REQUESTS)}\r\n\r\n"
    with connect(server) as one:
        for _ in range(2):  # the connection is read again afterwards
            one.sendall(head.encode() + REQUESTS)
            assert ids(read_until(one, b"0\r\n\r\n")) == list(range(1, COUNT + 1))


def test_over_http_2(server: InProcessServer) -> None:
    with RawH2(server.address, window=1 << 30) as connection:
        streams = [connection.open(ROUTE, end=False, content_type="application/json") for _ in range(2)]
        for at in range(0, len(REQUESTS), 16_384):
            last = at + 16_384 >= len(REQUESTS)
            for stream in streams:
                connection.send(DATA, END_STREAM if last else 0, stream, REQUESTS[at : at + 16_384])
        connection.give_window(0, 1 << 30)
        outcomes = connection.outcomes(streams)
        assert all(ids(outcomes[stream].data) == list(range(1, COUNT + 1)) for stream in streams)


def test_over_a_websocket(server: InProcessServer) -> None:
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16))
    head = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" % ROUTE.encode() + key
    with connect(server) as one:
        frame = b"\x81\xff" + struct.pack(">Q", len(REQUESTS)) + bytes(4) + REQUESTS
        one.sendall(head + b"\r\n\r\n" + frame)
        assert ids(read_until(one, b'"ID":"%d"' % COUNT)) == list(range(1, COUNT + 1))
