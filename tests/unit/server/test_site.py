# SPDX-License-Identifier: Apache-2.0
"""The page for people: which paths it has, what its headers say, and that its files keep the rules of the page."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

from lessor.server.command import parse
from lessor.server.observe.pages import Pages
from lessor.server.observe.site import Site
from lessor.wire.h2 import encode_headers
from tests.attack.floods import WIDE, headers
from tests.unit.server.connection_world import Accepted, run

WEB = Path(__file__).resolve().parents[3] / "src" / "lessor" / "web"
SCRIPTS = sorted((WEB / "js").rglob("*.js"))
HTML = b"text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def site() -> Site:
    return Site()


def header(answer: object, name: bytes) -> bytes | None:
    return dict(answer.headers).get(name)  # type: ignore[attr-defined]


def exchanged(request: bytes, *, ui: bool = True) -> bytes:
    """All that a server with the page answers to bytes of HTTP/1.1."""
    written = b""

    async def steps() -> None:
        nonlocal written
        peer = Accepted()
        peer.connection.core.pages = Pages(peer.turn.read_clock, ui=ui)
        peer.receive(request)
        for _ in range(50):
            peer.turn.end()
        written = bytes(peer.transport.written)

    run(steps)
    return written


def test_a_browser_is_led_from_the_root_to_the_page() -> None:
    reply = exchanged(b"GET / HTTP/1.1\r\nHost: h\r\nAccept: %b\r\n\r\n" % HTML)
    assert reply.startswith(b"HTTP/1.1 307 ")
    assert b"\r\nlocation: ui/\r\n" in reply.lower()  # relative: a proxy may put a path before it


@pytest.mark.parametrize("accept", [b"", b"Accept: */*\r\n", b"Accept: application/json\r\n"])
def test_an_api_client_at_the_root_gets_what_it_gets_from_etcd(accept: bytes) -> None:
    request = b"GET / HTTP/1.1\r\nHost: h\r\n" + accept + b"\r\n"
    reply = exchanged(request)
    assert reply.startswith(b"HTTP/1.1 404 ")
    assert re.sub(rb"Date: .*", b"", reply) == re.sub(rb"Date: .*", b"", exchanged(request, ui=False))


@pytest.mark.parametrize("verb", [b"POST", b"PUT", b"DELETE", b"OPTIONS"])
def test_other_verbs_at_the_root_are_as_without_the_page(verb: bytes) -> None:
    request = verb + b" / HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\nContent-Length: 0\r\n\r\n"
    assert re.sub(rb"Date: .*", b"", exchanged(request)) == re.sub(rb"Date: .*", b"", exchanged(request, ui=False))


def test_the_page_is_whole_and_head_is_its_head() -> None:
    index = (WEB / "index.html").read_bytes()
    reply = exchanged(b"GET /ui/ HTTP/1.1\r\nHost: h\r\n\r\n")
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == index
    reply = exchanged(b"HEAD /ui/ HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"content-length: %d\r\n" % len(index) in reply.lower() + b"\r\n"
    assert reply.partition(b"\r\n\r\n")[2] == b""


def test_over_http2_too() -> None:
    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/ui/icon.svg"), (b":authority", b"h")]

    async def steps() -> None:
        peer = Accepted()
        peer.connection.core.pages = Pages(peer.turn.read_clock, ui=True)
        peer.receive(WIDE + headers(1, encode_headers(fields), end=True))
        for _ in range(50):
            peer.turn.end()
        assert (WEB / "icon.svg").read_bytes() in bytes(peer.transport.written)

    run(steps)


@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_files_take_get_and_head_alone(site: Site, verb: str) -> None:
    answer = site.page(verb, "/ui/style.css")
    assert answer.status == 405
    assert header(answer, b"allow") == b"GET, HEAD"


def test_a_file_that_the_browser_has_is_not_sent_again(site: Site) -> None:
    whole = site.page("GET", "/ui/style.css")
    tag = header(whole, b"etag")
    assert tag is not None
    for seen in (tag, b"W/" + tag, b'"other", ' + tag):
        again = site.page("GET", "/ui/style.css", if_none_match=seen)
        assert (again.status, again.body) == (304, b"")
        assert header(again, b"etag") == tag
    assert site.page("GET", "/ui/style.css", if_none_match=b'"other"').body == whole.body
    assert header(whole, b"cache-control") == b"no-cache"


def test_each_file_forbids_all_that_the_page_does_not_do(site: Site) -> None:
    assert len(site.paths) > 20
    for path in site.paths:
        answer = site.page("GET", path, accept=HTML)
        policy = header(answer, b"content-security-policy") or b""
        assert {b"default-src 'none'", b"script-src 'self'", b"frame-ancestors 'none'", b"base-uri 'none'"} <= set(
            policy.split(b"; ")
        )
        assert b"unsafe" not in policy
        assert header(answer, b"x-content-type-options") == b"nosniff"
        assert header(answer, b"referrer-policy") == b"no-referrer"
        assert header(answer, b"access-control-allow-origin") is None


@pytest.mark.parametrize(
    "path",
    [
        *("/ui/../pyproject.toml", "/ui/%2e%2e/__init__.py", "/ui//style.css", "/ui/js", "/ui/js/", "/ui/index.html"),
        *("/ui/vendor/uplot/NOTICE", "/ui/style.css/", "/UI/", "//ui/", "/ui/js/..%2fstyle.css", "/ui/style.css%00"),
    ],
)
def test_nothing_but_the_files_is_served(site: Site, path: str) -> None:
    assert path not in site.paths
    assert exchanged(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode()).split(b" ")[1] in (b"404", b"307", b"400")


def test_a_switch_turns_it_off() -> None:
    assert parse([]).ui
    assert not parse(["--ui=false"]).ui
    assert exchanged(b"GET /ui/ HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n\r\n", ui=False).startswith(b"HTTP/1.1 404")


def test_the_vendored_files_are_those_of_their_notice() -> None:
    folder = WEB / "vendor" / "uplot"
    told = re.findall(r"^  ([0-9a-f]{64})  (\S+)$", (folder / "NOTICE").read_text(), re.MULTILINE)
    files = [file for file in folder.iterdir() if file.name != "NOTICE"]
    assert sorted(told) == sorted((sha256(file.read_bytes()).hexdigest(), file.name) for file in files)


def test_no_text_can_become_markup() -> None:
    """The browser refuses these too (Trusted Types); here they are found before it has to."""
    sinks = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc")
    assert [(file.name, found[0]) for file in SCRIPTS for found in sinks.finditer(file.read_text())] == []


def test_nothing_outside_of_the_page_is_named() -> None:
    addresses = re.compile(
        r"""(?:src|href)=["'](?!js/|style|icon)[^"']+|import\s*\(?["'](?!\.)|https?://(?!www\.w3\.org)"""
    )
    files = [WEB / "index.html", WEB / "style.css", *SCRIPTS]
    assert [(file.name, found[0]) for file in files for found in addresses.finditer(file.read_text())] == []


def test_nothing_secret_is_stored() -> None:
    """A browser keeps how the page looks, and nothing else."""
    stores = [
        file.name for file in SCRIPTS if re.search(r"localStorage|sessionStorage|indexedDB|cookie", file.read_text())
    ]
    assert stores == ["app.js"]
    assert set(re.findall(r'remember\("(\w+)"', (WEB / "js" / "app.js").read_text())) == {"language", "theme"}


def test_each_text_is_there_in_chinese_with_the_same_values() -> None:
    used = {
        text
        for file in SCRIPTS
        if file.name != "words-zh.js"
        for text in re.findall(r'\b(?:t|word)\(\s*"((?:[^"\\]|\\.)*)"', file.read_text())
    }
    table = dict(
        re.findall(r'^  "((?:[^"\\]|\\.)*)": "(.*)",$', (WEB / "js" / "words-zh.js").read_text(), re.MULTILINE)
    )
    assert len(used) > 150
    assert used == table.keys()
    for english, chinese in table.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), english


def test_scripts_say_their_licence_and_stay_short() -> None:
    for file in SCRIPTS:
        lines = file.read_text().splitlines()
        assert lines[0] == "// SPDX-License-Identifier: Apache-2.0", file.name
        assert len(lines) <= 400, file.name
