# SPDX-License-Identifier: Apache-2.0
"""Both ends of an HTTP/2 connection in memory, and frames written and read by hand.

`ConnectionPair` lets a test say something on one side and check both. `raw_server` and `raw_client` are for peers that
do not keep to the rules: the test writes their frames itself. The reader of frames here is a second, independent one.
"""

from typing import NamedTuple

from lessor.wire import frames
from lessor.wire.h2 import (
    DATA,
    END,
    HEADERS,
    RESET,
    WHOLE,
    Event,
    Field,
    H2Client,
    H2Connection,
    H2Server,
    Stream,
    encode_headers,
)

REQUEST: list[Field] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/lease/grant"),
    (b":authority", b"localhost:2379"),
    (b"content-type", b"application/json"),
    (b"te", b"trailers"),
]
RESPONSE: list[Field] = [(b":status", b"200"), (b"content-type", b"application/json")]
REQUEST_BLOCK = encode_headers(REQUEST)
RESPONSE_BLOCK = encode_headers(RESPONSE)
TRAILERS_BLOCK = encode_headers([(b"checksum", b"42")])
EMPTY_SETTINGS = frames.frame(frames.SETTINGS, 0, 0, b"")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


def frames_of(output: bytes) -> list[Frame]:
    """The frames of an output; a client's preface is skipped. Fails when the output ends inside a frame."""
    output = output.removeprefix(frames.PREFACE)
    result = []
    while output:
        length = int.from_bytes(output[:3], "big")
        stream_id = int.from_bytes(output[5:9], "big")
        assert len(output) >= 9 + length
        result.append(Frame(output[3], output[4], stream_id, output[9 : 9 + length]))
        output = output[9 + length :]
    return result


def headers_frame(stream_id: int, end_stream: bool = False, block: bytes = REQUEST_BLOCK) -> bytes:
    flags = frames.FLAG_END_HEADERS | (frames.FLAG_END_STREAM if end_stream else 0)
    return frames.frame(frames.HEADERS, flags, stream_id, block)


def data_frame(stream_id: int, data: bytes, end_stream: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.FLAG_END_STREAM if end_stream else 0, stream_id, data)


def error_of(connection: H2Connection) -> tuple[int, int, bytes] | None:
    """(last stream id, error code, debug data) of the GOAWAY in the output, or None."""
    for frame in frames_of(connection.take_output()):
        if frame.kind == frames.GOAWAY:
            last_id, code = frames.GOAWAY_HEAD.unpack_from(frame.payload)
            return last_id, code, frame.payload[8:]
    return None


def resets_of(connection: H2Connection) -> list[tuple[int, int]]:
    """(stream id, error code) of each RST_STREAM in the output."""
    return [
        (frame.stream_id, int.from_bytes(frame.payload, "big"))
        for frame in frames_of(connection.take_output())
        if frame.kind == frames.RST_STREAM
    ]


def raw_server(*settings: tuple[int, int]) -> H2Server:
    """A server whose client has sent its preface and `settings`; its output so far is taken."""
    server = H2Server()
    assert server.receive(frames.PREFACE + frames.settings_frame(list(settings))) == []
    server.take_output()
    return server


def raw_client() -> H2Client:
    """A client whose server has sent its settings; its output so far is taken."""
    client = H2Client()
    assert client.receive(EMPTY_SETTINGS) == []
    client.take_output()
    return client


def plain(events: list[Event]) -> list[tuple[int, int, bytes]]:
    """Events that can be compared: stream ids instead of streams, neighbouring DATA of a stream joined, WHOLE split."""
    result: list[tuple[int, int, bytes]] = []
    for kind, stream, payload in events:
        if kind == WHOLE:
            result += [(HEADERS, stream.id, b""), (DATA, stream.id, payload), (END, stream.id, b"")]
            continue
        if result and kind == DATA and result[-1][:2] == (DATA, stream.id):
            payload = result.pop()[2] + payload
        result.append((kind, stream.id, payload))
    return result


def body_of(events: list[Event], stream: Stream) -> bytes:
    """All the data of one stream."""
    return b"".join(payload for kind, where, payload in events if kind == DATA and where.id == stream.id)


class ConnectionPair:
    """A client and a server, wired together."""

    def __init__(self) -> None:
        self.client = H2Client()
        self.server = H2Server()
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.exchange()

    def exchange(self) -> None:
        """Carries bytes to and fro until neither side has any; events are collected."""
        while self.client.has_output or self.server.has_output:
            self.server_events += self.server.receive(self.client.take_output())
            self.client_events += self.client.receive(self.server.take_output())

    def request(self, data: bytes = b"", end_stream: bool = True) -> tuple[Stream, Stream]:
        """Starts a request and carries it over: (the client's stream, the server's)."""
        asked = self.client.start_request(REQUEST, end_stream=end_stream and not data)
        if data:
            self.client.send_data(asked, data, end_stream)
        self.exchange()
        seen = next(stream for _, stream, _ in self.server_events if stream.id == asked.id)
        return asked, seen

    def assert_healthy(self) -> None:
        assert not self.client.closing
        assert not self.server.closing
        assert all(kind != RESET for kind, _, _ in self.client_events + self.server_events)
