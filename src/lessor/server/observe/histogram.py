# SPDX-License-Identifier: Apache-2.0
"""A histogram with cheap additions: one search among a few bounds, and two sums.

A value that is not above `first` may be added in place, without a call: `least += 1` and `sum += value`. What every
call goes through does so.
"""

from bisect import bisect_left
from collections.abc import Sequence

DISK_BUCKETS_S = tuple(0.001 * 2**power for power in range(14))  # 1 ms to 8 s, as etcd has them


class Histogram:
    """Counts by upper bound. One thread adds, others may read."""

    __slots__ = ("_bounds", "_counts", "first", "least", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: ascending. One more bucket, without a bound, is added here."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.first = bounds[0]
        self.least = 0  # values that were added in place
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        return self.least + sum(self._counts)

    def buckets(self) -> list[tuple[str, int]]:
        """Each upper bound as Prometheus spells it, and the number of values that are not above it."""
        buckets, total = [], self.least
        for bound, count in zip([*map(_bound, self._bounds), "+Inf"], list(self._counts), strict=True):
            total += count
            buckets.append((bound, total))
        return buckets


def _bound(bound: float) -> str:
    return f"{bound:.10g}"
