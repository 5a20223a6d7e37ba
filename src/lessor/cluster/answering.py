# SPDX-License-Identifier: Apache-2.0
"""What the loop of a primary asks of the tenure: whether bytes may leave now, and how long it has served.

Laws
- R4: bytes leave only at an instant at which the tenure is valid. The question is asked directly before they do.
- R5: when the clock may have stood still, nothing leaves until a record has landed that was sent afterwards.
- The served clock stands still while the tenure is lapsed, and never runs backwards: no lease ages while no client can
  be answered.

Theory of operation. The thread that appends moves the tenure on. Any other thread reads one number of it, the instant
until which it is valid, and keeps everything else here.

Does not do: I/O. The clocks are passed in. For one thread.
"""

from collections.abc import Callable
from typing import Final, Protocol

from lessor.cluster.clock_watch import ClockWatch
from lessor.cluster.served_clock import ServedClock

ROUNDING_S: Final = 1e-6  # more than what sums of instants are off


class Valid(Protocol):
    """The part of a Tenure that is asked for."""

    @property
    def until_s(self) -> float:
        """The tenure is valid before this instant. It grows, until the tenure is over."""
        ...


class Answering:
    """Of one primary, from when it has begun to lead."""

    def __init__(self, tenure: Valid, lease_s: float, now_s: Callable[[], float], wall_s: Callable[[], float]) -> None:
        """`lease_s`: that of the tenure's timing. `now_s` reads the tenure's clock, `wall_s` the wall clock."""
        self._tenure = tenure
        self._lease_s = lease_s
        self._now_s = now_s
        self._wall_s = wall_s
        now = now_s()
        self._watch = ClockWatch(now, wall_s())
        self._trusted_s = float("-inf")  # what was sent before does not count
        self._until_s = self._valid_until_s()
        self._served = ServedClock(0.0, now, self._until_s)
        self._may_send = True
        self.lapses = 0  # how often bytes had to wait
        self.stood_s = 0.0  # for how long the served clock has stood still in all, as far as it has gone on since

    def _valid_until_s(self) -> float:
        until_s = self._tenure.until_s
        # What was sent at the same reading of the clock may have been sent before the clock stood still.
        return until_s if until_s - self._lease_s > self._trusted_s + ROUNDING_S else self._trusted_s

    def may_send(self) -> bool:
        """Whether bytes may leave at this instant. Reads two clocks."""
        now_s, wall_s = self._now_s(), self._wall_s()
        if self._watch.differs(now_s, wall_s):
            self._watch.believe(now_s, wall_s)
            self._trusted_s = now_s
        may = now_s < self._valid_until_s()
        if self._may_send and not may:
            self.lapses += 1
        self._may_send = may
        return may

    def served_s(self) -> float:
        """Seconds for which the tenure was valid. Reads a clock."""
        now_s = self._now_s()
        until_s = self._valid_until_s()
        if until_s != self._until_s:
            self.stood_s += max(now_s - self._until_s, 0.0)
            if until_s < self._until_s:  # R5
                self._served.stop(now_s)
            self._until_s = until_s
            self._served.extend(now_s, until_s)
        return self._served.now_s(now_s)
