# SPDX-License-Identifier: Apache-2.0
"""A store that fills up: what counts for the quota, NOSPACE, making room, disarming - Lessor and a real etcd.

The figure that etcd compares is measured a moment after each commit, so what it takes is not an exact number of puts.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.etcdctl import etcdctl_binary
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import RUNNERS, Subject, running, until

QUOTA_BYTES = 8 * 1024 * 1024
NO_SPACE = Failure(8, "etcdserver: mvcc: database space exceeded")


@pytest.fixture(params=RUNNERS)
def small(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with running(request.param, [f"--quota-backend-bytes={QUOTA_BYTES}"]) as server:
        yield server


def fill(subject: Subject) -> None:
    """Puts until it is refused; the figure is measured a moment after each commit, so not at an exact put."""
    give_up = time.monotonic() + 30
    while (reply := subject.call(rpc.PutRequest(key=b"fill", value=b"x" * 500_000))) != NO_SPACE:
        assert not isinstance(reply, Failure), reply
        assert time.monotonic() < give_up


def db_size(subject: Subject) -> int:
    return int(subject.stub("etcdserverpb.Maintenance/Status")(rpc.StatusRequest()).dbSize)


def puts_until_refused(subject: Subject, value_bytes: int, keys: int) -> int:
    """How many puts are taken, round the keys, before the first is refused."""
    for count in range(100_000):
        reply = subject.call(rpc.PutRequest(key=b"round/%d" % (count % keys), value=b"v" * value_bytes))
        if isinstance(reply, Failure):
            assert reply == NO_SPACE
            return count
    raise AssertionError("no end of it")


def disarm(subject: Subject) -> None:
    alarm = subject.do(rpc.AlarmRequest()).alarms[0]
    subject.do(rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm))
    assert alarms(subject) == []


def make_room(subject: Subject) -> None:
    make_room_without_an_alarm(subject)
    disarm(subject)


def make_room_without_an_alarm(subject: Subject) -> None:
    subject.do(rpc.CompactionRequest(revision=subject.revision, physical=True))
    subject.stub("etcdserverpb.Maintenance/Defragment")(rpc.DefragmentRequest())


def alarms(subject: Subject) -> list[int]:
    return [alarm.alarm for alarm in subject.do(rpc.AlarmRequest()).alarms]


def etcdctl(subject: Subject, *args: str) -> str:
    environment = {**os.environ, "ETCDCTL_ENDPOINTS": subject.server.address, "ETCDCTL_API": "3"}
    done = subprocess.run([etcdctl_binary(), *args], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_room_is_made_by_compaction_and_defragmentation_and_the_alarm_is_disarmed(small: Subject) -> None:
    lease_id = small.grant()
    small.put(b"kept", b"v", lease=lease_id)
    fill(small)
    assert alarms(small) == [rpc.NOSPACE]
    assert small.request("GET", "/health").status == 503
    assert small.call(rpc.LeaseGrantRequest(TTL=10)) == NO_SPACE
    assert small.get(b"kept").value == b"v"
    assert small.do(rpc.LeaseKeepAliveRequest(ID=lease_id)).TTL == 600
    member_id = small.do(rpc.AlarmRequest()).alarms[0].memberID
    shown = [f"memberID:{member_id}", "alarm:NOSPACE"]  # with as many spaces as this build of etcdctl likes
    assert etcdctl(small, "alarm", "list").split() == shown
    small.do(rpc.CompactionRequest(revision=small.revision, physical=True))
    etcdctl(small, "defrag")
    status: Any = small.stub("etcdserverpb.Maintenance/Status")(rpc.StatusRequest())
    assert status.dbSize < QUOTA_BYTES / 2
    assert etcdctl(small, "alarm", "disarm").split() == shown
    assert alarms(small) == []
    small.put(b"again", b"x" * 500_000)
    small.grant()
    assert small.request("GET", "/health").status == 200


@pytest.mark.slow
def test_an_alarm_that_is_disarmed_without_making_room_comes_back_with_the_next_write(small: Subject) -> None:
    fill(small)
    disarm(small)
    # Nothing but a request that does not fit raises it.
    small.delete(b"none")
    small.delete(b"fill")
    if small.like(3, 6):  # 3.5 refuses any txn beyond the quota
        small.do(rpc.TxnRequest(success=[rpc.RequestOp(request_range=rpc.RangeRequest(key=b"fill"))]))
    small.stub("etcdserverpb.Maintenance/Defragment")(rpc.DefragmentRequest())
    assert alarms(small) == []
    assert small.request("GET", "/health").status == 200
    assert small.call(rpc.PutRequest(key=b"fill", value=b"x" * 500_000)) == NO_SPACE
    assert alarms(small) == [rpc.NOSPACE]


@pytest.mark.parametrize("kind", RUNNERS)
def test_what_counts_is_about_what_was_put(kind: str) -> None:
    quota = 1_000_000
    with running(kind, [f"--quota-backend-bytes={quota}"]) as subject:
        taken = puts_until_refused(subject, 1024, keys=50)
        assert taken > quota / 2 / 1024
        if subject.is_lessor:
            assert taken < quota / 1024
        assert alarms(subject) == [rpc.NOSPACE]
        make_room(subject)
        assert puts_until_refused(subject, 1024, keys=50) > 100


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_quota_of_a_few_pages_is_made_room_in(kind: str) -> None:
    with running(kind, [f"--quota-backend-bytes={16 * 4096}"]) as subject:
        assert puts_until_refused(subject, 100, keys=5) > 50
        for _ in range(3):
            make_room(subject)
            assert puts_until_refused(subject, 100, keys=5) > 10


@pytest.mark.parametrize("kind", RUNNERS)
def test_the_size_of_a_request_counts(kind: str) -> None:
    """Quota 2,000,000: the second put of 1.4 MB does not fit, but a small one does."""
    with running(kind, ["--quota-backend-bytes=2000000"]) as subject:
        large = rpc.PutRequest(key=b"large", value=b"v" * 1_400_000)
        subject.do(large)
        until(lambda: db_size(subject) > 1_400_000)
        put = rpc.RequestOp(request_put=large)
        inner = rpc.RequestOp(request_txn=rpc.TxnRequest(failure=[put]))
        requests = [large, rpc.TxnRequest(success=[put]), rpc.TxnRequest(failure=[put])]
        if subject.like(3, 6):
            requests.append(rpc.TxnRequest(success=[inner]))
        for request in requests:
            assert subject.call(request) == NO_SPACE
            assert alarms(subject) == [rpc.NOSPACE]
            disarm(subject)
        subject.put(b"small", b"v" * 1000)
        assert len(subject.get(b"large").value) == 1_400_000
        make_room_without_an_alarm(subject)
        assert subject.call(large) == NO_SPACE  # the live data is as large as before


@pytest.mark.parametrize("kind", RUNNERS)
def test_beyond_the_quota_what_adds_nothing_goes_on(kind: str) -> None:
    """A quota smaller than what no data takes: each write is beyond it, with or without an alarm."""
    with running(kind, ["--quota-backend-bytes=20000"]) as subject:
        assert alarms(subject) == []
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"a"))
        delete = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"a"))
        for request in (rpc.PutRequest(key=b"a"), rpc.TxnRequest(failure=[put]), rpc.LeaseGrantRequest(TTL=60)):
            assert subject.call(request) == NO_SPACE
            assert subject.call(request) == NO_SPACE
            assert alarms(subject) == [rpc.NOSPACE]
            disarm(subject)
        for alarmed in (False, True):
            subject.do(rpc.RangeRequest(key=b"a"))
            subject.do(rpc.DeleteRangeRequest(key=b"a"))
            if subject.like(3, 6):
                subject.do(rpc.TxnRequest(success=[delete]))
            subject.do(rpc.LeaseLeasesRequest())
            subject.do(rpc.LeaseKeepAliveRequest(ID=5))
            assert subject.call(rpc.LeaseRevokeRequest(ID=5)) == Failure(5, "etcdserver: requested lease not found")
            assert alarms(subject) == [rpc.NOSPACE] * alarmed
            if not alarmed:
                assert subject.call(rpc.PutRequest(key=b"a")) == NO_SPACE


@pytest.mark.parametrize("kind", RUNNERS)
def test_after_a_restart(kind: str) -> None:
    with running(kind, ["--quota-backend-bytes=1000000"]) as subject:
        lease_id = subject.grant()
        puts_until_refused(subject, 10_000, keys=5)
        disarm(subject)  # until then no server says that it is healthy
        subject.server.request_stop()
        subject.server.wait()
        subject.server.start_again()
        until(lambda: not isinstance(subject.call(rpc.RangeRequest(key=b"a")), Failure))
        assert alarms(subject) == []
        assert subject.call(rpc.PutRequest(key=b"a", value=b"v" * 100_000)) == NO_SPACE
        assert alarms(subject) == [rpc.NOSPACE]
        make_room(subject)
        assert puts_until_refused(subject, 10_000, keys=5) > 20
        assert subject.alive(lease_id)
