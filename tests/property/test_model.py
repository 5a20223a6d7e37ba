# SPDX-License-Identifier: Apache-2.0
"""The model against the published facts, one fact per test. (tests/conformance proves it against a real etcd.)"""

from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.api.proto.mvcc_pb2 import Event, KeyValue
from lessor.base.errors import Code, EtcdError
from tests.model import Model

ALL: Any = {"key": b"\0", "range_end": b"\0"}


def put(key: bytes, value: bytes = b"", **options: Any) -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value, **options)


def op(request: Any) -> rpc.RequestOp:
    """A request as an operation of a transaction."""
    match request:
        case rpc.RangeRequest():
            return rpc.RequestOp(request_range=request)
        case rpc.PutRequest():
            return rpc.RequestOp(request_put=request)
        case rpc.DeleteRangeRequest():
            return rpc.RequestOp(request_delete_range=request)
        case _:
            return rpc.RequestOp(request_txn=request)


def txn(*success: Any, failure: tuple[Any, ...] = (), compare: tuple[rpc.Compare, ...] = ()) -> rpc.TxnRequest:
    return rpc.TxnRequest(compare=compare, success=[op(one) for one in success], failure=[op(one) for one in failure])


def model_with(*keys: bytes) -> Model:
    """A model in which each key was put once, the first at revision 2."""
    model = Model(min_lease_ttl_s=2)
    for key in keys:
        model.apply(put(key, b"value of " + key), 0.0)
    return model


def call(model: Model, request: Any, now: float = 0.0) -> Any:
    return model.apply(request, now)


def refused(model: Model, request: Any) -> tuple[Code, str]:
    before = (model.revision, dict(model.keys), set(model.leases))
    with pytest.raises(EtcdError) as raised:
        model.apply(request, 0.0)
    assert (model.revision, dict(model.keys), set(model.leases)) == before
    return raised.value.code, raised.value.message


def keys_of(reply: Any) -> list[bytes]:
    return [kv.key for kv in reply.kvs]


# --- revisions ------------------------------------------------------------------------------------------------------


def test_a_fresh_store_is_at_revision_1_and_the_first_change_at_2() -> None:
    model = Model()
    assert call(model, rpc.RangeRequest(key=b"a")).header.revision == 1
    assert call(model, put(b"a")).header.revision == 2


def test_version_restarts_after_a_delete() -> None:
    model = model_with(b"a", b"a")
    assert model.keys[b"a"] == KeyValue(
        key=b"a", value=b"value of a", create_revision=2, mod_revision=3, version=2, lease=0
    )
    call(model, rpc.DeleteRangeRequest(key=b"a"))
    call(model, put(b"a"))
    assert (model.keys[b"a"].create_revision, model.keys[b"a"].version) == (5, 1)


def test_deleting_nothing_moves_no_revision() -> None:
    model = model_with(b"a")
    reply = call(model, rpc.DeleteRangeRequest(key=b"b"))
    assert (reply.deleted, reply.header.revision) == (0, 2)


# --- range ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "end", "found"),
    [
        (b"b", b"", [b"b"]),
        (b"a", b"\0", [b"a", b"a\0", b"b"]),
        (b"\0", b"\0", [b"\0", b"a", b"a\0", b"b"]),
        (b"a", b"b", [b"a", b"a\0"]),
        (b"b", b"a", []),
        (b"b", b"b", []),
    ],
)
def test_ranges(key: bytes, end: bytes, found: list[bytes]) -> None:
    model = model_with(b"a", b"b", b"a\0", b"\0")
    assert keys_of(call(model, rpc.RangeRequest(key=key, range_end=end))) == found


def test_count_ignores_limit_and_filters_and_more_does_not() -> None:
    model = model_with(b"a", b"b", b"c")
    reply = call(model, rpc.RangeRequest(**ALL, limit=1, min_mod_revision=3))
    assert (keys_of(reply), reply.count, reply.more) == ([b"b"], 3, True)
    reply = call(model, rpc.RangeRequest(**ALL, limit=2, min_mod_revision=3))
    assert (keys_of(reply), reply.count, reply.more) == ([b"b", b"c"], 3, False)


def test_count_only_has_no_keys_and_no_more() -> None:
    reply = call(model_with(b"a", b"b"), rpc.RangeRequest(**ALL, limit=1, count_only=True))
    assert (list(reply.kvs), reply.count, reply.more) == ([], 2, False)


def test_keys_only_keeps_all_but_the_value() -> None:
    (kv,) = call(model_with(b"a"), rpc.RangeRequest(key=b"a", keys_only=True)).kvs
    assert kv == KeyValue(key=b"a", create_revision=2, mod_revision=2, version=1)


def test_a_target_without_order_sorts_up() -> None:
    model = model_with(b"b", b"a", b"c")
    reply = call(model, rpc.RangeRequest(**ALL, sort_target=rpc.RangeRequest.MOD))
    assert keys_of(reply) == [b"b", b"a", b"c"]


def test_a_target_without_order_sorts_only_what_the_limit_made_etcd_read() -> None:
    model = model_with(b"c", b"b", b"a")  # by age c b a, by key a b c
    by_age: Any = {"sort_target": rpc.RangeRequest.MOD, "limit": 1}
    assert keys_of(call(model, rpc.RangeRequest(**ALL, **by_age))) == [b"b"]  # the older one of a and b
    ordered = rpc.RangeRequest(**ALL, **by_age, sort_order=rpc.RangeRequest.ASCEND)
    assert keys_of(call(model, ordered)) == [b"c"]
    filtered = rpc.RangeRequest(**ALL, **by_age, min_mod_revision=1)
    assert keys_of(call(model, filtered)) == [b"c"]


def test_old_revisions_are_read_until_compacted() -> None:
    model = model_with(b"a", b"b", b"c")
    call(model, rpc.CompactionRequest(revision=3))
    assert keys_of(call(model, rpc.RangeRequest(**ALL, revision=3))) == [b"a", b"b"]
    assert call(model, rpc.RangeRequest(**ALL, revision=3)).header.revision == 4
    assert refused(model, rpc.RangeRequest(**ALL, revision=2)) == (
        Code.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision has been compacted",
    )
    assert refused(model, rpc.RangeRequest(**ALL, revision=5)) == (
        Code.OUT_OF_RANGE,
        "etcdserver: mvcc: required revision is a future revision",
    )
    assert keys_of(call(model, rpc.RangeRequest(**ALL, revision=-1))) == [b"a", b"b", b"c"]
    assert refused(model, txn(rpc.RangeRequest(**ALL, revision=-1)))[0] is Code.OUT_OF_RANGE


# --- put ------------------------------------------------------------------------------------------------------------


def test_prev_kv_is_the_version_before() -> None:
    model = Model()
    assert not call(model, put(b"a", b"1", prev_kv=True)).HasField("prev_kv")
    assert call(model, put(b"a", b"2", prev_kv=True)).prev_kv.value == b"1"


def test_ignored_parts_stay() -> None:
    model = model_with(b"a")
    call(model, rpc.LeaseGrantRequest(ID=7, TTL=10))
    call(model, put(b"a", ignore_value=True, lease=7))
    call(model, put(b"a", b"new", ignore_lease=True))
    assert (model.keys[b"a"].value, model.keys[b"a"].lease) == (b"new", 7)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (put(b""), Code.INVALID_ARGUMENT, "etcdserver: key is not provided"),
        (put(b"a", b"x", ignore_value=True), Code.INVALID_ARGUMENT, "etcdserver: value is provided"),
        (put(b"a", ignore_lease=True, lease=9), Code.INVALID_ARGUMENT, "etcdserver: lease is provided"),
        (put(b"z", ignore_value=True), Code.INVALID_ARGUMENT, "etcdserver: key not found"),
        (put(b"z", ignore_value=True, lease=9), Code.NOT_FOUND, "etcdserver: requested lease not found"),
        (txn(put(b"z", ignore_value=True, lease=9)), Code.NOT_FOUND, "etcdserver: requested lease not found"),
    ],
)
def test_faulty_puts(request_: Any, code: Code, text: str) -> None:
    assert refused(model_with(b"a"), request_) == (code, text)


# --- transactions ---------------------------------------------------------------------------------------------------


def test_compares_read_the_state_before_and_later_operations_what_earlier_wrote() -> None:
    model = model_with(b"a")
    absent = rpc.Compare(key=b"b", target=rpc.Compare.VERSION, version=0)
    reply = call(
        model,
        txn(
            rpc.RangeRequest(key=b"b"),
            put(b"b", b"x"),
            rpc.RangeRequest(key=b"b"),
            txn(rpc.RangeRequest(key=b"b", count_only=True), compare=(absent,)),
            compare=(absent,),
        ),
    )
    first, written, second, nested = reply.responses
    assert first.response_range.count == 0
    assert first.response_range.header == rpc.ResponseHeader(revision=2)
    assert written.response_put.header == rpc.ResponseHeader(revision=3)
    assert second.response_range.kvs[0].value == b"x"
    assert nested.response_txn.succeeded  # "b" was absent before the transaction
    assert nested.response_txn.header == rpc.ResponseHeader()
    assert nested.response_txn.responses[0].response_range.count == 1
    assert reply.header.revision == 3


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (rpc.Compare(key=b"z", target=rpc.Compare.LEASE, lease=0), True),
        (rpc.Compare(key=b"z", target=rpc.Compare.VALUE, result=rpc.Compare.NOT_EQUAL, value=b"x"), False),
        (rpc.Compare(key=b"z", target=rpc.Compare.CREATE), True),
        (rpc.Compare(key=b"a", target=rpc.Compare.MOD, result=rpc.Compare.GREATER, mod_revision=1), True),
        (rpc.Compare(key=b"a", target=rpc.Compare.MOD, result=rpc.Compare.LESS, mod_revision=2), False),
        (rpc.Compare(key=b"\0", range_end=b"\0", target=rpc.Compare.VERSION, version=1), True),
        (rpc.Compare(key=b"\0", range_end=b"\0", target=rpc.Compare.MOD, mod_revision=2), False),
        (rpc.Compare(key=b"b", range_end=b"a", target=rpc.Compare.VERSION, version=0), True),
    ],
)
def test_compares(compare: rpc.Compare, holds: bool) -> None:
    assert call(model_with(b"a", b"b"), txn(compare=(compare,))).succeeded is holds


DUPLICATE = (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")


@pytest.mark.parametrize(
    "request_",
    [
        txn(put(b"a"), put(b"a")),
        txn(put(b"b"), rpc.DeleteRangeRequest(key=b"a", range_end=b"c")),
        txn(txn(put(b"a")), put(b"a")),
        txn(failure=(put(b"a"), rpc.DeleteRangeRequest(key=b"a"))),
        txn(txn(rpc.DeleteRangeRequest(key=b"a")), txn(put(b"a"))),
    ],
)
def test_duplicates(request_: rpc.TxnRequest) -> None:
    assert refused(Model(), request_) == DUPLICATE


@pytest.mark.parametrize(
    "request_",
    [
        txn(txn(put(b"a"), failure=(put(b"a"),))),
        txn(rpc.DeleteRangeRequest(key=b"a"), rpc.DeleteRangeRequest(key=b"a")),
        txn(put(b"a"), failure=(put(b"a"),)),
        txn(put(b"a"), rpc.DeleteRangeRequest(key=b"a", range_end=b"\0")),  # a quirk: open ends are overlooked
        txn(txn(put(b"a")), txn(rpc.DeleteRangeRequest(key=b"a"))),  # and deletes in a later nested transaction
    ],
)
def test_no_duplicates(request_: rpc.TxnRequest) -> None:
    assert call(Model(), request_).succeeded


def test_nested_transactions_share_the_budget() -> None:
    model = Model(max_txn_ops=3)
    reads = [rpc.RangeRequest(key=b"a")] * 2
    assert call(model, txn(txn(*reads))).succeeded  # 1 of 3, then 2 of 2
    assert refused(model, txn(*reads, txn(*reads)))[1] == "etcdserver: too many operations in txn request"


def test_an_empty_operation_is_a_key_not_found() -> None:
    assert refused(Model(), rpc.TxnRequest(success=[rpc.RequestOp()])) == (
        Code.INVALID_ARGUMENT,
        "etcdserver: key not found",
    )


# --- compaction -----------------------------------------------------------------------------------------------------


def test_compaction_bounds() -> None:
    model = model_with(b"a", b"b")
    assert refused(model, rpc.CompactionRequest(revision=4))[1].endswith("future revision")
    assert call(model, rpc.CompactionRequest(revision=3)).header.revision == 3
    assert refused(model, rpc.CompactionRequest(revision=3))[1].endswith("has been compacted")


# --- leases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_s", "granted_s"), [(10, 10), (1, 2), (0, 2), (-(2**63), 2), (9_000_000_000, 9_000_000_000)]
)
def test_ttl_is_raised_to_the_minimum(asked_s: int, granted_s: int) -> None:
    model = Model(min_lease_ttl_s=2)
    assert call(model, rpc.LeaseGrantRequest(ID=1, TTL=asked_s)) == rpc.LeaseGrantResponse(
        header=rpc.ResponseHeader(cluster_id=1, member_id=1, revision=1, raft_term=2), ID=1, TTL=granted_s
    )


def test_refused_grants() -> None:
    model = Model()
    call(model, rpc.LeaseGrantRequest(ID=-3, TTL=10))
    assert refused(model, rpc.LeaseGrantRequest(ID=-3, TTL=10)) == (
        Code.FAILED_PRECONDITION,
        "etcdserver: lease already exists",
    )
    assert refused(model, rpc.LeaseGrantRequest(ID=-3, TTL=9_000_000_001)) == (
        Code.OUT_OF_RANGE,
        "etcdserver: too large lease TTL",
    )


def test_a_revoke_deletes_the_keys_in_one_revision_in_key_order() -> None:
    model = Model()
    call(model, rpc.LeaseGrantRequest(ID=7, TTL=10))
    for key in (b"c", b"a", b"b"):
        call(model, put(key, key, lease=7))
    assert call(model, rpc.LeaseRevokeRequest(ID=7)).header.revision == 5
    events = model.events_since(5)
    assert [event.kv for event in events] == [KeyValue(key=key, mod_revision=5) for key in (b"a", b"b", b"c")]
    assert [(event.prev_kv.value, event.prev_kv.lease) for event in events] == [(b"a", 7), (b"b", 7), (b"c", 7)]
    assert refused(model, rpc.LeaseRevokeRequest(ID=7)) == (
        Code.NOT_FOUND,
        "etcdserver: requested lease not found",
    )


def test_keys_that_moved_away_survive() -> None:
    model = Model()
    for lease_id in (7, 8):
        call(model, rpc.LeaseGrantRequest(ID=lease_id, TTL=10))
    for key in (b"moved", b"freed", b"gone"):
        call(model, put(key, lease=7))
    call(model, put(b"moved", lease=8))
    call(model, put(b"freed"))
    call(model, rpc.DeleteRangeRequest(key=b"gone"))
    assert call(model, rpc.LeaseRevokeRequest(ID=7)).header.revision == model.revision == 7
    assert sorted(model.keys) == [b"freed", b"moved"]
    assert list(call(model, rpc.LeaseTimeToLiveRequest(ID=8, keys=True)).keys) == [b"moved"]


def test_a_lease_ends_at_its_deadline_unless_renewed() -> None:
    model = Model()
    call(model, rpc.LeaseGrantRequest(ID=7, TTL=10), now=0.0)
    call(model, put(b"a", lease=7), now=0.0)
    assert call(model, rpc.LeaseKeepAliveRequest(ID=7), now=9.0).TTL == 10
    assert model.expire(18.999) == []
    assert call(model, rpc.LeaseTimeToLiveRequest(ID=7), now=18.5).TTL == 0
    assert model.expire(19.0) == [7]
    assert (model.keys, model.revision) == ({}, 3)
    assert call(model, rpc.LeaseKeepAliveRequest(ID=7), now=19.0).TTL == 0
    gone = call(model, rpc.LeaseTimeToLiveRequest(ID=7), now=19.0)
    assert (gone.ID, gone.TTL, gone.grantedTTL) == (7, -1, 0)


def test_leases_end_and_are_listed_soonest_first() -> None:
    model = Model()
    for lease_id, ttl_s in ((1, 30), (2, 10), (3, 20)):
        call(model, rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
    assert [lease.ID for lease in call(model, rpc.LeaseLeasesRequest()).leases] == [2, 3, 1]
    assert model.expire(20.0) == [2, 3]


def test_an_overdue_lease_is_listed_with_a_negative_ttl() -> None:
    model = Model()
    call(model, rpc.LeaseGrantRequest(ID=7, TTL=10))
    late = call(model, rpc.LeaseTimeToLiveRequest(ID=7), now=12.5)
    assert (late.TTL, late.grantedTTL) == (-2, 10)


# --- alarms ---------------------------------------------------------------------------------------------------------


def test_out_of_space_refuses_what_adds_and_nothing_else() -> None:
    model = model_with(b"a")
    call(model, rpc.LeaseGrantRequest(ID=7, TTL=10))
    call(model, rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=5, alarm=rpc.NOSPACE))
    no_space = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    for adding in (put(b"a"), txn(failure=(put(b"a"),)), txn(txn(put(b"a"))), rpc.LeaseGrantRequest(TTL=10)):
        assert refused(model, adding) == no_space
    for other in (
        rpc.LeaseKeepAliveRequest(ID=7),
        rpc.LeaseRevokeRequest(ID=7),
        txn(rpc.DeleteRangeRequest(key=b"a")),
        rpc.CompactionRequest(revision=2),
    ):
        call(model, other)
    disarm: Any = {"action": rpc.AlarmRequest.DEACTIVATE, "alarm": rpc.NOSPACE}
    assert not call(model, rpc.AlarmRequest(**disarm, memberID=0)).alarms  # another member's
    assert call(model, rpc.AlarmRequest(**disarm, memberID=5)).alarms
    call(model, put(b"a"))


# --- what watches see -----------------------------------------------------------------------------------------------


def test_events_carry_the_version_before_except_a_creating_put() -> None:
    model = model_with(b"a")
    call(model, put(b"a", b"2"))
    created, changed = model.events_since(1)
    assert not created.HasField("prev_kv")
    assert changed.prev_kv.value == b"value of a"
    # Deleted and put again in one revision: for watchers it is a new key.
    call(model, txn(rpc.DeleteRangeRequest(**ALL), put(b"a", b"3")))
    deleted, again = model.events_since(4)
    assert (deleted.type, deleted.prev_kv.value) == (Event.DELETE, b"2")
    assert (again.type, again.kv.version, again.HasField("prev_kv")) == (Event.PUT, 1, False)


def test_compaction_takes_history_away() -> None:
    model = model_with(b"a", b"a", b"a")
    call(model, rpc.CompactionRequest(revision=3))
    with pytest.raises(EtcdError):
        model.events_since(2)
    at_compaction, after = model.events_since(3)
    assert not at_compaction.HasField("prev_kv")  # it was known at revision 2 only
    assert after.prev_kv.mod_revision == 3


def test_other_messages_are_refused_by_type() -> None:
    with pytest.raises(TypeError, match="StatusRequest"):
        Model().apply(rpc.StatusRequest(), 0.0)
