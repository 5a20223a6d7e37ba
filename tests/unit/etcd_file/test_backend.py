# SPDX-License-Identifier: Apache-2.0
"""Which buckets, keys and values stand for our rows; read back by tests/bolt.py."""

import io
import struct
from typing import Any

import pytest

from lessor.api.proto import auth_pb2, etcd_file_pb2, rpc_pb2
from lessor.etcd_file import backend
from tests import bolt

EMPTY = backend.Content(
    raft_index=3,
    term=2,
    compact_revision=-1,
    events=(),
    leases=(),
    alarms=(),
    users=(),
    roles=(),
    auth_enabled=False,
    auth_revision=1,
)


def written(**parts: Any) -> dict[bytes, dict[bytes, bytes]]:
    file = io.BytesIO()
    backend.write(file, EMPTY._replace(**parts))
    return {name: dict(elements) for name, elements in bolt.buckets(file.getvalue()).items()}


def test_all_buckets_are_there_and_nothing_that_an_older_etcd_does_not_know() -> None:
    assert written() == {
        b"alarm": {},
        b"auth": {b"authEnabled": b"\0", b"authRevision": bytes(7) + b"\1"},
        b"authRoles": {},
        b"authUsers": {},
        b"cluster": {},
        b"key": {},
        b"lease": {},
        b"members": {},
        b"members_removed": {},
        b"meta": {b"consistent_index": bytes(7) + b"\3", b"term": bytes(7) + b"\2"},
    }


@pytest.mark.parametrize("revision", [0, 1, 2**62])
def test_a_compaction_is_scheduled_and_finished(revision: int) -> None:
    at = struct.pack(">QcQ", revision, b"_", 0)
    meta = written(compact_revision=revision)[b"meta"]
    assert (meta[b"scheduledCompactRev"], meta[b"finishedCompactRev"]) == (at, at)


def test_neither_the_key_that_signs_tokens_nor_what_was_deleted_is_in_the_file() -> None:
    users = [
        ("z\0é", b"hash", False, ("r", "a"), False),
        ("", b"the key", True, (), False),
        ("gone", b"x", False, (), True),
        ("nobody", b"", True, (), False),
    ]
    roles = [("r", ((b"k", b"\0", 2), (b"a", b"", 0)), False), ("gone", (), True), ("a", (), False)]
    found = written(users=users, roles=roles, auth_enabled=True, auth_revision=2**40)
    assert found[b"auth"] == {b"authEnabled": b"\1", b"authRevision": struct.pack(">Q", 2**40)}
    assert list(found[b"authUsers"]) == sorted(["z\0é".encode(), b"nobody"])
    user = auth_pb2.User.FromString(found[b"authUsers"]["z\0é".encode()])
    assert (user.name.decode(), user.password, list(user.roles)) == ("z\0é", b"hash", ["a", "r"])
    assert not user.options.no_password
    assert auth_pb2.User.FromString(found[b"authUsers"][b"nobody"]).options.no_password
    assert list(found[b"authRoles"]) == [b"a", b"r"]
    role = auth_pb2.Role.FromString(found[b"authRoles"][b"r"])
    assert [(each.key, each.range_end, each.permType) for each in role.keyPermission] == [
        (b"a", b"", 0),
        (b"k", b"\0", 2),
    ]


def test_alarms_that_are_up() -> None:
    found = written(alarms=[(2**64 - 1, 1, True), (5, 2, True), (6, 1, False)])
    members = [rpc_pb2.AlarmMember.FromString(key) for key in found[b"alarm"]]
    assert sorted((member.memberID, member.alarm) for member in members) == [(5, 2), (2**64 - 1, 1)]
    assert set(found[b"alarm"].values()) == {b""}


def test_a_lease_that_has_all_of_its_time_says_nothing_of_it() -> None:
    found = written(leases=[(1, 60, 60), (2, 60, 59)])
    leases = [etcd_file_pb2.Lease.FromString(value) for value in found[b"lease"].values()]
    assert [(lease.ID, lease.TTL, lease.RemainingTTL) for lease in leases] == [(1, 60, 0), (2, 60, 59)]
