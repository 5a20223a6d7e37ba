# SPDX-License-Identifier: Apache-2.0
"""Range in steps: of many keys, many newer versions or long values; kv.py makes the replies to all others at once.

Laws
- The pieces joined are the reply that kv.py would make at the same revision.
- A step looks at READ_STEP_KEYS keys, and as many newer versions, at most, and encodes READ_STEP_BYTES or one version.

Theory of operation. Without an order, keys are shown as they are walked. With one, each list of the walk is sorted by
itself and cut to the limit: a run. The runs are merged while the reply is encoded. Runs keep references to versions, 8
bytes a key, or `limit` of them for each READ_STEP_KEYS keys.

Does not do: checks of the request (kv.py), pins (long_read.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.state import kv
from lessor.state.mvcc import Event, Store

_FEW: Final = 16  # of the longest versions, sorted at once


def range_pieces(store: Store, request: rpc_pb2.RangeRequest, revision: int, header: bytes) -> Iterator[bytes]:
    """The reply's pieces at a pinned revision, which `request.revision` names or which is the newest one.

    Call it before anything is written at a later revision, and take the first piece then.
    """
    start, end = kv.span_of(request)
    count = store.count(start, end) if revision == store.revision else -1
    return _pieces(store, request, store.walk(start, end, revision), count, header)


def captured_steps(
    store: Store, request: rpc_pb2.RangeRequest, header: bytes
) -> Generator[None, None, tuple[Iterator[bytes], int]]:
    """The same for a range inside the open write. It looks the versions up in these steps, and encodes them later.

    Nothing else may be written meanwhile. Returns the `kept_bytes` of what it has found, too. Cost of a step: that of
    `Store.walk`.
    """
    start, end = kv.span_of(request)
    revision, inside = request.revision, store.revision_inside
    old = 0 < revision < inside
    if request.count_only and not old:
        return _pieces(store, request, (), store.count(start, end), header), 0
    fetch_max = None if old else kv.fetch_max(request, filtered=kv.is_filtered(request))
    events: list[Event] = []
    size = 0
    for found in store.walk(start, end, revision if old else inside):
        events += found
        size += kv.kept_bytes(found)
        if fetch_max is not None and len(events) >= fetch_max:
            break
        yield
    count = len(events) if old else store.count(start, end)
    return _pieces(store, request, _lists(events), count, header), size


def captured_at_once(store: Store, request: rpc_pb2.RangeRequest, header: bytes) -> Iterator[bytes]:
    """The same in one step, for a range that is known to be short enough."""
    steps = captured_steps(store, request, header)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            pieces: Iterator[bytes] = end.value[0]
            return pieces


def _lists(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    for first in range(0, len(events), limits.READ_STEP_KEYS):
        yield events[first : first + limits.READ_STEP_KEYS]


def _pieces(
    store: Store, request: rpc_pb2.RangeRequest, lists: Iterable[Sequence[Event]], count: int, header: bytes
) -> Iterator[bytes]:
    """`count`: how many keys there are, or -1 if that is not known yet."""
    known = count >= 0
    limit = request.limit
    order = request.sort_order
    sort = kv.sort_of(request)
    filtered = kv.is_filtered(request)
    fetch_max = kv.fetch_max(request, filtered=filtered)
    fetched = shown = 0
    more = False
    yield header
    if request.count_only and known:
        yield kv.count_field(count)
        return
    if not known:
        count = 0
    runs: list[list[Event]] = []
    for walked in lists:
        events = walked
        if not known:
            count += len(events)
        if request.count_only or more:
            yield b""
            continue
        if fetch_max is not None:
            events = events[: fetch_max - fetched]
            fetched += len(events)
        if filtered:
            events = [event for event in events if kv.passes(request, event)]
        if sort is None:
            if 0 < limit < shown + len(events):
                more = True
                events = events[: limit - shown]
            shown += len(events)
            yield from _shown(store, request, events)
        else:
            shown += len(events)
            size = max(_FEW, _step_versions(store))
            for first in range(0, len(events), size):
                run = sorted(events[first : first + size], key=sort, reverse=order == kv.SORT_DESCEND)
                runs.append(run[:limit] if limit > 0 else run)
                yield b""
        if known and (more or (fetch_max is not None and fetched >= fetch_max)):
            break
    if sort is not None:
        merged: Iterator[Event] = heapq.merge(*runs, key=sort, reverse=order == kv.SORT_DESCEND)
        more = 0 < limit < shown
        if limit > 0:
            merged = islice(merged, limit)
        while events := list(islice(merged, _step_versions(store))):
            yield from _shown(store, request, events)
    tail = kv.count_field(count)
    yield b"\x18\x01" + tail if more else tail


def _shown(store: Store, request: rpc_pb2.RangeRequest, events: Sequence[Event]) -> Iterator[bytes]:
    return encoded(store, events, kv.shown_by(request))


def _step_versions(store: Store) -> int:
    """How many versions are handled in one step, by the longest version that there is."""
    return max(1, min(limits.READ_STEP_KEYS, limits.READ_STEP_BYTES // (store.version_bytes_max + 1)))


def encoded(store: Store, events: Sequence[Event], encode: Callable[[Sequence[Event]], bytes]) -> Iterator[bytes]:
    """`encode` of some versions with their values, READ_STEP_KEYS at most: in one piece, or more if values are long."""
    if len(events) * store.version_bytes_max <= limits.READ_STEP_BYTES:
        yield encode(events)
        return
    first = size = 0
    for index, event in enumerate(events):
        size += event.size_bytes
        if size > limits.READ_STEP_BYTES:
            yield encode(events[first : index + 1])
            first, size = index + 1, 0
    yield encode(events[first:])
