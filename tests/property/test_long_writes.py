# SPDX-License-Identifier: Apache-2.0
"""Writes in steps: what comes of them is what one step would make; between the steps nothing of them can be seen."""

from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.state.digest import hash_kv
from lessor.state.journal import Batch
from lessor.state.long_read import LongRead
from lessor.state.long_write import LongWrite, Steps, in_order
from lessor.state.machine import Identity, StateMachine
from lessor.state.watcher import Watcher
from tests.property.test_long_reads import DELETE_OPS, KEYS, READS, WRITES, txns

ALL = rpc.RangeRequest(key=b"\0", range_end=b"\0")
LEASE, OTHER = 7, 8
MANY = 1_000_000
LATE = 100  # from here on: ids of watchers that come between the steps
NAMES = [b"%c%d" % (letter, number) for letter in b"abcde" for number in range(4)]

PUTS = st.builds(
    lambda key, value, lease: rpc.PutRequest(key=key, value=value, lease=lease),
    st.sampled_from(NAMES) | KEYS,
    st.sampled_from([b"", b"1", b"2"]),
    st.sampled_from([0, LEASE, LEASE, OTHER]),
)
DELETES = st.builds(
    lambda key, end, prev_kv: rpc.DeleteRangeRequest(key=key, range_end=end, prev_kv=prev_kv),
    KEYS,
    st.sampled_from([b"\0", b"c", b"e", b""]),
    st.booleans(),
)
EXPIRY = "the lease expires"
TXNS = txns(READS | WRITES | DELETE_OPS | st.builds(lambda t: rpc.RequestOp(request_txn=t), txns(WRITES | DELETE_OPS)))
LONG_WRITES = DELETES | TXNS | st.just(rpc.LeaseRevokeRequest(ID=LEASE)) | st.just(EXPIRY)
BETWEEN = st.sampled_from(["seal", "renew", "renew ended", "watch one", "watch all", "unwatch", "replay"])


def new_machine() -> StateMachine:
    machine = StateMachine(Identity(1, 2, 3))
    machine.apply(rpc.LeaseGrantRequest(ID=LEASE, TTL=10), 0.0)
    machine.apply(rpc.LeaseGrantRequest(ID=OTHER, TTL=1000), 0.0)
    return machine


def outcome(machine: StateMachine, asked: Any, now_s: float = 100.0) -> Any:
    """The write carried out at once."""
    try:
        return machine.expire(now_s, 10) if asked == EXPIRY else machine.apply_encoded(asked, now_s)
    except EtcdError as error:
        return error.message


def rows(*batches: Batch) -> tuple[list[Any], list[Any]]:
    """The events, and the last row of each lease."""
    leases = {row[0]: row for batch in batches for row in batch.leases}
    return [row for batch in batches for row in batch.events], sorted(leases.values())


def told(machine: StateMachine) -> list[Any]:
    """What has been published, but for late watchers: revision, watchers, events with the versions before them."""
    found = []
    for publication in machine.hub.take_outbox():
        watchers = sorted(watcher.watch_id for each in publication.audience.values() for watcher in each)
        watchers = [watch_id for watch_id in watchers if watch_id < LATE]
        events = [(repr(event), repr(previous)) for event, previous in publication.changes.events]
        if watchers:
            found.append((publication.changes.revision, watchers, events))
    return sorted(found)


class InSteps:
    """A machine in which a write is under way, and what happens between its steps."""

    def __init__(self, machine: StateMachine) -> None:
        self.machine = machine
        self.revision = machine.revision
        self.digest = hash_kv(machine.store)
        self.batches: list[Batch] = []
        self.late: list[Watcher] = []  # those that came between the steps
        self.sent: dict[Watcher, list[Any]] = {}
        self.renewed = 0
        self.written = False  # whether the write was long

    def run(self, asked: Any, between: list[str]) -> Any:
        machine = self.machine
        if asked == EXPIRY:
            ended = machine.expire_in_steps(100.0, 10)
            write = machine.under_way
            if write is None:
                return ended
        else:
            try:
                reply = machine.apply_in_pieces(asked, 100.0)
            except EtcdError as error:
                return error.message
            if not isinstance(reply, LongWrite):
                return self._joined(reply)
            write = reply
        assert machine.under_way is write
        self.written = True
        steps = iter(between)
        while write.step():
            self._look()
            self._between(next(steps, ""), write)
        assert machine.under_way is None
        if asked == EXPIRY:
            return 1
        return write.outcome.message if isinstance(write.outcome, EtcdError) else self._joined(write.outcome)

    def _joined(self, pieces: Any) -> Any:
        try:
            return pieces if isinstance(pieces, bytes) else b"".join(pieces)
        except EtcdError as error:
            return error.message
        finally:
            if isinstance(pieces, LongRead):
                pieces.close()

    def _look(self) -> None:
        """The store as of the revision before is as it was; nothing of the write is in the journal or told."""
        machine = self.machine
        assert machine.revision == self.revision
        assert hash_kv(machine.store, self.revision) == self.digest
        assert not machine.hub.outbox
        assert not [row for row in machine.journal.events if row[0] > self.revision]

    def _between(self, what: str, write: LongWrite) -> None:
        machine = self.machine
        ending = write.ending
        if what == "seal":
            batch = machine.journal.seal(100.0)
            assert not [row for row in batch.events if row[0] > self.revision]
            assert ending is None or not [row for row in batch.leases if row[0] == ending.id and row[3]]
            self.batches.append(batch)
        elif what == "renew":
            assert machine.renew(OTHER, 100.0) is not None
            self.renewed += 1
        elif what == "renew ended":
            renewed = machine.renew(LEASE, 0.0)  # which moves no deadline
            assert (renewed is None) == (ending is not None)
        elif what.startswith("watch"):
            key, end = (b"a1", None) if what == "watch one" else (b"\0", b"")
            late = Watcher(LATE + len(self.late), key, end)
            machine.watch(late)
            self.late.append(late)
            self.sent[late] = []
        elif what == "unwatch":
            if self.late:
                machine.unwatch(self.late[0])
        elif what == "replay":
            self._send_history()
        for request in (ALL, rpc.PutRequest(key=b"x"), rpc.LeaseGrantRequest(TTL=5), rpc.LeaseRevokeRequest(ID=OTHER)):
            with pytest.raises(RuntimeError):
                machine.apply(request, 100.0)
        with pytest.raises(RuntimeError):
            machine.expire(2_000.0, 10)

    def _send_history(self) -> None:
        for watcher in self.late:
            if watcher.lagging and not watcher.cancelled:
                self.sent[watcher] += [repr(event) for event, _ in self.machine.hub.replay(watcher, MANY, 100)]

    def finish_late(self) -> None:
        """Those that came between the steps are sent what they were not told."""
        for publication in self.machine.hub.outbox:
            for watchers in publication.audience.values():
                for watcher in watchers:
                    if watcher in self.sent:
                        self.sent[watcher] += [repr(event) for event, _ in publication.changes.events]
        self._send_history()


@given(
    st.lists(PUTS, min_size=6, max_size=30),
    LONG_WRITES,
    st.lists(BETWEEN, max_size=20),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
)
def test_a_write_in_steps_is_one_write(
    before: list[Any], asked: Any, between: list[str], step_keys: int, read_keys: int, watched: bool
) -> None:
    machine, other = new_machine(), new_machine()
    watchers = [Watcher(1, b"\0", b""), Watcher(2, b"a1"), Watcher(3, b"b", b"d", prev_kv=True)] if watched else []
    for each in machine, other:
        for watcher in watchers:
            each.watch(Watcher(watcher.watch_id, watcher.key, watcher.end, prev_kv=watcher.prev_kv))
        for put in before:
            each.apply(put, 0.0)
        each.hub.take_outbox()
    with mock.patch.object(limits, "WRITE_STEP_KEYS", MANY):
        wanted = outcome(other, asked)
    steps = InSteps(machine)
    with (
        mock.patch.object(limits, "WRITE_STEP_KEYS", step_keys),
        mock.patch.object(limits, "READ_STEP_KEYS", read_keys),
    ):
        assert steps.run(asked, between) == wanted
    for _ in range(steps.renewed):
        other.renew(OTHER, 100.0)
    steps.finish_late()
    assert told(machine) == told(other)
    events = [repr(event) for event in other.store.log_slice(other.store.log_position(steps.revision + 1), MANY)]
    for watcher, sent in steps.sent.items():
        if not watcher.cancelled:
            assert sent == [each for each in events if watcher.end is not None or "b'a1'" in each]
    assert rows(*steps.batches, machine.journal.seal(0.0)) == rows(other.journal.seal(0.0))
    assert machine.revision == other.revision
    for revision in range(1, machine.revision + 1):
        assert hash_kv(machine.store, revision) == hash_kv(other.store, revision)
    assert machine.apply(ALL, 100.0) == other.apply(ALL, 100.0)
    for one, twin in zip(machine.leases.by_deadline(), other.leases.by_deadline(), strict=True):
        assert (one.id, one.keys, one.deadline_s) == (twin.id, twin.keys, twin.deadline_s)
    if steps.written:
        for count in "puts", "deletes", "ranges":
            assert getattr(machine.store, count) == getattr(other.store, count), count
        assert machine.txns == other.txns


def filled(keys: int = 100) -> StateMachine:
    machine = new_machine()
    for number in range(keys):
        machine.apply(rpc.PutRequest(key=b"k%04d" % (number * 7919 % keys), lease=LEASE), 0.0)
    machine.watch(Watcher(1, b"\0", b"", prev_kv=True))
    machine.journal.seal(0.0)
    return machine


def _op(start: int, end: int) -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"k%04d" % start, range_end=b"k%04d" % end))


PUT_AND_RANGE = rpc.TxnRequest(
    success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"a")), rpc.RequestOp(request_range=ALL)]
)


@pytest.mark.inside
@pytest.mark.parametrize(
    "asked",
    [
        rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0"),
        rpc.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True),
        rpc.TxnRequest(success=[_op(number * 10, number * 10 + 10) for number in range(10)]),
        rpc.TxnRequest(success=[_op(0, 50), _op(50, 100)]),
        rpc.LeaseRevokeRequest(ID=LEASE),
        EXPIRY,
    ],
    ids=["delete", "with prev_kv", "txn of deletes", "txn of long deletes", "revoke", "expiry"],
)
def test_a_step_touches_a_bounded_number_of_keys(asked: Message | str) -> None:
    machine = filled()
    store = machine.store
    with mock.patch.object(limits, "WRITE_STEP_KEYS", 5), mock.patch.object(limits, "READ_STEP_KEYS", 5):
        if asked == EXPIRY:
            assert machine.expire_in_steps(100.0, 10) == 1
        else:
            assert isinstance(machine.apply_in_pieces(asked, 0.0), LongWrite)  # type: ignore[arg-type]
        write = machine.under_way
        assert write is not None
        assert store.changes == 0
        changed = [0]
        while write.step():
            changed.append(store.changes)
        assert max(later - earlier for earlier, later in pairwise(changed)) <= 10
        assert changed[-1] == 100
    assert store.count(b"k", b"l") == 0


def test_a_refused_txn_in_steps_leaves_everything_as_it_was() -> None:
    machine = filled()
    put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"z", lease=99))
    asked = rpc.TxnRequest(success=[_op(0, 100), put])
    digest, revision = hash_kv(machine.store), machine.revision
    with mock.patch.object(limits, "WRITE_STEP_KEYS", 5):
        write = machine.apply_in_pieces(asked, 0.0)
        assert isinstance(write, LongWrite)
        while write.step():
            pass
    assert isinstance(write.outcome, EtcdError)
    assert write.outcome.message == "etcdserver: requested lease not found"
    assert (hash_kv(machine.store), machine.revision, machine.under_way) == (digest, revision, None)
    assert not machine.journal.has_rows
    machine.apply(rpc.PutRequest(key=b"z"), 0.0)  # and its row goes to the journal
    assert len(machine.journal.events) == 1


def test_a_step_that_raises_leaves_nothing_in_the_journal_and_no_way_on() -> None:
    machine = filled()
    with mock.patch.object(limits, "WRITE_STEP_KEYS", 5):
        write = machine.apply_in_pieces(rpc.LeaseRevokeRequest(ID=LEASE), 0.0)
        assert isinstance(write, LongWrite)
        while machine.store.changes < 50:
            write.step()
        with mock.patch.object(machine.store, "_gone", None), pytest.raises(TypeError):
            write.step()
    assert machine.under_way is write
    assert not machine.journal.has_rows
    with pytest.raises(RuntimeError):
        machine.apply(rpc.PutRequest(key=b"z"), 0.0)


def test_leases_that_end_in_one_call_have_a_bounded_number_of_keys() -> None:
    machine = new_machine()
    for lease in range(20, 40):
        machine.apply(rpc.LeaseGrantRequest(ID=lease, TTL=10), 0.0)
        for number in range(lease % 4):
            machine.apply(rpc.PutRequest(key=b"%d/%d" % (lease, number), lease=lease), 0.0)
    ended: list[int] = []
    with mock.patch.object(limits, "WRITE_STEP_KEYS", 4):
        while machine.leases.get(39) is not None:
            keys = len(machine.store)
            ended.append(machine.expire_in_steps(20.0, 10))
            assert machine.under_way is None
            assert keys - len(machine.store) <= 4
    assert max(ended) > 1
    assert len(machine.store) == 0


@given(st.sets(st.binary(max_size=3), max_size=300), st.integers(1, 5))
def test_the_keys_of_a_lease_come_in_order(keys: set[bytes], step_keys: int) -> None:
    with mock.patch.object(limits, "WRITE_STEP_KEYS", step_keys):
        lists = list(in_order(set(keys)))
    assert [key for some in lists for key in some] == sorted(keys)
    assert all(len(some) <= step_keys for some in lists)


def test_a_refusal_after_the_first_change_is_a_bug_and_no_answer() -> None:
    def steps() -> Steps:
        yield
        raise errors.LEASE_NOT_FOUND.error()

    ended: list[bool] = []
    for untouched in True, False:
        write = LongWrite(steps(), None, lambda untouched=untouched: untouched, lambda: ended.append(True))  # type: ignore[misc]
        assert write.step()
        if untouched:
            assert not write.step()
            assert isinstance(write.outcome, EtcdError)
        else:
            with pytest.raises(RuntimeError):
                write.step()
    assert ended == [True]
