# SPDX-License-Identifier: Apache-2.0
"""The member's URLs for peers outlive the server, as all that was acknowledged; a snapshot has them too."""

from pathlib import Path

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, run
from tests.in_process import in_process

CLUSTER = "/etcdserverpb.Cluster/"
URLS = ["http://127.0.0.1:9", "http://127.0.0.1:8"]


async def update(address: str) -> None:
    async with AsyncClient(address) as client:
        reply = await client.call(f"{CLUSTER}MemberList", rpc.MemberListRequest())
        (member,) = reply.members  # type: ignore[attr-defined]
        assert list(member.peerURLs) == list(member.clientURLs)
        moved = rpc.MemberUpdateRequest(ID=member.ID, peerURLs=[f" {url}" for url in URLS])
        await client.call(f"{CLUSTER}MemberUpdate", moved)


async def peer_urls(address: str) -> list[str]:
    async with AsyncClient(address) as client:
        reply = await client.call(f"{CLUSTER}MemberList", rpc.MemberListRequest())
        return list(reply.members[0].peerURLs)  # type: ignore[attr-defined]


def test_peer_urls_outlive_the_server(tmp_path: Path) -> None:
    with in_process(tmp_path) as server:
        run(update(server.address))
    for _ in range(2):  # a start that changes nothing writes nothing over them
        with in_process(tmp_path) as server:
            assert run(peer_urls(server.address)) == URLS
