# SPDX-License-Identifier: Apache-2.0
"""The clocks. No other module reads one.

Laws
- Code up to floor 2 gets the present instant as an argument: float seconds on a clock that neither jumps nor goes back.
- Deadlines are compared on that clock only. Wall time appears in log lines and in generated ids, nowhere else.
"""

import time
from typing import Final, Protocol


class Clock(Protocol):
    """Shows the time that has passed since some fixed instant."""

    def now_s(self) -> float:
        """Seconds since an arbitrary instant; never decreases."""
        ...


class MonotonicClock:
    """The machine's monotonic clock. It stands still while the machine is suspended."""

    def __init__(self) -> None:
        self.now_s: Final = time.monotonic  # itself: every call reads the clock, a lone write ten times


class BootClock:
    """The machine's clock that goes on while the machine is suspended, where it has one: Linux."""

    def __init__(self) -> None:
        number = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        self.now_s: Final = lambda: time.clock_gettime(number)


class WallClock:
    """The machine's wall clock. It may jump: it shows whether another clock has stood still, and nothing else."""

    def __init__(self) -> None:
        self.now_s: Final = time.time


def wall_clock_ms() -> int:
    """Milliseconds since 1970 by the machine's wall clock, which may jump. For ids and logs only."""
    return time.time_ns() // 1_000_000
