# SPDX-License-Identifier: Apache-2.0
"""Streams in JSON that bring many requests at once: a turn takes some of them, all are taken, and in their order."""

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from lessor.api.methods import BY_PATH
from lessor.base import limits
from lessor.server.loop import call as call_module
from lessor.server.loop.held import Held
from lessor.server.transport.http_calls import JsonStream
from tests.unit.server.lock_world import LockWorld

KEEP_ALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]
PER_TURN_MAX = limits.STREAM_REQUESTS_PER_TURN_MAX + limits.STREAM_REQUESTS_AT_ONCE_MAX


class Exchange:
    """One request over HTTP, with the ids in its replies."""

    method, path, query = "POST", "", ""
    backlog_bytes = 0

    def __init__(self, world: LockWorld) -> None:
        self.held = Held()
        self.ids: list[int] = []
        self.errors: list[str] = []
        self.finished = False
        self.held_up = False
        self.call = JsonStream(world.core, cast(Any, self), world.core.metrics.calls(KEEP_ALIVE, b"test"))

    def header(self, _name: bytes, /) -> bytes | None:
        return None

    def start(self, _status: int, _headers: Any) -> None: ...

    def write(self, data: bytes) -> None:
        said = json.loads(data)
        if "result" in said:
            self.ids.append(int(said["result"]["ID"]))
        else:
            self.errors.append(said["error"]["message"])

    def finish(self) -> None:
        self.finished = True

    def hold_up(self, waits: bool) -> None:
        self.held_up = waits


def body(first: int, count: int) -> bytes:
    return b"".join(b'{"ID":%d}' % number for number in range(first, first + count))


@pytest.fixture
def world() -> Iterator[LockWorld]:
    made = LockWorld()
    running = SimpleNamespace(get_running_loop=lambda: made.loop, TimerHandle=asyncio.TimerHandle)
    with mock.patch.object(call_module, "asyncio", running):
        yield made


def turns(world: LockWorld, exchanges: list[Exchange]) -> list[int]:
    """Runs until nothing is left to do; the numbers of replies of each iteration of the loop."""
    counts = []
    while world.loop._ready:
        before = sum(len(exchange.ids) for exchange in exchanges)
        world.loop.run()
        counts.append(sum(len(exchange.ids) for exchange in exchanges) - before)
    return counts


def test_a_turn_takes_some_and_all_are_taken_in_order(world: LockWorld) -> None:
    one = Exchange(world)
    one.call.on_body(body(1, 2_000))
    assert one.held_up
    one.call.on_body(body(2_001, 50) + b'{"ID":2051')
    one.call.on_body(b"}")
    one.call.on_end()
    assert max(turns(world, [one])) <= PER_TURN_MAX
    assert one.ids == list(range(1, 2_052))
    assert (one.finished, one.errors, one.held_up) == (True, [], False)


def test_streams_take_turns(world: LockWorld) -> None:
    streams = [Exchange(world) for _ in range(20)]
    for stream in streams:
        stream.call.on_body(body(1, 1_000))
        stream.call.on_end()
    while not all(stream.finished for stream in streams):
        before = [len(stream.ids) for stream in streams]
        world.loop.run()
        assert sum(len(stream.ids) for stream in streams) - sum(before) <= PER_TURN_MAX + 20 * 100
        lengths = [len(stream.ids) for stream in streams]
        assert max(lengths) - min(lengths) <= limits.STREAM_REQUESTS_AT_ONCE_MAX
    assert all(stream.ids == list(range(1, 1_001)) for stream in streams)


def test_what_is_no_request_ends_the_stream_behind_the_requests_before_it(world: LockWorld) -> None:
    one = Exchange(world)
    one.call.on_body(body(1, 700) + b"!" + body(1, 700))
    turns(world, [one])
    assert one.ids == list(range(1, 701))
    assert len(one.errors) == 1
    assert one.finished
    assert (one.held_up, one.call.unfinished_bytes) == (False, 0)


def test_a_stream_that_goes_away_is_forgotten_with_all_that_waited(world: LockWorld) -> None:
    one, other = Exchange(world), Exchange(world)
    one.call.on_body(body(1, 5_000))
    other.call.on_body(body(1, 300))
    one.call.gone()
    turns(world, [one, other])
    assert len(one.ids) <= limits.STREAM_REQUESTS_AT_ONCE_MAX
    assert other.ids == list(range(1, 301))
    assert (one.held_up, one.call.unfinished_bytes) == (False, 0)
    assert not world.core.request_pace._streams
