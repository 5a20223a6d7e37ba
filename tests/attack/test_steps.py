# SPDX-License-Identifier: Apache-2.0
"""Many requests in few frames: handled in steps, and still in order, all of them, and with what comes behind them."""

import socket

import pytest

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.testing.server import InProcessServer
from lessor.wire import frames, grpc
from lessor.wire.h2 import DATA, HEADERS, TRAILERS, H2Client
from tests.attack.floods import KEEPALIVE

REQUESTS = 20 * limits.H2_STEP_MESSAGES + 7


def replies(server: InProcessServer, body: bytes) -> tuple[list[int], bytes | None]:
    """The lease ids that a keepalive stream answers, and its grpc-status."""
    client = H2Client()
    stream = client.start_request(KEEPALIVE)
    client.send_data(stream, body, end_stream=True)
    deframer = grpc.Deframer(1_000_000)
    ids = []
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        while not stream.remote_ended:
            peer.sendall(client.take_output())
            for kind, _, payload in client.receive(peer.recv(65_536)):
                if kind == DATA:
                    found = [rpc_pb2.LeaseKeepAliveResponse.FromString(message) for message in deframer.feed(payload)]
                    ids += [reply.ID for reply in found]
                elif kind in (HEADERS, TRAILERS):
                    last = stream.trailers or stream.head
    assert last is not None
    return ids, last.get(b"grpc-status")


def request(lease: int) -> bytes:
    return grpc.frame(rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString())


@pytest.mark.parametrize(
    ("behind", "status"),
    [(b"", b"0"), (b"\0\0\0\0", b"0"), (b"\0\0", b"0"), (b"\0\0\0\0\5half", b"13"), (b"\0\xff\xff\xff\xff", b"8")],
    ids=["nothing", "four bytes", "two bytes", "half a message", "too large a message"],
)
def test_all_are_answered_in_order_and_the_end_comes_last(behind: bytes, status: bytes) -> None:
    with InProcessServer() as server:
        wanted = list(range(1, REQUESTS + 1))
        ids, got = replies(server, b"".join(map(request, wanted)) + behind)
        assert ids == wanted
        assert got == status


def test_a_malformed_request_ends_them_after_those_before_it() -> None:
    with InProcessServer() as server:
        wanted = list(range(1, REQUESTS + 1))
        ids, got = replies(server, b"".join(map(request, wanted)) + grpc.frame(b"\xff") + request(5) * 1_000)
        assert ids == wanted
        assert got == b"13"


def test_small_requests_fill_frames() -> None:
    """That the bodies above are taken in steps at all."""
    assert len(request(REQUESTS)) * REQUESTS > limits.H2_STEP_BYTES
    assert frames.FRAME_BYTES_DEFAULT // len(request(5)) > 2 * limits.H2_STEP_MESSAGES
