# SPDX-License-Identifier: Apache-2.0
"""What is said of the disk's errors."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from lessor.durable.engine import DamagedError
from lessor.durable.opening import explained


def test_a_damaged_schema_is_told_on_one_line(tmp_path: Path) -> None:
    """SQLite quotes the statement that it cannot read, with its lines."""
    path = tmp_path / "lessor.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE one (\n  a TEXT, -- first\n  b TEXT\n)")
        connection.commit()
    path.write_bytes(path.read_bytes().replace(b"a TEXT,", b"[ TEXT,"))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        damaged = pytest.raises(DamagedError, match=r"lessor\.db: damaged \(malformed database schema")
        with damaged as raised, explained(path):
            connection.execute("SELECT * FROM one")
        assert str(raised.value).isprintable()


def test_a_text_that_is_no_utf_8_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "lessor.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE one (a TEXT)")
        connection.execute("INSERT INTO one VALUES (CAST(x'ff' AS TEXT))")
        with pytest.raises(DamagedError), explained(path):
            connection.execute("SELECT a FROM one").fetchall()
