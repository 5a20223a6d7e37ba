# SPDX-License-Identifier: Apache-2.0
"""SQLite's files as they lie on disk: `lessor.db`, its log `lessor.db-wal`, and the log's index `lessor.db-shm`.

Laws
- Nothing is written.
- A descriptor of `lessor.db`, or of the index, stays open until `close`, and that comes after the last connection of
  this process: closing any descriptor of a file drops all POSIX locks that the process holds on it, SQLite's included.
  The log has no such locks.

Theory of operation. SQLite's log is written in *rounds*. A round begins with two salts in the log's header, one of them
random, and each of its frames repeats them. A frame is one page of the file, as a transaction left it. When all frames
are in the file, and nobody reads them any more, the next writer begins a new round over the old one. The index says how
many frames of this round count: those up to the last commit, as far as their checksums are right. All of this is in
SQLite's documentation, "WAL-mode File Format"; what is needed of it here:

    header   | magic 4 | format 4 | page size 4 | sequence 4 | salts 8 | checksum 8 |                  big-endian
    frame    | page 4 | pages of the file after this commit, or 0: no commit 4 | salts 8 | checksum 8 | the page |
    index    ... at byte 16: how many frames count 4                                        in the machine's byte order

It does not: decide what is right; page_sums.py does.
"""

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

SALTS_BYTES: Final = 8

_HEADER_BYTES: Final = 32
_SALTS_AT: Final = 16
_FRAME: Final = struct.Struct(f">II{SALTS_BYTES}s8x")
_INDEX_FRAMES_AT: Final = 16
# Each read gives the interpreter lock up. In between it is held for as long as these take, 0.1 ms.
_FRAMES_AT_ONCE: Final = 16
_PAGES_AT_ONCE: Final = 16


class Frame(NamedTuple):
    """A page in the log."""

    page: int  # its number, from 1
    pages_after: int  # how many the file has after this commit; 0: the transaction goes on
    checksum: int  # CRC-32 of the page


class SqliteFiles:
    """Of one database. Every method but `close` may raise OSError."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._log = database.with_name(database.name + "-wal")
        self._held: list[int] = []
        self._file: int | None = None
        self._index: int | None = None

    def _hold(self, path: Path | str) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._held.append(descriptor)
        return descriptor

    def open_index(self) -> None:
        """To be called when a connection has read: before that there may be no index, or an old one."""
        self._index = self._hold(f"{self._database}-shm")

    def frames_in_log(self) -> int:
        """How many frames of the log count. Costs a read of four bytes."""
        assert self._index is not None
        return int.from_bytes(os.pread(self._index, 4, _INDEX_FRAMES_AT), sys.byteorder)

    def salts(self) -> bytes | None:
        """Of the log's round; None when there is no log, or an empty one."""
        try:
            descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            header = os.pread(descriptor, _HEADER_BYTES, 0)
        finally:
            os.close(descriptor)
        return header[_SALTS_AT : _SALTS_AT + SALTS_BYTES] if len(header) == _HEADER_BYTES else None

    def frames(self, salts: bytes, count: int, page_bytes: int) -> list[Frame] | None:
        """The first `count` frames; None when that round is over, or was when they were read. Costs 2.5 us a frame."""
        found: list[Frame] = []
        size = _FRAME.size + page_bytes
        descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(found) < count:
                wanted = min(_FRAMES_AT_ONCE, count - len(found)) * size
                data = memoryview(os.pread(descriptor, wanted, _HEADER_BYTES + len(found) * size))
                if len(data) < wanted:
                    return None
                for at in range(0, wanted, size):
                    page, pages_after, round_salts = _FRAME.unpack_from(data, at)
                    if round_salts != salts:
                        return None
                    found.append(Frame(page, pages_after, zlib.crc32(data[at + _FRAME.size : at + size])))
            # A new round writes its salts before its first frame.
            return found if os.pread(descriptor, SALTS_BYTES, _SALTS_AT) == salts else None
        finally:
            os.close(descriptor)

    def read(self, size: int, position: int) -> bytes:
        """Of the file; fewer bytes at its end."""
        if self._file is None:
            self._file = self._hold(self._database)
        return os.pread(self._file, size, position)

    def page_checksums(self, page_bytes: int) -> "array[int]":
        """CRC-32 of each whole page of the file, from the first one on. Costs a read of the file, 1.3 us a page."""
        found = array("I")
        while True:
            data = memoryview(self.read(_PAGES_AT_ONCE * page_bytes, len(found) * page_bytes))
            whole = len(data) - len(data) % page_bytes
            found.extend([zlib.crc32(data[at : at + page_bytes]) for at in range(0, whole, page_bytes)])
            if whole < _PAGES_AT_ONCE * page_bytes:
                return found

    def close(self) -> None:
        """Does nothing when closed already. To be called behind the last connection."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()
        self._file = self._index = None


def newest(frames: Sequence[Frame]) -> tuple[dict[int, int], int | None]:
    """What a copy of these frames leaves in the file: the checksums of pages, and how far it reaches.

    The second part is the least length, in pages, that the file had after any commit; None when there is no commit.
    Pages up to there that have no frame are as they were before. Of pages beyond, which the file lost and got back,
    that is not known: SQLite does not write a page that nobody will read.
    """
    found: dict[int, int] = {}
    least: int | None = None
    for page, pages_after, checksum in reversed(frames):
        if pages_after:
            least = pages_after if least is None else min(least, pages_after)
        if least is not None and page <= least:
            found.setdefault(page, checksum)
    return found, least
