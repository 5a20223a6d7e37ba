# SPDX-License-Identifier: Apache-2.0
"""Sectors: how a record lies in a file, so that a torn write and damaged bytes can be told apart.

Laws
- A sector is 512 bytes, which disks write whole or not at all. It belongs to one record, and says to which: so no
  write of a record touches another one, and a sector of an older record is known as such.
- Each sector has a checksum of its own. Records begin at sectors only, and where a sector begins no client's bytes
  ever stand: what a client puts into a value is never taken for a record.

    | number of record 8 | its bytes 4 | salt 4 | part 4 | 486 bytes of the record, then zeros | checksum 4 | tail 2 |

The part says where in its record a sector stands, from 0: so one sector tells where all others of it are, or were.

The salt is drawn anew by each opening of the log. Without it the sectors of two unfinished records of the same number,
left by two crashes, could look like one.

A sector that fails its checksum is *off by a bit* when changing one bit of it makes checksum and tail right. A flipped
bit always looks like that, and what a crash leaves of a write never does, even where it stopped in the middle of a
sector. For that there is the tail, the last thing that is written: two bytes, made of the number, each with an even
number of bits. Where it is not there yet, two bits are wrong at least, over zeros as over an older record.

Does not do: I/O, deciding what a missing record means (file_log_reading.py).
"""

import struct
import zlib
from functools import cache
from typing import Final, NamedTuple

SECTOR_BYTES: Final = 512
_HEAD: Final = struct.Struct("<QIII")  # number and bytes of the record, salt, part
_RECORD: Final = struct.Struct("<QII")  # the same but for the part
_CHECKSUM_BYTES: Final = 4
_TAIL_BYTES: Final = 2
_PAYLOAD_AT: Final = _HEAD.size
_TAIL_AT: Final = SECTOR_BYTES - _TAIL_BYTES
_CHECKSUM_AT: Final = _TAIL_AT - _CHECKSUM_BYTES
ROOM_BYTES: Final = _CHECKSUM_AT - _PAYLOAD_AT  # of a record in one sector
RECORD_BYTES_MAX: Final = 2**32 - 1
SALT_MAX: Final = 2**32 - 1
ZEROS: Final = bytes(SECTOR_BYTES)
_PART_0: Final = bytes(4)
_EVEN: Final = bytes(bits << 1 | bits.bit_count() & 1 for bits in range(128))  # seven bits, and one to make them even


class Head(NamedTuple):
    """To which record a sector belongs, and which of its sectors it is."""

    number: int
    record_bytes: int
    salt: int
    part: int


def sectors_of(record_bytes: int) -> int:
    return -(-record_bytes // ROOM_BYTES)


def frame(record: bytes, number: int, salt: int) -> bytes:
    """The record in sectors. Cost: two thirds of a microsecond for one, a third more for each other."""
    size = len(record)
    head = _RECORD.pack(number, size, salt)
    tail = _tail(number)
    crc32, seed = zlib.crc32, zlib.crc32(head + tail)
    if size <= ROOM_BYTES:  # a lone write, which waits for this: the same as below, in half the time
        only = _PART_0 + record.ljust(ROOM_BYTES, b"\0")
        return b"".join((head, only, crc32(only, seed).to_bytes(_CHECKSUM_BYTES, "little"), tail))
    count = sectors_of(size)
    padded = record.ljust(count * ROOM_BYTES, b"\0")
    between = tail + head
    pieces = [head]
    for part in range(count):
        piece = part.to_bytes(4, "little") + padded[part * ROOM_BYTES : (part + 1) * ROOM_BYTES]
        pieces += (piece, crc32(piece, seed).to_bytes(_CHECKSUM_BYTES, "little"), between)
    pieces[-1] = tail
    return b"".join(pieces)


def head_of(sector: bytes) -> Head | None:
    """To which record the sector belongs; None when it is not whole, or was never written."""
    if _checksum(sector) != _stored(sector):
        return None
    head = Head(*_HEAD.unpack_from(sector))
    return head if head.part * ROOM_BYTES < head.record_bytes else None


def payload(sectors: bytes, record_bytes: int) -> bytes:
    """The record that lies in those sectors, all of them."""
    pieces = [sectors[at + _PAYLOAD_AT : at + _CHECKSUM_AT] for at in range(0, len(sectors), SECTOR_BYTES)]
    return b"".join(pieces)[:record_bytes]


def head_but_for_a_bit(sector: bytes) -> Head | None:
    """What `head_of` would answer if one bit of the sector were another; None when no bit helps."""
    wrong = _checksum(sector) ^ _stored(sector)
    bit = _bits().get(wrong)
    if bit is None:
        return None
    mended = bytearray(sector)
    mended[bit // 8] ^= 1 << bit % 8
    head = head_of(bytes(mended))
    return head if head is not None and mended.endswith(_tail(head.number)) else None


def _tail(number: int) -> bytes:
    return bytes((_EVEN[number & 127], _EVEN[number >> 7 & 127]))


def _checksum(sector: bytes) -> int:
    """Over all but the checksum, the tail before the part."""
    ends = sector[: _RECORD.size] + sector[_TAIL_AT:]
    return zlib.crc32(memoryview(sector)[_RECORD.size : _CHECKSUM_AT], zlib.crc32(ends))


def _stored(sector: bytes) -> int:
    return int.from_bytes(sector[_CHECKSUM_AT:_TAIL_AT], "little")


@cache
def _bits() -> dict[int, int]:
    """For each bit of a sector: by what it changes the difference of the two checksums. The bit stands as the value."""
    found: dict[int, int] = {}
    nothing = _checksum(ZEROS)
    for bit in range(SECTOR_BYTES * 8):
        one = bytearray(SECTOR_BYTES)
        one[bit // 8] |= 1 << bit % 8
        wrong = _checksum(bytes(one)) ^ _stored(bytes(one))
        found[wrong ^ nothing] = bit
    return found
