# SPDX-License-Identifier: Apache-2.0
"""The area of watches: two streams with several watchers each, made and cancelled while others write.

What may differ is taken out like this. How events are spread over responses: they are put together again for each
watcher, in order. When a past is caught up with: before a compaction, a cancellation and the end, everything that is
due is waited for (`_settle`), since a cancellation may overtake events in etcd. Whether and when progress is sent: it
must be true, which is checked on each side by itself. Revisions in the headers of events: not less than the
events'. The sentinel's own events, since those of one revision reach several watchers in any order.
"""

import threading
import time
from typing import Any, NamedTuple

from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.fuzz.pair import Side
from tests.conformance.fuzz.steps import plain
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import Conversation
from tests.property.strategies import (
    COMPACTED,
    CURRENT,
    INT64_MAX,
    INT64_MIN,
    WARM_UP,
    clashing_transactions,
    compactions,
    deletes,
    flags,
    keys,
    mostly,
    puts,
    range_ends,
    revokes,
    small_leases,
    transactions,
    weighted,
)

SENTINEL, SENTINEL_ID = b"sentinel", 1000
WAIT_S_MAX = 10.0
FUTURE_MAX = 3  # a watch may begin so many revisions after the current one
_CATCHES_UP_S = 0.3  # etcd looks after watchers that lag ten times a second
LARGE_BYTES = 800_000  # three such values make a response that is sent in fragments


class Write(NamedTuple):
    """Somebody else's unary request."""

    request: Any


class Large(NamedTuple):
    """Somebody else's put of a large value."""

    key: bytes


class Watch(NamedTuple):
    """A create request on one of the streams."""

    stream: int
    request: Any


class Cancel(NamedTuple):
    stream: int
    watch_id: int


class Progress(NamedTuple):
    stream: int


class Nothing(NamedTuple):
    """A request without content."""

    stream: int


class Stream:
    """A watch stream that is read all the time. A sentinel watcher shows when all writes have been sent."""

    def __init__(self, side: Side) -> None:
        self._talk: Conversation = side.subject.conversation("etcdserverpb.Watch/Watch", 120.0)
        self.replies: list[Any] = []
        self._changed = threading.Condition()
        self.controls = 0  # how many replies to create and cancel requests have been waited for
        self.catching_up = False
        self.says_nothing = False  # of progress, while a watcher waits for the future or was lost to compaction
        threading.Thread(target=self._read, daemon=True).start()
        self.send(create_request=rpc.WatchCreateRequest(key=SENTINEL, watch_id=SENTINEL_ID))
        self.wait(lambda: bool(self.replies))

    def _read(self) -> None:
        while (reply := self._talk.read()) is not None:
            with self._changed:
                self.replies.append(reply)
                self._changed.notify_all()
            if isinstance(reply, Failure):
                return

    def send(self, **request: Any) -> None:
        self._talk.send(rpc.WatchRequest(**request))

    def wait(self, holds: Any, timeout_s: float = WAIT_S_MAX) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(holds, timeout_s))

    def count(self, what: Any) -> int:
        return sum(1 for reply in self.replies if not isinstance(reply, Failure) and what(reply))

    def close(self) -> None:
        self._talk.cancel()


class Player:
    """Plays steps on one side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.streams = [Stream(side), Stream(side)]
        self.notes: list[Any] = []

    def play(self, steps: list[Any]) -> list[Any]:
        try:
            for step in steps:
                self._step(step)
            for _ in range(FUTURE_MAX):
                self.side.write(rpc.PutRequest(key=SENTINEL))
            self._settle()
            for stream in self.streams:
                self.notes += self._told(stream)
        finally:
            for stream in self.streams:
                stream.close()
        return self.notes

    def _step(self, step: Any) -> None:
        match step:
            case Write(request):
                if isinstance(request, rpc.CompactionRequest):
                    self._settle()
                self.notes.append(plain(self.side.write(request)))
            case Large(key):
                self.notes.append(plain(self.side.write(rpc.PutRequest(key=key, value=b"L" * LARGE_BYTES))))
            case Watch(number, request):
                self._watch(self.streams[number], self.side.now.place(request))
            case Cancel(number, watch_id):
                self._settle()
                stream = self.streams[number]
                mine = [r for r in stream.replies if not isinstance(r, Failure) and r.watch_id == watch_id]
                ends = [r for r in mine if r.created != r.canceled]
                known = bool(ends) and ends[-1].created
                if ends and ends[-1].compact_revision:
                    return  # only etcd answers
                before = stream.count(lambda r: r.canceled)
                stream.send(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id))
                if known:
                    assert stream.wait(lambda: stream.count(lambda r: r.canceled) > before), f"{step}: no answer"
            case Progress(number):
                self.streams[number].send(progress_request=rpc.WatchProgressRequest())
            case Nothing(number):
                self.streams[number].send()

    def _watch(self, stream: Stream, request: Any) -> None:
        now = self.side.now
        if self.side.old and (request.start_revision < 0 or request.start_revision == now.compacted):
            return  # 3.5.1 cancels the one in a second response, and may have lost deletions that the other begins with
        # An id whose watch was lost to compaction stays taken in etcd (docs/compatibility.md).
        past = 0 < request.start_revision < now.compacted
        if past:
            request.watch_id = 0
        if stream.count(lambda r: r.compact_revision and r.watch_id == request.watch_id != 0):
            return
        if request.watch_id or 0 < request.start_revision <= now.current:
            # Whether the id is free must not depend on how far a cancellation has come; and progress that was asked for
            # earlier must not be taken for that of this watcher.
            self._settle()
        before = stream.count(lambda r: r.created)
        lost = stream.count(lambda r: r.compact_revision)
        stream.send(create_request=request)
        assert stream.wait(lambda: stream.count(lambda r: r.created) > before), f"{request}: no answer"
        reply = next(r for r in reversed(stream.replies) if not isinstance(r, Failure) and r.created)
        if reply.canceled:
            return
        if past:
            stream.says_nothing = True
            assert stream.wait(lambda: stream.count(lambda r: r.compact_revision) > lost), f"{request}: not cancelled"
        elif 0 < request.start_revision <= now.current:
            stream.catching_up = True
        elif request.start_revision > now.current:
            stream.says_nothing = True

    def _settle(self) -> None:
        """Returns when every watcher has been sent all its events."""
        for stream in self.streams:
            if stream.catching_up:
                self._caught_up(stream)
        reply = self.side.write(rpc.PutRequest(key=SENTINEL))
        revision = reply.header.revision
        for stream in self.streams:
            there = stream.wait(
                lambda stream=stream: any(
                    event.kv.mod_revision == revision
                    for r in reversed(stream.replies)
                    if not isinstance(r, Failure) and r.watch_id == SENTINEL_ID
                    for event in r.events
                )
            )
            assert there, f"what was written at {revision} is not told: {stream.replies[-1:]}"

    def _caught_up(self, stream: Stream) -> None:
        stream.catching_up = False
        if self.side.old:  # 3.5 says it at once, whether it is true or not
            time.sleep(_CATCHES_UP_S)
            return
        before = stream.count(_is_progress)
        give_up = time.monotonic() + (_CATCHES_UP_S if stream.says_nothing else WAIT_S_MAX)
        while time.monotonic() < give_up:
            stream.send(progress_request=rpc.WatchProgressRequest())
            if stream.wait(lambda: stream.count(_is_progress) > before, 0.02):
                return
        assert stream.says_nothing, "no progress is told, though nothing is waited for"

    def _told(self, stream: Stream) -> list[Any]:
        """The responses of the stream, in a form that is the same whenever they are right."""
        controls: list[Any] = []
        logs: list[list[Any]] = []
        open_logs: dict[int, list[Any]] = {}
        wrong: list[Any] = []
        promised: dict[int, int] = {}
        for reply in list(stream.replies):
            if isinstance(reply, Failure):
                controls.append(reply)
                continue
            if reply.created or reply.canceled:
                controls.append(plain(reply))
                if not reply.canceled:
                    open_logs[reply.watch_id], promised[reply.watch_id] = [], 0
                    logs.append(open_logs[reply.watch_id])
                elif not reply.created:
                    open_logs.pop(reply.watch_id, None)
            elif not reply.events:
                # etcd 3.5 may tell of progress before the events (its issue 15220).
                if reply.watch_id == -1 and not self.side.old:
                    promised = dict.fromkeys(promised, reply.header.revision)
            else:
                revisions = [event.kv.mod_revision for event in reply.events]
                log = open_logs.get(reply.watch_id)
                if log is None or min(revisions) <= promised[reply.watch_id] or reply.header.revision < revisions[-1]:
                    wrong.append(("not expected", reply))
                else:
                    log += [plain(event) for event in reply.events if event.kv.key != SENTINEL]
        return [controls, *logs, wrong]


def _is_progress(reply: Any) -> bool:
    return not (reply.created or reply.canceled or reply.events) and reply.watch_id == -1


def play(side: Side, steps: list[Any]) -> list[Any]:
    return Player(side).play(steps)


_streams = st.sampled_from((0, 0, 0, 1))
_starts = mostly(
    st.just(0),
    st.one_of(
        st.integers(CURRENT - 5, CURRENT + FUTURE_MAX),
        st.integers(COMPACTED - 1, COMPACTED + 3),
        st.sampled_from((1, -1, INT64_MIN, INT64_MAX)),
    ),
    2,
)
_watch_ids = st.sampled_from((0, 0, 0, 0, 0, 1, 2, 5, -7, INT64_MAX, INT64_MIN, SENTINEL_ID))
_requests = st.builds(
    lambda place, **options: rpc.WatchCreateRequest(key=place[0], range_end=place[1], **options),
    weighted(
        (3, st.sampled_from(((b"\0", b"\0"), (b"", b"\0"), (b"a", b"c"), (b"a", b"\0")))),
        (2, st.sampled_from(((b"a", b""), (b"b", b""), (b"ab", b"")))),
        (2, st.tuples(keys, range_ends)),
    ),
    start_revision=_starts,
    progress_notify=flags,
    filters=mostly(st.just([]), st.lists(st.sampled_from((0, 0, 1, 1, 9)), max_size=3), 3),
    prev_kv=st.booleans(),
    watch_id=_watch_ids,
    fragment=flags,
)
_few_keys = st.sampled_from((b"a", b"ab", b"b", b"c"))
_writes = weighted(
    (4, st.builds(rpc.PutRequest, key=_few_keys, value=st.sampled_from((b"x", b"y")), lease=small_leases)),
    (3, st.builds(rpc.DeleteRangeRequest, key=_few_keys, range_end=range_ends)),
    (2, puts),
    (1, deletes),
    (2, transactions()),
    (2, clashing_transactions()),
    (1, revokes),
    (2, compactions),
)
_steps = weighted(
    (10, _writes.map(Write)),
    (1, st.builds(Large, _few_keys)),
    (6, st.builds(Watch, _streams, _requests)),
    (3, st.builds(Cancel, _streams, st.sampled_from((0, 0, 1, 1, 2, 3, 5, -7, 77)))),
    (2, st.builds(Progress, _streams)),
    (1, st.builds(Nothing, _streams)),
)
STEPS = (
    st.integers(1, 16)
    .flatmap(lambda size: st.lists(_steps, min_size=size, max_size=size))
    .map(lambda steps: [*map(Write, WARM_UP), *steps])
)
