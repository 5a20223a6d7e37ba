# SPDX-License-Identifier: Apache-2.0
"""The data clock of a primary: it counts the time in which the primary may answer, and no other.

Laws
- It never runs backwards, and it goes on at the saved reading when a node becomes primary.
- It stands still while the tenure is lapsed: no lease ages while no client can be answered.

Does not do: reading clocks. `now_s` and `until_s` are of the node's own clock.
"""


class ServedClock:
    """Seconds for which the data has been served."""

    __slots__ = ("_origin_s", "_until_s")

    def __init__(self, clock_s: float, now_s: float, until_s: float) -> None:
        """`clock_s`: the reading to go on from, now. `until_s`: when the tenure lapses."""
        self._origin_s = now_s - clock_s
        self._until_s = max(until_s, now_s)

    def extend(self, now_s: float, until_s: float) -> None:
        """A record has landed: the tenure is valid until `until_s`, which may have passed already."""
        if now_s > self._until_s:
            self._origin_s += now_s - self._until_s
            self._until_s = now_s
        self._until_s = max(self._until_s, until_s)

    def stop(self, now_s: float) -> None:
        """The tenure has lapsed before its time."""
        self._until_s = min(self._until_s, now_s)

    def now_s(self, now_s: float) -> float:
        return min(now_s, self._until_s) - self._origin_s
