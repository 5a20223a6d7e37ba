# SPDX-License-Identifier: Apache-2.0
"""The member's URLs for peers outlive the server, as all that was acknowledged; a snapshot has them too."""

from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.client import AsyncClient, ServerError, run
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


async def too_many(address: str) -> list[str]:
    """The errors of MemberUpdate and MemberAdd with one URL more than is looked at, all of them sound."""
    urls = [f"http://127.0.0.1:{port + 1}" for port in range(limits.PEER_URLS_MAX + 1)]
    said = []
    async with AsyncClient(address) as client:
        reply = await client.call(f"{CLUSTER}MemberList", rpc.MemberListRequest())
        ours = reply.members[0].ID  # type: ignore[attr-defined]
        await client.call(f"{CLUSTER}MemberUpdate", rpc.MemberUpdateRequest(ID=ours, peerURLs=urls[:-1]))
        for name, request in (
            ("MemberUpdate", rpc.MemberUpdateRequest(ID=ours, peerURLs=urls)),
            ("MemberAdd", rpc.MemberAddRequest(peerURLs=urls)),
        ):
            with pytest.raises(ServerError) as caught:
                await client.call(CLUSTER + name, request)
            said.append(caught.value.message)
    return said


def test_more_urls_than_any_member_has_are_refused(tmp_path: Path) -> None:
    with in_process(tmp_path) as server:
        assert run(too_many(server.address)) == [errors.MEMBER_URLS_INVALID.message] * 2
