# SPDX-License-Identifier: Apache-2.0
"""RangeStream at a whole server: readers that are slow, go away, or lose their rights, and servers that stop."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.server.services.range_stream import RangeStreamCall
from lessor.testing.server import InProcessServer
from tests.conformance.grpc_peer import GrpcPeer
from tests.conformance.raw_h2 import DATA, GOAWAY, RawH2, framed
from tests.conformance.subject import in_background
from tests.in_process import in_process
from tests.whole.test_untaken import core_of, read, taken, turns, unread_bytes, until

pytestmark = pytest.mark.inside

STREAM, RANGE = "/etcdserverpb.KV/RangeStream", "/etcdserverpb.KV/Range"
ALL = framed(rpc.RangeRequest(key=b"k", range_end=b"l"))
VALUE = b"value" + bytes(9_995)
KEYS = 300
CHUNK_BYTES = 100_000
BACKLOG_BYTES = 40_000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessServer]:
    """With 3 MB of keys, which take thirty chunks."""
    monkeypatch.setattr(limits, "RANGE_CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(limits, "RANGE_BACKLOG_BYTES", BACKLOG_BYTES)
    with in_process(tmp_path) as running:
        with GrpcPeer(running.address) as peer:
            for number in range(KEYS):
                peer.call(rpc.PutRequest(key=b"k%03d" % number, value=VALUE))
        yield running


def streams(server: InProcessServer) -> list[RangeStreamCall]:
    """Those that have not ended."""

    def found() -> list[RangeStreamCall]:
        calls = [call for one in server.server._connections for call in getattr(one._session, "streaming", ())]
        return [call._handler for call in calls if isinstance(call._handler, RangeStreamCall)]

    return server.call(found)


def messages_of(data: bytes) -> list[rpc.RangeResponse]:
    found = []
    while data:
        size = int.from_bytes(data[1:5])
        found.append(rpc.RangeStreamResponse.FromString(data[5 : 5 + size]).range_response)
        data = data[5 + size :]
    return found


def joined(data: bytes) -> rpc.RangeResponse:
    reply = rpc.RangeResponse()
    for chunk in messages_of(data):
        reply.MergeFrom(chunk)
    return reply


def stalled(server: InProcessServer, connection: RawH2, count: int = 1) -> list[int]:
    """Streams whose reader has stopped: the server makes no more of them."""
    opened = [connection.open(STREAM, ALL) for _ in range(count)]
    read(connection)
    until(server, lambda: server.call(lambda: core_of(server).long_replies.idle))
    assert len(streams(server)) == count
    return opened


def test_a_slow_reader_gets_all_and_the_server_keeps_a_chunk_of_it(server: InProcessServer) -> None:
    with GrpcPeer(server.address) as peer, RawH2(server.address) as connection:
        wanted: Any = peer.call(rpc.RangeRequest(key=b"k", range_end=b"l"))
        (stream,) = stalled(server, connection)
        most = CHUNK_BYTES + len(VALUE) + BACKLOG_BYTES + 1_000
        assert BACKLOG_BYTES < unread_bytes(server) <= most
        peer.call(rpc.PutRequest(key=b"k000", value=b"later"))
        peer.call(rpc.DeleteRangeRequest(key=b"k1", range_end=b"k2"))
        for given in range(1, 6):  # window by window
            connection.give_window(0, 50_000)
            connection.give_window(stream, 50_000)
            read(connection)
            until(server, lambda: server.call(lambda: core_of(server).long_replies.idle))
            assert unread_bytes(server) <= most, given
        connection.give_window(0, 1 << 24)
        connection.give_window(stream, 1 << 24)
        blocks, data = [], b""
        while True:
            frame = connection.read()
            assert frame is not None
            data += frame.payload if frame.kind == DATA else b""
            blocks += [frame.block] if frame.block else []
            if frame.ends:
                break
        assert blocks[-1]["grpc-status"] == "0"
        # The frames before the first of these were read beside the pings.
        assert data.endswith(wanted.kvs[-1].value + b"\x20" + b"\xac\x02")
        assert not streams(server)


def test_a_reader_that_takes_its_time_gets_the_reply_of_range(server: InProcessServer) -> None:
    with GrpcPeer(server.address) as peer, RawH2(server.address) as connection:
        wanted = peer.call(rpc.RangeRequest(key=b"k", range_end=b"l"))
        stream = connection.open(STREAM, ALL)
        found = taken(connection, [stream])[stream]
        assert found.status == (0, "")
        assert joined(found.data) == wanted
        sizes = [chunk.ByteSize() for chunk in messages_of(found.data)]
        assert max(sizes) <= CHUNK_BYTES + len(VALUE) + 1_000
        assert len(sizes) > 20


def test_streams_that_nobody_reads_hold_up_neither_other_calls_nor_a_compaction(server: InProcessServer) -> None:
    with GrpcPeer(server.address) as peer, RawH2(server.address, window=0) as connection:
        stalled(server, connection, 30)
        asked = connection.open(RANGE, framed(rpc.RangeRequest(key=b"none")))
        connection.give_window(asked, 1_000)
        assert connection.outcomes([asked])[asked].status == (0, "")
        peer.call(rpc.DeleteRangeRequest(key=b"k", range_end=b"l"))
        written: Any = peer.call(rpc.PutRequest(key=b"other"))
        peer.call(rpc.CompactionRequest(revision=written.header.revision))
        until(server, lambda: server.call(lambda: core_of(server).machine.store.unswept == 0))
        assert server.call(lambda: core_of(server).machine.store.key_count_ever(b"k", b"l")) == 0


def test_wide_windows_of_a_peer_that_does_not_read_its_socket_let_no_more_be_made(
    server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket_bytes = 300_000
    monkeypatch.setattr(limits, "CONNECTION_BACKLOG_BYTES_MAX", socket_bytes)
    with RawH2(server.address, window=(1 << 31) - 1) as connection:
        connection.give_window(0, 1 << 30)
        opened = [connection.open(STREAM, ALL) for _ in range(10)]  # 30 MB, more than the sockets take

        def waits() -> bool:
            return bool(core_of(server).long_replies._parked)

        until(server, lambda: server.call(waits))
        turns(server)
        kept = server.call(lambda: max(one.unread_bytes for one in server.server._connections))
        assert socket_bytes < kept <= socket_bytes + CHUNK_BYTES + len(VALUE) + 1_000
        found = connection.outcomes(opened)
        assert {outcome.status for outcome in found.values()} == {(0, "")}
        assert len({outcome.data for outcome in found.values()}) == 1
        assert joined(found[opened[0]].data).count == KEYS


def test_a_stream_whose_revision_was_compacted_ends_with_that(server: InProcessServer) -> None:
    with GrpcPeer(server.address) as peer, RawH2(server.address) as connection:
        (stream,) = stalled(server, connection)
        written: Any = peer.call(rpc.PutRequest(key=b"other"))
        peer.call(rpc.CompactionRequest(revision=written.header.revision))
        found = taken_from_here(connection, stream)
        assert found == (11, errors.COMPACTED.message)


def taken_from_here(connection: RawH2, stream: int) -> tuple[int, str]:
    """The status with which a stream ends that is read from now on."""
    connection.give_window(0, 1 << 24)
    connection.give_window(stream, 1 << 24)
    while True:
        frame = connection.read()
        assert frame is not None
        assert frame.kind != GOAWAY
        if frame.ends:
            return int(frame.block["grpc-status"]), frame.block.get("grpc-message", "")


def test_a_cancelled_stream_leaves_nothing_behind(server: InProcessServer) -> None:
    with RawH2(server.address) as connection:
        for stream in stalled(server, connection, 5):
            connection.send(3, 0, stream, (8).to_bytes(4))  # RST_STREAM, CANCEL
        read(connection)
        assert not streams(server)
        assert unread_bytes(server) == 0
        assert server.call(lambda: core_of(server).kept_keys.total_bytes) == 0


def test_a_stream_ends_at_its_deadline(server: InProcessServer) -> None:
    with RawH2(server.address) as connection:
        stream = connection.open(STREAM, ALL, grpc_timeout="50m")
        read(connection)
        until(server, lambda: not streams(server))
        assert taken_from_here(connection, stream)[0] == 4


def test_a_stream_whose_reader_loses_the_right_ends_with_that(server: InProcessServer) -> None:
    with GrpcPeer(server.address) as peer, RawH2(server.address) as connection:
        (stream,) = stalled(server, connection)
        for request in (
            rpc.AuthUserAddRequest(name="root", password="p"),
            rpc.AuthRoleAddRequest(name="root"),
            rpc.AuthUserGrantRoleRequest(user="root", role="root"),
            rpc.AuthEnableRequest(),
        ):
            peer.call(request)
        assert taken_from_here(connection, stream) == (3, errors.USER_EMPTY.message)


def test_a_server_that_stops_lets_a_stream_end(server: InProcessServer) -> None:
    with GrpcPeer(server.address) as peer, RawH2(server.address) as connection:
        wanted: Any = peer.call(rpc.RangeRequest(key=b"k", range_end=b"l", count_only=True))
        (stream,) = stalled(server, connection)
        stopping = in_background(server.stop)
        while (frame := connection.read()) is not None and frame.kind != GOAWAY:
            pass
        connection.give_window(0, 1 << 24)
        connection.give_window(stream, 1 << 24)
        while (frame := connection.read()) is not None and not frame.ends:
            pass
        assert frame is not None
        assert frame.block["grpc-status"] == "0"
        assert wanted.count == KEYS
        stopping.join(10.0)


def test_chunks_that_nobody_reads_count_among_the_long_replies(
    server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address with most of them loses a connection."""
    monkeypatch.setattr(limits, "LONG_REPLIES_BYTES_MAX", 500_000)
    with RawH2(server.address) as connection:
        with contextlib.suppress(ConnectionError):  # it may be over before all are sent
            for _ in range(10):
                connection.open(STREAM, ALL)
        until(server, lambda: not server.call(lambda: len(server.server._connections)))
        with contextlib.suppress(ConnectionError):  # of reading, or of acknowledging its settings
            while connection.read() is not None:
                pass
