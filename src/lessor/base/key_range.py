# SPDX-License-Identifier: Apache-2.0
"""Ranges of keys, [start, end).

Laws
- In a request the end b"" means the single key `start`, and the end OPEN_END means no upper bound.
- Inside, as an argument of the store, the end b"" means no upper bound.
"""

from typing import Final

OPEN_END: Final = b"\0"


def open_end(range_end: bytes) -> bytes:
    """A request's range_end, which is not empty, as the store has it."""
    return b"" if range_end == OPEN_END else range_end


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`: the prefix with its last byte below 255 raised by one.

    b"" when there is no such byte: the range has no upper bound.
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b""
