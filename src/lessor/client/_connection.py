# SPDX-License-Identifier: Apache-2.0
"""One connection to a server, and the calls on it: asyncio on one side, the sans-IO HTTP/2 connection on the other.

Laws
- The wire decides what bytes mean, and `_exchange.py` what that means to a call; this module moves them.
- A caller that does not read what its call receives loses that call, not the connection: leases are kept alive on it.
- A server that is silent while calls wait is asked for a sign of life, and a connection without one is given up:
  otherwise a watch would never notice that its server's machine is gone.
- No task is started here. Everything happens in the caller's task or in asyncio's callbacks.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.client._endpoint import Endpoint
from lessor.client._errors import ClientError
from lessor.client._exchange import PING, Exchange, Line
from lessor.client._service import ClosedEarlyError
from lessor.wire import h2
from lessor.wire.h2 import ErrorCode

Reply = TypeVar("Reply", bound=Message)

# Bytes that wait for the server's window, or for the socket, before send() makes its caller wait.
SEND_BYTES_MAX = 1_048_576
CLOSE_S_MAX = 2.0  # wait for a server to take the last bytes


class Connection(Line, asyncio.Protocol):
    """A connection that is up, or was. Made by `Channel`."""

    def __init__(self, endpoint: Endpoint, *limits: Any) -> None:
        super().__init__(endpoint, *limits)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._heard = asyncio.Event()  # the server has sent something, or is gone
        self._lost_by: Exception | None = None
        self.full = False  # whether the socket takes no more for now
        self.heard_at = self._loop.time()
        self._retired = False
        self._look_timer: asyncio.TimerHandle | None = None
        self._answer_by = 0.0  # when the sign of life that was asked for has to be there; 0: none was asked for

    # --- asyncio's callbacks ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._heard.set()
        self._answer_by = 0.0
        self.dispatch(data, self._loop.time())
        self.flush()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        for call in list(self.calls):
            call.wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._lost_by = error = error or self._lost_by
        if self._look_timer is not None:
            self._look_timer.cancel()
        heard = self._heard.is_set()
        self._heard.set()
        self.told_lost(error, heard=heard)
        if not self._closed.done():
            self._closed.set_result(None)

    # --- signs of life ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Runs while there are calls: asks a silent server for a sign of life, and gives up one that gives none."""
        self._look_timer = None
        if self._transport is None or not self.calls:
            return  # the next call starts it again
        due_at = self._answer_by or self.heard_at + self.ping_after_s
        if self._loop.time() < due_at - 0.001:  # a timer may fire a little too early
            self._look_timer = self._loop.call_at(due_at, self._look)
        elif self._answer_by:
            silent_s = self._loop.time() - self.heard_at
            self._lost_by = TimeoutError(errno.ETIMEDOUT, f"no sign of life for {silent_s:.0f} s")
            self._transport.abort()
        else:
            self._ping()

    def _ping(self) -> None:
        self._answer_by = self._loop.time() + self.ping_answer_s_max
        self.h2.send_ping(PING)
        self.flush()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_timer = self._loop.call_at(self._answer_by, self._look)

    # --- for the calls ------------------------------------------------------------------------------------------

    def begin(self, call: Exchange[Any]) -> None:
        """A call has begun."""
        if self._look_timer is None:
            self.heard_at = self._loop.time()  # silence counts from here on: without a call there was nothing to send
            self._look_timer = self._loop.call_later(self.ping_after_s, self._look)
        super().begin(call)

    def end(self, call: Exchange[Any]) -> None:
        """A call is over."""
        super().end(call)
        if self._retired and not self.calls:
            self._close_soon()

    def retire(self) -> None:
        """No more calls will be started here; the connection closes with the last of those that are underway.

        The server may be gone for these too, so it is asked for a sign of life.
        """
        self._retired = True
        if not self.calls:
            self._close_soon()
        elif not self._answer_by:
            self._ping()

    def _close_soon(self) -> None:
        if self._transport is not None and not self.lost:
            self.h2.close(ErrorCode.NO_ERROR)
            self._loop.call_soon(self.flush)  # the frame that ended the last call is still to be written

    def flush(self) -> None:
        """Writes what the wire has ready; closes when the wire has given up."""
        if self._transport is None or self.lost:
            return
        if self.h2.has_output:
            self._transport.write(self.h2.take_output())
        if self.h2.closing:
            self._transport.close()

    async def heard(self) -> None:
        """Waits for the server's first bytes, its answer to our preface. Raises OSError when it goes away instead."""
        await self._heard.wait()
        if self.lost:
            if isinstance(self._lost_by, OSError):
                raise self._lost_by
            raise ClosedEarlyError(errno.ECONNRESET, "the server closed the connection")

    async def aclose(self) -> None:
        """Sends GOAWAY, closes the socket and waits until it is closed. Calls that are underway fail.

        What a server has not taken after CLOSE_S_MAX is dropped.
        """
        if self._transport is not None and not self.lost:
            self.h2.close(ErrorCode.NO_ERROR)
            self.flush()
            _, waiting = await asyncio.wait([self._closed], timeout=CLOSE_S_MAX)
            if waiting:
                self._transport.abort()
        await self._closed


class Call(Exchange[Reply]):
    """One remote call with any number of messages each way. Made by `Channel.stream`, used as

        async with channel.stream(method) as call:
            await call.send(request)
            async for reply in call: ...

    Leaving the block cancels what is not over. One task may send while another receives.
    """

    __slots__ = ("_started_at", "_timer", "_waiters")
    connection: Connection

    def __init__(
        self,
        connection: Connection,
        method: Method,
        headers: bytes | list[h2.Field],
        timeout_s: float | None,
        deadline: float | None,
    ) -> None:
        super().__init__(connection, method, headers, timeout_s)
        self._waiters: list[asyncio.Future[None]] = []
        connection.begin(self)
        self._started_at = asyncio.get_running_loop().time()
        self._timer = None
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._timed_out)

    # --- for the caller -----------------------------------------------------------------------------------------

    async def send(self, request: Message, *, last: bool = False) -> None:
        """Sends one message; `last` says that no more will come. Waits while much is queued for the server.

        Raises the ClientError that ended the call, when it is over; ServerError ResourceExhausted for a message beyond
        the client's own limit, of which nothing is sent.
        """
        self._raise_if_failed()
        self.connection.h2.send_data(self._stream, self._framed(request), last)
        self.connection.flush()
        while (self._stream.queued_bytes > SEND_BYTES_MAX or self.connection.full) and not self._over:
            await self._wait()

    def send_now(self, requests: Iterable[Message]) -> None:
        """Sends small messages without waiting for room. Raises the ClientError that ended the call if it is over."""
        self._raise_if_failed()
        self.connection.h2.send_data(self._stream, b"".join(map(self._framed, requests)))
        self.connection.flush()

    @property
    def unheard(self) -> bool:
        """Whether the server has sent nothing at all, to this call or another, since this one began."""
        return self.connection.heard_at <= self._started_at

    async def receive(self) -> Reply | None:
        """The next reply, or None when the call has ended well. Raises the ClientError that ended it otherwise."""
        while not self._inbox:
            if self._over:
                self._raise_if_failed()
                return None
            await self._wait()
        return self._taken()

    async def __aiter__(self) -> AsyncIterator[Reply]:
        while (reply := await self.receive()) is not None:
            yield reply

    async def __aenter__(self) -> "Call[Reply]":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def _wait(self) -> None:
        """Waits until something happens. Sender and receiver may wait at the same time."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _timed_out(self) -> None:
        self._give_up(self._timeout())

    def _finish(self, end: ClientError | None) -> None:
        super()._finish(end)
        if self._timer is not None:
            self._timer.cancel()

    def wake(self) -> None:
        """Lets go on who waits, to look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
