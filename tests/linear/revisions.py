# SPDX-License-Identifier: Apache-2.0
"""Checks the calls of a history against the one order that the server's revisions claim.

Laws, each of which has a finding of its own when it is broken
- The revisions have no gap, and the keys at the end are what the events make.
- Each revision has one cause: an acknowledged write that names it, or a write whose outcome is unknown, or the end of
  one lease. Its events are exactly those that the naive model (tests/model.py) predicts for that cause.
- Each write causes one revision at most. A call that was answered with an error, or that no server saw, causes none.
- Each reply is the one that the model gives at the revision that the reply names.
- Real time: a call sees every revision that anybody had heard of before it was made, from a reply or from a watch, and
  a write that was made afterwards has a higher one. A write with an unknown outcome has had its effect when its server
  was dead.

Theory of operation. The events make one key space per revision. A reply that names revision R is either that of the
write R, which the model repeats on the key space R - 1, or that of a call that changed nothing, repeated on R. What is
left of the revisions is matched with what is left of the possible causes: so two unknown deletes explain two revisions,
but never three.

Does not do: leases (leases.py), watches (watches.py), or a check that does not believe in revisions (registers.py).
"""

import bisect
import heapq
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event
from lessor.base.errors import EtcdError
from tests.linear.history import OK, UNKNOWN, History, Op
from tests.model import KeySpace, Model, ModelLease

WRITES = (rpc.PutRequest, rpc.DeleteRangeRequest, rpc.TxnRequest, rpc.LeaseRevokeRequest)
KV = (rpc.RangeRequest, *WRITES)


class _AnyLease(dict[int, ModelLease]):
    """Every lease lives: whether one did is the question of leases.py."""

    def __contains__(self, lease_id: object) -> bool:
        return True

    def __delitem__(self, lease_id: int) -> None: ...


class Cause(NamedTuple):
    """Of a revision: the call that made it, or the lease that ended without one."""

    op: Op | None
    lease: int = 0


class Point(NamedTuple):
    """Somebody knew of a revision at `end_s`. A write made it after `called_s`."""

    called_s: float
    end_s: float
    revision: int
    writes: bool
    what: object


@dataclass
class Order:
    """The result: findings, the cause of each revision, and who knew of which revision when."""

    findings: list[str]
    causes: dict[int, Cause]
    points: list[Point]
    timeline: "Timeline"


class Timeline:
    """Events and key space of each revision."""

    def __init__(self, events: list[Event]) -> None:
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.spaces: list[KeySpace] = [{}, {}]
        self.findings: list[str] = []
        for event in events:
            self.events[event.kv.mod_revision].append(event)
        revisions = list(self.events)
        if revisions != list(range(2, len(revisions) + 2)):
            odd = next((got, due) for due, got in enumerate(revisions, 2) if got != due)
            self.findings.append(f"the full watch has revision {odd[0]} where {odd[1]} is due")
            self.events = defaultdict(list, {r: self.events[r] for r in range(2, odd[1])})
        for revision in self.events:
            space = dict(self.spaces[-1])
            for event in self.events[revision]:
                if event.type == Event.PUT:
                    space[event.kv.key] = event.kv
                else:
                    space.pop(event.kv.key, None)
            self.spaces.append(space)
        self._model = Model()
        self._model.leases = _AnyLease()

    @property
    def newest(self) -> int:
        return len(self.spaces) - 1

    def attached(self, lease: int, revision: int) -> list[bytes]:
        return sorted(kv.key for kv in self.spaces[revision].values() if kv.lease == lease)

    def predict(self, request: Any, revision: int) -> tuple[Any, list[Event]] | EtcdError:
        """The model's reply to a KV request or a revoke on the key space of a revision, and the events it makes."""
        model = self._model
        model.revision = revision
        model.snapshots = {revision: self.spaces[revision]}
        old = getattr(request, "revision", 0)
        if 0 < old < revision:
            model.snapshots[old] = self.spaces[old]
        model.history = {}
        try:
            reply = model.apply(request, 0.0)
        except EtcdError as error:
            return error
        return reply, model.history.get(revision + 1, [])


def check(history: History, *, watches_lead: bool = False, watches_lag: bool = False) -> Order:
    """`watches_lead`: a watch may know of a revision before calls do, so that it obliges no call. `watches_lag`: a
    watch may begin at an older revision than others have seen before, at a server that follows.
    """
    timeline = Timeline(history.events)
    order = Order(timeline.findings, {}, [], timeline)
    if {kv.key: kv for kv in history.keys} != timeline.spaces[-1]:
        order.findings.append("the keys at the end are not what the events make")
    for op in history.ops:
        if op.outcome == OK:
            _place(op, order)
    for session in history.sessions:
        called_s = math.inf if watches_lag else session.called_s
        order.points.append(Point(called_s, session.created_s, session.created_revision, False, session))
        for at_s, response in session.responses:
            heard = response if isinstance(response, int) else max(event.kv.mod_revision for event in response)
            order.points.append(Point(math.inf, at_s, heard, False, session))
    _explain_the_rest(history, order)
    order.findings += real_time(
        [point for point in order.points if point.called_s < math.inf] if watches_lead else order.points
    )
    return order


def _place(op: Op, order: Order) -> None:
    """Finds the place of an acknowledged call among the revisions."""
    timeline, revision = order.timeline, op.reply.header.revision
    if not 1 <= revision <= timeline.newest:
        order.findings.append(f"revision {revision} is not in the history: {op}")
        return
    writes = False
    if isinstance(op.request, KV):
        writes = isinstance(op.request, WRITES) and revision > 1 and _made(op, revision, timeline)
        if writes and order.causes.setdefault(revision, Cause(op)).op is not op:
            order.findings.append(f"revision {revision} has two causes: {op} and {order.causes[revision].op}")
        if not writes and not _changed_nothing(op, revision, timeline):
            order.findings.append(f"the model answers otherwise at revision {revision}: {op}")
    order.points.append(Point(op.called_s, op.returned_s, revision, writes, op))


def _made(op: Op, revision: int, timeline: Timeline) -> bool:
    predicted = timeline.predict(op.request, revision - 1)
    if isinstance(predicted, EtcdError):
        return False
    reply, events = predicted
    return bool(events) and events == timeline.events[revision] and _same(reply, op.reply)


def _changed_nothing(op: Op, revision: int, timeline: Timeline) -> bool:
    predicted = timeline.predict(op.request, revision)
    if isinstance(predicted, EtcdError):
        return False
    reply, events = predicted
    return not events and _same(reply, op.reply)


def _same(expected: Any, reply: Any) -> bool:
    """Whether two replies are equal but for the names of cluster, member and term."""
    plain = type(reply)()
    plain.CopyFrom(reply)
    plain.header.CopyFrom(expected.header)
    plain.header.revision = reply.header.revision
    return bool(plain == expected)


class Windows:
    """The revisions that a call can have made, from those that were known before it and those seen by later calls."""

    def __init__(self, points: list[Point]) -> None:
        by_end = sorted((point.end_s, point.revision) for point in points)
        self._ends = [end_s for end_s, _ in by_end]
        self._known = list(accumulate((revision for _, revision in by_end), max))
        calls = (point for point in points if point.called_s < math.inf)
        by_call = sorted(((point.called_s, point.revision - point.writes) for point in calls), reverse=True)
        self._calls = [-called_s for called_s, _ in by_call]
        self._seen = list(accumulate((revision for _, revision in by_call), min))

    def of(self, op: Op) -> range:
        before = bisect.bisect_left(self._ends, op.called_s)
        after = bisect.bisect_left(self._calls, -op.end_s)
        first = self._known[before - 1] + 1 if before else 1
        return range(first, self._seen[after - 1] + 1 if after else sys.maxsize)


def _explain_the_rest(history: History, order: Order) -> None:
    """Matches the revisions that nobody was acknowledged with unknown calls and with ends of leases."""
    timeline, windows = order.timeline, Windows(order.points)
    # In the order in which they end, so that of two alike the earlier one gets the earlier revision.
    unknown = [
        (op, windows.of(op))
        for op in sorted(history.ops, key=lambda op: op.end_s)
        if op.outcome == UNKNOWN and isinstance(op.request, WRITES)
    ]
    possible: dict[int, list[Cause]] = {}
    for revision in timeline.events:
        if revision not in order.causes:
            in_time = [op for op, window in unknown if revision in window]
            possible[revision] = _possible(revision, in_time, timeline)
    taken: dict[object, int] = {}  # cause -> revision
    ended = {cause.op.request.ID for cause in order.causes.values() if cause.op and _revokes(cause.op)}
    for revision in possible:
        if not _match(revision, possible, taken, ended, set()):
            shown = ", ".join(f"{Event.EventType.Name(e.type)} {e.kv.key!r}" for e in timeline.events[revision])
            order.findings.append(f"revision {revision} ({shown}) has no cause that is left")
    causes = {_identity(cause): cause for several in possible.values() for cause in several}
    for identity, revision in taken.items():
        order.causes[revision] = cause = causes[identity]
        if cause.op is not None:
            order.points.append(Point(cause.op.called_s, cause.op.end_s, revision, True, cause.op))


def _revokes(op: Op) -> bool:
    return isinstance(op.request, rpc.LeaseRevokeRequest)


def _possible(revision: int, unknown: list[Op], timeline: Timeline) -> list[Cause]:
    events = timeline.events[revision]
    causes = []
    for op in unknown:
        predicted = timeline.predict(op.request, revision - 1)
        if not isinstance(predicted, EtcdError) and predicted[1] == events:
            causes.append(Cause(op))
    first = timeline.spaces[revision - 1].get(events[0].kv.key)
    if first is not None and first.lease and events[0].type == Event.DELETE:
        ended = timeline.predict(rpc.LeaseRevokeRequest(ID=first.lease), revision - 1)
        if not isinstance(ended, EtcdError) and ended[1] == events:
            causes.append(Cause(None, first.lease))
    return causes


def _identity(cause: Cause) -> object:
    return ("op", cause.op.number) if cause.op is not None else ("lease", cause.lease)


def _match(
    revision: int, possible: dict[int, list[Cause]], taken: dict[object, int], ended: set[int], tried: set[object]
) -> bool:
    """Gives the revision a cause that is free, or that its present revision can do without."""
    for cause in possible[revision]:
        identity = _identity(cause)
        if identity in tried or (cause.op is None and cause.lease in ended):
            continue
        tried.add(identity)
        if identity not in taken or _match(taken[identity], possible, taken, ended, tried):
            taken[identity] = revision
            return True
    return False


def real_time(points: list[Point]) -> list[str]:
    """What was called after a revision was known has to see it, and to write above it."""
    findings = []
    # A heap: end, revision, number. What a watch was sent is there from the beginning, a call once it was made.
    known = [(point.end_s, point.revision, number) for number, point in enumerate(points) if point.called_s == math.inf]
    heapq.heapify(known)
    floor, because = 0, -1
    for number, point in sorted(enumerate(points), key=lambda each: each[1].called_s):
        if point.called_s == math.inf:
            break
        while known and known[0][0] < point.called_s:
            _, revision, which = heapq.heappop(known)
            if revision > floor:
                floor, because = revision, which
        if point.revision < floor + point.writes:
            findings.append(
                f"revision {point.revision} although {floor} was known before: "
                f"{point.what}, after {points[because].what}"
            )
        heapq.heappush(known, (point.end_s, point.revision, number))
    return findings
