# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 and HTTP/1.0, the server's side of one connection: bytes in, events out; replies in, bytes out.

Laws
- No bytes of a peer raise an exception here. They become events, or an error reply and `closing`.
- One request at a time. Until its reply is over, later (pipelined) requests wait as unread bytes, which costs that
  peer's buffer and nothing else. When the buffer is full, `paused` asks the owner to stop reading.
- No reply is followed by bytes that are not its own. When it is not certain where the next request begins, the
  connection closes.
- The events of one input come in steps, each a bounded amount of work: see `go_on`. So the owner can serve others
  between two steps.

Theory of operation. The input goes through these phases: HEAD (collect bytes up to the empty line), LENGTH or CHUNKED
(read a body), DONE (the request is whole, and nothing is read until its reply is finished). The reply has three states
of its own, because a streaming reply may begin, and even end, before the request does. When the reply ends first, the
rest of the body is drained if it is small; if it is not, the connection closes (RFC 9112, 9.3).

The owner does this:

    events = connection.receive(data)         each event is (kind, request, bytes)
    REQUEST -> look at the request, keep objects of its own in request.owner
    BODY    -> take bytes of the body;  END -> the request is whole
    ABORT   -> the request will never be whole, or its bytes were refused: drop the call, no reply can be sent
    events = connection.reply(status, headers, body)     or start(), write()..., events = finish()
    events = connection.go_on()               while `unread`
    after each: flush take_output(); when `closing`, close the writing side, then the connection.

`reply` and `finish` return the events of the next request, so that the owner loops and does not recurse.

An upgrade request is delivered like any other. An owner that accepts it calls `hand_over`, answers by itself, and gets
the bytes that follow.

This module has no timeouts, knows no paths, and does not speak WebSocket.
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
SEND_STEP_BYTES: Final = limits.SEND_STEP_BYTES

_HEAD, _LENGTH, _CHUNKED, _DONE, _CLOSED = range(5)
_NOT_STARTED, _STARTED, _FINISHED = range(3)

_HEAD_END: Final = b"\r\n\r\n"
_HEAD_END_BYTES: Final = 4
# An empty line by a looser rule, which some readers follow. It ends a head here too, and httptools then refuses it.
_LOOSE_END = re.compile(rb"\n\r?\n")
# A byte that no request line begins with. A CR alone may still become an empty line.
_NO_METHOD = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z\r-]")
_EMPTY_LINES = re.compile(rb"(?:\r\n)++")
_NO_REQUEST = re.compile(rb"(?:\r\n)*+" + _NO_METHOD.pattern)  # the same after the empty lines that are skipped

_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
_STATUS_LINES = {
    http_1_1: {
        status: f"HTTP/1.{int(http_1_1)} {status} {phrase}\r\n".encode("ascii") for status, phrase in _REASONS.items()
    }
    for http_1_1 in (False, True)
}
_TEXT_HEADERS = b"Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as `start` and `reply` take them. Names are written like `Content-Type`, however they are spelt.

    Raises ValueError for a line break in a value, because a reader would take it for the start of another header.
    """
    lines = []
    for name, value in headers:
        if b"\r" in value or b"\n" in value:
            raise ValueError(f"line break in the header {name!r}")
        lines.append(b"%b: %b\r\n" % (name.title(), value))
    return b"".join(lines)


class SharedHeaders:
    """Encoded headers for every reply of every connection that was given this object, such as `Date`."""

    __slots__ = ("block",)

    def __init__(self, block: bytes = b"") -> None:
        self.block = block


class Request:
    """One request, until its reply is over. `owner` belongs to the code that serves it. The rest is read-only.

    `target` stands in the request line; `path` and `query` are its parts, still percent-encoded. `headers` have names
    in lower case. `keep_alive` becomes false as soon as it is known that the connection closes after the reply.
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


Event = tuple[int, Request, bytes]
BodyLimit = Callable[[Request], int | None]


class H1Connection:
    """The server's side of one connection.

    `body_bytes_max` bounds the body of each request. It is a number of bytes, or a function that is called once for
    each request, before the REQUEST event, and may return None for a body without end (a stream). A larger body is
    answered with 413. `heads` and `shared` may serve many connections.

    `closing`: nothing more will be read; flush the output, then close. `request`: the one in progress, if any.
    `unread`: bytes that have been received wait for `go_on`. `unsent`: there is more output than `take_output` gives at
    a time; `closing` comes after it.
    """

    __slots__ = (
        "_at", "_body_bytes", "_body_limit", "_body_max", "_chunked_reply", "_continue_due", "_decoder", "_eof",
        "_fixed_left", "_heads", "_input", "_late", "_left", "_no_body", "_out", "_phase", "_reply", "_searched",
        "_shared", "closing", "request", "unread", "unsent",
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
        self._out: list[bytes | memoryview] = []  # long bodies are views: a copy would take long
        self._input = b""  # the bytes that are being read, from _at on
        self._at = 0
        self._late = bytearray()  # bytes that came after _input and were not looked at
        self._searched = 0  # there is no end of a head in _late[:_searched]
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
        self.unread = False
        self.unsent = False
        self.request: Request | None = None

    # --- input --------------------------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were received and not looked at: pipelined requests, or the beginning of a head."""
        return len(self._late) + len(self._input) - self._at

    @property
    def paused(self) -> bool:
        """Whether the owner should stop reading until a reply is finished, or taken."""
        return self.unsent or (self._phase == _DONE and self.waiting_bytes >= WAITING_BYTES_MAX)

    def receive(self, data: bytes) -> list[Event]:
        """Takes bytes from the peer, cut anywhere. Bytes after `closing` are dropped. Never raises."""
        phase = self._phase
        if phase == _CLOSED or not data:
            return []
        if phase == _DONE or self.unread:
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

    def go_on(self) -> list[Event]:
        """While `unread` is set: takes the next step through the bytes that have been received. Never raises."""
        if not self.unread:
            return []
        self.unread = False
        return self._advance()

    def receive_eof(self) -> list[Event]:
        """The peer will send no more. A whole request still gets its reply; another one is aborted. Never raises.

        Not to be called while `unread`: the rest of a request may be among those bytes.
        """
        if self._phase == _CLOSED:
            return []
        self._eof = True
        request = self.request
        if self._phase == _DONE:
            return []
        events: list[Event] = []
        if request is not None:
            events.append((ABORT, request, b""))
        self._close()
        return events

    def _join(self) -> None:
        self._input = self._input[self._at :] + self._late if self._at < len(self._input) else bytes(self._late)
        self._at = 0
        self._late = bytearray()
        self._searched = 0

    def _head_is_whole(self) -> bool:
        """Whether `_late` has the end of a head, or is too long for one. Searches the new bytes only."""
        late = self._late
        start = max(0, self._searched - _HEAD_END_BYTES + 1)
        whole = late.find(_HEAD_END, start) >= 0 or _LOOSE_END.search(late, start) is not None
        self._searched = len(late)
        return whole or len(late) > limits.H1_HEAD_BYTES_MAX

    def _advance(self) -> list[Event]:
        """Reads as far as the bytes and the laws allow, for one step."""
        events: list[Event] = []
        try:
            while self._phase != _DONE and not self.unread:
                if self._phase == _HEAD:
                    if not self._read_head(events):
                        break
                elif self._at >= len(self._input):
                    if not self._late:  # bytes that came between two steps
                        break
                    self._join()
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
        # RFC 9112, 2.2: empty lines before a request are skipped. Some old clients send one after a body.
        if data.startswith(b"\r\n", at):
            empty = _EMPTY_LINES.match(data, at)
            assert empty is not None
            at = empty.end()
        end = data.find(_HEAD_END, at)
        if end >= 0:
            end += _HEAD_END_BYTES
        else:
            loose = _LOOSE_END.search(data, at)
            if loose is None:
                return self._keep_incomplete_head(at)
            end = loose.end()
        if end - at > limits.H1_HEAD_BYTES_MAX:
            raise RefusedError(431, f"request head of more than {limits.H1_HEAD_BYTES_MAX} bytes")
        self._at = end
        head = self._heads.parse(data[at:end])
        request = Request(head)
        if self._body_limit is not None:
            self._body_max = self._body_limit(request)
        self.request = request
        self._reply = _NOT_STARTED
        length = head.length
        if length == 0:
            events += ((REQUEST, request, b""), (END, request, b""))
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
        events.append((REQUEST, request, b""))
        return True

    def _keep_incomplete_head(self, at: int) -> bool:
        self._at = at
        if self._late:
            self._join()
            return True
        if _NO_METHOD.match(self._input, at):
            # A peer that speaks another protocol, such as TLS, waits for an answer and never sends the end of a head.
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
        body = b"".join(pieces)
        self._body_bytes += len(body)
        if self._reply != _FINISHED and self._body_max is not None and self._body_bytes > self._body_max:
            self._refuse_body(self._body_max)
        if body:
            self._deliver(body, events)
        if decoder.done:
            self._decoder = None
            self._request_is_whole(events)
        elif self._reply == _FINISHED and self._body_bytes > DRAIN_BYTES_MAX:
            self._close()
        else:
            self.unread = self._at < len(self._input)

    def _deliver(self, body: bytes, events: list[Event]) -> None:
        self._continue_due = False
        if self._reply != _FINISHED:
            assert self.request is not None
            events.append((BODY, self.request, body))

    def _request_is_whole(self, events: list[Event]) -> None:
        if self._reply == _FINISHED:
            self._phase = _HEAD
            return
        assert self.request is not None
        events.append((END, self.request, b""))
        self._phase = _DONE

    def _refuse(self, error: RefusedError, events: list[Event]) -> None:
        """Answers bytes that are no request that we serve, and closes. Aborts a request that the owner knows of."""
        request = self.request
        answered = False
        if self._phase in (_LENGTH, _CHUNKED):
            answered = self._reply != _NOT_STARTED
            if request is not None:
                events.append((ABORT, request, b""))
        if not answered:
            text = error.reason.encode("ascii", "replace") + b"\n"
            self._out += (
                _STATUS_LINES[True][error.status],
                self._shared.block,
                _TEXT_HEADERS,
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(text),
                b"" if request is not None and request.method == "HEAD" else text,
            )
        self._close()

    def _close(self) -> None:
        self._phase = _CLOSED
        self.closing = True
        self.unread = False
        self.request = None
        self._decoder = None
        self._input = b""
        self._at = 0
        self._late = bytearray()

    # --- output -------------------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    @property
    def output_bytes(self) -> int:
        """The size of all output that `take_output` has not given."""
        return sum([len(piece) for piece in self._out])

    def take_output(self) -> bytes:
        """The bytes to send now: all that there are, or the next piece of a long body. The caller must send them."""
        out = self._out
        if self.unsent:
            return self._take_piece()
        if len(out) == 1:
            data = bytes(out[0])
            out.clear()
            return data
        data = b"".join(out)
        out.clear()
        return data

    def _take_piece(self) -> bytes:
        """The output up to the end of the first piece of a long body."""
        out = self._out
        at = 0
        while not isinstance(out[at], memoryview):
            at += 1
        long = out[at]
        data = b"".join([*out[:at], long[:SEND_STEP_BYTES]])
        del out[:at]
        if len(long) > SEND_STEP_BYTES:
            out[0] = long[SEND_STEP_BYTES:]
        else:
            del out[0]
            self.unsent = False
            for piece in out:
                if isinstance(piece, memoryview):
                    self.unsent = True
        return data

    def accept_body(self) -> None:
        """Answers `100 Continue` to a peer that waits for it. Does nothing when the peer does not wait."""
        if self._continue_due and self._reply == _NOT_STARTED and not self.closing:
            self._continue_due = False
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def reply(self, status: int, headers: bytes, body: bytes) -> list[Event]:
        """Sends a whole reply. Returns the events of the next request that waited. `headers`: see `start`."""
        request = self.request
        if request is None:
            return []
        if self._reply != _NOT_STARTED:
            raise RuntimeError("this request has its reply already")
        long = len(body) > SEND_STEP_BYTES
        unusual = long or self._phase != _DONE or not request.keep_alive or not request.head.http_1_1
        if unusual or request.method == "HEAD":
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
        """Begins the reply. `headers` are pairs or, for constant ones, the cheaper block from `encode_headers`.

        `length` is the size of the body in bytes. None: it is not known, so the body is chunked, or, for HTTP/1.0, ends
        with the connection. Framing and `Connection` headers are written here, never by the caller. Does nothing after
        `closing`. Raises RuntimeError when the reply was started before.
        """
        request = self.request
        if request is None:
            return
        if self._reply != _NOT_STARTED:
            raise RuntimeError("this request has its reply already")
        self._reply = _STARTED
        http_1_1 = request.head.http_1_1
        self._no_body = request.method == "HEAD" or status in (204, 304)
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
            request.keep_alive = False
        if self._eof_is_next() or (length is not None and not self._drains()):
            request.keep_alive = False
        if not request.keep_alive:
            framing += b"Connection: close\r\n"
        elif not http_1_1:
            framing += b"Connection: keep-alive\r\n"
        block = headers if isinstance(headers, bytes) else encode_headers(headers)
        self._out.append(b"%b%b%b%b\r\n" % (_STATUS_LINES[http_1_1][status], self._shared.block, block, framing))

    def write(self, data: bytes) -> None:
        """Sends bytes of the reply's body, any number of times. Raises ValueError beyond the announced length."""
        if self.request is None or not data:
            return
        if self._reply != _STARTED:
            raise RuntimeError("no reply was started")
        if self._fixed_left is not None and not self._no_body:
            if len(data) > self._fixed_left:
                raise ValueError("reply longer than its announced length")
            self._fixed_left -= len(data)
        if self._no_body:
            return
        if self._chunked_reply:
            self._out.append(chunk(data))
        elif len(data) > SEND_STEP_BYTES:
            self._out.append(memoryview(data))
            self.unsent = True
        else:
            self._out.append(data)

    def finish(self) -> list[Event]:
        """Ends the reply. Returns the events of the next request that waited.

        When the reply is shorter than its announced length, the connection closes: the peer has no other sign of it.
        """
        request = self.request
        if request is None:
            return []
        if self._reply != _STARTED:
            raise RuntimeError("no reply was started")
        if self._no_body:
            pass
        elif self._chunked_reply:
            self._out.append(LAST_CHUNK)
        elif self._fixed_left:
            request.keep_alive = False
        if not request.keep_alive:
            self._close()
            return []
        if self._phase == _DONE:
            return self._next_request()
        if not self._drains():
            self._close()
            return []
        self._reply = _FINISHED
        self._body_bytes = 0
        self.request = None
        return []

    def abort(self) -> None:
        """Closes the connection without the end of the reply, so that the peer knows that the reply is not whole."""
        self._close()

    def hand_over(self) -> bytes:
        """Ends HTTP on this connection, for another protocol. Returns the bytes after the request, and reads no more.

        For a request that is whole and has no reply yet. Output that was not taken yet must still be sent.
        """
        if self._phase != _DONE or self._reply != _NOT_STARTED:
            raise RuntimeError("not between a whole request and its reply")
        rest = self._input[self._at :] + bytes(self._late)
        self._close()
        self.closing = False
        return rest

    def drain(self) -> None:
        """The server is going away: the request in progress is the last one; an idle connection closes now."""
        if self.request is None:
            self._close()
        else:
            self.request.keep_alive = False

    def _next_request(self) -> list[Event]:
        self.request = None
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
        """Whether the rest of the request is small enough to be read and dropped after the reply."""
        if self._phase == _DONE:
            return True
        # A peer that got no 100 Continue may send its body or skip it, so the next byte may belong to the next request.
        return not self._continue_due and (self._phase != _LENGTH or self._left <= DRAIN_BYTES_MAX)

    def _eof_is_next(self) -> bool:
        return self._eof and not self.waiting_bytes
