# SPDX-License-Identifier: Apache-2.0
"""Pages need no token, so they may not cost much: /metrics is shared, and queries are bounded."""

from typing import Any, cast
from unittest import mock

import pytest

from lessor.base import limits
from lessor.server.observe import exposition
from lessor.server.observe.pages import Pages
from lessor.wire.h2 import encode_headers
from tests.attack.floods import WIDE, headers
from tests.unit.server.connection_world import Accepted, run
from tests.unit.server.lock_world import LockWorld


@pytest.fixture
def texts() -> Any:
    """The texts that were made, numbered."""
    made: list[bytes] = []

    def text(_self: Any) -> bytes:
        made.append(b"page %d" % len(made))
        return made[-1]

    with mock.patch.object(exposition.Exposition, "text", text):
        yield made


def test_the_page_of_metrics_is_made_once_in_a_while_however_often_it_is_asked_for(texts: list[bytes]) -> None:
    now_s = 0.0
    pages, core = Pages(lambda: now_s), LockWorld().core
    for method in ["GET", "HEAD"] * 100:
        assert pages.page(core, method, "/metrics", "").body == b"page 0"
        now_s += limits.METRICS_PAGE_S / 201
    assert len(texts) == 1
    now_s = limits.METRICS_PAGE_S
    assert pages.page(core, "GET", "/metrics", "any=thing").body == b"page 1"
    assert pages.page(core, "GET", "/metrics", "").body == b"page 1"
    assert len(texts) == 2


@pytest.mark.parametrize("over_http2", [False, True])
def test_requests_of_one_read_share_a_page(texts: list[bytes], over_http2: bool) -> None:
    head = encode_headers([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/metrics"), (b":authority", b"h")])

    async def steps() -> None:
        peer = Accepted()
        if over_http2:
            peer.receive(WIDE + b"".join(headers(2 * number + 1, head, end=True) for number in range(200)))
        else:
            peer.receive(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 200)
        for _ in range(300):
            peer.turn.end()
        assert peer.transport.written.count(b"page 0") == 200
        assert len(texts) == 1

    run(steps)


def test_an_open_request_for_a_page_keeps_none(texts: list[bytes]) -> None:
    head = encode_headers([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/metrics"), (b":authority", b"h")])

    async def steps() -> None:
        peer = Accepted()
        peer.receive(WIDE + headers(1, head))
        peer.turn.end()
        assert texts == []
        peer.receive(headers(1, encode_headers([(b"a", b"b")]), end=True))  # the end, as trailers
        peer.turn.end()
        assert peer.transport.written.count(b"page 0") == 1

    run(steps)


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/readyz/data_corruption", "/version", "/debug/vars"])
def test_a_query_is_bounded(path: str) -> None:
    pages, core = Pages(lambda: 0.0), cast(Any, LockWorld().core)
    core.committer.waiting_s = 0.0
    longest = "a&" * (limits.PAGE_QUERY_BYTES_MAX // 2)
    assert pages.page(core, "GET", path, longest).status == 200
    assert pages.page(core, "GET", path, longest + "a").status == 414
