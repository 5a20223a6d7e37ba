# SPDX-License-Identifier: Apache-2.0
"""A client with very many gRPC streams: ten thousand connections in one process, or ten thousand streams on a few.

Laws
- Every response is checked: the head of each stream, each message by the caller, and that no stream ends.
- What a connection or a stream keeps is small, and what all have in common is kept once: request bytes are the same for
  all connections, and equal messages are parsed once.

How it works. One epoll. All streams of a connection call the same method, so the header block of the first stream, and
that of every later one, are the same on all connections: the encoder of each would start empty. A response head is the
first of a fresh connection, decoded once for all, or is decoded with the connection's own decoder.

What it does not do: CONTINUATION, padding, sending more than a window, TLS. It ends when a peer makes it need these.
"""

import contextlib
import resource
import select
import socket
import struct
import time
from collections.abc import Callable

import hpack

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
WINDOW_MAX = 2**31 - 1
FRAME_HEAD = struct.Struct(">BHBBI")  # length in two parts, type, flags, stream
READ_BYTES = 262_144
WAIT_S_MAX = 60.0  # for what must come

_OPENING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + FRAME_HEAD.pack(0, 6, SETTINGS, 0, 0)
    + struct.pack(">HI", 0x4, WINDOW_MAX)  # INITIAL_WINDOW_SIZE
    + FRAME_HEAD.pack(0, 4, WINDOW_UPDATE, 0, 0)
    + struct.pack(">I", WINDOW_MAX - 65_535)
)
# The first block of the peers that were met, decoded: valid for the first block of any fresh connection.
_first_heads: dict[bytes, dict[str, str]] = {}


class WrongReplyError(Exception):
    """A reply that no correct server gives, or a connection that ended early."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return FRAME_HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def message(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


class Calls:
    """The request heads of one method: the first one on a connection, and each later one."""

    def __init__(self, path: str) -> None:
        encoder = hpack.Encoder()
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "127.0.0.1"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self._blocks = (encoder.encode(fields), encoder.encode(fields))

    def open(self, number: int, request: bytes, last: bool = False) -> bytes:
        """Opens stream `number` of a connection (0, 1, ...) with its first message; `last`: its only one."""
        stream = 2 * number + 1
        return frame(HEADERS, END_HEADERS, stream, self._blocks[number > 0]) + self.send(number, request, last)

    def send(self, number: int, request: bytes, last: bool = False) -> bytes:
        return frame(DATA, END_STREAM if last else 0, 2 * number + 1, message(request))


class Connection:
    """One connection. `on_message(connection, stream number, message)` sees what comes."""

    __slots__ = ("_decoder", "_first_block", "_rest", "_unreported_bytes", "number", "on_message", "partial", "socket")

    def __init__(
        self, number: int, address: tuple[str, int], on_message: "Callable[[Connection, int, bytes], None]"
    ) -> None:
        self.number = number
        self.on_message = on_message
        self.partial: dict[int, bytes] = {}  # by stream number: the beginning of a message
        self._rest = b""
        self._first_block: bytes | None = None
        self._decoder: hpack.Decoder | None = None
        self._unreported_bytes = 0
        self.socket = socket.create_connection(address, timeout=WAIT_S_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(_OPENING)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> None:
        """Takes what there is; call it when the socket is readable."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise WrongReplyError("the server closed the connection")
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        unpack = FRAME_HEAD.unpack_from
        while end - position >= 9:
            high, low, kind, flags, stream = unpack(data, position)
            stop = position + 9 + (high << 16 | low)
            if stop > end:
                break
            if kind == DATA:
                self._messages(stream >> 1, data[position + 9 : stop])
            else:
                self._frame(kind, flags, stream, data[position + 9 : stop])
            position = stop
        self._rest = data[position:]
        if self._unreported_bytes > WINDOW_MAX // 4:
            self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unreported_bytes)))
            self._unreported_bytes = 0

    def _messages(self, number: int, data: bytes) -> None:
        self._unreported_bytes += len(data)
        if number in self.partial:
            data = self.partial.pop(number) + data
        position, end = 0, len(data)
        while end - position >= 5:
            stop = position + 5 + int.from_bytes(data[position + 1 : position + 5])
            if stop > end:
                break
            self.on_message(self, number, data[position + 5 : stop])
            position = stop
        if position < end:
            self.partial[number] = data[position:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            head = self._head(payload)
            if flags & END_STREAM:
                if head.get("grpc-status") != "0":
                    raise WrongReplyError(f"a stream ended: {head}")
            elif head.get(":status") != "200" or head.get("content-type") != "application/grpc":
                raise WrongReplyError(f"unexpected response head {head}")
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind in (RST_STREAM, GOAWAY):
            raise WrongReplyError(f"frame {kind} on stream {stream}: {payload!r}")

    def _head(self, block: bytes) -> dict[str, str]:
        if self._first_block is None:
            self._first_block = block
            if block not in _first_heads:
                _first_heads[block] = _decode(hpack.Decoder(), block)
            return _first_heads[block]
        if self._decoder is None:
            self._decoder = hpack.Decoder()
            self._decoder.decode(self._first_block)
        return _decode(self._decoder, block)


def _decode(decoder: hpack.Decoder, block: bytes) -> dict[str, str]:
    return {str(name): str(value) for name, value in decoder.decode(block)}


class Crowd:
    """All connections of the process."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self._poll = select.epoll()
        self._by_fd: dict[int, Connection] = {}

    def add(self, connection: Connection) -> None:
        self.connections.append(connection)
        self._by_fd[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)

    def turn(self, wait_s: float) -> float:
        """Waits for at most `wait_s` and reads what has come. Returns the time by time.perf_counter."""
        for fd, _ in self._poll.poll(max(wait_s, 0.0), 1_024):
            self._by_fd[fd].read()
        return time.perf_counter()

    def until(self, what: Callable[[], bool], missing: Callable[[], str]) -> None:
        """Reads until `what` holds; raises WrongReplyError when it does not for WAIT_S_MAX."""
        give_up = time.perf_counter() + WAIT_S_MAX
        while not what():
            if self.turn(0.5) > give_up:
                raise WrongReplyError(missing())


def call(address: tuple[str, int], path: str, requests: list[bytes]) -> list[bytes]:
    """Makes unary calls on a connection of their own; returns the replies, in order."""
    replies: dict[int, bytes] = {}
    connection = Connection(0, address, lambda _, number, payload: replies.__setitem__(number, payload))
    crowd = Crowd()
    crowd.add(connection)
    calls = Calls(path)
    for start in range(0, len(requests), 100):
        stop = min(start + 100, len(requests))
        connection.send(b"".join(calls.open(number, requests[number], last=True) for number in range(start, stop)))
        crowd.until(lambda stop=stop: len(replies) == stop, lambda: "a reply is missing")  # type: ignore[misc]
    connection.socket.close()
    return [replies[number] for number in range(len(requests))]


def raise_file_limit() -> None:
    """Each connection is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def percentiles_ms(latencies_s: list[float]) -> dict[str, float]:
    """p50, p99 and most, in milliseconds."""
    ordered = sorted(latencies_s)
    if not ordered:
        raise WrongReplyError("nothing was measured")
    at = {"p50_ms": len(ordered) // 2, "p99_ms": len(ordered) * 99 // 100, "max_ms": len(ordered) - 1}
    return {name: round(1e3 * ordered[index], 3) for name, index in at.items()}
