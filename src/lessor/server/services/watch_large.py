# SPDX-License-Identifier: Apache-2.0
"""Large revisions on their way to watch streams: found in steps, encoded by few streams at a time.

Laws
- A step of `LargeWrites` is one `WatchHub.go_on`; there is one a turn.
- At most WATCH_LARGE_MAX streams encode a large revision at a time. The others wait in line, and each place is for one
  response. So what is half encoded, or collected from history for that, is bounded over all connections.
- What is encoded is kept for the other watchers of the same keys, up to WATCH_LARGE_BYTES in all, and while somebody
  waits. Beyond it the oldest is forgotten, and made again if it is needed. What lies in the queue of a connection is
  counted there.

Does not do: encoding (state/watch_changes.py), sending (watch.py).
"""

from collections.abc import Callable
from typing import Any

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop import bugs
from lessor.server.loop.pace import Pace, Paced
from lessor.server.loop.turn import Turn
from lessor.state.watch_changes import LargeChanges
from lessor.state.watch_hub import LargePublication


class LargeWrites:
    """Takes the writes that wait in the hub to their watchers. One per server; loop thread only."""

    def __init__(self, turn: Turn, on_bug: Callable[[EtcdError], None]) -> None:
        """`on_bug` ends all watch streams: after a bug in the search they would miss events without a word."""
        self._turn = turn
        self._on_bug = on_bug
        turn.machine.hub.on_large = self._later

    def _later(self) -> None:
        self._turn.catch_up_later(self)

    def deliver(self, _payload: Any) -> None:
        """The gate: more is durable."""
        self._later()

    def end_now(self, error: EtcdError) -> None:
        """A bug in the search."""
        self._turn.machine.hub.drop_waiting()
        self._on_bug(error)

    def catch_up(self) -> bool:
        """The turn: takes the next step. Returns whether another one can follow."""
        turn = self._turn
        hub = turn.machine.hub
        publications, more = hub.go_on(turn.durable_revision)
        for publication in publications:
            for owner, watchers in publication.audience.items():
                try:
                    if isinstance(publication, LargePublication):
                        owner.on_large_changes(watchers, publication.changes)
                    else:
                        owner.on_changes(watchers, publication.changes)
                except Exception as error:  # the other owners get the changes
                    bugs.end(owner, error)
        if hub.outbox:
            turn.hold_publications()
        if hub.waiting and not more:
            turn.after_everything(self, None)
        return more


class LargePlaces:
    """The streams that encode, those that wait for that, and what is encoded. One per server; loop thread only."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._taken: set[Paced] = set()
        self._line: dict[Paced, None] = {}
        self._having: set[Paced] = set()  # streams that have a large revision to send
        self._kept: dict[LargeChanges, None] = {}

    def expect(self, stream: Paced) -> None:
        """The stream has large revisions to send; it says with `leave` when it has none any more."""
        self._having.add(stream)

    def take(self, stream: Paced) -> bool:
        """Whether the stream may encode now. If not, it takes its next share when it may."""
        if stream in self._taken or len(self._taken) < limits.WATCH_LARGE_MAX:
            self._taken.add(stream)
            self._line.pop(stream, None)
            return True
        self._line[stream] = None
        return False

    def leave(self, stream: Paced, *, has_more: bool) -> None:
        """The stream has sent what it has encoded, or gives it up. Cheap to repeat."""
        if not has_more:
            self._having.discard(stream)
            if not self._having:
                self._kept.clear()
        if stream in self._taken:
            self._taken.discard(stream)
            if self._line:
                following = next(iter(self._line))
                del self._line[following]
                self._pace.later(following)

    def forget(self, stream: Paced) -> None:
        """The stream is over."""
        self._line.pop(stream, None)
        self.leave(stream, has_more=False)

    def keep(self, changes: LargeChanges) -> None:
        """They are encoded, and are being sent."""
        kept = self._kept
        kept[changes] = None
        size_bytes = sum(each.size_bytes for each in kept)
        while size_bytes > limits.WATCH_LARGE_BYTES and len(kept) > 1:
            oldest = next(each for each in kept if each is not changes)
            del kept[oldest]
            size_bytes -= oldest.size_bytes
            oldest.forget()
