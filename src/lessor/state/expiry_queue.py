# SPDX-License-Identifier: Apache-2.0
"""The lease that is due next.

Laws
- Each live lease has exactly one entry, and the entry is never later than the lease's true deadline.
- A renewal changes nothing here. It only moves the true deadline later, which keeps the first law.
- There are at most as many entries of ended leases as of live ones, plus a constant.

Theory of operation. A binary heap of (when, tie, lease). An entry that comes due is compared with its lease. If the
lease has ended, the entry is dropped. If the lease was renewed meanwhile, the entry goes back at the true deadline.
Otherwise the lease is due. So a lease that is renewed for a year costs one heap step per TTL, however often it is
renewed in between.

Worked example, TTL 10: granted at 0, entry 10. Renewed at 3, 6 and 9: deadline 19, the entry still says 10. At 10 the
entry comes due, is older than 19 and goes back as 19. No renewal follows: at 19 the lease is due.

Does not do: ending leases, reading clocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace

from lessor.base import limits
from lessor.state.lease import Lease

_STALE_MIN = 1_024  # fewer entries of ended leases are not worth a pass over the heap
_REQUEUE_PER_LEASE = 8  # entries that one call may look at for each lease that it may return


class ExpiryQueue:
    """The deadlines of all live leases."""

    __slots__ = ("_entries", "_stale", "_tie")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Lease]] = []
        self._stale = 0  # entries whose lease has ended
        self._tie = 0  # leases with equal deadlines end in the order of their entries; leases are never compared

    def __len__(self) -> int:
        """The number of entries, those of ended leases included."""
        return len(self._entries)

    def add(self, lease: Lease) -> None:
        """Adds a new lease. Cost: O(log n); O(1) when its deadline is the latest."""
        self._tie += 1
        heappush(self._entries, (lease.deadline_s, self._tie, lease))

    def load(self, leases: Iterable[Lease]) -> None:
        """Adds many leases to an empty queue. Cost: O(n)."""
        self._entries = [(lease.deadline_s, tie, lease) for tie, lease in enumerate(leases)]
        self._tie = len(self._entries)
        heapify(self._entries)

    def ended(self) -> None:
        """Counts a lease that has ended (its `ended` flag is set) while its entry is here. Cost: O(1) amortised."""
        self._stale += 1
        if self._stale > _STALE_MIN and self._stale * 2 > len(self._entries):
            self._entries = [entry for entry in self._entries if not entry[2].ended]
            heapify(self._entries)
            self._stale = 0

    def next_deadline(self) -> float | None:
        """The instant at which to look again: never later than the earliest true deadline; None when no lease lives."""
        entries = self._entries
        while entries:
            when, _, lease = entries[0]
            if not lease.ended:
                return when
            heappop(entries)
            self._stale -= 1
        return None

    def take_due(self, now_s: float, leases_max: int) -> list[Lease]:
        """Removes and returns leases whose deadline has come, earliest deadline first, at most `leases_max`.

        It may return fewer, even none, while more are due: the number of entries that it looks at is bounded too, and
        several leases have WRITE_STEP_KEYS keys together at most, so that no call is long. `next_deadline` is then not
        in the future, so the caller comes back at once.
        """
        entries = self._entries
        due: list[Lease] = []
        budget = leases_max * _REQUEUE_PER_LEASE
        keys_left = limits.WRITE_STEP_KEYS
        while entries and len(due) < leases_max and budget > 0:
            when, _, lease = entries[0]
            if when > now_s:
                break
            budget -= 1
            if lease.ended:
                heappop(entries)
                self._stale -= 1
            elif lease.deadline_s > when:
                # Also when the true deadline has passed: another lease may have been due before it.
                self._tie += 1
                heapreplace(entries, (lease.deadline_s, self._tie, lease))
            else:
                keys_left -= len(lease.keys)
                if keys_left < 0 and due:
                    break
                heappop(entries)
                due.append(lease)
        return due
