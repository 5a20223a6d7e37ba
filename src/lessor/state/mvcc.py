# SPDX-License-Identifier: Apache-2.0
"""The store: the versions of each key, by revision.

Laws
- A change is made inside a write: `put` and `delete` as often as needed, then `finish`. All changes of one write have
  the revision `store.revision + 1`; after `finish` that is `store.revision`. A write without changes moves no revision.
- A version of a key is one `Event` object everywhere: in the history, in the log, for watchers. Only its link to the
  version before changes, and only a compaction cuts that link.
- Each change writes its row, and moves the key from its old lease to its new one, in the same step.
- Nothing here raises once a change has begun: callers check first.
- A compaction takes effect for readers at once. `sweep` takes dead versions out of memory, in steps as short as the
  caller likes; no reader can see how far it has come.
- While a revision is pinned, `walk` at it gives what it gave when it was pinned, whatever is written, deleted and
  compacted meanwhile. The sweep leaves the versions alone that a pinned revision needs.

Theory of operation. `live` maps each existing key to its newest version. `gone` maps each deleted key whose deletion is
still retained to its tombstone. Each version links to the version before it. A read of the newest revision is a look-up
in a dict; a read of an old revision walks back from the newest. The log holds the same events in the order of
(revision, sub), so that a watcher's replay and a compaction cost only the events that they concern.

Worked example, one key k (pN: put at revision N, tN: tombstone, "->": the version before; other keys moved on to 9):

    change                      chain of k                               log
    put at 2, put at 3          live: p3 -> p2                           p2 p3
    delete at 4, put at 6       live: p6 -> t4 -> p3 -> p2               p2 p3 t4 p6
    delete at 7                 gone: t7 -> p6 -> t4 -> p3 -> p2         p2 p3 t4 p6 t7
    compact 3                   gone: t7 -> p6 -> t4 -> p3               p3 t4 p6 t7       dead: p2, superseded
    compact 4                   gone: t7 -> p6 -> t4                     t4 p6 t7          dead: p3
    compact 6                   gone: t7 -> p6                           p6 t7             dead: t4
    compact 8                   nothing                                                    dead: p6 t7

The chains are those after the sweep. At 4 the tombstone t4 stays although no read can show it: a watcher may start at
the compact revision, and is sent t4. So after a compaction at C these are retained: of each key the newest version at
or before C, unless that is a tombstone older than C; and everything after C.

Does not do: requests and their errors (kv.py, txn.py), events for watchers (machine.py after `finish`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from struct import Struct
from typing import Final
from zlib import crc32

from lessor.base import limits
from lessor.base.limits import EVENT_ENCODING_KEPT_BYTES_MAX
from lessor.base.revision import FIRST_REVISION, NOTHING_COMPACTED
from lessor.state.compacted import UINT32, Compactions
from lessor.state.encode import nested, number_field, varint
from lessor.state.journal import EventRow, Journal, OpenWrite
from lessor.state.key_index import KeyIndex
from lessor.state.leases import Lessor

_mod_revision: Final = attrgetter("mod_revision")
_DELETE: Final = b"\x08\x01"  # mvccpb.Event.type
_NUMBERS: Final = Struct("<qqqqqq").pack
_ODD: Final = 0x9E37_79B1
_NEVER: Final = 1 << 63  # above all revisions
_ENTRY_BYTES: Final = 56
_SHARE_BYTES_MAX: Final = 512


def stored_bytes(size: int) -> int:
    """What a version counts for the quota. `size`: of its key and value, in bytes. See quota.py."""
    entry = size + _ENTRY_BYTES
    share = entry >> 3  # of the pages: what they leave free, and the pages above them
    return entry + (share if share < _SHARE_BYTES_MAX else _SHARE_BYTES_MAX)


class Event:
    """One change of one key, which is also one version of it; a tombstone has no value."""

    __slots__ = (
        "_event_bytes",
        "_kv_bytes",
        "create_revision",
        "key",
        "lease",
        "mod_revision",
        "previous",
        "sub",
        "value",
        "version",
    )

    def __init__(
        self,
        key: bytes,
        value: bytes | None,
        create_revision: int,
        mod_revision: int,
        sub: int,
        version: int,
        lease: int,
        previous: Event | None,
    ) -> None:
        self.key = key
        self.value = value  # None: a tombstone
        self.create_revision = create_revision  # 0 in a tombstone, like version and lease
        self.mod_revision = mod_revision
        self.sub = sub
        self.version = version
        self.lease = lease
        self.previous = previous  # the version before, tombstones included; None when there is none, or it is dead
        self._kv_bytes: bytes | None = None
        self._event_bytes: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """Of the key and the value."""
        return len(self.key) + len(self.value or b"")

    def number(self) -> int:
        """A uint32 over all of this version, for HashKV."""
        key, value = self.key, self.value
        size = -len(key) if value is None else len(key)
        numbers = _NUMBERS(size, self.mod_revision, self.sub, self.create_revision, self.version, self.lease)
        crc = crc32(numbers + key + (value or b""))
        # Numbers are added up, and CRCs must not be: two keys that exchange their values could leave the sum as it was.
        return (crc * (crc + _ODD) >> 16) & UINT32

    def __repr__(self) -> str:
        what = "delete" if self.value is None else f"put v{self.version}"
        return f"<{what} {self.key!r} at {self.mod_revision}.{self.sub}>"

    def kv_bytes(self) -> bytes:
        """The encoded mvccpb.KeyValue. Of a tombstone: key and mod_revision only, as watchers get it.

        Encoded once up to EVENT_ENCODING_KEPT_BYTES_MAX, each time above.
        """
        encoded = self._kv_bytes
        if encoded is None:
            encoded = self.kv_bytes_without_value()
            value = self.value
            if value:
                # Field 5 stands before field 6 only by custom; parsers take any order. The value may be long, so it is
                # the last term of the sum too: it is copied once.
                encoded = encoded + b"\x2a" + varint(len(value)) + value
            if len(encoded) <= EVENT_ENCODING_KEPT_BYTES_MAX:
                self._kv_bytes = encoded
        return encoded

    def kv_bytes_without_value(self) -> bytes:
        """The encoded mvccpb.KeyValue without the value. Not kept."""
        return self.index_bytes() + number_field(b"\x30", self.lease)

    def index_bytes(self) -> bytes:
        """The same without the lease, too. Not kept."""
        return (
            nested(b"\x0a", self.key)
            + number_field(b"\x10", self.create_revision)
            + number_field(b"\x18", self.mod_revision)
            + number_field(b"\x20", self.version)
        )

    def event_bytes(self) -> bytes:
        """The encoded mvccpb.Event without prev_kv; kept as `kv_bytes` is."""
        encoded = self._event_bytes
        if encoded is None:
            encoded = nested(b"\x12", self.kv_bytes())
            if self.value is None:
                encoded = _DELETE + encoded
            if len(encoded) <= EVENT_ENCODING_KEPT_BYTES_MAX:
                self._event_bytes = encoded
        return encoded


class Store:
    """All keys with their retained history."""

    __slots__ = (
        "_changes",
        "_gone",
        "_gone_keys",
        "_journal",
        "_lessor",
        "_live",
        "_live_keys",
        "_log",
        "_own_journal",
        "_pinned",
        "_swept",
        "_uncut",
        "_unswept_log",
        "compact_revision",
        "compactions",
        "deletes",
        "get",
        "put_bytes",
        "puts",
        "ranges",
        "revision",
        "stored_bytes",
        "unswept",
        "version_bytes_max",
    )

    def __init__(self, journal: Journal, lessor: Lessor) -> None:
        self._journal = self._own_journal = journal
        self._lessor = lessor
        self._live: dict[bytes, Event] = {}
        self._live_keys = KeyIndex()
        self._gone: dict[bytes, Event] = {}
        self._gone_keys = KeyIndex()
        self._log: list[Event] = []  # retained events from the compact revision on, in the order of (revision, sub)
        self._swept = 0  # events at the front of the log that `sweep` has handled, and that leave the log later
        self._changes = 0  # of the open write
        self._pinned: list[int] = []  # revisions that reads under way show, each as often as it is pinned; a few
        # (compact revision, its own events), oldest first, of compactions above a pinned revision or with many events:
        # their links are cut by `sweep`.
        self._uncut: list[tuple[int, list[Event]]] = []
        self.version_bytes_max = 0  # no version has a longer key and value together
        # For the metrics: how often each was carried out, alone, in a txn or by the end of a lease.
        self.ranges = self.puts = self.deletes = 0
        self.put_bytes = 0  # of keys and values
        self.stored_bytes = 0  # of all retained versions: what they count for the quota
        self.revision = FIRST_REVISION
        self.compact_revision = NOTHING_COMPACTED
        self.compactions = Compactions()  # what the last of them have taken out of memory
        self.unswept = 0  # events up to the compact revision that `sweep` has still to handle
        self._unswept_log = 0  # of them those that are in the log
        # key -> newest version; None when the key does not exist. Changes of the open write count.
        self.get = self._live.get

    def __len__(self) -> int:
        """How many keys exist."""
        return len(self._live)

    @property
    def operations(self) -> int:
        return self.ranges + self.puts + self.deletes

    # --- writing ------------------------------------------------------------------------------------------------

    def put(self, key: bytes, value: bytes, lease_id: int) -> Event | None:
        """Writes a version; returns the one that it replaces. The lease must live, or be 0.

        Cost: O(1), however many keys hang on the lease.
        """
        revision = self.revision + 1
        sub = self._changes
        self._changes = sub + 1
        previous = replaced = self._live.get(key)
        if replaced is None:
            create_revision = revision
            version = 1
            lease_before = 0
            if self._gone:
                previous = self._gone.pop(key, None)
                if previous is not None:
                    self._gone_keys.remove(key)
            self._live_keys.add(key)
        else:
            key = replaced.key  # one bytes object for all versions of a key
            create_revision = replaced.create_revision
            version = replaced.version + 1
            lease_before = replaced.lease
        event = Event(key, value, create_revision, revision, sub, version, lease_id, previous)
        size = len(key) + len(value)
        self.put_bytes += size
        self.stored_bytes += stored_bytes(size)
        if size > self.version_bytes_max:
            self.version_bytes_max = size
        self._live[key] = event
        self._log.append(event)
        self._journal.event((revision, sub, key, value, create_revision, version, lease_id))
        if lease_id != lease_before:
            if lease_before:
                self._lessor.detach(lease_before, key)
            if lease_id:
                self._lessor.attach(lease_id, key)
        return replaced

    def delete(self, key: bytes) -> None:
        """Deletes a key, which must exist. Cost: O(1)."""
        self._bury(key)
        self._live_keys.remove(key)
        self._gone_keys.add(key)

    def delete_all(self, keys: Sequence[bytes]) -> None:
        """Deletes keys, which must exist and ascend. Cost: O(1) each, for many keys half of the cost of `delete`."""
        for key in keys:
            self._bury(key)
        self._live_keys.remove_all(keys)
        self._gone_keys.add_all(keys)

    def _bury(self, key: bytes) -> None:
        """Puts a tombstone in place of a key's newest version, everywhere but in the indexes."""
        revision = self.revision + 1
        sub = self._changes
        self._changes = sub + 1
        previous = self._live.pop(key)
        key = previous.key
        self._gone[key] = event = Event(key, None, 0, revision, sub, 0, 0, previous)
        self.stored_bytes += stored_bytes(len(key))
        self._log.append(event)
        self._journal.event((revision, sub, key, None, 0, 0, 0))
        if previous.lease:
            self._lessor.detach(previous.lease, key)

    def finish(self) -> int:
        """Ends the write; returns how many changes it made. With any, `revision` has grown by one."""
        changes = self._changes
        if changes:
            self._changes = 0
            self.revision += 1
        return changes

    def begin_steps(self) -> None:
        """The next write is made in steps: its rows reach the journal all together, at `end_steps`."""
        self._journal = OpenWrite(self._own_journal)

    def end_steps(self) -> None:
        """All changes of such a write are made, or none: `finish` has to follow. Does nothing when called again."""
        write, self._journal = self._journal, self._own_journal
        if write is not self._own_journal and write.events:
            self._own_journal.add_events(write.events)

    @property
    def changes(self) -> int:
        """How many changes the open write has made."""
        return self._changes

    @property
    def revision_inside(self) -> int:
        """The revision that a reply inside the open write shows."""
        return self.revision + 1 if self._changes else self.revision

    def newest_events(self, count: int) -> list[Event]:
        """The last `count` events, oldest first."""
        return self._log[-count:]

    # --- reading ------------------------------------------------------------------------------------------------

    def get_at(self, key: bytes, revision: int) -> Event | None:
        """The version of a key that was newest at a revision; None when the key did not exist then.

        Cost: the versions of the key since then.
        """
        event = self._live.get(key) or self._gone.get(key)
        while event is not None and event.mod_revision > revision:
            event = event.previous
        return event if event is not None and event.value is not None else None

    def newer_left(self, newest: Iterable[Event | None], revision: int, left: int) -> int:
        """What is left of `left` when each version newer than a revision has taken one; -1 when there are more of them.

        `newest`: of each key that counts its newest event. Cost: the keys, and the versions counted.
        """
        for last in newest:
            event = last
            while event is not None and event.mod_revision > revision:
                left -= 1
                if left < 0:
                    return left
                event = event.previous
        return left

    def count(self, start: bytes, end: bytes) -> int:
        """How many keys in [start, end) exist; `end` b"" means no upper bound. Cost: O(log n)."""
        return self._live_keys.count(start, end)

    def range(self, start: bytes, end: bytes, keys_max: int | None = None) -> list[Event]:
        """The newest versions of the keys in [start, end), in key order, the first `keys_max` of them."""
        live = self._live
        return [live[key] for key in self._live_keys.range(start, end, keys_max)]

    def range_at(self, start: bytes, end: bytes, revision: int) -> list[Event]:
        """The result of `range` at a retained revision. Cost: the keys in the range and their newer versions."""
        if revision >= self.revision_inside:
            return self.range(start, end)
        keys = self._live_keys.range(start, end)
        gone = self._gone_keys.range(start, end)
        if gone:
            keys = sorted(keys + gone)
        get_at = self.get_at
        return [event for key in keys if (event := get_at(key, revision)) is not None]

    def pin(self, revision: int) -> None:
        """Keeps all that `walk` at a retained revision needs, until `unpin`. Pin briefly: the sweep waits. O(1)."""
        self._pinned.append(revision)

    def unpin(self, revision: int) -> None:
        """Takes one `pin` back: the sweep may go on. O(1)."""
        self._pinned.remove(revision)

    def _floor(self) -> int:
        """The newest revision up to which links may be cut: nothing that is pinned needs them."""
        return min(self._pinned) if self._pinned else self.revision

    def walk(self, start: bytes, end: bytes, revision: int) -> Iterator[list[Event]]:
        """The result of `range_at` at a pinned revision, in order and in lists, some of them empty.

        Anything may be written and compacted between two steps. Cost of a step: READ_STEP_KEYS keys, and as many
        newer versions.
        """
        position: bytes | None = start
        while position is not None:
            if revision >= self.revision_inside:  # nothing has been written meanwhile: half of the cost
                newest = self.range(position, end, limits.READ_STEP_KEYS)
                position = newest[-1].key + b"\0" if len(newest) == limits.READ_STEP_KEYS else None
                yield newest
                continue
            keys = self.keys_ever(position, end, limits.READ_STEP_KEYS)
            position = keys[-1] + b"\0" if len(keys) == limits.READ_STEP_KEYS else None
            events: list[Event] = []
            newer = 0
            for key in keys:
                event = self._live.get(key) or self._gone.get(key)
                while event is not None and event.mod_revision > revision:
                    event = event.previous
                    newer += 1
                    if newer == limits.READ_STEP_KEYS:
                        newer = 0
                        yield events
                        events = []
                if event is not None and event.value is not None:
                    events.append(event)
            yield events

    def key_count_ever(self, start: bytes, end: bytes) -> int:
        """How many keys in [start, end) have any retained version. Cost: O(log n)."""
        return self._live_keys.count(start, end) + self._gone_keys.count(start, end)

    def newest_of_range(self, start: bytes, end: bytes) -> list[Event]:
        """The newest event of each key in [start, end) that has any, tombstones included; not in order."""
        gone = self._gone
        return self.range(start, end) + [gone[key] for key in self._gone_keys.range(start, end)]

    def keys_ever(self, start: bytes, end: bytes, keys_max: int) -> list[bytes]:
        """The first keys in [start, end) that have any retained version, in key order. Cost: O(log n + keys)."""
        live, gone = self._live_keys.range(start, end, keys_max), self._gone_keys.range(start, end, keys_max)
        return sorted(live + gone)[:keys_max] if gone else live

    def newest_of(self, key: bytes) -> Event | None:
        """The newest event of a key, a tombstone included."""
        return self._live.get(key) or self._gone.get(key)

    def previous_of(self, event: Event) -> Event | None:
        """The prev_kv of an event: the key at the revision before the event's, unless that revision is compacted.

        A put that creates the key has no prev_kv, even when the same write deleted the key before.
        """
        if event.mod_revision <= self.compact_revision or event.create_revision == event.mod_revision:
            return None
        previous = event.previous
        while previous is not None and previous.mod_revision == event.mod_revision:
            previous = previous.previous
        return previous if previous is not None and previous.value is not None else None

    # --- the log ------------------------------------------------------------------------------------------------

    def log_position(self, revision: int) -> int:
        """The position in the log of the first event at or after a revision. Cost: O(log n)."""
        return bisect_left(self._log, revision, key=_mod_revision)

    def log_slice(self, first: int, last: int) -> Sequence[Event]:
        return self._log[first:last]

    # --- compaction ---------------------------------------------------------------------------------------------

    def compact(self, revision: int) -> None:
        """Forgets the history before a revision, which is above the compact revision and not above the current one.

        Readers see that at once. `sweep` takes the dead versions out of memory. Cost: a step of the sweep.
        """
        self.compactions.begin(self.compact_revision, revision)
        self.compact_revision = revision
        self._own_journal.compact(revision, self._mark_dead(revision))

    def _died(self, version: Event, followed_at: int) -> None:
        """A version goes out of memory; `followed_at`: the revision of the next one of its key."""
        self.stored_bytes -= stored_bytes(version.size_bytes)
        counting = self.compactions.counting(version.mod_revision, version.value is not None, followed_at)
        if counting:
            number = version.number()
            for compaction in counting:
                compaction.lose(number)

    def _mark_dead(self, revision: int) -> list[tuple[int, int]]:
        """Leaves the events before `revision` to `sweep`; of the events of `revision` keeps the last of each key.

        Returns the rows that are dead by this already.
        """
        log = self._log
        begin, end = self.log_position(revision), self.log_position(revision + 1)
        own = log[begin:end]
        superseded = {event.previous for event in own if event.previous and event.previous.mod_revision == revision}
        kept = [event for event in own if event not in superseded] if superseded else own
        if revision <= self._floor() and len(self._piece(own, limits.SWEEP_EVENTS_MAX)) == len(own):
            dead = self._cut(own, revision)
        else:
            # A pinned revision needs the versions before these, not those between.
            dead = []
            for event in kept:
                while (between := event.previous) in superseded and between is not None:
                    dead.append((between.mod_revision, between.sub))
                    self._died(between, revision)
                    event.previous = between.previous
            self._uncut.append((revision, kept))
        if superseded:
            log[begin:end] = kept
        self._unswept_log = begin - self._swept
        self.unswept = self._unswept_log + sum(len(events) for _, events in self._uncut)
        return dead

    @staticmethod
    def _piece(events: list[Event], events_max: int) -> list[Event]:
        """As many of the first events as one step may cut off from the versions before them."""
        events = events[:events_max]
        left = limits.SWEEP_BYTES_MAX
        for place, event in enumerate(events):
            previous = event.previous
            if previous is not None and previous.value:
                left -= len(previous.value)
                if left < 0:
                    return events[: place + 1]
        return events

    def sweep(self, events_max: int) -> bool:
        """Handles the next unswept events, at most `events_max`: takes dead versions out of memory, names their rows.

        Call it until `unswept` is 0. Returns whether it makes sense to go on at once: not when the rest is needed by a
        pinned revision. Reads give the same before the first call as after the last. Cost: 0.2 us an event, 1 us a
        dead version, 4 us a tombstone.
        """
        floor = self._floor()
        if self._uncut and self._uncut[0][0] <= floor:
            compacted, own = self._uncut[0]
            events = self._piece(own, events_max)
            del own[: len(events)]
            if not own:
                del self._uncut[0]
            self.unswept -= len(events)
            self._journal.note_dead(self._cut(events, compacted))
            return self.unswept > 0
        count = min(events_max, self._unswept_log)
        if floor < self.compact_revision:
            count = min(count, self.log_position(floor + 1) - self._swept)
        if count <= 0:
            return False
        events = self._piece(self._log[self._swept : self._swept + count], count)
        self._swept += len(events)
        self._unswept_log -= len(events)
        self.unswept -= len(events)
        # Taking events off the front moves all the others.
        if not self._unswept_log or self._swept * 8 > len(self._log):
            del self._log[: self._swept]
            self._swept = 0
        self._journal.note_dead(self._cut(events, self.compact_revision))
        return self.unswept > 0

    def _cut(self, events: Iterable[Event], revision: int) -> list[tuple[int, int]]:
        """Cuts the links that a compaction at `revision` ends. The events come in order; none is newer than `revision`.

        Returns the rows that are dead by this. Those of one key come oldest first, over several calls too, so that the
        older ones are deleted before the tombstone that follows them.
        """
        dead: list[tuple[int, int]] = []
        gone = self._gone
        for event in events:
            previous = event.previous
            if previous is not None:
                event.previous = None
                # A tombstone is returned when its own turn comes, unless its own write puts the key again.
                if previous.value is not None or previous.mod_revision == revision:
                    dead.append((previous.mod_revision, previous.sub))
                    self._died(previous, event.mod_revision)
            if event.value is None and event.mod_revision < revision:
                dead.append((event.mod_revision, event.sub))
                self._died(event, _NEVER)
                if gone.get(event.key) is event:
                    del gone[event.key]
                    self._gone_keys.remove(event.key)
        return dead

    # --- boot ---------------------------------------------------------------------------------------------------

    def load(self, rows: Iterable[EventRow], compact_revision: int) -> None:
        """Takes all event rows, in order, into an empty store. Call `attach_loaded` when the leases are there.

        Rows that are dead since the last compaction may still be among them: they vanish again, and the journal names
        them for deletion.
        """
        live, gone, log = self._live, self._gone, self._log
        for revision, sub, key, value, create_revision, version, lease_id in rows:
            before = live.get(key) or gone.get(key)
            if before is not None:
                key = before.key
            event = Event(key, value, create_revision, revision, sub, version, lease_id, before)
            if value is None:
                live.pop(key, None)
                gone[key] = event
            else:
                gone.pop(key, None)
                live[key] = event
                if len(key) + len(value) > self.version_bytes_max:
                    self.version_bytes_max = len(key) + len(value)
            self.stored_bytes += stored_bytes(event.size_bytes)
            log.append(event)
        self._live_keys = KeyIndex(live)
        self._gone_keys = KeyIndex(gone)
        self.compact_revision = compact_revision
        self.revision = max(FIRST_REVISION, compact_revision, log[-1].mod_revision if log else 0)
        if compact_revision != NOTHING_COMPACTED:
            self._journal.note_dead(self._mark_dead(compact_revision))
            while self.unswept:
                self.sweep(self.unswept)

    def attach_loaded(self) -> None:
        """Hangs each key on the lease of its newest version."""
        self._lessor.attach_loaded([(event.lease, event.key) for event in self._live.values() if event.lease])

    # --- another node's rows ------------------------------------------------------------------------------------

    def follow(self, rows: Sequence[EventRow]) -> list[Event]:
        """Takes in the event rows of the next revision, all of them; writes none. Returns the events.

        A key is hung on its lease if that lives here: a lease that ended in the same batch may be unknown. Cost: O(1)
        each.
        """
        found: list[Event] = []
        lessor = self._lessor
        for revision, sub, key, value, create_revision, version, lease_id in rows:
            before = self._live.get(key)
            if before is not None:
                previous: Event | None = before
            else:
                previous = self._gone.get(key)
            if previous is not None:
                key = previous.key
            event = Event(key, value, create_revision, revision, sub, version, lease_id, previous)
            if value is None:
                if before is not None:
                    del self._live[key]
                    self._live_keys.remove(key)
                    self._gone_keys.add(key)
                self._gone[key] = event
            else:
                if before is None:
                    if previous is not None:
                        del self._gone[key]
                        self._gone_keys.remove(key)
                    self._live_keys.add(key)
                self._live[key] = event
                self.version_bytes_max = max(self.version_bytes_max, len(key) + len(value))
            lease_before = before.lease if before is not None else 0
            if lease_id != lease_before:
                if lease_before:
                    lessor.detach(lease_before, key)
                if lease_id and lease_id in lessor:
                    lessor.attach(lease_id, key)
            self.stored_bytes += stored_bytes(event.size_bytes)
            if value is None:
                self.deletes += 1
            else:
                self.puts += 1
            self._log.append(event)
            found.append(event)
            self.revision = revision
        return found

    def follow_compaction(self, revision: int) -> None:
        """Takes in a compaction: as `compact`, but without its row. `sweep` has to be called as after that."""
        self.compactions.begin(self.compact_revision, revision)
        self.compact_revision = revision
        self._journal.note_dead(self._mark_dead(revision))
