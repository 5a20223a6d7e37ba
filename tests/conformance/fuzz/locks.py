# SPDX-License-Identifier: Apache-2.0
"""The area of locks and elections: three clients with a lease each, two names, calls that wait.

After each step the player looks at the keys below each name. A waiting call whose key is the oldest has to be answered,
and is waited for; the others must not be. The answers are noted, and all keys with their revisions after each step. So
the notes do not depend on how quick a server is.

A client has at most one call under way for a name. Two calls would get different answers, better than etcd's
(docs/compatibility.md). So does a call whose key goes while it waits: its answer is not noted.
"""

import time
from typing import Any, NamedTuple

from hypothesis import strategies as st

from lessor.api.proto import election_pb2, lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.fuzz.pair import Side
from tests.conformance.fuzz.steps import plain
from tests.conformance.lock_peer import LockPeer, Pending, key_of
from tests.conformance.subject import Conversation, in_background
from tests.property.strategies import EVERYTHING, mostly, weighted

NAMES = (b"n", b"n/m")  # the one's keys stand below the other's prefix too
CLIENTS = (1, 2, 3)  # their leases
UNKNOWN_LEASE = 9
WAIT_S_MAX = 10.0
_BEGINS_S = 0.03


class Lock(NamedTuple):
    client: int
    name: bytes


class Campaign(NamedTuple):
    client: int
    name: bytes
    value: bytes


class GiveUp(NamedTuple):
    """The client cancels its call."""

    client: int
    name: bytes


class Unlock(NamedTuple):
    client: int
    name: bytes


class Proclaim(NamedTuple):
    """`off`: how far the revision of the leader key is from the true one."""

    client: int
    name: bytes
    value: bytes
    off: int


class Resign(NamedTuple):
    client: int
    name: bytes
    off: int


class Leader(NamedTuple):
    name: bytes


class Observe(NamedTuple):
    name: bytes


class Revoke(NamedTuple):
    client: int


class Grant(NamedTuple):
    client: int


class Put(NamedTuple):
    """Somebody writes a client's key by hand, with or without its lease."""

    client: int
    name: bytes
    with_lease: bool


class Faulty(NamedTuple):
    """A request that is answered at once."""

    request: Any


class Waiting(NamedTuple):
    call: Pending
    name: bytes
    key: bytes
    revision: int  # of the key when the call began


class Observer:
    """Reads the newest leader that an Observe stream shows."""

    def __init__(self, stream: Conversation) -> None:
        self._stream = stream
        self.shown: list[Any] = []
        in_background(self._read)

    def _read(self) -> None:
        while (reply := self._stream.read()) is not None:
            self.shown.append(reply)
            if isinstance(reply, tuple):
                return

    def close(self) -> None:
        self._stream.cancel()


class Player:
    """Plays steps on one side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.peer = LockPeer(side.subject)
        self.waiting: dict[tuple[int, bytes], Waiting] = {}
        self.observers: dict[bytes, Observer] = {}
        self.lost: list[Pending] = []  # calls whose key went while they waited
        self.notes: list[Any] = []
        # No call of an earlier sequence that ends late shall find its key here.
        self._place = b"%d" % side.now.current

    def play(self, steps: list[Any]) -> list[Any]:
        try:
            for client in CLIENTS:
                self.side.write(rpc.LeaseGrantRequest(ID=client, TTL=600))
            for step in steps:
                self.notes.append((type(step).__name__, self._step(step)))
                self._settle()
        finally:
            for call in [*self.lost, *(waiting.call for waiting in self.waiting.values())]:
                call.cancel()
            for observer in self.observers.values():
                observer.close()
        return self.notes

    def _step(self, step: Any) -> Any:
        if hasattr(step, "name"):
            step = step._replace(name=self._place + step.name)
        match step:
            case Lock(client, name):
                return self._begin(client, name, lock_pb2.LockRequest(name=name, lease=client))
            case Campaign(client, name, value):
                return self._begin(client, name, election_pb2.CampaignRequest(name=name, lease=client, value=value))
            case GiveUp(client, name) if (client, name) in self.waiting:
                waiting = self.waiting.pop((client, name))
                waiting.call.cancel()
                return _until(lambda: self.side.subject.get(waiting.key) is None, waiting.key)
            case Unlock(client, name):
                return plain(self.peer.unlock(key_of(name, client)))
            case Proclaim(client, name, value, off):
                return plain(self.peer.proclaim(self._leader_key(client, name, off), value))
            case Resign(client, name, off):
                return plain(self.peer.resign(self._leader_key(client, name, off)))
            case Leader(name):
                return plain(self.peer.leader(name))
            case Observe(name) if name not in self.observers:
                self.observers[name] = Observer(self.peer.observe(name))
            case Revoke(client):
                return plain(self.side.write(rpc.LeaseRevokeRequest(ID=client)))
            case Grant(client):
                return plain(self.side.write(rpc.LeaseGrantRequest(ID=client, TTL=600)))
            case Put(client, name, with_lease):
                request = rpc.PutRequest(key=key_of(name, client), lease=client if with_lease else 0)
                return plain(self.side.write(request))
            case Faulty(request):
                return plain(self.peer.ask(request))
        return None

    def _begin(self, client: int, name: bytes, request: Any) -> Any:
        if (client, name) in self.waiting:
            return None
        key = key_of(name, client)
        had_key = self.side.subject.get(key) is not None
        pending = self.peer.start(request)
        if had_key and not pending.done:
            time.sleep(_BEGINS_S)  # nothing tells that the call has begun
        _until(lambda: pending.done or self._joined(request, key), request)
        kv = self.side.subject.get(key)
        if kv is None:
            return plain(pending.result())
        self.waiting[client, name] = Waiting(pending, name, key, kv.create_revision)
        return "in the line"

    def _joined(self, request: Any, key: bytes) -> bool:
        """Whether the call has its place; a candidate who has one already may change its value."""
        kv = self.side.subject.get(key)
        if kv is None:
            return False
        return isinstance(request, lock_pb2.LockRequest) or bool(kv.value == request.value)

    def _leader_key(self, client: int, name: bytes, off: int) -> Any:
        kv = self.side.subject.get(key_of(name, client))
        revision = (kv.create_revision if kv else self.side.now.current) + off
        return election_pb2.LeaderKey(name=name, key=key_of(name, client), rev=revision, lease=client)

    def _settle(self) -> None:
        """Waits for every call whose turn has come, and for what observers have to show; notes it."""
        kvs = list(self.side.subject.do(rpc.RangeRequest(**EVERYTHING)).kvs)
        for (client, name), waiting in list(self.waiting.items()):
            older = [kv for kv in kvs if kv.key.startswith(name + b"/") and kv.create_revision < waiting.revision]
            there = any(kv.key == waiting.key and kv.create_revision == waiting.revision for kv in kvs)
            if not there:
                del self.waiting[client, name]
                self.lost.append(waiting.call)  # not cancelled: the same client may have its key again
            elif not older:
                del self.waiting[client, name]
                self.notes.append((client, name, plain(waiting.call.result())))
            else:
                assert not waiting.call.done, f"answered while {older} are before it: {waiting.call.result()}"
        for name, observer in self.observers.items():
            self._observed(name, observer, kvs)
        self.notes.append([plain(kv) for kv in kvs])

    def _observed(self, name: bytes, observer: Observer, kvs: list[Any]) -> None:
        below = [kv for kv in kvs if kv.key.startswith(name + b"/")]
        if below:
            leader = min(below, key=lambda kv: (kv.create_revision, kv.key))
            _until(lambda: bool(observer.shown) and observer.shown[-1].kv == leader, f"{leader} is not shown")


def _until(holds: Any, what: Any) -> None:
    give_up = time.monotonic() + WAIT_S_MAX
    while not holds():
        assert time.monotonic() < give_up, f"it did not come about: {what}"
        time.sleep(0.002)  # waiting for another process, not for a clock


def play(side: Side, steps: list[Any]) -> list[Any]:
    return Player(side).play(steps)


_clients = st.sampled_from(CLIENTS)
_names = mostly(st.just(NAMES[0]), st.just(NAMES[1]), 4)
_values = st.sampled_from((b"", b"x", b"y"))
_off = mostly(st.just(0), st.sampled_from((-1, 1)), 5)
_leases = st.sampled_from((UNKNOWN_LEASE, -3))
_no_leader: Any = election_pb2.ProclaimRequest(value=b"v")
_faulty = st.one_of(
    st.builds(lock_pb2.LockRequest, name=st.sampled_from((b"", b"n")), lease=_leases),
    st.builds(election_pb2.CampaignRequest, name=st.sampled_from((b"", b"n")), lease=_leases, value=_values),
    st.builds(lock_pb2.UnlockRequest, key=st.sampled_from((b"", b"n", b"n/1", b"\0"))),
    st.builds(election_pb2.LeaderRequest, name=st.sampled_from((b"", b"other", b"n"))),
    st.sampled_from((_no_leader, election_pb2.ResignRequest(), election_pb2.ProclaimRequest(leader={}))),
)
_steps = weighted(
    (4, st.builds(Lock, _clients, _names)),
    (4, st.builds(Campaign, _clients, _names, _values)),
    (3, st.builds(Unlock, _clients, _names)),
    (2, st.builds(GiveUp, _clients, _names)),
    (2, st.builds(Proclaim, _clients, _names, _values, _off)),
    (2, st.builds(Resign, _clients, _names, _off)),
    (1, st.builds(Leader, _names)),
    (1, st.builds(Observe, _names)),
    (2, st.builds(Revoke, _clients)),
    (1, st.builds(Grant, _clients)),
    (1, st.builds(Put, _clients, _names, st.booleans())),
    (1, _faulty.map(Faulty)),
)
STEPS = st.integers(1, 14).flatmap(lambda size: st.lists(_steps, min_size=size, max_size=size))
