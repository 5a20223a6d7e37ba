# SPDX-License-Identifier: Apache-2.0
"""Checks what a history shows of leases: never-early, no-resurrection, atomic-end, as docs/guarantees.md states them.

Laws, each of which has a finding of its own when it is broken
- A lease that was seen ended is not seen alive by a call that is made later, and no key hangs on it any more.
- A lease that nobody can have revoked does not end before the acknowledgement of any grant or renewal plus its TTL.
  Kills and pauses in between only add time. (Seen from outside, an acknowledgement left some time after `silent_s`;
  no more is sure. A pause, or a disk that is slow, makes the difference to the beginning of the call.)
- A TTL that is told is no longer than the granted one, or than the 2 s that every lease has after a restart, and leaves
  no less than what was promised before the call.
- A lease is not seen alive long after its deadline (`LATE_S`), counted anew from the last kill or pause.
- TimeToLive lists exactly the keys that hang on the lease at the revision that it names.

Theory of operation. Each lease id is granted once. So the life of a lease is one interval, and each reply says
that an instant between call and return lies inside it (`alive`) or after it (`dead`).
"""

import bisect
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lessor.api.proto import rpc_pb2 as rpc
from tests.linear.history import ERROR, NOT_FOUND, OK, UNKNOWN, History, Op
from tests.linear.revisions import Order

LATE_S = 8.0  # the machine may be busy; see the tour's table for the exact bounds of an idle one
TTL_S_LEAST = 2  # every lease has so much after a restart


class Seen(NamedTuple):
    """An instant between these two at which a lease was alive, or had ended."""

    from_s: float
    to_s: float
    what: object


@dataclass
class Life:
    """All that was seen of a lease."""

    granted_to_s: float = math.inf
    ttl_s: int = 0
    alive: list[Seen] = field(default_factory=list)
    dead: list[Seen] = field(default_factory=list)
    renewed: list[Seen] = field(default_factory=list)  # acknowledged grants and renewals: promises, not before from_s
    touched: list[Op] = field(default_factory=list)  # grants and renewals of any outcome but refusals
    revokes: list[Op] = field(default_factory=list)  # of any outcome but refusals
    end_revision: int = 0


def check(history: History, order: Order, fastest: float = 1.0, *, late: bool = True) -> list[str]:
    """`fastest`: how many seconds the server's clock counts in one of the history's. `late`: to look for late ends."""
    lives: dict[int, Life] = defaultdict(Life)
    for op in history.ops:
        if isinstance(op.request, rpc.LeaseGrantRequest) and op.outcome in (OK, UNKNOWN):
            life = lives[op.request.ID]
            life.granted_to_s = op.end_s
            life.ttl_s = op.reply.TTL if op.outcome == OK else op.request.TTL
    findings = []
    for op in history.ops:
        _note(op, lives)
        findings += _keys_listed(op, order)
    findings += _note_ends(order, lives)
    for lease, life in sorted(lives.items()):
        for text in (*_one_life(life), *_never_early(life, fastest), *_promised(life, fastest)):
            findings.append(f"lease {lease}: {text}")
        if late and (seen := _late(life, history.disturbed)) is not None:
            findings.append(f"lease {lease}: alive long after its deadline: {seen.what}")
    return findings


# --- what the calls say ---------------------------------------------------------------------------------------------


def _note(op: Op, lives: dict[int, Life]) -> None:
    seen = Seen(op.called_s, op.end_s, op)
    match op.request:
        case rpc.LeaseGrantRequest() | rpc.LeaseKeepAliveRequest():
            life = lives[op.request.ID]
            if op.outcome == UNKNOWN:
                life.touched.append(op)
            elif op.outcome == OK and op.reply.TTL > 0:
                life.touched.append(op)
                life.renewed.append(Seen(op.silent_s, op.end_s, op))
                life.alive.append(seen)
            elif op.outcome == OK:
                life.dead.append(seen)
        case rpc.LeaseRevokeRequest():
            life = lives[op.request.ID]
            if op.outcome in (OK, UNKNOWN):
                life.revokes.append(op)
            if op.outcome == OK:
                life.alive.append(seen)
                life.dead.append(Seen(op.returned_s, op.returned_s, op))
            elif _not_found(op):
                life.dead.append(seen)
        case rpc.LeaseTimeToLiveRequest() if op.outcome == OK:
            (lives[op.request.ID].alive if op.reply.grantedTTL else lives[op.request.ID].dead).append(seen)
        case rpc.LeaseLeasesRequest() if op.outcome == OK:
            listed = {each.ID for each in op.reply.leases}
            for lease, life in lives.items():
                if lease in listed:
                    life.alive.append(seen)
                elif life.granted_to_s < op.called_s:
                    life.dead.append(seen)
        case rpc.PutRequest() | rpc.TxnRequest():
            for lease in _leases_of(op):
                if op.outcome == OK:
                    lives[lease].alive.append(seen)
                elif _not_found(op):
                    lives[lease].dead.append(seen)


def _not_found(op: Op) -> bool:
    return op.outcome == ERROR and op.code == NOT_FOUND


def _leases_of(op: Op) -> set[int]:
    """The leases on which a call that was not answered otherwise hangs keys: those of the branch that was taken."""
    if isinstance(op.request, rpc.PutRequest):
        return {op.request.lease} - {0}
    branches: list[Any] = [op.request.success, op.request.failure]
    if op.outcome == OK:
        branches = branches[:1] if op.reply.succeeded else branches[1:]
    leases = {one.request_put.lease for branch in branches for one in branch} - {0}
    return leases if op.outcome == OK or len(leases) == 1 else set()


def _note_ends(order: Order, lives: dict[int, Life]) -> list[str]:
    """A revision that ended a lease: whoever heard of it later knows that the lease is dead, and no key hangs on it."""
    points = sorted(order.points, key=lambda point: point.revision)
    earliest, heard = math.inf, []
    for point in reversed(points):
        earliest = min(earliest, point.end_s)
        heard.append((earliest, point.what))
    heard.reverse()
    revisions = [point.revision for point in points]
    for revision, cause in order.causes.items():
        lease = cause.lease if cause.op is None else getattr(cause.op.request, "ID", 0)
        if not lease:
            continue
        life = lives[lease]
        life.end_revision = revision
        at = bisect.bisect_left(revisions, revision)
        if at < len(heard):
            known_s = heard[at][0]
            life.dead.append(Seen(known_s, known_s, f"its keys were deleted by revision {revision}"))
    findings = []
    for revision, events in order.timeline.events.items():
        for event in events:
            end = lives[event.kv.lease].end_revision if event.kv.lease else 0
            if 0 < end < revision:
                findings.append(f"revision {revision} hangs a key on lease {event.kv.lease}, ended by {end}")
    return findings


# --- what has to hold -----------------------------------------------------------------------------------------------


def _one_life(life: Life) -> list[str]:
    """No reply shows it alive once another has shown it dead."""
    after_grant = [seen for seen in life.dead if seen.from_s >= life.granted_to_s]
    first_dead = min(after_grant, key=lambda seen: seen.to_s, default=None)
    last_alive = max(life.alive, key=lambda seen: seen.from_s, default=None)
    if first_dead is not None and last_alive is not None and first_dead.to_s < last_alive.from_s:
        return [f"lives again: {last_alive.what}, after {first_dead.what}"]
    return []


def _never_early(life: Life, fastest: float) -> list[str]:
    after_grant = [seen for seen in life.dead if seen.from_s >= life.granted_to_s]
    if not after_grant or not life.renewed:
        return []
    end = min(after_grant, key=lambda seen: seen.to_s)
    # A revoke of unknown outcome did nothing if the lease was alive when the server that it was sent to was dead.
    alive_s = max(seen.from_s for seen in life.alive)
    if any(op.called_s <= end.to_s and op.end_s >= alive_s for op in life.revokes):
        return []
    promise = max(life.renewed, key=lambda seen: seen.from_s)
    early_s = promise.from_s + life.ttl_s / fastest - end.to_s
    return [f"ended {early_s:.3f} s early: {end.what}, promised by {promise.what}"] if early_s > 0 else []


def _promised(life: Life, fastest: float) -> list[str]:
    findings = []
    for seen in life.alive:
        op = seen.what
        if isinstance(op, Op) and isinstance(op.request, rpc.LeaseTimeToLiveRequest):
            if op.reply.grantedTTL < life.ttl_s or max(op.reply.grantedTTL, TTL_S_LEAST) < op.reply.TTL:
                findings.append(f"more than was granted: {op}")
            before = [promise.from_s for promise in life.renewed if promise.to_s < op.called_s]
            left_s = life.ttl_s - (op.returned_s - max(before, default=-math.inf)) * fastest
            if left_s - 1 >= op.reply.TTL:  # whole seconds are told, cut towards zero
                findings.append(f"less than was promised: {op}")
    return findings


def _late(life: Life, disturbed: list[tuple[float, float]]) -> Seen | None:
    last = max(life.alive, key=lambda seen: seen.from_s, default=None)
    if last is None or not life.touched:
        return None
    touched_s = max(op.end_s for op in life.touched)
    again_s = max((to_s for _, to_s in disturbed if to_s <= last.from_s), default=0.0)
    ends_s = max(touched_s, again_s) + max(life.ttl_s, TTL_S_LEAST)
    return last if last.from_s > ends_s + LATE_S else None


def _keys_listed(op: Op, order: Order) -> list[str]:
    if not (isinstance(op.request, rpc.LeaseTimeToLiveRequest) and op.request.keys and op.outcome == OK):
        return []
    revision = op.reply.header.revision
    if not op.reply.grantedTTL or revision > order.timeline.newest:
        return []
    if sorted(op.reply.keys) != order.timeline.attached(op.request.ID, revision):
        return [f"lists other keys than hang on the lease: {op}"]
    return []
