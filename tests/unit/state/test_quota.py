# SPDX-License-Identifier: Apache-2.0
"""What the state machine counts for the quota, and which requests it refuses. The sums of versions: test_digest.py."""

from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code, EtcdError
from lessor.state.machine import Identity, StateMachine
from lessor.state.mvcc import stored_bytes
from lessor.state.quota import EMPTY_BYTES, LEASE_BYTES

MEMBER = 5
REQUEST_BYTES_MAX = 1_572_864


def machine(room: int) -> StateMachine:
    """With so much room left: a request fits if it costs less."""
    made = StateMachine(Identity(1, MEMBER, 2))
    made.set_quota(EMPTY_BYTES + room, REQUEST_BYTES_MAX)
    return made


def put(key: bytes, value: bytes = b"") -> rpc.PutRequest:
    return rpc.PutRequest(key=key, value=value)


def op(**kind: Any) -> rpc.RequestOp:
    return rpc.RequestOp(**kind)


def refused(made: StateMachine, request: Any) -> bool:
    """Whether it is refused for want of space; then the alarm is up, and nothing else has changed."""
    revision, counted = made.revision, made.counted_bytes
    try:
        made.apply(request, 0.0)
    except EtcdError as raised:
        error = raised
    else:
        assert not made.alarms
        return False
    assert (error.code, error.message) == (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    assert made.alarms == {(MEMBER, rpc.NOSPACE)}
    assert made.no_space
    assert (made.revision, made.counted_bytes) == (revision, counted)
    return True


PUT_300 = put(b"k" * 10, b"v" * 34)  # costs 256 + 44
NESTED = op(request_txn=rpc.TxnRequest(failure=[op(request_put=PUT_300)]))


@pytest.mark.parametrize(
    ("request_", "cost"),
    [
        (PUT_300, 300),
        (rpc.TxnRequest(success=[op(request_put=PUT_300)]), 300),
        (rpc.TxnRequest(failure=[op(request_put=PUT_300)]), 300),
        (rpc.TxnRequest(success=[op(request_put=PUT_300), op(request_put=put(b"a"))]), 557),
        (rpc.TxnRequest(success=[op(request_put=put(b"a"))], failure=[op(request_put=PUT_300)]), 300),
        (rpc.TxnRequest(success=[NESTED]), 300),
        (rpc.LeaseGrantRequest(TTL=60), 64),
    ],
    ids=str,
)
def test_a_request_fits_if_its_cost_stays_below_what_is_left(request_: Any, cost: int) -> None:
    assert refused(machine(room=cost), request_)
    assert not refused(machine(room=cost + 1), request_)


@pytest.mark.parametrize(
    "request_",
    [
        rpc.DeleteRangeRequest(key=b"a"),
        rpc.RangeRequest(key=b"a"),
        rpc.TxnRequest(),
        rpc.TxnRequest(success=[op(request_delete_range=rpc.DeleteRangeRequest(key=b"a"))]),
        rpc.LeaseLeasesRequest(),
        rpc.LeaseKeepAliveRequest(ID=1),
        rpc.AlarmRequest(),
    ],
    ids=str,
)
def test_what_adds_nothing_always_fits(request_: Any) -> None:
    assert not refused(machine(room=-EMPTY_BYTES), request_)


def test_what_counts() -> None:
    made = machine(room=1 << 20)
    made.apply(rpc.LeaseGrantRequest(ID=7, TTL=60), 0.0)
    for _ in range(3):
        made.apply(put(b"key", b"value"), 0.0)
    made.apply(rpc.DeleteRangeRequest(key=b"key"), 0.0)
    assert made.counted_bytes == EMPTY_BYTES + LEASE_BYTES + 3 * stored_bytes(8) + stored_bytes(3)
    made.apply(put(b"other"), 0.0)
    made.apply(rpc.CompactionRequest(revision=made.revision), 0.0)
    made.apply(rpc.LeaseRevokeRequest(ID=7), 0.0)
    assert made.counted_bytes == EMPTY_BYTES + stored_bytes(5)


def test_a_version_counts_at_least_its_bytes_and_a_longer_one_more() -> None:
    counted = [stored_bytes(size) for size in range(0, 100_000, 7)]
    assert counted == sorted(counted)
    assert len(set(counted)) == len(counted)
    assert all(size < stored_bytes(size) < 1.2 * size + 80 for size in range(0, 100_000, 7))


def test_the_alarm_is_told_of_once_and_is_a_row() -> None:
    told: list[int] = []
    made = machine(room=0)
    made.on_no_space = lambda: told.append(1)
    assert refused(made, put(b"a"))
    assert refused(made, put(b"a"))
    assert told == [1]
    assert made.journal.seal(0.0).alarms == [(MEMBER, rpc.NOSPACE, True)]
    made.apply(rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=MEMBER, alarm=rpc.NOSPACE), 0.0)
    assert refused(made, put(b"a"))
    assert told == [1, 1]


def test_errors_of_the_request_alone_come_first_and_raise_no_alarm() -> None:
    made = machine(room=0)
    with pytest.raises(EtcdError, match="key is not provided"):
        made.apply(put(b""), 0.0)
    assert not made.alarms
    assert refused(made, rpc.PutRequest(key=b"a", lease=99))  # as in etcd, which looks for the lease later
