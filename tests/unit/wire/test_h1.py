# SPDX-License-Identifier: Apache-2.0
"""The server's side of HTTP/1.x: what reaches the owner, what reaches the peer, and what is refused."""

import http.client
import io
from typing import Any

import pytest

from lessor.base import limits
from lessor.wire.h1 import (
    ABORT,
    BODY,
    DRAIN_BYTES_MAX,
    END,
    REQUEST,
    WAITING_BYTES_MAX,
    Event,
    H1Connection,
    Request,
    SharedHeaders,
    encode_headers,
)

JSON = encode_headers([(b"content-type", b"application/json")])
HOST = b"Host: h\r\n"


def post(path: str, body: bytes, headers: bytes = b"", version: str = "1.1") -> bytes:
    return b"POST %b HTTP/%b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
        path.encode(), version.encode(), HOST, headers, len(body), body,
    )  # fmt: skip


def chunked(path: str, coded: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (path.encode(), HOST, coded)


def get(path: str, headers: bytes = b"", version: str = "1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (path.encode(), version.encode(), HOST, headers)


def kinds(events: list[Event]) -> list[int]:
    return [kind for kind, _, _ in events]


def body_of(events: list[Event]) -> bytes:
    return b"".join(data for kind, _, data in events if kind == BODY)


class _Socket:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def read_reply(data: bytes, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Read a reply with the standard library's client."""
    response = http.client.HTTPResponse(_Socket(data), method=method)  # type: ignore[arg-type]
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def refused(data: bytes, **options: Any) -> int:
    """The status with which a connection refuses these bytes; asserts that it closes and says why in plain text."""
    connection = H1Connection(**options)
    events = connection.receive(data)
    assert REQUEST not in kinds(events) or ABORT in kinds(events)
    assert connection.closing
    status, headers, body = read_reply(connection.take_output())
    assert headers["connection"] == "close"
    assert headers["content-type"].startswith("text/plain")
    assert body.endswith(b"\n")
    assert len(body) > 1
    return status


# --- requests -----------------------------------------------------------------------------------------------------


def test_small_post_in_one_read() -> None:
    connection = H1Connection()
    events = connection.receive(post("/v3/lease/grant?x=1#frag", b'{"TTL":"5"}', b"X-Token: A b \r\n"))
    assert kinds(events) == [REQUEST, BODY, END]
    request = events[0][1]
    assert (request.method, request.path, request.query) == ("POST", "/v3/lease/grant", "x=1")
    assert request.target == b"/v3/lease/grant?x=1#frag"
    assert request.headers == ((b"host", b"h"), (b"x-token", b"A b"), (b"content-length", b"11"))
    assert request.get(b"x-token") == b"A b"
    assert request.get(b"x-other") is None
    assert request.keep_alive
    assert request.owner is None
    assert body_of(events) == b'{"TTL":"5"}'
    assert all(event[1] is request is connection.request for event in events)
    assert connection.reply(200, JSON, b"{}") == []
    assert connection.take_output() == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert not connection.closing
    assert connection.request is None


SCRIPTS = {
    "length": (post("/a", b"hello"), "/a", b"hello"),
    "no body": (get("/b"), "/b", b""),
    "empty body": (post("/c", b""), "/c", b""),
    "chunked": (chunked("/d", b"2\r\nab\r\n03;name=\"v\"\r\ncde\r\n0\r\nDigest: x\r\nA:\r\n\r\n"), "/d", b"abcde"),
    "empty lines first": (b"\r\n\r\n" + get("/e"), "/e", b""),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_request_cut_at_every_offset(name: str) -> None:
    """With another request behind it, so that the end of the first is found exactly."""
    data, path, body = SCRIPTS[name]
    data += get("/next")
    for cut in range(len(data) + 1):
        connection = H1Connection()
        events = connection.receive(data[:cut]) + connection.receive(data[cut:])
        assert (kinds(events)[0], kinds(events)[-1]) == (REQUEST, END), cut
        assert events[0][1].path == path
        assert body_of(events) == body
        following = connection.reply(200, b"", b"")
        assert kinds(following) == [REQUEST, END], cut
        assert following[0][1].path == "/next"


@pytest.mark.parametrize("name", SCRIPTS)
def test_request_byte_by_byte(name: str) -> None:
    data, path, body = SCRIPTS[name]
    connection = H1Connection()
    events = [event for byte in data for event in connection.receive(bytes([byte]))]
    assert events[0][1].path == path
    assert body_of(events) == body
    assert kinds(events)[-1] == END


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://h:2379/v3/kv/put?a=b", "/v3/kv/put", "a=b"),
        ("http://h", "/", ""),
        ("http://h?q", "/", "q"),
        ("https://h/x#y", "/x", ""),
        ("/a%20b", "/a%20b", ""),
        ("//v3/kv", "//v3/kv", ""),
        ("/x?u=http://y/z", "/x", "u=http://y/z"),
    ],
)
def test_forms_of_targets(target: str, path: str, query: str) -> None:
    request = H1Connection().receive(get(target))[0][1]
    assert (request.path, request.query, request.target) == (path, query, target.encode())


def test_options_of_the_whole_server() -> None:
    request = H1Connection().receive(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n")[0][1]
    assert (request.method, request.path) == ("OPTIONS", "*")


def test_upgrade_requests_are_delivered_as_they_came() -> None:
    connection = H1Connection()
    events = connection.receive(get("/v3/watch", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
    assert kinds(events) == [REQUEST, END]
    assert events[0][1].get(b"upgrade") == b"websocket"
    # One that is not taken is answered like any other request, and the connection lives on.
    assert kinds(connection.receive(get("/x"))) == []
    assert kinds(connection.reply(200, JSON, b"{}")) == [REQUEST, END]


def test_equal_heads_share_what_the_owner_keeps_with_the_route() -> None:
    connection = H1Connection()
    first = connection.receive(post("/a", b"x"))[0][1]
    first.head.route = "found"
    connection.reply(200, b"", b"")
    second = connection.receive(post("/a", b"y"))[0][1]
    assert second.head.route == "found"
    assert second is not first


# --- pipelining ---------------------------------------------------------------------------------------------------


def test_pipelined_requests_come_one_by_one_and_are_answered_in_order() -> None:
    connection = H1Connection()
    events = connection.receive(get("/0") + post("/1", b"one") + get("/2"))
    paths = []
    while events:
        paths.append(events[0][1].path)
        assert kinds(events)[0] == REQUEST
        assert kinds(events)[-1] == END
        events = connection.reply(200, b"", paths[-1].encode())
    assert paths == ["/0", "/1", "/2"]
    assert [part[-2:] for part in connection.take_output().split(b"HTTP/1.1 200 OK\r\n")[1:]] == [b"/0", b"/1", b"/2"]


def test_reading_pauses_while_too_much_waits() -> None:
    connection = H1Connection()
    connection.receive(get("/first"))
    assert not connection.paused
    small = get("/more")
    count = WAITING_BYTES_MAX // len(small) + 1
    connection.receive(small * count)
    assert connection.paused
    seen = 0
    events = connection.reply(200, b"", b"")
    while events:
        seen += 1
        events = connection.reply(200, b"", b"")
    assert seen == count
    assert not connection.paused
    assert connection.waiting_bytes == 0


def test_later_bytes_are_dropped_when_the_peer_asked_to_close() -> None:
    connection = H1Connection()
    connection.receive(get("/a", b"Connection: close\r\n") + get("/b"))
    assert connection.reply(200, b"", b"") == []
    assert connection.closing
    assert connection.receive(get("/c")) == []
    assert b"Connection: close\r\n" in connection.take_output()


def test_a_malformed_second_request_waits_for_the_first_reply() -> None:
    connection = H1Connection()
    assert kinds(connection.receive(get("/a") + b"nonsense\r\n\r\n")) == [REQUEST, END]
    assert not connection.has_output
    assert connection.reply(200, b"", b"first") == []
    first, _, second = connection.take_output().partition(b"first")
    assert read_reply(first + b"first")[0] == 200
    assert read_reply(second)[0] == 400
    assert connection.closing


# --- replies ------------------------------------------------------------------------------------------------------


def test_chunked_reply() -> None:
    connection = H1Connection()
    connection.receive(get("/"))
    connection.start(200, JSON)
    connection.write(b"first\n")
    connection.write(b"")
    connection.write(b"x" * 300)
    assert connection.finish() == []
    output = connection.take_output()
    assert b"\r\n\r\n6\r\nfirst\n\r\n12c\r\n" in output
    status, headers, body = read_reply(output)
    assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"first\n" + b"x" * 300)
    assert not connection.closing


def test_http_1_0_reply_without_length_ends_with_the_connection() -> None:
    connection = H1Connection()
    connection.receive(get("/", b"Connection: keep-alive\r\n", version="1.0"))
    connection.start(200, b"")
    connection.write(b"stream")
    connection.finish()
    assert connection.take_output() == b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nstream"
    assert connection.closing


@pytest.mark.parametrize(
    ("version", "asked", "kept"),
    [
        ("1.0", b"", False),
        ("1.0", b"Connection: keep-alive\r\n", True),
        ("1.0", b"Connection: Keep-Alive, X\r\n", True),
        ("1.0", b"Connection: keep-alive\r\nConnection: close\r\n", False),
        ("1.1", b"", True),
        ("1.1", b"Connection: CLOSE\r\n", False),
        ("1.1", b"Connection: keep-alive, close\r\n", False),
        ("1.1", b"Connection: closed\r\n", True),
    ],
)
def test_keep_alive(version: str, asked: bytes, kept: bool) -> None:
    connection = H1Connection()
    request = connection.receive(get("/", asked, version))[0][1]
    assert request.keep_alive is kept
    connection.reply(200, b"", b"ok")
    output = connection.take_output()
    assert connection.closing is not kept
    assert (b"Connection: close" in output) is not kept
    assert (b"Connection: keep-alive" in output) is (kept and version == "1.0")
    assert output.startswith(b"HTTP/%b 200 OK" % version.encode())


def test_head_has_the_length_and_no_body() -> None:
    for streamed in (False, True):
        connection = H1Connection()
        connection.receive(b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n" + get("/next"))
        if streamed:
            connection.start(200, b"")
            connection.write(b"body")
            events = connection.finish()
        else:
            events = connection.reply(200, b"", b"body")
        assert kinds(events) == [REQUEST, END]
        output = connection.take_output()
        assert output.endswith(b"\r\n\r\n")
        assert streamed or b"Content-Length: 4\r\n" in output


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body(status: int) -> None:
    for streamed in (False, True):
        connection = H1Connection()
        connection.receive(get("/"))
        if streamed:
            connection.start(status, b"")
            connection.write(b"dropped")
            connection.finish()
        else:
            connection.reply(status, b"", b"")
        output = connection.take_output()
        assert output.endswith(b"\r\n\r\n")
        assert b"Transfer-Encoding" not in output
        assert b"Content-Length" not in output
        assert not connection.closing


def test_a_reply_keeps_to_its_announced_length() -> None:
    connection = H1Connection()
    connection.receive(get("/"))
    connection.start(200, b"", 3)
    connection.write(b"ab")
    with pytest.raises(ValueError, match="longer"):
        connection.write(b"cd")
    connection.finish()  # short: only the end of the connection can tell the peer
    assert connection.closing


def test_a_second_reply_is_a_bug_of_the_owner() -> None:
    connection = H1Connection()
    connection.receive(get("/"))
    with pytest.raises(RuntimeError):
        connection.write(b"x")
    with pytest.raises(RuntimeError):
        connection.finish()
    connection.start(200, b"", 0)
    with pytest.raises(RuntimeError):
        connection.start(200, b"", 0)
    with pytest.raises(RuntimeError):
        connection.reply(200, b"", b"")


def test_shared_headers_stand_in_every_reply() -> None:
    shared = SharedHeaders(b"Date: then\r\n")
    connection = H1Connection(shared=shared)
    connection.receive(get("/"))
    connection.reply(200, b"", b"")
    shared.block = b"Date: now\r\n"
    connection.receive(get("/"))
    connection.start(200, b"")
    connection.finish()
    connection.receive(b"bad\r\n\r\n")
    assert connection.take_output().count(b"Date: then\r\n") == 1
    connection = H1Connection(shared=shared)
    connection.receive(b"bad\r\n\r\n")
    assert b"Date: now\r\n" in connection.take_output()


def test_headers_are_spelt_as_usual_and_cannot_be_split() -> None:
    assert encode_headers([(b"grpc-metadata-content-type", b"a"), (b"X-Y", b"b")]) == (
        b"Grpc-Metadata-Content-Type: a\r\nX-Y: b\r\n"
    )
    for value in (b"a\r\nSet-Cookie: b", b"a\nb", b"a\r"):
        with pytest.raises(ValueError, match="line break"):
            encode_headers([(b"location", value)])


def test_reply_before_the_request_is_whole_drains_a_small_rest() -> None:
    connection = H1Connection()
    data = post("/a", b"x" * 1000)
    connection.receive(data[:-600])
    assert connection.reply(400, b"", b"no") == []
    assert not connection.closing
    assert connection.receive(data[-600:-1]) == []
    assert kinds(connection.receive(data[-1:] + get("/b"))) == [REQUEST, END]
    assert connection.request is not None
    assert connection.request.path == "/b"


def test_reply_before_a_large_request_is_whole_closes() -> None:
    connection = H1Connection()
    head = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (DRAIN_BYTES_MAX + 1)
    connection.receive(head)
    connection.reply(400, b"", b"no")
    assert connection.closing
    assert b"Connection: close\r\n" in connection.take_output()


def test_reply_before_a_chunked_request_is_whole_drains_to_a_bound() -> None:
    connection = H1Connection(body_bytes_max=10)
    connection.receive(chunked("/", b"3\r\nabc\r\n"))
    connection.start(200, b"")
    connection.finish()
    assert connection.receive(b"14\r\n" + b"x" * 20 + b"\r\n") == []  # no limit of the owner's counts here
    assert kinds(connection.receive(b"0\r\n\r\n" + chunked("/b", b"1\r\na\r\n"))) == [REQUEST, BODY]
    connection.reply(200, b"", b"")
    connection.take_output()
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    for _ in range(DRAIN_BYTES_MAX // 0x4000):
        connection.receive(piece)
        assert not connection.closing
    connection.receive(piece)
    assert connection.closing
    assert not connection.has_output


def test_malformed_rest_after_the_reply_only_closes() -> None:
    connection = H1Connection()
    connection.receive(chunked("/", b"3\r\nabc\r\n"))
    connection.reply(200, b"", b"done")
    connection.take_output()
    assert connection.receive(b"zzz\r\n") == []
    assert connection.closing
    assert not connection.has_output


def test_bidirectional_stream() -> None:
    connection = H1Connection()
    events = connection.receive(chunked("/v3/lease/keepalive", b"2\r\n{}\r\n"))
    assert kinds(events) == [REQUEST, BODY]
    connection.start(200, JSON)
    connection.write(b"one\n")
    assert b"4\r\none\n\r\n" in connection.take_output()
    assert body_of(connection.receive(b"2\r\n[]\r\n")) == b"[]"
    connection.write(b"two\n")
    assert kinds(connection.receive(b"0\r\n\r\n")) == [END]
    connection.finish()
    assert connection.take_output() == b"4\r\ntwo\n\r\n0\r\n\r\n"
    assert not connection.closing


# --- Expect -------------------------------------------------------------------------------------------------------

EXPECT = b"POST /a HTTP/1.1\r\n" + HOST + b"Expect: 100-Continue\r\nContent-Length: 2\r\n\r\n"


def test_continue_is_sent_when_the_owner_is_ready() -> None:
    connection = H1Connection()
    assert kinds(connection.receive(EXPECT)) == [REQUEST]
    assert not connection.has_output
    connection.accept_body()
    connection.accept_body()
    assert connection.take_output() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert kinds(connection.receive(b"ab")) == [BODY, END]
    connection.reply(200, b"", b"")
    assert not connection.closing


def test_no_continue_when_the_body_came_anyway() -> None:
    connection = H1Connection()
    assert kinds(connection.receive(EXPECT + b"a")) == [REQUEST, BODY]
    connection.accept_body()
    assert not connection.has_output


def test_final_reply_without_continue_closes() -> None:
    """Whether the next bytes are the body or another request cannot be known."""
    for length in (2, None):
        connection = H1Connection()
        connection.receive(EXPECT)
        connection.start(403, b"", length)
        connection.write(b"no")
        connection.finish()
        assert connection.closing


def test_other_expectations_fail() -> None:
    assert refused(b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 200-ok\r\nContent-Length: 2\r\n\r\n") == 417


def test_http_1_0_knows_no_expectations() -> None:
    connection = H1Connection()
    connection.receive(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    connection.accept_body()
    assert not connection.has_output


# --- limits -------------------------------------------------------------------------------------------------------


def test_announced_body_over_the_limit() -> None:
    assert refused(post("/", b"12345"), body_bytes_max=4) == 413
    assert kinds(H1Connection(body_bytes_max=5).receive(post("/", b"12345"))) == [REQUEST, BODY, END]


def test_body_that_grows_over_the_limit_is_aborted() -> None:
    connection = H1Connection(body_bytes_max=4)
    assert kinds(connection.receive(chunked("/", b"4\r\nabcd\r\n"))) == [REQUEST, BODY]
    assert kinds(connection.receive(b"1\r\ne\r\n")) == [ABORT]
    assert read_reply(connection.take_output())[0] == 413
    assert connection.closing
    assert connection.reply(200, b"", b"too late") == []
    assert not connection.has_output


def test_limit_by_request() -> None:
    asked: list[str] = []

    def limit(request: Request) -> int | None:
        asked.append(request.path)
        request.owner = "mine"
        return None if request.path == "/stream" else 2

    connection = H1Connection(body_bytes_max=limit)
    events = connection.receive(chunked("/stream", b"5\r\nabcde\r\n0\r\n\r\n"))
    assert kinds(events) == [REQUEST, BODY, END]
    assert events[0][1].owner == "mine"
    connection.reply(200, b"", b"")
    assert connection.receive(post("/unary", b"abc")) == []
    assert connection.closing
    assert asked == ["/stream", "/unary"]


def test_head_over_the_limit() -> None:
    line = b"X-Filler: " + b"x" * 1000 + b"\r\n"
    head = b"GET / HTTP/1.1\r\n" + HOST + line * (limits.H1_HEAD_BYTES_MAX // len(line) + 1)
    assert refused(head + b"\r\n") == 431
    assert refused(head) == 431
    connection = H1Connection()
    for at in range(0, len(head), 777):
        connection.receive(head[at : at + 777])
    assert connection.closing
    assert read_reply(connection.take_output())[0] == 431


def test_head_refusal_of_a_head_request_has_no_body() -> None:
    connection = H1Connection(body_bytes_max=1)
    connection.receive(b"HEAD / HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n")
    assert connection.take_output().endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "coded",
    [
        b"x\r\n", b"\r\n", b" 1\r\na\r\n", b"1 \r\na\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1\na\r\n",
        b"1\r\nab\r\n", b"1\r\na\n0\r\n\r\n", b"fffffffffffffffff\r\n", b"1;a\rb\r\n", b"1;" + b"a" * 300 + b"\r\n",
        b"a" * 300, b"0\r\nbad trailer\r\n\r\n", b"0\r\n : x\r\n\r\n", b"0\r\n\n", b"0\r\nA: b\n\r\n", b"1_0\r\n",
        b"0\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 70,
    ],
)  # fmt: skip
def test_malformed_chunks(coded: bytes) -> None:
    assert refused(chunked("/", coded)) == 400
    connection = H1Connection()
    for byte in chunked("/", coded)[:2000]:
        connection.receive(bytes([byte]))
    assert connection.closing or len(coded) > 1000


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        # Framing that two readers could understand in two ways.
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3 4\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length\x00: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\n Content-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nX: a\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nX: a\rContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\nHost: h\n\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\n\nGET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        # Requests that are none.
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        # Requests that others may serve.
        (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"FOO / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        (b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    ],
)  # fmt: skip
def test_refusals(data: bytes, status: int) -> None:
    assert refused(data) == status
    connection = H1Connection()
    for byte in data:
        assert ABORT not in kinds(connection.receive(bytes([byte])))
    assert connection.closing
    assert read_reply(connection.take_output())[0] == status


# --- the end of a connection --------------------------------------------------------------------------------------


def test_end_of_input_on_an_idle_connection() -> None:
    for start in (b"", b"GET / HT", get("/")):
        connection = H1Connection()
        if connection.receive(start):
            connection.reply(200, b"", b"")
            connection.take_output()
        assert connection.receive_eof() == []
        assert connection.closing
        assert not connection.has_output


def test_end_of_input_inside_a_body_aborts() -> None:
    connection = H1Connection()
    request = connection.receive(post("/", b"ab")[:-1])[0][1]
    assert connection.receive_eof() == [(ABORT, request, b"")]
    assert connection.closing
    assert connection.receive_eof() == []
    connection.start(200, b"")
    connection.write(b"x")
    assert connection.finish() == []
    assert not connection.has_output


@pytest.mark.parametrize("rest", [b"", b"GET /part"])
def test_peer_that_closed_its_side_still_gets_its_replies(rest: bytes) -> None:
    connection = H1Connection()
    connection.receive(get("/a") + get("/b") + rest)
    assert connection.receive_eof() == []
    assert not connection.closing
    assert kinds(connection.reply(200, b"", b"")) == [REQUEST, END]
    assert connection.reply(200, b"", b"") == []
    assert connection.closing
    assert connection.take_output().count(b"200 OK") == 2


def test_drain_ends_the_connection_after_the_exchange_in_progress() -> None:
    connection = H1Connection()
    connection.drain()
    assert connection.closing
    connection = H1Connection()
    connection.receive(get("/a") + get("/b"))
    connection.drain()
    assert not connection.closing
    assert connection.reply(200, b"", b"") == []
    assert connection.closing
    assert b"Connection: close" in connection.take_output()


def test_an_aborted_reply_has_no_end() -> None:
    connection = H1Connection()
    connection.receive(get("/"))
    connection.start(200, b"")
    connection.write(b"half")
    connection.abort()
    assert connection.closing
    with pytest.raises(http.client.IncompleteRead):
        read_reply(connection.take_output())


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\xc8", b"\x00", b"\n", b"{", b"\r\n\x80"])
def test_what_cannot_become_a_request_is_refused_before_its_end(first: bytes) -> None:
    connection = H1Connection()
    assert connection.receive(first) == []
    assert connection.closing
    assert read_reply(connection.take_output())[0] == 400


@pytest.mark.parametrize("first", [b"G", b"\r", b"\r\n", b"\r\n\r"])
def test_the_beginning_of_a_request_is_waited_for(first: bytes) -> None:
    connection = H1Connection()
    assert connection.receive(first) == []
    assert not connection.closing
