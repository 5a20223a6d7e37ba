# SPDX-License-Identifier: Apache-2.0
"""The store against plain dicts of whole snapshots, and the key index against sorting."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import mvcc_pb2, rpc_pb2
from lessor.base.errors import EtcdError
from lessor.state.digest import hash_kv
from lessor.state.encode import HeaderEncoder, nested, revision_header, varint
from lessor.state.journal import EventRow, Journal
from lessor.state.key_index import KeyIndex
from lessor.state.leases import Lessor
from lessor.state.mvcc import Event, Store

KEYS = (b"\0", b"a", b"a\0", b"ab", b"b", b"\xff", b"\xff\xff")
ENDS = (b"", b"a", b"a\0", b"b", b"c", b"\xff")

Shown = tuple[bytes, bytes | None, int, int, int, int]


def new_store() -> tuple[Store, Journal]:
    journal = Journal()
    return Store(journal, Lessor(journal)), journal


def shown(event: Event) -> Shown:
    return event.key, event.value, event.create_revision, event.mod_revision, event.version, event.lease


def put(store: Store, key: bytes, value: bytes = b"v") -> None:
    store.put(key, value, 0)
    store.finish()


def delete(store: Store, key: bytes) -> None:
    store.delete(key)
    store.finish()


# --- encoding ---------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1), st.integers(-(2**63), -1))


@given(NUMBERS)
def test_varint_is_protobufs(number: int) -> None:
    assert mvcc_pb2.KeyValue.FromString(b"\x30" + varint(number)).lease == number


def test_varint_at_the_edges() -> None:
    for number in (0, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28, 2**63 - 1, 2**64 - 1):
        decoded = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(varint(number)))
        assert decoded == number
        assert len(varint(number)) == max(1, -(-number.bit_length() // 7))


@given(st.binary(min_size=1, max_size=300), st.one_of(st.none(), st.binary(max_size=300)), NUMBERS, NUMBERS)
def test_event_bytes_are_protobufs(key: bytes, value: bytes | None, revision: int, lease: int) -> None:
    if value is None:
        event = Event(key, None, 0, revision, 0, 0, 0, None)
        kv = mvcc_pb2.KeyValue(key=key, mod_revision=revision)
        wanted = mvcc_pb2.Event(type=mvcc_pb2.Event.DELETE, kv=kv)
    else:
        event = Event(key, value, 5, revision, 0, 6, lease, None)
        kv = mvcc_pb2.KeyValue(key=key, value=value, create_revision=5, mod_revision=revision, version=6, lease=lease)
        wanted = mvcc_pb2.Event(kv=kv)
    assert mvcc_pb2.KeyValue.FromString(event.kv_bytes()) == kv
    assert mvcc_pb2.Event.FromString(event.event_bytes()) == wanted
    assert event.kv_bytes() is event.kv_bytes()
    assert event.event_bytes() is event.event_bytes()
    kv.value = b""
    assert mvcc_pb2.KeyValue.FromString(event.kv_bytes_without_value()) == kv


def test_only_short_encodings_are_kept() -> None:
    for size, kept in ((0, True), (64, True), (1024, True), (2048, False), (1_500_000, False)):
        event = Event(b"/svc/instances/00000001", b"v" * size, 5, 7, 0, 6, 3, None)
        assert (event.kv_bytes() is event.kv_bytes()) is kept
        assert (event.event_bytes() is event.event_bytes()) is kept
        again = mvcc_pb2.Event.FromString(event.event_bytes())
        assert again.kv == mvcc_pb2.KeyValue.FromString(event.kv_bytes())
        assert again.kv.value == b"v" * size
        assert (again.kv.mod_revision, again.kv.lease) == (7, 3)


def test_headers_are_protobufs() -> None:
    whole = rpc_pb2.PutResponse.FromString(HeaderEncoder(2**64 - 1, 3, 2).field(300)).header
    assert whole == rpc_pb2.ResponseHeader(cluster_id=2**64 - 1, member_id=3, revision=300, raft_term=2)
    inner = rpc_pb2.PutResponse.FromString(revision_header(300)).header
    assert inner == rpc_pb2.ResponseHeader(revision=300)
    assert nested(b"\x0a", b"") == b"\x0a\x00"


# --- key index --------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.booleans(), st.sampled_from(KEYS), st.sampled_from(ENDS)), max_size=60)
)
def test_key_index_is_a_sorted_set(plan: list[tuple[bytes, bool, bytes, bytes]]) -> None:
    index = KeyIndex()
    keys: set[bytes] = set()
    for key, reads, start, end in plan:
        if key in keys:
            keys.remove(key)
            index.remove(key)
        else:
            keys.add(key)
            index.add(key)
        assert len(index) == len(keys)
        if reads:
            wanted = [each for each in sorted(keys) if start <= each and (not end or each < end)]
            assert index.range(start, end) == wanted
            assert index.range(start, end, 2) == wanted[:2]
            assert index.count(start, end) == len(wanted)


def test_key_index_one_by_one_and_all_at_once() -> None:
    index = KeyIndex(b"%03d" % number for number in range(500))
    for number in range(0, 500, 7):
        index.remove(b"%03d" % number)
        index.add(b"%03dx" % number)
        assert index.count(b"0", b"") == 500
    for number in range(1, 500, 7):  # many without a read between
        index.remove(b"%03d" % number)
    wanted = sorted(
        [b"%03d" % number for number in range(500) if number % 7 > 1]
        + [b"%03dx" % number for number in range(0, 500, 7)]
    )
    assert index.range(b"\0", b"") == wanted


def test_key_index_puts_off_only_so_much() -> None:
    index = KeyIndex()
    keys = [b"%05d" % (number * 7919 % 10_000) for number in range(10_000)]
    for key in keys:
        index.add(key)
        assert len(index._added) < 2_000
    for key in keys[:6_000]:
        index.remove(key)
        assert len(index._removed) < 2_000
    assert index.range(b"\0", b"") == sorted(keys[6_000:])


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from((1, 3, 255, 256, 257, 900)), st.booleans()), max_size=12))
def test_key_index_takes_many_at_once(plan: list[tuple[bool, int, bool]]) -> None:
    """Every third key of those that are absent, or present, so that they lie between the others."""
    universe = [b"%05d" % number for number in range(3_000)]
    index, keys = KeyIndex(), set[bytes]()
    for adds, count, reads in plan:
        chosen = [key for key in universe if (key in keys) != adds][::3][:count]
        if adds:
            index.add_all(chosen)
            keys |= set(chosen)
        else:
            index.remove_all(chosen)
            keys -= set(chosen)
        assert len(index) == len(keys)
        if reads:
            assert index.range(b"", b"") == sorted(keys)
    assert index.range(b"", b"") == sorted(keys)


# --- store ------------------------------------------------------------------------------------------------------


def test_a_fresh_store() -> None:
    store, _ = new_store()
    assert (store.revision, store.compact_revision, len(store)) == (1, -1, 0)
    assert store.finish() == 0
    assert store.revision == 1


def test_versions_and_revisions() -> None:
    store, _ = new_store()
    put(store, b"a", b"1")
    put(store, b"a", b"2")
    delete(store, b"a")
    put(store, b"a", b"3")
    got = [store.get_at(b"a", revision) for revision in range(1, 6)]
    assert [event and shown(event) for event in got] == [
        None,
        (b"a", b"1", 2, 2, 1, 0),
        (b"a", b"2", 2, 3, 2, 0),
        None,
        (b"a", b"3", 5, 5, 1, 0),
    ]


def test_changes_of_one_write_share_a_revision_and_are_seen_inside() -> None:
    store, journal = new_store()
    put(store, b"c")
    store.put(b"a", b"1", 0)
    store.put(b"b", b"2", 0)
    store.delete(b"c")
    assert store.revision == 2
    assert store.revision_inside == 3
    assert [event.key for event in store.range(b"a", b"")] == [b"a", b"b"]
    assert [event.key for event in store.range_at(b"a", b"", 2)] == [b"c"]
    assert store.finish() == 3
    assert store.revision == 3
    assert [(row[0], row[1], row[2]) for row in journal.seal(0.0).events] == [
        (2, 0, b"c"),
        (3, 0, b"a"),
        (3, 1, b"b"),
        (3, 2, b"c"),
    ]


def test_one_bytes_object_per_key() -> None:
    store, journal = new_store()
    for _ in range(3):
        put(store, bytes(bytearray(b"same key")))
    delete(store, bytes(bytearray(b"same key")))
    assert len({id(row[2]) for row in journal.seal(0.0).events}) == 1


def test_put_moves_between_leases() -> None:
    journal = Journal()
    lessor = Lessor(journal)
    store = Store(journal, lessor)
    one, two = lessor.grant(1, 10, 0.0), lessor.grant(2, 10, 0.0)

    def held() -> tuple[list[bytes], list[bytes]]:
        return sorted(one.keys), sorted(two.keys)

    store.put(b"a", b"", 1)
    assert held() == ([b"a"], [])
    store.put(b"a", b"", 1)
    assert held() == ([b"a"], [])
    store.put(b"a", b"", 2)
    assert held() == ([], [b"a"])
    store.put(b"a", b"", 0)
    assert held() == ([], [])
    store.put(b"a", b"", 2)
    store.delete(b"a")
    assert held() == ([], [])
    store.put(b"a", b"", 1)
    assert held() == ([b"a"], [])


@pytest.mark.parametrize("count", [2, 700])
def test_many_deletes_are_the_same_as_one_by_one(count: int) -> None:
    def history(*, at_once: bool) -> tuple[object, ...]:
        journal = Journal()
        lessor = Lessor(journal)
        store, lease = Store(journal, lessor), lessor.grant(1, 10, 0.0)
        for number in range(1_000):
            store.put(b"%04d" % number, b"v", number % 2)
        store.finish()
        keys = [b"%04d" % number for number in range(150, 150 + count)]
        store.put(keys[0] + b"x", b"", 0)
        if at_once:
            store.delete_all(keys)
        else:
            for key in keys:
                store.delete(key)
        store.finish()
        seen = store.range(b"\0", b""), store.newest_of_range(b"\0", b""), store.range_at(b"\0", b"", 2)
        return repr(seen), hash_kv(store), sorted(lease.keys), journal.seal(0.0).events, repr(store.newest_events(9))

    assert history(at_once=True) == history(at_once=False)


Step = tuple[str, list[bytes], int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "write", "compact", "sweep")),
        st.lists(st.sampled_from(KEYS), max_size=4),
        st.integers(0, 9),
    ),
    min_size=5,
    max_size=25,
)


class Naive:
    """Snapshots and rows, kept for ever; what compaction leaves is computed from its definition."""

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = -1
        self.snapshots: dict[int, dict[bytes, Shown]] = {1: {}}
        self.rows: list[EventRow] = []

    def retained(self) -> list[tuple[int, int]]:
        """Rows after the compaction; at or before it, each key's newest unless that is a tombstone before it."""
        newest: dict[bytes, EventRow] = {}
        kept = []
        for row in self.rows:
            if row[0] > self.compact_revision:
                kept.append(row)
            else:
                newest[row[2]] = row
        kept += [row for row in newest.values() if row[3] is not None or row[0] == self.compact_revision]
        return sorted((row[0], row[1]) for row in kept)


def drive(store: Store, journal: Journal, plan: Iterable[Step]) -> Naive:
    """Runs a plan against both; a key in a write is put, or deleted where it exists and the number is odd.

    What a compaction gave up may still be in memory, wholly or in part.
    """
    naive = Naive()
    for what, keys, number in plan:
        if what == "sweep":
            store.sweep(number)
            continue
        if what == "compact":
            revision = max(naive.revision - number % 4, 0)
            if revision > naive.compact_revision:
                store.compact(revision)
                naive.compact_revision = revision
            continue
        for place, key in enumerate(keys):
            if (number + place) % 2 and store.get(key):
                store.delete(key)
            else:
                store.put(key, b"%d" % number, 0)
        store.finish()
        rows = journal.events[len(naive.rows) :]
        naive.rows += rows
        if rows:
            naive.revision += 1
            snapshot = dict(naive.snapshots[naive.revision - 1])
            for revision, _, key, value, create_revision, version, lease in rows:
                snapshot[key] = (key, value, create_revision, revision, version, lease)
                if value is None:
                    del snapshot[key]
            naive.snapshots[naive.revision] = snapshot
    return naive


@settings(max_examples=50)
@given(STEPS)
def test_every_retained_revision_can_be_read(plan: list[Step]) -> None:
    store, journal = new_store()
    naive = drive(store, journal, plan)
    assert (store.revision, store.compact_revision) == (naive.revision, naive.compact_revision)
    for revision in range(max(naive.compact_revision, 1), naive.revision + 1):
        snapshot = naive.snapshots[revision]
        assert [shown(event) for event in store.range_at(b"\0", b"", revision)] == [
            snapshot[key] for key in sorted(snapshot)
        ]
        for start in (b"a", b"b"):
            for end in ENDS:
                wanted = [key for key in sorted(snapshot) if start <= key and (not end or key < end)]
                assert [event.key for event in store.range_at(start, end, revision)] == wanted
    assert store.count(b"\0", b"") == len(store) == len(naive.snapshots[naive.revision])


@settings(max_examples=50)
@given(STEPS)
def test_compaction_reports_each_row_that_nothing_needs_once(plan: list[Step]) -> None:
    store, journal = new_store()
    naive = drive(store, journal, plan)
    store.sweep(store.unswept)
    rows = [(row[0], row[1]) for row in naive.rows]
    dead = journal.seal(0.0).dead
    assert len(dead) == len(set(dead))
    assert sorted(set(rows) - set(dead)) == naive.retained()


@settings(max_examples=50)
@given(STEPS)
def test_a_loaded_store_is_the_same_store(plan: list[Step]) -> None:
    """Whether the dead rows are still there or not, and for later compactions too."""
    store, journal = new_store()
    naive = drive(store, journal, plan)
    store.sweep(store.unswept)
    dead = set(journal.seal(0.0).dead)
    for rows in (naive.rows, [row for row in naive.rows if (row[0], row[1]) not in dead]):
        loaded, loaded_journal = new_store()
        loaded.load(rows, naive.compact_revision)
        again = loaded_journal.seal(0.0).dead
        assert len(again) == len(set(again))
        assert {(row[0], row[1]) for row in rows} - set(again) == set(naive.retained())
        assert hash_kv(loaded) == hash_kv(store)
        assert [repr(event) for event in loaded.log_slice(0, 999)] == [repr(event) for event in store.log_slice(0, 999)]
        if naive.compact_revision < naive.revision == store.revision:
            loaded.compact(naive.revision)
            loaded.sweep(loaded.unswept)
            left = {(row[0], row[1]) for row in rows} - set(again) - set(loaded_journal.seal(0.0).dead)
            compacted = Naive()
            compacted.rows, compacted.compact_revision = naive.rows, naive.revision
            assert left == set(compacted.retained())


@settings(max_examples=50)
@given(STEPS)
def test_nothing_retained_shows_how_far_a_sweep_has_come(plan: list[Step]) -> None:
    store, journal = new_store()
    naive = drive(store, journal, plan)

    def retained() -> object:
        events = store.log_slice(store.log_position(store.compact_revision), 999)
        befores = [store.previous_of(event) for event in events]
        ranges = [
            [shown(event) for event in store.range_at(b"\0", b"", revision)]
            for revision in range(max(naive.compact_revision, 1), naive.revision + 1)
        ]
        return hash_kv(store), ranges, repr(events), repr(befores)

    before = retained()
    while store.unswept:
        store.sweep(1)
        assert retained() == before


@settings(max_examples=50)
@given(STEPS)
def test_a_crash_between_any_two_deletions_of_rows_brings_nothing_back(plan: list[Step]) -> None:
    """The engine sorts what one batch names, and deletes it before what the next one names."""
    store, journal = new_store()
    naive = drive(store, journal, plan)
    deleted = sorted(journal.seal(0.0).dead)
    while store.unswept:
        store.sweep(2)
        deleted += sorted(journal.seal(0.0).dead)
    for count in range(len(deleted) + 1):
        loaded, _ = new_store()
        loaded.load([row for row in naive.rows if row[:2] not in set(deleted[:count])], naive.compact_revision)
        assert hash_kv(loaded) == hash_kv(store)
        assert repr(loaded.range(b"\0", b"")) == repr(store.range(b"\0", b""))


def test_the_worked_example() -> None:
    store, journal = new_store()
    put(store, b"k")
    put(store, b"k")
    delete(store, b"k")
    put(store, b"other")
    put(store, b"k")
    delete(store, b"k")
    put(store, b"other")
    put(store, b"other")

    def compact(revision: int) -> tuple[list[str], list[tuple[int, int]]]:
        store.compact(revision)
        store.sweep(99)
        chain = []
        event = store.newest_of(b"k")
        while event is not None:
            chain.append(("t" if event.value is None else "p") + str(event.mod_revision))
            event = event.previous
        return chain, journal.seal(0.0).dead

    assert compact(3) == (["t7", "p6", "t4", "p3"], [(2, 0)])
    assert compact(4) == (["t7", "p6", "t4"], [(3, 0)])
    assert compact(6) == (["t7", "p6"], [(4, 0)])
    chain, dead = compact(8)
    assert (chain, sorted(dead)) == ([], [(5, 0), (6, 0), (7, 0)])


# --- prev_kv ----------------------------------------------------------------------------------------------------


def test_previous_of() -> None:
    store, _ = new_store()
    put(store, b"a", b"1")
    put(store, b"a", b"2")
    delete(store, b"a")
    put(store, b"a", b"3")
    events = store.newest_events(4)
    befores = [store.previous_of(event) for event in events]
    assert [before and before.value for before in befores] == [None, b"1", b"2", None]


def test_previous_of_is_the_revision_before_not_the_change_before() -> None:
    store, _ = new_store()
    put(store, b"a", b"old")
    store.put(b"a", b"new", 0)
    store.delete(b"a")
    store.finish()
    befores = [store.previous_of(event) for event in store.newest_events(2)]
    assert [before and before.value for before in befores] == [b"old", b"old"]


def test_a_creating_put_has_no_previous() -> None:
    store, _ = new_store()
    put(store, b"a", b"old")
    store.delete(b"a")
    store.put(b"a", b"new", 0)
    store.finish()
    befores = [store.previous_of(event) for event in store.newest_events(2)]
    assert [before and before.value for before in befores] == [b"old", None]


def test_previous_of_what_is_compacted() -> None:
    store, _ = new_store()
    for value in (b"1", b"2", b"3", b"4"):
        put(store, b"a", value)
    store.compact(4)
    events = store.newest_events(2)
    assert (events[0].mod_revision, store.previous_of(events[0])) == (4, None)
    before = store.previous_of(events[1])
    assert before is not None
    assert before.value == b"3"


# --- HashKV -----------------------------------------------------------------------------------------------------


def test_hash_tells_data_apart() -> None:
    def hash_of(*writes: tuple[bytes, bytes]) -> int:
        store, _ = new_store()
        for key, value in writes:
            put(store, key, value)
        return hash_kv(store)

    some = hash_of((b"a", b"1"), (b"b", b"2"))
    assert some == hash_of((b"a", b"1"), (b"b", b"2"))
    others = {
        hash_of((b"a", b"1")),
        hash_of((b"a", b"1"), (b"b", b"3")),
        hash_of((b"b", b"2"), (b"a", b"1")),
        hash_of((b"a", b"1"), (b"b2", b"")),
        hash_of(),
    }
    assert some not in others
    assert len(others) == 5
    assert all(0 <= each < 2**32 for each in others)


def test_hash_at_a_revision_does_not_see_what_came_later() -> None:
    store, _ = new_store()
    put(store, b"a")
    put(store, b"b")
    then = hash_kv(store)
    delete(store, b"a")
    put(store, b"c")
    assert hash_kv(store, 3) == then
    assert hash_kv(store) != then
    assert hash_kv(store, -1) == hash_kv(store, 5) == hash_kv(store, 0)
    store.compact(4)
    with pytest.raises(EtcdError, match="compacted"):
        hash_kv(store, 3)
    with pytest.raises(EtcdError, match="future"):
        hash_kv(store, 6)


def test_hash_of_a_key_put_and_deleted_and_compacted() -> None:
    """The tombstone that is kept for watchers at the compact revision must not make a difference."""
    store, _ = new_store()
    put(store, b"a")
    put(store, b"z")
    delete(store, b"a")
    store.compact(4)
    loaded, _ = new_store()
    loaded.load([(3, 0, b"z", b"v", 3, 1, 0)], 4)
    assert hash_kv(loaded) == hash_kv(store)
