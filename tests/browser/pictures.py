# SPDX-License-Identifier: Apache-2.0
"""Takes the pictures of docs/ui.md: python -m tests.browser.pictures [FOLDER], by default docs/ui.

The server that they show is filled here, with the same data each time; ids and times differ. A test takes them too, so
that what they need is there.
"""

import base64
import json
import sys
import threading
from pathlib import Path
from typing import Any

from tests.browser.conftest import chromium
from tests.browser.desk import Desk, b64, b64url, hex_id
from tests.conformance.lessor_server import LessorServer

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "ui"
SIZE = {"width": 1280, "height": 760}
PHONE = {"width": 390, "height": 760}
SETTLE_MS = 1200
HEALTH_MS = 150_000
RENEW_S = 2.0


class Town:
    """A server with services that register, locks that are held, and owners that renew, some of them late."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._over = threading.Event()
        self._renewed: list[tuple[int, int]] = []  # lease, and every how many rounds it is renewed
        self._thread = threading.Thread(target=self._renew)

    def __enter__(self) -> "Town":
        desk = self.desk
        for number in range(36):
            ttl_s = (10, 15, 30, 60, 300)[number % 5]
            lease = self._lease(ttl_s, every=1 if ttl_s > 10 or number % 2 else 4)
            service = ("api", "billing", "search")[number % 3]
            place = {"host": f"10.0.{number % 3}.{number}", "port": 8080, "zone": f"eu-{number % 2}"}
            desk.put(f"services/{service}/10.0.{number % 3}.{number}:8080", json.dumps(place), lease)
        for name, contenders, value in (
            ("locks/billing/nightly", 4, ""),
            ("locks/deploy", 2, ""),
            ("elections/scheduler", 3, "10.0.1.7:9000"),
        ):
            for _ in range(contenders):
                lease = self._lease(60, every=1)
                desk.put(f"{name}/{hex_id(lease)}", value, lease)
        for rate in (100, 120, 250):
            limits = {"rate": rate, "burst": 20, "paths": ["/v1/orders", "/v1/search"], "seed": 12345678901234567890}
            desk.put("config/api/limits", json.dumps(limits))
        for number in range(9):
            desk.put(f"config/api/feature-{number}", str(number % 2 == 0).lower())
        desk.put("config/search/index", "2026-11")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _lease(self, ttl_s: int, every: int) -> int:
        lease = self.desk.grant(ttl_s)
        self._renewed.append((lease, every))
        return lease

    def _renew(self) -> None:
        rounds = 0
        while not self._over.wait(RENEW_S):
            rounds += 1
            if rounds % 4 == 0:
                self.desk.grant(2)  # nobody renews it
            for lease, every in self._renewed:
                if rounds % every == 0:
                    self.desk.call("lease/keepalive", ID=str(lease))

    def stir(self) -> None:
        """Some changes, for the views of what happens."""
        desk = self.desk
        gone = desk.grant(2)
        desk.put("services/api/10.0.0.99:8080", '{"host": "10.0.0.99"}', gone)
        desk.put("config/api/feature-3", "true")
        ended = desk.grant(60)
        desk.put("services/search/10.0.2.98:8080", '{"host": "10.0.2.98"}', ended)
        desk.revoke(ended)
        desk.put("config/tmp", "x")
        desk.delete("config/tmp")


def take(browser: Any, url: str, folder: Path, *, patience: float = 1.0) -> None:
    """All pictures. `patience`: a part of the time for which bars fall and charts gather samples."""
    desk = Desk(url)
    context = browser.new_context(viewport=SIZE, locale="en-GB", color_scheme="light")
    page = context.new_page()

    def picture(name: str, view: str = "") -> None:
        if view:
            page.goto(f"{url}/ui/#/{view}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(SETTLE_MS * patience)
        page.screenshot(path=folder / f"{name}.png")

    with Town(desk) as town:
        page.goto(f"{url}/ui/#/live")
        page.get_by_text("live", exact=True).wait_for()
        town.stir()
        page.get_by_text("expired").wait_for()
        picture("live")
        page.locator("nav a[data-view=leases]").click()
        page.wait_for_timeout(6000 * patience)
        picture("leases")
        picture("locks", "locks")
        page.get_by_role("button", name="Revoke lease…").first.click()
        picture("revoke")
        page.keyboard.press("Escape")
        page.goto(f"{url}/ui/#/keys")
        for folder_name in ("config/", "api/"):
            page.get_by_role("button", name=folder_name, exact=True).first.click()
            page.wait_for_timeout(200)
        picture("keys")
        picture("key", f"key/{b64url('config/api/limits')}")
        holder = next(key for key in desk_keys(desk, "locks/deploy/"))
        page.goto(f"{url}/ui/#/lease/{holder.rpartition('/')[2]}")
        page.wait_for_timeout(5000 * patience)
        picture("lease")
        page.goto(f"{url}/ui/#/health")
        page.wait_for_timeout(HEALTH_MS * patience)
        page.get_by_label("Colours").select_option("dark")
        picture("health-dark")
        page.goto(f"{url}/ui/#/leases")
        page.set_viewport_size(PHONE)
        page.get_by_label("Language").select_option("zh")
        page.get_by_label("配色").select_option("light")
        picture("phone-zh")
    context.close()


def desk_keys(desk: Desk, prefix: str) -> list[str]:
    """The keys with a prefix, in the order in which they were made."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    found = desk.call("kv/range", key=b64(prefix), range_end=b64(end), sort_target="CREATE", sort_order="ASCEND")
    return [base64.b64decode(each["key"]).decode() for each in found["kvs"]]


def main() -> None:
    from playwright.sync_api import sync_playwright

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver, LessorServer() as server:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        take(browser, server.client_url, folder)
        browser.close()


if __name__ == "__main__":
    main()
