# SPDX-License-Identifier: Apache-2.0
"""What a prefix's range is, and which key a contender has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.base.contenders import key_of, prefix_of
from lessor.base.key_range import open_end, prefix_end


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        *((b"a", b"b"), (b"a/", b"a0"), (b"a\xff\xff", b"b"), (b"\0", b"\1")),
        *((b"", b""), (b"\xff", b""), (b"\xff\xff", b"")),
    ],
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_a_zero_byte_ends_no_range() -> None:
    assert [open_end(end) for end in (b"\0", b"\0\0", b"a")] == [b"", b"\0\0", b"a"]


BYTES = st.lists(st.sampled_from(b"\0a\xfe\xff"), max_size=4).map(bytes)


@given(BYTES, BYTES)
def test_the_range_of_a_prefix_holds_the_keys_that_begin_with_it(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    assert (prefix <= key and (not end or key < end)) == key.startswith(prefix)


@pytest.mark.parametrize(("lease_id", "key"), [(1, b"job/1"), (0xDEAD, b"job/dead"), (2**63 - 1, b"job/7" + b"f" * 15)])
def test_the_key_of_a_contender(lease_id: int, key: bytes) -> None:
    assert key_of(b"job", lease_id) == key
    assert prefix_of(b"job") == b"job/"
    assert key_of(b"", lease_id) == key[3:]
