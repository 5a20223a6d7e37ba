# SPDX-License-Identifier: Apache-2.0
"""A revision with very many events: a turn encodes a bounded part of it, few streams at a time, once for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.base.key_range import prefix_end
from lessor.server.loop.core import Core
from lessor.state.watch_changes import LargeChanges
from tests.property.test_watch_stream import Reader, World


@contextmanager
def counted_encoding() -> Iterator[list[int]]:
    """The events that `LargeChanges` have looked at, as the only item of the list."""
    looked = [0]
    encode_some = LargeChanges.encode_some

    def counted(changes: LargeChanges, chunk_bytes_max: int) -> int:
        before = changes._at
        cost = encode_some(changes, chunk_bytes_max)
        looked[0] += changes._at - before
        return cost

    with (
        mock.patch.object(LargeChanges, "encode_some", counted),
        mock.patch.object(limits, "WATCH_AT_ONCE_EVENTS", 10),
        mock.patch.object(limits, "WATCH_STEP_EVENTS", 50),
        mock.patch.object(limits, "WATCH_REPLAY_EVENTS_MAX", 20),
        mock.patch.object(limits, "WATCH_CHUNK_BYTES", 300),
        mock.patch.object(limits, "WATCH_SENT_BYTES", limits.CONNECTION_BACKLOG_BYTES_MAX // 100),
    ):
        yield looked


def _watch_everything(world: World, streams: int, start: int) -> list[Reader]:
    """Opens streams of five watchers each."""
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"k", range_end=b"l", start_revision=start))
    readers = [Reader() for _ in range(streams)]
    for reader in readers:
        stream = world.watches.open(cast(Core, world.core), cast(Any, reader))
        stream.on_messages([create.SerializeToString()] * 5)
    world.turn.schedule()
    return readers


def test_a_large_write_is_encoded_once_for_all_and_in_many_turns() -> None:
    keys, streams = 1_000, 12
    with counted_encoding() as looked:
        world = World()
        for number in range(keys):
            world.machine.apply(rpc.PutRequest(key=b"k%d" % number), 0.0)
        world.settle()
        readers = _watch_everything(world, streams, 0)
        world.settle()
        world.machine.apply(rpc.DeleteRangeRequest(key=b"k", range_end=b"l"), 0.0)
        world.turn.schedule()
        turns = 0
        while world.loop.ready or not world.disk.free:
            before = looked[0]
            world.loop.run()
            world.disk.finish()
            assert looked[0] - before <= 150
            assert len(world.watches.places._taken) <= limits.WATCH_LARGE_MAX
            turns += 1
        assert looked[0] == keys
        assert turns > keys // 100
        assert not world.watches.places._kept
        assert world.core.metrics.events == keys * streams * 5
    sent = {reader.unflushed_bytes for reader in readers}
    assert len(sent) == 1
    assert not any(watcher.lagging for stream in world.watches.streams for watcher in stream._watchers.values())


def test_few_streams_at_a_time_collect_a_large_revision_from_history() -> None:
    keys, streams = 1_000, 12
    with counted_encoding() as looked:
        world = World()
        for number in range(keys):
            world.machine.apply(rpc.PutRequest(key=b"k%d" % number), 0.0)
        world.machine.apply(rpc.DeleteRangeRequest(key=b"k", range_end=b"l"), 0.0)
        world.settle()
        _watch_everything(world, streams, world.machine.revision)
        turns = 0
        while world.loop.ready or not world.disk.free:
            before = looked[0]
            world.loop.run()
            world.disk.finish()
            assert looked[0] - before <= 150
            collected = sum(len(stream._large) for stream in world.watches.streams)
            assert collected <= limits.WATCH_LARGE_MAX
            turns += 1
        assert world.core.metrics.events == keys * streams * 5
        assert turns > looked[0] // 150
    assert not any(watcher.lagging for stream in world.watches.streams for watcher in stream._watchers.values())


def test_what_is_encoded_for_others_is_forgotten_beyond_the_bound() -> None:
    keys, prefixes = 500, [b"k" * length for length in range(1, 11)]
    with counted_encoding(), mock.patch.object(limits, "WATCH_LARGE_BYTES", 30_000):
        world = World()
        for number in range(keys):
            world.machine.apply(rpc.PutRequest(key=prefixes[-1] + b"%03d" % number), 0.0)
        world.settle()
        # One stream watches them all. Streams of one each encode the later ones long before it needs them.
        for watched in (prefixes, *([prefix] for prefix in prefixes[1:])):
            stream = world.watches.open(cast(Core, world.core), cast(Any, Reader()))
            creates = [rpc.WatchCreateRequest(key=prefix, range_end=prefix_end(prefix)) for prefix in watched]
            stream.on_messages([rpc.WatchRequest(create_request=each).SerializeToString() for each in creates])
        world.settle()
        world.machine.apply(rpc.DeleteRangeRequest(key=b"k", range_end=b"l"), 0.0)
        world.turn.schedule()
        most_bytes = 0
        while world.loop.ready or not world.disk.free:
            world.loop.run()
            world.disk.finish()
            waiting = {changes for stream in world.watches.streams for changes in stream._large.values()}
            most_bytes = max(most_bytes, sum(changes.size_bytes for changes in waiting if changes.encoded))
        assert 10_000 < most_bytes <= 30_000
        assert world.core.metrics.events == keys * (2 * len(prefixes) - 1)
