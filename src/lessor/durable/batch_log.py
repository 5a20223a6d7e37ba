# SPDX-License-Identifier: Apache-2.0
"""The batch log: where a batch becomes durable, in one write, before its rows are in the tables.

Laws
- `append` returns when the record would survive the loss of power at once.
- A record is there whole or not at all: a checksum covers every byte of it.
- A file starts over only when all its batches are in the tables for good. So what is needed is never overwritten.

Theory of operation. Two files of equal standing, `lessor.log.0` and `.1`. Records go to the end of one of them; when it
is full and the other holds nothing that is needed, that one is begun from its start, over the old records. A file keeps
its size: writing over blocks that it has already costs half of what growing does, because no metadata follows.

How reading knows where a file ends: batch numbers grow. The first record whose checksum does not fit, or whose number
is not above the one before, is not of this round. A crash can tear the newest record only, and nobody was told of that
one. So a bad record with a good one behind it that is newer than the tables is damage; so is a record that does not
follow the batch before it. Both are refused.

    lessor.log.0    | 41 | 42 | 43 | 29 | 30 | ...     41 to 43 are of this round; 29 is older: the end
    lessor.log.1    | 36 | 37 | 38 | 39 | 40 | ...     in the tables already, or read before those of file 0

A record: bytes that follow the head, checksum of the rest of the head and of those bytes, batch number, number of the
batch before, uptime, numbers of event and of lease rows; then the rows, numbers little-endian, each event followed by
its key and value.

Does not do: batches that change anything but keys and leases, or large ones (sqlite.py writes those to the tables at
once), deciding when a batch goes into the tables.
"""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lessor.durable import directory
from lessor.state.journal import Batch, EventRow, LeaseRow

NAMES: Final = ("lessor.log.0", "lessor.log.1")
FILE_BYTES: Final = 512 * 1024  # from which on the other file is begun, and what each has from the start

Write = Callable[[int, memoryview, int], int]  # descriptor, data, position -> bytes written

_HEAD: Final = struct.Struct("<IIQQdII")
_CHECKSUM_AT: Final = 4
_CHECKED_AT: Final = 8  # the checksum covers everything behind itself
_EVENT: Final = struct.Struct(
    "<qIqqqIi"
)  # revision, sub, create_revision, version, lease, key bytes, value bytes or -1
_LEASE: Final = struct.Struct("<qqdB")  # id, ttl_s, deadline_s, ended


class Record:
    """What a batch that was logged is made of."""

    __slots__ = ("events", "follows", "leases", "now_s", "number")

    def __init__(self, number: int, follows: int, now_s: float, events: list[EventRow], leases: list[LeaseRow]) -> None:
        self.number = number
        self.follows = follows  # number of the batch before
        self.now_s = now_s
        self.events = events
        self.leases = leases


def encode(batch: Batch, follows: int) -> bytes:
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
    head = _HEAD.pack(len(rows), 0, batch.number, follows, batch.now_s, len(batch.events), len(batch.leases))
    checksum = zlib.crc32(rows, zlib.crc32(head[_CHECKED_AT:]))
    return head[:_CHECKSUM_AT] + checksum.to_bytes(4, "little") + head[_CHECKED_AT:] + rows


def decode(data: bytes, position: int) -> tuple[Record, int] | None:
    """The record at `position` and where the next one begins; None when there is no whole one. Never raises."""
    start = position + _HEAD.size
    if start > len(data):
        return None
    size, checksum, number, follows, now_s, event_count, lease_count = _HEAD.unpack_from(data, position)
    end = start + size
    if end > len(data) or number == 0 or zlib.crc32(memoryview(data)[position + _CHECKED_AT : end]) != checksum:
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
    return Record(number, follows, now_s, events, leases), end


def records(data: bytes, above: int) -> list[Record]:
    """The records of a file's newest round that are above batch `above`, which the tables have.

    Raises ValueError for a record that is damaged and not merely torn.
    """
    found: list[Record] = []
    position = newest = 0
    while (next_one := decode(data, position)) is not None and next_one[0].number > newest:
        record, position = next_one
        newest = record.number
        if newest > above:
            found.append(record)
    if next_one is None and position + _HEAD.size <= len(data):
        # Perhaps the record that a crash tore. What its length leads to is then of an earlier round.
        size = _HEAD.unpack_from(data, position)[0]
        behind = decode(data, position + _HEAD.size + size)
        if behind is not None and behind[0].number > max(newest, above):
            raise ValueError(f"the record at byte {position}, before batch {behind[0].number}")
    return found


class _File:
    """One of the two files."""

    def __init__(self, path: Path, write: Write) -> None:
        self.path = path
        self._write = write
        # O_DSYNC: each write is its own fdatasync, in one call that gives the interpreter lock up, not in two.
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
        self.end = 0  # where the next record goes
        self.newest = 0  # number of the newest batch in it
        missing_bytes = FILE_BYTES - os.fstat(self.descriptor).st_size
        if missing_bytes > 0:
            self.write(bytes(missing_bytes), FILE_BYTES - missing_bytes)

    def write(self, data: bytes, position: int) -> None:
        view = memoryview(data)
        while view:
            written = self._write(self.descriptor, view, position)
            view, position = view[written:], position + written


class BatchLog:
    """Both files, open. An OSError of `append` is final: nobody knows what the disk holds."""

    def __init__(self, data_dir: Path, write: Write = os.pwrite) -> None:
        """Opens the files, and makes those that are missing. `write` stands in for os.pwrite. Raises OSError."""
        self._files = [_File(data_dir / name, write) for name in NAMES]
        directory.sync_directory(data_dir)
        self._current = self._files[0]

    def read(self, above: int) -> list[Record]:
        """What is logged above batch `above`, ascending. Before the first append.

        Raises DataDirError when something is missing that was durable once.
        """
        found: list[Record] = []
        for file in self._files:
            try:
                found += records(file.path.read_bytes(), above)
            except ValueError as error:
                raise directory.damaged(file.path, str(error)) from None
        found.sort(key=lambda record: record.number)
        newest = above
        for record in found:
            if record.follows > newest:
                raise directory.damaged(self._files[0].path.with_suffix(".*"), f"batch {record.follows} is missing")
            newest = record.number
        return found

    def append(self, record: bytes, number: int, folded: int) -> None:
        """Makes a batch durable. `folded`: up to where the tables have all batches."""
        file = self._current
        if file.newest <= folded:
            file.end = 0
        elif file.end >= FILE_BYTES:
            other = self._files[file is self._files[0]]
            if other.newest <= folded:
                self._current = file = other
                file.end = 0
        file.write(record, file.end)
        file.end += len(record)
        file.newest = number

    def size_bytes(self) -> int:
        return sum(os.fstat(file.descriptor).st_size for file in self._files)

    def close(self) -> None:
        for file in self._files:
            os.close(file.descriptor)
