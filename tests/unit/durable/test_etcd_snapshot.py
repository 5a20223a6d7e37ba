# SPDX-License-Identifier: Apache-2.0
"""etcd's files made into data directories: what is believed, what is refused, what a restore leaves behind."""

import fcntl
import os
import sqlite3
from pathlib import Path

import pytest

from lessor.durable import etcd_snapshot, new_directory, schema, snapshot_file
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.etcd_file import layout
from lessor.etcd_file.content import Content, SavedLease
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore
from tests.etcd_files import NAMES, content, expected, unpacked
from tests.etcd_pages import PAGE, Pages, changed
from tests.unit.durable.test_snapshot_file import with_checksum

NAME = "v3.5"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return unpacked(NAME, tmp_path)


def served(data_dir: Path) -> tuple[StateMachine, float]:
    """What a server would start from, and the data clock."""
    engine = FileEngine(data_dir)
    meta = engine.open((1, 1))
    machine = restore(Identity(meta.cluster_id, meta.member_id, meta.term + 1), engine.load())
    engine.close()
    return machine, meta.clock_s


@pytest.mark.parametrize("name", NAMES)
def test_status_is_that_of_etcdutl(name: str, tmp_path: Path) -> None:
    printed = expected(name)["status"]
    found = etcd_snapshot.status(unpacked(name, tmp_path))
    assert found._asdict() == {
        "hash": printed["hash"],
        "revision": printed["revision"],
        "keys": printed["totalKey"],
        "size_bytes": printed["totalSize"],
        "version": printed["version"],
        "has_checksum": True,
    }


def test_what_was_carried_over(saved: Path, tmp_path: Path) -> None:
    read = 0

    def progress(size: int) -> None:
        nonlocal read
        read += size

    restored = etcd_snapshot.restore(saved, tmp_path / "new", progress=progress)
    seen = expected(NAME)["seen"]
    assert restored.version == "3.5.0"
    assert (restored.revision, restored.compact_revision) == (seen["revision"], seen["compact_revision"])
    assert (restored.leases, restored.users, restored.roles) == (len(seen["leases"]), 3, 3)
    assert (restored.auth_enabled, restored.alarms, restored.members) == (True, (1,), 1)
    assert (restored.unknown_buckets, restored.has_checksum, restored.one_meta) == ((), True, False)
    machine, clock_s = served(tmp_path / "new")
    assert machine.revision == seen["revision"]
    assert {str(lease.id): [lease.ttl_s, sorted(key.decode() for key in lease.keys)] for lease in machine.leases} == (
        seen["leases"]
    )
    assert all(lease.deadline_s - clock_s == lease.ttl_s for lease in machine.leases)
    # The alarm is one of the new member, which may lift it.
    assert list(machine.alarms) == [(machine.identity.member_id, 1)]
    assert 0 < read < 3 * saved.stat().st_size
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name.endswith(".new")] == []


def test_a_compaction_that_was_under_way_is_finished(saved: Path, tmp_path: Path) -> None:
    """The file says that it was scheduled, and has all the rows that it was to delete."""
    data = saved.read_bytes()[: -layout.CHECKSUM_BYTES]
    row = b"scheduledCompactRev" + (60).to_bytes(8, "big")
    assert row in data
    saved.write_bytes(with_checksum(data.replace(row, row[:-8] + (75).to_bytes(8, "big"))))
    assert etcd_snapshot.restore(saved, tmp_path / "new").compact_revision == 75
    machine, _ = served(tmp_path / "new")
    assert machine.store.compact_revision == 75
    found = machine.store.range_at(b"\0", b"", 75)
    assert [[event.key.decode("latin-1"), event.mod_revision] for event in found] == [
        [pair[0], pair[3]] for pair in expected(NAME)["seen"]["keys"]["75"]
    ]


def test_two_restores_are_two_clusters(saved: Path, tmp_path: Path) -> None:
    ids = set()
    for name in ("one", "two"):
        etcd_snapshot.restore(saved, tmp_path / name)
        identity = served(tmp_path / name)[0].identity
        ids |= {identity.cluster_id, identity.member_id}
    assert len(ids) == 4


def test_what_is_written_is_as_a_server_writes_it(saved: Path, tmp_path: Path) -> None:
    etcd_snapshot.restore(saved, tmp_path / "new")
    made = sqlite3.connect(tmp_path / "new" / "lessor.db")
    engine = FileEngine(tmp_path / "fresh")
    engine.open((1, 1))
    engine.close()
    fresh = sqlite3.connect(tmp_path / "fresh" / "lessor.db")
    tables = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    assert made.execute(tables).fetchall() == fresh.execute(tables).fetchall()
    for pragma in ("page_size", "auto_vacuum", "application_id"):
        assert made.execute(f"PRAGMA {pragma}").fetchall() == fresh.execute(f"PRAGMA {pragma}").fetchall()
    assert made.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert made.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone() == (schema.SCHEMA_VERSION,)
    assert (tmp_path / "new" / "lessor.db").stat().st_mode & 0o777 == 0o600
    made.close()
    fresh.close()


def test_a_file_without_a_checksum(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for data in (whole[: -layout.CHECKSUM_BYTES], whole[: -layout.CHECKSUM_BYTES] + bytes(layout.CHECKSUM_BYTES)):
        saved.write_bytes(data)
        with pytest.raises(DataDirError, match="checksum"):
            etcd_snapshot.restore(saved, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    saved.write_bytes(whole[: -layout.CHECKSUM_BYTES])
    assert etcd_snapshot.status(saved)._replace(has_checksum=True) == etcd_snapshot.status(unpacked(NAME, tmp_path))
    saved.write_bytes(data)
    restored = etcd_snapshot.restore(saved, tmp_path / "new", skip_checksum=True)
    assert restored.revision == expected(NAME)["seen"]["revision"]


def test_cut_short_at_each_page(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for size in range(0, len(whole) - PAGE, PAGE):
        for extra in (0, layout.CHECKSUM_BYTES):
            saved.write_bytes(whole[: size + extra])
            for skip in (False, True):
                with pytest.raises(DataDirError) as raised:
                    restore_either(saved, tmp_path / "new", skip)
                assert "\n" not in str(raised.value)
                assert str(saved) in str(raised.value)
                assert not (tmp_path / "new").exists()


def restore_either(path: Path, data_dir: Path, skip: bool) -> None:
    """As the command does."""
    if etcd_snapshot.is_etcd(path):
        etcd_snapshot.restore(path, data_dir, skip_checksum=skip)
    else:
        snapshot_file.restore(path, data_dir, skip_checksum=skip)


def test_an_error_in_the_middle_leaves_nothing_behind(saved: Path, tmp_path: Path) -> None:
    """A change of a key that is no change, behind others that were written by then."""
    pages = Pages(content(NAMES[-1])[: -layout.CHECKSUM_BYTES])
    last = pages.bucket_root(b"key")
    while pages.header(last)[1] == layout.BRANCH_PAGE:
        last = pages.element(last, pages.header(last)[2] - 1)[2]
    pages.set_element(last, 0, flags=2)
    saved.write_bytes(with_checksum(bytes(pages.data)))
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(DataDirError, match="has the flags 0x2"):
            etcd_snapshot.restore(saved, tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataDirError, match="No space left"):
        etcd_snapshot.restore(saved, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_directory_with_anything_in_it_is_refused_and_left_alone(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "lessor.db").write_text("precious")
    with pytest.raises(DataDirError, match="not empty"):
        etcd_snapshot.restore(saved, tmp_path / "full")
    assert (tmp_path / "full" / "lessor.db").read_text() == "precious"


def test_a_file_that_an_etcd_is_running_on(saved: Path, tmp_path: Path) -> None:
    with saved.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as bbolt does
        with pytest.raises(DataDirError, match="an etcd is running on it"):
            etcd_snapshot.restore(saved, tmp_path / "new", skip_checksum=True)
    etcd_snapshot.restore(saved, tmp_path / "new")


def test_what_is_etcds(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    assert etcd_snapshot.is_etcd(saved)
    for page in (0, 1):
        saved.write_bytes(changed(whole, lambda pages, page=page: pages.set_meta(page, magic=0)))  # type: ignore[misc]
        assert etcd_snapshot.is_etcd(saved)
    for data in (b"", b"SQLite format 3\0" * 500, bytes(10_000)):
        saved.write_bytes(data)
        assert not etcd_snapshot.is_etcd(saved)
    assert not etcd_snapshot.is_etcd(tmp_path)
    assert not etcd_snapshot.is_etcd(tmp_path / "nowhere")


def test_the_directory_of_an_etcd_is_pointed_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "member" / "snap" / "db"
    file.parent.mkdir(parents=True)
    file.write_bytes(content(NAME))
    with pytest.raises(DataDirError, match=f"name {file}, with --skip-hash-check"):
        snapshot_file.check(tmp_path)


def test_a_bumped_revision_of_our_own_snapshot(tmp_path: Path) -> None:
    etcd_snapshot.restore(unpacked(NAME, tmp_path), tmp_path / "one")
    newest = expected(NAME)["seen"]["revision"]
    path = tmp_path / "one" / "lessor.db"
    snapshot_file.restore(path, tmp_path / "two", skip_checksum=True, bump_revision=50)
    machine, _ = served(tmp_path / "two")
    assert (machine.revision, machine.store.compact_revision) == (newest + 50, newest + 50)
    # From an end that was compacted already.
    new_directory.bump_revision(path, 7)
    new_directory.bump_revision(path, 7)
    machine, _ = served(tmp_path / "one")
    assert (machine.revision, machine.store.compact_revision) == (newest + 14, newest + 14)


def test_the_time_that_a_lease_had_left(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of its last checkpoint; by default etcd notes none, and none of the files has one."""
    found = [SavedLease(7, 600, 5), SavedLease(8, 3600, 3600)]
    monkeypatch.setattr(Content, "leases", lambda self: iter(found))
    etcd_snapshot.restore(saved, tmp_path / "new")
    machine, clock_s = served(tmp_path / "new")
    assert {lease.id: lease.deadline_s - clock_s for lease in machine.leases} == {7: 5.0, 8: 3600.0}
