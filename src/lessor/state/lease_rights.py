# SPDX-License-Identifier: Apache-2.0
"""The users that may write or read all keys on a lease, remembered: with many keys a look at each is long.

Laws
- `may_write`, `may_read` and `may_read_all` answer as a look at every key would.
- A verdict counts for one lease, or for all leases together, for one user and one revision of the auth data. That on
  one lease goes with the lease.
- Memory: for a lease, and for all together, the keys hung on since the record began, which are at most as many as there
  are (or LEASE_RIGHTS_ADDED_KEYS_MIN), and LEASE_RIGHTS_USERS_MAX users, each with LEASE_RIGHTS_REFUSED_KEYS_MAX keys
  at most. A record is begun only while auth is on, and only where there are many keys.

Theory of operation. A user who may write all keys may write those that are left when one goes. So only the keys that
came since the user's last check have to be looked at: a record keeps these in order, and for each user how many of them
were checked. A user who may not write some key is refused for as long as that key hangs there; all such keys are noted,
so that one after another may go without a new look at the others. Reading is the same.

Cost: O(1) a request, beside one look at each key for each user, and one look for each user at each key that comes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from collections.abc import Set as AbstractSet

from lessor.base import limits
from lessor.state.auth import Spans
from lessor.state.lease import Lease


class _Verdicts:
    """On one kind of right to the keys of one record."""

    __slots__ = ("checked", "refused")

    def __init__(self) -> None:
        self.checked: dict[str, int] = {}  # user -> so many keys that came, and all keys before, may be used
        self.refused: dict[str, list[bytes]] = {}  # user -> keys that may not, at least one; some may have gone

    def known(self, user: str, added: list[bytes], keys: Container[bytes], allowed: Spans) -> bool | None:
        """The verdict; None: every key has to be looked at, which `learn` does. `keys`: those that hang there."""
        if self.refused:
            refused = self.refused.get(user)
            if refused is not None:
                while refused:
                    if refused[-1] in keys:
                        return False
                    refused.pop()
                del self.refused[user]
        checked = self.checked.get(user)
        if checked is None:
            return None
        if checked == len(added):
            return True
        for index in range(checked, len(added)):
            key = added[index]
            if key in keys and not allowed.cover(key, b""):
                self.checked[user] = index
                self.refused[user] = [key]
                return False
        self.checked[user] = len(added)
        return True

    def learn(self, user: str, added: list[bytes], sets: Sequence[AbstractSet[bytes]], allowed: Spans) -> bool:
        """Looks at every key, which `sets` have; returns the verdict."""
        beyond = _beyond(sets, allowed)
        if len(self.checked) + len(self.refused) >= limits.LEASE_RIGHTS_USERS_MAX:
            self.checked.clear()
            self.refused.clear()
        if beyond:
            self.refused[user] = beyond
        if len(beyond) < limits.LEASE_RIGHTS_REFUSED_KEYS_MAX:  # these are all: when they go, the others are known
            self.checked[user] = len(added)
        return not beyond


class _Record(_Verdicts):
    """What is known of one lease, or of all together; the verdicts are on writing, for all together on reading."""

    __slots__ = ("added", "reading", "revision", "size")

    def __init__(self, revision: int, size: int) -> None:
        super().__init__()
        self.revision = revision  # of the auth data
        self.added: list[bytes] = []  # keys that came since the record began; some may have gone again
        self.size = size  # keys at its beginning; what bounds the record of all leases
        self.reading: _Verdicts | None = None


class LeaseRights:
    """What is known of all leases."""

    __slots__ = ("of_all", "of_leases")

    def __init__(self) -> None:
        # Without a record of either kind, as long as auth is off, `attached` need not be called: a key costs no more.
        self.of_leases: dict[int, _Record] = {}  # by id
        self.of_all: _Record | None = None

    def attached(self, lease: Lease, key: bytes) -> None:
        """A key was hung on the lease."""
        record = self.of_leases.get(lease.id)
        if record is not None:
            record.added.append(key)
            if len(record.added) > max(limits.LEASE_RIGHTS_ADDED_KEYS_MIN, len(lease.keys)):
                del self.of_leases[lease.id]
        record = self.of_all
        if record is not None:
            record.added.append(key)
            if len(record.added) > max(limits.LEASE_RIGHTS_ADDED_KEYS_MIN, record.size):
                self.of_all = None

    def ended(self, lease: Lease) -> None:
        self.of_leases.pop(lease.id, None)

    def may_write(self, lease: Lease, user: str, revision: int, writable: Spans) -> bool:
        """Whether all keys of a live lease are in `writable`: those that the user may write at that auth revision."""
        keys = lease.keys
        if len(keys) <= limits.LEASE_RIGHTS_KEYS_MIN:
            return _first_beyond(keys, writable) is None
        record = self._record(lease, revision)
        known = record.known(user, record.added, keys, writable)
        return known if known is not None else record.learn(user, record.added, (keys,), writable)

    def may_read(self, lease: Lease, user: str, revision: int, readable: Spans) -> bool:
        """The same for reading. The lease must have keys."""
        keys = lease.keys
        if len(keys) <= limits.LEASE_RIGHTS_READ_KEYS_MIN:
            return readable.first_beyond((keys,)) is None
        record = self._record(lease, revision)
        reading = record.reading
        if reading is None:
            reading = record.reading = _Verdicts()
        known = reading.known(user, record.added, keys, readable)
        return known if known is not None else reading.learn(user, record.added, (keys,), readable)

    def _record(self, lease: Lease, revision: int) -> _Record:
        record = self.of_leases.get(lease.id)
        if record is None or record.revision != revision:
            record = self.of_leases[lease.id] = _Record(revision, len(lease.keys))
        return record

    def may_read_all(
        self, leases: Iterable[Lease], hanging: Container[bytes], user: str, revision: int, readable: Spans
    ) -> bool:
        """The same for all `leases`, which live. `hanging`: all keys that hang on one."""
        record = self.of_all
        if record is not None and record.revision == revision:
            known = record.known(user, record.added, hanging, readable)
            if known is not None:
                return known
        else:
            record = None
        sets = [lease.keys for lease in leases if lease.keys]
        if record is None:
            size = sum(map(len, sets))
            if size <= limits.LEASE_RIGHTS_READ_KEYS_MIN:
                return readable.first_beyond(sets) is None
            record = self.of_all = _Record(revision, size)
        return record.learn(user, record.added, sets, readable)


def _beyond(sets: Sequence[AbstractSet[bytes]], allowed: Spans) -> list[bytes]:
    """The keys in `sets` that are not in `allowed`, LEASE_RIGHTS_REFUSED_KEYS_MAX at most. No set may be empty."""
    found: list[bytes] = []
    if allowed.first_beyond(sets) is not None:
        for keys in sets:
            for key in keys:
                if not allowed.cover(key, b""):
                    found.append(key)
                    if len(found) == limits.LEASE_RIGHTS_REFUSED_KEYS_MAX:
                        return found
    return found


def _first_beyond(keys: set[bytes] | frozenset[bytes], writable: Spans) -> bytes | None:
    """`first_beyond` of few keys."""
    for key in keys:
        if not writable.cover(key, b""):
            return key
    return None
