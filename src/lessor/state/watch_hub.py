# SPDX-License-Identifier: Apache-2.0
"""The watchers of keys, and the events that each of them is to be sent.

Laws
- A watcher gets each event at or after its first revision once, in order, the events of one revision together.
- A watcher that is not `lagging` has got each matching event up to now, but for the writes that are `waiting`. A
  lagging one gets nothing from `notify`; it catches up by `replay`, which clears `lagging` when it reaches the newest
  revision.
- A revision of more than WATCH_AT_ONCE_EVENTS events is taken to its watchers in steps, once it is durable, and the
  writes after it wait for that. Watchers inside the server (`at_once`) are told in the step of the write nevertheless.
- The cost of notifying depends on the watchers that the changed keys match, not on the others.
- Watchers that get the same events share them: one list of events, encoded once.

Theory of operation. The watchers of one key are found in a dict, those of a prefix in a dict per prefix length, those
of other ranges in a list, which is nearly empty in practice. Replay reads the history: the versions of the watched keys
when there are few keys, else the log. A large revision, live (watch_scatter.py) or in history, is not encoded here: its
`LargeChanges` are, by the owner of the watcher, step by step.

Worked example: watchers of "a", of prefix "a/" ([a/, a0)) and of [a, b). A put of "a/1" asks the dict for "a/1" (none),
the dict of length 2 for "a/" (one), and looks at the list (one).

Does not do: sending, watch ids (the server's streams choose them), fragments, waiting for durability.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, length_hint
from typing import Any, Final, NamedTuple

from lessor.base import limits
from lessor.base.key_range import prefix_end
from lessor.state.mvcc import Event, Store
from lessor.state.watch_changes import Change, Changes, LargeChanges
from lessor.state.watch_scatter import Scatter
from lessor.state.watcher import Watcher

_CHAIN_KEYS_MAX: Final = 64  # replay walks the versions of single keys when the range has at most this many keys
_CHAIN_STEPS_MAX: Final = 4_096  # ... and reads the log instead after this many versions
_SCAN_EVENTS_MAX: Final = 20_000  # events of the log that one call of replay looks at: a few milliseconds
_ALL: Final = 1 << 60
_NOTIFY_LOOKS: Final = 5  # to notify of an event costs as much as so many looks
_key: Final = attrgetter("key")


class CompactedError(Exception):
    """The events that a watcher needs next are compacted."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"compacted at {compact_revision}")
        self.compact_revision = compact_revision


class Publication(NamedTuple):
    """The changes of one revision, and the watchers that get them, by owner."""

    audience: dict[Any, list[Watcher]]
    changes: Changes
    at_once: bool = False


class LargePublication(NamedTuple):
    """The same, of a large revision."""

    audience: dict[Any, list[Watcher]]
    changes: LargeChanges


class _Write(NamedTuple):
    """A write whose watchers are still to be found."""

    revision: int
    events: Sequence[Event]

    @property
    def is_large(self) -> bool:
        return len(self.events) > limits.WATCH_AT_ONCE_EVENTS


def _changes(revision: int, changes: list[Change], prev_kv: bool) -> Changes:
    return Changes(revision, changes if prev_kv else [(event, None) for event, _ in changes])


def _prefix_of(key: bytes, end: bytes) -> bytes | None:
    """The prefix whose range is [key, end); None when it is no prefix range."""
    if not end:
        return b"" if key == b"\0" else None  # there is no key below "\0"
    return key if prefix_end(key) == end else None


class WatchHub:
    """All watchers of one store."""

    __slots__ = (
        "_by_key",
        "_by_prefix",
        "_inside",
        "_ranges",
        "_scatter",
        "_store",
        "_waiting",
        "_waiting_events",
        "count",
        "large",
        "looked",
        "more",
        "on_large",
        "outbox",
    )

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_key: dict[bytes, dict[Watcher, None]] = {}
        self._by_prefix: dict[int, dict[bytes, dict[Watcher, None]]] = {}
        self._ranges: dict[Watcher, None] = {}
        self.count = 0  # of the watchers
        self.outbox: list[Publication] = []  # in the order of revisions
        self.looked = 0  # see `replay`
        self.large: LargeChanges | None = None  # see `replay`
        self.more = False  # see `replay`
        self._inside: dict[Watcher, None] = {}  # those `at_once`, which are in the tables too
        self._waiting: deque[_Write] = deque()  # a large write, and those after it
        self._waiting_events = 0  # of all of these
        self._scatter: Scatter | None = None  # of the first of these
        # Called when a large write begins to wait: `go_on` is to be called, but not from there. None: nothing waits.
        self.on_large: Callable[[], None] | None = None

    def add(self, watcher: Watcher) -> None:
        """Takes in a watcher. One that starts in the past is `lagging` afterwards: call `replay` for it."""
        newest = self._store.revision
        if watcher.next_revision == 0:
            watcher.next_revision = newest + 1
        watcher.lagging = watcher.next_revision <= newest
        self._place(watcher, create=True)[watcher] = None
        self.count += 1
        if watcher.at_once:
            self._inside[watcher] = None

    def remove(self, watcher: Watcher) -> None:
        """Removes a watcher that was added. Its publications in the outbox stay: look at `cancelled`."""
        watcher.cancelled = True
        place = self._place(watcher, create=False)
        if place.pop(watcher, watcher) is watcher:
            return
        self.count -= 1
        self._inside.pop(watcher, None)
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

    def changed(self, changes: int) -> None:
        """The store has finished a write of so many changes. Cost: `notify`; of a large one, the watchers `at_once`."""
        store = self._store
        events = store.newest_events(changes)
        if not self._waiting and (changes <= limits.WATCH_AT_ONCE_EVENTS or self.on_large is None):
            self.notify(store.revision, events, [store.previous_of(event) for event in events])
            return
        if self._inside:
            self._tell_inside(store.revision, events)
        write = _Write(store.revision, events)
        self._waiting.append(write)
        self._waiting_events += changes
        if write.is_large and self.on_large is not None:
            self.on_large()

    def _tell_inside(self, revision: int, events: Sequence[Event]) -> None:
        """Publishes to the watchers inside the server. Cost: O(log events) each; to sort events that are mostly sorted.

        They decide which calls to answer, and each decision has to see all changes until then.
        """
        ordered = sorted(events, key=_key)
        for watcher in list(self._inside):
            first = bisect_left(ordered, watcher.key, key=_key)
            end = watcher.key + b"\0" if watcher.end is None else watcher.end
            last = bisect_left(ordered, end, first, key=_key) if end else len(ordered)
            if first < last:
                matching = sorted(ordered[first:last], key=_order)
                self._publish(revision, (watcher,), [(event, None) for event in matching])

    @property
    def waiting(self) -> bool:
        """Whether there are writes whose watchers have not been given them."""
        return bool(self._waiting)

    def go_on(self, durable_revision: int) -> tuple[list[Publication | LargePublication], bool]:
        """The next step of giving watchers what waits. Returns what to deliver now, and whether a step can follow.

        What it returns is durable, and so is all that was published before. If no large write waits any more, the rest
        goes to the outbox, as ever; it may not be durable. If anything waits then, call again when more is durable.
        Cost: WATCH_SCATTER_LOOKS looks at events and watchers, of some 0.2 us each.
        """
        waiting = self._waiting
        now: list[Publication | LargePublication] = []
        left = limits.WATCH_SCATTER_LOOKS
        outbox, self.outbox = self.outbox, []
        try:
            while waiting and left > 0 and waiting[0].revision <= durable_revision:
                write = waiting[0]
                if write.is_large:
                    left -= self._scatter_some(write, left, now)
                else:
                    waiting.popleft()
                    self._waiting_events -= len(write.events)
                    self._notify_of(write)
                    left -= _NOTIFY_LOOKS * len(write.events)
                now += self.outbox
                self.outbox.clear()
        finally:
            self.outbox = outbox
        if waiting and self._waiting_events <= limits.WATCH_AT_ONCE_EVENTS:
            # No large one is among them. All of it at once: what is delivered here must not overtake what waits at the
            # gate.
            self._waiting_events = 0
            for write in waiting:
                self._notify_of(write)
            waiting.clear()
        return now, bool(waiting) and waiting[0].revision <= durable_revision

    def _notify_of(self, write: _Write) -> None:
        previous_of = self._store.previous_of
        self.notify(write.revision, write.events, [previous_of(event) for event in write.events])

    def _scatter_some(self, write: _Write, looks_max: int, now: list[Publication | LargePublication]) -> int:
        """The next step of a large write. Adds to `now` and to the outbox; returns the looks taken."""
        if self._scatter is None:
            self._scatter = Scatter(write.events, self._by_key, self._by_prefix, self._ranges)
        looks, found, done = self._scatter.step(looks_max)
        for watchers, parts in found:
            looks += self._publish_parts(write, watchers, parts, now)
        if done:
            self._scatter = None
            self._waiting.popleft()
            self._waiting_events -= len(write.events)
        return looks

    def drop_waiting(self) -> None:
        """After a bug in `go_on`: the watchers of what waits are to be ended."""
        self._waiting.clear()
        self._scatter = None
        self._waiting_events = 0

    def _publish_parts(
        self,
        write: _Write,
        watchers: Iterable[Watcher],
        parts: list[tuple[int, int]],
        now: list[Publication | LargePublication],
    ) -> int:
        """Publishes stretches of a large write to watchers who cover them. Returns the further looks that it took."""
        revision, events = write
        previous_of = self._store.previous_of
        count = sum(last - first for first, last in parts)
        if count <= limits.WATCH_AT_ONCE_EVENTS:
            few = [event for first, last in parts for event in events[first:last]]
            self._publish(revision, watchers, [(event, previous_of(event)) for event in few])
            return _NOTIFY_LOOKS * count
        groups: dict[tuple[frozenset[int], bool], dict[Any, list[Watcher]]] = {}
        for watcher in watchers:
            if watcher.lagging or watcher.next_revision > revision:
                continue
            watcher.next_revision = revision + 1
            groups.setdefault((watcher.filters, watcher.prev_kv), {}).setdefault(watcher.owner, []).append(watcher)
        for (_, prev_kv), audience in groups.items():
            one = next(iter(audience.values()))[0]
            keep = one.wants if one.filters else None
            changes = LargeChanges(revision, events, parts, keep, previous_of if prev_kv else None)
            now.append(LargePublication(audience, changes))
        return 0

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
        events_max: int = _ALL,
    ) -> list[Change]:
        """The next events for a lagging watcher, up to a revision, of at most `revisions_max` revisions.

        They are whole revisions, of at most `bytes_max` bytes of keys and values, prev_kv counted; but at least one
        revision that matches, if there is one in the history that this call looks at.

        With `events_max` they are at most so many. Then, if the next revision alone has more, or more bytes, or too
        many events to look at here, it returns nothing and sets `large`. The watcher still lags then, and is to be
        sent these changes, if any of them match, before the next call.

        Advances `watcher.next_revision`, and clears `watcher.lagging` when that passes the newest revision. It may
        return nothing while the watcher still lags, because a call looks at a bounded part of the history: call again.
        `more` says whether another matching revision up to `upto_revision` is known to follow.
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
        self.large = None
        self.more = False
        previous_of = store.previous_of if watcher.prev_kv else None
        events = self._from_versions(watcher, first, upto_revision)
        bounds = _Bounds(revisions_max, bytes_max, events_max)
        if events is not None:
            limit = upto_revision + 1
            changes, following = _first_revisions(events, limit, previous_of, bounds)
        else:
            stretch, limit = self._stretch(first, upto_revision)
            if len(stretch) > _SCAN_EVENTS_MAX and events_max < _ALL:
                return self._set_large(watcher, stretch[0].mod_revision)
            left = iter(stretch)
            covers, wants = watcher.covers, watcher.wants
            matching = (event for event in left if covers(event.key) and wants(event))
            changes, following = _first_revisions(matching, limit, previous_of, bounds)
            self.looked += len(stretch) - length_hint(left)
        if following == _LARGE:
            return self._set_large(watcher, changes[0][0].mod_revision)
        self.more = following < limit
        watcher.next_revision = max(first, following)
        watcher.lagging = watcher.next_revision <= store.revision
        return changes

    def _set_large(self, watcher: Watcher, revision: int) -> list[Change]:
        store = self._store
        events = store.log_slice(store.log_position(revision), store.log_position(revision + 1))
        covers, wants = watcher.covers, watcher.wants

        def keep(event: Event) -> bool:
            return covers(event.key) and wants(event)

        previous_of = store.previous_of if watcher.prev_kv else None
        self.large = LargeChanges(revision, events, [(0, len(events))], keep, previous_of)
        watcher.next_revision = revision + 1
        watcher.lagging = True
        return []

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


class _Bounds(NamedTuple):
    """Of a piece of history."""

    revisions_max: int
    bytes_max: int
    events_max: int


_LARGE: Final = -1


def _first_revisions(
    events: Iterable[Event],
    following: int,
    previous_of: Callable[[Event], Event | None] | None,
    bounds: _Bounds,
) -> tuple[list[Change], int]:
    """Takes events, which are in order, as many whole revisions as the bounds allow, but at least one revision.

    Returns the changes, and the revision to go on with; or some changes of the first revision, and _LARGE if that alone
    is beyond the bounds, where there is one on events.
    """
    revisions_max, bytes_max, events_max = bounds
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
        if size > bytes_max or len(changes) >= events_max:
            if begin:
                return changes[:begin], revision
            if changes and events_max < _ALL:
                return changes, _LARGE
        changes.append((event, previous))
    return changes, following


def _size(event: Event) -> int:
    """The size of an event in a response, near enough: its key and its value."""
    return len(event.key) + len(event.value or b"")
