# SPDX-License-Identifier: Apache-2.0
"""The tables of users and roles in the data file: how they come into old data, and how deleted rows go."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lessor.durable import schema
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import AuthRows, Batch
from tests.unit.durable.engine_rows import rest, write_schema_1

IDENTITY = (1, 2)


def batch(number: int, auth: AuthRows | None = None, compact_revision: int | None = None) -> Batch:
    return Batch(
        number,
        1.0,
        events=[],
        leases=[],
        alarms=[],
        compact_revision=compact_revision,
        dead=[],
        leases_touched=[],
        clean=False,
        auth=auth,
    )


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def engine(data_dir: Path) -> Iterator[FileEngine]:
    engine = FileEngine(data_dir)
    engine.open(IDENTITY)
    yield engine
    engine.close()


def query(data_dir: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(data_dir / "lessor.db")) as person:
        rows = person.execute(sql).fetchall()
        person.commit()
        return rows


def test_a_directory_of_before_auth_opens_and_keeps_its_data(data_dir: Path) -> None:
    data_dir.mkdir()
    write_schema_1(data_dir / "lessor.db")
    engine = FileEngine(data_dir)
    assert engine.open(IDENTITY).schema_version == schema.SCHEMA_VERSION
    loaded = engine.load()
    assert list(loaded.leases) == [(7, 60, 61.0, False)]
    assert (loaded.auth.users, loaded.auth.roles, loaded.auth.switch) == ({}, {}, (False, 1))
    engine.close()


def test_people_can_read_users_and_roles(engine: FileEngine, data_dir: Path) -> None:
    users = [("ann", b"$2a$04$x", False, ("r", "root"), False), ("cert", b"", True, (), False)]
    roles = [("r", ((b"a", b"b", 2), (b"k", b"", 0)), False)]
    engine.commit(batch(1, AuthRows(users, roles, (True, 9))))
    engine.flush()
    assert query(data_dir, "SELECT name, CAST(password AS TEXT), no_password FROM auth_user") == [
        ("ann", "$2a$04$x", 0),
        ("cert", "", 1),
    ]
    assert query(data_dir, "SELECT * FROM auth_user_role") == [("ann", "r"), ("ann", "root")]
    assert query(data_dir, "SELECT * FROM auth_permission") == [("r", b"a", b"b", 2), ("r", b"k", b"", 0)]
    assert query(data_dir, "SELECT value FROM meta WHERE name LIKE 'auth%' ORDER BY name") == [(1,), (9,)]


def test_deleted_rows_stay_until_a_compaction(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(
        batch(1, AuthRows([("u", b"h", False, ("r",), False)], [("r", ((b"a", b"", 0),), False)], (False, 3)))
    )
    engine.commit(batch(2, AuthRows([("u", b"", False, (), True)], [("r", (), True)], (False, 5))))
    assert engine.load().auth.users == {}
    assert query(data_dir, "SELECT name, deleted, batch FROM auth_user") == [("u", 1, 2)]
    assert query(data_dir, "SELECT count(*) FROM auth_user_role UNION ALL SELECT count(*) FROM auth_permission") == [
        (0,),
        (0,),
    ]
    engine.commit(batch(3, compact_revision=2))
    rest(engine)
    assert query(data_dir, "SELECT count(*) FROM auth_user UNION ALL SELECT count(*) FROM auth_role") == [(0,), (0,)]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM meta WHERE name = 'auth_revision'",
        "UPDATE meta SET value = 'on' WHERE name = 'auth_enabled'",
        "UPDATE meta SET value = 0 WHERE name = 'auth_revision'",
    ],
)
def test_a_damaged_switch_is_not_taken_for_off(engine: FileEngine, data_dir: Path, damage: str) -> None:
    engine.close()
    query(data_dir, damage)
    again = FileEngine(data_dir)
    again.open(IDENTITY)
    with pytest.raises(DataDirError, match="auth_enabled"):
        again.load()
    again.close()
