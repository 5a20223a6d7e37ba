# SPDX-License-Identifier: Apache-2.0
"""Batches and rows as the engine gets them, small enough to write down in a test; and what it leaves on disk."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from lessor.durable import schema
from lessor.durable.engine import Engine
from lessor.state.journal import Batch

IDENTITY = (0xDEADBEEF00000001, 0x8E9E05C52164694D)
ALARM = [(5, 1, True)]

# What the engines of a test take for the time. It only grows.
_now_s = 0.0


def settle(engine: Engine) -> None:
    """Upkeep as after a commit, with others close behind: it does what cannot wait."""
    global _now_s
    _now_s += 1e-6
    engine.upkeep(_now_s, False)


def rest(engine: Engine) -> int:
    """Upkeep as in a long pause, until nothing is left to do at once; returns the number of steps."""
    global _now_s
    settle(engine)
    _now_s += 100.0
    steps = 2
    while (next_s := engine.upkeep(_now_s, True)) is not None and next_s <= _now_s:
        steps += 1
    return steps


def rest_a_step(engine: Engine) -> bool:
    """The first step of that; returns whether there is more to do at once."""
    global _now_s
    _now_s += 100.0
    next_s = engine.upkeep(_now_s, True)
    return next_s is not None and next_s <= _now_s


def batch(number: int, **parts: Any) -> Batch:
    empty: dict[str, Any] = {
        "clock_s": float(number),
        "events": [],
        "leases": [],
        "alarms": [],
        "compact_revision": None,
        "dead": [],
        "leases_touched": [],
        "clean": False,
    }
    return Batch(number, **(empty | parts))


def put(
    revision: int, key: bytes, value: bytes = b"value", sub: int = 0
) -> tuple[int, int, bytes, bytes, int, int, int]:
    return (revision, sub, key, value, revision, 1, 0)


def tombstone(revision: int, key: bytes, sub: int = 0) -> tuple[int, int, bytes, None, int, int, int]:
    return (revision, sub, key, None, 0, 0, 0)


def write_schema_1(database: Path) -> None:
    """Tables as the first Lessor wrote them, which knew no users and no log: a lease and a key in batch 1."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        for statement in schema.split_statements(schema.MIGRATIONS[0]):
            connection.execute(statement)
        names = {"cluster_id": "7", "member_id": "8", "term": 2, "compact_revision": -1, "batch": 1, "uptime_s": 1.0}
        rows = [*names.items(), ("clean", 1), ("schema_version", 1)]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        connection.execute("INSERT INTO event VALUES (2, 0, x'61', x'31', 2, 1, 0, 1)")
        connection.execute("INSERT INTO lease VALUES (7, 60, 61.0, 0, 1)")


def files(data_dir: Path) -> dict[str, bytes]:
    """The content of the data files (the lock file and SQLite's shared memory are not data)."""
    no_data = ("lessor.db-shm", "lessor.lock")
    return {path.name: path.read_bytes() for path in data_dir.glob("lessor.*") if path.name not in no_data}
