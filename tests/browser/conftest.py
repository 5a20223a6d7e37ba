# SPDX-License-Identifier: Apache-2.0
"""Real-browser tests of the page: Chromium, driven by Playwright, on servers of their own.

They are skipped where there is no Chromium or no Playwright, and say so. `pip install -e '.[browser]'` brings the one,
a system's package the other (`apt-get install chromium`); CHROMIUM names another binary.

Laws, which the fixture `page` holds for each test
- The page logs no error, breaks no rule of its Content-Security-Policy, and opens no dialog of the browser.
- It asks nothing of anybody but its own server.
"""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.desk import Desk
from tests.conformance.lessor_server import LessorServer

EXPECTED_TO_FAIL = ("Failed to load resource", "net::ERR_")  # the browser's own words about a server that is away


def chromium() -> str | None:
    """The path of a Chromium on this machine."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for the tests of a file. Its event loop ends with them: other tests have their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install 'lessor[browser]'")
    binary = chromium()
    if binary is None:
        pytest.skip("no Chromium on this machine: install it, or name it in CHROMIUM")
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        # The driver handles the signals of the tests otherwise, which is the tests' own business.
        launched = driver.chromium.launch(
            executable_path=binary, args=sandbox, handle_sigint=False, handle_sigterm=False, handle_sighup=False
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server() -> Iterator[LessorServer]:
    with LessorServer() as started:
        yield started


@pytest.fixture
def desk(server: LessorServer) -> Desk:
    """The server's API, as a script would use it, on an empty server."""
    desk = Desk(server.client_url)
    desk.clear()
    return desk


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    opened = browser.new_context(
        viewport={"width": 1366, "height": 800}, locale="en-GB", ignore_https_errors=True, reduced_motion="reduce"
    )
    opened.set_default_timeout(20_000)
    yield opened
    opened.close()


@pytest.fixture
def page(context: Any) -> Iterator[Any]:
    """A page whose errors fail the test."""
    opened = context.new_page()
    wrong: list[str] = []
    asked: set[str] = set()

    def said(message: Any) -> None:
        if message.type == "error":
            wrong.append(message.text)

    def asks(dialog: Any) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    opened.on("console", said)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", asks)
    opened.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3])))
    yield opened
    home = "/".join(opened.url.split("/")[:3])
    assert [line for line in wrong if not any(words in line for words in EXPECTED_TO_FAIL)] == []
    assert {origin for origin in asked if not origin.startswith("blob:")} <= {home}
