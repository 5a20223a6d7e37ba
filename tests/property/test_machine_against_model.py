# SPDX-License-Identifier: Apache-2.0
"""The state machine does what the model does: the same replies, errors, events and end state for any sequence.

After each step the test compares the reply (or the error's code and text), what a watcher of all keys was sent, and
when the next lease is due. After the last one it compares every readable revision, every lease with its keys and
remaining time, and the history from each revision on.
"""

from typing import Any
from unittest import mock

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event
from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.state.machine import Identity, StateMachine
from lessor.state.watch_changes import event_bytes
from lessor.state.watch_hub import CompactedError
from lessor.state.watcher import Watcher
from tests.model import Model
from tests.property.strategies import (
    EDGES,
    EVERYTHING,
    TXN_OPS_MAX,
    WARM_UP,
    Advance,
    reads_and_transactions,
    sequences,
)
from tests.property.translate import Translator, comparable

MIN_TTL_S = 2
# Every step has its own instant, so that no two deadlines are equal and the order of expiry is defined. A power of two
# keeps the sums exact.
STEP_S = 1 / 1024
LEASE_ID_SEED = 1 << 40  # away from the ids that sequences choose themselves


def _outcome(server: Model | StateMachine, request: Message, now: float) -> Any:
    """The reply, or the error's code and text."""
    try:
        return server.apply(request, now)
    except EtcdError as error:
        return error.code, error.message


class Pair:
    """A state machine and a model that are given the same steps."""

    def __init__(self) -> None:
        self.machine = StateMachine(
            Identity(1, 1, 2), min_lease_ttl_s=MIN_TTL_S, max_txn_ops=TXN_OPS_MAX, lease_id_seed=LEASE_ID_SEED
        )
        self.model = Model(min_lease_ttl_s=MIN_TTL_S, max_txn_ops=TXN_OPS_MAX)
        self.numbers = Translator(self.model)
        self.now = 0.0
        self.machine.hub.add(Watcher(0, b"\0", b"", prev_kv=True))

    def step(self, step: Any) -> None:
        told_before = self.model.revision
        self.now += STEP_S
        if isinstance(step, Advance):
            self.now += step.seconds
            self._expire(step.leases_max)
        else:
            self._apply(self.numbers.placed(step))
        assert self.machine.revision == self.model.revision
        assert self.machine.compact_revision == self.model.compact_revision
        self._compare_publications(told_before + 1)
        self._compare_next_deadline()

    def _apply(self, request: Message) -> None:
        wanted = _outcome(self.model, request, self.now)
        got = _outcome(self.machine, self.numbers.request(request), self.now)
        if isinstance(wanted, tuple) or isinstance(got, tuple):
            assert got == wanted, request
            return
        if isinstance(request, rpc.LeaseGrantRequest) and request.ID == 0:
            assert got.ID > 0
            assert got.ID not in self.model.leases
            self.numbers.drew(wanted.ID, got.ID)
        if isinstance(wanted, rpc.LeaseLeasesResponse):
            # Sorted away by `comparable`, but ours promises the order: the one that ends first comes first.
            assert self._in_models_ids(got) == [lease.ID for lease in wanted.leases]
        assert self.numbers.reply(got) == comparable(wanted), request

    def _in_models_ids(self, listing: rpc.LeaseLeasesResponse) -> list[int]:
        return [self.numbers.lease(lease.ID) for lease in listing.leases]

    def _expire(self, leases_max: int) -> None:
        if leases_max == 0:
            return
        wanted = len(self.model.expire(self.now))
        ended = 0
        # A round may end none and yet leave some due: those it looked at first had been renewed.
        for _ in range(100):
            round_ended = self.machine.expire(self.now, leases_max)
            assert round_ended <= leases_max
            ended += round_ended
            due = self.machine.next_deadline()
            if due is None or due > self.now:
                break
        assert ended == wanted

    def _compare_publications(self, first: int) -> None:
        revisions = []
        sent = []
        for publication in self.machine.hub.take_outbox():
            changes = publication.changes
            revisions.append(changes.revision)
            events = [Event.FromString(event_bytes(event, previous)) for event, previous in changes.events]
            assert {event.kv.mod_revision for event in events} == {changes.revision}
            sent += [self.numbers.reply(event) for event in events]
        assert revisions == list(range(first, self.model.revision + 1))  # each revision is sent once, as a whole
        # Nothing can have been compacted between a change and its event, so prev_kv is always there.
        assert sent == [event for main in revisions for event in self.model.history[main]]

    def _compare_next_deadline(self) -> None:
        due = self.machine.next_deadline()
        if not self.model.leases:
            assert due is None
        else:
            assert due is not None
            assert due <= min(lease.deadline_s for lease in self.model.leases.values())

    def compare_state(self) -> None:
        for revision in range(max(1, self.model.compact_revision), self.model.revision + 1):
            self._apply(rpc.RangeRequest(revision=revision, **EVERYTHING))
        self._apply(rpc.LeaseLeasesRequest())
        for lease_id in [*self.model.leases, 3]:
            self._apply(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True))
        self._apply(rpc.AlarmRequest())
        for start in range(1, self.model.revision + 1):
            self._compare_history(start)

    def _compare_history(self, start: int) -> None:
        watcher = Watcher(1, b"\0", b"", prev_kv=True, start_revision=start)
        sent: list[Event] = []
        try:
            wanted = self.model.events_since(start)
        except EtcdError:
            with pytest.raises(CompactedError) as refused:
                self.machine.hub.replay(watcher, self.machine.revision, 1000)
            assert refused.value.compact_revision == self.model.compact_revision
            return
        if start == self.model.compact_revision and _changes_a_key_twice(self.model, start):
            return  # of such a revision etcd keeps what it happens to keep; nobody can rely on it
        while watcher.next_revision <= self.machine.revision:
            before = watcher.next_revision
            events = self.machine.hub.replay(watcher, self.machine.revision, 2)
            assert watcher.next_revision > before
            assert len({event.mod_revision for event, _ in events}) <= 2
            sent += [self.numbers.reply(Event.FromString(event_bytes(event, previous))) for event, previous in events]
        assert sent == wanted


def _changes_a_key_twice(model: Model, revision: int) -> bool:
    changed = [event.kv.key for event in model.history.get(revision, [])]
    return len(changed) > len(set(changed))


def _run(steps: list[Any], sweep: int = limits.SWEEP_EVENTS_MAX, write_keys: int = limits.WRITE_STEP_KEYS) -> None:
    """`sweep`: events that the machine takes out of memory at once after a compaction. `write_keys`: of a step."""
    pair = Pair()
    with (
        mock.patch.object(limits, "SWEEP_EVENTS_MAX", sweep),
        mock.patch.object(limits, "WRITE_STEP_KEYS", write_keys),
        mock.patch.object(limits, "READ_STEP_KEYS", min(write_keys, limits.READ_STEP_KEYS)),
    ):
        for step in steps:
            pair.step(step)
    pair.compare_state()


@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge: str) -> None:
    _run([*WARM_UP, EDGES[edge], rpc.PutRequest(key=b"b", value=b"z")])


@pytest.mark.slow
@given(sequences())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_same_as_model(steps: list[Any]) -> None:
    _run(steps)


@pytest.mark.slow
@given(sequences(length=60), st.integers(0, 2))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_same_as_model_while_history_is_swept(steps: list[Any], sweep: int) -> None:
    _run(steps, sweep)


@pytest.mark.slow
@given(sequences(length=40), st.integers(1, 5))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_same_as_model_when_writes_are_made_in_steps(steps: list[Any], write_keys: int) -> None:
    _run(steps, write_keys=write_keys)


@pytest.mark.slow
@given(reads_and_transactions(), st.integers(1, 5))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_transactions_in_steps_same_as_model(steps: list[Any], write_keys: int) -> None:
    _run(steps, write_keys=write_keys)


@pytest.mark.slow
@given(reads_and_transactions())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_reads_and_transactions_same_as_model(steps: list[Any]) -> None:
    _run(steps)


@pytest.mark.slow
@given(sequences(length=120))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_same_as_model_over_long_sequences(steps: list[Any]) -> None:
    _run(steps)


# --- the duplicate rule, in deeper nests than a sequence has --------------------------------------------------------

_FEW = st.sampled_from([b"a", b"a\0", b"b", b"c", b"d"])
_PUTS = st.builds(lambda key: rpc.RequestOp(request_put=rpc.PutRequest(key=key)), _FEW)
_DELETES = st.builds(
    lambda key, end: rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end)),
    _FEW,
    st.one_of(st.just(b""), st.just(b"\0"), _FEW),
)


def _nested(operations: Any) -> Any:
    lists = st.lists(operations, max_size=4)
    return st.builds(
        lambda then, otherwise: rpc.RequestOp(request_txn=rpc.TxnRequest(success=then, failure=otherwise)), lists, lists
    )


@given(st.lists(st.recursive(_PUTS | _DELETES | _DELETES, _nested, max_leaves=12), max_size=5))
def test_the_duplicate_rule_of_nested_txns(operations: list[Any]) -> None:
    request = rpc.TxnRequest(success=operations)

    def refusal(server: Model | StateMachine) -> str | None:
        try:
            server.apply(request, 0.0)
        except EtcdError as error:
            return error.message
        return None

    assert refusal(StateMachine(Identity(1, 2, 3))) == refusal(Model())
