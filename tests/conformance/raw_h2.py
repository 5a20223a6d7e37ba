# SPDX-License-Identifier: Apache-2.0
"""A bare HTTP/2 client for what a gRPC library hides: frames, trailers, windows. Blocking; one socket.

It shares no code with ours: header blocks are made and read by the hpack library, frames are put together here. Flow
control is the test's: windows are those that `windows` has given, and what the peer sends is never acknowledged by
itself.
"""

import socket
import struct
from types import TracebackType
from typing import NamedTuple, Self

import hpack
from google.protobuf.message import Message

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
READ_S_MAX = 10.0


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes
    block: dict[str, str]  # of HEADERS

    @property
    def ends(self) -> bool:
        return self.kind == RST_STREAM or (self.kind in (DATA, HEADERS) and bool(self.flags & END_STREAM))


class Outcome(NamedTuple):
    """All that a stream got: its header blocks in order, and its data."""

    blocks: list[dict[str, str]]
    data: bytes

    @property
    def status(self) -> tuple[int, str]:
        """grpc-status and grpc-message."""
        last = self.blocks[-1]
        return int(last["grpc-status"]), last.get("grpc-message", "")


def framed(message: Message | bytes, flag: int = 0) -> bytes:
    """A gRPC message with its five-byte prefix."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack(">BI", flag, len(data)) + data


class RawH2:
    """A connection for one `with` block. `window`: what each stream may be sent before it is given more."""

    def __init__(self, address: str, window: int = 65_535) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=READ_S_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each frame leaves at once
        self._reader = self._socket.makefile("rb")
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._next_stream = 1
        self._authority = address
        settings = struct.pack(">HI", 4, window)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(SETTINGS, 0, 0, settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
        self._socket.close()

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self._socket.sendall(self._frame(kind, flags, stream, payload))

    def open(self, path: str, body: bytes = b"", *, end: bool = True, method: str = "POST", **headers: str) -> int:
        """Begins a gRPC call and sends `body`; returns the stream's number."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", headers.pop("content_type", "application/grpc")),
            *[(name.replace("_", "-"), text) for name, text in headers.items()],
        ]
        alone = END_STREAM if end and not body else 0
        self.send(HEADERS, END_HEADERS | alone, stream, self._encoder.encode(fields))
        for at in range(0, len(body), 16_384):
            last = at + 16_384 >= len(body)
            self.send(DATA, END_STREAM if end and last else 0, stream, body[at : at + 16_384])
        return stream

    def give_window(self, stream: int, size: int) -> None:
        self.send(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))

    def read(self) -> Frame | None:
        """The next frame; None when the server has closed. SETTINGS are acknowledged."""
        head = self._reader.read(9)
        if len(head) < 9:
            return None
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self._reader.read(size)
        # Each block has to be decoded: those after it may refer to it.
        fields = self._decoder.decode(payload) if kind == HEADERS else []
        if kind == SETTINGS and not flags & ACK:
            self.send(SETTINGS, ACK, 0)
        return Frame(kind, flags, stream & 0x7FFFFFFF, payload, {str(name): str(text) for name, text in fields})

    def outcomes(self, streams: list[int]) -> dict[int, Outcome]:
        """Reads until all these streams have ended."""
        open_ones = set(streams)
        found = {stream: Outcome([], b"") for stream in streams}
        while open_ones:
            frame = self.read()
            assert frame is not None, f"the connection was closed with {len(open_ones)} streams open"
            assert frame.kind != GOAWAY, frame
            if frame.kind == HEADERS:
                if frame.stream in found:
                    found[frame.stream].blocks.append(frame.block)
            elif frame.kind == DATA and frame.stream in found:
                got = found[frame.stream]
                found[frame.stream] = got._replace(data=got.data + frame.payload)
            if frame.ends:
                open_ones.discard(frame.stream)
        return found

    def call(self, path: str, body: bytes = b"", **headers: str) -> Outcome:
        """One call, to its end."""
        stream = self.open(path, body, **headers)  # type: ignore[arg-type] # headers are all that is left
        return self.outcomes([stream])[stream]
