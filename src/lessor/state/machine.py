# SPDX-License-Identifier: Apache-2.0
"""The state machine: every request about the data comes in here, and takes effect as a whole.

Laws
- `apply` does all of a request, or raises `EtcdError` and has changed nothing, neither in memory nor in the journal,
  but that a request which does not fit into the quota raises the NOSPACE alarm. Nothing else does that by itself.
- A request takes effect at the instant of the call; its rows are in the journal's open batch when the call returns.
  The server decides when the reply leaves.
- The end of a lease deletes its keys in one revision, in key order, in the same write. Without keys no revision moves.
- The same requests at the same instants give the same state, the same rows and the same replies.
- While a CORRUPT alarm is raised, no stored data changes: writes are refused and leases do not end; renewals count.

The ways in
- Most requests: `apply`, `apply_encoded`, `apply_in_pieces`. Renewals in a stream: `renew`.
- A write of many keys is `under_way` for many steps, which the server takes: see long_write.py.
- Requests that take many steps: `list_leases` begins a list of leases, `digest` the number of HashKV, `stream_range` a
  range in chunks; the server takes their steps.
- Watches: `watch` and `unwatch` for keys, `watch_leases` and `unwatch_leases` for leases. A stream whose watcher lags
  asks the hub for history.
- These change the state or its rows without a request: `expire`, `checkpoint` and `name_peer_urls`;
  `leases.acknowledged` when replies leave; `store.sweep` after a compaction; `journal.seal` at the end of a turn.

Theory of operation. `apply_encoded` finds the handler by the type of the request and returns the encoded reply; `apply`
parses that into the reply's class. Replies are put together from bytes: the header, encoded once per revision, and the
versions of keys, each encoded once.

Does not do: request sizes, permissions (permissions.py, before a request comes here), sending (the hub only collects
events for watchers), logging in, Status, snapshots, requests about members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, cast

from google.protobuf.message import Message

from lessor.api.methods import METHODS
from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.state import auth_requests, kv, txn, txn_steps
from lessor.state.auth import Auth
from lessor.state.digest import KvDigest
from lessor.state.encode import HeaderEncoder, nested, number_field, varint
from lessor.state.journal import Journal
from lessor.state.lease import NO_KEYS, Lease
from lessor.state.lease_events import EXPIRED, GRANTED, REVOKED, LeaseEvents
from lessor.state.lease_list import LeaseList
from lessor.state.lease_replies import (
    keys_field,
    leases_pieces,
    leases_reply,
    renewed_fields,
    time_to_live_pieces,
    time_to_live_reply,
)
from lessor.state.leases import Lessor
from lessor.state.long_read import LongRead, Written
from lessor.state.long_write import LongWrite, Steps, in_order
from lessor.state.mvcc import Store
from lessor.state.quota import EMPTY_BYTES, LEASE_BYTES, PUT_COST, UNLIMITED, put_cost, txn_cost
from lessor.state.range_steps import range_pieces
from lessor.state.range_stream import RangeStream, check_range_stream
from lessor.state.watch_hub import WatchHub
from lessor.state.watcher import Watcher

_ALARM_NONE: Final = 0
_ALARM_NO_SPACE: Final = 1
_ALARM_CORRUPT: Final = 2
_ALARMS: Final = (_ALARM_NO_SPACE, _ALARM_CORRUPT)
_ALARM_GET: Final = 0
_ALARM_ACTIVATE: Final = 1
_ALARM_DEACTIVATE: Final = 2

TTL_BITS_MAX: Final = 23  # the metrics distinguish TTLs up to 2^23 s

Reply = bytes | Iterator[bytes] | LongWrite
Handler = Callable[[Any, float], Reply]

# RangeStream has the request of Range, and is not applied.
_RESPONSES: Final[dict[type[Message], type[Message]]] = {
    method.request: method.response for method in METHODS if method.client_streaming or not method.server_streaming
}


_IN_BETWEEN: Final = "a write is under way: nothing else may read or change keys or end leases before its last step"


def _refuse_meanwhile(request: Any, _now_s: float) -> bytes:
    raise RuntimeError(f"{_IN_BETWEEN}; came: {type(request).__name__}")


class Identity(NamedTuple):
    """The server that answers, as the header of each reply names it."""

    cluster_id: int
    member_id: int
    term: int


class StateMachine:
    """Keys, leases, watchers and alarms of one data directory."""

    __slots__ = (
        "_handlers",
        "_header_encoder",
        "_header_field",
        "_header_revision",
        "_max_txn_ops",
        "_meanwhile",
        "_quota_bytes",
        "_quota_near",
        "_served",
        "alarms",
        "auth",
        "clock",
        "corrupt",
        "granted",
        "granted_ttl_s",
        "hub",
        "identity",
        "journal",
        "lease_events",
        "leases",
        "no_space",
        "on_no_space",
        "peer_urls",
        "renew",
        "revoked",
        "store",
        "txns",
        "under_way",
    )

    def __init__(
        self,
        identity: Identity,
        *,
        min_lease_ttl_s: int = limits.LEASE_TTL_S_MIN,
        max_txn_ops: int = limits.TXN_OPS_MAX,
        lease_id_seed: int = 1,
        batch_number: int = 1,
    ) -> None:
        """An empty store.

        min_lease_ttl_s: shorter TTLs are raised to it. lease_id_seed: where the ids that the lessor chooses start; a
        restart should not meet ids that clients still hold. batch_number: of the first batch of rows.
        """
        self.identity = identity
        self.journal = Journal(batch_number)
        self.leases = Lessor(self.journal, min_ttl_s=min_lease_ttl_s, id_seed=lease_id_seed)
        # (lease id, now_s) -> the lease, or None. The lessor's own method, because most requests are renewals.
        self.renew = self.leases.renew
        self.store = Store(self.journal, self.leases)
        self.hub = WatchHub(self.store)
        self.lease_events = LeaseEvents()
        self.auth = Auth(self.journal)
        # The data clock, for a reply about time that begins later than its request came. None: it begins at once.
        self.clock: Callable[[], float] | None = None
        self.alarms: set[tuple[int, int]] = set()  # (member_id, alarm type) of the raised ones; only requests change it
        self.no_space = False  # whether a NOSPACE alarm is raised
        self.corrupt = False  # whether a CORRUPT alarm is raised
        self._quota_bytes = self._quota_near = UNLIMITED  # from the second on a write may be too large
        self.on_no_space: Callable[[], None] | None = None  # called when a request has raised the alarm
        self.peer_urls: tuple[str, ...] = ()  # those that the member was given; only name_peer_urls changes them
        # For the metrics: txns of several operations; leases revoked; leases granted, by the bits of their TTL less 1.
        self.txns = 0
        self.revoked = 0
        self.granted = [0] * (TTL_BITS_MAX + 2)
        self.granted_ttl_s = 0
        self._max_txn_ops = max_txn_ops
        self._header_encoder = HeaderEncoder(*identity)
        self._header_revision = 0
        self._header_field = b""
        self._handlers: dict[type[Message], Handler] = {
            rpc_pb2.RangeRequest: self._range,
            rpc_pb2.PutRequest: self._put,
            rpc_pb2.DeleteRangeRequest: self._delete_range,
            rpc_pb2.TxnRequest: self._txn,
            rpc_pb2.CompactionRequest: self._compact,
            rpc_pb2.LeaseGrantRequest: self._grant,
            rpc_pb2.LeaseRevokeRequest: self._revoke,
            rpc_pb2.LeaseKeepAliveRequest: self._keep_alive,
            rpc_pb2.LeaseTimeToLiveRequest: self._time_to_live,
            rpc_pb2.LeaseLeasesRequest: self._leases,
            rpc_pb2.AlarmRequest: self._alarm,
        }
        about_auth = {kind: self._headed(handler) for kind, handler in auth_requests.handlers(self.auth).items()}
        self._handlers |= about_auth
        self._served = self._handlers
        # What is served while a write is made in steps. The others are refused: to send them then is a bug.
        self._meanwhile: dict[type[Message], Handler] = dict.fromkeys(self._handlers, _refuse_meanwhile) | about_auth
        for kind in (rpc_pb2.LeaseKeepAliveRequest, rpc_pb2.LeaseTimeToLiveRequest, rpc_pb2.AlarmRequest):
            self._meanwhile[kind] = self._served[kind]
        self.under_way: LongWrite | None = None  # a write that is made in steps; set and ended here

    # --- the surface --------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        return self.store.revision

    @property
    def compact_revision(self) -> int:
        """Reads and watches below it are refused. -1 when nothing was compacted yet."""
        return self.store.compact_revision

    @property
    def max_txn_ops(self) -> int:
        """How many operations a txn may have."""
        return self._max_txn_ops

    def _headed(self, handler: Callable[[Any], bytes]) -> Handler:
        """The handler of a request about neither keys nor leases."""
        return lambda request, now_s: self.header_field() + handler(request)

    def header(self) -> rpc_pb2.ResponseHeader:
        """A reply header as of now."""
        identity = self.identity
        return rpc_pb2.ResponseHeader(
            cluster_id=identity.cluster_id,
            member_id=identity.member_id,
            revision=self.store.revision,
            raft_term=identity.term,
        )

    def header_field(self, revision: int | None = None) -> bytes:
        """The encoded header as of `revision`, or as of now: field 1 of each reply."""
        if revision is None:
            revision = self.store.revision
        if revision != self._header_revision:
            self._header_revision = revision
            self._header_field = self._header_encoder.field(revision)
        return self._header_field

    def apply(self, request: Message, now_s: float) -> Message:
        """Carries out a request; returns its reply. `now_s`: seconds on the data clock.

        Raises EtcdError, with nothing done, for a request that etcd refuses; TypeError for a type of request that is
        not served here.
        """
        encoded = self.apply_encoded(request, now_s)
        return _RESPONSES[type(request)].FromString(encoded)

    def apply_encoded(self, request: Message, now_s: float) -> bytes:
        """Like `apply`, but returns the reply encoded, as it leaves."""
        reply = self.apply_in_pieces(request, now_s)
        if isinstance(reply, bytes):
            return reply
        if isinstance(reply, LongWrite):
            reply = reply.complete()
            if isinstance(reply, bytes):
                return reply
        try:
            return b"".join(reply)
        finally:
            if isinstance(reply, LongRead):
                reply.close()

    def apply_in_pieces(self, request: Message, now_s: float) -> Reply:
        """Like `apply_encoded`, but a reply that takes long is made piece by piece, while the caller takes the pieces.

        A write takes effect now, or is `under_way` when this returns: a `LongWrite`, whose steps the caller has to
        take. A `LongRead` shows the state of the moment at which its first piece is taken, and the time that `clock`
        has then. It has to be closed; it may raise EtcdError from any piece. A piece takes a millisecond or two.
        """
        handler = self._handlers.get(type(request))
        if handler is None:
            raise TypeError(f"the state machine does not serve {type(request).__name__}")
        return handler(request, now_s)

    def check_form(self, request: Message) -> None:
        """Raises the EtcdError of a write that is wrong by itself, whatever the state; changes nothing."""
        if isinstance(request, rpc_pb2.PutRequest):
            kv.read_put(request)
        elif isinstance(request, rpc_pb2.DeleteRangeRequest):
            kv.check_delete(request)
        elif isinstance(request, rpc_pb2.TxnRequest):
            txn.read_txn(request, self._max_txn_ops)

    def list_leases(
        self, request: leases_pb2.LeaseListRequest, may_read: Callable[[Lease], None] | None = None
    ) -> LeaseList:
        """Begins to make one page of a list of leases. See `LeaseList` for the arguments, the errors and the cost."""
        return LeaseList(self.leases, request, may_read)

    def digest(self, revision: int = 0) -> KvDigest:
        """Begins to make the number of HashKV at a revision, 0 or less meaning the newest.

        Raises FUTURE_REVISION above the newest revision, COMPACTED below the compact revision.
        """
        return KvDigest(self.store, revision)

    def stream_range(self, request: rpc_pb2.RangeRequest) -> RangeStream:
        """Begins to make the chunks of a RangeStream. Raises the EtcdError of a request that is wrong by itself."""
        check_range_stream(request)
        return RangeStream(self.store, request, self.header_field)

    def watch(self, watcher: Watcher) -> None:
        """Takes in a watcher of keys. See `WatchHub.add`."""
        self.hub.add(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Removes a watcher of keys. See `WatchHub.remove`."""
        self.hub.remove(watcher)

    def watch_leases(self, watcher: Any) -> None:
        """Takes in a watcher of grants and ends. Take the pending events first: see lease_events.py."""
        self.lease_events.watchers.add(watcher)

    def unwatch_leases(self, watcher: Any) -> None:
        """Removes a watcher of grants and ends. Does nothing when there is no such watcher."""
        self.lease_events.watchers.discard(watcher)

    def expire(self, now_s: float, leases_max: int) -> int:
        """As `expire_in_steps`, all at once."""
        ended = self.expire_in_steps(now_s, leases_max)
        if self.under_way is not None:
            self.under_way.complete()
        return ended

    def expire_in_steps(self, now_s: float, leases_max: int) -> int:
        """Ends leases that are due, earliest deadline first, each with its keys in a revision of its own.

        Returns how many ended: at most `leases_max`. It may be fewer while more are due; then `next_deadline` is not in
        the future, and the caller should come back after it has served others. A lease with more than WRITE_STEP_KEYS
        keys is the only one, and its end is `under_way` then: the caller has to take its steps.
        """
        if self.under_way is not None:
            raise RuntimeError(_IN_BETWEEN)
        if self.corrupt:
            return 0
        ended = self.leases.expire(now_s, leases_max)
        watched = self.lease_events.watchers
        for lease in ended:
            if len(lease.keys) > limits.WRITE_STEP_KEYS:
                self._begin(self._end_steps(lease, EXPIRED), lease)
                break  # it is the only one
            deleted = self._delete_keys(lease) if lease.keys else 0
            if watched:
                self.lease_events.add(EXPIRED, lease, deleted, self.store.revision)
        return len(ended)

    def next_deadline(self) -> float | None:
        """When to call `expire` next: never later than the earliest true deadline; None when no lease is to end."""
        return None if self.corrupt else self.leases.next_deadline()

    def checkpoint(self, now_s: float) -> None:
        """For an orderly stop: saves exact deadlines and marks the batch as the last one.

        `now_s` is not used, because deadlines are instants; the caller seals the batch with it next.
        """
        self.leases.checkpoint()
        self.journal.mark_clean()

    def state_for_alarm(self, member_id: int, alarm: int, active: bool) -> None:
        """Takes in an alarm row at boot; writes no row."""
        if active and alarm in _ALARMS:
            self.alarms.add((member_id, alarm))
        else:
            self.alarms.discard((member_id, alarm))
        self.no_space = any(kind == _ALARM_NO_SPACE for _, kind in self.alarms)
        self.corrupt = any(kind == _ALARM_CORRUPT for _, kind in self.alarms)

    def lead(self, term: int) -> None:
        """From here on replies name this term. Replies that are encoded already keep theirs."""
        self.identity = self.identity._replace(term=term)
        self._header_encoder = HeaderEncoder(*self.identity)
        self._header_revision = 0

    # --- the quota ----------------------------------------------------------------------------------------------

    def stand_by(self) -> None:
        """This node has led, and has saved all of it (`checkpoint`): from here on it applies the batches of others."""
        self.leases.stand_by()

    def set_quota(self, quota_bytes: int, request_bytes_max: int) -> None:
        """Bounds what may be counted. `request_bytes_max`: no request is longer."""
        self._quota_bytes = quota_bytes
        self._quota_near = quota_bytes - request_bytes_max - PUT_COST * self._max_txn_ops * limits.TXN_OPS_IN_ALL

    @property
    def counted_bytes(self) -> int:
        """What the data counts for the quota. O(1)."""
        return EMPTY_BYTES + self.store.stored_bytes + LEASE_BYTES * len(self.leases)

    def _exceeds_quota(self, cost: int) -> bool:
        return cost > 0 and self.counted_bytes + cost >= self._quota_bytes

    def _beyond_quota(self) -> errors.EtcdError:
        """Raises the alarm, and returns the error of the request that does not fit."""
        self._set_alarm(self.identity.member_id, _ALARM_NO_SPACE, active=True)
        if self.on_no_space is not None:
            self.on_no_space()
        return errors.NO_SPACE.error()

    # --- KV -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Ends a write, and hands its events to the hub."""
        changes = self.store.finish()
        if changes and self.hub.count:
            self.hub.changed(changes)

    def _finish_long(self) -> None:
        """Ends a write that was made in steps."""
        self.store.end_steps()
        self._finish()

    def _begin(self, steps: Steps, ending: Lease | None = None) -> LongWrite:
        store = self.store
        store.begin_steps()
        self._handlers = self._meanwhile
        self.under_way = LongWrite(steps, ending, lambda: not store.changes, self._ended)
        return self.under_way

    def _ended(self) -> None:
        """The write under way has taken its last step, or was refused."""
        self.store.end_steps()
        self._handlers = self._served
        self.under_way = None

    def _range(self, request: rpc_pb2.RangeRequest, now_s: float) -> bytes | Iterator[bytes]:
        kv.check_range(request)
        kv.verify_range_alone(self.store, request)
        reply = kv.range_reply(self.store, request, self.header_field())
        if reply is not None:
            return reply
        return LongRead(self.store, partial(self._long_range, request), request.revision)

    def _long_range(self, request: rpc_pb2.RangeRequest) -> Iterator[bytes]:
        kv.verify_range_alone(self.store, request)  # it may have been compacted since the request came
        revision = request.revision if request.revision > 0 else self.store.revision
        return range_pieces(self.store, request, revision, self.header_field())

    def _put(self, request: rpc_pb2.PutRequest, now_s: float) -> bytes:
        put = kv.read_put(request)
        if self.corrupt or self.no_space:
            raise self._refusal()
        if self.counted_bytes >= self._quota_near and self._exceeds_quota(put_cost(put[0], put[1])):
            raise self._beyond_quota()
        kv.verify_put(self.store, self.leases, put)
        rest = kv.do_put(self.store, put)
        self._finish()
        return self.header_field() + rest

    def _delete_range(self, request: rpc_pb2.DeleteRangeRequest, now_s: float) -> Reply:
        kv.check_delete(request)
        if self.corrupt:
            raise errors.CORRUPT.error()
        deleted = kv.delete_range(self.store, request, limits.WRITE_STEP_KEYS)
        if deleted is None:
            return self._begin(self._delete_range_steps(request))
        self._finish()
        rest, shown = deleted
        head = self.header_field() + rest
        if kv.is_long(self.store, shown):
            return Written(txn_steps.prev_kvs_pieces(self.store, head, shown), kv.kept_bytes(shown))
        return head + kv.prev_kvs_field(shown)

    def _delete_range_steps(self, request: rpc_pb2.DeleteRangeRequest) -> Steps:
        rest, shown, size_bytes = yield from kv.delete_range_steps(self.store, request)
        self._finish_long()
        head = self.header_field() + rest
        return Written(txn_steps.prev_kvs_pieces(self.store, head, shown), size_bytes) if shown else head

    def _txn(self, request: rpc_pb2.TxnRequest, now_s: float) -> Reply:
        node = txn.read_txn(request, self._max_txn_ops)
        if self.corrupt and txn.may_write(node):
            raise errors.CORRUPT.error()
        if self.no_space and txn.has_put(node):
            raise errors.NO_SPACE.error()
        if self.counted_bytes >= self._quota_near and self._exceeds_quota(txn_cost(node)):
            raise self._beyond_quota()
        store = self.store
        if txn.is_long(store, node):
            if txn.may_write(node):
                return self._begin(self._txn_steps(node))
            return LongRead(store, partial(self._long_txn, node), txn_steps.oldest_revision(store, node))
        txn.choose(store, node)
        txn.verify(store, self.leases, node)
        if node.old and txn.is_deep(store, node):
            return LongRead(store, partial(self._long_txn, node), txn_steps.oldest_revision(store, node))
        operations = store.operations
        rest = txn.execute(store, node)
        self.txns += store.operations - operations > 1
        self._finish()
        return self.header_field() + rest

    def _txn_steps(self, node: txn.Node) -> Steps:
        """A txn that may write and takes long. Raises as `txn.verify` and `txn.is_deep` do, with nothing done."""
        store = self.store
        yield from txn_steps.choose_steps(store, node)
        txn.verify(store, self.leases, node)
        if node.old:
            txn.is_deep(store, node)
        operations = store.operations
        parts = yield from txn_steps.execute_steps(store, node)
        self.txns += store.operations - operations > 1
        self._finish_long()
        return Written(txn_steps.done_pieces(self.header_field(), parts), txn_steps.parts_bytes(parts))

    def _long_txn(self, node: txn.Node) -> Iterator[bytes]:
        self.txns += len(node.success) + len(node.failure) > 1
        return txn_steps.read_pieces(self.store, node, self.header_field())

    def _compact(self, request: rpc_pb2.CompactionRequest, now_s: float) -> bytes:
        if self.corrupt:
            raise errors.CORRUPT.error()
        store = self.store
        revision = request.revision
        if revision <= store.compact_revision:
            raise errors.COMPACTED.error()
        if revision > store.revision:
            raise errors.FUTURE_REVISION.error()
        store.compact(revision)
        store.sweep(limits.SWEEP_EVENTS_MAX)  # mostly all of it; the server sweeps the rest, a part each turn
        return self.header_field()

    # --- leases -------------------------------------------------------------------------------------------------

    def _refusal(self) -> errors.EtcdError:
        """The error of a write that either alarm stops: CORRUPT is the graver one."""
        return (errors.CORRUPT if self.corrupt else errors.NO_SPACE).error()

    def _grant(self, request: rpc_pb2.LeaseGrantRequest, now_s: float) -> bytes:
        if self.corrupt or self.no_space:
            raise self._refusal()
        if self.counted_bytes >= self._quota_near and self._exceeds_quota(LEASE_BYTES):
            raise self._beyond_quota()
        lease = self.leases.grant(request.ID, request.TTL, now_s)
        self.granted[min((lease.ttl_s - 1).bit_length(), TTL_BITS_MAX + 1)] += 1
        self.granted_ttl_s += lease.ttl_s
        if self.lease_events.watchers:
            self.lease_events.add(GRANTED, lease)
        return self.header_field() + b"\x10" + varint(lease.id) + b"\x18" + varint(lease.ttl_s)

    def _revoke(self, request: rpc_pb2.LeaseRevokeRequest, now_s: float) -> bytes | LongWrite:
        if self.corrupt:
            raise errors.CORRUPT.error()
        lease = self.leases.revoke(request.ID)
        self.revoked += 1
        if len(lease.keys) > limits.WRITE_STEP_KEYS:
            return self._begin(self._end_steps(lease, REVOKED), lease)
        deleted = self._delete_keys(lease) if lease.keys else 0
        if self.lease_events.watchers:
            self.lease_events.add(REVOKED, lease, deleted, self.store.revision)
        return self.header_field()

    def _delete_keys(self, lease: Lease) -> int:
        """Deletes the keys of an ended lease; returns how many. Cost: k log k for k keys."""
        keys = sorted(lease.keys)
        self.store.delete_all(keys)
        lease.keys = NO_KEYS  # others may keep the lease object for a while
        self.store.deletes += len(keys)
        self.txns += len(keys) > 1
        self._finish()
        return len(keys)

    def _end_steps(self, lease: Lease, how: leases_pb2.LeaseEvent.Type) -> Steps:
        """Deletes the many keys of an ended lease."""
        deleted = 0
        hanging, lease.keys = cast(set[bytes], lease.keys), NO_KEYS
        for keys in in_order(hanging):
            self.store.delete_all(keys)
            deleted += len(keys)
            yield
        self.store.deletes += deleted
        self.txns += 1
        self._finish_long()
        self.leases.save_end(lease)
        if self.lease_events.watchers:
            self.lease_events.add(how, lease, deleted, self.store.revision)
        return self.header_field()

    def _keep_alive(self, request: rpc_pb2.LeaseKeepAliveRequest, now_s: float) -> bytes:
        lease_id = request.ID
        return self.header_field() + renewed_fields(lease_id, self.leases.renew(lease_id, now_s))

    def _time_to_live(self, request: rpc_pb2.LeaseTimeToLiveRequest, now_s: float) -> bytes | Iterator[bytes]:
        reply = time_to_live_reply(self.header_field(), self.leases, request.ID, now_s)
        if not request.keys:
            return reply
        lease = self.leases.get(request.ID)
        if lease is None:
            return reply
        if len(lease.keys) > limits.REPLY_PARTS_MAX:
            return LongRead(self.store, partial(self._long_time_to_live, request.ID, now_s))
        return reply + keys_field(lease)

    def _long_time_to_live(self, lease_id: int, now_s: float) -> Iterator[bytes]:
        clock = self.clock
        if clock is not None:
            now_s = clock()  # the lease may have been renewed since the request came
        return time_to_live_pieces(self.header_field(), self.leases, lease_id, now_s)

    def _leases(self, request: rpc_pb2.LeaseLeasesRequest, now_s: float) -> bytes | Iterator[bytes]:
        if len(self.leases) > limits.REPLY_PARTS_MAX:
            return LongRead(self.store, self._long_leases)
        return leases_reply(self.header_field(), self.leases)

    def _long_leases(self) -> Iterator[bytes]:
        return leases_pieces(self.header_field(), self.leases)

    # --- alarms -------------------------------------------------------------------------------------------------

    def _alarm(self, request: rpc_pb2.AlarmRequest, now_s: float) -> bytes:
        member_id = request.memberID
        kind = cast(int, request.alarm)
        shown: list[tuple[int, int]] = []
        if request.action == _ALARM_GET:
            shown = sorted(alarm for alarm in self.alarms if kind in (_ALARM_NONE, alarm[1]))
        elif request.action == _ALARM_ACTIVATE:
            if kind in _ALARMS:  # an unknown kind would be kept, and no request could name it
                shown = [(member_id, kind)]
                self._set_alarm(member_id, kind, active=True)
        elif request.action == _ALARM_DEACTIVATE and (member_id, kind) in self.alarms:
            shown = [(member_id, kind)]
            self._set_alarm(member_id, kind, active=False)
        alarms = [
            nested(b"\x12", number_field(b"\x08", member) + number_field(b"\x10", alarm)) for member, alarm in shown
        ]
        return self.header_field() + b"".join(alarms)

    def name_peer_urls(self, urls: tuple[str, ...]) -> None:
        """Gives the member its URLs for peers. The caller has checked them."""
        self.peer_urls = urls
        self.journal.peer_urls(urls)

    def _set_alarm(self, member_id: int, kind: int, *, active: bool) -> None:
        if ((member_id, kind) in self.alarms) != active:
            self.state_for_alarm(member_id, kind, active)
            self.journal.alarm((member_id, kind, active))
