# SPDX-License-Identifier: Apache-2.0
"""What each view shows, and what each of its buttons does, in a real browser."""

import json
import re
from typing import Any

import pytest

from tests.browser.desk import Desk, b64url, hex_id
from tests.conformance.lessor_server import LessorServer

pytestmark = pytest.mark.slow

EXPECT_MS = 20_000
LIMITS = {"burst": 20, "paths": ["/a", "/b"], "large": 12345678901234567890}


def opened(page: Any, desk: Desk, view: str) -> None:
    page.goto(f"{desk.url}/ui/#/{view}")
    page.wait_for_selector("h1")


def expect(locator: Any) -> Any:
    """Playwright's `expect`, with the patience that a busy machine needs."""
    from playwright.sync_api import expect as playwrights

    playwrights.set_options(timeout=EXPECT_MS)
    return playwrights(locator)


def test_the_root_leads_to_the_page_with_its_views(page: Any, desk: Desk) -> None:
    page.goto(desk.url + "/")
    assert page.url == desk.url + "/ui/"
    expect(page.locator("nav a")).to_have_text(["Leases", "Keys", "Locks", "Live", "Health"])
    expect(page.locator("h1")).to_have_text("Leases")
    expect(page.locator(".grid-empty")).to_have_text("There are no leases.")


# --- leases ---


def test_leases_are_listed_with_ids_time_and_keys(page: Any, desk: Desk) -> None:
    lease = desk.grant(300, 0x1234ABCD)
    negative = desk.grant(60, -2)
    desk.put("services/api/1", "x", lease)
    desk.put("services/api/2", "x", lease)
    opened(page, desk, "leases")
    row = page.locator(".grid-body .row", has_text="1234abcd")
    expect(row).to_contain_text("300 s")
    expect(row).to_contain_text("services/api/1")
    expect(row.locator(".c-keys")).to_have_text("2")
    expect(row.locator(".bar-text")).to_contain_text("4 m")
    expect(page.locator(".view-head .total")).to_have_text("2 leases")
    assert negative == -2
    expect(page.locator(".grid-body .row", has_text="fffffffffffffffe")).to_be_visible()


def test_leases_are_filtered_and_ordered_by_the_server(page: Any, desk: Desk) -> None:
    for number, (ttl_s, key) in enumerate([(900, "a/1"), (30, "b/1"), (120, "a/2"), (4000, "c/1")]):
        desk.put(key, "", desk.grant(ttl_s, 100 + number))
    opened(page, desk, "leases")
    names = page.locator(".grid-body .row:visible .c-names")
    expect(names).to_have_text(["a/1", "b/1", "a/2", "c/1"])
    page.get_by_role("group", name="Order").get_by_text("Time left").click()
    expect(names).to_have_text(["b/1", "a/2", "a/1", "c/1"])
    page.get_by_label("Keys that begin with…").fill("a/")
    expect(names).to_have_text(["a/2", "a/1"])
    expect(page.locator(".view-head .total")).to_have_text("2 leases · 4 in all")
    page.get_by_label("Keys that begin with…").fill("")
    page.get_by_label("Ends within").select_option("10 min")
    expect(names).to_have_text(["b/1", "a/2"])


def test_a_lease_that_ends_is_told_at_once(page: Any, desk: Desk) -> None:
    first, second = desk.grant(300, 0xA1), desk.grant(2, 0xA2)
    opened(page, desk, "leases")
    expect(page.locator(".live-state")).to_have_text("live")
    desk.revoke(first)
    events = page.locator(".events-panel li")
    expect(events.filter(has_text="revoked")).to_contain_text("a1")
    expect(events.filter(has_text="expired")).to_contain_text("a2")
    desk.grant(60, 0xA3)
    expect(events.filter(has_text="granted").filter(has_text="a3")).to_be_visible()
    expect(page.locator(".grid-body .row:visible .c-id a")).to_have_text(["a3"])
    assert desk.left_s(second) == -1


def test_an_id_is_copied_in_either_form(page: Any, context: Any, desk: Desk) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    desk.grant(300, 0xBEEF)
    opened(page, desk, "leases")
    page.get_by_label("Copy as hexadecimal").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "beef"
    page.get_by_title("Copy as decimal").locator("visible=true").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == "48879"


def test_renewals_are_seen(page: Any, desk: Desk) -> None:
    lease = desk.grant(30, 0xC1)
    opened(page, desk, "leases")
    expect(page.locator(".row:visible .c-seen").last).to_have_text("\N{EN DASH}")
    page.wait_for_timeout(1500)  # a renewal shows by more time being left than there would be
    desk.call("lease/keepalive", ID=str(lease))
    expect(page.locator(".row:visible .c-seen").last).to_contain_text("1 · ")


def test_a_lease_is_renewed_once_and_revoked_behind_a_question(page: Any, desk: Desk) -> None:
    lease = desk.grant(100, 0xD1)
    desk.put("held/by/it", "", lease)
    opened(page, desk, "leases")
    page.locator(".grid-body .row", has_text="d1").locator(".c-ttl").click()
    expect(page.locator("h1")).to_have_text("Lease d1")
    expect(page.locator(".key-list")).to_have_text("held/by/it")
    expect(page.locator(".big-bar .bar-text")).to_have_text(re.compile("1 m 3[0-5] s"))
    page.get_by_role("button", name="Renew once").click()
    page.get_by_role("dialog").get_by_role("button", name="Renew").click()
    expect(page.locator(".big-bar .bar-text")).to_have_text(re.compile("1 m 3[6-9] s"))
    page.get_by_role("button", name="Revoke…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("held/by/it")
    dialog.get_by_role("button", name="Cancel").click()
    assert desk.left_s(lease) > 0
    page.get_by_role("button", name="Revoke…").click()
    dialog.get_by_role("button", name="Revoke", exact=True).click()
    expect(page.locator(".big-bar .bar-text")).to_have_text("revoked")
    assert desk.left_s(lease) == -1
    assert desk.get("held/by/it") is None


# --- keys ---


def test_keys_are_a_tree_and_a_list(page: Any, desk: Desk) -> None:
    for key in ("config/app/a", "config/app/b", "config/top", "plain", *(f"many/{number:04}" for number in range(700))):
        desk.put(key, "v")
    opened(page, desk, "keys")
    expect(page.locator(".view-head .total")).to_contain_text("704 keys")
    names = page.locator(".tree .key-name:visible")
    expect(names).to_have_text(["config/", "many/", "plain"])
    page.get_by_role("button", name="config/").click()
    expect(names).to_have_text(["config/", "app/", "top", "many/", "plain"])
    page.get_by_role("button", name="app/").click()
    expect(names).to_have_text(["config/", "app/", "a", "b", "top", "many/", "plain"])
    page.locator(".folder", has_text="many/").get_by_text("open").click()
    expect(names).to_have_count(200)
    page.get_by_role("button", name="Show more").click()
    expect(names).to_have_count(400)
    page.get_by_role("button", name="Flat").click()
    expect(page.locator(".keys-grid .row:visible .key-name").first).to_have_text("many/0000")
    page.locator(".keys-grid .grid-body").press("End")
    expect(page.locator(".keys-grid .row:visible .key-name").last).to_have_text("many/0699")
    page.locator(".keys-grid .grid-body").press("Enter")
    expect(page.locator("h1")).to_have_text("many/0699")


def test_a_value_is_shown_as_json_text_and_hex(page: Any, desk: Desk) -> None:
    desk.put("config/limits", json.dumps(LIMITS))
    opened(page, desk, f"key/{b64url('config/limits')}")
    box = page.locator(".value")
    expect(box.locator(".json-number").last).to_have_text("12345678901234567890")  # not rounded
    box.locator("summary", has_text="paths").click()
    expect(box.locator("summary", has_text="paths").locator(".json-fold")).to_be_visible()
    page.get_by_role("button", name="Text").click()
    expect(box).to_have_text(json.dumps(LIMITS))
    page.get_by_role("button", name="Hex").click()
    expect(box).to_contain_text("00000000  7b 22 62 75 72 73 74 22")
    desk.put("config/limits", bytes(range(256)))
    expect(page.locator(".value-head")).to_contain_text("not UTF-8")
    expect(box).to_contain_text("f8 f9 fa fb fc fd fe ff")


def test_revisions_and_their_difference(page: Any, desk: Desk) -> None:
    for burst in (10, 20, 30):
        desk.put("config/limits", json.dumps({**LIMITS, "burst": burst}))
    opened(page, desk, f"key/{b64url('config/limits')}")
    expect(page.locator(".versions tbody tr")).to_have_count(3)
    expect(page.locator(".diff .removed")).to_have_text('-  "burst": 20,')
    expect(page.locator(".diff .added")).to_have_text('+  "burst": 30,')
    page.locator(".versions tbody tr").last.locator("input").first.check()
    expect(page.locator(".diff .removed")).to_have_text('-  "burst": 10,')
    revision = int(desk.get("config/limits")["mod_revision"])  # type: ignore[index]
    desk.call("kv/compaction", revision=str(revision - 1))
    page.reload()
    expect(page.locator(".versions tbody tr")).to_have_count(2)
    expect(page.locator(".versions")).to_contain_text("Older ones have been compacted.")


def test_an_edit_is_written_only_over_what_was_seen(page: Any, desk: Desk) -> None:
    lease = desk.grant(600)
    desk.put("config/a", "one", lease)
    opened(page, desk, f"key/{b64url('config/a')}")
    page.get_by_role("button", name="Edit…").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("textarea").fill("mine")
    desk.put("config/a", "theirs", lease)
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.locator(".problem")).to_contain_text("Not saved")
    expect(dialog.locator(".diff .removed")).to_contain_text("theirs")
    expect(dialog.locator(".diff .added")).to_contain_text("mine")
    assert desk.value("config/a") == b"theirs"
    dialog.get_by_role("button", name="I have seen revision").click()
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    assert desk.value("config/a") == b"mine"
    assert int(desk.get("config/a")["lease"]) == lease  # type: ignore[index]
    expect(page.locator(".value")).to_have_text("mine")


def test_bytes_that_are_no_text_are_edited_as_hex(page: Any, desk: Desk) -> None:
    desk.put("raw", b"\xff\x00\x01")
    opened(page, desk, f"key/{b64url('raw')}")
    page.get_by_role("button", name="Edit…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("textarea")).to_have_value("ff 00 01")
    dialog.locator("textarea").fill("ff 00 zz")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.locator(".problem")).to_contain_text("no pairs of hexadecimal digits")
    dialog.locator("textarea").fill("FF00 fe")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    assert desk.value("raw") == b"\xff\x00\xfe"


def test_a_key_is_made_on_a_new_lease(page: Any, desk: Desk) -> None:
    desk.put("there", "before")
    opened(page, desk, "keys")
    page.get_by_role("button", name="New key…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Key", exact=True).fill("there")
    dialog.locator("textarea").fill("after")
    dialog.get_by_role("button", name="A new lease").click()
    dialog.get_by_label("TTL in seconds").fill("500")
    dialog.get_by_role("button", name="Create").click()
    expect(dialog.locator(".problem")).to_contain_text("There is such a key already")
    assert desk.value("there") == b"before"
    assert desk.call("lease/leases").get("leases") is None  # the lease for it does not stay behind
    dialog.get_by_label("Key", exact=True).fill("new/key")
    dialog.get_by_role("button", name="Create").click()
    expect(page.locator("h1")).to_have_text("new/key")
    made = desk.get("new/key")
    assert made is not None
    assert desk.value("new/key") == b"after"
    assert 490 < desk.left_s(int(made["lease"])) <= 500


def test_a_deletion_shows_what_goes(page: Any, desk: Desk) -> None:
    for key in ("old/1", "old/2", "old/3", "older"):
        desk.put(key, "")
    opened(page, desk, f"keys/tree/{b64url('old/')}")
    page.get_by_role("button", name="Delete all…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("li")).to_have_text(["old/1", "old/2", "old/3"])
    dialog.get_by_role("button", name="Delete 3 keys").click()
    expect(page.locator(".tree")).to_contain_text("There are no keys here.")
    assert desk.get("old/1") is None
    assert desk.get("older") is not None
    opened(page, desk, f"key/{b64url('older')}")
    page.get_by_role("button", name="Delete…").click()
    desk.put("older", "changed")
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(dialog.locator(".problem")).to_contain_text("Not deleted")
    assert desk.get("older") is not None


# --- locks ---


def test_who_holds_a_lock_who_waits_and_how_to_end_it(page: Any, desk: Desk) -> None:
    leases = [desk.grant(300) for _ in range(3)]
    held = desk.lock("locks/deploy", leases[0])
    assert held() == f"locks/deploy/{hex_id(leases[0])}"
    second = desk.lock("locks/deploy", leases[1])
    opened(page, desk, "locks")
    card = page.locator(".line", has_text="locks/deploy")
    expect(card).to_contain_text("1 waiting")
    third = desk.lock("locks/deploy", leases[2])
    expect(card).to_contain_text("2 waiting")
    rows = card.locator("tbody tr")
    expect(rows.first).to_contain_text(re.compile(f"holds.*{hex_id(leases[0])}"))
    expect(rows.nth(1)).to_contain_text(re.compile(f"waits, place 1.*{hex_id(leases[1])}"))
    rows.first.get_by_role("button", name="Revoke lease…").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke", exact=True).click()
    expect(rows.first).to_contain_text(re.compile(f"holds.*{hex_id(leases[1])}"))
    assert second() == f"locks/deploy/{hex_id(leases[1])}"
    desk.revoke(leases[1])
    assert third()


def test_an_election_says_what_its_leader_says(page: Any, desk: Desk) -> None:
    lease = desk.grant(300)
    desk.put(f"elections/scheduler/{hex_id(lease)}", "10.0.1.7:9000", lease)
    opened(page, desk, "locks")
    card = page.locator(".line")
    expect(card).to_contain_text("elections/scheduler")
    expect(card).to_contain_text("election")
    expect(card.locator(".said")).to_contain_text("10.0.1.7:9000")


# --- live ---


def test_changes_as_they_come_and_why_a_key_went(page: Any, desk: Desk) -> None:
    opened(page, desk, "live")
    expect(page.locator(".live-state")).to_have_text("live")
    revoked, expired = desk.grant(300), desk.grant(2)
    desk.put("a", "1")
    desk.put("a", "2")
    desk.put("b", "", revoked)
    desk.put("c", "", expired)
    desk.delete("a")
    desk.revoke(revoked)
    rows = page.locator(".live-grid .grid-body .row:visible")
    expect(rows.filter(has_text=f"lease {hex_id(expired)} expired")).to_have_count(1)
    expect(rows.filter(has_text=f"lease {hex_id(revoked)} was revoked")).to_have_count(1)
    expect(page.locator(".live-grid .row:visible .why").last).to_have_text("deleted")
    expect(rows.locator(".c-kind")).to_have_text(
        ["deleted", "deleted", "deleted", "created", "created", "put", "created"]
    )
    page.get_by_label("Only with this text").fill("c")
    expect(rows.locator(".c-key")).to_have_text(["c", "c"])
    page.get_by_label("Only with this text").fill("")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert [(line["key_text"], line["type"], line.get("why")) for line in lines] == [
        *(("a", "PUT", None), ("a", "PUT", None), ("b", "PUT", None), ("c", "PUT", None)),
        *(("a", "DELETE", "deleted"), ("b", "DELETE", "revoked"), ("c", "DELETE", "expired")),
    ]


def test_a_pause_keeps_what_comes(page: Any, desk: Desk) -> None:
    opened(page, desk, "live")
    expect(page.locator(".live-state")).to_have_text("live")
    rows = page.locator(".live-grid .grid-body .row:visible")
    page.get_by_role("button", name="Pause").click()
    desk.put("x", "1")
    desk.put("y", "2")
    expect(page.locator(".total")).to_contain_text("2 more while paused")
    expect(rows).to_have_count(0)
    page.get_by_role("button", name="Go on").click()
    expect(rows.locator(".c-key")).to_have_text(["y", "x"])


def test_a_watch_begins_in_the_past(page: Any, desk: Desk) -> None:
    first = desk.put("past/1", "a")
    desk.put("past/2", "b")
    opened(page, desk, "live")
    page.get_by_label("Keys that begin with…").fill("past/")
    page.get_by_label("From revision").fill(str(first))
    page.get_by_label("From revision").press("Enter")
    rows = page.locator(".live-grid .grid-body .row:visible")
    expect(rows.locator(".c-key")).to_have_text(["past/2", "past/1"])
    desk.call("kv/compaction", revision=str(first + 1))
    page.get_by_label("From revision").fill("1")
    page.get_by_label("From revision").press("Enter")
    expect(rows.filter(has_text="Changes were compacted")).to_have_count(1)
    expect(rows.locator(".c-key").first).to_have_text("past/2")


# --- health ---


def test_health_shows_the_server(page: Any, desk: Desk, server: LessorServer) -> None:
    desk.put("k", "v", desk.grant(300))
    opened(page, desk, "health")
    figures = page.locator(".figures")
    expect(figures).to_contain_text("leader")
    expect(figures.locator(".figure", has_text="Leases")).to_contain_text("1")
    expect(page.locator(".charts canvas")).to_have_count(6)
    expect(page.get_by_role("region", name="Members")).to_contain_text(server.client_url)
    expect(page.locator("main")).to_contain_text("No alarm is raised.")
    expect(page.locator("main")).to_contain_text("of 2.0 GiB")
