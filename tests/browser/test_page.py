# SPDX-License-Identifier: Apache-2.0
"""What holds for every view: strangers' text stays text, connections come back, the keyboard is enough, and so on."""

import http.client
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.browser.desk import Desk, b64, b64url, hex_id
from tests.browser.test_views import expect, opened
from tests.conformance.lessor_server import LessorServer
from tests.ports import free_port

pytestmark = pytest.mark.slow

VIEWS = ("leases", "keys", "locks", "live", "health")
# What a stranger can write into keys, values, names of locks and of members.
CORPUS = [
    "<img src=x onerror=window.pwned=1>",
    "<script>window.pwned=1</script>",
    "<svg/onload=window.pwned=1>",
    "\"'><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "javascript:window.pwned=1",
    "{{constructor.constructor('window.pwned=1')()}} ${window.pwned=1}",
    "\u202egnp.exe\u2066\u200b\u00ad\ufeff\u2028",
    "\x1b[31m\x00\x07\x08\r\n\x7f\x9b",
    "</textarea></title></style><b>bold</b>&lt;&#x3c;",
    "\U000e0041\U000e0042 \u0301\u0301\u0301 \u00a0\u3000",
]
RAW = [b"\xff\xfe<b>\xc0\xaf\xed\xa0\x80", bytes(range(256))]
# Characters that may not be in the page: they steer the reader's eye, or nobody sees them.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2028\u202e\u2066\ufeff\U000e0041]")


def all_views(desk: Desk) -> list[str]:
    """Every view, with a key and a lease where one is wanted."""
    lease = desk.grant(600)
    desk.put("some/key", '{"a": [1, 2]}', lease)
    desk.put("some/key", '{"a": [1, 3]}', lease)
    return [*VIEWS, "keys/flat", f"lease/{hex_id(lease)}", f"key/{b64url('some/key')}"]


# --- strangers' text ---


def test_what_strangers_write_stays_text(page: Any, desk: Desk) -> None:
    texts = [*(text.encode() for text in CORPUS), *RAW]
    lease = desk.grant(600)
    end = hex_id(lease).encode()
    for raw in texts:
        desk.put(b"k/" + raw, b"before")
        desk.put(b"k/" + raw, raw, lease)
        desk.put(b"folder/" + raw + b"/" + end, raw, lease)  # an election, too
    opened(page, desk, "live")
    expect(page.locator(".live-state")).to_have_text("live")
    for raw in texts:
        desk.put(b"k/live/" + raw, raw, lease)
    expect(page.locator(".live-grid .grid-body .row:visible")).to_have_count(len(texts))
    assert_clean(page)
    places = ["leases", "keys/flat", f"keys/tree/{b64url('folder/')}", f"keys/tree/{b64url('k/')}", "locks"]
    for place in [*places, f"lease/{hex_id(lease)}"]:
        opened(page, desk, place)
        page.wait_for_selector("main bdi")
        assert_clean(page)
    for raw in texts:
        opened(page, desk, f"key/{b64url(b'k/' + raw)}")
        expect(page.locator(".diff")).to_be_visible()
        for form in ("Text", "JSON", "Hex"):
            page.locator(".value-head").get_by_role("button", name=form).click()
            assert_clean(page)
        page.get_by_role("button", name="Edit…").click()
        assert_clean(page)
        page.get_by_role("dialog").get_by_role("button", name="Cancel").click()


def assert_clean(page: Any) -> None:
    assert page.evaluate("window.pwned") is None
    assert (
        page.locator("main :is(img, script, iframe, svg, b, style), dialog :is(img, script, iframe, svg)").count() == 0
    )
    text = page.evaluate("document.body.innerText + [...document.querySelectorAll('[title]')].map((e) => e.title)")
    assert STEERING.findall(text) == []
    assert page.locator("a[href^='javascript']").count() == 0


def test_a_megabyte_is_shown_in_part_and_on_demand_whole(page: Any, desk: Desk) -> None:
    desk.put("large", "0123456789" * 100_000)
    opened(page, desk, f"key/{b64url('large')}")
    box = page.locator(".value pre")
    expect(box).to_be_visible()
    assert len(box.text_content()) == 100_000
    page.get_by_role("button", name="Show all 977 KiB").click()
    assert len(box.text_content()) == 1_000_000


# --- many ---


def test_many_leases_are_few_rows_of_the_document(page: Any) -> None:
    with LessorServer() as server:
        desk = Desk(server.client_url)
        make_leases(desk, 3000)
        opened(page, desk, "leases")
        expect(page.locator(".view-head .total")).to_have_text("3,000 leases")
        body = page.locator(".leases-grid .grid-body")
        active = page.locator(".leases-grid .row.active .c-id a")
        body.press("End")
        expect(active).to_have_text(hex_id(1_000_000 + 2_999))
        body.press("Home")
        expect(active).to_have_text(hex_id(1_000_000))
        for _ in range(30):
            body.press("PageDown")
            assert page.locator(".leases-grid .grid-body .row").count() < 80


def make_leases(desk: Desk, number: int) -> None:
    """Leases of an hour, numbered from a million on, over one connection."""
    host = desk.url.removeprefix("http://")

    def grant(first: int, last: int) -> None:
        connection = http.client.HTTPConnection(host)
        for lease_id in range(first, last):
            connection.request("POST", "/v3/lease/grant", f'{{"TTL":3600,"ID":"{1_000_000 + lease_id}"}}')
            connection.getresponse().read()
        connection.close()

    step = number // 10
    threads = [threading.Thread(target=grant, args=(at * step, (at + 1) * step)) for at in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- connections ---


def test_the_page_comes_back_after_a_crash_and_misses_nothing(page: Any) -> None:
    with LessorServer() as server:
        desk = Desk(server.client_url)
        opened(page, desk, "live")
        expect(page.locator(".live-state")).to_have_text("live")
        desk.put("before", "1")
        keys = page.locator(".live-grid .grid-body .row:visible .c-key")
        expect(keys).to_have_text(["before"])
        server.request_stop()  # so that it can be said to be away
        server.wait()
        expect(page.locator(".banner")).to_contain_text("The server does not answer.")
        expect(page.locator(".state")).to_have_text("No answer")
        server.start_again()
        desk.put("between", "2")
        expect(page.locator(".live-state")).to_have_text("live")
        expect(page.locator(".banner")).to_be_hidden(timeout=15_000)
        server.restart(signal.SIGKILL)
        desk.put("after", "3")
        expect(keys).to_have_text(["after", "between", "before"])
        opened(page, desk, "leases")
        desk.grant(300, 0xAFFE)
        expect(page.locator(".grid-body .row", has_text="affe")).to_be_visible()


def test_two_tabs_see_the_same(page: Any, context: Any, desk: Desk) -> None:
    other = context.new_page()
    opened(page, desk, "live")
    opened(other, desk, "live")
    for tab in (page, other):
        expect(tab.locator(".live-state")).to_have_text("live")
    desk.put("shared", "1")
    for tab in (page, other):
        expect(tab.locator(".live-grid .grid-body .row:visible .c-key")).to_have_text(["shared"])


@contextmanager
def behind_a_proxy(target: str, prefix: str) -> Iterator[str]:
    """A proxy that serves all of `target` (host:port) below a path. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def _pass(self) -> None:
            if not self.path.startswith(prefix + "/"):
                self.send_error(404)
                return
            with closing(http.client.HTTPConnection(target)) as upstream:
                self._pass_to(upstream)

        def _pass_to(self, upstream: http.client.HTTPConnection) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            upstream.request(self.command, self.path.removeprefix(prefix), body, dict(self.headers))
            reply = upstream.getresponse()
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # when the browser has gone
                while piece := reply.read1(65_536):
                    self.wfile.write(piece)

        do_GET = do_POST = _pass  # noqa: N815

        def log_message(self, *_: Any) -> None: ...

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}{prefix}"
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def test_it_works_below_a_path_of_a_proxy(page: Any, server: LessorServer, desk: Desk) -> None:
    desk.put("k", "v", desk.grant(300, 0x77))
    with behind_a_proxy(server.address, "/team/leases") as url:
        page.goto(url + "/")
        assert page.url == url + "/ui/"
        expect(page.locator(".grid-body .row", has_text="77")).to_be_visible()
        for view in VIEWS:
            page.locator(f"nav a[data-view={view}]").click()
            expect(page.locator(f"nav a[data-view={view}]")).to_have_attribute("aria-current", "page")
        expect(page.locator(".charts canvas")).to_have_count(6)
        page.goto("about:blank")
        page.goto(url + "/ui/")  # the page's checks want its own address at the end


def test_over_tls_the_browser_speaks_http2(page: Any) -> None:
    secure = f"https://127.0.0.1:{free_port()}"
    with SecureServer(secure):
        page.goto(secure + "/ui/")
        expect(page.locator("h1")).to_have_text("Leases")
        expect(page.locator(".live-state")).to_have_text("live")
        protocols = page.evaluate("performance.getEntriesByType('resource').map((e) => e.nextHopProtocol)")
        assert set(protocols) == {"h2"}


class SecureServer(LessorServer):
    """One that also serves https:// at a URL, with a certificate of its own making."""

    def __init__(self, url: str) -> None:
        super().__init__(["--auto-tls"])
        self._secure_url = url

    def command(self) -> list[str]:
        return [
            f"{word},{self._secure_url}" if word.startswith("--listen-client") else word for word in super().command()
        ]


# --- people ---


def test_the_keyboard_is_enough(page: Any, desk: Desk) -> None:
    for number in range(40):
        desk.put(f"k/{number}", "", desk.grant(600, 500 + number))
    opened(page, desk, "keys")
    page.keyboard.press("g")
    page.keyboard.press("l")
    expect(page.locator("h1")).to_have_text("Leases")
    expect(page.locator(".grid-body .row:visible").first).to_contain_text(hex_id(500))
    page.keyboard.press("/")
    expect(page.get_by_label("Keys that begin with…")).to_be_focused()
    page.keyboard.type("k/")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('grid-body')"):
            break
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(f"Lease {hex_id(502)}")
    page.get_by_role("button", name="Revoke…").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert desk.left_s(502) > 0
    expect(page.get_by_role("button", name="Revoke…")).to_be_focused()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_rule_of_accessibility_is_broken(page: Any, desk: Desk, theme: str) -> None:
    found = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install 'lessor[browser]'")
    checks = found.Axe()
    lease = desk.grant(600)
    desk.lock("lock", lease)()
    places = all_views(desk)
    page.goto(desk.url + "/ui/")
    page.get_by_label("Colours").select_option(theme)
    broken: list[str] = []
    for place in places:
        opened(page, desk, place)
        page.wait_for_timeout(300)  # so that what is asked for is there
        if place.startswith("key/"):
            page.get_by_role("button", name="Edit…").click()
        for finding in checks.run(page).response["violations"]:
            broken += [f"{place}: {finding['id']}: {node['html'][:120]}" for node in finding["nodes"]]
    assert broken == []


def test_in_chinese(page: Any, desk: Desk) -> None:
    places = all_views(desk)
    page.goto(desk.url + "/ui/")
    page.get_by_label("Language").select_option("zh")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("nav a")).to_have_text(["租约", "键", "锁", "实时", "健康"])
    for place in places:
        opened(page, desk, place)
        assert re.search(r"[A-Z][a-z]+ [a-z]+", page.locator("main").inner_text()) is None
    page.reload()
    expect(page.locator("nav a").first).to_have_text("租约")  # remembered


@pytest.mark.parametrize("width", [360, 800, 1100])
def test_on_small_screens_nothing_sticks_out(page: Any, desk: Desk, width: int) -> None:
    lease = desk.grant(600)
    desk.lock("locks/with/a/long/name/that/goes/on/and/on", lease)()
    places = all_views(desk)
    page.set_viewport_size({"width": width, "height": 740})
    for place in places:
        opened(page, desk, place)
        page.wait_for_timeout(200)
        wide = page.evaluate(
            "[document.documentElement, document.querySelector('main')].map((e) => e.scrollWidth - e.clientWidth)"
        )
        assert wide == [0, 0], place


# --- users ---

ROOT, READER = ("root", "root's"), ("reader", "reader's")


@pytest.fixture(scope="module")
def guarded() -> Iterator[LessorServer]:
    """A server with users: root, and one who may read all, and write below own/."""
    with LessorServer(["--bcrypt-cost=4"]) as server:
        desk = Desk(server.client_url)
        for name, password in (ROOT, READER):
            desk.call("auth/user/add", name=name, password=password)
        desk.call("auth/role/add", name="root")
        desk.call("auth/user/grant", user="root", role="root")
        desk.call("auth/role/add", name="reading")
        everything = {"key": b64(b"\0"), "range_end": b64(b"\0")}
        desk.call("auth/role/grant", name="reading", perm={"permType": "READ", **everything})
        own = {"permType": "READWRITE", "key": b64("own/"), "range_end": b64("own0")}
        desk.call("auth/role/grant", name="reading", perm=own)
        desk.call("auth/user/grant", user="reader", role="reading")
        desk.put("own/key", "v", desk.grant(600, 0x111))
        desk.put("others/key", "v", desk.grant(600, 0x222))
        desk.call("auth/enable")
        yield server


def log_in(page: Any, user: str, password: str) -> None:
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_with_users_the_page_asks_who_it_is(page: Any, guarded: LessorServer) -> None:
    page.goto(guarded.client_url + "/ui/#/leases")
    expect(page.locator("h1")).to_have_text("Log in")
    expect(page.locator("nav")).to_be_hidden()
    log_in(page, "root", "wrong")
    expect(page.locator(".problem")).to_contain_text("authentication failed")
    log_in(page, *ROOT)
    expect(page.locator("h1")).to_have_text("Leases")
    expect(page.locator(".grid-body .row:visible .c-id a")).to_have_text(["111", "222"])
    assert page.url == guarded.client_url + "/ui/#/leases"
    stored = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
    assert stored == ["{}", "{}", ""]
    for view in VIEWS:
        page.locator(f"nav a[data-view={view}]").click()
        expect(page.locator("h1")).not_to_have_text("Log in")
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("h1")).to_have_text("Log in")


def test_what_a_user_may_not_do_is_not_offered_and_refused(page: Any, guarded: LessorServer) -> None:
    page.goto(guarded.client_url + f"/ui/#/key/{b64url('others/key')}")
    log_in(page, *READER)
    expect(page.locator(".value")).to_have_text("v")
    expect(page.get_by_role("button", name="Edit…")).to_be_hidden()
    expect(page.get_by_role("button", name="Delete…")).to_be_hidden()
    page.evaluate("location.hash = '#/lease/222'")
    expect(page.locator(".key-list")).to_have_text("others/key")
    expect(page.get_by_role("button", name="Revoke…")).to_be_hidden()
    page.evaluate("location.hash = '#/lease/111'")
    expect(page.get_by_role("button", name="Revoke…")).to_be_visible()
    page.evaluate(f"location.hash = '#/key/{b64url('own/key')}'")
    expect(page.get_by_role("button", name="Edit…")).to_be_visible()
    page.evaluate("location.hash = '#/keys'")
    page.get_by_role("button", name="New key…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key", exact=True).fill("others/new")
    dialog.get_by_role("button", name="Create").click()
    expect(dialog.locator(".problem")).to_contain_text("permission denied")


def test_a_token_that_expires_is_asked_for_again(page: Any, guarded: LessorServer) -> None:
    page.goto(guarded.client_url + "/ui/#/leases")
    log_in(page, *ROOT)
    expect(page.locator(".grid-body .row:visible .c-id a")).to_have_text(["111", "222"])
    guarded.restart()  # which forgets all tokens
    expect(page.locator(".problem")).to_have_text("Your login has expired. Log in again.")
    log_in(page, *ROOT)
    expect(page.locator(".grid-body .row:visible .c-id a")).to_have_text(["111", "222"])
