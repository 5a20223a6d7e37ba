# SPDX-License-Identifier: Apache-2.0
"""No page looks damaged that other programs, or a crash at any point, have left as it is.

Other programs are processes of their own here, as with the `sqlite3` shell: SQLite's locks are those of a process.
"""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from lessor.durable import sweep, upkeep
from lessor.durable.engine import DataDirError, EngineError
from lessor.durable.file_engine import FileEngine
from lessor.durable.sqlite_files import SqliteFiles
from lessor.state.journal import EventRow
from tests.faulty_disk import Countdown, WriteFaults, run_at_once
from tests.unit.durable.engine_rows import IDENTITY, batch, put, rest
from tests.unit.durable.page_sums_kit import (
    NAME,
    PAGE,
    copied,
    fill,
    flip,
    home,
    killed_of,
    opened,
    person,
    small,
    start,
    stopped_of,
)

__all__ = ["home", "small"]  # fixtures


# --- other programs -------------------------------------------------------------------------------------------------

CLOSED: dict[str, tuple[str, bool, bool]] = {  # what it does; whether the next start compares after a kill, and a stop
    "reads": ("c.execute('SELECT * FROM event').fetchall()", False, True),
    "writes": ("note()", False, False),
    "reads, and is killed": ("c.execute('SELECT * FROM event').fetchall(); die()", True, True),
    "writes, and is killed": ("note(); die()", True, False),
    "copies, and is killed": ("note(); copy(); die()", True, False),
    "begins the log anew, and is killed": ("note(); copy(); note(); die()", False, False),
    "writes and empties the log, and is killed": (
        "note(); c.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall(); die()",
        False,
        False,
    ),
    "begins anew twice, and is killed": ("note(); copy(); note(); copy(); note(); die()", False, False),
    "rebuilds the file": ("c.execute('VACUUM')", False, False),
    "rebuilds the file, and is killed": ("c.execute('VACUUM'); copy(); die()", True, False),
    "rebuilds the file, begins the log anew, and is killed": (
        "c.execute('VACUUM'); copy(); note(); die()",
        False,
        False,
    ),
    "changes the mode there and back": (
        "c.execute('PRAGMA journal_mode = DELETE'); note(); c.execute('PRAGMA journal_mode = WAL'); note(); die()",
        False,
        False,
    ),
    "keeps all others out, writes": (
        "c.execute('PRAGMA locking_mode = EXCLUSIVE'); note(); c.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()",
        False,
        False,
    ),
    "is killed within a transaction": (
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN'); c.execute('UPDATE event SET value = 1'); die()",
        True,
        False,
    ),
}


@pytest.mark.parametrize("stopped", [False, True], ids=["after a kill", "after a stop"])
@pytest.mark.parametrize("what", CLOSED)
def test_whoever_opens_the_tables_of_a_server_that_does_not_run_makes_no_page_look_damaged(
    home: Path, what: str, stopped: bool
) -> None:
    script, after_kill, after_stop = CLOSED[what]
    engine = opened(home / "data")
    fill(engine, range(1, 20))
    engine._tables.begin_sync()
    expected = list(engine.load().events)
    left = stopped_of(engine) if stopped else killed_of(engine)
    person(left, script)
    found, not_compared = start(left)
    assert found == expected
    assert (not_compared == "") == (after_stop if stopped else after_kill), not_compared
    assert start(left) == (expected, "")


RUNNING: dict[str, tuple[str, bool]] = {
    "reads": ("c.execute('SELECT * FROM event').fetchall()", True),
    "writes": ("note()", True),
    "copies": ("note(); copy()", True),
    "begins the log anew": ("note(); copy(); note()", False),
    "empties the log": ("note(); c.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()", False),
    "writes much": ("c.execute('CREATE TABLE big AS SELECT zeroblob(6000000)'); note()", False),
    "rebuilds the file": ("c.execute('VACUUM'); copy()", True),
}


@pytest.mark.parametrize("what", RUNNING)
def test_whoever_opens_the_tables_of_a_server_that_runs_makes_no_page_look_damaged(home: Path, what: str) -> None:
    script, compares = RUNNING[what]
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    person(engine._dir, script)
    found, not_compared = start(copied(engine._dir, "killed"))
    assert found == events
    assert (not_compared == "") == compares, not_compared
    events += fill(engine, range(20, 30))
    assert start(copied(engine._dir, "killed"))[0] == events
    # The next whole copy knows the file again.
    engine._tables.begin_sync()
    events += fill(engine, range(30, 40))
    assert start(copied(engine._dir, "killed")) == (events, "")
    engine.close()
    assert start(engine._dir) == (events, "")


def test_a_round_that_went_on_behind_a_whole_copy_and_was_ended_by_another_program(home: Path) -> None:
    """The salts of the next round are those that a round ended by ourselves would have been followed by."""
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    with closing(sqlite3.connect(home / "data" / "lessor.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        before = engine._tables.sums.files.salts()
        engine._tables.begin_sync()  # copies all, and cannot begin anew
        assert engine._tables.sums.files.salts() == before
        events += fill(engine, range(20, 40))
    assert "(0, " in person(engine._dir, "note(); copy(); note(); die()")
    after = engine._tables.sums.files.salts()
    assert before is not None
    assert after is not None
    assert int.from_bytes(after[:4], "big") == (int.from_bytes(before[:4], "big") + 1) % 2**32
    found, not_compared = start(copied(engine._dir, "killed"))
    assert found == events
    assert "lessor.db-sums is of another moment than lessor.db" in not_compared
    engine.close()
    assert start(engine._dir) == (events, "")


def test_somebody_who_reads_on_delays_the_sums_and_nothing_else(home: Path) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    before = (home / "data" / NAME).read_bytes()
    with closing(sqlite3.connect(home / "data" / "lessor.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        for number in range(20, 80, 20):
            events += fill(engine, range(number, number + 20))
            engine._tables.begin_sync()
            assert (home / "data" / NAME).read_bytes() == before
            assert start(copied(engine._dir, "killed")) == (events, "")
    events += fill(engine, range(80, 90))
    engine._tables.begin_sync()
    assert (home / "data" / NAME).read_bytes() != before
    assert start(copied(engine._dir, "killed")) == (events, "")
    engine.close()


def test_a_server_whose_disk_has_failed_leaves_what_the_next_start_compares_with(home: Path) -> None:
    """It closes SQLite's log without copying it: the same as a kill."""
    faults = WriteFaults()
    engine = opened(home / "data", disk=faults)
    events = fill(engine, range(1, 20))
    faults.countdown = Countdown(1)
    with pytest.raises(EngineError):
        engine.commit(batch(20, events=[put(40, b"key")]))
    engine.close()
    assert (home / "data" / "lessor.db-wal").stat().st_size > PAGE
    assert start(home / "data") == (events, "")


def test_a_start_beside_another_program_compares_what_that_does_not_change(home: Path) -> None:
    engine = opened(home / "data")
    events = fill(engine, range(1, 20))
    left = killed_of(engine)
    script = (
        "import sqlite3, sys\nc = sqlite3.connect('lessor.db', isolation_level=None)\n"
        "c.execute(\"REPLACE INTO meta VALUES ('a note', 1)\")\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=left, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert start(left) == (events, "")
        assert (left / "lessor.db-wal").exists()
        other.communicate("")
    assert start(left)[0] == events


class Intruder:
    """Another program that comes at one instant of a copy: before the `at`th step of it, and does as `deeds` say.

    Steps are the statements of our connections, and reads of SQLite's files.
    """

    def __init__(self, data_dir: Path, deeds: str) -> None:
        self.at = 0  # 0: never
        self.steps = 0
        self._data_dir = data_dir
        self._deeds = deeds.split()
        self._connection: sqlite3.Connection | None = None

    def step(self) -> None:
        self.steps += 1
        if self.steps != self.at:
            return
        self._connection = connection = sqlite3.connect(self._data_dir / "lessor.db", isolation_level=None, timeout=0)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        for deed in self._deeds:
            with suppress(sqlite3.OperationalError):  # locked
                if deed == "writes":
                    connection.execute("REPLACE INTO meta VALUES ('a note', ?)", (os.urandom(8),))
                    connection.execute("DELETE FROM event WHERE revision = (SELECT max(revision) FROM event)")
                elif deed == "reads":
                    connection.execute("BEGIN")
                    connection.execute("SELECT * FROM meta").fetchall()
                else:
                    connection.execute(f"PRAGMA wal_checkpoint({deed})").fetchall()

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self, database: str, **options: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(database, factory=_Disturbed, **options)
        connection.intruder = self
        return connection


class _Disturbed(sqlite3.Connection):
    intruder: Intruder

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self.intruder.step()
        return super().execute(sql, parameters)


@pytest.mark.slow
@pytest.mark.parametrize(
    "deeds",
    [
        "writes",
        "reads",
        "PASSIVE",
        "writes PASSIVE",
        "writes PASSIVE writes",
        "PASSIVE writes PASSIVE writes",
        "writes PASSIVE writes PASSIVE writes PASSIVE writes",
        "writes PASSIVE reads",
        "writes TRUNCATE writes",
    ],
)
@pytest.mark.parametrize("during", ["a copy", "a stop", "a start after a stop", "a start after a kill"])
def test_whoever_comes_in_between_makes_no_page_look_damaged(
    home: Path, deeds: str, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    intruder = Intruder(home / "data", deeds)
    for name in ("salts", "frames_in_log", "frames", "read"):
        real = getattr(SqliteFiles, name)

        def call(files: SqliteFiles, *arguments: Any, real: Any = real) -> Any:
            intruder.step()
            return real(files, *arguments)

        monkeypatch.setattr(SqliteFiles, name, call)
    at = 0
    while True:
        at += 1
        shutil.rmtree(home / "data", ignore_errors=True)
        engine = opened(home / "data", connect=intruder.connect)
        fill(engine, range(1, 8), 2_000)
        if "start" in during:
            left = stopped_of(engine) if "stop" in during else killed_of(engine)
            shutil.copytree(left, home / "left")
            shutil.rmtree(home / "data")
            os.replace(home / "left", home / "data")
            engine = FileEngine(home / "data", start=run_at_once, connect=intruder.connect)
        intruder.steps, intruder.at = 0, at
        if "copy" in during:
            engine._tables.begin_sync()
            assert engine._tables._syncing.error is None
        elif "start" in during:
            engine.open(IDENTITY)
        else:
            engine.close()
        through, intruder.at = intruder.steps < at, 0
        lefts = [copied(home / "data", "at once")]
        intruder.leave()
        lefts.append(copied(home / "data", "a moment later"))
        if "copy" in during:
            fill(engine, range(8, 10), 2_000)
            lefts.append(copied(home / "data", "at last"))
        engine.close()
        for left in lefts:
            start(left)  # is not refused
        if through:
            break
    assert at > 8


# --- crashes --------------------------------------------------------------------------------------------------------


class Crashes:
    """Copies the directory as it is before and after each statement, and each call that changes the sums."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.number = 0
        self.events: list[EventRow] = []  # acknowledged
        self._seen: set[int] = set()
        self.left: list[tuple[Path, list[EventRow]]] = []

    def look(self) -> None:
        if not (self._data_dir / "lessor.db").exists():
            return
        state = hash(
            tuple(path.read_bytes() for path in sorted(self._data_dir.glob("lessor.*")) if path.suffix != ".lock")
        )
        if state not in self._seen:
            self._seen.add(state)
            self.left.append((copied(self._data_dir, f"crash{len(self.left)}"), list(self.events)))

    def connect(self, database: str, **options: Any) -> sqlite3.Connection:
        connection = sqlite3.connect(database, factory=_Watched, **options)
        connection.crashes = self
        return connection

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.look()
            done = real(*arguments, **options)
            self.look()
            return done

        return call


class _Watched(sqlite3.Connection):
    crashes: Crashes

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self.crashes.look()
        cursor = super().execute(sql, parameters)
        self.crashes.look()
        return cursor

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        cursor = super().executescript(sql)
        self.crashes.look()
        return cursor


@pytest.mark.slow
def test_a_crash_at_any_point_is_no_damage_and_hides_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start, copies, a compaction with all that follows, a rebuild, a stop, another start, on real files.

    Of each state a start is made as it is, and one with a page damaged: that is refused, or harmless, or it was said
    that nothing is compared. The latter is so only between the begin of a round and the sums that name it.
    """
    monkeypatch.setattr(sweep, "VACUUM_PAGES_MAX", 8)
    monkeypatch.setattr(upkeep, "WAL_PAGES_SYNC", 30)
    crashes = Crashes(home / "data")
    with monkeypatch.context() as patch:
        for name in ("fsync", "fdatasync", "utime", "pwrite"):
            patch.setattr(os, name, crashes.around(getattr(os, name)))

        def write(engine: FileEngine, numbers: range) -> None:
            for number in numbers:
                crashes.events += fill(engine, range(number, number + 1), 2_000)

        engine = opened(home / "data", connect=crashes.connect)
        engine.begin_term(1)
        write(engine, range(1, 12))
        engine._tables.begin_sync()
        write(engine, range(12, 14))
        dead = [row[:2] for row in crashes.events[:20]]
        engine.commit(batch(14, compact_revision=20, dead=dead))
        rest(engine)
        write(engine, range(15, 17))
        engine.defragment()
        write(engine, range(17, 18))
        engine.close()
        engine = opened(home / "data", connect=crashes.connect)
        engine.begin_term(2)
        write(engine, range(18, 20))
        engine.close()
    assert len(crashes.left) > 100
    chance, refused, harmless, not_compared = random.Random(3), 0, 0, 0
    removed = set(dead)
    for left, events in crashes.left:
        expected = [row for row in events if row[:2] not in removed]
        damaged = copied(left, "damaged")
        pages = (damaged / "lessor.db").stat().st_size // PAGE
        found, why = start(left)
        assert [row for row in found if row[:2] not in removed][: len(expected)] == expected
        not_compared += why != ""
        flip(damaged / "lessor.db", chance.randrange(PAGE, pages * PAGE), chance.randrange(8))
        try:
            found, again = start(damaged)
        except DataDirError:
            refused += 1
        else:
            assert again == why
            same = [row for row in found if row[:2] not in removed][: len(expected)] == expected
            assert same or why
            harmless += same
        shutil.rmtree(left)
    assert refused > len(crashes.left) // 3
    assert not_compared < len(crashes.left) // 4
