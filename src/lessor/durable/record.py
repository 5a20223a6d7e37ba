# SPDX-License-Identifier: Apache-2.0
"""The log record: one batch as bytes, the same for every kind of log.

Laws
- Everything that a batch changes is in its record: keys, leases, alarms, users, roles, the auth switch, a compaction,
  peer URLs, the clean mark, the data clock, the term.
- Records are numbered 1, 2, 3 without a gap, so a missing one is seen.
- A record ends with its chain value: the digest of all bytes before it, the chain value of the record before among
  them. So it is a checksum over every byte, and two logs with the same chain value have the same history.
- `decode` raises nothing over any bytes, but UnknownFormatError over a whole record of a newer format.

Theory of operation. Numbers are little-endian; names are UTF-8 behind their length. docs/log-format.md has every byte.
A record without rows is one of two things: the data clock of an idle server, or a new term (with the batch number and
the data clock of the record before).

Dead rows do not travel in the record: they follow from the compaction's revision and the rows, and the start derives
them again. 50,000 of them would take 800 KB of the log.

Does not do: I/O; sectors and torn writes (file_log.py, sectors.py); knowing which record has to follow which.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

from lessor.state.journal import AlarmRow, AuthRows, EventRow, LeaseRow, PermissionRow, RoleRow, Rows, UserRow

MAGIC: Final = b"LsRc"
FORMAT: Final = 1
CHAIN_BYTES: Final = 16
_HOLD_BYTES: Final = 2_047  # that hashlib takes in without giving the interpreter lock up
_HELD_BYTES_MAX: Final = 131_072  # of a record, for which the lock is held: 0.1 ms

# Magic, format, flags; number, term, batch; data clock; compaction, auth revision; chain value of the record before;
# how many events, leases, alarms, peer URLs, users, roles.
_HEAD: Final = struct.Struct("<4sHHQQQdqq16sIIIIII")
_EVENT: Final = struct.Struct(
    "<qIqqqIi"
)  # revision, sub, create_revision, version, lease; bytes of key, of value or -1
_LEASE: Final = struct.Struct("<qqdB")  # id, ttl_s, deadline_s, ended
_ALARM: Final = struct.Struct("<QIB")  # member_id, type, active
_USER: Final = struct.Struct("<BBI")  # no_password, deleted, roles; behind name and password
_ROLE: Final = struct.Struct("<BI")  # deleted, permissions; behind the name
_SIZE: Final = struct.Struct("<I")

_CLEAN: Final = 1
_COMPACTED: Final = 2
_PEER_URLS: Final = 4
_AUTH: Final = 8
_SWITCH: Final = 16
_ENABLED: Final = 32
_FLAGS: Final = 63


class UnknownFormatError(Exception):
    """A whole record, of a format that this Lessor does not know."""


class Changes:
    """The rows of a batch that was read back. Implements `Rows`."""

    __slots__ = ("alarms", "auth", "clean", "clock_s", "compact_revision", "events", "leases", "number", "peer_urls")

    dead: tuple[tuple[int, int], ...] = ()

    def __init__(self, number: int, clock_s: float) -> None:
        self.number = number  # of the batch
        self.clock_s = clock_s
        self.events: list[EventRow] = []
        self.leases: list[LeaseRow] = []
        self.alarms: list[AlarmRow] = []
        self.compact_revision: int | None = None
        self.auth: AuthRows | None = None
        self.peer_urls: tuple[str, ...] | None = None
        self.clean = False


class Record:
    """A record as the engine keeps it until the tables have it."""

    __slots__ = ("chain", "number", "previous", "rows", "size_bytes", "term")

    def __init__(self, number: int, term: int, previous: bytes, chain: bytes, rows: Rows, size_bytes: int) -> None:
        self.number = number  # of the record
        self.term = term
        self.previous = previous  # chain value of the record before
        self.chain = chain  # its own
        self.rows = rows
        self.size_bytes = size_bytes


def chain_of(content: bytes | memoryview) -> bytes:
    """The chain value of a record whose bytes before the chain value are `content`.

    hashlib gives the interpreter lock up for 2,048 bytes and more, and winning it back from a busy loop takes up to a
    switch interval, 0.2 ms. So all but large records go in smaller pieces: 1 us each.
    """
    size = len(content)
    if size < _HOLD_BYTES or size > _HELD_BYTES_MAX:
        return hashlib.sha256(content).digest()[:CHAIN_BYTES]
    digest = hashlib.sha256()
    view = memoryview(content)
    for start in range(0, size, _HOLD_BYTES):
        digest.update(view[start : start + _HOLD_BYTES])
    return digest.digest()[:CHAIN_BYTES]


# --- to bytes -------------------------------------------------------------------------------------------------------


def encode(number: int, term: int, previous: bytes, rows: Rows) -> bytes:
    """The record of a batch; its last CHAIN_BYTES are its chain value. Cost: half a microsecond a row, and a digest."""
    content = encode_content(number, term, previous, rows)
    return content + chain_of(content)


def encode_content(number: int, term: int, previous: bytes, rows: Rows) -> bytes:
    """The record without its chain value: that part of it which a record of a shared log has too."""
    flags, compacted, auth_revision = 0, 0, 0
    if rows.clean:
        flags |= _CLEAN
    if rows.compact_revision is not None:
        flags |= _COMPACTED
        compacted = rows.compact_revision
    urls: tuple[str, ...] = ()
    if rows.peer_urls is not None:
        flags |= _PEER_URLS
        urls = rows.peer_urls
    auth, users, roles = rows.auth, 0, 0
    if auth is not None:
        flags |= _AUTH
        users, roles = len(auth.users), len(auth.roles)
        if auth.switch is not None:
            flags |= _SWITCH | (_ENABLED if auth.switch[0] else 0)
            auth_revision = auth.switch[1]
    parts = [
        _HEAD.pack(
            MAGIC, FORMAT, flags, number, term, rows.number, rows.clock_s, compacted, auth_revision, previous,
            len(rows.events), len(rows.leases), len(rows.alarms), len(urls), users, roles,
        )
    ]  # fmt: skip
    pack_event, pack_lease = _EVENT.pack, _LEASE.pack
    for revision, sub, key, value, create_revision, version, lease in rows.events:
        value_bytes = -1 if value is None else len(value)
        parts.append(pack_event(revision, sub, create_revision, version, lease, len(key), value_bytes))
        parts.append(key)
        if value:
            parts.append(value)
    parts += [pack_lease(*row) for row in rows.leases]
    if flags & ~_CLEAN or rows.alarms:
        parts += [_ALARM.pack(*row) for row in rows.alarms]
        for url in urls:
            sized(parts, url.encode())
        if auth is not None:
            _encode_auth(parts, auth)
    return b"".join(parts)


def sized(parts: list[bytes], data: bytes) -> None:
    parts.append(_SIZE.pack(len(data)))
    parts.append(data)


def _encode_auth(parts: list[bytes], auth: AuthRows) -> None:
    for name, password, no_password, roles, deleted in auth.users.values():
        sized(parts, name.encode())
        sized(parts, password)
        parts.append(_USER.pack(no_password, deleted, len(roles)))
        for role in roles:
            sized(parts, role.encode())
    for name, permissions, deleted in auth.roles.values():
        sized(parts, name.encode())
        parts.append(_ROLE.pack(deleted, len(permissions)))
        for key, range_end, kind in permissions:
            sized(parts, key)
            sized(parts, range_end)
            parts.append(bytes((kind,)))


# --- from bytes -----------------------------------------------------------------------------------------------------


def is_whole(data: bytes, head_bytes: int) -> bool:
    """Whether these are the magic, `head_bytes` at least with it, and more, with its chain value at the end."""
    if len(data) < head_bytes + CHAIN_BYTES or not data.startswith(MAGIC):
        return False
    return chain_of(memoryview(data)[:-CHAIN_BYTES]) == data[-CHAIN_BYTES:]


def decode(data: bytes) -> Record | None:
    """The record that `data` is, from its first byte to its last; None when it is none, or is not whole.

    Raises UnknownFormatError for a whole record of another format, and nothing else.
    """
    start = len(MAGIC)
    if not is_whole(data, start + 2):
        return None
    found = int.from_bytes(data[start : start + 2], "little")
    if found != FORMAT:
        raise UnknownFormatError(f"a record of format {found}, this Lessor knows {FORMAT}")
    try:
        return decode_content(data)
    except (struct.error, ValueError):  # whole, but nothing that `encode` makes
        return None


def decode_content(data: bytes) -> Record | None:
    """The record of `encode_content`'s bytes and any chain value behind them, which is believed.

    None, struct.error or ValueError where it is none.
    """
    (
        _, _, flags, number, term, batch, clock_s, compacted, auth_revision, previous,
        events, leases, alarms, urls, users, roles,
    ) = _HEAD.unpack_from(data)  # fmt: skip
    if flags & ~_FLAGS:
        return None
    reader = Reader(data, _HEAD.size)
    rows = Changes(batch, clock_s)
    rows.clean = bool(flags & _CLEAN)
    rows.compact_revision = compacted if flags & _COMPACTED else None
    rows.events = reader.events(events)
    rows.leases = reader.leases(leases)
    rows.alarms = [(member, kind, bool(active)) for member, kind, active in reader.structs(_ALARM, alarms)]
    peer_urls = tuple(reader.text() for _ in range(urls))
    if flags & _PEER_URLS:
        rows.peer_urls = peer_urls
    changed_users = [reader.user() for _ in range(users)]
    changed_roles = [reader.role() for _ in range(roles)]
    if flags & _AUTH:
        switch = (bool(flags & _ENABLED), auth_revision) if flags & _SWITCH else None
        rows.auth = AuthRows(changed_users, changed_roles, switch)
    if reader.position != len(data) - CHAIN_BYTES:
        return None
    return Record(number, term, previous, data[-CHAIN_BYTES:], rows, len(data))


class Reader:
    """Takes rows from the front. Raises struct.error or ValueError where there are none."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self.position = position

    def take(self, size: int) -> bytes:
        start = self.position
        self.position = end = start + size
        if end > len(self._data):
            raise ValueError("cut short")
        return self._data[start:end]

    def structs(self, form: struct.Struct, count: int) -> Iterable[tuple[int, ...]]:
        for _ in range(count):
            yield form.unpack_from(self._data, self.position)
            self.position += form.size

    def events(self, count: int) -> list[EventRow]:
        data, start, size = self._data, self.position, _EVENT.size
        found: list[EventRow] = []
        for _ in range(count):
            revision, sub, create_revision, version, lease, key_bytes, value_bytes = _EVENT.unpack_from(data, start)
            key_end = start + size + key_bytes
            key = data[key_end - key_bytes : key_end]
            start = key_end + max(value_bytes, 0)
            value = None if value_bytes < 0 else data[key_end:start]
            found.append((revision, sub, key, value, create_revision, version, lease))
        self.position = start
        return found

    def leases(self, count: int) -> list[LeaseRow]:
        data, start = self._data, self.position
        found: list[LeaseRow] = []
        for _ in range(count):
            found.append(_LEASE.unpack_from(data, start))
            start += _LEASE.size
        self.position = start
        return found

    def sized(self) -> bytes:
        return self.take(int.from_bytes(self.take(_SIZE.size), "little"))

    def text(self) -> str:
        return self.sized().decode()

    def user(self) -> UserRow:
        name, password = self.text(), self.sized()
        no_password, deleted, roles = _USER.unpack(self.take(_USER.size))
        return name, password, bool(no_password), tuple(self.text() for _ in range(roles)), bool(deleted)

    def role(self) -> RoleRow:
        name = self.text()
        deleted, count = _ROLE.unpack(self.take(_ROLE.size))
        permissions: list[PermissionRow] = [(self.sized(), self.sized(), self.take(1)[0]) for _ in range(count)]
        return name, tuple(permissions), bool(deleted)
