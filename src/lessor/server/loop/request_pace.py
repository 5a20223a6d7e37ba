# SPDX-License-Identifier: Apache-2.0
"""Shares the requests that a turn takes among the streams that have sent many at once.

Laws
- A turn takes STREAM_REQUESTS_PER_TURN_MAX requests of these streams, and one stream's share more at most.
- Each stream has its turn before one of them has its next.

A stream keeps its requests itself, in their order. Does not do: reading no more from the peer meanwhile (the sessions).
"""

from typing import Protocol

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop import bugs
from lessor.server.loop.bugs import Answerable
from lessor.server.loop.turn import Turn


class Crowded(Answerable, Protocol):
    """A stream with requests that wait."""

    def take_waiting(self) -> tuple[int, bool]:
        """Takes its next share. Returns the number of requests, and whether more wait."""
        ...


class RequestPace:
    """One per server; loop thread only."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._streams: dict[Crowded, None] = {}  # in the order of their turns

    def later(self, stream: Crowded) -> None:
        """The stream has requests for the next turns."""
        self._streams[stream] = None
        self._turn.catch_up_later(self)

    def forget(self, stream: Crowded) -> None:
        self._streams.pop(stream, None)

    def end_now(self, _error: EtcdError) -> None:
        """Each stream ends for itself."""

    def catch_up(self) -> bool:
        self._turn.schedule()  # this turn's batch is sealed already, and the requests may leave rows
        streams = self._streams
        left = limits.STREAM_REQUESTS_PER_TURN_MAX
        while streams and left > 0:
            stream = next(iter(streams))
            del streams[stream]
            try:
                taken, more = stream.take_waiting()
            except Exception as error:
                bugs.end(stream, error)
                continue
            left -= max(taken, 1)
            if more:
                streams[stream] = None
        return bool(streams)
