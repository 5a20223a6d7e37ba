# SPDX-License-Identifier: Apache-2.0
"""One connection to a server, and the calls on it: asyncio on one side, the sans-IO HTTP/2 connection on the other.

Laws
- The wire decides what bytes mean; this module moves them, and hands each event to the call that owns the stream.
- A call ends exactly once: with a status of the server, or with the reason why none came. What arrived before the end
  is delivered before it.
- A caller that does not read what its call receives loses that call, not the connection: leases are kept alive on it.
- A server that is silent while calls wait is asked for a sign of life, and a connection without one is given up:
  otherwise a watch would never notice that its server's machine is gone.
- No task is started here. Everything happens in the caller's task or in asyncio's callbacks.
"""

import asyncio
import errno
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from lessor import __version__
from lessor.api.methods import Method
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.base.tls_errors import reason_of
from lessor.client._endpoint import Endpoint
from lessor.client._errors import CallTimeout, ClientError, ConnectionLost, ServerError
from lessor.wire import h2
from lessor.wire.grpc import Deframer, check_encoding, format_timeout, frame, is_grpc, status_of
from lessor.wire.h2 import ErrorCode

Reply = TypeVar("Reply", bound=Message)
Metadata = Iterable[tuple[str, str]]

USER_AGENT = f"lessor/{__version__}".encode()
HEADERS_MAX = 256  # encoded request headers that a connection remembers, one for each kind of call

# Bytes received and not yet taken by the caller. A watch has far fewer unless its owner has stopped reading.
INBOX_BYTES_MAX = 67_108_864
# Bytes that wait for the server's window, or for the socket, before send() makes its caller wait.
SEND_BYTES_MAX = 1_048_576
# The largest request and the largest reply, unless the client's options say otherwise. etcd sets no bound on what it
# sends; this is also the largest message that Go's clients take.
MESSAGE_BYTES_MAX = 2_147_483_647

# Unless the client's options say otherwise: silence of the server, while calls wait, after which it is asked for a sign
# of life. etcd closes a connection whose PINGs come more often than every 5 seconds.
PING_AFTER_S = 10.0
PING_ANSWER_S_MAX = 5.0  # wait for that sign
CLOSE_S_MAX = 2.0  # wait for a server to take the last bytes
_PING = b"areyouup"

# Calls that change nothing, or whose repetition changes nothing more.
_REPEATABLE = frozenset(
    {
        *(
            "Range",
            "Watch",
            "LeaseKeepAlive",
            "LeaseTimeToLive",
            "LeaseLeases",
            "MemberList",
            "Status",
            "Hash",
            "HashKV",
        ),
        *("Snapshot", "Defragment", "AuthStatus", "Authenticate", "UserGet", "UserList", "RoleGet", "RoleList"),
        *("Leader", "Observe", "Check", "List"),
    }
)

# With these codes the server refuses a call before anything is done: the outcome is known.
_DEFINITE = frozenset(
    {
        *(Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.PERMISSION_DENIED),
        *(Code.RESOURCE_EXHAUSTED, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED),
        Code.UNAUTHENTICATED,
    }
)
# But with this text an etcd that runs full answers writes that it has carried out, too: 8 of 60 puts at once.
_MAYBE_DONE = errors.NO_SPACE.error().message


class Connection(asyncio.Protocol):
    """A connection that is up, or was. Made by `Channel`."""

    def __init__(
        self,
        endpoint: Endpoint,
        request_bytes_max: int = MESSAGE_BYTES_MAX,
        reply_bytes_max: int = MESSAGE_BYTES_MAX,
        ping_after_s: float = PING_AFTER_S,
        ping_answer_s_max: float = PING_ANSWER_S_MAX,
    ) -> None:
        self.endpoint = endpoint
        self.request_bytes_max = request_bytes_max
        self.reply_bytes_max = reply_bytes_max
        self._ping_after_s = ping_after_s
        self._ping_answer_s_max = ping_answer_s_max
        self.h2 = h2.H2Client()
        self.calls: set[Call[Any]] = set()
        self.lost = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._heard = asyncio.Event()  # the server has sent something, or is gone
        self._lost_by: Exception | None = None
        self.full = False  # whether the socket takes no more for now
        self.heard_at = self._loop.time()  # when the server sent something last
        self._retired = False
        self._headers: dict[tuple[Method, float | None, tuple[tuple[str, str], ...]], bytes] = {}
        self._look_timer: asyncio.TimerHandle | None = None
        self._answer_by = 0.0  # when the sign of life that was asked for has to be there; 0: none was asked for

    @property
    def usable(self) -> bool:
        """Whether a new call can be started."""
        return not self.lost and self.h2.can_start

    # --- asyncio's callbacks ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flush()

    def data_received(self, data: bytes) -> None:
        self._heard.set()
        self.heard_at = self._loop.time()
        self._answer_by = 0.0
        for kind, stream, payload in self.h2.receive(data, self.heard_at):
            call: Call[Any] | None = stream.owner
            if call is not None:
                call.event(kind, payload)
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
        words = reason_of(error) if isinstance(error, ssl.SSLError) else error
        if not self._heard.is_set():
            reason = "the connection was taken, and closed"
            reason += f" ({words})" if error is not None else ""
        else:
            reason = "the server closed the connection" if error is None else f"connection lost ({words})"
        self._heard.set()
        for call in list(self.calls):
            call.end_with_connection(reason)
        if not self._closed.done():
            self._closed.set_result(None)

    # --- signs of life ------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Runs while there are calls: asks a silent server for a sign of life, and gives up one that gives none."""
        self._look_timer = None
        if self._transport is None or not self.calls:
            return  # the next call starts it again
        due_at = self._answer_by or self.heard_at + self._ping_after_s
        if self._loop.time() < due_at - 0.001:  # a timer may fire a little too early
            self._look_timer = self._loop.call_at(due_at, self._look)
        elif self._answer_by:
            silent_s = self._loop.time() - self.heard_at
            self._lost_by = TimeoutError(errno.ETIMEDOUT, f"no sign of life for {silent_s:.0f} s")
            self._transport.abort()
        else:
            self._ping()

    def _ping(self) -> None:
        self._answer_by = self._loop.time() + self._ping_answer_s_max
        self.h2.send_ping(_PING)
        self.flush()
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_timer = self._loop.call_at(self._answer_by, self._look)

    # --- for the calls ------------------------------------------------------------------------------------------

    def headers(self, method: Method, timeout_s: float | None, metadata: Metadata) -> bytes | list[h2.Field]:
        """The headers of a request; already encoded when an earlier call had the same, as most have."""
        key = (method, timeout_s, tuple(metadata))
        known = self._headers.get(key)
        if known is not None:
            return known
        headers = _headers(self.endpoint, *key)
        if len(self._headers) < HEADERS_MAX:
            self._headers[key] = h2.encode_headers(headers)
        return headers  # not encoded, the first time: then the wire checks their size

    def begin(self, call: "Call[Any]") -> None:
        """A call has begun."""
        if self._look_timer is None:
            self.heard_at = self._loop.time()  # silence counts from here on: without a call there was nothing to send
            self._look_timer = self._loop.call_later(self._ping_after_s, self._look)
        self.calls.add(call)

    def end(self, call: "Call[Any]") -> None:
        """A call is over."""
        self.calls.discard(call)
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
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")

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


def _headers(
    endpoint: Endpoint, method: Method, timeout_s: float | None, metadata: tuple[tuple[str, str], ...]
) -> list[h2.Field]:
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"https" if endpoint.tls else b"http"),
        (b":path", method.path.encode()),
        (b":authority", endpoint.authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", USER_AGENT),
    ]
    if timeout_s is not None:
        headers.append((b"grpc-timeout", format_timeout(timeout_s)))
    headers += [(name.encode(), value.encode()) for name, value in metadata]
    return headers


class Call(Generic[Reply]):
    """One remote call with any number of messages each way. Made by `Channel.stream`, used as

        async with channel.stream(method) as call:
            await call.send(request)
            async for reply in call: ...

    Leaving the block cancels what is not over. One task may send while another receives.
    """

    __slots__ = (
        "_deframer",
        "_end",
        "_inbox",
        "_inbox_bytes",
        "_method",
        "_over",
        "_started_at",
        "_stream",
        "_timeout_s",
        "_timer",
        "_waiters",
        "connection",
    )

    def __init__(
        self,
        connection: Connection,
        method: Method,
        headers: bytes | list[h2.Field],
        timeout_s: float | None,
        deadline: float | None,
    ) -> None:
        self.connection = connection
        self._method = method
        self._deframer = Deframer(connection.reply_bytes_max)
        self._inbox: deque[tuple[Reply, int]] = deque()
        self._inbox_bytes = 0
        self._over = False
        self._end: ClientError | None = None  # once `_over`: the error; None: it ended well
        self._waiters: list[asyncio.Future[None]] = []
        self._stream = connection.h2.start_request(headers)
        self._stream.owner = self
        connection.begin(self)
        self._started_at = asyncio.get_running_loop().time()
        self._timeout_s = timeout_s
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

    def _framed(self, request: Message) -> bytes:
        raw = request.SerializeToString()
        if len(raw) > self.connection.request_bytes_max:
            text = f"trying to send message larger than max ({len(raw)} vs. {self.connection.request_bytes_max})"
            raise ServerError(Code.RESOURCE_EXHAUSTED, text)
        return frame(raw)

    @property
    def unheard(self) -> bool:
        """Whether the server has sent nothing at all, to this call or another, since this one began."""
        return self.connection.heard_at <= self._started_at

    def half_close(self) -> None:
        """Says that no more messages will come; replies still do."""
        self.connection.h2.send_data(self._stream, b"", True)
        self.connection.flush()

    async def receive(self) -> Reply | None:
        """The next reply, or None when the call has ended well. Raises the ClientError that ended it otherwise."""
        while not self._inbox:
            if self._over:
                self._raise_if_failed()
                return None
            await self._wait()
        reply, size = self._inbox.popleft()
        self._inbox_bytes -= size
        return reply

    async def __aiter__(self) -> AsyncIterator[Reply]:
        while (reply := await self.receive()) is not None:
            yield reply

    def cancel(self) -> None:
        """Ends the call now, at the server too. Nothing happens when it is over."""
        self._give_up(ServerError(Code.CANCELED, "the call was canceled"))

    async def __aenter__(self) -> "Call[Reply]":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    # --- for the connection -------------------------------------------------------------------------------------

    def event(self, kind: int, payload: bytes) -> None:
        """Takes an event of this call's stream."""
        if self._over:
            return
        if kind == h2.DATA:
            self._received(payload)
        elif kind == h2.HEADERS:
            self._answered(self._stream.head)
        elif kind == h2.END:
            self._ended(*status_of(self._stream.head, self._stream.trailers))
        elif kind == h2.RESET:
            self._was_reset(self._stream.error_code)
        self.wake()

    def end_with_connection(self, reason: str) -> None:
        """The connection is gone, and the call with it; `reason` for the error's text."""
        endpoint = self.connection.endpoint.text
        text = f"{endpoint}: {reason} before the answer came"
        self._finish(ConnectionLost(text, endpoint=endpoint, taken=True, outcome_unknown=self._outcome(True)))

    # --- inside -------------------------------------------------------------------------------------------------

    def _answered(self, head: h2.Head | None) -> None:
        if head is None or head.get(b"grpc-status") is not None:
            return  # an answer without messages; its end has the status
        content_type = head.get(b"content-type")
        if head.status != b"200":
            self._give_up(self._refusal(*status_of(head, None)))
        elif not is_grpc(content_type):
            said = (content_type or b"none").decode("ascii", "replace")
            text = f"{self.connection.endpoint.text} is not a gRPC server: content-type {said}"
            self._give_up(self._refusal(Code.UNKNOWN, text))
        else:
            encoding = head.get(b"grpc-encoding")
            try:
                check_encoding(encoding)
            except EtcdError as error:
                self._give_up(ServerError(error.code, error.message, outcome_unknown=self._outcome(True)))
            self._deframer = Deframer(self.connection.reply_bytes_max, encoding)

    def _refusal(self, code: Code, text: str) -> ServerError:
        return ServerError(code, text, outcome_unknown=self._outcome(code not in _DEFINITE or text == _MAYBE_DONE))

    def _received(self, payload: bytes) -> None:
        try:
            for raw in self._deframer.feed(payload):
                self._inbox.append((cast(Reply, self._method.response.FromString(raw)), len(raw)))
                self._inbox_bytes += len(raw)
            if self._deframer.error is not None:
                raise self._deframer.error
        except EtcdError as error:
            self._give_up(ServerError(error.code, error.message, outcome_unknown=self._outcome(True)))
        except DecodeError:
            text = f"the reply to {self._method.name} is not a {self._method.response.DESCRIPTOR.name}"
            self._give_up(ServerError(Code.INTERNAL, text, outcome_unknown=self._outcome(True)))
        if self._inbox_bytes > INBOX_BYTES_MAX and len(self._inbox) > 1:
            endpoint = self.connection.endpoint.text
            text = f"{endpoint}: {self._inbox_bytes} bytes of replies were not read; {INBOX_BYTES_MAX} is the limit"
            self._give_up(ConnectionLost(text, endpoint=endpoint, outcome_unknown=self._outcome(True)))

    def _ended(self, code: Code, text: str) -> None:
        if code == Code.OK:
            self._finish(None)
        elif code == Code.DEADLINE_EXCEEDED and self._timer is not None:
            self._finish(self._timeout())  # the server knows our deadline, and its clock was a little ahead
        else:
            self._finish(self._refusal(code, text))

    def _was_reset(self, error_code: int) -> None:
        if self._stream.trailers is not None:  # the answer was complete; the rest of our request was not wanted
            self._ended(*status_of(self._stream.head, self._stream.trailers))
            return
        refused = error_code == ErrorCode.REFUSED_STREAM  # the one code that promises that nothing was done
        endpoint = self.connection.endpoint.text
        name = next((code.name for code in ErrorCode if code == error_code), str(error_code))
        text = f"{endpoint}: the server reset the call ({name})"
        self._finish(ConnectionLost(text, endpoint=endpoint, outcome_unknown=self._outcome(not refused)))

    def _timed_out(self) -> None:
        self._give_up(self._timeout())

    def _timeout(self) -> CallTimeout:
        timeout_s = self._timeout_s or 0.0
        text = f"no answer from {self.connection.endpoint.text} within {timeout_s:g} s"
        return CallTimeout(text, timeout_s=timeout_s, outcome_unknown=self._outcome(True))

    def _outcome(self, unknown: bool) -> bool:
        return unknown and self._method.name not in _REPEATABLE

    def _give_up(self, error: ClientError) -> None:
        """Ends the call from our side."""
        self._finish(error)
        self.connection.flush()

    def _finish(self, end: ClientError | None) -> None:
        if self._over:
            return
        self._over = True
        self._end = end
        # Does nothing when both sides have ended; otherwise the server should not wait for the rest of the request.
        self.connection.h2.reset(self._stream, ErrorCode.CANCEL)
        self.connection.end(self)
        self._stream.owner = None  # otherwise call and stream keep each other alive
        if self._timer is not None:
            self._timer.cancel()
        self.wake()

    def _raise_if_failed(self) -> None:
        if self._over and self._end is not None:
            raise self._end

    async def _wait(self) -> None:
        """Waits until something happens. Sender and receiver may wait at the same time."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        """Lets go on who waits, to look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
