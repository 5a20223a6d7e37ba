# SPDX-License-Identifier: Apache-2.0
"""The state machine by examples: replies, errors and their order, leases' ends, alarms; a refusal leaves no trace."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.base import errors
from lessor.base.errors import ErrorText, EtcdError
from lessor.state.digest import hash_kv
from lessor.state.machine import Identity, StateMachine
from lessor.state.watcher import Watcher

EVERYTHING: Any = {"key": b"\0", "range_end": b"\0"}
R = rpc_pb2.RangeRequest


def new_machine(**options: Any) -> StateMachine:
    return StateMachine(Identity(11, 22, 33), **options)


def call(machine: StateMachine, request: Any, now: float = 0.0) -> Any:
    return machine.apply(request, now)


def put(machine: StateMachine, key: bytes, value: bytes = b"v", **more: Any) -> Any:
    return call(machine, rpc_pb2.PutRequest(key=key, value=value, **more))


def grant(machine: StateMachine, lease_id: int, ttl_s: int = 10, now: float = 0.0) -> Any:
    return call(machine, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s), now)


def keys(reply: Any) -> list[bytes]:
    return [kv.key for kv in reply.kvs]


def trace(machine: StateMachine) -> Any:
    """Everything a request could leave behind."""
    store, journal = machine.store, machine.journal
    leases = [
        (each.id, each.ttl_s, each.deadline_s, each.saved_deadline_s, each.batch, sorted(each.keys))
        for each in machine.leases
    ]
    return (
        (store.revision, store.revision_inside, store.compact_revision),
        [repr(event) for event in store.log_slice(0, 10**9)],
        [repr(event) for event in store.range(b"\0", b"")],
        leases,
        (machine.leases._next_id, len(machine.leases._queue)),
        sorted(machine.alarms),
        (journal.number, journal.newest_with_rows, journal.row_count, list(journal.events)),
        len(machine.hub.outbox),
    )


def refused(machine: StateMachine, request: Any, now: float = 0.0) -> ErrorText:
    before = trace(machine)
    with pytest.raises(EtcdError) as caught:
        machine.apply(request, now)
    assert trace(machine) == before
    return ErrorText(caught.value.code, caught.value.message)


# --- headers ----------------------------------------------------------------------------------------------------


def test_every_reply_has_the_whole_header() -> None:
    machine = new_machine()
    grant(machine, 1)
    put(machine, b"a")
    wanted = rpc_pb2.ResponseHeader(cluster_id=11, member_id=22, revision=2, raft_term=33)
    assert machine.header() == wanted
    for request in (
        R(key=b"a"),
        R(**EVERYTHING, revision=1),
        rpc_pb2.DeleteRangeRequest(key=b"none"),
        rpc_pb2.TxnRequest(),
        rpc_pb2.LeaseGrantRequest(TTL=5),
        rpc_pb2.LeaseKeepAliveRequest(ID=1),
        rpc_pb2.LeaseKeepAliveRequest(ID=9),
        rpc_pb2.LeaseTimeToLiveRequest(ID=1),
        rpc_pb2.LeaseTimeToLiveRequest(ID=9),
        rpc_pb2.LeaseLeasesRequest(),
        rpc_pb2.AlarmRequest(),
        rpc_pb2.CompactionRequest(revision=1),
        rpc_pb2.LeaseRevokeRequest(ID=1),
    ):
        assert call(machine, request).header == wanted, request
    assert put(machine, b"a").header.revision == 3


def test_unknown_requests_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="StatusRequest"):
        new_machine().apply(rpc_pb2.StatusRequest(), 0.0)


def test_encoded_and_parsed_replies_are_the_same() -> None:
    one, two = new_machine(), new_machine()
    request = rpc_pb2.PutRequest(key=b"a", value=b"v")
    assert rpc_pb2.PutResponse.FromString(one.apply_encoded(request, 0.0)) == two.apply(request, 0.0)


# --- Range ------------------------------------------------------------------------------------------------------


@pytest.fixture
def four() -> StateMachine:
    """a..d, b changed once more: mod revisions 2 6 4 5, versions 1 2 1 1."""
    machine = new_machine()
    for key, value in ((b"a", b"3"), (b"b", b"1"), (b"c", b"2"), (b"d", b"4"), (b"b", b"0")):
        put(machine, key, value)
    return machine


@pytest.mark.parametrize(
    ("key", "end", "found"),
    [
        (b"a", b"", b"a"),
        (b"x", b"", b""),
        (b"b", b"d", b"bc"),
        (b"b", b"\0", b"bcd"),
        (b"\0", b"\0", b"abcd"),
        (b"c", b"b", b""),
        (b"c", b"c", b""),
        (b"a\0", b"c\0", b"bc"),
    ],
)
def test_ranges(four: StateMachine, key: bytes, end: bytes, found: bytes) -> None:
    reply = call(four, R(key=key, range_end=end))
    assert b"".join(keys(reply)) == found
    assert (reply.count, reply.more) == (len(found), False)
    only = call(four, R(key=key, range_end=end, count_only=True, limit=1))
    assert (list(only.kvs), only.count, only.more) == ([], len(found), False)


@pytest.mark.parametrize(
    ("limit", "shown", "more"),
    [(0, 4, False), (-1, 4, False), (1, 1, True), (3, 3, True), (4, 4, False), (5, 4, False), (2**63 - 1, 4, False)],
)
def test_limits(four: StateMachine, limit: int, shown: int, more: bool) -> None:
    for revision in (0, 6, 5):
        for order in (R.NONE, R.ASCEND, R.DESCEND):
            reply = call(four, R(**EVERYTHING, limit=limit, revision=revision, sort_order=order))
            assert (len(reply.kvs), reply.more, reply.count) == (shown, more, 4)


@pytest.mark.parametrize(
    ("target", "ascending"),
    [(R.KEY, b"abcd"), (R.CREATE, b"abcd"), (R.MOD, b"acdb"), (R.VALUE, b"bcad")],
)
def test_sorting(four: StateMachine, target: Any, ascending: bytes) -> None:
    def sorted_by(order: Any, **more: Any) -> bytes:
        return b"".join(keys(call(four, R(**EVERYTHING, sort_target=target, sort_order=order, **more))))

    assert sorted_by(R.ASCEND) == sorted_by(R.NONE) == ascending
    assert sorted_by(R.DESCEND) == ascending[::-1]
    assert sorted_by(R.DESCEND, limit=2) == ascending[::-1][:2]
    assert sorted_by(R.DESCEND, keys_only=True) == ascending[::-1]  # by value though no value is shown


def test_without_an_order_only_what_the_limit_lets_in_is_sorted(four: StateMachine) -> None:
    assert keys(call(four, R(**EVERYTHING, sort_target=R.VALUE, limit=2))) == [b"b", b"c"]  # of a b c
    assert keys(call(four, R(**EVERYTHING, sort_target=R.VALUE, sort_order=R.ASCEND, limit=2))) == [b"b", b"c"]
    assert keys(call(four, R(**EVERYTHING, sort_target=R.MOD, limit=1))) == [b"a"]  # of a b
    assert keys(call(four, R(key=b"b", range_end=b"\0", sort_target=R.MOD, limit=1))) == [b"c"]  # of b c


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"min_mod_revision": 5}, b"bd"),
        ({"max_mod_revision": 4}, b"ac"),
        ({"min_create_revision": 4}, b"cd"),
        ({"max_create_revision": 3}, b"ab"),
        ({"min_mod_revision": 4, "max_mod_revision": 5}, b"cd"),
        ({"max_mod_revision": -1}, b""),
        ({"min_mod_revision": -1}, b"abcd"),
    ],
)
def test_filters_do_not_change_the_count(four: StateMachine, filters: Any, found: bytes) -> None:
    reply = call(four, R(**EVERYTHING, **filters))
    assert (b"".join(keys(reply)), reply.count, reply.more) == (found, 4, False)
    one = call(four, R(**EVERYTHING, **filters, limit=1))
    assert (b"".join(keys(one)), one.count, one.more) == (found[:1], 4, len(found) > 1)
    for key in (b"a", b"b", b"c", b"d"):
        single = call(four, R(key=key, **filters))
        assert (bool(single.kvs), single.count) == (key in found, 1)


def test_keys_only(four: StateMachine) -> None:
    for request in (R(key=b"b", keys_only=True), R(key=b"b", range_end=b"c", keys_only=True)):
        (kv,) = call(four, request).kvs
        assert (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) == (b"b", b"", 3, 6, 2)


def test_old_revisions(four: StateMachine) -> None:
    for revision, found in ((1, b""), (2, b"a"), (4, b"abc"), (6, b"abcd"), (0, b"abcd"), (-5, b"abcd")):
        reply = call(four, R(**EVERYTHING, revision=revision))
        assert b"".join(keys(reply)) == found
        assert reply.header.revision == 6
    assert call(four, R(key=b"b", revision=5)).kvs[0].value == b"1"
    assert refused(four, R(key=b"b", revision=7)) == errors.FUTURE_REVISION


def test_range_errors(four: StateMachine) -> None:
    unknown: Any = 9
    negative: Any = -1
    assert refused(four, R()) == errors.EMPTY_KEY
    assert refused(four, R(range_end=b"\0", sort_order=unknown)) == errors.EMPTY_KEY
    assert refused(four, R(key=b"a", sort_order=unknown, revision=99)) == errors.INVALID_SORT_OPTION
    assert refused(four, R(key=b"a", sort_order=negative)) == errors.INVALID_SORT_OPTION
    assert refused(four, R(key=b"a", sort_target=unknown)) == errors.INVALID_SORT_OPTION
    assert refused(four, R(key=b"a", sort_target=negative)) == errors.INVALID_SORT_OPTION


# --- Put and DeleteRange ----------------------------------------------------------------------------------------


def test_put_prev_kv() -> None:
    machine = new_machine()
    assert not put(machine, b"a", b"1", prev_kv=True).HasField("prev_kv")
    assert put(machine, b"a", b"2", prev_kv=True).prev_kv.value == b"1"
    assert not put(machine, b"a", b"3").HasField("prev_kv")


def test_put_keeping_value_or_lease() -> None:
    machine = new_machine()
    grant(machine, 1)
    put(machine, b"a", b"1", lease=1)
    put(machine, b"a", b"2", ignore_lease=True)
    put(machine, b"a", b"", ignore_value=True, lease=1)
    (kv,) = call(machine, R(key=b"a")).kvs
    assert (kv.value, kv.lease, kv.version) == (b"2", 1, 3)
    put(machine, b"a", b"", ignore_value=True)
    (kv,) = call(machine, R(key=b"a")).kvs
    assert (kv.value, kv.lease) == (b"2", 0)


def test_put_errors_and_their_order() -> None:
    machine = new_machine()
    p = rpc_pb2.PutRequest
    assert refused(machine, p(ignore_value=True, value=b"x")) == errors.EMPTY_KEY
    assert (
        refused(machine, p(key=b"a", value=b"x", ignore_value=True, ignore_lease=True, lease=9))
        == errors.VALUE_PROVIDED
    )
    assert refused(machine, p(key=b"a", ignore_lease=True, lease=9)) == errors.LEASE_PROVIDED
    assert refused(machine, p(key=b"a", ignore_value=True, lease=9)) == errors.LEASE_NOT_FOUND  # before "key not found"
    assert refused(machine, p(key=b"a", ignore_value=True)) == errors.KEY_NOT_FOUND
    assert refused(machine, p(key=b"a", ignore_lease=True)) == errors.KEY_NOT_FOUND


def test_delete_range() -> None:
    machine = new_machine()
    for key in (b"a", b"b", b"c"):
        put(machine, key)
    d = rpc_pb2.DeleteRangeRequest
    reply = call(machine, d(key=b"x"))
    assert (reply.deleted, reply.header.revision, machine.revision) == (0, 4, 4)
    reply = call(machine, d(key=b"a", range_end=b"c", prev_kv=True))
    assert (reply.deleted, [kv.key for kv in reply.prev_kvs], reply.header.revision) == (2, [b"a", b"b"], 5)
    assert call(machine, d(key=b"b", range_end=b"a")).deleted == 0
    assert call(machine, d(**EVERYTHING)).deleted == 1
    assert refused(machine, d(range_end=b"\0")) == errors.EMPTY_KEY


# --- compaction -------------------------------------------------------------------------------------------------


def test_compaction_errors_and_what_stays_readable(four: StateMachine) -> None:
    c = rpc_pb2.CompactionRequest
    assert refused(four, c(revision=7)) == errors.FUTURE_REVISION
    assert refused(four, c(revision=-1)) == errors.COMPACTED
    assert call(four, c(revision=5)).header.revision == 6
    assert four.compact_revision == 5
    assert refused(four, c(revision=5)) == errors.COMPACTED
    assert refused(four, c(revision=4)) == errors.COMPACTED
    assert refused(four, R(key=b"a", revision=4)) == errors.COMPACTED
    assert call(four, R(key=b"b", revision=5)).kvs[0].value == b"1"
    call(four, c(revision=6))
    batch = four.journal.seal(0.0)
    assert (batch.compact_revision, batch.dead) == (6, [(3, 0)])


def test_an_empty_store_can_be_compacted_to_zero_once() -> None:
    machine = new_machine()
    call(machine, rpc_pb2.CompactionRequest(revision=0))
    assert machine.compact_revision == 0
    assert refused(machine, rpc_pb2.CompactionRequest(revision=0)) == errors.COMPACTED


def test_compaction_leaves_leases_alone() -> None:
    machine = new_machine()
    grant(machine, 1)
    put(machine, b"a", lease=1)
    put(machine, b"b")
    call(machine, rpc_pb2.CompactionRequest(revision=3))
    assert list(call(machine, rpc_pb2.LeaseTimeToLiveRequest(ID=1, keys=True)).keys) == [b"a"]


# --- leases -----------------------------------------------------------------------------------------------------


def test_grant_replies() -> None:
    machine = new_machine(min_lease_ttl_s=2, lease_id_seed=1000)
    reply = grant(machine, 5, -7)
    assert (reply.ID, reply.TTL, reply.header.revision, reply.error) == (5, 2, 1, "")
    assert grant(machine, 0, 60).ID == 1000
    assert grant(machine, -3, 60).ID == -3
    assert refused(machine, rpc_pb2.LeaseGrantRequest(ID=5, TTL=1)) == errors.LEASE_EXISTS
    assert refused(machine, rpc_pb2.LeaseGrantRequest(ID=5, TTL=9_000_000_001)) == errors.LEASE_TTL_TOO_LARGE


def test_revoke_deletes_in_key_order_in_one_revision() -> None:
    machine = new_machine()
    grant(machine, 1)
    for key in (b"b", b"\xff", b"a", b"a\0"):
        put(machine, key, lease=1)
    machine.journal.seal(0.0)
    assert call(machine, rpc_pb2.LeaseRevokeRequest(ID=1)).header.revision == 6
    batch = machine.journal.seal(0.0)
    assert [row[:4] for row in batch.events] == [
        (6, sub, key, None) for sub, key in enumerate((b"a", b"a\0", b"b", b"\xff"))
    ]
    assert [row[3] for row in batch.leases] == [True]  # with its deletes, never without
    assert refused(machine, rpc_pb2.LeaseRevokeRequest(ID=1)) == errors.LEASE_NOT_FOUND
    assert refused(machine, rpc_pb2.LeaseRevokeRequest()) == errors.LEASE_NOT_FOUND


def test_revoke_without_keys_moves_no_revision() -> None:
    machine = new_machine()
    grant(machine, 1)
    grant(machine, 2)
    put(machine, b"moved", lease=1)
    put(machine, b"moved", lease=2)
    put(machine, b"freed", lease=1)
    put(machine, b"freed")
    put(machine, b"deleted", lease=1)
    call(machine, rpc_pb2.DeleteRangeRequest(key=b"deleted"))
    assert machine.revision == 7
    assert call(machine, rpc_pb2.LeaseRevokeRequest(ID=1)).header.revision == 7
    assert keys(call(machine, R(**EVERYTHING))) == [b"freed", b"moved"]


def test_keepalive_replies() -> None:
    machine = new_machine()
    grant(machine, 1, 10)
    reply = call(machine, rpc_pb2.LeaseKeepAliveRequest(ID=1), 9.0)
    assert (reply.ID, reply.TTL) == (1, 10)
    assert call(machine, rpc_pb2.LeaseTimeToLiveRequest(ID=1), 9.0).TTL == 10
    reply = call(machine, rpc_pb2.LeaseKeepAliveRequest(ID=-7), 9.0)
    assert (reply.ID, reply.TTL) == (-7, 0)


def test_time_to_live_replies() -> None:
    machine = new_machine()
    grant(machine, 1, 10)
    put(machine, b"b", lease=1)
    put(machine, b"a", lease=1)
    t = rpc_pb2.LeaseTimeToLiveRequest
    reply = call(machine, t(ID=1, keys=True), 0.5)
    assert (reply.ID, reply.TTL, reply.grantedTTL, sorted(reply.keys)) == (1, 9, 10, [b"a", b"b"])
    assert list(call(machine, t(ID=1), 0.5).keys) == []
    overdue = call(machine, t(ID=1), 12.5)
    assert (overdue.TTL, overdue.grantedTTL) == (-2, 10)
    for missing in (0, 99):
        reply = call(machine, t(ID=missing, keys=True))
        assert (reply.ID, reply.TTL, reply.grantedTTL, list(reply.keys)) == (missing, -1, 0, [])


def test_listing_soonest_first() -> None:
    machine = new_machine()
    assert list(call(machine, rpc_pb2.LeaseLeasesRequest()).leases) == []
    for lease_id, ttl_s in ((-1, 30), (2, 10), (3, 20)):
        grant(machine, lease_id, ttl_s)
    assert [each.ID for each in call(machine, rpc_pb2.LeaseLeasesRequest(), 100.0).leases] == [2, 3, -1]


def test_expiry_is_one_revision_per_lease_by_deadline() -> None:
    machine = new_machine()
    for lease_id, ttl_s in ((1, 30), (2, 10), (3, 20), (4, 15)):
        grant(machine, lease_id, ttl_s)
    for key, lease in ((b"c", 1), (b"b", 2), (b"a", 2), (b"d", 3)):
        put(machine, key, lease=lease)
    machine.journal.seal(0.0)
    assert machine.next_deadline() == 10.0
    assert machine.expire(9.99, 10) == 0
    assert machine.expire(30.0, 10) == 4
    batch = machine.journal.seal(0.0)
    assert [row[:3] for row in batch.events] == [(6, 0, b"a"), (6, 1, b"b"), (7, 0, b"d"), (8, 0, b"c")]
    assert [row[0] for row in batch.leases] == [2, 4, 3, 1]
    assert (machine.revision, machine.next_deadline()) == (8, None)


def test_expiry_takes_no_more_than_it_may() -> None:
    machine = new_machine()
    for lease_id in range(1, 8):
        grant(machine, lease_id)
    assert [machine.expire(10.0, 3) for _ in range(4)] == [3, 3, 1, 0]


def test_a_put_onto_an_overdue_lease_succeeds_and_goes_with_it() -> None:
    machine = new_machine()
    grant(machine, 1, 10)
    call(machine, rpc_pb2.PutRequest(key=b"a", lease=1), 50.0)
    assert machine.expire(50.0, 10) == 1
    assert call(machine, R(key=b"a"), 50.0).count == 0


def test_checkpoint_marks_the_batch_clean() -> None:
    machine = new_machine()
    grant(machine, 1, 10)
    call(machine, rpc_pb2.LeaseKeepAliveRequest(ID=1), 5.0)
    machine.journal.seal(5.0)
    machine.checkpoint(6.0)
    batch = machine.journal.seal(6.0)
    assert batch.clean
    assert batch.leases == [(1, 10, 15.0, False)]


def test_a_put_costs_the_same_with_many_keys_on_the_lease() -> None:
    """Counted in rows and touched keys, not in time: the lease's set is changed, never copied or walked."""
    machine = new_machine()
    grant(machine, 1)
    put(machine, b"first", lease=1)
    lease = machine.leases.get(1)
    assert lease is not None
    held = lease.keys
    for number in range(100):
        put(machine, b"%d" % number, lease=1)
    assert lease.keys is held
    assert machine.journal.row_count == 1 + 1 + 100


# --- alarms -----------------------------------------------------------------------------------------------------

A = rpc_pb2.AlarmRequest


def alarms(reply: Any) -> list[tuple[int, int]]:
    return sorted((each.memberID, each.alarm) for each in reply.alarms)


def test_alarm_requests() -> None:
    machine = new_machine()
    assert alarms(call(machine, A(action=A.ACTIVATE, memberID=22, alarm=rpc_pb2.NOSPACE))) == [(22, 1)]
    assert alarms(call(machine, A(action=A.ACTIVATE, memberID=22, alarm=rpc_pb2.NOSPACE))) == [(22, 1)]
    assert alarms(call(machine, A(action=A.ACTIVATE, memberID=5, alarm=rpc_pb2.CORRUPT))) == [(5, 2)]
    assert alarms(call(machine, A(action=A.ACTIVATE, memberID=5))) == []
    assert alarms(call(machine, A())) == [(5, 2), (22, 1)]
    assert alarms(call(machine, A(alarm=rpc_pb2.NOSPACE))) == [(22, 1)]
    assert alarms(call(machine, A(action=A.DEACTIVATE, alarm=rpc_pb2.NOSPACE))) == []  # the exact member or nothing
    assert machine.no_space
    assert alarms(call(machine, A(action=A.DEACTIVATE, memberID=22, alarm=rpc_pb2.NOSPACE))) == [(22, 1)]
    assert not machine.no_space
    assert sorted(machine.journal.seal(0.0).alarms) == [(5, 2, True), (22, 1, False)]


def test_no_space() -> None:
    machine = new_machine()
    grant(machine, 1)
    grant(machine, 2)
    put(machine, b"a", lease=1)
    call(machine, A(action=A.ACTIVATE, memberID=22, alarm=rpc_pb2.NOSPACE))
    op = rpc_pb2.RequestOp
    a_put = op(request_put=rpc_pb2.PutRequest(key=b"a"))
    t = rpc_pb2.TxnRequest
    refusals: list[Any] = [
        rpc_pb2.PutRequest(key=b"a"),
        rpc_pb2.PutRequest(key=b"a", lease=77),
        rpc_pb2.LeaseGrantRequest(ID=1, TTL=9_000_000_001),
        t(success=[a_put]),
        t(failure=[a_put]),
        t(success=[op(request_txn=t(failure=[a_put]))]),
        t(success=[a_put, op(request_range=R(key=b"a", revision=99))]),
    ]
    for request in refusals:
        assert refused(machine, request) == errors.NO_SPACE
    assert refused(machine, rpc_pb2.PutRequest()) == errors.EMPTY_KEY
    assert refused(machine, t(failure=[a_put, a_put])) == errors.DUPLICATE_KEY
    allowed: list[Any] = [
        R(key=b"a"),
        t(success=[op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"x"))]),
        rpc_pb2.LeaseKeepAliveRequest(ID=1),
        rpc_pb2.LeaseTimeToLiveRequest(ID=1),
        rpc_pb2.LeaseLeasesRequest(),
        rpc_pb2.CompactionRequest(revision=1),
        rpc_pb2.LeaseRevokeRequest(ID=2),
        rpc_pb2.DeleteRangeRequest(key=b"a"),
    ]
    for request in allowed:
        call(machine, request)
    assert machine.expire(10.0, 5) == 1


# --- all or nothing ---------------------------------------------------------------------------------------------

SOME_KEYS = st.sampled_from((b"", b"a", b"b", b"c"))
SOME_ENDS = st.sampled_from((b"", b"\0", b"b"))
SOME_LEASES = st.sampled_from((0, 0, 1, 2, 77))
PUTS = st.builds(
    rpc_pb2.PutRequest, key=SOME_KEYS, lease=SOME_LEASES, ignore_value=st.booleans(), ignore_lease=st.booleans()
)
RANGES = st.builds(R, key=SOME_KEYS, range_end=SOME_ENDS, revision=st.integers(-2, 9))
DELETES = st.builds(rpc_pb2.DeleteRangeRequest, key=SOME_KEYS, range_end=SOME_ENDS)
OPS = st.one_of(
    st.builds(rpc_pb2.RequestOp, request_put=PUTS),
    st.builds(rpc_pb2.RequestOp, request_delete_range=DELETES),
    st.builds(rpc_pb2.RequestOp, request_range=RANGES),
)
NESTED = st.builds(rpc_pb2.RequestOp, request_txn=st.builds(rpc_pb2.TxnRequest, success=st.lists(OPS, max_size=3)))
REQUESTS = st.one_of(
    PUTS,
    RANGES,
    DELETES,
    st.builds(rpc_pb2.TxnRequest, success=st.lists(st.one_of(OPS, NESTED), max_size=3)),
    st.builds(rpc_pb2.LeaseGrantRequest, ID=SOME_LEASES, TTL=st.sampled_from((5, 9_000_000_001))),
    st.builds(rpc_pb2.LeaseRevokeRequest, ID=SOME_LEASES),
    st.builds(rpc_pb2.CompactionRequest, revision=st.integers(-1, 9)),
    st.builds(A, action=st.integers(1, 2), alarm=st.integers(0, 1)),
)


@settings(max_examples=30)
@given(st.lists(REQUESTS, max_size=20))
def test_a_refusal_leaves_no_trace(requests: list[Any]) -> None:
    machine = new_machine()
    for now, request in enumerate(requests):
        before = trace(machine)
        try:
            machine.apply(request, float(now))
        except EtcdError:
            assert trace(machine) == before


def test_an_alarm_that_nobody_could_name_is_not_kept() -> None:
    machine = StateMachine(Identity(1, 2, 3))
    request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=5)
    request.MergeFromString(b"\x18\x4d")  # alarm 77
    machine.apply(request, 0.0)
    assert machine.alarms == set()
    assert machine.journal.row_count == 0


def test_an_ended_lease_lets_its_keys_go() -> None:
    machine = StateMachine(Identity(1, 2, 3))
    machine.apply(rpc_pb2.LeaseGrantRequest(ID=7, TTL=10), 0.0)
    machine.apply(rpc_pb2.PutRequest(key=b"k", lease=7), 0.0)
    lease = machine.leases.get(7)
    assert lease is not None
    assert lease.keys == {b"k"}
    machine.apply(rpc_pb2.LeaseRevokeRequest(ID=7), 0.0)
    assert not lease.keys


# --- the other ways in ------------------------------------------------------------------------------------------


def test_a_renewal_in_a_stream_does_what_the_request_does() -> None:
    by_request, by_call = new_machine(), new_machine()
    for machine in (by_request, by_call):
        grant(machine, 7)
    reply = call(by_request, rpc_pb2.LeaseKeepAliveRequest(ID=7), 3.0)
    renewed = by_call.renew(7, 3.0)
    assert renewed is by_call.leases.get(7)
    assert renewed is not None
    assert renewed.ttl_s == reply.TTL
    assert trace(by_call) == trace(by_request)
    assert by_call.renew(8, 3.0) is None


def test_a_list_and_a_digest_are_begun_and_change_nothing() -> None:
    machine = new_machine()
    grant(machine, 7)
    put(machine, b"k", lease=7)
    before = trace(machine)
    listing = machine.list_leases(leases_pb2.LeaseListRequest(), None)
    assert listing.step(1.0)
    assert [item.ID for item in listing.page(machine.header()).leases] == [7]
    digest = machine.digest(2)
    while not digest.step(1):
        pass
    assert (digest.revision, digest.value) == (2, hash_kv(machine.store))
    with pytest.raises(EtcdError):
        machine.digest(3)
    assert trace(machine) == before


def test_watchers_come_and_go() -> None:
    machine = new_machine()
    keys_watcher, leases_watcher = Watcher(1, b"k", owner="stream"), object()
    machine.watch(keys_watcher)
    machine.watch_leases(leases_watcher)
    put(machine, b"k")
    grant(machine, 7)
    assert [list(each.audience) for each in machine.hub.take_outbox()] == [["stream"]]
    assert machine.lease_events.take(machine.header())[0] == [leases_watcher]
    machine.unwatch(keys_watcher)
    for _ in range(2):  # as often as one likes
        machine.unwatch_leases(leases_watcher)
    put(machine, b"k")
    assert keys_watcher.cancelled
    assert not machine.hub.outbox
    assert not machine.lease_events.watchers
