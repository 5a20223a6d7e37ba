# SPDX-License-Identifier: Apache-2.0
"""Our rows as the buckets of etcd's data file.

Laws
- Keys and values are byte for byte those that an etcd would have written for the same history: its HashKV is the same.
- Any etcd from 3.5 on can restore the file. So it says nothing that only newer ones understand, and nothing about the
  version and the members of a cluster: each etcd puts its own there.
- What etcd has no place for stays out: the key that signs tokens above all.
- Rows are taken one at a time; only users and roles are in memory together.

Theory of operation. Buckets are written in the order of their names. A file without `storageVersion` and with a raft
term is what 3.5 leaves behind; later ones bring it up to date when they start. The index and the term of raft are those
that Status answers; a restore puts others there.

A lease's remaining time is in whole seconds, upward, and is left out when the lease is as new, as in etcd.

Does not do: reading rows from anywhere; pages (writer.py).
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from lessor.api.proto import auth_pb2, etcd_file_pb2, mvcc_pb2, rpc_pb2
from lessor.etcd_file import layout
from lessor.etcd_file.writer import Element, FileWriter

_UINT64: Final = 2**64 - 1

# As in state/journal.py.
Event = tuple[int, int, bytes, bytes | None, int, int, int]
User = tuple[str, bytes, bool, tuple[str, ...], bool]
Role = tuple[str, tuple[tuple[bytes, bytes, int], ...], bool]
# id, ttl_s, remaining_s (both whole seconds, at least 1)
RemainingLease = tuple[int, int, int]


class Content(NamedTuple):
    """What a file says. All iterables are read once."""

    raft_index: int  # the number of the newest batch
    term: int
    compact_revision: int  # -1: nothing was compacted
    events: Iterable[Event]  # ascending by (revision, sub)
    leases: Iterable[RemainingLease]  # in ascending order of `lease_order`
    alarms: Iterable[tuple[int, int, bool]]  # member_id, type, active
    users: Iterable[User]  # in any order, as roles
    roles: Iterable[Role]
    auth_enabled: bool
    auth_revision: int


def lease_order(lease_id: int) -> int:
    """What leases are in order of in the file: their ids as unsigned numbers."""
    return lease_id & _UINT64


def write(file: BinaryIO, content: Content) -> int:
    """Writes all of it to `file`, which is empty. Returns the size in bytes. Raises OSError, and what iterables raise.

    Cost: about 3 microseconds for each event.
    """
    writer = FileWriter(file)
    writer.bucket(layout.ALARM, _alarms(content))
    writer.bucket(layout.AUTH, _auth(content))
    writer.bucket(layout.AUTH_ROLES, _roles(content))
    writer.bucket(layout.AUTH_USERS, _users(content))
    writer.bucket(layout.CLUSTER, ())
    writer.bucket(layout.KEY, _events(content.events))
    writer.bucket(layout.LEASE, _leases(content))
    writer.bucket(layout.MEMBERS, ())
    writer.bucket(layout.MEMBERS_REMOVED, ())
    writer.bucket(layout.META_BUCKET, _meta(content))
    return writer.finish()


def _events(events: Iterable[Event]) -> Iterator[Element]:
    revision_key, separator, tombstone = layout.REVISION_KEY.pack, layout.SEPARATOR, layout.TOMBSTONE
    key_value = mvcc_pb2.KeyValue
    for revision, sub, key, value, create_revision, version, lease in events:
        if value is None:
            yield revision_key(revision, separator, sub) + tombstone, key_value(key=key).SerializeToString()
        else:
            yield (
                revision_key(revision, separator, sub),
                key_value(
                    key=key,
                    create_revision=create_revision,
                    mod_revision=revision,
                    version=version,
                    value=value,
                    lease=lease,
                ).SerializeToString(),
            )


def _leases(content: Content) -> Iterator[Element]:
    for lease_id, ttl_s, remaining_s in content.leases:
        left = remaining_s if remaining_s < ttl_s else 0
        lease = etcd_file_pb2.Lease(ID=lease_id, TTL=ttl_s, RemainingTTL=left)
        yield layout.NUMBER.pack(lease_order(lease_id)), lease.SerializeToString()


def _meta(content: Content) -> Iterator[Element]:
    yield layout.CONSISTENT_INDEX, layout.NUMBER.pack(content.raft_index)
    if content.compact_revision >= 0:
        compacted = layout.REVISION_KEY.pack(content.compact_revision, layout.SEPARATOR, 0)
        yield layout.FINISHED_COMPACT, compacted
        yield layout.SCHEDULED_COMPACT, compacted
    yield layout.TERM, layout.NUMBER.pack(content.term)


def _alarms(content: Content) -> list[Element]:
    members = [
        rpc_pb2.AlarmMember(memberID=member_id, alarm=kind)  # type: ignore[arg-type]
        for member_id, kind, active in content.alarms
        if active
    ]
    return sorted((member.SerializeToString(), b"") for member in members)


def _auth(content: Content) -> Iterator[Element]:
    yield layout.AUTH_ENABLED, layout.AUTH_ON if content.auth_enabled else layout.AUTH_OFF
    yield layout.AUTH_REVISION, layout.NUMBER.pack(content.auth_revision)


def _users(content: Content) -> list[Element]:
    rows: list[Element] = []
    for name, password, no_password, roles, deleted in content.users:
        if deleted or not name:  # the row without a name has the key that signs tokens
            continue
        options = auth_pb2.UserAddOptions(no_password=no_password)
        user = auth_pb2.User(name=name.encode(), password=password, roles=sorted(roles), options=options)
        rows.append((name.encode(), user.SerializeToString()))
    return sorted(rows)


def _roles(content: Content) -> list[Element]:
    rows: list[Element] = []
    for name, permissions, deleted in content.roles:
        if deleted:
            continue
        role = auth_pb2.Role(name=name.encode())
        for key, range_end, kind in sorted(permissions):
            role.keyPermission.add(permType=kind, key=key, range_end=range_end)
        rows.append((name.encode(), role.SerializeToString()))
    return sorted(rows)
