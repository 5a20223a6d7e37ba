# SPDX-License-Identifier: Apache-2.0
"""Header blocks: bytes to `Head` and back (HPACK, RFC 7541; what a header list may hold, RFC 9113 section 8).

Laws
- A block is decoded exactly once and in order, also for streams that are refused: it may change the dynamic table that
  later blocks refer to. A block that cannot be decoded is the end of the connection (COMPRESSION_ERROR).
- A block that changed the table is never cached; a change of the table empties the cache.
- A `Head` is shared by all calls whose block has the same bytes: nobody changes it, `route` aside.
- What we send never touches the peer's dynamic table, so a header block is a constant that any connection can send.

How it works. A client that repeats a call sends the same few bytes: indexes into a table that it filled with its first
call. So `HeaderDecoder` keeps a dict from block to finished `Head`. Clients that set deadlines put a new grpc-timeout
into the table with each call, so that all their indexes move and that cache is never hit. For them the slow path has to
be quick too: one loop over the block that copies nothing it does not keep, and a second dict, from the fields that
came from the table to a head that had the same ones, whose verdict and route the new one takes over.

(`hpack.Decoder` copies the rest of the block for each literal: a block of many short ones costs quadratic time. The
Huffman code and the static table are the `hpack` library's.)

Not here: limits on the encoded size and the number of frames (`h2_connection.py`), the meaning of any field.
"""

import re
from typing import Any, Final

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from lessor.base import limits
from lessor.wire.frames import HEADER_TABLE_BYTES_DEFAULT, ConnectionFault, ErrorCode

Field = tuple[bytes, bytes]

# What a header list turned out to be.
MALFORMED: Final = 0
REQUEST: Final = 1
RESPONSE: Final = 2
TRAILERS: Final = 3
TOO_LARGE: Final = 4

_FIELD_OVERHEAD_BYTES: Final = 32  # what RFC 7541 4.1 and RFC 9113 10.5.1 add to each field
_STATIC: tuple[Field, ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)  # counted from 1
_STATIC_COUNT: Final = len(HeaderTable.STATIC_TABLE)
_STATIC_INDEX: Final = {field: index for index, field in reversed(list(enumerate(_STATIC)))}
_STATIC_NAME_INDEX: Final = {field[0]: index for index, field in reversed(list(enumerate(_STATIC)))}
_FIELDS_CEILING: Final = (
    limits.H2_HEADER_LIST_BYTES_CEILING // _FIELD_OVERHEAD_BYTES
)  # even empty ones are too many then
# So many fields of a short block cannot exceed the limit on lists, since none is larger than the table: not measured.
_SURELY_SHORT_FIELDS: Final = limits.H2_HEADER_LIST_BYTES_MAX // HEADER_TABLE_BYTES_DEFAULT - 2
_INTEGER_SHIFT_MAX: Final = 28  # five bytes carry 2^32, more than anything here may be

_NAME: Final = re.compile(rb":?[^\x00-\x20A-Z:\x7f-\xff]+")
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_STATUS: Final = re.compile(rb"[1-9][0-9]{2}")
_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"},
)
# Fields whose values change from call to call. They decide nothing here, and must not decide what an owner keeps in
# `Head.route`, which heads that differ in nothing else share.
PER_CALL_FIELDS: Final = frozenset({b"grpc-timeout", b"traceparent", b"tracestate", b"x-request-id"})
_REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})


class Head:
    """A decoded header list. Shared and immutable, except for `route`, where its owner may keep what it looked up.

    `route` may depend on all fields but PER_CALL_FIELDS: a head that differs from an earlier one in nothing else begins
    with the route of that one.

    form             REQUEST, RESPONSE, TRAILERS (no pseudo-header), MALFORMED or TOO_LARGE
    method, scheme, path, authority, status   the pseudo-headers, b"" when absent; authority falls back to `host`
    headers          the other fields in the order they came
    content_length   bytes the body must have, -1 when it is not announced
    own_bytes        what it alone keeps in memory, where that is much: of a list too long to be remembered for others
    """

    __slots__ = (
        "_first",
        "authority",
        "content_length",
        "form",
        "headers",
        "method",
        "own_bytes",
        "path",
        "route",
        "scheme",
        "status",
    )

    def __init__(
        self,
        form: int,
        method: bytes,
        scheme: bytes,
        path: bytes,
        authority: bytes,
        status: bytes,
        headers: tuple[Field, ...],
        content_length: int,
    ) -> None:
        self.form = form
        self.method = method
        self.scheme = scheme
        self.path = path
        self.authority = authority
        self.status = status
        self.headers = headers
        self.content_length = content_length
        self.own_bytes = 0
        self.route: Any = None
        self._first: dict[bytes, bytes] | None = None

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field called `name` (lower case), or None. Cost: one dict look-up after the first."""
        first = self._first
        if first is None:
            first = self._first = dict(reversed(self.headers))
        return first.get(name)

    def with_headers(self, headers: tuple[Field, ...]) -> "Head":
        """The same head with other fields of PER_CALL_FIELDS."""
        head = Head(
            self.form,
            self.method,
            self.scheme,
            self.path,
            self.authority,
            self.status,
            headers,
            self.content_length,
        )
        head.route = self.route
        return head

    def __repr__(self) -> str:
        return f"Head({self.form}, {self.method!r}, {self.path!r}, {self.status!r}, {self.headers!r})"


_MALFORMED_HEAD: Final = Head(MALFORMED, b"", b"", b"", b"", b"", (), -1)
_TOO_LARGE_HEAD: Final = Head(TOO_LARGE, b"", b"", b"", b"", b"", (), -1)


def head_of(fields: list[Field], kinds: dict[Field, int]) -> Head:
    """Sorts a header list into a `Head` and judges it by RFC 9113 8.2 and 8.3; never raises.

    The result is MALFORMED for a bad name or value, a pseudo-header that is unknown, repeated, missing, mixed with
    those of the other direction or after a plain field, a connection-specific field, or a contradicting
    content-length or host. `kinds` remembers what was found out about single fields.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: list[Field] = []
    content_length = -1
    host: bytes | None = None
    for field in fields:
        kind = kinds.get(field)
        if kind is None:
            kind = _kind_of(field)
            if len(field[1]) <= limits.H2_FIELD_CACHE_BYTES_MAX:
                if len(kinds) >= limits.H2_FIELD_CACHE_MAX:
                    kinds.clear()
                kinds[field] = kind
        if kind == _PLAIN:
            headers.append(field)
            continue
        name, value = field
        if kind == _PSEUDO:
            if headers or name in pseudo:
                return _MALFORMED_HEAD
            pseudo[name] = value
            continue
        headers.append(field)
        if kind == _LENGTH:
            if content_length not in (-1, int(value)):
                return _MALFORMED_HEAD
            content_length = int(value)
        elif kind == _BAD or host not in (None, value):
            return _MALFORMED_HEAD
        else:
            host = value
    form = _form_of(pseudo)
    if form == REQUEST and host is not None and pseudo.get(b":authority", host).lower() != host.lower():
        form = MALFORMED
    if form == MALFORMED:
        return _MALFORMED_HEAD
    return Head(
        form,
        pseudo.get(b":method", b""),
        pseudo.get(b":scheme", b""),
        pseudo.get(b":path", b""),
        pseudo.get(b":authority") or (host if form == REQUEST and host is not None else b""),
        pseudo.get(b":status", b""),
        tuple(headers),
        content_length,
    )


# What a single field is, whatever stands around it.
_PLAIN, _PSEUDO, _LENGTH, _HOST, _BAD = range(5)


def _kind_of(field: Field) -> int:
    name, value = field
    if _NAME.fullmatch(name) is None or _BAD_VALUE.search(value) is not None or name in _CONNECTION_SPECIFIC:
        return _BAD
    if name[0] == 0x3A:  # ':'
        return _PSEUDO
    if name == b"content-length":
        return _LENGTH if _DIGITS.fullmatch(value) is not None else _BAD
    if name == b"te":
        return _PLAIN if value.lower() == b"trailers" else _BAD
    return _HOST if name == b"host" else _PLAIN


def _form_of(pseudo: dict[bytes, bytes]) -> int:
    if not pseudo:
        return TRAILERS
    method = pseudo.get(b":method")
    if method is None:
        if len(pseudo) == 1 and _STATUS.fullmatch(pseudo.get(b":status", b"")) is not None:
            return RESPONSE
        return MALFORMED
    if not method or not pseudo.keys() <= _REQUEST_PSEUDO:
        return MALFORMED
    if method == b"CONNECT":  # section 8.5: only where to connect to
        return REQUEST if pseudo.keys() == {b":method", b":authority"} else MALFORMED
    path = pseudo.get(b":path", b"")
    if not pseudo.get(b":scheme"):
        return MALFORMED
    if path[:1] == b"/" or (path == b"*" and method == b"OPTIONS"):
        return REQUEST
    return MALFORMED


class HeaderDecoder:
    """The receiving end of one connection's header compression.

    `head(block)` is all that the connection calls. What it remembers is bounded by limits.H2_HEAD_CACHE_* and
    limits.H2_FIELD_CACHE_*.
    """

    __slots__ = ("_dynamic", "_heads", "_kinds", "_size_bytes", "_size_bytes_max", "_templates")

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        self._templates: dict[tuple[Field, ...], Head] = {}  # by all fields but one of PER_CALL_FIELDS
        self._kinds: dict[Field, int] = {}  # fields seen lately and what they are: most of a new block is known
        # Newest first; index 62 is its first entry. A list, for its size when empty: there is one in each connection.
        self._dynamic: list[Field] = []
        self._size_bytes = 0
        self._size_bytes_max = HEADER_TABLE_BYTES_DEFAULT  # the peer may lower and raise it up to that default

    def head(self, block: bytes) -> Head:
        """Decodes one complete header block. Raises ConnectionFault when it cannot be decoded."""
        head = self._heads.get(block)
        if head is not None:
            return head
        try:
            fields, fresh, changed = self._decode(block)
        except (IndexError, HPACKError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block cannot be decoded") from error
        heads = self._heads
        if changed:
            heads.clear()
        short = len(block) <= limits.H2_HEAD_CACHE_BLOCK_BYTES_MAX
        if not short or len(fields) > _SURELY_SHORT_FIELDS:
            size_bytes = header_list_bytes(fields)
            if size_bytes > limits.H2_HEADER_LIST_BYTES_CEILING:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
            if size_bytes > limits.H2_HEADER_LIST_BYTES_MAX:
                return _TOO_LARGE_HEAD
            if not short:
                head = head_of(fields, self._kinds)
                if head.form != MALFORMED:
                    head.own_bytes = size_bytes
                return head
        if fresh >= 0 and fields[fresh][0] in PER_CALL_FIELDS:
            head = self._head_with(fields, fresh)
        else:
            head = head_of(fields, self._kinds)
        if not changed:
            if len(heads) >= limits.H2_HEAD_CACHE_MAX:
                heads.clear()
            heads[block] = head
        return head

    def _head_with(self, fields: list[Field], fresh: int) -> Head:
        """The head of `fields`, by a template that has the same fields without number `fresh`."""
        per_call = fields[fresh]
        key = (*fields[:fresh], *fields[fresh + 1 :])
        template = self._templates.get(key)
        if template is not None and _BAD_VALUE.search(per_call[1]) is None:
            first = len(fields) - len(template.headers)
            if fresh >= first:
                return template.with_headers(tuple(fields[first:]))
        head = head_of(fields, self._kinds)
        if head.form != MALFORMED:
            if len(self._templates) >= limits.H2_HEAD_CACHE_MAX:
                self._templates.clear()
            self._templates[key] = head
        return head

    def _decode(self, block: bytes) -> tuple[list[Field], int, bool]:
        """(fields, which of them is the last literal or -1, whether the table changed).

        Raises IndexError when the block ends early or names an entry that does not exist, HPACKError for bad Huffman
        code, ConnectionFault otherwise.
        """
        fields: list[Field] = []
        dynamic = self._dynamic
        position = 0
        fresh = -1
        changed = False
        block_end = len(block)
        while position < block_end:
            byte = block[position]
            position += 1
            if byte & 0x80:  # an entry of the table
                index = byte & 0x7F
                if index == 0x7F:
                    index, position = _integer(block, position, 0x7F)
                field = _STATIC[index] if index <= _STATIC_COUNT else dynamic[index - _STATIC_COUNT - 1]
                if not index:
                    raise IndexError
            elif byte & 0xE0 == 0x20:  # the peer resizes the table
                if fields:
                    raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "table size update after a field")
                size_max = byte & 0x1F
                if size_max == 0x1F:
                    size_max, position = _integer(block, position, 0x1F)
                self._resize(size_max)
                changed = True
                continue
            else:  # a literal; 01 also enters the table
                mask = 0x3F if byte & 0x40 else 0x0F
                index = byte & mask
                if index == mask:
                    index, position = _integer(block, position, mask)
                if index:
                    name = _STATIC[index][0] if index <= _STATIC_COUNT else dynamic[index - _STATIC_COUNT - 1][0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = (name, value)
                fresh = len(fields)
                if byte & 0x40:
                    self._enter(field)
                    changed = True
            fields.append(field)
            if len(fields) > _FIELDS_CEILING:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
        return fields, fresh, changed

    def _enter(self, field: Field) -> None:
        size_bytes = len(field[0]) + len(field[1]) + _FIELD_OVERHEAD_BYTES
        if size_bytes > self._size_bytes_max:  # not an error: it empties the table (RFC 7541 4.4)
            self._dynamic.clear()
            self._size_bytes = 0
            return
        self._dynamic.insert(0, field)
        self._size_bytes += size_bytes
        self._evict()

    def _resize(self, size_bytes_max: int) -> None:
        if size_bytes_max > HEADER_TABLE_BYTES_DEFAULT:  # we never announce another size
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "table size above the announced one")
        self._size_bytes_max = size_bytes_max
        self._evict()

    def _evict(self) -> None:
        while self._size_bytes > self._size_bytes_max:
            name, value = self._dynamic.pop()
            self._size_bytes -= len(name) + len(value) + _FIELD_OVERHEAD_BYTES


def _integer(block: bytes, position: int, number: int) -> tuple[int, int]:
    """The rest of an integer whose prefix was full (RFC 7541 5.1): (value, next position)."""
    shift = 0
    while True:
        byte = block[position]
        position += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > _INTEGER_SHIFT_MAX:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "integer too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """A string literal (RFC 7541 5.2): (text, next position)."""
    byte = block[position]
    position += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise IndexError
    text = block[position:end]
    return (bytes(decode_huffman(text)) if byte & 0x80 else text), end


def encode_headers(headers: list[Field]) -> bytes:
    """A header block that is the same for every connection: entries of the static table, or literals that stay out
    of the dynamic one.

    `headers` are written as they are: names in lower case, pseudo-headers first; nothing is checked.
    """
    parts: list[bytes] = []
    for field in headers:
        index = _STATIC_INDEX.get(field)
        if index:
            parts.append(_encode_integer(index, 0x7F, 0x80))
            continue
        name, value = field
        index = _STATIC_NAME_INDEX.get(name, 0)
        parts.append(_encode_integer(index, 0x0F, 0))
        if not index:
            parts += (_encode_integer(len(name), 0x7F, 0), name)
        parts += (_encode_integer(len(value), 0x7F, 0), value)
    return b"".join(parts)


def header_list_bytes(headers: list[Field]) -> int:
    """The size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum(len(name) + len(value) + _FIELD_OVERHEAD_BYTES for name, value in headers)


def _encode_integer(number: int, mask: int, pattern: int) -> bytes:
    if number < mask:
        return bytes((pattern | number,))
    encoded = bytearray((pattern | mask,))
    number -= mask
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
