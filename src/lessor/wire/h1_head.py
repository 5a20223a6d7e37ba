# SPDX-License-Identifier: Apache-2.0
"""The head of an HTTP/1.x request: bytes of one head in, a checked `Head` out.

Laws
- An ambiguous head is refused. If two readers disagree about where a request ends, a peer can smuggle a request past
  one of them. Ambiguous are bare line feeds, folded lines, a length next to a transfer coding, repeated lengths, and a
  coding in HTTP/1.0.
- A refusal names its HTTP status and a reason. No other exception is raised.
- A `Head` never changes (except for `route`), so one object serves every request that came with the same bytes.

Theory of operation. httptools reads the head token by token. The rules about several fields together (framing, Host,
Expect) are checked here. Clients send the same head again and again: the second request with the same bytes costs one
look-up in `HeadParser`. In `Head.route` the owner keeps the result of its own look-up for that path.

This module does not read bodies, and does not look for the end of a head: `h1.py` does both.
"""

import re
from typing import Any

import httptools

from lessor.base import limits

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9])\.([0-9])\r\n")
_CHUNKED = -1  # Head.length of a chunked body

CACHED_HEADS_MAX = limits.H1_HEAD_CACHE_MAX
CACHED_HEAD_BYTES_MAX = limits.H1_HEAD_CACHE_BYTES_MAX
_LENGTH_DIGITS_MAX = 18  # so a length fits 64 bits
_REASON_CHARACTERS_MAX = 200


class RefusedError(Exception):
    """The peer's bytes are no request that we serve. Has the status and the reason to answer before the close."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Head:
    """The head of a request. `headers` has names in lower case, in the order in which they came.

    `length` is the size of the body in bytes: 0 for no body, -1 for a chunked one. `keep_alive`: whether the peer wants
    to keep the connection. `expects_continue`: the peer waits for 100 before it sends the body. `route` belongs to the
    owner.
    """

    __slots__ = (
        "expects_continue", "headers", "http_1_1", "keep_alive", "length", "method", "path", "query", "route", "target",
    )  # fmt: skip

    def __init__(self, method: str, target: bytes, headers: tuple[tuple[bytes, bytes], ...], http_1_1: bool) -> None:
        self.method = method
        self.target = target
        self.path, self.query = _split(method, target)
        self.headers = headers
        self.http_1_1 = http_1_1
        self.length = 0
        self.keep_alive = http_1_1
        self.expects_continue = False
        self.route: Any = None

    def get(self, name: bytes) -> bytes | None:
        """The value of the first header of that name (in lower case)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class HeadParser:
    """Parses heads and remembers the newest distinct ones. One object may serve all connections of a process."""

    __slots__ = ("_cached",)

    def __init__(self) -> None:
        self._cached: dict[bytes, Head] = {}

    def parse(self, block: bytes) -> Head:
        """Reads one head, from its request line to its empty line.

        Raises RefusedError with 400, 417, 501 or 505. Cost: one look-up when the same bytes came lately.
        """
        head = self._cached.get(block)
        if head is None:
            head = _parse(block)
            if len(block) <= CACHED_HEAD_BYTES_MAX:
                if len(self._cached) >= CACHED_HEADS_MAX:
                    self._cached.clear()
                self._cached[block] = head
        return head


class _Fields:
    """Takes the tokens that httptools finds."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def _parse(block: bytes) -> Head:
    line = _REQUEST_LINE.match(block)
    if line is None:
        raise RefusedError(400, "malformed request line")
    method, _, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise RefusedError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here, and HTTP/2 by its preface")
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        pass  # the owner accepts an upgrade or ignores it
    except httptools.HttpParserInvalidMethodError:
        raise RefusedError(501, "unknown method") from None
    except httptools.HttpParserError as error:
        _check_codings(fields.headers)  # an unknown coding is answered with 501
        raise RefusedError(400, _reason(error)) from None
    if not fields.complete:
        raise RefusedError(400, "malformed head")
    if method == b"CONNECT":
        raise RefusedError(501, "this is no proxy")
    head = Head(method.decode("ascii"), fields.target, tuple(fields.headers), minor == b"1")
    _set_framing(head)
    _set_connection(head)
    return head


def _split(method: str, target: bytes) -> tuple[str, str]:
    """Path and query of a target, which has the origin form, the absolute form, or is `*`."""
    text = target.decode("latin-1")
    if not text.startswith("/") and "://" in text:
        rest = text.partition("://")[2]
        cut = re.search(r"[/?#]", rest)
        text = rest[cut.start() :] if cut else "/"
        if not text.startswith("/"):
            text = "/" + text
    path, _, query = text.partition("#")[0].partition("?")
    return path, query


def _codings(headers: list[tuple[bytes, bytes]] | tuple[tuple[bytes, bytes], ...]) -> list[bytes]:
    values = [value for name, value in headers if name == b"transfer-encoding"]
    return [coding.strip(b" \t").lower() for value in values for coding in value.split(b",")]


def _check_codings(headers: list[tuple[bytes, bytes]] | tuple[tuple[bytes, bytes], ...]) -> bool:
    """Whether the body is chunked. Raises RefusedError when it has any other coding."""
    codings = _codings(headers)
    if not codings:
        return False
    if any(coding != b"chunked" for coding in codings):
        raise RefusedError(501, "unknown transfer coding; only chunked is read here")
    if len(codings) > 1:
        raise RefusedError(400, "body chunked twice")
    return True


def _set_framing(head: Head) -> None:
    """Sets where the body ends (RFC 9112 section 6). Raises RefusedError when two readers could disagree about it."""
    lengths = [value for name, value in head.headers if name == b"content-length"]
    chunked = _check_codings(head.headers)
    if chunked and lengths:
        raise RefusedError(400, "both Content-Length and Transfer-Encoding")
    if chunked and not head.http_1_1:
        raise RefusedError(400, "Transfer-Encoding in HTTP/1.0")
    if len(lengths) > 1:
        raise RefusedError(400, "more than one Content-Length")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) <= _LENGTH_DIGITS_MAX):
        raise RefusedError(400, "malformed Content-Length")
    head.length = _CHUNKED if chunked else int(lengths[0]) if lengths else 0


def _set_connection(head: Head) -> None:
    hosts = [value for name, value in head.headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and head.http_1_1):
        raise RefusedError(400, "an HTTP/1.1 request has exactly one Host header")
    for name, value in head.headers:
        if name == b"connection":
            options = {option.strip(b" \t").lower() for option in value.split(b",")}
            if b"close" in options:
                head.keep_alive = False
                break
            if b"keep-alive" in options:
                head.keep_alive = True
    expectations = [value.lower() for name, value in head.headers if name == b"expect"]
    if expectations and head.http_1_1:
        if expectations != [b"100-continue"]:
            raise RefusedError(417, "unknown expectation; only 100-continue is met here")
        head.expects_continue = head.length != 0


def _reason(error: httptools.HttpParserError) -> str:
    text = " ".join(str(part) for part in error.args) or "malformed head"
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)[:_REASON_CHARACTERS_MAX]
