# SPDX-License-Identifier: Apache-2.0
"""The engine: what it keeps, what it refuses, what it gives back.

Faults of the disk are in tests/fault/test_engine_faults.py.
"""

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.durable import schema
from lessor.durable.engine import DataDirError, Engine, EngineError
from lessor.durable.file_engine import FileEngine
from lessor.durable.opening import PAGE_BYTES
from tests.unit.durable.engine_rows import ALARM, IDENTITY, batch, files, put, rest, settle, write_schema_1

UINT64_MAX = 2**64 - 1
INT64_MAX = 2**63 - 1


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def engine(data_dir: Path) -> Iterator[FileEngine]:
    engine = FileEngine(data_dir)
    engine.open(IDENTITY)
    yield engine
    engine.close()


def reopened(engine: FileEngine, data_dir: Path) -> FileEngine:
    engine.close()
    fresh = FileEngine(data_dir)
    fresh.open((1, 1))
    return fresh


# --- what it keeps --------------------------------------------------------------------------------------------------


def test_is_an_engine(engine: FileEngine) -> None:
    _: Engine = engine  # checked by mypy


def test_a_new_directory_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "b"
    engine = FileEngine(data_dir)
    meta = engine.open(IDENTITY)
    assert (meta.cluster_id, meta.member_id) == IDENTITY
    assert (meta.term, meta.batch, meta.clock_s, meta.compact_revision) == (0, 0, 0.0, -1)
    loaded = engine.load()
    assert (list(loaded.events), list(loaded.leases), list(loaded.alarms)) == ([], [], [])
    engine.close()
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((data_dir / "lessor.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("identity", [(1, 1), (UINT64_MAX, UINT64_MAX), (2**63, 2**63 - 1)])
def test_identity_is_given_once(data_dir: Path, identity: tuple[int, int]) -> None:
    engine = FileEngine(data_dir)
    engine.open(identity)
    engine.close()
    engine = FileEngine(data_dir)
    meta = engine.open((5, 6))
    assert (meta.cluster_id, meta.member_id) == identity
    engine.close()


def test_rows_come_back_as_they_were(engine: FileEngine, data_dir: Path) -> None:
    events = [
        (2, 0, b"\x00\xffkey", b"", 2, 1, 0),
        (2, 1, b"text", b"v\x00w", 2, 1, INT64_MAX),
        (3, 0, b"text", None, 0, 0, 0),
        (INT64_MAX, 10_000_000, b"k" * 3_000, b"v" * 100_000, INT64_MAX, INT64_MAX, 1),
    ]
    leases = [(1, 1, 1.5, False), (7, 9_000_000_000, 9_000_000_000.125, False), (INT64_MAX, 60, 0.1, False)]
    alarms = [(UINT64_MAX, 1, True), (3, 2, True)]
    engine.commit(batch(1, events=events, leases=leases, alarms=alarms, clock_s=12.25))
    fresh = reopened(engine, data_dir)
    loaded = fresh.load()
    assert list(loaded.events) == events
    assert list(loaded.leases) == leases
    assert sorted(loaded.alarms) == sorted(alarms)
    assert (loaded.meta.batch, loaded.meta.clock_s) == (1, 12.25)
    fresh.close()


def test_events_come_in_order_of_revision_then_sub(engine: FileEngine) -> None:
    engine.commit(batch(1, events=[put(2, b"z"), put(2, b"a", sub=1), put(3, b"m")]))
    engine.commit(batch(2, events=[put(10, b"c", sub=sub) for sub in range(300)]))
    engine.commit(batch(3, events=[put(9_999_999_999, b"b")]))
    order = [(event[0], event[1]) for event in engine.load().events]
    assert order == sorted(order)
    assert len(order) == 304


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 111, 112, 113, 127, 128, 129, 224, 1_000])
def test_every_row_of_a_batch_is_written_whatever_their_number(engine: FileEngine, rows: int) -> None:
    events = [put(2 + row, b"%d" % row) for row in range(rows)]
    leases = [(1 + row, 60, 61.0, False) for row in range(rows)]
    engine.commit(batch(1, events=events, leases=leases))
    loaded = engine.load()
    assert list(loaded.events) == events
    assert list(loaded.leases) == leases


def test_the_newest_row_of_a_lease_counts_and_an_ended_one_is_marked(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(batch(1, leases=[(7, 60, 61.0, False), (8, 60, 61.0, False)]))
    engine.commit(batch(2, leases=[(7, 90, 200.0, False), (8, 60, 61.0, True)]))
    assert list(engine.load().leases) == [(7, 90, 200.0, False)]  # which folds
    with sqlite3.connect(data_dir / "lessor.db") as person:
        assert person.execute("SELECT ended, batch FROM lease WHERE id = 8").fetchall() == [(1, 2)]
    person.close()


def test_an_alarm_that_was_lifted_is_not_loaded(engine: FileEngine) -> None:
    engine.commit(batch(1, alarms=[(5, 1, True), (5, 2, True), (6, 1, True)]))
    engine.commit(batch(2, alarms=[(5, 1, False)]))
    assert list(engine.load().alarms) == [(5, 2, True), (6, 1, True)]


def test_a_batch_without_rows_saves_the_uptime(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(batch(1, clock_s=99.5))
    fresh = reopened(engine, data_dir)
    assert fresh.load().meta.clock_s == 99.5
    fresh.close()


def test_a_batch_number_is_never_used_twice(engine: FileEngine) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.commit(batch(4, events=[put(3, b"b")]))  # 2 and 3 had no rows and were thrown away
    for number in (4, 3, 1):
        with pytest.raises(AssertionError, match=f"batch {number} after 4"):
            engine.commit(batch(number, events=[put(4, b"c")]))
    engine.commit(batch(5, events=[put(4, b"d")]))
    assert [event[2] for event in engine.load().events] == [b"a", b"b", b"d"]


def test_a_row_that_is_there_already_is_an_error_of_the_fold_and_of_every_start(
    engine: FileEngine, data_dir: Path
) -> None:
    """The state machine never makes one. The tables cannot follow such a record, and say so; nothing is half there."""
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.commit(batch(2, events=[put(3, b"b"), put(2, b"c")], leases=[(7, 60, 60.0, False)], alarms=ALARM))
    with pytest.raises(EngineError):
        engine.flush()
    with pytest.raises(EngineError, match="no write after a failed one"):
        engine.commit(batch(3))
    engine.close()
    assert "UNIQUE constraint failed" in refusal(data_dir)
    with contextlib.closing(sqlite3.connect(data_dir / "lessor.db")) as person:
        assert person.execute("SELECT count(*) FROM event UNION ALL SELECT count(*) FROM lease").fetchall() == [
            (0,),
            (0,),
        ]


# --- terms and the clean mark ---------------------------------------------------------------------------------------


def test_the_clean_mark_lives_from_a_clean_batch_to_the_next_term(engine: FileEngine, data_dir: Path) -> None:
    engine.begin_term(1)
    assert not engine.load().meta.clean
    engine.commit(batch(1))
    assert not engine.load().meta.clean
    engine.commit(batch(2, clean=True))
    fresh = reopened(engine, data_dir)
    assert fresh.load().meta.clean
    fresh.begin_term(2)
    meta = fresh.load().meta
    assert (meta.clean, meta.term) == (False, 2)
    fresh.close()


def test_a_term_only_grows(engine: FileEngine) -> None:
    engine.begin_term(3)
    with pytest.raises(AssertionError, match="term 3 after 3"):
        engine.begin_term(3)
    engine.begin_term(4)


def test_a_term_is_on_disk_before_anything_else_happens(engine: FileEngine, data_dir: Path, tmp_path: Path) -> None:
    engine.commit(batch(1, clean=True))
    engine.begin_term(8)
    shutil.copytree(data_dir, tmp_path / "crashed")
    crashed = FileEngine(tmp_path / "crashed")
    meta = crashed.open((1, 1))
    assert (meta.term, meta.clean, meta.batch) == (8, False, 1)
    crashed.close()


# --- what it refuses ------------------------------------------------------------------------------------------------


def refusal(data_dir: Path) -> str:
    """The message with which `open` refuses; one line, and open leaves no lock behind."""
    with pytest.raises(DataDirError) as caught:
        FileEngine(data_dir).open(IDENTITY)
    message = str(caught.value)
    assert "\n" not in message
    with pytest.raises(DataDirError) as again:
        FileEngine(data_dir).open(IDENTITY)
    assert str(again.value) == message
    return message


def test_a_second_server_is_told_who_holds_the_directory(engine: FileEngine, data_dir: Path) -> None:
    message = refusal(data_dir)
    assert str(data_dir) in message
    assert str(os.getpid()) in message
    engine.commit(batch(1))  # the first one is not disturbed
    engine.close()
    second = FileEngine(data_dir)
    second.open(IDENTITY)
    second.close()


@pytest.mark.slow
def test_a_server_in_another_process_is_named(data_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lessor.durable.file_engine import FileEngine;"
        "engine = FileEngine(Path(sys.argv[1])); engine.open((1, 1)); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        assert str(holder.pid) in refusal(data_dir)
        holder.kill()
    engine = FileEngine(data_dir)  # the lock died with its holder
    engine.open(IDENTITY)
    engine.close()


def test_close_twice_is_close(engine: FileEngine) -> None:
    engine.close()
    engine.close()


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    assert "a file, not a directory" in refusal(path)
    assert str(path / "below") in refusal(path / "below")
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("existing", [False, True])
def test_an_unwritable_directory(tmp_path: Path, existing: bool) -> None:
    above = tmp_path / "above"
    data_dir = above / "data"
    (data_dir if existing else above).mkdir(parents=True)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    locked = data_dir if existing else above
    locked.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        message = refusal(data_dir)
    finally:
        os.seteuid(user)
        locked.chmod(0o755)
    assert str(data_dir) in message
    assert "may write" in message
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"S", b"SQLite format 3\x00", b"garbage" * 1_000, b"\x00" * 8_192, os.urandom(5_000)],
    ids=["empty", "one byte", "magic alone", "text", "zeros", "random"],
)
def test_a_file_that_is_no_database_is_left_alone(data_dir: Path, content: bytes) -> None:
    data_dir.mkdir()
    database = data_dir / "lessor.db"
    database.write_bytes(content)
    message = refusal(data_dir)
    assert str(database) in message
    assert "damaged" in message
    assert files(data_dir) == {"lessor.db": content}


def test_another_programs_database_is_left_alone(data_dir: Path) -> None:
    data_dir.mkdir()
    other = sqlite3.connect(data_dir / "lessor.db")
    other.execute("CREATE TABLE meta (name, value)")
    other.commit()
    other.close()
    before = files(data_dir)
    assert "another program" in refusal(data_dir)
    assert files(data_dir) == before


def test_a_newer_schema_is_left_alone_with_its_log(engine: FileEngine, data_dir: Path, tmp_path: Path) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.flush()
    engine.commit(batch(2, events=[put(3, b"b")]))
    person = sqlite3.connect(data_dir / "lessor.db")
    person.execute("UPDATE meta SET value = 7 WHERE name = 'schema_version'")
    person.commit()
    crashed = tmp_path / "crashed"
    shutil.copytree(data_dir, crashed)
    person.close()
    before = files(crashed)
    assert before["lessor.db-wal"]
    message = refusal(crashed)
    assert "schema 7" in message
    assert str(schema.SCHEMA_VERSION) in message
    assert files(crashed) == before


@pytest.mark.parametrize("log", ["lessor.db-wal", "lessor.log.0", "lessor.log.1"])
def test_a_log_without_its_database_is_not_overwritten(
    engine: FileEngine, data_dir: Path, tmp_path: Path, log: str
) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.flush()
    crashed = tmp_path / "crashed"
    shutil.copytree(data_dir, crashed)
    for path in crashed.glob("lessor.*"):
        if path.name != log:
            path.unlink()
    before = files(crashed)
    assert list(before) == [log]
    assert log in refusal(crashed)
    assert files(crashed) == before


def change(data_dir: Path, statement: str) -> None:
    person = sqlite3.connect(data_dir / "lessor.db")
    person.execute(statement)
    person.commit()
    person.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM meta WHERE name = 'batch'",
        "DELETE FROM meta WHERE name = 'schema_version'",
        "UPDATE meta SET value = 'soon' WHERE name = 'clock_s'",
        "UPDATE meta SET value = -1 WHERE name = 'clock_s'",
        "UPDATE meta SET value = 9e999 WHERE name = 'clock_s'",
        "UPDATE meta SET value = NULL WHERE name = 'term'",
        "UPDATE meta SET value = -2 WHERE name = 'compact_revision'",
        "UPDATE meta SET value = 'xyz' WHERE name = 'cluster_id'",
        "UPDATE meta SET value = 'fffffffffffffffff' WHERE name = 'member_id'",
        "UPDATE meta SET value = 0 WHERE name = 'batch'",
        "UPDATE meta SET value = 'id' WHERE name = 'log'",
        "UPDATE meta SET value = NULL WHERE name = 'log'",
        "UPDATE meta SET value = '00' WHERE name = 'log'",
        "DELETE FROM meta WHERE name = 'log'",
        "UPDATE meta SET value = '' WHERE name = 'chain'",
        "DELETE FROM meta WHERE name = 'chain'",
        "UPDATE meta SET value = -1 WHERE name = 'record'",
        "UPDATE meta SET value = 'first' WHERE name = 'record'",
        "DROP TABLE event",
        "DROP TABLE lease",
        "DROP TABLE alarm",
        "DROP TABLE meta",
    ],
)
def test_damaged_meta_is_found_at_open(engine: FileEngine, data_dir: Path, statement: str) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.flush()
    engine.close()
    change(data_dir, statement)
    message = refusal(data_dir)
    assert "damaged" in message
    assert str(data_dir / "lessor.db") in message


def test_a_database_cut_short_is_found_at_open(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(batch(1, events=[put(2 + row, b"key", b"v" * 500) for row in range(200)]))
    engine.flush()
    engine.close()
    database = data_dir / "lessor.db"
    whole = database.read_bytes()
    database.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(data_dir)
    assert database.read_bytes() == whole[: len(whole) // 2]


def test_a_damaged_page_is_found_by_load(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(batch(1, events=[put(2 + row, b"key", b"v" * 500) for row in range(2_000)]))
    engine.close()
    with (data_dir / "lessor.db").open("r+b") as database:
        middle = database.seek(0, os.SEEK_END) // 2 // PAGE_BYTES * PAGE_BYTES
        database.seek(middle)
        database.write(b"\xa5" * PAGE_BYTES)
    engine = FileEngine(data_dir)
    engine.open(IDENTITY)
    with pytest.raises(DataDirError, match="damaged") as caught:
        list(engine.load().events)
    assert "\n" not in str(caught.value)
    engine.close()


def test_what_a_crash_in_creation_left_behind_is_built_anew(data_dir: Path) -> None:
    data_dir.mkdir()
    for suffix in ("", "-wal", "-journal"):
        (data_dir / f"lessor.db.new{suffix}").write_bytes(b"half of it")
    engine = FileEngine(data_dir)
    assert engine.open(IDENTITY).batch == 0
    engine.close()
    assert sorted(path.name for path in data_dir.iterdir()) == [
        "lessor.db", "lessor.db-sums", "lessor.lock", "lessor.log.0", "lessor.log.1"
    ]  # fmt: skip


# --- migrations -----------------------------------------------------------------------------------------------------


def test_a_migration_runs_once_and_keeps_the_data(
    engine: FileEngine, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.commit(batch(1, leases=[(7, 60, 61.0, False)]))
    engine.close()
    second = "CREATE TABLE note (text);\nINSERT INTO note VALUES ('a; b');\n"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, second))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    for _ in range(2):
        engine = FileEngine(data_dir)
        assert engine.open(IDENTITY).schema_version == schema.SCHEMA_VERSION
        assert list(engine.load().leases) == [(7, 60, 61.0, False)]
        engine.close()
    with sqlite3.connect(data_dir / "lessor.db") as person:
        assert person.execute("SELECT * FROM note").fetchall() == [("a; b",)]
    person.close()


def test_a_new_directory_gets_every_migration(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE note (text);\n"))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    engine = FileEngine(data_dir)
    assert engine.open(IDENTITY).schema_version == schema.SCHEMA_VERSION
    engine.close()
    with sqlite3.connect(data_dir / "lessor.db") as person:
        assert person.execute("SELECT * FROM note").fetchall() == []
    person.close()


def test_a_migration_that_fails_changes_nothing(
    engine: FileEngine, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.commit(batch(1, leases=[(7, 60, 61.0, False)]))
    engine.close()
    with monkeypatch.context() as patch:
        bad = "CREATE TABLE note (text);\nCREATE TABLE note (text);\n"
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, bad))
        patch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        refusal(data_dir)
    engine = FileEngine(data_dir)
    assert engine.open(IDENTITY).schema_version == schema.SCHEMA_VERSION
    assert list(engine.load().leases) == [(7, 60, 61.0, False)]
    engine.close()


def test_a_directory_of_before_the_log_opens_and_is_refused_from_then_on_by_its_lessor(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir.mkdir()
    write_schema_1(data_dir / "lessor.db")
    engine = FileEngine(data_dir)
    assert engine.open(IDENTITY).batch == 1
    assert list(engine.load().leases) == [(7, 60, 61.0, False)]
    engine.commit(batch(2, leases=[(8, 60, 61.0, False)]))
    engine.close()
    for version in (1, 2, 3):
        with monkeypatch.context() as past:
            past.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:version])
            past.setattr(schema, "SCHEMA_VERSION", version)
            assert "written by a newer Lessor" in refusal(data_dir)
    engine = FileEngine(data_dir)
    assert engine.open(IDENTITY).batch == 2
    engine.close()


def test_the_tables_say_in_their_own_words_what_the_clock_is(engine: FileEngine, data_dir: Path) -> None:
    """What people see with `.schema`, in new directories and in those brought up to date."""
    old = data_dir.with_name("old")
    old.mkdir()
    write_schema_1(old / "lessor.db")
    other = FileEngine(old)
    other.open(IDENTITY)
    other.close()
    texts = []
    for home in (data_dir, old):
        with contextlib.closing(sqlite3.connect(home / "lessor.db")) as person:
            texts.append(
                "\n".join(sql for (sql,) in person.execute("SELECT sql FROM sqlite_schema ORDER BY name") if sql)
            )
            assert dict(person.execute("SELECT name, value FROM meta")).keys() >= {"clock_s", "record", "chain", "log"}
    assert texts[0] == texts[1]
    assert "uptime" not in texts[0]
    assert "-- on the data clock, meta.clock_s; not before the true deadline" in texts[0]


# --- backup ---------------------------------------------------------------------------------------------------------


def test_a_backup_is_a_data_directory_of_that_moment(engine: FileEngine, tmp_path: Path) -> None:
    engine.begin_term(3)
    engine.commit(batch(1, events=[put(2, b"a")], leases=[(7, 60, 61.0, False)], clock_s=5.5))
    engine.flush()
    target = tmp_path / "restored" / "lessor.db"
    target.parent.mkdir()
    engine.backup(target)
    engine.commit(batch(2, events=[put(3, b"b")]))
    with contextlib.closing(sqlite3.connect(target)) as copy:  # whatever files of a log lie where it is put
        assert copy.execute("SELECT value FROM meta WHERE name = 'log'").fetchone() == ("",)
    assert [path.name for path in target.parent.iterdir()] == ["lessor.db"]
    restored = FileEngine(target.parent)
    meta = restored.open((1, 1))
    assert (meta.cluster_id, meta.member_id) == IDENTITY
    assert (meta.term, meta.batch, meta.clock_s) == (3, 1, 5.5)
    loaded = restored.load()
    assert list(loaded.events) == [put(2, b"a")]
    assert list(loaded.leases) == [(7, 60, 61.0, False)]
    restored.begin_term(4)
    restored.commit(batch(2, events=[put(3, b"other")]))
    restored.close()
    restored = FileEngine(target.parent)
    assert restored.open((1, 1)).batch == 2
    restored.close()
    assert sum(1 for _ in engine.load().events) == 2


def test_a_backup_overwrites_nothing_and_harms_nothing(engine: FileEngine, tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.write_bytes(b"precious")
    with pytest.raises(EngineError, match="exists"):
        engine.backup(target)
    assert target.read_bytes() == b"precious"
    with pytest.raises(EngineError) as caught:
        engine.backup(tmp_path / "missing" / "copy")
    assert "\n" not in str(caught.value)
    engine.commit(batch(1, events=[put(2, b"a")]))


# --- people reading -------------------------------------------------------------------------------------------------


def test_people_can_read_it_while_it_is_served(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(
        batch(
            1,
            clock_s=10.0,
            events=[
                (2, 0, b"/svc/a", b"one", 2, 1, 0x1234),
                (3, 0, b"/svc/b", b"two", 3, 1, 0),
                (4, 0, b"/svc/a", b"three", 2, 2, 0x1234),
                (5, 0, b"/svc/b", None, 0, 0, 0),
                (6, 0, b"/svc/c", b"x", 6, 1, 0),
                (6, 1, b"/svc/c", None, 0, 0, 0),
            ],
            leases=[(0x1234, 60, 65.5, False), (0x99, 5, 12.0, False), (0x98, 5, 12.0, True)],
        )
    )
    engine.flush()
    person = sqlite3.connect(f"{(data_dir / 'lessor.db').as_uri()}?mode=ro", uri=True)
    assert person.execute("SELECT * FROM current_keys").fetchall() == [("/svc/a", "three", 2, 4, 2, "0000000000001234")]
    assert person.execute("SELECT * FROM live_leases").fetchall() == [
        ("0000000000000099", 5, 2.0),
        ("0000000000001234", 60, 55.5),
    ]
    person.close()


def test_the_disk_being_full_is_said_and_is_final(engine: FileEngine, data_dir: Path) -> None:
    engine.commit(batch(1, events=[put(2, b"a")]))
    engine.flush()
    connection = engine._tables._open
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 20").fetchall()  # SQLite then answers as for a disk without space
    engine.commit(batch(2, events=[put(3, b"b", b"v" * 100_000)]))
    with pytest.raises(EngineError, match="disk is full") as caught:
        engine.flush()
    assert "\n" not in str(caught.value)
    assert str(data_dir / "lessor.db") in str(caught.value)
    for write in (
        lambda: engine.commit(batch(3)),
        lambda: engine.commit(batch(3, alarms=ALARM)),
        lambda: engine.begin_term(9),
        engine.defragment,
        lambda: settle(engine),
        lambda: rest(engine),
        engine.flush,
    ):
        with pytest.raises(EngineError, match="disk is full"):
            write()
    fresh = reopened(engine, data_dir)
    # What was logged is durable, though it could not be folded then.
    assert [event[2] for event in fresh.load().events] == [b"a", b"b"]
    fresh.close()
