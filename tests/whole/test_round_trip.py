# SPDX-License-Identifier: Apache-2.0
"""From an etcd to Lessor and back to an etcd: nothing that etcd's own digest covers has changed, and leases live on."""

from pathlib import Path
from typing import Any

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, run
from tests.conformance.etcd_server import EtcdServer
from tests.restored_server import RestoredServer
from tests.whole.test_restore_into_etcd import (
    LEASE,
    LONG_LEASE,
    Restored,
    goes_on,
    hashes,
    history,
    save_as_root,
    see_auth,
    set_up_auth,
    tool,
)
from tests.whole.test_snapshot_stream import save

__all__ = ["tool"]  # a fixture
REVISIONS = (0, 51, 60, 63, 70, 104)


async def leases(address: str) -> dict[int, tuple[int, list[bytes]]]:
    """TTL and keys of each lease."""
    found = {}
    async with AsyncClient(address) as client:
        for lease_id in (LEASE, LONG_LEASE):
            request = rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)
            reply: Any = await client.call("/etcdserverpb.Lease/LeaseTimeToLive", request)
            assert 0 < reply.TTL <= reply.grantedTTL
            found[lease_id] = (reply.grantedTTL, sorted(reply.keys))
    return found


def test_the_hash_of_etcd_is_the_same_after_a_round_trip(tool: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there.db", tmp_path / "back.db"
    with EtcdServer() as etcd:
        run(history(etcd.address))
        before, held = run(hashes(etcd.address, *REVISIONS)), run(leases(etcd.address))
        there.write_bytes(run(save(etcd.address)))
    with RestoredServer("snapshot", "restore", str(there)) as server:
        assert run(leases(server.address)) == held
        back.write_bytes(run(save(server.address)))
    with Restored(tool, back) as etcd:
        assert run(hashes(etcd.address, *REVISIONS)) == before
        assert run(leases(etcd.address)) == held
        run(goes_on(etcd.address))


def test_users_roles_and_the_switch_are_the_same_after_a_round_trip(tool: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there.db", tmp_path / "back.db"
    with EtcdServer() as etcd:
        run(set_up_auth(etcd.address))
        data, revision = run(save_as_root(etcd.address))
        there.write_bytes(data)
    with RestoredServer("snapshot", "restore", str(there)) as server:
        data, after = run(save_as_root(server.address))
        back.write_bytes(data)
    assert after == revision
    with Restored(tool, back) as etcd:
        run(see_auth(etcd.address, revision, alarm_of=0))  # it becomes one of the only member
