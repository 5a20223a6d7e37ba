# SPDX-License-Identifier: Apache-2.0
"""Snapshot files: what is believed, what is refused, what a restore leaves behind."""

import hashlib
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.durable import snapshot_file
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.durable.opening import PAGE_BYTES
from lessor.state.digest import hash_kv
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore
from tests.unit.durable.engine_rows import write_schema_1


def with_checksum(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A snapshot of a directory with keys, a lease and an alarm, taken while it was served."""
    engine = FileEngine(tmp_path / "served")
    meta = engine.open((7, 8))
    machine = StateMachine(Identity(7, 8, 2), batch_number=meta.batch + 1)
    engine.begin_term(2)
    machine.apply(rpc.LeaseGrantRequest(ID=5, TTL=60), 1.0)
    machine.apply(rpc.PutRequest(key=b"a", value=b"1", lease=5), 1.0)
    machine.apply(rpc.PutRequest(key=b"a", value=b"2", lease=5), 1.0)
    machine.apply(rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=8, alarm=rpc.NOSPACE), 1.0)
    engine.commit(machine.journal.seal(1.0))
    engine.flush()
    engine.backup(tmp_path / "copy")
    engine.close()
    path = tmp_path / "saved.db"
    path.write_bytes(with_checksum((tmp_path / "copy").read_bytes()))
    return path


def served(data_dir: Path) -> StateMachine:
    engine = FileEngine(data_dir)
    meta = engine.open((1, 1))
    machine = restore(Identity(meta.cluster_id, meta.member_id, meta.term + 1), engine.load())
    engine.close()
    return machine


def test_a_restored_directory_holds_what_was_saved(saved: Path, tmp_path: Path) -> None:
    assert snapshot_file.check(saved) == saved.stat().st_size - 32
    with snapshot_file.opened(saved) as loaded:
        looked_at = restore(Identity(7, 8, 2), loaded)
    snapshot_file.restore(saved, tmp_path / "new")
    machine = served(tmp_path / "new")
    assert (machine.identity.cluster_id, machine.identity.member_id) == (7, 8)
    assert machine.revision == 3
    assert hash_kv(machine.store) == hash_kv(looked_at.store)
    assert [lease.id for lease in machine.leases] == [5]
    assert machine.no_space


def test_looking_creates_and_changes_nothing(saved: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*")), saved.read_bytes()
    snapshot_file.check(saved)
    with snapshot_file.opened(saved) as loaded:
        assert list(loaded.events)
    assert (sorted(tmp_path.rglob("*")), saved.read_bytes()) == before


@pytest.mark.parametrize("at", [0, 20, 100, 5000, -33, -32, -1])
def test_one_changed_byte_is_found(saved: Path, tmp_path: Path, at: int) -> None:
    data = bytearray(saved.read_bytes())
    data[at] ^= 1
    saved.write_bytes(data)
    with pytest.raises(DataDirError, match="checksum does not match"):
        snapshot_file.check(saved)
    with pytest.raises(DataDirError, match="checksum does not match"):
        snapshot_file.restore(saved, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000, PAGE_BYTES, PAGE_BYTES + 32, -1, -32, -PAGE_BYTES])
def test_a_file_cut_short_is_refused(saved: Path, size: int) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(DataDirError) as raised:
        snapshot_file.check(saved)
    assert "\n" not in str(raised.value)
    assert str(saved) in str(raised.value)


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(with_checksum(b"x" * PAGE_BYTES))
    for skip in (False, True):
        with pytest.raises(DataDirError, match="does not start as an SQLite database"):
            snapshot_file.restore(path, tmp_path / "new", skip_checksum=skip)
    with pytest.raises(DataDirError, match="no such file"):
        snapshot_file.check(tmp_path / "nowhere")


@pytest.mark.parametrize("checksum", [True, False])
def test_the_checksum_can_be_waived(saved: Path, tmp_path: Path, checksum: bool) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:-32] + b"\0" * 32 if checksum else data[:-32])
    with pytest.raises(DataDirError):
        snapshot_file.restore(saved, tmp_path / "new")
    snapshot_file.restore(saved, tmp_path / "new", skip_checksum=True)
    assert (tmp_path / "new" / "lessor.db").read_bytes() == data[:-32]
    assert served(tmp_path / "new").revision == 3


def test_a_directory_with_anything_in_it_is_refused_and_left_alone(saved: Path, tmp_path: Path) -> None:
    for name in ("full", "file"):
        target = tmp_path / name
        if name == "full":
            target.mkdir()
            (target / "precious").write_text("x")
        else:
            target.write_text("x")
        with pytest.raises(DataDirError, match="not empty"):
            snapshot_file.restore(saved, target)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]
    (tmp_path / "empty").mkdir()
    snapshot_file.restore(saved, tmp_path / "empty")
    assert served(tmp_path / "empty").revision == 3


def test_what_a_newer_lessor_wrote_is_refused(saved: Path, tmp_path: Path) -> None:
    snapshot_file.restore(saved, tmp_path / "new")
    engine = FileEngine(tmp_path / "new")
    engine.open((1, 1))
    engine._tables._connection.execute("UPDATE meta SET value = 999 WHERE name = 'schema_version'")
    engine.backup(tmp_path / "newer")
    engine.close()
    path = tmp_path / "newer.db"
    path.write_bytes(with_checksum((tmp_path / "newer").read_bytes()))
    with pytest.raises(DataDirError, match="newer Lessor"):
        snapshot_file.restore(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_file_of_an_older_schema_is_read_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    write_schema_1(path)
    path.write_bytes(with_checksum(path.read_bytes()))
    before = path.read_bytes()
    snapshot_file.check(path)
    with snapshot_file.opened(path) as loaded:
        assert [row[:4] for row in loaded.events] == [(2, 0, b"a", b"1")]
    assert path.read_bytes() == before
    snapshot_file.restore(path, tmp_path / "new")
    assert served(tmp_path / "new").revision == 2
