# SPDX-License-Identifier: Apache-2.0
"""Faults between a client and the server, which a test switches on: late replies, connections that break.

Laws
- The faults are those of a network. They are between the sockets and all parts of the server, TLS too, and the server
  does not know of them.
- Without a fault bytes pass in the same turn of the loop. Bytes that were held back leave in order.

Theory of operation. A `Front` stands between each accepted socket and its protocol. It is a protocol for the socket,
and a transport for the protocol behind it. While replies are delayed, all output waits, and so does the close of the
socket. Delays are real seconds, because the clients live in real time.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from lessor.base.clock import MonotonicClock

_real = MonotonicClock()
Accept = Callable[[], asyncio.Protocol]


class Faults:
    """The faults of one run of a server. Loop thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.delay_s = 0.0
        self.fronts: set[Front] = set()

    def in_front_of(self, accept: Accept) -> Accept:
        """A factory of the same protocols, each behind a Front."""
        return lambda: Front(self, accept())

    def drop_connections(self) -> int:
        """Breaks all connections at once; returns how many. Bytes that were held back for them are lost."""
        fronts = list(self.fronts)
        for front in fronts:
            front.abort()
        return len(fronts)


class Front(asyncio.Protocol):
    """One accepted socket."""

    def __init__(self, faults: Faults, behind: asyncio.Protocol) -> None:
        self._faults = faults
        self._behind = behind
        self._socket: asyncio.Transport
        self._held: deque[tuple[float, int, Callable[[], None]]] = deque()  # (when, how many bytes, the work)
        self._held_bytes = 0
        self._closing = False

    # --- a protocol, for the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        self._faults.fronts.add(self)
        self._behind.connection_made(cast(asyncio.Transport, self))

    def data_received(self, data: bytes) -> None:
        self._behind.data_received(data)

    def eof_received(self) -> bool | None:
        return self._behind.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._faults.fronts.discard(self)
        self._held.clear()
        behind, self._behind = self._behind, asyncio.Protocol()  # it holds us, and neither may keep the other alive
        behind.connection_lost(exc)

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()

    # --- a transport, for the protocol behind; its other methods are the socket's ---

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def write(self, data: Any) -> None:
        if self._delayed:
            copy = bytes(data)
            self._hold(len(copy), lambda: self._socket.write(copy))
        else:
            self._socket.write(data)

    def write_eof(self) -> None:
        if self._delayed:
            self._hold(0, self._socket.write_eof)
        else:
            self._socket.write_eof()

    def close(self) -> None:
        self._closing = True
        if self._delayed:
            self._hold(0, self._socket.close)
        else:
            self._socket.close()

    def is_closing(self) -> bool:
        return self._closing or self._socket.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._held_bytes + self._socket.get_write_buffer_size()

    # --- output that is held back ---

    @property
    def _delayed(self) -> bool:
        return bool(self._held) or self._faults.delay_s > 0

    def _hold(self, size_bytes: int, work: Callable[[], None]) -> None:
        self._held_bytes += size_bytes
        # The end of a delay does not let later bytes overtake earlier ones.
        due_s = max(_real.now_s() + self._faults.delay_s, self._held[-1][0] if self._held else 0.0)
        self._held.append((due_s, size_bytes, work))
        if len(self._held) == 1:
            self._wake_at(due_s)

    def _wake_at(self, due_s: float) -> None:
        timer = threading.Timer(max(due_s - _real.now_s(), 0.0), self._wake)
        timer.daemon = True
        timer.start()

    def _wake(self) -> None:
        if not self._faults.loop.is_closed():
            self._faults.loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        while self._held and self._held[0][0] <= _real.now_s():
            _, size_bytes, work = self._held.popleft()
            self._held_bytes -= size_bytes
            work()
        if self._held:
            self._wake_at(self._held[0][0])
