# SPDX-License-Identifier: Apache-2.0
"""How lists of leases take turns: one at a time in a connection, others in between, none for a peer that has gone."""

import asyncio
from typing import Any

from lessor.api.proto import leases_pb2
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.services import leases
from lessor.state.lease_list import LeaseList
from tests.unit.server.lock_world import Call
from tests.unit.server.lock_world import LockWorld as World


class ListCall(Call):
    """A List call, and all of its answers."""

    __slots__ = ("answers",)

    def __init__(self, core: Core, request: leases_pb2.LeaseListRequest, held: Held) -> None:
        super().__init__(core, request, held)
        self.answers: list[Any] = []

    def _end(self, outcome: Any) -> None:
        self.answers.append(outcome)


def ask(world: World, **request: Any) -> ListCall:
    asked = leases_pb2.LeaseListRequest(**request)
    call = ListCall(world.core, asked, world.held)
    call.waiting = leases.list_leases(world.core, call, asked)
    return call


def world_with(leases: int) -> World:
    world = World()
    for number in range(leases):
        world.lease(number + 1, 600)
    return world


def test_a_long_list_lets_others_in_between_and_lists_wait_for_each_other(monkeypatch: Any) -> None:
    steps: list[LeaseList] = []
    step = LeaseList.step

    def noted(self: LeaseList, now: float, work_max: int = 10) -> bool:
        steps.append(self)
        return step(self, now, work_max)

    monkeypatch.setattr(LeaseList, "step", noted)

    async def main() -> None:
        world = world_with(95)
        first, second = ask(world), ask(world, limit=1)
        turns = 0
        while not first.answers:
            turns += 1
            await asyncio.sleep(0)
            assert len(steps) <= turns
        assert len(steps) == 20
        assert len(set(map(id, steps))) == 1
        while not second.answers:
            await asyncio.sleep(0)
        assert [item.ID for item in first.answers[0].leases] == list(range(1, 96))
        assert [item.ID for item in second.answers[0].leases] == [1]

    asyncio.run(main())


def test_a_list_whose_peer_went_away_is_given_up(monkeypatch: Any) -> None:
    step = LeaseList.step
    monkeypatch.setattr(LeaseList, "step", lambda self, now: step(self, now, 1))

    async def main() -> None:
        world = world_with(3)
        waiting, running, last = ask(world), ask(world), ask(world)
        waiting.gone()  # before it began
        await asyncio.sleep(0)
        running.gone()
        while not last.answers:
            await asyncio.sleep(0)
        assert waiting.answers == running.answers == []

    asyncio.run(main())
