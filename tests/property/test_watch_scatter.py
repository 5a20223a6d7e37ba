# SPDX-License-Identifier: Apache-2.0
"""A large write finds its watchers in steps: each gets the events that it covers, in order, once; a step is bounded."""

from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.base import limits
from lessor.base.key_range import prefix_end
from lessor.state.mvcc import Event
from lessor.state.watch_scatter import Scatter
from lessor.state.watcher import Watcher

KEYS = st.lists(st.sampled_from(b"abc"), min_size=1, max_size=3).map(bytes)
SINGLE = KEYS.map(lambda key: (key, None))
PREFIX = KEYS.map(lambda key: (key, prefix_end(key)))
RANGE = st.tuples(KEYS, KEYS | st.just(b"")).filter(lambda pair: not pair[1] or pair[0] < pair[1])


def _tables(watchers: list[Watcher]) -> tuple[Any, Any, Any]:
    by_key: dict[bytes, dict[Watcher, None]] = {}
    by_prefix: dict[int, dict[bytes, dict[Watcher, None]]] = {}
    ranges: dict[Watcher, None] = {}
    for watcher in watchers:
        if watcher.end is None:
            by_key.setdefault(watcher.key, {})[watcher] = None
        elif watcher.end == prefix_end(watcher.key):
            prefixes = by_prefix.setdefault(len(watcher.key), {})
            prefixes.setdefault(watcher.key, {})[watcher] = None
        else:
            ranges[watcher] = None
    return by_key, by_prefix, ranges


@settings(max_examples=300, deadline=None)
@given(
    keys=st.lists(KEYS, min_size=1, max_size=30),
    ordered=st.booleans(),
    spans=st.lists(SINGLE | PREFIX | RANGE, max_size=10),
    looks_max=st.integers(1, 200),
)
def test_each_watcher_is_found_once_with_all_its_events(
    keys: list[bytes], ordered: bool, spans: list[tuple[bytes, bytes | None]], looks_max: int
) -> None:
    events = [Event(key, None, 0, 5, sub, 0, 0, None) for sub, key in enumerate(sorted(keys) if ordered else keys)]
    watchers = [Watcher(number, key, end) for number, (key, end) in enumerate(spans)]
    tables = _tables(watchers)
    scatter = Scatter(events, *tables)
    told: dict[Watcher, list[int]] = {}
    done = False
    while not done:
        looks, found, done = scatter.step(looks_max)
        # One place more than fits, or one event: each costs a bounded number of looks.
        one_place = 20 + 4 * (len(events) + 1) + 20 * len(watchers)
        assert looks <= looks_max + one_place + 2 + len(tables[1])
        for audience, parts in found:
            assert parts
            for watcher in audience:
                assert watcher not in told
                told[watcher] = [event.sub for first, last in parts for event in events[first:last]]
    expected = {
        watcher: subs for watcher in watchers if (subs := [event.sub for event in events if watcher.covers(event.key)])
    }
    assert told == expected


def test_a_step_looks_at_few_events() -> None:
    events = [Event(b"k%05d" % number, None, 0, 5, number, 0, 0, None) for number in range(10_000)]
    looked: list[int] = []

    class Counted(list[Event]):
        def __getitem__(self, at: Any) -> Any:
            if isinstance(at, slice):
                looked[-1] += len(range(*at.indices(len(self))))
            return super().__getitem__(at)

    watcher = Watcher(1, b"k", b"l")
    scatter = Scatter(Counted(events), {}, {1: {b"k": {watcher: None}}}, {})
    with mock.patch.object(limits, "WATCH_SCATTER_LOOKS", 300):
        done = False
        while not done:
            looked.append(0)
            _, found, done = scatter.step(300)
    assert max(looked) <= 101
    assert len(looked) >= 100
    assert [parts for _, parts in found] == [[(0, 10_000)]]
