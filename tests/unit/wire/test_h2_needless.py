# SPDX-License-Identifier: Apache-2.0
"""What a peer may send that no call needs: a bounded amount of work, and more only as its calls bring it with them."""

import hpack
import pytest

from lessor.base import limits
from lessor.wire import frames, h2_limits
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import H2Server, encode_headers
from tests.unit.wire.h2_pair import (
    REQUEST,
    REQUEST_BLOCK,
    RESPONSE_BLOCK,
    TRAILERS_BLOCK,
    data_frame,
    error_of,
    headers_frame,
    raw_client,
    raw_server,
)

BUDGET = limits.H2_NEEDLESS_PER_S_MAX
SETTINGS_ACK = frames.frame(frames.SETTINGS, frames.FLAG_ACK, 0, b"")
PING_ACK = frames.frame(frames.PING, frames.FLAG_ACK, 0, bytes(8))
PRIORITY = frames.frame(frames.PRIORITY, 0, 7, b"\0\0\0\1\x10")
OVER, RESET, OPEN = 1, 3, 5  # streams of `prepared`

# A frame, and the units of work that one takes.
NEEDLESS: dict[str, tuple[bytes, int]] = {
    "SETTINGS ACK": (SETTINGS_ACK, h2_limits.FRAME_PRICES[frames.SETTINGS] + h2_limits.ACK_PRICE),
    "PING ACK": (PING_ACK, h2_limits.FRAME_PRICES[frames.PING] + h2_limits.ACK_PRICE),
    "PRIORITY": (PRIORITY, h2_limits.FRAME_PRICES[frames.PRIORITY]),
    "WINDOW_UPDATE of the connection": (frames.window_update_frame(0, 1), 2),
    "WINDOW_UPDATE of a stream": (frames.window_update_frame(OPEN, 1), 2),
    "WINDOW_UPDATE of a closed stream": (frames.window_update_frame(OVER, 1), 2),
    "RST_STREAM of a closed stream": (frames.rst_stream_frame(OVER, 8), 2),
    "HEADERS on a stream that we reset": (headers_frame(RESET, True), h2_limits.LATE_FRAME_PRICE),
    "DATA on a stream that we reset": (data_frame(RESET, b""), h2_limits.LATE_DATA_PRICE),
    "an unknown type": (frames.frame(0x63, 0, 0, b""), h2_limits.UNKNOWN_FRAME_PRICE),
}


def prepared() -> H2Server:
    """With one stream that is over, one that the server has reset, and one that is open."""
    server = raw_server()
    stream = server.receive(headers_frame(OVER, True))[0][1]
    server.send_response(stream, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
    server.receive(headers_frame(RESET) + frames.window_update_frame(RESET, 0) + headers_frame(OPEN))
    server.take_output()
    return server


def frames_until_cut(server: H2Server, frame: bytes, now: float = 0.0) -> int:
    sent = 0
    while not server.closing:
        server.receive(frame, now)
        sent += 1
        assert sent <= BUDGET, "no end of it"
    return sent


@pytest.mark.parametrize("name", NEEDLESS)
def test_the_work_of_one_second_passes_and_more_does_not(name: str) -> None:
    frame, price = NEEDLESS[name]
    server = prepared()
    sent = frames_until_cut(server, frame)
    # What the three streams and the output have earned comes on top, up to the bound; a few frames have prepared all.
    assert BUDGET // price <= sent <= (BUDGET + 500) // price + 1
    error = error_of(server)
    assert error is not None
    assert error[1] == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", NEEDLESS)
def test_that_rate_may_go_on_for_ever(name: str) -> None:
    frame, price = NEEDLESS[name]
    server = prepared()
    per_s = BUDGET // price
    for second in range(1, 4):
        server.receive(frame * (per_s - 1), now=second * 1.001)
    assert not server.closing
    assert frames_until_cut(server, frame, now=3.003) <= per_s + 50  # units are counted when they are needed


def test_goaway_again_and_again() -> None:
    server = prepared()
    assert frames_until_cut(server, frames.goaway_frame(0, 0)) <= BUDGET // 100 + 5


@pytest.mark.parametrize(
    ("block", "units"),
    [
        pytest.param(b"\x20" * 1_000 + REQUEST_BLOCK, 1_000, id="resized"),
        pytest.param(REQUEST_BLOCK + b"\x40\x01x\x02ab" * 1_000, 2_500, id="refilled"),
        pytest.param(REQUEST_BLOCK + b"\x00\x01x\xff\x81\x16" + b"\x2f" * 2_944, 980, id="in Huffman code"),
    ],
)
def test_a_table_that_is_churned_for_no_call(block: bytes, units: int) -> None:
    server = raw_server()
    made = 0
    while not server.closing:
        stream = server.receive(headers_frame(1 + 2 * made, True, block))[0][1]
        server.send_headers(stream, RESPONSE_BLOCK, end_stream=True)
        server.no_call(stream)
        made += 1
        assert made <= BUDGET // units + 2


def test_a_head_that_takes_longer_than_any_call_may() -> None:
    server = raw_server()
    block = REQUEST_BLOCK + b"\x00\x01x\xff\x81\x76" + b"\x2f" * 15_232
    for number in range(BUDGET // limits.H2_HEAD_WORK_FREE + 1):
        server.receive(headers_frame(1 + 2 * number, True, block))
    assert server.closing


def test_streams_that_are_no_calls() -> None:
    server = raw_server()
    made = 0
    while not server.closing and made < 10_000:
        stream = server.receive(headers_frame(1 + 2 * made, True))[0][1]
        server.send_headers(stream, RESPONSE_BLOCK, end_stream=True)
        server.no_call(stream)
        server.take_output()
        made += 1
    # Each earns what a stream and a piece of output earn, so it costs the difference.
    assert 20_000 // h2_limits.NO_CALL_PRICE < made < 2_000


def test_ids_that_are_passed_over_earn_nothing() -> None:
    server = raw_server()
    sent = 0
    stream_id = 1
    while not server.closing:
        stream_id += 100_000
        server.receive(headers_frame(stream_id) + frames.window_update_frame(stream_id, 1) * 100)
        sent += 100
        assert sent < BUDGET


@pytest.mark.parametrize("reads", [1, 3])
def test_a_busy_peer_may_open_its_windows_with_each_piece(reads: int) -> None:
    """Also many thousand times within an instant, and both windows; with large pieces, for each read of a part."""
    server = raw_server()
    stream = server.receive(headers_frame(1))[0][1]
    server.send_headers(stream, RESPONSE_BLOCK)
    piece = bytes(2_000 * reads)
    for _ in range(BUDGET // 3):
        server.send_data(stream, piece)
        server.take_output()
        for _ in range(reads):
            server.receive(frames.window_update_frame(1, 2_000) + frames.window_update_frame(0, 2_000))
    assert not server.closing


def test_each_call_may_be_followed_by_a_reset_and_a_priority() -> None:
    server = raw_server()
    for number in range(BUDGET // 4):
        stream_id = 1 + 2 * number
        stream = server.receive(headers_frame(stream_id, True))[0][1]
        server.send_response(stream, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
        server.receive(PRIORITY + frames.rst_stream_frame(stream_id, 8) + frames.window_update_frame(0, 1))
    assert not server.closing


def test_all_watches_may_be_cancelled_at_once() -> None:
    server = raw_server()
    for number in range(limits.H2_STREAMS_MAX):
        stream = server.receive(headers_frame(1 + 2 * number))[0][1]
        server.send_headers(stream, RESPONSE_BLOCK)
        server.send_data(stream, b"created")
    server.take_output()
    server.receive(b"".join(frames.rst_stream_frame(1 + 2 * number, 8) for number in range(limits.H2_STREAMS_MAX)))
    assert not server.closing
    assert not server.active_streams


@pytest.mark.parametrize("token", [b"e" * 4_000, b"\xff" * 1_200])
def test_calls_with_a_long_token_that_enters_no_table(token: bytes) -> None:
    encoder = hpack.Encoder()
    server = raw_server()
    for number in range(30):
        fields = [*REQUEST, hpack.NeverIndexedHeaderTuple("token", token + b"%d" % number)]
        stream = server.receive(headers_frame(1 + 2 * number, True, encoder.encode(fields, huffman=True)))[0][1]
        server.send_response(stream, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
    assert not server.closing


def test_a_long_head_is_paid_for_though_its_call_is_good() -> None:
    server = raw_server()
    long = encode_headers([*REQUEST, (b"x", b"y" * 9_000)])
    for number in range(50):
        server.receive(headers_frame(1 + 2 * number, True, long))
    assert not server.closing  # letters that stand for themselves are only copied


def test_a_server_is_held_to_it_by_our_client() -> None:
    client = raw_client()
    stream = client.start_request(REQUEST)
    sent = 0
    while not client.closing:
        client.receive(frames.window_update_frame(stream.id, 1))
        sent += 1
        assert sent < BUDGET
