# SPDX-License-Identifier: Apache-2.0
"""RangeStream: its chunks joined are the reply of Range, whatever is written and compacted between them."""

from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.state import range_stream
from lessor.state.machine import Identity, StateMachine
from lessor.state.range_stream import RangeStream
from tests.lines_run import lines_run

IDENTITY = Identity(1, 2, 3)
KEYS = st.sampled_from([b"a", b"b", b"b\0", b"c", b"d", b"e", b"f", b"g", b"h"])
VALUES = st.sampled_from([b"", b"1", b"a longer value", b"a value that is much longer than the others"])
PUTS = st.builds(rpc.PutRequest, key=KEYS, value=VALUES)
DELETES = st.builds(rpc.DeleteRangeRequest, key=KEYS, range_end=st.sampled_from([b"", b"", b"", b"d"]))
CHANGES = st.one_of(PUTS, PUTS, PUTS, DELETES)
REQUESTS: Any = st.builds(
    rpc.RangeRequest,
    key=st.sampled_from([b"\0", b"\0", b"a", b"b", b"d"]),
    range_end=st.sampled_from([b"", b"\0", b"\0", b"\0", b"g"]),
    limit=st.sampled_from([0, 0, 0, -1, 1, 2, 3, 5, 1 << 62]),
    revision=st.sampled_from([0, 0, 0, -1, *range(2, 40)]),
    sort_order=st.sampled_from([0, 0, 1]),
    keys_only=st.booleans(),
    count_only=st.booleans(),
)


def machine_with(changes: list[Any], compacted: int) -> StateMachine:
    """`compacted`: how far, of 255, of all that can be."""
    machine = StateMachine(IDENTITY)
    for each in changes:
        machine.apply(each, 0.0)
    revision = machine.revision * compacted // 255
    if revision:
        machine.apply(rpc.CompactionRequest(revision=revision), 0.0)
    return machine


def chunks_of(stream: RangeStream, between: Iterator[Any]) -> list[rpc.RangeResponse]:
    """The chunks, when something happens behind each step."""
    chunks = []
    for _ in range(10_000):
        chunk = stream.step()
        if chunk:
            chunks.append(rpc.RangeStreamResponse.FromString(chunk).range_response)
        if stream.done:
            return chunks
        next(between, None)
    raise AssertionError("the stream has no end")


def joined(chunks: list[rpc.RangeResponse]) -> rpc.RangeResponse:
    reply = rpc.RangeResponse()
    for chunk in chunks:
        reply.MergeFrom(chunk)
    return reply


@given(
    st.lists(CHANGES, min_size=10, max_size=40),
    st.sampled_from([0, 0, 20, 255]),
    REQUESTS,
    st.lists(st.lists(CHANGES, max_size=3), max_size=12),
    st.booleans(),
    st.integers(1, 8),
    st.integers(1, 60),
    st.integers(1, 8),
)
def test_the_chunks_joined_are_the_reply_of_range(
    before: list[Any],
    compacted: int,
    asked: rpc.RangeRequest,
    between: list[list[Any]],
    compacts: bool,
    step_keys: int,
    chunk_bytes: int,
    first_keys: int,
) -> None:
    machine = machine_with(before, compacted)
    asked.revision = min(asked.revision, machine.revision + 1)
    try:
        wanted: Any = machine.apply(asked, 0.0)
    except EtcdError as error:
        with pytest.raises(EtcdError, match=error.message):
            machine.stream_range(asked).step()
        return
    revision = asked.revision if asked.revision > 0 else machine.revision

    def changes() -> Iterator[None]:
        for wave in between:
            for each in wave:
                machine.apply(each, 0.0)
            if compacts and machine.compact_revision < revision:
                machine.apply(rpc.CompactionRequest(revision=revision), 0.0)  # all before it is gone
            while machine.store.sweep(1):
                pass
            yield

    with (
        mock.patch.object(limits, "READ_STEP_KEYS", step_keys),
        mock.patch.object(limits, "RANGE_CHUNK_BYTES", chunk_bytes),
        mock.patch.object(limits, "RANGE_CHUNK_KEYS_MIN", first_keys),
    ):
        chunks = chunks_of(machine.stream_range(asked), changes())
    assert joined(chunks) == wanted
    assert all(chunk.kvs and not (chunk.HasField("header") or chunk.more or chunk.count) for chunk in chunks[:-1])
    if not asked.keys_only:
        for chunk in chunks:
            without_last = [len(kv.key) + len(kv.value) for kv in chunk.kvs][:-1]
            assert sum(without_last) < max(chunk_bytes, 1) * 2  # two looks with the limit's last keys held back


@pytest.mark.parametrize("step_keys", [1, 2, 3, 5, 100])
def test_each_limit_at_each_revision(step_keys: int) -> None:
    machine = StateMachine(IDENTITY)
    for number in range(7):
        machine.apply(rpc.PutRequest(key=b"k%d" % number, value=b"value"), 0.0)
    for number in (1, 1, 1, 1, 4, 4):
        machine.apply(rpc.PutRequest(key=b"k%d" % number, value=b"other"), 0.0)
    machine.apply(rpc.DeleteRangeRequest(key=b"k2", range_end=b"k4"), 0.0)
    with (
        mock.patch.object(limits, "READ_STEP_KEYS", step_keys),
        mock.patch.object(limits, "RANGE_CHUNK_KEYS_MIN", step_keys),
        mock.patch.object(limits, "RANGE_CHUNK_BYTES", 20),
    ):
        for limit in range(9):
            for revision in range(1, machine.revision + 1):
                asked = rpc.RangeRequest(key=b"k", range_end=b"l", limit=limit, revision=revision)
                chunks = chunks_of(machine.stream_range(asked), iter(()))
                with mock.patch.object(limits, "READ_STEP_KEYS", 1_000):
                    assert joined(chunks) == machine.apply(asked, 0.0)


@given(st.lists(CHANGES, min_size=1, max_size=30), st.integers(1, 3))
def test_a_compaction_of_its_revision_ends_it(before: list[Any], first_keys: int) -> None:
    machine = machine_with(before, 0)
    for number in range(4):
        machine.apply(rpc.PutRequest(key=b"b%d" % number), 0.0)
    with mock.patch.object(limits, "RANGE_CHUNK_KEYS_MIN", first_keys):
        stream = machine.stream_range(rpc.RangeRequest(key=b"a", range_end=b"\0"))
        stream.step()
        machine.apply(rpc.PutRequest(key=b"a"), 0.0)
        assert not stream.done
        machine.apply(rpc.CompactionRequest(revision=machine.revision), 0.0)
        with pytest.raises(EtcdError, match=errors.COMPACTED.message):
            stream.step()


def test_what_only_range_answers_is_refused_after_what_is_wrong_by_itself() -> None:
    machine = machine_with([rpc.PutRequest(key=b"a")], 0)
    make = cast(Any, rpc.RangeRequest)
    for asked, code in (
        (make(sort_order=2), Code.INVALID_ARGUMENT),
        (make(key=b"a", sort_order=2, min_mod_revision=1), Code.UNIMPLEMENTED),
        (make(key=b"a", sort_order=1, sort_target=3), Code.UNIMPLEMENTED),
        (make(key=b"a", max_mod_revision=-1), Code.UNIMPLEMENTED),
    ):
        with pytest.raises(EtcdError) as refused:
            machine.stream_range(asked)
        assert refused.value.code == code


def test_a_sort_target_without_an_order_is_answered_if_one_step_can_do_it() -> None:
    machine = machine_with([rpc.PutRequest(key=b"k%d" % number, value=b"%d" % -number) for number in range(9)], 0)
    asked = rpc.RangeRequest(key=b"\0", range_end=b"\0", sort_target=rpc.RangeRequest.VALUE, limit=20)
    assert joined(chunks_of(machine.stream_range(asked), iter(()))) == machine.apply(asked, 0.0)
    with mock.patch.object(limits, "READ_STEP_KEYS", 5), pytest.raises(EtcdError, match="custom sort orders"):
        machine.stream_range(asked).step()


@pytest.mark.inside
@pytest.mark.parametrize("asked", [{}, {"revision": 3_000}, {"count_only": True, "revision": 3_000}, {"limit": 1_500}])
def test_a_step_does_a_bounded_amount_of_work(asked: dict[str, Any]) -> None:
    """However many keys and newer versions there are."""
    machine = StateMachine(IDENTITY)
    for number in range(4_000):
        machine.apply(rpc.PutRequest(key=b"k%04d" % number), 0.0)
    for _ in range(5_000):
        machine.apply(rpc.PutRequest(key=b"k2000"), 0.0)
    stream = machine.stream_range(rpc.RangeRequest(key=b"\0", range_end=b"\0", **asked))
    with mock.patch.object(limits, "READ_STEP_KEYS", 100):
        worst = steps = 0
        chunks: list[bytes] = []
        while not stream.done:
            worst = max(worst, lines_run(range_stream, lambda: chunks.append(stream.step())))
            assert stream._passed is None or not chunks[-1]  # no version is kept while the peer reads
            steps += 1
    assert steps > 15
    assert worst < 100 * 20
