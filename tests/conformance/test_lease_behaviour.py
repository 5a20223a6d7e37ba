# SPDX-License-Identifier: Apache-2.0
"""Leases: grant, keep alive, look, revoke, expire, and what becomes of their keys - in Lessor and in a real etcd."""

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import Subject, end_of, new_lease_id
from tests.conformance.watch_peer import DELETE, PUT, WatchPeer, seen

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
TTL_S_MAX = 9_000_000_000
EXISTS = Failure(9, "etcdserver: lease already exists")
NOT_FOUND = Failure(5, "etcdserver: requested lease not found")
TOO_LARGE = Failure(11, "etcdserver: too large lease TTL")


def keep(lease_id: int) -> rpc.LeaseKeepAliveRequest:
    return rpc.LeaseKeepAliveRequest(ID=lease_id)


# --- grant ------------------------------------------------------------------------------------------------------------


def test_a_grant_echoes_id_and_ttl_and_moves_no_revision(subject: Subject, prefix: bytes) -> None:
    revision = subject.put(prefix)
    lease_id = new_lease_id()
    reply = subject.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=77))
    assert (reply.ID, reply.TTL, reply.error, reply.header.revision) == (lease_id, 77, "", revision)
    assert subject.revision == revision


def test_ids_given_by_the_server_are_positive_and_differ(subject: Subject) -> None:
    ids = [subject.do(rpc.LeaseGrantRequest(TTL=600)).ID for _ in range(20)]
    assert len(set(ids)) == 20
    assert all(0 < lease_id <= INT64_MAX for lease_id in ids)


@pytest.mark.parametrize("lease_id", [-3, INT64_MIN, INT64_MAX])
def test_any_id_but_zero_may_be_chosen(subject: Subject, prefix: bytes, lease_id: int) -> None:
    assert subject.grant(lease_id=lease_id) == lease_id
    subject.put(prefix, lease=lease_id)
    assert subject.get(prefix).lease == lease_id
    assert subject.keys_of(lease_id) == [prefix]
    subject.revoke(lease_id)
    assert subject.get(prefix) is None


@pytest.mark.parametrize("ttl_s", [INT64_MIN, -1, 0, 1, 2, 3])
def test_short_ttls_are_raised_to_the_least(subject: Subject, ttl_s: int) -> None:
    # The least TTL follows from the election timeout in etcd: 2 s by default. Lessor has no elections: 1 s.
    reply = subject.do(rpc.LeaseGrantRequest(TTL=ttl_s))
    assert max(ttl_s, subject.min_ttl_s) == reply.TTL
    assert subject.do(rpc.LeaseTimeToLiveRequest(ID=reply.ID)).grantedTTL == reply.TTL


def test_the_longest_ttl_is_granted(subject: Subject) -> None:
    lease_id = subject.grant(TTL_S_MAX)
    assert subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL == TTL_S_MAX
    subject.revoke(lease_id)


@pytest.mark.parametrize("ttl_s", [TTL_S_MAX + 1, INT64_MAX])
def test_longer_ttls_are_refused(subject: Subject, ttl_s: int) -> None:
    lease_id = new_lease_id()
    assert subject.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl_s)) == TOO_LARGE
    assert not subject.alive(lease_id)


def test_an_id_in_use_is_refused_and_its_lease_untouched(subject: Subject) -> None:
    lease_id = subject.grant(100)
    assert subject.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=500)) == EXISTS
    assert subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL == 100


def test_a_ttl_too_large_is_told_before_an_id_in_use(subject: Subject) -> None:
    lease_id = subject.grant()
    assert subject.call(rpc.LeaseGrantRequest(ID=lease_id, TTL=TTL_S_MAX + 1)) == TOO_LARGE


def test_the_id_of_a_revoked_lease_can_be_granted_again_without_its_keys(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant(100)
    subject.put(prefix, lease=lease_id)
    subject.revoke(lease_id)
    assert subject.grant(200, lease_id) == lease_id
    reply = subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True))
    assert (reply.grantedTTL, list(reply.keys)) == (200, [])


# --- revoke -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lease_id", [0, 0x7E57, -1, INT64_MIN])
def test_a_missing_lease_cannot_be_revoked(subject: Subject, lease_id: int) -> None:
    assert subject.call(rpc.LeaseRevokeRequest(ID=lease_id)) == NOT_FOUND


def test_a_lease_can_be_revoked_once(subject: Subject) -> None:
    lease_id = subject.grant()
    subject.revoke(lease_id)
    assert subject.call(rpc.LeaseRevokeRequest(ID=lease_id)) == NOT_FOUND


def test_revoking_deletes_all_keys_in_one_revision(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    for number in range(60):
        revision = subject.put(prefix + b"%d" % number, lease=lease_id)
    assert subject.revoke(lease_id) == revision + 1 == subject.revision
    assert subject.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix))).count == 0
    past = subject.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix), revision=revision))
    assert past.count == 60


def test_revoking_a_lease_without_keys_moves_no_revision(subject: Subject, prefix: bytes) -> None:
    revision = subject.put(prefix)
    assert subject.revoke(subject.grant()) == revision == subject.revision


def test_revoking_leaves_other_keys_alone(subject: Subject, prefix: bytes) -> None:
    doomed, other = subject.grant(), subject.grant()
    subject.put(prefix + b"doomed", lease=doomed)
    subject.put(prefix + b"other", lease=other)
    subject.put(prefix + b"free")
    subject.revoke(doomed)
    kvs = subject.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix))).kvs
    assert [kv.key for kv in kvs] == [prefix + b"free", prefix + b"other"]


# --- keep alive -------------------------------------------------------------------------------------------------------


def test_each_keepalive_has_a_reply_in_order_missing_leases_too(subject: Subject) -> None:
    ids = [subject.grant(100 + number) for number in range(5)]
    asked = []
    for number in range(60):
        asked += [ids[number % 5], 0x7E57 + number]
    stream = subject.keepalive()
    stream.send(*map(keep, asked))
    replies = [stream.read() for _ in asked]
    stream.cancel()
    wanted = [(lease_id, 100 + ids.index(lease_id) if lease_id in ids else 0) for lease_id in asked]
    assert [(reply.ID, reply.TTL) for reply in replies] == wanted


def test_half_close_ends_with_ok_after_every_reply(subject: Subject) -> None:
    ids = [subject.grant(), 0x7E57]
    stream = subject.keepalive()
    stream.send(*[keep(ids[number % 2]) for number in range(300)])
    stream.half_close()
    assert [reply.ID for reply in stream.read_all()] == [ids[number % 2] for number in range(300)]


def test_a_stream_without_a_request_ends_with_ok(subject: Subject) -> None:
    stream = subject.keepalive()
    stream.half_close()
    assert stream.read_all() == []


def test_a_missing_lease_is_no_error_and_the_stream_goes_on(subject: Subject) -> None:
    lease_id = subject.grant(100)
    stream = subject.keepalive()
    for asked, ttl_s in ((0, 0), (0x7E57, 0), (-1, 0), (lease_id, 100), (INT64_MIN, 0), (lease_id, 100)):
        stream.send(keep(asked))
        reply = stream.read()
        assert (asked, ttl_s) == (reply.ID, reply.TTL)
    stream.cancel()


def test_a_revoked_lease_is_not_kept_alive_by_an_old_stream(subject: Subject) -> None:
    lease_id = subject.grant(100)
    stream = subject.keepalive()
    for ttl_s in (100, 100):
        stream.send(keep(lease_id))
        assert ttl_s == stream.read().TTL
    subject.revoke(lease_id)
    stream.send(keep(lease_id))
    reply = stream.read()
    assert (lease_id, 0) == (reply.ID, reply.TTL)
    # The id can live again, as another lease.
    subject.grant(300, lease_id)
    stream.send(keep(lease_id))
    assert stream.read().TTL == 300
    stream.cancel()


def test_a_lease_may_be_kept_alive_on_any_stream(subject: Subject) -> None:
    lease_id = subject.grant(100)
    streams = [subject.keepalive() for _ in range(5)]
    for stream in streams * 2:
        stream.send(keep(lease_id))
        assert stream.read().TTL == 100
    for stream in streams:
        stream.cancel()


def test_the_header_of_a_keepalive_names_the_revision(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant(100)
    revision = subject.put(prefix)
    stream = subject.keepalive()
    stream.send(keep(lease_id))
    header = stream.read().header
    stream.cancel()
    assert header == subject.do(rpc.RangeRequest(key=prefix)).header
    assert header.revision == revision


def test_the_ttl_of_a_keepalive_is_the_granted_one_also_where_it_was_raised(subject: Subject) -> None:
    lease_id = subject.grant(0)
    assert subject.min_ttl_s == subject.do(keep(lease_id)).TTL


# --- time to live -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("lease_id", [0, 0x7E57, -1, INT64_MIN])
def test_a_missing_lease_has_a_ttl_of_minus_one(subject: Subject, lease_id: int, keys: bool) -> None:
    reply = subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=keys))
    assert (reply.ID, reply.TTL, reply.grantedTTL, list(reply.keys)) == (lease_id, -1, 0, [])
    assert reply.header.revision == subject.revision


def test_the_remaining_ttl_is_cut_to_whole_seconds(subject: Subject) -> None:
    lease_id = subject.grant(1000)
    reply = subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id))
    assert (reply.ID, reply.TTL, reply.grantedTTL) == (lease_id, 999, 1000)


def test_keys_come_only_when_asked_for(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    for name in (b"b", b"a", b"c"):
        subject.put(prefix + name, lease=lease_id)
    assert list(subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).keys) == []
    assert subject.keys_of(lease_id) == [prefix + b"a", prefix + b"b", prefix + b"c"]


def test_a_lease_without_keys_shows_none(subject: Subject) -> None:
    assert subject.keys_of(subject.grant()) == []


@pytest.mark.slow
def test_a_keepalive_gives_back_the_whole_ttl(subject: Subject) -> None:
    lease_id = subject.grant(100)
    subject.pass_time(1.01)
    left = subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id))
    assert left.TTL <= 98
    subject.do(keep(lease_id))
    assert subject.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).TTL == 99


# --- list -------------------------------------------------------------------------------------------------------------


def _listed(subject: Subject, *ids: int) -> list[int]:
    """Those of the ids that LeaseLeases names, in its order."""
    return [status.ID for status in subject.do(rpc.LeaseLeasesRequest()).leases if status.ID in ids]


def test_leases_are_listed_by_remaining_time(subject: Subject) -> None:
    long, short, middle = (subject.grant(ttl_s) for ttl_s in (3000, 1000, 2000))
    assert _listed(subject, long, short, middle) == [short, middle, long]


def test_a_keepalive_moves_a_lease_back_in_the_list(subject: Subject) -> None:
    first, second = subject.grant(1000), subject.grant(1000)
    assert _listed(subject, first, second) == [first, second]
    subject.do(keep(first))
    assert _listed(subject, first, second) == [second, first]


def test_a_revoked_lease_is_not_listed(subject: Subject) -> None:
    gone, left = subject.grant(), subject.grant()
    subject.revoke(gone)
    assert _listed(subject, gone, left) == [left]


# --- attachment -------------------------------------------------------------------------------------------------------


def test_a_put_onto_a_missing_lease_writes_nothing(subject: Subject, prefix: bytes) -> None:
    revision = subject.put(prefix, b"old")
    assert subject.call(rpc.PutRequest(key=prefix, value=b"new", lease=0x7E57)) == NOT_FOUND
    assert (subject.get(prefix).value, subject.revision) == (b"old", revision)


def test_a_put_moves_a_key_to_another_lease(subject: Subject, prefix: bytes) -> None:
    old, new = subject.grant(), subject.grant()
    subject.put(prefix, lease=old)
    revision = subject.put(prefix, lease=new)
    assert (subject.keys_of(old), subject.keys_of(new)) == ([], [prefix])
    assert subject.revoke(old) == revision
    assert subject.get(prefix).lease == new
    assert subject.revoke(new) == revision + 1
    assert subject.get(prefix) is None


def test_a_put_without_a_lease_detaches(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    subject.put(prefix, lease=lease_id)
    revision = subject.put(prefix)
    assert subject.keys_of(lease_id) == []
    assert subject.revoke(lease_id) == revision
    assert subject.get(prefix).lease == 0


def test_ignore_lease_keeps_the_lease(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    subject.put(prefix, b"old", lease=lease_id)
    subject.put(prefix, b"new", ignore_lease=True)
    kv = subject.get(prefix)
    assert (kv.value, kv.lease, kv.version) == (b"new", lease_id, 2)
    subject.revoke(lease_id)
    assert subject.get(prefix) is None


def test_ignore_value_can_move_a_key(subject: Subject, prefix: bytes) -> None:
    old, new = subject.grant(), subject.grant()
    subject.put(prefix, b"value", lease=old)
    subject.put(prefix, ignore_value=True, lease=new)
    assert (subject.get(prefix).value, subject.keys_of(old), subject.keys_of(new)) == (b"value", [], [prefix])


def test_a_put_onto_the_same_lease_attaches_once(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    for _ in range(3):
        subject.put(prefix, lease=lease_id)
    assert (subject.keys_of(lease_id), subject.get(prefix).version) == ([prefix], 3)


def test_a_delete_detaches_and_a_later_put_is_free(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    subject.put(prefix, lease=lease_id)
    subject.delete(prefix)
    assert subject.keys_of(lease_id) == []
    revision = subject.put(prefix)
    assert subject.revoke(lease_id) == revision
    assert subject.get(prefix).lease == 0


def test_a_txn_attaches_moves_and_detaches(subject: Subject, prefix: bytes) -> None:
    first, second = subject.grant(), subject.grant()
    for name in (b"moved", b"detached", b"deleted"):
        subject.put(prefix + name, lease=first)
    puts = [
        rpc.PutRequest(key=prefix + b"new", lease=second),
        rpc.PutRequest(key=prefix + b"moved", lease=second),
        rpc.PutRequest(key=prefix + b"detached"),
    ]
    operations = [rpc.RequestOp(request_put=put) for put in puts]
    operations.append(rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=prefix + b"deleted")))
    subject.do(rpc.TxnRequest(success=operations))
    assert (subject.keys_of(first), subject.keys_of(second)) == ([], [prefix + b"moved", prefix + b"new"])


def test_a_txn_with_a_missing_lease_changes_nothing(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    revision = subject.put(prefix)
    puts = [rpc.PutRequest(key=prefix, lease=lease_id), rpc.PutRequest(key=prefix + b"b", lease=0x7E57)]
    assert subject.call(rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts])) == NOT_FOUND
    assert (subject.revision, subject.keys_of(lease_id)) == (revision, [])


def test_a_txn_does_not_look_at_leases_of_the_branch_not_taken(subject: Subject, prefix: bytes) -> None:
    other = rpc.RequestOp(request_put=rpc.PutRequest(key=prefix, lease=0x7E57))
    taken = rpc.RequestOp(request_put=rpc.PutRequest(key=prefix))
    reply = subject.do(rpc.TxnRequest(success=[taken], failure=[other]))
    assert reply.succeeded


@pytest.mark.parametrize(("result", "holds"), [("EQUAL", True), ("NOT_EQUAL", False), ("GREATER", False)])
def test_a_txn_compares_leases(subject: Subject, prefix: bytes, result: str, holds: bool) -> None:
    lease_id = subject.grant()
    subject.put(prefix, lease=lease_id)
    compare = rpc.Compare(key=prefix, target=rpc.Compare.LEASE, result=result, lease=lease_id)
    assert subject.do(rpc.TxnRequest(compare=[compare])).succeeded is holds


def test_an_absent_key_compares_as_lease_zero(subject: Subject, prefix: bytes) -> None:
    compare = rpc.Compare(key=prefix, target=rpc.Compare.LEASE, result=rpc.Compare.EQUAL, lease=0)
    assert subject.do(rpc.TxnRequest(compare=[compare])).succeeded


def test_compaction_leaves_leases_and_their_keys(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    subject.put(prefix, lease=lease_id)
    subject.compact(subject.put(prefix + b"other"))
    assert subject.keys_of(lease_id) == [prefix]
    subject.revoke(lease_id)
    assert subject.get(prefix) is None


# --- expiry -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lease_ends_never_early_and_takes_its_keys(subject: Subject, prefix: bytes) -> None:
    with WatchPeer(subject) as watch:
        watch.prefix(prefix)
        asked_s = subject.server.now_s()
        lease_id = subject.grant(1)
        for name in (b"b", b"a"):
            subject.put(prefix + name, lease=lease_id)
            watch.read()
        subject.pass_time(0.9 * subject.min_ttl_s)
        assert subject.alive(lease_id)
        subject.pass_time(0.1 * subject.min_ttl_s)
        reply = watch.read()
        ended_s = subject.server.now_s()
    assert ended_s - asked_s >= subject.min_ttl_s
    assert [(event.type, event.kv.key) for event in reply.events] == [(DELETE, prefix + b"a"), (DELETE, prefix + b"b")]
    assert not subject.alive(lease_id)
    assert subject.call(rpc.LeaseRevokeRequest(ID=lease_id)) == NOT_FOUND
    assert subject.do(keep(lease_id)).TTL == 0


@pytest.mark.slow
def test_each_ended_lease_is_a_revision_of_its_own(subject: Subject, prefix: bytes) -> None:
    with WatchPeer(subject) as watch:
        watch.prefix(prefix)
        asked_s = {}
        for number in range(3):
            asked_s[prefix + b"%dx" % number] = subject.server.now_s()
            lease_id = subject.grant(1)
            for name in (b"x", b"y"):
                last = subject.put(prefix + b"%d" % number + name, lease=lease_id)
                watch.read()
            subject.pass_time(0.05)
        replies = []
        for first_asked_s in list(asked_s.values()):
            left_s = first_asked_s + subject.min_ttl_s - subject.server.now_s()
            subject.pass_time(max(left_s, 0.0) + 0.01)
            replies.append(watch.read())
            # None ends early because another one is due.
            assert subject.server.now_s() - asked_s[replies[-1].events[0].kv.key] >= subject.min_ttl_s
    assert [reply.header.revision for reply in replies] == [last + 1, last + 2, last + 3]
    ended = [[event.kv.key for event in reply.events] for reply in replies]
    wanted = [[prefix + b"%dx" % number, prefix + b"%dy" % number] for number in range(3)]
    # etcd revokes concurrently what ends together; Lessor ends leases in the order of their deadlines.
    assert (ended if subject.is_lessor else sorted(ended)) == wanted


@pytest.mark.slow
def test_a_lease_that_is_kept_alive_lives_on(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant(1)
    ttl_s = subject.min_ttl_s
    with WatchPeer(subject) as watch:
        watch.create(prefix)
        revision = subject.put(prefix, lease=lease_id)
        assert seen(watch.events(1)) == [(PUT, prefix, revision)]
        stream = subject.keepalive()
        for _ in range(2):
            subject.pass_time(0.6 * ttl_s)
            renewed_s = subject.server.now_s()
            stream.send(keep(lease_id))
            assert ttl_s == stream.read().TTL
        stream.cancel()
        subject.pass_time(ttl_s)
        assert seen(watch.events(1)) == [(DELETE, prefix, revision + 1)]
        assert subject.server.now_s() - renewed_s >= ttl_s


@pytest.mark.slow
def test_keys_that_left_a_lease_outlive_it(subject: Subject, prefix: bytes) -> None:
    doomed, other = subject.grant(1), subject.grant()
    with WatchPeer(subject) as watch:
        watch.create(prefix + b"doomed", filters=[rpc.WatchCreateRequest.NOPUT])
        for name in (b"doomed", b"moved", b"detached"):
            subject.put(prefix + name, lease=doomed)
        subject.put(prefix + b"moved", lease=other)
        subject.put(prefix + b"detached")
        subject.pass_time(subject.min_ttl_s)
        watch.events(1)
    kvs = subject.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix))).kvs
    assert [(kv.key, kv.lease) for kv in kvs] == [(prefix + b"detached", 0), (prefix + b"moved", other)]
