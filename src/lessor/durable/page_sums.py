# SPDX-License-Identifier: Apache-2.0
"""The page sums: a checksum of each page of `lessor.db`, which has none itself, in a file beside it.

Laws
- The sums speak of the file as it was when one round of SQLite's log began, and name that round by its salts. They are
  compared when the log of that round is there, and otherwise never. Those of an orderly stop name an instant instead,
  and are compared when there is no log and the file was last written at that instant.
- Nothing depends on them but the comparison: sums that are missing, damaged, old or of another file refuse nothing.
- They are written over, in one place, when the round that they name is over: what a crash or an error leaves of that
  has a wrong checksum, or is what was there. An error while they are written is no error of the server.

Why that is safe. During a round SQLite changes no page of the file but by copying a frame of that round into it, after
the frame is on disk. So as long as the log has the round's salts, a page without a frame is as it was when the round
began. Other programs write to the file through SQLite. That adds frames to the round; or it ends the round, and then
the log has other salts, or is deleted. So those who open `lessor.db` with the `sqlite3` shell never make a page look
damaged. The comparison also finds a log of SQLite's whose frames were damaged after they had been copied: the file is
newer then than what is left of the log.

At an orderly stop SQLite deletes its log, as it does when another program has written and closes. But a write changes
the time of a file's last change, and a disk that loses bits does not. So a stop sets that time to a random instant.

A round's salts are not known before it has begun. So the sums are written a moment after that, and a crash in between
leaves those of the round before: then nothing is compared once.

    lessor.db-sums   | magic 16 | format 4 | page size 4 | pages 4 | 1: a round, 2: a stop 4 | its salts, or instant 8 |
                     | a checksum for each page 4 | checksum 4 | zeros |

docs/page-sums.md has every byte, decision 0015 the reasons.

Does not do: noticing damage while the server runs; deciding when a round ends (wal_copy.py).
"""

import os
import secrets
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

from lessor.durable import directory
from lessor.durable.engine import DamagedError
from lessor.durable.sqlite_files import SALTS_BYTES, Frame, SqliteFiles, newest

MAGIC: Final = b"lessor sums\n".ljust(16, b"\0")
FORMAT: Final = 1
UNKNOWN: Final = 0  # in the place of a checksum: that page is not compared

_HEAD: Final = struct.Struct(f"<16sIIII{SALTS_BYTES}s")
_ROUND: Final = 1
_STOP: Final = 2
_CHECKSUM: Final = struct.Struct("<I")
_GROW_BYTES: Final = 65_536  # by so much the file grows, so that to sync it is mostly to sync its content
_PAGE_SIZES: Final = frozenset(2**power for power in range(9, 17))
_PAGE_BYTES_AT: Final = 16  # in the first page of the file


@dataclass(frozen=True, slots=True)
class Sums:
    """Of the file as it was when a round began, or when it was left by an orderly stop."""

    page_bytes: int
    since: bytes | int  # the salts of the round; or the instant of the stop, in nanoseconds as `stat` has them
    of_pages: "array[int]"

    def encode(self) -> bytes:
        since = self.since
        kind, named = (_STOP, since.to_bytes(8, "little", signed=True)) if isinstance(since, int) else (_ROUND, since)
        head = _HEAD.pack(MAGIC, FORMAT, self.page_bytes, len(self.of_pages), kind, named)
        content = head + _little(self.of_pages).tobytes()
        content += _CHECKSUM.pack(zlib.crc32(content))
        return content.ljust(-(-len(content) // _GROW_BYTES) * _GROW_BYTES, b"\0")

    def after(self, frames: Sequence[Frame]) -> "array[int]":
        """The checksums of the pages when these frames, the last of which ends a commit, are in the file."""
        changed, least = newest(frames)
        sums = self.of_pages[:least]
        if frames:
            sums.frombytes(bytes(sums.itemsize * (frames[-1].pages_after - len(sums))))  # UNKNOWN
        for page, checksum in changed.items():
            sums[page - 1] = checksum
        return sums


def parse(data: bytes) -> Sums | None:
    """None for bytes that do not begin with whole page sums of this format."""
    if len(data) < _HEAD.size:
        return None
    magic, found, page_bytes, count, kind, named = _HEAD.unpack_from(data)
    if (magic, found) != (MAGIC, FORMAT) or page_bytes not in _PAGE_SIZES or kind not in (_ROUND, _STOP):
        return None
    end = _HEAD.size + 4 * count
    content = memoryview(data)[:end]
    if _CHECKSUM.pack(zlib.crc32(content)) != data[end : end + _CHECKSUM.size]:
        return None
    sums = array("I")
    sums.frombytes(content[_HEAD.size :])
    since = named if kind == _ROUND else int.from_bytes(named, "little", signed=True)
    return Sums(page_bytes, since, _little(sums))


def _little(sums: "array[int]") -> "array[int]":
    """From the machine's byte order to little-endian, or back."""
    if sys.byteorder != "little":
        sums = sums[:]
        sums.byteswap()
    return sums


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """A round that was copied into the file, whole."""

    salts: bytes | None
    frames: Sequence[Frame] | None  # None: those are not known, or the sums are not


class PageSums:
    """Of one database. Used by one thread at a time."""

    def __init__(self, database: Path, *, sync: bool = True) -> None:
        """`sync` False, for tests: the disk is not waited for."""
        self.files = SqliteFiles(database)
        self.not_compared = ""  # why, if there was something to compare with
        self._database = database
        self._path = database.with_name(database.name + "-sums")
        self._sync = sync
        self._sums: Sums | None = None  # as far as known: of the round that SQLite's log is in, or was

    # --- at the start -----------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Raises DataDirError when a page is not as it was written. Costs a read of the file and of SQLite's log.

        To be called within a read transaction: SQLite then copies nothing into the file but frames that the reader
        sees. Raises OSError.
        """
        self.files.open_index()
        sums = self._load()
        if sums is None:
            return
        frames = self._frames_since(sums)
        if frames is None:
            self.not_compared = (
                f"{self._path.name} is of another moment than {self._database.name}: another program has used that "
                "since, or a crash came just as the sums were to be renewed"
            )
            return
        wrong = self._differing(sums, frames)
        if wrong:
            more = f" and {len(wrong) - 1} more are not as they were" if wrong[1:] else " is not as it was"
            damaged = directory.damaged(self._database, f"page {wrong[0]}{more} written")
            remedy = f"if another program was meant to change the file, remove {self._path.name}"
            raise DamagedError(f"{damaged}; {remedy}", damaged.what)
        self._sums = sums

    def _frames_since(self, sums: Sums) -> Sequence[Frame] | None:
        """What SQLite may have done to the file since; None when that is not known."""
        salts = self.files.salts()
        if isinstance(sums.since, int):
            return [] if salts is None and self._written_ns() == sums.since else None
        return self.files.frames(salts, self.files.frames_in_log(), sums.page_bytes) if salts == sums.since else None

    def _written_ns(self) -> int:
        return os.stat(self._database).st_mtime_ns

    def _load(self) -> Sums | None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.not_compared = f"{self._path.name}: {error.strerror}"
            return None
        sums = parse(data)
        if sums is None:
            self.not_compared = f"{self._path.name} is damaged, half written, or of a newer Lessor"
        return sums

    def _differing(self, sums: Sums, frames: Sequence[Frame]) -> list[int]:
        """Pages of the file that are not as they were written."""
        in_log, least = {frame.page for frame in frames}, newest(frames)[1]
        expected = sums.of_pages[:least]
        found = self.files.page_checksums(sums.page_bytes)[: len(expected)]
        if found == expected:
            return []
        return [
            page
            for page, (was, is_now) in enumerate(zip_longest(expected, found), 1)
            if was not in (is_now, UNKNOWN) and page not in in_log
        ]

    # --- when a round ends ------------------------------------------------------------------------------------------

    def ended(self) -> RoundEnd | None:
        """Takes down what the round has done to the file, before it is over. Its frames have been copied.

        From here to `begun`, or `stopped`, the caller keeps a read transaction open that began after that copy.
        """
        try:
            return RoundEnd(self.files.salts(), self._frames_since(self._sums) if self._sums is not None else None)
        except OSError:
            return None

    def begun(self, end: RoundEnd | None) -> None:
        """Keeps the sums of the file as it is now, if a new round has begun since `ended`.

        If one has, the reader's transaction holds on to the file and not to frames of the old round: all of those were
        in the file when it began. So SQLite can change nothing in the file, whoever asks for it, and no other round can
        have come between. Costs what the frames of the round cost, and a file of a thousandth of the tables; or a read
        of all, when the sums were not known.
        """
        try:
            salts = self.files.salts()
            if end is None or salts is None or salts == end.salts:
                return
            self._renew(end, salts)
        except OSError:
            return  # those on disk name a round that is over

    def stopped(self, end: RoundEnd | None) -> None:
        """Keeps the sums of the file, which nobody will write to any more, behind an `ended` whose log was emptied.

        That it could be emptied beside the reader says what new salts say in `begun`.
        """
        try:
            if end is None:
                return
            times = os.stat(self._database)
            instant = times.st_mtime_ns - 1 - secrets.randbelow(10**9)
            os.utime(self._database, ns=(times.st_atime_ns, instant))
            if self._written_ns() == instant:  # not every file system keeps nanoseconds
                self._renew(end, instant)
        except OSError:
            return  # as above

    def _renew(self, end: RoundEnd, since: bytes | int) -> None:
        known, self._sums = self._sums, None
        if known is not None and end.frames is not None:
            self._sums = Sums(known.page_bytes, since, known.after(end.frames))
        else:
            page_bytes = int.from_bytes(self.files.read(2, _PAGE_BYTES_AT), "big")
            page_bytes = 65_536 if page_bytes == 1 else page_bytes  # as SQLite writes it
            self._sums = Sums(page_bytes, since, self.files.page_checksums(page_bytes))
        self._save(self._sums)

    def _save(self, sums: Sums) -> None:
        data = memoryview(sums.encode())
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while at < len(data):
                written = os.pwrite(descriptor, data[at:], at)
                if not written:
                    return
                at += written
            if os.fstat(descriptor).st_size > len(data):
                os.ftruncate(descriptor, len(data))
            if self._sync:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Behind the last connection to the database."""
        self.files.close()
