# SPDX-License-Identifier: Apache-2.0
"""The first sector of a file of the log: whose it is, and in which format.

Law: it is written once, when the file is made, and never again.

Does not do: I/O.
"""

import struct
import zlib
from typing import Final, NamedTuple

from lessor.durable.sectors import SECTOR_BYTES

MAGIC: Final = b"lessor log\n".ljust(16, b"\0")
FORMAT: Final = 2
UNMARKED_END: Final = 1  # the format whose last sector may belong to a record

_HEADER: Final = struct.Struct("<16sII16s")  # magic, format, which of the files this is, id of the log
_CHECKSUM_BYTES: Final = 4


class Header(NamedTuple):
    format: int
    number: int  # of the file
    log_id: bytes


def header(log_id: bytes, number: int) -> bytes:
    """The first sector of file `number` (0 or 1)."""
    content = _HEADER.pack(MAGIC, FORMAT, number, log_id)
    return (content + zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little")).ljust(SECTOR_BYTES, b"\0")


def parse(sector: bytes) -> Header | None:
    """None when it is no such sector, or damaged."""
    end = _HEADER.size + _CHECKSUM_BYTES
    if len(sector) < end or zlib.crc32(sector[: _HEADER.size]).to_bytes(4, "little") != sector[_HEADER.size : end]:
        return None
    magic, found, number, log_id = _HEADER.unpack_from(sector)
    return Header(found, number, log_id) if magic == MAGIC else None
