# SPDX-License-Identifier: Apache-2.0
"""The calls of the load programs: unary calls in numbers, a keepalive stream, a watch, a snapshot. See h2_client.

The limit of a keepalive connection and of a unary one, found against a null server in C: 525,000 and 185,000 replies
per second of processor time. `bench/client_limits.py` measures both in the same run as the rest.
"""

import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from google.protobuf.message import Message

from bench.h2_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    READ_BYTES,
    WINDOW_UPDATE,
    Connection,
    frame,
    message,
)
from bench.load_loop import Report, WrongReplyError, run_through
from lessor.api.proto import rpc_pb2

Address = tuple[str, int]
# Gets the number of the request in the list that it is from, and the reply; raises WrongReplyError.
Check = Callable[[int, bytes], None]
MESSAGE_PREFIX_BYTES = 5
KEEPALIVE_PATH = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCH_PATH = "/etcdserverpb.Watch/Watch"
SNAPSHOT_PATH = "/etcdserverpb.Maintenance/Snapshot"


def sampling(in_flight: int) -> int:
    """Of so many calls the latency of one is taken: of two of those in flight, so that few connections suffice."""
    return max(in_flight // 2, 1)


def check_head(head: dict[str, str]) -> None:
    if head.get(":status") != "200" or head.get("content-type") != "application/grpc":
        raise WrongReplyError(f"unexpected response head {head}")


def check_trailers(head: dict[str, str]) -> None:
    if head.get("grpc-status") != "0":
        raise WrongReplyError(f"status {head.get('grpc-status')}: {head.get('grpc-message')}")


class UnaryCalls(Connection):
    """Unary calls, each on a stream of its own: the requests of a list, in turn for ever or `once` through.

    The requests must be equally long. The first call is made, and waited for, when the connection is.
    """

    def __init__(
        self,
        address: Address,
        in_flight: int,
        path: str,
        requests: Sequence[Message],
        check: Check,
        *,
        once: bool = False,
        sample_every: int = 0,
    ) -> None:
        super().__init__(address, in_flight)
        bodies = [message(request.SerializeToString()) for request in requests]
        self.flow_bytes = len(bodies[0])
        if {len(body) for body in bodies} != {self.flow_bytes}:
            raise ValueError("the requests of a connection must be equally long")
        self._check = check
        self._once = once
        self._sample_every = sample_every or sampling(in_flight)
        self._count = len(bodies)
        self._open: dict[int, bool] = {}  # stream -> whether its reply has come, and only the trailers are missing
        self._since: dict[int, float] = {}  # sampled streams -> when they were sent
        # The first call fills the server's header table; from the second one on the block stays the same.
        self.socket.sendall(self._call(1, self.head_block(path), bodies[0]))
        self._send_window -= self.flow_bytes
        self._open[1] = False
        block = self.head_block(path)
        self._call_bytes = len(self._call(0, block, bodies[0]))
        self._template = b"".join(self._call(0, block, body) for body in bodies)
        self._chunk = self._encode_chunk()
        self.sent = 1
        try:
            while not self.answered:
                self.read(time.perf_counter())
        except (WrongReplyError, OSError):  # who makes a connection that fails has nothing to close
            self.close()
            raise

    def one(self) -> tuple[float, float]:
        """Makes the next call by itself; returns when it was sent and when it was answered."""
        sent = time.perf_counter()
        self.send(1, sent)
        while self.answered < self.sent:
            self.read(time.perf_counter())
        return sent, time.perf_counter()

    @staticmethod
    def _call(stream: int, block: bytes, body: bytes) -> bytes:
        return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, body)

    def ready(self) -> int:
        position = self.sent % self._count
        if position == 0:
            if self._once:
                return 0
            self._chunk = self._encode_chunk()
        return self._count - position

    def request_bytes(self, calls: int) -> memoryview:
        start = self.sent % self._count * self._call_bytes
        return self._chunk[start : start + calls * self._call_bytes]

    def _encode_chunk(self) -> memoryview:
        """The whole list from `sent` on, with the stream ids written over the zeros in the template."""
        first = 2 * self.sent + 1
        ids = array("I", range(first, first + 2 * self._count, 2))
        if sys.byteorder == "little":
            ids.byteswap()
        id_bytes = ids.tobytes()
        chunk = bytearray(self._template)
        data_frame = self._call_bytes - self.flow_bytes - 9
        for frame_start in (0, data_frame):
            for byte in range(4):
                chunk[frame_start + 5 + byte :: self._call_bytes] = id_bytes[byte::4]
        return memoryview(chunk)

    def on_sent(self, calls: int, now: float) -> None:
        first = 2 * self.sent + 1
        last = first + 2 * calls
        self._open.update(dict.fromkeys(range(first, last, 2), False))
        every = 2 * self._sample_every
        sampled = first + (-(first - 1) % every)
        if sampled < last:
            self._since.update(dict.fromkeys(range(sampled, last, every), now))

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
        if payload[:1] != b"\0" or int.from_bytes(payload[1:5]) != len(payload) - MESSAGE_PREFIX_BYTES:
            raise WrongReplyError(f"not one whole message in a DATA frame: {payload!r}")
        self._check((stream >> 1) % self._count, payload[MESSAGE_PREFIX_BYTES:])
        self._open[stream] = True
        if stream in self._since:
            self.latencies_s.append(now - self._since.pop(stream))


class StreamCall(Connection):
    """One call that stays open: cuts what comes into messages and gives each, with its prefix, to `on_message`."""

    def __init__(self, address: Address, in_flight: int, path: str) -> None:
        super().__init__(address, in_flight)
        self._path = path
        self._stream = -1
        self.open()

    def open(self) -> None:
        """Begins the call, on the next stream."""
        self._stream += 2
        self._partial = b""
        self.socket.sendall(frame(HEADERS, END_HEADERS, self._stream, self.head_block(self._path)))

    def ready(self) -> int:
        return 0

    def on_message(self, data: bytes, now: float) -> None:
        raise NotImplementedError

    def on_head(self, stream: int, head: dict[str, str], end: bool) -> None:
        if end:
            raise WrongReplyError(f"the stream ended: {head}")
        check_head(head)

    def on_data(self, stream: int, payload: bytes, now: float) -> None:
        data = self._partial + payload if self._partial else payload
        position, end, on_message = 0, len(data), self.on_message
        while end - position >= MESSAGE_PREFIX_BYTES:
            stop = position + MESSAGE_PREFIX_BYTES + int.from_bytes(data[position + 1 : position + 5])
            if stop > end:
                break
            on_message(data[position:stop], now)
            position = stop
        self._partial = data[position:]

    def give_window(self) -> None:
        self.socket.sendall(frame(WINDOW_UPDATE, 0, self._stream, struct.pack(">I", self._unreported_bytes)))
        super().give_window()


class Keepalives(StreamCall):
    """A LeaseKeepAlive stream that renews `ids` in turn, for ever or `once` through; the leases are there."""

    def __init__(
        self,
        address: Address,
        in_flight: int,
        ttl_s: int,
        ids: Sequence[int],
        *,
        once: bool = False,
        sample_every: int = 0,
    ) -> None:
        self._ids = ids
        super().__init__(address, in_flight, KEEPALIVE_PATH)
        self._ttl_s = ttl_s
        self._once = once
        self._sample_every = sample_every or sampling(in_flight)
        self._known: dict[bytes, int] = {}  # a reply's bytes -> the ID that it is about; its TTL was found right
        self.since: deque[tuple[int, float]] = deque()  # sampled calls, by number, with the time of sending
        self._whole = b""  # with one call in flight: a read that was one good reply and nothing else

    def open(self) -> None:
        super().open()
        bodies = [message(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id).SerializeToString()) for lease_id in self._ids]
        self.flow_bytes = len(bodies[0])
        if {len(body) for body in bodies} != {self.flow_bytes}:
            raise ValueError("choose IDs whose encodings are equally long")
        cycle = b"".join(frame(DATA, 0, self._stream, body) for body in bodies)
        # Long enough for any slice that begins in the first cycle.
        self._cycle = memoryview(cycle * (2 + self.in_flight // len(self._ids)))

    def ready(self) -> int:
        return len(self._ids) - self.sent if self._once else max(self.in_flight, 1)

    def request_bytes(self, calls: int) -> memoryview:
        length = self.flow_bytes + 9
        start = self.sent % len(self._ids) * length
        return self._cycle[start : start + calls * length]

    def on_sent(self, calls: int, now: float) -> None:
        every = self._sample_every
        for sampled in range(self.sent + -self.sent % every, self.sent + calls, every):
            self.since.append((sampled, now))

    def read(self, now: float) -> None:
        """As any connection's, but one lease in flight is answered with the same bytes again and again."""
        data = self.socket.recv(READ_BYTES)
        if data == self._whole and not self._rest and self.sent - self.answered == 1:
            self.answered += 1
            self._unreported_bytes += len(data) - 9
            self._sampled(now)
            return
        before = self.answered
        self.receive(data, now)
        if len(self._ids) == 1 and self.answered == before + 1 and data[3] == DATA and not self._rest:
            reply = data[9:]
            if reply in self._known and int.from_bytes(data[:3]) == len(reply):
                self._whole = data

    def on_message(self, data: bytes, now: float) -> None:
        lease_id = self._known.get(data) or self._read_reply(data)
        if lease_id != self._ids[self.answered % len(self._ids)]:
            raise WrongReplyError(f"answer {self.answered} is about lease {lease_id}, out of order")
        self.answered += 1
        self._sampled(now)

    def _sampled(self, now: float) -> None:
        since = self.since
        if since and since[0][0] < self.answered:
            self.latencies_s.append(now - since.popleft()[1])

    def _read_reply(self, data: bytes) -> int:
        reply = rpc_pb2.LeaseKeepAliveResponse.FromString(data[MESSAGE_PREFIX_BYTES:])
        renewed_s = reply.TTL
        if data[0] or renewed_s != self._ttl_s:
            raise WrongReplyError(f"asked to renew lease {reply.ID} for {self._ttl_s} s and got {renewed_s}")
        if len(self._known) > 16 * len(self._ids):  # the revision in the replies' headers moves
            self._known.clear()
        self._known[data] = reply.ID
        return reply.ID


class WatchCall(StreamCall):
    """A watch of the keys from `key` to `range_end`: gives each list of events, with the time, to `on_events`."""

    def __init__(
        self,
        address: Address,
        key: bytes,
        range_end: bytes,
        on_events: Callable[[rpc_pb2.WatchResponse, float], None],
        *,
        deletes_only: bool = False,
    ) -> None:
        super().__init__(address, 0, WATCH_PATH)
        self._on_events = on_events
        self._created = False
        filters = [rpc_pb2.WatchCreateRequest.FilterType.NOPUT] if deletes_only else []
        create = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end, filters=filters)
        body = message(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
        self.socket.sendall(frame(DATA, 0, 1, body))
        while not self._created:
            self.read(time.perf_counter())

    def on_message(self, data: bytes, now: float) -> None:
        response = rpc_pb2.WatchResponse.FromString(data[MESSAGE_PREFIX_BYTES:])
        if response.canceled or response.created is self._created:
            raise WrongReplyError(f"unexpected on a watch: {response}")
        self._created = True
        if response.events:
            self._on_events(response, now)


class SnapshotCall(StreamCall):
    """Reads a whole snapshot: `size_bytes` when `done`."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, 0, SNAPSHOT_PATH)
        self.size_bytes = 0
        self.done = False
        self._remaining_bytes = -1
        self.socket.sendall(frame(DATA, END_STREAM, 1, message(b"")))

    def on_message(self, data: bytes, now: float) -> None:
        part = rpc_pb2.SnapshotResponse.FromString(data[MESSAGE_PREFIX_BYTES:])
        self.size_bytes += len(part.blob)
        self._remaining_bytes = part.remaining_bytes

    def on_head(self, stream: int, head: dict[str, str], end: bool) -> None:
        if not end:
            check_head(head)
            return
        check_trailers(head)
        if self._remaining_bytes != 0 or not self.size_bytes:
            raise WrongReplyError(f"a snapshot ended with {self._remaining_bytes} bytes missing")
        self.done = True


def call_all(
    address: Address,
    path: str,
    requests: Sequence[Message],
    check: Check,
    *,
    connections: int = 10,
    in_flight: int = 100,
    report: Report | None = None,
    part: int = 0,
) -> None:
    """Makes each of the calls once, dealt out to some connections, and checks each reply."""
    connections = min(connections, len(requests))

    def checking(first: int) -> Check:
        return lambda number, reply: check(first + number * connections, reply)

    clients = [
        UnaryCalls(address, in_flight, path, requests[first::connections], checking(first), once=True)
        for first in range(connections)
    ]
    run_through(clients, report, part)
    answered = sum(client.answered for client in clients)
    if answered != len(requests):
        raise WrongReplyError(f"{answered} replies to {len(requests)} requests")
    for client in clients:
        client.close()
