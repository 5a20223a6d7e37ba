# SPDX-License-Identifier: Apache-2.0
"""HashKV around compactions: the digest against its definition, over histories that are kept whole beside the store."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.base.revision import NOTHING_COMPACTED
from lessor.state.digest import KvDigest, hash_kv
from lessor.state.journal import EventRow, Journal
from lessor.state.leases import Lessor
from lessor.state.mvcc import Event, Store, stored_bytes

KEYS = (b"a", b"b", b"c")
# A write: each key is put, deleted, or deleted and put. Or a compaction, so far from the newest revision.
WRITES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from("pdx"), min_size=1)
STEPS = st.lists(st.one_of(WRITES, WRITES, WRITES, st.integers(0, 4)), min_size=4, max_size=40)
PINS = st.lists(st.integers(0, 40), max_size=3)


def new_store() -> Store:
    journal = Journal()
    return Store(journal, Lessor(journal))


class Whole:
    """A store that is compacted, and beside it all events that there ever were."""

    def __init__(self) -> None:
        self.store = new_store()
        self.events: list[Event] = []
        self.rows: list[list[EventRow]] = []
        self.hashes: dict[int, tuple[int, int]] = {}  # of each compaction: the hash, the compact revision before

    def write(self, changes: dict[bytes, str]) -> None:
        store, revision = self.store, self.store.revision + 1
        for key, change in changes.items():
            if change in "dx" and store.get(key):
                store.delete(key)
            if change in "px":
                store.put(key, b"%d" % revision, 0)
        made = store.newest_events(store.changes) if store.changes else []
        store.finish()
        self.events += made
        if made:
            self.rows.append(
                [(e.mod_revision, e.sub, e.key, e.value, e.create_revision, e.version, e.lease) for e in made]
            )

    def defined(self, compact_revision: int, revision: int) -> int:
        """The sum over the versions that count, from the whole history."""
        newest = {event.key: event for event in self.events if event.mod_revision <= revision}
        return (
            sum(
                event.number()
                for event in self.events
                if event.mod_revision <= revision
                and (event.mod_revision > compact_revision or (event is newest[event.key] and event.value is not None))
            )
            % 2**32
        )

    def retained(self) -> list[Event]:
        """After the last compaction and its sweep."""
        compacted = self.store.compact_revision
        newest = {event.key: event for event in self.events if event.mod_revision <= compacted}
        return [
            event
            for event in self.events
            if event.mod_revision > compacted
            or (event is newest[event.key] and (event.value is not None or event.mod_revision == compacted))
        ]

    def compact(self, back: int) -> None:
        store = self.store
        revision = store.revision - back
        if revision > max(store.compact_revision, 1):
            self.hashes[revision] = self.defined(store.compact_revision, revision), store.compact_revision
            store.compact(revision)

    def check(self, store: Store) -> None:
        assert store.stored_bytes == sum(stored_bytes(event.size_bytes) for event in self.retained())
        remembered = sorted(self.hashes)[-limits.COMPACTIONS_KEPT :]
        for revision in range(1, store.revision + 1):
            if revision in remembered:
                digest = KvDigest(store, revision)
                assert digest.step(1000)
                assert (digest.value, digest.compact_revision) == self.hashes[revision]
            elif revision < store.compact_revision:
                with pytest.raises(EtcdError, match="compacted"):
                    KvDigest(store, revision)
            else:
                assert hash_kv(store, revision) == self.defined(store.compact_revision, revision)


@settings(max_examples=200)
@given(STEPS, st.integers(1, 9), PINS)
def test_a_hash_is_the_sum_of_what_counts(plan: list[dict[bytes, str] | int], sweep: int, pins: list[int]) -> None:
    whole = Whole()
    store = whole.store
    pinned = []
    for place, step in enumerate(plan):
        if place in pins:
            pinned.append(store.revision)
            store.pin(store.revision)
        if isinstance(step, int):
            whole.compact(step)
        else:
            whole.write(step)
        store.sweep(sweep)
    for revision in pinned:
        store.unpin(revision)
    while store.unswept:
        store.sweep(sweep)
    whole.check(store)
    loaded = new_store()
    rows = [row for written in whole.rows for row in written]
    loaded.load(rows, store.compact_revision)
    assert loaded.stored_bytes == store.stored_bytes


@settings(max_examples=50)
@given(STEPS)
def test_a_store_that_follows_has_the_same_hashes(plan: list[dict[bytes, str] | int]) -> None:
    whole, follower = Whole(), new_store()
    for step in plan:
        if isinstance(step, int):
            whole.compact(step)
            if whole.store.compact_revision > follower.compact_revision:
                follower.follow_compaction(whole.store.compact_revision)
        else:
            count = len(whole.rows)
            whole.write(step)
            for rows in whole.rows[count:]:
                follower.follow(rows)
        follower.sweep(3)
    while follower.unswept:
        follower.sweep(3)
    whole.check(follower)


def test_a_digest_at_a_compaction_waits_for_the_sweep() -> None:
    whole = Whole()
    for _ in range(3):
        whole.write({b"a": "p"})
    store = whole.store
    store.pin(2)
    whole.compact(0)
    digest = KvDigest(store, 4)
    assert not digest.step(1000)
    store.unpin(2)
    assert not digest.step(1000)
    while store.unswept:
        store.sweep(99)
    assert digest.step(1000)
    assert (digest.value, digest.compact_revision) == whole.hashes[4] == (whole.defined(1, 4), NOTHING_COMPACTED)


def test_two_keys_that_exchange_their_values_change_the_hash() -> None:
    """CRCs of equal length that are added up tell such data apart by luck only."""

    def hash_of(first: bytes, second: bytes) -> int:
        store = new_store()
        store.put(b"k1", first, 0)
        store.put(b"k2", second, 0)
        store.finish()
        return hash_kv(store)

    values = [b"%08d" % number for number in range(64)]
    pairs = [(one, other) for one in values for other in values if one < other]
    assert [pair for pair in pairs if hash_of(*pair) == hash_of(*reversed(pair))] == []


def test_a_step_of_a_sweep_is_bounded_by_events_and_by_bytes() -> None:
    """However many events the compact revision itself has, and however long the values that die are."""
    whole = Whole()
    store = whole.store
    keys = [b"%04d" % number for number in range(3 * limits.SWEEP_EVENTS_MAX)]
    for _ in range(2):
        for key in keys:
            store.put(key, b"v", 0)
        store.finish()
    store.compact(3)
    assert store.unswept == 2 * len(keys)
    assert not KvDigest(store, 3).step(10**6)
    steps = 0
    while store.unswept:
        before = store.unswept
        store.sweep(limits.SWEEP_EVENTS_MAX)
        assert before - store.unswept <= limits.SWEEP_EVENTS_MAX
        steps += 1
    assert steps >= 6
    store = new_store()
    for _ in range(8):
        store.put(b"long", b"v" * limits.SWEEP_BYTES_MAX, 0)
        store.finish()
    store.compact(store.revision)
    while store.unswept:
        before = store.unswept
        store.sweep(limits.SWEEP_EVENTS_MAX)
        assert before - store.unswept <= 3
