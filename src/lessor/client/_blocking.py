# SPDX-License-Identifier: Apache-2.0
"""Remote calls in the caller's own thread: no event loop and no other thread. For programs that ask once and end.

Laws
- The coroutines here never suspend: they wait in the socket. So `at_once` can run them, and all that is made of them,
  as a plain function.
- A connection carries one call at a time, and is kept for the next one. A channel is for one thread at a time.
- No wait in the socket is longer than the call's deadline allows, whether it reads or writes.
- A write that has stopped in its middle ends the connection: nothing can follow half a frame.
- What a call means, when it is repeated and how it fails is the same as in an event loop: `_service.py` and
  `_exchange.py` say it for both.
"""

import errno
import socket
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.base.clock import MonotonicClock
from lessor.base.tls_errors import is_of_tls
from lessor.client._endpoint import Endpoint
from lessor.client._errors import ClientClosed, ConnectionLost
from lessor.client._exchange import PING, Exchange, Line, Metadata
from lessor.client._finite import FiniteCalls
from lessor.client._login import Login
from lessor.client._service import ClosedEarlyError, Service
from lessor.wire.h2 import ErrorCode

if TYPE_CHECKING:
    import ssl as tls

T = TypeVar("T")

READ_BYTES = 262_144
_clock = MonotonicClock()


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that does not suspend, and returns its result or raises its error."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("this call waits for an event loop: it cannot be made without one")


def blocking_calls(
    timeout_s: float | None, user: str, password: str, *, token: str = "", **channel: Any
) -> FiniteCalls:
    """The calls, for one thread: run them with `at_once`. `channel`: the arguments of `Channel`."""
    return FiniteCalls(BlockingChannel(**channel), timeout_s, Login(user, password, nullcontext(), token))


class BlockingConnection(Line):
    """A connection that is up, or was. Made by `BlockingChannel`. For one thread at a time."""

    def __init__(self, endpoint: Endpoint, plain: socket.socket, *limits: Any) -> None:
        super().__init__(endpoint, *limits)
        self._socket = plain
        self.heard_at = _clock.now_s()
        self._heard = False
        self._asked_at = 0.0  # when the server was asked for a sign of life; 0: it was not
        self.deadline: float | None = None  # until when a write may wait: the last call's

    def secure(self, context: "tls.SSLContext", name: str) -> None:
        """Speaks TLS from here on."""
        self._socket = context.wrap_socket(self._socket, server_hostname=name)

    def hear(self, deadline: float) -> None:
        """Waits for the server's first bytes; as `Connection.heard`."""
        self.deadline = deadline
        self.flush()
        while not self._heard:
            self._socket.settimeout(_left_s(deadline))
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise ClosedEarlyError(errno.ECONNRESET, "the server closed the connection")
            self._take(data)
        if self.lost:  # by those very bytes
            raise ClosedEarlyError(errno.ECONNRESET, "the server speaks no HTTP/2")

    def flush(self) -> None:
        if self.lost:
            return
        if self.h2.has_output:
            try:
                self._write(memoryview(self.h2.take_output()))
            except OSError as error:
                self.lose(error)
            except BaseException:  # an interrupt: part of a frame may have left
                self.lose(InterruptedError("interrupted"))
                raise
        if self.h2.closing:
            self.lose(None)

    def _write(self, data: memoryview) -> None:
        """Writes all of it, however long that takes while pieces leave and the deadline has not come.

        At the deadline the call ends with CallTimeout. Raises TimeoutError then, and when no piece leaves for as long
        as a server may be silent; OSError otherwise.
        """
        deadline, silence_s = self.deadline, self.ping_after_s + self.ping_answer_s_max
        while data:
            left_s = silence_s if deadline is None else min(_left_s(deadline), silence_s)
            try:
                self._socket.settimeout(left_s)
                data = data[self._socket.send(data) :]
                late = bool(data) and deadline is not None and _clock.now_s() >= deadline
            except TimeoutError as error:
                if error.errno is not None or left_s == silence_s:
                    raise  # the system's own limit, or the server takes nothing
                late = True
            if late:
                for call in list(self.calls):
                    call.time_out()
                raise TimeoutError("the call's time is over")

    def catch_up(self, deadline: float | None = None) -> None:
        """Takes what came while no call was made: a server says so when it leaves.

        Waits for nothing that comes; what it answers may wait until `deadline`, that of the call to come.
        """
        self.deadline = deadline
        try:
            while not self.lost:
                self._socket.settimeout(0)  # each time: an answer to what came sets its own limit
                data = self._socket.recv(READ_BYTES)
                if data:
                    self._take(data)
                else:
                    self.lose(None)
        except (BlockingIOError, TimeoutError):
            pass
        except OSError as error:
            if not _would_wait(error):
                self.lose(error)

    def read(self, deadline: float | None) -> bool:
        """Waits for bytes and takes them. False when none came until `deadline`.

        A server that is silent is asked for a sign of life meanwhile, and the connection is lost without one.
        """
        while not self.lost:
            now_s = _clock.now_s()
            look_at = self._asked_at + self.ping_answer_s_max if self._asked_at else self.heard_at + self.ping_after_s
            until = look_at if deadline is None else min(deadline, look_at)
            try:
                self._socket.settimeout(max(until - now_s, 0.001))
                data = self._socket.recv(READ_BYTES)
            except TimeoutError:
                if deadline is not None and _clock.now_s() >= deadline:
                    return False
                self._look()
            except OSError as error:
                self.lose(error)
            else:
                if data:
                    self._take(data)
                else:
                    self.lose(None)
                return True
        return True

    def _look(self) -> None:
        now_s = _clock.now_s()
        if self._asked_at and now_s >= self._asked_at + self.ping_answer_s_max:
            silent_s = now_s - self.heard_at
            self.lose(TimeoutError(errno.ETIMEDOUT, f"no sign of life for {silent_s:.0f} s"))
        elif not self._asked_at and now_s >= self.heard_at + self.ping_after_s:
            self._asked_at = now_s
            self.h2.send_ping(PING)
            self.flush()

    def _take(self, data: bytes) -> None:
        self._heard = True
        self._asked_at = 0.0
        self.dispatch(data, _clock.now_s())
        self.flush()

    def begin(self, call: Exchange[Any]) -> None:
        super().begin(call)
        self.heard_at = max(self.heard_at, _clock.now_s())  # silence counts from here on

    def lose(self, error: OSError | None) -> None:
        """The connection is over; so are its calls."""
        if self.lost:
            return
        self.lost = True
        self.told_lost(error, heard=self._heard)
        self._socket.close()

    def close(self) -> None:
        """Says good-bye and closes."""
        if not self.lost:
            self.h2.close(ErrorCode.NO_ERROR)
            self.flush()
            self.lose(None)


class BlockingCall(Exchange[Any]):
    """A call that the caller's thread waits for. As `Call`, with coroutines that do not suspend."""

    __slots__ = ("_channel", "_deadline", "_started_at")
    connection: BlockingConnection

    def __init__(
        self,
        channel: "BlockingChannel",
        connection: BlockingConnection,
        method: Method,
        headers: Any,
        timeout_s: float | None,
        deadline: float | None,
    ) -> None:
        super().__init__(connection, method, headers, timeout_s)
        self._channel = channel
        self._deadline = deadline
        connection.deadline = deadline
        connection.begin(self)
        self._started_at = connection.heard_at

    @property
    def unheard(self) -> bool:
        """Whether the server has sent nothing at all since this call began."""
        return self.connection.heard_at <= self._started_at

    async def send(self, request: Message, *, last: bool = False) -> None:
        """As `Call.send`."""
        self._raise_if_failed()
        self.connection.h2.send_data(self._stream, self._framed(request), last)
        self.connection.flush()
        while self._stream.queued_bytes and not self._over:
            self._read()

    async def receive(self) -> Any:
        """As `Call.receive`."""
        while not self._inbox:
            if self._over:
                self._raise_if_failed()
                return None
            self._read()
        return self._taken()

    async def __aiter__(self) -> Any:
        while (reply := await self.receive()) is not None:
            yield reply

    def cancel(self) -> None:
        super().cancel()
        self._channel.done_with(self.connection)

    def _read(self) -> None:
        try:
            in_time = self.connection.read(self._deadline)
        except BaseException:  # an interrupt: what comes next on this connection is half read
            self.connection.lose(None)
            raise
        if not in_time:
            self._give_up(self._timeout())


class BlockingChannel(Service):
    """Calls to one service, one at a time. Arguments: see `Channel`."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._idle: list[BlockingConnection] = []
        self._closed = False

    def now_s(self) -> float:
        return _clock.now_s()

    async def start(
        self, method: Method, timeout_s: float | None = None, deadline: float | None = None, metadata: Metadata = ()
    ) -> BlockingCall:
        connection, left_s = self._known(deadline), timeout_s
        if connection is None:
            if self._closed:
                raise ClientClosed("the client is closed")
            connection = await self._connect_until(deadline, timeout_s)
            left_s = None if deadline is None else max(deadline - self.now_s(), 0.0)
        return BlockingCall(self, connection, method, connection.headers(method, left_s, metadata), timeout_s, deadline)

    def _known(self, deadline: float | None) -> BlockingConnection | None:
        while self._idle:
            connection = self._idle.pop()
            connection.catch_up(deadline)
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connect_until(self, deadline: float | None, timeout_s: float | None) -> BlockingConnection:
        self._until = deadline
        try:
            connection: BlockingConnection = await self._connect()
        except ConnectionLost:
            if deadline is not None and self.now_s() >= deadline:
                raise self._no_connection(timeout_s) from None
            raise
        return connection

    async def _open_in_time(self, endpoint: Endpoint) -> BlockingConnection:
        deadline = self.now_s() + self._connect_timeout_s
        if self._until is not None:
            deadline = min(deadline, self._until)
        if endpoint.path:
            plain = socket.socket(socket.AF_UNIX)
            plain.settimeout(_left_s(deadline))
            plain.connect(endpoint.path)
        else:
            plain = socket.create_connection((endpoint.host, endpoint.port), _left_s(deadline))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = BlockingConnection(endpoint, plain, *self._limits)
        try:
            if endpoint.tls:
                assert self._ssl is not None
                plain.settimeout(_left_s(deadline))  # connecting has had its part of the time
                connection.secure(self._ssl, self._server_name or endpoint.server_name)
            connection.hear(deadline)
        except BaseException:
            connection.lost = True
            plain.close()
            raise
        return connection

    def done_with(self, connection: BlockingConnection) -> None:
        """A call is over: its connection waits for the next one."""
        if connection.usable and not connection.calls and not self._closed and connection not in self._idle:
            self._idle.append(connection)

    def distrust(self, call: BlockingCall) -> None:
        self._first = (self._first + 1) % len(self.endpoints)
        call.connection.close()

    async def aclose(self) -> None:
        """Closes all connections that wait for a call."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _left_s(deadline: float) -> float:
    return max(deadline - _clock.now_s(), 0.001)


def _would_wait(error: OSError) -> bool:
    """Whether TLS has nothing to read."""
    return is_of_tls(error) and type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")
