# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 on the wire (RFC 9113 sections 4, 6, 7): names for its numbers, and functions that pack frames.

Laws
- There is no state here, and no decision: `h2_connection.py` decides which side may send which frame, and when.

A frame has a header of nine bytes and a payload. The header holds the length of the payload (24 bits), the type (8),
flags (8), a reserved bit and the stream id (31). `FRAME_HEADER` reads length and type as one number, because one shift
is cheaper than one more field.
"""

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # a client sends it before its first frame

# (length << 8 | type, flags, stream id with the reserved bit)
FRAME_HEADER: Final = Struct(">IBI")
FRAME_HEADER_BYTES: Final = 9
STREAM_ID_MAX: Final = 0x7FFFFFFF
WINDOW_BYTES_MAX: Final = 0x7FFFFFFF
WINDOW_BYTES_DEFAULT: Final = 65_535  # of a connection, and of a stream until SETTINGS say otherwise
FRAME_BYTES_DEFAULT: Final = 16_384  # every peer must accept it
FRAME_BYTES_CEILING: Final = 16_777_215
HEADER_TABLE_BYTES_DEFAULT: Final = 4_096

# Frame types (section 6). They are plain integers, because each frame on the hot path is compared with them.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

FLAG_END_STREAM: Final = 0x1
FLAG_ACK: Final = 0x1
FLAG_END_HEADERS: Final = 0x4
FLAG_PADDED: Final = 0x8
FLAG_PRIORITY: Final = 0x20

# Settings (section 6.5.2)
SETTINGS_HEADER_TABLE_SIZE: Final = 0x1
SETTINGS_ENABLE_PUSH: Final = 0x2
SETTINGS_MAX_CONCURRENT_STREAMS: Final = 0x3
SETTINGS_INITIAL_WINDOW_SIZE: Final = 0x4
SETTINGS_MAX_FRAME_SIZE: Final = 0x5
SETTINGS_MAX_HEADER_LIST_SIZE: Final = 0x6

# Payloads, and their lengths in bytes.
SETTING: Final = Struct(">HI")
SETTING_BYTES: Final = 6
UINT32: Final = Struct(">I")
UINT32_BYTES: Final = 4
UINT32_MAX: Final = 0xFFFFFFFF
GOAWAY_HEAD: Final = Struct(">II")  # last stream id, error code; debug data follows
GOAWAY_HEAD_BYTES: Final = 8
PING_BYTES: Final = 8
PRIORITY_BYTES: Final = 5  # stream id of the dependency (with a flag), weight


class ErrorCode(IntEnum):
    """Why a stream was reset or a connection closed (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):  # noqa: N818 - the peer's fault, not an error of ours
    """The peer broke a rule that the whole connection depends on. The connection ends with GOAWAY.

    The exception never leaves `wire/`.
    """

    def __init__(self, code: ErrorCode, debug: str) -> None:
        super().__init__(debug)
        self.code = code
        self.debug = debug


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """One whole frame. The payload must not be larger than the peer's frames may be; nothing checks that here."""
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings_frame(settings: list[tuple[int, int]]) -> bytes:
    """A SETTINGS frame of (identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(identifier, value) for identifier, value in settings))


def window_update_frame(stream_id: int, increment_bytes: int) -> bytes:
    """Lets the peer send `increment_bytes` (1..2^31-1) more; stream 0 is the connection."""
    return FRAME_HEADER.pack(UINT32_BYTES << 8 | WINDOW_UPDATE, 0, stream_id) + UINT32.pack(increment_bytes)


def rst_stream_frame(stream_id: int, code: int) -> bytes:
    """Ends one stream at once."""
    return FRAME_HEADER.pack(UINT32_BYTES << 8 | RST_STREAM, 0, stream_id) + UINT32.pack(code)


def goaway_frame(last_stream_id: int, code: int, debug: bytes = b"") -> bytes:
    """Ends the connection. Streams with an id above `last_stream_id` were not handled, and will not be."""
    return frame(GOAWAY, 0, 0, GOAWAY_HEAD.pack(last_stream_id, code) + debug)
