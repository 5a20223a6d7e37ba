# SPDX-License-Identifier: Apache-2.0
"""Records of a shared log: every kind comes back, nothing but a whole record is one, garbage raises nothing."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.durable import record, shared_record
from lessor.durable.record import CHAIN_BYTES, UnknownFormatError, chain_of
from lessor.durable.shared_record import (
    BATCH,
    KINDS,
    NONCE_BYTES,
    Origin,
    decode,
    encode,
    with_nonce,
    without_nonce,
)
from tests.unit.durable.engine_rows import batch, put
from tests.unit.durable.test_record import PARTS, UINT64, chains, content, names

nonces = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
origins = st.lists(st.builds(Origin, nonces, UINT64, st.binary(max_size=20)), max_size=3)


@given(
    st.fixed_dictionaries(PARTS), st.integers(1, len(KINDS) - 1), UINT64, UINT64, UINT64, chains, UINT64, nonces,
    UINT64, st.lists(names, max_size=3), origins,
)  # fmt: skip
def test_a_record_comes_back_as_it_was(
    parts: dict[str, Any], kind: int, number: int, epoch: int, batch_number: int, previous: bytes, node: int,
    nonce: bytes, subject: int, texts: list[str], of: list[Origin],
) -> None:  # fmt: skip
    rows = batch(batch_number, **parts)
    made = encode(kind, number, epoch, previous, node, nonce, rows, subject=subject, texts=texts, origins=of)
    found = decode(made.data)
    assert found is not None
    for entry in (made, found):
        assert (entry.kind, entry.number, entry.epoch, entry.node, entry.nonce) == (kind, number, epoch, node, nonce)
        assert (entry.subject, list(entry.texts), list(entry.origins)) == (subject, texts, of)
        assert (entry.record.previous, entry.chain) == (previous, made.data[-CHAIN_BYTES:])
        assert entry.record.size_bytes == len(made.data)
    assert found.record.rows.number == batch_number
    for name in PARTS.keys() - {"auth"}:
        assert getattr(found.record.rows, name) == parts[name]
    assert content(found.record.rows.auth) == content(parts["auth"])


def test_a_batch_has_its_rows_as_in_a_record_of_a_single_node() -> None:
    rows = batch(3, events=[put(5, b"k", b"v")])
    alone = record.encode(7, 2, bytes(CHAIN_BYTES), rows)
    shared = encode(BATCH, 7, 2, bytes(CHAIN_BYTES), 1, bytes(NONCE_BYTES), rows).data
    assert shared.endswith(alone[:-CHAIN_BYTES], 0, len(shared) - CHAIN_BYTES)


def test_two_processes_never_make_the_same_bytes() -> None:
    made = {encode(1, 7, 2, bytes(CHAIN_BYTES), 1, nonce, batch(3)).data for nonce in (b"a" * 16, b"b" * 16)}
    assert len(made) == 2


def test_one_format_is_not_taken_for_the_other() -> None:
    alone = record.encode(7, 2, bytes(CHAIN_BYTES), batch(3))
    shared = encode(BATCH, 7, 2, bytes(CHAIN_BYTES), 1, bytes(NONCE_BYTES), batch(3)).data
    with pytest.raises(UnknownFormatError, match="format 1"):
        decode(alone)
    with pytest.raises(UnknownFormatError, match="format 2"):
        record.decode(shared)


def test_an_unknown_kind_is_said_to_be_one() -> None:
    shared = encode(BATCH, 7, 2, bytes(CHAIN_BYTES), 1, bytes(NONCE_BYTES), batch(3)).data
    later = shared[:6] + struct.pack("<H", len(KINDS)) + shared[8:-CHAIN_BYTES]
    with pytest.raises(UnknownFormatError, match=f"kind {len(KINDS)}"):
        decode(later + chain_of(later))


def test_a_record_that_is_cut_or_changed_is_none() -> None:
    data = encode(
        BATCH, 7, 2, bytes(CHAIN_BYTES), 1, bytes(NONCE_BYTES), batch(3, events=[put(5, b"k", b"v")]),
        texts=["name"], origins=[Origin(bytes(NONCE_BYTES), 1, b"reply")],
    ).data  # fmt: skip
    for end in range(len(data)):
        assert decode(data[:end]) is None
    for at in range(len(data)):
        assert decode(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]) is None


@given(st.binary(max_size=300), st.integers(1, len(KINDS) - 1))
def test_garbage_with_a_right_digest_raises_nothing(data: bytes, kind: int) -> None:
    forged = record.MAGIC + struct.pack("<HH", shared_record.FORMAT, kind) + data
    assert decode(forged + chain_of(forged)) is None


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 3))
def test_garbage_behind_a_front_raises_nothing(data: bytes, texts: int, of: int) -> None:
    front = struct.pack("<4sHHQ16sQII", record.MAGIC, shared_record.FORMAT, BATCH, 1, b"", 0, texts, of)
    assert decode(front + data + chain_of(front + data)) is None


@given(st.fixed_dictionaries(PARTS), nonces, nonces)
def test_a_record_without_its_nonce_is_made_whole_with_that_nonce_alone(
    parts: dict[str, Any], nonce: bytes, another: bytes
) -> None:
    made = encode(BATCH, 7, 2, bytes(CHAIN_BYTES), 1, nonce, batch(3, **parts)).data
    shown = without_nonce(made)
    assert len(shown) == len(made) - NONCE_BYTES
    assert with_nonce(shown, nonce) == made
    if another != nonce:
        assert decode(with_nonce(shown, another)) is None
