# SPDX-License-Identifier: Apache-2.0
"""R5: notices that a node's clock may have stood still, by the wall clock beside it.

The clock of a tenure counts the time for which the machine slept. That of a virtual machine which is paused, or moved
to another host, may stand still all the same; the wall clock is set right afterwards. So when the two have moved
against each other, the clock is not believed: `Tenure.distrust` and `Forwards.distrust`. A wall clock that somebody
sets looks the same, and costs the wait for one record.

Law: short times add up. What goes unnoticed is TOLERATED_S at the most since the last time that something was noticed,
so a wall clock that is slewed is noticed now and then, too.

Does not do: reading clocks.
"""

from typing import Final

TOLERATED_S: Final = 0.1


class ClockWatch:
    """Two clocks of one machine, in seconds, from whatever beginning."""

    __slots__ = ("_apart_s",)

    def __init__(self, now_s: float, wall_s: float) -> None:
        self._apart_s = wall_s - now_s

    def differs(self, now_s: float, wall_s: float) -> bool:
        """Whether they have moved against each other since `believe`."""
        return abs(wall_s - now_s - self._apart_s) > TOLERATED_S

    def believe(self, now_s: float, wall_s: float) -> None:
        """What was noticed has been seen to."""
        self._apart_s = wall_s - now_s
