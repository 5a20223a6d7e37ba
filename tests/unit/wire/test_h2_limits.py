# SPDX-License-Identifier: Apache-2.0
"""What a hostile peer may repeat, and how often: then the connection ends with ENHANCE_YOUR_CALM."""

from collections.abc import Callable

import pytest

from lessor.base import limits
from lessor.wire import frames
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import H2Server, encode_headers
from lessor.wire.h2_limits import RateLimit
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
    resets_of,
)

CALM = ErrorCode.ENHANCE_YOUR_CALM
PING = frames.frame(frames.PING, 0, 0, b"12345678")
SETTINGS = frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, 1)])


class Opener:
    """Opens a new stream with each call and breaks it off at once."""

    def __init__(self, ending: Callable[[int], bytes], block: bytes = REQUEST_BLOCK) -> None:
        self.next_id = 3
        self.ending = ending
        self.block = block

    def __call__(self) -> bytes:
        self.next_id += 2
        return headers_frame(self.next_id, False, self.block) + self.ending(self.next_id)


# In few bytes more than the list may have: an entry of the table, again and again.
LONG_BLOCK = REQUEST_BLOCK + b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4_000 + b"\xbe" * 17


class Malformer(Opener):
    """Opens streams with a path that begins with a space."""

    def __init__(self) -> None:
        super().__init__(lambda _: b"")

    def __call__(self) -> bytes:
        return super().__call__().replace(b"/lease", b" lease")


ATTACKS: dict[str, tuple[Callable[[], Callable[[], bytes]], int]] = {
    "settings": (lambda: lambda: SETTINGS, limits.H2_SETTINGS_PER_S_MAX - 1),  # the first one opened the connection
    "empty DATA": (lambda: lambda: data_frame(1, b""), limits.H2_EMPTY_FRAMES_PER_S_MAX),
    "DATA of padding": (
        lambda: lambda: frames.frame(frames.DATA, frames.FLAG_PADDED, 1, b"\x03\0\0\0"),
        limits.H2_EMPTY_FRAMES_PER_S_MAX,
    ),
    "rapid reset": (
        lambda: Opener(lambda stream_id: frames.rst_stream_frame(stream_id, 8)),
        limits.H2_RESETS_PER_S_MAX,
    ),
    "resets that we are made to send": (
        lambda: Opener(lambda stream_id: frames.window_update_frame(stream_id, 0)),
        limits.H2_RESETS_PER_S_MAX,
    ),
    "header lists that are too large": (
        lambda: Opener(lambda _: b"", LONG_BLOCK),
        limits.H2_RESETS_PER_S_MAX,
    ),
    "malformed requests": (
        Malformer,
        limits.H2_RESETS_PER_S_MAX,
    ),
}


def attacked() -> H2Server:
    server = raw_server()
    server.receive(headers_frame(1))
    return server


@pytest.mark.parametrize("name", ATTACKS)
def test_a_burst_of_one_second_passes_and_one_more_does_not(name: str) -> None:
    make, per_s_max = ATTACKS[name]
    attack = make()
    server = attacked()
    for _ in range(per_s_max):
        server.receive(attack())
    assert not server.closing
    server.take_output()
    server.receive(attack())
    assert server.closing
    error = error_of(server)
    assert error is not None
    assert error[1] == CALM


@pytest.mark.parametrize("name", ATTACKS)
def test_the_allowed_rate_may_go_on_for_ever(name: str) -> None:
    make, per_s_max = ATTACKS[name]
    attack = make()
    server = attacked()
    for number in range(per_s_max * 3):
        server.receive(attack(), now=number * 1.001 / per_s_max)
    assert not server.closing


def test_resets_of_answered_streams_are_not_counted() -> None:
    server = raw_server()
    for number in range(limits.H2_RESETS_PER_S_MAX * 2):
        stream = server.receive(headers_frame(1 + 2 * number))[0][1]
        server.send_headers(stream, RESPONSE_BLOCK)
        server.receive(frames.rst_stream_frame(stream.id, ErrorCode.CANCEL))
    assert not server.closing
    assert server.active_streams == 0


def test_a_header_block_in_too_many_frames() -> None:
    server = raw_server()
    part = frames.frame(frames.CONTINUATION, 0, 1, b"")
    server.receive(frames.frame(frames.HEADERS, 0, 1, b"") + part * limits.H2_CONTINUATIONS_MAX)
    assert not server.closing
    server.receive(part)
    error = error_of(server)
    assert error is not None
    assert error[1] == CALM


def test_a_header_block_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H2_HEADER_BLOCK_BYTES_MAX", 20_000)
    server = raw_server()
    part = frames.frame(frames.CONTINUATION, 0, 1, b"x" * 10_000)
    server.receive(frames.frame(frames.HEADERS, 0, 1, b"") + part * 2)
    assert not server.closing
    server.receive(part)
    assert server.closing


def head_of_length(length: int) -> bytes:
    """A header block that changes no table: a literal that is never indexed."""
    return encode_headers([*REQUEST, (b"x-long", b"y" * length)])


def test_long_header_lists_of_live_streams_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H2_HEADS_BYTES_MAX", 150_000)
    server = raw_server()
    long = head_of_length(60_000)
    server.receive(headers_frames(1, long) + headers_frames(3, long) + headers_frames(5, long) + headers_frame(7))
    assert resets_of(server) == [(5, ErrorCode.REFUSED_STREAM)]
    server.receive(frames.rst_stream_frame(1, 8) + headers_frames(9, long))  # there is room again
    (kept, short, new) = server.open_streams()
    assert (kept.id, short.id, new.id) == (3, 7, 9)
    server.send_headers(kept, RESPONSE_BLOCK, end_stream=True)  # an answered one makes room, too
    server.receive(headers_frames(11, long))
    assert [stream.id for stream in server.open_streams()] == [7, 9, 11]
    assert not server.closing


def headers_frames(stream_id: int, block: bytes) -> bytes:
    """One block in as many frames as it takes."""
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    made = frames.frame(frames.HEADERS, 0, stream_id, pieces[0])
    for piece in pieces[1:-1]:
        made += frames.frame(frames.CONTINUATION, 0, stream_id, piece)
    return made + frames.frame(frames.CONTINUATION, frames.FLAG_END_HEADERS, stream_id, pieces[-1])


def test_nothing_is_kept_of_streams_that_are_over() -> None:
    server = raw_server()
    for number in range(5_000):
        stream = server.receive(headers_frame(1 + 4 * number, number % 2 == 0))[0][1]
        server.send_response(stream, RESPONSE_BLOCK, b"x", TRAILERS_BLOCK)
        server.take_output()
    assert server.active_streams == 0
    assert len(server._own_resets) <= limits.H2_OWN_RESETS_MAX
    assert len(server._skipped_ids) <= limits.H2_SKIPPED_IDS_MAX
    assert not server._waiting


def test_a_client_counts_the_same_way() -> None:
    client = raw_client()
    client.receive(PING * (limits.H2_PINGS_PER_S_MAX + 1))
    assert client.closing


def test_an_allowance_refills_with_time_but_not_beyond_one_second() -> None:
    limit = RateLimit(10)
    assert [limit.exceeded(0.0) for _ in range(11)] == [False] * 10 + [True]
    assert limit.exceeded(0.05)
    assert not limit.exceeded(0.11)
    assert limit.exceeded(0.11)
    assert [limit.exceeded(1000.0) for _ in range(11)] == [False] * 10 + [True]


def test_a_long_header_list_of_a_response_costs_the_clients_stream_only() -> None:
    client = raw_client()
    stream = client.start_request(REQUEST)
    block = encode_headers([(b":status", b"200"), (b"x", b"y" * 65_536)])
    data = frames.frame(frames.HEADERS, 0, 1, block[:16_384])
    for start in range(16_384, len(block), 16_384):
        last = start + 16_384 >= len(block)
        data += frames.frame(frames.CONTINUATION, 4 if last else 0, 1, block[start : start + 16_384])
    client.receive(data)
    assert stream.error_code == ErrorCode.PROTOCOL_ERROR
    assert not client.closing
    assert resets_of(client)[-1] == (1, ErrorCode.PROTOCOL_ERROR)
