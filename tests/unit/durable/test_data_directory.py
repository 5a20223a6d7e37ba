# SPDX-License-Identifier: Apache-2.0
"""Directories that Lessor must not serve from, and files in them that do not belong together.

Beyond what the engine's own tests hold.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from lessor.durable import directory, log_file_header, opening, snapshot_file, upkeep
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.durable.opening import PAGE_BYTES
from tests.faulty_disk import StatementFaults, WriteFaults
from tests.unit.durable.engine_rows import batch, files, put, settle


def test_an_etcds_data_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "member" / "snap").mkdir(parents=True)
    with pytest.raises(DataDirError, match="holds the data of an etcd"):
        FileEngine(tmp_path).open((1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["member"]


# --- the log and its database ---------------------------------------------------------------------------------


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A directory whose server was killed: batch 1 is in the tables, batch 2 in the log alone."""
    engine = FileEngine(tmp_path / "alive")
    engine.open((1, 2))
    engine.begin_term(1)
    engine.commit(batch(1, events=[put(2, b"in the tables")]))
    engine.flush()
    engine.commit(batch(2, events=[put(3, b"in the log")]))
    shutil.copytree(tmp_path / "alive", tmp_path / "crashed")
    engine.close()
    return tmp_path / "crashed"


def keys(data_dir: Path) -> list[bytes]:
    engine = FileEngine(data_dir)
    try:
        engine.open((1, 2))
        return [event[2] for event in engine.load().events]
    finally:
        engine.close()


def refused(data_dir: Path, match: str) -> None:
    """Opening says so in one line and changes no file that holds data."""
    before = files(data_dir)
    with pytest.raises(DataDirError, match=match) as caught:
        FileEngine(data_dir).open((1, 2))
    assert "\n" not in str(caught.value)
    assert {name: content for name, content in files(data_dir).items() if content or name in before} == before


def test_what_is_in_the_log_alone_is_there_after_a_crash(crashed: Path) -> None:
    assert keys(crashed) == [b"in the tables", b"in the log"]
    assert keys(crashed) == [b"in the tables", b"in the log"]


@pytest.mark.parametrize("name", directory.LOG_NAMES)
def test_a_log_that_is_missing_after_a_crash_is_refused_until_a_person_says_so(crashed: Path, name: str) -> None:
    held_batch = b"in the log" in (crashed / name).read_bytes()
    (crashed / name).unlink()
    refused(crashed, f"{name}: missing, and the newest writes may be in it alone")
    refused_empty(crashed, name)
    (crashed / name).write_text("lost\n")
    assert keys(crashed) == [b"in the tables"] + ([] if held_batch else [b"in the log"])


def refused_empty(data_dir: Path, name: str) -> None:
    """A file that was cut to nothing is no word of a person."""
    (data_dir / name).touch()
    refused(data_dir, f"{name}: damaged")


def test_a_log_with_a_gap_is_refused_and_left_alone(crashed: Path) -> None:
    path = crashed / "lessor.log.0"
    engine = FileEngine(crashed)
    engine.open((1, 2))
    engine.commit(batch(3, events=[put(4, b"first")]))
    engine.commit(batch(4, events=[put(5, b"second")]))
    shutil.copytree(crashed, crashed.with_name("again"))
    engine.close()
    again = crashed.with_name("again")
    data = path.read_bytes()
    (again / path.name).write_bytes(data.replace(b"first", b"fIrst", 1))
    refused(again, r"lessor.log.\*: damaged \(record 5 is there, but of those before it only the ones up to 3\)")
    (again / path.name).write_bytes(data)
    assert keys(again) == [b"in the tables", b"in the log", b"first", b"second"]


def test_after_a_clean_stop_the_log_may_be_missing(crashed: Path) -> None:
    engine = FileEngine(crashed)
    engine.open((1, 2))
    engine.begin_term(2)
    engine.commit(batch(3, events=[put(4, b"last")], clean=True))
    engine.close()
    for name in directory.LOG_NAMES:
        (crashed / name).unlink()
    assert keys(crashed) == [b"in the tables", b"in the log", b"last"]


def test_a_log_of_an_earlier_run_does_not_count(crashed: Path) -> None:
    """As when a person puts an old log back. After an orderly stop its records are in the tables already."""
    old = {name: (crashed / name).read_bytes() for name in directory.LOG_NAMES}
    engine = FileEngine(crashed)
    engine.open((1, 2))
    engine.begin_term(2)
    engine.commit(batch(3, events=[put(4, b"newer")]))
    engine.flush()
    shutil.copytree(crashed, crashed.with_name("killed"))
    engine.commit(batch(4, clean=True))
    engine.close()
    for name, content in old.items():
        (crashed / name).write_bytes(content)
        (crashed.with_name("killed") / name).write_bytes(content)
    refused(crashed.with_name("killed"), "the newest record is 3, but the tables have 5: the files are of different")
    assert keys(crashed) == [b"in the tables", b"in the log", b"newer"]


def test_a_log_with_another_history_than_the_tables_is_refused(crashed: Path, tmp_path: Path) -> None:
    """Two servers went on from copies of one directory; a person puts the log of one beside the tables of the other."""
    other = tmp_path / "other"
    shutil.copytree(crashed, other)
    for home, key in ((crashed, b"one way"), (other, b"another way")):
        engine = FileEngine(home)
        engine.open((1, 2))
        engine.begin_term(2)
        engine.commit(batch(3, events=[put(4, key)]))
        engine.flush()
        if home is other:
            engine.commit(batch(4, events=[put(5, key)]))
        shutil.copytree(home, home.with_name(home.name + " mixed"))
        engine.close()
    mixed = tmp_path / "crashed mixed"
    for name in directory.LOG_NAMES:
        shutil.copy(tmp_path / "other mixed" / name, mixed)
    refused(mixed, r"record 5 does not follow what the tables have: the files are of different moments")


def test_the_log_of_another_directory_is_refused(crashed: Path, tmp_path: Path) -> None:
    engine = FileEngine(tmp_path / "stranger")
    engine.open((1, 2))
    engine.close()
    shutil.copy(tmp_path / "stranger" / "lessor.log.0", crashed)
    refused(crashed, "the log of another data directory")


def test_files_that_were_exchanged_are_refused(crashed: Path) -> None:
    os.replace(crashed / "lessor.log.0", crashed / "aside")
    os.replace(crashed / "lessor.log.1", crashed / "lessor.log.0")
    os.replace(crashed / "aside", crashed / "lessor.log.1")
    refused(crashed, "the other file of this one")


@pytest.mark.parametrize("left_bytes", [1, 511, 512, 4_096, 4 * 1024 * 1024 - 1])
@pytest.mark.parametrize("name", directory.LOG_NAMES)
def test_a_log_cut_short_is_refused(crashed: Path, name: str, left_bytes: int) -> None:
    os.truncate(crashed / name, left_bytes)
    refused(crashed, "damaged")


def test_a_log_of_a_newer_format_is_refused_as_such(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(crashed, crashed.with_name("record"))
    (crashed / "lessor.log.1").unlink()
    with monkeypatch.context() as future:
        future.setattr("lessor.durable.log_file_header.FORMAT", 3)
        (crashed / "lessor.log.0").write_bytes(future_file(crashed / "lessor.log.0"))
    refused(crashed, r"lessor.log.0: written by a newer Lessor \(log format 3, this one knows 2\)")


def future_file(path: Path) -> bytes:
    """The file with a first sector as `log_file_header` makes it now."""
    data = path.read_bytes()
    found = log_file_header.parse(data[:512])
    assert found is not None
    return log_file_header.header(found.log_id, found.number) + data[512:]


def test_a_record_of_a_newer_format_is_refused_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FileEngine(tmp_path / "alive")
    engine.open((1, 2))
    with monkeypatch.context() as future:
        future.setattr("lessor.durable.record.FORMAT", 2)
        engine.commit(batch(1, events=[put(2, b"key")]))
    shutil.copytree(tmp_path / "alive", tmp_path / "crashed")
    engine.close()
    refused(tmp_path / "crashed", r"written by a newer Lessor \(a record of format 2, this Lessor knows 1\)")


def test_a_backup_in_the_place_of_its_own_database_is_not_brought_up_to_date(crashed: Path) -> None:
    """Whoever goes back to a backup wants the state of that moment, whatever logs lie beside it."""
    engine = FileEngine(crashed)
    engine.open((1, 2))
    engine.begin_term(2)
    engine.backup(crashed.with_name("copy"))
    engine.commit(batch(3, events=[put(4, b"a mistake")]))
    engine.close()
    os.replace(crashed.with_name("copy"), crashed / "lessor.db")
    assert keys(crashed) == [b"in the tables", b"in the log"]
    engine = FileEngine(crashed)
    engine.open((1, 2))
    engine.begin_term(3)
    engine.commit(batch(3, events=[put(4, b"another way")]))
    engine.close()
    assert keys(crashed) == [b"in the tables", b"in the log", b"another way"]


def test_a_copy_of_the_database_alone_is_refused_unless_it_is_restored_as_such(crashed: Path, tmp_path: Path) -> None:
    engine = FileEngine(crashed)
    engine.open((1, 2))
    engine.begin_term(2)
    engine.defragment()  # so that SQLite's log is empty
    (tmp_path / "alone").mkdir()
    shutil.copy(crashed / "lessor.db", tmp_path / "alone")
    engine.close()
    refused(tmp_path / "alone", "missing, and the newest writes may be in it alone")
    snapshot_file.restore(tmp_path / "alone" / "lessor.db", tmp_path / "restored", skip_checksum=True)
    assert [path.name for path in (tmp_path / "restored").iterdir()] == ["lessor.db"]
    assert keys(tmp_path / "restored") == [b"in the tables", b"in the log"]


def test_a_first_start_on_a_backup_that_was_killed_while_it_changed_the_file_goes_on(
    crashed: Path, tmp_path: Path
) -> None:
    """SQLite has left its rollback journal then, and a connection that only reads cannot do anything with that."""
    engine = FileEngine(crashed)
    engine.open((1, 2))
    backup = tmp_path / "backup.db"
    engine.backup(backup)
    engine.close()
    restored = tmp_path / "restored"
    restored.mkdir()
    with contextlib.closing(sqlite3.connect(backup, isolation_level=None)) as starting:
        starting.execute("PRAGMA cache_size = 1")
        starting.execute("BEGIN EXCLUSIVE")
        starting.execute("UPDATE meta SET value = 'half' WHERE name = 'term'")
        starting.execute("CREATE TABLE half AS SELECT hex(zeroblob(100000))")  # more than the cache: into the file
        shutil.copy(backup, restored / "lessor.db")
        shutil.copy(f"{backup}-journal", restored / "lessor.db-journal")
    engine = FileEngine(restored)
    assert engine.open((1, 2)).batch == 2
    engine.close()


@pytest.mark.parametrize("fail_at", range(1, 5))
def test_a_copy_whose_first_start_fails_does_not_take_the_log_that_it_came_from_for_its_own(
    crashed: Path, tmp_path: Path, fail_at: int
) -> None:
    engine = FileEngine(crashed)
    engine.open((1, 2))
    copy = tmp_path / "copy"
    copy.mkdir()
    with contextlib.closing(sqlite3.connect(crashed / "lessor.db", isolation_level=None)) as person:
        person.execute("VACUUM INTO ?", (str(copy / "lessor.db"),))
    engine.close()
    with pytest.raises(DataDirError, match="the disk is full"):
        FileEngine(copy, disk=WriteFaults(fail_at, error=errno.ENOSPC)).open((1, 2))
    engine = FileEngine(copy)
    assert engine.open((1, 2)).batch == 2
    engine.close()


def test_logs_that_cannot_be_made_or_read_are_said(crashed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.name == "lessor.log.1":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(DataDirError, match=r"lessor\.log\.1: the disk failed to read or write \(EIO\)"):
        FileEngine(crashed).open((1, 2))


@pytest.mark.slow
def test_an_idle_server_saves_its_clock_without_piling_up_or_writing_to_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FOLD_BYTES", 20_000)
    faults = StatementFaults(0)
    engine = FileEngine(tmp_path / "data", connect=faults.connect)
    engine.open((1, 2))
    before = faults.countdown.calls
    for number in range(1, 401):
        engine.commit(batch(number, clock_s=number / 2))
        settle(engine)
        assert len(engine._upkeep.unfolded) <= 1
        assert engine._upkeep.unfolded.size_bytes < 20_000
    assert 0 < faults.countdown.calls - before < 20
    shutil.copytree(tmp_path / "data", tmp_path / "crashed")
    engine.close()
    engine = FileEngine(tmp_path / "crashed")
    assert engine.open((1, 2)).clock_s == 200.0
    engine.close()


def test_sqlites_log_that_is_cut_after_a_first_run_is_made_good_from_the_log_or_refused(crashed: Path) -> None:
    """The tables know their log even so: its id is in the file, not in SQLite's log."""
    whole = (crashed / "lessor.db-wal").read_bytes()
    page_bytes = PAGE_BYTES + 24
    assert len(whole) >= 32 + 3 * page_bytes
    # A counter, and the new term, which trimmed the log.
    (crashed / "lessor.db-wal").write_bytes(whole[: 32 + 2 * page_bytes])
    shutil.copytree(crashed, crashed.with_name("again"))
    assert keys(crashed.with_name("again")) == [b"in the tables", b"in the log"]
    (crashed / "lessor.db-wal").write_bytes(b"")
    refused(crashed, "record 2 is there, but of those before it only the ones up to 0")


def test_a_first_start_beside_a_reader_of_the_tables_waits_for_its_end_or_is_refused(
    crashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SQLite's log cannot be copied into the file, the id of the log would be in SQLite's log alone."""
    monkeypatch.setattr(opening, "BUSY_S", 0.01)
    with contextlib.closing(sqlite3.connect(crashed / "lessor.db", isolation_level=None)) as person:
        person.execute("UPDATE meta SET value = '' WHERE name = 'log'")
        person.execute("BEGIN")
        person.execute("SELECT count(*) FROM meta").fetchone()
        with pytest.raises(DataDirError, match="locked by another program"):
            FileEngine(crashed).open((1, 2))
    assert keys(crashed) == [b"in the tables"]


@pytest.mark.parametrize("name", ["clock_s", "record", "batch", "term", "compact_revision"])
@pytest.mark.parametrize("value", [9e18, 9 * 10**18, -7, float("inf"), "text", None])
def test_meta_values_that_cannot_be_are_refused(crashed: Path, name: str, value: object) -> None:
    with contextlib.closing(sqlite3.connect(crashed / "lessor.db", isolation_level=None)) as person:
        person.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))
    refused(crashed, f"damaged .meta.{name} is ")
