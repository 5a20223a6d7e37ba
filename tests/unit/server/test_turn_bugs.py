# SPDX-License-Identifier: Apache-2.0
"""A bug of one connection, stream or watcher ends that alone; one in what a turn does for all ends the server."""

from typing import Any

import pytest

from lessor.api.proto import rpc_pb2
from lessor.base import limits
from lessor.server.loop import bugs
from lessor.server.loop.expiry import MARGIN_S
from lessor.state.watch_changes import Changes
from lessor.state.watcher import Watcher
from tests.unit.server.turn_world import Peer, World


class BrokenPeer(Peer):
    """One that meets a bug, whatever is done for it."""

    def on_changes(self, _watchers: list[Watcher], changes: Changes) -> None:
        raise RuntimeError("a bug")

    def on_lease_events(self, response: bytes) -> None:
        raise RuntimeError("a bug")

    def flush(self) -> None:
        raise RuntimeError("a bug")

    def resume_reading(self) -> None:
        raise RuntimeError("a bug")

    def catch_up(self) -> bool:
        raise RuntimeError("a bug")


class SoundPeer(Peer):
    """One beside it."""

    def on_lease_events(self, response: bytes) -> None:
        self.got.append(response)

    def catch_up(self) -> bool:
        self.got.append("caught up")
        return False


def test_a_bug_of_a_connection_that_reads_on_does_not_stop_the_others() -> None:
    world, peers = World(), [SoundPeer(), BrokenPeer(), SoundPeer()]
    for peer in peers:
        world.turn.pause(peer)
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.settle()
    assert [peer.resumed for peer in peers] == [1, 0, 1]
    assert [len(peer.got) for peer in peers] == [0, 1, 0]
    assert world.failures == []


def test_a_bug_of_one_connection_or_stream_does_not_stop_the_others() -> None:
    world = World()
    broken, sound = [BrokenPeer(), BrokenPeer()], [SoundPeer(), SoundPeer()]
    order: list[Any] = [sound[0], broken[0], broken[1], sound[1]]
    for peer in order:
        world.turn.flush_later(peer)
        world.turn.catch_up_later(peer)
    world.loop.settle()
    assert [peer.flushed for peer in sound] == [1, 1]
    assert [peer.got for peer in sound] == [["caught up"]] * 2
    assert [[error.message for error in peer.got] for peer in broken] == [[bugs.TEXT] * 2] * 2


@pytest.mark.parametrize("in_flight", [False, True])
def test_a_bug_while_leases_end_stops_the_server_before_anything_of_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, in_flight: bool
) -> None:
    """Leases have ended and their keys are still there, say: neither a client nor the disk may see that."""
    world, peer = World(), Peer()
    world.grant(1)
    world.settle()
    world.pass_time(0.9)
    if in_flight:
        world.grant(60, peer=peer)
        world.loop.run()
    batches = len(world.disk.batches)
    expire = world.machine.leases.expire

    def ends_them_and_raises(now_s: float, leases_max: int) -> None:
        assert expire(now_s, leases_max)
        raise RuntimeError("a bug")

    monkeypatch.setattr(
        type(world.machine), "expire_in_steps", lambda _machine, *arguments: ends_them_and_raises(*arguments)
    )
    world.loop.now_s += 0.1 + 2 * MARGIN_S
    world.loop.settle()
    monkeypatch.undo()
    assert [str(failure) for failure in world.failures] == ["RuntimeError: a bug"]
    world.call(rpc_pb2.PutRequest(key=b"k"), peer)
    world.turn.flush_later(peer)
    if in_flight:
        world.disk.succeed()
    world.pass_time(10)
    assert (peer.got, peer.flushed) == ([], 0)
    assert len(world.disk.batches) == batches
    assert len(world.failures) == 1


@pytest.mark.parametrize(
    "step", ["journal.seal", "hub.take_outbox", "store.sweep", "leases.acknowledged", "next_deadline"]
)
def test_a_bug_in_whatever_is_done_for_all_stops_the_server(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    world = World()
    world.machine.hub.add(Watcher(0, b"k", owner=Peer()))
    world.grant(1)
    world.settle()

    def raises(*_arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(limits, "SWEEP_EVENTS_MAX", 1)
    for _ in range(4):
        world.call(rpc_pb2.PutRequest(key=b"k"))
    world.call(rpc_pb2.CompactionRequest(revision=5))
    *parts, name = step.split(".")
    owner: Any = getattr(world.machine, parts[0]) if parts else world.machine
    monkeypatch.setattr(type(owner), name, raises)
    world.loop.now_s += 1 + 2 * MARGIN_S
    for _ in range(3):
        world.loop.settle()
        if world.disk.in_flight:
            world.disk.succeed()
    assert [type(failure) for failure in world.failures] == [bugs.BrokenTurnError]
    assert not world.disk.free


@pytest.mark.parametrize("step", ["timer_fired", "polled"])
def test_a_bug_between_the_turns_stops_the_server(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Otherwise no lease would end any more, and nobody would notice."""
    world, peer = World(), Peer()
    world.grant(1)
    world.settle()

    def raises(*_arguments: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(world.turn._expiry), step, raises)
    world.loop.now_s += 1 + 2 * MARGIN_S
    world.loop.settle()
    monkeypatch.undo()
    assert [str(failure) for failure in world.failures] == ["RuntimeError: a bug"]
    world.call(rpc_pb2.PutRequest(key=b"k"), peer)
    world.pass_time(10)
    assert peer.got == []
    assert not world.disk.free


@pytest.mark.parametrize("polls_before", [0, 1, 2])
def test_a_bug_while_the_sockets_are_polled_stops_the_server(
    monkeypatch: pytest.MonkeyPatch, polls_before: int
) -> None:
    world = World()
    world.grant(1)
    world.settle()
    call_soon, polls = world.loop.call_soon, 0

    def raises(callback: Any, *arguments: Any) -> None:
        nonlocal polls
        if callback == world.turn._polled:
            polls += 1
            if polls > polls_before:
                raise RuntimeError("a bug")
        call_soon(callback, *arguments)

    monkeypatch.setattr(world.loop, "call_soon", raises)
    world.loop.now_s += 1 + 2 * MARGIN_S
    world.loop.settle()
    assert polls == polls_before + 1
    assert [str(failure) for failure in world.failures] == ["RuntimeError: a bug"]


def test_a_bug_of_one_watcher_does_not_keep_events_from_the_others() -> None:
    world = World()
    broken, sound = [BrokenPeer(), BrokenPeer()], [SoundPeer(), SoundPeer()]
    order: list[Any] = [sound[0], broken[0], broken[1], sound[1]]
    for peer in order:
        world.machine.hub.add(Watcher(0, b"k", owner=peer))
        world.machine.lease_events.watchers.add(peer)
    world.grant(60)
    world.call(rpc_pb2.PutRequest(key=b"k"))
    world.turn.hold_publications()
    world.settle()
    assert [len(peer.shown) for peer in sound] == [1, 1]
    assert [len(peer.got) for peer in sound] == [1, 1]
    assert [[error.message for error in peer.got] for peer in broken] == [[bugs.TEXT] * 2] * 2


def test_a_bug_in_the_bytes_of_a_connection_ends_it_and_holds_up_no_lease() -> None:
    world = World()
    lease = world.grant(60)
    world.settle()

    class Broken(Peer):
        def go_on(self) -> None:
            if world.turn._read_first:
                raise RuntimeError("a bug")
            world.turn.go_on_later(self)

    peer = Broken()
    world.pass_time(60)
    world.turn.go_on_later(peer)
    world.loop.now_s += MARGIN_S
    for _ in range(20):
        world.loop.run()
    assert len(peer.got) == 1
    assert lease not in world.machine.leases
