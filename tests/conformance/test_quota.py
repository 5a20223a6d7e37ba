# SPDX-License-Identifier: Apache-2.0
"""The whole story of a store that fills up: NOSPACE, making room, disarming - Lessor and a real etcd."""

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.etcdctl import etcdctl_binary, etcdctl_like
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import RUNNERS, Subject, running

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
    end = "" if etcdctl_like(3, 7) else " "
    shown = f"memberID:{member_id} alarm:NOSPACE{end}\n"
    assert etcdctl(small, "alarm", "list") == shown
    small.do(rpc.CompactionRequest(revision=small.revision, physical=True))
    etcdctl(small, "defrag")
    status: Any = small.stub("etcdserverpb.Maintenance/Status")(rpc.StatusRequest())
    assert status.dbSize < QUOTA_BYTES / 2
    assert etcdctl(small, "alarm", "disarm") == shown
    assert alarms(small) == []
    small.put(b"again", b"x" * 500_000)
    small.grant()
    assert small.request("GET", "/health").status == 200


@pytest.mark.slow
def test_an_alarm_that_is_disarmed_without_making_room_comes_back(small: Subject) -> None:
    fill(small)
    alarm = small.do(rpc.AlarmRequest()).alarms[0]
    small.do(rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm))
    fill(small)
    assert alarms(small) == [rpc.NOSPACE]
