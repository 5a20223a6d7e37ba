# SPDX-License-Identifier: Apache-2.0
"""Limits how often a peer may do a thing that costs us more than it costs the peer.

The allowance of one second is a bucket that fills again at the same rate: a burst of `per_s_max` events is allowed,
a higher rate for a longer time is not. This module reads no clock. If `now_s` never changes, the bucket never fills
again, so the allowance is for the whole life of the connection.
"""


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
