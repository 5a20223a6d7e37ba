# SPDX-License-Identifier: Apache-2.0
"""Linearizability by search: is there an order of the calls in which each answer is right? Believes in no revision.

Laws
- A group of keys is searched on its own; each call touches the keys of one group. The state of a group is its keys and
  values, nothing else: replies are looked at without revisions and versions.
- An order is right when each call stands between its beginning and its end, and each reply is the one that the calls
  before it make. A call with an unknown outcome stands there too, with or without its effect.
- The search is complete: where it finds no order, there is none.

Theory of operation. Wing and Gong's search: take any call that begins before the first end of those not yet taken, go
on with the state that it leaves, and step back where no call fits. A configuration (calls taken, state) that has failed
is not tried again. An unknown call is made definite by a state that is a *set* of states: it adds those with its effect
to those without. A definite call keeps the states in which its answer is right.

Does not do: leases, whose keys go without a call, and reads of old revisions.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lessor.api.proto import rpc_pb2 as rpc
from tests.linear.history import OK, UNKNOWN, History, Op

State = tuple[tuple[bytes, bytes], ...]  # keys and values, in the order of keys
States = frozenset[State]
EMPTY: States = frozenset({()})


class Call(NamedTuple):
    """What the search knows of a call: `step` gives the states in which it can have ended; none where it cannot."""

    called_s: float
    end_s: float
    step: Callable[[States], States]
    what: object


class _Entry:
    """The beginning or the end of a call, in a list by time."""

    __slots__ = ("call", "end", "following", "number", "previous")

    def __init__(self, number: int, call: Call) -> None:
        self.number = number
        self.call = call
        self.end: _Entry | None = None  # of a beginning
        self.previous: _Entry | None = None
        self.following: _Entry | None = None


def search(calls: list[Call], states: States = EMPTY) -> Call | None:
    """None when the calls have an order; otherwise a call whose end could not be passed.

    Cost: about n times the calls that run at one time, where there is an order; exponential in the latter at worst.
    """
    head = _listed(calls)
    taken, tried = 0, set[tuple[int, States]]()
    path: list[tuple[_Entry, States]] = []
    entry, furthest, stuck = head.following, -1, None
    while entry is not None:
        if entry.end is None:
            if len(path) > furthest:
                furthest, stuck = len(path), entry.call
            if not path:
                return stuck
            entry, states = path.pop()
            taken ^= 1 << entry.number
            _put_back(entry)
            entry = entry.following
            continue
        after = entry.call.step(states)
        configuration = (taken | 1 << entry.number, after)
        if after and configuration not in tried:
            tried.add(configuration)
            path.append((entry, states))
            taken, states = configuration
            _take_out(entry)
            entry = head.following
        else:
            entry = entry.following
    return None


def _listed(calls: list[Call]) -> _Entry:
    moments: list[tuple[float, int, _Entry]] = []
    for number, call in enumerate(calls):
        begin, end = _Entry(number, call), _Entry(number, call)
        begin.end = end
        # At one instant beginnings come first: the calls overlap.
        moments += [(call.called_s, 0, begin), (call.end_s, 1, end)]
    moments.sort(key=lambda each: each[:2])
    head = last = _Entry(-1, Call(-math.inf, -math.inf, lambda states: states, "head"))
    for _, _, entry in moments:
        last.following, entry.previous = entry, last
        last = entry
    return head


def _take_out(entry: _Entry) -> None:
    assert entry.end is not None
    for one in (entry, entry.end):
        assert one.previous is not None
        one.previous.following = one.following
        if one.following is not None:
            one.following.previous = one.previous


def _put_back(entry: _Entry) -> None:
    assert entry.end is not None
    for one in (entry.end, entry):
        assert one.previous is not None
        one.previous.following = one
        if one.following is not None:
            one.following.previous = one


# --- what a call does to keys and values ---------------------------------------------------------------------------


def run(request: Any, state: State) -> tuple[State, Any]:
    """Runs a put, range, delete or txn on the state. Returns the state after it, and what its reply shows of values."""
    if isinstance(request, rpc.TxnRequest):
        return _run_txn(request, state)
    keys = dict(state)
    if isinstance(request, rpc.PutRequest):
        before = _shown([(request.key, keys[request.key])]) if request.prev_kv and request.key in keys else ()
        keys[request.key] = request.value
        return tuple(sorted(keys.items())), before
    found = [(key, value) for key, value in state if _covers(request, key)]
    if isinstance(request, rpc.DeleteRangeRequest):
        left = tuple(pair for pair in state if pair not in found)
        return left, (len(found), _shown(found) if request.prev_kv else ())
    return state, (len(found), _shown(found[: request.limit or None]))


def _run_txn(request: rpc.TxnRequest, state: State) -> tuple[State, Any]:
    keys = dict(state)
    holds = all(_holds(compare, keys) for compare in request.compare)
    answers = []
    for op in request.success if holds else request.failure:
        state, answer = run(getattr(op, op.WhichOneof("request") or ""), state)
        answers.append(answer)
    return state, (holds, tuple(answers))


def _holds(compare: rpc.Compare, keys: dict[bytes, bytes]) -> bool:
    if compare.target == rpc.Compare.VALUE:
        return keys.get(compare.key) == compare.value and compare.key in keys
    assert (compare.target, compare.version, compare.result) == (rpc.Compare.VERSION, 0, rpc.Compare.EQUAL)
    return compare.key not in keys


def answered(reply: Any) -> Any:
    """What a reply shows of values, in the form of `run`."""
    if isinstance(reply, rpc.TxnResponse):
        responses = (getattr(one, one.WhichOneof("response") or "") for one in reply.responses)
        return reply.succeeded, tuple(answered(one) for one in responses)
    if isinstance(reply, rpc.PutResponse):
        return _shown([(reply.prev_kv.key, reply.prev_kv.value)]) if reply.HasField("prev_kv") else ()
    if isinstance(reply, rpc.DeleteRangeResponse):
        return reply.deleted, _shown((kv.key, kv.value) for kv in reply.prev_kvs)
    return reply.count, _shown((kv.key, kv.value) for kv in reply.kvs)


def _shown(pairs: Iterable[tuple[bytes, bytes]]) -> State:
    return tuple(pairs)


def _covers(request: Any, key: bytes) -> bool:
    return bool(request.key <= key < request.range_end if request.range_end else key == request.key)


# --- a whole history -----------------------------------------------------------------------------------------------


def key_of(request: Any) -> bytes:
    """A key that the call touches; b"" for calls that are not about keys, or read an old revision."""
    if isinstance(request, rpc.TxnRequest):
        if request.compare:
            return request.compare[0].key
        (first, *_) = request.success
        return key_of(getattr(first, first.WhichOneof("request") or ""))
    if isinstance(request, rpc.RangeRequest) and request.revision:
        return b""
    return request.key if isinstance(request, rpc.PutRequest | rpc.RangeRequest | rpc.DeleteRangeRequest) else b""


def call_of(op: Op) -> Call:
    shown = answered(op.reply) if op.outcome == OK else None

    def step(states: States) -> States:
        ends = [run(op.request, state) for state in states]
        if op.outcome == UNKNOWN:
            return states | {after for after, _ in ends}
        return frozenset(after for after, answer in ends if answer == shown)

    return Call(op.called_s, op.end_s, step, op)


def check(history: History, group_of: Callable[[bytes], bytes]) -> list[str]:
    """`group_of(key)`: the group that a key belongs to, b"" for keys that are not to be looked at."""
    groups: dict[bytes, list[Call]] = defaultdict(list)
    for op in history.ops:
        if op.outcome in (OK, UNKNOWN) and (group := group_of(key_of(op.request))):
            groups[group].append(call_of(op))
    findings = []
    for group, calls in sorted(groups.items()):
        if (stuck := search(calls)) is not None:
            findings.append(f"the {len(calls)} calls on {group!r} have no order: stuck at {stuck.what}")
    return findings
