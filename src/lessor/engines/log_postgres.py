# SPDX-License-Identifier: Apache-2.0
"""The shared log in a PostgreSQL database.

Laws: those of shared_log.py. How they are kept here
- E1: an append inserts a record behind the one whose position and chain value it names, in one statement, and not
  where another stands (postgres_sql.py).
- E2: a commit returns when its standbys have it. The server is refused where it would return before
  (postgres_checks.py), at each connection; and in each statement, as far as settings may change meanwhile. A commit
  whose wait was broken off, by an operator or a shutdown, is visible and not safe: its append is UnknownError.
- E3: each read commits something after it has looked. So what it shows is as safe as that commit, and the server was
  not replaced before it looked. A server without its standby answers no read, like no append.

After a fail-over nothing has to be compared first: each append names the record that it knows, and a server that lost
it refuses. A server that was replaced, and does not know it, is told by its timeline; the next host is tried then.

Theory of operation. One connection, made when a call needs one. An answer that does not come in time ends it. What was
under way goes on at the server, and its locks hold up the next try there: so a server without its standby is not
filled with waiting processes. Nothing is cancelled, and no process is ended by us: that would make unsafe commits
visible.

Cost: one round trip and one commit a call, two round trips for `read`; `trim`, `put_snapshot` and the iterators of
snapshots make one for each step.

Does not do: waiting for a server that is not there, trying again, knowing what records say.
"""

import struct
from collections.abc import Iterator
from typing import Final

from lessor.base.clock import Clock, MonotonicClock
from lessor.base.limits import BATCH_BYTES_MAX, ENGINE_ANSWER_S_MAX
from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import (
    Found,
    Info,
    LogRefusedError,
    TakenError,
    TrimmedError,
    UnknownError,
    UnreachableError,
)
from lessor.engines import postgres_checks as checks
from lessor.engines import postgres_sql as sql
from lessor.engines.cut import cut
from lessor.engines.postgres_checks import POOLER, Facts, Identity
from lessor.engines.postgres_session import Answer, LostError, ServerError, Session
from lessor.engines.postgres_url import Address

_INT8: Final = struct.Struct(">q")
_INT4: Final = struct.Struct(">i")
_BEHIND_ALL: Final = 2**62  # a position
_READ_ONLY: Final = "25006"  # SQLSTATE: a primary that became a standby under us
_GONE: Final = ("42P01", "3F000")  # a table, or the schema
_POOLED: Final = ("26000", "42P05")  # a prepared statement that another process has, or has not
# What goes on until a person acts: rights, missing tables, what a server cannot do, limits of its program.
_LASTING: Final = ("42", "3F", "0A", "28", "3D", "54")


class PostgresLog:
    """Implements `SharedLog`. Blocks; one call at a time from one thread."""

    def __init__(
        self,
        url: str,
        *,
        may_lose_commits: bool = False,
        answer_s: float = ENGINE_ANSWER_S_MAX,
        clock: Clock | None = None,
    ) -> None:
        """url: postgres://USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE..., names as in libpq, and `schema`.

        may_lose_commits: a server without a synchronous standby is used, with a warning. answer_s: how long an answer
        may take. Connects to nothing yet. Raises LogRefusedError when the URL is wrong.
        """
        self._address = Address(url)
        self._may_lose_commits = may_lose_commits
        self._answer_s = answer_s
        self._clock = clock or MonotonicClock()
        self._statements = sql.statements(self._address.schema)
        self._session: Session | None = None
        self._at = 0  # of the hosts, the one that served last
        self._closed = False
        self._cluster_id = 0  # once it is known
        self._identity = Identity("", 0)  # the newest that was met
        # Of the session:
        self._backend = b""
        self._strict = b""
        self._warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<PostgresLog {self._address.shown}>"

    # --- the protocol ---------------------------------------------------------------------------------------------

    def open(self, new_cluster_id: int) -> Info:
        has_schema, has_log, unlogged = self._call("EXISTS").rows[0]
        if unlogged:
            raise self._refused(f"a crash would empty the tables {unlogged.decode()}: ALTER TABLE ... SET LOGGED")
        if has_log == b"\0":
            self._create(new_cluster_id, with_schema=has_schema == b"\0")
        form, cluster_id = self._head()
        self._read_rows(_BEHIND_ALL, 1)  # so the id, too, is one that stays
        self._cluster_id = cluster_id
        return Info(cluster_id, form, self._warnings)

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        try:
            session = self._connected()
            answer = session.ask(
                "APPEND", _INT8.pack(expect), chain, data, data[-CHAIN_BYTES:], self._backend, self._strict
            )
        except (LostError, UnreachableError) as error:
            raise UnknownError(self._named(str(error))) from None
        except ServerError as error:
            raise self._judged(error) or UnknownError(self._named(str(error))) from None
        added = answer.rows[0][2]
        self._check(answer.rows[0])
        if answer.unsafe:
            raise UnknownError(self._named(answer.unsafe))
        if _INT8.unpack(added)[0] != 1:
            raise TakenError(f"the newest record is not the one at position {expect} that was named")

    def read(self, after: int, bytes_max: int) -> Found:
        rows = self._read_rows(after, bytes_max)
        last, first = (_INT8.unpack(value)[0] for value in rows[0][2:4])
        if after + 1 < first:
            raise TrimmedError(first)
        if after >= last:
            return Found([], last)
        for position, row in enumerate(rows, after + 1):
            if _INT8.unpack(row[4])[0] != position:
                raise self._refused(f"the log is damaged: record {position} of {last} is not there")
        return Found([row[5] for row in rows], last)

    def put_snapshot(self, position: int, pieces: Iterator[bytes]) -> None:
        newest = self._call("SNAPSHOT_NEWEST").rows
        if newest and _INT8.unpack(newest[0][1])[0] >= position:
            return
        snapshot = self._call("SNAPSHOT_BEGIN", _INT8.pack(position)).rows[0][0]
        count = size = 0
        for count, piece in enumerate(cut(pieces), 1):
            self._call("SNAPSHOT_PIECE", snapshot, _INT8.pack(count), piece)
            size += len(piece)
        if not self._call("SNAPSHOT_END", snapshot, _INT8.pack(count), _INT8.pack(size)).rows:
            raise UnreachableError("the snapshot is not whole: another node has left one meanwhile")
        for (old,) in self._call("SNAPSHOTS_OLD").rows:
            while _INT8.unpack(self._call("PIECES_DELETE", old).rows[0][0])[0]:
                pass
            self._call("SNAPSHOT_DELETE", old)

    def newest_snapshot(self) -> tuple[int, Iterator[bytes]] | None:
        rows = self._call("SNAPSHOT_NEWEST").rows
        if not rows:
            return None
        snapshot, position, count = rows[0]
        return _INT8.unpack(position)[0], self._pieces(snapshot, _INT8.unpack(count)[0])

    def _pieces(self, snapshot: bytes, count: int) -> Iterator[bytes]:
        for number in range(1, count + 1):
            rows = self._call("PIECE_READ", snapshot, _INT8.pack(number)).rows
            if not rows:
                raise UnreachableError("the snapshot was forgotten while it was read: there is a newer one")
            yield rows[0][0]

    def trim(self, before: int) -> None:
        first = self._call("TRIM", _INT8.pack(before)).rows[0][0]
        done = _INT8.pack(-1)
        while True:
            done = self._call("TRIM_STEP", done, first).rows[0][0]
            if _INT8.unpack(done)[0] < 0:
                return

    def size_bytes(self) -> int:
        return int(_INT8.unpack(self._call("SIZE").rows[0][0])[0])

    def close(self) -> None:
        self._closed = True
        self._leave()

    # --- one call -------------------------------------------------------------------------------------------------

    def _call(self, name: str, *params: bytes, answer_bytes: int = 0) -> Answer:
        """Raises UnreachableError, LogRefusedError."""
        try:
            answer = self._connected().ask(name, *params, answer_bytes=answer_bytes)
        except LostError as error:
            raise UnreachableError(self._named(str(error))) from None
        except ServerError as error:
            raise self._judged(error) or UnreachableError(self._named(str(error))) from None
        if answer.unsafe:
            raise UnreachableError(self._named(answer.unsafe))
        return answer

    def _read_rows(self, after: int, bytes_max: int) -> list[list[bytes]]:
        # One record may be more than was asked for.
        answer_bytes = max(bytes_max, BATCH_BYTES_MAX)
        rows = self._call("READ", _INT8.pack(after), _INT8.pack(bytes_max), answer_bytes=answer_bytes).rows
        if not rows:
            raise self._refused("the log is damaged: one of its tables has lost its row")
        self._check(rows[0])
        looked = self._backend
        sure = self._call("SURE").rows[0]
        if looked != self._backend:
            raise UnreachableError(self._named("the connection was lost while the log was read"))
        self._check(sure)
        return rows

    def _check(self, row: list[bytes]) -> None:
        """Whether a statement was done by the process, and under the settings, that were checked.

        If not, it has appended nothing.
        """
        backend, state = row[:2]
        if backend != self._backend:
            self._leave()
            raise self._refused(POOLER)
        text = checks.changed(state.decode(), strict=self._strict == b"\1")
        if text:
            self._leave()
            raise self._refused(text)

    def _judged(self, error: ServerError) -> LogRefusedError | None:
        if error.code == _READ_ONLY:
            self._leave()
            return None
        if error.code in _POOLED:
            self._leave()
            return self._refused(POOLER)
        if error.code in _GONE:
            return self._refused(f"the tables of the log are gone ({error}): restore the database")
        return self._refused(str(error)) if error.code.startswith(_LASTING) else None

    def _refused(self, text: str) -> LogRefusedError:
        return LogRefusedError(self._named(text))

    def _named(self, text: str) -> str:
        start = f"PostgreSQL {self._address.shown}: "
        return text if text.startswith(start) else start + text

    # --- connections ----------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _connected(self) -> Session:
        """Raises UnreachableError, LogRefusedError."""
        session = self._session
        if session is not None and not session.closed:
            return session
        if self._closed:
            raise UnreachableError("the log was closed")
        hosts = self._address.hosts
        errors: list[LogRefusedError | UnreachableError] = []
        for at in range(self._at, self._at + len(hosts)):  # the one that served last comes first
            try:
                self._session = self._connect(hosts[at % len(hosts)])
            except (LogRefusedError, UnreachableError) as error:
                errors.append(error)
            else:
                self._at = at % len(hosts)
                return self._session
        text = self._named("; ".join(map(str, errors)))
        if any(isinstance(error, LogRefusedError) for error in errors):
            raise LogRefusedError(text)
        raise UnreachableError(text)

    def _connect(self, host: str) -> Session:
        """Raises UnreachableError, LogRefusedError."""
        session = Session(self._address, host, self._statements, self._answer_s, self._clock)
        try:
            facts = checks.facts_of(session.look(checks.FACTS)[0])
            if facts.backend != session.backend and self._shared(host, facts):
                raise LogRefusedError(POOLER)
            self._examine(session, facts)
        except LostError as error:
            raise UnreachableError(str(error)) from None
        except ServerError as error:
            session.close()
            raise self._judged(error) or UnreachableError(str(error)) from None
        except BaseException:
            session.close()
            raise
        return session

    def _shared(self, host: str, facts: Facts) -> bool:
        """Whether a second session is served by the process of the first one, while both last: a pooler does that."""
        second = Session(self._address, host, self._statements, self._answer_s, self._clock)
        try:
            return checks.facts_of(second.look(checks.FACTS)[0]).backend == facts.backend
        finally:
            second.close()

    def _examine(self, session: Session, facts: Facts) -> None:
        refusal = checks.refusal(facts, may_lose_commits=self._may_lose_commits)
        if refusal is not None:
            if refusal.passes and (self._cluster_id or len(self._address.hosts) > 1):  # a fail-over may be under way
                raise UnreachableError(refusal.text)
            raise LogRefusedError(refusal.text)
        # Who waits for a lock is to hear of it before the answer is given up: nobody waits at the server for nothing.
        own = {"lock_timeout": str(int(self._answer_s * 750)), "synchronous_commit": facts.synchronous_commit}
        session.look(sql.settings({**checks.SETTINGS, **own}))
        self._meet(session)
        if self._cluster_id:
            found = session.ask("HEAD").rows
            if [row[1] for row in found] != [str(self._cluster_id).encode()]:
                raise LogRefusedError(f"this is not the log of the cluster {self._cluster_id} any more")
        self._use(facts, session)

    def _meet(self, session: Session) -> None:
        try:
            system, timeline = session.look(checks.IDENTITY)[0]
        except ServerError:  # not shown here
            return
        found = Identity(system.decode(), int(timeline, 16))
        replaced = checks.replaced(self._identity, found)
        if replaced:
            raise UnreachableError(replaced)
        self._identity = found

    def _use(self, facts: Facts, session: Session) -> None:
        self._backend = _INT4.pack(facts.backend)
        strict = checks.waits_for_standbys(facts, may_lose_commits=self._may_lose_commits)
        self._strict = b"\1" if strict else b"\0"
        self._warnings = checks.warnings(facts, session.backend)

    # --- creation -------------------------------------------------------------------------------------------------

    def _create(self, cluster_id: int, *, with_schema: bool) -> None:
        schema = self._address.schema
        try:
            self._connected().script(sql.tables(schema, cluster_id, CHAIN_BYTES, with_schema=with_schema))
        except LostError as error:
            raise UnreachableError(self._named(str(error))) from None
        except ServerError as error:
            if error.code == "42501":
                raise self._refused(
                    f"{error}: let somebody who may create it run CREATE SCHEMA {schema} AUTHORIZATION of this user"
                ) from None
            raise self._judged(error) or UnreachableError(self._named(str(error))) from None

    def _head(self) -> tuple[int, int]:
        rows = self._call("HEAD").rows
        if not rows:
            raise self._refused("the log is damaged: the table head has lost its row")
        form, cluster_id = (int(value) for value in rows[0])
        if form != sql.FORMAT:
            raise self._refused(
                f"the schema {self._address.schema} holds a log of format {form}; this Lessor knows {sql.FORMAT}"
            )
        return form, cluster_id
