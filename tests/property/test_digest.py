# SPDX-License-Identifier: Apache-2.0
"""HashKV: equal for equal data, however it came about and however it was added up; different for different data."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from lessor.state import digest as digest_module
from lessor.state.compacted import Compactions
from lessor.state.digest import KvDigest, hash_kv
from lessor.state.journal import AuthRows, Batch
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore
from tests.lines_run import lines_run

IDENTITY = Identity(1, 2, 3)
KEYS = st.sampled_from([b"a", b"b", b"b\0", b"c", b"d", b"e"])
WRITES = st.one_of(
    st.tuples(st.just("put"), KEYS, st.binary(max_size=3)),
    st.tuples(st.just("delete"), KEYS, st.just(b"")),
    st.tuples(st.just("compact"), st.just(b""), st.binary(min_size=1, max_size=1)),
)


def write(machine: StateMachine, what: str, key: bytes, value: bytes) -> None:
    request: Any
    if what == "put":
        request = rpc.PutRequest(key=key, value=value)
    elif what == "delete":
        request = rpc.DeleteRangeRequest(key=key)
    else:
        span = machine.revision - max(machine.compact_revision, 0)
        if span <= 0:
            return
        request = rpc.CompactionRequest(revision=max(machine.compact_revision, 0) + 1 + value[0] % span)
    machine.apply(request, 0.0)


class Rows:
    """What a data directory would hold after all batches, dead rows included."""

    def __init__(self, batches: list[Batch]) -> None:
        self.meta: Any = self
        self.batch, self.clock_s, self.clean = len(batches), 0.0, True
        self.compact_revision = max([batch.compact_revision or -1 for batch in batches], default=-1)
        self.events = [row for batch in batches for row in batch.events]
        self.leases: list[Any] = []
        self.alarms: list[Any] = []
        self.auth = AuthRows()
        self.peer_urls = ()


@given(st.lists(WRITES, max_size=30))
def test_a_replayed_copy_has_the_same_number_at_every_revision(writes: list[tuple[str, bytes, bytes]]) -> None:
    machine = StateMachine(IDENTITY)
    batches = []
    for each in writes:
        write(machine, *each)
        batches.append(machine.journal.seal(0.0))
    copy = restore(IDENTITY, Rows(batches))
    assert copy.revision == machine.revision
    machine.store.compactions = Compactions()  # a copy does not have them either: a restart forgets them, as in etcd
    for revision in range(max(machine.compact_revision, 1), machine.revision + 1):
        assert hash_kv(copy.store, revision) == hash_kv(machine.store, revision)


@given(
    st.lists(WRITES, max_size=30),
    st.lists(st.lists(WRITES, max_size=4), max_size=8),
    st.integers(1, 3),
)
def test_pieces_with_writes_in_between_add_up_to_the_whole(
    before: list[tuple[str, bytes, bytes]], between: list[list[tuple[str, bytes, bytes]]], keys_max: int
) -> None:
    machine = StateMachine(IDENTITY)
    for each in before:
        write(machine, *each)
    asked = machine.revision
    digest = KvDigest(machine.store, asked)
    wanted = digest.compact_revision, hash_kv(machine.store, asked)
    waves = iter(between)
    done = False
    while not done:
        if machine.compact_revision > asked and machine.store.compactions.find(asked) is None:
            with pytest.raises(EtcdError, match="required revision has been compacted"):
                digest.step(keys_max)
            return
        done = digest.step(keys_max)
        machine.store.sweep(1)
        for each in next(waves, []):
            write(machine, *each)
    assert digest.revision == asked
    if digest.compact_revision == wanted[0]:  # also where a compaction at that revision came in between
        assert digest.value == wanted[1]
    # After the last piece another wave came, which may have compacted: then there is nothing to compare with.
    if digest.compact_revision == machine.compact_revision:
        assert digest.value == hash_kv(machine.store, asked)


@given(st.lists(WRITES, min_size=1, max_size=20), st.data())
def test_one_write_more_or_less_shows(writes: list[tuple[str, bytes, bytes]], data: st.DataObject) -> None:
    machine, other = StateMachine(IDENTITY), StateMachine(IDENTITY)
    for each in writes:
        write(machine, *each)
        write(other, *each)
    assert hash_kv(other.store) == hash_kv(machine.store)
    other.apply(rpc.PutRequest(key=data.draw(KEYS), value=b"new"), 0.0)
    assert hash_kv(other.store) != hash_kv(machine.store)
    assert hash_kv(other.store, machine.revision) == hash_kv(machine.store, machine.revision)


def test_a_digest_of_the_newest_that_is_compacted_away_begins_with_the_newest_then() -> None:
    machine = StateMachine(IDENTITY)
    for key in (b"a", b"b", b"c"):
        machine.apply(rpc.PutRequest(key=key), 0.0)
    digest = KvDigest(machine.store)
    assert not digest.step(1)
    machine.apply(rpc.PutRequest(key=b"d"), 0.0)
    machine.apply(rpc.CompactionRequest(revision=5), 0.0)
    while not digest.step(1):
        pass
    assert (digest.revision, digest.value) == (5, hash_kv(machine.store))


def test_revisions_that_are_not_there_are_refused() -> None:
    machine = StateMachine(IDENTITY)
    for _ in range(3):
        machine.apply(rpc.PutRequest(key=b"a"), 0.0)
    machine.apply(rpc.CompactionRequest(revision=3), 0.0)
    with pytest.raises(EtcdError, match="required revision has been compacted"):
        KvDigest(machine.store, 2)
    with pytest.raises(EtcdError, match="required revision is a future revision"):
        KvDigest(machine.store, 5)
    assert KvDigest(machine.store, 3).revision == 3


def lines_of_steps(digest: KvDigest) -> list[int]:
    """How many lines each step of the digest runs."""
    done: list[bool] = []
    lines: list[int] = []
    while not done or not done[-1]:
        lines.append(lines_run(digest_module, lambda: done.append(digest.step(20))))
    return lines


@pytest.mark.inside
def test_a_step_looks_at_a_bounded_number_of_versions_and_bytes() -> None:
    often, long = StateMachine(IDENTITY), StateMachine(IDENTITY)
    for number in range(2_000):
        often.apply(rpc.PutRequest(key=b"k", value=b"%d" % number), 0.0)
    for number in range(100):
        long.apply(rpc.PutRequest(key=b"%d" % number, value=b"x" * 20_480), 0.0)
    for machine, revision, steps_min in ((often, 0, 100), (often, 2, 50), (long, 0, 50)):
        digest = KvDigest(machine.store, revision)
        lines = lines_of_steps(digest)
        assert max(lines) < 800
        assert len(lines) >= steps_min
        assert digest.value == hash_kv(machine.store, revision)
