# SPDX-License-Identifier: Apache-2.0
"""The tables of a shared log in PostgreSQL, and the statements on them.

    head      one row: format, cluster id, position of the first record that is left
    log       position, chain value, bytes of all records up to this one, record; at first a row at position 0
    snapshot  one row for each: position; how many pieces and bytes, once it is whole
    piece     the pieces of snapshots

Laws
- An append is one statement: if the row of the record before is there, with the chain value that was named, it inserts
  the next one, unless another has that position. An insert waits for another's of the same position, so one of two
  lands. The row before is locked against its deletion meanwhile: a position that was trimmed is never given again.
- An append changes no row. Rows that are changed again and again grow a tail of old versions while any transaction of
  the database is long, such as a backup, and each statement would have to walk over them.
- A read is two statements: it looks, and then it commits something (`SURE`: a message in the server's log that nobody
  reads). When that has returned, everything it saw is on the standbys too, and the server was not replaced before it
  looked. Only then does E3 hold of PostgreSQL, which may show commits that no standby has (after a wait was broken off,
  or after a crash). In one statement a lock would last while a client takes the records, and a client that stands
  still would hold up all others.
- An append is done by the server process, and under the standby settings, that were checked, or not at all ($5 and $6;
  the answer says which). A read says which they were.

What a server without its standby has to hold is bounded: one append, for which others of its position wait, and one
`SURE`, for which others wait at a lock of its own. Those that wait end by the time limit for locks.

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
    id int2 PRIMARY KEY CHECK (id = 1), format int4 NOT NULL, cluster_id numeric(20) NOT NULL, first int8 NOT NULL);
CREATE TABLE IF NOT EXISTS {schema}.log (
    position int8 PRIMARY KEY, chain bytea NOT NULL, total_bytes int8 NOT NULL, record bytea NOT NULL) WITH ({large});
CREATE TABLE IF NOT EXISTS {schema}.snapshot (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, position int8 NOT NULL, pieces int8, bytes int8);
CREATE TABLE IF NOT EXISTS {schema}.piece (
    snapshot int8 REFERENCES {schema}.snapshot, number int8, data bytea NOT NULL,
    PRIMARY KEY (snapshot, number)) WITH ({large});
ALTER TABLE {schema}.log ALTER COLUMN record SET STORAGE EXTERNAL;
ALTER TABLE {schema}.piece ALTER COLUMN data SET STORAGE EXTERNAL;
INSERT INTO {schema}.log VALUES (0, decode(repeat('00', {chain_bytes}), 'hex'), 0, '') ON CONFLICT DO NOTHING;
INSERT INTO {schema}.head VALUES (1, {format}, {cluster_id}, 1) ON CONFLICT DO NOTHING;
"""
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

# What an operator can set while a connection lasts: the standbys, what is written to disk, and whole pages.
_STATE: Final = (
    "concat_ws(',', CASE WHEN current_setting('synchronous_standby_names') <> '' THEN 'standbys' END, "
    "CASE WHEN current_setting('fsync') = 'on' THEN 'fsync' END, "
    "CASE WHEN current_setting('full_page_writes') = 'on' THEN 'pages' END)"
)
# $1 position, $2 chain value: of the record before. $3 the record, $4 its chain value. $5 pid, $6 strict.
_APPEND: Final = """
WITH before AS MATERIALIZED (
    SELECT total_bytes FROM {schema}.log
    WHERE position = $1::int8 AND chain = $2::bytea AND pg_backend_pid() = $5::int4
      AND (current_setting('synchronous_standby_names') <> '' OR NOT $6::bool)
      AND current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
    FOR KEY SHARE
), added AS (
    INSERT INTO {schema}.log
    SELECT $1::int8 + 1, $4::bytea, total_bytes + octet_length($3::bytea), $3::bytea FROM before
    ON CONFLICT DO NOTHING RETURNING 1
)
SELECT pg_backend_pid(), {state}, (SELECT count(*) FROM added)
"""
# $1 position, $2 bytes. At least one row; its position is -1 where there is no record.
_READ: Final = """
SELECT pg_backend_pid(), {state}, newest.position, head.first,
       coalesce(found.position, -1), coalesce(found.record, '')
FROM (SELECT position FROM {schema}.log ORDER BY position DESC LIMIT 1) AS newest
CROSS JOIN {schema}.head LEFT JOIN LATERAL (
    SELECT position, record FROM (
        SELECT position, record,
               sum(octet_length(record)) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS bytes
        FROM (SELECT position, record FROM {schema}.log WHERE position > $1::int8
              ORDER BY position LIMIT {records}) AS behind
    ) AS measured WHERE bytes <= $2::int8 OR bytes = octet_length(record)
) AS found ON true ORDER BY found.position
"""
_SURE: Final = """
SELECT pg_backend_pid(), {state},
       pg_logical_emit_message(true, 'lessor', ''::text)::text
FROM pg_advisory_xact_lock(hashtextextended('lessor read {schema}', 0)) AS alone
"""
# $1: the new first position. Returns below which one rows may go: the newest stays, also where it is no record yet.
_TRIM: Final = """
UPDATE {schema}.head SET first = greatest(first, least($1::int8, (SELECT max(position) FROM {schema}.log)))
RETURNING least(first, (SELECT max(position) FROM {schema}.log))
"""
# $1: behind this position, $2: below this. One row: the last that was deleted, or -1.
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
    ) RETURNING position
) SELECT coalesce(max(position), -1) FROM gone
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
SELECT (newest.total_bytes
        - coalesce((SELECT total_bytes - octet_length(record) FROM {schema}.log WHERE position = head.first), 0)
        + (SELECT coalesce(sum(bytes), 0) FROM {schema}.snapshot))::int8
FROM (SELECT total_bytes FROM {schema}.log ORDER BY position DESC LIMIT 1) AS newest CROSS JOIN {schema}.head
"""


def tables(schema: str, cluster_id: int, chain_bytes: int, *, with_schema: bool) -> str:
    """Makes what is not there yet, in one transaction. Of several nodes that do it at once, one goes before the others.

    `with_schema` needs the right to create in the database, even where the schema is there.
    """
    before = f"SELECT pg_advisory_xact_lock(hashtextextended('lessor {schema}', 0));"
    if with_schema:
        before += f"CREATE SCHEMA IF NOT EXISTS {schema};"
    return before + _TABLES.format(
        schema=schema, cluster_id=cluster_id, format=FORMAT, chain_bytes=chain_bytes, large=_LARGE
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
        for mark, value in {"{schema}": schema, "{state}": _STATE, **numbers.get(name, {})}.items():
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
