# SPDX-License-Identifier: Apache-2.0
"""Watch: the watchers of one stream, from the hub's publications to WatchResponses.

Laws
- A watcher's first response is its `created`. Its events follow in revision order, each exactly once. The events of one
  revision are in one response, unless the watcher asked for fragments (watch_fragments.py).
- Only durable revisions are sent: publications, and history that is not durable yet, pass the gate.
- A peer that does not read costs bounded memory. When its backlog passes CONNECTION_BACKLOG_BYTES_MAX its watchers
  *lag*: they get no publications, and once the peer has read, they catch up from history. A watcher is either live
  (gets publications) or lagging (gets history). It becomes live only when history has brought it up to the newest
  revision.
- History leaves in pieces of at most WATCH_REPLAY_BYTES_MAX. One turn sends few of them, over all streams together;
  the events that it looks at for them count, also those that no watcher wants.
  Each looks at the connection's backlog first. A piece at the gate is not encoded yet. So neither many watchers nor
  many streams of a peer that does not read make more wait for it than one piece above the bound.
- A revision with too many events for one step, live or in history, is encoded in steps and sent as chunks that all its
  watchers share. A watcher that waits for it lags from the next revision on. While revisions wait for their watchers
  (watch_hub.py), no progress is reported.
- The stream outlives its watchers and the peer's half-close. It ends when the peer cancels the call or disconnects, at
  the call's deadline, when the server stops, and with an error after a malformed request.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from lessor.api.proto import rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.loop.call import StreamCall
from lessor.server.loop.core import Core
from lessor.server.loop.pace import Pace
from lessor.server.loop.turn import Turn
from lessor.server.services.watch_fragments import FRAGMENT, Chain, WayOut
from lessor.server.services.watch_large import LargePlaces, LargeWrites
from lessor.state.encode import number_field
from lessor.state.watch_changes import Changes, LargeChanges
from lessor.state.watch_hub import CompactedError
from lessor.state.watcher import Watcher, range_is_empty, watch_range

_WATCH_ID_TAG = b"\x10"  # field 2, a number
# A piece counts for at least so much, and for as much as the events that were looked at for it, whatever was found.
_PIECE_COST_BYTES_MIN = 65_536


class _Progress(NamedTuple):
    """The progress of a watcher, or of all (None). It is sent only if no watcher of the stream has lagged since."""

    response: bytes
    watcher: Watcher | None
    falls: int


class _Tail(NamedTuple):
    """A piece of history that is not durable yet, mostly the last. Encoded when it leaves; at most one per watcher.

    `changes`: None for a large revision, which is collected again then.
    """

    watcher: Watcher
    changes: Changes | None


class Watches:
    """Opens the watch streams of one server, which share one `Pace`."""

    def __init__(self, turn: Turn) -> None:
        self.pace = Pace(turn, limits.CONNECTION_BACKLOG_BYTES_MAX)  # bytes of history
        self.places = LargePlaces(self.pace)
        self.streams: set[WatchStream] = set()
        self._large_writes = LargeWrites(turn, self._end_all)

    def open(self, core: Core, call: StreamCall) -> "WatchStream":
        return WatchStream(core, call, self)

    def _end_all(self, error: EtcdError) -> None:
        for stream in list(self.streams):
            stream.end_now(error)


class WatchStream:
    """One watch stream: the owner of its watchers."""

    def __init__(self, core: Core, call: StreamCall, watches: Watches) -> None:
        self._core = core
        self._call = call
        self._out = WayOut(call)
        self.held = call.held
        self._watchers: dict[int, Watcher] = {}
        self._behind: set[Watcher] = set()  # those that are sent history
        self._ready: dict[Watcher, None] = {}  # those of them whose next piece can be sent
        self._tails: set[Watcher] = set()  # those with a piece of history at the gate
        self._falls = 0  # how often a watcher fell behind
        # The revision at which history left off: earlier publications that still wait at the gate were sent as history.
        self._sent_until: dict[Watcher, int] = {}
        self._next_id = 0
        self._waits_for = 0  # the newest batch that a response of this stream has waited for
        self._silent_since: dict[int, int] = {}  # progress_notify watchers: revision of their last notification
        self._watches = watches
        self._pace = watches.pace
        self._places = watches.places
        self._large: dict[Watcher, LargeChanges] = {}  # those of `_ready` that are sent a large revision next
        # The first of them, while its response is being made: the steps, and the number of events.
        self._under_way: tuple[Watcher, Iterator[int], int] | None = None
        core.watch_streams.add(self)
        watches.streams.add(self)

    # --- what the peer asks ---

    def end_for_want_of_leader(self) -> None:
        if self._call.requires_leader:
            self._call.finish(errors.NO_LEADER.error())

    def end_now(self, error: EtcdError) -> None:
        """A bug ends the call, see bugs.py."""
        self._call.finish(error)

    def on_messages(self, messages: list[bytes]) -> None:
        for message in messages:
            try:
                request = rpc_pb2.WatchRequest.FromString(message)
            except DecodeError:
                raise errors.MALFORMED_IN_STREAM.error() from None
            match request.WhichOneof("request_union"):
                case "create_request":
                    self._create(request.create_request)
                case "cancel_request":
                    self._cancel(request.cancel_request.watch_id)
                case "progress_request":
                    self._report_progress()

    def on_requests_end(self) -> None:
        """Does nothing: a peer that has ended its side still gets events. A watch over HTTP works that way."""

    def on_over(self) -> None:
        for watcher in self._watchers.values():
            self._core.machine.unwatch(watcher)
            self._core.kept_keys.remove(self, watcher.range_bytes)
        self._core.watch_streams.discard(self)
        self._watches.streams.discard(self)
        self._core.metrics.watchers -= len(self._watchers)
        self._watchers.clear()
        self._behind.clear()
        self._ready.clear()
        self._tails.clear()
        self._pace.forget(self)
        self._large.clear()
        self._under_way = None
        self._places.forget(self)
        self._sent_until.clear()

    def _create(self, request: rpc_pb2.WatchCreateRequest) -> None:
        machine = self._core.machine
        if request.start_revision < 0:
            self._refuse(errors.COMPACTED.message)
            return
        if self._core.auth.enabled:
            # Checked once, when the watch begins: as in etcd, revoking the right later ends no watch that is under way.
            try:
                self._core.permit(self._call, request)
            except EtcdError as error:
                self._refuse(error.go_text)
                return
        key, end = watch_range(request.key, request.range_end)
        if range_is_empty(key, end):
            self._refuse("mvcc: watcher range is empty")
            return
        watch_id = request.watch_id
        if watch_id == 0:
            watch_id = self._free_id()
        elif watch_id in self._watchers:
            self._refuse("mvcc: duplicate watch ID provided on the WatchStream")
            return
        watcher = Watcher(
            watch_id,
            key,
            end,
            start_revision=request.start_revision,
            filters=request.filters[: limits.WATCH_FILTERS_MAX],
            prev_kv=request.prev_kv,
            fragment=request.fragment,
            progress_notify=request.progress_notify,
            owner=self,
        )
        try:
            self._core.kept_keys.add(self, watcher.range_bytes)
        except EtcdError as error:
            self._refuse(error.message)
            return
        self._watchers[watch_id] = watcher
        machine.watch(watcher)
        self._core.metrics.watchers += 1
        if watcher.progress_notify:
            self._silent_since[watch_id] = machine.revision
        created = rpc_pb2.WatchResponse(header=machine.header(), watch_id=watch_id, created=True)
        self._hold((created.SerializeToString(), watcher))

    def _free_id(self) -> int:
        while self._next_id in self._watchers:
            self._next_id += 1
        self._next_id += 1
        return self._next_id - 1

    def _refuse(self, reason: str) -> None:
        header = self._core.machine.header()
        refusal = rpc_pb2.WatchResponse(header=header, watch_id=-1, created=True, canceled=True, cancel_reason=reason)
        self._hold((refusal.SerializeToString(), None))

    def _cancel(self, watch_id: int) -> None:
        watcher = self._watchers.get(watch_id)
        if watcher is None:
            return  # as in etcd, there is no reply
        self._drop(watcher)
        response = rpc_pb2.WatchResponse(header=self._core.machine.header(), watch_id=watch_id, canceled=True)
        self._hold((response.SerializeToString(), None))

    def _drop(self, watcher: Watcher) -> None:
        self._core.machine.unwatch(watcher)
        self._core.kept_keys.remove(self, watcher.range_bytes)
        self._core.metrics.watchers -= 1
        del self._watchers[watcher.watch_id]
        self._behind.discard(watcher)
        self._ready.pop(watcher, None)
        self._tails.discard(watcher)
        self._end_large(watcher)
        self._sent_until.pop(watcher, None)
        self._silent_since.pop(watcher.watch_id, None)

    def lose_key(self, error: EtcdError) -> None:
        """The keys of all watches take too much memory: see loop/kept_keys.py."""
        largest = max(self._watchers.values(), key=lambda watcher: watcher.range_bytes)
        self._drop(largest)
        response = rpc_pb2.WatchResponse(
            header=self._core.machine.header(),
            watch_id=largest.watch_id,
            canceled=True,
            cancel_reason=error.message,
        )
        self._hold((response.SerializeToString(), None))
        self._core.turn.schedule()

    def _report_progress(self) -> None:
        """Sends the stream's progress if all its watchers are up to date. Otherwise, like etcd 3.6, sends nothing."""
        revision = self._core.machine.revision
        if self._core.machine.hub.waiting:
            return
        if self._watchers and not any(w.lagging or w.next_revision > revision + 1 for w in self._watchers.values()):
            response = rpc_pb2.WatchResponse(header=self._core.machine.header(), watch_id=-1)
            self._hold(_Progress(response.SerializeToString(), None, self._falls))

    def notify_progress(self) -> None:
        """Sends progress to the watchers that asked for it and were sent nothing since the last call."""
        revision = self._core.turn.durable_revision
        if self._core.machine.hub.waiting:
            return
        for watch_id, silent_since in self._silent_since.items():
            watcher = self._watchers[watch_id]
            # It does not lag, no event for it waits at the gate, and its start revision is not in the future.
            up_to_date = not watcher.lagging and watcher.next_revision <= revision + 1
            if up_to_date and watcher.next_revision <= silent_since + 1:
                response = rpc_pb2.WatchResponse(header=self._core.header(revision), watch_id=watch_id)
                self._follow(_Progress(response.SerializeToString(), watcher, self._falls))
            self._silent_since[watch_id] = max(watcher.next_revision - 1, silent_since)

    def behind(self) -> tuple[int, int]:
        revision = self._core.machine.revision
        return len(self._behind), sum(max(revision + 1 - watcher.next_revision, 0) for watcher in self._behind)

    # --- what the gate lets through ---

    def _hold(self, payload: tuple[bytes, Watcher | None] | _Progress | _Tail) -> None:
        """Sends when all that has been applied until now is durable."""
        self._waits_for = self._core.turn.after_everything(self, payload)

    def _follow(self, payload: tuple[bytes, Watcher | None] | _Progress | _Tail) -> None:
        """Sends a durable response: at once, or after the responses of this stream that wait at the gate."""
        self._core.gate.hold(self._waits_for, self, payload)

    def deliver(self, payload: Any) -> None:
        """The gate lets through a (response, watcher that begins with it or None), history, or progress."""
        if isinstance(payload, _Tail):
            self._deliver_tail(payload)
            return
        if isinstance(payload, _Progress):
            # If a watcher has lagged since, its peer may not have been sent the events up to that revision.
            if payload.falls == self._falls and (payload.watcher is None or not payload.watcher.cancelled):
                self._out.send([payload.response])
            return
        response, begins = payload
        self._out.send([response])
        if begins is not None and begins.lagging and not begins.cancelled:
            self._fall_behind(begins)

    def on_changes(self, watchers: list[Watcher], changes: Changes) -> None:
        """The gate lets new changes through, for some of the watchers."""
        sent_until = self._sent_until
        room_bytes = limits.CONNECTION_BACKLOG_BYTES_MAX - self._call.backlog_bytes
        responses: list[bytes] = []
        shown = 0
        opening, fields = self._core.machine.header_field(changes.revision), changes.fields()
        size_bytes = len(fields)
        for watcher in watchers:
            if watcher.cancelled or watcher in self._behind or changes.revision < sent_until.get(watcher, 0):
                continue
            if room_bytes < 0:
                self._core.machine.hub.lag(watcher, changes.revision)
                self._fall_behind(watcher)
                continue
            room_bytes -= size_bytes
            shown += 1
            if watcher.fragment:
                responses += self._responses(watcher, changes)
            else:
                responses.append(opening + _watch_id_field(watcher.watch_id) + fields)
        if responses:
            self._send_events(responses, shown * len(changes.events))

    def _send_events(self, responses: list[bytes], events: int) -> None:
        self._core.metrics.events += events
        self._out.send(responses)

    def _deliver_tail(self, tail: _Tail) -> None:
        watcher = tail.watcher
        self._tails.discard(watcher)
        if watcher.cancelled:
            return
        if tail.changes is None:
            self._ready[watcher] = None
            self._pace.later(self)
            return
        if self._call.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
            self._core.machine.hub.lag(watcher, tail.changes.events[0][0].mod_revision)
            self._fall_behind(watcher)
            return
        self._send_events(self._responses(watcher, tail.changes), len(tail.changes.events))
        if watcher in self._behind:
            self._ready[watcher] = None
            self._pace.later(self)

    def _fall_behind(self, watcher: Watcher) -> None:
        self._falls += 1
        self._behind.add(watcher)
        self._ready[watcher] = None
        self._pace.later(self)

    def catch_up(self) -> bool:
        """The peer has taken some of the backlog: the stream takes its place among those that catch up."""
        self._pace.later(self)
        return False

    def take_share(self) -> tuple[int, bool]:
        """Sends the next piece of history to the next watcher that lags.

        Returns its cost, and whether another piece can follow right away. If not, the stream asks for its next
        piece itself. Cost: of `WatchHub.replay`, and the encoding of one piece.
        """
        if not self._ready:
            return _PIECE_COST_BYTES_MIN, False
        if self._under_way is not None:
            return self._make_large(), True
        if self._call.backlog_bytes > limits.CONNECTION_BACKLOG_BYTES_MAX:
            self._give_large_up()
            self._call.wake_when_drained(self)
            return _PIECE_COST_BYTES_MIN, False
        if self._large:
            return self._take_large_share()
        chained = self._out.watcher
        watcher = chained if chained is not None and chained in self._ready else next(iter(self._ready))
        del self._ready[watcher]
        cost_bytes = 0
        try:
            cost_bytes = self._send_history(watcher)
            if self._core.machine.hub.large is not None and not self._begin_large(watcher):
                return _PIECE_COST_BYTES_MIN, False
        except CompactedError as error:
            self._lost_to_compaction(watcher, error.compact_revision)
        else:
            cost_bytes = max(cost_bytes, self._core.machine.hub.looked * limits.WATCH_LOOK_BYTES)
            if not watcher.lagging:
                self._behind.discard(watcher)
            elif watcher not in self._tails:
                self._ready[watcher] = None
        return max(cost_bytes, _PIECE_COST_BYTES_MIN), bool(self._ready)

    def _send_history(self, watcher: Watcher) -> int:
        """One piece of history: durable revisions at once, the few newer ones through the gate. Returns bytes sent."""
        machine, durable = self._core.machine, self._core.turn.durable_revision
        chain = self._out.chain_of(watcher)
        if chain is not None:
            upto, revisions_max = chain.upto_revision, chain.revisions_left
        else:
            upto = durable if watcher.next_revision <= durable else machine.revision
            revisions_max = limits.WATCH_REPLAY_REVISIONS_MAX
        history = machine.hub.replay(
            watcher,
            upto,
            revisions_max,
            limits.WATCH_REPLAY_BYTES_MAX,
            limits.WATCH_REPLAY_EVENTS_MAX,
        )
        self._sent_until[watcher] = watcher.next_revision
        if not history:
            return 0
        changes = Changes(upto, history)
        if upto > durable:
            self._tails.add(watcher)
            self._hold(_Tail(watcher, changes))
            return 0
        # No response that has to come before this one is at the gate: neither `created` nor earlier history.
        responses = self._responses(watcher, changes)
        following = None
        if watcher.fragment and machine.hub.more:
            revisions_left = revisions_max - len({event.mod_revision for event, _ in history})
            if revisions_left:
                head = self._head(watcher, upto)
                following = Chain(watcher, upto, revisions_left, head)
                responses[-1] = head + FRAGMENT + responses[-1][len(head) :]
        self._core.metrics.events += len(history)
        self._out.send_piece(watcher, responses, following)
        return max(sum(map(len, responses)), len(history) * limits.WATCH_SENT_BYTES)

    # --- large revisions ---

    def on_large_changes(self, watchers: list[Watcher], changes: LargeChanges) -> None:
        """There are so many new changes that they are encoded in steps. They are durable."""
        for watcher in watchers:
            if not watcher.cancelled and watcher not in self._behind:
                self._core.machine.hub.lag(watcher, changes.revision + 1)
                self._large[watcher] = changes
                self._places.expect(self)
                self._fall_behind(watcher)

    def _begin_large(self, watcher: Watcher) -> bool:
        """The next revision of its history is large. Returns whether the stream can go on right away."""
        hub = self._core.machine.hub
        large = hub.large
        assert large is not None
        if large.revision > self._core.turn.durable_revision:
            hub.lag(watcher, large.revision)
            self._tails.add(watcher)
            self._hold(_Tail(watcher, None))
            return bool(self._ready)
        if self._places.take(self):
            self._places.expect(self)
            self._large[watcher] = large
            return True
        hub.lag(watcher, large.revision)
        self._ready[watcher] = None
        return False

    def _give_large_up(self) -> None:
        """The peer does not read: its watchers find the revisions in the history when it does."""
        for watcher, changes in self._large.items():
            self._core.machine.hub.lag(watcher, changes.revision)
        self._large.clear()
        self._places.leave(self, has_more=False)

    def _end_large(self, watcher: Watcher) -> None:
        if self._under_way is not None and self._under_way[0] is watcher:
            self._under_way = None
            self._out.give_up()
        if self._large.pop(watcher, None) is not None and not self._large:
            self._places.leave(self, has_more=False)

    def _take_large_share(self) -> tuple[int, bool]:
        """The next step of encoding the first large revision; with the last one, the response is sent or begun."""
        if not self._places.take(self):
            return _PIECE_COST_BYTES_MIN, False
        watcher, changes = next(iter(self._large.items()))
        cost_bytes = 0
        if not changes.encoded:
            chunk_bytes_max = min(limits.WATCH_CHUNK_BYTES, self._response_bytes_max)
            cost_bytes = changes.encode_some(chunk_bytes_max) * limits.WATCH_SENT_BYTES
        if changes.encoded:
            self._places.keep(changes)
            self._under_way = watcher, self._each_large_step(watcher, changes), changes.count
            cost_bytes += changes.size_bytes + self._make_large()
        return max(cost_bytes, _PIECE_COST_BYTES_MIN), True

    def _each_large_step(self, watcher: Watcher, changes: LargeChanges) -> Iterator[int]:
        if changes.count:
            head = self._head(watcher, changes.revision)
            groups = changes.fragments(self._response_bytes_max) if watcher.fragment else [changes.chunks]
            yield from self._out.send_revision(watcher, head, groups)

    def _make_large(self) -> int:
        """The next step of the response under way. Returns its cost."""
        assert self._under_way is not None
        watcher, steps, events = self._under_way
        cost_bytes = next(steps, 0)
        if not cost_bytes:
            self._core.metrics.events += events
            self._under_way = None
            self._large.pop(watcher, None)
            self._places.leave(self, has_more=bool(self._large))
        return max(cost_bytes, _PIECE_COST_BYTES_MIN)

    # --- the end of history, and responses ---

    def _lost_to_compaction(self, watcher: Watcher, compact_revision: int) -> None:
        self._drop(watcher)  # the response passes the gate: the compaction may not be durable yet
        header = self._core.header(0)  # as in etcd, whose reply has no revision here
        response = rpc_pb2.WatchResponse(
            header=header, watch_id=watcher.watch_id, canceled=True, compact_revision=compact_revision
        )
        self._hold((response.SerializeToString(), None))

    def _responses(self, watcher: Watcher, changes: Changes) -> list[bytes]:
        """The response with the changes, which the hub has filtered for this watcher; or its fragments."""
        head = self._head(watcher, changes.revision)
        fields = changes.fields()
        size_max = self._response_bytes_max
        if not watcher.fragment or len(fields) < size_max:
            return [head + fields]
        pieces = _split(changes.each_field(), size_max)
        return [*(head + FRAGMENT + piece for piece in pieces[:-1]), head + pieces[-1]]

    @property
    def _response_bytes_max(self) -> int:
        """Of a fragment."""
        return self._core.options.max_request_bytes + limits.REQUEST_OVERHEAD_BYTES

    def _head(self, watcher: Watcher, revision: int) -> bytes:
        return self._core.machine.header_field(revision) + _watch_id_field(watcher.watch_id)


@lru_cache(maxsize=4_096)
def _watch_id_field(watch_id: int) -> bytes:
    return number_field(_WATCH_ID_TAG, watch_id)


def _split(fields: list[bytes], size_max: int) -> list[bytes]:
    """Joins serialized events into pieces below `size_max` bytes, or of a single event that is larger by itself."""
    pieces = [b""]
    for field in fields:
        if pieces[-1] and len(pieces[-1]) + len(field) >= size_max:
            pieces.append(b"")
        pieces[-1] += field
    return pieces
