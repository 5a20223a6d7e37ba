# SPDX-License-Identifier: Apache-2.0
"""One lease: the record that the lessor, its expiry queue and the journal share.

Does not do: anything. The rules are in leases.py.
"""

from __future__ import annotations

from typing import Final

NO_KEYS: Final[frozenset[bytes]] = frozenset()  # shared by all leases without keys: a set of its own is most of a lease


class Lease:
    """One lease. Only the lessor changes it."""

    __slots__ = ("batch", "deadline_s", "ended", "id", "keys", "saved_deadline_s", "ttl_s")

    def __init__(self, lease_id: int, ttl_s: int, deadline_s: float, saved_deadline_s: float, batch: int) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s  # granted, whole seconds
        self.deadline_s = deadline_s  # true, on the data clock
        self.saved_deadline_s = saved_deadline_s  # in its newest row
        self.batch = batch  # must be durable before a grant or keepalive reply for this lease may leave
        self.ended = False
        self.keys: set[bytes] | frozenset[bytes] = NO_KEYS
