# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 under random requests cut anywhere, and under garbage.

Goal: what comes out does not depend on how the bytes were cut, each request is delivered once, whole and in order, and
whatever a peer sends, the events keep their grammar and the output stays a row of well-formed replies.
"""

import http.client
import io
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lessor.wire import h1
from lessor.wire.h1 import ABORT, BODY, END, REQUEST, Event, H1Connection

PATHS = ["/", "/v3/lease/grant", "/v3/kv/put?x=y", "http://h/v3/watch"]


class Request(NamedTuple):
    """One request; `sizes` cut a chunked body, None means a body with a length."""

    target: str
    body: bytes
    sizes: tuple[int, ...] | None

    def encoded(self) -> bytes:
        head = b"POST %b HTTP/1.1\r\nHost: h\r\n" % self.target.encode()
        if self.sizes is None:
            return head + b"Content-Length: %d\r\n\r\n%b" % (len(self.body), self.body)
        out = head + b"Transfer-Encoding: chunked\r\n\r\n"
        rest = self.body
        for size in self.sizes:
            piece, rest = rest[:size], rest[size:]
            if piece:
                out += b"%x;e=1\r\n%b\r\n" % (len(piece), piece)
        if rest:
            out += b"%X\r\n%b\r\n" % (len(rest), rest)
        return out + b"0\r\nT: x\r\n\r\n"


# Bodies that look like requests and chunks, so that a wrong idea of where a body ends shows.
bodies = st.binary(max_size=20) | st.sampled_from([b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n"])
requests = st.builds(
    Request, st.sampled_from(PATHS), bodies, st.none() | st.lists(st.integers(1, 8), max_size=4).map(tuple)
)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted(min(cut, len(data)) for cut in cuts)
    return [data[start:stop] for start, stop in zip([0, *edges], [*edges, len(data)], strict=True)]


class Owner:
    """Serves a connection: answers each request when it is whole, with its body. Checks the grammar of the events."""

    def __init__(self, connection: H1Connection, early: bool = False) -> None:
        self.connection = connection
        self.early = early  # answer at REQUEST instead
        self.served: list[tuple[str, bytes]] = []
        self.current: h1.Request | None = None
        self.body = b""
        self.output = b""

    def feed(self, data: bytes) -> None:
        self.handle(self.connection.receive(data))
        self.output += self.connection.take_output()

    def handle(self, events: list[Event]) -> None:
        queue = list(events)
        while queue:
            kind, request, data = queue.pop(0)
            if kind == REQUEST:
                assert self.current is None
                self.current = request
                self.body = b""
                if self.early:
                    self.current = None
                    # The rest of this request's events were made before it was answered.
                    rest = [event for event in queue if event[1] is not request]
                    queue = rest + self.answer(request)
                continue
            assert request is self.current
            if kind == BODY:
                assert data
                self.body += data
            else:
                assert kind in (END, ABORT)
                self.current = None
                if kind == END:
                    queue += self.answer(request)

    def answer(self, request: h1.Request) -> list[Event]:
        self.served.append((request.target.decode("latin-1"), self.body))
        if len(self.served) % 2:
            return self.connection.reply(200, b"", self.body)
        self.connection.start(200, b"")
        self.connection.write(self.body)
        return self.connection.finish()


class _Socket:
    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream

    def makefile(self, *_: Any) -> io.BytesIO:
        return self._stream


class _Unclosed(io.BytesIO):
    def close(self) -> None:
        """The client closes its file after each reply; the next reply follows in the same stream."""


def replies_in(output: bytes) -> list[tuple[int, bytes]]:
    """The output, read to its end by the standard library's client."""
    stream = _Unclosed(output)
    replies = []
    while stream.tell() < len(output):
        response = http.client.HTTPResponse(_Socket(stream))  # type: ignore[arg-type]
        response.begin()
        replies.append((response.status, response.read()))
    return replies


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(requests, min_size=1, max_size=5), st.lists(st.integers(0, 800), max_size=8))
def test_requests_come_out_as_they_went_in(sent: list[Request], cuts: list[int]) -> None:
    owner = Owner(H1Connection())
    for piece in pieces_of(b"".join(request.encoded() for request in sent), cuts):
        owner.feed(piece)
    assert owner.served == [(request.target, request.body) for request in sent]
    assert replies_in(owner.output) == [(200, request.body) for request in sent]
    assert not owner.connection.closing
    assert owner.connection.waiting_bytes == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=5), st.lists(st.integers(0, 800), max_size=8))
def test_what_is_left_of_answered_requests_is_drained(sent: list[Request], cuts: list[int]) -> None:
    owner = Owner(H1Connection(), early=True)
    for piece in pieces_of(b"".join(request.encoded() for request in sent), cuts):
        owner.feed(piece)
    assert [target for target, _ in owner.served] == [request.target for request in sent]
    assert replies_in(owner.output) == [(200, b"")] * len(sent)
    assert not owner.connection.closing


tokens = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"Host: h\r\n", b"\r\n", b"\n", b"\r",
        b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n",
        b"\x00", b"X:", b" ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Expect: x\r\n", b"CONNECT a:1 HTTP/1.1\r\n",
    ]
)  # fmt: skip
garbage = st.lists(tokens | st.binary(max_size=6), max_size=14).map(b"".join)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(garbage, st.lists(st.integers(0, 200), max_size=5), st.booleans())
@example(b"\r\n\x00", [1], False)
def test_garbage_is_served_or_refused(data: bytes, cuts: list[int], ends: bool) -> None:
    outcomes = []
    for pieces in ([data], pieces_of(data, cuts)):
        owner = Owner(H1Connection(body_bytes_max=50))
        for piece in pieces:
            owner.feed(piece)
        if ends:
            owner.handle(owner.connection.receive_eof())
            owner.feed(b"")
            assert owner.connection.closing
            assert owner.current is None
        replies = replies_in(owner.output)
        assert [status for status, _ in replies[: len(owner.served)]] == [200] * len(owner.served)
        # At most one refusal, and nothing after it.
        assert len(replies) - len(owner.served) in (0, 1)
        assert len(replies) == len(owner.served) or owner.connection.closing
        outcomes.append((owner.served, replies, owner.connection.closing))
    assert outcomes[0] == outcomes[1]
