# SPDX-License-Identifier: Apache-2.0
"""A server in memory for the client's tests, on our own H2Server, and an event loop whose clock jumps.

    def answer(call, message): call.reply(rpc.LeaseGrantResponse(ID=7)); call.finish()
    peer = Peer(answer)
    run(main_with(peer.client()))

No socket and no thread: bytes go from one side to the other in callbacks of the loop. `run` uses a loop whose clock
jumps to the next timer instead of waiting for it.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.client import AsyncClient, Channel, Endpoint
from lessor.client._connection import Connection
from lessor.wire import h2
from lessor.wire.grpc import RESPONSE_HEADERS, Deframer, frame, trailers, trailers_only

T = TypeVar("T")


class PeerCall:
    """One call as the server sees it."""

    def __init__(self, connection: "PeerConnection", stream: h2.Stream) -> None:
        assert stream.head is not None
        self.connection = connection
        self.stream = stream
        self.head = stream.head
        self.method = BY_PATH[stream.head.path.decode()]
        self.messages: list[Any] = []
        self.half_closed = False
        self.reset = False
        self.deframer = Deframer(1 << 30)
        self.answered = False

    def reply(self, message: Message) -> None:
        self.raw(frame(message.SerializeToString()))

    def raw(self, data: bytes) -> None:
        if not self.answered:
            self.answered = True
            self.connection.h2.send_headers(self.stream, RESPONSE_HEADERS)
        self.connection.h2.send_data(self.stream, data)
        self.connection.flush()

    def finish(self, code: int = 0, message: str = "") -> None:
        block = trailers(code, message) if self.answered else trailers_only(code, message)
        self.connection.h2.send_headers(self.stream, block, end_stream=True)
        self.connection.flush()

    def answer_http(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.connection.h2.send_headers(self.stream, h2.encode_headers(headers), end_stream=True)
        self.connection.flush()

    def abort(self, code: int) -> None:
        self.connection.h2.reset(self.stream, code)
        self.connection.flush()


Handler = Callable[[PeerCall, Any], None]


class PeerConnection(asyncio.Transport):
    """The server's end of one connection, in the shape of the client's transport."""

    def __init__(self, peer: "Peer", client: Connection) -> None:
        super().__init__()
        self.peer = peer
        self.client = client
        self.h2 = h2.H2Server()
        self.calls: list[PeerCall] = []
        self.closed = False
        self.deaf = False  # the machine is gone: bytes vanish, both ways
        self.full = False  # it takes no bytes: what was written is not all sent
        self.loop = asyncio.get_running_loop()
        self.loop.call_soon(self.flush)

    def write(self, data: Any) -> None:
        if self.deaf:
            return
        for kind, stream, payload in self.h2.receive(bytes(data), self.loop.time()):
            if kind == h2.HEADERS:
                stream.owner = call = PeerCall(self, stream)
                self.calls.append(call)
                self.peer.calls.append(call)
            elif kind == h2.DATA:
                for raw in stream.owner.deframer.feed(payload):
                    message = stream.owner.method.request.FromString(raw)
                    stream.owner.messages.append(message)
                    self.peer.handler(stream.owner, message)
            elif kind == h2.END:
                stream.owner.half_closed = True
            elif kind == h2.RESET:
                stream.owner.reset = True
        self.flush()

    def flush(self) -> None:
        if self.h2.has_output:
            self.loop.call_soon(self._deliver, self.h2.take_output())

    def _deliver(self, data: bytes) -> None:
        if not self.closed and not self.deaf:
            self.client.data_received(data)

    def close(self) -> None:
        if not self.full:
            self.abort()

    def abort(self) -> None:
        self.loop.call_soon(self.lose, None)

    def lose(self, error: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self.client.connection_lost(error)


class Peer:
    """The server: what it was asked (`calls`), and how it answers (`handler`, for each message that comes)."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.calls: list[PeerCall] = []
        self.connections: list[PeerConnection] = []
        self.dials: list[str] = []
        self.refuse: Callable[[str], Exception | None] = lambda endpoint: None

    def channel(self, endpoints: str = "127.0.0.1:1", **options: float) -> Channel:
        return _MemoryChannel(self, endpoints, **options)

    def client(self, endpoints: str = "127.0.0.1:1", timeout_s: float | None = 5.0, **credentials: str) -> AsyncClient:
        """`credentials`: user, password, token."""
        client = AsyncClient(endpoints, timeout_s=timeout_s, **credentials)  # type: ignore[arg-type]
        client.channel = self.channel(endpoints)
        return client


class _MemoryChannel(Channel):
    def __init__(self, peer: Peer, endpoints: str, **options: Any) -> None:
        super().__init__(endpoints, connect_timeout_s=2.0, **options)
        self._peer = peer

    async def _open(self, endpoint: Endpoint) -> Connection:
        self._peer.dials.append(endpoint.text)
        refusal = self._peer.refuse(endpoint.text)
        if isinstance(refusal, TimeoutError):
            await asyncio.sleep(3600)
        if refusal is not None:
            raise refusal
        connection = Connection(endpoint, *self._limits)
        transport = PeerConnection(self._peer, connection)
        self._peer.connections.append(transport)
        connection.connection_made(transport)
        return connection


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: says how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if not found:
            assert timeout is not None, "everything waits and no timer is set: a deadlock"
            self.now_s += max(timeout, 0.0)
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in which an hour passes at once."""

    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a test's coroutine on a jumping clock, and sees to it that no task is left behind."""

    async def checked() -> T:
        result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"
        return result

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(checked())
