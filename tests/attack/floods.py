# SPDX-License-Identifier: Apache-2.0
"""Floods: what a client can send for ever, at the least cost to itself. Bytes only; no socket.

A flood is an opening, sent once, and rounds, sent as long as the server takes them. The bytes are made with the
functions that the server's own tests use, and no frame is sent that a plain library would refuse to make.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import hpack

from lessor.api.proto import rpc_pb2
from lessor.wire import frames, grpc
from lessor.wire.h2 import encode_headers

ROUND_BYTES = 65_536  # a round is about as large: a socket's usual buffer


class Flood(NamedTuple):
    opening: bytes
    rounds: Callable[[], Iterator[bytes]]
    needless: bool  # no client needs it: the server ends the connection


def block(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call. It refers to no dynamic table."""
    return encode_headers(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"h"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *more,
        ]
    )


WATCH = block("/etcdserverpb.Watch/Watch")
KEEPALIVE = block("/etcdserverpb.Lease/LeaseKeepAlive")
RANGE = block("/etcdserverpb.KV/Range")
RANGE_STREAM = block("/etcdserverpb.KV/RangeStream")
OPEN = frames.PREFACE + frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, frames.WINDOW_BYTES_MAX)])


def headers(stream_id: int, packed: bytes, *, end: bool = False) -> bytes:
    flags = frames.FLAG_END_HEADERS | (frames.FLAG_END_STREAM if end else 0)
    return frames.frame(frames.HEADERS, flags, stream_id, packed)


def data(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, frames.FLAG_END_STREAM if end else 0, stream_id, payload)


WIDE = OPEN + frames.window_update_frame(0, frames.WINDOW_BYTES_MAX - frames.WINDOW_BYTES_DEFAULT)
NARROW = frames.PREFACE + frames.settings_frame([])
ONE_STREAM = WIDE + headers(1, WATCH)
# Stream 1 is served and over.
ONE_OVER = OPEN + headers(1, RANGE) + data(1, grpc.frame(rpc_pb2.RangeRequest(key=b"k").SerializeToString()), end=True)
# Stream 1 is one that the server reset: its window was changed by zero.
ONE_RESET = OPEN + headers(1, WATCH) + frames.window_update_frame(1, 0)


def _same(piece: bytes) -> Callable[[], Iterator[bytes]]:
    whole = piece * (ROUND_BYTES // len(piece) + 1)

    def rounds() -> Iterator[bytes]:
        while True:
            yield whole

    return rounds


def _on_new_streams(make: Callable[[int], bytes], first_id: int = 3) -> Callable[[], Iterator[bytes]]:
    def rounds() -> Iterator[bytes]:
        stream_id = first_id
        while True:
            whole = bytearray()
            while len(whole) < ROUND_BYTES:
                whole += make(stream_id)
                stream_id += 2
            yield bytes(whole)

    return rounds


def _messages(*messages: bytes) -> bytes:
    """DATA on stream 1, full of these messages."""
    piece = b"".join(grpc.frame(message) for message in messages)
    return data(1, piece * (16_384 // len(piece)))


def _huffman(stream_id: int) -> bytes:
    """A request for no method, with a header field of its own that only Huffman code spells."""
    encoder = hpack.Encoder()
    field = encoder.encode([hpack.NeverIndexedHeaderTuple("x", f"{stream_id:x}" + "e" * 900)], huffman=True)
    return headers(stream_id, block("/no") + field, end=True)


def _churn(stream_id: int) -> bytes:
    """A request for no method, all of whose fields enter the dynamic table."""
    return headers(stream_id, block("/no") + b"\x40\x01x\x02ab" * 150, end=True)


def _range_stream(stream_id: int) -> bytes:
    """All keys, in chunks."""
    request = rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0")
    return headers(stream_id, RANGE_STREAM) + data(stream_id, grpc.frame(request.SerializeToString()), end=True)


def _compressed(stream_id: int) -> bytes:
    """A range whose key is a million zeros, in a thousand bytes."""
    packed = zlib.compress(rpc_pb2.RangeRequest(key=bytes(1_000_000)).SerializeToString(), wbits=31)
    message = b"\1" + len(packed).to_bytes(4, "big") + packed
    return headers(stream_id, block("/etcdserverpb.KV/Range", (b"grpc-encoding", b"gzip"))) + data(
        stream_id, message, end=True
    )


def _resizes(stream_id: int) -> bytes:
    """A request for no method that resizes the table again and again before its first field."""
    return headers(stream_id, b"\x20" * 1_000 + block("/no"), end=True)


# --- HTTP/1.1 and WebSockets ------------------------------------------------------------------------------------


def posted(path: str, body: bytes, *, chunked: bool = False, method: str = "POST") -> bytes:
    """A request. `chunked`: `body` is in chunks, and may be the beginning of one."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    return f"{method} {path} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode() + body


def chunks(data: bytes, count: int) -> bytes:
    return (b"%x\r\n%b\r\n" % (len(data), data)) * count


def upgrade(path: str) -> bytes:
    """A request for a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """A short frame of a WebSocket, masked with zeros. `opcode`: the first byte, with its bits."""
    return bytes((opcode, 0x80 | len(payload))) + bytes(4) + payload


_OPEN_WATCH = posted("/v3/watch", b"", chunked=True)
_LISTS = b'{"x":[' + b"[]," * 60_000 + b"[]]}"
_FLOODS_OVER_HTTP_1 = {
    "pipelined pages": Flood(b"", _same(posted("/health", b"", method="GET")), False),
    "pipelined ranges in JSON": Flood(b"", _same(posted("/v3/kv/range", b'{"key":"aw=="}')), False),
    "pipelined faults in JSON": Flood(b"", _same(posted("/v3/kv/range", b'{"key":')), False),
    "long lists in JSON": Flood(b"", _same(posted("/v3/kv/range", _LISTS)), False),
    "JSON at its bound": Flood(b"", _same(posted("/v3/kv/txn", b'{"compare":[' + b"{}," * 10_000 + b"{}]}")), False),
    "chunks of one byte": Flood(_OPEN_WATCH, _same(chunks(b" ", 1)), False),
    "keepalives in JSON": Flood(
        posted("/v3/lease/keepalive", b"", chunked=True), _same(chunks(b"{}" * 8_000, 1)), False
    ),
    "pings of a WebSocket": Flood(upgrade("/v3/watch"), _same(frame(0x89, b"")), False),
    "fragments on a WebSocket": Flood(upgrade("/v3/watch") + frame(0x01, b"{"), _same(frame(0x00, b" ")), False),
    "keepalives on a WebSocket": Flood(upgrade("/v3/lease/keepalive"), _same(frame(0x81, b"{}")), False),
}


# --- all --------------------------------------------------------------------------------------------------------

_REFUSED_WATCH = rpc_pb2.WatchRequest(
    create_request=rpc_pb2.WatchCreateRequest(key=b"b", range_end=b"a")
).SerializeToString()
_NO_WATCH = rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=7)).SerializeToString()
_PROGRESS = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()).SerializeToString()
_PRIORITY = frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\3\x10")

FLOODS: dict[str, Flood] = {
    "SETTINGS": Flood(ONE_STREAM, _same(frames.settings_frame([])), True),
    "SETTINGS ACK": Flood(ONE_STREAM, _same(frames.frame(frames.SETTINGS, frames.FLAG_ACK, 0, b"")), True),
    "PING": Flood(ONE_STREAM, _same(frames.frame(frames.PING, 0, 0, bytes(8))), True),
    "PING ACK": Flood(ONE_STREAM, _same(frames.frame(frames.PING, frames.FLAG_ACK, 0, bytes(8))), True),
    "PRIORITY": Flood(ONE_STREAM, _same(_PRIORITY), True),
    "GOAWAY": Flood(ONE_STREAM, _same(frames.goaway_frame(0, 0)), True),
    "WINDOW_UPDATE of the connection": Flood(OPEN + headers(1, WATCH), _same(frames.window_update_frame(0, 1)), True),
    "WINDOW_UPDATE of a stream": Flood(NARROW + headers(1, WATCH), _same(frames.window_update_frame(1, 1)), True),
    "WINDOW_UPDATE of a closed stream": Flood(ONE_OVER, _same(frames.window_update_frame(1, 1)), True),
    "RST_STREAM of a closed stream": Flood(ONE_OVER, _same(frames.rst_stream_frame(1, 8)), True),
    "HEADERS on a stream that was reset": Flood(ONE_RESET, _same(headers(1, RANGE)), True),
    "DATA on a stream that was reset": Flood(ONE_RESET, _same(data(1, b"x")), True),
    "an unknown frame type": Flood(ONE_STREAM, _same(frames.frame(0x63, 0, 0, b"")), True),
    "empty DATA": Flood(ONE_STREAM, _same(data(1, b"")), True),
    "resets": Flood(
        ONE_STREAM,
        _on_new_streams(lambda stream_id: headers(stream_id, WATCH) + frames.rst_stream_frame(stream_id, 8)),
        True,
    ),
    "DATA of one byte": Flood(ONE_STREAM, _same(data(1, b"\0")), False),
    "table size": Flood(OPEN, _on_new_streams(_resizes, 1), True),
    "table entries": Flood(OPEN, _on_new_streams(_churn, 1), True),
    "Huffman code": Flood(OPEN, _on_new_streams(_huffman, 1), True),
    "unknown methods": Flood(
        OPEN, _on_new_streams(lambda stream_id: headers(stream_id, block("/no"), end=True), 1), True
    ),
    "calls without a message": Flood(
        OPEN, _on_new_streams(lambda stream_id: headers(stream_id, RANGE, end=True), 1), True
    ),
    "streams beyond the bound": Flood(OPEN, _on_new_streams(lambda stream_id: headers(stream_id, RANGE), 1), True),
    "refused watches": Flood(ONE_STREAM, _same(_messages(_REFUSED_WATCH)), False),
    "cancels of no watch": Flood(ONE_STREAM, _same(_messages(_NO_WATCH)), False),
    "progress requests": Flood(ONE_STREAM, _same(_messages(_PROGRESS)), False),
    "empty watch requests": Flood(ONE_STREAM, _same(_messages(b"")), False),
    "empty keepalives": Flood(WIDE + headers(1, KEEPALIVE), _same(_messages(b"")), False),
    "ranges": Flood(
        WIDE,
        _on_new_streams(
            lambda stream_id: (
                headers(stream_id, RANGE)
                + data(stream_id, grpc.frame(rpc_pb2.RangeRequest(key=b"k").SerializeToString()), end=True)
            ),
            1,
        ),
        False,
    ),
    "range streams": Flood(WIDE, _on_new_streams(_range_stream, 1), False),
    "range streams that are reset": Flood(
        WIDE,
        _on_new_streams(lambda stream_id: _range_stream(stream_id) + frames.rst_stream_frame(stream_id, 8), 1),
        True,
    ),
    "range streams without a window": Flood(
        frames.PREFACE + frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, 0)]),
        _on_new_streams(_range_stream, 1),
        False,
    ),
    "compressed ranges": Flood(WIDE, _on_new_streams(_compressed, 1), False),
    **_FLOODS_OVER_HTTP_1,
}
