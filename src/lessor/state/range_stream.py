# SPDX-License-Identifier: Apache-2.0
"""RangeStream: the reply of Range in chunks, made one by one while the peer takes them.

Laws
- All chunks merged are the reply that Range would make, at the revision at which the first step is taken, whatever is
  written after that. The last chunk has the header, `more` and the count; no other has them.
- Behind a chunk nothing is kept but a place in the range. So a stream that is not read holds up no compaction, and
  keeps no versions in memory. When its revision is compacted, its next step raises COMPACTED, as in etcd.
- A step looks at READ_STEP_KEYS keys, and as many newer versions, at most, and encodes RANGE_CHUNK_BYTES and one
  version at most.

Theory of operation. `LongRead` pins its revision, because Range is answered as soon as it is made. A stream lasts as
long as its peer likes, so it has no pin: versions of a revision that is not compacted are found without one. How many
keys a step looks at follows the size of the chunks: keys that do not fit into a chunk are looked at again for the next.

Only the order of keys can be made in steps without a memory of what was sent. etcd refuses other orders, but for one: a
sort target without a sort order. That is answered here if one step can do it; etcd sorts chunk by chunk then, so that
keys are missing or come twice when there is more than one.

Does not do: rights, flow control and the turns of several streams (server/services/range_stream.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import Code, EtcdError
from lessor.state import kv
from lessor.state.encode import nested
from lessor.state.mvcc import Event, Store

_REPLY_TAG: Final = b"\x0a"  # of the RangeResponse, the only field of a chunk
_MORE_FIELD: Final = b"\x18\x01"
_SORT_ASCEND: Final = 1
_OTHER_ORDER: Final = "RangeStream does not support custom sort orders"
_BOUNDED: Final = "RangeStream does not support revision filters"


def check_range_stream(request: rpc_pb2.RangeRequest) -> None:
    """Raises the EtcdError of a request that is wrong by itself, or that only Range answers."""
    kv.check_range(request)
    order = request.sort_order
    if order == kv.SORT_DESCEND or (order == _SORT_ASCEND and request.sort_target):
        raise EtcdError(Code.UNIMPLEMENTED, _OTHER_ORDER)
    if kv.is_filtered(request):
        raise EtcdError(Code.UNIMPLEMENTED, _BOUNDED)


class RangeStream:
    """The chunks of one reply. `request` has passed `check_range_stream`."""

    __slots__ = (
        "_begun",
        "_count",
        "_end",
        "_found",
        "_header",
        "_header_now",
        "_kept",
        "_keys",
        "_more",
        "_passed",
        "_position",
        "_request",
        "_revision",
        "_store",
        "done",
    )

    def __init__(self, store: Store, request: rpc_pb2.RangeRequest, header_now: Callable[[], bytes]) -> None:
        """`header_now` returns the encoded header as of the store's revision."""
        self._store = store
        self._request = request
        self._header_now = header_now
        self._header = b""
        self._begun = False
        self._revision = 0
        self._position, self._end = kv.span_of(request)  # of what has not been looked at
        # Of the key at the position, what is left to look at: set only while nothing is found.
        self._passed: Event | None = None
        self._keys = limits.RANGE_CHUNK_KEYS_MIN  # to look at in the next step
        self._found = 0  # keys that were shown, or counted
        self._count = -1  # of all keys; -1: it is found out by looking at all
        self._kept = b""  # the last keys, while it is found out how many there are behind them
        self._more = False  # the limit is reached, and there is another key
        self.done = False

    def step(self) -> bytes:
        """The next chunk, serialized; b"" if this step has found nothing to show.

        Raises FUTURE_REVISION with the first step, COMPACTED with any, UNIMPLEMENTED for a sort target without an order
        if it needs more than one step. Call it while no write is under way, and not when `done`.
        """
        request, store = self._request, self._store
        if not self._begun:
            if self._begin():
                return self._one_chunk()
        elif self._revision < store.compact_revision:
            raise errors.COMPACTED.error()
        if request.count_only and self._count >= 0:
            return self._last(b"")
        events, following = self._look()
        fields, self._kept = self._kept, b""
        if request.count_only or self._more:
            self._found += len(events)
        else:
            events, following = self._cut(events, following)
            self._found += len(events)
            fields += kv.keys_field(events) if request.keys_only else kv.kvs_field(events)
        if following is None or (self._more and self._count >= 0):
            return self._last(fields)
        self._position = following
        if 0 < request.limit <= self._found:  # the last keys go with `more` and the count, which are not known yet
            self._kept = fields
            return b""
        return nested(_REPLY_TAG, fields) if fields else b""

    def _begin(self) -> bool:
        """Takes the revision. Returns whether the reply has to be sorted."""
        request, store = self._request, self._store
        kv.verify_range_alone(store, request)
        self._begun = True
        self._header = self._header_now()
        self._revision = request.revision if request.revision > 0 else store.revision
        if request.sort_target and request.range_end and not request.count_only:
            return True
        store.ranges += 1
        if self._revision == store.revision and (request.limit > 0 or request.count_only):
            self._count = store.count(self._position, self._end)
        return False

    def _one_chunk(self) -> bytes:
        reply = kv.range_reply(self._store, self._request, self._header)
        if reply is None:
            raise EtcdError(Code.UNIMPLEMENTED, _OTHER_ORDER)
        self.done = True
        return nested(_REPLY_TAG, reply)

    def _last(self, fields: bytes) -> bytes:
        self.done = True
        count = self._count if self._count >= 0 else self._found
        more = _MORE_FIELD if self._more else b""
        return nested(_REPLY_TAG, self._header + fields + more + kv.count_field(count))

    # --- looking ---

    def _look(self) -> tuple[Sequence[Event], bytes | None]:
        """The next versions in the range, and where to go on behind them; None: there are no more keys."""
        store, position = self._store, self._position
        keys_max = limits.READ_STEP_KEYS if self._request.count_only or self._more else self._keys
        if self._passed is None and self._revision >= store.revision_inside:
            # Nothing has been written meanwhile. One key more shows whether there are others.
            newest = store.range(position, self._end, keys_max + 1)
            if len(newest) <= keys_max:
                return newest, None
            return newest[:keys_max], newest[keys_max].key
        keys = store.keys_ever(position, self._end, keys_max + 1)
        following = keys[keys_max] if len(keys) > keys_max else None
        revision = self._revision
        passed, self._passed = self._passed, None
        events: list[Event] = []
        newer = 0
        for key in keys[:keys_max]:
            event = store.newest_of(key)
            if passed is not None:  # this is the first key, and its newest versions were passed in the last step
                if key == position:
                    event = passed
                passed = None
            while event is not None and event.mod_revision > revision:
                if newer == limits.READ_STEP_KEYS:
                    if not events:
                        self._passed = event
                    return events, key
                event = event.previous
                newer += 1
            if event is not None and event.value is not None:
                events.append(event)
        return events, following

    def _cut(self, events: Sequence[Event], following: bytes | None) -> tuple[Sequence[Event], bytes | None]:
        """What of the versions goes into this chunk, and where to go on. Notes whether the limit leaves keys out."""
        keys_only = self._request.keys_only
        shown = size = 0
        for event in events:
            size += len(event.key) if keys_only else event.size_bytes
            shown += 1
            if size >= limits.RANGE_CHUNK_BYTES:
                break
        left = self._request.limit - self._found if self._request.limit > 0 else len(events)
        if shown >= left and len(events) > left:
            # The keys behind the limit are not shown. If they have to be counted, that begins with the first of them.
            self._more = True
            return events[:left], events[left].key
        if shown < len(events):
            self._keys = max(self._keys // 2, 1)
            return events[:shown], events[shown].key
        if size < limits.RANGE_CHUNK_BYTES // 2:
            self._keys = min(self._keys * 2, limits.READ_STEP_KEYS)
        return events, following
