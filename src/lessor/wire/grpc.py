# SPDX-License-Identifier: Apache-2.0
"""gRPC over HTTP/2: messages in a body, status in trailers, deadlines and binary metadata in headers.

Laws
- This module knows no connection and no stream: bytes and header values in, bytes and header blocks out.
- A message is never inflated beyond its limit, so a compressed bomb costs at most that much memory. Where the owner
  wants steps, many of them cost little more than one: see `Deframer.feed`.
- Errors are `EtcdError`, ready to be sent as the status of the call.

A message is a prefix of five bytes (a flag, 1 for compressed, and the length of the payload) and the payload. DATA
frames may cut it anywhere. We never compress. The status is in the trailers. A reply without messages has it in its
only header block ("trailers-only").
"""

import binascii
import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Final
from urllib.parse import unquote_to_bytes

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.wire.h2_headers import Field, Head, encode_headers

PREFIX_BYTES: Final = 5
_COMPRESSED: Final = 1
_PREFIX: Final = Struct(">BI")
unpack_prefix: Final = _PREFIX.unpack_from  # the flag of a message, and its size
pack_prefix: Final = _PREFIX.pack  # the same two; we set no flag, it is 0
_GZIP_WBITS: Final = 31  # zlib's number for "only with a gzip header"

CONTENT_TYPE: Final = b"application/grpc"
_HEADERS: list[Field] = [(b":status", b"200"), (b"content-type", CONTENT_TYPE)]
RESPONSE_HEADERS: Final = encode_headers(_HEADERS)
TRAILERS_OK: Final = encode_headers([(b"grpc-status", b"0")])

_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_TIMEOUT_BYTES_MAX: Final = 9
_UNPRINTABLE: Final = re.compile(rb"[^\x20-\x24\x26-\x7e]")  # the percent sign is among them

# The code for a response that is not gRPC's, by its HTTP status. Any other status is UNKNOWN.
_CODE_OF_HTTP_STATUS: Final = {
    b"400": Code.INTERNAL,
    b"401": Code.UNAUTHENTICATED,
    b"403": Code.PERMISSION_DENIED,
    b"404": Code.UNIMPLEMENTED,
    b"429": Code.UNAVAILABLE,
    b"502": Code.UNAVAILABLE,
    b"503": Code.UNAVAILABLE,
    b"504": Code.UNAVAILABLE,
}


_CODES: Final = {b"%d" % code: code for code in Code}


# --- messages -------------------------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """A message with its prefix, as it is in a body."""
    return pack_prefix(0, len(payload)) + payload


class Deframer:
    """Cuts one direction of a call into messages.

    `message_bytes_max`: the size of the largest message, before and after inflating. `encoding`: the call's
    grpc-encoding; pass it to `check_encoding` first. `error` is set, for good, after bytes that are no message.
    `inflated_bytes`: of the messages that the last `feed` inflated. `waiting`: whether it has left a whole message.
    """

    __slots__ = ("_buffer", "_bytes_max", "_gzip", "_needed_bytes", "error", "inflated_bytes", "waiting")

    def __init__(self, message_bytes_max: int, encoding: bytes | None = None) -> None:
        self._bytes_max = message_bytes_max
        self._gzip = encoding == b"gzip"
        self._buffer = bytearray()
        self._needed_bytes = PREFIX_BYTES
        self.error: EtcdError | None = None
        self.inflated_bytes = 0
        self.waiting = False

    @property
    def unfinished_bytes(self) -> int:
        """The size of the beginning of a message whose rest has not come. While `waiting`: of all that is left."""
        return len(self._buffer)

    def feed(
        self, data: bytes, may_inflate: Callable[[int], None] | None = None, inflate_bytes_max: int | None = None
    ) -> list[bytes]:
        """The messages that `data` completes. Cost: when `data` is whole messages, only the payloads are copied.

        `inflate_bytes_max`: when messages that were compressed have so many bytes together, or more, the next such
        message and all behind it are left: `waiting` is set, and a later `feed`, of b"" perhaps, goes on.
        `may_inflate(size_bytes)`: called when a message turns out to have more than STRANGER_BYTES_MAX, with the part
        that has been inflated. It raises EtcdError if the sender may not send more.

        Raises EtcdError for a message that is too large or wrongly compressed; the call is over then. When good
        messages came before it in `data`, they are returned, and nothing is raised: handle them, then look at `error`.
        Each later call raises it.
        """
        if self.error is not None:
            raise self.error
        self.inflated_bytes = 0
        self.waiting = False
        size = len(data) - PREFIX_BYTES
        if 0 <= size <= self._bytes_max and not self._buffer and unpack_prefix(data) == (0, size):
            return [data[PREFIX_BYTES:]]  # one whole message: the usual case by far
        messages: list[bytes] = []
        try:
            self._cut(data, messages, may_inflate, inflate_bytes_max)
        except EtcdError as error:
            self.error = error.bare()  # the one with the traceback would hold this object
            self._buffer.clear()
            if not messages:
                raise
        return messages

    def _cut(
        self,
        data: bytes,
        messages: list[bytes],
        may_inflate: Callable[[int], None] | None,
        inflate_bytes_max: int | None,
    ) -> None:
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed_bytes:
                return
            data = bytes(buffer)
            buffer.clear()
        size = len(data)
        position = 0
        while size - position >= PREFIX_BYTES:
            flag, length = unpack_prefix(data, position)
            if length > self._bytes_max:
                raise EtcdError(
                    Code.RESOURCE_EXHAUSTED,
                    f"grpc: received message larger than max ({length} vs. {self._bytes_max})",
                )
            end = position + PREFIX_BYTES + length
            if end > size:
                break
            if flag and inflate_bytes_max is not None and self.inflated_bytes >= inflate_bytes_max:
                self.waiting = True
                break
            payload = data[position + PREFIX_BYTES : end]
            messages.append(self._inflated(flag, payload, may_inflate) if flag else payload)
            position = end
        if position < size:
            buffer += data[position:]
            self._needed_bytes = PREFIX_BYTES
            if size - position >= PREFIX_BYTES:
                self._needed_bytes += unpack_prefix(data, position)[1]

    def _inflated(self, flag: int, payload: bytes, may_inflate: Callable[[int], None] | None) -> bytes:
        if flag != _COMPRESSED:
            raise EtcdError(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
        if not self._gzip:
            raise EtcdError(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
        inflater = zlib.decompressobj(_GZIP_WBITS)
        beyond = self._bytes_max + 1
        first = beyond if may_inflate is None else min(beyond, limits.STRANGER_BYTES_MAX + 1)
        try:
            message = inflater.decompress(payload, first)
            self.inflated_bytes += PREFIX_BYTES + len(message)  # an empty one is some work too
            if may_inflate is not None and len(message) > limits.STRANGER_BYTES_MAX:
                may_inflate(len(message))
                rest = inflater.decompress(inflater.unconsumed_tail, beyond - first) if first < beyond else b""
                self.inflated_bytes += len(rest)
                message += rest
        except zlib.error as error:
            raise EtcdError(Code.INTERNAL, f"grpc: failed to decompress the received message: {error}") from None
        if len(message) > self._bytes_max:
            raise EtcdError(
                Code.RESOURCE_EXHAUSTED,
                f"grpc: received message after decompression larger than max {self._bytes_max}",
            )
        if not inflater.eof or inflater.unused_data:
            raise EtcdError(Code.INTERNAL, "grpc: failed to decompress the received message: not one gzip stream")
        return message


# --- status ---------------------------------------------------------------------------------------------------------


def trailers(code: int, message: str = "") -> bytes:
    """The header block that ends a call after its messages. A long `message` is cut: GRPC_STATUS_CHARACTERS_MAX."""
    if not code:
        return TRAILERS_OK
    return _status_block(int(code), message, False)


def trailers_only(code: int, message: str = "") -> bytes:
    """The only header block of a reply without messages. With UNIMPLEMENTED it names the encodings that we take."""
    return _status_block(int(code), message, True)


@lru_cache(maxsize=256)
def _status_block(code: int, message: str, only: bool) -> bytes:
    fields = list(_HEADERS) if only else []
    fields.append((b"grpc-status", b"%d" % code))
    if message:
        fields.append((b"grpc-message", percent_encode(message[: limits.GRPC_STATUS_CHARACTERS_MAX])))
    if only and code == Code.UNIMPLEMENTED:
        fields.append((b"grpc-accept-encoding", b"identity,gzip"))
    return encode_headers(fields)


def percent_encode(message: str) -> bytes:
    """A status message as a header value: printable ASCII stays, other characters become %XX for each byte of UTF-8."""
    return _UNPRINTABLE.sub(lambda match: b"%%%02X" % match[0][0], message.encode("utf-8", "replace"))


def percent_decode(value: bytes) -> str:
    """The text of a grpc-message. Escapes that are malformed stay as they are."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


def status_of(head: Head | None, trailers_head: Head | None) -> tuple[Code, str]:
    """(code, message) of a finished call, from the head and the trailers of the response (None: absent).

    Without a grpc-status the HTTP status decides, by the mapping of the gRPC specification.
    """
    for source in (trailers_head, head):
        value = None if source is None else source.get(b"grpc-status")
        if source is not None and value is not None:
            message = percent_decode(source.get(b"grpc-message") or b"")
            return _CODES.get(value, Code.UNKNOWN), message
    if head is None:
        return Code.INTERNAL, "no response"
    if head.status == b"200":
        return Code.UNKNOWN, "the server closed the stream without sending trailers"
    text = f"unexpected HTTP status code received from server: {head.status.decode()}"
    return _CODE_OF_HTTP_STATUS.get(head.status, Code.UNKNOWN), text


# --- headers --------------------------------------------------------------------------------------------------------


def is_grpc(content_type: bytes | None) -> bool:
    """Whether a request with this content-type is a gRPC call: application/grpc, +anything or ;anything."""
    if content_type is None or not content_type.lower().startswith(CONTENT_TYPE):
        return False
    return content_type[len(CONTENT_TYPE) : len(CONTENT_TYPE) + 1] in (b"", b"+", b";")


def check_encoding(encoding: bytes | None) -> None:
    """Raises UNIMPLEMENTED for a grpc-encoding that we cannot read. The reply must then be trailers-only."""
    if encoding not in (None, b"", b"identity", b"gzip"):
        text = encoding.decode("ascii", "replace")
        raise EtcdError(Code.UNIMPLEMENTED, f'grpc: Decompressor is not installed for grpc-encoding "{text}"')


def parse_timeout(value: bytes) -> float:
    """The seconds of a grpc-timeout (0..3.6e11). Raises EtcdError for anything but 1 to 8 digits and a unit."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise EtcdError(Code.INTERNAL, f"malformed grpc-timeout: {_fault_of_timeout(value)}")
    return int(match[1]) * _UNIT_S[match[2]]


def _fault_of_timeout(value: bytes) -> str:
    """The fault of a malformed timeout, in the words of grpc-go."""
    if len(value) < 2:
        return f"transport: timeout string is too short: {_go_quoted(value)}"
    if len(value) > _TIMEOUT_BYTES_MAX:
        return f"transport: timeout string is too long: {_go_quoted(value)}"
    if value[-1:] not in _UNIT_S:
        return f"transport: timeout unit is not recognized: {_go_quoted(value)}"
    return f"strconv.ParseUint: parsing {_go_quoted(value[:-1])}: invalid syntax"


def _go_quoted(value: bytes) -> str:
    """The value quoted as Go quotes a string. The only control character in a header value is the tab."""
    escaped = value.replace(b"\\", rb"\\").replace(b'"', rb"\"").replace(b"\t", rb"\t")
    return f'"{escaped.decode("utf-8", "backslashreplace")}"'


def format_timeout(timeout_s: float) -> bytes:
    """A grpc-timeout of at least `timeout_s` seconds, in the finest unit in which it has 8 digits or fewer."""
    for unit in (b"n", b"u", b"m", b"S", b"M", b"H"):
        count = max(0, -int(-timeout_s // _UNIT_S[unit]))
        if count < 10**8:
            return b"%d" % count + unit
    return b"99999999H"


def decode_binary(value: bytes) -> bytes:
    """The bytes of a metadata value whose name ends in -bin: base64, padded or not. Raises EtcdError."""
    try:
        return binascii.a2b_base64(value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), strict_mode=True)
    except binascii.Error:
        raise EtcdError(Code.INTERNAL, "malformed binary metadata: not base64") from None


def encode_binary(value: bytes) -> bytes:
    """A metadata value for a name that ends in -bin: base64 without padding."""
    return binascii.b2a_base64(value, newline=False).rstrip(b"=")


def metadata(head: Head) -> list[Field]:
    """The caller's metadata: every header that does not belong to HTTP or gRPC. -bin values are decoded, lists too.

    Raises EtcdError for a -bin value that is not base64.
    """
    fields: list[Field] = []
    for name, value in head.headers:
        if name in _RESERVED or name.startswith(b"grpc-"):
            continue
        if name.endswith(b"-bin"):
            fields += [(name, decode_binary(part.strip())) for part in value.split(b",")]
        else:
            fields.append((name, value))
    return fields


_RESERVED: Final = frozenset({b"content-type", b"te", b"content-length", b"host", b"user-agent"})
