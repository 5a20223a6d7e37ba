# SPDX-License-Identifier: Apache-2.0
"""All that a client can see of a server's data, as one value that can be compared and written as JSON.

    before = run(observe(etcd.address, revisions=[20, 0]))
    after = run(observe(lessor.address, revisions=[20, 0]))
    assert after == before

Two servers with the same data give the same value: keys at some revisions, the events of all keys since the last
compaction, leases with their keys, users, roles, alarms. The time that leases have left moves on, and is asked for by
`remaining`. With auth on, `user` and `password` are those of a user who may see everything.
"""

import asyncio
from typing import Any

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import FROM_KEY, AsyncClient, ServerError

EVENTS_S_MAX = 60.0


async def observe(address: str, revisions: list[int], user: str = "", password: str = "") -> dict[str, Any]:
    """`revisions`: at which to list the keys; 0 is the newest."""
    async with AsyncClient(address, user=user, password=password, timeout_s=60) as client:
        hashed = await client.maintenance.hash_kv()
        newest = hashed.header.revision
        keys = {str(at): await _keys(client, at) for at in revisions}
        leases = {}
        for lease in (await client.leases()).leases:
            reply = await client.time_to_live(lease.ID, keys=True)
            leases[str(lease.ID)] = [reply.grantedTTL, sorted(_text(key) for key in reply.keys)]
        return {
            "revision": newest,
            "compact_revision": hashed.compact_revision,
            "keys": keys,
            "events": await _events(client, max(hashed.compact_revision, 0) + 1, newest),
            "leases": leases,
            "alarms": sorted(alarm.alarm for alarm in (await client.maintenance.alarms()).alarms),
            "auth": await _auth(client),
        }


async def remaining(address: str, user: str = "", password: str = "") -> dict[str, int]:
    """The whole seconds that each lease has left."""
    async with AsyncClient(address, user=user, password=password) as client:
        ids = [lease.ID for lease in (await client.leases()).leases]
        return {str(id_): (await client.time_to_live(id_)).TTL for id_ in ids}


async def watch_from(address: str, revision: int, user: str = "", password: str = "") -> rpc.WatchResponse:
    """The first response of a watch over all keys."""
    async with AsyncClient(address, user=user, password=password) as client:
        async for response in client.watch(b"\0", range_end=FROM_KEY, start_revision=revision):
            return response
        raise AssertionError("the watch ended")


async def _keys(client: AsyncClient, revision: int) -> list[list[Any]]:
    reply = await client.get(b"\0", range_end=FROM_KEY, revision=revision)
    return [_pair(kv) for kv in reply.kvs]


async def _events(client: AsyncClient, first: int, newest: int) -> list[list[Any]]:
    events: list[list[Any]] = []
    if first > newest:
        return events
    async with asyncio.timeout(EVENTS_S_MAX):
        async for response in client.watch(b"\0", range_end=FROM_KEY, start_revision=first, prev_kv=True):
            assert not response.canceled, response
            for event in response.events:
                before = _pair(event.prev_kv) if event.HasField("prev_kv") else None
                events.append([event.type, _pair(event.kv), before])
            if response.events and response.events[-1].kv.mod_revision == newest:
                break
    return events


async def _auth(client: AsyncClient) -> dict[str, Any]:
    auth = client.auth
    try:
        status: rpc.AuthStatusResponse | None = await auth.status()
    except ServerError as error:
        if error.code != Code.UNIMPLEMENTED:
            raise
        status = None  # an etcd before 3.5
    roles = {}
    for name in (await auth.role_list()).roles:
        granted = (await auth.role_get(name)).perm
        roles[name] = [[one.permType, _text(one.key), _text(one.range_end)] for one in granted]
    users = {name: list((await auth.user_get(name)).roles) for name in (await auth.user_list()).users}
    state = {"enabled": status.enabled, "revision": status.authRevision} if status is not None else {}
    return state | {"users": users, "roles": roles}


def _pair(kv: mvcc.KeyValue) -> list[Any]:
    return [_text(kv.key), _text(kv.value), kv.create_revision, kv.mod_revision, kv.version, kv.lease]


def _text(data: bytes) -> str:
    return data.decode("latin-1")
