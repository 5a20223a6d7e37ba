# SPDX-License-Identifier: Apache-2.0
"""HashKV asked for by many at once: one step a turn, fair shares, a bound, and no work for callers that have gone."""

import asyncio
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.server.loop.call import Held
from lessor.state.digest import KvDigest, hash_kv
from tests.unit.server.lock_world import Call, LockWorld

pytestmark = pytest.mark.inside


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The revision of each step that is taken, two keys each."""
    taken: list[int] = []
    real = KvDigest.step

    def step(digest: KvDigest, keys_max: int) -> bool:
        taken.append(digest.revision)
        return real(digest, keys_max)

    monkeypatch.setattr(KvDigest, "step", step)
    monkeypatch.setattr(limits, "DIGEST_STEP_KEYS", 2)
    return taken


def filled() -> LockWorld:
    world = LockWorld()
    for number in range(10):
        world.do(rpc.PutRequest(key=b"k%d" % number, value=b"v"))
    return world


def asked(world: LockWorld, revision: int = 0, connection: Held | None = None) -> Call:
    call = Call(world.core, rpc.HashKVRequest(revision=revision))
    if connection is not None:
        call.held = connection
    call.serve(call.request)
    return call


async def answered(*calls: Call) -> None:
    for _ in range(2_000):
        if all(call.outcome is not None for call in calls):
            return
        await asyncio.sleep(0)
    raise AssertionError("no answer")


def test_of_many_digests_one_step_is_taken_in_a_turn(steps: list[int]) -> None:
    async def main() -> None:
        world = filled()
        calls = [asked(world, revision) for revision in range(2, 12)]
        before = 0
        while calls[-1].outcome is None:
            await asyncio.sleep(0)
            assert len(steps) <= before + 1
            before = len(steps)
        assert [call.outcome.hash for call in calls] == [hash_kv(world.machine.store, rev) for rev in range(2, 12)]

    asyncio.run(main())


def test_callers_in_the_same_moment_share_one_digest(steps: list[int]) -> None:
    async def main() -> None:
        world = filled()
        calls = [asked(world) for _ in range(20)] + [asked(world, world.machine.revision)]
        await answered(*calls)
        assert len(steps) <= 6
        assert len({call.outcome.hash for call in calls}) == 1
        taken = len(steps)
        world.do(rpc.PutRequest(key=b"k1"))
        other = asked(world)
        await answered(other)
        assert other.outcome.hash == hash_kv(world.machine.store) != calls[0].outcome.hash
        assert len(steps) > taken

    asyncio.run(main())


def test_a_compaction_makes_the_last_digest_void(steps: list[int]) -> None:
    async def main() -> None:
        world = filled()
        world.do(rpc.PutRequest(key=b"k1"))
        first = asked(world)
        await answered(first)
        world.do(rpc.CompactionRequest(revision=world.machine.revision))
        second = asked(world)
        await answered(second)
        assert second.outcome.compact_revision == world.machine.revision
        assert second.outcome.hash == hash_kv(world.machine.store) != first.outcome.hash

    asyncio.run(main())


def test_one_connection_that_asks_for_many_costs_another_a_few_digests(steps: list[int]) -> None:
    async def main() -> None:
        world = filled()
        crowded, mine = Held("10.0.0.1"), Held("10.0.0.2")
        crowd = [asked(world, 2 + number % 9, crowded) for number in range(limits.DIGESTS_WAITING_MAX)]
        one = asked(world, 0, mine)
        await answered(one)
        assert one.outcome.hash
        assert sum(call.outcome is not None for call in crowd) <= 4 + 1  # one of them was refused
        assert [call.error for call in crowd if call.error] == [errors.TOO_MANY_REQUESTS.message]
        assert asked(world, 0, crowded).outcome is None  # there is room again

    asyncio.run(main())


def test_no_work_is_done_for_callers_that_have_gone(steps: list[int]) -> None:
    async def main() -> None:
        world = filled()
        running, waiting, last = asked(world, 3), asked(world, 4), asked(world, 5)
        await asyncio.sleep(0)
        running.gone()
        waiting.gone()
        await answered(last)
        assert steps.count(3) <= 2
        assert 4 not in steps
        assert running.outcome is waiting.outcome is None

    asyncio.run(main())


def test_an_error_meanwhile_is_answered(steps: list[int]) -> None:
    async def main() -> None:
        world = filled()
        call: Any = asked(world, 3)
        await asyncio.sleep(0)
        world.do(rpc.CompactionRequest(revision=8))
        await answered(call)
        assert call.error == errors.COMPACTED.message

    asyncio.run(main())
