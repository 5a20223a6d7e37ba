# SPDX-License-Identifier: Apache-2.0
"""The quota on a shared log: who follows counts as the one who leads, and goes on with that when it has to lead."""

from pathlib import Path
from typing import Any

from lessor.api.proto import rpc_pb2 as rpc
from lessor.testing.server import InProcessServer
from tests.conformance.grpc_peer import Failure, GrpcPeer
from tests.whole.test_followers import leads, two
from tests.whole.test_on_a_shared_log import eventually, put

NO_SPACE = Failure(8, "etcdserver: mvcc: database space exceeded")


def counted(server: InProcessServer) -> int:
    return int(server.call(lambda: server.server.core.machine.counted_bytes))


def alarms(peer: GrpcPeer) -> Any:
    reply: Any = peer.call(rpc.AlarmRequest())
    return list(reply.alarms)


def disarm(peer: GrpcPeer) -> None:
    (alarm,) = alarms(peer)
    reply: Any = peer.call(
        rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
    )
    assert list(reply.alarms) == [alarm]


def test_the_next_leader_counts_what_it_has_followed(tmp_path: Path) -> None:
    large = put(b"k", b"v" * 10_000)
    with two(tmp_path, "--quota-backend-bytes=200000") as (leader, follower), GrpcPeer(follower.address) as peer:
        assert not isinstance(peer.call(rpc.LeaseGrantRequest(TTL=600, ID=7)), Failure)
        taken = 0
        while (reply := peer.call(large)) != NO_SPACE:
            assert not isinstance(reply, Failure), reply
            taken += 1
        assert 10 < taken < 20
        assert [alarm.alarm for alarm in alarms(peer)] == [rpc.NOSPACE]
        eventually(lambda: counted(follower) == counted(leader))
        disarm(peer)
        leader.stop()
        eventually(lambda: leads(follower))
        assert alarms(peer) == []
        assert peer.call(large) == NO_SPACE
        newest: Any = peer.call(rpc.RangeRequest(key=b"k"))
        assert newest.kvs[0].version == taken
        assert not isinstance(peer.call(rpc.CompactionRequest(revision=newest.header.revision)), Failure)
        disarm(peer)
        assert not isinstance(peer.call(large), Failure)
