# SPDX-License-Identifier: Apache-2.0
"""What etcd does, in plain dicts: a model of its key space and leases that can be read in one sitting.

The property tests send the same requests to this model, to Lessor and to a real etcd, and compare every answer. The
model may therefore share nothing with the server: it copies where the server indexes, it searches where the server
looks up, and where there was a choice it took the way that is easiest to check by eye. It is also the shortest
complete description of the API that we know, so it ships with the test kit.

Laws
- A revision is one whole copy of the key space. `snapshots[r]` is what the keys were at revision r, for ever.
- A request is checked completely before anything changes; an error leaves no trace.
- Nothing says which keys a lease holds except the keys: those whose `lease` field names it.
- Time is the `now` that each call is given (seconds). A lease ends when `expire(now)` says so, and not before: until
  then a lease past its deadline can be renewed, put onto and listed.

What it leaves out: users and roles, size limits, more than one member, damage (the CORRUPT alarm is kept, not obeyed).

    model = Model()
    model.apply(LeaseGrantRequest(TTL=10, ID=7), now=0.0)
    model.apply(PutRequest(key=b"a", value=b"1", lease=7), now=1.0)    # revision 2
    model.expire(now=10.0)                                             # [7]; revision 3: b"a" is deleted
    model.events_since(2)                                              # the put, then the delete with its prev_kv
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event, KeyValue
from lessor.base import errors

KeySpace = dict[bytes, KeyValue]
Reply = TypeVar("Reply")

# The field of a key that a range's sort target or a compare's target means, by the target's number. The operand of a
# compare has the same name.
_SORT_FIELDS = dict(enumerate(("key", "version", "create_revision", "mod_revision", "value")))
_COMPARE_FIELDS = dict(enumerate(("version", "create_revision", "mod_revision", "value", "lease")))


@dataclass
class ModelLease:
    """A promise: the keys that name this lease are deleted at `deadline_s` unless it is renewed before."""

    id: int
    ttl_s: int
    deadline_s: float


def in_range(key: bytes, start: bytes, end: bytes) -> bool:
    """Whether `key` lies in a request's range: no end is the key itself, one zero byte is "no upper bound"."""
    return key == start if end == b"" else start <= key and (end == b"\0" or key < end)


class Model:
    """One etcd with one member. `apply` serves requests, `expire` ends leases, `events_since` is what a watch sees.

    min_lease_ttl_s: shorter TTLs (zero and negative ones too) are raised to this. etcd's default settings make it 2.
    max_txn_ops: the largest number of compares, of success or of failure operations of a transaction.
    header: what each reply's header says besides the revision.
    """

    def __init__(
        self, *, min_lease_ttl_s: int = 1, max_txn_ops: int = 128, header: rpc.ResponseHeader | None = None
    ) -> None:
        self.revision = 1
        self.compact_revision = -1
        self.snapshots: dict[int, KeySpace] = {1: {}}
        self.history: dict[int, list[Event]] = {}
        self.leases: dict[int, ModelLease] = {}
        self.alarms: set[tuple[int, rpc.AlarmType]] = set()  # (member id, alarm type)
        self._min_lease_ttl_s = min_lease_ttl_s
        self._max_txn_ops = max_txn_ops
        self._header = header or rpc.ResponseHeader(cluster_id=1, member_id=1, raft_term=2)
        self._services: dict[type[Message], Callable[[Any, float], Any]] = {
            rpc.RangeRequest: self._range,
            rpc.PutRequest: self._put,
            rpc.DeleteRangeRequest: self._delete_range,
            rpc.TxnRequest: self._txn,
            rpc.CompactionRequest: self._compact,
            rpc.LeaseGrantRequest: self._grant,
            rpc.LeaseRevokeRequest: self._revoke,
            rpc.LeaseKeepAliveRequest: self._keep_alive,
            rpc.LeaseTimeToLiveRequest: self._time_to_live,
            rpc.LeaseLeasesRequest: self._list_leases,
            rpc.AlarmRequest: self._alarm,
        }

    @property
    def keys(self) -> KeySpace:
        """The key space of the current revision."""
        return self.snapshots[self.revision]

    def apply(self, request: Message, now: float) -> Message:
        """Serves one request of the KV or Lease service, or an Alarm request, and returns its reply.

        Raises EtcdError with etcd's code and text; then nothing has changed. TypeError for any other message.
        """
        if type(request) not in self._services:
            raise TypeError(f"the model does not know {type(request).__name__}")
        reply = self._services[type(request)](request, now)
        # A reply names the store's newest revision, also when the request asked about an old one.
        reply.header.CopyFrom(self._header)
        reply.header.revision = self.revision
        return reply  # type: ignore[no-any-return]

    def expire(self, now: float) -> list[int]:
        """Ends the leases whose deadline is `now` or earlier, soonest first, each on its own. Returns their ids."""
        due = [lease.id for lease in self._leases_by_deadline() if lease.deadline_s <= now]
        for lease_id in due:
            self._end_lease(lease_id)
        return due

    def events_since(self, revision: int) -> list[Event]:
        """What a watch of all keys with prev_kv sees that starts at `revision` (at least 1): changes in order.

        Raises EtcdError when that revision is compacted. The key's value before an event is not shown where only a
        compacted revision still knew it.
        """
        if revision < self.compact_revision:
            raise errors.COMPACTED.error()
        shown = []
        for main in range(revision, self.revision + 1):
            for event in self.history.get(main, []):
                knows_before = event.HasField("prev_kv") and main - 1 >= self.compact_revision
                shown.append(Event(type=event.type, kv=event.kv, prev_kv=event.prev_kv if knows_before else None))
        return shown

    def attached_keys(self, lease_id: int) -> list[bytes]:
        """The keys that a lease holds, in byte order."""
        return sorted(kv.key for kv in self.keys.values() if kv.lease == lease_id)

    # --- KV -----------------------------------------------------------------------------------------------------

    def _range(self, request: rpc.RangeRequest, now: float) -> rpc.RangeResponse:
        _check_range(request)
        if request.revision > 0:
            self._check_revision(request.revision)  # in a transaction, negative ones are checked too
        return Draft(self).range(request)

    def _put(self, request: rpc.PutRequest, now: float) -> rpc.PutResponse:
        _check_put(request)
        self._check_space()
        self._check_put_state(request)
        return self._write(lambda draft: draft.put(request))

    def _delete_range(self, request: rpc.DeleteRangeRequest, now: float) -> rpc.DeleteRangeResponse:
        _check_key(request.key)
        return self._write(lambda draft: draft.delete_range(request))

    def _txn(self, request: rpc.TxnRequest, now: float) -> rpc.TxnResponse:
        _check_txn(request, self._max_txn_ops)
        _check_duplicates(request.success)
        _check_duplicates(request.failure)
        if _may_put(request):
            self._check_space()
        for op in self._operations_taken(request):
            if op.HasField("request_put"):
                self._check_put_state(op.request_put)
            elif op.HasField("request_range") and op.request_range.revision != 0:
                self._check_revision(op.request_range.revision)
        return self._write(lambda draft: self._run(request, draft))

    def _write(self, act: "Callable[[Draft], Reply]") -> Reply:
        """Runs `act` on a copy of the keys; what it changed becomes one revision, unless that is nothing."""
        draft = Draft(self)
        reply = act(draft)
        if draft.events:
            self.revision += 1
            self.snapshots[self.revision] = draft.keys
            self.history[self.revision] = draft.events
        return reply

    def _operations_taken(self, txn: rpc.TxnRequest) -> Iterator[rpc.RequestOp]:
        """All puts, deletes and ranges that will run. The compares read the state before the transaction."""
        for op in txn.success if self._holds(txn) else txn.failure:
            if op.HasField("request_txn"):
                yield from self._operations_taken(op.request_txn)
            else:
                yield op

    def _run(self, txn: rpc.TxnRequest, draft: "Draft") -> rpc.TxnResponse:
        succeeded = self._holds(txn)
        reply = rpc.TxnResponse(header=rpc.ResponseHeader(), succeeded=succeeded)
        for op in txn.success if succeeded else txn.failure:
            # Of the header, a reply inside a transaction has the revision alone; that of a nested one is empty.
            answer = reply.responses.add()
            if op.HasField("request_txn"):
                answer.response_txn.CopyFrom(self._run(op.request_txn, draft))
            elif op.HasField("request_range"):
                answer.response_range.CopyFrom(draft.range(op.request_range))
                answer.response_range.header.revision = draft.revision
            elif op.HasField("request_put"):
                answer.response_put.CopyFrom(draft.put(op.request_put))
                answer.response_put.header.revision = draft.revision
            else:
                answer.response_delete_range.CopyFrom(draft.delete_range(op.request_delete_range))
                answer.response_delete_range.header.revision = draft.revision
        return reply

    def _holds(self, txn: rpc.TxnRequest) -> bool:
        return all(self._compare(compare) for compare in txn.compare)

    def _compare(self, compare: rpc.Compare) -> bool:
        """Whether all keys of the compare's range stand the test; no key at all is tested as a key of zeros."""
        found = [kv for key, kv in self.keys.items() if in_range(key, compare.key, compare.range_end)]
        if not found:
            if compare.target == rpc.Compare.VALUE:
                return False  # an absent key has no value, so it is not even different from one
            found = [KeyValue()]
        return all(_compare_one(compare, kv) for kv in found)

    def _compact(self, request: rpc.CompactionRequest, now: float) -> rpc.CompactionResponse:
        if request.revision <= self.compact_revision:
            raise errors.COMPACTED.error()
        if request.revision > self.revision:
            raise errors.FUTURE_REVISION.error()
        self.compact_revision = request.revision
        return rpc.CompactionResponse()

    def _check_revision(self, revision: int) -> None:
        if revision > self.revision:
            raise errors.FUTURE_REVISION.error()
        if revision < self.compact_revision:
            raise errors.COMPACTED.error()

    def _check_put_state(self, put: rpc.PutRequest) -> None:
        if put.lease != 0 and put.lease not in self.leases:
            raise errors.LEASE_NOT_FOUND.error()
        if (put.ignore_value or put.ignore_lease) and put.key not in self.keys:
            raise errors.KEY_NOT_FOUND.error()

    # --- leases -------------------------------------------------------------------------------------------------

    def _grant(self, request: rpc.LeaseGrantRequest, now: float) -> rpc.LeaseGrantResponse:
        self._check_space()
        if request.TTL > 9_000_000_000:
            raise errors.LEASE_TTL_TOO_LARGE.error()
        if request.ID in self.leases:
            raise errors.LEASE_EXISTS.error()
        # A client that names no id gets one that is free and positive; etcd draws it, the model counts.
        lease_id = request.ID or next(number for number in range(2**32, 2**63) if number not in self.leases)
        ttl_s = max(request.TTL, self._min_lease_ttl_s)
        self.leases[lease_id] = ModelLease(lease_id, ttl_s, now + ttl_s)
        return rpc.LeaseGrantResponse(ID=lease_id, TTL=ttl_s)

    def _revoke(self, request: rpc.LeaseRevokeRequest, now: float) -> rpc.LeaseRevokeResponse:
        if request.ID not in self.leases:
            raise errors.LEASE_NOT_FOUND.error()
        self._end_lease(request.ID)
        return rpc.LeaseRevokeResponse()

    def _end_lease(self, lease_id: int) -> None:
        """Revoke and expiry are the same act: all keys in one revision, in byte order; none, and no revision."""
        self._write(lambda draft: draft.delete(self.attached_keys(lease_id)))
        del self.leases[lease_id]

    def _keep_alive(self, request: rpc.LeaseKeepAliveRequest, now: float) -> rpc.LeaseKeepAliveResponse:
        lease = self.leases.get(request.ID)
        if lease is None:
            return rpc.LeaseKeepAliveResponse(ID=request.ID, TTL=0)
        lease.deadline_s = now + lease.ttl_s
        return rpc.LeaseKeepAliveResponse(ID=request.ID, TTL=lease.ttl_s)

    def _time_to_live(self, request: rpc.LeaseTimeToLiveRequest, now: float) -> rpc.LeaseTimeToLiveResponse:
        lease = self.leases.get(request.ID)
        if lease is None:
            return rpc.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        remaining_s = math.trunc(lease.deadline_s - now)  # toward zero: the last second counts as 0
        reply = rpc.LeaseTimeToLiveResponse(ID=request.ID, TTL=remaining_s, grantedTTL=lease.ttl_s)
        if request.keys:
            reply.keys.extend(self.attached_keys(request.ID))  # etcd: in no order
        return reply

    def _list_leases(self, request: rpc.LeaseLeasesRequest, now: float) -> rpc.LeaseLeasesResponse:
        return rpc.LeaseLeasesResponse(leases=[rpc.LeaseStatus(ID=lease.id) for lease in self._leases_by_deadline()])

    def _leases_by_deadline(self) -> list[ModelLease]:
        return sorted(self.leases.values(), key=lambda lease: lease.deadline_s)

    # --- alarms -------------------------------------------------------------------------------------------------

    def _alarm(self, request: rpc.AlarmRequest, now: float) -> rpc.AlarmResponse:
        alarm = (request.memberID, request.alarm)
        shown: list[tuple[int, rpc.AlarmType]] = []
        if request.action == rpc.AlarmRequest.GET:
            shown = sorted(raised for raised in self.alarms if request.alarm in (rpc.NONE, raised[1]))
        elif request.action == rpc.AlarmRequest.ACTIVATE and request.alarm != rpc.NONE:
            self.alarms.add(alarm)
            shown = [alarm]
        elif request.action == rpc.AlarmRequest.DEACTIVATE and alarm in self.alarms:
            self.alarms.remove(alarm)
            shown = [alarm]
        return rpc.AlarmResponse(alarms=[rpc.AlarmMember(memberID=member, alarm=kind) for member, kind in shown])

    def _check_space(self) -> None:
        """Out of space, what would add data is refused; whatever gives space back, and every read, goes on."""
        if any(kind == rpc.NOSPACE for _, kind in self.alarms):
            raise errors.NO_SPACE.error()


class Draft:
    """The key space as one transaction sees and changes it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._before = model.keys
        self.keys = dict(model.keys)
        self.events: list[Event] = []

    @property
    def revision(self) -> int:
        """The revision that a reader inside the transaction sees: one more as soon as something changed."""
        return self._model.revision + (1 if self.events else 0)

    def range(self, request: rpc.RangeRequest) -> rpc.RangeResponse:
        """Reads the newest keys (of this transaction), or those of an older revision."""
        keys = self._model.snapshots[request.revision] if request.revision > 0 else self.keys
        found = [kv for key, kv in sorted(keys.items()) if in_range(key, request.key, request.range_end)]
        reply = rpc.RangeResponse(count=len(found))
        if request.count_only:
            return reply
        bounds = _revision_bounds(request)
        passed = [kv for kv in found if all(holds(kv) for holds in bounds)]
        if request.limit > 0 and request.sort_order == rpc.RangeRequest.NONE and not bounds:
            # With no order asked for, etcd reads only what `more` needs, and sorts those few by the target.
            passed = passed[: request.limit + 1]
        if request.sort_order != rpc.RangeRequest.NONE or request.sort_target != rpc.RangeRequest.KEY:
            passed.sort(
                key=attrgetter(_SORT_FIELDS[request.sort_target]),
                reverse=request.sort_order == rpc.RangeRequest.DESCEND,
            )
        if 0 < request.limit < len(passed):
            reply.more = True
            passed = passed[: request.limit]
        reply.kvs.extend(passed)
        if request.keys_only:
            for kv in reply.kvs:
                kv.ClearField("value")
                if request.sort_target != rpc.RangeRequest.VALUE:  # read from the index, which has no leases
                    kv.ClearField("lease")
        return reply

    def put(self, request: rpc.PutRequest) -> rpc.PutResponse:
        """Writes a key. Without `lease` the key becomes permanent, whatever lease held it before."""
        old = self.keys.get(request.key)
        if old is None and (request.ignore_value or request.ignore_lease):
            raise errors.KEY_NOT_FOUND.error()  # deleted a moment ago, in this transaction; etcd dies of it
        revision = self._model.revision + 1
        kv = KeyValue(
            key=request.key,
            value=old.value if old and request.ignore_value else request.value,
            lease=old.lease if old and request.ignore_lease else request.lease,
            create_revision=old.create_revision if old else revision,
            version=old.version + 1 if old else 1,
            mod_revision=revision,
        )
        self.keys[request.key] = kv
        self._tell(Event(type=Event.PUT, kv=kv))
        return rpc.PutResponse(prev_kv=old if request.prev_kv else None)

    def delete_range(self, request: rpc.DeleteRangeRequest) -> rpc.DeleteRangeResponse:
        gone = [kv for key, kv in sorted(self.keys.items()) if in_range(key, request.key, request.range_end)]
        self.delete([kv.key for kv in gone])
        return rpc.DeleteRangeResponse(deleted=len(gone), prev_kvs=gone if request.prev_kv else [])

    def delete(self, keys: list[bytes]) -> None:
        for key in keys:
            del self.keys[key]
            self._tell(Event(type=Event.DELETE, kv=KeyValue(key=key, mod_revision=self._model.revision + 1)))

    def _tell(self, event: Event) -> None:
        """Remembers a change for watchers. prev_kv is the key as of the revision before; a creating put has none."""
        before = self._before.get(event.kv.key)
        creates = event.type == Event.PUT and event.kv.create_revision == event.kv.mod_revision
        if before is not None and not creates:
            event.prev_kv.CopyFrom(before)
        self.events.append(event)


# --- checks that need no state ------------------------------------------------------------------------------------


def _check_key(key: bytes) -> None:
    if not key:
        raise errors.EMPTY_KEY.error()


def _check_range(request: rpc.RangeRequest) -> None:
    _check_key(request.key)
    order, target = request.sort_order, request.sort_target
    if order not in rpc.RangeRequest.SortOrder.values() or target not in rpc.RangeRequest.SortTarget.values():
        raise errors.INVALID_SORT_OPTION.error()


def _check_put(request: rpc.PutRequest) -> None:
    _check_key(request.key)
    if request.ignore_value and request.value:
        raise errors.VALUE_PROVIDED.error()
    if request.ignore_lease and request.lease:
        raise errors.LEASE_PROVIDED.error()


def _check_txn(txn: rpc.TxnRequest, ops_max: int) -> None:
    """The form of a transaction and of all that is nested in it, in the order in which etcd finds faults."""
    size = max(len(txn.compare), len(txn.success), len(txn.failure))
    if size > ops_max:
        raise errors.TOO_MANY_OPS.error()
    for compare in txn.compare:
        _check_key(compare.key)
    for op in [*txn.success, *txn.failure]:
        if op.HasField("request_range"):
            _check_range(op.request_range)
        elif op.HasField("request_put"):
            _check_put(op.request_put)
        elif op.HasField("request_delete_range"):
            _check_key(op.request_delete_range.key)
        elif op.HasField("request_txn"):
            _check_txn(op.request_txn, ops_max - size)
        else:
            raise errors.KEY_NOT_FOUND.error()


def _check_duplicates(ops: Sequence[rpc.RequestOp]) -> tuple[set[bytes], list[tuple[bytes, bytes]]]:
    """Refuses a branch that may put a key twice, or put a key that it deletes. Returns its puts and its deletes."""
    here = [op.request_delete_range for op in ops if op.HasField("request_delete_range")]
    deletes = [(delete.key, delete.range_end) for delete in here]
    puts: set[bytes] = set()

    def deleted(key: bytes) -> bool:
        # Quirk: here etcd takes the range end "\0" literally, so that a delete of "all keys from" hits nothing.
        return any(key == start if end == b"" else start <= key < end for start, end in deletes)

    def add(more: set[bytes], allowed: set[bytes]) -> None:
        for key in more:
            if (key in puts and key not in allowed) or deleted(key):
                raise errors.DUPLICATE_KEY.error()
        puts.update(more)

    for op in ops:
        if op.HasField("request_txn"):
            then_puts, then_deletes = _check_duplicates(op.request_txn.success)
            else_puts, else_deletes = _check_duplicates(op.request_txn.failure)
            add(then_puts, allowed=set())
            add(else_puts, allowed=then_puts)  # only one of the two branches will run
            # Quirk: puts nested before this transaction were not compared with its deletes.
            deletes += then_deletes + else_deletes
    for op in ops:
        if op.HasField("request_put"):
            add({op.request_put.key}, allowed=set())
    return puts, deletes


def _may_put(txn: rpc.TxnRequest) -> bool:
    """Whether a put stands anywhere in the transaction, on a branch that is taken or not."""
    return any(
        op.HasField("request_put") or (op.HasField("request_txn") and _may_put(op.request_txn))
        for op in [*txn.success, *txn.failure]
    )


def _revision_bounds(request: rpc.RangeRequest) -> list[Callable[[KeyValue], bool]]:
    """The tests by which a range drops keys: bounds of revisions, all inclusive; 0 is no bound."""
    tests: list[tuple[int, Callable[[KeyValue], bool]]] = [
        (request.min_mod_revision, lambda kv: kv.mod_revision >= request.min_mod_revision),
        (request.max_mod_revision, lambda kv: kv.mod_revision <= request.max_mod_revision),
        (request.min_create_revision, lambda kv: kv.create_revision >= request.min_create_revision),
        (request.max_create_revision, lambda kv: kv.create_revision <= request.max_create_revision),
    ]
    return [test for bound, test in tests if bound != 0]


def _compare_one(compare: rpc.Compare, kv: KeyValue) -> bool:
    """Reads "the stored one is EQUAL to / GREATER than / LESS than the given one". A missing given one is zero."""
    field = _COMPARE_FIELDS.get(compare.target)
    stored, given = (getattr(kv, field), getattr(compare, field)) if field else (0, 0)  # an unknown target is equal
    outcomes: dict[int, bool] = {
        rpc.Compare.EQUAL: stored == given,
        rpc.Compare.GREATER: stored > given,
        rpc.Compare.LESS: stored < given,
        rpc.Compare.NOT_EQUAL: stored != given,
    }
    return outcomes.get(compare.result, True)  # an unknown result always holds
