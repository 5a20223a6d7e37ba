# SPDX-License-Identifier: Apache-2.0
"""The log in two files of the data directory, `lessor.log.0` and `lessor.log.1`. Implements `Log`.

Laws
- A record is written by one call, over blocks that the file has already, on a descriptor with O_DSYNC.
- What is needed is never written over: a file starts over only when all its records are trimmed.
- A file never becomes shorter than a segment, and it is grown, and the growth synced, before a record is written
  there. So a file that is shorter than what is in it was cut by somebody else.
- No record goes into the last sector of a file. So a file whose last sector holds one was cut: also where it was cut
  between two records.
- The newest record stays in the files, even when the tables have it for good. So tables that fell behind what they had
  synced, because their own log was damaged, meet a gap.
- Both files take LOG_BYTES_MAX together at the most, or what one record needs that is larger than that.

Theory of operation. The files are of equal standing. Records go to the end of one of them; when the next one does not
fit and the other holds nothing that is needed, that one is begun from its start, over the old records. A file has one
segment from the start and keeps it: writing over blocks costs half of what growing does, because no metadata follows.
Where neither file has room, the one that is written to grows by segments. The space is given back when it was trimmed
and another record is there.

    lessor.log.0    | 41 | 42 | 43 | 29 | 30 | ...     41 to 43 are new; 29 and 30 were written over in part or not yet
    lessor.log.1    | 36 | 37 | 38 | 39 | 40 | ...     the tables have 38: 39 to 43 are needed, and follow each other

The first sector of a file says whose it is: the log's id is drawn when the log is made, and the tables keep it. A file
is made under another name, whole, and renamed: one that exists was complete once.

Docs: docs/log-format.md has every byte, decision 0013 the reasons.

Does not do: reading (file_log_reading.py), knowing what the tables have, deciding when to trim.
"""

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Final

from lessor.durable import directory, explain, file_log_reading
from lessor.durable.log import LogFullError, OutcomeUnknownError, RefusedError
from lessor.durable.log_file_header import header
from lessor.durable.record import Record
from lessor.durable.sectors import RECORD_BYTES_MAX, SALT_MAX, SECTOR_BYTES, ZEROS, frame, sectors_of

SEGMENT_BYTES: Final = 4 * 1024 * 1024  # what each file has from the start, and by how much it grows
LOG_BYTES_MAX: Final = 64 * 1024 * 1024  # both files: more waits for the tables
_FIRST_AT: Final = SECTOR_BYTES  # where the first record of a file goes


class Disk:
    """The calls of the system that change files. Tests put their own in its place."""

    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        return os.pwrite(descriptor, data, position)

    def grow(self, descriptor: int, from_bytes: int, to_bytes: int) -> None:
        """Makes the file longer, by zeros whose blocks it has. Raises OSError when there is no space."""
        os.posix_fallocate(descriptor, from_bytes, to_bytes - from_bytes)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def cut(self, descriptor: int, to_bytes: int) -> None:
        os.ftruncate(descriptor, to_bytes)


class _File:
    """One of the two files, open for writing."""

    __slots__ = ("_disk", "_sync", "descriptor", "end", "newest", "room_ends", "size_bytes")

    def __init__(self, path: Path, disk: Disk, sync: bool) -> None:
        self._disk = disk
        self._sync = sync
        # O_DSYNC: each write is its own fdatasync, in one call that gives the interpreter lock up, not in two.
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | (os.O_DSYNC if sync else 0))
        self.end = _FIRST_AT  # where the next record goes
        self.newest = 0  # number of the newest record in it
        self._is_long(os.fstat(self.descriptor).st_size)

    def _is_long(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.room_ends = (size_bytes // SECTOR_BYTES - 1) * SECTOR_BYTES  # records do not go into the last whole sector

    def write(self, data: bytes) -> None:
        _write(self._disk, self.descriptor, data, self.end)

    def grow(self, to_bytes: int) -> None:
        """Raises OSError, and leaves the file as long as it was then."""
        try:
            self._disk.grow(self.descriptor, self.size_bytes, to_bytes)
            if self._sync:
                self._disk.sync(self.descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._disk.cut(self.descriptor, self.size_bytes)
            raise
        self._is_long(to_bytes)

    def start_over(self) -> None:
        """Nothing in it is needed: the next record goes to its beginning."""
        self.end = _FIRST_AT
        self.newest = 0

    def shorten(self) -> None:
        """Gives back the room that it has grown by and does not need. Behind `end` there are old records alone."""
        to_bytes = _segments(self.end)
        if self.size_bytes > to_bytes:
            _write(self._disk, self.descriptor, ZEROS, to_bytes - SECTOR_BYTES)  # which becomes the last sector
            # Not synced: should the length come back, there is nothing but old records in it.
            self._disk.cut(self.descriptor, to_bytes)
            self._is_long(to_bytes)


def _segments(end: int) -> int:
    """The length of a file with records up to `end`: whole segments, and the last sector is free."""
    return -(-(end + SECTOR_BYTES) // SEGMENT_BYTES) * SEGMENT_BYTES


class FileLog:
    """Reads at once; `begin` makes it ready to be written to."""

    def __init__(
        self, data_dir: Path, log_id: bytes, disk: Disk | None = None, *, sync: bool = True, complete: bool = False
    ) -> None:
        """`log_id` says which files count: 16 bytes, or none, and then no file does.

        `complete`: the tables have all that was ever acknowledged, so a file that is missing is no loss. `sync` False,
        for tests: the disk is not waited for.
        """
        self.log_id = log_id
        self._dir = data_dir
        self._disk = disk or Disk()
        self._sync = sync
        self._complete = complete
        self._files: list[_File] = []
        self._current: _File
        self._salt = 0
        self._trimmed = 0
        self._failed = False
        self._long = False  # whether a file may be longer than it has to be

    def read(self, after: int, chain: bytes) -> list[Record]:
        if not self.log_id:
            return []
        files = file_log_reading.load(self._dir, self.log_id, SEGMENT_BYTES, may_be_missing=self._complete)
        return file_log_reading.records(self._dir, files, after, chain, complete=self._complete)

    def begin(self, trimmed: int) -> bool:
        """Opens the files, and makes those that are missing. The tables have everything up to `trimmed` for good.

        Returns whether `log_id` is new: it counts from when the tables have it. Raises OSError.
        """
        new = not self.log_id
        self.log_id = self.log_id or secrets.token_bytes(directory.LOG_ID_BYTES)
        try:
            for index, name in enumerate(directory.LOG_NAMES):
                path = self._dir / name
                if new or not path.exists() or path.stat().st_size < SECTOR_BYTES:  # given up by a person
                    self._make(path, index)
                self._files.append(_File(path, self._disk, self._sync))
            if self._sync:
                directory.sync_directory(self._dir)
            self._trimmed = trimmed
            self._salt = secrets.randbelow(SALT_MAX + 1)
            self._current = self._files[0]
            for file in self._files:
                file.start_over()
            self._long = self.size_bytes > len(self._files) * SEGMENT_BYTES
        except BaseException:
            self.close()
            raise
        return new

    def _make(self, path: Path, index: int) -> None:
        part = path.with_name(path.name + ".new")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            first = header(self.log_id, index)
            _write(self._disk, descriptor, first + bytes(SEGMENT_BYTES - len(first)), 0)
            if self._sync:
                self._disk.sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)

    # --- write ------------------------------------------------------------------------------------------------------

    def append(self, record: bytes, number: int) -> None:
        if self._failed:
            raise RefusedError("no write after a failed one")
        if len(record) > RECORD_BYTES_MAX:
            raise RefusedError(f"{self._dir}: a batch of {len(record)} bytes: no more than {RECORD_BYTES_MAX} can be")
        file = self._place(sectors_of(len(record)) * SECTOR_BYTES)
        data = frame(record, number, self._salt)
        try:
            file.write(data)
        except BaseException as error:
            self._failed = True
            if isinstance(error, OSError):
                raise OutcomeUnknownError(explain.system_error(error, self._dir)) from error
            raise
        file.end += len(data)
        file.newest = number
        if self._long:
            self._shorten()

    def _shorten(self) -> None:
        """Cuts files that are longer than they have to be. Always behind a record.

        Before the first record of this run, the newest thing in the log may be a torn record, of which a cut would
        leave the head alone: the next start would take that for damage. And a trim must not cut the newest record off.
        """
        try:
            for file in self._files:
                file.shorten()
            self._long = self.size_bytes > len(self._files) * SEGMENT_BYTES
        except OSError as error:
            self._failed = True
            raise OutcomeUnknownError(explain.system_error(error, self._dir)) from error

    def _place(self, size_bytes: int) -> _File:
        """The file whose end takes so many bytes."""
        file, other = self._current, self._other
        if file.end + size_bytes > file.room_ends and file.newest and not other.newest:
            self._current = file = other
        if file.end + size_bytes > file.room_ends:
            self._grow(file, file.end + size_bytes)
        return file

    def _grow(self, file: _File, least_bytes: int) -> None:
        to_bytes = _segments(least_bytes)
        self._long = True
        needed = any(each.newest > self._trimmed for each in self._files)
        if needed and self.size_bytes + to_bytes - file.size_bytes > LOG_BYTES_MAX:
            raise LogFullError(f"{self._dir}: the log is full: {self.size_bytes} bytes wait for the tables")
        try:
            file.grow(to_bytes)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and needed
            raise (LogFullError if full else RefusedError)(explain.system_error(error, self._dir)) from error

    def trim(self, upto: int) -> None:
        if upto <= self._trimmed:
            return
        self._trimmed = upto
        for file in self._files:
            if 0 < file.newest <= upto:
                file.start_over()

    @property
    def trimmable(self) -> int:
        other, current = self._other, self._current
        if other.newest > self._trimmed:
            return other.newest
        return current.newest if current.size_bytes > SEGMENT_BYTES and current.newest > self._trimmed else 0

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self._files)

    @property
    def _other(self) -> _File:
        return self._files[self._current is self._files[0]]

    def close(self) -> None:
        for file in self._files:
            os.close(file.descriptor)
        self._files.clear()


def _write(disk: Disk, descriptor: int, data: bytes, position: int) -> None:
    written = disk.write(descriptor, data, position)
    while written < len(data):  # seldom: the disk is full, or a signal came
        more = disk.write(descriptor, memoryview(data)[written:], position + written)
        if not more:
            raise OSError(errno.EIO, "nothing was written")
        written += more
