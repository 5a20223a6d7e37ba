# SPDX-License-Identifier: Apache-2.0
"""What alarms stop in the state machine, and what they let through. test_maintenance.py holds both to etcd."""

from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code, EtcdError
from lessor.state.machine import Identity, StateMachine

MEMBER = 5


def machine() -> StateMachine:
    """Key a on lease 1, key b without one, at revision 3."""
    made = StateMachine(Identity(1, MEMBER, 2))
    made.apply(rpc.LeaseGrantRequest(ID=1, TTL=10), 0.0)
    made.apply(rpc.PutRequest(key=b"a", lease=1), 0.0)
    made.apply(rpc.PutRequest(key=b"b"), 0.0)
    return made


def set_alarm(made: StateMachine, kind: int, action: int = rpc.AlarmRequest.ACTIVATE) -> Any:
    return made.apply(rpc.AlarmRequest(action=action, memberID=MEMBER, alarm=kind), 0.0)  # type: ignore[arg-type]


def op(**kind: Any) -> rpc.RequestOp:
    return rpc.RequestOp(**kind)


PUT = op(request_put=rpc.PutRequest(key=b"x"))
DELETE = op(request_delete_range=rpc.DeleteRangeRequest(key=b"a"))
READ = op(request_range=rpc.RangeRequest(key=b"a"))
WRITES = [
    rpc.PutRequest(key=b"x"),
    rpc.PutRequest(key=b"x", lease=99),
    rpc.DeleteRangeRequest(key=b"a"),
    rpc.TxnRequest(success=[PUT]),
    rpc.TxnRequest(failure=[DELETE]),
    rpc.TxnRequest(success=[op(request_txn=rpc.TxnRequest(failure=[PUT]))]),
    rpc.CompactionRequest(revision=2),
    rpc.CompactionRequest(revision=99),
    rpc.LeaseGrantRequest(TTL=10),
    rpc.LeaseGrantRequest(TTL=2**62),
    rpc.LeaseRevokeRequest(ID=1),
    rpc.LeaseRevokeRequest(ID=99),
]
READS = [
    rpc.RangeRequest(key=b"a"),
    rpc.TxnRequest(success=[READ]),
    rpc.TxnRequest(),
    rpc.LeaseKeepAliveRequest(ID=1),
    rpc.LeaseTimeToLiveRequest(ID=1, keys=True),
    rpc.LeaseLeasesRequest(),
    rpc.AlarmRequest(),
]


@pytest.mark.parametrize("request_", WRITES, ids=str)
def test_corrupt_stops_every_write(request_: Any) -> None:
    made = machine()
    set_alarm(made, rpc.CORRUPT)
    rows = made.journal.row_count
    with pytest.raises(EtcdError, match=r"^etcdserver: corrupt cluster$") as raised:
        made.apply(request_, 1.0)
    assert raised.value.code == Code.DATA_LOSS
    assert (made.revision, made.journal.row_count) == (3, rows)


@pytest.mark.parametrize("request_", READS, ids=str)
def test_corrupt_lets_reads_and_renewals_through(request_: Any) -> None:
    made, well = machine(), machine()
    set_alarm(made, rpc.CORRUPT)
    reply, expected = made.apply(request_, 1.0), well.apply(request_, 1.0)
    if not isinstance(request_, rpc.AlarmRequest):
        assert reply == expected


def test_a_malformed_request_is_refused_as_such_in_spite_of_alarms() -> None:
    made = machine()
    set_alarm(made, rpc.CORRUPT)
    for malformed in (rpc.PutRequest(), rpc.DeleteRangeRequest(), rpc.TxnRequest(success=[op()])):
        with pytest.raises(EtcdError) as raised:
            made.apply(malformed, 1.0)
        assert raised.value.code == Code.INVALID_ARGUMENT


def test_no_lease_ends_while_the_store_is_corrupt_and_all_that_are_due_end_afterwards() -> None:
    made = machine()
    set_alarm(made, rpc.CORRUPT)
    assert made.next_deadline() is None
    assert made.expire(1000.0, 100) == 0
    assert made.apply(rpc.LeaseLeasesRequest(), 1000.0).leases[0].ID == 1  # type: ignore[attr-defined]
    set_alarm(made, rpc.CORRUPT, rpc.AlarmRequest.DEACTIVATE)
    assert made.next_deadline() == 10.0
    assert made.expire(1000.0, 100) == 1
    assert made.revision == 4


def test_corrupt_goes_before_no_space() -> None:
    made = machine()
    set_alarm(made, rpc.NOSPACE)
    set_alarm(made, rpc.CORRUPT)
    with pytest.raises(EtcdError, match="corrupt cluster"):
        made.apply(rpc.PutRequest(key=b"x"), 1.0)
    set_alarm(made, rpc.CORRUPT, rpc.AlarmRequest.DEACTIVATE)
    with pytest.raises(EtcdError, match="database space exceeded"):
        made.apply(rpc.PutRequest(key=b"x"), 1.0)
    assert made.apply(rpc.DeleteRangeRequest(key=b"a"), 1.0).deleted == 1  # type: ignore[attr-defined]


def test_an_alarm_of_another_member_counts_and_has_to_be_taken_back_by_its_name() -> None:
    made = machine()
    made.apply(rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=77, alarm=rpc.CORRUPT), 0.0)
    assert made.corrupt
    set_alarm(made, rpc.CORRUPT, rpc.AlarmRequest.DEACTIVATE)  # ours is not up
    assert made.corrupt
    made.apply(rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=77, alarm=rpc.CORRUPT), 0.0)
    assert not made.corrupt
