# SPDX-License-Identifier: Apache-2.0
"""HashKV: one number for all data up to a revision, so that two copies can be compared.

Laws
- Equal data gives an equal number: written here or replayed, with dead rows deleted or not yet.
- Only data that a reader can still see counts: the versions retained at the compact revision and those after it, up to
  the revision asked for. The lease ids of keys count, the deadlines of leases do not.

Theory of operation. CRC-32 takes the versions in the order of keys, those of one key oldest first. Their encoding is
unambiguous, because the length of each part stands before it.

Worked example: key k with p2 p3 t4 p6 (as in mvcc.py), compacted at 3. At 4 the versions p3 t4 count, since p2 is dead;
at 6 p3 t4 p6. Compacted at 5, at 6 only p6 counts.

All keys may take seconds, so a `KvDigest` takes them piece by piece, with other calls in between. Its versions lie at
or before its revision, so only a compaction changes them; after a compaction it begins anew.

Does not do: etcd's own number (its input is etcd's file format).
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from lessor.base import errors
from lessor.state.encode import nested, varint
from lessor.state.mvcc import Event, Store

_STEP_KEYS: Final = 1_000
_UNIT_BYTES: Final = 1_024  # of a key and its value, that take as long as a version more


def hash_kv(store: Store, revision: int = 0) -> int:
    """A uint32 over the data at a revision; 0 or less means the newest. Cost: all keys and their retained versions.

    Raises FUTURE_REVISION above the newest revision, COMPACTED below the compact revision.
    """
    digest = KvDigest(store, revision)
    while not digest.step(_STEP_KEYS):
        pass
    return digest.value


class KvDigest:
    """A digest under way. `value` and the two revisions are final once `step` has returned True."""

    __slots__ = (
        "_asked",
        "_counting",
        "_last_key",
        "_left",
        "_older",
        "_store",
        "compact_revision",
        "revision",
        "value",
    )

    def __init__(self, store: Store, revision: int = 0) -> None:
        """Raises as `hash_kv` does."""
        self._store = store
        self._asked = revision
        self._begin()

    def _begin(self) -> None:
        store, revision = self._store, self._asked
        if revision > store.revision:
            raise errors.FUTURE_REVISION.error()
        if 0 < revision < store.compact_revision:
            raise errors.COMPACTED.error()
        self.revision = revision if revision > 0 else store.revision
        self.compact_revision = store.compact_revision
        self.value = crc32(varint(self.compact_revision) + varint(self.revision))
        self._last_key = b""  # the key that was begun last
        # Of the key that was begun: the version to look at next, and those that count so far, newest first.
        self._older: Event | None = None
        self._counting: list[Event] = []
        self._left = 0  # units of work in this step

    def step(self, keys_max: int) -> bool:
        """Takes in the next versions; returns whether all are in.

        Cost: `keys_max` keys with one short version each, or what takes as long: versions of one key that are newer
        than the revision or older, and long values.

        Raises COMPACTED when the revision has been compacted meanwhile.
        """
        store = self._store
        if store.compact_revision != self.compact_revision:
            self._begin()
        self._left = 2 * keys_max  # a look at each version, and its number
        if not self._finish_key():
            return False
        revision = self.revision
        keys = store.keys_ever(self._last_key + b"\0", b"", keys_max)
        for key in keys:
            left = self._left
            if left <= 0:
                return False
            self._last_key = key
            event = store.newest_of(key)
            if event is not None and event.previous is None and event.mod_revision <= revision:
                stored = event.value
                if stored is not None:  # most keys have one version: as below, and faster
                    self._left = left - 2 - len(stored) // _UNIT_BYTES
                    self.value = crc32(_canonical(event), self.value)
                    continue
            self._older = event
            if not self._finish_key():
                return False
        return len(keys) < keys_max

    def _finish_key(self) -> bool:
        """Goes on with the key that was begun; returns whether it is done with."""
        left, revision, compact_revision = self._left, self.revision, self.compact_revision
        event, counting = self._older, self._counting
        while event is not None and left > 0:
            left -= 1
            at = event.mod_revision
            if at <= revision:
                # A tombstone at or before the compact revision is kept for watchers only, until the next compaction.
                if event.value is not None or at > compact_revision:
                    counting.append(event)
                if at <= compact_revision:
                    event = None
                    break
            event = event.previous
        self._older = event
        if event is None:
            value = self.value
            while counting and left > 0:
                event = counting.pop()
                left -= 1 + event.size_bytes // _UNIT_BYTES
                value = crc32(_canonical(event), value)
            self.value = value
        self._left = left
        return self._older is None and not counting


def _canonical(event: Event) -> bytes:
    numbers = (event.mod_revision, event.sub, event.create_revision, event.version, event.lease)
    value = b"\0" if event.value is None else nested(b"\1", event.value)
    return nested(b"", event.key) + b"".join([varint(number) for number in numbers]) + value
