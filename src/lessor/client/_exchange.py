# SPDX-License-Identifier: Apache-2.0
"""A connection and a call on it, without the waiting: what the wire's events mean to a call, and how it ends.

Laws
- A call ends exactly once: with a status of the server, or with the reason why none came. What arrived before the end
  is delivered before it.
- Nothing here waits, reads a clock or imports asyncio: `_connection.py` waits in an event loop, `_blocking.py` in the
  caller's thread.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from lessor import __version__
from lessor.api.methods import Method
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.base.tls_errors import is_of_tls, reason_of
from lessor.client._endpoint import Endpoint
from lessor.client._errors import CallTimeout, ClientError, ConnectionLost, ServerError, TooLarge
from lessor.client._observed import LOG, Counters
from lessor.wire import h2
from lessor.wire.grpc import Deframer, check_encoding, format_timeout, frame, is_grpc, status_of
from lessor.wire.h2 import ErrorCode

Reply = TypeVar("Reply", bound=Message)
Metadata = Iterable[tuple[str, str]]

USER_AGENT = f"lessor/{__version__}".encode()
HEADERS_MAX = 256  # encoded request headers that a connection remembers, one for each kind of call

# Bytes received and not yet taken by the caller. A watch has far fewer unless its owner has stopped reading.
INBOX_BYTES_MAX = 67_108_864
# The largest request and the largest reply, unless the client's options say otherwise. etcd sets no bound on what it
# sends; this is also the largest message that Go's clients take.
MESSAGE_BYTES_MAX = 2_147_483_647

# Unless the client's options say otherwise: silence of the server, while calls wait, after which it is asked for a sign
# of life. etcd closes a connection whose PINGs come more often than every 5 seconds.
PING_AFTER_S = 10.0
PING_ANSWER_S_MAX = 5.0  # wait for that sign
PING = b"areyouup"

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


class Line:
    """A connection, as its calls see it."""

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
        self.ping_after_s = ping_after_s
        self.ping_answer_s_max = ping_answer_s_max
        self.h2 = h2.H2Client()
        self.calls: set[Exchange[Any]] = set()
        self.lost = False
        self.counters = Counters()  # its channel's, once that has it
        self.heard_at = 0.0  # when the server sent something last
        self._headers: dict[tuple[Method, float | None, tuple[tuple[str, str], ...]], bytes] = {}

    @property
    def usable(self) -> bool:
        """Whether a new call can be started."""
        return not self.lost and self.h2.can_start

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

    def dispatch(self, data: bytes, now_s: float) -> None:
        """Takes bytes of the server, and hands each event to the call that owns the stream."""
        self.heard_at = now_s
        for kind, stream, payload in self.h2.receive(data, now_s):
            call: Exchange[Any] | None = stream.owner
            if call is not None:
                call.event(kind, payload)

    def told_lost(self, error: Exception | None, *, heard: bool) -> None:
        """The connection has ended, and so do its calls. `error` None: the server ended it. `heard`: it ever spoke."""
        words = reason_of(error) if isinstance(error, OSError) and is_of_tls(error) else error
        if heard:
            reason = "the server closed the connection" if error is None else f"connection lost ({words})"
        else:
            reason = "the connection was taken, and closed" + (f" ({words})" if error is not None else "")
        if self.calls:
            self.counters.lost_connections += 1
            LOG.warning("%s: %s, with %d calls underway", self.endpoint.text, reason, len(self.calls))
        else:
            LOG.info("%s: %s", self.endpoint.text, reason)
        for call in list(self.calls):
            call.end_with_connection(reason)

    def flush(self) -> None:
        """Writes what the wire has ready."""
        raise NotImplementedError

    def begin(self, call: "Exchange[Any]") -> None:
        """A call has begun."""
        self.calls.add(call)

    def end(self, call: "Exchange[Any]") -> None:
        """A call is over."""
        self.calls.discard(call)


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


class Exchange(Generic[Reply]):
    """One remote call with any number of messages each way, as the wire drives it. `wake` is called at each event."""

    __slots__ = (
        "_deframer",
        "_end",
        "_inbox",
        "_inbox_bytes",
        "_method",
        "_over",
        "_stream",
        "_timeout_s",
        "connection",
    )

    def __init__(
        self, connection: Line, method: Method, headers: bytes | list[h2.Field], timeout_s: float | None
    ) -> None:
        self.connection = connection
        self._method = method
        self._deframer = Deframer(connection.reply_bytes_max)
        self._inbox: deque[tuple[Reply, int]] = deque()
        self._inbox_bytes = 0
        self._over = False
        self._end: ClientError | None = None  # once `_over`: the error; None: it ended well
        self._stream = connection.h2.start_request(headers)
        self._stream.owner = self
        self._timeout_s = timeout_s

    def wake(self) -> None:
        """Something has happened: who waits may look again."""

    def half_close(self) -> None:
        """Says that no more messages will come; replies still do."""
        self.connection.h2.send_data(self._stream, b"", True)
        self.connection.flush()

    def cancel(self) -> None:
        """Ends the call now, at the server too. Nothing happens when it is over."""
        self._give_up(ServerError(Code.CANCELED, "the call was canceled"))

    def _framed(self, request: Message) -> bytes:
        raw = request.SerializeToString()
        if len(raw) > self.connection.request_bytes_max:
            text = f"trying to send message larger than max ({len(raw)} vs. {self.connection.request_bytes_max})"
            raise TooLarge(Code.RESOURCE_EXHAUSTED, text)
        return frame(raw)

    def _taken(self) -> Reply:
        reply, size = self._inbox.popleft()
        self._inbox_bytes -= size
        return reply

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

    def time_out(self) -> None:
        """Ends the call at its deadline, without a word to the server: the connection takes none."""
        self._finish(self._timeout())

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
            kind = TooLarge if error.code == Code.RESOURCE_EXHAUSTED else ServerError
            self._give_up(kind(error.code, error.message, outcome_unknown=self._outcome(True)))
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
        elif code == Code.DEADLINE_EXCEEDED and self._timeout_s is not None:
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
        self.wake()

    def _raise_if_failed(self) -> None:
        if self._over and self._end is not None:
            raise self._end
