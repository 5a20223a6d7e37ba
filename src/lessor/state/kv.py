# SPDX-License-Identifier: Apache-2.0
"""The meaning of Range, Put and DeleteRange, alone or as an operation of a txn.

Laws
- `check_*` and `read_put` look at the request alone; `verify_*` compares it with the state; neither changes anything.
  After both have passed, nothing else raises.
- A reply is made as bytes. The caller gives the encoded header, because the operations of a txn have a header of their
  own.

- A range that looks at more than READ_STEP_KEYS keys, or at more versions than that which are newer than its revision,
  or shows values of more than READ_STEP_BYTES, is not made here.

Does not do: long ranges (range_steps.py), request sizes (the server does), the NOSPACE rule (machine.py), ending the
write.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from operator import attrgetter
from typing import Any, Final

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.key_range import open_end
from lessor.state.encode import nested, varint
from lessor.state.leases import Lessor
from lessor.state.mvcc import Event, Store

_INT64_MAX: Final = (1 << 63) - 1
_REFERENCE_BYTES: Final = 8
_SORT_NONE: Final = 0
SORT_DESCEND: Final = 2
_SORT_ORDERS: Final = range(3)
_SORT_BY: Final[tuple[Callable[[Event], Any], ...]] = tuple(
    attrgetter(name) for name in ("key", "version", "create_revision", "mod_revision", "value")
)


# --- Range ------------------------------------------------------------------------------------------------------


def check_range(request: rpc_pb2.RangeRequest) -> None:
    if not request.key:
        raise errors.EMPTY_KEY.error()
    if request.sort_order not in _SORT_ORDERS or not 0 <= request.sort_target < len(_SORT_BY):
        raise errors.INVALID_SORT_OPTION.error()


def verify_range_alone(store: Store, request: rpc_pb2.RangeRequest) -> None:
    """Raises FUTURE_REVISION, COMPACTED. A revision of 0 or less means the newest."""
    revision = request.revision
    if revision > 0:
        if revision > store.revision:
            raise errors.FUTURE_REVISION.error()
        if revision < store.compact_revision:
            raise errors.COMPACTED.error()


def verify_range_in_txn(request: rpc_pb2.RangeRequest, newest: int, compacted: int) -> bool:
    """Raises FUTURE_REVISION, COMPACTED. Only a revision of 0 means the newest. Returns whether it names another one.

    A negative one counts as compacted; -1 passes until the first compaction. `newest`, `compacted`: revisions of the
    store, before the txn.
    """
    revision = request.revision
    if revision:
        if revision > newest:
            raise errors.FUTURE_REVISION.error()
        if revision < compacted:
            raise errors.COMPACTED.error()
        return True
    return False


def span_of(request: rpc_pb2.RangeRequest) -> tuple[bytes, bytes]:
    """The start and the end of the range, as the store has it; also of a range of one key."""
    key, range_end = request.key, request.range_end
    return key, open_end(range_end) if range_end else key + b"\0"


def range_reply(store: Store, request: rpc_pb2.RangeRequest, header: bytes) -> bytes | None:
    """None: the reply takes long to make; see `range_steps`.

    Cost: O(1) for one key; O(log n + keys shown) for a range at the newest revision with neither sort nor filter.
    """
    store.ranges += 1
    revision = request.revision
    limit = request.limit
    range_end = request.range_end
    if range_end:
        return _range_of_many(store, request, header, open_end(range_end), revision, limit)
    if revision <= 0:
        event = store.get(request.key)
    else:
        key = request.key
        if store.newer_left((store.newest_of(key),), revision, limits.READ_STEP_KEYS) < 0:
            return None
        event = store.get_at(key, revision)
    if event is None:
        return header
    if request.count_only or not passes(request, event):
        return header + b"\x20\x01"
    if not request.keys_only:  # by far the most reads: without a list
        return header + nested(b"\x12", event.kv_bytes()) + b"\x20\x01"
    return header + shown_by(request)((event,)) + b"\x20\x01"


def passes(request: rpc_pb2.RangeRequest, event: Event) -> bool:
    """Whether an event passes the four revision filters, each of which is off at 0."""
    bound = request.max_mod_revision
    if bound and event.mod_revision > bound:
        return False
    if event.mod_revision < request.min_mod_revision:
        return False
    bound = request.max_create_revision
    if bound and event.create_revision > bound:
        return False
    return event.create_revision >= request.min_create_revision


def is_filtered(request: rpc_pb2.RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def fetch_max(request: rpc_pb2.RangeRequest, *, filtered: bool) -> int | None:
    """How many keys are fetched before they are sorted; None: all.

    etcd's rule, which shows with a limit, no order and a sort target: only the first keys, as many as the limit and one
    more, are sorted. With an order or a filter all keys are fetched first.
    """
    limit = request.limit
    return limit + 1 if 0 < limit < _INT64_MAX and request.sort_order == _SORT_NONE and not filtered else None


def sort_of(request: rpc_pb2.RangeRequest) -> Callable[[Event], Any] | None:
    """What the versions are sorted by; None: they are in order already."""
    target = request.sort_target
    return _SORT_BY[target] if target or request.sort_order == SORT_DESCEND else None


def _range_of_many(
    store: Store, request: rpc_pb2.RangeRequest, header: bytes, end: bytes, revision: int, limit: int
) -> bytes | None:
    start = request.key
    newest = revision <= 0 or revision >= store.revision_inside
    if newest and request.count_only:
        return header + count_field(store.count(start, end))
    filtered = is_filtered(request)
    fetched_max = fetch_max(request, filtered=filtered) if limit > 0 else None
    step = limits.READ_STEP_KEYS
    if newest:
        # One key more than a step shows that there are too many.
        events = store.range(start, end, step + 1 if fetched_max is None or fetched_max > step else fetched_max)
        if len(events) > step:
            return None
        count = len(events) if fetched_max is None or len(events) < fetched_max else store.count(start, end)
    else:
        if store.key_count_ever(start, end) > step:
            return None
        if store.newer_left(store.newest_of_range(start, end), revision, step) < 0:
            return None
        events = store.range_at(start, end, revision)
        count = len(events)
        if request.count_only:
            return header + count_field(count)
        if fetched_max is not None:
            del events[fetched_max:]
    if filtered:
        events = [event for event in events if passes(request, event)]
    if len(events) * store.version_bytes_max > limits.READ_STEP_BYTES and is_long(store, events):
        return None
    sort = sort_of(request)
    if sort is not None:
        events.sort(key=sort, reverse=request.sort_order == SORT_DESCEND)
    more = 0 < limit < len(events)
    if more:
        del events[limit:]
    tail = count_field(count)
    if more:
        tail = b"\x18\x01" + tail
    return header + shown_by(request)(events) + tail


def is_long(store: Store, events: Sequence[Event]) -> bool:
    """Whether it takes more than one step to show or to compare these. A single version never does."""
    if len(events) * store.version_bytes_max <= limits.READ_STEP_BYTES:
        return len(events) > limits.READ_STEP_KEYS
    return len(events) > 1 and sum([event.size_bytes for event in events]) > limits.READ_STEP_BYTES


def kept_bytes(events: Sequence[Event]) -> int:
    """The memory that versions may take while a reply with them waits: a compaction may leave them to it alone."""
    return sum([event.size_bytes for event in events]) + _REFERENCE_BYTES * len(events)


def kvs_field(events: Sequence[Event]) -> bytes:
    parts = []
    for event in events:
        shown = event.kv_bytes()
        parts.append(b"\x12")
        parts.append(varint(len(shown)))
        parts.append(shown)
    return b"".join(parts)


def keys_field(events: Sequence[Event]) -> bytes:
    return b"".join([nested(b"\x12", event.index_bytes()) for event in events])


def keys_and_leases_field(events: Sequence[Event]) -> bytes:
    return b"".join([nested(b"\x12", event.kv_bytes_without_value()) for event in events])


def shown_by(request: rpc_pb2.RangeRequest) -> Callable[[Sequence[Event]], bytes]:
    """What the request wants to see of versions, as fields of its reply.

    With keys_only etcd 3.7 looks at its index alone, which has no leases, unless it sorts by value.
    """
    if not request.keys_only:
        return kvs_field
    return keys_and_leases_field if request.sort_target == rpc_pb2.RangeRequest.VALUE else keys_field


def count_field(count: int) -> bytes:
    return b"\x20" + varint(count) if count else b""


# --- Put --------------------------------------------------------------------------------------------------------


# A put request, each field read once: key, value, lease id, prev_kv, ignore_value, ignore_lease.
Put = tuple[bytes, bytes, int, bool, bool, bool]


def read_put(request: rpc_pb2.PutRequest) -> Put:
    """Reads the request and checks it alone. Raises EMPTY_KEY, VALUE_PROVIDED, LEASE_PROVIDED."""
    key = request.key
    value = request.value
    lease_id = request.lease
    ignore_value = request.ignore_value
    ignore_lease = request.ignore_lease
    if not key:
        raise errors.EMPTY_KEY.error()
    if ignore_value and value:
        raise errors.VALUE_PROVIDED.error()
    if ignore_lease and lease_id:
        raise errors.LEASE_PROVIDED.error()
    return key, value, lease_id, request.prev_kv, ignore_value, ignore_lease


def verify_put(store: Store, lessor: Lessor, put: Put) -> None:
    """What the put, alone or in a txn, needs of the state. Raises LEASE_NOT_FOUND, KEY_NOT_FOUND."""
    key, _, lease_id, _, ignore_value, ignore_lease = put
    if lease_id and lessor.get(lease_id) is None:
        raise errors.LEASE_NOT_FOUND.error()
    if (ignore_value or ignore_lease) and store.get(key) is None:
        raise errors.KEY_NOT_FOUND.error()


def do_put(store: Store, put: Put) -> bytes:
    """Does the put; returns the reply's fields after the header. Cost: O(1)."""
    key, value, lease_id, prev_kv, ignore_value, ignore_lease = put
    store.puts += 1
    before = store.put(key, value, lease_id) if not (ignore_value or ignore_lease) else _do_keeping_put(store, put)
    if prev_kv and before is not None:
        return nested(b"\x12", before.kv_bytes())
    return b""


def _do_keeping_put(store: Store, put: Put) -> Event | None:
    key, value, lease_id, _, ignore_value, ignore_lease = put
    before = store.get(key)
    if before is not None:
        if ignore_value:
            value = before.value or b""
        if ignore_lease:
            lease_id = before.lease
    return store.put(key, value, lease_id)


# --- DeleteRange ------------------------------------------------------------------------------------------------


def check_delete(request: rpc_pb2.DeleteRangeRequest) -> None:
    if not request.key:
        raise errors.EMPTY_KEY.error()


def delete_range(
    store: Store, request: rpc_pb2.DeleteRangeRequest, keys_max: int | None = None
) -> tuple[bytes, Sequence[Event]] | None:
    """Deletes in key order; returns the reply's fields after the header, and the versions to show after them.

    None, with nothing done, when there are more than `keys_max` keys: see `delete_range_steps`. Cost: O(log n + keys
    deleted).
    """
    range_end = request.range_end
    if range_end:
        doomed = store.range(request.key, open_end(range_end), None if keys_max is None else keys_max + 1)
        if keys_max is not None and len(doomed) > keys_max:
            return None
    else:
        event = store.get(request.key)
        doomed = [] if event is None else [event]
    store.deletes += 1
    if not doomed:
        return b"", ()
    store.delete_all([event.key for event in doomed])
    return b"\x10" + varint(len(doomed)), doomed if request.prev_kv else ()


def delete_range_steps(
    store: Store, request: rpc_pb2.DeleteRangeRequest
) -> Generator[None, None, tuple[bytes, Sequence[Event], int]]:
    """The same in steps of WRITE_STEP_KEYS keys, as a part of a `LongWrite`. Returns the `kept_bytes` to show, too."""
    start, end = request.key, open_end(request.range_end) if request.range_end else request.key + b"\0"
    deleted = size_bytes = 0
    shown: list[Event] = []
    while doomed := store.range(start, end, limits.WRITE_STEP_KEYS):
        store.delete_all([event.key for event in doomed])
        deleted += len(doomed)
        if request.prev_kv:
            shown += doomed
            size_bytes += kept_bytes(doomed)
        yield
    store.deletes += 1
    return (b"\x10" + varint(deleted) if deleted else b""), shown, size_bytes


def prev_kvs_field(events: Sequence[Event]) -> bytes:
    """Of the reply to a DeleteRange."""
    return b"".join([nested(b"\x1a", event.kv_bytes()) for event in events])
