# SPDX-License-Identifier: Apache-2.0
"""Data of every kind for a server that has none: keys with history, leases, users, roles, an alarm.

Auth is on afterwards: ROOT and ROOT_PASSWORD may do everything.
"""

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import AsyncClient, Permission

ROOT, ROOT_PASSWORD = "root", "root's password"
LEASES = {7: 600, 8: 3600, 2**62 + 5: 86_400}  # id: TTL in seconds
COMPACTED = 60
REVISIONS = [COMPACTED, 61, 75, 0]  # at which the keys are worth a look


async def fill(address: str, keys: int = 300) -> None:
    """`keys`: how many keys there are with many of them; below `many/`."""
    async with AsyncClient(address, timeout_s=60) as client:
        for lease_id, ttl_s in LEASES.items():
            await client.grant(ttl_s, lease_id)
        for i in range(40):  # revisions 2 to 41
            await client.put(f"old/{i % 8}", f"value {i}")
        await client.put(b"bytes/\x00\xff", bytes(range(256)))
        await client.put("empty", b"")
        await client.put("long", b"0123456789abcdef" * 1_250)  # on pages of its own
        for i in range(15):  # revisions 45 to 59: leased, some of them again without a lease
            await client.put(f"leased/{i % 10}", f"v{i}", lease_id=[*LEASES, 0][i % 4])
        await client.delete("old/1")
        await client.delete("old/2", prefix=True)  # revision 61: of one key
        for first in range(0, keys, 100):
            puts = [(b"many/%06d" % i, b"x%d" % i) for i in range(first, min(first + 100, keys))]
            await client.txn(success=[put(*pair) for pair in puts])
        # One revision with changes of several keys.
        await client.txn(success=[delete(b"old/3"), put(b"new/1", b"1"), put(b"old/4", b"again"), delete(b"none")])
        await client.put("old/3", "born again")
        for i in range(20):
            await client.put(f"late/{i % 3}", f"late {i}", lease_id=7 if i % 2 else 0)
        await client.delete("late/1")
        await client.delete("many/0000", prefix=True)
        await client.compact(COMPACTED, physical=True)
        await client.revoke(2**62 + 5)  # its keys go with it
        await _people(client)
        member = (await client.cluster.member_list()).members[0]
        await client.maintenance.alarm_activate(member.ID, rpc.NOSPACE)
        await client.auth.enable()


async def _people(client: AsyncClient) -> None:
    auth = client.auth
    for role in ("root", "reader", "none"):
        await auth.role_add(role)
    await auth.role_grant_permission("reader", Permission.READ, "old/", prefix=True)
    await auth.role_grant_permission("reader", Permission.READWRITE, b"one\xff")
    await auth.role_grant_permission("reader", Permission.WRITE, "z", range_end=b"\0")
    await auth.user_add(ROOT, ROOT_PASSWORD)
    await auth.user_add("Łukasz", "secret")
    await auth.user_add("by-certificate", no_password=True)
    await auth.user_grant_role(ROOT, "root")
    for role in ("reader", "none"):
        await auth.user_grant_role("Łukasz", role)


def put(key: bytes, value: bytes) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value))


def delete(key: bytes) -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))


async def fill_again(address: str) -> None:
    """More changes, for a server that has the data already."""
    async with AsyncClient(address, user=ROOT, password=ROOT_PASSWORD) as client:
        member = (await client.cluster.member_list()).members[0]
        await client.maintenance.alarm_disarm(member.ID, rpc.NOSPACE)
        await client.put("old/3", "and again")
        await client.put("late/1", "born again", lease_id=8)
        await client.delete("leased/", prefix=True)
        await client.revoke(7)
        await client.auth.user_add("newcomer", "secret")
        await client.auth.user_grant_role("newcomer", "reader")
