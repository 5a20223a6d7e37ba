# SPDX-License-Identifier: Apache-2.0
"""The data clock of a primary: it counts the time in which the primary may answer, and no other.

Laws
- It stands still while the tenure is lapsed, and while the node's clock is not believed (R5): no lease ages while no
  client can be answered.
- A lapse is counted when a record lands that ends it, not when somebody asks. So a primary that nobody asks for a long
  time counts all of the time for which its beats have kept it valid.
- It never runs backwards, but for what sums of instants are off.
- A clock and a doubt are never changed, only replaced. So a thread that reads one has all its parts as of one instant.

Theory of operation. The thread that appends replaces the clock, the thread that answers replaces the doubt. Each may
read the other's a moment too early. `from_s` makes that harmless: whatever the doubt says, the reading is not below the
one at which the newest record landed.

Does not do: reading clocks. All instants are of the node's own clock, in seconds.
"""

from typing import Final, NamedTuple, Self

NEVER_S: Final = float("-inf")


class Doubt(NamedTuple):
    """The node's clock may have stood still."""

    stopped_s: float  # since when the served clock stands still: the first doubt since a record has counted
    trusted_s: float  # what was sent up to here counts for nothing


NO_DOUBT: Final = Doubt(NEVER_S, NEVER_S)


class ServedClock(NamedTuple):
    """The clock from when a record that counts has landed until the next one has."""

    sent_s: float  # when the record was sent
    from_s: float  # when it had landed
    until_s: float  # when the tenure lapses
    lapsed_s: float  # for how long the clock has stood still in all, until `from_s`

    @classmethod
    def begun(cls, now_s: float) -> Self:
        """The clock of a tenure that begins now. It stands until a record counts."""
        return cls(NEVER_S, now_s, NEVER_S, 0.0)

    def believed(self, doubt: Doubt) -> bool:
        """Whether the record was sent after the doubt."""
        # What was sent at the same reading of the node's clock may have been sent before that clock stood still.
        return self.sent_s > doubt.trusted_s

    def landed(self, sent_s: float, lease_s: float, now_s: float, doubt: Doubt) -> "ServedClock":
        """A record has landed that lets its node answer for `lease_s` from when it was sent, which may be over."""
        if sent_s <= doubt.trusted_s or sent_s <= self.sent_s:
            return self
        stood_s = now_s - self._counts_until_s(now_s, doubt)
        return ServedClock(sent_s, now_s, sent_s + lease_s, self.lapsed_s + stood_s)

    def ended(self, now_s: float) -> "ServedClock":
        """The tenure is over before its time."""
        return self._replace(until_s=min(self.until_s, now_s))

    def now_s(self, now_s: float, doubt: Doubt) -> float:
        """The reading at this instant. Only differences between readings mean something."""
        return self._counts_until_s(now_s, doubt) - self.lapsed_s

    def _counts_until_s(self, now_s: float, doubt: Doubt) -> float:
        """This instant, or the earlier one at which the clock has stopped. Comparisons: each request asks."""
        sent_s, from_s, until_s, _ = self
        if sent_s <= doubt.trusted_s and doubt.stopped_s < until_s:
            until_s = doubt.stopped_s
        if until_s < now_s:
            now_s = until_s
        return from_s if now_s < from_s else now_s
