# SPDX-License-Identifier: Apache-2.0
"""The users that may write all keys on a lease, remembered: with many keys a look at each, at each renewal, is long.

Laws
- `may_write` answers as a look at every key would.
- A verdict counts for one lease, one user and one revision of the auth data. It goes with the lease.
- Memory: for a lease, the keys hung on it since the record began, which are at most as many as it has (or
  LEASE_RIGHTS_ADDED_KEYS_MIN), and LEASE_RIGHTS_USERS_MAX users. A record is begun only while auth is
  on, for a lease with many keys.

Theory of operation. A user who may write all keys may write those that are left when one goes. So only the keys that
came since the user's last check have to be looked at: a record keeps these in order, and for each user how many of them
were checked. A user who may not write some key is refused for as long as that key hangs on the lease.

Cost: O(1) a request, beside one look at each key for each user, and one look for each user at each key that comes.
"""

from __future__ import annotations

from lessor.base import limits
from lessor.state.auth import Spans
from lessor.state.lease import Lease


class _Record:
    """What is known of one lease."""

    __slots__ = ("added", "checked", "refused", "revision")

    def __init__(self, revision: int) -> None:
        self.revision = revision  # of the auth data
        self.added: list[bytes] = []  # keys that came since the record began; some may have gone again
        self.checked: dict[str, int] = {}  # user -> so many of `added`, and all keys before, may be written
        self.refused: dict[str, bytes] = {}  # user -> a key that may not


class LeaseRights:
    """What is known of all leases."""

    __slots__ = ("_records",)

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    def __len__(self) -> int:
        """The number of leases with a record. Zero until auth is on: hanging a key on a lease costs no more."""
        return len(self._records)

    def attached(self, lease: Lease, key: bytes) -> None:
        """A key was hung on the lease."""
        record = self._records.get(lease.id)
        if record is not None:
            record.added.append(key)
            if len(record.added) > max(limits.LEASE_RIGHTS_ADDED_KEYS_MIN, len(lease.keys)):
                del self._records[lease.id]

    def ended(self, lease: Lease) -> None:
        self._records.pop(lease.id, None)

    def may_write(self, lease: Lease, user: str, revision: int, writable: Spans) -> bool:
        """Whether all keys of a live lease are in `writable`: those that the user may write at that auth revision."""
        keys = lease.keys
        if len(keys) <= limits.LEASE_RIGHTS_KEYS_MIN:
            return _first_beyond(keys, writable) is None
        record = self._records.get(lease.id)
        if record is None or record.revision != revision:
            record = self._records[lease.id] = _Record(revision)
        refused = record.refused.get(user)
        if refused is not None:
            if refused in keys:
                return False
            del record.refused[user]
        checked = record.checked.get(user)
        if checked is None:
            if len(record.checked) + len(record.refused) >= limits.LEASE_RIGHTS_USERS_MAX:
                record.checked.clear()
                record.refused.clear()
            beyond = writable.first_beyond((keys,))
            if beyond is not None:
                record.refused[user] = beyond
                return False
        else:
            added = record.added
            for index in range(checked, len(added)):
                key = added[index]
                if key in keys and not writable.cover(key, b""):
                    record.checked[user] = index
                    record.refused[user] = key
                    return False
        record.checked[user] = len(record.added)
        return True


def _first_beyond(keys: set[bytes] | frozenset[bytes], writable: Spans) -> bytes | None:
    """`first_beyond` of few keys."""
    for key in keys:
        if not writable.cover(key, b""):
            return key
    return None
