# SPDX-License-Identifier: Apache-2.0
"""Snapshot files: a whole database and, behind it, the 32 bytes of its SHA-256.

Laws
- A snapshot is read, never written: nothing is created beside it.
- A restore makes a new data directory or none: see new_directory.py.
- Nothing is believed that the checksum does not vouch for, unless the caller waives it: a file copied out of a data
  directory has none.

A restored directory goes on as after a crash at the moment of the snapshot: same ids, same revisions, leases with the
time that they had left then. What a file that was copied out of a data directory has in the log there is not in it.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lessor.durable import directory, file_kind, new_directory
from lessor.durable.engine import DataDirError, Loaded
from lessor.durable.opening import PAGE_BYTES
from lessor.durable.tables import Tables

CHECKSUM_BYTES = 32
_READ_BYTES = 1_048_576
Progress = Callable[[int], object]


def check(path: Path, *, skip_checksum: bool = False) -> int:
    """How many bytes of the file are the database. Costs a read of the file.

    Raises DataDirError for a file that is missing, cut short, changed, or no snapshot of ours. `skip_checksum` takes
    the file as it is, with or without a checksum.
    """
    try:
        kind = file_kind.irregular(path, follow=True)
        if kind:
            raise DataDirError(f"{path}: {kind}, not a file: {_what_to_name(path)}")
        with path.open("rb") as file:
            return _check(path, file, skip_checksum)
    except OSError as error:
        raise DataDirError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _what_to_name(path: Path) -> str:
    if (path / directory.ETCD_DATABASE).is_file():
        return f"of that etcd, when it is stopped, name {path / directory.ETCD_DATABASE}, with --skip-hash-check"
    return "name a file that `lessor snapshot save` or `etcdctl snapshot save` has made"


def _check(path: Path, file: BinaryIO, skip_checksum: bool) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    has_checksum = size % PAGE_BYTES == CHECKSUM_BYTES
    data_bytes = size - CHECKSUM_BYTES if has_checksum else size
    if not skip_checksum:
        if not has_checksum:
            raise DataDirError(
                f"{path}: no checksum at its end: cut short, or copied from a data directory: take another copy, or "
                "--skip-hash-check if you know where it comes from"
            )
        if digest_of(file, data_bytes) != file.read(CHECKSUM_BYTES):
            raise DataDirError(f"{path}: its checksum does not match: changed or damaged since it was saved")
    if data_bytes % PAGE_BYTES or not directory.exists(path):
        raise directory.damaged(path, "not a whole database")
    return data_bytes


def digest_of(source: BinaryIO, size: int, target: BinaryIO | None = None, progress: Progress | None = None) -> bytes:
    """Reads `size` bytes, writes them to `target` if there is one, and returns their SHA-256."""
    digest = hashlib.sha256()
    while size > 0 and (data := source.read(min(size, _READ_BYTES))):
        digest.update(data)
        size -= len(data)
        if target is not None:
            target.write(data)
        if progress is not None:
            progress(len(data))
    return digest.digest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Loaded]:
    """The rows of a checked snapshot, as `Engine.load` gives them; for one `with` block."""
    tables = Tables.reading(path)
    try:
        yield tables.load()
    finally:
        tables.close()


def restore(
    path: Path,
    data_dir: Path,
    *,
    skip_checksum: bool = False,
    bump_revision: int = 0,
    progress: Progress | None = None,
) -> None:
    """Makes a data directory out of a snapshot. Raises DataDirError, and leaves nothing behind then.

    `bump_revision`: as in `new_directory.making`; 0 leaves the history as it is. `progress` is told of each piece
    that was written, in bytes.
    """
    data_bytes = check(path, skip_checksum=skip_checksum)
    Tables.reading(path).close()  # refuses what a newer version wrote
    with new_directory.making(data_dir, bump_revision) as part:
        with path.open("rb") as source, part.open("xb") as target:
            part.chmod(0o600)  # values may be secrets
            digest_of(source, data_bytes, target, progress)
        _leave_log(part)


def _leave_log(database: Path) -> None:
    """Takes the mark of WAL mode off a file that was copied out of a data directory; a snapshot has none.

    `opening.look` then knows that the log which its tables speak of is elsewhere.
    """
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
