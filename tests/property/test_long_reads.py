# SPDX-License-Identifier: Apache-2.0
"""Long reads: made in steps they show what they would show at once, whatever is written and compacted in between."""

from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.state import mvcc
from lessor.state.digest import hash_kv
from lessor.state.key_index import KeyIndex
from lessor.state.long_read import LongRead
from lessor.state.long_write import LongWrite
from lessor.state.machine import Identity, StateMachine
from tests.lines_run import lines_run

IDENTITY = Identity(1, 2, 3)
COMPARE = cast(Any, rpc.Compare)
RANGE = cast(Any, rpc.RangeRequest)
KEYS = st.sampled_from([b"a", b"b", b"b\0", b"c", b"d", b"e"])
ENDS = st.sampled_from([b"\0", b"c", b"e", b"\0"])
VALUES = st.sampled_from([b"", b"1", b"2", b"a longer value"])
MANY = 1_000_000

PUTS = st.builds(rpc.PutRequest, key=KEYS, value=VALUES)
DELETES = st.builds(rpc.DeleteRangeRequest, key=KEYS, range_end=st.sampled_from([b"", b"", b"\0"]))
# The same key several times in one revision: such versions are dead as soon as the revision is compacted.
SWAPS = st.builds(
    lambda key: rpc.TxnRequest(
        success=[
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=b"\0")),
            rpc.RequestOp(request_txn=rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest(key=key))])),
        ]
    ),
    KEYS,
)
COMPACTIONS = st.builds(lambda share: share, st.integers(0, 255))  # how far, of all that could be compacted
CHANGES = st.one_of(PUTS, PUTS, DELETES, SWAPS, COMPACTIONS)
RANGES = st.builds(
    RANGE,
    key=KEYS,
    range_end=ENDS,
    limit=st.sampled_from([0, 0, 1, 2, 5]),
    revision=st.integers(-1, 12),
    sort_order=st.integers(0, 2),
    sort_target=st.integers(0, 4),
    keys_only=st.booleans(),
    count_only=st.booleans(),
    min_mod_revision=st.sampled_from([0, 0, 4]),
    max_create_revision=st.sampled_from([0, 0, 6]),
)
COMPARES = st.builds(
    lambda key, end, result, target, number: COMPARE(
        key=key,
        range_end=end,
        result=result,
        target=target,
        **{("version", "create_revision", "mod_revision")[target]: number},
    ),
    KEYS,
    st.sampled_from([b"", b"\0", b"c"]),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 5),
)


def txns(operations: Any) -> Any:
    return st.builds(
        rpc.TxnRequest,
        compare=st.lists(COMPARES, max_size=2),
        success=st.lists(operations, max_size=3),
        failure=st.lists(operations, max_size=2),
    )


READS = st.builds(lambda asked: rpc.RequestOp(request_range=asked), RANGES) | st.builds(
    lambda key: rpc.RequestOp(request_range=rpc.RangeRequest(key=key)), KEYS
)
READ_TXNS = txns(READS | st.builds(lambda txn: rpc.RequestOp(request_txn=txn), txns(READS)))
WRITES = st.builds(lambda key: rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=b"w", prev_kv=True)), KEYS)
DELETE_OPS = st.builds(
    lambda key, end: rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=end, prev_kv=True)),
    KEYS,
    ENDS,
)
WRITE_TXNS = txns(READS | WRITES | DELETE_OPS)


def change(machine: StateMachine, what: Message | int) -> None:
    if isinstance(what, int):
        span = machine.revision - max(machine.compact_revision, 0)
        if span <= 0:
            return
        what = rpc.CompactionRequest(revision=max(machine.compact_revision, 0) + 1 + what % span)
    machine.apply(what, 0.0)


def outcome(pieces: Any) -> bytes | str:
    try:
        return pieces if isinstance(pieces, bytes) else b"".join(pieces)
    except EtcdError as error:
        return error.message


def asked_at_once(machine: StateMachine, asked: Message) -> bytes | str:
    with mock.patch.object(limits, "READ_STEP_KEYS", MANY):
        try:
            return machine.apply_encoded(asked, 0.0)
        except EtcdError as error:
            return error.message


def in_steps(machine: StateMachine, asked: Message, between: Iterator[list[Message | int]]) -> bytes | str:
    """The answer when changes are made before each step but the first."""
    made = b""
    try:
        reply = machine.apply_in_pieces(asked, 0.0)
        if isinstance(reply, LongWrite):
            reply = reply.complete()
        if isinstance(reply, bytes):
            return reply
        try:
            for piece in reply:
                made += piece
                for each in next(between, ()):
                    change(machine, each)
        finally:
            if isinstance(reply, LongRead):
                reply.close()
    except EtcdError as error:
        return error.message
    return made


@given(
    st.lists(CHANGES, max_size=25),
    RANGES | READ_TXNS,
    st.lists(st.lists(CHANGES, max_size=3), max_size=12),
    st.integers(1, 3),
    st.integers(1, 20),
)
def test_a_read_in_steps_shows_the_revision_of_its_first_step(
    before: list[Any], asked: Message, between: list[list[Any]], step_keys: int, step_bytes: int
) -> None:
    machine, other = StateMachine(IDENTITY), StateMachine(IDENTITY)
    for each in before:
        change(machine, each)
        change(other, each)
    wanted = asked_at_once(machine, asked)
    waves = iter(between)
    with (
        mock.patch.object(limits, "READ_STEP_KEYS", step_keys),
        mock.patch.object(limits, "READ_STEP_BYTES", step_bytes),
    ):
        assert in_steps(machine, asked, waves) == wanted
    # What a pinned revision held up is done afterwards, and nothing else differs from a store that was never pinned.
    for wave in between[: len(between) - len(list(waves))]:
        for each in wave:
            change(other, each)
    for each in machine, other:
        while each.store.sweep(1):
            pass
        assert each.store.unswept == 0
    assert machine.revision == other.revision
    for revision in range(max(machine.compact_revision, 1), machine.revision + 1):
        assert hash_kv(machine.store, revision) == hash_kv(other.store, revision)
    batch, other_batch = machine.journal.seal(0.0), other.journal.seal(0.0)
    assert sorted(batch.dead) == sorted(other_batch.dead)


@given(
    st.lists(CHANGES, max_size=25), WRITE_TXNS, st.lists(st.lists(CHANGES, max_size=3), max_size=12), st.integers(1, 3)
)
def test_a_write_in_steps_shows_what_it_shows_at_once(
    before: list[Any], asked: Message, between: list[list[Any]], step_keys: int
) -> None:
    machine, other = StateMachine(IDENTITY), StateMachine(IDENTITY)
    for each in before:
        change(machine, each)
        change(other, each)
    wanted = asked_at_once(other, asked)
    with mock.patch.object(limits, "READ_STEP_KEYS", step_keys):
        assert in_steps(machine, asked, iter(between)) == wanted


@pytest.mark.inside
def test_a_step_looks_at_a_bounded_number_of_keys() -> None:
    machine = StateMachine(IDENTITY)
    for number in range(100):
        machine.apply(rpc.PutRequest(key=b"k%02d" % number), 0.0)
    everything = rpc.RangeRequest(key=b"\0", range_end=b"\0")
    compare = COMPARE(result=1, target=1, key=b"\0", range_end=b"\0")
    requests = [
        everything,
        rpc.RangeRequest(key=b"\0", range_end=b"\0", revision=7, count_only=True),
        RANGE(key=b"\0", range_end=b"\0", sort_order=2, sort_target=4, limit=1),
        rpc.TxnRequest(compare=[compare], success=[rpc.RequestOp(request_range=everything)]),
    ]
    looked: list[int] = []
    plain = KeyIndex.range

    def counted(index: KeyIndex, *asked: Any) -> list[bytes]:
        found = plain(index, *asked)
        looked[-1] += len(found)
        return found

    with mock.patch.object(limits, "READ_STEP_KEYS", 5), mock.patch.object(KeyIndex, "range", counted):
        for asked in requests:
            looked.append(0)
            reply = machine.apply_in_pieces(asked, 0.0)
            assert isinstance(reply, LongRead)
            looked.extend(0 for _ in reply)
            reply.close()
            assert len(looked) > 20
            assert max(looked) <= 6
            looked.clear()


END = b"the end"
OLD = rpc.RangeRequest(key=b"k", revision=2)
OLD_RANGE = rpc.RangeRequest(key=b"a", range_end=b"z", revision=2)


def often_written() -> StateMachine:
    """A key with 1,000 versions, the first of them at revision 2."""
    machine = StateMachine(IDENTITY)
    for number in range(1_000):
        machine.apply(rpc.PutRequest(key=b"k", value=b"%d" % number), 0.0)
    return machine


def old_gets(*others: rpc.RequestOp) -> rpc.TxnRequest:
    gets = [rpc.RequestOp(request_range=rpc.RangeRequest(key=b"k", revision=2 + number)) for number in range(10)]
    inner = rpc.RequestOp(request_txn=rpc.TxnRequest(success=gets))
    return rpc.TxnRequest(success=[*gets, inner, *others])


@pytest.mark.inside
@pytest.mark.parametrize(
    "asked",
    [
        OLD,
        OLD_RANGE,
        RANGE(key=b"k", revision=2, count_only=True),
        old_gets(),
        rpc.TxnRequest(success=[rpc.RequestOp(request_range=OLD_RANGE)]),
    ],
    ids=["get", "range", "count", "gets in txns", "range in a txn"],
)
def test_a_step_looks_at_a_bounded_number_of_versions(asked: Message) -> None:
    machine = often_written()
    wanted = asked_at_once(machine, asked)
    replies: list[Any] = []
    pieces: list[bytes] = []
    with mock.patch.object(limits, "READ_STEP_KEYS", 10):
        assert lines_run(mvcc, lambda: replies.append(machine.apply_in_pieces(asked, 0.0))) < 400
        reply = replies[0]
        assert isinstance(reply, LongRead)
        steps: list[int] = []
        while not steps or pieces[-1] is not END:
            steps.append(lines_run(mvcc, lambda: pieces.append(next(reply, END))))
        reply.close()
    assert b"".join(pieces[:-1]) == wanted
    assert len(steps) > 100
    assert max(steps) < 100


def test_a_write_looks_at_a_bounded_number_of_versions() -> None:
    machine = often_written()
    asked = old_gets(rpc.RequestOp(request_put=rpc.PutRequest(key=b"w")))
    newer = 2 * sum(999 - number for number in range(10))
    with mock.patch.object(limits, "TXN_WRITE_KEYS_MAX", newer - 1), pytest.raises(EtcdError) as caught:
        machine.apply_in_pieces(asked, 0.0)
    assert caught.value.message == errors.TXN_LOOKS_TOO_FAR.message
    assert machine.store.get(b"w") is None
    with mock.patch.object(limits, "TXN_WRITE_KEYS_MAX", newer):
        assert machine.apply(asked, 0.0).ListFields()
    assert machine.store.get(b"w") is not None
