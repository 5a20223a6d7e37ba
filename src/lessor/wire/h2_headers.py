# SPDX-License-Identifier: Apache-2.0
"""Header blocks: bytes to `Head` and back (HPACK, RFC 7541; the rules for header lists, RFC 9113 section 8).

Laws
- Each block is decoded exactly once and in order, also for a stream that is refused, because it may change the dynamic
  table that later blocks refer to. A block that cannot be decoded ends the connection (COMPRESSION_ERROR).
- A block that changed the table is never cached. A change of the table empties the cache.
- All calls whose blocks have the same bytes share a `Head`. Nobody changes it, except for `route`.
- The blocks that we send never change the peer's dynamic table, so a block is a constant that any connection can send.

Theory of operation. A client that repeats a call sends the same few bytes: indexes into a table that it filled with its
first call. So `HeaderDecoder` keeps a dict from a block to the finished `Head`. A client that sets deadlines puts a new
grpc-timeout into the table with each call. All its indexes move then, and that cache is never hit. So the slow path has
to be quick too. It is one loop over the block, which copies only the bytes that it keeps. A second dict leads from the
fields without the one that is new (one of PER_CALL_FIELDS) to a head with the same fields. The new head takes over its
verdict and its route.

(`hpack.Decoder` copies the rest of the block for each literal, so a block of many short literals costs quadratic time.
The static table is that of the `hpack` library, and so is the Huffman code, which huffman.py decodes.)

Not here: limits on the encoded size and the number of frames (`h2_connection.py`), the meaning of any field.
"""

import re
from typing import Any, Final

from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

from lessor.base import limits
from lessor.wire import huffman
from lessor.wire.frames import HEADER_TABLE_BYTES_DEFAULT, ConnectionFault, ErrorCode

Field = tuple[bytes, bytes]

# The forms of a header list.
MALFORMED: Final = 0
REQUEST: Final = 1
RESPONSE: Final = 2
TRAILERS: Final = 3
TOO_LARGE: Final = 4

_FIELD_OVERHEAD_BYTES: Final = 32  # RFC 7541 4.1 and RFC 9113 10.5.1 add it to the size of each field
_STATIC: tuple[Field, ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)  # counted from 1
_STATIC_COUNT: Final = len(HeaderTable.STATIC_TABLE)
_STATIC_INDEX: Final = {field: index for index, field in reversed(list(enumerate(_STATIC)))}
_STATIC_NAME_INDEX: Final = {field[0]: index for index, field in reversed(list(enumerate(_STATIC)))}
# More fields than this are too large a list, even when all are empty.
_FIELDS_CEILING: Final = limits.H2_HEADER_LIST_BYTES_CEILING // _FIELD_OVERHEAD_BYTES
# A list of so many fields from a short block is not measured: no field is larger than the table, so the list cannot
# exceed its limit.
_SURELY_SHORT_FIELDS: Final = limits.H2_HEADER_LIST_BYTES_MAX // HEADER_TABLE_BYTES_DEFAULT - 2
# Huffman code costs a third of a unit (limits.H2_NEEDLESS_PER_S_MAX) a byte: three times its time, for it saves nobody
# so much.
_HUFFMAN_BYTES_PER_UNIT: Final = 3
_INTEGER_SHIFT_MAX: Final = 28  # five bytes carry 2^32, and no number here may be as large

_NAME: Final = re.compile(rb":?[^\x00-\x20A-Z:\x7f-\xff]+")
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
_STATUS: Final = re.compile(rb"[1-9][0-9]{2}")
_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"},
)
# Fields whose values change from call to call. No decision here depends on them. Nor may `Head.route` depend on them,
# because heads that differ only in these fields share it.
PER_CALL_FIELDS: Final = frozenset({b"grpc-timeout", b"traceparent", b"tracestate", b"x-request-id"})
_REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})


class Head:
    """A decoded header list. Shared and immutable, except for `route`, where its owner keeps what it looked up.

    `route` may depend on all fields except PER_CALL_FIELDS: a head that differs from an earlier head only in those
    begins with the route of that head.

    form             REQUEST, RESPONSE, TRAILERS (no pseudo-header), MALFORMED or TOO_LARGE
    method, scheme, path, authority, status   the pseudo-headers, b"" when absent; without authority, it is the `host`
    headers          the other fields in the order they came
    content_length   the size of the body in bytes; -1: it was not announced
    own_bytes        memory that only this head takes: the bytes of a list whose block is too long to be cached, else 0
    work             what its decoding took, in units of limits.H2_NEEDLESS_PER_S_MAX, until it is paid for
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
        "work",
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
        self.work = 0
        self.route: Any = None
        self._first: dict[bytes, bytes] | None = None

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field called `name` (lower case), or None. Cost: one dict look-up after the first."""
        first = self._first
        if first is None:
            first = self._first = dict(reversed(self.headers))
        return first.get(name)

    def with_headers(self, headers: tuple[Field, ...]) -> "Head":
        """The same head, but with these headers; they differ in PER_CALL_FIELDS only."""
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

    The result is MALFORMED for a bad name or value; for a pseudo-header that is unknown, repeated, missing, mixed with
    those of the other direction or after a plain field; for a connection-specific field; and for a content-length or
    host that contradicts another field. `kinds` remembers the kinds of single fields.
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


# The kind of a single field, whatever the other fields are.
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

    The connection calls `head(block)`; or, where each call counts, looks into `heads` and calls `decode`. The caches
    are bounded by limits.H2_HEAD_CACHE_* and limits.H2_FIELD_CACHE_*.
    """

    __slots__ = ("_dynamic", "_kinds", "_size_bytes", "_size_bytes_max", "_templates", "heads", "unpaid", "work")

    def __init__(self) -> None:
        self.unpaid = 0  # units of work that no call covers: the connection charges and clears them
        self.work = 0  # units that the block which was decoded last has taken
        self.heads: dict[bytes, Head] = {}  # by blocks that need no decoding any more
        self._templates: dict[tuple[Field, ...], Head] = {}  # by all fields except one of PER_CALL_FIELDS
        self._kinds: dict[Field, int] = {}  # kinds of the fields that came lately: most of a new block is known
        # Newest first; index 62 is its first entry. A list, because an empty one is small: each connection has one.
        self._dynamic: list[Field] = []
        self._size_bytes = 0
        self._size_bytes_max = HEADER_TABLE_BYTES_DEFAULT  # the peer may lower and raise it up to that default

    def head(self, block: bytes) -> Head:
        """Decodes one complete header block. Raises ConnectionFault when it cannot be decoded."""
        head = self.heads.get(block)
        return self.decode(block) if head is None else head

    def decode(self, block: bytes) -> Head:
        """`head` of a block that is not in `heads`."""
        try:
            fields, fresh, changed = self._decode(block)
        except (IndexError, HPACKError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "header block cannot be decoded") from error
        head = self._judged(block, fields, fresh, changed)
        self.work += len(fields) // 2
        work = self.work
        if work > limits.H2_HEAD_WORK_FREE or head is _MALFORMED_HEAD or head is _TOO_LARGE_HEAD:
            self.unpaid += work
        else:
            head.work = work
        return head

    def _judged(self, block: bytes, fields: list[Field], fresh: int, changed: bool) -> Head:
        """The head of a block that has just been decoded. Remembers it if the same bytes can mean the same again."""
        heads = self.heads
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
        """The head of `fields`, from a template with the same fields except number `fresh`."""
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
        """(fields, number of the last literal among them or -1, whether the table changed).

        Raises IndexError when the block ends early or names an entry that does not exist, HPACKError for bad Huffman
        code, ConnectionFault for any other fault.
        """
        fields: list[Field] = []
        dynamic = self._dynamic
        position = 0
        work = 0
        huffman_left = limits.H2_HEADER_HUFFMAN_BYTES_MAX
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
                work += 1
                continue
            else:  # a literal; 01 also enters the table
                mask = 0x3F if byte & 0x40 else 0x0F
                index = byte & mask
                if index == mask:
                    index, position = _integer(block, position, mask)
                if index:
                    name = _STATIC[index][0] if index <= _STATIC_COUNT else dynamic[index - _STATIC_COUNT - 1][0]
                else:
                    start = position
                    name, position = _string(block, position, huffman_left)
                    if block[start] & 0x80:
                        work += (position - start) // _HUFFMAN_BYTES_PER_UNIT
                        huffman_left -= position - start
                start = position
                value, position = _string(block, position, huffman_left)
                if block[start] & 0x80:
                    work += (position - start) // _HUFFMAN_BYTES_PER_UNIT
                    huffman_left -= position - start
                field = (name, value)
                fresh = len(fields)
                if byte & 0x40:
                    self._enter(field)
                    changed = True
                    work += 2
            fields.append(field)
            if len(fields) > _FIELDS_CEILING:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
        self.work = work
        return fields, fresh, changed

    def _enter(self, field: Field) -> None:
        size_bytes = len(field[0]) + len(field[1]) + _FIELD_OVERHEAD_BYTES
        if size_bytes > self._size_bytes_max:  # no error: it empties the table (RFC 7541 4.4)
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


def _string(block: bytes, position: int, huffman_bytes_max: int) -> tuple[bytes, int]:
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
    if byte & 0x80:
        if length > huffman_bytes_max:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
        text = huffman.decode(text)
    return text, end


def encode_headers(headers: list[Field]) -> bytes:
    """A header block for any connection: entries of the static table, and literals that do not enter the dynamic one.

    `headers` are written as they are, and nothing is checked: names must be in lower case, pseudo-headers first.
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
