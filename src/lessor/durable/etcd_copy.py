# SPDX-License-Identifier: Apache-2.0
"""A data directory that was made out of an etcd's file, and takes in what changes in that etcd since.

Laws
- A change keeps its revision: the directory is at some revision of the etcd, whole, after each `apply`.
- Until `finish` leases are those of the file. Nobody should serve the directory before that.

The caller asks the etcd (cli/migrate.py).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import AlarmRow, AuthRows, Batch, EventRow, LeaseRow

_FLUSH_ROWS: Final = 10_000  # that may wait in memory for the tables


class LiveLease(NamedTuple):
    """A lease as the etcd has it now."""

    id: int
    ttl_s: int
    remaining_s: float


class EtcdCopy:
    """The directory, locked from here to `close`."""

    def __init__(self, data_dir: Path, revision: int) -> None:
        """`revision`: that of the file. Raises DataDirError, EngineError, as everything here does."""
        self.revision = revision
        self.changes = 0  # taken in
        self._sub = 0  # of the next change, at that revision
        self._unflushed = 0
        self._finished = False
        self._engine = FileEngine(data_dir)
        meta = self._engine.open((1, 1))
        self._member_id = meta.member_id
        self._clock_s = meta.clock_s
        self._compact_revision = meta.compact_revision
        self._number = meta.batch
        loaded = self._engine.load()
        self._old_leases = {row[0]: row for row in loaded.leases}
        self._named = set[int]()  # leases that changes since have hung keys on
        self._old_auth = loaded.auth
        self._old_alarms = {kind for _, kind, _ in loaded.alarms}
        self._engine.begin_term(meta.term + 1)

    def apply(self, events: Iterable[mvcc.Event]) -> None:
        """Takes in the next changes, in order. They are on disk when it returns. Nothing after `finish`."""
        if self._finished:
            return
        rows: list[EventRow] = []
        for event in events:
            kv = event.kv
            self._sub = self._sub + 1 if kv.mod_revision == self.revision else 0
            self.revision = kv.mod_revision
            if event.type == mvcc.Event.DELETE:
                rows.append((self.revision, self._sub, kv.key, None, 0, 0, 0))
            else:
                rows.append((self.revision, self._sub, kv.key, kv.value, kv.create_revision, kv.version, kv.lease))
                if kv.lease:
                    self._named.add(kv.lease)
        if not rows:
            return
        self._commit(events=rows)
        self.changes += len(rows)
        self._unflushed += len(rows)
        if self._unflushed >= _FLUSH_ROWS:
            self._engine.flush()
            self._unflushed = 0

    def finish(
        self,
        leases: Sequence[LiveLease],
        alarms: Sequence[int],
        compact_revision: int,
        auth: AuthRows | None = None,
        *,
        moved_on: bool = False,
    ) -> None:
        """Leases, alarms (types) and the compact revision as the etcd has them now. From here on it can be served.

        `auth`: all users and roles, and the switch; None when they are those of the file.

        `moved_on`: whether the etcd was written to while it was asked. Then keys may hang on a lease that is not among
        `leases`. It is due, so that its keys go when the directory is served, and none stays for ever.
        """
        self._finished = True
        live = {lease.id for lease in leases}
        others = {*self._old_leases, *self._named} if moved_on else self._old_leases.keys()
        ended = [(id_, 1, self._clock_s, int(not moved_on)) for id_ in sorted(others - live)]
        rows = [(lease.id, lease.ttl_s, self._clock_s + lease.remaining_s, 0) for lease in leases]
        self._commit(
            leases=[*rows, *ended],
            alarms=[(self._member_id, kind, kind in alarms) for kind in sorted(self._old_alarms | set(alarms))],
            compact_revision=compact_revision if compact_revision > self._compact_revision else None,
            clean=True,
            auth=self._with_deletions(auth) if auth is not None else None,
        )

    def _with_deletions(self, auth: AuthRows) -> AuthRows:
        gone = [(*row[:4], True) for name, row in self._old_auth.users.items() if name not in auth.users]
        gone_roles = [(*row[:2], True) for name, row in self._old_auth.roles.items() if name not in auth.roles]
        return AuthRows([*auth.users.values(), *gone], [*auth.roles.values(), *gone_roles], auth.switch)

    def _commit(
        self,
        *,
        events: Sequence[EventRow] = (),
        leases: Sequence[LeaseRow] = (),
        alarms: Sequence[AlarmRow] = (),
        compact_revision: int | None = None,
        clean: bool = False,
        auth: AuthRows | None = None,
    ) -> None:
        self._number += 1
        batch = Batch(
            self._number,
            self._clock_s,
            events=list(events),
            leases=list(leases),
            alarms=list(alarms),
            compact_revision=compact_revision,
            dead=[],
            leases_touched=[],
            clean=clean,
            auth=auth,
        )
        self._engine.commit(batch)

    def close(self) -> None:
        self._engine.close()
