# SPDX-License-Identifier: Apache-2.0
"""The batch log: where a batch becomes durable, in one write, before its rows are in the tables.

Laws
- `append` returns when the record would survive the loss of power at once.
- A record is there whole or not at all: a checksum covers every byte of it.
- A file starts over only when all its batches are in the tables for good, where a loss of power cannot undo them. So
  what is needed is never overwritten.
- What is logged above the tables' newest batch is a chain without a gap, or the directory is refused.

Theory of operation. Two files of equal standing, `lessor.log.0` and `.1`. Records go to the end of one of them; when
the next one does not fit and the other file holds nothing that is needed, that one is begun from its start, over the
old records. A file keeps its size: writing over blocks that it has already costs half of what growing does, because no
metadata follows.

    lessor.log.0    | 41 | 42 | 43 | 29 | 30 | ...     41 to 43 are new; 29 and 30 were written over in part or not yet
    lessor.log.1    | 36 | 37 | 38 | 39 | 40 | ...     the tables have 38: 39 to 43 are needed, and follow each other

How reading knows what counts. Each record begins with the salt, eight random bytes that the tables keep and that each
start of a server draws anew; so nothing of an earlier run counts, and no client can put bytes into a value that would
be taken for a record. Of this run all that is whole and above the tables' newest batch counts, wherever in the files it
stands: what is older is in the tables for good, or its file would not have started over. Each names the batch before
it. A crash can tear the newest record only, and nobody was told of that one: it ends the chain. Anything else that is
missing leaves a gap.

A record: salt, checksum of all that follows; bytes of the rows, batch number, number of the batch before, uptime,
numbers of event and of lease rows; then the rows, numbers little-endian, each event followed by its key and value. The
form belongs to the schema version: a change of it is a migration, so that an older Lessor refuses the directory.

Does not do: batches that change anything but keys and leases, or large ones (sqlite.py writes those to the tables at
once), deciding when a batch goes into the tables.
"""

import errno
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lessor.durable import directory
from lessor.state.journal import Batch, EventRow, LeaseRow

FILE_BYTES: Final = 4 * 1024 * 1024  # what each file has from the start
SALT_BYTES: Final = 8

Write = Callable[[int, memoryview, int], int]  # descriptor, data, position -> bytes written

_SEAL: Final = struct.Struct(f"<{SALT_BYTES}sI")  # salt, checksum
_HEAD: Final = struct.Struct("<IQQdII")  # bytes of the rows, number, follows, data clock, events, leases
_EVENT: Final = struct.Struct(
    "<qIqqqIi"
)  # revision, sub, create_revision, version, lease, key bytes, value bytes or -1
_LEASE: Final = struct.Struct("<qqdB")  # id, ttl_s, deadline_s, ended
ROW_BYTES_MIN: Final = _LEASE.size


class Record:
    """What a batch that was logged is made of."""

    __slots__ = ("clock_s", "events", "follows", "leases", "number")

    def __init__(
        self, number: int, follows: int, clock_s: float, events: list[EventRow], leases: list[LeaseRow]
    ) -> None:
        self.number = number
        self.follows = follows  # number of the batch before
        self.clock_s = clock_s
        self.events = events
        self.leases = leases


def encode(batch: Batch, follows: int, salt: bytes) -> bytes:
    """The record of a batch. `follows`: number of the batch before. Cost: half a microsecond a row."""
    pack_event, pack_lease = _EVENT.pack, _LEASE.pack
    parts: list[bytes] = []
    for revision, sub, key, value, create_revision, version, lease in batch.events:
        value_bytes = -1 if value is None else len(value)
        parts.append(pack_event(revision, sub, create_revision, version, lease, len(key), value_bytes))
        parts.append(key)
        if value:
            parts.append(value)
    parts += [pack_lease(*row) for row in batch.leases]
    rows = b"".join(parts)
    head = _HEAD.pack(len(rows), batch.number, follows, batch.clock_s, len(batch.events), len(batch.leases))
    return _SEAL.pack(salt, zlib.crc32(rows, zlib.crc32(head))) + head + rows


def decode(data: bytes, position: int, above: int) -> Record | None:
    """The record at `position`; None when there is no whole one, or not above batch `above`. Never raises."""
    head_at = position + _SEAL.size
    start = head_at + _HEAD.size
    if start > len(data):
        return None
    size, number, follows, clock_s, event_count, lease_count = _HEAD.unpack_from(data, head_at)
    end = start + size
    if number <= above or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[head_at:end]) != _SEAL.unpack_from(data, position)[1]:
        return None
    # The checksum fits, so these are rows as `encode` wrote them.
    events: list[EventRow] = []
    for _ in range(event_count):
        revision, sub, create_revision, version, lease, key_bytes, value_bytes = _EVENT.unpack_from(data, start)
        key_end = start + _EVENT.size + key_bytes
        key = data[key_end - key_bytes : key_end]
        start = key_end + max(value_bytes, 0)
        value = None if value_bytes < 0 else data[key_end:start]
        events.append((revision, sub, key, value, create_revision, version, lease))
    leases: list[LeaseRow] = []
    for _ in range(lease_count):
        lease_id, ttl_s, deadline_s, ended = _LEASE.unpack_from(data, start)
        leases.append((lease_id, ttl_s, deadline_s, bool(ended)))
        start += _LEASE.size
    return Record(number, follows, clock_s, events, leases)


def read(data_dir: Path, salt: bytes, above: int) -> list[Record]:
    """What is logged under `salt` above batch `above`, which the tables have; ascending. Changes nothing.

    Raises DataDirError when something is missing that was durable once, OSError when a file cannot be read.
    """
    found: list[Record] = []
    for name in directory.LOG_NAMES:
        data = (data_dir / name).read_bytes()
        position = data.find(salt)
        while position >= 0:
            record = decode(data, position, above)
            if record is not None:
                found.append(record)
            position = data.find(salt, position + 1)
    found.sort(key=lambda record: record.number)
    newest = above
    for record in found:
        if record.follows != newest:
            what = f"batch {record.number} is there, but of those before it only the ones up to {newest}"
            raise directory.damaged(data_dir / "lessor.log.*", what)
        newest = record.number
    return found


class _File:
    """One of the two files."""

    def __init__(self, path: Path, write: Write, sync: bool) -> None:
        self._write = write
        # O_DSYNC: each write is its own fdatasync, in one call that gives the interpreter lock up, not in two.
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_DSYNC if sync else 0), 0o600)
        self.end = 0  # where the next record goes
        self.newest = 0  # number of the newest batch in it
        missing_bytes = FILE_BYTES - os.fstat(self.descriptor).st_size
        if missing_bytes > 0:
            self.write(bytes(missing_bytes), FILE_BYTES - missing_bytes)

    def write(self, data: bytes, position: int) -> None:
        view = memoryview(data)
        while view:
            written = self._write(self.descriptor, view, position)
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            view, position = view[written:], position + written


class BatchLog:
    """Both files, open, with nothing in them that is needed. An OSError of `append` is final: nobody knows what the
    disk holds."""

    def __init__(self, data_dir: Path, write: Write = os.pwrite, *, sync: bool = True) -> None:
        """Opens the files, and makes those that are missing. Raises OSError.

        `write` stands in for os.pwrite. `sync` False, for tests: the disk is not waited for.
        """
        self._files: list[_File] = []
        try:
            for name in directory.LOG_NAMES:
                self._files.append(_File(data_dir / name, write, sync))
            directory.sync_directory(data_dir)
        except BaseException:
            self.close()
            raise
        self._current = self._files[0]

    def has_room(self, size_bytes: int, synced: int) -> bool:
        """Whether a record of that size can be appended. `synced`: up to where the tables have all batches for good."""
        return (
            self._current.newest <= synced
            or self._current.end + size_bytes <= FILE_BYTES
            or self._other.newest <= synced
        )

    def append(self, record: bytes, number: int, synced: int) -> None:
        """Makes a batch durable, for which there must be room."""
        assert self.has_room(len(record), synced), "what is needed would be written over"
        file = self._current
        if file.newest <= synced:
            file.end = 0
        elif file.end + len(record) > FILE_BYTES:
            self._current = file = self._other
            file.end = 0
        file.write(record, file.end)
        file.end += len(record)
        file.newest = number

    @property
    def resting(self) -> int:
        """Number of the newest batch in the file that is not written to now; 0 when there is none."""
        return self._other.newest

    @property
    def _other(self) -> _File:
        return self._files[self._current is self._files[0]]

    def close(self) -> None:
        for file in self._files:
            os.close(file.descriptor)
        self._files.clear()
