# SPDX-License-Identifier: Apache-2.0
"""Flow control, both ways (RFC 9113 5.2 and 6.9), and what a peer costs us that does not read its replies."""

import hpack
import pytest

from lessor.base import limits
from lessor.wire import frames
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import DATA, END, HEADERS, RESET, H2Server, Stream
from tests.unit.wire.h2_pair import (
    REQUEST_BLOCK,
    RESPONSE_BLOCK,
    TRAILERS_BLOCK,
    ConnectionPair,
    Frame,
    body_of,
    data_frame,
    error_of,
    frames_of,
    headers_frame,
    plain,
    raw_server,
    resets_of,
)

WINDOW = frames.SETTINGS_INITIAL_WINDOW_SIZE
ENDED = frames.FLAG_END_STREAM


def asked(server: H2Server, stream_id: int = 1) -> Stream:
    """A complete request whose response head has been sent."""
    stream = server.receive(headers_frame(stream_id, True))[0][1]
    server.send_headers(stream, RESPONSE_BLOCK)
    server.take_output()
    return stream


def data_of(server: H2Server) -> list[Frame]:
    return [frame for frame in frames_of(server.take_output()) if frame.kind == frames.DATA]


def sizes_of(server: H2Server) -> list[int]:
    return [len(frame.payload) for frame in data_of(server)]


# --- what we send ---------------------------------------------------------------------------------------------------


def test_a_stream_says_once_that_its_peer_has_taken_enough() -> None:
    server = raw_server((WINDOW, 10))
    stream, other = asked(server), asked(server, 3)
    for each in (stream, other):
        server.send_data(each, b"0123456789abcdef")
    stream.wake_below = 4
    server.receive(frames.window_update_frame(1, 1))
    server.receive(frames.window_update_frame(3, 6))
    assert server.drained == []
    server.receive(frames.window_update_frame(1, 1))
    server.receive(frames.window_update_frame(1, 1))
    assert server.drained == [stream]
    server.drained.clear()
    server.receive(frames.window_update_frame(1, 10))
    assert (server.drained, stream.queued_bytes, stream.wake_below) == ([], 0, -1)


def test_data_waits_for_the_streams_window() -> None:
    server = raw_server((WINDOW, 10))
    stream = asked(server)
    server.send_data(stream, b"0123456789abcdef", end_stream=True)
    assert data_of(server) == [(frames.DATA, 0, 1, b"0123456789")]
    assert (stream.queued_bytes, server.queued_bytes) == (6, 6)
    server.receive(frames.window_update_frame(1, 2))
    assert data_of(server) == [(frames.DATA, 0, 1, b"ab")]
    server.receive(frames.window_update_frame(1, 100))
    assert data_of(server) == [(frames.DATA, ENDED, 1, b"cdef")]
    assert (stream.queued_bytes, server.queued_bytes, server.active_streams) == (0, 0, 0)


def test_trailers_wait_behind_their_data() -> None:
    server = raw_server((WINDOW, 4))
    stream = server.receive(headers_frame(1, True))[0][1]
    server.send_response(stream, RESPONSE_BLOCK, b"abcdef", TRAILERS_BLOCK)
    assert [frame.kind for frame in frames_of(server.take_output())] == [frames.HEADERS, frames.DATA]
    assert server.active_streams == 1
    server.receive(frames.window_update_frame(1, 4))
    assert frames_of(server.take_output()) == [
        (frames.DATA, 0, 1, b"ef"),
        (frames.HEADERS, frames.FLAG_END_HEADERS | ENDED, 1, TRAILERS_BLOCK),
    ]
    assert server.active_streams == 0


def test_the_connections_window_is_shared_in_turn() -> None:
    server = raw_server((WINDOW, 1_000_000))
    streams = [asked(server, stream_id) for stream_id in (1, 3, 5)]
    for stream in streams:
        server.send_data(stream, b"x" * 100_000, end_stream=True)
    assert sum(sizes_of(server)) == frames.WINDOW_BYTES_DEFAULT
    server.receive(frames.window_update_frame(0, 5 * 16_384))
    order = [(frame.stream_id, len(frame.payload)) for frame in data_of(server)]
    assert [size for _, size in order] == [16_384] * 5
    assert {stream_id for stream_id, _ in order[:3]} == {1, 3, 5}
    server.receive(frames.window_update_frame(0, 300_000))
    data_of(server)
    assert server.queued_bytes == 0
    assert server.active_streams == 0


def test_a_stream_that_waited_for_the_connection_may_find_its_own_window_used_up() -> None:
    server = raw_server((WINDOW, 70_000))
    first, second = asked(server, 1), asked(server, 3)
    server.send_data(first, b"x" * 100_000)
    server.send_data(second, b"y" * 100_000)
    assert sum(sizes_of(server)) == frames.WINDOW_BYTES_DEFAULT
    server.receive(frames.window_update_frame(0, 1_000_000))
    came = {1: 0, 3: 0}
    for frame in data_of(server):
        came[frame.stream_id] += len(frame.payload)
    assert came == {1: 70_000 - frames.WINDOW_BYTES_DEFAULT, 3: 70_000}
    server.receive(frames.window_update_frame(3, 50_000))
    assert sum(sizes_of(server)) == 30_000


def test_a_whole_response_waits_for_the_connections_window_too() -> None:
    server = raw_server((WINDOW, 1_000_000))
    first = asked(server, 1)
    server.send_data(first, b"x" * (frames.WINDOW_BYTES_DEFAULT - 2), end_stream=True)
    server.take_output()
    second = server.receive(headers_frame(3, True))[0][1]
    server.send_response(second, RESPONSE_BLOCK, b"abcde", TRAILERS_BLOCK)
    assert data_of(server) == [(frames.DATA, 0, 3, b"ab")]
    server.receive(frames.window_update_frame(0, 3))
    assert data_of(server) == [(frames.DATA, 0, 3, b"cde")]
    assert server.active_streams == 0


def test_a_stream_without_a_window_does_not_hold_up_the_others() -> None:
    server = raw_server((WINDOW, 5))
    slow, quick = asked(server, 1), asked(server, 3)
    server.send_data(slow, b"0123456789", end_stream=True)
    server.send_data(quick, b"done!", end_stream=True)
    assert [(frame.stream_id, frame.payload) for frame in data_of(server)] == [(1, b"01234"), (3, b"done!")]


def test_the_setting_changes_windows_of_open_streams_also_below_zero_6_9_2() -> None:
    server = raw_server((WINDOW, 100))
    stream = asked(server)
    server.send_data(stream, b"x" * 100)
    server.send_data(stream, b"y" * 50)
    assert sizes_of(server) == [100]
    server.receive(frames.settings_frame([(WINDOW, 20)]))
    assert stream.send_window == -80
    server.receive(frames.window_update_frame(1, 80))
    assert data_of(server) == []
    server.receive(frames.window_update_frame(1, 1))
    assert data_of(server) == [(frames.DATA, 0, 1, b"y")]
    server.receive(frames.settings_frame([(WINDOW, 40)]))
    assert frames_of(server.take_output()) == [
        (frames.SETTINGS, frames.FLAG_ACK, 0, b""),
        (frames.DATA, 0, 1, b"y" * 20),
    ]
    new = asked(server, 3)
    server.send_data(new, b"z" * 50)
    assert sizes_of(server) == [40]


def test_an_end_without_data_needs_no_window_6_9() -> None:
    server = raw_server((WINDOW, 100))
    stream = asked(server)
    server.send_data(stream, b"x" * 100)
    server.receive(frames.settings_frame([(WINDOW, 0)]))
    server.take_output()
    server.send_data(stream, b"", end_stream=True)
    assert data_of(server) == [(frames.DATA, ENDED, 1, b"")]
    second = asked(server, 3)
    server.send_response(second, RESPONSE_BLOCK, b"", TRAILERS_BLOCK)
    assert server.active_streams == 0


def test_the_last_of_several_values_of_a_setting_counts_6_5_3() -> None:
    server = raw_server((WINDOW, 1), (WINDOW, 100), (WINDOW, 7))
    stream = asked(server)
    server.send_data(stream, b"x" * 50)
    assert sizes_of(server) == [7]


def test_data_is_cut_to_the_peers_frame_size_6_5_2() -> None:
    server = raw_server((WINDOW, 1_000_000))
    stream = asked(server)
    server.send_data(stream, b"x" * 40_000)
    assert sizes_of(server) == [16_384, 16_384, 7_232]
    server.receive(frames.settings_frame([(frames.SETTINGS_MAX_FRAME_SIZE, 20_000)]))
    server.take_output()
    server.send_data(stream, b"x" * 25_000)
    assert sizes_of(server) == [20_000, 5_000]


def test_a_reset_drops_what_waits() -> None:
    server = raw_server((WINDOW, 5))
    first, second = asked(server, 1), asked(server, 3)
    server.send_data(first, b"x" * 50)
    server.send_data(second, b"y" * 50)
    events = server.receive(frames.rst_stream_frame(1, ErrorCode.CANCEL))
    assert plain(events) == [(RESET, 1, b"")]
    assert server.queued_bytes == 45
    server.reset(second, ErrorCode.INTERNAL_ERROR)
    assert server.queued_bytes == 0
    server.take_output()
    server.receive(frames.window_update_frame(0, 1000) + frames.window_update_frame(3, 1000))
    assert not server.has_output


def test_a_peer_that_shrinks_its_table_gets_the_size_zero_rfc_7541_4_2() -> None:
    server = raw_server((frames.SETTINGS_HEADER_TABLE_SIZE, 0))
    strict = hpack.Decoder()
    strict.max_allowed_table_size = 0  # our next block must say so
    for stream_id in (1, 3):
        stream = server.receive(headers_frame(stream_id, True))[0][1]
        server.send_response(stream, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
        blocks = [frame.payload for frame in frames_of(server.take_output()) if frame.kind == frames.HEADERS]
        assert [[bytes(name) for name, _ in strict.decode(block, raw=True)] for block in blocks] == [
            [b":status", b"content-type"],
            [b"checksum"],
        ]


# --- what we receive ------------------------------------------------------------------------------------------------

PIECE = b"x" * 16_384


def credit_of(output: bytes) -> dict[int, int]:
    credit: dict[int, int] = {}
    for frame in frames_of(output):
        if frame.kind == frames.WINDOW_UPDATE:
            credit[frame.stream_id] = credit.get(frame.stream_id, 0) + int.from_bytes(frame.payload, "big")
    return credit


def test_windows_are_opened_again_when_half_is_used() -> None:
    server = raw_server()
    server.receive(headers_frame(1))
    half = limits.H2_WINDOW_BYTES // 2 // len(PIECE)
    server.receive(data_frame(1, PIECE) * half)
    assert not server.has_output
    server.receive(data_frame(1, PIECE))
    assert credit_of(server.take_output()) == {1: (half + 1) * len(PIECE)}


def test_a_long_upload_is_acknowledged_on_the_connection_too() -> None:
    pair = ConnectionPair()
    asked_stream, seen = pair.request(b"start", end_stream=False)
    body = bytes(range(256)) * 20_000  # 5 MB, more than both windows
    pair.client.send_data(asked_stream, body, end_stream=True)
    pair.exchange()
    assert body_of(pair.server_events, seen) == b"start" + body
    assert pair.server_events[-1] == (END, seen, b"")
    assert pair.client.queued_bytes == 0
    pair.assert_healthy()


def test_a_stream_that_the_peer_has_ended_gets_no_more_credit() -> None:
    server = raw_server()
    count = limits.H2_WINDOW_BYTES // len(PIECE)
    server.receive(headers_frame(1) + data_frame(1, PIECE) * (count // 2) + data_frame(1, PIECE, True))
    assert credit_of(server.take_output()) == {}


def test_more_than_the_streams_window_is_an_error_of_the_stream_6_9_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H2_WINDOW_BYTES", 20_000)
    for padded in (False, True):
        server = raw_server()
        frame = frames.frame(frames.DATA, 8, 1, b"\x05" + PIECE[6:] + b"\0" * 5) if padded else data_frame(1, PIECE)
        events = server.receive(headers_frame(1) + frame)
        stream = events[0][1]
        stream.recv_window = len(PIECE) - 1  # as if the credit were still on its way
        events = server.receive(frame)
        assert plain(events) == [(RESET, 1, b"")]
        assert (1, ErrorCode.FLOW_CONTROL_ERROR) in resets_of(server)


def test_more_than_the_connections_window_is_an_error_of_the_connection_6_9_1() -> None:
    server = raw_server()
    server._recv_window = 20_000  # as if the peer had not been given the rest yet
    events = server.receive(headers_frame(1) + headers_frame(3) + data_frame(1, PIECE) + data_frame(3, PIECE))
    assert [kind for kind, _, _ in events].count(HEADERS) == 2
    assert server.closing
    error = error_of(server)
    assert error is not None
    assert error[1] == ErrorCode.FLOW_CONTROL_ERROR


def test_data_for_streams_that_are_over_is_acknowledged_on_the_connection_6_9() -> None:
    server = raw_server()
    stream = server.receive(headers_frame(1))[0][1]
    server.reset(stream, ErrorCode.CANCEL)
    server.take_output()
    count = limits.H2_CONNECTION_WINDOW_BYTES // 2 // len(PIECE) + 1
    assert server.receive(data_frame(1, PIECE) * count) == []
    assert credit_of(server.take_output()) == {0: count * len(PIECE)}


def test_padding_is_acknowledged_like_data_6_9_1() -> None:
    server = raw_server()
    padded = frames.frame(frames.DATA, frames.FLAG_PADDED, 1, b"\xff" + b"x" * 16_128 + b"\0" * 255)
    server.receive(headers_frame(1))
    count = limits.H2_WINDOW_BYTES // 2 // 16_384 + 1
    events = server.receive(padded * count)
    assert sum(len(payload) for kind, _, payload in events if kind == DATA) == 16_128 * count
    assert credit_of(server.take_output()) == {1: 16_384 * count}


# --- a peer that does not read --------------------------------------------------------------------------------------


def test_a_peer_that_does_not_read_may_ask_but_gets_no_credit_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CONNECTION_SEND_BYTES_MAX", 1_000)
    server = raw_server((WINDOW, 0))
    reader = asked(server)
    server.send_data(reader, b"x" * 1_001, end_stream=True)
    assert plain(server.receive(headers_frame(3))) == [(HEADERS, 3, b"")]
    server.reset(server.open_streams()[-1], ErrorCode.CANCEL)
    writer_count = limits.H2_CONNECTION_WINDOW_BYTES // 2 // len(PIECE) + 1
    server.receive(data_frame(3, PIECE) * writer_count)  # for the stream that is reset: dropped, but it counts
    assert credit_of(server.take_output()) == {}
    server.receive(frames.window_update_frame(1, 1))
    output = server.take_output()
    assert credit_of(output) == {0: writer_count * len(PIECE)}
    assert plain(server.receive(headers_frame(5, True))) == [(HEADERS, 5, b""), (END, 5, b"")]


def test_a_request_block_for_a_refused_stream_still_counts_for_compression_4_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "H2_STREAMS_MAX", 1)
    server = raw_server()
    stream = server.receive(headers_frame(1, True))[0][1]
    server.receive(headers_frame(3, True, REQUEST_BLOCK + b"\x40\x05token\x01a"))
    server.send_headers(stream, RESPONSE_BLOCK, end_stream=True)
    seen = server.receive(headers_frame(5, True, REQUEST_BLOCK + b"\xbe"))[0][1]
    assert seen.head is not None
    assert seen.head.get(b"token") == b"a"
