# SPDX-License-Identifier: Apache-2.0
"""Peers that break the rules: each row names its section of RFC 9113 and the error that the section asks for.

A connection error is a GOAWAY and `closing`. A stream error is an RST_STREAM and, when the owner knew the stream, a
RESET event; a call on another stream must go through before and after.
"""

import pytest

from lessor.wire import frames
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import END, HEADERS, RESET, H2Client, H2Server, encode_headers
from tests.unit.wire.h2_pair import (
    EMPTY_SETTINGS,
    REQUEST,
    REQUEST_BLOCK,
    RESPONSE_BLOCK,
    TRAILERS_BLOCK,
    data_frame,
    error_of,
    headers_frame,
    plain,
    raw_client,
    raw_server,
    resets_of,
)

PROTOCOL = ErrorCode.PROTOCOL_ERROR
SIZE = ErrorCode.FRAME_SIZE_ERROR
FLOW = ErrorCode.FLOW_CONTROL_ERROR
CLOSED = ErrorCode.STREAM_CLOSED
COMPRESSION = ErrorCode.COMPRESSION_ERROR
CALM = ErrorCode.ENHANCE_YOUR_CALM

frame = frames.frame
OPEN = headers_frame(1)
ENDED = headers_frame(1, True)
SPLIT = frame(frames.HEADERS, 0, 1, REQUEST_BLOCK[:4])


def setting(identifier: int, value: int) -> bytes:
    return frames.settings_frame([(identifier, value)])


CONNECTION_ERRORS = {
    "4.2 frame above the announced size": (frame(frames.DATA, 0, 1, b"x" * 16_385), SIZE),
    "4.2 unknown frame above the announced size": (frame(0xEE, 0, 0, b"x" * 16_385), SIZE),
    "4.3 undecodable block": (headers_frame(1, True, b"\xff\xff\xff\xff\xff\xff"), COMPRESSION),
    "4.3 block ends inside a string": (headers_frame(1, True, b"\x00\x05abc"), COMPRESSION),
    "4.3 entry that does not exist": (headers_frame(1, True, b"\xbe"), COMPRESSION),
    "5.1 DATA on an idle stream": (data_frame(1, b"x"), PROTOCOL),
    "5.1 RST_STREAM on an idle stream": (frames.rst_stream_frame(1, 8), PROTOCOL),
    "5.1 WINDOW_UPDATE on an idle stream": (frames.window_update_frame(1, 8), PROTOCOL),
    "5.1 WINDOW_UPDATE on a stream only a server could open": (OPEN + frames.window_update_frame(2, 8), PROTOCOL),
    "5.1.1 even stream id": (headers_frame(2, True), PROTOCOL),
    "5.1.1 stream id below an earlier one": (headers_frame(5, True) + headers_frame(3, True), PROTOCOL),
    "5.1.1 stream id below the first one": (headers_frame(5, True) + headers_frame(1, True), PROTOCOL),
    "5.1.1 HEADERS on stream 0": (headers_frame(0, True), PROTOCOL),
    "6.1 DATA on stream 0": (data_frame(0, b"x"), PROTOCOL),
    "6.1 padding as long as the frame": (OPEN + frame(frames.DATA, frames.FLAG_PADDED, 1, b"\x04abc"), PROTOCOL),
    "6.1 padded frame without its length": (OPEN + frame(frames.DATA, frames.FLAG_PADDED, 1, b""), PROTOCOL),
    "6.2 padding longer than the block": (frame(frames.HEADERS, 0xC, 1, b"\xff" + REQUEST_BLOCK), PROTOCOL),
    "6.2 no room for the priority": (frame(frames.HEADERS, 0x24, 1, b"\x00\x00"), SIZE),
    "6.2 HEADERS that depends on itself": (frame(frames.HEADERS, 0x24, 1, b"\0\0\0\1\0" + REQUEST_BLOCK), PROTOCOL),
    "6.2 another frame within a header block": (SPLIT + frame(frames.PING, 0, 0, b"12345678"), PROTOCOL),
    "6.2 DATA within a header block": (
        headers_frame(1) + frame(frames.HEADERS, 0, 3, b"") + data_frame(1, b"x"),
        PROTOCOL,
    ),
    "6.2 HEADERS within a header block": (SPLIT + headers_frame(1), PROTOCOL),
    "6.2 unknown frame within a header block": (SPLIT + frame(0xEE, 0, 1, b""), PROTOCOL),
    "6.3 PRIORITY on stream 0": (frame(frames.PRIORITY, 0, 0, b"12345"), PROTOCOL),
    "6.3 PRIORITY of a wrong length": (frame(frames.PRIORITY, 0, 1, b"1234"), SIZE),
    "5.3 PRIORITY that depends on itself": (frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), PROTOCOL),
    "6.4 RST_STREAM on stream 0": (frames.rst_stream_frame(0, 8), PROTOCOL),
    "6.4 RST_STREAM of a wrong length": (OPEN + frame(frames.RST_STREAM, 0, 1, b"\0\0\0"), SIZE),
    "6.5 SETTINGS on a stream": (frame(frames.SETTINGS, 0, 1, b""), PROTOCOL),
    "6.5 SETTINGS of a wrong length": (frame(frames.SETTINGS, 0, 0, b"12345"), SIZE),
    "6.5 acknowledgement with a payload": (frame(frames.SETTINGS, 1, 0, b"123456"), SIZE),
    "6.5.2 ENABLE_PUSH above 1": (setting(frames.SETTINGS_ENABLE_PUSH, 2), PROTOCOL),
    "6.5.2 INITIAL_WINDOW_SIZE above 2^31-1": (setting(frames.SETTINGS_INITIAL_WINDOW_SIZE, 1 << 31), FLOW),
    "6.5.2 MAX_FRAME_SIZE too small": (setting(frames.SETTINGS_MAX_FRAME_SIZE, 16_383), PROTOCOL),
    "6.5.2 MAX_FRAME_SIZE too large": (setting(frames.SETTINGS_MAX_FRAME_SIZE, 1 << 24), PROTOCOL),
    "6.6 PUSH_PROMISE from a client": (OPEN + frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2"), PROTOCOL),
    "6.7 PING on a stream": (frame(frames.PING, 0, 1, b"12345678"), PROTOCOL),
    "6.7 PING of a wrong length": (frame(frames.PING, 0, 0, b"1234567"), SIZE),
    "6.8 GOAWAY on a stream": (frames.frame(frames.GOAWAY, 0, 1, b"\0" * 8), PROTOCOL),
    "6.8 GOAWAY of a wrong length": (frames.frame(frames.GOAWAY, 0, 0, b"\0" * 7), SIZE),
    "6.9 WINDOW_UPDATE of a wrong length": (frame(frames.WINDOW_UPDATE, 0, 0, b"\0\0\1"), SIZE),
    "6.9 connection's WINDOW_UPDATE of zero": (frames.window_update_frame(0, 0), PROTOCOL),
    "6.9.1 connection's window above 2^31-1": (frames.window_update_frame(0, 0x7FFFFFFF), FLOW),
    "6.9.2 setting lifts a stream's window above 2^31-1": (
        OPEN
        + frames.window_update_frame(1, 0x7FFFFFFF - 65_535)
        + setting(frames.SETTINGS_INITIAL_WINDOW_SIZE, 65_536),
        FLOW,
    ),
    "6.10 CONTINUATION without HEADERS": (frame(frames.CONTINUATION, 4, 1, REQUEST_BLOCK), PROTOCOL),
    "6.10 CONTINUATION after a finished block": (OPEN + frame(frames.CONTINUATION, 4, 1, b""), PROTOCOL),
    "6.10 CONTINUATION on another stream": (SPLIT + frame(frames.CONTINUATION, 4, 3, REQUEST_BLOCK), PROTOCOL),
    "6.10 CONTINUATION on stream 0": (frame(frames.CONTINUATION, 4, 0, b""), PROTOCOL),
}

NAMES = [*REQUEST[:4]]


def malformed(*headers: tuple[bytes, bytes]) -> bytes:
    return headers_frame(1, True, encode_headers(list(headers)))


def with_fields(*headers: tuple[bytes, bytes]) -> bytes:
    return malformed(*NAMES, *headers)


def without(name: bytes, *more: tuple[bytes, bytes]) -> bytes:
    return malformed(*[field for field in NAMES if field[0] != name], *more)


def sized(length: bytes, end_stream: bool = False) -> bytes:
    return headers_frame(1, end_stream, encode_headers([*NAMES, (b"content-length", length)]))


# Requests that never reach the owner.
MALFORMED_REQUESTS = {
    "8.1.1 length announced, no body": sized(b"5", True),
    "8.1.1 length is not a number": sized(b"5x"),
    "8.1.1 length is negative": sized(b"-1"),
    "8.1.1 two lengths": with_fields((b"content-length", b"0"), (b"content-length", b"1")),
    "8.2.1 upper-case name": with_fields((b"Token", b"x")),
    "8.2.1 empty name": with_fields((b"", b"x")),
    "8.2.1 space in a name": with_fields((b"to ken", b"x")),
    "8.2.1 colon in a name": with_fields((b"to:ken", b"x")),
    "8.2.1 non-ASCII name": with_fields((b"tok\xc3\xa9n", b"x")),
    "8.2.1 line feed in a value": with_fields((b"token", b"x\ny")),
    "8.2.1 carriage return in a value": with_fields((b"token", b"x\ry")),
    "8.2.1 NUL in a value": with_fields((b"token", b"x\0y")),
    "8.2.1 value begins with a space": with_fields((b"token", b" x")),
    "8.2.1 value ends with a tab": with_fields((b"token", b"x\t")),
    "8.2.2 connection": with_fields((b"connection", b"close")),
    "8.2.2 keep-alive": with_fields((b"keep-alive", b"5")),
    "8.2.2 proxy-connection": with_fields((b"proxy-connection", b"close")),
    "8.2.2 transfer-encoding": with_fields((b"transfer-encoding", b"chunked")),
    "8.2.2 upgrade": with_fields((b"upgrade", b"h2c")),
    "8.2.2 te other than trailers": with_fields((b"te", b"trailers, deflate")),
    "8.3 pseudo-header after a field": without(b":path", (b"token", b"x"), (b":path", b"/")),
    "8.3 unknown pseudo-header": malformed(*NAMES, (b":protocol", b"websocket")),
    "8.3 pseudo-header of a response": malformed(*NAMES, (b":status", b"200")),
    "8.3 no pseudo-header at all": malformed((b"token", b"x")),
    "8.3 empty block": malformed(),
    "8.3.1 no :method": without(b":method"),
    "8.3.1 no :scheme": without(b":scheme"),
    "8.3.1 no :path": without(b":path"),
    "8.3.1 empty :path": without(b":path", (b":path", b"")),
    "8.3.1 relative :path": without(b":path", (b":path", b"lease")),
    "8.3.1 asterisk for something else than OPTIONS": without(b":path", (b":path", b"*")),
    "8.3.1 :method twice": malformed((b":method", b"POST"), *NAMES),
    "8.3.1 :path twice": malformed((b":path", b"/"), *NAMES),
    "8.3.1 host is somebody else": with_fields((b"host", b"elsewhere")),
    "8.5 CONNECT with a path": without(b":method", (b":method", b"CONNECT")),
}

# Streams that the owner knows: rows of what comes after OPEN.
STREAM_ERRORS = {
    "5.1 DATA after END_STREAM": (ENDED + data_frame(1, b"x"), CLOSED),
    "5.1 HEADERS after END_STREAM": (ENDED + headers_frame(1, True, TRAILERS_BLOCK), CLOSED),
    "5.3 PRIORITY that depends on itself": (OPEN + frame(frames.PRIORITY, 0, 1, b"\0\0\0\1\0"), PROTOCOL),
    "6.3 PRIORITY of a wrong length": (OPEN + frame(frames.PRIORITY, 0, 1, b"\0"), SIZE),
    "6.9 WINDOW_UPDATE of zero": (OPEN + frames.window_update_frame(1, 0), PROTOCOL),
    "6.9.1 window above 2^31-1": (OPEN + frames.window_update_frame(1, 0x7FFFFFFF), FLOW),
    "8.1 second HEADERS without END_STREAM": (OPEN + headers_frame(1, False, TRAILERS_BLOCK), PROTOCOL),
    "8.1 pseudo-headers in trailers": (OPEN + headers_frame(1, True), PROTOCOL),
    "8.1.1 body longer than announced": (sized(b"3") + data_frame(1, b"four"), PROTOCOL),
    "8.1.1 body shorter than announced": (sized(b"5") + data_frame(1, b"four", True), PROTOCOL),
    "8.1.1 trailers before the body is complete": (sized(b"5") + headers_frame(1, True, TRAILERS_BLOCK), PROTOCOL),
}


@pytest.mark.parametrize("row", CONNECTION_ERRORS)
def test_connection_error(row: str) -> None:
    data, code = CONNECTION_ERRORS[row]
    server = raw_server()
    server.receive(data)
    assert server.closing
    error = error_of(server)
    assert error is not None
    assert error[1] == code
    assert server.receive(headers_frame(99, True)) == []


@pytest.mark.parametrize("row", MALFORMED_REQUESTS)
def test_malformed_request(row: str) -> None:
    server = raw_server()
    assert server.receive(MALFORMED_REQUESTS[row]) == []
    assert resets_of(server) == [(1, PROTOCOL)]
    assert plain(server.receive(headers_frame(3, True))) == [(HEADERS, 3, b""), (END, 3, b"")]


@pytest.mark.parametrize("row", STREAM_ERRORS)
def test_stream_error(row: str) -> None:
    data, code = STREAM_ERRORS[row]
    server = raw_server()
    events = server.receive(data)
    stream = events[0][1]
    assert events[-1] == (RESET, stream, b"")
    assert stream.error_code == code
    assert resets_of(server) == [(1, code)]
    assert plain(server.receive(headers_frame(3, True))) == [(HEADERS, 3, b""), (END, 3, b"")]


def test_data_on_a_stream_that_the_peer_has_reset_5_1() -> None:
    server = raw_server()
    server.receive(OPEN + frames.rst_stream_frame(1, 8) + data_frame(1, b"x"))
    assert resets_of(server) == [(1, CLOSED)]


def test_headers_on_a_closed_stream_5_1() -> None:
    server = raw_server()
    server.receive(OPEN + frames.rst_stream_frame(1, 8) + headers_frame(1, True))
    assert server.closing
    error = error_of(server)
    assert error is not None
    assert error[1] == CLOSED


@pytest.mark.parametrize(
    "first",
    [
        frame(frames.PING, 0, 0, b"12345678"),
        frame(frames.SETTINGS, frames.FLAG_ACK, 0, b""),
        headers_frame(1, True),
    ],
    ids=["ping", "acknowledgement", "request"],
)
def test_the_first_frame_must_be_settings_3_4(first: bytes) -> None:
    server = H2Server()
    assert server.receive(frames.PREFACE + first) == []
    assert server.closing
    client = H2Client()
    assert client.receive(first) == []
    assert client.closing


def test_a_wrong_preface_3_4() -> None:
    server = H2Server()
    server.receive(frames.PREFACE[:10])
    assert not server.closing
    server.receive(b"wrong")
    assert server.closing
    error = error_of(server)
    assert error is not None
    assert error[1] == PROTOCOL


@pytest.mark.parametrize("more_bytes", [0, 20_000])
def test_a_header_list_that_is_too_large_costs_its_stream_431_6_5_2(more_bytes: int) -> None:
    server = raw_server()
    fields = [*REQUEST, (b"token", b"x" * 65_536), (b"more", b"y" * more_bytes)]
    block = encode_headers(fields)
    data = frame(frames.HEADERS, frames.FLAG_END_STREAM, 1, block[:16_384])
    for start in range(16_384, len(block), 16_384):
        data += frame(frames.CONTINUATION, 4 if start + 16_384 >= len(block) else 0, 1, block[start : start + 16_384])
    assert server.receive(data) == []
    answer = encode_headers([(b":status", b"431")])
    assert server.take_output() == headers_frame(1, True, answer)
    assert server.active_streams == 0
    assert plain(server.receive(headers_frame(3, True))) == [(HEADERS, 3, b""), (END, 3, b"")]


# --- the client's side ----------------------------------------------------------------------------------------------

CLIENT_CONNECTION_ERRORS = {
    "5.1 HEADERS on an idle stream": (headers_frame(3, True, RESPONSE_BLOCK), PROTOCOL),
    "5.1 DATA on an idle stream": (data_frame(3, b"x"), PROTOCOL),
    "5.1.1 stream of the server": (headers_frame(2, True, RESPONSE_BLOCK), PROTOCOL),
    "5.1.1 HEADERS on stream 0": (headers_frame(0, True, RESPONSE_BLOCK), PROTOCOL),
    "6.5.2 a server that enables push": (setting(frames.SETTINGS_ENABLE_PUSH, 1), PROTOCOL),
    "6.6 PUSH_PROMISE though it is disabled": (frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + REQUEST_BLOCK), PROTOCOL),
}

CLIENT_STREAM_ERRORS = {
    "8.1 DATA-less second HEADERS": (headers_frame(1, False, RESPONSE_BLOCK) * 2, PROTOCOL),
    "8.1 interim response that ends": (headers_frame(1, True, encode_headers([(b":status", b"100")])), PROTOCOL),
    "8.3.2 no :status": (headers_frame(1, True, TRAILERS_BLOCK), PROTOCOL),
    "8.3.2 bad :status": (headers_frame(1, True, encode_headers([(b":status", b"20")])), PROTOCOL),
    "8.3.2 pseudo-header of a request": (headers_frame(1, True), PROTOCOL),
    "8.1.1 body longer than announced": (
        headers_frame(1, False, encode_headers([(b":status", b"200"), (b"content-length", b"1")]))
        + data_frame(1, b"ab"),
        PROTOCOL,
    ),
    "5.1 DATA after END_STREAM": (headers_frame(1, True, RESPONSE_BLOCK) + data_frame(1, b"x"), CLOSED),
}


@pytest.mark.parametrize("row", CLIENT_CONNECTION_ERRORS)
def test_connection_error_of_a_server(row: str) -> None:
    data, code = CLIENT_CONNECTION_ERRORS[row]
    client = raw_client()
    client.start_request(REQUEST)
    client.receive(data)
    assert client.closing
    error = error_of(client)
    assert error is not None
    assert error[1] == code


@pytest.mark.parametrize("row", CLIENT_STREAM_ERRORS)
def test_stream_error_of_a_server(row: str) -> None:
    data, code = CLIENT_STREAM_ERRORS[row]
    client = raw_client()
    stream = client.start_request(REQUEST)
    events = client.receive(data)
    assert events[-1] == (RESET, stream, b"")
    assert (1, code) in resets_of(client)
    assert not client.closing


def test_the_settings_a_connection_begins_with_may_be_empty_3_4() -> None:
    server = H2Server()
    server.receive(frames.PREFACE + EMPTY_SETTINGS)
    assert not server.closing
