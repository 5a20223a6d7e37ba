# SPDX-License-Identifier: Apache-2.0
"""A directory that follows an etcd: what each call leaves in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.durable import etcd_copy, etcd_snapshot
from lessor.durable.etcd_copy import EtcdCopy, LiveLease
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import AuthRows
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore
from tests.etcd_files import expected, unpacked

NAME = "v3.5"
NEWEST = int(expected(NAME)["seen"]["revision"])


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[EtcdCopy]:
    etcd_snapshot.restore(unpacked(NAME, tmp_path), tmp_path / "new")
    one = EtcdCopy(tmp_path / "new", NEWEST)
    yield one
    one.close()


def put(key: bytes, revision: int, **fields: int) -> mvcc.Event:
    kv = mvcc.KeyValue(key=key, value=b"v", create_revision=revision, mod_revision=revision, version=1, **fields)
    return mvcc.Event(kv=kv)


def deletion(key: bytes, revision: int) -> mvcc.Event:
    return mvcc.Event(type=mvcc.Event.DELETE, kv=mvcc.KeyValue(key=key, mod_revision=revision))


def served(tmp_path: Path) -> tuple[StateMachine, list[tuple[object, ...]], float]:
    engine = FileEngine(tmp_path / "new")
    meta = engine.open((1, 1))
    machine = restore(Identity(meta.cluster_id, meta.member_id, meta.term + 1), engine.load())
    rows = [row for row in engine.load().events if row[0] > NEWEST]
    engine.close()
    assert meta.clean
    return machine, list(rows), meta.clock_s


def test_changes_keep_their_revisions_and_order(copy: EtcdCopy, tmp_path: Path) -> None:
    first, second = NEWEST + 1, NEWEST + 2
    copy.apply([put(b"a", first, lease=7), put(b"b", first)])
    copy.apply([])
    copy.apply([put(b"c", first), deletion(b"a", second)])  # of one revision in two pieces
    assert (copy.revision, copy.changes) == (second, 4)
    copy.finish([], [], -1)
    copy.close()
    machine, rows, _ = served(tmp_path)
    assert rows == [
        (first, 0, b"a", b"v", first, 1, 7),
        (first, 1, b"b", b"v", first, 1, 0),
        (first, 2, b"c", b"v", first, 1, 0),
        (second, 0, b"a", None, 0, 0, 0),
    ]
    assert machine.revision == second


def test_a_key_whose_lease_was_not_told_goes_when_it_is_served(copy: EtcdCopy, tmp_path: Path) -> None:
    copy.apply([put(b"a", NEWEST + 1, lease=99)])  # granted after the leases were listed
    copy.finish([], [], -1, moved_on=True)
    copy.close()
    machine, _, clock_s = served(tmp_path)
    assert b"a" in next(lease.keys for lease in machine.leases if lease.id == 99)
    assert machine.expire(clock_s + 3, 100) >= 1
    assert machine.store.get(b"a") is None


def test_the_end(copy: EtcdCopy, tmp_path: Path) -> None:
    copy.apply([put(b"a", NEWEST + 1, lease=99)])
    copy.finish([LiveLease(7, 600, 12.0), LiveLease(99, 50, 50.0)], [], NEWEST - 1)
    # What the watch brings until it is closed comes too late.
    copy.apply([put(b"z", NEWEST + 2)])
    copy.close()
    machine, rows, clock_s = served(tmp_path)
    assert [row[2] for row in rows] == [b"a"]
    left = {lease.id: (lease.ttl_s, lease.deadline_s - clock_s, b"a" in lease.keys) for lease in machine.leases}
    assert left == {7: (600, 12.0, False), 99: (50, 50.0, True)}  # lease 8 has ended
    assert not machine.alarms  # that of the file was lifted
    assert machine.store.compact_revision == NEWEST - 1


def test_users_and_roles_anew(copy: EtcdCopy, tmp_path: Path) -> None:
    before = expected(NAME)["seen"]["auth"]
    assert {"by-certificate", "Łukasz", "root"} == before["users"].keys()
    users = [("root", b"new hash", False, ("root",), False), ("newcomer", b"hash", False, ("reader",), False)]
    roles = [("root", (), False), ("reader", ((b"k", b"", 1),), False)]
    copy.finish([], [], -1, AuthRows(users, roles, (False, 99)))
    copy.close()
    auth = served(tmp_path)[0].auth
    assert {name: (user.password, user.roles) for name, user in auth.users.items()} == {
        "root": (b"new hash", ("root",)),
        "newcomer": (b"hash", ("reader",)),
    }
    assert dict(auth.roles) == {"root": (), "reader": ((b"k", b"", 1),)}
    assert (auth.enabled, auth.revision) == (False, 99)


def test_an_older_compaction_changes_nothing(copy: EtcdCopy, tmp_path: Path) -> None:
    copy.finish([], [1, 2], 5)
    copy.close()
    machine, _, _ = served(tmp_path)
    assert machine.store.compact_revision == expected(NAME)["seen"]["compact_revision"]
    assert sorted(kind for _, kind in machine.alarms) == [1, 2]


def test_memory_is_given_to_the_tables_now_and_then(
    copy: EtcdCopy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_copy, "_FLUSH_ROWS", 3)
    flushed: list[int] = []
    flush = copy._engine.flush

    def counted() -> None:
        flushed.append(copy.changes)
        flush()

    monkeypatch.setattr(copy._engine, "flush", counted)
    for revision in range(NEWEST + 1, NEWEST + 9):
        copy.apply([put(b"k", revision)])
    assert flushed == [3, 6]
