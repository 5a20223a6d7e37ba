# SPDX-License-Identifier: Apache-2.0
"""The watchers of keys, and the events that each of them is to be sent.

Laws
- A watcher gets each event at or after its first revision once, in order, the events of one revision together.
- A watcher that is not `lagging` has got each matching event up to now. A lagging one gets nothing from `notify`; it
  catches up by `replay`, which clears `lagging` when it reaches the newest revision.
- The cost of notifying depends on the watchers that the changed keys match, not on the others.
- Watchers that get the same events share them: one list of events, encoded once.

Theory of operation. The watchers of one key are found in a dict, those of a prefix in a dict per prefix length, those
of other ranges in a list, which is nearly empty in practice. Replay reads the history: the versions of the watched keys
when there are few keys, else the log.

Worked example: watchers of "a", of prefix "a/" ([a/, a0)) and of [a, b). A put of "a/1" asks the dict for "a/1" (none),
the dict of length 2 for "a/" (one), and looks at the list (one).

Does not do: sending, watch ids (the server's streams choose them), fragments, waiting for durability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import length_hint
from typing import Any, Final, NamedTuple

from lessor.base import limits
from lessor.base.key_range import open_end, prefix_end
from lessor.state.encode import nested
from lessor.state.mvcc import Event, Store

_CHAIN_KEYS_MAX: Final = 64  # replay walks the versions of single keys when the range has at most this many keys
_CHAIN_STEPS_MAX: Final = 4_096  # ... and reads the log instead after this many versions
_SCAN_EVENTS_MAX: Final = 20_000  # events of the log that one call of replay looks at: a few milliseconds

_EVENTS_TAG: Final = b"\x5a"  # field 11 of WatchResponse, length-delimited
NO_PUT: Final = 0  # WatchCreateRequest.FilterType
NO_DELETE: Final = 1

# A change as a watcher gets it: the event, and the version before it if the watcher asked for that and it is retained.
Change = tuple[Event, Event | None]


class CompactedError(Exception):
    """The events that a watcher needs next are compacted."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"compacted at {compact_revision}")
        self.compact_revision = compact_revision


class Watcher:
    """One watch. The hub changes `next_revision`, `lagging` and `cancelled`; the rest belongs to the owner."""

    __slots__ = (
        "at_once",
        "cancelled",
        "end",
        "filters",
        "fragment",
        "key",
        "lagging",
        "next_revision",
        "owner",
        "prev_kv",
        "progress_notify",
        "watch_id",
    )

    def __init__(
        self,
        watch_id: int,
        key: bytes,
        end: bytes | None = None,
        *,
        start_revision: int = 0,
        filters: Iterable[int] = (),
        prev_kv: bool = False,
        fragment: bool = False,
        progress_notify: bool = False,
        at_once: bool = False,
        owner: Any = None,
    ) -> None:
        """`end`: None for one key, b"" for no upper bound. `start_revision` 0: from now on.

        `at_once`: the owner is part of the server and gets publications before they are durable.
        """
        self.watch_id = watch_id
        self.key = key
        self.end = end
        self.filters = frozenset(filters)
        self.prev_kv = prev_kv
        self.fragment = fragment
        self.progress_notify = progress_notify
        self.at_once = at_once
        self.next_revision = start_revision  # no event before it will be sent
        self.lagging = False
        self.cancelled = False
        self.owner = owner

    def wants(self, event: Event) -> bool:
        """Whether the filters let the event through."""
        return not self.filters or (NO_DELETE if event.value is None else NO_PUT) not in self.filters

    def covers(self, key: bytes) -> bool:
        end = self.end
        if end is None:
            return key == self.key
        return self.key <= key and (not end or key < end)


class Changes:
    """The changes of one revision, or of a stretch of history up to it; shared by the watchers that get the same."""

    __slots__ = ("_fields", "events", "revision")

    def __init__(self, revision: int, events: list[Change]) -> None:
        self.revision = revision
        self.events = events
        self._fields: bytes | None = None

    def fields(self) -> bytes:
        """The events as fields of a WatchResponse; encoded once."""
        if self._fields is None:
            self._fields = b"".join(self.each_field())
        return self._fields

    def each_field(self) -> list[bytes]:
        """The same, one field per event."""
        return [nested(_EVENTS_TAG, event_bytes(event, previous)) for event, previous in self.events]


class Publication(NamedTuple):
    """The changes of one revision, and the watchers that get them, by owner."""

    audience: dict[Any, list[Watcher]]
    changes: Changes
    at_once: bool = False


def _changes(revision: int, changes: list[Change], prev_kv: bool) -> Changes:
    return Changes(revision, changes if prev_kv else [(event, None) for event, _ in changes])


def watch_range(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """A create request's key and range_end as a watcher has them. An empty key means the first possible key."""
    return key or b"\0", open_end(range_end) if range_end else None


def range_is_empty(key: bytes, end: bytes | None) -> bool:
    """Whether no key can match, which is an error of the create request."""
    return bool(end) and key >= (end or b"")


def event_bytes(event: Event, previous: Event | None) -> bytes:
    """The encoded mvccpb.Event. Without `previous` it is encoded once per event and shared by all watchers."""
    encoded = event.event_bytes()
    return encoded if previous is None else encoded + nested(b"\x1a", previous.kv_bytes())


def _prefix_of(key: bytes, end: bytes) -> bytes | None:
    """The prefix whose range is [key, end); None when it is no prefix range."""
    if not end:
        return b"" if key == b"\0" else None  # there is no key below "\0"
    return key if prefix_end(key) == end else None


class WatchHub:
    """All watchers of one store."""

    __slots__ = ("_by_key", "_by_prefix", "_count", "_ranges", "_store", "looked", "outbox")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_key: dict[bytes, dict[Watcher, None]] = {}
        self._by_prefix: dict[int, dict[bytes, dict[Watcher, None]]] = {}
        self._ranges: dict[Watcher, None] = {}
        self._count = 0
        self.outbox: list[Publication] = []  # in the order of revisions
        self.looked = 0  # see `replay`

    def __len__(self) -> int:
        return self._count

    def add(self, watcher: Watcher) -> None:
        """Takes in a watcher. One that starts in the past is `lagging` afterwards: call `replay` for it."""
        newest = self._store.revision
        if watcher.next_revision == 0:
            watcher.next_revision = newest + 1
        watcher.lagging = watcher.next_revision <= newest
        self._place(watcher, create=True)[watcher] = None
        self._count += 1

    def remove(self, watcher: Watcher) -> None:
        """Removes a watcher that was added. Its publications in the outbox stay: look at `cancelled`."""
        watcher.cancelled = True
        place = self._place(watcher, create=False)
        if place.pop(watcher, watcher) is watcher:
            return
        self._count -= 1
        if not place:
            self._forget(watcher)

    def _place(self, watcher: Watcher, *, create: bool) -> dict[Watcher, None]:
        if watcher.end is None:
            table = self._by_key
            spot = watcher.key
        else:
            prefix = _prefix_of(watcher.key, watcher.end)
            if prefix is None:
                return self._ranges
            table = self._by_prefix.setdefault(len(prefix), {}) if create else self._by_prefix.get(len(prefix), {})
            spot = prefix
        return table.setdefault(spot, {}) if create else table.get(spot, {})

    def _forget(self, watcher: Watcher) -> None:
        """Removes the empty dict that the last watcher of a key or a prefix leaves."""
        if watcher.end is None:
            self._by_key.pop(watcher.key, None)
            return
        prefix = _prefix_of(watcher.key, watcher.end)
        if prefix is not None:
            table = self._by_prefix.get(len(prefix), {})
            table.pop(prefix, None)
            if not table:
                self._by_prefix.pop(len(prefix), None)

    # --- live ---------------------------------------------------------------------------------------------------

    def notify(self, revision: int, events: Sequence[Event], previous: Sequence[Event | None]) -> None:
        """Appends to the outbox the changes of a finished write, for the watchers that they match.

        Cost: the events and the watchers that they match; the watchers of one key or prefix share one list of events.
        """
        found: dict[int, tuple[Iterable[Watcher], list[Change]]] = {}  # by the identity of the place, or the watcher
        by_key, by_prefix, ranges = self._by_key, self._by_prefix, self._ranges
        for event, before in zip(events, previous, strict=True):
            key = event.key
            if by_key and key in by_key:
                place = by_key[key]
                found.setdefault(id(place), (place, []))[1].append((event, before))
            for length, prefixes in by_prefix.items():
                if (prefixed := prefixes.get(key[:length])) is not None:
                    found.setdefault(id(prefixed), (prefixed, []))[1].append((event, before))
            for watcher in ranges:
                if watcher.covers(key):
                    found.setdefault(id(watcher), ((watcher,), []))[1].append((event, before))
        for watchers, changes in found.values():
            self._publish(revision, watchers, changes)

    def _publish(self, revision: int, watchers: Iterable[Watcher], matching: list[Change]) -> None:
        """Publishes changes to those of the watchers that do not lag. Each watcher covers all of the events."""
        following = revision + 1
        by_owner: tuple[dict[Any, list[Watcher]], ...] = ({}, {})  # without prev_kv, with it
        for watcher in watchers:
            if watcher.lagging or watcher.next_revision > revision:
                continue
            owner = watcher.owner
            if watcher.filters or watcher.at_once:
                wanted = [each for each in matching if watcher.wants(each[0])]
                if not wanted:
                    continue
                changes = _changes(revision, wanted, watcher.prev_kv)
                self.outbox.append(Publication({owner: [watcher]}, changes, watcher.at_once))
            else:
                audience = by_owner[watcher.prev_kv]
                if owner in audience:
                    audience[owner].append(watcher)
                else:
                    audience[owner] = [watcher]
            watcher.next_revision = following
        for prev_kv, audience in enumerate(by_owner):
            if audience:
                self.outbox.append(Publication(audience, _changes(revision, matching, bool(prev_kv))))

    def take_outbox(self) -> list[Publication]:
        """Empties the outbox; returns what was in it."""
        outbox = self.outbox
        self.outbox = []
        return outbox

    # --- catching up --------------------------------------------------------------------------------------------

    def lag(self, watcher: Watcher, undelivered_revision: int) -> None:
        """Marks a watcher whose publications from a revision on were dropped: it has to be replayed from there."""
        watcher.lagging = True
        watcher.next_revision = undelivered_revision

    def replay(
        self,
        watcher: Watcher,
        upto_revision: int,
        revisions_max: int,
        bytes_max: int = limits.WATCH_REPLAY_BYTES_MAX,
    ) -> list[Change]:
        """The next events for a lagging watcher, up to a revision, of at most `revisions_max` revisions.

        They are whole revisions, of at most `bytes_max` bytes of keys and values, prev_kv counted; but at least one
        revision that matches, if there is one in the history that this call looks at.

        Advances `watcher.next_revision`, and clears `watcher.lagging` when that passes the newest revision. It may
        return nothing while the watcher still lags, because a call looks at a bounded part of the history: call again.
        Raises CompactedError when the next revision is below the compact revision.
        Cost: the events returned when the watcher covers few keys, else the part of the log that was looked at. After
        the call, `looked` is the number of events that it has looked at.
        """
        store = self._store
        first = watcher.next_revision
        if first < store.compact_revision:
            raise CompactedError(store.compact_revision)
        upto_revision = min(upto_revision, store.revision)
        self.looked = 0
        previous_of = store.previous_of if watcher.prev_kv else None
        events = self._from_versions(watcher, first, upto_revision)
        if events is not None:
            changes, following = _first_revisions(events, upto_revision + 1, previous_of, revisions_max, bytes_max)
        else:
            stretch, following = self._stretch(first, upto_revision)
            left = iter(stretch)
            covers, wants = watcher.covers, watcher.wants
            matching = (event for event in left if covers(event.key) and wants(event))
            changes, following = _first_revisions(matching, following, previous_of, revisions_max, bytes_max)
            self.looked += len(stretch) - length_hint(left)
        watcher.next_revision = max(first, following)
        watcher.lagging = watcher.next_revision <= store.revision
        return changes

    def _from_versions(self, watcher: Watcher, first: int, last: int) -> list[Event] | None:
        """Matching events of [first, last] from the versions of the keys; None when the log is the shorter way."""
        store = self._store
        if watcher.end is None:
            newest = store.newest_of(watcher.key)
            chains = [] if newest is None else [newest]
        else:
            if store.key_count_ever(watcher.key, watcher.end) > _CHAIN_KEYS_MAX:
                return None
            chains = store.newest_of_range(watcher.key, watcher.end)
        self.looked = len(chains)
        found: list[Event] = []
        steps = _CHAIN_STEPS_MAX
        for newest in chains:
            event: Event | None = newest
            while event is not None and event.mod_revision >= first:
                if event.mod_revision <= last and watcher.wants(event):
                    found.append(event)
                event = event.previous
                steps -= 1
                if not steps:
                    self.looked += _CHAIN_STEPS_MAX
                    return None
        self.looked += _CHAIN_STEPS_MAX - steps
        found.sort(key=_order)
        return found

    def _stretch(self, first: int, last: int) -> tuple[Sequence[Event], int]:
        """A bounded stretch of the log, in whole revisions; and the revision after it."""
        store = self._store
        start = store.log_position(first)
        stop = store.log_position(last + 1)
        following = last + 1
        if stop - start > _SCAN_EVENTS_MAX:
            # Cut before the revision that the bound falls into; after it when that revision is the first one.
            cut = store.log_slice(start + _SCAN_EVENTS_MAX, start + _SCAN_EVENTS_MAX + 1)[0].mod_revision
            if cut == first:
                cut += 1
            stop = store.log_position(cut)
            following = cut
        return store.log_slice(start, stop), following


def _order(event: Event) -> tuple[int, int]:
    return event.mod_revision, event.sub


def _first_revisions(
    events: Iterable[Event],
    following: int,
    previous_of: Callable[[Event], Event | None] | None,
    revisions_max: int,
    bytes_max: int,
) -> tuple[list[Change], int]:
    """Takes events, which are in order, as many whole revisions as the bounds allow, but at least one revision.

    Returns the changes, and the revision to go on with.
    """
    changes: list[Change] = []
    revisions = 0
    revision = -1
    begin = 0  # where the revision begins in `changes`
    size = 0
    for event in events:
        if event.mod_revision != revision:
            revision = event.mod_revision
            if revisions == revisions_max:
                return changes, revision
            revisions += 1
            begin = len(changes)
        previous = previous_of(event) if previous_of is not None else None
        size += _size(event) if previous is None else _size(event) + _size(previous)
        if size > bytes_max and begin:
            return changes[:begin], revision
        changes.append((event, previous))
    return changes, following


def _size(event: Event) -> int:
    """The size of an event in a response, near enough: its key and its value."""
    return len(event.key) + len(event.value or b"")
