# SPDX-License-Identifier: Apache-2.0
"""Batches and rows as the engine gets them, small enough to write down in a test; and what it leaves on disk."""

from pathlib import Path
from typing import Any

from lessor.state.journal import Batch

IDENTITY = (0xDEADBEEF00000001, 0x8E9E05C52164694D)
ALARM = [(5, 1, True)]  # a batch with it goes to the tables at once


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


def files(data_dir: Path) -> dict[str, bytes]:
    """The content of the data files (the lock file and SQLite's shared memory are not data)."""
    no_data = ("lessor.db-shm", "lessor.lock")
    return {path.name: path.read_bytes() for path in data_dir.glob("lessor.*") if path.name not in no_data}
