# SPDX-License-Identifier: Apache-2.0
"""What etcd's rows mean, and which rows no etcd can have written."""

import struct
from collections.abc import Iterator

import pytest

from lessor.api.proto import auth_pb2, etcd_file_pb2, mvcc_pb2, rpc_pb2
from lessor.etcd_file.content import Content, SavedLease, SavedRole, SavedUser
from lessor.etcd_file.reader import BoltFile, EtcdFileError, Pair

Rows = dict[bytes, bytes]


class Buckets(BoltFile):
    """Rows of a file that nobody has written."""

    def __init__(self, buckets: dict[str, Rows]) -> None:
        self.content: dict[str, Rows] = {"key": {}, "meta": {}} | buckets

    def buckets(self) -> Iterator[tuple[bytes, Iterator[Pair]]]:
        for name, rows in sorted(self.content.items()):
            yield name.encode(), iter(sorted(rows.items()))


def content(**buckets: Rows) -> Content:
    return Content(Buckets(buckets))


def at(revision: int, sub: int = 0, deleted: bool = False) -> bytes:
    return struct.pack(">Q", revision) + b"_" + struct.pack(">Q", sub) + (b"t" if deleted else b"")


def kv(key: bytes = b"k", **fields: object) -> bytes:
    return mvcc_pb2.KeyValue(key=key, **fields).SerializeToString()  # type: ignore[arg-type]


def put(revision: int) -> bytes:
    return kv(create_revision=revision, mod_revision=revision, version=1, value=b"v")


def lease(id_: int, ttl_s: int, remaining_s: int = 0) -> bytes:
    return etcd_file_pb2.Lease(ID=id_, TTL=ttl_s, RemainingTTL=remaining_s).SerializeToString()


def number(value: int) -> bytes:
    return struct.pack(">Q", value)


def test_changes() -> None:
    rows = {
        at(2): kv(b"a", create_revision=2, mod_revision=2, version=1, value=b"1", lease=9),
        at(3, 0): kv(b"a", create_revision=2, mod_revision=3, version=2),
        at(3, 1, deleted=True): kv(b"b"),
    }
    found = content(key=rows)
    assert list(found.changes()) == [
        (2, 0, b"a", b"1", 2, 1, 9),
        (3, 0, b"a", b"", 2, 2, 0),
        (3, 1, b"b", None, 0, 0, 0),
    ]
    assert (found.revision, found.compact_revision, found.changes_read) == (3, -1, 3)


def test_a_store_without_changes_is_at_revision_1() -> None:
    found = content()
    assert list(found.changes()) == []
    assert (found.revision, found.compact_revision, found.term, found.index) == (1, -1, 0, 0)


@pytest.mark.parametrize(
    ("scheduled", "finished", "compact_revision"), [(None, 0, 0), (7, None, 7), (7, 5, 7), (7, 7, 7), (5, 7, 7)]
)
def test_the_newest_compaction_counts(scheduled: int | None, finished: int | None, compact_revision: int) -> None:
    named = {b"scheduledCompactRev": scheduled, b"finishedCompactRev": finished}
    found = content(meta={name: at(revision) for name, revision in named.items() if revision is not None})
    assert found.compact_revision == compact_revision
    assert found.revision == max(compact_revision, 1)


def test_a_bumped_revision_is_no_change_of_a_key() -> None:
    rows = {at(4): put(4), at(1004): b""}
    found = content(key=rows, meta={b"scheduledCompactRev": at(1004)})
    assert [change[0] for change in found.changes()] == [4]
    assert (found.revision, found.compact_revision) == (1004, 1004)
    # Where nothing says that it was bumped, it is damage.
    with pytest.raises(EtcdFileError, match="impossible numbers"):
        list(content(key=rows).changes())


def test_leases() -> None:
    rows = {
        number(7): lease(7, 60),
        number(8): lease(8, 600, 5),
        number(9): lease(9, 60, 61),  # never more than the TTL
        number(2**64 - 3): lease(-3, 9_000_000_000),
    }
    assert list(content(lease=rows).leases()) == [
        SavedLease(7, 60, 60),
        SavedLease(8, 600, 5),
        SavedLease(9, 60, 60),
        SavedLease(-3, 9_000_000_000, 9_000_000_000),
    ]


def test_users_roles_and_the_switch() -> None:
    user = auth_pb2.User(name="ü".encode(), password=b"$2a$10$x", roles=["a", "b", "a"])
    other = auth_pb2.User(name=b"z\n", options=auth_pb2.UserAddOptions(no_password=True))
    role = auth_pb2.Role(name=b"a")
    role.keyPermission.add(permType=auth_pb2.Permission.WRITE, key=b"k", range_end=b"\0")
    role.keyPermission.add(permType=auth_pb2.Permission.READ, key=b"k")
    found = content(
        authUsers={one.name: one.SerializeToString() for one in (user, other)},
        authRoles={b"a": role.SerializeToString()},
        auth={b"authEnabled": b"\x01", b"authRevision": number(12)},
    )
    assert sorted(found.users) == [
        SavedUser("z\n", b"", True, ()),
        SavedUser("ü", b"$2a$10$x", False, ("a", "b")),
    ]
    assert found.roles == [SavedRole("a", ((b"k", b"\0", 1), (b"k", b"", 0)))]
    assert (found.auth_enabled, found.auth_revision) == (True, 12)


def test_auth_that_was_never_on() -> None:
    for rows in ({}, {b"authEnabled": b"\x00"}):
        found = content(auth=rows)
        assert (found.auth_enabled, found.auth_revision) == (False, 1)


def test_an_alarm_of_many_members_is_one() -> None:
    alarms = [(1, rpc_pb2.CORRUPT), (1, rpc_pb2.NOSPACE), (2, rpc_pb2.NOSPACE)]
    rows = {rpc_pb2.AlarmMember(memberID=id_, alarm=kind).SerializeToString(): b"" for id_, kind in alarms}
    assert content(alarm=rows).alarms == [1, 2]


@pytest.mark.parametrize("version", [b"3.6.0", b"3.7.0", b"3.7.0-alpha.1", b"3.5.21"])
def test_versions(version: bytes) -> None:
    assert content(meta={b"storageVersion": version}).storage_version == version.decode()


@pytest.mark.parametrize("version", [b"3.8.0", b"4.0.0", b"3.10.0-rc.0"])
def test_what_a_newer_etcd_has_written_is_refused(version: bytes) -> None:
    with pytest.raises(EtcdFileError, match=f"written by etcd {version.decode()}, and up to 3.7 is known"):
        content(meta={b"storageVersion": version})
    # Its cluster may be on its way to a newer version while its storage is not.
    assert content(meta={b"storageVersion": b"3.7.0"}, cluster={b"clusterVersion": version}).storage_version == "3.7.0"


def test_other_buckets_are_named() -> None:
    assert content(test={b"a": b"b"}, members={b"1f": b"{}"}).unknown_buckets == [b"test"]


def test_another_programs_file() -> None:
    for missing in ("key", "meta"):
        file = Buckets({})
        del file.content[missing]
        with pytest.raises(EtcdFileError, match="another program's"):
            Content(file)


IMPOSSIBLE: list[dict[str, Rows]] = [
    # revisions
    *({"key": {key: put(2)}} for key in (b"x", at(2) + b"x", at(2) + b"tt", at(2)[:-1], b"")),
    {"key": {at(2).replace(b"_", b"-"): put(2)}},
    *({"key": {at(revision): put(revision)}} for revision in (0, 1, 2**61 + 1)),
    {"key": {at(2**64 - 1): put(2)}},
    {"key": {at(2, 2**63): put(2)}},
    {"key": {at(2): put(2), at(2, 0, deleted=True): kv(b"k")}},
    # keys
    *({"key": {at(3): value}} for value in (b"\xff", b"", kv(b""), put(2), put(4))),
    {"key": {at(3): kv(create_revision=4, mod_revision=3, version=1)}},
    {"key": {at(3): kv(create_revision=0, mod_revision=3, version=1)}},
    {"key": {at(3): kv(create_revision=3, mod_revision=3, version=0)}},
    {"key": {at(3): kv(create_revision=3, mod_revision=3, version=-1)}},
    *({"key": {at(3, deleted=True): value}} for value in (b"", kv(b""), b"\xff")),
    # leases
    *({"lease": {number(7): value}} for value in (b"\xff", b"", lease(8, 60), lease(7, 0), lease(7, -1))),
    *({"lease": {number(7): value}} for value in (lease(7, 9_000_000_001), lease(7, 60, -1))),
    {"lease": {b"7": lease(7, 60)}},
    {"lease": {number(0): lease(0, 60)}},
    # what there is once
    *({"meta": {b"scheduledCompactRev": value}} for value in (b"", b"x", at(2**63), at(5, deleted=True))),
    *({"meta": {b"finishedCompactRev": at(5).replace(b"_", b"x")}} for _ in range(1)),
    *({"meta": {name: value}} for name in (b"term", b"consistent_index") for value in (b"1", number(2**63))),
    *({"meta": {b"storageVersion": value}} for value in (b"x", b"3", b"3.7", b"\xff.1.1", b"9" * 5000 + b".1.1")),
    # people
    *({"authUsers": {b"u": value}} for value in (b"\xff", b"", auth_pb2.User(name=b"v").SerializeToString())),
    {"authUsers": {b"\xff": auth_pb2.User(name=b"\xff").SerializeToString()}},
    *({"authRoles": {b"r": value}} for value in (b"\xff", b"", auth_pb2.Role(name=b"s").SerializeToString())),
    {"authRoles": {b"r": b"\x0a\x01r\x12\x03\x12\x01k\x12\x03\x12\x01k"}},  # a permission twice
    {"authRoles": {b"r": b"\x0a\x01r\x12\x05\x08\x07\x12\x01k"}},  # a permission of type 7
    {"auth": {b"authRevision": b"x"}},
    {"auth": {b"authEnabled": b"yes"}},
    *({"alarm": {key: b""}} for key in (b"\xff", b"\x10\x07", b"")),
]


def read_all(buckets: dict[str, Rows]) -> None:
    found = content(**buckets)
    list(found.changes())
    list(found.leases())


@pytest.mark.parametrize("buckets", IMPOSSIBLE, ids=str)
def test_rows_that_no_etcd_has_written(buckets: dict[str, Rows]) -> None:
    with pytest.raises(EtcdFileError) as raised:
        read_all(buckets)
    assert "\n" not in str(raised.value)
    assert next(iter(buckets)) in str(raised.value)
