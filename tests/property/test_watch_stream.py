# SPDX-License-Identifier: Apache-2.0
"""A watch stream never loses an event, never repeats one and never shows one that is not on disk.

The real state machine, gate and turn run under the real WatchStream; the disk, the loop and the peer are the test's.
Random writes, commits, ends of turns, slow and quick phases of the peer, compactions, creates and cancels come in any
order. What the peer got is held against a log of the writes. The limits are small, so that watchers fall behind and
history comes in pieces all the time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lessor.api.proto import mvcc_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop.committer import Committer
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.loop.kept_keys import KeptKeys
from lessor.server.loop.release import Gate
from lessor.server.loop.turn import Turn
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.shortages import Shortages
from lessor.server.services import watch
from lessor.server.services.watch import Watches
from lessor.state import watch_hub
from lessor.state.journal import Batch
from lessor.state.machine import Identity, StateMachine

BACKLOG_BYTES_MAX = 10
PIECE_BYTES_MAX = 60  # of a response to a watcher that asked for fragments: two or three events
KEYS = [b"a", b"b", b"c", b"d"]
RANGES = [(b"a", b""), (b"b", b""), (b"a", b"\0"), (b"b", b"d"), (b"c", b"\0"), (b"\0", b"\0")]

Sent = tuple[int, bytes, int]


class Loop:
    """What Turn uses of an event loop, for a server without leases: no timers."""

    def __init__(self) -> None:
        self.ready: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., Any], *arguments: Any) -> None:
        self.ready.append((callback, arguments))

    def run(self) -> None:
        ready, self.ready = self.ready, []
        for callback, arguments in ready:
            callback(*arguments)


class Disk:
    """Stands for the committer: a batch is on disk when the test says so."""

    def __init__(self) -> None:
        self.in_flight: Batch | None = None

    def start(self, loop: Any, on_committed: Callable[[Batch], None], on_failure: Any) -> None:
        self._on_committed = on_committed

    @property
    def free(self) -> bool:
        return self.in_flight is None

    def commit(self, batch: Batch) -> None:
        assert self.in_flight is None
        self.in_flight = batch

    def finish(self) -> None:
        batch, self.in_flight = self.in_flight, None
        if batch is not None:
            self._on_committed(batch)


class Peer:
    """The call of the stream: takes responses, and may be slow."""

    method = None

    def __init__(self) -> None:
        self.held = Held()
        self.slow = False
        self.failed: AssertionError | None = None  # what is raised in the gate or in a turn ends a call, and no test
        self.on_response: Callable[[rpc.WatchResponse], None]
        self.woken_by: list[Any] = []

    def send(self, replies: list[bytes]) -> None:
        try:
            for reply in replies:
                self.on_response(rpc.WatchResponse.FromString(reply))
        except AssertionError as error:
            self.failed = self.failed or error
            raise

    def send_long(self, head: bytes, chunks: list[bytes]) -> Iterator[int]:
        """In steps, as over JSON."""
        made = [head]
        for chunk in chunks:
            made.append(chunk)
            yield 1
        self.send([b"".join(made)])

    def finish(self, error: EtcdError | None = None) -> None:
        self.failed = self.failed or AssertionError(f"the stream was ended: {error}")

    @property
    def backlog_bytes(self) -> int:
        return BACKLOG_BYTES_MAX + 1 if self.slow else 0

    def wake_when_drained(self, stream: Any) -> None:
        self.woken_by.append(stream)


class Expected:
    """One watcher as the test sees it. `start`: the first revision that it has to be sent."""

    def __init__(self, request: rpc.WatchCreateRequest) -> None:
        self.request = request
        self.start = 0
        self.created = False
        self.given_up = False  # the peer has cancelled it; what was under way may be dropped
        self.over = False  # cancelled, by whomever
        self.lost_at = 0  # the compact revision that ended it
        self.sent: list[Sent] = []
        self.pieces: list[Sent] = []  # of fragments whose last one has not come

    def covers(self, key: bytes) -> bool:
        low, end = self.request.key, self.request.range_end
        return key == low if not end else low <= key and (end == b"\0" or key < end)

    def wants(self, kind: int) -> bool:
        return kind not in self.request.filters  # NOPUT is 0 as PUT is, NODELETE is 1 as DELETE is


class World:
    """One server with one watch stream, and what happened to it."""

    def __init__(self) -> None:
        self.machine = StateMachine(Identity(1, 2, 3))
        self.gate = Gate(durable=0)
        self.disk = Disk()
        self.loop = Loop()
        clock = SimpleNamespace(now_s=lambda: 0.0)
        committer = cast(Committer, self.disk)
        self.turn = Turn(self.machine, self.gate, committer, cast(Any, clock), 0.0, lambda ended, cutoff_s: None)
        self.turn.start(cast(Any, self.loop), lambda error: None)
        self.peer = Peer()
        self.peer.on_response = self._on_response
        self.core = SimpleNamespace(
            machine=self.machine,
            auth=self.machine.auth,
            gate=self.gate,
            turn=self.turn,
            options=SimpleNamespace(max_request_bytes=PIECE_BYTES_MAX),
            metrics=Metrics(),
            watch_streams=set(),
            kept_keys=KeptKeys(Shortages()),
            header=self._header,
        )
        self.watches = Watches(self.turn)
        self.stream = self.watches.open(cast(Core, self.core), cast(Any, self.peer))
        self.log: list[Sent] = []
        self.in_fragments = 0  # the watcher whose next response must be the next one of all
        self.compacted_in: dict[int, int] = {}  # revision: the batch with the compaction
        self.watchers: dict[int, Expected] = {}
        self.asked: list[Expected] = []

    def _header(self, revision: int) -> rpc.ResponseHeader:
        header = self.machine.header()
        header.revision = revision
        return header

    # --- what the peer gets ---

    def _on_response(self, response: rpc.WatchResponse) -> None:
        revision = response.header.revision
        assert revision <= self.turn.durable_revision, "shown what a crash would take back"
        assert self.in_fragments in (0, response.watch_id), "something came between two fragments"
        self.in_fragments = response.watch_id if response.fragment else 0
        if response.watch_id == -1:
            self._on_progress(revision)
            return
        watcher = self.watchers[response.watch_id]
        assert not watcher.over, "sent something after the end"
        if response.created:
            assert not watcher.created
            assert not response.events
            watcher.created = True
            watcher.start = watcher.request.start_revision or revision + 1
        elif response.canceled:
            assert watcher.created
            watcher.over = True
            watcher.lost_at = response.compact_revision
            if watcher.lost_at:
                assert self.compacted_in[watcher.lost_at] <= self.gate.durable, "the compaction may be taken back"
        elif not response.events and not watcher.pieces:
            assert watcher.created
            assert watcher.given_up or watcher.sent == self.expected(watcher, revision), "it overtook events"
        else:
            self._on_events(watcher, response, revision)

    def _on_events(self, watcher: Expected, response: rpc.WatchResponse, revision: int) -> None:
        assert watcher.created
        watcher.pieces += [(event.type, event.kv.key, event.kv.mod_revision) for event in response.events]
        if watcher.request.fragment:
            size_bytes = sum(event.ByteSize() + 2 for event in response.events)
            assert size_bytes < PIECE_BYTES_MAX or len(response.events) == 1
        if response.fragment:
            assert watcher.request.fragment
            return
        before = watcher.sent[-1][2] if watcher.sent else 0
        assert before < watcher.pieces[0][2], "a revision was sent twice, or in two responses"
        assert watcher.pieces[-1][2] <= revision
        watcher.sent += watcher.pieces
        watcher.pieces = []

    def _on_progress(self, revision: int) -> None:
        for watcher in self.watchers.values():
            if watcher.created and not watcher.over and not watcher.given_up:
                assert watcher.sent == self.expected(watcher, revision), "progress overtook events"

    def expected(self, watcher: Expected, upto: int) -> list[Sent]:
        return [
            (kind, key, revision)
            for kind, key, revision in self.log
            if watcher.start <= revision <= upto and watcher.covers(key) and watcher.wants(kind)
        ]

    # --- what happens ---

    def put(self, keys: list[bytes]) -> None:
        ops = [rpc.RequestOp(request_put=rpc.PutRequest(key=key)) for key in keys]
        revision = self.machine.revision + 1
        # The log is first: a publication may leave at once.
        self.log += [(mvcc_pb2.Event.PUT, key, revision) for key in keys]
        self.machine.apply(rpc.TxnRequest(success=ops), 0.0)
        self.turn.hold_publications()
        self.turn.schedule()

    def delete(self, key: bytes) -> None:
        revision = self.machine.revision + 1
        reply: Any = self.machine.apply(rpc.DeleteRangeRequest(key=key, range_end=b"\0", prev_kv=True), 0.0)
        self.log += [(mvcc_pb2.Event.DELETE, kv.key, revision) for kv in reply.prev_kvs]
        self.turn.hold_publications()
        self.turn.schedule()

    def compact(self, back: int) -> None:
        revision = self.machine.revision - back
        if revision > max(self.machine.compact_revision, 0):
            self.machine.apply(rpc.CompactionRequest(revision=revision), 0.0)
            self.compacted_in[revision] = self.machine.journal.number
            self.turn.schedule()

    def create(self, where: int, start: int, filters: list[int], fragment: bool, prev_kv: bool) -> None:
        key, end = RANGES[where]
        begin = 0 if start == 0 else max(1, self.machine.revision + 4 - start)
        request = rpc.WatchCreateRequest(
            key=key, range_end=end, start_revision=begin, filters=cast(Any, filters), fragment=fragment, prev_kv=prev_kv
        )
        request.progress_notify = True
        request.watch_id = len(self.asked) + 1
        watcher = Expected(request)
        self.asked.append(watcher)
        self.watchers[request.watch_id] = watcher
        self._ask(rpc.WatchRequest(create_request=request))

    def cancel(self, number: int) -> None:
        if self.asked:
            watch_id = number % len(self.asked) + 1
            self.watchers[watch_id].given_up = True
            self._ask(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))

    def progress(self) -> None:
        self._ask(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    def notify(self) -> None:
        self.stream.notify_progress()

    def _ask(self, request: rpc.WatchRequest) -> None:
        self.stream.on_messages([request.SerializeToString()])
        self.turn.schedule()

    def peer_is(self, slow: bool) -> None:
        self.peer.slow = slow
        if not slow:
            woken, self.peer.woken_by = self.peer.woken_by, []
            for stream in woken:
                self.turn.catch_up_later(stream)

    def end_turn(self) -> None:
        self.loop.run()

    def commit(self) -> None:
        self.disk.finish()

    def settle(self) -> None:
        """Everything that is under way arrives."""
        self.peer_is(slow=False)
        for _ in range(10_000):
            if not self.loop.ready and self.disk.free:
                return
            self.loop.run()
            self.disk.finish()
        raise AssertionError("the stream never comes to rest")

    def check(self) -> None:
        if self.peer.failed is not None:
            raise self.peer.failed
        for watcher in self.asked:
            assert watcher.created
            assert not watcher.pieces
            wanted = self.expected(watcher, self.machine.revision)
            if not watcher.over:
                assert watcher.sent == wanted
                continue
            assert watcher.sent == wanted[: len(watcher.sent)]
            if watcher.lost_at:
                # What was lost is older than the compaction, so there was no way to send it.
                seen = watcher.sent[-1][2] if watcher.sent else watcher.start - 1
                assert seen < watcher.lost_at - 1
        alive = sum(not watcher.over for watcher in self.asked)
        assert self.core.metrics.watchers == self.machine.hub.count == alive
        kept = [watcher.request for watcher in self.asked if not watcher.over]
        assert self.core.kept_keys.total_bytes == sum(len(one.key) + len(one.range_end.strip(b"\0")) for one in kept)


class Bounds(NamedTuple):
    """Of large revisions."""

    at_once: int  # events of a revision that is not large
    step: int  # how much is done in a turn
    places: int  # of streams that encode


SMALLEST = Bounds(1, 1, 1)


@contextmanager
def small_limits(bounds: Bounds) -> Iterator[None]:
    with (
        mock.patch.object(limits, "WATCH_AT_ONCE_EVENTS", bounds.at_once),
        mock.patch.object(limits, "WATCH_REPLAY_EVENTS_MAX", 2),
        mock.patch.object(limits, "WATCH_SCATTER_LOOKS", bounds.step),
        mock.patch.object(limits, "WATCH_STEP_EVENTS", 1 + bounds.step // 20),
        mock.patch.object(limits, "WATCH_LARGE_MAX", bounds.places),
        mock.patch.object(limits, "WATCH_LARGE_BYTES", 100),
        mock.patch.object(watch, "_PIECE_COST_BYTES_MIN", limits.CONNECTION_BACKLOG_BYTES_MAX // bounds.step),
        mock.patch.object(limits, "CONNECTION_BACKLOG_BYTES_MAX", BACKLOG_BYTES_MAX),
        mock.patch.object(limits, "WATCH_REPLAY_REVISIONS_MAX", 2),
        mock.patch.object(limits, "WATCH_REPLAY_BYTES_MAX", 3),  # keys are one byte long, values empty
        mock.patch.object(limits, "REQUEST_OVERHEAD_BYTES", 0),
        mock.patch.object(watch_hub, "_SCAN_EVENTS_MAX", 3),
        mock.patch.object(watch_hub, "_CHAIN_KEYS_MAX", 2),
    ):
        yield


Step = tuple[Callable[..., None], tuple[Any, ...]]


def _step(action: Callable[..., None], *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(action), st.tuples(*arguments))


STEPS = st.one_of(
    _step(World.put, st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)),
    _step(World.put, st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True)),
    _step(World.delete, st.sampled_from(KEYS)),
    _step(World.end_turn),
    _step(World.end_turn),
    _step(World.commit),
    _step(World.commit),
    _step(World.peer_is, st.booleans()),
    _step(
        World.create,
        st.integers(0, len(RANGES) - 1),
        st.integers(0, 12),
        st.lists(st.integers(0, 1), max_size=1),
        st.booleans(),
        st.booleans(),
    ),
    _step(World.cancel, st.integers(0, 9)),
    _step(World.progress),
    _step(World.notify),
    _step(World.compact, st.integers(0, 6)),
)


PUT_A: Step = (World.put, ([b"a"],))
WATCH_A: Step = (World.create, (0, 0, [], False, False))
WATCH_A_FROM_1: Step = (World.create, (0, 12, [], False, False))
END_TURN: Step = (World.end_turn, ())
COMMIT: Step = (World.commit, ())
SLOW: Step = (World.peer_is, (True,))
PROGRESS: Step = (World.progress, ())
NOTIFY: Step = (World.notify, ())


@pytest.mark.slow
# A report of progress waits at the gate while the event before it passes a slow peer by; then with compaction on top.
@example(
    steps=[PUT_A, END_TURN, PUT_A, WATCH_A, PUT_A, END_TURN, COMMIT, SLOW, PROGRESS, COMMIT],
    bounds=SMALLEST,
)
@example(
    steps=[WATCH_A, PUT_A, END_TURN, SLOW, *[PUT_A] * 6, PROGRESS, (World.compact, (0,)), COMMIT],
    bounds=SMALLEST,
)
# A watcher that is behind finds its history compacted before the compaction is on disk.
@example(
    steps=[*[PUT_A] * 6, END_TURN, COMMIT, WATCH_A_FROM_1, (World.compact, (0,)), END_TURN, END_TURN, COMMIT],
    bounds=SMALLEST,
)
# The end of history waits at the gate for a later batch than its own, and a notification comes first.
@example(
    steps=[
        *[PUT_A] * 7,
        END_TURN,
        PUT_A,
        (World.create, (0, 4, [], False, False)),
        *[END_TURN, COMMIT, PROGRESS, PUT_A, COMMIT, PUT_A, END_TURN, COMMIT, NOTIFY, NOTIFY],
    ],
    bounds=SMALLEST,
)
# A small write waits between two large ones, and the second is durable before what is open when the first is through.
@example(
    steps=[
        *[(World.create, (5, 0, [], False, False)), END_TURN, (World.put, ([b"a", b"b"],)), END_TURN],
        *[PUT_A, (World.put, ([b"c", b"d"],)), COMMIT, PUT_A, *[END_TURN] * 6, COMMIT, *[END_TURN] * 20],
    ],
    bounds=SMALLEST,
)
@given(
    steps=st.lists(STEPS, min_size=20, max_size=100),
    bounds=st.builds(Bounds, st.integers(0, 3), st.integers(1, 40), st.integers(1, 2)),
)
@settings(max_examples=300, deadline=None)
def test_every_event_is_sent_once_in_order_and_only_when_durable(steps: list[Step], bounds: Bounds) -> None:
    with small_limits(bounds):
        world = World()
        for action, arguments in steps:
            action(world, *arguments)
        world.settle()
        world.check()
        # The stream is live again: one more write is sent to everyone who watches it, in a response of its own.
        world.put([b"c"])
        world.settle()
        world.check()


def test_a_stream_that_goes_takes_its_watchers_along() -> None:
    world = World()
    for where in range(len(RANGES)):
        world.create(where, 0, [], False, False)
    world.settle()
    assert world.machine.hub.count == len(RANGES)
    world.stream.on_over()
    assert world.machine.hub.count == world.core.metrics.watchers == 0
    assert world.core.watch_streams == set()


def test_a_compaction_is_not_shown_before_it_is_durable() -> None:
    world = World()
    world.put([b"a"])
    world.put([b"a"])
    world.settle()
    world.create(0, 12, [], False, False)  # from revision 1, created at once: all is durable
    world.compact(0)
    world.end_turn()
    world.end_turn()
    watcher = world.asked[0]
    assert watcher.created
    assert not watcher.over
    world.commit()
    assert watcher.over
    assert watcher.lost_at == 3


class Reader:
    """A peer with many streams on one connection, whose windows are large; nothing is written before `flush`."""

    method = None

    def __init__(self) -> None:
        self.held = Held()
        self.unflushed_bytes = 0
        self.written_bytes = 0
        self.largest_bytes = 0
        self.waiting: list[Any] = []

    def send(self, replies: list[bytes]) -> None:
        self.unflushed_bytes += sum(map(len, replies))
        self.largest_bytes = max([self.largest_bytes, *map(len, replies)])

    def send_long(self, head: bytes, chunks: list[bytes]) -> Iterator[int]:
        self.send([head + b"".join(chunks)])
        yield from ()

    def flush(self) -> None:
        self.written_bytes += self.unflushed_bytes
        self.unflushed_bytes = 0

    def finish(self, error: EtcdError | None = None) -> None:
        raise AssertionError(error)

    @property
    def backlog_bytes(self) -> int:
        return self.written_bytes

    def wake_when_drained(self, stream: Any) -> None:
        self.waiting.append(stream)


@pytest.mark.parametrize(("streams", "watchers_each"), [(1, 40), (40, 1), (8, 5)])
def test_history_for_a_peer_that_does_not_read_is_bounded(streams: int, watchers_each: int) -> None:
    value, bound = b"v" * 1_000, 10_000
    reader = Reader()
    create = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a", start_revision=1))
    with (
        mock.patch.object(limits, "CONNECTION_BACKLOG_BYTES_MAX", bound),
        mock.patch.object(limits, "WATCH_REPLAY_BYTES_MAX", 3_003),  # three puts
        mock.patch.object(watch, "_PIECE_COST_BYTES_MIN", 100),
    ):
        world = World()
        for _ in range(20):
            world.machine.apply(rpc.PutRequest(key=b"a", value=value), 0.0)
        world.settle()
        for _ in range(streams):
            stream = world.watches.open(cast(Core, world.core), cast(Any, reader))
            stream.on_messages([create.SerializeToString()] * watchers_each)
        world.turn.schedule()
        total_bytes, turns = 0, 0
        while world.loop.ready or reader.waiting:
            world.loop.run()
            assert reader.unflushed_bytes <= bound + 4_000, "one turn made more than its share"
            reader.flush()
            assert reader.written_bytes <= 2 * (bound + 4_000)
            if not world.loop.ready:  # the peer reads, at last
                total_bytes += reader.written_bytes
                reader.written_bytes = 0
                for each in reader.waiting:
                    world.turn.catch_up_later(each)
                reader.waiting.clear()
            turns += 1
            assert turns < 2_000
        total_bytes += reader.written_bytes
    assert 3_000 < reader.largest_bytes < 3_300
    assert 40 * 20 * 1_000 < total_bytes < 40 * 20 * 1_100  # everybody was sent everything, once
    assert not any(watcher.lagging for watcher in _watchers(world))


@pytest.mark.parametrize("range_end", [b"", b"\0"], ids=["one key", "a range"])
def test_history_in_which_nothing_is_found_is_searched_in_many_turns(range_end: bytes) -> None:
    """100 watchers that want no event: a turn looks at few events, over all of them."""
    keys, looks_max = 300, 1_000
    create = rpc.WatchCreateRequest(key=b"b", range_end=range_end, start_revision=1)
    create.filters.append(rpc.WatchCreateRequest.NOPUT)
    looked = [0]
    replay = watch_hub.WatchHub.replay

    def counted(hub: Any, *arguments: Any) -> Any:
        changes = replay(hub, *arguments)
        looked[0] += hub.looked
        return changes

    with (
        mock.patch.object(limits, "WATCH_LOOK_BYTES", limits.CONNECTION_BACKLOG_BYTES_MAX // looks_max),
        mock.patch.object(watch_hub, "_SCAN_EVENTS_MAX", 200),
        mock.patch.object(watch_hub.WatchHub, "replay", counted),
    ):
        world = World()
        for number in range(keys):
            world.machine.apply(rpc.PutRequest(key=b"b" if number % 2 else b"c%d" % number), 0.0)
        world.settle()
        stream = world.watches.open(cast(Core, world.core), cast(Any, Reader()))
        stream.on_messages([rpc.WatchRequest(create_request=create).SerializeToString()] * 100)
        world.turn.schedule()
        turns = 0
        while world.loop.ready:
            before = looked[0]
            world.loop.run()
            assert looked[0] - before <= looks_max + 200
            turns += 1
    assert looked[0] >= 100 * keys // 2
    assert turns >= looked[0] // (looks_max + 200)
    assert not any(watcher.lagging for watcher in _watchers(world))


def _watchers(world: World) -> list[Any]:
    return [watcher for stream in world.core.watch_streams for watcher in stream._watchers.values()]
