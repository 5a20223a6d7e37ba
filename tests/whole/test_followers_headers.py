# SPDX-License-Identifier: Apache-2.0
"""The member that a reply names, where another one has carried the call out."""

from pathlib import Path
from typing import Any

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import GrpcPeer
from tests.whole.test_followers import two
from tests.whole.test_on_a_shared_log import put


def test_every_reply_at_a_follower_names_the_follower(tmp_path: Path) -> None:
    with two(tmp_path) as (leader, follower), GrpcPeer(follower.address) as peer, GrpcPeer(leader.address) as other:
        status: Any = peer.call(rpc.StatusRequest())
        leaders: Any = other.call(rpc.StatusRequest())
        assert status.header.member_id != status.leader == leaders.header.member_id
        txn = rpc.TxnRequest(success=[rpc.RequestOp(request_put=put(b"k", b"v"))])
        lease = rpc.LeaseGrantRequest(TTL=60, ID=7)
        for request in (
            put(b"k", b"v"),
            txn,
            rpc.RangeRequest(key=b"k"),
            rpc.DeleteRangeRequest(key=b"k"),
            rpc.CompactionRequest(revision=2),
            lease,
            rpc.LeaseKeepAliveRequest(ID=7),
            rpc.LeaseTimeToLiveRequest(ID=7),
            rpc.LeaseLeasesRequest(),
            rpc.LeaseRevokeRequest(ID=7),
            rpc.MemberListRequest(linearizable=True),
            rpc.AuthStatusRequest(),
            rpc.AuthRoleAddRequest(name="r"),
            rpc.AlarmRequest(),
        ):
            reply: Any = peer.call(request)
            named = (reply.header.cluster_id, reply.header.member_id)
            assert named == (status.header.cluster_id, status.header.member_id), request
