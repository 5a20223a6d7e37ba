# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 and HTTP/1.0, the server's side of one connection: bytes in, events out; replies in, bytes out.

Laws
- Nothing that a peer sends raises here: it becomes events, or an error reply and `closing`.
- One exchange at a time. While it is not over, later (pipelined) requests wait as bytes, unread, so they cost a peer's
  own buffer and nothing else; `paused` asks the owner to stop reading when that buffer is full.
- A reply is never followed by bytes that are not its own: whatever puts the position in the stream of requests in doubt
  closes the connection.

Theory of operation. Input goes through four phases: HEAD (collect up to the empty line), LENGTH or CHUNKED (a body),
DONE (the request is whole; nothing is read until its reply is finished). The reply has three states of its own, because
a streaming reply may begin, and even end, before the request does. When a reply ends first, the rest of the body is
drained if it is small and the connection closes if it is not (RFC 9112, 9.3).

What the owner does:

    events = connection.receive(data)         each event is (kind, exchange, bytes)
    REQUEST -> look at exchange, keep what it needs in exchange.owner
    BODY    -> bytes of the body;  END -> the request is whole
    ABORT   -> the request will never be whole, or its bytes were refused: drop the call, no reply can leave
    events = connection.reply(status, headers, body)     or start(), write()..., events = finish()
    after each: flush take_output(); when `closing`, close the writing side, then the connection.

`reply` and `finish` return the events of the next request, so the owner loops, it does not recurse.

An upgrade request is delivered as it came. An owner that takes it calls `hand_over`, answers by itself, and has the
bytes that follow.

It does not time anything out, know paths, or speak WebSocket.
"""

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

from lessor.base import limits
from lessor.wire.h1_chunked import LAST_CHUNK, ChunkedDecoder, chunk
from lessor.wire.h1_head import Head, HeadParser, RefusedError

REQUEST: Final = 1
BODY: Final = 2
END: Final = 3
ABORT: Final = 4

WAITING_BYTES_MAX = limits.H1_WAITING_BYTES_MAX
DRAIN_BYTES_MAX = limits.H1_DRAIN_BYTES_MAX

_HEAD, _LENGTH, _CHUNKED, _DONE, _CLOSED = range(5)
_NOT_STARTED, _STARTED, _FINISHED = range(3)

# An empty line by the looser rule that some readers follow. It ends a head here too, and httptools then refuses it.
_LOOSE_END = re.compile(rb"\n\r?\n")
# The beginning of what cannot become a request line; a lone CR may still become an empty line.
_NO_METHOD = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z\r-]")
_NO_REQUEST = re.compile(rb"(?:\r\n)*+" + _NO_METHOD.pattern)  # the same behind the empty lines that are skipped

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
_STATUS_LINES = {
    http_1_1: {
        status: f"HTTP/1.{int(http_1_1)} {status} {phrase}\r\n".encode("ascii") for status, phrase in _REASONS.items()
    }
    for http_1_1 in (False, True)
}
_TEXT_HEADERS = b"Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Lay out headers for `start` and `reply`; names come out as `Content-Type`, however they are spelt.

    Raises ValueError on a line break in a value: it would be read as the start of another header.
    """
    lines = []
    for name, value in headers:
        if b"\r" in value or b"\n" in value:
            raise ValueError(f"line break in the header {name!r}")
        lines.append(b"%b: %b\r\n" % (name.title(), value))
    return b"".join(lines)


class SharedHeaders:
    """Encoded headers that stand in every reply of every connection that was given this object; the `Date`, say."""

    __slots__ = ("block",)

    def __init__(self, block: bytes = b"") -> None:
        self.block = block


class Exchange:
    """One request and its reply. `owner` belongs to whoever serves it; the rest is read only.

    `target` is what the request line holds; `path` and `query` are taken from it, still percent-encoded. `headers` have
    names in lower case. `keep_alive` turns false as soon as it is known that this is the connection's last exchange.
    """

    __slots__ = ("head", "headers", "keep_alive", "method", "owner", "path", "query", "target")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.method = head.method
        self.target = head.target
        self.path = head.path
        self.query = head.query
        self.headers = head.headers
        self.keep_alive = head.keep_alive
        self.owner: Any = None

    def get(self, name: bytes) -> bytes | None:
        """The value of the first header of that name (in lower case)."""
        return self.head.get(name)


Event = tuple[int, Exchange, bytes]
BodyLimit = Callable[[Exchange], int | None]


class H1Connection:
    """The server's side of one connection.

    `body_bytes_max` bounds each request's body: a number of bytes, or a function that is asked once per request, before
    its REQUEST event, and may answer None for a body without end (a stream). A larger body is answered 413.
    `heads` and `shared` may serve many connections.

    `closing`: nothing more will be read; flush the output, then close. `exchange`: the one in progress, if any.
    """

    __slots__ = (
        "_at", "_body_bytes", "_body_limit", "_body_max", "_chunked_reply", "_continue_due", "_decoder", "_eof",
        "_fixed_left", "_heads", "_input", "_late", "_left", "_no_body", "_out", "_phase", "_reply", "_searched",
        "_shared", "closing", "exchange",
    )  # fmt: skip

    def __init__(
        self,
        body_bytes_max: int | BodyLimit | None = None,
        heads: HeadParser | None = None,
        shared: SharedHeaders | None = None,
    ) -> None:
        self._body_limit = body_bytes_max if callable(body_bytes_max) else None
        self._body_max = None if callable(body_bytes_max) else body_bytes_max
        self._heads = heads or HeadParser()
        self._shared = shared or SharedHeaders()
        self._out: list[bytes] = []
        self._input = b""  # what is being read, from _at on
        self._at = 0
        self._late = bytearray()  # what came after _input and was not looked at
        self._searched = 0  # _late[:_searched] holds no end of a head
        self._phase = _HEAD
        self._reply = _NOT_STARTED
        self._left = 0  # of a body with a length: bytes still to come
        self._body_bytes = 0  # of a chunked body, or of one being drained: bytes so far
        self._decoder: ChunkedDecoder | None = None
        self._continue_due = False  # the peer waits for 100 Continue
        self._chunked_reply = False
        self._no_body = False  # HEAD, 204, 304
        self._fixed_left: int | None = None  # of a reply with a length: bytes still to be written
        self._eof = False
        self.closing = False
        self.exchange: Exchange | None = None

    # --- input --------------------------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """Bytes received and not looked at: pipelined requests, or the beginning of a head."""
        return len(self._late) + len(self._input) - self._at

    @property
    def paused(self) -> bool:
        """Whether the owner should stop reading until a reply is finished."""
        return self._phase == _DONE and self.waiting_bytes >= WAITING_BYTES_MAX

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the peer, cut anywhere. Bytes after `closing` are dropped. Never raises."""
        phase = self._phase
        if phase == _CLOSED or not data:
            return []
        if phase == _DONE:
            self._late += data
            return []
        if self._late:
            self._late += data
            if not self._head_is_whole() and not _NO_REQUEST.match(self._late):
                return []
            self._join()
        else:
            self._input = data
            self._at = 0
        return self._advance()

    def receive_eof(self) -> list[Event]:
        """The peer will send no more. A whole request still gets its reply; one cut short is aborted. Never raises."""
        if self._phase == _CLOSED:
            return []
        self._eof = True
        exchange = self.exchange
        if self._phase == _DONE:
            return []
        events: list[Event] = []
        if exchange is not None:
            events.append((ABORT, exchange, b""))
        self._close()
        return events

    def _join(self) -> None:
        self._input = self._input[self._at :] + self._late if self._at < len(self._input) else bytes(self._late)
        self._at = 0
        self._late = bytearray()
        self._searched = 0

    def _head_is_whole(self) -> bool:
        """Search what came lately for the end of a head: each byte is looked at once."""
        late = self._late
        start = max(0, self._searched - 3)
        whole = late.find(b"\r\n\r\n", start) >= 0 or _LOOSE_END.search(late, start) is not None
        self._searched = len(late)
        return whole or len(late) > limits.H1_HEAD_BYTES_MAX

    def _advance(self) -> list[Event]:
        """Read as far as the bytes and the laws allow."""
        events: list[Event] = []
        try:
            while self._phase != _DONE:
                if self._phase == _HEAD:
                    if not self._read_head(events):
                        break
                elif self._at >= len(self._input):
                    break
                elif self._phase == _LENGTH:
                    self._read_fixed(events)
                elif self._phase == _CHUNKED:
                    self._read_chunked(events)
                else:
                    break
        except RefusedError as error:
            self._refuse(error, events)
        return events

    def _read_head(self, events: list[Event]) -> bool:
        data = self._input
        at = self._at
        # RFC 9112, 2.2: empty lines before a request are skipped; some old clients send one after a body.
        while data.startswith(b"\r\n", at):
            at += 2
        end = data.find(b"\r\n\r\n", at) + 4
        if end == 3:
            loose = _LOOSE_END.search(data, at)
            if loose is None:
                return self._keep_incomplete_head(at)
            end = loose.end()
        if end - at > limits.H1_HEAD_BYTES_MAX:
            raise RefusedError(431, f"request head of more than {limits.H1_HEAD_BYTES_MAX} bytes")
        self._at = end
        head = self._heads.parse(data[at:end])
        exchange = Exchange(head)
        if self._body_limit is not None:
            self._body_max = self._body_limit(exchange)
        self.exchange = exchange
        self._reply = _NOT_STARTED
        length = head.length
        if length == 0:
            events += ((REQUEST, exchange, b""), (END, exchange, b""))
            self._phase = _DONE
            return True
        body_max = self._body_max
        if body_max is not None and length > body_max:
            self._refuse_body(body_max)
        self._body_bytes = 0
        if length < 0:
            self._decoder = ChunkedDecoder()
            self._phase = _CHUNKED
        else:
            self._left = length
            self._phase = _LENGTH
        self._continue_due = head.expects_continue
        events.append((REQUEST, exchange, b""))
        return True

    def _keep_incomplete_head(self, at: int) -> bool:
        self._at = at
        if self._late:
            self._join()
            return True
        if _NO_METHOD.match(self._input, at):
            # A peer of another protocol, TLS say, waits for an answer and never sends the end of a head.
            raise RefusedError(400, "malformed request line")
        if len(self._input) - at > limits.H1_HEAD_BYTES_MAX:
            raise RefusedError(431, f"request head of more than {limits.H1_HEAD_BYTES_MAX} bytes")
        if self._eof:
            self._close()
            return False
        self._late += self._input[at:]
        self._searched = len(self._late)
        self._input = b""
        self._at = 0
        return False

    def _refuse_body(self, body_max: int) -> None:
        raise RefusedError(413, f"request body of more than {body_max} bytes")

    def _read_fixed(self, events: list[Event]) -> None:
        data = self._input
        at = self._at
        body = data[at : at + self._left] if at or len(data) > self._left else data
        self._at = at + len(body)
        self._left -= len(body)
        self._deliver(body, events)
        if not self._left:
            self._request_is_whole(events)

    def _read_chunked(self, events: list[Event]) -> None:
        decoder = self._decoder
        assert decoder is not None
        pieces, self._at = decoder.feed(self._input, self._at)
        self._body_bytes += sum(map(len, pieces))
        if self._reply != _FINISHED and self._body_max is not None and self._body_bytes > self._body_max:
            self._refuse_body(self._body_max)
        for piece in pieces:
            self._deliver(piece, events)
        if decoder.done:
            self._decoder = None
            self._request_is_whole(events)
        elif self._reply == _FINISHED and self._body_bytes > DRAIN_BYTES_MAX:
            self._close()

    def _deliver(self, body: bytes, events: list[Event]) -> None:
        self._continue_due = False
        if self._reply != _FINISHED:
            assert self.exchange is not None
            events.append((BODY, self.exchange, body))

    def _request_is_whole(self, events: list[Event]) -> None:
        if self._reply == _FINISHED:
            self._phase = _HEAD
            return
        assert self.exchange is not None
        events.append((END, self.exchange, b""))
        self._phase = _DONE

    def _refuse(self, error: RefusedError, events: list[Event]) -> None:
        """Answer bytes that are no request of ours, and close. An exchange that the owner knows of is aborted."""
        exchange = self.exchange
        answered = False
        if self._phase in (_LENGTH, _CHUNKED):
            answered = self._reply != _NOT_STARTED
            if exchange is not None:
                events.append((ABORT, exchange, b""))
        if not answered:
            text = error.reason.encode("ascii", "replace") + b"\n"
            self._out += (
                _STATUS_LINES[True][error.status],
                self._shared.block,
                _TEXT_HEADERS,
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(text),
                b"" if exchange is not None and exchange.method == "HEAD" else text,
            )
        self._close()

    def _close(self) -> None:
        self._phase = _CLOSED
        self.closing = True
        self.exchange = None
        self._decoder = None
        self._input = b""
        self._at = 0
        self._late = bytearray()

    # --- output -------------------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    def take_output(self) -> bytes:
        """The bytes to send now; they are forgotten here."""
        out = self._out
        if len(out) == 1:
            data = out[0]
            out.clear()
            return data
        data = b"".join(out)
        out.clear()
        return data

    def accept_body(self) -> None:
        """Tell a peer that waits for `100 Continue` to go on; nothing happens when it does not wait."""
        if self._continue_due and self._reply == _NOT_STARTED and not self.closing:
            self._continue_due = False
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def reply(self, status: int, headers: bytes, body: bytes) -> list[Event]:
        """A whole reply at once. Returns the events of the next request that waited. `headers`: see `start`."""
        exchange = self.exchange
        if exchange is None:
            return []
        if self._reply != _NOT_STARTED:
            raise RuntimeError("this exchange has its reply already")
        if self._phase != _DONE or not exchange.keep_alive or not exchange.head.http_1_1 or exchange.method == "HEAD":
            self.start(status, headers, len(body))
            self.write(body)
            return self.finish()
        if status in (204, 304):
            self._out.append(b"%b%b%b\r\n" % (_STATUS_LINES[True][status], self._shared.block, headers))
        else:
            self._out.append(
                b"%b%b%bContent-Length: %d\r\n\r\n%b"
                % (_STATUS_LINES[True][status], self._shared.block, headers, len(body), body)
            )
        return self._next_request()

    def start(self, status: int, headers: bytes | Iterable[tuple[bytes, bytes]], length: int | None = None) -> None:
        """Begin the reply. `headers` are pairs or, better for constant ones, what `encode_headers` made of them.

        `length` is the body's size in bytes; None means that it is not known: chunked, or up to the end of the
        connection for HTTP/1.0. Framing and `Connection` headers are written here, never by the caller. After `closing`
        nothing happens. Raises RuntimeError when the reply was started before.
        """
        exchange = self.exchange
        if exchange is None:
            return
        if self._reply != _NOT_STARTED:
            raise RuntimeError("this exchange has its reply already")
        self._reply = _STARTED
        http_1_1 = exchange.head.http_1_1
        self._no_body = exchange.method == "HEAD" or status in (204, 304)
        self._chunked_reply = False
        self._fixed_left = length
        framing = b""
        if status == 204:
            self._fixed_left = 0
        elif length is not None:
            framing = b"Content-Length: %d\r\n" % length
        elif status == 304:
            pass
        elif http_1_1:
            framing = b"Transfer-Encoding: chunked\r\n"
            self._chunked_reply = True
        else:
            exchange.keep_alive = False
        if self._eof_is_next() or (length is not None and not self._drains()):
            exchange.keep_alive = False
        if not exchange.keep_alive:
            framing += b"Connection: close\r\n"
        elif not http_1_1:
            framing += b"Connection: keep-alive\r\n"
        block = headers if isinstance(headers, bytes) else encode_headers(headers)
        self._out.append(b"%b%b%b%b\r\n" % (_STATUS_LINES[http_1_1][status], self._shared.block, block, framing))

    def write(self, data: bytes) -> None:
        """Bytes of the reply's body, any number of times. Raises ValueError beyond the length that was announced."""
        if self.exchange is None or not data:
            return
        if self._reply != _STARTED:
            raise RuntimeError("no reply was started")
        if self._fixed_left is not None and not self._no_body:
            if len(data) > self._fixed_left:
                raise ValueError("reply longer than its announced length")
            self._fixed_left -= len(data)
        if not self._no_body:
            self._out.append(chunk(data) if self._chunked_reply else data)

    def finish(self) -> list[Event]:
        """End the reply. Returns the events of the next request that waited.

        A reply shorter than its announced length closes the connection: nothing else tells the peer.
        """
        exchange = self.exchange
        if exchange is None:
            return []
        if self._reply != _STARTED:
            raise RuntimeError("no reply was started")
        if self._no_body:
            pass
        elif self._chunked_reply:
            self._out.append(LAST_CHUNK)
        elif self._fixed_left:
            exchange.keep_alive = False
        if not exchange.keep_alive:
            self._close()
            return []
        if self._phase == _DONE:
            return self._next_request()
        if not self._drains():
            self._close()
            return []
        self._reply = _FINISHED
        self._body_bytes = 0
        self.exchange = None
        return []

    def abort(self) -> None:
        """Give up a reply that was started: the connection closes without its end, so the peer knows it was cut."""
        self._close()

    def hand_over(self) -> bytes:
        """Ends HTTP on this connection, for another protocol: returns what came after the request, and reads no more.

        For a request that came in whole and has no reply yet. What was to be sent before still has to be.
        """
        if self._phase != _DONE or self._reply != _NOT_STARTED:
            raise RuntimeError("not between a whole request and its reply")
        rest = self._input[self._at :] + bytes(self._late)
        self._close()
        self.closing = False
        return rest

    def drain(self) -> None:
        """The server is going away: the exchange in progress is the last one; an idle connection closes now."""
        if self.exchange is None:
            self._close()
        else:
            self.exchange.keep_alive = False

    def _next_request(self) -> list[Event]:
        self.exchange = None
        self._reply = _NOT_STARTED
        self._phase = _HEAD
        if self._at < len(self._input) or self._late:
            if self._at >= len(self._input):
                self._join()
            return self._advance()
        if self._eof:
            self._close()
        return []

    def _drains(self) -> bool:
        """Whether what is left of the request is small enough to be read and dropped after the reply."""
        if self._phase == _DONE:
            return True
        # A peer that was never told to go on may send its body or skip it: the next byte cannot be understood.
        return not self._continue_due and (self._phase != _LENGTH or self._left <= DRAIN_BYTES_MAX)

    def _eof_is_next(self) -> bool:
        return self._eof and not self.waiting_bytes
