# SPDX-License-Identifier: Apache-2.0
"""Finds the watchers of one large revision, in steps.

Laws
- A step looks at so many events, keys and watchers as it is told, and one place more.
- Each place that any of the events matches is given once, with all events that it matches, in their order. A place is
  the watchers of one key or prefix, or one watcher of another range.

Theory of operation. The first pass looks at each event once. It notes the keys and prefixes that are watched, and cuts
the events into *runs* in which the keys ascend: one run for a DeleteRange or the end of a lease, a few for a txn of
deletes. The second pass looks at each place that was noted, and at each watcher of another range. In a run, its events
are one stretch, which bisection finds. So a place costs no list of its events, and 50 watchers of the same keys cost no
more looks at the events than one.

Does not do: deciding who of the place gets them (watch_hub.py), encoding (watch_changes.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter, gt
from typing import Final

from lessor.state.mvcc import Event
from lessor.state.watcher import Watcher

_key: Final = attrgetter("key")
_PLACE_LOOKS: Final = 20  # a place costs as much as so many looks
_RUN_LOOKS: Final = 4  # and each run in it as much as so many

Place = tuple[bytes, bytes | None, Iterable[Watcher]]  # the range, as in a Watcher, and the watchers
Found = tuple[Iterable[Watcher], list[tuple[int, int]]]  # the watchers, and the stretches of the events for them


class Scatter:
    """One large revision on its way to its watchers."""

    __slots__ = ("_at", "_by_key", "_by_prefix", "_places", "_ranges", "_runs", "_spots", "events")

    def __init__(
        self,
        events: Sequence[Event],
        by_key: dict[bytes, dict[Watcher, None]],
        by_prefix: dict[int, dict[bytes, dict[Watcher, None]]],
        ranges: dict[Watcher, None],
    ) -> None:
        """The tables are those of the hub, and may change between steps: who comes later does not get the events."""
        self.events = events
        self._by_key = by_key
        self._by_prefix = by_prefix
        self._ranges = ranges
        self._at = 0  # the event that the first pass comes to next
        self._runs: list[int] = [0]  # where the runs begin
        self._spots: dict[int, Place] = {}  # those noted, by the identity of their watchers
        self._places: Iterator[Place] | None = None  # what is left of the second pass

    def step(self, looks_max: int) -> tuple[int, list[Found], bool]:
        """Returns the number of looks that it took, the places found, and whether these are the last."""
        looks = 0
        while self._places is None:
            looks += self._look(looks_max - looks)
            if self._at == len(self.events):
                self._runs.append(self._at)
                self._places = self._all_places()
            elif looks >= looks_max:
                return looks, [], False
        found: list[Found] = []
        while looks < looks_max:
            place = next(self._places, None)
            if place is None:
                return looks, found, True
            watchers = place[2]
            looks += _PLACE_LOOKS + _RUN_LOOKS * len(self._runs)
            parts = self._parts(place[0], place[1])
            if parts:
                found.append((watchers, parts))
                looks += _PLACE_LOOKS * len(watchers) if isinstance(watchers, dict) else _PLACE_LOOKS
        return looks, found, False

    def _look(self, looks_max: int) -> int:
        """The first pass: the next events, at least one. Each costs a look, and one for each length of prefixes."""
        first = self._at
        price = 2 + len(self._by_prefix)
        stop = self._at = min(first + max(looks_max // price, 1), len(self.events))
        keys = [event.key for event in self.events[max(first - 1, 0) : stop]]
        if any(map(gt, keys, keys[1:])):
            start = max(first - 1, 0)
            self._runs += [start + at for at in range(1, len(keys)) if keys[at - 1] > keys[at]]
        by_key, spots = self._by_key, self._spots
        if by_key:
            for key in keys:
                if key in by_key:
                    watchers = by_key[key]
                    spots[id(watchers)] = (key, None, watchers)
        for length, prefixes in self._by_prefix.items():
            for prefix in {key[:length] for key in keys}:
                if prefix in prefixes:
                    watchers = prefixes[prefix]
                    if id(watchers) not in spots:
                        watcher = next(iter(watchers))
                        spots[id(watchers)] = (watcher.key, watcher.end, watchers)
        return (stop - first) * price

    def _all_places(self) -> Iterator[Place]:
        yield from self._spots.values()
        for watcher in list(self._ranges):
            yield watcher.key, watcher.end, (watcher,)

    def _parts(self, low: bytes, end: bytes | None) -> list[tuple[int, int]]:
        """The stretches of the events whose keys are in the range, in order."""
        events, runs = self.events, self._runs
        high = low + b"\0" if end is None else end
        parts: list[tuple[int, int]] = []
        for at in range(len(runs) - 1):
            first = bisect_left(events, low, runs[at], runs[at + 1], key=_key)
            last = bisect_left(events, high, first, runs[at + 1], key=_key) if high else runs[at + 1]
            if first < last:
                parts.append((first, last))
        return parts
