# SPDX-License-Identifier: Apache-2.0
"""An HTTP/2 connection of the load programs: gRPC calls at as little cost as possible, each reply checked.

Laws
- Blocking sockets; requests are encoded before they are needed.
- A reply that is wrong, comes twice, or misses its status raises `WrongReplyError`: then there is no figure.

How it works. A connection keeps a number of calls in flight: each time it has read, it counts what was answered and
sends as many new requests with one `send`. Requests of one connection are equally long, so "the next n requests" is a
slice of a buffer made in advance; for unary calls the stream ids are written into it with strided slices. Request
headers are encoded as real clients do it: the first call fills the peer's HPACK table, all others refer to it.
Response heads are decoded once per distinct block (valid while the table stays the same).

What it does not do: CONTINUATION, padding, flow control of large bodies. It ends when a peer makes it need these.
"""

import contextlib
import socket
import ssl
import struct

import hpack

from bench.load_loop import Client, Wire, WrongReplyError, connect

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8
END_STREAM, END_HEADERS, ACK, PADDED_OR_PRIORITY = 0x1, 0x4, 0x1, 0x28
SETTING_INITIAL_WINDOW, SETTING_MAX_FRAME = 0x4, 0x5
WINDOW_MAX = 2**31 - 1
FRAME_HEAD = struct.Struct(">BHBBI")  # length in two parts, type, flags, stream
MESSAGE_HEAD = struct.Struct(">BI")  # compressed flag, length
READ_BYTES = 65_536  # a read of 256 KiB, however little comes, costs eight times as much: its buffer is mapped anew


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
        self.fileno, self.close = plain.fileno, plain.close
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


def wire(address: tuple[str, int]) -> Wire:
    plain = connect(address)
    return plain if _context is None else SecureSocket(plain, _context, address[0])


class Connection(Client):
    """One HTTP/2 connection that keeps `in_flight` calls going; a subclass says what a call is.

    A subclass counts answered calls in `answered` and gives `request_bytes(n)`: the next n requests, each of which
    takes `flow_bytes` of the peer's flow-control window. It never gives more than it says are `ready()`.
    """

    flow_bytes = 0

    def __init__(self, address: tuple[str, int], in_flight: int) -> None:
        super().__init__(wire(address), in_flight)
        self._authority = f"{address[0]}:{address[1]}"
        self._rest = b""
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._heads: dict[bytes, dict[str, str]] = {}
        self._send_window = 65_535
        self._unreported_bytes = 0
        self._owed = b""  # answers to the peer's PING and SETTINGS, which leave with the next requests
        settings = struct.pack(">HI", SETTING_INITIAL_WINDOW, WINDOW_MAX)
        window = struct.pack(">I", WINDOW_MAX - 65_535)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, window)
        )

    # --- what a subclass says -----------------------------------------------------------------------------------
    def ready(self) -> int:
        """How many requests there are in one piece; 0: no more will be sent."""
        raise NotImplementedError

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
            self.send(calls, now)
        if self._owed:
            self.socket.sendall(self._owed)
            self._owed = b""

    def send(self, calls: int, now: float) -> int:
        """Sends up to so many requests; returns how many it were."""
        calls = min(calls, self._send_window // self.flow_bytes, self.ready())
        if calls > 0:
            data = self.request_bytes(calls)
            if self._owed:
                data, self._owed = self._owed + data, b""
            self.socket.sendall(data)
            self._send_window -= calls * self.flow_bytes
            self.on_sent(calls, now)
            self.sent += calls
        return calls

    def read(self, now: float) -> None:
        """Reads what there is (waits when there is nothing) and lets the subclass see each frame."""
        self.receive(self.socket.recv(READ_BYTES), now)

    def receive(self, data: bytes, now: float) -> None:
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
                self._owed += frame(PING, ACK, 0, payload)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._owed += frame(SETTINGS, ACK, 0, b"")
        elif kind == RST_STREAM:
            if error := int.from_bytes(payload):  # 0 comes after a whole response, to say that no more is needed
                raise WrongReplyError(f"stream {stream} was reset with error {error}")
        elif kind == GOAWAY:
            raise WrongReplyError(f"GOAWAY with error {int.from_bytes(payload[4:8])} {payload[8:]!r}")
