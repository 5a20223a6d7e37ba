# SPDX-License-Identifier: Apache-2.0
"""The tables, as numbered migrations, and the statements that change many rows of them.

Laws
- A migration that was released is never edited: a change of the tables is a new one at the end of `MIGRATIONS`.
- The schema version is the number of migrations that ran. It is kept in `meta`, whose own form (name, value) never
  changes, so that every version can read every other's number.
- The tables are meant to be read by people with the `sqlite3` shell: names are words, ids that need 64 unsigned bits
  are hexadecimal text, the notes stand inside the CREATE statements so that `.schema` shows them.

A worked example. Lease 7 (TTL 60 s) is granted, key `a` is put on it, lease 7 is revoked. The rows are

    lease   id 7, ttl_s 60, deadline_s 1060.0, ended 0, batch 1          then the same row: ended 1, batch 3
    event   revision 2, sub 0, key a, value 1,    create_revision 2, version 1, lease 7, batch 2
    event   revision 3, sub 0, key a, value NULL, create_revision 0, version 0, lease 0, batch 3

and a compaction at revision 3 leaves both events and the ended lease dead.

There is no index beyond the primary keys: rows are read once, in primary key order, at boot.

`event` is a table with row ids because of the room that values take. In a table without them a row may take a quarter
of a page: all above that goes to pages of its own, and a value of 1,000 bytes takes more than 4,096.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain

APPLICATION_ID = 0x4C657373  # "Less": `file lessor.db` and our own check tell this file from other SQLite files

_FIRST = """
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,  -- what the whole data has once; cluster_id and member_id are hexadecimal
    value                    -- uptime_s: seconds that this data was served, the clock that deadlines are on
) WITHOUT ROWID;

CREATE TABLE event (         -- one change of one key
    revision        INTEGER NOT NULL,  -- of the transaction
    sub             INTEGER NOT NULL,  -- counts the changes inside the transaction, from 0
    key             BLOB NOT NULL,
    value           BLOB,              -- NULL: the key was deleted
    create_revision INTEGER NOT NULL,
    version         INTEGER NOT NULL,
    lease           INTEGER NOT NULL,  -- 0: none
    batch           INTEGER NOT NULL,  -- that wrote the row
    PRIMARY KEY (revision, sub)
) WITHOUT ROWID;

CREATE TABLE lease (
    id         INTEGER PRIMARY KEY,
    ttl_s      INTEGER NOT NULL,
    deadline_s REAL NOT NULL,     -- on the clock of meta.uptime_s; not before the true deadline
    ended      INTEGER NOT NULL,  -- 1: expired or revoked; the row stays until a compaction
    batch      INTEGER NOT NULL   -- that wrote the row
);

CREATE TABLE alarm (
    member_id TEXT NOT NULL,     -- hexadecimal
    type      INTEGER NOT NULL,  -- 1: no space, 2: corrupt
    active    INTEGER NOT NULL,
    batch     INTEGER NOT NULL,  -- that wrote the row
    PRIMARY KEY (member_id, type)
) WITHOUT ROWID;

CREATE VIEW current_keys AS      -- what a range over all keys answers
    SELECT CAST(key AS TEXT) AS key, CAST(value AS TEXT) AS value, create_revision, revision AS mod_revision, version,
           CASE lease WHEN 0 THEN '' ELSE printf('%016x', lease) END AS lease
      FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY revision DESC, sub DESC) AS newest FROM event)
     WHERE newest = 1 AND value IS NOT NULL
     ORDER BY 1;

CREATE VIEW live_leases AS       -- id as etcdctl prints it; the true remaining time may be shorter, never longer
    SELECT printf('%016x', id) AS lease, ttl_s,
           round(deadline_s - (SELECT value FROM meta WHERE name = 'uptime_s'), 3) AS remaining_s
      FROM lease
     WHERE NOT ended
     ORDER BY deadline_s;
"""

_AUTH = """
CREATE TABLE auth_user (
    name        TEXT PRIMARY KEY,
    password    BLOB NOT NULL,     -- its bcrypt hash; empty: no password opens the door
    no_password INTEGER NOT NULL,  -- 1: by intent; the user comes with a client certificate
    deleted     INTEGER NOT NULL,  -- 1: the row stays until a compaction
    batch       INTEGER NOT NULL   -- that wrote the row and the roles that belong to it
) WITHOUT ROWID;

CREATE TABLE auth_user_role (      -- which roles a user has
    user TEXT NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (user, role)
) WITHOUT ROWID;

CREATE TABLE auth_role (
    name    TEXT PRIMARY KEY,
    deleted INTEGER NOT NULL,  -- 1: the row stays until a compaction
    batch   INTEGER NOT NULL   -- that wrote the row and the permissions that belong to it
) WITHOUT ROWID;

CREATE TABLE auth_permission (     -- what a role may do
    role      TEXT NOT NULL,
    key       BLOB NOT NULL,
    range_end BLOB NOT NULL,     -- empty: the key alone; one zero byte: no upper bound
    type      INTEGER NOT NULL,  -- 0: read, 1: write, 2: both
    PRIMARY KEY (role, key, range_end)
) WITHOUT ROWID;

INSERT INTO meta VALUES ('auth_enabled', 0), ('auth_revision', 1);
"""

# Tells a Lessor that knows no batch log to keep off: newer rows than the tables have may be in there.
_BATCH_LOG = """
REPLACE INTO meta VALUES ('batch_log', '');  -- the salt of lessor.log.*, hexadecimal; none: those files do not count

DROP VIEW live_leases;

CREATE VIEW live_leases AS       -- id as etcdctl prints it; the true remaining time may be shorter, never longer
    SELECT printf('%016x', id) AS lease, ttl_s,
           round(min(ttl_s, deadline_s - (SELECT value FROM meta WHERE name = 'uptime_s')), 3) AS remaining_s
      FROM lease
     WHERE NOT ended
     ORDER BY deadline_s;
"""

# The tables only follow the log: they say which of its records they have, and the data clock has its name. `meta` and
# `lease` are made anew for the words in them, the views because schema 3 did not have the same ones everywhere.
_ONE_LOG = """
DROP VIEW current_keys;

DROP VIEW live_leases;

ALTER TABLE meta RENAME TO old_meta;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,  -- what the whole data has once; cluster_id, member_id, chain and log are hexadecimal
    value                    -- clock_s: the data clock, seconds that this data was served, which deadlines are on
) WITHOUT ROWID;

INSERT INTO meta
    SELECT CASE name WHEN 'uptime_s' THEN 'clock_s' ELSE name END, value FROM old_meta WHERE name <> 'batch_log';

DROP TABLE old_meta;

INSERT INTO meta VALUES
    ('record', 0),                           -- number of the newest log record that is in here
    ('chain', lower(hex(randomblob(16)))),   -- its chain value; of no record at first, so that no two logs are alike
    ('log', '');                             -- id of lessor.log.*; none: those files do not count

ALTER TABLE lease RENAME TO old_lease;

CREATE TABLE lease (
    id         INTEGER PRIMARY KEY,
    ttl_s      INTEGER NOT NULL,
    deadline_s REAL NOT NULL,     -- on the data clock, meta.clock_s; not before the true deadline
    ended      INTEGER NOT NULL,  -- 1: expired or revoked; the row stays until a compaction
    batch      INTEGER NOT NULL   -- that wrote the row
);

INSERT INTO lease SELECT * FROM old_lease;

DROP TABLE old_lease;

CREATE VIEW current_keys AS      -- what a range over all keys answers
    SELECT CAST(key AS TEXT) AS key, CAST(value AS TEXT) AS value, create_revision, revision AS mod_revision, version,
           CASE lease WHEN 0 THEN '' ELSE printf('%016x', lease) END AS lease
      FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY revision DESC, sub DESC) AS newest FROM event)
     WHERE newest = 1 AND value IS NOT NULL
     ORDER BY 1;

CREATE VIEW live_leases AS       -- id as etcdctl prints it; the true remaining time may be shorter, never longer
    SELECT printf('%016x', id) AS lease, ttl_s,
           round(min(ttl_s, deadline_s - (SELECT value FROM meta WHERE name = 'clock_s')), 3) AS remaining_s
      FROM lease
     WHERE NOT ended
     ORDER BY deadline_s;
"""

# Without WITHOUT ROWID: see above.
_EVENT_ROWS = """
DROP VIEW current_keys;

ALTER TABLE event RENAME TO old_event;

CREATE TABLE event (         -- one change of one key
    revision        INTEGER NOT NULL,  -- of the transaction
    sub             INTEGER NOT NULL,  -- counts the changes inside the transaction, from 0
    key             BLOB NOT NULL,
    value           BLOB,              -- NULL: the key was deleted
    create_revision INTEGER NOT NULL,
    version         INTEGER NOT NULL,
    lease           INTEGER NOT NULL,  -- 0: none
    batch           INTEGER NOT NULL,  -- that wrote the row
    PRIMARY KEY (revision, sub)
);

INSERT INTO event SELECT * FROM old_event ORDER BY revision, sub;

DROP TABLE old_event;

CREATE VIEW current_keys AS      -- what a range over all keys answers
    SELECT CAST(key AS TEXT) AS key, CAST(value AS TEXT) AS value, create_revision, revision AS mod_revision, version,
           CASE lease WHEN 0 THEN '' ELSE printf('%016x', lease) END AS lease
      FROM (SELECT *, row_number() OVER (PARTITION BY key ORDER BY revision DESC, sub DESC) AS newest FROM event)
     WHERE newest = 1 AND value IS NOT NULL
     ORDER BY 1;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST, _AUTH, _BATCH_LOG, _ONE_LOG, _EVENT_ROWS)

SCHEMA_VERSION = len(MIGRATIONS)
ONE_LOG_VERSION = 4  # from which on every batch is in the log

ROWS_PER_STATEMENT = 112  # times 8 columns: below 999, the bound on variables in older SQLites
ROWS_STEP = 16  # see `execute_rows`

Row = Sequence[object]

# What a statement does with its rows, and one row of it.
EVENTS = ("INSERT INTO event VALUES {}", "(?, ?, ?, ?, ?, ?, ?, ?)")
LEASES = ("REPLACE INTO lease VALUES {}", "(?, ?, ?, ?, ?)")
ALARMS = ("REPLACE INTO alarm VALUES {}", "(?, ?, ?, ?)")
AUTH_USERS = ("REPLACE INTO auth_user VALUES {}", "(?, ?, ?, ?, ?)")
AUTH_USER_ROLES = ("INSERT INTO auth_user_role VALUES {}", "(?, ?)")
AUTH_ROLES = ("REPLACE INTO auth_role VALUES {}", "(?, ?, ?)")
AUTH_PERMISSIONS = ("INSERT INTO auth_permission VALUES {}", "(?, ?, ?, ?)")
META = ("REPLACE INTO meta VALUES {}", "(?, ?)")
# Written with SELECT because `IN (VALUES ...)` makes SQLite look at every row of the table.
DEAD_EVENTS = ("DELETE FROM event WHERE (revision, sub) IN (SELECT column1, column2 FROM (VALUES {}))", "(?, ?)")


@cache
def rows_sql(statement: tuple[str, str], rows: int) -> str:
    """The text of `statement` over that many rows."""
    text, row = statement
    return text.format(", ".join([row] * rows))


def execute_rows(connection: sqlite3.Connection, statement: tuple[str, str], rows: Sequence[Row]) -> None:
    """Executes `statement` over `rows`, in at most len(rows) / ROWS_PER_STATEMENT + 2 pieces.

    Each execution gives the interpreter lock up and must win it back from a busy event loop, which may take a whole
    switch interval; `executemany` does so for every row. The pieces come in few sizes, so that the statements that
    SQLite prepared are found again: full, a multiple of `ROWS_STEP`, and each size below that.
    """
    start, end = 0, len(rows)
    while start < end:
        left = end - start
        size = ROWS_PER_STATEMENT if left >= ROWS_PER_STATEMENT else left - left % ROWS_STEP or left
        connection.execute(rows_sql(statement, size), list(chain.from_iterable(rows[start : start + size])))
        start += size


def split_statements(script: str) -> Iterator[str]:
    """The statements of `script`, each of which starts on a line of its own. Semicolons in comments are no end."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
