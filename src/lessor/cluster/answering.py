# SPDX-License-Identifier: Apache-2.0
"""What the loop of a primary asks of the tenure: whether bytes may leave now, and how long it has served.

Laws
- R4: bytes leave only at an instant at which the tenure is valid. The question is asked directly before they do.
- R5: when the clock may have stood still, nothing leaves until a record has landed that was sent afterwards.
- The served clock stands still while the tenure is lapsed, and never runs backwards: no lease ages while no client can
  be answered. It counts all other time, however seldom it is asked (served_clock.py).

Theory of operation. The thread that appends moves the tenure on. The loop's thread reads what that has published as one
value, and tells the tenure of a clock that is not believed. Everything else is kept here.

Does not do: I/O. The clocks are passed in. For one thread.
"""

from collections.abc import Callable

from lessor.cluster.clock_watch import ClockWatch
from lessor.cluster.tenure import Tenure


class Answering:
    """Of one primary, from when it has begun to lead."""

    def __init__(self, tenure: Tenure, now_s: Callable[[], float], wall_s: Callable[[], float]) -> None:
        """`now_s` reads the tenure's clock, `wall_s` the wall clock. From here on nobody else calls its `distrust`."""
        self._tenure = tenure
        self._now_s = now_s
        self._wall_s = wall_s
        now = now_s()
        self._watch = ClockWatch(now, wall_s())
        self._origin_s = tenure.served_s(now)
        self._lapsed_s = tenure.lapsed_s
        self._served_s = 0.0  # the newest reading
        self._may_send = True
        self.lapses = 0  # how often bytes had to wait, but for the end of the tenure

    def may_send(self) -> bool:
        """Whether bytes may leave at this instant. Reads two clocks."""
        now_s, wall_s = self._now_s(), self._wall_s()
        if self._watch.differs(now_s, wall_s):
            self._watch.believe(now_s, wall_s)
            self._tenure.distrust(now_s)
        may = self._tenure.valid(now_s)
        if self._may_send and not may and not self._tenure.is_over:
            self.lapses += 1
        self._may_send = may
        return may

    def served_s(self) -> float:
        """Seconds for which the tenure was valid. Reads a clock."""
        served_s = self._tenure.served_s(self._now_s()) - self._origin_s
        if served_s > self._served_s:  # sums of instants are off by a little
            self._served_s = served_s
        return self._served_s

    @property
    def stood_s(self) -> float:
        """For how long the served clock has stood still in all, as far as it has gone on since."""
        return self._tenure.lapsed_s - self._lapsed_s
