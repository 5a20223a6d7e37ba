# SPDX-License-Identifier: Apache-2.0
"""The keys that calls keep while they last: what is counted, who is refused, what is given back."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.held import Held
from lessor.server.loop.kept_keys import KeptKeys
from lessor.server.observe.shortages import KEPT_KEYS, Shortages
from tests.property.test_watch_stream import World as WatchWorld
from tests.unit.server.lock_world import LockWorld

CONNECTION_MAX, ALL_MAX = 100, 250


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with (
        mock.patch.object(limits, "KEPT_KEYS_CONNECTION_BYTES_MAX", CONNECTION_MAX),
        mock.patch.object(limits, "KEPT_KEYS_BYTES_MAX", ALL_MAX),
    ):
        yield


class Caller:
    """Keeps keys of given sizes."""

    def __init__(self, keys: KeptKeys, held: Held) -> None:
        self.keys = keys
        self.held = held
        self.sizes: list[int] = []
        self.lost: list[EtcdError] = []

    def keep(self, size: int) -> None:
        self.keys.add(self, size)
        self.sizes.append(size)

    def lose_key(self, error: EtcdError) -> None:
        largest = max(self.sizes)
        self.sizes.remove(largest)
        self.keys.remove(self, largest)
        self.lost.append(error)


def test_a_connection_keeps_so_much_over_all_its_calls_and_a_call_more_is_refused() -> None:
    keys = KeptKeys(Shortages())
    held = Held("a")
    one, other = Caller(keys, held), Caller(keys, held)
    one.keep(60)
    other.keep(40)
    with pytest.raises(EtcdError, match=r"^etcdserver: too many requests: .* this connection .* 100$") as refused:
        other.keep(1)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert keys.total_bytes == 100
    one.lose_key(refused.value)
    other.keep(1)
    assert keys.total_bytes == 41


def test_beyond_the_bound_of_all_the_address_with_most_pays() -> None:
    shortages = Shortages()
    keys = KeptKeys(shortages)
    hostile = [Caller(keys, Held("hostile")) for _ in range(3)]
    for caller in hostile[:2]:
        for _ in range(10):
            caller.keep(10)
    hostile[2].keep(40)
    innocent = Caller(keys, Held("innocent"))
    innocent.keep(10)
    assert shortages.counts[KEPT_KEYS] == 0
    innocent.keep(5)
    assert innocent.sizes == [10, 5]
    assert sum(len(caller.lost) for caller in hostile) == 1
    assert not hostile[2].lost, "not the call that keeps most"
    assert shortages.counts[KEPT_KEYS] == 1
    with pytest.raises(EtcdError, match="all connections"):
        hostile[2].keep(55)  # it is the one with most then
    assert hostile[2].sizes == [40]
    assert keys.total_bytes <= ALL_MAX
    assert innocent.sizes == [10, 5]


def test_many_connections_of_one_address_count_together() -> None:
    keys = KeptKeys(Shortages())
    hostile = [Caller(keys, Held("hostile")) for _ in range(3)]
    for caller in hostile:
        caller.keep(50)
    innocent = Caller(keys, Held("innocent"))
    innocent.keep(100)
    Caller(keys, Held("newcomer")).keep(1)
    assert not innocent.lost, "it keeps more than any other call, but not than any other address"
    assert sum(len(caller.lost) for caller in hostile) == 1


def test_what_is_given_back_leaves_nothing_behind() -> None:
    keys = KeptKeys(Shortages())
    caller = Caller(keys, Held("a"))
    caller.keep(50)
    keys.remove(caller, 50)
    assert (keys.total_bytes, keys._by_connection, keys._by_keeper) == (0, {}, {})


# --- watches ---


class Answers(list[rpc.WatchResponse]):
    def take(self) -> list[rpc.WatchResponse]:
        taken = list(self)
        self.clear()
        return taken


def _create(world: WatchWorld, key: bytes, **more: Any) -> None:
    create = rpc.WatchCreateRequest(key=key, **more)
    world.stream.on_messages([rpc.WatchRequest(create_request=create).SerializeToString()])


def test_a_watch_beyond_the_bound_is_refused_as_others_are_and_a_cancel_makes_room() -> None:
    world, answers = WatchWorld(), Answers()
    world.peer.on_response = answers.append
    _create(world, b"a" * 40, range_end=b"b" * 40)
    _create(world, b"a" * 20)
    assert [answer.canceled for answer in answers.take()] == [False, False]
    _create(world, b"c")
    (refused,) = answers.take()
    assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
    assert refused.cancel_reason.startswith("etcdserver: too many requests: ")
    assert world.machine.hub.count == world.core.metrics.watchers == 2
    cancel = rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=0))
    world.stream.on_messages([cancel.SerializeToString()])
    _create(world, b"c")
    assert [answer.canceled for answer in answers.take()] == [True, False]
    world.stream.on_over()
    assert world.core.kept_keys.total_bytes == 0


def test_the_largest_keeper_loses_its_largest_watch() -> None:
    world, answers = WatchWorld(), Answers()
    world.peer.on_response = answers.append
    for size in (30, 40, 20):
        _create(world, b"a" * size)
    answers.clear()
    innocent = Caller(world.core.kept_keys, Held("innocent"))
    with mock.patch.object(limits, "KEPT_KEYS_BYTES_MAX", 95):
        innocent.keep(10)
    (lost,) = answers.take()
    assert (lost.watch_id, lost.canceled, lost.created) == (1, True, False)
    assert "all connections" in lost.cancel_reason
    assert innocent.sizes == [10]
    assert world.machine.hub.count == 2
    assert world.core.kept_keys.total_bytes == 60


# --- locks and elections ---


@pytest.mark.parametrize("kind", ["lock", "campaign"])
def test_a_wait_beyond_the_bound_is_refused_and_leaves_no_key(kind: str) -> None:
    world = LockWorld()
    leases = [world.lease(number) for number in (1, 2, 3, 4)]
    begin = getattr(world, kind)
    name = b"n" * 40
    assert begin(name, leases[0]).answered
    waits = begin(name, leases[1])
    assert not waits.answered
    assert world.core.kept_keys.total_bytes > 80
    keys = len(world.machine.store)
    with mock.patch.object(limits, "KEPT_KEYS_CONNECTION_BYTES_MAX", 10):
        refused = begin(name, leases[2])
    assert "too many requests" in (refused.error or "")
    assert len(world.machine.store) == keys
    world.revoke(leases[0])
    assert waits.answered
    assert world.core.kept_keys.total_bytes == 0


def test_a_wait_that_goes_gives_back_and_one_that_is_lost_leaves_the_line() -> None:
    world = LockWorld()
    world.lock(b"n" * 40, world.lease(1))
    gone, lost = world.lock(b"n" * 40, world.lease(2)), world.lock(b"n" * 40, world.lease(3))
    gone.gone()
    world.settle()
    kept = world.core.kept_keys.total_bytes
    assert 80 < kept < 100
    with mock.patch.object(limits, "KEPT_KEYS_BYTES_MAX", kept):
        Caller(world.core.kept_keys, Held("other")).keep(10)
    world.settle()
    assert "all connections" in (lost.error or "")
    assert world.core.kept_keys.total_bytes == 10
    assert len(world.machine.store) == 1


def test_an_observer_counts_until_it_ends() -> None:
    world = LockWorld()
    stream = world.observe(b"n" * 20)
    assert world.core.kept_keys.total_bytes == 42
    stream.gone()
    assert world.core.kept_keys.total_bytes == 0
