# SPDX-License-Identifier: Apache-2.0
"""The keys and values of a log in an etcd.

Below the prefix:

    identity                     format, cluster id
    tail                         cluster id, position and chain value of the newest record
    log/POSITION-BYTES           a record. BYTES: what this record and all before it take, trimmed ones included
    piece/POSITION/CHAIN/NUMBER  of a record that is too large for one request
    snapshot                     which snapshot is the newest, and which came before it
    snap/NAME/NUMBER             a piece of a snapshot

Laws
- Numbers in keys are hexadecimal, of a fixed width: the order of keys is that of numbers.
- The value of `tail` differs for every record of every history of every cluster: whoever compares it compares all.
- BYTES tells the size of any run of records from two keys, without their values.
- A record is one value: a byte 0 and its bytes, or a byte 1 and what its pieces are. The pieces' folder is named after
  the record's chain value, so the same record written again writes the same pieces, and no other does.

Numbers in values are big-endian.
"""

import struct
from typing import Final, NamedTuple

from lessor.base.key_range import prefix_end
from lessor.durable.record import CHAIN_BYTES

FORMAT: Final = 1
_IDENTITY: Final = struct.Struct(">4sHQ")
_MAGIC: Final = b"LsEt"
_TAIL: Final = struct.Struct(f">QQ{CHAIN_BYTES}s")
_PIECES: Final = struct.Struct(f">BIQ{CHAIN_BYTES}s")
_NAMED: Final = struct.Struct(">Q16sIQ")
_WHOLE: Final = b"\0"
_IN_PIECES: Final = 1


class Tail(NamedTuple):
    """The end of the log."""

    cluster_id: int
    position: int
    chain: bytes

    def encode(self) -> bytes:
        return _TAIL.pack(*self)


class Pieces(NamedTuple):
    """What stands in the place of a record that is in pieces."""

    pieces: int  # how many
    size_bytes: int
    chain: bytes


class Named(NamedTuple):
    """A snapshot that is there as a whole."""

    position: int
    name: bytes  # 16 bytes
    pieces: int  # how many
    size_bytes: int


class Keys:
    """The keys below one prefix."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.end = prefix_end(prefix)
        self.identity = prefix + b"identity"
        self.tail = prefix + b"tail"
        self.snapshot = prefix + b"snapshot"
        self.log = prefix + b"log/"
        self.log_end = prefix_end(self.log)
        self.piece = prefix + b"piece/"
        self.snap = prefix + b"snap/"
        self.snap_end = prefix_end(self.snap)
        self.last = prefix + b"~"  # above all of them; is never written

    def record(self, position: int, total_bytes: int) -> bytes:
        return b"%b%016x-%016x" % (self.log, position, total_bytes)

    def records_from(self, position: int) -> bytes:
        """The lower end of the keys of the records from `position` on; the upper end of those below it."""
        return b"%b%016x" % (self.log, position)

    def of_record(self, key: bytes) -> tuple[int, int]:
        """Position and total bytes in the key of a record. Raises ValueError."""
        position, total_bytes = key[len(self.log) :].split(b"-")
        return int(position, 16), int(total_bytes, 16)

    def pieces_from(self, position: int) -> bytes:
        return b"%b%016x" % (self.piece, position)

    def pieces_of(self, position: int, chain: bytes) -> bytes:
        """The folder of the pieces of one record."""
        return b"%b%016x/%b/" % (self.piece, position, chain.hex().encode())

    def snap_of(self, name: bytes) -> bytes:
        """The folder of the pieces of one snapshot."""
        return b"%b%b/" % (self.snap, name.hex().encode())

    def numbered(self, folder: bytes, number: int) -> bytes:
        return b"%b%08x" % (folder, number)


def encode_identity(cluster_id: int) -> bytes:
    return _IDENTITY.pack(_MAGIC, FORMAT, cluster_id)


def decode_identity(value: bytes) -> tuple[int, int] | None:
    """Format and cluster id; None: it is no identity."""
    if len(value) != _IDENTITY.size or not value.startswith(_MAGIC):
        return None
    _, found, cluster_id = _IDENTITY.unpack(value)
    return found, cluster_id


def decode_tail(value: bytes) -> Tail | None:
    return Tail(*_TAIL.unpack(value)) if len(value) == _TAIL.size else None


def whole(data: bytes) -> bytes:
    """The value of a record that fits into one."""
    return _WHOLE + data


def in_pieces(pieces: Pieces) -> bytes:
    return _PIECES.pack(_IN_PIECES, *pieces)


def decode_record(value: bytes) -> bytes | Pieces | None:
    """The record, or what its pieces are; None: it is neither."""
    if value.startswith(_WHOLE):
        return value[1:]
    if len(value) == _PIECES.size and value[0] == _IN_PIECES:
        return Pieces(*_PIECES.unpack(value)[1:])
    return None


def encode_snapshots(named: list[Named]) -> bytes:
    return b"".join(_NAMED.pack(*each) for each in named)


def decode_snapshots(value: bytes) -> list[Named]:
    """The newest, and the one before it if there is one. Raises struct.error."""
    return [Named(*each) for each in _NAMED.iter_unpack(value)]
