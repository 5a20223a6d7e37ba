# SPDX-License-Identifier: Apache-2.0
"""How often a peer may do what costs us more than it costs the peer.

A bucket of one second's allowance that fills at the same rate: a burst of `per_s_max` is fine, more than that per
second for long is not. It reads no clock; with a `now` that stands still it never refills and so counts a whole life.
"""


class RateLimit:
    """Counts events against an allowance of `per_s_max` a second."""

    __slots__ = ("_allowance", "_now_s", "_per_s_max")

    def __init__(self, per_s_max: int) -> None:
        self._per_s_max = per_s_max
        self._allowance = float(per_s_max)
        self._now_s = 0.0

    def exceeded(self, now_s: float) -> bool:
        """Counts one event at `now_s` (seconds, never decreasing); True when it is one too many."""
        elapsed_s = now_s - self._now_s
        if elapsed_s > 0:
            self._now_s = now_s
            self._allowance = min(self._allowance + elapsed_s * self._per_s_max, self._per_s_max)
        if self._allowance < 1:
            return True
        self._allowance -= 1
        return False
