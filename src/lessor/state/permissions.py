# SPDX-License-Identifier: Apache-2.0
"""The permission that each request needs. While auth is enabled, a request is served only after it has passed `check`.

Laws
- `check` depends on the state, the caller and the request alone. It changes nothing, and shows nothing but its verdict.
- A request without a rule here is for root alone.
- A txn is checked whole: its compares and both branches, with the txns nested in them, whichever would run.
- The keys on a lease guard it: a caller that may not write all of them can neither renew the lease, nor revoke it, nor
  hang another key on it. A caller that may not read them is not shown them.
- Errors come in etcd's order: a malformed KV request, a bad token, a request too large, no space, then permissions.
  A txn of more than STRANGER_TXN_BYTES_MAX is not looked at before its token is.

Theory of operation. The server finds the caller of a call: a name, and the auth revision at which its token is valid.
Checks on keys refuse a caller whose revision is old, because a token that carries its own revision (JWT) may name a
user that has been deleted since. Checks for root and for being logged in do not look at the revision, as in etcd.

Cost: a check on a range is a binary search in the caller's merged permissions. A request on a lease costs one such
search for each key that came since the caller's last request on it (lease_rights.py). So does a list of leases, for all
leases. Root costs nothing of that.

Does not do: finding the caller (the server's tokens do), expiry, which no caller asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import Message

from lessor.api.proto import election_pb2, health_pb2, leases_pb2, lock_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.contenders import key_of, prefix_of
from lessor.base.errors import Code, EtcdError
from lessor.base.key_range import OPEN_END, prefix_end
from lessor.state import kv, txn
from lessor.state.auth import Grants
from lessor.state.lease import Lease
from lessor.state.mvcc import Store

if TYPE_CHECKING:
    from lessor.state.machine import StateMachine


class Caller(NamedTuple):
    """The user that makes a request."""

    name: str
    revision: int  # the auth revision of the caller's token


# The caller; None for a call without a token; or the error of a bad token, which is raised when its turn comes.
Claimed = Caller | EtcdError | None


def check(machine: StateMachine, claimed: Claimed, request: Message, request_bytes_max: int) -> None:
    """Returns when the caller may make the request, and while auth is off. Raises EtcdError with etcd's reason.

    `request_bytes_max`: of a request that writes keys; a larger one gets REQUEST_TOO_LARGE.
    """
    if machine.auth.enabled:
        _RULES.get(type(request), _root_only)(_Check(machine, claimed, request_bytes_max), request)


def needs_no_caller(request: type[Message]) -> bool:
    """Whether such requests are served without a token."""
    return _RULES.get(request) is _anybody


def lease_reader(machine: StateMachine, claimed: Claimed) -> Callable[[Lease], None] | None:
    """A check for each lease of a list that is made in pieces; LeaseLeases makes the same check for all at once.

    It raises PERMISSION_DENIED for a lease with a key that the caller may not read. None: the caller may read all keys.
    """
    check = _Check(machine, claimed, 0)
    return check.read_keys_of if machine.auth.enabled and not check.is_root() else None


class _Hanging:
    """All keys that hang on a lease."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    def __contains__(self, key: object) -> bool:
        event = self._store.get(key) if isinstance(key, bytes) else None
        return event is not None and event.lease != 0


class _Check:
    """One check under way."""

    __slots__ = ("auth", "claimed", "machine", "request_bytes_max")

    def __init__(self, machine: StateMachine, claimed: Claimed, request_bytes_max: int) -> None:
        self.machine = machine
        self.auth = machine.auth
        self.claimed = claimed
        self.request_bytes_max = request_bytes_max

    def caller(self) -> Caller | None:
        """Raises the error of a bad token."""
        if isinstance(self.claimed, EtcdError):
            raise self.claimed
        return self.claimed

    def signed_in(self) -> Caller:
        caller = self.caller()
        if caller is None:
            raise errors.USER_EMPTY.error()
        return caller

    def is_root(self) -> bool:
        caller = self.caller()
        return caller is not None and self.auth.is_root(caller.name)

    def root(self) -> None:
        caller = self.signed_in()
        if not caller.name:
            raise errors.USER_EMPTY.error()
        if caller.name not in self.auth.users:
            raise errors.USER_NOT_FOUND.error()
        if not self.auth.is_root(caller.name):
            raise errors.PERMISSION_DENIED.error()

    def sized(self, request: Message) -> None:
        self.caller()
        if request.ByteSize() > self.request_bytes_max:
            raise errors.REQUEST_TOO_LARGE.error()

    def read(self, key: bytes, range_end: bytes = b"") -> None:
        self._keys(key, range_end, write=False)

    def write(self, key: bytes, range_end: bytes = b"") -> None:
        self._keys(key, range_end, write=True)

    def _keys(self, key: bytes, range_end: bytes, *, write: bool) -> None:
        grants = self._grants()
        if not grants.root and not (grants.write if write else grants.read).cover(key, range_end):
            raise errors.PERMISSION_DENIED.error()

    def _grants(self) -> Grants:
        """The caller's rights on keys. Raises the error of a caller who has none, whatever the key."""
        caller = self.caller()
        if caller is None or caller.revision == 0:
            raise errors.USER_EMPTY.error()
        if caller.revision < self.auth.revision:
            raise errors.OLD_AUTH_REVISION.error()
        grants = self.auth.grants(caller.name)
        if grants is None:
            raise errors.PERMISSION_DENIED.error()
        return grants

    def write_keys_of(self, lease_id: int) -> None:
        """Raises unless the caller may write all keys of a lease. A lease that does not live has none."""
        lease = self.machine.leases.get(lease_id)
        if lease is not None and lease.keys and not self.is_root():
            grants = self._grants()
            caller = self.signed_in()
            if not self.machine.leases.rights.may_write(lease, caller.name, self.auth.revision, grants.write):
                raise errors.PERMISSION_DENIED.error()

    def read_keys_of(self, lease: Lease | None) -> None:
        """Raises unless the caller may read all keys of a lease."""
        if lease is not None and lease.keys:
            grants, caller = self._grants(), self.signed_in()
            rights = self.machine.leases.rights
            if not grants.root and not rights.may_read(lease, caller.name, self.auth.revision, grants.read):
                raise errors.PERMISSION_DENIED.error()

    def read_keys_of_all(self) -> None:
        """The same for the keys of all leases."""
        leases = self.machine.leases
        if any(lease.keys for lease in leases):
            grants, caller, revision = self._grants(), self.signed_in(), self.auth.revision
            hanging = _Hanging(self.machine.store)
            if not grants.root and not leases.rights.may_read_all(leases, hanging, caller.name, revision, grants.read):
                raise errors.PERMISSION_DENIED.error()

    def put(self, put: kv.Put) -> None:
        key, _, lease_id, prev_kv, _, _ = put
        self.write(key)
        if lease_id:
            self.write_keys_of(lease_id)
        if prev_kv:
            self.read(key)

    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> None:
        self.write(request.key, request.range_end)
        if request.prev_kv:
            self.read(request.key, request.range_end)

    def txn(self, node: txn.Node) -> None:
        for compare in node.compares:
            self.read(compare.key, compare.range_end)
        for operations in (node.success, node.failure):
            for kind, request in operations:
                if kind == txn.PUT:
                    self.put(request)
                elif kind == txn.RANGE:
                    self.read(request.key, request.range_end)
                elif kind == txn.DELETE:
                    self.delete(request)
                else:
                    self.txn(request)


# --- the rules --------------------------------------------------------------------------------------------------


def _anybody(check: _Check, request: Message) -> None: ...


def _with_or_without_token(check: _Check, request: Message) -> None:
    check.caller()


def _signed_in(check: _Check, request: Message) -> None:
    check.signed_in()


def _root_only(check: _Check, request: Message) -> None:
    check.root()


def _range(check: _Check, request: rpc_pb2.RangeRequest) -> None:
    kv.check_range(request)
    check.read(request.key, request.range_end)


def _put(check: _Check, request: rpc_pb2.PutRequest) -> None:
    put = kv.read_put(request)
    check.sized(request)
    if check.machine.no_space:
        raise errors.NO_SPACE.error()
    check.put(put)


def _delete_range(check: _Check, request: rpc_pb2.DeleteRangeRequest) -> None:
    kv.check_delete(request)
    check.sized(request)
    check.delete(request)


def _txn(check: _Check, request: rpc_pb2.TxnRequest) -> None:
    if not isinstance(check.claimed, Caller) and request.ByteSize() > limits.STRANGER_TXN_BYTES_MAX:
        check.signed_in()  # raises, before the request costs more
    node = txn.read_txn(request, check.machine.max_txn_ops)
    check.sized(request)
    if check.machine.no_space and txn.has_put(node):
        raise errors.NO_SPACE.error()
    check.txn(node)


def _lease_revoke(check: _Check, request: rpc_pb2.LeaseRevokeRequest) -> None:
    check.signed_in()
    check.write_keys_of(request.ID)


def _lease_keep_alive(check: _Check, request: rpc_pb2.LeaseKeepAliveRequest) -> None:
    check.signed_in()
    check.write_keys_of(request.ID)


def _lease_time_to_live(check: _Check, request: rpc_pb2.LeaseTimeToLiveRequest) -> None:
    check.signed_in()
    if request.keys and not check.is_root():
        check.read_keys_of(check.machine.leases.get(request.ID))


def _lease_leases(check: _Check, request: rpc_pb2.LeaseLeasesRequest) -> None:
    check.signed_in()
    if not check.is_root():
        check.read_keys_of_all()


def _lease_watch(check: _Check, request: leases_pb2.LeaseWatchRequest) -> None:
    # A caller that may read every key is one that LeaseLeases never refuses, whatever leases there will be.
    check.read(b"\0", OPEN_END)


def _watch(check: _Check, request: rpc_pb2.WatchCreateRequest) -> None:
    check.read(request.key or b"\0", request.range_end)


def _alarm(check: _Check, request: rpc_pb2.AlarmRequest) -> None:
    if request.action == rpc_pb2.AlarmRequest.GET:
        check.signed_in()
    else:
        check.root()


def _user_get(check: _Check, request: rpc_pb2.AuthUserGetRequest) -> None:
    caller = check.caller()
    if request.name != (caller.name if caller is not None else ""):
        check.root()


def _role_get(check: _Check, request: rpc_pb2.AuthRoleGetRequest) -> None:
    caller = check.caller()
    user = check.auth.users.get(caller.name) if caller is not None else None
    if user is None or request.role not in user.roles:
        check.root()


# Locks and elections are made of requests on keys and leases. etcd sends those in the caller's name through a client of
# its own, which loses the code of an error.


def _codeless(rule: Callable[[_Check, Any], None]) -> Callable[[_Check, Any], None]:
    def checked(check: _Check, request: Any) -> None:
        try:
            rule(check, request)
        except EtcdError as error:
            raise EtcdError(Code.UNKNOWN, error.message) from None

    return checked


def _contend(check: _Check, name: bytes, lease_id: int) -> None:
    """The call makes or finds the caller's own key, and reads the keys of the others."""
    check.signed_in()
    prefix = prefix_of(name)
    if lease_id:
        key = key_of(name, lease_id)
        check.read(key)
        check.write(key)
        check.write_keys_of(lease_id)
    else:  # the key will be named after a lease that the server grants
        check.write(prefix, prefix_end(prefix))
    check.read(prefix, prefix_end(prefix))


@_codeless
def _lock(check: _Check, request: lock_pb2.LockRequest) -> None:
    _contend(check, request.name, request.lease)


@_codeless
def _unlock(check: _Check, request: lock_pb2.UnlockRequest) -> None:
    if request.key:
        check.write(request.key)
    else:
        check.signed_in()


@_codeless
def _campaign(check: _Check, request: election_pb2.CampaignRequest) -> None:
    _contend(check, request.name, request.lease)


@_codeless
def _proclaim(check: _Check, request: election_pb2.ProclaimRequest) -> None:
    leader = request.leader
    check.signed_in()
    if leader.key:
        check.put((leader.key, b"", leader.lease, False, False, False))
        check.read(leader.key)


@_codeless
def _resign(check: _Check, request: election_pb2.ResignRequest) -> None:
    check.signed_in()
    if request.leader.key:
        check.write(request.leader.key)
        check.read(request.leader.key)


@_codeless
def _leader(check: _Check, request: election_pb2.LeaderRequest) -> None:
    prefix = prefix_of(request.name)
    check.read(prefix, prefix_end(prefix))


_RULES: Final[dict[type[Message], Callable[[_Check, Any], None]]] = {
    rpc_pb2.RangeRequest: _range,
    rpc_pb2.PutRequest: _put,
    rpc_pb2.DeleteRangeRequest: _delete_range,
    rpc_pb2.TxnRequest: _txn,
    rpc_pb2.LeaseGrantRequest: _signed_in,
    rpc_pb2.LeaseRevokeRequest: _lease_revoke,
    rpc_pb2.LeaseKeepAliveRequest: _lease_keep_alive,
    rpc_pb2.LeaseTimeToLiveRequest: _lease_time_to_live,
    rpc_pb2.LeaseLeasesRequest: _lease_leases,
    rpc_pb2.WatchCreateRequest: _watch,
    rpc_pb2.AlarmRequest: _alarm,
    rpc_pb2.StatusRequest: _signed_in,
    rpc_pb2.MemberListRequest: _signed_in,
    rpc_pb2.AuthenticateRequest: _anybody,
    rpc_pb2.AuthStatusRequest: _with_or_without_token,  # since etcd 3.7
    rpc_pb2.AuthUserGetRequest: _user_get,
    rpc_pb2.AuthRoleGetRequest: _role_get,
    lock_pb2.LockRequest: _lock,
    lock_pb2.UnlockRequest: _unlock,
    election_pb2.CampaignRequest: _campaign,
    election_pb2.ProclaimRequest: _proclaim,
    election_pb2.ResignRequest: _resign,
    election_pb2.LeaderRequest: _leader,
    leases_pb2.LeaseListRequest: _signed_in,  # and lease_reader, for each lease
    leases_pb2.LeaseWatchRequest: _lease_watch,
    health_pb2.HealthCheckRequest: _anybody,
}
