# SPDX-License-Identifier: Apache-2.0
"""Limits how often a peer may do a thing that costs us more than it costs the peer.

Laws
- The allowance of one second is a bucket that fills again at the same rate: a burst of a second's worth is allowed, a
  higher rate for a longer time is not.
- This module reads no clock. If `now_s` never changes, a bucket never fills again with time, so the allowance is for
  the whole life of the connection.

Two kinds of limits. `RateLimit` counts one kind of event. `Needless` is for all the rest together: frames that are
well-formed, and that no call needs. Each has a price here. Streams and output earn units, because they bring such
frames with them. So a busy peer is never short of them, and a peer that sends nothing else is.
"""

from typing import Final

from lessor.base import limits

# Prices of frames, by type, in units; see limits.H2_NEEDLESS_PER_S_MAX. Frames that a call consists of have none.
FRAME_PRICES: Final = (
    0,  # DATA
    0,  # HEADERS
    2,  # PRIORITY
    2,  # RST_STREAM
    10,  # SETTINGS
    0,  # PUSH_PROMISE: an error
    2,  # PING
    100,  # GOAWAY: one is enough
    2,  # WINDOW_UPDATE
    2,  # CONTINUATION
)
UNKNOWN_FRAME_PRICE: Final = 4
ACK_PRICE: Final = 20  # the acknowledgement of SETTINGS or PING: we send few of these
LATE_DATA_PRICE: Final = 2  # DATA on a stream that we have reset: a peer may be sending when we refuse its request
LATE_FRAME_PRICE: Final = 8  # HEADERS on such a stream
NO_CALL_PRICE: Final = 32  # a stream that never was a call: of no method, without a message, above the bound
SETTING_PRICE: Final = 1
STREAMS_PER_UNIT: Final = 16  # streams that a unit pays for when a setting changes them all


class RateLimit:
    """Counts events against an allowance of `per_s_max` a second."""

    __slots__ = ("_allowance", "_now_s", "_per_s_max")

    def __init__(self, per_s_max: int) -> None:
        self._per_s_max = per_s_max
        self._allowance = float(per_s_max)
        self._now_s = 0.0

    def exceeded(self, now_s: float) -> bool:
        """Counts one event at `now_s` (seconds, never decreasing). True when the event is above the allowance."""
        elapsed_s = now_s - self._now_s
        if elapsed_s > 0:
            self._now_s = now_s
            self._allowance = min(self._allowance + elapsed_s * self._per_s_max, self._per_s_max)
        if self._allowance < 1:
            return True
        self._allowance -= 1
        return False


class Needless:
    """What the work that no call needs may still cost on one connection."""

    __slots__ = ("_left", "_now_s")

    def __init__(self) -> None:
        self._left = limits.H2_NEEDLESS_PER_S_MAX
        self._now_s = 0.0

    def spend(self, price: int) -> bool:
        """Takes `price` units (0 or more). True when they are not there: call `earn`."""
        self._left -= price
        return self._left < 0

    def earn(self, now_s: float, streams: int, pieces: int, sent_bytes: int) -> bool:
        """Adds what has been earned since the last call, by time (seconds, never decreasing), streams and output.

        Returns whether the price is paid now. If not, the peer has exceeded its allowance.
        """
        earned = (
            int((now_s - self._now_s) * limits.H2_NEEDLESS_PER_S_MAX)
            + streams * limits.H2_NEEDLESS_PER_STREAM
            + pieces * limits.H2_NEEDLESS_PER_PIECE
            + sent_bytes // limits.H2_NEEDLESS_PIECE_BYTES
        )
        self._now_s = now_s
        self._left = min(self._left + earned, limits.H2_NEEDLESS_PER_S_MAX)
        return self._left >= 0
