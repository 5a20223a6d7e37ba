# SPDX-License-Identifier: Apache-2.0
"""HashKV: one number for all data up to a revision, so that two copies can be compared.

Laws
- Equal data gives an equal number: written here or replayed, with dead rows deleted or not yet.
- At a revision R, after a compaction at C, these versions count: those after C up to R, and of the others those puts
  that are the newest of their key at R. The lease ids of keys count, the deadlines of leases do not.
- At the revision of one of the last compactions the number is what it was before that compaction, and so is the
  compact revision that stands beside it.

Theory of operation. Each version has a number of its own, and the number of the data is their sum. `Compactions` has
the sum of what the last compactions took out of memory; the walk over the keys adds what is still there.

Worked example: key k with p2 p3 t4 p6 (as in mvcc.py), compacted at 3. At 3 counted p2 and p3, and they do so still. At
4 the tombstone t4 counts, since p3 is older than the compaction and not the newest; at 6 t4 and p6.

All keys may take seconds, so a `KvDigest` takes them piece by piece, with other calls in between. Its versions lie at
or before its revision, so only a compaction changes them; after a compaction it begins anew. At the revision of a
compaction it waits until the sweep is over: until then a version may be in memory, in the sum, or both.

Does not do: etcd's own number (its input is etcd's file format).
"""

from __future__ import annotations

from typing import Final

from lessor.base import errors
from lessor.state.compacted import UINT32, Compaction
from lessor.state.mvcc import Event, Store

_STEP_KEYS: Final = 1_000
_UNIT_BYTES: Final = 1_024  # of a key and its value, that take as long as a version more


def hash_kv(store: Store, revision: int = 0) -> int:
    """A uint32 over the data at a revision; 0 or less means the newest. Cost: all keys and their retained versions.

    Raises FUTURE_REVISION above the newest revision, COMPACTED below the compact revision, but for the revisions of the
    last compactions.
    """
    digest = KvDigest(store, revision)
    while not digest.step(_STEP_KEYS):
        if store.unswept:
            store.sweep(_STEP_KEYS)
    return digest.value


class KvDigest:
    """A digest under way. `value` and the two revisions are final once `step` has returned True."""

    __slots__ = (
        "_asked",
        "_compaction",
        "_last_key",
        "_left",
        "_newest",
        "_older",
        "_seen",
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
        self._seen = store.compact_revision  # when this began
        # Of a revision that the caller has named: 0 is the newest data as it is now, in etcd too.
        self._compaction: Compaction | None = store.compactions.find(revision) if revision > 0 else None
        if self._compaction is not None:
            self.compact_revision = self._compaction.before
        elif 0 < revision < store.compact_revision:
            raise errors.COMPACTED.error()
        else:
            self.compact_revision = store.compact_revision
        self.revision = revision if revision > 0 else store.revision
        self.value = 0
        self._last_key = b""  # the key that was begun last
        # Of the key that was begun: the version to look at next; whether it may be the newest at the revision.
        self._older: Event | None = None
        self._newest = True
        self._left = 0  # units of work in this step

    def step(self, keys_max: int) -> bool:
        """Takes in the next versions; returns whether all are in.

        Cost: `keys_max` keys with one short version each, or what takes as long: versions of one key that are newer
        than the revision or older, and long values.

        Raises COMPACTED when the revision has been compacted meanwhile.
        """
        store = self._store
        if store.compact_revision != self._seen:
            self._begin()
        if self._compaction is not None and store.unswept:
            return False
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
                    self.value += event.number()
                    continue
            self._older = event
            self._newest = True
            if not self._finish_key():
                return False
        if len(keys) == keys_max:
            return False
        fallen = 0 if self._compaction is None else self._compaction.fallen
        self.value = (self.value + fallen) & UINT32
        return True

    def _finish_key(self) -> bool:
        """Goes on with the key that was begun; returns whether it is done with."""
        left, revision, compact_revision, seen = self._left, self.revision, self.compact_revision, self._seen
        event = self._older
        while event is not None and left > 0:
            left -= 1
            at = event.mod_revision
            if at <= revision:
                is_put = event.value is not None
                # A tombstone of before the last compaction is dead, though a link to it may be left.
                if (is_put or at >= seen) and (at > compact_revision or (is_put and self._newest)):
                    left -= 1 + event.size_bytes // _UNIT_BYTES
                    self.value += event.number()
                self._newest = False
            event = event.previous if at > seen else None
        self._older = event
        self._left = left
        return event is None
