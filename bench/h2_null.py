# SPDX-License-Identifier: Apache-2.0
"""Claim: on one core, HTTP/2 and gRPC framing alone allow 100k unary calls/s and 300k streamed messages/s.

A null gRPC server over `lessor.wire` on uvloop, in its own process, and a raw client that sends ready-made bytes, so
that the server is what is measured. Nothing is stored or made durable: this is the ceiling of the real server.

    python bench/h2_null.py                 both figures, and the sans-IO ceiling without sockets
    python bench/h2_null.py serve [PORT]    only the server, for h2load, h2spec, curl or a gRPC client

What the server answers: POST /null/Unary (gRPC) one empty message; POST /null/Stream (gRPC) one message for each;
LeaseGrant and LeaseKeepAlive of etcd's API what the load programs expect, from nothing (bench/client_limits.py); other
gRPC paths UNIMPLEMENTED; /hold (not gRPC) nothing, ever; GET a line; any other request is echoed with status 200.
"""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from typing import cast

import hpack
import uvloop

from lessor.api.proto import rpc_pb2
from lessor.base.errors import Code, EtcdError
from lessor.wire import frames, grpc, sniff
from lessor.wire.h2 import DATA, END, HEADERS, RESET, H2Server, Stream, encode_headers

HTTP_OK = encode_headers([(b":status", b"200"), (b"content-type", b"application/octet-stream")])
EMPTY_REPLY = grpc.frame(b"\x0a\x02\x08\x01")
MESSAGE_BYTES_MAX = 4_194_304
GRANT_PATH, KEEPALIVE_PATH = b"/etcdserverpb.Lease/LeaseGrant", b"/etcdserverpb.Lease/LeaseKeepAlive"
TTL_S = 3600
CONNECTIONS = 10
UNARY_IN_FLIGHT = 20
STREAM_IN_FLIGHT = 64


_lease_ids = itertools.count(1)


def grant_reply(request: bytes) -> bytes:
    wanted = rpc_pb2.LeaseGrantRequest.FromString(request[grpc.PREFIX_BYTES :])
    lease_id = wanted.ID or next(_lease_ids)
    return grpc.frame(rpc_pb2.LeaseGrantResponse(ID=lease_id, TTL=wanted.TTL).SerializeToString())


class NullServer(asyncio.Protocol):
    """One connection of the null server."""

    def __init__(self) -> None:
        self.h2 = H2Server()
        self.transport: asyncio.Transport
        self.first = b""
        self.sniffed = False
        self.renewed: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.sniffed:
            self.first += data
            protocol = sniff.sniff(self.first)
            if protocol is None:
                return
            if protocol == "h1":
                self.transport.close()
                return
            data = self.first
            self.sniffed = True
        h2 = self.h2
        for kind, stream, payload in h2.receive(data, time.monotonic()):
            if kind == DATA:
                self.body(stream, payload)
            elif kind == END:
                self.end(stream)
            elif kind == HEADERS:
                self.head(stream)
            elif kind == RESET:
                stream.owner = None
        if h2.has_output:
            self.transport.write(h2.take_output())
        if h2.closing:
            self.transport.close()

    def head(self, stream: Stream) -> None:
        head = stream.head
        assert head is not None
        if head.route is None:
            head.route = head.path if grpc.is_grpc(head.get(b"content-type")) else b""
        if head.route in (b"/null/Unary", GRANT_PATH):
            return
        if head.route in (b"/null/Stream", KEEPALIVE_PATH):
            stream.owner = grpc.Deframer(MESSAGE_BYTES_MAX)
            self.h2.send_headers(stream, grpc.RESPONSE_HEADERS)
        elif head.route:
            block = grpc.trailers_only(Code.UNIMPLEMENTED, f"unknown method {head.path.decode('ascii', 'replace')}")
            self.h2.send_headers(stream, block, end_stream=True)
        elif head.path != b"/hold":
            self.h2.send_headers(stream, HTTP_OK)

    def body(self, stream: Stream, payload: bytes) -> None:
        owner, route = stream.owner, stream.head and stream.head.route
        if route == GRANT_PATH:
            stream.owner = grant_reply(payload)
        elif owner is not None:
            try:
                for message in owner.feed(payload):
                    self.h2.send_data(stream, self.renewal(message) if route == KEEPALIVE_PATH else grpc.frame(message))
            except EtcdError as error:
                self.h2.send_headers(stream, grpc.trailers(error.code, error.message), end_stream=True)
        elif not route:
            self.h2.send_data(stream, payload)

    def renewal(self, message: bytes) -> bytes:
        reply = self.renewed.get(message)
        if reply is None:
            lease_id = rpc_pb2.LeaseKeepAliveRequest.FromString(message).ID
            whole = rpc_pb2.LeaseKeepAliveResponse(ID=lease_id, TTL=TTL_S).SerializeToString()
            reply = self.renewed[message] = grpc.frame(whole)
        return reply

    def end(self, stream: Stream) -> None:
        assert stream.head is not None
        if stream.head.route == GRANT_PATH:
            self.h2.send_response(stream, grpc.RESPONSE_HEADERS, stream.owner, grpc.TRAILERS_OK)
            return
        if stream.head.route == b"/null/Unary":
            self.h2.send_response(stream, grpc.RESPONSE_HEADERS, EMPTY_REPLY, grpc.TRAILERS_OK)
        elif stream.head.route in (b"/null/Stream", KEEPALIVE_PATH):
            self.h2.send_headers(stream, grpc.TRAILERS_OK, end_stream=True)
        elif stream.head.path != b"/hold":
            self.h2.send_data(stream, b"a null server\n" if stream.head.method == b"GET" else b"", end_stream=True)


def serve(port: int) -> None:
    """Serves on 127.0.0.1 until killed; prints its port, then nothing."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(NullServer, "127.0.0.1", port)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run())


# --- the raw client -------------------------------------------------------------------------------------------------

OPENING = (
    frames.PREFACE
    + frames.settings_frame([(frames.SETTINGS_INITIAL_WINDOW_SIZE, frames.WINDOW_BYTES_MAX)])
    + frames.window_update_frame(0, frames.WINDOW_BYTES_MAX - frames.WINDOW_BYTES_DEFAULT)
)


def head_block(path: bytes) -> bytes:
    return encode_headers(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
    )


UNARY_HEAD = head_block(b"/null/Unary")
STREAM_HEAD = head_block(b"/null/Stream")
MESSAGE = grpc.frame(b"\x08\x96\xf5\x8b\xbb\xf1\xdb\xd7\xa8\x66")  # as large as a keepalive


class RawClient(asyncio.Protocol):
    """Keeps a number of calls, or of messages on one stream, in flight and counts the answers."""

    def __init__(self, streaming: bool, in_flight: int) -> None:
        self.streaming = streaming
        self.in_flight = in_flight
        self.count = 0
        self.next_id = 1
        self.rest = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        opening = OPENING
        if self.streaming:
            opening += frames.frame(frames.HEADERS, frames.FLAG_END_HEADERS, 1, STREAM_HEAD)
        self.transport.write(opening + self.requests(self.in_flight))

    def requests(self, count: int) -> bytes:
        if self.streaming:
            return frames.frame(frames.DATA, 0, 1, MESSAGE) * count
        pack = frames.FRAME_HEADER.pack
        head_length = len(UNARY_HEAD) << 8 | frames.HEADERS
        data_length = len(MESSAGE) << 8 | frames.DATA
        first = self.next_id
        self.next_id = first + 2 * count
        return b"".join(
            [
                pack(head_length, 4, stream_id) + UNARY_HEAD + pack(data_length, 1, stream_id) + MESSAGE
                for stream_id in range(first, self.next_id, 2)
            ]
        )

    def data_received(self, data: bytes) -> None:
        data = self.rest + data
        position = answers = 0
        wanted = frames.DATA if self.streaming else frames.HEADERS
        flag = 0 if self.streaming else frames.FLAG_END_STREAM
        unpack = frames.FRAME_HEADER.unpack_from
        while position + 9 <= len(data):
            length, flags, _ = unpack(data, position)
            end = position + 9 + (length >> 8)
            if end > len(data):
                break
            if length & 0xFF == wanted and flags & 1 == flag:
                answers += 1
            position = end
        self.rest = data[position:]
        if answers:
            self.count += answers
            self.transport.write(self.requests(answers))


async def measure(port: int, streaming: bool, in_flight: int, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    clients = [RawClient(streaming, in_flight) for _ in range(CONNECTIONS)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.sleep(0.3)
    before, start = sum(client.count for client in clients), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(client.count for client in clients) - before) / (time.perf_counter() - start)
    for client in clients:
        client.transport.abort()
    return rate


def sans_io_unary(seconds: float) -> float:
    """Unary calls/s without sockets: receive and send_response alone, 20 calls at a time."""
    server = NullServer()
    server.transport = _Sink()
    client = RawClient(False, UNARY_IN_FLIGHT)
    server.data_received(OPENING)
    batches = [client.requests(UNARY_IN_FLIGHT) for _ in range(20_000)]
    count, start = 0, time.perf_counter()
    for batch in batches:
        server.data_received(batch)
        count += UNARY_IN_FLIGHT
        if count % 20_000 == 0 and time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def sans_io_deadlines(seconds: float) -> float:
    """Unary calls/s without sockets from a client that puts a new grpc-timeout into its table with each call."""
    server = NullServer()
    server.transport = _Sink()
    server.data_received(OPENING)
    encoder = hpack.Encoder()
    calls = []
    for number in range(30_000):
        block = encoder.encode(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", b"/null/Unary"),
                (b":authority", b"127.0.0.1:2379"),
                (b"content-type", b"application/grpc"),
                (b"user-agent", b"grpc-go/1.59.0"),
                (b"te", b"trailers"),
                (b"grpc-timeout", b"%du" % (4_999_999 - 7 * number)),
            ]
        )
        stream_id = 2 * number + 1
        calls.append(
            frames.frame(frames.HEADERS, 4, stream_id, block) + frames.frame(frames.DATA, 1, stream_id, MESSAGE)
        )
    count, start = 0, time.perf_counter()
    for first in range(0, len(calls), UNARY_IN_FLIGHT):
        server.data_received(b"".join(calls[first : first + UNARY_IN_FLIGHT]))
        count += UNARY_IN_FLIGHT
        if count % 10_000 == 0 and time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def sans_io_stream(seconds: float) -> float:
    """Messages/s without sockets on one stream, 64 at a time."""
    server = NullServer()
    server.transport = _Sink()
    client = RawClient(True, STREAM_IN_FLIGHT)
    server.data_received(OPENING + frames.frame(frames.HEADERS, frames.FLAG_END_HEADERS, 1, STREAM_HEAD))
    batch = client.requests(STREAM_IN_FLIGHT)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(100):
            server.data_received(batch)
        count += 100 * STREAM_IN_FLIGHT
    return count / (time.perf_counter() - start)


class _Sink(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data

    def close(self) -> None:
        raise AssertionError("the server closed the connection")


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        return
    print(f"sans-IO unary    {sans_io_unary(2.0):12,.0f} calls/s")
    print(f"sans-IO deadlines{sans_io_deadlines(2.0):12,.0f} calls/s, each with a new grpc-timeout")
    print(f"sans-IO stream   {sans_io_stream(2.0):12,.0f} messages/s")
    process = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        rate = uvloop.run(measure(port, False, UNARY_IN_FLIGHT, 4.0))
        print(f"socket unary     {rate:12,.0f} calls/s     ({CONNECTIONS} connections x {UNARY_IN_FLIGHT} in flight)")
        rate = uvloop.run(measure(port, True, STREAM_IN_FLIGHT, 4.0))
        print(f"socket stream    {rate:12,.0f} messages/s  ({CONNECTIONS} streams x {STREAM_IN_FLIGHT} in flight)")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
