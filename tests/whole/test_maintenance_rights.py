# SPDX-License-Identifier: Apache-2.0
"""Who may look after a server that has authentication on: root; a user who is signed in may look at its status."""

import base64
import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, ServerError, run
from lessor.etcd_file.layout import MAGIC
from tests.in_process import in_process

MAINTENANCE, CLUSTER, AUTH = "/etcdserverpb.Maintenance/", "/etcdserverpb.Cluster/", "/etcdserverpb.Auth/"
ROOT_ONLY: list[tuple[str, Any]] = [
    (MAINTENANCE + "Defragment", rpc.DefragmentRequest()),
    (MAINTENANCE + "Hash", rpc.HashRequest()),
    (MAINTENANCE + "HashKV", rpc.HashKVRequest()),
    (MAINTENANCE + "MoveLeader", rpc.MoveLeaderRequest(targetID=1)),
    (MAINTENANCE + "Downgrade", rpc.DowngradeRequest(action=rpc.DowngradeRequest.CANCEL)),
    (MAINTENANCE + "Alarm", rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=1, alarm=rpc.NOSPACE)),
    (CLUSTER + "MemberAdd", rpc.MemberAddRequest(peerURLs=["http://h:1"])),
    (CLUSTER + "MemberRemove", rpc.MemberRemoveRequest(ID=1)),
    (CLUSTER + "MemberUpdate", rpc.MemberUpdateRequest(ID=1)),
    (CLUSTER + "MemberPromote", rpc.MemberPromoteRequest(ID=1)),
]
SIGNED_IN: list[tuple[str, Any]] = [
    (MAINTENANCE + "Status", rpc.StatusRequest()),
    (MAINTENANCE + "Alarm", rpc.AlarmRequest()),
    (CLUSTER + "MemberList", rpc.MemberListRequest()),
]


async def set_up(address: str) -> None:
    """root, and a user who may do nothing."""
    async with AsyncClient(address) as client:
        for name in ("root", "guest"):
            await client.call(AUTH + "UserAdd", rpc.AuthUserAddRequest(name=name, password="p"))
        await client.call(AUTH + "RoleAdd", rpc.AuthRoleAddRequest(name="root"))
        await client.call(AUTH + "UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        await client.call(AUTH + "AuthEnable", rpc.AuthEnableRequest())


async def answer_to(address: str, path: str, request: Any, user: str | None) -> str:
    """The error's text, or "" for a reply or another error than one about rights."""
    login = {"user": user, "password": "p"} if user else {}
    async with AsyncClient(address, **login) as client:  # type: ignore[arg-type]
        try:
            await client.call(path, request)
        except ServerError as error:
            return error.message
    return ""


async def snapshot(address: str, user: str | None, form: str) -> bytes:
    login = {"user": user, "password": "p"} if user else {}
    async with AsyncClient(address, **login) as client:  # type: ignore[arg-type]
        return b"".join([reply.blob async for reply in client.snapshot(form=form)])


@pytest.mark.slow
def test_who_may_do_what(tmp_path: Path) -> None:
    empty, denied = "etcdserver: user name is empty", "etcdserver: permission denied"
    with in_process(tmp_path, "--bcrypt-cost=4") as server:
        run(set_up(server.address))
        for path, request in ROOT_ONLY:
            assert run(answer_to(server.address, path, request, None)) == empty, path
            assert run(answer_to(server.address, path, request, "guest")) == denied, path
            assert run(answer_to(server.address, path, request, "root")) not in (empty, denied), path
        for path, request in SIGNED_IN:
            assert run(answer_to(server.address, path, request, None)) == empty, path
            for user in ("guest", "root"):
                assert run(answer_to(server.address, path, request, user)) == "", path


@pytest.mark.slow
def test_a_snapshot_holds_everything_and_is_roots_alone(tmp_path: Path) -> None:
    with in_process(tmp_path, "--bcrypt-cost=4") as server:
        run(set_up(server.address))
        for user, text in ((None, "user name is empty"), ("guest", "permission denied")):
            for form in ("etcd", "lessor"):
                with pytest.raises(ServerError, match=text):
                    run(snapshot(server.address, user, form))
        assert run(snapshot(server.address, "root", "lessor")).startswith(b"SQLite format 3")
        assert run(snapshot(server.address, "root", "etcd"))[16:20] == MAGIC.to_bytes(4, "little")
        # An empty body is an empty request, and no way around.
        for body in ("", "{}"):
            connection = http.client.HTTPConnection(server.address, timeout=10)
            connection.request("POST", "/v3/maintenance/snapshot", body)
            reply = connection.getresponse()
            assert reply.status == 400
            assert json.loads(reply.read())["message"] == "etcdserver: user name is empty"
            connection.close()


@pytest.mark.slow
def test_a_websocket_takes_its_token_from_the_subprotocols(tmp_path: Path) -> None:
    from wsproto import ConnectionType, WSConnection, events

    def first_words(address: str, subprotocols: list[str]) -> str:
        import socket

        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as peer:
            ws = WSConnection(ConnectionType.CLIENT)
            peer.sendall(ws.send(events.Request(host="h", target="/v3/watch", subprotocols=subprotocols)))
            sent = False
            while True:
                ws.receive_data(peer.recv(65_536))
                for event in ws.events():
                    if isinstance(event, events.TextMessage):
                        return event.data
                if not sent:
                    sent = True
                    key = base64.b64encode(b"k").decode()
                    peer.sendall(ws.send(events.TextMessage(data=json.dumps({"create_request": {"key": key}}))))

    async def log_in(address: str) -> str:
        async with AsyncClient(address) as client:
            request = rpc.AuthenticateRequest(name="root", password="p")
            reply: Any = await client.call(AUTH + "Authenticate", request)
            return str(reply.token)

    with in_process(tmp_path, "--bcrypt-cost=4") as server:
        run(set_up(server.address))
        assert "user name is empty" in first_words(server.address, [])
        assert "invalid auth token" in first_words(server.address, ["Bearer", "wrong"])
        token = run(log_in(server.address))
        assert json.loads(first_words(server.address, ["Bearer", token]))["result"] == {
            "header": json.loads(first_words(server.address, ["Bearer", token]))["result"]["header"],
            "created": True,
        }
