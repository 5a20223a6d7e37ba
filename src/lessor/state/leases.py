# SPDX-License-Identifier: Apache-2.0
"""The lessor: leases, their deadlines, and the keys that hang on each lease.

Laws
- A lease lives from `grant` until `end`, whatever its deadline says. A lease that is past its deadline and has not
  ended yet can be renewed, put onto and listed.
- A deadline never moves earlier. A row's deadline is never earlier than a deadline that a client was promised.
- `renew` changes two attributes: no heap step, and a row only when the deadline comes near to the saved one.

Theory of operation. Deadlines are instants on the data clock, which counts the seconds for which this data has been
served, over all restarts; so they mean the same after a restart. A grant saves its exact deadline. The first renewal
passes that deadline. It saves one that is later than the new deadline by RENEW_SLACK of the TTL, so the next renewals
need no row. The row after that is written ahead, by the first renewal whose deadline comes within RENEW_AHEAD of the
TTL of the saved one. So a lease that is renewed at a third of its TTL writes a row for every second renewal, and after
the first renewal none waits for the disk: a disk that stands still for a while takes no lease from a client that
renews. A crash can only lengthen a lease, never end it early.

Worked example, TTL 10, slack 8, ahead 4: granted at 0, saved 10. Renewed at 3: deadline 13 > 10, so a row with 21
is written and the reply waits for it. Renewed at 6: deadline 16, and 16 + 4 <= 21: no row. Renewed at 9: deadline 19,
and 19 + 4 > 21: a row with 27 is written, but the reply leaves at once, because 19 is below the saved 21. After a crash
at 11 the row says 27: more than the promised 19, and replay.py cuts the remaining time to one TTL.

Does not do: deleting keys (machine.py ends a lease and its keys together), reading clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, cast

from lessor.base import errors, limits
from lessor.state.expiry_queue import ExpiryQueue
from lessor.state.journal import Journal, LeaseRow
from lessor.state.lease import NO_KEYS, Lease
from lessor.state.lease_rights import LeaseRights

# Parts of a TTL: how far beyond the deadline a renewal's row promises, and how near to that promise a renewal writes
# the next row. With these, a client that renews at a third of the TTL, or up to a fifteenth of the TTL later, writes a
# row for every second renewal and waits for none.
RENEW_SLACK: Final = 0.8
RENEW_AHEAD: Final = 0.4
ACKNOWLEDGE_S: Final = 0.5  # how much later than its row a promise may end; below what a boot after a crash adds
_ID_MASK: Final = (1 << 63) - 1


class Lessor:
    """All live leases."""

    __slots__ = ("_journal", "_leases", "_next_id", "_queue", "get", "min_ttl_s", "rights")

    def __init__(self, journal: Journal, *, min_ttl_s: int = 1, id_seed: int = 1) -> None:
        """`min_ttl_s`: shorter TTLs are raised to it, seconds. `id_seed`: the first id that the lessor chooses."""
        self._journal = journal
        self._leases: dict[int, Lease] = {}
        self.get: Callable[[int], Lease | None] = self._leases.get  # by its id; None when no such lease lives
        self._queue = ExpiryQueue()
        self._next_id = id_seed & _ID_MASK
        self.min_ttl_s = min_ttl_s
        self.rights = LeaseRights()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        """In no particular order."""
        return iter(self._leases.values())

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._leases

    def grant(self, lease_id: int, ttl_s: int, now_s: float) -> Lease:
        """Makes a lease. `lease_id` 0: the lessor chooses a free positive id. Cost: O(log n) at worst.

        Raises LEASE_TTL_TOO_LARGE above limits.LEASE_TTL_S_MAX, LEASE_EXISTS for an id that lives.
        """
        if ttl_s > limits.LEASE_TTL_S_MAX:
            raise errors.LEASE_TTL_TOO_LARGE.error()
        if lease_id == 0:
            lease_id = self._free_id()
        elif lease_id in self._leases:
            raise errors.LEASE_EXISTS.error()
        if ttl_s < self.min_ttl_s:
            ttl_s = self.min_ttl_s
        deadline_s = now_s + ttl_s
        journal = self._journal
        lease = Lease(lease_id, ttl_s, deadline_s, deadline_s, journal.number)
        self._leases[lease_id] = lease
        self._queue.add(lease)
        journal.lease((lease_id, ttl_s, deadline_s, False), lease)
        return lease

    def _free_id(self) -> int:
        candidate = self._next_id
        while candidate == 0 or candidate in self._leases:
            candidate = (candidate + 1) & _ID_MASK
        self._next_id = (candidate + 1) & _ID_MASK
        return candidate

    def renew(self, lease_id: int, now_s: float) -> Lease | None:
        """Gives the lease its full TTL from now on; returns None when no such lease lives. Cost: O(1).

        The reply may leave when batch `lease.batch` is durable.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            return None
        deadline_s = now_s + lease.ttl_s
        if deadline_s > lease.deadline_s:
            lease.deadline_s = deadline_s
            saved_deadline_s = lease.saved_deadline_s
            if deadline_s + lease.ttl_s * RENEW_AHEAD > saved_deadline_s:
                waits = deadline_s > saved_deadline_s
                self._save(lease, deadline_s + lease.ttl_s * RENEW_SLACK, lease if waits else None)
                if waits:
                    lease.batch = self._journal.number
        return lease

    def _save(self, lease: Lease, saved_deadline_s: float, promised: Lease | None) -> None:
        lease.saved_deadline_s = saved_deadline_s
        self._journal.lease((lease.id, lease.ttl_s, saved_deadline_s, False), promised)

    def end(self, lease: Lease) -> None:
        """Takes a live lease out of the lessor and writes its last row. The caller deletes its keys.

        Of a lease with more than WRITE_STEP_KEYS keys the caller writes the row, by `save_end`, when they are deleted.
        """
        del self._leases[lease.id]
        self.rights.ended(lease)
        lease.ended = True
        self._queue.ended()
        if len(lease.keys) <= limits.WRITE_STEP_KEYS:
            self.save_end(lease)

    def save_end(self, lease: Lease) -> None:
        """Writes the last row of a lease that has ended: in the batch that deletes its keys."""
        self._journal.lease((lease.id, lease.ttl_s, lease.deadline_s, True))

    def revoke(self, lease_id: int) -> Lease:
        """Ends a lease before its time and returns it; the caller deletes its keys, as for `end`.

        Raises LEASE_NOT_FOUND.
        """
        lease = self._leases.get(lease_id)
        if lease is None:
            raise errors.LEASE_NOT_FOUND.error()
        self.end(lease)
        return lease

    def expire(self, now_s: float, leases_max: int) -> list[Lease]:
        """Ends leases that are due, earliest deadline first; the caller deletes their keys, lease by lease.

        `ExpiryQueue.take_due` says how many leases one call ends. One with more than WRITE_STEP_KEYS keys is the only
        one of its call, and the caller writes its row, by `save_end`.
        """
        due = self._queue.take_due(now_s, leases_max)
        leases = self._leases
        journal = self._journal
        rights = self.rights
        for lease in due:
            del leases[lease.id]
            rights.ended(lease)
            lease.ended = True
            if len(lease.keys) <= limits.WRITE_STEP_KEYS:
                journal.lease((lease.id, lease.ttl_s, lease.deadline_s, True))
        return due

    def next_deadline(self) -> float | None:
        """Never later than the earliest true deadline; None when no lease lives."""
        return self._queue.next_deadline()

    def attach(self, lease_id: int, key: bytes) -> None:
        """Hangs a key on a lease. The lease must live, and the key must hang on no other lease. Cost: O(1)."""
        lease = self._leases[lease_id]
        keys = lease.keys
        if isinstance(keys, set):
            keys.add(key)
        else:
            lease.keys = {key}
        rights = self.rights
        if rights.of_leases or rights.of_all is not None:  # nothing is kept until auth is on
            rights.attached(lease, key)

    def detach(self, lease_id: int, key: bytes) -> None:
        """Takes a key off its lease. Does nothing when that lease does not live. Cost: O(1)."""
        lease = self._leases.get(lease_id)
        if lease is not None and isinstance(lease.keys, set):
            lease.keys.discard(key)

    def remaining_s(self, lease: Lease, now_s: float) -> int:
        """Whole seconds until the deadline, cut towards zero; negative when overdue by a second or more."""
        return int(lease.deadline_s - now_s)

    def by_deadline(self) -> list[Lease]:
        """All live leases, soonest deadline first. Cost: O(n log n)."""
        return sorted(self._leases.values(), key=_deadline)

    def acknowledged(self, leases: Iterable[Lease], now_s: float) -> None:
        """Counts the promise of grants and renewals from now on, because their replies leave now."""
        for lease in leases:
            deadline_s = now_s + lease.ttl_s
            if deadline_s > lease.deadline_s:
                lease.deadline_s = deadline_s
                # A slow commit. The boot rules cover a little; for more the row must follow, in the open batch: no
                # reading of the data clock that is later than this commit is saved before it.
                if not lease.ended and deadline_s > lease.saved_deadline_s + ACKNOWLEDGE_S:
                    self._save(lease, deadline_s, None)

    def checkpoint(self) -> None:
        """Writes the exact deadline of each lease whose saved one differs. Cost: O(n)."""
        for lease in self._leases.values():
            if lease.saved_deadline_s != lease.deadline_s:
                self._save(lease, lease.deadline_s, None)

    # --- boot ---------------------------------------------------------------------------------------------------

    def load(self, leases: Iterable[Lease]) -> None:
        """Takes all leases into an empty lessor. Cost: O(n), where n grants would cost n log n."""
        self._leases = {lease.id: lease for lease in leases}
        self.get = self._leases.get
        self._queue.load(self._leases.values())

    def attach_loaded(self, pairs: Iterable[tuple[int, bytes]]) -> None:
        """Hangs each key on the lease beside it, if that lease lives. It may have ended: see mvcc.py."""
        find = self._leases.get
        for lease_id, key in pairs:
            lease = find(lease_id)
            if lease is None:
                continue
            keys = lease.keys
            if keys is NO_KEYS:  # nearly always
                lease.keys = {key}
            else:
                cast(set[bytes], keys).add(key)

    # --- another node's rows: until `promote` nothing is due here, and deadlines are those of the rows -------------

    def follow(self, row: LeaseRow, batch: int) -> None:
        """Takes in the row of a lease that lives. `batch`: the one that it is in. Cost: O(1)."""
        lease_id, ttl_s, deadline_s, _ = row
        ttl_s = max(ttl_s, self.min_ttl_s)
        lease = self._leases.get(lease_id)
        if lease is None:
            self._leases[lease_id] = Lease(lease_id, ttl_s, deadline_s, deadline_s, batch)
        else:
            lease.ttl_s = ttl_s
            lease.deadline_s = lease.saved_deadline_s = deadline_s
            lease.batch = batch

    def follow_end(self, lease_id: int) -> None:
        """Takes in the last row of a lease, whose keys are gone already. Cost: O(1)."""
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self.rights.ended(lease)
            lease.ended = True
            lease.keys = NO_KEYS

    def stand_by(self) -> None:
        """The rows have every deadline, and another node leads: nothing is due here until `promote`."""
        self._queue = ExpiryQueue()

    def promote(self, deadline_of: Callable[[Lease], float]) -> None:
        """Gives every lease the deadline that `deadline_of` says; from here on leases are due. Cost: O(n)."""
        for lease in self._leases.values():
            lease.deadline_s = deadline_of(lease)
        self._queue.load(self._leases.values())


def _deadline(lease: Lease) -> float:
    return lease.deadline_s
