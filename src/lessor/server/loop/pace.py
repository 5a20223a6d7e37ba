# SPDX-License-Identifier: Apache-2.0
"""Shares what a turn does for calls with much to do: history for watches, requests that came many at once, long bodies.

Laws
- A turn does `per_turn` of such work, and one call's share more at most.
- Each call has its turn before one of them has its next.

A call keeps its work itself, in order. The bound is needed because output is written at the end of the turn, and no
backlog shows it before. It is one for all connections: many of them, with a step each, would take long together.
"""

from typing import Protocol

from lessor.base.errors import EtcdError
from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable
from lessor.server.loop.turn import Turn


class Paced(Answerable, Protocol):
    """A stream with work that waits."""

    def take_share(self) -> tuple[int, bool]:
        """Does its next share. Returns the cost, at least 1, and whether more can follow."""
        ...


class Pace:
    """One for each kind of work of a server; loop thread only."""

    def __init__(self, turn: Turn, per_turn: int) -> None:
        """`per_turn`: in the unit of the costs that the streams return."""
        self._turn = turn
        self._per_turn = per_turn
        self._streams: dict[Paced, None] = {}  # in the order of their turns

    def later(self, stream: Paced) -> None:
        """The stream has work for the next turns."""
        self._streams[stream] = None
        self._turn.catch_up_later(self)

    def forget(self, stream: Paced) -> None:
        self._streams.pop(stream, None)

    def end_now(self, _error: EtcdError) -> None:
        """Each stream ends for itself."""

    def catch_up(self) -> bool:
        streams = self._streams
        left = self._per_turn
        while streams and left > 0:
            stream = next(iter(streams))
            del streams[stream]
            try:
                cost, more = stream.take_share()
            except Exception as error:
                bugs.end(stream, error)
                continue
            left -= cost
            if more:
                streams[stream] = None
        return bool(streams)
