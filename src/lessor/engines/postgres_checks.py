# SPDX-License-Identifier: Apache-2.0
"""Whether a PostgreSQL server keeps the laws of the shared log: what is asked of it, and what the answers mean.

Laws
- Asked of every connection before anything else is. What an operator can set wrong later, while the connection lasts,
  is looked at in each statement too (postgres_sql.py): the standbys, fsync, whole pages, and the process that serves
  us. How a commit waits, `synchronous_commit`, is set for the session to what was found good, so that nobody changes it
  meanwhile.
- A refusal is one line, and says what to set.
- A server that has been replaced is told by its timeline: each promotion of a standby begins a new one. One with a
  lower number than was seen before shows an old log, however alive it is.

That no commit was lost in a promotion is not judged here. Each append names the newest record's position and chain
value, and is refused by a server that does not have that record (shared_log.py).

Does not do: asking.
"""

from typing import Final, NamedTuple

FACTS: Final = """
SELECT current_setting('server_version_num'), pg_is_in_recovery()::text, current_setting('transaction_read_only'),
       current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
       current_setting('synchronous_standby_names'), pg_backend_pid()::text, current_user::text,
       coalesce((SELECT split_part(name, '.', 1) FROM pg_settings
                 WHERE name LIKE 'neon.%' OR name LIKE 'alloydb.%' LIMIT 1),
                CASE WHEN to_regproc('pg_catalog.aurora_version') IS NOT NULL THEN 'aurora' END, '')
"""
# Apart, because some services do not show it.
IDENTITY: Final = """
SELECT system_identifier::text,
       CASE WHEN pg_is_in_recovery() THEN '0'
            ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END
FROM pg_control_system()
"""
# Of the session, where the server knows them. No search path: nobody's function is called in the place of the server's.
SETTINGS: Final = {
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "search_path": "",
    "jit": "off",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
VERSION_MIN: Final = 130_000
MAY_LOSE: Final = "--engine-may-lose-commits"
POOLER: Final = (
    "a connection pooler hands this session's statements to different server processes: "
    "connect to PostgreSQL itself, or set pool_mode = session"
)
NO_STANDBY: Final = (
    "synchronous_standby_names is empty, so a commit survives the loss of one machine only by luck: name a standby "
    f"there (ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (NAME, NAME)'), or start with {MAY_LOSE}"
)

NO_FSYNC: Final = "fsync is off, so a power cut loses the log: set fsync = on"
NO_WHOLE_PAGES: Final = "full_page_writes is off, so a power cut may tear pages: set full_page_writes = on"


class Facts(NamedTuple):
    """What `FACTS` answers."""

    version: int
    in_recovery: bool
    read_only: bool
    fsync: str
    full_page_writes: str
    synchronous_commit: str
    standbys: str
    backend: int  # the process that serves us
    user: str
    service: str  # one that replicates below PostgreSQL, by its name


class Identity(NamedTuple):
    system: str  # the server's system identifier; "" where it does not show it
    timeline: int  # 0: not known


class Refusal(NamedTuple):
    text: str
    passes: bool  # by itself, when a fail-over is over


def facts_of(row: list[bytes]) -> Facts:
    texts = [value.decode() for value in row]
    version, recovery, read_only, fsync, pages, commit, standbys, backend, user, service = texts
    return Facts(
        int(version), recovery == "true", read_only == "on", fsync, pages, commit, standbys, int(backend), user, service
    )


def refusal(facts: Facts, *, may_lose_commits: bool) -> Refusal | None:
    """Why this server must not be used, or None."""
    if facts.version < VERSION_MIN:
        return Refusal(f"PostgreSQL {facts.version // 10_000} is too old: 13 or newer is needed", False)
    if facts.in_recovery:
        return Refusal(
            "the server is a standby: name the primary, or all hosts (postgres://HOST1,HOST2/...), of which the one "
            "that takes writes is used",
            True,
        )
    if facts.read_only:
        return Refusal("transactions are read-only here: set default_transaction_read_only = off", True)
    if facts.fsync != "on":
        return Refusal(NO_FSYNC, False)
    if facts.full_page_writes != "on":
        return Refusal(NO_WHOLE_PAGES, False)
    if facts.synchronous_commit not in ("on", "remote_apply"):
        return Refusal(
            f"synchronous_commit is {facts.synchronous_commit} for the user {facts.user}, so a commit returns before "
            "it is safe: ALTER ROLE ... SET synchronous_commit = on",
            False,
        )
    if not (facts.standbys or facts.service or may_lose_commits):
        return Refusal(NO_STANDBY, False)
    return None


def warnings(facts: Facts, told_backend: int) -> tuple[str, ...]:
    """What the operator should know of a server that is used. `told_backend`: what the connection was told at first."""
    found = []
    if facts.service and not facts.standbys:
        found.append(f"synchronous_standby_names is empty; {facts.service} is trusted to replicate by itself")
    elif not facts.standbys:
        found.append(
            "synchronous_standby_names is empty: the loss of PostgreSQL's machine may lose what was acknowledged"
        )
    if facts.backend != told_backend:
        found.append("a proxy or pooler stands before PostgreSQL: it has to keep one server process for each session")
    return tuple(found)


def waits_for_standbys(facts: Facts, *, may_lose_commits: bool) -> bool:
    """Whether every statement is to make sure that a standby is still named."""
    return not (facts.service or may_lose_commits)


def changed(state: str, *, strict: bool) -> str:
    """Why a server must not be used any more whose settings have been changed since the connection was made, or "".

    `state`: what a statement has found, as postgres_sql.py puts it. `strict`: whether a standby has to be named.
    """
    found = state.split(",")
    if "fsync" not in found:
        return NO_FSYNC
    if "pages" not in found:
        return NO_WHOLE_PAGES
    return NO_STANDBY if strict and "standbys" not in found else ""


def replaced(seen: Identity, found: Identity) -> str:
    """Why a server is an old one, or "". `seen`: the newest that was met so far."""
    if seen.system and seen.system == found.system and 0 < found.timeline < seen.timeline:
        return (
            f"the server is on timeline {found.timeline}, and timeline {seen.timeline} was seen: it has been replaced"
        )
    return ""
