# SPDX-License-Identifier: Apache-2.0
"""MoveLeader: another server leads from then on, the one that led follows it, and nobody is told of an error."""

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.grpc_peer import GrpcPeer
from tests.linear.nemesis import LessorProcess
from tests.whole.test_on_a_shared_log import eventually, put

MOVES = 3


def member_id(peer: GrpcPeer) -> int:
    status: Any = peer.call(rpc.StatusRequest())
    return int(status.header.member_id)


def move(peer: GrpcPeer, target: int) -> None:
    call = peer.channel.unary_unary("/etcdserverpb.Maintenance/MoveLeader", rpc.MoveLeaderRequest.SerializeToString)
    call(rpc.MoveLeaderRequest(targetID=target), timeout=10)


def leads(peer: GrpcPeer) -> bool:
    status: Any = peer.call(rpc.StatusRequest())
    return bool(status.leader == status.header.member_id)


def test_the_lead_goes_to_and_fro_and_a_client_of_a_third_server_sees_no_error(tmp_path: Path) -> None:
    with InProcessServer(clock=VirtualClock(flowing=True), data_dir=tmp_path / "log") as log:
        engine = [f"--engine=etcd://{log.address}/log", "--engine-may-lose-commits"]
        servers = [LessorProcess(tmp_path / name, engine=engine) for name in ("a", "b", "c")]
        written: list[int] = []
        ended = threading.Event()
        try:
            servers[0].spawn()
            servers[0].wait_until_leading()
            for server in servers[1:]:
                server.spawn()
                server.wait_until_serving()
            with GrpcPeer(servers[2].endpoint) as third:

                def write() -> None:
                    while not ended.is_set():
                        reply: Any = third.call(put(b"k", b"%d" % len(written)))
                        written.append(reply.header.revision)

                writing = threading.Thread(target=write)
                writing.start()
                for turn in range(MOVES):
                    before, after = servers[turn % 2], servers[(turn + 1) % 2]
                    with GrpcPeer(after.endpoint) as peer:
                        target = member_id(peer)
                        with GrpcPeer(before.endpoint) as old:
                            move(old, target)
                        eventually(lambda peer=peer: leads(peer))  # type: ignore[misc]
                    before.wait_until_serving()  # the same process follows now
                    assert before.alive
                    seen = len(written)
                    eventually(lambda seen=seen: len(written) > seen + 5)  # type: ignore[misc]
                with GrpcPeer(servers[1].endpoint) as peer, pytest.raises(grpc.RpcError, match="bad leader transferee"):
                    move(peer, 12345)
                ended.set()
                writing.join(20)
            assert written == list(range(written[0], written[0] + len(written)))
        finally:
            ended.set()
            for server in servers:
                if server.alive:
                    server.kill()
