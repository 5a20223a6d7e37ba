# SPDX-License-Identifier: Apache-2.0
"""Txn: compares, two branches of operations, txns inside txns.

Laws
- All checks come before the first change: shape and size, overlaps, compares (those of nested txns too, all against the
  state before the txn), then the leases, keys and revisions of the branches taken.
- Operations run in order; a later range sees the writes of earlier operations.
- A txn that looks at many keys, or deletes many, is not made here at once: `is_long` tells. One that may write looks at
  TXN_WRITE_KEYS_MAX keys at most, because all others wait for it.

Theory of operation. `read_txn` checks the shape of the request and turns it into a tree of `Node`s, so that the
protobuf objects are read once. `choose` decides the branch of each node. `verify` and `execute` walk the branches that
were taken. Txns that take many steps are in txn_steps.py.

Worked example of the duplicate rule. etcd applies it level by level: first the deletes of a level, then its nested txns
in order, then its own puts:

    put a, put a                      refused
    delete [a, c), put b              refused, in either order
    txn{then: put a; else: put a}     fine: only one of them runs
    txn{put a}, txn{put a}            refused
    txn{delete a}, txn{put a}         refused
    txn{put a}, txn{delete a}         passes: a nested delete counts only against the puts that are looked at later
    delete [a, \\0), put b              passes: the rule does not see that \\0 means "no upper bound"
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.key_range import OPEN_END, open_end
from lessor.state import kv
from lessor.state.encode import nested, revision_header
from lessor.state.leases import Lessor
from lessor.state.mvcc import Event, Store
from lessor.state.range_steps import captured_at_once

RANGE: Final = "request_range"
PUT: Final = "request_put"
DELETE: Final = "request_delete_range"
TXN: Final = "request_txn"

_VALUE_TARGET: Final = 3
# By target: the name of the compare's field and of the event's attribute alike.
_NUMBER_TARGETS: Final = {0: "version", 1: "create_revision", 2: "mod_revision", 4: "lease"}

# One operation: its kind, and its request; a put as `kv.Put`, a nested txn as `Node`.
Operation = tuple[str, Any]


class Node:
    """One txn of the tree."""

    __slots__ = ("compares", "failure", "old", "size", "size_max", "succeeded", "success", "taken", "wide")

    def __init__(self, compares: list[rpc_pb2.Compare], size: int, size_max: int) -> None:
        self.compares = compares
        self.size = size  # compares and operations of the whole tree, as far as it was read when this node was complete
        self.size_max = size_max
        self.success: list[Operation] = []
        self.failure: list[Operation] = []
        self.succeeded = False  # whether the compares hold; `choose` finds out
        self.taken: Sequence[Operation] = ()  # the branch that this chooses
        self.old = False  # whether a range on the branches taken names a revision; `verify` finds out
        self.wide = False  # whether a compare, a range or a delete of it, or of a txn in it, has a range_end


# --- shape ------------------------------------------------------------------------------------------------------


def read_txn(request: rpc_pb2.TxnRequest, ops_max: int) -> Node:
    """Reads a txn and checks it alone. `ops_max`: of compares, of success operations and of failure operations, each.

    A nested txn may have as many as the largest of the three lists around it leaves, so nesting is bounded too. All
    lists of all levels together may have TXN_OPS_IN_ALL times as many. Cost: n log n for n operations.
    """
    node = _read(request, ops_max, 0, ops_max * limits.TXN_OPS_IN_ALL)
    for operations in (node.success, node.failure):
        # A single operation overlaps with nothing, unless it is a txn.
        if len(operations) > 1 or (operations and operations[0][0] == TXN):
            _check_overlaps(operations)
    return node


def _read(request: rpc_pb2.TxnRequest, ops_max: int, before: int, size_max: int) -> Node:
    """`before`: the operations and compares that were read before, of `size_max` in all."""
    compares, success, failure = request.compare, request.success, request.failure
    compare_count, success_count, failure_count = len(compares), len(success), len(failure)
    used = compare_count if compare_count > success_count else success_count
    used = used if used > failure_count else failure_count  # max() takes longer, for each txn
    size = before + compare_count + success_count + failure_count
    if used > ops_max or size > size_max:  # before any of them is looked at: there may be a million
        raise errors.TOO_MANY_OPS.error()
    node = Node(list(compares) if compare_count else [], size, size_max)
    for compare in node.compares:
        if not compare.key:
            raise errors.EMPTY_KEY.error()
        if compare.range_end:
            node.wide = True
    left = ops_max - used
    if success_count:  # most txns lack one of the lists
        node.success = [_read_op(op, left, node) for op in success]
    if failure_count:
        node.failure = [_read_op(op, left, node) for op in failure]
    return node


def _read_op(op: rpc_pb2.RequestOp, ops_max: int, node: Node) -> Operation:
    """An operation of `node`, which it may make `wide`."""
    # HasField costs half of WhichOneof, and nearly all operations are puts and ranges.
    if op.HasField(PUT):
        return PUT, kv.read_put(op.request_put)
    if op.HasField(RANGE):
        range_ = op.request_range
        kv.check_range(range_)
        if range_.range_end:
            node.wide = True
        return RANGE, range_
    if op.HasField(DELETE):
        delete = op.request_delete_range
        kv.check_delete(delete)
        if delete.range_end:
            node.wide = True
        return DELETE, delete
    if op.HasField(TXN):
        nested = _read(op.request_txn, ops_max, node.size, node.size_max)
        node.size = nested.size
        node.wide = node.wide or nested.wide
        return TXN, nested
    raise errors.KEY_NOT_FOUND.error()


class _Touched:
    """The keys that a branch writes, as the duplicate rule sees them."""

    __slots__ = ("_ends", "_puts", "_starts")

    def __init__(self, puts: list[bytes]) -> None:
        """`puts`: in order."""
        self._puts = puts
        # Of deletes: ranges [start, end), merged, in order, none of them empty.
        self._starts: list[bytes] = []
        self._ends: list[bytes] = []

    def delete(self, start: bytes, end: bytes) -> None:
        """Takes in a range; cost O(log n), on average over many."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def refuse(self, news: _Touched) -> None:
        """Raises DUPLICATE_KEY if `news` has a put of a key that is put or deleted here.

        Cost: a search for each key or range of the one that has fewer.
        """
        fewer, more = news._puts, self._puts
        if len(fewer) > len(more):
            fewer, more = more, fewer
        for key in fewer:
            index = bisect_left(more, key)
            if index < len(more) and more[index] == key:
                raise errors.DUPLICATE_KEY.error()
        puts, starts, ends = news._puts, self._starts, self._ends
        if len(puts) <= len(starts):
            for key in puts:
                index = bisect_right(starts, key) - 1
                if index >= 0 and key < ends[index]:
                    raise errors.DUPLICATE_KEY.error()
        else:
            for start, end in zip(starts, ends, strict=True):
                index = bisect_left(puts, start)
                if index < len(puts) and puts[index] < end:
                    raise errors.DUPLICATE_KEY.error()

    def add(self, other: _Touched) -> None:
        """Takes in the keys of `other`, which is not used any more. Cost: the fewer puts and the fewer ranges."""
        if len(other._puts) > len(self._puts):
            self._puts, other._puts = other._puts, self._puts
        for key in other._puts:
            insort(self._puts, key)
        if len(other._starts) > len(self._starts):
            self._starts, other._starts = other._starts, self._starts
            self._ends, other._ends = other._ends, self._ends
        for start, end in zip(other._starts, other._ends, strict=True):
            self.delete(start, end)


def _check_overlaps(operations: list[Operation]) -> _Touched:
    """Cost: n log n for n operations, however they are nested."""
    puts: list[bytes] = []
    simple = True
    for kind, request in operations:
        if kind == PUT:
            puts.append(request[0])
        elif kind != RANGE:
            simple = False
    if len(puts) > 1:
        if len(set(puts)) < len(puts):
            raise errors.DUPLICATE_KEY.error()
        puts.sort()
    own = _Touched(puts)
    if simple:
        return own
    touched = _Touched([])
    for kind, request in operations:
        if kind == DELETE:
            start = request.key
            touched.delete(start, request.range_end or start + b"\0")
    for kind, node in operations:
        if kind == TXN:
            then, otherwise = _check_overlaps(node.success), _check_overlaps(node.failure)
            touched.refuse(then)
            touched.refuse(otherwise)
            touched.add(then)
            touched.add(otherwise)
    touched.refuse(own)
    touched.add(own)
    return touched


def has_put(node: Node) -> bool:
    """Whether any branch, taken or not, nested or not, has a put."""
    return any(
        kind == PUT or (kind == TXN and has_put(request))
        for operations in (node.success, node.failure)
        for kind, request in operations
    )


def may_write(node: Node) -> bool:
    """Whether any branch, taken or not, nested or not, has a put or a delete."""
    return any(
        kind in (PUT, DELETE) or (kind == TXN and may_write(request))
        for operations in (node.success, node.failure)
        for kind, request in operations
    )


# --- length -----------------------------------------------------------------------------------------------------


def is_long(store: Store, node: Node) -> bool:
    """Whether all that the txn may look at or delete, in any branch, is more than one step's work.

    Cost: the operations.

    Raises TXN_LOOKS_TOO_FAR for a txn that may write and that looks at more than TXN_WRITE_KEYS_MAX keys, or that may
    show more than REPLY_BYTES_MAX of keys and values.
    """
    size = node.size
    if not node.wide and size <= limits.READ_STEP_KEYS and store.version_bytes_max * size <= limits.READ_STEP_BYTES:
        return False
    reach = _Reach(store)
    reach.add(node)
    if may_write(node):
        if reach.keys > limits.TXN_WRITE_KEYS_MAX:
            raise errors.TXN_LOOKS_TOO_FAR.error()
        if reach.shown_bytes > limits.REPLY_BYTES_MAX:
            reach = _Reach(store, exact=True)
            reach.add(node)
            if reach.shown_bytes > limits.REPLY_BYTES_MAX:
                raise errors.TXN_LOOKS_TOO_FAR.error()
    if reach.deleted > limits.WRITE_STEP_KEYS:
        return True
    return reach.keys > limits.READ_STEP_KEYS or reach.shown_bytes > limits.READ_STEP_BYTES


class _Reach:
    """How much a txn may look at, all branches taken together: never too little."""

    __slots__ = ("_exact", "_store", "deleted", "keys", "shown_bytes")

    def __init__(self, store: Store, exact: bool = False) -> None:
        """`exact`: the bytes are counted, at a cost for each key, and not taken from the longest version."""
        self._store = store
        self._exact = exact
        self.keys = 0
        self.deleted = 0  # those of a key that several deletes cover count for each
        self.shown_bytes = 0

    def add(self, node: Node) -> None:
        store = self._store
        for compare in node.compares:
            range_end = compare.range_end
            self.keys += store.count(compare.key, open_end(range_end)) if range_end else 1
        for operations in (node.success, node.failure):
            for kind, request in operations:
                if kind == TXN:
                    self.add(request)
                elif kind == RANGE:
                    if request.range_end and request.revision <= 0 and request.count_only:
                        continue
                    self._add_range(request, kv.fetch_max(request, filtered=kv.is_filtered(request)), request.revision)
                elif kind == DELETE:
                    if request.range_end:
                        self.deleted += store.count(request.key, open_end(request.range_end))
                    if request.prev_kv:
                        self._add_range(request, None, 0)

    def _add_range(self, request: Any, shown_max: int | None, revision: int) -> None:
        store, start, range_end = self._store, request.key, request.range_end
        if not range_end:
            event = store.get(start)
            self.keys += 1
            self.shown_bytes += store.version_bytes_max if revision else 0 if event is None else event.size_bytes
            return
        end = open_end(range_end)
        count = store.key_count_ever(start, end) if revision > 0 else store.count(start, end)
        if shown_max is not None and revision <= 0:
            count = min(count, shown_max)
        self.keys += count
        if self._exact and revision <= 0:
            self.shown_bytes += sum([event.size_bytes for event in store.range(start, end, shown_max)])
        else:
            self.shown_bytes += count * store.version_bytes_max


# --- compares ---------------------------------------------------------------------------------------------------


def choose(store: Store, node: Node) -> None:
    """Evaluates the compares of the txn, and of the nested txns on the branches taken, against the state as it is."""
    node.succeeded, node.taken = True, node.success
    for compare in node.compares:
        if not _holds(store, compare):
            node.succeeded, node.taken = False, node.failure
            break
    for kind, request in node.taken:
        if kind == TXN:
            choose(store, request)


def _holds(store: Store, compare: rpc_pb2.Compare) -> bool:
    range_end = compare.range_end
    if range_end:
        events = store.range(compare.key, open_end(range_end))
        return holds_for_all(compare, events) if events else holds_for(compare, None)
    return holds_for(compare, store.get(compare.key))


def holds_for_all(compare: rpc_pb2.Compare, events: Sequence[Event]) -> bool:
    """Whether the compare holds for each of some versions, at least one. Cost: 0.1 us a version; for values more."""
    name = _NUMBER_TARGETS.get(compare.target)
    if name is None:
        return all(holds_for(compare, event) for event in events)
    numbers: set[int] = set(map(attrgetter(name), events))
    given: int = getattr(compare, name)
    result = compare.result
    if result == 0:
        return numbers == {given}
    if result == 1:
        return min(numbers) > given
    if result == 2:
        return max(numbers) < given
    return result != 3 or given not in numbers


def holds_for(compare: rpc_pb2.Compare, event: Event | None) -> bool:
    """Whether "stored OP given" holds. An absent key has 0 for each number; no compare of its value holds."""
    target = compare.target
    stored: Any
    given: Any
    if target == _VALUE_TARGET:
        if event is None:
            return False
        stored, given = event.value, compare.value
    else:
        name = _NUMBER_TARGETS.get(target)
        if name is None:
            stored = given = 0  # etcd's answer to a target that it does not know
        else:
            given = getattr(compare, name)
            stored = 0 if event is None else getattr(event, name)
    result = compare.result
    if result == 0:
        return bool(stored == given)
    if result == 1:
        return bool(stored > given)
    if result == 2:
        return bool(stored < given)
    if result == 3:
        return bool(stored != given)
    return True  # etcd's answer to a result that it does not know


# --- state ------------------------------------------------------------------------------------------------------


def verify(store: Store, lessor: Lessor, node: Node) -> None:
    """Raises the error of the first operation on the branches taken that would fail. Call after `choose`."""
    _verify(store, lessor, node, None)


def _verify(store: Store, lessor: Lessor, node: Node, emptied_from: bytes | None) -> bytes | None:
    """`emptied_from`: keys from here on are gone when the node begins: the duplicate rule does not see "\\0"."""
    for kind, request in node.taken:
        if kind == PUT:
            kv.verify_put(store, lessor, request)
            key, _, _, _, ignore_value, ignore_lease = request
            if emptied_from is not None and key >= emptied_from and (ignore_value or ignore_lease):
                # The key exists now, but not when the put runs. (etcd lets this pass, and then its process ends.)
                raise errors.KEY_NOT_FOUND.error()
        elif kind == RANGE:
            if kv.verify_range_in_txn(request, store.revision, store.compact_revision):
                node.old = True
        elif kind == DELETE:
            if request.range_end == OPEN_END:
                emptied_from = request.key if emptied_from is None else min(emptied_from, request.key)
        else:
            emptied_from = _verify(store, lessor, request, emptied_from)
            node.old = node.old or request.old
    return emptied_from


def is_deep(store: Store, node: Node) -> bool:
    """Whether the ranges on the branches taken look at so many versions newer than theirs that it takes many steps.

    Raises TXN_LOOKS_TOO_FAR for a txn that may write when there are more than TXN_WRITE_KEYS_MAX of them. Call after
    `verify`, and only for a node that is `old`. Cost: so many versions.
    """
    if may_write(node):
        if _versions_left(store, node, limits.TXN_WRITE_KEYS_MAX) < 0:
            raise errors.TXN_LOOKS_TOO_FAR.error()
        return False
    return _versions_left(store, node, limits.READ_STEP_KEYS) < 0


def _versions_left(store: Store, node: Node, left: int) -> int:
    """What is left of `left` when each newer version has taken one; -1 when there are more."""
    for kind, request in node.taken:
        if left < 0:
            break
        if kind == TXN:
            left = _versions_left(store, request, left)
        elif kind == RANGE and 0 < request.revision < store.revision:
            start, end = kv.span_of(request)
            left = store.newer_left(store.newest_of_range(start, end), request.revision, left)
    return left


def execute(store: Store, node: Node) -> bytes:
    """Runs the branches taken; returns the reply's fields after the header. Does not raise."""
    parts = [b"\x10\x01"] if node.succeeded else []
    for kind, request in node.taken:
        if kind == PUT:
            rest = kv.do_put(store, request)
            reply = nested(b"\x12", revision_header(store.revision_inside) + rest)
        elif kind == RANGE:
            reply = nested(b"\x0a", range_now(store, request))
        elif kind == DELETE:
            rest, shown = kv.delete_range(store, request) or (b"", ())
            reply = nested(b"\x1a", revision_header(store.revision_inside) + rest + kv.prev_kvs_field(shown))
        else:
            # A nested txn has a header, which is empty, as in etcd.
            reply = nested(b"\x22", b"\x0a\x00" + execute(store, request))
        parts.append(nested(b"\x1a", reply))
    return b"".join(parts)


def range_now(store: Store, request: rpc_pb2.RangeRequest) -> bytes:
    """The reply to a range inside the open write, however long it takes."""
    header = revision_header(store.revision_inside)
    reply = kv.range_reply(store, request, header)
    return reply if reply is not None else b"".join(captured_at_once(store, request, header))
