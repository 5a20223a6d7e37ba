# SPDX-License-Identifier: Apache-2.0
"""Linearizable reads at a server that follows: whose question covers which read, and what becomes of it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.server.following.reads import Asking, Read, Reads
from lessor.server.loop.call import UnaryCall


class Call:
    """Stands in for a UnaryCall."""

    def __init__(self, answered: list[str], name: str) -> None:
        self._answered = answered
        self.name = name

    def wait_no_more(self) -> None: ...

    def serve(self, request: rpc.RangeRequest) -> None:
        self._answered.append(self.name)


class World:
    """Implements reads.Home, and says what has become of each read."""

    def __init__(self) -> None:
        self.now = 0.0
        self.now_s: Callable[[], float] = lambda: self.now
        self.durable = 10
        self.asked: list[int] = []
        self.here: list[str] = []
        self.at_leader: list[str] = []
        self.kept = 0
        self.reads = Reads(self, lambda: self.durable)

    def ask_how_far(self, number: int) -> None:
        self.asked.append(number)

    def read_at_leader(self, read: Read) -> None:
        self.at_leader.append(cast(Call, read.call).name)

    def forget_read(self, read: Asking) -> None:
        self.kept -= 1

    def add(self, *names: str) -> list[Read]:
        self.kept += len(names)
        return [self.reads.add(cast(UnaryCall, Call(self.here, name)), rpc.RangeRequest(key=b"k")) for name in names]


def run(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> World:
    world = World()
    asyncio.run(scenario(world))
    assert world.kept == 0
    return world


async def step() -> None:
    await asyncio.sleep(0)


def test_the_reads_of_a_step_share_a_question_and_later_ones_wait_for_the_next() -> None:
    async def scenario(world: World) -> None:
        world.add("a", "b")
        assert world.asked == []
        await step()
        world.add("c")
        await step()
        assert world.asked == [1]
        world.reads.answered(1, 10)
        assert world.here == ["a", "b"]  # not c: it came behind the question
        assert world.asked == [1, 2]
        world.reads.answered(2, 10)

    assert run(scenario).here == ["a", "b", "c"]


def test_a_read_waits_until_its_batch_is_there() -> None:
    async def scenario(world: World) -> None:
        world.add("a")
        await step()
        world.reads.answered(1, 12)
        world.durable = 11
        world.reads.look()
        assert world.here == []
        world.durable = 12
        world.reads.look()

    assert run(scenario).here == ["a"]


def test_an_answer_to_an_older_question_is_none() -> None:
    async def scenario(world: World) -> None:
        world.add("a")
        await step()
        world.reads.lose()
        assert world.at_leader == ["a"]
        world.add("b")
        await step()
        world.reads.answered(1, 10)
        assert world.here == []
        world.reads.answered(world.asked[-1], 10)
        assert world.here == ["b"]

    run(scenario)


def test_a_call_that_is_over_is_forgotten_wherever_it_waits() -> None:
    async def scenario(world: World) -> None:
        due, ready = world.add("due", "ready")
        await step()
        (asked,) = world.add("asked")
        world.reads.answered(1, 11)
        (gathered,) = world.add("gathered")
        for read in (due, asked, gathered):
            read.on_gone()
        world.durable = 11
        world.reads.look()
        assert world.here == ["ready"]
        ready.on_gone()  # it was answered
        world.reads.answered(2, 11)
        await step()

    assert run(scenario).here == ["ready"]


def test_a_question_takes_the_place_of_none_that_is_under_way() -> None:
    async def scenario(world: World) -> None:
        (gone,) = world.add("gone")
        await step()
        gone.on_gone()
        world.add("a")  # a step of the loop is to ask for it, and in the same one comes:
        world.reads.answered(1, 10)
        world.add("b")
        await step()
        world.reads.answered(2, 10)
        world.reads.answered(world.asked[-1], 10)

    assert run(scenario).here == ["a", "b"]


def test_a_read_whose_batch_does_not_come_goes_to_the_leader() -> None:
    async def scenario(world: World) -> None:
        world.add("a")
        await step()
        world.reads.answered(1, 11)
        world.now = limits.READ_INDEX_S_MAX
        world.reads.pass_on_late()
        assert world.at_leader == []
        world.now += 0.001
        world.reads.pass_on_late()
        assert world.at_leader == ["a"]
        assert not world.reads._due
        world.durable = 11
        world.reads.look()

    assert run(scenario).here == []


def test_a_server_that_leads_answers_all_that_wait_in_their_order() -> None:
    async def scenario(world: World) -> None:
        world.add("due")
        await step()
        world.reads.answered(1, 11)
        world.add("asked")
        await step()
        world.add("gathered")
        world.reads.serve_all()

    assert run(scenario).here == ["due", "asked", "gathered"]


def test_many_are_answered_in_steps() -> None:
    async def scenario(world: World) -> None:
        world.add(*map(str, range(250)))
        await step()
        world.reads.answered(1, 10)
        assert len(world.here) == 100
        await step()
        assert len(world.here) == 200
        await step()

    assert run(scenario).here == list(map(str, range(250)))
