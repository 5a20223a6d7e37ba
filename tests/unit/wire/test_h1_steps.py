# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.x in steps: long bodies in many chunks, and long replies."""

import pytest

from lessor.base import limits
from lessor.wire.h1 import ABORT, END, REQUEST, H1Connection
from tests.unit.wire.test_h1 import JSON, body_of, chunked, get, kinds, post

# --- steps ----------------------------------------------------------------------------------------------------------


CHUNKS = b"1\r\na\r\n2;x\r\nbc\r\n1\r\nd\r\n0\r\nDigest: 7\r\n\r\n"


@pytest.mark.parametrize("lines", [1, 2, 3, 5])
def test_a_chunked_body_in_steps_wherever_it_is_cut(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    """Bytes that come between two steps wait behind those that came before."""
    monkeypatch.setattr(limits, "H1_STEP_LINES", lines)
    data = chunked("/a", CHUNKS) + post("/b", b"e")
    for cut in range(len(data)):
        connection = H1Connection()
        events = connection.receive(data[:cut]) + connection.receive(data[cut:])
        while connection.unread:
            events += connection.go_on()
        assert body_of(events) == b"abcd"
        assert kinds(events).count(END) == 1
        assert connection.go_on() == []
        assert body_of(connection.reply(200, JSON, b"")) == b"e"
        assert not connection.closing


def test_steps_of_a_body_whose_reply_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H1_STEP_LINES", 1)
    connection = H1Connection()
    connection.receive(chunked("/a", CHUNKS) + get("/b"))
    connection.reply(400, JSON, b"")
    events = []
    while connection.unread:
        events += connection.go_on()
    assert kinds(events) == [REQUEST, END]
    assert events[0][1].path == "/b"


def test_a_fault_between_steps_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "H1_STEP_LINES", 1)
    connection = H1Connection()
    connection.receive(chunked("/a", b"1\r\na\r\nx\r\n" + CHUNKS))
    events = []
    while connection.unread:
        events += connection.go_on()
    assert kinds(events)[-1] == ABORT
    assert connection.closing


def test_empty_lines_before_a_request_are_skipped_however_many() -> None:
    connection = H1Connection()
    assert kinds(connection.receive(b"\r\n" * 100_000 + get("/a"))) == [REQUEST, END]


# --- long replies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_long_reply_comes_in_pieces_and_others_behind_it(version: str) -> None:
    body = bytes(range(256)) * (limits.SEND_STEP_BYTES // 100)
    connection = H1Connection()
    connection.receive(get("/a", b"Connection: keep-alive\r\n", version))
    connection.reply(200, JSON, body)
    connection.receive(get("/b", b"", version))
    connection.reply(200, JSON, b"{}")
    assert connection.closing is (version == "1.0")
    pieces: list[bytes] = []
    while connection.has_output:
        assert connection.unsent or len(pieces) > 2
        pieces.append(connection.take_output())
        assert len(pieces[-1]) <= limits.SEND_STEP_BYTES + 1_000
    assert not connection.unsent
    first, second = b"".join(pieces).split(b"HTTP/")[1:]
    assert first.partition(b"\r\n\r\n")[2] == body
    assert second.partition(b"\r\n\r\n")[2] == b"{}"
