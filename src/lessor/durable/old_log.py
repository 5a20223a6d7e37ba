# SPDX-License-Identifier: Apache-2.0
"""The batch logs of earlier versions: read once, when an old directory is brought up to date.

Two forms, both in `lessor.log.0` and `lessor.log.1`, of batches that changed keys and leases only:

- schema 3 (until the one log of schema 4): each record begins with the salt that `meta.batch_log` has.
- schema 2, for three days before it became schema 3, never released: records from a file's start, without a salt.

Laws
- Nothing is written. The files stay as they are until the tables have their batches on disk.
- What is missing in the middle is a damaged directory; a newest record that is not whole was torn.

Does not do: writing such logs.
"""

import struct
import zlib
from pathlib import Path
from typing import Final

from lessor.durable import directory
from lessor.durable.record import Changes
from lessor.state.journal import EventRow, LeaseRow

SALT_BYTES: Final = 8

_SEAL: Final = struct.Struct(f"<{SALT_BYTES}sI")  # salt, checksum of all that follows
_HEAD: Final = struct.Struct("<IQQdII")  # bytes of the rows, number, number of the batch before, clock, events, leases
_UNSALTED: Final = struct.Struct("<II")  # bytes of the rows, checksum of all that follows
_UNSALTED_HEAD: Final = struct.Struct("<QQdII")
_EVENT: Final = struct.Struct(
    "<qIqqqIi"
)  # revision, sub, create_revision, version, lease, bytes of key, of value or -1
_LEASE: Final = struct.Struct("<qqdB")

Found = tuple[Changes, int]  # a batch and the number of the one before


def read(data_dir: Path, salt: bytes, above: int) -> list[Changes]:
    """The batches above number `above`, which the tables have; ascending. `salt` b"": the form without one.

    Raises DataDirError when something is missing that was durable once, OSError when a file cannot be read.
    """
    found: list[Found] = []
    for name in directory.LOG_NAMES:
        path = data_dir / name
        data = path.read_bytes()
        if salt:
            position = data.find(salt)
            while position >= 0:
                one = _salted(data, position, above)
                if one is not None:
                    found.append(one)
                position = data.find(salt, position + 1)
        else:
            found += _unsalted_file(path, data, above)
    found.sort(key=lambda one: one[0].number)
    newest = above
    for batch, follows in found:
        if follows != newest:
            what = f"batch {batch.number} is there, but of those before it only the ones up to {newest}"
            raise directory.damaged(data_dir / "lessor.log.*", what)
        newest = batch.number
    return [batch for batch, _ in found]


def _salted(data: bytes, position: int, above: int) -> Found | None:
    head_at = position + _SEAL.size
    start = head_at + _HEAD.size
    if start > len(data):
        return None
    size, number, follows, clock_s, events, leases = _HEAD.unpack_from(data, head_at)
    end = start + size
    if number <= above or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[head_at:end]) != _SEAL.unpack_from(data, position)[1]:
        return None
    return _rows(data, start, number, clock_s, events, leases), follows


def _unsalted(data: bytes, position: int) -> tuple[Found, int] | None:
    """The record at `position`, and where the next one begins."""
    checked_at = position + _UNSALTED.size
    start = checked_at + _UNSALTED_HEAD.size
    if start > len(data):
        return None
    size, checksum = _UNSALTED.unpack_from(data, position)
    number, follows, clock_s, events, leases = _UNSALTED_HEAD.unpack_from(data, checked_at)
    end = start + size
    if end > len(data) or number == 0 or zlib.crc32(memoryview(data)[checked_at:end]) != checksum:
        return None
    return (_rows(data, start, number, clock_s, events, leases), follows), end


def _unsalted_file(path: Path, data: bytes, above: int) -> list[Found]:
    """The records of the file's newest round: their numbers grow."""
    found: list[Found] = []
    position = newest = 0
    while (one := _unsalted(data, position)) is not None and one[0][0].number > newest:
        newest = one[0][0].number
        if newest > above:
            found.append(one[0])
        position = one[1]
    if one is None and position + _UNSALTED.size <= len(data):
        # Perhaps the record that a crash tore. What its length leads to is then of an earlier round.
        size = _UNSALTED.unpack_from(data, position)[0]
        behind = _unsalted(data, position + _UNSALTED.size + _UNSALTED_HEAD.size + size)
        if behind is not None and behind[0][0].number > max(newest, above):
            raise directory.damaged(path, f"the record at byte {position}, before batch {behind[0][0].number}")
    return found


def _rows(data: bytes, start: int, number: int, clock_s: float, event_count: int, lease_count: int) -> Changes:
    """The checksum fits, so these are rows."""
    batch = Changes(number, clock_s)
    events: list[EventRow] = batch.events
    leases: list[LeaseRow] = batch.leases
    for _ in range(event_count):
        revision, sub, create_revision, version, lease, key_bytes, value_bytes = _EVENT.unpack_from(data, start)
        key_end = start + _EVENT.size + key_bytes
        key = data[key_end - key_bytes : key_end]
        start = key_end + max(value_bytes, 0)
        value = None if value_bytes < 0 else data[key_end:start]
        events.append((revision, sub, key, value, create_revision, version, lease))
    for _ in range(lease_count):
        leases.append(_LEASE.unpack_from(data, start))
        start += _LEASE.size
    return batch
