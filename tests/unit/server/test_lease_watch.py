# SPDX-License-Identifier: Apache-2.0
"""The stream of lease events between the state machine and its peer: from when on, in which order, until when."""

from typing import Any, cast

from lessor.api.methods import BY_PATH
from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.loop.call import StreamCall
from lessor.server.services.leases import LeaseWatch
from tests.unit.server.lock_world import LockWorld


class WatchCall:
    """A Watch call, as its handler sees it, and what was sent."""

    method = BY_PATH["/lessorpb.Leases/Watch"]
    token = peer_common_name = None

    def __init__(self, world: LockWorld) -> None:
        self.backlog_bytes = 0
        self.sent: list[Any] = []
        self.end: EtcdError | None = None
        self.handler = LeaseWatch(world.core, cast(StreamCall, self))
        self.handler.on_messages([b""])

    def send(self, replies: list[bytes]) -> None:
        self.sent += map(leases_pb2.LeaseWatchResponse.FromString, replies)

    def finish(self, error: EtcdError | None = None) -> None:
        self.end = error
        self.handler.on_over()

    def wake_when_drained(self, stream: Any) -> None: ...

    def take_sent(self) -> list[int]:
        """The leases of the events since the last time; 0 stands for `created`."""
        sent, self.sent = self.sent, []
        return [number for reply in sent for number in ([0] * reply.created + [event.ID for event in reply.events])]


def grant(world: LockWorld, lease_id: int) -> None:
    """Nothing is durable yet, and the turn goes on."""
    world.begin(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=60))


def test_who_joins_in_the_middle_of_a_turn_is_told_what_comes_after() -> None:
    world = LockWorld()
    early = WatchCall(world)
    grant(world, 1)
    late = WatchCall(world)
    grant(world, 2)
    assert early.take_sent() == [0]
    assert late.take_sent() == []  # that it has begun shows what its header says: not before the disk has it
    world.settle()
    assert early.take_sent() == [1, 2]
    assert late.take_sent() == [0, 2]


def test_who_asks_twice_is_told_once() -> None:
    world = LockWorld()
    call = WatchCall(world)
    call.handler.on_messages([b""])
    call.handler.on_requests_end()
    grant(world, 1)
    world.settle()
    assert call.take_sent() == [0, 1]


def test_who_has_gone_is_not_told_and_costs_nothing() -> None:
    world = LockWorld()
    call = WatchCall(world)
    call.handler.on_over()
    call.take_sent()
    grant(world, 1)
    assert world.machine.lease_events.pending == []
    world.settle()
    assert call.take_sent() == []


def test_a_reader_at_the_bound_is_told_and_one_beyond_is_cut_off() -> None:
    world = LockWorld()
    slow, quick = WatchCall(world), WatchCall(world)
    slow.backlog_bytes = limits.CONNECTION_BACKLOG_BYTES_MAX
    grant(world, 1)
    world.settle()
    slow.backlog_bytes += 1
    grant(world, 2)
    world.settle()
    grant(world, 3)
    world.settle()
    assert (slow.take_sent(), quick.take_sent()) == ([0, 1], [0, 1, 2, 3])
    assert slow.end is not None
    assert (slow.end.code, slow.end.message) == (errors.LEASE_WATCH_LAGS.code, errors.LEASE_WATCH_LAGS.message)
    assert quick.end is None
