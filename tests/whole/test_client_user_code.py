# SPDX-License-Identifier: Apache-2.0
"""Code as users of the client write it. It is here for the type checkers as much as for pytest: `assert_type` says what
they are to think, under `mypy --strict` (scripts/check) and pyright alike, without a cast or an ignore."""

import asyncio
from collections.abc import Iterator
from typing import assert_type

import pytest

from lessor.client import (
    AsyncClient,
    Blame,
    Change,
    Client,
    ClientError,
    Compacted,
    Event,
    Key,
    KeyValue,
    Leader,
    Lease,
    LeaseLost,
    OutcomeUnknown,
    Permission,
    ServerError,
    op,
    run,
)
from tests.in_process import in_process


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with in_process(tmp_path_factory.mktemp("data")) as server:
        yield server.address


def read_config(client: Client) -> dict[str, str]:
    reply = client.get("config/", prefix=True)
    for kv in reply.kvs:
        assert_type(kv, KeyValue)
    return {kv.key.decode(): kv.value.decode() for kv in reply.kvs}


def increment(client: Client, name: str) -> int:
    """A counter, with a txn that is safe to repeat."""
    while True:
        kvs = client.get(name).kvs
        before, revision = (int(kvs[0].value), kvs[0].mod_revision) if kvs else (0, 0)
        try:
            reply = client.txn([Key(name).mod_revision == revision], [op.put(name, str(before + 1))])
        except OutcomeUnknown as error:
            assert_type(error.outcome_unknown, bool)
            raise
        except ServerError as error:
            raise RuntimeError(f"{error.code.name}: {error.message}") from error
        if reply.succeeded:
            return before + 1


def test_with_threads(address: str) -> None:
    lost: list[LeaseLost] = []
    with Client([address], timeout_s=10, connect_timeout_s=1) as client:
        client.put("config/a", "1")
        client.put("config/b", b"2")
        assert read_config(client) == {"config/a": "1", "config/b": "2"}
        assert [increment(client, "counter") for _ in range(3)] == [1, 2, 3]
        with client.lease(30, on_lost=lost.append) as lease:
            assert_type(lease, Lease)
            assert_type(lease.id, int)
            assert_type(lease.remaining_s, float)
            client.put("presence/me", lease_id=lease.id)
            assert not lease.lost.wait(timeout_s=0)
            with client.lock("jobs", lease=lease) as lock:
                assert_type(lock.token, int)
            with client.election("boss", lease=lease) as election:
                election.campaign("me")
                assert_type(election.leader(), Leader | None)
        try:
            with client.events("config/", prefix=True, start_revision=1) as watch:
                for event in watch:
                    assert_type(event, Event)
                    if event.type == Event.PUT:
                        assert event.kv.key == b"config/a"
                        break
        except Compacted as gone:
            assert_type(gone.compact_revision, int)
        with client.register("web", "10.0.0.1:80"), client.discover("web") as web:
            assert web.addresses == ("10.0.0.1:80",)
            assert_type(next(iter(web)), Change)
        client.auth.role_add("reader")
        client.auth.role_grant_permission("reader", Permission.READ, "config/", prefix=True)
        assert client.auth.role_get("reader").perm[0].key == b"config/"
        assert client.maintenance.status(timeout_s=5).dbSize > 0
    assert not lost


def test_with_tasks(address: str) -> None:
    async def main() -> int:
        async with AsyncClient(address) as client:
            async with client.lease(30) as lease, client.lock("jobs", lease=lease) as lock:
                assert_type(lock.token, int)
            reply = await client.transaction().when(Key("x").missing).then(op.put("x", "1")).commit()
            assert reply.succeeded
            async with client.events("y") as watch:
                await asyncio.gather(client.put("y", "1"), client.put("z", "2"))
                async for event in watch:
                    assert_type(event, Event)
                    break
            with pytest.raises(ClientError) as caught:
                await client.revoke(12345)
            assert_type(caught.value.blame, Blame)
            assert caught.value.blame == "caller"
            return (await client.get("y")).kvs[0].version

    assert run(main()) == 1
