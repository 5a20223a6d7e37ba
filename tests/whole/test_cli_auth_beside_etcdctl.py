# SPDX-License-Identifier: Apache-2.0
"""The commands about users and roles, and logging in, beside the real etcdctl: as in test_cli_beside_etcdctl.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, run
from tests.conformance.auth_peer import CHEAP
from tests.conformance.etcd_server import EtcdServer
from tests.whole.test_cli_beside_etcdctl import OURS, Scene, etcdctl_binary

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

SERVICE = "/etcdserverpb.Auth/"


class Users(Scene):
    """Users root and ann, roles root, r and empty; auth off."""

    async def _set(self) -> None:
        await super()._set()
        async with AsyncClient(self.server.address) as client:
            for name in (await client.call(f"{SERVICE}UserList", rpc.AuthUserListRequest())).users:  # type: ignore[attr-defined]
                await client.call(f"{SERVICE}UserDelete", rpc.AuthUserDeleteRequest(name=name))
            for role in (await client.call(f"{SERVICE}RoleList", rpc.AuthRoleListRequest())).roles:  # type: ignore[attr-defined]
                await client.call(f"{SERVICE}RoleDelete", rpc.AuthRoleDeleteRequest(role=role))
            for name in ("root", "ann"):
                await client.call(f"{SERVICE}UserAdd", rpc.AuthUserAddRequest(name=name, password=f"{name}pw"))
            for role in ("root", "r", "empty"):
                await client.call(f"{SERVICE}RoleAdd", rpc.AuthRoleAddRequest(name=role))
            await client.call(f"{SERVICE}UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
            await client.call(f"{SERVICE}UserGrantRole", rpc.AuthUserGrantRoleRequest(user="ann", role="r"))
            for kind, key, end in ((0, b"a", b"b"), (1, b"c", b"d2"), (2, b"e", b"\0"), (2, b"\x01\xff", b"")):
                permission = auth.Permission(key=key, range_end=end)
                permission.permType = kind  # type: ignore[assignment]
                await client.call(
                    f"{SERVICE}RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name="r", perm=permission)
                )


@pytest.fixture(scope="module")
def scene() -> Iterator[Users]:
    etcdctl = etcdctl_binary()
    with EtcdServer(flags=CHEAP) as server:
        yield Users(server, etcdctl)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Users]:
    """The same, and auth is on for good."""
    etcdctl = etcdctl_binary()
    with EtcdServer(flags=CHEAP) as server:
        scene = Users(server, etcdctl)
        scene.set()

        async def enable() -> None:
            async with AsyncClient(server.address) as client:
                await client.call(f"{SERVICE}AuthEnable", rpc.AuthEnableRequest())

        run(enable())
        yield scene


LINES = [
    "role get root",
    "role get empty",
    "auth enable more",
    "auth disable more",
    "auth status more",
    "auth disable",
    "user add",
    "user add a b",
    "user add :pw",
    "user add bob --new-user-password pw",
    "user add bob:x --new-user-password pw",
    "user add bob --no-password",
    "user add bob:x --no-password",
    "user add ann:pw",
    "user add bob --interactive=false",
    "user delete",
    "user delete nobody",
    "user get",
    "user get nobody",
    "user get ann --detail",
    "user get root --detail",
    "user get nobody --detail",
    "user list more",
    "user passwd",
    "user passwd ann --interactive=false",
    "user passwd nobody --interactive=false",
    "user grant-role",
    "user grant-role ann",
    "user grant-role ann nothing",
    "user grant-role nobody r",
    "user revoke-role ann",
    "user revoke-role ann empty",
    "role add",
    "role add r",
    "role delete",
    "role delete nothing",
    "role get",
    "role get nothing",
    "role list more",
    "role grant-permission",
    "role grant-permission r read",
    "role grant-permission r some k",
    "role grant-permission r READ k",
    "role grant-permission nothing read k",
    "role grant-permission r readwrite k z",
    "role grant-permission r readwrite k a",
    "role grant-permission r write k --prefix",
    "role grant-permission r write k --from-key",
    "role grant-permission r write k --prefix --from-key",
    "role grant-permission r write k z --prefix",
    "role grant-permission r write k z --from-key",
    "role revoke-permission r",
    "role revoke-permission r a",
    "role revoke-permission r a --prefix",
    "role revoke-permission r e --from-key",
    "role revoke-permission r c d2",
    "role revoke-permission nothing a",
]
GUARDED = [
    "get a",
    "get a --user ann:annpw",
    "get a --user ann --password annpw",
    "get c --user ann:annpw",
    "get a --user ann:wrong",
    "get a --user nobody:x",
    "put c v --user ann:annpw",
    "put c v --prev-kv --user ann:annpw",
    "lease list --user ann:annpw",
    "lease timetolive 4d2 --user ann:annpw -w json",
    "lease timetolive 4d2 --keys --user ann:annpw -w json",
    "lease timetolive 4d2",
    "lease keep-alive 4d2 --once --user root:rootpw",
    "lease keep-alive 4d2 --once",
    "auth status --user root:rootpw",
    "auth status --user root:rootpw -w json",
    "auth status --user root:rootpw -w fields",
    "auth status --user ann:annpw",
    "auth enable --user root:rootpw",
    "user get ann --user ann:annpw",
    "user get root --user ann:annpw",
    "role get r --user ann:annpw",
    "role list --user ann:annpw",
    "user delete root --user root:rootpw",
    "watch c --user ann:annpw",
    "watch c",
]


def compare(scene: Scene, line: list[str], *, again: bool = True, stdin: bytes = b"secret word\n") -> None:
    if again:
        scene.set()
    theirs = scene.theirs(line, stdin)
    if again:
        scene.set()
    assert scene.ours(line, stdin) == theirs


@pytest.mark.parametrize("line", LINES)
def test_a_line(scene: Users, line: str) -> None:
    compare(scene, line.split())


@pytest.mark.parametrize("flags", [[], ["--prefix"], ["--from-key"], ["--prefix", "--from-key"]])
def test_the_empty_key(scene: Users, flags: list[str]) -> None:
    compare(scene, ["role", "grant-permission", "empty", "read", "", *flags])


@pytest.mark.parametrize("line", GUARDED)
def test_with_auth_on(guarded: Users, line: str) -> None:
    compare(guarded, line.split(), again=False)


def test_enabling_makes_the_root_role(scene: Users, tmp_path: Path) -> None:
    """Both commands add what is missing; the second one finds it on already."""
    scene.set()

    async def bare() -> None:
        async with AsyncClient(scene.server.address) as client:
            await client.call(f"{SERVICE}RoleDelete", rpc.AuthRoleDeleteRequest(role="root"))

    for command in ([str(scene.etcdctl)], OURS):
        run(bare())
        assert scene.outcome(command, ["auth", "enable"], b"") == (0, "Authentication Enabled\n", "")
        off = ["auth", "disable", "--user", "root:rootpw"]
        assert scene.outcome(command, off, b"") == (0, "Authentication Disabled\n", "")


def test_the_environment_logs_in(guarded: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = guarded.environment()
    for variables in ({"ETCDCTL_USER": "ann:annpw"}, {"ETCDCTL_USER": "ann", "ETCDCTL_PASSWORD": "annpw"}):
        monkeypatch.setattr(guarded, "environment", lambda variables=variables: {**kept, **variables})
        compare(guarded, ["get", "a"], again=False)
