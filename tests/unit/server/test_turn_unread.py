# SPDX-License-Identifier: Apache-2.0
"""Bytes and requests that were read and not handled: keepalives among them count before a lease ends."""

import pytest

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.server.loop.expiry import MARGIN_S, STALL_S
from tests.unit.server.turn_world import Peer, Reader, World, once


@pytest.mark.parametrize("polls", [0, 1])
def test_a_keepalive_that_was_read_and_not_handled_wins_against_the_timer(polls: int) -> None:
    """Read before the timer, or by the polls that follow it."""
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59.9)
    world.loop.now_s += 0.1 + STALL_S / 2
    unread = [lambda: world.turn.go_on_later(Reader(world, 20, lease))]
    if not polls:
        unread.pop()()
    world.loop.run(once(unread))
    world.settle()
    assert lease in world.machine.leases
    world.pass_time(60 + MARGIN_S)
    assert lease not in world.machine.leases


class HeldUp(Reader):
    """A Reader with requests that wait in a `Pace` besides. The last of them, 20 turns later, renews the lease."""

    left = 20

    def catch_up(self) -> bool:
        self.left -= 1
        if not self.left:
            self.world.machine.leases.renew(self.lease, self.world.turn.now_s())
            self.world.turn.hold_up(self, False)
        return bool(self.left)


@pytest.mark.parametrize("turns", [0, 1, 10, 30])
def test_a_keepalive_that_waits_in_a_pace_wins_against_the_timer(turns: int) -> None:
    """Whether the connection has handled its bytes at once, earlier than that, or later."""
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59.9)
    world.loop.now_s += 0.1 + STALL_S / 2

    def read() -> None:
        peer = HeldUp(world, turns, lease)
        world.turn.hold_up(peer, True)
        world.turn.catch_up_later(peer)
        if turns:
            world.turn.go_on_later(peer)

    world.loop.run(once([read]))
    world.settle()
    assert lease in world.machine.leases
    world.pass_time(60 + MARGIN_S)
    assert lease not in world.machine.leases


def test_a_connection_that_closes_with_requests_that_wait_holds_up_no_lease() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(60)
    peer = HeldUp(world, 0, lease)
    world.turn.hold_up(peer, True)
    world.loop.now_s += MARGIN_S
    for _ in range(20):
        world.loop.run()
    assert lease in world.machine.leases
    world.turn.forget(peer)
    world.settle()
    assert lease not in world.machine.leases


def test_bytes_without_end_hold_up_no_lease() -> None:
    """A connection that always has more: leases wait for what it had twice, and then no longer."""
    world = World()
    lease = world.grant(60)
    world.settle()
    reads: list[int] = []

    class Flood(Reader):
        def go_on(self) -> None:
            world.turn.schedule()
            if len(reads) % 5 == 4:
                world.turn.caught_up(self)
            if lease in world.machine.leases:
                reads.append(0)
                world.turn.go_on_later(self)

    world.pass_time(60)
    world.turn.go_on_later(Flood(world, 0))
    world.loop.now_s += MARGIN_S
    for _ in range(40):
        world.loop.run()
    assert lease not in world.machine.leases
    assert 5 < len(reads) < 30


def test_a_connection_that_closes_with_bytes_unread_holds_up_no_lease() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()
    peer = Reader(world, 1_000_000)
    world.pass_time(60)
    world.turn.go_on_later(peer)

    def poll() -> None:
        if 0 < peer.turns < 999_900:
            peer.turns = 0
            world.turn.forget(peer)

    world.loop.now_s += MARGIN_S
    for _ in range(140):
        world.loop.run(poll)
    assert not peer.turns
    assert lease not in world.machine.leases


def test_connections_with_much_to_handle_share_a_turn() -> None:
    world = World()
    peers = [Reader(world, 2) for _ in range(4)]
    assert world.turn.share_s(peers[0]) == limits.TURN_BYTES_S
    for peer in peers:
        world.turn.go_on_later(peer)
    assert world.turn.share_s(peers[0]) == limits.TURN_BYTES_S / 4
    assert world.turn.share_s(Reader(world, 2)) == limits.TURN_BYTES_S / 5
    for _ in range(100):
        world.turn.go_on_later(Reader(world, 1))
    assert world.turn.share_s(peers[0]) == limits.TURN_BYTES_S_MIN
    world.settle()
    assert world.turn.share_s(peers[0]) == limits.TURN_BYTES_S


def test_sockets_that_a_full_batch_kept_unread_are_read_before_leases_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is full while the sockets are polled, and a commit ends just before the polls do."""
    monkeypatch.setattr(limits, "BATCH_ROWS_MAX", 2)
    world = World()
    lease = world.grant(60)
    world.settle()
    world.pass_time(59.9)
    world.loop.now_s += 0.1 + STALL_S / 2
    peer, polls = Peer(), [0]

    def poll() -> None:
        polls[0] += 1
        if polls[0] == 1:
            world.call(rpc_pb2.PutRequest(key=b"k"))  # in the next turn this is on its way to the disk
        elif polls[0] == 2:
            world.turn.pause(peer)
            for key in (b"a", b"b", b"c"):
                world.call(rpc_pb2.PutRequest(key=key))
            assert world.turn.overloaded
            world.disk.succeed()
            assert peer.resumed
        elif polls[0] == 3:
            world.turn.go_on_later(Reader(world, 20, lease))

    for _ in range(40):
        world.loop.run(poll)
    assert lease in world.machine.leases
