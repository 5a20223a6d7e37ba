# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 under any input: cut anywhere, garbage, random windows; header compression against the hpack library."""

from collections import deque

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.base import limits
from lessor.wire import frames
from lessor.wire.frames import ConnectionFault, ErrorCode
from lessor.wire.h2 import DATA, END, HEADERS, RESET, TRAILERS, WHOLE, H2Client, H2Connection, H2Server, Stream
from lessor.wire.h2_headers import Field, HeaderDecoder, head_of
from tests.unit.wire.h2_pair import (
    EMPTY_SETTINGS,
    REQUEST,
    REQUEST_BLOCK,
    RESPONSE_BLOCK,
    TRAILERS_BLOCK,
    ConnectionPair,
    data_frame,
    frames_of,
    headers_frame,
    plain,
)

# --- cut anywhere ---------------------------------------------------------------------------------------------------

# Said by a client: whole, padded, continued, reset, malformed and unknown things, three settings, a table entry.
CLIENT_SAYS = (
    frames.PREFACE
    + frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, 30), (frames.SETTINGS_HEADER_TABLE_SIZE, 0)])
    + headers_frame(1)
    + data_frame(1, b"hello ")
    + frames.frame(frames.DATA, frames.FLAG_PADDED | frames.FLAG_END_STREAM, 1, b"\x02world\0\0")
    + frames.frame(frames.HEADERS, 0, 3, REQUEST_BLOCK[:3])
    + frames.frame(frames.CONTINUATION, frames.FLAG_END_HEADERS, 3, REQUEST_BLOCK[3:] + b"\x40\x01a\x01b")
    + headers_frame(5, True, REQUEST_BLOCK + b"\xbe")
    + frames.frame(0xEE, 0, 0, b"unknown")
    + frames.window_update_frame(1, 5)
    + frames.rst_stream_frame(3, ErrorCode.CANCEL)
    + headers_frame(7, True, b"\x82\x84")
    + headers_frame(9)
    + data_frame(9, b"whole", True)
    + frames.frame(frames.PING, 0, 0, b"12345678")
    + data_frame(11, b"idle")
    + headers_frame(13)
)


def converse(connection: H2Connection, parts: list[bytes]) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """What a connection makes of its input, and what it says to it; a server answers each complete request."""
    heard = []
    for part in parts:
        events = connection.receive(part)
        heard += events
        for kind, stream, _ in events:
            if kind in (END, WHOLE) and isinstance(connection, H2Server):
                connection.send_response(stream, RESPONSE_BLOCK, b"x" * 40, TRAILERS_BLOCK)
    return plain(heard), connection.take_output()


@pytest.mark.parametrize("whole", [False, True], ids=["in pieces", "whole requests joined"])
def test_a_server_hears_the_same_however_its_input_is_cut(whole: bool) -> None:
    events, output = converse(H2Server(), [CLIENT_SAYS])
    assert [kind for kind, _, _ in events] == [HEADERS, DATA, END, HEADERS, HEADERS, END, RESET, HEADERS, DATA, END]
    assert [kind for kind, _, _ in H2Server(whole_requests=whole).receive(CLIENT_SAYS)].count(WHOLE) == whole
    assert [frame.kind for frame in frames_of(output)].count(frames.GOAWAY) == 1
    for cut in range(len(CLIENT_SAYS) + 1):
        cut_events, cut_output = converse(H2Server(whole_requests=whole), [CLIENT_SAYS[:cut], CLIENT_SAYS[cut:]])
        assert cut_events == events
        assert frames_by_stream(cut_output) == frames_by_stream(output)
    single = [CLIENT_SAYS[position : position + 1] for position in range(len(CLIENT_SAYS))]
    cut_events, cut_output = converse(H2Server(whole_requests=whole), single)
    assert cut_events == events
    assert frames_by_stream(cut_output) == frames_by_stream(output)


def frames_by_stream(output: bytes) -> dict[int, list[tuple[int, int]]]:
    """The kinds and flags of an output's frames by stream. How DATA is cut depends on when windows opened."""
    result: dict[int, list[tuple[int, int]]] = {}
    for frame in frames_of(output):
        seen = result.setdefault(frame.stream_id, [])
        if not (frame.kind == frames.DATA and seen and seen[-1] == (frames.DATA, frame.flags)):
            seen.append((frame.kind, frame.flags))
    return result


def asking_client() -> H2Client:
    client = H2Client()
    for _ in range(3):
        client.start_request(REQUEST, end_stream=True)
    return client


def test_a_client_hears_the_same_however_its_input_is_cut() -> None:
    said = (
        EMPTY_SETTINGS
        + headers_frame(3, False, RESPONSE_BLOCK)
        + headers_frame(1, False, RESPONSE_BLOCK + b"\x40\x01a\x01b")
        + data_frame(1, b"hello ")
        + data_frame(3, b"there")
        + frames.frame(frames.DATA, frames.FLAG_PADDED, 1, b"\x02world\0\0")
        + headers_frame(1, True, TRAILERS_BLOCK + b"\xbe")
        + frames.rst_stream_frame(3, ErrorCode.INTERNAL_ERROR)
        + frames.goaway_frame(3, ErrorCode.NO_ERROR)
    )
    events, output = converse(asking_client(), [said])
    assert [(kind, stream_id) for kind, stream_id, _ in events] == [
        (HEADERS, 3),
        (HEADERS, 1),
        (DATA, 1),
        (DATA, 3),
        (DATA, 1),
        (TRAILERS, 1),
        (END, 1),
        (RESET, 3),
        (RESET, 5),
    ]
    for cut in range(len(said) + 1):
        assert converse(asking_client(), [said[:cut], said[cut:]]) == (events, output)
    assert converse(asking_client(), [said[i : i + 1] for i in range(len(said))]) == (events, output)


# --- garbage --------------------------------------------------------------------------------------------------------

FRAME = st.builds(
    frames.frame,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0xC, 0x24, 0x25, 0x2D, 0xFF]),
    st.integers(0, 8),
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([REQUEST_BLOCK, RESPONSE_BLOCK, TRAILERS_BLOCK, REQUEST_BLOCK[:7], b"\0\0\0\1", b"12345678"]),
        st.builds(frames.SETTING.pack, st.integers(0, 7), st.integers(0, 0xFFFFFFFF)),
    ),
)
NOISE = st.one_of(st.lists(FRAME, max_size=30).map(b"".join), st.binary(max_size=200))


def assert_sound(connection: H2Connection) -> None:
    """What holds after any input."""
    assert connection.queued_bytes == sum(stream.queued_bytes for stream in connection._streams.values())
    frames_of(connection.take_output())
    assert len(connection._buffer) <= frames.FRAME_HEADER_BYTES + limits.H2_FRAME_BYTES_MAX


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(NOISE, st.booleans())
def test_a_server_survives_any_input(noise: bytes, preface: bool) -> None:
    server = H2Server()
    data = frames.PREFACE + EMPTY_SETTINGS + headers_frame(1) + noise if preface else noise
    assert plain(H2Server(whole_requests=True).receive(data)) == plain(H2Server().receive(data))
    live: dict[int, Stream] = {}
    for kind, stream, payload in server.receive(data):
        assert (kind == DATA) == bool(payload)
        if kind == HEADERS:
            assert stream.id not in live
            live[stream.id] = stream
            server.send_headers(stream, RESPONSE_BLOCK)
        elif kind == DATA:
            assert stream.id in live
            server.send_data(stream, payload)
        elif kind == END:
            server.send_data(stream, b"x" * 100, end_stream=True)
        else:
            assert kind == RESET
            del live[stream.id]
    assert_sound(server)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(NOISE, st.booleans())
def test_a_client_survives_any_input(noise: bytes, opened: bool) -> None:
    client = asking_client()
    client.take_output()
    ended: set[int] = set()
    for kind, stream, payload in client.receive((EMPTY_SETTINGS if opened else b"") + noise):
        assert (kind == DATA) == bool(payload)
        assert stream.id not in ended or kind == RESET
        if kind == END:
            ended.add(stream.id)
    assert_sound(client)


# --- windows --------------------------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 2), st.integers(0, 60_000)),
        st.tuples(st.just("window"), st.integers(0, 2), st.integers(1, 50_000)),
        st.tuples(st.just("connection"), st.just(0), st.integers(1, 80_000)),
        st.tuples(st.just("initial"), st.just(0), st.integers(0, 70_000)),
        st.tuples(st.just("frame"), st.just(0), st.integers(16_384, 40_000)),
        st.tuples(st.just("reset"), st.integers(0, 2), st.just(0)),
    ),
    max_size=40,
)


class StrictReader:
    """A peer of a server that keeps account of every window it has given, and of what came."""

    def __init__(self, server: H2Server, count: int) -> None:
        self.server = server
        self.now_s = 0.0
        self.connection_window = frames.WINDOW_BYTES_DEFAULT
        self.initial_window = 1_000
        self.frame_max = frames.FRAME_BYTES_DEFAULT
        self.windows = {1 + 2 * number: self.initial_window for number in range(count)}
        self.came = dict.fromkeys(self.windows, b"")
        self.ended: list[int] = []
        self.say(frames.PREFACE + frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, 1_000)]))
        events = server.receive(b"".join(headers_frame(stream_id, True) for stream_id in self.windows))
        self.streams = [stream for kind, stream, _ in events if kind == HEADERS]
        for stream in self.streams:
            server.send_headers(stream, RESPONSE_BLOCK)

    def say(self, data: bytes) -> None:
        self.now_s += 1.0
        self.server.receive(data, self.now_s)

    def read(self) -> None:
        """Reads everything the server has said; fails when it says more than it may."""
        for frame in frames_of(self.server.take_output()):
            assert len(frame.payload) <= self.frame_max
            if frame.kind == frames.DATA:
                size = len(frame.payload)
                self.connection_window -= size
                self.windows[frame.stream_id] -= size
                assert self.connection_window >= 0
                assert not size or self.windows[frame.stream_id] >= 0
                assert frame.stream_id not in self.ended
                self.came[frame.stream_id] += frame.payload
            if frame.kind in (frames.DATA, frames.HEADERS) and frame.flags & frames.FLAG_END_STREAM:
                self.ended.append(frame.stream_id)
            assert frame.kind != frames.GOAWAY

    def grant(self, stream_id: int, size: int) -> None:
        if stream_id:
            self.windows[stream_id] += size
        else:
            self.connection_window += size
        self.say(frames.window_update_frame(stream_id, size))

    def set_initial(self, size: int) -> None:
        for stream_id in self.windows:
            self.windows[stream_id] += size - self.initial_window
        self.initial_window = size
        self.say(frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, size)]))

    def set_frame_max(self, size: int) -> None:
        self.read()
        self.frame_max = size
        self.say(frames.settings_frame([(frames.SETTINGS_MAX_FRAME_SIZE, size)]))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(OPERATIONS, st.booleans())
def test_every_byte_arrives_in_order_and_no_window_is_exceeded(
    operations: list[tuple[str, int, int]], trailers: bool
) -> None:
    server = H2Server()
    reader = StrictReader(server, 3)
    sent = {stream.id: b"" for stream in reader.streams}
    reset: set[int] = set()
    for step, (name, number, size) in enumerate(operations):
        stream = reader.streams[number]
        if name == "send":
            data = bytes((step,)) * size
            server.send_data(stream, data)
            sent[stream.id] += data
        elif name == "window":
            reader.grant(stream.id, size)
        elif name == "connection":
            reader.grant(0, size)
        elif name == "initial":
            reader.set_initial(size)
        elif name == "frame":
            reader.set_frame_max(size)
        else:
            reader.say(frames.rst_stream_frame(stream.id, ErrorCode.CANCEL))
            reset.add(stream.id)
        reader.read()
        waiting = sum(len(sent[s.id]) - len(reader.came[s.id]) for s in reader.streams if s.id not in reset)
        assert server.queued_bytes == waiting
    for stream in reader.streams:
        if trailers:
            server.send_headers(stream, TRAILERS_BLOCK, end_stream=True)
        else:
            server.send_data(stream, b"", end_stream=True)
    reader.set_initial(20_000_000)
    reader.grant(0, 20_000_000)
    reader.read()
    for stream_id, data in sent.items():
        came = reader.came[stream_id]
        assert came == data if stream_id not in reset else data.startswith(came)
    assert sorted(reader.ended) == sorted(sent.keys() - reset)
    assert server.queued_bytes == server.active_streams == 0


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 500_000)), max_size=8),
    st.lists(st.integers(2_000, 200_000), min_size=1, max_size=20),
)
def test_both_directions_carry_everything_however_the_socket_cuts(
    sends: list[tuple[bool, int, int]], cuts: list[int]
) -> None:
    pair = ConnectionPair()
    calls = [pair.request(b"?", end_stream=False) for _ in range(3)]
    for _, seen in calls:
        pair.server.send_headers(seen, RESPONSE_BLOCK)
    sent = {(up, asked.id): b"?" if up else b"" for asked, _ in calls for up in (True, False)}
    for step, (up, number, size) in enumerate(sends):
        data = bytes((step,)) * size
        asked, seen = calls[number]
        if up:
            pair.client.send_data(asked, data)
        else:
            pair.server.send_data(seen, data)
        sent[up, asked.id] += data
    turns = deque(cuts)
    to_server = to_client = b""
    while to_server or to_client or pair.client.has_output or pair.server.has_output:
        to_server += pair.client.take_output()
        to_client += pair.server.take_output()
        cut = turns[0]
        turns.rotate()
        pair.server_events += pair.server.receive(to_server[:cut])
        pair.client_events += pair.client.receive(to_client[:cut])
        to_server, to_client = to_server[cut:], to_client[cut:]
    pair.assert_healthy()
    for up, events in ((True, pair.server_events), (False, pair.client_events)):
        for asked, _ in calls:
            came = b"".join(payload for kind, stream, payload in events if kind == DATA and stream.id == asked.id)
            assert came == sent[up, asked.id]
    assert pair.client.queued_bytes == pair.server.queued_bytes == 0


# --- header compression ---------------------------------------------------------------------------------------------

NAME = st.sampled_from([b"token", b"grpc-timeout", b"user-agent", b"cookie", b"x-a", b"x-b", b"content-type"])
VALUE = st.binary(max_size=60).map(lambda value: value.translate(None, b"\0\r\n\t "))
HEADER_LISTS = st.lists(
    st.tuples(
        st.lists(st.tuples(NAME, VALUE), max_size=8),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 4096)),
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(HEADER_LISTS)
def test_what_another_encoder_compresses_is_read_back(lists: list[tuple[list[Field], bool, int | None]]) -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    for fields, huffman, table_size in lists:
        if table_size is not None:
            encoder.header_table_size = table_size
        block = encoder.encode(fields, huffman=huffman)
        assert list(decoder.head(block).headers) == fields
        assert list(decoder.head(encoder.encode(fields, huffman=huffman)).headers) == fields


BLOCKS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from(
            [REQUEST_BLOCK, b"\x40\x01a\x01b", b"\xbe", b"\xbf", b"\x20", b"\x3f\xe1\x1f", b"\x7f\x00\x01z"]
        ),
    ),
    max_size=6,
).map(b"".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(st.lists(BLOCKS, min_size=1, max_size=6))
def test_any_block_is_read_as_another_decoder_reads_it_or_refused_by_both(blocks: list[bytes]) -> None:
    ours, cached, theirs = HeaderDecoder(), HeaderDecoder(), hpack.Decoder()
    for block in blocks:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            with pytest.raises(ConnectionFault):
                cached.head(block)
            return
        assert ours._decode(block)[0] == expected
        assert [*ours._dynamic] == [(bytes(name), bytes(value)) for name, value in theirs.header_table.dynamic_entries]
        assert repr(cached.head(block)) == repr(head_of(expected, {}))
