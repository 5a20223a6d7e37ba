# SPDX-License-Identifier: Apache-2.0
"""The two sides of an attack: a peer that sends any bytes, and an innocent client beside it. Blocking sockets."""

import select
import socket
from types import TracebackType
from typing import Self

from lessor.api.proto import rpc_pb2
from lessor.wire import frames, grpc
from lessor.wire.h2 import DATA, END, RESET, H2Client, Stream
from tests.attack.floods import KEEPALIVE, block

READ_S_MAX = 5.0  # a server that is busy for so long serves nobody else meanwhile; a step takes some milliseconds
READ_BYTES = 1 << 18


def connected(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), timeout=READ_S_MAX)


class Attacker:
    """Sends bytes, and reads and drops what comes back, so that the server has no reason to stop reading."""

    def __init__(self, address: str) -> None:
        self._socket = connected(address)
        self._socket.setblocking(False)
        self.tail = b""  # the newest bytes of the answer
        self.cut = False  # the server has closed the connection

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Returns whether the server took all of it; False when it has closed the connection."""
        view = memoryview(data)
        while view and not self.cut:
            readable, writable, _ = select.select([self._socket], [self._socket], [], READ_S_MAX)
            if not readable and not writable:
                raise TimeoutError("the server neither reads nor writes nor closes")
            try:
                if readable:
                    self._read()
                if writable:
                    view = view[self._socket.send(view[:READ_BYTES]) :]
            except OSError:
                self.cut = True
        return not self.cut

    def read(self, wait_s: float) -> None:
        """Reads until nothing has come for so long."""
        while not self.cut and select.select([self._socket], [], [], wait_s)[0]:
            try:
                self._read()
            except OSError:
                self.cut = True

    def _read(self) -> None:
        data = self._socket.recv(READ_BYTES)
        self.cut = not data
        self.tail = (self.tail + data)[-4_096:]


class Innocent:
    """A client with one lease, which it renews, and one key, for one `with` block. Each answer is checked."""

    def __init__(self, address: str, lease: int = 77) -> None:
        self._socket = connected(address)
        self._h2 = H2Client()
        self._lease = lease
        self._renewals: Stream | None = None
        self._round = 0
        self._got: dict[int, bytes] = {}
        self._ended: set[int] = set()

    def __enter__(self) -> Self:
        self._call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(ID=self._lease, TTL=600))
        self._renewals = self._h2.start_request(KEEPALIVE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def renew(self) -> None:
        """One renewal, answered as it has to be."""
        stream = self._renewals
        assert stream is not None
        self._h2.send_data(stream, grpc.frame(rpc_pb2.LeaseKeepAliveRequest(ID=self._lease).SerializeToString()))
        reply = rpc_pb2.LeaseKeepAliveResponse.FromString(self._message(stream))
        wanted = rpc_pb2.LeaseKeepAliveResponse(header=reply.header, ID=self._lease, TTL=600)
        assert reply == wanted

    def work(self) -> None:
        """A renewal, a put, and a range that has to show it."""
        self._round += 1
        self.renew()
        value = b"%d" % self._round
        self._call("KV/Put", rpc_pb2.PutRequest(key=b"innocent", value=value, lease=self._lease))
        found = rpc_pb2.RangeResponse.FromString(self._call("KV/Range", rpc_pb2.RangeRequest(key=b"innocent")))
        assert [(kv.value, kv.lease) for kv in found.kvs] == [(value, self._lease)], found

    def _call(self, method: str, request: object) -> bytes:
        stream = self._h2.start_request(block(f"/etcdserverpb.{method}"))
        self._h2.send_data(stream, grpc.frame(request.SerializeToString()), end_stream=True)  # type: ignore[attr-defined]
        return self._message(stream)

    def _message(self, stream: Stream) -> bytes:
        """The next message of the stream."""
        while True:
            got = self._got.get(stream.id, b"")
            if len(got) >= grpc.PREFIX_BYTES:
                end = grpc.PREFIX_BYTES + int.from_bytes(got[1:5], "big")
                if len(got) >= end:
                    self._got[stream.id] = got[end:]
                    return got[grpc.PREFIX_BYTES : end]
            assert stream.id not in self._ended, f"stream {stream.id} ended without an answer: {stream.head}"
            self._socket.sendall(self._h2.take_output())
            data = self._socket.recv(65_536)
            assert data, "the server has cut the innocent client off"
            for kind, which, payload in self._h2.receive(data):
                if kind == DATA:
                    self._got[which.id] = self._got.get(which.id, b"") + payload
                elif kind in (END, RESET):
                    self._ended.add(which.id)


def is_calm(tail: bytes) -> bool:
    """Whether an answer ends with GOAWAY for ENHANCE_YOUR_CALM."""
    at = tail.rfind(bytes((frames.GOAWAY, 0, 0, 0, 0, 0)))
    return at >= 3 and tail[at + 10 : at + 14] == frames.UINT32.pack(frames.ErrorCode.ENHANCE_YOUR_CALM)
