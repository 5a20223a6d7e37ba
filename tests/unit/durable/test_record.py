# SPDX-License-Identifier: Apache-2.0
"""Records by themselves: every kind of row comes back, nothing but a whole record is one, garbage raises nothing."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.durable import record
from lessor.durable.record import CHAIN_BYTES, UnknownFormatError, chain_of, decode, encode
from lessor.state.journal import AuthRows
from tests.unit.durable.engine_rows import batch, put

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)
chains = st.binary(min_size=CHAIN_BYTES, max_size=CHAIN_BYTES)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
events_rows = st.tuples(
    INT64, st.integers(0, 2**32 - 1), st.binary(max_size=50), st.none() | st.binary(max_size=50), INT64, INT64, INT64
)
leases_rows = st.tuples(INT64, INT64, st.floats(allow_nan=False), st.booleans())
alarm_rows = st.tuples(UINT64, st.integers(0, 5), st.booleans())
user_rows = st.tuples(
    names, st.binary(max_size=8), st.booleans(), st.lists(names, max_size=3).map(tuple), st.booleans()
)
permissions = st.tuples(st.binary(max_size=5), st.binary(max_size=5), st.integers(0, 2))
role_rows = st.tuples(names, st.lists(permissions, max_size=3).map(tuple), st.booleans())
auth_rows = st.builds(
    AuthRows,
    st.lists(user_rows, max_size=3),
    st.lists(role_rows, max_size=3),
    st.none() | st.tuples(st.booleans(), st.integers(1, 2**63 - 1)),
)
PARTS: dict[str, Any] = {
    "clock_s": st.floats(0, 1e12),
    "events": st.lists(events_rows, max_size=5),
    "leases": st.lists(leases_rows, max_size=5),
    "alarms": st.lists(alarm_rows, max_size=3),
    "compact_revision": st.none() | INT64,
    "peer_urls": st.none() | st.lists(names, max_size=3).map(tuple),
    "auth": st.none() | auth_rows,
    "clean": st.booleans(),
}


def content(auth: AuthRows | None) -> Any:
    return None if auth is None else (auth.users, auth.roles, auth.switch)


@given(st.fixed_dictionaries(PARTS), UINT64, UINT64, UINT64, chains)
def test_a_record_comes_back_as_it_was(
    parts: dict[str, Any], number: int, term: int, batch_number: int, previous: bytes
) -> None:
    data = encode(number, term, previous, batch(batch_number, **parts))
    found = decode(data)
    assert found is not None
    assert (found.number, found.term, found.previous, found.chain) == (number, term, previous, data[-CHAIN_BYTES:])
    assert found.size_bytes == len(data)
    rows = found.rows
    assert rows.number == batch_number
    for name in PARTS.keys() - {"auth"}:
        assert getattr(rows, name) == parts[name]
    assert content(rows.auth) == content(parts["auth"])
    assert encode(number, term, previous, rows) == data


@given(st.binary(max_size=300))
def test_garbage_is_no_record(data: bytes) -> None:
    assert decode(data) is None


@given(st.binary(max_size=300), st.integers(0, 2**16 - 1))
def test_garbage_with_a_right_digest_is_no_record(data: bytes, flags: int) -> None:
    """Whoever can write a digest can write anything behind it; it must not raise."""
    forged = record.MAGIC + struct.pack("<HH", record.FORMAT, flags) + data
    assert decode(forged + chain_of(forged)) is None


@given(st.binary(max_size=200), st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6), st.integers(0, 63))
def test_a_head_that_promises_what_is_not_there_is_no_record(rows: bytes, counts: list[int], flags: int) -> None:
    head = record._HEAD.pack(record.MAGIC, record.FORMAT, flags, 1, 1, 1, 0.0, 0, 0, bytes(CHAIN_BYTES), *counts)
    found = decode(head + rows + chain_of(head + rows))
    assert found is None or encode(1, 1, bytes(CHAIN_BYTES), found.rows)


FULL = batch(
    9,
    events=[put(2, b"key"), (3, 1, b"key", None, 0, 0, 0)],
    leases=[(7, 60, 61.0, False)],
    alarms=[(5, 1, True)],
    compact_revision=1,
    peer_urls=("http://a",),
    auth=AuthRows([("u", b"h", False, ("r",), False)], [("r", ((b"a", b"", 0),), False)], (True, 3)),
    clean=True,
)


def test_a_record_cut_anywhere_or_with_any_bit_flipped_is_none() -> None:
    data = encode(1, 2, bytes(CHAIN_BYTES), FULL)
    assert decode(data) is not None
    assert decode(data + b"\0") is None
    for size in range(len(data)):
        assert decode(data[:size]) is None
    for bit in range(len(data) * 8):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        assert decode(bytes(spoilt)) is None


def test_a_chain_value_speaks_for_everything_before_it() -> None:
    """A change in any record, or of its order, changes every later chain value."""

    def chain(*rows: Any) -> bytes:
        value = bytes(CHAIN_BYTES)
        for number, one in enumerate(rows, start=1):
            value = encode(number, 1, value, one)[-CHAIN_BYTES:]
        return value

    first, second, third = batch(1, events=[put(2, b"a")]), batch(2, leases=[(7, 60, 1.0, 0)]), batch(3)
    assert chain(first, second, third) == chain(first, second, third)
    assert len({chain(first, second, third), chain(second, first, third), chain(first, third), chain(third)}) == 4


def test_a_whole_record_of_another_format_is_refused_and_not_taken_for_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(record, "FORMAT", 2)
        data = encode(1, 1, bytes(CHAIN_BYTES), batch(1))
    with pytest.raises(UnknownFormatError, match="format 2, this Lessor knows 1"):
        decode(data)
    assert decode(data[:-1]) is None


def test_dead_rows_do_not_travel() -> None:
    dead = [(revision, 0) for revision in range(50_000)]
    assert len(encode(1, 1, bytes(CHAIN_BYTES), batch(1, compact_revision=9, dead=dead))) < 200
