# SPDX-License-Identifier: Apache-2.0
"""The count of an encoded txn is that of the decoded one, and costs no more for a longer message."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.state.txn_scan import too_many_operations

PUT = rpc.RequestOp(request_put=rpc.PutRequest(key=b"k", value=b"\x0a\x00" * 50))
READ = rpc.RequestOp(request_range=rpc.RangeRequest(key=b"k", revision=300))
DELETE = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"k", range_end=b"\0"))
COMPARE = rpc.Compare(key=b"k", target=rpc.Compare.VALUE, value=b"\x0a\x00" * 3)


def _ops(txns: st.SearchStrategy[rpc.TxnRequest]) -> st.SearchStrategy[list[rpc.RequestOp]]:
    nested = txns.map(lambda txn: rpc.RequestOp(request_txn=txn))
    return st.lists(st.sampled_from([PUT, READ, DELETE, rpc.RequestOp()]) | nested, max_size=4)


def _txns(inner: st.SearchStrategy[rpc.TxnRequest]) -> st.SearchStrategy[rpc.TxnRequest]:
    compares = st.lists(st.sampled_from([COMPARE, rpc.Compare()]), max_size=4)
    return st.builds(
        lambda compare, success, failure: rpc.TxnRequest(compare=compare, success=success, failure=failure),
        compares,
        _ops(inner),
        _ops(inner),
    )


TXNS = st.recursive(st.builds(rpc.TxnRequest), _txns, max_leaves=8)


def _count(txn: rpc.TxnRequest) -> int:
    ops = [*txn.success, *txn.failure]
    nested = sum(_count(op.request_txn) for op in ops if op.HasField("request_txn"))
    return len(txn.compare) + len(ops) + nested


@given(TXNS)
def test_it_counts_as_the_decoded_txn_has_them(txn: rpc.TxnRequest) -> None:
    message = txn.SerializeToString()
    count = _count(txn)
    assert not too_many_operations(message, max(count, 1))
    if count > 1:
        assert too_many_operations(message, count - 1)


@given(st.binary(max_size=60), st.integers(1, 3))
def test_bytes_of_any_kind_end_well(message: bytes, most: int) -> None:
    assert too_many_operations(message, most) in (True, False)


class Counted(bytes):
    """Counts the bytes that are looked at."""

    looked = 0

    def __getitem__(self, at: object) -> int:  # type: ignore[override]
        Counted.looked += 1
        return super().__getitem__(at)  # type: ignore[call-overload, no-any-return]


def _floods() -> Iterator[tuple[str, bytes]]:
    yield "compares", b"\x0a\x00"
    yield "operations", b"\x12\x00"
    yield "numbers that are not in the API", b"\x78\x00"
    yield "texts that are not in the API", b"\x7a\x00"
    yield "fixed numbers", b"\x7d\x00\x00\x00\x00"


@pytest.mark.parametrize(("what", "piece"), list(_floods()))
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_flood_is_refused_after_few_looks(what: str, piece: bytes, depth: int) -> None:
    message = piece * 100_000
    for _ in range(depth):
        op = rpc.RequestOp(request_txn=rpc.TxnRequest.FromString(b"")).SerializeToString()
        assert op == b"\x22\x00"
        size = _varint(len(message))
        message = b"\x22" + size + message
        message = b"\x12" + _varint(len(message)) + message
    Counted.looked = 0
    assert too_many_operations(Counted(message), 100)
    assert Counted.looked < 100 * 4 * 10, what


def _varint(number: int) -> bytes:
    made = b""
    while number > 0x7F:
        made += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return made + bytes((number,))
