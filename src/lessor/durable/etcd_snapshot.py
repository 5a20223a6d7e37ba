# SPDX-License-Identifier: Apache-2.0
"""etcd's data files: looked at, and made into data directories.

Laws
- A file is read, never written. While it is read no etcd can start on it, and one that an etcd is running on is
  refused: both by the lock that bbolt takes.
- A file whose SHA-256 stands behind it is believed only if that matches. A file without one, such as that of a stopped
  member, is taken only if the caller waives the checksum; its pages have none, so a changed byte of a value passes.
- A restore makes a new data directory or none: see new_directory.py. Memory does not grow with the number of keys.

A restored directory is another cluster with the same data, as with etcdutl: new ids; the same revisions and history,
raft's term and index, users, roles; leases with the time that the file has for them, which counts from the start of the
server. An alarm of any member becomes one of the only member.

It does not: read etcd's other files. What a crashed etcd had in its log alone is not in the file.
"""

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from lessor.durable import auth_tables, file_kind, new_directory, opening, schema
from lessor.durable.engine import DataDirError
from lessor.durable.opening import Connector
from lessor.durable.snapshot_file import CHECKSUM_BYTES, Progress, digest_of
from lessor.etcd_file import layout
from lessor.etcd_file.content import Content, NewerEtcdError
from lessor.etcd_file.crc32c import Crc32c
from lessor.etcd_file.reader import BoltFile, EtcdFileError, ReadAt
from lessor.state.journal import AuthRows

_ROWS_AT_ONCE: Final = 1_120
_BYTES_AT_ONCE: Final = 4_194_304  # of keys and values
_HEAD_BYTES: Final = layout.PAGE_HEADER.size + 4  # up to the magic number of a meta


class Status(NamedTuple):
    """What `etcdutl snapshot status` of 3.7 shows."""

    hash: int  # CRC-32C of all buckets
    revision: int
    keys: int  # that exist at that revision
    size_bytes: int  # of the pages that were ever used
    version: str  # of etcd's storage; "" before 3.6
    has_checksum: bool


class Restored(NamedTuple):
    """What was carried over, and what was not."""

    version: str  # of etcd: that of its storage, or of its cluster before 3.6; "" if the file says none
    revision: int
    compact_revision: int  # -1: nothing was compacted
    changes: int  # of keys
    leases: int
    users: int
    roles: int
    auth_enabled: bool
    alarms: tuple[int, ...]  # types
    members: int  # in the file; of which nothing is carried over
    unknown_buckets: tuple[bytes, ...]  # left out
    raft_index: int  # of the newest entry in the file
    has_checksum: bool
    one_meta: bool  # whether the file has lost its newest 0.1 s, perhaps: see reader.py


def is_etcd(path: Path) -> bool:
    """Whether the file begins as one of bbolt, however damaged. False for what cannot be opened."""
    try:
        if file_kind.irregular(path, follow=True):
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            # The second meta stands behind the first page, whose size is not known if the first one is damaged.
            sizes = (layout.PAGE_BYTES << power for power in range(5))
            heads = [head, *(os.pread(file.fileno(), _HEAD_BYTES, size) for size in sizes)]
    except OSError:
        return False
    magics = {number.to_bytes(4, "little") for number in (layout.MAGIC, layout.MAGIC_BIG_ENDIAN)}
    return any(each[layout.PAGE_HEADER.size :] in magics for each in heads)


class _File(NamedTuple):
    read: Callable[[], BoltFile]  # each time from the beginning
    has_checksum: bool


@contextlib.contextmanager
def _opened(path: Path, *, needs_checksum: bool, skip_checksum: bool, progress: Progress | None) -> Iterator[_File]:
    """A file that was checked, for one `with` block, which may raise EtcdFileError. Raises DataDirError."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirError(
                    f"{path}: an etcd is running on it: stop that one, or save a snapshot with `etcdctl snapshot save`"
                ) from None
            size = file.seek(0, os.SEEK_END)
            has_checksum = size % layout.CHECKSUM_MODULUS == CHECKSUM_BYTES
            data_bytes = size - CHECKSUM_BYTES if has_checksum else size
            if not skip_checksum:
                _check(path, file, data_bytes, has_checksum, needs_checksum)
            read_at = _reading(file.fileno(), progress)
            yield _File(lambda: BoltFile(read_at, data_bytes), has_checksum)
    except NewerEtcdError as error:
        raise DataDirError(f"{path}: {error}") from None
    except EtcdFileError as error:
        raise DataDirError(f"{path}: a data file of etcd that cannot be read ({error}): take another copy") from None
    except OSError as error:
        raise DataDirError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _check(path: Path, file: BinaryIO, data_bytes: int, has_checksum: bool, needs_checksum: bool) -> None:
    if not has_checksum:
        if not needs_checksum:
            return
        raise DataDirError(
            f"{path}: no checksum at its end: cut short, or the file of a stopped etcd: take another copy, or "
            "--skip-hash-check if you know where it comes from"
        )
    file.seek(0)
    if digest_of(file, data_bytes) != file.read(CHECKSUM_BYTES):
        raise DataDirError(f"{path}: its checksum does not match: changed or damaged since it was saved")


def _reading(descriptor: int, progress: Progress | None) -> ReadAt:
    def read_at(offset: int, size: int) -> bytes:
        if progress is not None:
            progress(size)
        return os.pread(descriptor, size, offset)

    return read_at


def status(path: Path) -> Status:
    """Reads the whole file, three times. Raises DataDirError. Memory: the names of its keys."""
    with _opened(path, needs_checksum=False, skip_checksum=False, progress=None) as (read, has_checksum):
        content = Content(read())
        keys: set[bytes] = set()
        for _, _, key, value, *_ in content.changes():
            if value is None:
                keys.discard(key)
            else:
                keys.add(key)
        for _ in content.leases():
            pass  # each is checked
        size_bytes = content.file.size_bytes
        return Status(_hash_of(read()), content.revision, len(keys), size_bytes, content.storage_version, has_checksum)


def _hash_of(file: BoltFile) -> int:
    hash_ = Crc32c()
    for name, rows in file.buckets():
        hash_.update(name)
        for key, value in rows:
            hash_.update(key + value)
    return hash_.value


def auth_of(path: Path) -> AuthRows:
    """All users and roles of a snapshot, and the switch. Raises DataDirError. Cost: a read of the file."""
    with _opened(path, needs_checksum=True, skip_checksum=False, progress=None) as (read, _):
        return _auth_of(Content(read()))


def restore(
    path: Path,
    data_dir: Path,
    *,
    skip_checksum: bool = False,
    bump_revision: int = 0,
    progress: Progress | None = None,
) -> Restored:
    """Makes a data directory out of etcd's file. Raises DataDirError, and leaves nothing behind then.

    `bump_revision`: as in `new_directory.making`; 0 leaves the history as it is. `progress` is told of each piece
    that was read, in bytes. Cost: a read of the file, and about 10 microseconds a change.
    """
    with _opened(path, needs_checksum=True, skip_checksum=skip_checksum, progress=progress) as (read, has_checksum):
        with new_directory.making(data_dir, bump_revision) as part:
            content = Content(read())
            cluster_id, member_id = (secrets.randbits(64) | 1 for _ in range(2))
            opening.create(Connector(sync=False), part, (cluster_id, member_id))
            leases = _fill(part, content, member_id)
        return Restored(
            version=content.storage_version or content.cluster_version,
            revision=content.revision + bump_revision,
            compact_revision=content.revision + bump_revision if bump_revision else content.compact_revision,
            changes=content.changes_read,
            leases=leases,
            users=len(content.users),
            roles=len(content.roles),
            auth_enabled=content.auth_enabled,
            alarms=tuple(content.alarms),
            members=content.member_count,
            unknown_buckets=tuple(content.unknown_buckets),
            raft_index=content.index,
            has_checksum=has_checksum,
            one_meta=content.file.one_meta,
        )


def _fill(database: Path, content: Content, member_id: int) -> int:
    """Writes all rows into new tables, as those of one batch. Returns how many leases there were."""
    batch = max(content.index, 1)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        # A file that nobody knows yet needs no way back. And it is left as a backup is, without a log of SQLite's.
        for pragma in ("journal_mode = DELETE", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        _fill_events(connection, content, batch)
        leases = 0
        rows = ((id_, ttl_s, float(remaining_s), 0, batch) for id_, ttl_s, remaining_s in content.leases())
        while piece := list(islice(rows, _ROWS_AT_ONCE)):
            schema.execute_rows(connection, schema.LEASES, piece)
            leases += len(piece)
        schema.execute_rows(
            connection, schema.ALARMS, [(f"{member_id:016x}", kind, 1, batch) for kind in content.alarms]
        )
        meta: list[tuple[str, object]] = [
            *(("batch", batch), ("term", content.term), ("compact_revision", content.compact_revision)),
            *auth_tables.write(connection, _auth_of(content), batch),
        ]
        schema.execute_rows(connection, schema.META, meta)
        connection.execute("COMMIT")
    return leases


def _fill_events(connection: sqlite3.Connection, content: Content, batch: int) -> None:
    piece: list[schema.Row] = []
    left = _BYTES_AT_ONCE
    for change in content.changes():
        piece.append((*change, batch))
        left -= len(change[2]) + len(change[3] or b"")
        if len(piece) == _ROWS_AT_ONCE or left <= 0:
            schema.execute_rows(connection, schema.EVENTS, piece)
            piece.clear()
            left = _BYTES_AT_ONCE
    schema.execute_rows(connection, schema.EVENTS, piece)


def _auth_of(content: Content) -> AuthRows:
    return AuthRows(
        users=[(*user, False) for user in content.users],
        roles=[(*role, False) for role in content.roles],
        switch=(content.auth_enabled, content.auth_revision),
    )
