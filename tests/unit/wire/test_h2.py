# SPDX-License-Identifier: Apache-2.0
"""Conversations that keep to the rules: what one side says, the other one hears. Section numbers are RFC 9113's."""

import hpack
import pytest

from lessor.base import limits
from lessor.wire import frames
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import DATA, END, HEADERS, RESET, TRAILERS, Event, H2Client, H2Server, encode_headers
from tests.unit.wire.h2_pair import (
    EMPTY_SETTINGS,
    REQUEST,
    REQUEST_BLOCK,
    RESPONSE_BLOCK,
    TRAILERS_BLOCK,
    ConnectionPair,
    body_of,
    data_frame,
    error_of,
    frames_of,
    headers_frame,
    plain,
    raw_client,
    raw_server,
    resets_of,
)


def test_a_call_is_asked_and_answered() -> None:
    pair = ConnectionPair()
    asked, seen = pair.request(b"ttl 5")
    assert plain(pair.server_events) == [(HEADERS, 1, b""), (DATA, 1, b"ttl 5"), (END, 1, b"")]
    assert seen.head is not None
    assert (seen.head.method, seen.head.scheme, seen.head.path) == (b"POST", b"http", b"/lease/grant")
    assert seen.head.authority == b"localhost:2379"
    assert seen.head.get(b"content-type") == b"application/json"
    assert seen.head.get(b"absent") is None
    pair.server.send_response(seen, RESPONSE_BLOCK, b"id 7", TRAILERS_BLOCK)
    pair.exchange()
    assert plain(pair.client_events) == [(HEADERS, 1, b""), (DATA, 1, b"id 7"), (TRAILERS, 1, b""), (END, 1, b"")]
    assert asked.head is not None
    assert asked.head.status == b"200"
    assert asked.trailers is not None
    assert asked.trailers.get(b"checksum") == b"42"
    assert pair.client.active_streams == pair.server.active_streams == 0
    pair.assert_healthy()


def test_calls_run_side_by_side_and_are_answered_in_any_order() -> None:
    pair = ConnectionPair()
    calls = [pair.request(b"%d" % number) for number in range(5)]
    for asked, seen in reversed(calls):
        pair.server.send_response(seen, RESPONSE_BLOCK, b"to %d" % asked.id, TRAILERS_BLOCK)
    pair.exchange()
    assert [stream.id for kind, stream, _ in pair.client_events if kind == HEADERS] == [9, 7, 5, 3, 1]
    assert [body_of(pair.client_events, asked) for asked, _ in calls] == [b"to %d" % asked.id for asked, _ in calls]


def test_both_sides_stream_messages_while_the_call_is_open() -> None:
    pair = ConnectionPair()
    asked, seen = pair.request(b"first", end_stream=False)
    pair.server.send_headers(seen, RESPONSE_BLOCK)
    for number in range(3):
        pair.client.send_data(asked, b"ask %d" % number)
        pair.exchange()
        pair.server.send_data(seen, b"answer %d" % number)
        pair.exchange()
    pair.client.send_data(asked, b"", end_stream=True)
    pair.exchange()
    assert pair.server_events[-1] == (END, seen, b"")
    assert pair.server.active_streams == 1
    pair.server.send_headers(seen, TRAILERS_BLOCK, end_stream=True)
    pair.exchange()
    assert body_of(pair.server_events, seen) == b"firstask 0ask 1ask 2"
    assert body_of(pair.client_events, asked) == b"answer 0answer 1answer 2"
    assert pair.client.active_streams == pair.server.active_streams == 0
    pair.assert_healthy()


def test_a_request_may_end_with_trailers_of_its_own() -> None:
    pair = ConnectionPair()
    asked, seen = pair.request(b"body", end_stream=False)
    pair.client.send_headers(asked, TRAILERS_BLOCK, end_stream=True)
    pair.exchange()
    assert plain(pair.server_events) == [(HEADERS, 1, b""), (DATA, 1, b"body"), (END, 1, b"")]
    assert seen.trailers is not None
    assert seen.trailers.get(b"checksum") == b"42"


def test_heads_of_equal_blocks_are_shared_so_that_their_owner_looks_up_the_route_once() -> None:
    pair = ConnectionPair()
    _, first = pair.request()
    assert first.head is not None
    first.head.route = "found"
    _, second = pair.request()
    assert second.head is first.head


def test_an_answer_before_the_request_is_complete_ends_the_stream_8_1() -> None:
    server = raw_server()
    ((_, stream, _),) = server.receive(headers_frame(1))
    server.send_headers(stream, RESPONSE_BLOCK, end_stream=True)
    assert [frame.kind for frame in frames_of(server.take_output())] == [frames.HEADERS, frames.RST_STREAM]
    assert server.active_streams == 0
    assert server.receive(data_frame(1, b"still on its way") + data_frame(1, b"", True)) == []
    assert server.receive(headers_frame(1, True, TRAILERS_BLOCK)) == []
    assert not server.has_output


def test_the_owner_resets_a_stream_and_late_frames_for_it_are_passed_over_5_1() -> None:
    pair = ConnectionPair()
    asked, seen = pair.request(b"x", end_stream=False)
    pair.client.reset(asked, ErrorCode.CANCEL)
    pair.server.send_headers(seen, RESPONSE_BLOCK)
    pair.server.send_data(seen, b"crossing")
    crossing = pair.server.take_output()
    pair.exchange()
    assert pair.server_events[-1] == (RESET, seen, b"")
    assert seen.error_code == ErrorCode.CANCEL
    assert pair.client.receive(crossing) == []
    assert not pair.client.closing
    assert not pair.client.has_output
    assert pair.client.active_streams == pair.server.active_streams == 0


def test_sending_on_a_stream_that_is_over_does_nothing() -> None:
    pair = ConnectionPair()
    asked, seen = pair.request()
    pair.client.reset(asked, ErrorCode.CANCEL)
    pair.exchange()
    pair.server.send_response(seen, RESPONSE_BLOCK, b"too late", TRAILERS_BLOCK)
    pair.server.send_headers(seen, RESPONSE_BLOCK)
    pair.server.send_data(seen, b"too late", end_stream=True)
    pair.server.reset(seen, ErrorCode.INTERNAL_ERROR)
    assert not pair.server.has_output
    assert pair.server.queued_bytes == 0


def test_an_empty_piece_of_data_is_not_sent_unless_it_ends_the_stream() -> None:
    server = raw_server()
    (_, stream, _), _ = server.receive(headers_frame(1, True))
    server.send_headers(stream, RESPONSE_BLOCK)
    server.take_output()
    server.send_data(stream, b"")
    assert not server.has_output
    server.send_data(stream, b"", end_stream=True)
    assert frames_of(server.take_output()) == [(frames.DATA, frames.FLAG_END_STREAM, 1, b"")]


def test_settings_are_acknowledged_6_5_3() -> None:
    server = H2Server()
    server.receive(frames.PREFACE + EMPTY_SETTINGS)
    first, *rest = frames_of(server.take_output())
    assert first.kind == frames.SETTINGS
    assert not first.flags
    assert (frames.SETTINGS, frames.FLAG_ACK, 0, b"") in rest


def test_unknown_settings_frames_and_flags_are_ignored_5_5_6_5_2() -> None:
    server = raw_server((0xF0F0, 17))
    events = server.receive(
        frames.frame(0xBE, 0xFF, 77, b"whatever")
        + frames.frame(frames.HEADERS, 0xD5 & ~frames.FLAG_PRIORITY, 1, REQUEST_BLOCK)
    )
    assert plain(events) == [(HEADERS, 1, b""), (END, 1, b"")]


def test_the_reserved_bit_of_a_stream_id_is_ignored_4_1() -> None:
    server = raw_server()
    events = server.receive(headers_frame(1 | 1 << 31) + data_frame(1 | 1 << 31, b"x", True))
    assert plain(events) == [(HEADERS, 1, b""), (DATA, 1, b"x"), (END, 1, b"")]


def test_padding_and_priority_are_taken_off_6_1_6_2() -> None:
    server = raw_server()
    flags = frames.FLAG_PADDED | frames.FLAG_PRIORITY | frames.FLAG_END_HEADERS
    block = b"\x03" + b"\x00\x00\x00\x00\x10" + REQUEST_BLOCK + b"pad"
    data = b"\x04" + b"body" + b"\x00" * 4
    events = server.receive(
        frames.frame(frames.HEADERS, flags, 1, block)
        + frames.frame(frames.DATA, frames.FLAG_PADDED | frames.FLAG_END_STREAM, 1, data)
    )
    assert plain(events) == [(HEADERS, 1, b""), (DATA, 1, b"body"), (END, 1, b"")]
    assert events[0][1].head is not None
    assert events[0][1].head.path == b"/lease/grant"


def test_a_header_block_may_be_continued_6_10() -> None:
    server = raw_server()
    events = server.receive(
        frames.frame(frames.HEADERS, frames.FLAG_END_STREAM, 1, REQUEST_BLOCK[:5])
        + frames.frame(frames.CONTINUATION, 0, 1, REQUEST_BLOCK[5:9])
        + frames.frame(frames.CONTINUATION, 0, 1, b"")
        + frames.frame(frames.CONTINUATION, frames.FLAG_END_HEADERS, 1, REQUEST_BLOCK[9:])
    )
    assert plain(events) == [(HEADERS, 1, b""), (END, 1, b"")]


def test_a_block_larger_than_a_frame_is_continued_when_sent_4_3() -> None:
    pair = ConnectionPair()
    value = b"v" * 40_000
    asked = pair.client.start_request([*REQUEST, (b"token", value)], end_stream=True)
    output = pair.client.take_output()
    assert [frame.kind for frame in frames_of(output)] == [frames.HEADERS, frames.CONTINUATION, frames.CONTINUATION]
    assert max(len(frame.payload) for frame in frames_of(output)) <= frames.FRAME_BYTES_DEFAULT
    ((kind, seen, _), _) = pair.server.receive(output)
    assert (kind, seen.id) == (HEADERS, asked.id)
    assert seen.head is not None
    assert seen.head.get(b"token") == value


def test_pings_are_answered_with_their_payload_6_7() -> None:
    server = raw_server()
    server.receive(frames.frame(frames.PING, 0, 0, b"12345678"))
    assert frames_of(server.take_output()) == [(frames.PING, frames.FLAG_ACK, 0, b"12345678")]


def test_our_own_ping_is_answered() -> None:
    pair = ConnectionPair()
    pair.server.send_ping(b"are you ")
    pair.exchange()
    assert pair.server.ping_answer == b"are you "


def test_priority_is_ignored_5_3() -> None:
    server = raw_server()
    assert server.receive(frames.frame(frames.PRIORITY, 0, 7, b"\x00\x00\x00\x01\x10")) == []
    assert not server.has_output


def test_frames_for_closed_streams_that_may_still_come_are_ignored_5_1() -> None:
    server = raw_server()
    ((_, stream, _), _) = server.receive(headers_frame(1, True))
    server.send_headers(stream, RESPONSE_BLOCK, end_stream=True)
    server.take_output()
    late = frames.window_update_frame(1, 5) + frames.rst_stream_frame(1, ErrorCode.CANCEL)
    late += frames.frame(frames.PRIORITY, 0, 1, b"\x00\x00\x00\x00\x10")
    assert server.receive(late) == []
    assert not server.has_output
    assert not server.closing


def test_more_streams_than_allowed_are_refused_5_1_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H2_STREAMS_MAX", 2)
    server = raw_server()
    events = server.receive(headers_frame(1, True) + headers_frame(3, True) + headers_frame(5) + data_frame(5, b"x"))
    assert [stream.id for kind, stream, _ in events if kind == HEADERS] == [1, 3]
    assert resets_of(server) == [(5, ErrorCode.REFUSED_STREAM)]
    server.send_headers(events[0][1], RESPONSE_BLOCK, end_stream=True)
    assert plain(server.receive(headers_frame(7, True))) == [(HEADERS, 7, b""), (END, 7, b"")]


def test_a_client_keeps_to_the_servers_number_of_streams_5_1_2() -> None:
    client = H2Client()
    client.receive(frames.settings_frame([(frames.SETTINGS_MAX_CONCURRENT_STREAMS, 1)]))
    stream = client.start_request(REQUEST, end_stream=True)
    assert not client.can_start
    with pytest.raises(RuntimeError):
        client.start_request(REQUEST)
    client.receive(headers_frame(stream.id, True, RESPONSE_BLOCK))
    assert client.can_start


def test_a_client_keeps_to_the_servers_header_list_size_6_5_2() -> None:
    client = H2Client()
    client.receive(frames.settings_frame([(frames.SETTINGS_MAX_HEADER_LIST_SIZE, 400)]))
    client.start_request(REQUEST)
    with pytest.raises(ValueError, match="the peer accepts 400"):
        client.start_request([*REQUEST, (b"token", b"x" * 300)])


def test_a_client_passes_over_interim_responses_8_1() -> None:
    client = raw_client()
    stream = client.start_request(REQUEST, end_stream=True)
    events = client.receive(
        headers_frame(1, False, encode_headers([(b":status", b"103"), (b"link", b"</x>")]))
        + headers_frame(1, False, RESPONSE_BLOCK)
        + data_frame(1, b"done", True)
    )
    assert plain(events) == [(HEADERS, 1, b""), (DATA, 1, b"done"), (END, 1, b"")]
    assert stream.head is not None
    assert stream.head.status == b"200"


def test_a_response_without_body_may_name_a_length_8_1_1() -> None:
    client = raw_client()
    client.start_request(REQUEST, end_stream=True)
    block = encode_headers([(b":status", b"304"), (b"content-length", b"1000")])
    assert plain(client.receive(headers_frame(1, True, block))) == [(HEADERS, 1, b""), (END, 1, b"")]


# --- leaving --------------------------------------------------------------------------------------------------------


def test_draining_serves_what_was_on_its_way_and_refuses_the_rest_6_8() -> None:
    pair = ConnectionPair()
    _, seen = pair.request()
    pair.server.drain()
    pair.server.drain()
    first = pair.server.take_output()
    assert error_of_bytes(first) == [(frames.STREAM_ID_MAX, ErrorCode.NO_ERROR)]
    crossing = pair.server.receive(headers_frame(3, True))  # sent before the client could know
    assert [kind for kind, _, _ in crossing] == [HEADERS, END]
    pair.client.receive(first)
    assert not pair.client.can_start
    pair.server_events += pair.server.receive(pair.client.take_output())
    assert error_of_bytes(pair.server.take_output()) == [(3, ErrorCode.NO_ERROR)]
    assert pair.server.receive(headers_frame(5, True)) == []
    assert resets_of(pair.server) == [(5, ErrorCode.REFUSED_STREAM)]
    pair.server.send_response(seen, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
    assert not pair.server.closing
    pair.server.send_response(crossing[0][1], RESPONSE_BLOCK, b"y", TRAILERS_BLOCK)
    assert pair.server.closing
    assert len([frame for frame in frames_of(pair.server.take_output()) if frame.kind == frames.DATA]) == 2


def test_draining_an_idle_connection_closes_it_6_8() -> None:
    pair = ConnectionPair()
    pair.server.drain()
    pair.exchange()
    assert pair.server.closing
    assert pair.client.closing


def error_of_bytes(output: bytes) -> list[tuple[int, ...]]:
    return [frames.GOAWAY_HEAD.unpack_from(frame.payload) for frame in frames_of(output) if frame.kind == frames.GOAWAY]


def test_a_clients_requests_that_a_leaving_server_did_not_see_may_be_tried_again_6_8() -> None:
    client = raw_client()
    first, second = client.start_request(REQUEST), client.start_request(REQUEST)
    assert plain(client.receive(frames.goaway_frame(1, ErrorCode.NO_ERROR))) == [(RESET, 3, b"")]
    assert second.error_code == ErrorCode.REFUSED_STREAM
    assert not client.closing
    assert not client.can_start
    assert plain(client.receive(headers_frame(1, False, RESPONSE_BLOCK) + data_frame(1, b"x", True))) == [
        (HEADERS, 1, b""),
        (DATA, 1, b"x"),
        (END, 1, b""),
    ]
    client.send_data(first, b"", end_stream=True)
    assert client.closing


def test_a_server_closes_when_its_client_leaves_and_the_last_stream_is_over_6_8() -> None:
    server = raw_server()
    ((_, stream, _), _) = server.receive(headers_frame(1, True))
    assert server.receive(frames.goaway_frame(0, ErrorCode.NO_ERROR, b"bye")) == []
    assert server.peer_leaving
    assert not server.closing
    server.send_response(stream, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
    assert server.closing


def test_close_says_goaway_once_and_nothing_is_heard_afterwards() -> None:
    server = raw_server()
    server.receive(headers_frame(1, True))
    server.close(ErrorCode.INTERNAL_ERROR, b"why")
    server.close(ErrorCode.NO_ERROR)
    assert server.closing
    assert server.receive(headers_frame(3, True)) == []
    assert error_of(server) == (1, ErrorCode.INTERNAL_ERROR, b"why")
    assert not server.has_output


def test_steps_give_the_same_events_as_one_piece() -> None:
    wanted = frames.PREFACE + EMPTY_SETTINGS
    for number in range(50):
        wanted += headers_frame(1 + 2 * number) + data_frame(1 + 2 * number, b"x" * (number % 3 + 1) * 300, True)
    wanted += headers_frame(101)[:20]

    def seen(events: list[Event]) -> list[tuple[int, int, bytes]]:
        return [(kind, stream.id, payload) for kind, stream, payload in events]

    for step_bytes in (1, 500, 2_000, 100_000):
        for cut in (len(wanted), 3_000, 9_999):
            whole, stepping = H2Server(), H2Server(step_bytes=step_bytes)
            at_once = seen(whole.receive(wanted) + whole.receive(headers_frame(101)[20:]))
            got = stepping.receive(wanted[:cut])
            assert stepping.unread or step_bytes == 100_000
            if step_bytes == 1:
                assert len(got) <= 1
            got += stepping.receive(wanted[cut:])  # more has come before all was handled
            while stepping.unread:
                got += stepping.go_on()
            got += stepping.receive(headers_frame(101)[20:])
            assert seen(got) == at_once
            assert stepping.take_output() == whole.take_output()


def test_a_step_has_no_more_small_frames_than_its_limit() -> None:
    def sent(frame_count: int) -> bytes:
        return frames.PREFACE + EMPTY_SETTINGS + headers_frame(1) + data_frame(1, b"x") * (frame_count - 2)

    server = H2Server(step_bytes=1 << 20)
    assert len(server.receive(sent(limits.H2_STEP_FRAMES))) == limits.H2_STEP_FRAMES - 1
    assert not server.unread
    server = H2Server(step_bytes=1 << 20)
    assert len(server.receive(sent(limits.H2_STEP_FRAMES + 1))) == limits.H2_STEP_FRAMES - 1
    assert server.unread
    assert len(server.go_on()) == 1
    assert not server.unread


def test_a_step_has_fewer_heads_that_take_long_to_decode() -> None:
    def heads_of_a_step(value_bytes: int) -> int:
        server = H2Server(step_bytes=20_000)
        sent = frames.PREFACE + EMPTY_SETTINGS
        for number in range(200):
            field = hpack.NeverIndexedHeaderTuple("x", f"{number:x}" + "e" * value_bytes)
            block = hpack.Encoder().encode([*REQUEST, field], huffman=True)
            sent += frames.frame(
                frames.HEADERS, frames.FLAG_END_HEADERS | frames.FLAG_END_STREAM, 1 + 2 * number, block
            )
        return sum(kind == HEADERS for kind, _, _ in server.receive(sent))

    assert heads_of_a_step(0) > 20
    # 600 bytes of code: a third of a unit of H2_STEP_BYTES_PER_UNIT each, beside their own size
    assert 3 <= heads_of_a_step(960) <= 20_000 // (600 + 200 * 16) + 1
