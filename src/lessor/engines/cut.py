# SPDX-License-Identifier: Apache-2.0
"""Bytes in pieces of the size that engines take in one request."""

from collections.abc import Iterable, Iterator

from lessor.base.limits import ENGINE_PIECE_BYTES


def cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of ENGINE_PIECE_BYTES, the last one smaller. None is empty."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= ENGINE_PIECE_BYTES:
            yield bytes(memoryview(waiting)[:ENGINE_PIECE_BYTES])
            del waiting[:ENGINE_PIECE_BYTES]
    if waiting:
        yield bytes(waiting)
