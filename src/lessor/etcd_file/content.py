# SPDX-License-Identifier: Apache-2.0
"""What an etcd keeps in its data file, as plain values: keys with history, leases, users, roles, alarms.

Laws
- Nothing is guessed. A row that etcd cannot have written is damage, and an EtcdFileError names its bucket.
- Changes and leases are streamed; what is kept is little: users, roles and alarms.

Theory of operation. The rows of bucket `key` are the changes since the last compaction, and before it the newest change
of each key, unless that is a deletion. A snapshot that was taken while a compaction ran has older ones too; they are
dead, and whoever reads them has to drop them. The compaction that counts is the newest one that was scheduled: etcd
carries it out at its next start.

`etcdutl snapshot restore --bump-revision` puts a change without a key at the new revision, and schedules a compaction
there. It is no change of a key, and is left out: the revision is that of the compaction.

Does not do: pages (reader.py); raft's log, in which the newest changes of a crashed etcd may be alone; members.
"""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from lessor.api.proto import auth_pb2, etcd_file_pb2, mvcc_pb2, rpc_pb2
from lessor.base import limits
from lessor.base.revision import FIRST_REVISION, NOTHING_COMPACTED
from lessor.etcd_file import layout
from lessor.etcd_file.reader import BoltFile, EtcdFileError, Pair

_VERSION: Final = re.compile(rb"(\d{1,4})\.(\d{1,4})\.[\w.+-]{1,64}", re.ASCII)
NEWEST_KNOWN: Final = (3, 7)  # etcd's version, whose buckets and rows are known
_COUNT_MAX: Final = 2**61  # of revisions, indexes, terms: the half of what a data directory takes
_ROW: Final = layout.REVISION_KEY.size
_TOMBSTONE_ROW: Final = _ROW + len(layout.TOMBSTONE)

# revision, sub, key, value (None: deleted), create_revision, version, lease
Change = tuple[int, int, bytes, bytes | None, int, int, int]


class SavedLease(NamedTuple):
    """A lease that has not ended."""

    id: int
    ttl_s: int
    remaining_s: int  # as of its last checkpoint; the full TTL when there was none


class SavedUser(NamedTuple):
    """A user."""

    name: str
    password: bytes  # its bcrypt hash; b"": none
    no_password: bool  # by intent
    roles: tuple[str, ...]


class SavedRole(NamedTuple):
    """A role."""

    name: str
    permissions: tuple[tuple[bytes, bytes, int], ...]  # key, range_end, type; as in requests


class NewerEtcdError(EtcdFileError):
    """The file is of an etcd whose rows may mean something else. The message says what to do."""


class Content:
    """The content of one file. Raises EtcdFileError wherever something is read."""

    def __init__(self, file: BoltFile) -> None:
        """Reads everything but keys and leases."""
        self.file = file
        self._buckets = dict(file.buckets())
        if layout.KEY not in self._buckets or layout.META_BUCKET not in self._buckets:
            raise EtcdFileError("it has no buckets `key` and `meta`: another program's bbolt file")
        self.unknown_buckets = sorted(self._buckets.keys() - set(layout.BUCKETS))
        meta = dict(self._rows(layout.META_BUCKET))
        cluster = dict(self._rows(layout.CLUSTER))
        self.storage_version = _version(meta.get(layout.STORAGE_VERSION, b""))  # "" before 3.6
        _refuse_newer(self.storage_version)
        self.cluster_version = _version(cluster.get(layout.CLUSTER_VERSION, b""))  # "" in a cluster that is just begun
        self.index = _number(meta.get(layout.CONSISTENT_INDEX), layout.META_BUCKET)  # of raft; 0 when there is none
        self.term = _number(meta.get(layout.TERM), layout.META_BUCKET)  # of raft; 0 before 3.5
        compactions = (meta.get(layout.SCHEDULED_COMPACT), meta.get(layout.FINISHED_COMPACT))
        self.compact_revision = max(map(_compaction, compactions))
        self.revision = max(FIRST_REVISION, self.compact_revision)  # the newest; final when all changes were read
        self.changes_read = 0
        self.member_count = sum(1 for _ in self._rows(layout.MEMBERS))
        self.users = [_user(*row) for row in self._rows(layout.AUTH_USERS)]
        self.roles = [_role(*row) for row in self._rows(layout.AUTH_ROLES)]
        auth = dict(self._rows(layout.AUTH))
        switch = auth.get(layout.AUTH_ENABLED, layout.AUTH_OFF)
        if switch not in (layout.AUTH_ON, layout.AUTH_OFF):
            raise EtcdFileError("the switch in bucket `auth` is neither on nor off")
        self.auth_enabled = switch == layout.AUTH_ON
        self.auth_revision = max(1, _number(auth.get(layout.AUTH_REVISION), layout.AUTH))
        self.alarms = sorted({_alarm(key) for key, _ in self._rows(layout.ALARM)})  # types; one may be of many members

    def _rows(self, bucket: bytes) -> Iterator[Pair]:
        return self._buckets.get(bucket, iter(()))

    def changes(self) -> Iterator[Change]:
        """All changes of keys in ascending (revision, sub). Some may be dead. To be called once."""
        last = (0, 0)
        for row_key, value in self._rows(layout.KEY):
            revision, sub, deleted = _revision_of(row_key)
            if (revision, sub) <= last:
                raise EtcdFileError(f"two changes {revision}.{sub} in bucket `key`")
            last = revision, sub
            try:
                kv = mvcc_pb2.KeyValue.FromString(value)
            except DecodeError:
                raise EtcdFileError(f"the change {revision}.{sub} in bucket `key` is no key with a value") from None
            key = kv.key
            if not key and revision <= self.compact_revision and not value:
                continue  # see above
            self.revision = max(self.revision, revision)
            self.changes_read += 1
            if deleted:
                if not key:
                    raise EtcdFileError(f"the deletion {revision}.{sub} in bucket `key` has no key")
                yield revision, sub, key, None, 0, 0, 0
                continue
            created, version = kv.create_revision, kv.version
            if not key or kv.mod_revision != revision or not 0 < created <= revision or version < 1:
                raise EtcdFileError(f"the change {revision}.{sub} in bucket `key` has impossible numbers")
            yield revision, sub, key, kv.value, created, version, kv.lease

    def leases(self) -> Iterator[SavedLease]:
        """All leases, in the order of their rows. To be called once."""
        for key, value in self._rows(layout.LEASE):
            try:
                row = etcd_file_pb2.Lease.FromString(value)
            except DecodeError:
                raise EtcdFileError("a row in bucket `lease` is no lease") from None
            known = len(key) == layout.NUMBER.size and int.from_bytes(key, "big", signed=True) == row.ID != 0
            if not known or not 0 < row.TTL <= limits.LEASE_TTL_S_MAX or row.RemainingTTL < 0:
                raise EtcdFileError(f"lease {row.ID & 2**64 - 1:016x} in bucket `lease` has impossible numbers")
            yield SavedLease(row.ID, row.TTL, min(row.RemainingTTL, row.TTL) or row.TTL)


def _revision_of(row_key: bytes) -> tuple[int, int, bool]:
    """(revision, sub, whether it is a tombstone) of a row of bucket `key`."""
    deleted = len(row_key) == _TOMBSTONE_ROW
    if len(row_key) != _ROW and not deleted:
        raise EtcdFileError(f"a key of {len(row_key)} bytes in bucket `key`")
    revision, separator, sub = layout.REVISION_KEY.unpack_from(row_key)
    well_formed = separator == layout.SEPARATOR and row_key[_ROW:] in (b"", layout.TOMBSTONE)
    if not well_formed or not FIRST_REVISION < revision <= _COUNT_MAX or sub > _COUNT_MAX:
        raise EtcdFileError("a key in bucket `key` is no revision")
    return revision, sub, deleted


def _compaction(value: bytes | None) -> int:
    if value is None:
        return NOTHING_COMPACTED
    if len(value) != _ROW or value[8:9] != layout.SEPARATOR:
        raise EtcdFileError("a compaction in bucket `meta` is no revision")
    revision, _, _ = layout.REVISION_KEY.unpack(value)
    if revision > _COUNT_MAX:
        raise EtcdFileError(f"a compaction at {revision} in bucket `meta`")
    return int(revision)


def _number(value: bytes | None, bucket: bytes) -> int:
    if value is None:
        return 0
    number = int.from_bytes(value, "big")
    if len(value) != layout.NUMBER.size or number > _COUNT_MAX:
        raise EtcdFileError(f"a number in bucket `{bucket.decode()}` is none")
    return number


def _version(value: bytes) -> str:
    """A version as text; b"" is none."""
    if value and not _VERSION.fullmatch(value):
        raise EtcdFileError("a version in bucket `meta` or `cluster` is none")
    return value.decode()


def _refuse_newer(version: str) -> None:
    """Raises for a version that is newer than those whose form is known."""
    parts = _VERSION.fullmatch(version.encode())
    if parts is not None and (int(parts[1]), int(parts[2])) > NEWEST_KNOWN:
        known = ".".join(map(str, NEWEST_KNOWN))
        raise NewerEtcdError(
            f"written by etcd {version}, and up to {known} is known: take it from there with `etcdutl migrate "
            f"--target-version {known}`"
        )


def _name(key: bytes, name: bytes, bucket: bytes) -> str:
    """The name of a user or role, which its row has twice."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or name != key:
        raise EtcdFileError(f"a name in bucket `{bucket.decode()}` is none")
    return text


def _user(key: bytes, value: bytes) -> SavedUser:
    try:
        user = auth_pb2.User.FromString(value)
    except DecodeError:
        raise EtcdFileError("a row in bucket `authUsers` is no user") from None
    name = _name(key, user.name, layout.AUTH_USERS)
    return SavedUser(name, user.password, user.options.no_password, tuple(dict.fromkeys(user.roles)))


def _role(key: bytes, value: bytes) -> SavedRole:
    try:
        role = auth_pb2.Role.FromString(value)
    except DecodeError:
        raise EtcdFileError("a row in bucket `authRoles` is no role") from None
    name = _name(key, role.name, layout.AUTH_ROLES)
    permissions = {(one.key, one.range_end): one.permType for one in role.keyPermission}
    if len(permissions) != len(role.keyPermission) or not set(permissions.values()) <= {0, 1, 2}:
        raise EtcdFileError(f"role {name!r} in bucket `authRoles` has impossible permissions")
    return SavedRole(name, tuple((*keys, kind) for keys, kind in permissions.items()))


def _alarm(key: bytes) -> int:
    try:
        alarm = rpc_pb2.AlarmMember.FromString(key)
    except DecodeError:
        raise EtcdFileError("a row in bucket `alarm` is no alarm") from None
    if alarm.alarm not in (rpc_pb2.NOSPACE, rpc_pb2.CORRUPT):
        raise EtcdFileError(f"an alarm of kind {alarm.alarm} in bucket `alarm`")
    return int(alarm.alarm)
