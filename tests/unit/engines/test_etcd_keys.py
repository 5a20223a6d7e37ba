# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a log in an etcd: there and back, and the order of keys is that of positions."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.base.key_range import prefix_end
from lessor.engines import etcd_keys
from lessor.engines.etcd_keys import Keys, Named, Pieces, Tail

U64 = st.integers(0, 2**64 - 1)
CHAINS = st.binary(min_size=16, max_size=16)
KEYS = Keys(b"/p/")


@given(U64, U64, U64, U64)
def test_keys_of_records_stand_in_the_order_of_positions(one: int, total: int, other: int, other_total: int) -> None:
    first, second = KEYS.record(one, total), KEYS.record(other, other_total)
    if one != other:
        assert (first < second) == (one < other)
        assert (first < KEYS.records_from(other)) == (one < other)
        assert (KEYS.pieces_of(one, b"") < KEYS.pieces_from(other)) == (one < other)
    assert KEYS.of_record(first) == (one, total)
    assert KEYS.log < first < KEYS.log_end


@given(U64, U64, CHAINS)
def test_values_come_back(cluster_id: int, position: int, chain: bytes) -> None:
    tail = Tail(cluster_id, position, chain)
    assert etcd_keys.decode_tail(tail.encode()) == tail
    assert etcd_keys.decode_identity(etcd_keys.encode_identity(cluster_id)) == (etcd_keys.FORMAT, cluster_id)
    pieces = Pieces(position % 2**32, cluster_id, chain)
    assert etcd_keys.decode_record(etcd_keys.in_pieces(pieces)) == pieces
    assert etcd_keys.decode_record(etcd_keys.whole(chain)) == chain
    named = [Named(position, chain, 3, cluster_id), Named(1, bytes(16), 0, 0)]
    for count in range(3):
        assert etcd_keys.decode_snapshots(etcd_keys.encode_snapshots(named[:count])) == named[:count]


@given(st.binary(max_size=80))
def test_values_of_others_are_seen(value: bytes) -> None:
    assert etcd_keys.decode_tail(value) is None or len(value) == 32
    assert etcd_keys.decode_identity(value) is None or value.startswith(b"LsEt")
    assert etcd_keys.decode_record(value) is None or value[0] in (0, 1)
    if len(value) % 36:
        with pytest.raises(struct.error):
            etcd_keys.decode_snapshots(value)


def test_all_keys_are_below_the_prefix_and_apart() -> None:
    chain = bytes(16)
    keys = [KEYS.identity, KEYS.tail, KEYS.snapshot, KEYS.record(1, 2), KEYS.numbered(KEYS.pieces_of(1, chain), 0)]
    keys.append(KEYS.numbered(KEYS.snap_of(chain), 7))
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert KEYS.prefix < key < KEYS.last < KEYS.end == prefix_end(KEYS.prefix)
    assert [key for key in keys if KEYS.snap <= key < KEYS.snap_end] == keys[-1:]
    assert [key for key in keys if KEYS.log <= key < KEYS.log_end] == [KEYS.record(1, 2)]


@pytest.mark.parametrize("key", [b"", b"x", b"1", b"1-2-3", b"g-1", b"-", b"1-"])
def test_keys_of_others_are_no_records(key: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        KEYS.of_record(KEYS.log + key)
