# SPDX-License-Identifier: Apache-2.0
"""The checks themselves, on histories made by hand: a good one has no findings, each kind of bad one has its own."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.linear import leases
from tests.linear.check import findings
from tests.linear.history import ERROR, NOT_FOUND, OK, UNKNOWN, UNSENT, History, Op, Session
from tests.model import Model

ALL = {"key": b"\0", "range_end": b"\0"}


class Story:
    """A history made by calls on the model, one a second."""

    def __init__(self) -> None:
        self.model = Model()
        self.history = History()
        self.now_s = 0.0

    def call(self, request: Any, *, lasts_s: float = 0.5, outcome: str = OK, **fields: Any) -> Op:
        """One that takes effect; `outcome` UNKNOWN: nobody is told."""
        self.now_s += 1
        reply = self.model.apply(request, self.now_s)
        return self.note(request, outcome, reply if outcome == OK else None, lasts_s=lasts_s, **fields)

    def note(self, request: Any, outcome: str, reply: Any = None, *, lasts_s: float = 0.5, **fields: Any) -> Op:
        ops = self.history.ops
        op = Op(len(ops), "c", "e", request, self.now_s, self.now_s + lasts_s, outcome, reply, **fields)
        ops.append(op)
        return op

    def refused(self, request: Any) -> Op:
        self.now_s += 1
        return self.note(request, ERROR, code=NOT_FOUND)

    def put(self, key: bytes, value: bytes, **fields: Any) -> Op:
        return self.call(rpc.PutRequest(key=key, value=value), **fields)

    def get(self, key: bytes) -> Op:
        return self.call(rpc.RangeRequest(key=key))

    def grant(self, lease: int, ttl_s: int) -> Op:
        return self.call(rpc.LeaseGrantRequest(ID=lease, TTL=ttl_s))

    def renew(self, lease: int) -> Op:
        return self.call(rpc.LeaseKeepAliveRequest(ID=lease))

    def watch(self, start: int = 1, **fields: Any) -> Session:
        """One that was sent everything when it happened to be asked for, each revision for itself."""
        request = rpc.WatchCreateRequest(**{**ALL, "prev_kv": True, **fields}, start_revision=start)
        session = Session("w", request, self.now_s, self.now_s, self.model.revision)
        for revision in range(start, self.model.revision + 1):
            if events := self.model.history.get(revision):
                session.responses.append((self.now_s, deepcopy(events)))
        self.history.sessions.append(session)
        return session

    def findings(self) -> list[str]:
        self.history.events = self.model.events_since(1)
        self.history.keys = list(self.model.keys.values())
        return findings(self.history)


def only(found: list[str], *texts: str) -> None:
    """Each text is in some finding, and each finding has one of the texts."""
    for text in texts:
        assert any(text in finding for finding in found), found
    for finding in found:
        assert any(text in finding for text in texts), finding


def a_good_story() -> Story:
    story = Story()
    story.put(b"r/1", b"a")
    story.get(b"r/1")
    story.grant(7, 10)
    story.call(rpc.PutRequest(key=b"l/1", value=b"x", lease=7))
    story.call(rpc.LeaseTimeToLiveRequest(ID=7, keys=True))
    story.renew(7)
    story.call(rpc.LeaseRevokeRequest(ID=7))
    story.renew(7)
    story.call(rpc.DeleteRangeRequest(key=b"r/1", prev_kv=True))
    story.call(rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"p0/a", value=b"b"))]))
    story.watch()
    return story


def test_a_good_history_has_no_findings(tmp_path: Path) -> None:
    story = a_good_story()
    assert story.findings() == []
    story.history.save(tmp_path / "saved")
    loaded = History.load(tmp_path / "saved")
    assert loaded == story.history


# --- revisions -----------------------------------------------------------------------------------------------------


def test_a_write_that_is_lost() -> None:
    story = a_good_story()
    lost = story.put(b"r/2", b"b")
    story.model.revision -= 1
    only(story.findings(), f"revision {lost.reply.header.revision} is not in the history")


def test_a_write_whose_revision_another_write_has() -> None:
    story = a_good_story()
    story.put(b"r/2", b"b")
    story.model.revision -= 1
    story.put(b"r/3", b"c")
    only(story.findings(), "the model answers otherwise", "was known before")


def test_a_stale_read() -> None:
    story = a_good_story()
    stale = story.get(b"r/9").reply
    story.put(b"r/9", b"b")
    story.now_s += 1
    story.note(rpc.RangeRequest(key=b"r/9"), OK, stale)  # of an old revision, so right in itself
    only(story.findings(), "was known before", "have no order")


def test_a_read_that_is_wrong_at_its_revision() -> None:
    story = a_good_story()
    story.put(b"r/9", b"b")
    story.get(b"r/9").reply.kvs[0].value = b"c"
    only(story.findings(), "the model answers otherwise", "have no order")


def test_an_unknown_write_may_be_there_or_not() -> None:
    story = a_good_story()
    story.put(b"r/3", b"there", outcome=UNKNOWN)
    story.get(b"r/3")
    story.now_s += 1
    story.note(rpc.PutRequest(key=b"r/4", value=b"not there"), UNKNOWN)
    assert story.get(b"r/4").reply.count == 0
    assert story.findings() == []


def test_an_unknown_write_is_there_once_at_most() -> None:
    story = a_good_story()
    story.put(b"r/3", b"there", outcome=UNKNOWN)
    story.model.apply(rpc.PutRequest(key=b"r/3", value=b"there"), 0)
    only(story.findings(), "has no cause that is left")


@pytest.mark.parametrize(("count", "good"), [(2, True), (3, False)])
def test_two_unknown_deletes_explain_two_revisions_and_not_three(count: int, good: bool) -> None:
    story = a_good_story()
    delete = rpc.DeleteRangeRequest(key=b"r/3")
    for _ in range(2):
        story.note(delete, UNKNOWN)
    for number in range(count):
        story.put(b"r/3", b"%d" % number)
        story.model.apply(delete, 0)
    assert (story.findings() == []) is good


def test_an_unknown_write_that_comes_after_the_death_of_its_server() -> None:
    story = a_good_story()
    story.note(rpc.PutRequest(key=b"r/3", value=b"late"), UNKNOWN, settled_s=story.now_s + 0.6)
    story.get(b"r/3")
    story.model.apply(rpc.PutRequest(key=b"r/3", value=b"late"), 0)
    story.get(b"r/3")
    only(story.findings(), "has no cause that is left", "have no order")


def test_an_unknown_write_that_comes_before_it_was_made() -> None:
    story = a_good_story()
    put = rpc.PutRequest(key=b"r/3", value=b"early")
    story.model.apply(put, 0)
    story.get(b"a")
    story.now_s += 1
    story.note(put, UNKNOWN)
    only(story.findings(), "has no cause that is left")


def test_unknown_deletes_that_look_alike_are_told_apart_by_their_time() -> None:
    story = a_good_story()
    delete = rpc.DeleteRangeRequest(key=b"r/3")
    for number in range(3):
        story.put(b"r/3", b"%d" % number)
        story.call(delete, outcome=UNKNOWN, settled_s=story.now_s + 1.9)
    assert story.findings() == []


@pytest.mark.parametrize("outcome", [ERROR, UNSENT])
def test_a_call_that_did_nothing_has_no_effect(outcome: str) -> None:
    story = a_good_story()
    story.put(b"r/3", b"there", outcome=outcome)
    only(story.findings(), "has no cause that is left")


def test_a_revision_that_is_missing() -> None:
    story = a_good_story()
    story.put(b"a", b"1")
    story.put(b"a", b"2")
    story.findings()
    story.history.events = [event for event in story.history.events if event.kv.mod_revision != 4]
    assert "the full watch has revision 5 where 4 is due" in findings(story.history)


def test_keys_that_the_events_do_not_make() -> None:
    story = a_good_story()
    story.findings()
    story.history.keys.pop()
    only(findings(story.history), "the keys at the end")


def test_a_txn_whose_compare_was_lost() -> None:
    story = a_good_story()
    story.put(b"p0/a", b"1")
    compare = rpc.Compare(key=b"p0/a", target=rpc.Compare.VALUE, value=b"1")
    txn = rpc.TxnRequest(
        compare=[compare], success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"p0/a", value=b"2"))]
    )
    op = story.call(txn)
    assert op.reply.succeeded
    op.request.compare[0].value = b"another"
    only(story.findings(), "the model answers otherwise", "has no cause that is left", "have no order")


def test_what_a_watch_has_shown_is_known() -> None:
    story = a_good_story()
    old = story.get(b"r/9").reply
    story.put(b"r/9", b"b", outcome=UNKNOWN)
    story.watch()
    story.now_s += 1
    story.note(rpc.RangeRequest(key=b"r/9"), OK, old)
    only(story.findings(), "was known before")


def test_an_error_that_no_kill_explains() -> None:
    story = a_good_story()
    story.note(rpc.RangeRequest(key=b"a"), UNKNOWN, code=13, text="internal error")
    only(story.findings(), "an error of the server's own")


# --- leases ---------------------------------------------------------------------------------------------------------


def a_lease(ttl_s: int = 10) -> Story:
    story = a_good_story()
    story.grant(8, ttl_s)
    story.call(rpc.PutRequest(key=b"l/8", value=b"x", lease=8))
    return story


def test_a_lease_that_ends_at_its_deadline() -> None:
    story = a_lease()
    story.renew(8)
    story.now_s += 10
    story.model.expire(story.now_s)
    story.get(b"l/8")
    story.renew(8)
    assert story.findings() == []


def test_a_lease_that_ends_early() -> None:
    story = a_lease()
    story.renew(8)
    story.now_s += 8  # ten seconds after the grant, less than that after the renewal
    story.model.expire(math.inf)
    story.get(b"l/8")
    only(story.findings(), "lease 8: ended 0.500 s early")


def test_a_lease_that_ends_early_after_a_reply_that_was_long_in_coming() -> None:
    for silent_s, text in ((0.0, ""), (3.9, "lease 8: ended")):
        story = a_good_story()
        granted = story.call(rpc.LeaseGrantRequest(ID=8, TTL=3), lasts_s=4.0)
        granted.silent_s = granted.called_s + silent_s
        story.now_s += 5
        story.refused(rpc.PutRequest(key=b"l/8", lease=8))
        only(story.findings(), *[text] * bool(text))


def test_a_lease_without_keys_that_ends_early() -> None:
    story = a_good_story()
    story.grant(8, 10)
    story.now_s += 3
    story.refused(rpc.PutRequest(key=b"l/8", lease=8))
    only(story.findings(), "lease 8: ended")


def test_who_might_have_revoked_it() -> None:
    story = a_lease()
    story.call(rpc.LeaseRevokeRequest(ID=8), outcome=UNKNOWN)
    story.refused(rpc.PutRequest(key=b"l/8", lease=8))
    assert story.findings() == []


def test_a_revoke_that_did_nothing_excuses_no_early_end() -> None:
    story = a_lease()
    story.now_s += 1
    story.note(rpc.LeaseRevokeRequest(ID=8), UNKNOWN, settled_s=story.now_s + 0.6)
    story.renew(8)
    story.now_s += 3
    story.model.expire(math.inf)
    story.get(b"l/8")
    only(story.findings(), "lease 8: ended")


@pytest.mark.parametrize(
    "request_", [rpc.LeaseKeepAliveRequest(ID=8), rpc.LeaseTimeToLiveRequest(ID=8), rpc.LeaseLeasesRequest()]
)
def test_a_lease_that_lives_again(request_: Any) -> None:
    story = a_good_story()
    story.grant(8, 10)
    story.refused(rpc.LeaseRevokeRequest(ID=8))
    story.call(request_)
    assert any("lease 8: lives again" in finding for finding in story.findings())


def test_a_key_on_a_lease_that_has_ended() -> None:
    story = a_lease()
    story.call(rpc.LeaseRevokeRequest(ID=8))
    story.grant(8, 10)
    put = rpc.PutRequest(key=b"l/9", value=b"x", lease=8)
    story.call(put)
    story.history.ops.pop(-2)  # the second grant, without which there was none
    assert any("hangs a key on lease 8" in finding for finding in story.findings())


def test_a_lease_that_leaves_a_key_behind() -> None:
    story = a_lease()
    story.call(rpc.PutRequest(key=b"l/8b", value=b"x", lease=8))
    story.now_s += 20
    story.model.apply(rpc.DeleteRangeRequest(key=b"l/8"), 0)
    only(story.findings(), "has no cause that is left")


def test_a_remaining_time_that_is_wrong() -> None:
    for ttl_s, text in ((11, "more than was granted"), (3, "less than was promised")):
        story = a_lease()
        story.call(rpc.LeaseTimeToLiveRequest(ID=8)).reply.TTL = ttl_s
        only(story.findings(), text)


def test_keys_of_a_lease_that_are_not_its_own() -> None:
    story = a_lease()
    story.call(rpc.LeaseTimeToLiveRequest(ID=8, keys=True)).reply.keys.append(b"l/9")
    only(story.findings(), "lists other keys")


def test_a_lease_that_does_not_end() -> None:
    story = a_lease(2)
    story.now_s += 2 + leases.LATE_S
    story.call(rpc.LeaseTimeToLiveRequest(ID=8))
    only(story.findings(), "alive long after")
    story.history.disturbed.append((4.0, story.now_s - 2))
    assert story.findings() == []


# --- watches --------------------------------------------------------------------------------------------------------


def test_a_watch_of_a_part_without_prev_kv() -> None:
    story = a_good_story()
    session = story.watch(3, key=b"l/", range_end=b"l0", prev_kv=False)
    session.responses = [
        (at_s, [type(event)(type=event.type, kv=event.kv) for event in events])
        for at_s, events in session.responses
        if isinstance(events, list) and events[0].kv.key.startswith(b"l/")
    ]
    assert len(session.responses) == 2
    assert story.findings() == []


def test_a_watch_that_lacks_an_event() -> None:
    story = a_good_story()
    story.watch().responses.pop(1)
    only(story.findings(), "w: event 1 since revision 1")


def test_a_watch_that_is_sent_an_event_twice() -> None:
    story = a_good_story()
    session = story.watch()
    session.responses.append(session.responses[-1])
    only(story.findings(), "not in the history")


def test_a_watch_out_of_order() -> None:
    story = a_good_story()
    story.watch().responses.reverse()
    only(story.findings(), "is due")


def test_a_watch_with_a_wrong_prev_kv() -> None:
    story = a_good_story()
    story.watch().responses[-2][1][0].ClearField("prev_kv")  # type: ignore[index]
    only(story.findings(), "is due")


def test_a_watch_that_saw_an_event_that_a_kill_took_back() -> None:
    story = a_good_story()
    story.put(b"r/2", b"b", outcome=UNKNOWN)
    story.watch()
    story.model.revision -= 1
    assert any("an event that is not in the history" in finding for finding in story.findings())


def test_a_watch_that_stops_too_soon() -> None:
    story = a_good_story()
    session = story.watch()
    session.responses.pop()
    assert story.findings() == []
    session.last = True
    only(story.findings(), "1 events are missing at the end")


def test_a_report_of_progress_that_comes_too_soon() -> None:
    story = a_good_story()
    session = story.watch()
    session.responses.insert(1, (story.now_s, 2))
    assert story.findings() == []
    session.responses[1] = (story.now_s, 3)
    only(story.findings(), "progress at revision 3")


def test_a_revision_in_two_responses() -> None:
    story = a_good_story()
    pair = [rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b"1")) for key in (b"p1/a", b"p1/b")]
    story.call(rpc.TxnRequest(success=pair))
    session = story.watch()
    at_s, events = session.responses.pop()
    assert isinstance(events, list)
    session.responses += [(at_s, events[:1]), (at_s, events[1:])]
    only(story.findings(), "in two responses")


def test_a_watch_that_was_cancelled() -> None:
    story = a_good_story()
    story.watch().canceled = "why"
    only(story.findings(), "the server cancelled it: why")
