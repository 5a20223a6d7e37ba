# SPDX-License-Identifier: Apache-2.0
"""Locks and elections: the keys below a prefix in the order of their creation, and the calls that wait for their turn.

Laws
- A key is first when no key below its prefix was created before it. A call that waits on a key is answered in the step
  in which the key becomes first or is deleted, never earlier, and costs nothing before that.
- A change costs O(1) per line that it concerns, however many calls wait. The first call that waits or observes opens
  the line, which costs O(keys below the prefix).
- When a waiting call goes away its key is deleted, in a write of its own, unless another call waits on that key too.
- Answers pass the gate like all others: they leave with the batch that made them true.
- Calls that wait when another server is to lead wait on here: the log brings the changes. Those that another server has
  passed on begin anew there, where their keys have kept their places.

Theory of operation. A `WaitingLine` watches its prefix. It sees a change in the step of the change itself, not when the
change is durable, so its list of keys is always that of the memory. Keys are created at ever greater revisions, so a
list to which new keys are appended is in order. A linked list, which `OrderedDict` has inside, gives its first key and
drops any key in O(1). Only keys that one write creates have the same revision. Such keys do not wait for each other,
and the smallest of them leads.

Worked example, lock "job", create revisions in brackets: job/a [5], job/b [6], job/c [7]; calls wait on job/b and on
job/c. The lease of b ends: job/b goes, and its call is answered that the session has expired. job/a is deleted: job/c
is first, and its call has the lock. No call waits or observes any more: the line is closed.

Does not do: writing the keys. locks.py and elections.py do, by the same requests that clients send.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.base.key_range import prefix_end
from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable
from lessor.server.loop.call import UnaryCall, Waiting
from lessor.server.loop.turn import Turn
from lessor.state.encode import nested
from lessor.state.machine import StateMachine
from lessor.state.mvcc import Event
from lessor.state.watch_changes import Changes
from lessor.state.watcher import Watcher

SESSION_TTL_S = 60  # of the lease that a call without one gets; it is not renewed


class Observer(Answerable, Protocol):
    """Is shown the first key of a line."""

    def show(self, leader: Event, response: bytes) -> None:
        """`leader`: the version of the key that is first now. `response`: the encoded response with it."""
        ...


class Claim:
    """A call that waits on its key (call.Waiting). `finish` answers the call; `on_gone` takes it out of the line."""

    open_ended = True

    __slots__ = (
        "_call",
        "_kept_bytes",
        "_lines",
        "_lost",
        "_won",
        "create_revision",
        "held",
        "key",
        "prefix",
    )

    def __init__(
        self,
        lines: WaitingLines,
        call: UnaryCall,
        prefix: bytes,
        key: bytes,
        create_revision: int,
        won: Callable[[], bytes],
        lost: errors.ErrorText,
    ) -> None:
        self._lines = lines
        self._call = call
        self.prefix = prefix
        self.key = key
        self.create_revision = create_revision
        self._won = won  # makes the reply
        self._lost = lost
        self.held = call.held
        self._kept_bytes = 0

    def count(self) -> None:
        """Counts the keys that it keeps. Raises EtcdError if they are too many; then it has to be given up."""
        size_bytes = len(self.prefix) + len(self.key)
        self._call.core.kept_keys.add(self, size_bytes)
        self._kept_bytes = size_bytes

    def uncount(self) -> None:
        """The call has been answered or has gone. Cheap to repeat."""
        size_bytes, self._kept_bytes = self._kept_bytes, 0
        if size_bytes:
            self._call.core.kept_keys.remove(self, size_bytes)

    def lose_key(self, error: EtcdError) -> None:
        """The keys of all waits take too much memory: see loop/kept_keys.py."""
        self.uncount()
        self._call.end_now(error)  # `on_gone` follows

    def settle(self) -> None:
        """The key is first, or deleted. Its present state decides: if leases end together, the last change counts."""
        self.uncount()
        self._call.answer(self._outcome)

    def _outcome(self) -> bytes:
        event = self._lines.machine.store.get(self.key)
        if event is None or event.create_revision != self.create_revision:
            raise self._lost.error()
        return self._won()

    @property
    def forwarded(self) -> bool:
        return self._call.passed_as is not None

    def delete_elsewhere(self, request: Message) -> bool:
        """Has the server that leads carry out the request, if another one does."""
        elsewhere = self._call.core.elsewhere
        if elsewhere is not None:
            elsewhere.leave_behind(self._call, request)
        return elsewhere is not None

    def finish(self, outcome: bytes | EtcdError) -> None:
        self.uncount()
        self._call.finish(outcome)

    def on_gone(self) -> None:
        self.uncount()
        self._lines.give_up(self)


class WaitingLine:
    """The keys below one prefix, oldest first, with the calls that wait on them and those that observe the first."""

    __slots__ = ("_claims", "_keys", "_lines", "_shown", "observers", "prefix", "watcher")

    def __init__(self, lines: WaitingLines, prefix: bytes) -> None:
        self._lines = lines
        self.prefix = prefix
        oldest_first = sorted(lines.keys_below(prefix), key=_create_revision)
        self._keys = OrderedDict((event.key, event.create_revision) for event in oldest_first)
        self._claims: dict[bytes, list[Claim]] = {}
        self.observers: dict[Observer, None] = {}
        self._shown: Event | None = self.leader()  # the leader that observers were shown last
        self.watcher = Watcher(0, prefix, prefix_end(prefix), at_once=True, owner=self)

    @property
    def in_use(self) -> bool:
        return bool(self._claims or self.observers)

    def has_older(self, create_revision: int) -> bool:
        """Whether a key that was created before this revision is still there."""
        return bool(self._keys) and next(iter(self._keys.values())) < create_revision

    def _first(self) -> list[bytes]:
        """The keys before which no other was created: one key, or more if one write created them."""
        first: list[bytes] = []
        revision = -1
        for key, created in self._keys.items():
            if first and created != revision:
                break
            revision = created
            first.append(key)
        return first

    def leader(self) -> Event | None:
        """The newest version of the first key. None without keys, or if a change still to be taken in deletes it."""
        first = self._first()
        return self._lines.machine.store.get(min(first)) if first else None

    def add(self, claim: Claim) -> None:
        self._claims.setdefault(claim.key, []).append(claim)

    def remove(self, claim: Claim) -> bool:
        """Forgets a claim. Returns whether no other call waits on its key."""
        claims = self._claims[claim.key]
        claims.remove(claim)
        if claims:
            return False
        del self._claims[claim.key]
        return True

    def on_changes(self, _watchers: list[Watcher], changes: Changes) -> None:
        """Takes in the changes of one revision, and answers the calls whose wait they end."""
        keys = self._keys
        settled: list[Claim] = []
        for event, _ in changes.events:
            if event.value is None:
                keys.pop(event.key, None)
                settled += self._claims.pop(event.key, ())
            elif event.version == 1:
                keys[event.key] = event.create_revision
        if self._claims:
            for key in self._first():
                settled += self._claims.pop(key, ())
        for claim in settled:
            claim.settle()
        if self.observers:
            self._show_leader()
        self._lines.close_unused(self)

    def end_now(self, error: EtcdError) -> None:
        """A bug in keeping the line: ends all calls that wait or observe here."""
        self.dismiss(error)
        for observer in list(self.observers):
            observer.end_now(error)

    def dismiss(self, error: EtcdError) -> None:
        """Ends all waiting calls with the error."""
        claims = [claim for claims in self._claims.values() for claim in claims]
        self._claims.clear()
        for claim in claims:
            claim.finish(error)
        self._lines.close_unused(self)

    def dismiss_forwarded(self, error: EtcdError) -> None:
        """Ends the waiting calls that another server has passed on."""
        for claim in [claim for claims in self._claims.values() for claim in claims if claim.forwarded]:
            self.remove(claim)
            claim.finish(error)
        self._lines.close_unused(self)

    def _show_leader(self) -> None:
        leader = self.leader()
        if leader is not self._shown:
            self._shown = leader
            if leader is not None:
                response = self._lines.leader_response(leader)
                for observer in list(self.observers):
                    try:
                        observer.show(leader, response)
                    except Exception as error:  # the call that made this change must not fail for it
                        bugs.end(observer, error)

    def observe(self, observer: Observer) -> None:
        """Shows the present leader, and from now on each new one."""
        if not self.observers:
            self._shown = self.leader()
        self.observers[observer] = None
        if self._shown is not None:
            observer.show(self._shown, self._lines.leader_response(self._shown))


class WaitingLines:
    """All lines of a server. A line in which no call waits or observes is not kept."""

    def __init__(self, machine: StateMachine, turn: Turn, max_request_bytes: int) -> None:
        self.machine = machine
        self._turn = turn
        self._max_request_bytes = max_request_bytes
        self._lines: dict[bytes, WaitingLine] = {}
        self._stopped: EtcdError | None = None

    def __len__(self) -> int:
        return len(self._lines)

    # --- requests, as an internal client would send them ---

    def apply(self, request: Message) -> Any:
        """Carries out a request, and answers waiting calls that it concerns. Errors get code UNKNOWN, as in etcd."""
        turn = self._turn
        try:
            if request.ByteSize() > self._max_request_bytes:
                raise errors.REQUEST_TOO_LARGE.error()
            reply = self.machine.apply(request, turn.now_s())
        except EtcdError as error:
            raise EtcdError(Code.UNKNOWN, error.message) from None
        turn.hold_publications()
        turn.schedule()
        return reply

    def session_lease(self, lease_id: int) -> int:
        """The lease to attach a key to: the caller's, or a new one for a caller without a lease."""
        if lease_id:
            return lease_id
        return int(self.apply(rpc_pb2.LeaseGrantRequest(TTL=SESSION_TTL_S)).ID)

    def delete_if_created_at(self, key: bytes, create_revision: int) -> Any:
        """Deletes a key unless it is a later one of the same name. Returns the reply of the txn."""
        return self.apply(_delete_if_created_at(key, create_revision))

    # --- waiting ---

    def contend(
        self,
        call: UnaryCall,
        prefix: bytes,
        key: bytes,
        create_revision: int,
        at_once: bytes,
        won: Callable[[], bytes],
        lost: errors.ErrorText,
    ) -> Waiting | None:
        """Answers with `at_once` if the key is first. Otherwise the call waits, and is answered with `won()` or `lost`.

        Raises SERVER_STOPPED if the call would have to wait while the server stops. The key keeps its place then.
        """
        if not self._has_older(prefix, create_revision):
            call.finish(at_once)
            return None
        if self._stopped is not None:
            raise errors.SERVER_STOPPED.error()
        claim = Claim(self, call, prefix, key, create_revision, won, lost)
        self._open(prefix).add(claim)
        try:
            claim.count()
        except EtcdError:
            self.give_up(claim)
            raise
        return claim

    def _has_older(self, prefix: bytes, create_revision: int) -> bool:
        line = self._lines.get(prefix)
        if line is not None:
            return line.has_older(create_revision)
        return any(event.create_revision < create_revision for event in self.keys_below(prefix))

    def give_up(self, claim: Claim) -> None:
        """The call has ended without an answer: it leaves its line, and its key is deleted."""
        line = self._lines[claim.prefix]
        last = line.remove(claim)
        self.close_unused(line)
        if last and not claim.delete_elsewhere(_delete_if_created_at(claim.key, claim.create_revision)):
            delete = partial(self.delete_if_created_at, claim.key, claim.create_revision)
            self._turn.long_writes.after(delete)

    def stop(self, error: errors.ErrorText) -> None:
        """Ends all waiting calls. Their keys stay: a client that comes back with its lease in time keeps its place."""
        self._stopped = error.error()
        for line in list(self._lines.values()):
            line.dismiss(error.error())

    def pass_on(self) -> None:
        """Another server is to lead: calls that a third one has passed on are for that one."""
        for line in list(self._lines.values()):
            line.dismiss_forwarded(errors.LEADER_CHANGED.error())

    # --- leaders ---

    def leader(self, prefix: bytes) -> Event | None:
        """The first key. Cost: O(1) if the line is open, otherwise O(keys below the prefix)."""
        line = self._lines.get(prefix)
        if line is not None:
            return line.leader()
        # The store gives keys in order, and `min` takes the first of equals: the smallest key.
        return min(self.keys_below(prefix), key=_create_revision, default=None)

    def leader_response(self, leader: Event) -> bytes:
        """The encoded LeaderResponse that shows a version of a key, with a header as of now."""
        return self.machine.header_field() + nested(b"\x12", leader.kv_bytes())

    def observe(self, prefix: bytes, observer: Observer) -> None:
        self._open(prefix).observe(observer)

    def unobserve(self, prefix: bytes, observer: Observer) -> None:
        line = self._lines[prefix]
        del line.observers[observer]
        self.close_unused(line)

    # --- lines ---

    def keys_below(self, prefix: bytes) -> list[Event]:
        return self.machine.store.range(prefix, prefix_end(prefix))

    def _open(self, prefix: bytes) -> WaitingLine:
        line = self._lines.get(prefix)
        if line is None:
            line = self._lines[prefix] = WaitingLine(self, prefix)
            self.machine.watch(line.watcher)
        return line

    def close_unused(self, line: WaitingLine) -> None:
        if not line.in_use and self._lines.get(line.prefix) is line:
            del self._lines[line.prefix]
            self.machine.unwatch(line.watcher)
            del line.watcher  # it refers to the line: neither must keep the other alive


def _delete_if_created_at(key: bytes, create_revision: int) -> rpc_pb2.TxnRequest:
    delete = rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))
    return rpc_pb2.TxnRequest(compare=[created_at(key, create_revision)], success=[delete])


def created_at(key: bytes, create_revision: int) -> rpc_pb2.Compare:
    """A comparison that holds for a key that was created at this revision; 0: for a key that does not exist."""
    return rpc_pb2.Compare(
        result=rpc_pb2.Compare.EQUAL, target=rpc_pb2.Compare.CREATE, key=key, create_revision=create_revision
    )


def _create_revision(event: Event) -> int:
    return event.create_revision
