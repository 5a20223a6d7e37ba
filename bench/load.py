# SPDX-License-Identifier: Apache-2.0
"""The load: a gRPC client that spends as little as possible on each call, so that the server is what is measured.

Laws
- It runs in a process of its own, on blocking sockets and epoll, with requests encoded before they are needed.
- Every reply is checked: its status, its TTL, its ID (distinct for grants; the one asked for, and in order, for
  keepalives), and that none is missing at the end. A wrong reply ends the run with an error, never with a figure.
- It says how busy it was itself. Above nine tenths of a core the figure measures the client, and says so.

How it works. A connection keeps a fixed number of calls in flight: each time it has read, it counts what was answered
and sends as many new requests with one `send`. Requests of one kind are equally long, so "the next n requests" is a
slice of a buffer made in advance; for unary calls the stream ids are written into a chunk of them with strided slices.
Request headers are encoded as real clients do it: the first call fills the peer's HPACK table, all others refer to it.
Response heads are decoded once per distinct block (valid while the table stays the same).

Its own limit, found against a null server in C: 185,000 grants or 525,000 keepalives per second of processor time.

With --cacert it speaks TLS; each connection then has one more copy of its bytes to make.

What it does not do: CONTINUATION, padding, flow control of large bodies. It ends when a peer makes it need these.

    python -m bench.load grant --port 2379 --connections 10 --in-flight 20 --seconds 5
    python -m bench.load keepalive --port 2379 --streams 10 --in-flight 64 --seconds 5

prints one JSON object (see `Report`).
"""

import argparse
import contextlib
import gc
import json
import random
import select
import socket
import ssl
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import hpack

from lessor.api.proto import rpc_pb2

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK, PADDED_OR_PRIORITY = 0x1, 0x4, 0x1, 0x28
SETTING_INITIAL_WINDOW, SETTING_MAX_FRAME = 0x4, 0x5
WINDOW_MAX = 2**31 - 1
FRAME_HEAD = struct.Struct(">BHBBI")  # length in two parts, type, flags, stream
MESSAGE_HEAD = struct.Struct(">BI")  # compressed flag, length
READ_BYTES = 262_144
CHUNK_CALLS = 4_096  # unary requests encoded at a time
SAMPLE_EVERY = 32  # one call in so many has its latency taken
DRAIN_S_MAX = 20.0
BUSY_MAX = 0.9

GRANT_PATH = "/etcdserverpb.Lease/LeaseGrant"
KEEPALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"


class WrongReplyError(Exception):
    """A reply that no correct server gives, or a connection that ended early."""


@dataclass
class Report:
    """What a run found. `rate` counts replies per second between warm-up and end."""

    kind: str
    connections: int
    in_flight: int
    replies: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    client_busy: float = 0.0  # share of one core that this process used while measuring
    client_bound: bool = False  # the figure is the client's, not the server's
    per_second: list[int] = field(default_factory=list)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME_HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def message(payload: bytes) -> bytes:
    return MESSAGE_HEAD.pack(0, len(payload)) + payload


class SecureSocket:
    """TLS on a blocking socket, with as few calls to the kernel as without: a read takes all records that are there."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.fileno = plain.fileno
        self.setblocking = plain.setblocking
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(self._outgoing.read())
                self._incoming.write(plain.recv(READ_BYTES))
        plain.sendall(self._outgoing.read())

    def sendall(self, data: bytes | memoryview) -> None:
        self._tls.write(data)
        self._plain.sendall(self._outgoing.read())

    def recv(self, size: int) -> bytes:
        """Decrypted bytes; b"" at the end. Waits while only a part of a record has come."""
        pieces: list[bytes] = []
        while not pieces:
            data = self._plain.recv(size)
            if not data:
                break
            self._incoming.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                while self._incoming.pending:
                    pieces.append(self._tls.read(16_384))
        return b"".join(pieces)


_context: ssl.SSLContext | None = None


def speak_tls(authority: str) -> None:
    """From now on connections speak TLS, to servers with a certificate of the authority in this PEM file."""
    global _context
    _context = ssl.create_default_context(cafile=authority)
    _context.set_alpn_protocols(["h2"])


def connect(address: tuple[str, int]) -> socket.socket | SecureSocket:
    plain = socket.create_connection(address, timeout=10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return plain if _context is None else SecureSocket(plain, _context, address[0])


class Connection:
    """One HTTP/2 connection that keeps `in_flight` calls going; a subclass says what a call is.

    A subclass counts answered calls in `answered` and gives `request_bytes(n)`: the next n requests, each of which
    takes `flow_bytes` of the peer's flow-control window.
    """

    flow_bytes = 0

    def __init__(self, address: tuple[str, int], in_flight: int) -> None:
        self.socket = connect(address)
        self.in_flight = in_flight
        self.sent = 0
        self.answered = 0
        self.sending = True
        self.latencies_s: list[float] = []
        self._authority = f"{address[0]}:{address[1]}"
        self._rest = b""
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._heads: dict[bytes, dict[str, str]] = {}
        self._send_window = 65_535
        self._unreported_bytes = 0
        settings = struct.pack(">HI", SETTING_INITIAL_WINDOW, WINDOW_MAX)
        window = struct.pack(">I", WINDOW_MAX - 65_535)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window)
        )
        self.socket.setblocking(True)

    # --- what a subclass says -----------------------------------------------------------------------------------
    def request_bytes(self, calls: int) -> bytes | memoryview:
        raise NotImplementedError

    def on_head(self, stream: int, head: dict[str, str], end: bool) -> None:
        raise NotImplementedError

    def on_data(self, stream: int, payload: bytes, now: float) -> None:
        raise NotImplementedError

    def on_sent(self, calls: int, now: float) -> None:
        """After `calls` more requests were sent, `sent` not yet counting them."""

    # --- the connection -----------------------------------------------------------------------------------------
    def head_block(self, path: str) -> bytes:
        return self._encoder.encode(
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", self._authority),
                ("content-type", "application/grpc"),
                ("user-agent", "lessor-bench"),
                ("te", "trailers"),
            ]
        )

    def refill(self, now: float) -> None:
        """Sends requests until `in_flight` calls wait for an answer, or the peer's window is used up."""
        calls = self.in_flight - (self.sent - self.answered)
        if self.sending and calls > 0:
            calls = min(calls, self._send_window // self.flow_bytes)
            if calls > 0:
                self.socket.sendall(self.request_bytes(calls))
                self._send_window -= calls * self.flow_bytes
                self.on_sent(calls, now)
                self.sent += calls

    def read(self, now: float) -> None:
        """Reads what there is (waits when there is nothing) and lets the subclass see each frame."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise WrongReplyError("the server closed the connection")
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        unpack, on_data = FRAME_HEAD.unpack_from, self.on_data
        while end - position >= 9:
            high, low, kind, flags, stream = unpack(data, position)
            stop = position + 9 + (high << 16 | low)
            if stop > end:
                break
            payload = data[position + 9 : stop]
            if kind == DATA:
                self._unreported_bytes += len(payload)
                if flags & PADDED_OR_PRIORITY:
                    raise WrongReplyError("padding is beyond this client")
                on_data(stream, payload, now)
                if flags & END_STREAM:
                    raise WrongReplyError("a stream ended without trailers")
            elif kind == HEADERS:
                head = self._heads.get(payload) or self._decode(payload, flags)
                self.on_head(stream, head, bool(flags & END_STREAM))
            else:
                self._control(kind, flags, stream, payload)
            position = stop
        self._rest = data[position:]
        if self._unreported_bytes > WINDOW_MAX // 4:
            self.give_window()

    def give_window(self) -> None:
        self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unreported_bytes)))
        self._unreported_bytes = 0

    def _decode(self, block: bytes, flags: int) -> dict[str, str]:
        if flags & PADDED_OR_PRIORITY or not flags & END_HEADERS:
            raise WrongReplyError("padding, priority and CONTINUATION are beyond this client")
        before = list(self._decoder.header_table.dynamic_entries)
        head = {str(name): str(value) for name, value in self._decoder.decode(block)}
        if list(self._decoder.header_table.dynamic_entries) != before:
            self._heads.clear()
        else:
            self._heads[block] = head
        return head

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            if stream == 0:
                self._send_window += struct.unpack(">I", payload)[0]
        elif kind == PING:
            if not flags & ACK:
                self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == SETTINGS:
            if not flags & ACK:
                self.socket.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == RST_STREAM:
            raise WrongReplyError(f"stream {stream} was reset with error {int.from_bytes(payload)}")
        elif kind == GOAWAY:
            raise WrongReplyError(f"GOAWAY with error {int.from_bytes(payload[4:8])} {payload[8:]!r}")


def check_head(head: dict[str, str]) -> None:
    if head.get(":status") != "200" or head.get("content-type") != "application/grpc":
        raise WrongReplyError(f"unexpected response head {head}")


def check_trailers(head: dict[str, str]) -> None:
    if head.get("grpc-status") != "0":
        raise WrongReplyError(f"status {head.get('grpc-status')}: {head.get('grpc-message')}")


class GrantConnection(Connection):
    """Unary LeaseGrant calls, each on a stream of its own; the server chooses the IDs."""

    def __init__(self, address: tuple[str, int], in_flight: int, ttl_s: int) -> None:
        super().__init__(address, in_flight)
        self.ids: list[int] = []
        self._ttl_s = ttl_s
        self._body = message(rpc_pb2.LeaseGrantRequest(TTL=ttl_s).SerializeToString())
        self.flow_bytes = len(self._body)
        self._open: dict[int, bool] = {}  # stream -> whether its reply has come, and only the trailers are missing
        self._since: dict[int, float] = {}  # sampled streams -> when they were sent
        # The first call fills the server's header table; from the second one on the block stays the same.
        self.socket.sendall(self._call(1, self.head_block(GRANT_PATH)))
        self._open[1] = False
        self._template = self._call(0, self.head_block(GRANT_PATH))
        self.sent = 1
        self._chunk = memoryview(b"")
        self._chunk_calls = 0  # calls of the chunk that are not sent yet
        while not self.answered:
            self.read(time.perf_counter())

    def _call(self, stream: int, block: bytes) -> bytes:
        return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, self._body)

    def request_bytes(self, calls: int) -> memoryview:
        if self._chunk_calls < calls:
            self._encode_chunk()
        length = len(self._template)
        start = (CHUNK_CALLS - self._chunk_calls) * length
        self._chunk_calls -= calls
        return self._chunk[start : start + calls * length]

    def _encode_chunk(self) -> None:
        """CHUNK_CALLS copies of the template, with the stream ids from `sent` on written over the zeros in them."""
        length = len(self._template)
        first = 2 * self.sent + 1
        ids = array("I", range(first, first + 2 * CHUNK_CALLS, 2))
        if sys.byteorder == "little":
            ids.byteswap()
        id_bytes = ids.tobytes()
        chunk = bytearray(self._template * CHUNK_CALLS)
        data_frame = length - len(self._body) - 9
        for frame_start in (0, data_frame):
            for byte in range(4):
                chunk[frame_start + 5 + byte :: length] = id_bytes[byte::4]
        self._chunk = memoryview(chunk)
        self._chunk_calls = CHUNK_CALLS

    def on_sent(self, calls: int, now: float) -> None:
        first = 2 * self.sent + 1
        last = first + 2 * calls
        self._open.update(dict.fromkeys(range(first, last, 2), False))
        sampled = first + (-(first - 1) % (2 * SAMPLE_EVERY))
        if sampled < last:
            self._since[sampled] = now

    def on_head(self, stream: int, head: dict[str, str], end: bool) -> None:
        if not end:
            check_head(head)
            return
        check_trailers(head)
        if not self._open.pop(stream):
            raise WrongReplyError(f"stream {stream} ended without a reply")
        self.answered += 1

    def on_data(self, stream: int, payload: bytes, now: float) -> None:
        if self._open[stream]:
            raise WrongReplyError(f"a second reply on stream {stream}")
        if payload[:1] != b"\0" or int.from_bytes(payload[1:5]) != len(payload) - 5:
            raise WrongReplyError(f"not one whole message in a DATA frame: {payload!r}")
        reply = rpc_pb2.LeaseGrantResponse.FromString(payload[5:])
        granted_s = reply.TTL
        if granted_s != self._ttl_s or reply.ID <= 0 or reply.error:
            raise WrongReplyError(f"asked for a TTL of {self._ttl_s} s and got {reply}")
        self.ids.append(reply.ID)
        self._open[stream] = True
        if stream in self._since:
            self.latencies_s.append(now - self._since.pop(stream))


class KeepaliveConnection(Connection):
    """One LeaseKeepAlive stream that renews `ids` in turn, which are granted here."""

    def __init__(self, address: tuple[str, int], in_flight: int, ttl_s: int, ids: Sequence[int]) -> None:
        super().__init__(address, in_flight)
        self._ttl_s = ttl_s
        self._ids = ids
        self._stream = 1
        self._replied = 0  # calls answered on the stream that is open
        self._partial = b""
        self._grant_reply = b""
        for lease_id in ids:
            self._grant(lease_id)
        self._partial = b""
        head = frame(HEADERS, END_HEADERS, self._stream, self.head_block(KEEPALIVE_PATH))
        bodies = [message(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id).SerializeToString()) for lease_id in ids]
        self.flow_bytes = len(bodies[0])
        if {len(body) for body in bodies} != {self.flow_bytes}:
            raise ValueError("choose IDs whose encodings are equally long")
        cycle = b"".join(frame(DATA, 0, self._stream, body) for body in bodies)
        # Long enough for any slice that begins in the first cycle.
        self._cycle = memoryview(cycle * (2 + in_flight // len(ids)))
        self._known: dict[bytes, int] = {}  # a reply's bytes -> the ID that it is about; its TTL was found right
        self._since: deque[tuple[int, float]] = deque()  # sampled calls, by number, with the time of sending
        self.sent = self.answered = 0
        self.socket.sendall(head)

    def _grant(self, lease_id: int) -> None:
        request = rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=self._ttl_s)
        body = message(request.SerializeToString())
        self.socket.sendall(
            frame(HEADERS, END_HEADERS, self._stream, self.head_block(GRANT_PATH))
            + frame(DATA, END_STREAM, self._stream, body)
        )
        self._send_window -= len(body)
        granting, self._grant_reply = self._stream, b""
        while self._stream == granting:
            self.read(0.0)
        reply = rpc_pb2.LeaseGrantResponse.FromString(self._grant_reply[5:])
        granted = (reply.ID, reply.TTL)
        if granted != (lease_id, self._ttl_s):
            raise WrongReplyError(f"asked for lease {lease_id} with {self._ttl_s} s and got {reply}")

    def request_bytes(self, calls: int) -> memoryview:
        length = self.flow_bytes + 9
        start = self.sent % len(self._ids) * length
        return self._cycle[start : start + calls * length]

    def on_sent(self, calls: int, now: float) -> None:
        sampled = self.sent + -self.sent % SAMPLE_EVERY
        if sampled < self.sent + calls:
            self._since.append((sampled, now))

    def on_head(self, stream: int, head: dict[str, str], end: bool) -> None:
        if not end:
            check_head(head)
        elif not self.flow_bytes:  # granting
            check_trailers(head)
            self._stream += 2
        else:
            raise WrongReplyError(f"the keepalive stream ended: {head}")

    def on_data(self, stream: int, payload: bytes, now: float) -> None:
        if not self.flow_bytes:
            self._grant_reply += payload
            return
        data = self._partial + payload if self._partial else payload
        position = 0
        while len(data) - position >= 5:
            stop = position + 5 + int.from_bytes(data[position + 1 : position + 5])
            if stop > len(data):
                break
            reply = data[position:stop]
            lease_id = self._known.get(reply) or self._read_reply(reply)
            if lease_id != self._ids[self.answered % len(self._ids)]:
                raise WrongReplyError(f"answer {self.answered} is about lease {lease_id}, out of order")
            self.answered += 1
            position = stop
        self._partial = data[position:]
        if self._since and self._since[0][0] < self.answered:
            self.latencies_s.append(now - self._since.popleft()[1])

    def _read_reply(self, data: bytes) -> int:
        reply = rpc_pb2.LeaseKeepAliveResponse.FromString(data[5:])
        renewed_s = reply.TTL
        if data[0] or renewed_s != self._ttl_s:
            raise WrongReplyError(f"asked to renew for {self._ttl_s} s and got {reply}")
        if len(self._known) > 16 * len(self._ids):  # the revision in the replies' headers moves
            self._known.clear()
        self._known[data] = reply.ID
        return reply.ID

    def give_window(self) -> None:
        self.socket.sendall(frame(WINDOW_UPDATE, 0, self._stream, struct.pack(">I", self._unreported_bytes)))
        super().give_window()


def run(connections: Sequence[Connection], report: Report, warmup_s: float, seconds: float) -> None:
    """Keeps the load up for `warmup_s` and then for `seconds`, waits for the last replies, and fills the report."""
    poll = select.epoll()
    by_fd = {connection.socket.fileno(): connection for connection in connections}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    now = time.perf_counter()
    for connection in connections:
        connection.refill(now)
    begin, end = now + warmup_s, now + warmup_s + seconds
    replies_at_begin = cpu_at_begin = 0.0
    measuring = False
    tick = begin
    answered = _answered(connections)
    while now < end:
        for fd, _ in poll.poll(1.0):
            connection = by_fd[fd]
            connection.read(now)
            connection.refill(now)
        now = time.perf_counter()
        if now >= tick and now >= begin:
            before, answered = answered, _answered(connections)
            if measuring:
                report.per_second.append(answered - before)
            else:
                measuring, begin, replies_at_begin, cpu_at_begin = True, now, answered, time.process_time()
                for connection in connections:
                    connection.latencies_s.clear()
            tick = now + 1.0
    report.seconds = now - begin
    report.replies = _answered(connections) - int(replies_at_begin)
    report.client_busy = round((time.process_time() - cpu_at_begin) / report.seconds, 3)
    latencies_ms = sorted(1e3 * s for connection in connections for s in connection.latencies_s)
    if not latencies_ms:
        raise WrongReplyError("no replies while measuring")
    _drain(connections, poll, by_fd)
    report.rate = round(report.replies / report.seconds, 1)
    report.client_bound = report.client_busy > BUSY_MAX
    report.p50_ms = round(latencies_ms[len(latencies_ms) // 2], 3)
    report.p99_ms = round(latencies_ms[len(latencies_ms) * 99 // 100], 3)
    report.max_ms = round(latencies_ms[-1], 3)


def _answered(connections: Sequence[Connection]) -> int:
    return sum(connection.answered for connection in connections)


def _drain(connections: Sequence[Connection], poll: select.epoll, by_fd: dict[int, Connection]) -> None:
    for connection in connections:
        connection.sending = False
    give_up = time.perf_counter() + DRAIN_S_MAX
    while any(connection.answered < connection.sent for connection in connections):
        if time.perf_counter() > give_up:
            missing = sum(connection.sent - connection.answered for connection in connections)
            raise WrongReplyError(f"{missing} replies are missing {DRAIN_S_MAX:g} s after the last request")
        for fd, _ in poll.poll(1.0):
            by_fd[fd].read(time.perf_counter())


def grants(options: argparse.Namespace) -> Report:
    report = Report("grant", options.connections, options.in_flight)
    connections = [
        GrantConnection((options.host, options.port), options.in_flight, options.ttl_s)
        for _ in range(options.connections)
    ]
    run(connections, report, options.warmup, options.seconds)
    ids = [lease_id for connection in connections for lease_id in connection.ids]
    if len(set(ids)) != len(ids) or len(ids) != sum(connection.answered for connection in connections):
        raise WrongReplyError("an ID was given twice")
    return report


def keepalives(options: argparse.Namespace) -> Report:
    report = Report("keepalive", options.connections, options.in_flight)
    # One lease for each call in flight; IDs that all take six bytes, and others in each run.
    first = (1 << 41) + random.randrange(1 << 40)
    connections = [
        KeepaliveConnection(
            (options.host, options.port),
            options.in_flight,
            options.ttl_s,
            range(first + number * options.in_flight, first + (number + 1) * options.in_flight),
        )
        for number in range(options.connections)
    ]
    run(connections, report, options.warmup, options.seconds)
    return report


KINDS: dict[str, Callable[[argparse.Namespace], Report]] = {"grant": grants, "keepalive": keepalives}


def main() -> int:
    parser = argparse.ArgumentParser(description="Loads an etcd API server and prints what came back, as JSON.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2379)
    parser.add_argument("--connections", "--streams", type=int, default=10, help="each keepalive stream has its own")
    parser.add_argument("--in-flight", type=int, default=20, help="calls that wait for an answer, per connection")
    parser.add_argument("--ttl-s", type=int, default=3600)
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before counting")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of counting")
    parser.add_argument("--cacert", default="", help="speak TLS, to a server with a certificate of this authority")
    options = parser.parse_args()
    if options.cacert:
        speak_tls(options.cacert)
    gc.disable()
    try:
        report = KINDS[options.kind](options)
    except (WrongReplyError, OSError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
