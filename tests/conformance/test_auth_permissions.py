# SPDX-License-Identifier: Apache-2.0
"""Who may read and write which keys: alone, in txns, through leases, by watching - in Lessor and in a real etcd.

The rules about leases are those of the newest 3.6; an older etcd is not asked about them.
"""

from typing import Any

import pytest

from lessor.api.proto import election_pb2 as election
from lessor.api.proto import lock_pb2 as lock
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import BAD_TOKEN, BOTH, DENIED, NOBODY, READ, WRITE, As
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import end_of, new_lease_id, read_line

LEASE_NOT_FOUND = Failure(5, "etcdserver: requested lease not found")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_reading(root: As, nobody: As, prefix: bytes) -> None:
    a, b, c = prefix + b"a", prefix + b"b", prefix + b"c"
    user = root.user_with((READ, a, c), (WRITE, c, b""))
    for key, range_end, allowed in [
        (a, b"", True),
        (b + b"zzz", b"", True),
        (c, b"", False),
        (prefix, b"", False),
        (a, c, True),
        (a + b"1", b, True),
        (a, c + b"\0", False),
        (prefix, c, False),
        (a, b"\0", False),
        (b"\0", b"\0", False),
    ]:
        reply = user.call(rpc.RangeRequest(key=key, range_end=range_end))
        assert (reply == DENIED) is not allowed, (key, range_end)
        reply = user.call(rpc.RangeRequest(key=key, range_end=range_end, count_only=True, serializable=True))
        assert (reply == DENIED) is not allowed, (key, range_end)
    assert user.call(rpc.PutRequest(key=a)) == DENIED
    assert nobody.call(rpc.RangeRequest(key=a)) == NOBODY


def test_ranges_that_touch_are_one(root: As, prefix: bytes) -> None:
    a, b, c, d = (prefix + letter for letter in (b"a", b"b", b"c", b"d"))
    user = root.user_with((READ, a, b), (BOTH, b, b""), (READ, b + b"\0", c), (READ, d, b"\0"))
    user.do(rpc.RangeRequest(key=a, range_end=c))
    assert user.call(rpc.RangeRequest(key=a, range_end=c + b"\0")) == DENIED
    user.do(rpc.RangeRequest(key=d + b"1", range_end=b"\0"))
    user.do(rpc.RangeRequest(key=d, range_end=b"\xff\xff"))
    assert user.call(rpc.RangeRequest(key=c, range_end=b"\0")) == DENIED


def test_permissions_of_several_roles_add_up(root: As, prefix: bytes) -> None:
    a, b, c = prefix + b"a", prefix + b"b", prefix + b"c"
    name = root.add_user(root.add_role((READ, a, b)), root.add_role((READ, b, c), (WRITE, a, b"")))
    user = root.log_in(name, name)
    user.do(rpc.RangeRequest(key=a, range_end=c))
    user.do(rpc.PutRequest(key=a))
    assert user.call(rpc.PutRequest(key=b)) == DENIED


def test_writing(root: As, nobody: As, prefix: bytes) -> None:
    writer = root.user_with((WRITE, prefix, end_of(prefix)))
    reader = root.user_with((READ, prefix, end_of(prefix)))
    key = prefix + b"k"
    writer.do(rpc.PutRequest(key=key, value=b"secret"))
    assert writer.call(rpc.RangeRequest(key=key)) == DENIED
    assert writer.call(rpc.PutRequest(key=key, prev_kv=True)) == DENIED
    assert writer.call(rpc.DeleteRangeRequest(key=key, prev_kv=True)) == DENIED
    assert reader.do(rpc.RangeRequest(key=key)).kvs[0].value == b"secret"
    assert reader.call(rpc.PutRequest(key=key)) == DENIED
    assert reader.call(rpc.DeleteRangeRequest(key=key)) == DENIED
    assert nobody.call(rpc.PutRequest(key=key)) == NOBODY
    assert nobody.call(rpc.DeleteRangeRequest(key=key)) == NOBODY
    assert writer.call(rpc.DeleteRangeRequest(key=prefix, range_end=b"\0")) == DENIED
    assert writer.do(rpc.DeleteRangeRequest(key=prefix, range_end=end_of(prefix))).deleted == 1


def test_what_is_malformed_is_told_before_who_asks(root: As, nobody: As) -> None:
    empty = Failure(3, "etcdserver: key is not provided")
    for request in (
        rpc.RangeRequest(),
        rpc.PutRequest(),
        rpc.DeleteRangeRequest(),
        rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest())]),
        rpc.TxnRequest(compare=[rpc.Compare()]),
    ):
        assert nobody.call(request) == empty
        assert As(root.subject, "bad.1").call(request) == empty
    both = rpc.PutRequest(key=b"a", value=b"b", ignore_value=True)
    assert nobody.call(both) == Failure(3, "etcdserver: value is provided")


def test_what_depends_on_the_state_is_told_only_to_whom_it_concerns(root: As, prefix: bytes) -> None:
    user = root.user_with((BOTH, prefix, b""))
    stranger = root.user_with()
    for request, failure in [
        (rpc.PutRequest(key=prefix, lease=77), LEASE_NOT_FOUND),
        (rpc.PutRequest(key=prefix, ignore_value=True), Failure(3, "etcdserver: key not found")),
        (
            rpc.RangeRequest(key=prefix, revision=1 << 50),
            Failure(11, "etcdserver: mvcc: required revision is a future revision"),
        ),
    ]:
        assert user.call(request) == failure
        assert stranger.call(request) == DENIED


# --- txns -------------------------------------------------------------------------------------------------------------


def op(**kind: Any) -> rpc.RequestOp:
    return rpc.RequestOp(**kind)


def guessing(key: bytes, range_end: bytes = b"") -> rpc.Compare:
    return rpc.Compare(key=key, range_end=range_end, target=rpc.Compare.VALUE, result=rpc.Compare.GREATER, value=b"m")


def test_txns_are_checked_whole(newest: As, nobody: As, prefix: bytes) -> None:
    mine, theirs, only_write = prefix + b"mine", prefix + b"theirs", prefix + b"only-write"
    newest.do(rpc.PutRequest(key=theirs, value=b"secret"))
    user = newest.user_with((BOTH, mine, b""), (WRITE, only_write, b""))
    fine = op(request_put=rpc.PutRequest(key=mine))
    bad_ops = [
        op(request_range=rpc.RangeRequest(key=theirs)),
        op(request_range=rpc.RangeRequest(key=mine, range_end=theirs)),
        op(request_put=rpc.PutRequest(key=theirs)),
        op(request_put=rpc.PutRequest(key=only_write, prev_kv=True)),
        op(request_delete_range=rpc.DeleteRangeRequest(key=theirs)),
        op(request_delete_range=rpc.DeleteRangeRequest(key=only_write, prev_kv=True)),
        op(request_txn=rpc.TxnRequest(compare=[guessing(theirs)])),
        op(request_txn=rpc.TxnRequest(failure=[op(request_put=rpc.PutRequest(key=theirs))])),
        op(request_txn=rpc.TxnRequest(success=[op(request_txn=rpc.TxnRequest(compare=[guessing(theirs)]))])),
    ]
    for bad in bad_ops:
        assert user.call(rpc.TxnRequest(success=[bad])) == DENIED, bad
        assert user.call(rpc.TxnRequest(failure=[bad])) == DENIED, bad
        assert nobody.call(rpc.TxnRequest(failure=[bad])) == NOBODY, bad
    assert user.call(rpc.TxnRequest(compare=[guessing(theirs)])) == DENIED
    assert user.call(rpc.TxnRequest(compare=[guessing(only_write)])) == DENIED
    assert user.call(rpc.TxnRequest(compare=[guessing(mine, b"\0")])) == DENIED
    assert user.do(rpc.TxnRequest(compare=[guessing(mine)], failure=[fine])).succeeded is False
    assert user.do(rpc.RangeRequest(key=mine)).count == 1
    user.do(rpc.TxnRequest(success=[op(request_put=rpc.PutRequest(key=only_write))]))


def test_an_empty_txn_asks_for_nothing(root: As, nobody: As) -> None:
    assert not isinstance(nobody.call(rpc.TxnRequest()), Failure)
    assert As(root.subject, "bad.1").call(rpc.TxnRequest()) == BAD_TOKEN


# --- leases -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(newest: As, prefix: bytes) -> tuple[int, bytes, bytes]:
    """A lease with one key of the user's to come and one of somebody else's."""
    lease_id = new_lease_id()
    newest.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    mine, theirs = prefix + b"mine", prefix + b"theirs"
    newest.do(rpc.PutRequest(key=mine, lease=lease_id))
    newest.do(rpc.PutRequest(key=theirs, lease=lease_id))
    return lease_id, mine, theirs


def test_revoking_needs_the_right_to_write_all_keys(newest: As, nobody: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, theirs = shared
    revoke = rpc.LeaseRevokeRequest(ID=lease_id)
    assert nobody.call(revoke) == NOBODY
    assert newest.user_with((BOTH, mine, b""), (READ, theirs, b"")).call(revoke) == DENIED
    newest.user_with((WRITE, mine, b""), (WRITE, theirs, b"")).do(revoke)
    assert newest.user_with().call(revoke) == LEASE_NOT_FOUND
    assert nobody.call(revoke) == NOBODY


def test_a_lease_without_keys_is_everybodys(newest: As) -> None:
    lease_id = newest.do(rpc.LeaseGrantRequest(TTL=600)).ID
    user = newest.user_with()
    assert user.keep_alive(lease_id)[0].TTL == 600
    user.do(rpc.LeaseRevokeRequest(ID=lease_id))


def test_renewing_needs_the_right_to_write_all_keys(newest: As, nobody: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, theirs = shared
    assert nobody.keep_alive(lease_id) == [NOBODY]
    assert As(newest.subject, "bad.1").keep_alive(lease_id) == [BAD_TOKEN]
    assert newest.user_with((BOTH, mine, b""), (READ, theirs, b"")).keep_alive(lease_id) == [DENIED]
    assert newest.user_with((WRITE, mine, b""), (WRITE, theirs, b"")).keep_alive(lease_id)[0].TTL == 600
    assert newest.keep_alive(lease_id)[0].TTL == 600


def test_a_refused_renewal_ends_the_stream_after_what_came_before(newest: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, _ = shared
    user = newest.user_with((BOTH, mine, b""))
    free = user.do(rpc.LeaseGrantRequest(TTL=60)).ID
    replies = user.keep_alive(free, 12345, lease_id, free)
    assert [getattr(reply, "TTL", reply) for reply in replies] == [60, 0, DENIED]


def test_a_right_that_is_lost_stops_renewals(newest: As, prefix: bytes) -> None:
    role = newest.add_role((BOTH, prefix, b""))
    name = newest.add_user(role)
    user = newest.log_in(name, name)
    lease_id = user.do(rpc.LeaseGrantRequest(TTL=600)).ID
    user.do(rpc.PutRequest(key=prefix, lease=lease_id))
    stream = user.conversation("etcdserverpb.Lease/LeaseKeepAlive")
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read().TTL == 600
    newest.do(rpc.AuthRoleRevokePermissionRequest(role=role, key=prefix))
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read() == DENIED
    stream.cancel()


def test_keepalives_over_http(newest: As, nobody: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, _ = shared
    body = {"ID": str(lease_id)}
    assert newest.post("/v3/lease/keepalive", body).json()["result"]["TTL"] == "600"
    refused = newest.user_with((BOTH, mine, b"")).post("/v3/lease/keepalive", body)
    assert (refused.status, refused.json().get("message") or refused.json()["error"]["message"]) == (403, DENIED.text)
    assert nobody.post("/v3/lease/keepalive", body).status == 400


def test_the_keys_of_a_lease_are_shown_to_who_may_read_them(
    newest: As, nobody: As, shared: tuple[int, bytes, bytes]
) -> None:
    lease_id, mine, theirs = shared
    user = newest.user_with((BOTH, mine, b""), (WRITE, theirs, b""))
    assert user.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL == 600
    assert user.call(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)) == DENIED
    assert user.do(rpc.LeaseTimeToLiveRequest(ID=12345, keys=True)).TTL == -1
    assert nobody.call(rpc.LeaseTimeToLiveRequest(ID=lease_id)) == NOBODY
    assert nobody.call(rpc.LeaseTimeToLiveRequest(ID=12345, keys=True)) == NOBODY
    reader = newest.user_with((READ, mine, b""), (READ, theirs, b""))
    assert sorted(reader.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)).keys) == [mine, theirs]
    assert len(newest.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)).keys) == 2


def test_leases_are_listed_to_who_may_read_all_their_keys(
    newest: As, nobody: As, shared: tuple[int, bytes, bytes]
) -> None:
    lease_id, mine, _ = shared
    listing = rpc.LeaseLeasesRequest()
    assert nobody.call(listing) == NOBODY
    assert newest.user_with((BOTH, mine, b"")).call(listing) == DENIED
    assert lease_id in [one.ID for one in newest.do(listing).leases]
    assert lease_id in [one.ID for one in newest.user_with((READ, b"\0", b"\0")).do(listing).leases]


def test_hanging_a_key_on_a_lease_needs_the_right_to_write_its_keys(
    newest: As, shared: tuple[int, bytes, bytes]
) -> None:
    lease_id, mine, theirs = shared
    user = newest.user_with((BOTH, mine, b""))
    put = rpc.PutRequest(key=mine, lease=lease_id)
    assert user.call(put) == DENIED
    within = op(request_put=put)
    assert user.call(rpc.TxnRequest(success=[within])) == DENIED
    assert user.call(rpc.TxnRequest(failure=[within])) == DENIED
    assert user.call(rpc.TxnRequest(success=[op(request_txn=rpc.TxnRequest(failure=[within]))])) == DENIED
    user.do(rpc.PutRequest(key=mine, value=b"v", ignore_lease=True))
    both = newest.user_with((BOTH, mine, b""), (WRITE, theirs, b""))
    both.do(put)
    both.do(rpc.TxnRequest(success=[within]))


@pytest.mark.slow
def test_expiry_asks_nobody(newest: As, prefix: bytes) -> None:
    lease_id = newest.do(rpc.LeaseGrantRequest(TTL=1)).ID
    newest.do(rpc.PutRequest(key=prefix, lease=lease_id))
    stream, _ = newest.watch(prefix)
    newest.subject.pass_time(newest.subject.min_ttl_s)
    assert stream.read().events[0].type == 1
    stream.cancel()


# --- watches ----------------------------------------------------------------------------------------------------------


def refusal(reply: Any) -> tuple[bool, bool, int, str]:
    return reply.created, reply.canceled, reply.watch_id, reply.cancel_reason


def test_watching_needs_the_right_to_read(newest: As, nobody: As, prefix: bytes) -> None:
    user = newest.user_with((READ, prefix, end_of(prefix)), (WRITE, b"w", b""))
    denied = (True, True, -1, "rpc error: code = PermissionDenied desc = etcdserver: permission denied")
    for key, range_end in ((b"w", b""), (prefix, b"\0"), (b"", b""), (b"", b"\0"), (prefix[:-1], end_of(prefix))):
        stream, reply = user.watch(key, range_end, watch_id=5)
        assert refusal(reply) == denied
        stream.cancel()
    stream, reply = nobody.watch(prefix)
    assert refusal(reply) == (True, True, -1, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty")
    stream.cancel()
    stream, reply = user.watch(prefix, end_of(prefix), prev_kv=True)
    assert (reply.created, reply.canceled) == (True, False)
    newest.do(rpc.PutRequest(key=prefix + b"k", value=b"1"))
    assert stream.read().events[0].kv.value == b"1"
    # The stream has room for more watches after one that was refused.
    stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"w")))
    assert refusal(stream.read()) == denied
    newest.do(rpc.PutRequest(key=prefix + b"k", value=b"2"))
    assert stream.read().events[0].prev_kv.value == b"1"
    stream.cancel()


def test_a_watch_outlives_the_right_and_the_token_that_began_it(root: As, prefix: bytes) -> None:
    user = root.user_with((READ, prefix, b""))
    stream, _ = user.watch(prefix)
    root.do(rpc.AuthUserDeleteRequest(name=user.name))
    root.do(rpc.PutRequest(key=prefix, value=b"still"))
    assert stream.read().events[0].kv.value == b"still"
    stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=prefix)))
    assert stream.read().canceled
    stream.cancel()


def test_watching_over_http(newest: As) -> None:
    with newest.subject.http_stream("/v3/watch", '{"create_request":{"key":"YQ=="}}') as reply:
        assert read_line(reply)["result"]["cancel_reason"].endswith("user name is empty")


# --- locks and elections ----------------------------------------------------------------------------------------------

CODELESS = Failure(2, DENIED.text)


@pytest.mark.parametrize("lease_id", [0x7B, -5])
def test_locks_are_keys(newest: As, nobody: As, prefix: bytes, lease_id: int) -> None:
    name = prefix + b"lock"
    user = newest.user_with((BOTH, name + b"/", name + b"0"))
    user.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    assert newest.user_with((BOTH, name, b"")).call(lock.LockRequest(name=name, lease=lease_id)) == CODELESS
    assert newest.user_with((READ, b"\0", b"\0")).call(lock.LockRequest(name=name, lease=lease_id)) == CODELESS
    assert newest.user_with((WRITE, b"\0", b"\0")).call(lock.LockRequest(name=name, lease=lease_id)) == CODELESS
    assert nobody.call(lock.LockRequest(name=name, lease=lease_id)) == Failure(2, NOBODY.text)
    assert As(newest.subject, "bad.1").call(lock.LockRequest(name=name, lease=lease_id)) == Failure(2, BAD_TOKEN.text)
    own_key = newest.user_with((BOTH, name + b"/%x" % lease_id, b""))
    assert own_key.call(lock.LockRequest(name=name, lease=lease_id)) == CODELESS  # the others' keys count too
    key = user.do(lock.LockRequest(name=name, lease=lease_id)).key
    assert newest.user_with((READ, b"\0", b"\0")).call(lock.UnlockRequest(key=key)) == CODELESS
    assert nobody.call(lock.UnlockRequest(key=key)) == Failure(2, NOBODY.text)
    user.do(lock.UnlockRequest(key=key))
    user.do(rpc.LeaseRevokeRequest(ID=lease_id))


def test_a_lock_without_a_lease_of_ones_own(newest: As, prefix: bytes) -> None:
    name = prefix + b"lock"
    assert newest.user_with((BOTH, name, b"")).call(lock.LockRequest(name=name)) == CODELESS
    user = newest.user_with((BOTH, name + b"/", name + b"0"))
    user.do(lock.UnlockRequest(key=user.do(lock.LockRequest(name=name)).key))


def test_elections_are_keys(newest: As, nobody: As, prefix: bytes) -> None:
    name = prefix + b"election"
    user = newest.user_with((BOTH, name + b"/", name + b"0"))
    reader, writer = newest.user_with((READ, b"\0", b"\0")), newest.user_with((WRITE, b"\0", b"\0"))
    lease_id = user.do(rpc.LeaseGrantRequest(TTL=600)).ID
    campaign = election.CampaignRequest(name=name, lease=lease_id, value=b"v")
    for other in (reader, writer):
        assert other.call(campaign) == CODELESS
    assert nobody.call(campaign) == Failure(2, NOBODY.text)
    leader = user.do(campaign).leader
    proclaim, resign = election.ProclaimRequest(leader=leader, value=b"w"), election.ResignRequest(leader=leader)
    for other in (reader, writer):
        assert other.call(proclaim) == CODELESS
        assert other.call(resign) == CODELESS
    assert nobody.call(proclaim) == Failure(2, NOBODY.text)
    user.do(proclaim)
    look = election.LeaderRequest(name=name)
    assert user.do(look).kv.value == reader.do(look).kv.value == b"w"
    assert writer.call(look) == CODELESS
    assert nobody.call(look) == Failure(2, NOBODY.text)
    user.do(resign)


def test_observing_needs_the_right_to_read(newest: As, nobody: As, prefix: bytes) -> None:
    user = newest.user_with((BOTH, prefix + b"/", prefix + b"0"))
    leader = user.do(election.CampaignRequest(name=prefix, value=b"v")).leader
    stream = user.conversation("v3electionpb.Election/Observe")
    stream.send(election.LeaderRequest(name=prefix))
    stream.half_close()
    assert stream.read().kv.value == b"v"
    stream.cancel()
    for other, why in ((newest.user_with((WRITE, b"\0", b"\0")), CODELESS), (nobody, Failure(2, NOBODY.text))):
        stream = other.conversation("v3electionpb.Election/Observe")
        stream.send(election.LeaderRequest(name=prefix))
        stream.half_close()
        assert stream.read() == (why if newest.subject.is_lessor else None)  # etcd ends the stream without a word
    user.do(election.ResignRequest(leader=leader))


def test_a_request_that_is_not_sent_opens_nothing(newest: As, nobody: As) -> None:
    """Over HTTP an empty body is an empty request: the election without a name."""
    leader = newest.do(election.CampaignRequest(value=b"secret")).leader
    for body in ("", "{}"):
        refused = nobody.post("/v3/election/observe", body)
        assert refused.status == (500 if newest.subject.is_lessor else 200)
        assert b"c2VjcmV0" not in refused.body
    newest.do(election.ResignRequest(leader=leader))
