# SPDX-License-Identifier: Apache-2.0
"""Protobuf by hand, for the few shapes that every reply is made of.

Laws
- The bytes made here parse as the message of `lessor.api` that they stand for; a test compares each with the bytes that
  protobuf makes.
- Fields that are zero, empty or false are left out, as in proto3.

Why: protobuf's Python API takes about a microsecond to build a nested message, and as much again to serialise it. A
version of a key never changes, so its bytes are made once and copied into every reply and event that shows it.

Does not do: parsing.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar, cast

from lessor.base import limits

Part = TypeVar("Part")

_LAST: Final = [bytes((n,)) for n in range(0x80)]
_MORE: Final = [bytes((n | 0x80,)) for n in range(0x80)]
_CONTINUED: Final = [low + high for high in _MORE for low in _MORE]
_SHORT: Final = _LAST + [low + high for high in _LAST[1:] for low in _MORE]


def varint(number: int) -> bytes:
    """The varint of an int64 or uint64. A negative number takes ten bytes, as in protobuf."""
    if number < 0x4000:
        if number >= 0:
            return _SHORT[number]
        number += 1 << 64
    encoded = b""
    while number >= 0x4000:
        encoded += _CONTINUED[number & 0x3FFF]
        number >>= 14
    return encoded + _SHORT[number]


def nested(tag: bytes, payload: bytes) -> bytes:
    """A length-delimited field: `tag` is its encoded tag. Written even when the payload is empty."""
    size = len(payload)
    return tag + (_SHORT[size] if size < 0x4000 else varint(size)) + payload  # each reply has several short ones


def number_field(tag: bytes, number: int) -> bytes:
    """A varint field, or nothing when the number is 0."""
    return tag + varint(number) if number else b""


class HeaderEncoder:
    """Encodes the `ResponseHeader`s of one server, as field 1 of a reply."""

    __slots__ = ("_before", "_term")

    def __init__(self, cluster_id: int, member_id: int, term: int) -> None:
        self._before = number_field(b"\x08", cluster_id) + number_field(b"\x10", member_id) + b"\x18"
        self._term = number_field(b"\x20", term)

    def field(self, revision: int) -> bytes:
        """The header with all four fields. `revision`: at least 1, as all are."""
        return nested(b"\x0a", self._before + varint(revision) + self._term)


def revision_header(revision: int) -> bytes:
    """The header of a reply inside a txn, which has the revision only; as field 1 of the reply."""
    return nested(b"\x0a", b"\x18" + varint(revision))


def sorted_pieces(head: bytes, parts: Sequence[Part], encode: Callable[[Sequence[Part]], bytes]) -> Iterator[bytes]:
    """A reply that ends with `encode` of the sorted `parts`, which no longer change: in pieces, sorted in steps too."""
    yield head
    runs: list[list[Any]] = []
    for first in range(0, len(parts), limits.REPLY_PARTS_MAX):
        runs.append(sorted(cast("Sequence[Any]", parts[first : first + limits.REPLY_PARTS_MAX])))
        yield b""
    merged: Iterator[Any] = heapq.merge(*runs)
    while some := list(islice(merged, limits.REPLY_PARTS_MAX)):
        yield encode(some)
