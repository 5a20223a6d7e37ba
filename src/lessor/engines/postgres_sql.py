# SPDX-License-Identifier: Apache-2.0
"""The tables of a shared log in PostgreSQL, and the statements on them.

    head      one row: format, cluster id, position of the first record that is left, bytes that were trimmed
    tail      one row: position and chain value of the newest record, bytes of all records that ever were
    log       position, record
    sure      one row, which each read counts up
    snapshot  one row for each: position; how many pieces and bytes, once it is whole
    piece     the pieces of snapshots

Laws
- An append moves the tail and adds the record in one statement. In READ COMMITTED an UPDATE that has waited for
  another's looks at the row again, so of two appends behind one record the second finds nothing.
- A read is two statements: it looks, and then it commits something (`sure`). When that has returned, everything it saw
  is on the standbys too, and the server was not replaced before it looked. Only then does E3 hold of PostgreSQL, which
  may show commits that no standby has (after a wait was broken off, or after a crash). In one statement the row lock
  would last while a client takes the records, and a client that stands still would hold up all others.
- An append and `sure` are done by the server process, and under the standby settings, that were checked, or not at all
  (pid and strict; the answer says which).

The row lock of `tail` and of `sure` bounds what a server without its standby has to hold: one append and one read wait
for it, all others end at the lock.

Values too long for a page are stored beside the table, as they are (EXTERNAL): they are not compressed, because their
length must be had without reading them. Tables are never shortened by vacuum, which would lock them.

Does not do: executing.
"""

from collections.abc import Mapping
from typing import Final

FORMAT: Final = 1
READ_RECORDS_MAX: Final = 1_000
TRIM_RECORDS_MAX: Final = 500  # of one step
TRIM_BYTES_MAX: Final = 8_388_608  # of one step, about
TRIM_PIECES_MAX: Final = 16  # of one step

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS {schema}.head (
    id int2 PRIMARY KEY CHECK (id = 1), format int4 NOT NULL, cluster_id numeric(20) NOT NULL, first int8 NOT NULL,
    trimmed_bytes int8 NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.tail (
    id int2 PRIMARY KEY CHECK (id = 1), position int8 NOT NULL, chain bytea NOT NULL,
    bytes int8 NOT NULL) WITH ({small});
CREATE TABLE IF NOT EXISTS {schema}.sure (
    id int2 PRIMARY KEY CHECK (id = 1), count int8 NOT NULL) WITH ({small});
CREATE TABLE IF NOT EXISTS {schema}.log (position int8 PRIMARY KEY, record bytea NOT NULL) WITH ({large});
CREATE TABLE IF NOT EXISTS {schema}.snapshot (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, position int8 NOT NULL, pieces int8, bytes int8);
CREATE TABLE IF NOT EXISTS {schema}.piece (
    snapshot int8 REFERENCES {schema}.snapshot, number int8, data bytea NOT NULL,
    PRIMARY KEY (snapshot, number)) WITH ({large});
ALTER TABLE {schema}.log ALTER COLUMN record SET STORAGE EXTERNAL;
ALTER TABLE {schema}.piece ALTER COLUMN data SET STORAGE EXTERNAL;
INSERT INTO {schema}.tail VALUES (1, 0, decode(repeat('00', {chain_bytes}), 'hex'), 0) ON CONFLICT DO NOTHING;
INSERT INTO {schema}.sure VALUES (1, 0) ON CONFLICT DO NOTHING;
INSERT INTO {schema}.head VALUES (1, {format}, {cluster_id}, 1, 0) ON CONFLICT DO NOTHING;
"""
_SMALL: Final = (
    "fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, vacuum_truncate = off"
)
_LARGE: Final = (
    "autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02, "
    "vacuum_truncate = off, toast.vacuum_truncate = off"
)

# Settings that a server does not know are left out.
_SETTINGS: Final = """
SELECT set_config(name, value, false) FROM (VALUES {values}) AS wanted (name, value)
WHERE name IN (SELECT known.name FROM pg_settings AS known)
"""

_EXISTS: Final = """
SELECT to_regnamespace('{schema}') IS NOT NULL, to_regclass('{schema}.head') IS NOT NULL,
       coalesce((SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class
                 WHERE relnamespace = to_regnamespace('{schema}') AND relkind = 'r' AND relpersistence <> 'p'), '')
"""
_HEAD: Final = "SELECT format::text, cluster_id::text FROM {schema}.head"

# $1 position, $2 chain value: of the record before. $3 the record, $4 its chain value. $5 pid, $6 strict.
_APPEND: Final = """
WITH moved AS (
    UPDATE {schema}.tail SET position = position + 1, chain = $4::bytea, bytes = bytes + octet_length($3::bytea)
    WHERE id = 1 AND position = $1::int8 AND chain = $2::bytea AND pg_backend_pid() = $5::int4
      AND (current_setting('synchronous_standby_names') <> '' OR NOT $6::bool)
    RETURNING position
), added AS (INSERT INTO {schema}.log SELECT position, $3::bytea FROM moved RETURNING 1)
SELECT pg_backend_pid(), current_setting('synchronous_standby_names') <> '', (SELECT count(*) FROM added)
"""
# $1 position, $2 bytes. At least one row; its last column is empty where there is no record.
_READ: Final = """
SELECT pg_backend_pid(), current_setting('synchronous_standby_names') <> '', tail.position, head.first,
       coalesce(found.record, '')
FROM {schema}.tail CROSS JOIN {schema}.head LEFT JOIN LATERAL (
    SELECT position, record FROM (
        SELECT position, record,
               sum(octet_length(record)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
        FROM (SELECT position, record FROM {schema}.log WHERE position > $1::int8
              ORDER BY position LIMIT {records}) AS behind
    ) AS measured WHERE bytes <= $2::int8 OR bytes = octet_length(record)
) AS found ON true ORDER BY found.position
"""
# $1 pid, $2 strict.
_SURE: Final = """
WITH counted AS (
    UPDATE {schema}.sure SET count = count + 1
    WHERE id = 1 AND pg_backend_pid() = $1::int4
      AND (current_setting('synchronous_standby_names') <> '' OR NOT $2::bool)
    RETURNING 1
)
SELECT pg_backend_pid(), current_setting('synchronous_standby_names') <> '', (SELECT count(*) FROM counted)
"""
# $1: the new first position.
_TRIM: Final = """
UPDATE {schema}.head SET first = greatest(first, least($1::int8, tail.position)) FROM {schema}.tail
RETURNING head.first
"""
# $1: behind this position, $2: below this. One row: the last that was deleted, or 0.
_TRIM_STEP: Final = """
WITH gone AS (
    DELETE FROM {schema}.log WHERE position IN (
        SELECT position FROM (
            SELECT position,
                   sum(octet_length(record)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING)
               - octet_length(record) AS before
            FROM (SELECT position, record FROM {schema}.log WHERE position > $1::int8 AND position < $2::int8
                  ORDER BY position LIMIT {records}) AS oldest
        ) AS measured WHERE before < {bytes}
    ) RETURNING position, octet_length(record) AS bytes
), counted AS (
    UPDATE {schema}.head SET trimmed_bytes = trimmed_bytes + (SELECT sum(bytes) FROM gone)
    WHERE EXISTS (SELECT 1 FROM gone)
) SELECT coalesce(max(position), 0) FROM gone
"""
_SNAPSHOT_BEGIN: Final = "INSERT INTO {schema}.snapshot (position) VALUES ($1::int8) RETURNING id"
_SNAPSHOT_PIECE: Final = "INSERT INTO {schema}.piece VALUES ($1::int8, $2::int8, $3::bytea)"
# $1 id, $2 pieces, $3 bytes. No row when some of it has gone meanwhile.
_SNAPSHOT_END: Final = """
UPDATE {schema}.snapshot SET pieces = $2::int8, bytes = $3::int8
WHERE id = $1::int8 AND (SELECT count(*) FROM {schema}.piece WHERE snapshot = $1::int8) = $2::int8 RETURNING id
"""
# All but the two newest that are whole, and those younger than the newest that are not.
_SNAPSHOTS_OLD: Final = """
WITH whole AS (
    SELECT id FROM {schema}.snapshot WHERE pieces IS NOT NULL ORDER BY position DESC, id DESC LIMIT 2
)
SELECT id FROM {schema}.snapshot
WHERE id NOT IN (SELECT id FROM whole) AND (pieces IS NOT NULL OR id < (SELECT max(id) FROM whole))
"""
# $1 id. One row: how many pieces.
_PIECES_DELETE: Final = """
WITH gone AS (
    DELETE FROM {schema}.piece WHERE snapshot = $1::int8 AND number IN (
        SELECT number FROM {schema}.piece WHERE snapshot = $1::int8 ORDER BY number LIMIT {pieces})
    RETURNING 1
) SELECT count(*) FROM gone
"""
_SNAPSHOT_DELETE: Final = "DELETE FROM {schema}.snapshot WHERE id = $1::int8"
_SNAPSHOT_NEWEST: Final = """
SELECT id, position, pieces FROM {schema}.snapshot WHERE pieces IS NOT NULL ORDER BY position DESC, id DESC LIMIT 1
"""
_PIECE_READ: Final = "SELECT data FROM {schema}.piece WHERE snapshot = $1::int8 AND number = $2::int8"
_SIZE: Final = """
SELECT (tail.bytes - head.trimmed_bytes + (SELECT coalesce(sum(bytes), 0) FROM {schema}.snapshot))::int8
FROM {schema}.tail CROSS JOIN {schema}.head
"""


def tables(schema: str, cluster_id: int, chain_bytes: int, *, with_schema: bool) -> str:
    """Makes what is not there yet, in one transaction. Of several nodes that do it at once, one goes before the others.

    `with_schema` needs the right to create in the database, even where the schema is there.
    """
    before = f"SELECT pg_advisory_xact_lock(hashtextextended('lessor {schema}', 0));"
    if with_schema:
        before += f"CREATE SCHEMA IF NOT EXISTS {schema};"
    return before + _TABLES.format(
        schema=schema, cluster_id=cluster_id, format=FORMAT, chain_bytes=chain_bytes, small=_SMALL, large=_LARGE
    )


def statements(schema: str) -> dict[str, str]:
    """All statements that are prepared, by name."""
    numbers = {
        "READ": {"{records}": str(READ_RECORDS_MAX)},
        "TRIM_STEP": {"{records}": str(TRIM_RECORDS_MAX), "{bytes}": str(TRIM_BYTES_MAX)},
        "PIECES_DELETE": {"{pieces}": str(TRIM_PIECES_MAX)},
    }
    found = {}
    for name, text in _PREPARED.items():
        for mark, value in {"{schema}": schema, **numbers.get(name, {})}.items():
            text = text.replace(mark, value)
        found[name] = text
    return found


def settings(wanted: Mapping[str, str]) -> str:
    """Sets what the server knows of these, for the session. The names and values are ours."""
    values = ", ".join(f"('{name}', '{value}')" for name, value in wanted.items())
    return _SETTINGS.replace("{values}", values)


_PREPARED: Final = {
    "EXISTS": _EXISTS,
    "HEAD": _HEAD,
    "APPEND": _APPEND,
    "READ": _READ,
    "SURE": _SURE,
    "TRIM": _TRIM,
    "TRIM_STEP": _TRIM_STEP,
    "SNAPSHOT_BEGIN": _SNAPSHOT_BEGIN,
    "SNAPSHOT_PIECE": _SNAPSHOT_PIECE,
    "SNAPSHOT_END": _SNAPSHOT_END,
    "SNAPSHOTS_OLD": _SNAPSHOTS_OLD,
    "PIECES_DELETE": _PIECES_DELETE,
    "SNAPSHOT_DELETE": _SNAPSHOT_DELETE,
    "SNAPSHOT_NEWEST": _SNAPSHOT_NEWEST,
    "PIECE_READ": _PIECE_READ,
    "SIZE": _SIZE,
}
