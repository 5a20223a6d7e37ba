# SPDX-License-Identifier: Apache-2.0
"""What clients say, as bytes: the material of the mutations. Each conversation is a list of pieces sent one by one."""

import hpack

from lessor.api.proto import rpc_pb2
from lessor.wire import frames, grpc
from lessor.wire.h2 import H2Client
from tests.attack.floods import FLOODS, KEEPALIVE, NARROW, OPEN, RANGE_STREAM, WATCH, block, data, headers

_PUT = rpc_pb2.PutRequest(key=b"k", value=b"v" * 50)
_RANGE = rpc_pb2.RangeRequest(key=b"a", range_end=b"z")
_TXN = rpc_pb2.TxnRequest(
    compare=[rpc_pb2.Compare(key=b"k", target=rpc_pb2.Compare.VERSION, result=rpc_pb2.Compare.GREATER)],
    success=[rpc_pb2.RequestOp(request_put=_PUT), rpc_pb2.RequestOp(request_range=_RANGE)],
)
_WATCH = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a", range_end=b"z", start_revision=1))
_UNARY = {
    "Lease/LeaseGrant": rpc_pb2.LeaseGrantRequest(TTL=60),
    "Lease/LeaseLeases": rpc_pb2.LeaseLeasesRequest(),
    "KV/Put": _PUT,
    "KV/Range": _RANGE,
    "KV/Txn": _TXN,
    "KV/DeleteRange": rpc_pb2.DeleteRangeRequest(key=b"k"),
    "Auth/AuthStatus": rpc_pb2.AuthStatusRequest(),
    "Maintenance/Status": rpc_pb2.StatusRequest(),
    "Maintenance/HashKV": rpc_pb2.HashKVRequest(),
}


def _library() -> list[bytes]:
    """All unary calls, with tables and Huffman code as other libraries use them, and a deadline."""
    encoder = hpack.Encoder()
    pieces = [OPEN]
    for number, (name, request) in enumerate(_UNARY.items()):
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/etcdserverpb.{name}"),
            (":authority", "localhost:2379"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", f"{5_000 + number}m"),
        ]
        stream_id = 1 + 2 * number
        message = request.SerializeToString()
        pieces += [headers(stream_id, encoder.encode(fields)), data(stream_id, grpc.frame(message), end=True)]
    return pieces


def _streams() -> list[bytes]:
    """A watch, renewals, window updates, pings, a reset."""
    client = H2Client()
    pieces = [client.take_output()]
    watch, renewals = client.start_request(WATCH), client.start_request(KEEPALIVE)
    for number in range(4):
        client.send_data(watch, grpc.frame(_WATCH.SerializeToString()))
        client.send_data(renewals, grpc.frame(rpc_pb2.LeaseKeepAliveRequest(ID=number).SerializeToString()))
        pieces += [client.take_output(), frames.window_update_frame(0, 1_000), frames.window_update_frame(watch.id, 9)]
    pieces += [frames.frame(frames.PING, 0, 0, b"01234567"), frames.frame(frames.SETTINGS, frames.FLAG_ACK, 0, b"")]
    return [*pieces, frames.rst_stream_frame(watch.id, 8), frames.goaway_frame(0, 0)]


def _range_streams() -> list[bytes]:
    """Ranges in chunks that wait for a window: keys are written meanwhile, history goes, one stream is given up."""
    put, compact = block("/etcdserverpb.KV/Put"), block("/etcdserverpb.KV/Compact")
    requests = [
        rpc_pb2.RangeRequest(key=b"large", range_end=b"largf"),
        rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", limit=3),
        rpc_pb2.RangeRequest(key=b"large", range_end=b"largf", revision=2),
        rpc_pb2.RangeRequest(key=b"large", range_end=b"\0", keys_only=True),
        rpc_pb2.RangeRequest(key=b"large", range_end=b"\0", count_only=True),
        rpc_pb2.RangeRequest(key=b"large", range_end=b"\0", sort_order=rpc_pb2.RangeRequest.DESCEND),
    ]

    def call(stream_id: int, packed: bytes, message: bytes) -> list[bytes]:
        framed = grpc.frame(message)
        parts = [framed[at : at + 16_384] for at in range(0, len(framed), 16_384)]
        last = data(stream_id, parts[-1], end=True)
        return [headers(stream_id, packed), *(data(stream_id, part) for part in parts[:-1]), last]

    def writes(first_id: int, letter: bytes) -> list[bytes]:
        pieces = []
        for number in range(6):
            request = rpc_pb2.PutRequest(key=b"large%d" % number, value=letter * 50_000)
            pieces += call(first_id + 2 * number, put, request.SerializeToString())
        return pieces

    pieces = [NARROW, *writes(1, b"a")]
    for number, request in enumerate(requests):
        pieces += call(21 + 2 * number, RANGE_STREAM, request.SerializeToString())
    pieces += [frames.window_update_frame(0, 100_000), frames.window_update_frame(21, 20_000), *writes(41, b"b")]
    pieces += call(61, compact, rpc_pb2.CompactionRequest(revision=5).SerializeToString())
    pieces += [frames.rst_stream_frame(25, 8), frames.window_update_frame(0, 1_000_000)]
    return [*pieces, *(frames.window_update_frame(stream_id, 400_000) for stream_id in (21, 23, 27))]


def _unusual() -> list[bytes]:
    """Padding, priority, a header block in pieces, an error, a call over HTTP/2 that is not gRPC's."""
    call = block("/etcdserverpb.KV/Range")
    flags = frames.FLAG_PADDED | frames.FLAG_PRIORITY | frames.FLAG_END_HEADERS
    message = grpc.frame(_RANGE.SerializeToString())
    return [
        OPEN,
        frames.frame(frames.HEADERS, flags, 1, b"\x03\0\0\0\0\x10" + call + bytes(3)),
        frames.frame(frames.DATA, frames.FLAG_PADDED | frames.FLAG_END_STREAM, 1, b"\x05" + message + bytes(5)),
        frames.frame(frames.HEADERS, 0, 3, call[:7]),
        frames.frame(frames.CONTINUATION, 0, 3, call[7:20]),
        frames.frame(frames.CONTINUATION, frames.FLAG_END_HEADERS, 3, call[20:]),
        *(data(3, message[at : at + 1]) for at in range(len(message))),
        data(3, b"", end=True),
        frames.frame(frames.PRIORITY, 0, 3, b"\0\0\0\1\x10"),
        headers(5, block("/no"), end=True),
        headers(7, block("/v3/kv/range").replace(b"application/grpc", b"application/json")),
        data(7, b'{"key":"YQ==","range_end":"eg=="}', end=True),
    ]


def _http1() -> list[bytes]:
    body = b'{"key":"YQ==","value":"YQ=="}'
    head = b"POST /v3/kv/put HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return [
        head + b"Content-Length: %d\r\n\r\n" % len(body),
        body,
        head + b"Transfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\n\r\nGET /version HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /v3/watch HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\n",
        b'{"create_request":{"key":"YQ=="}}       ',
    ]


def _websocket() -> list[bytes]:
    request = b'{"create_request":{"key":"YQ=="}}'
    return [
        b"GET /v3/watch HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"\x81" + bytes((0x80 | len(request),)) + bytes(4) + request,
        b"\x89\x80" + bytes(4),
        b"\x88\x80" + bytes(4),
    ]


CONVERSATIONS: list[list[bytes]] = [
    _library(),
    _streams(),
    _range_streams(),
    _unusual(),
    _http1(),
    _websocket(),
    *([piece for piece in (flood.opening, next(flood.rounds())[:4_000]) if piece] for flood in FLOODS.values()),
]
