# SPDX-License-Identifier: Apache-2.0
"""The open batch is full: nothing more is read or handled until it is sealed, and no lease ends before that."""

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.server.loop.expiry import MARGIN_S
from tests.unit.server.turn_world import Peer, World


def check_that_it_stops_reading_until_it_is_sealed(world: World) -> None:
    peer = Peer()
    assert world.turn.overloaded
    world.turn.pause(peer)
    world.loop.settle()
    assert peer.resumed == 0
    world.disk.succeed()
    assert peer.resumed == 1
    assert not world.turn.overloaded


def test_a_full_batch_stops_reading_until_it_is_sealed() -> None:
    world = World()
    world.grant(60)
    world.loop.settle()  # one batch is in flight, the next one fills
    for number in range(limits.BATCH_ROWS_MAX + 1):
        assert not world.turn.overloaded
        world.call(rpc_pb2.PutRequest(key=b"%d" % number))
    check_that_it_stops_reading_until_it_is_sealed(world)


def test_a_batch_is_full_of_large_values_too() -> None:
    """Puts that keep the value count as well: few bytes, and the whole value is written again."""
    world = World()
    world.call(rpc_pb2.PutRequest(key=b"k", value=bytes(limits.BATCH_BYTES_MAX // 10)))
    world.loop.settle()
    for _ in range(10):
        assert not world.turn.overloaded
        world.call(rpc_pb2.PutRequest(key=b"k", ignore_value=True))
    check_that_it_stops_reading_until_it_is_sealed(world)


def test_leases_end_behind_what_was_read_and_waits_for_a_full_batch() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()

    class Waiting(Peer):
        """Has read a keepalive, which it handles when the batch is sealed."""

        def resume_reading(self) -> None:
            world.call(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
            world.turn.caught_up(self)

    world.pass_time(60)
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.loop.settle()  # in flight
    world.call(rpc_pb2.PutRequest(key=b"l"))
    world.turn.pause(Waiting(), unread=True)
    world.loop.now_s += MARGIN_S
    world.loop.settle()
    assert lease in world.machine.leases
    world.settle()
    assert lease in world.machine.leases
