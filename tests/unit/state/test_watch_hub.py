# SPDX-License-Identifier: Apache-2.0
"""The watch hub: which watcher is sent what, live and from history."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import mvcc_pb2, rpc_pb2
from lessor.state import watch_hub
from lessor.state.machine import Identity, StateMachine
from lessor.state.watch_changes import Change, event_bytes
from lessor.state.watch_hub import CompactedError, Publication
from lessor.state.watcher import NO_DELETE, NO_PUT, Watcher, range_is_empty, watch_range

KEYS = (b"\0", b"a", b"a/", b"a/1", b"a/2", b"a0", b"b", b"\xff", b"\xff\xff")
RANGES: tuple[tuple[bytes, bytes | None], ...] = (
    (b"a", None),
    (b"a/1", None),
    (b"a/", b"a0"),
    (b"a", b"b"),
    (b"a/1", b"b"),
    (b"\0", b""),
    (b"a0", b""),
    (b"\xff", b""),
    (b"a\xff", b"b"),
    (b"\0", b"\1"),
)

Line = tuple[int, bytes, bytes | None, bytes | None]


def new_machine() -> StateMachine:
    return StateMachine(Identity(1, 2, 3))


def put(machine: StateMachine, key: bytes, value: bytes = b"v") -> None:
    machine.apply(rpc_pb2.PutRequest(key=key, value=value), 0.0)


def delete(machine: StateMachine, key: bytes, end: bytes = b"") -> None:
    machine.apply(rpc_pb2.DeleteRangeRequest(key=key, range_end=end), 0.0)


def lines(changes: list[Change]) -> list[Line]:
    return [(event.mod_revision, event.key, event.value, before.value if before else None) for event, before in changes]


def watchers_of(publication: Publication) -> list[Watcher]:
    return [watcher for watchers in publication.audience.values() for watcher in watchers]


def live(machine: StateMachine, watcher: Watcher) -> list[Line]:
    """What the outbox has for a watcher."""
    publications = machine.hub.take_outbox()
    return [line for each in publications if watcher in watchers_of(each) for line in lines(each.changes.events)]


def replayed(machine: StateMachine, watcher: Watcher, revisions_max: int = 1000) -> list[Line]:
    seen: list[Line] = []
    while watcher.lagging:
        seen += lines(machine.hub.replay(watcher, machine.revision, revisions_max))
    return seen


def test_watch_range() -> None:
    assert watch_range(b"a", b"") == (b"a", None)
    assert watch_range(b"", b"") == (b"\0", None)
    assert watch_range(b"", b"\0") == (b"\0", b"")
    assert watch_range(b"a", b"b") == (b"a", b"b")


def test_range_is_empty() -> None:
    assert range_is_empty(b"b", b"a")
    assert range_is_empty(b"a", b"a")
    assert not range_is_empty(b"a", b"b")
    assert not range_is_empty(b"a", b"")
    assert not range_is_empty(b"a", None)


@pytest.mark.parametrize("range_", RANGES)
def test_each_kind_of_range_is_sent_what_it_covers(range_: tuple[bytes, bytes | None]) -> None:
    machine = new_machine()
    watcher = Watcher(0, *range_)
    machine.hub.add(watcher)
    key, end = range_
    wanted = []
    for revision, each in enumerate(KEYS, start=2):
        put(machine, each)
        if each == key or (end is not None and each >= key and (end == b"" or each < end)):
            wanted.append((revision, each, b"v", None))
    assert live(machine, watcher) == wanted
    assert machine.hub.take_outbox() == []


def test_one_publication_per_revision_and_watcher() -> None:
    machine = new_machine()
    for key in (b"a", b"b", b"c"):
        put(machine, key)
    everything, one = Watcher(0, b"\0", b""), Watcher(1, b"b")
    machine.hub.add(everything)
    machine.hub.add(one)
    delete(machine, b"a", b"c")
    outbox = machine.hub.take_outbox()
    seen = {(w.watch_id, p.changes.revision, len(p.changes.events)) for p in outbox for w in watchers_of(p)}
    assert seen == {(0, 5, 2), (1, 5, 1)}


def test_only_changes_after_the_creation() -> None:
    machine = new_machine()
    put(machine, b"a")
    watcher = Watcher(0, b"a")
    machine.hub.add(watcher)
    assert not watcher.lagging
    put(machine, b"a", b"2")
    assert live(machine, watcher) == [(3, b"a", b"2", None)]


def test_a_start_in_the_future_suppresses_what_comes_before() -> None:
    machine = new_machine()
    watcher = Watcher(0, b"a", start_revision=4)
    machine.hub.add(watcher)
    assert not watcher.lagging
    for _ in range(4):
        put(machine, b"a")
    assert [line[0] for line in live(machine, watcher)] == [4, 5]


def test_filters_and_prev_kv() -> None:
    machine = new_machine()
    no_put = Watcher(0, b"a", filters=[NO_PUT], prev_kv=True)
    no_delete = Watcher(1, b"a", filters=[NO_DELETE], prev_kv=True)
    nothing = Watcher(2, b"a", filters=[NO_DELETE, NO_PUT])
    for watcher in (no_put, no_delete, nothing):
        machine.hub.add(watcher)
    put(machine, b"a", b"1")
    put(machine, b"a", b"2")
    delete(machine, b"a")
    outbox = machine.hub.take_outbox()
    seen = {
        watcher: [line for p in outbox if watcher in watchers_of(p) for line in lines(p.changes.events)]
        for watcher in (no_put, no_delete)
    }
    assert seen[no_put] == [(4, b"a", None, b"2")]
    assert seen[no_delete] == [(2, b"a", b"1", None), (3, b"a", b"2", b"1")]
    assert not [each for each in outbox if nothing in watchers_of(each)]


def test_removed_watchers_hear_nothing_and_leave_nothing() -> None:
    machine = new_machine()
    hub = machine.hub
    watchers = [Watcher(number, *range_) for number, range_ in enumerate(RANGES * 2)]
    for watcher in watchers:
        hub.add(watcher)
    assert hub.count == len(watchers)
    for watcher in watchers:
        hub.remove(watcher)
        assert watcher.cancelled
        hub.remove(watcher)  # again: nothing happens
    assert hub.count == 0
    for key in KEYS:
        put(machine, key)
    assert hub.take_outbox() == []
    assert not hub._by_key
    assert not hub._by_prefix
    assert not hub._ranges


def test_lease_end_is_sent_in_key_order_in_one_revision() -> None:
    machine = new_machine()
    machine.apply(rpc_pb2.LeaseGrantRequest(ID=1, TTL=5), 0.0)
    for key in (b"/b", b"/c", b"/a"):
        machine.apply(rpc_pb2.PutRequest(key=key, value=b"v", lease=1), 0.0)
    watcher = Watcher(0, b"/", b"0", prev_kv=True)
    machine.hub.add(watcher)
    assert machine.expire(5.0, 10) == 1
    assert live(machine, watcher) == [(5, b"/a", None, b"v"), (5, b"/b", None, b"v"), (5, b"/c", None, b"v")]


# --- history ----------------------------------------------------------------------------------------------------


def test_replay_then_live() -> None:
    machine = new_machine()
    for value in (b"1", b"2", b"3"):
        put(machine, b"a", value)
    watcher = Watcher(0, b"a", start_revision=3, prev_kv=True)
    machine.hub.add(watcher)
    assert watcher.lagging
    put(machine, b"a", b"4")
    assert machine.hub.take_outbox() == []  # it will find that in the history
    assert replayed(machine, watcher) == [(3, b"a", b"2", b"1"), (4, b"a", b"3", b"2"), (5, b"a", b"4", b"3")]
    put(machine, b"a", b"5")
    assert live(machine, watcher) == [(6, b"a", b"5", b"4")]


def test_replay_up_to_a_revision_leaves_the_rest() -> None:
    machine = new_machine()
    for _ in range(4):
        put(machine, b"a")
    watcher = Watcher(0, b"a", start_revision=1)
    machine.hub.add(watcher)
    assert [line[0] for line in lines(machine.hub.replay(watcher, 3, 1000))] == [2, 3]
    assert watcher.lagging
    assert watcher.next_revision == 4
    assert [line[0] for line in replayed(machine, watcher)] == [4, 5]


def test_replay_in_portions_of_whole_revisions() -> None:
    machine = new_machine()
    for key in (b"a", b"b", b"c"):
        put(machine, key)
    delete(machine, b"a", b"d")
    put(machine, b"a")
    watcher = Watcher(0, b"a", b"d", start_revision=1)
    machine.hub.add(watcher)
    portions = []
    while watcher.lagging:
        portions.append([line[0] for line in lines(machine.hub.replay(watcher, machine.revision, 2))])
    assert portions == [[2, 3], [4, 5, 5, 5], [6]]


def test_a_watcher_that_fell_behind_continues_where_it_lost() -> None:
    machine = new_machine()
    watcher = Watcher(0, b"a")
    machine.hub.add(watcher)
    for _ in range(3):
        put(machine, b"a")
    lost = machine.hub.take_outbox()
    machine.hub.lag(watcher, lost[1].changes.revision)
    put(machine, b"a")
    assert machine.hub.take_outbox() == []
    assert [line[0] for line in replayed(machine, watcher)] == [3, 4, 5]


def test_compacted() -> None:
    machine = new_machine()
    put(machine, b"a", b"1")
    put(machine, b"a", b"2")
    delete(machine, b"a")
    put(machine, b"b")
    machine.apply(rpc_pb2.CompactionRequest(revision=4), 0.0)
    before, at = Watcher(0, b"a", start_revision=3), Watcher(1, b"a", start_revision=4, prev_kv=True)
    machine.hub.add(before)
    machine.hub.add(at)
    with pytest.raises(CompactedError) as caught:
        machine.hub.replay(before, machine.revision, 1000)
    assert caught.value.compact_revision == 4
    assert replayed(machine, at) == [(4, b"a", None, None)]  # what was before the delete is compacted


def test_event_bytes_with_prev_kv() -> None:
    machine = new_machine()
    put(machine, b"a", b"1")
    watcher = Watcher(0, b"a", prev_kv=True)
    machine.hub.add(watcher)
    put(machine, b"a", b"2")
    delete(machine, b"a")
    seen = [
        mvcc_pb2.Event.FromString(event_bytes(*each)) for p in machine.hub.take_outbox() for each in p.changes.events
    ]
    first = mvcc_pb2.KeyValue(key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1)
    second = mvcc_pb2.KeyValue(key=b"a", value=b"2", create_revision=2, mod_revision=3, version=2)
    assert seen == [
        mvcc_pb2.Event(kv=second, prev_kv=first),
        mvcc_pb2.Event(type=mvcc_pb2.Event.DELETE, kv=mvcc_pb2.KeyValue(key=b"a", mod_revision=4), prev_kv=second),
    ]


PLAN = st.lists(st.tuples(st.sampled_from(("put", "delete", "range")), st.sampled_from(KEYS)), min_size=1, max_size=30)


@pytest.mark.parametrize("by", ["versions", "log", "short stretches of the log"])
def test_history_sends_the_events_that_live_watchers_got(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of reading the history, for each kind of range, from each revision, in portions."""
    if by != "versions":
        monkeypatch.setattr(watch_hub, "_CHAIN_STEPS_MAX", 1)
    if by == "short stretches of the log":
        monkeypatch.setattr(watch_hub, "_SCAN_EVENTS_MAX", 2)

    @settings(max_examples=40)
    @given(PLAN, st.integers(1, 3))
    def check(plan: list[tuple[str, bytes]], revisions_max: int) -> None:
        machine = new_machine()
        watchers = [Watcher(number, *range_, prev_kv=True) for number, range_ in enumerate(RANGES)]
        for watcher in watchers:
            machine.hub.add(watcher)
        for what, key in plan:
            if what == "put":
                put(machine, key)
            else:
                delete(machine, key, b"\0" if what == "range" else b"")
        outbox = machine.hub.take_outbox()
        for watcher in watchers:
            seen = [line for each in outbox if watcher in watchers_of(each) for line in lines(each.changes.events)]
            for start in {1, machine.revision // 2 + 1, machine.revision}:
                late = Watcher(99, watcher.key, watcher.end, prev_kv=True, start_revision=start)
                machine.hub.add(late)
                assert replayed(machine, late, revisions_max) == [line for line in seen if line[0] >= start]
                machine.hub.remove(late)

    check()


def test_a_piece_of_history_is_bounded_in_bytes() -> None:
    machine = new_machine()
    for _ in range(7):
        put(machine, b"k", b"v" * 999)  # revisions 2 to 8, 1,000 bytes each with the key
    for bytes_max, revisions in ((3_000, [[2, 3, 4], [5, 6, 7], [8]]), (2_999, [[2, 3], [4, 5], [6, 7], [8]])):
        watcher = Watcher(1, b"k", start_revision=2)
        machine.hub.add(watcher)
        for piece in revisions:
            assert [line[0] for line in lines(machine.hub.replay(watcher, 8, 1000, bytes_max))] == piece
        assert not watcher.lagging


def test_what_was_there_before_counts_in_a_piece() -> None:
    machine = new_machine()
    for _ in range(4):
        put(machine, b"k", b"v" * 999)
    watcher = Watcher(1, b"j", b"l", start_revision=2, prev_kv=True)
    machine.hub.add(watcher)
    pieces = [[line[0] for line in lines(machine.hub.replay(watcher, 5, 1000, 3_000))] for _ in range(3)]
    assert pieces == [[2, 3], [4], [5]]  # the creation has nothing before it


def test_a_revision_larger_than_a_piece_is_sent_whole_and_alone() -> None:
    machine = new_machine()
    put(machine, b"a")
    ops = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=b"v" * 999)) for key in (b"a", b"b", b"c")]
    machine.apply(rpc_pb2.TxnRequest(success=ops), 0.0)
    put(machine, b"a")
    for key, end in ((b"a", b"d"), (b"\0", b"")):
        watcher = Watcher(1, key, end, start_revision=2)
        machine.hub.add(watcher)
        pieces = [[line[0] for line in lines(machine.hub.replay(watcher, 4, 1000, 1_500))] for _ in range(3)]
        assert pieces == [[2], [3, 3, 3], [4]]
        assert not watcher.lagging


def test_watchers_that_are_sent_the_same_share_it_owner_by_owner() -> None:
    """Encoded once for all of them: that is what many watchers of one key cost little by."""
    machine = new_machine()
    one, other = object(), object()
    plain = [Watcher(n, b"a", owner=one) for n in range(3)] + [Watcher(3, b"a", owner=other)]
    with_previous = [Watcher(4, b"a", owner=one, prev_kv=True), Watcher(5, b"a", owner=other, prev_kv=True)]
    no_puts = Watcher(6, b"a", owner=one, filters=[NO_PUT])
    by_prefix = Watcher(7, b"a", b"b", owner=one)
    put(machine, b"a", b"before")
    for watcher in (*plain, *with_previous, no_puts, by_prefix):
        machine.hub.add(watcher)
    put(machine, b"a", b"now")
    outbox = machine.hub.take_outbox()
    audiences = [{owner: [w.watch_id for w in seen] for owner, seen in p.audience.items()} for p in outbox]
    assert sorted(audiences, key=str) == sorted(
        [{one: [0, 1, 2], other: [3]}, {one: [4], other: [5]}, {one: [7]}], key=str
    )
    for publication in outbox:
        seen = rpc_pb2.WatchResponse.FromString(publication.changes.fields()).events
        wanted = b"before" if watchers_of(publication)[0].prev_kv else b""
        assert [(e.kv.value, e.prev_kv.value) for e in seen] == [(b"now", wanted)]
    delete(machine, b"a")
    sent_of_delete = [w.watch_id for p in machine.hub.take_outbox() for w in watchers_of(p)]
    assert sorted(sent_of_delete) == list(range(8))
    assert {w.next_revision for w in (*plain, *with_previous, no_puts, by_prefix)} == {machine.revision + 1}


def test_a_revision_with_many_events_is_one_publication_for_each_place() -> None:
    machine = new_machine()
    owner = object()
    for name in (b"a1", b"a2", b"b"):
        put(machine, name)
    both = [Watcher(n, b"a", b"b", owner=owner) for n in range(2)]
    span = Watcher(2, b"a2", b"c", owner=owner)
    for watcher in (*both, span):
        machine.hub.add(watcher)
    delete(machine, b"a", b"c")
    outbox = machine.hub.take_outbox()
    assert [([w.watch_id for w in watchers_of(p)], [e.key for e, _ in p.changes.events]) for p in outbox] == [
        ([0, 1], [b"a1", b"a2"]),
        ([2], [b"a2", b"b"]),
    ]
