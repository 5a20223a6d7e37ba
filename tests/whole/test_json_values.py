# SPDX-License-Identifier: Apache-2.0
"""JSON with very many names and values is refused in the same words on each way in, and the next request is served."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.server.options import Options
from lessor.testing.server import InProcessServer
from tests.attack.floods import chunks, frame, posted, upgrade
from tests.attack.peers import connected
from tests.conformance.raw_h2 import RawH2
from tests.in_process import in_process

OPS_MAX = 7
VALUES_MAX = Options(max_txn_ops=OPS_MAX).json_values_max
MANY = b'{"x":[' + b"0," * VALUES_MAX + b"0]}"
FEW = b'{"x":[' + b"0," * (VALUES_MAX - 3) + b"0]}"
REFUSED = f"lessor: JSON with more than {VALUES_MAX} names and values"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with in_process(Path(tmp_path_factory.mktemp("data")), f"--max-txn-ops={OPS_MAX}") as running:
        yield running


def answer(server: InProcessServer, sent: bytes, end: bytes) -> bytes:
    with connected(server.address) as peer:
        peer.sendall(sent)
        got = b""
        while end not in got:
            more = peer.recv(65_536)
            assert more, got
            got += more
        return got


def test_a_unary_call(server: InProcessServer) -> None:
    both = posted("/v3/kv/txn", MANY) + posted("/v3/kv/txn", FEW)
    got = answer(server, both, b'"revision"')
    assert got.startswith(b"HTTP/1.1 429 ")
    assert REFUSED.encode() in got
    assert got.count(b"HTTP/1.1 200 OK") == 1


def test_a_unary_call_over_http_2(server: InProcessServer) -> None:
    with RawH2(server.address) as connection:
        stream = connection.open("/v3/kv/txn", MANY, content_type="application/json")
        outcome = connection.outcomes([stream])[stream]
    assert json.loads(outcome.data)["message"].startswith(REFUSED)


def test_a_stream(server: InProcessServer) -> None:
    opening = posted("/v3/lease/keepalive", b"", chunked=True)
    got = answer(server, opening + chunks(FEW, 1) + chunks(MANY, 1), b"\r\n0\r\n\r\n")
    assert got.count(b'{"result":') == 1
    assert REFUSED.encode() in got


def test_a_websocket(server: InProcessServer) -> None:
    parts = [MANY[at : at + 100] for at in range(0, len(MANY), 100)]
    sent = frame(0x01, parts[0]) + b"".join(frame(0x00, part) for part in parts[1:]) + frame(0x80, b"")
    got = answer(server, upgrade("/v3/lease/keepalive") + frame(0x81, b"{}") + sent, b"names and values")
    assert got.count(b'{"result":') == 1
