# SPDX-License-Identifier: Apache-2.0
"""The journal: changes leave memory as rows, gathered into batches. A batch becomes durable as a whole.

Laws
- Each change of the state writes its rows here in the step that changes memory; nothing else makes rows.
- A batch is numbered when it opens. Numbers grow by one; a batch without rows may be sealed and thrown away.
- Of several rows for one lease or one alarm in a batch only the last is kept, because a batch is applied as a whole.

Theory of operation. There is always one open batch. The state machine adds rows. At the end of a turn the server seals
the batch and hands it to the engine; then the next batch is open. A reply waits until the newest batch with rows is
durable: `newest_with_rows` is its number.

Does not do: I/O, the order of commits, knowing what is durable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from lessor.state.lease import Lease

# revision, sub, key, value (None: a tombstone), create_revision, version, lease
EventRow = tuple[int, int, bytes, bytes | None, int, int, int]
# id, ttl_s, deadline_s (a promise: never earlier than any acknowledged renewal), ended (0 or 1, SQLite's truth value)
LeaseRow = tuple[int, int, float, int]
# member_id, alarm type, active
AlarmRow = tuple[int, int, bool]
# The nonce of the process that has passed a request on, its number there, the reply.
OriginRow = tuple[bytes, int, bytes]
# name, password hash (b"": none), whether the user is meant to have no password, roles, deleted
UserRow = tuple[str, bytes, bool, tuple[str, ...], bool]
# The key that signs tokens stands in the place of a password in this row: no user can have the name.
TOKEN_KEY_NAME: Final = ""
# key, range_end as in requests (b"": one key, b"\0": no upper bound), type (0 read, 1 write, 2 both)
PermissionRow = tuple[bytes, bytes, int]
# name, permissions, deleted
RoleRow = tuple[str, tuple[PermissionRow, ...], bool]


class AuthRows:
    """Users, roles and the switch as rows: those that a batch changes, or all of them."""

    __slots__ = ("roles", "switch", "users")

    def __init__(
        self, users: Iterable[UserRow] = (), roles: Iterable[RoleRow] = (), switch: tuple[bool, int] | None = None
    ) -> None:
        self.users = {row[0]: row for row in users}  # the last row of each user counts
        self.roles = {row[0]: row for row in roles}
        self.switch = switch  # (enabled, revision of the auth data); None when neither changed

    @property
    def row_count(self) -> int:
        return len(self.users) + sum(1 + len(row[1]) for row in self.roles.values()) + (self.switch is not None)


class Rows(Protocol):
    """What a batch changes: one that was sealed here, or one of another node, or one that was read back."""

    @property
    def number(self) -> int: ...
    @property
    def clock_s(self) -> float: ...
    @property
    def events(self) -> list[EventRow]: ...
    @property
    def leases(self) -> list[LeaseRow]: ...
    @property
    def alarms(self) -> list[AlarmRow]: ...
    @property
    def compact_revision(self) -> int | None: ...
    @property
    def auth(self) -> AuthRows | None: ...
    @property
    def peer_urls(self) -> tuple[str, ...] | None: ...
    @property
    def clean(self) -> bool: ...
    @property
    def dead(self) -> Sequence[tuple[int, int]]: ...


class Batch:
    """A sealed set of rows. Read-only from here on."""

    __slots__ = (
        "alarms",
        "auth",
        "clean",
        "clock_s",
        "compact_revision",
        "dead",
        "events",
        "leases",
        "leases_touched",
        "number",
        "origins",
        "peer_urls",
    )

    def __init__(
        self,
        number: int,
        clock_s: float,
        *,
        events: list[EventRow],
        leases: list[LeaseRow],
        alarms: list[AlarmRow],
        compact_revision: int | None,
        dead: list[tuple[int, int]],
        leases_touched: list[Lease],
        clean: bool,
        auth: AuthRows | None = None,
        peer_urls: tuple[str, ...] | None = None,
        origins: Sequence[OriginRow] = (),
    ) -> None:
        self.number = number
        self.origins = origins  # of the requests in it that other servers have passed on; no rows
        # The reading of the data clock that is saved with the batch. With rows it is that of before the first of them,
        # so that no deadline in them stands beside a later clock than that of the call which set it.
        self.clock_s = clock_s
        self.events = events  # ascending by (revision, sub)
        self.leases = leases
        self.alarms = alarms
        self.compact_revision = compact_revision  # the new one; None when there was no compaction in this batch
        self.dead = dead  # (revision, sub) of dead event rows, to be deleted from disk
        self.leases_touched = leases_touched  # live leases that were granted, or renewed with a row, in this batch
        self.auth = auth  # None in nearly every batch
        self.peer_urls = peer_urls  # those that the member was given in this batch; None when it was given none
        self.clean = clean  # the last batch of an orderly stop: all deadlines in the rows are exact

    @property
    def row_count(self) -> int:
        """Rows that a commit has to write. Dead rows are deleted later and do not count."""
        return (
            len(self.events)
            + len(self.leases)
            + len(self.alarms)
            + (self.auth.row_count if self.auth is not None else 0)
            + (1 if self.compact_revision is not None else 0)
            + (1 if self.peer_urls is not None else 0)
            + (1 if self.clean else 0)
        )


class Journal:
    """The open batch."""

    __slots__ = (
        "_alarms",
        "_auth",
        "_clean",
        "_compact_revision",
        "_dead",
        "_leases",
        "_peer_urls",
        "_touched",
        "events",
        "newest_with_rows",
        "number",
        "origins",
    )

    def __init__(self, number: int = 1) -> None:
        """`number`: of the first batch. The data that is on disk already counts as the batch before it."""
        self.number = number
        # The number of the open batch if it has rows, else that of the newest sealed batch with rows.
        self.newest_with_rows = number - 1
        self._open()

    def _open(self) -> None:
        self.events: list[EventRow] = []
        self._leases: dict[int, LeaseRow] = {}
        self._touched: dict[int, Lease] = {}
        self._alarms: dict[tuple[int, int], AlarmRow] = {}
        self._auth: AuthRows | None = None
        self._peer_urls: tuple[str, ...] | None = None
        self._compact_revision: int | None = None
        self._dead: list[tuple[int, int]] = []
        self._clean = False
        self.origins: list[OriginRow] = []

    @property
    def row_count(self) -> int:
        """Rows in the open batch, counted as `Batch.row_count` does."""
        return (
            len(self.events)
            + len(self._leases)
            + len(self._alarms)
            + (self._auth.row_count if self._auth is not None else 0)
            + (1 if self._compact_revision is not None else 0)
            + (1 if self._peer_urls is not None else 0)
            + (1 if self._clean else 0)
        )

    @property
    def has_rows(self) -> bool:
        """Whether the open batch has rows. O(1), and cheaper than `row_count`."""
        return self.newest_with_rows == self.number

    def event(self, row: EventRow) -> None:
        """Adds the row of a change of one key. Rows come in ascending (revision, sub)."""
        self.events.append(row)
        self.newest_with_rows = self.number

    def add_events(self, rows: list[EventRow]) -> None:
        """Adds all rows of a write that was made in steps. There must be some."""
        self.events += rows
        self.newest_with_rows = self.number

    def lease(self, row: LeaseRow, granted_or_renewed: Lease | None = None) -> None:
        """Adds a lease's row, in place of an earlier row of the same lease in this batch.

        `granted_or_renewed`: the lease, when a reply that waits for this row promises the full TTL.
        """
        lease_id = row[0]
        self._leases[lease_id] = row
        if granted_or_renewed is not None:
            self._touched[lease_id] = granted_or_renewed
        elif row[3]:
            self._touched.pop(lease_id, None)
        self.newest_with_rows = self.number

    def alarm(self, row: AlarmRow) -> None:
        """Adds the state of one member's alarm."""
        self._alarms[row[0], row[1]] = row
        self.newest_with_rows = self.number

    def auth(self, rows: AuthRows) -> None:
        """Adds changed users, roles or the switch, in place of earlier rows of the same ones in this batch."""
        gathered = self._auth
        if gathered is None:
            self._auth = rows
        else:
            gathered.users |= rows.users
            gathered.roles |= rows.roles
            gathered.switch = rows.switch or gathered.switch
        self.newest_with_rows = self.number

    def peer_urls(self, urls: tuple[str, ...]) -> None:
        """Adds the URLs at which peers find the member, in place of earlier ones in this batch."""
        self._peer_urls = urls
        self.newest_with_rows = self.number

    def compact(self, revision: int, dead: list[tuple[int, int]]) -> None:
        """Adds a compaction, and names the event rows that are dead by it."""
        self._compact_revision = revision
        self._dead += dead
        self.newest_with_rows = self.number

    def origin(self, nonce: bytes, counter: int, reply: bytes) -> None:
        """Notes that a request took effect in the open batch which the process with that nonce has passed on.

        `reply`: as its client is to get it. Does nothing while the batch has no rows: then the request had no effect.
        """
        if self.has_rows:
            self.origins.append((nonce, counter, reply))

    def note_dead(self, dead: list[tuple[int, int]]) -> None:
        """Names event rows that are dead by an earlier compaction and still on disk."""
        self._dead += dead

    def take_dead(self) -> list[tuple[int, int]]:
        """The dead rows that the open batch names; it names them no more.

        For a machine that follows, which seals no batch: its engine deletes them (`Engine.name_dead`).
        """
        dead, self._dead = self._dead, []
        return dead

    @property
    def names_dead(self) -> bool:
        """Whether the open batch names dead rows. They are no rows of the batch; it may be sealed for them alone."""
        return bool(self._dead)

    def mark_clean(self) -> None:
        """Marks the open batch as the last one of an orderly stop."""
        self._clean = True
        self.newest_with_rows = self.number

    def follow(self, batch: int) -> None:
        """Another node's batch was applied, without rows here: the open batch is the one after it."""
        assert not self.row_count, "a follower makes no rows"
        self.number = batch + 1
        self.newest_with_rows = batch

    def seal(self, clock_s: float) -> Batch:
        """Closes the open batch and opens the next.

        `clock_s`: the reading of the data clock that is saved with it. With rows that is the one of before the first of
        them (turn.py has the reason); without rows, and at a clean stop, the present one.
        """
        batch = Batch(
            self.number,
            clock_s,
            events=self.events,
            leases=list(self._leases.values()),
            alarms=list(self._alarms.values()),
            compact_revision=self._compact_revision,
            dead=self._dead,
            leases_touched=list(self._touched.values()),
            clean=self._clean,
            auth=self._auth,
            peer_urls=self._peer_urls,
            origins=self.origins,
        )
        self.number += 1
        self._open()
        return batch


class OpenWrite(Journal):
    """Stands in for the store's journal while a write is made in steps: `events` are its rows, until all are there."""

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.number)
        self._journal = journal

    def event(self, row: EventRow) -> None:
        self.events.append(row)

    def note_dead(self, dead: list[tuple[int, int]]) -> None:
        """Of an earlier compaction, which the end of a long read lets go on."""
        self._journal.note_dead(dead)
