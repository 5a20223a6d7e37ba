# SPDX-License-Identifier: Apache-2.0
"""Requests that are sent by halves: what they may take of the memory, and who is refused when it is too much."""

import base64
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.unfinished import Unfinished
from lessor.testing.server import InProcessServer
from tests.conformance.lessor_server import LessorServer
from tests.conformance.raw_h2 import DATA, END_STREAM, RST_STREAM, RawH2, framed
from tests.in_process import in_process

PUT = "/etcdserverpb.KV/Put"
WATCH = "/etcdserverpb.Watch/Watch"
VALUE_BYTES = 100_000
CONNECTION_BYTES_MAX = 1_100_000  # two of the largest messages that this server takes are less
SERVER_BYTES_MAX = 1_500_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "UNFINISHED_CONNECTION_BYTES_MAX", CONNECTION_BYTES_MAX)
        patch.setattr(limits, "UNFINISHED_BYTES_MAX", SERVER_BYTES_MAX)
        with in_process(Path(tmp_path_factory.mktemp("data")), "--max-request-bytes=10000") as running:
            yield running


def kept_bytes(server: InProcessServer) -> int:
    return server.call(lambda: server.server.core.unfinished.total_bytes)


# A put that is larger than this server takes, but for its last byte.
BODY = framed(b"\x0a\x01k\x12" + b"\xa0\x8d\x06" + bytes(VALUE_BYTES))[:-1]


def test_one_connection_may_keep_so_much_and_its_last_request_is_refused(server: InProcessServer) -> None:
    fits = CONNECTION_BYTES_MAX // len(BODY)
    with RawH2(server.address) as connection:
        streams = [connection.open(PUT, BODY, end=False) for _ in range(fits + 1)]
        refused = connection.outcomes([streams[-1]])[streams[-1]].status
        assert refused[0] == Code.RESOURCE_EXHAUSTED
        assert f"larger than max {CONNECTION_BYTES_MAX}" in refused[1]
        assert kept_bytes(server) == fits * len(BODY)
        for stream in streams[:-1]:
            connection.send(DATA, END_STREAM, stream, b"\0")
        outcomes = connection.outcomes(streams[:-1])  # they came to their end, and to what there is to say about them
        assert {outcome.status[1] for outcome in outcomes.values()} == {"etcdserver: request is too large"}
    assert kept_bytes(server) == 0


@pytest.mark.parametrize("path", [PUT, WATCH])
def test_what_a_reset_or_lost_call_kept_is_given_back(server: InProcessServer, path: str) -> None:
    half = BODY[: VALUE_BYTES // 2]
    with RawH2(server.address) as connection:
        connection.open(path, half, end=False)
        reset = connection.open(path, half, end=False)
        connection.send(RST_STREAM, 0, reset, bytes(4))
        connection.call("/etcdserverpb.KV/Range", framed(rpc_pb2.RangeRequest(key=b"k")))
        assert 0 < kept_bytes(server) <= len(half)
    with RawH2(server.address) as connection:  # answered after the loss of the other one was seen
        connection.call("/etcdserverpb.KV/Range", framed(rpc_pb2.RangeRequest(key=b"k")))
    assert kept_bytes(server) == 0


def test_beyond_the_bound_of_all_whoever_keeps_most_pays(server: InProcessServer) -> None:
    with RawH2(server.address) as greedy, RawH2(server.address) as modest:
        streams = [greedy.open(PUT, BODY, end=False) for _ in range(10)]
        greedy.call("/etcdserverpb.KV/Range", framed(rpc_pb2.RangeRequest(key=b"k")))
        own = [modest.open(PUT, BODY, end=False) for _ in range(5)]
        refused = greedy.outcomes([streams[-1]])[streams[-1]].status
        assert refused[0] == Code.RESOURCE_EXHAUSTED
        assert "all connections" in refused[1]
        assert kept_bytes(server) <= SERVER_BYTES_MAX
        for stream in own:
            modest.send(DATA, END_STREAM, stream, b"\0")
        assert {each.status[1] for each in modest.outcomes(own).values()} == {"etcdserver: request is too large"}


def test_a_half_sent_request_over_http_1_counts_and_is_refused_in_http_s_words(server: InProcessServer) -> None:
    host, _, port = server.address.partition(":")
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with socket.create_connection((host, int(port)), 10) as one, RawH2(server.address) as other:
        one.sendall(head + b" " * 900_000)
        for _ in range(7):
            other.open(PUT, BODY, end=False)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += one.recv(4096)
        assert answer.startswith(b"HTTP/1.1 429 ")


def test_a_half_sent_message_over_a_websocket_counts_and_is_refused(server: InProcessServer) -> None:
    host, _, port = server.address.partition(":")
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16))
    head = b"GET /v3/watch HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + key + b"\r\n\r\n"
    with socket.create_connection((host, int(port)), 10) as one, ExitStack() as stack:
        one.sendall(head + b"\x01\xff" + (1_000_000).to_bytes(8, "big") + bytes(4) + b"{" + b" " * 500_000)
        while kept_bytes(server) < 500_001:
            pass
        for _ in range(3):  # each keeps less
            connection = stack.enter_context(RawH2(server.address))
            for _ in range(4):
                connection.open(PUT, BODY, end=False)
        answer = b""
        while b"unfinished messages of" not in answer:
            more = one.recv(4096)
            assert more
            answer += more
    with RawH2(server.address) as connection:
        while kept_bytes(server):
            connection.call("/etcdserverpb.KV/Range", framed(rpc_pb2.RangeRequest(key=b"k")))


CHUNK_BYTES = 65_536


@pytest.mark.slow
def test_a_peer_that_half_sends_on_many_streams_costs_bounded_memory() -> None:
    """A quarter of a gigabyte, in pieces for each stream in turn; others are served meanwhile."""
    streams_of, total = 256, 256 * 1_048_576
    half = framed(bytes(1_500_000))[:1_048_576]
    with LessorServer() as server, RawH2(server.address) as hostile:
        status = Path(f"/proc/{server.pid}/status")
        before = peak_bytes(status)
        streams = [hostile.open(PUT, half[:CHUNK_BYTES], end=False) for _ in range(streams_of)]
        for at in range(CHUNK_BYTES, len(half), CHUNK_BYTES):
            for stream in streams:
                for frame_at in range(at, at + CHUNK_BYTES, 16_384):
                    hostile.send(DATA, 0, stream, half[frame_at : frame_at + 16_384])
            with RawH2(server.address) as other:
                put = rpc_pb2.PutRequest(key=b"k", value=bytes(100_000))
                assert other.call(PUT, framed(put)).status == (0, "")
        outcome = hostile.outcomes([streams[-1]])[streams[-1]]
        assert outcome.status[0] == Code.RESOURCE_EXHAUSTED
        assert hostile.call(PUT, framed(rpc_pb2.PutRequest(key=b"k"))).status == (0, "")
        grown = peak_bytes(status) - before
    assert limits.UNFINISHED_CONNECTION_BYTES_MAX / 2 < grown < total / 2


def peak_bytes(status: Path) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


class Keeper:
    """A connection that keeps requests of some sizes."""

    def __init__(self, count: Unfinished, address: str = "10.0.0.1") -> None:
        self.count = count
        self.address = address
        self.sizes: list[int] = []
        self.refused: list[str] = []

    def keep(self, size: int) -> None:
        self.sizes.append(size)
        self.count.change(self, size)

    def grow(self, size: int) -> None:
        """More comes of the request that began first."""
        if self.sizes:
            self.sizes[0] += size
            self.count.change(self, size)

    def finish(self) -> None:
        if self.sizes:
            self.count.change(self, -self.sizes.pop(0))

    def refuse_unfinished(self, error: EtcdError) -> None:
        self.refused.append(error.message)
        self.count.change(self, -self.sizes.pop())


_STEPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40), st.booleans()), max_size=60)


@given(steps=_STEPS)
@example([(0, 1, False)] * 30 + [(0, 40, True)])
def test_the_count_is_true_and_bounded(steps: list[tuple[int, int, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "UNFINISHED_CONNECTION_BYTES_MAX", 60)
        patch.setattr(limits, "UNFINISHED_BYTES_MAX", 150)
        count = Unfinished(message_bytes_max=10)
        keepers = [Keeper(count) for _ in range(5)]
        for number, size, of_an_old_one in steps:
            before = {keeper: sum(keeper.sizes) for keeper in keepers}
            refused = {keeper: len(keeper.refused) for keeper in keepers}
            keeper = keepers[number]
            if not size:
                keeper.finish()
            else:
                keeper.grow(size) if of_an_old_one else keeper.keep(size)
            assert count.total_bytes == sum(sum(keeper.sizes) for keeper in keepers) <= 150
            assert all(sum(keeper.sizes) <= 60 for keeper in keepers)
            for keeper in keepers:
                if len(keeper.refused) > refused[keeper] and keeper is not keepers[number]:
                    assert before[keeper] > 150 // len(keepers)  # the largest share of too much


def test_many_connections_of_one_address_pay_before_a_single_one_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNFINISHED_BYTES_MAX", 1_000)
    count = Unfinished(message_bytes_max=200)
    crowd = [Keeper(count, "10.0.0.1") for _ in range(90)]
    honest = Keeper(count, "10.0.0.2")
    for keeper in crowd:
        keeper.keep(10)
    honest.keep(200)  # far more than any other connection
    assert not honest.refused
    assert sum(len(keeper.refused) for keeper in crowd) == 10
    honest.finish()
    assert count.total_bytes == 800


def test_two_of_the_largest_messages_fit_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNFINISHED_BYTES_MAX", 1_000)
    monkeypatch.setattr(limits, "UNFINISHED_CONNECTION_BYTES_MAX", 100)
    keeper = Keeper(Unfinished(message_bytes_max=200))
    keeper.keep(200)
    keeper.keep(200)
    assert not keeper.refused
    keeper.keep(1)
    assert len(keeper.refused) == 1
