# SPDX-License-Identifier: Apache-2.0
"""The data directory: who may use it, and what its files look like before SQLite is let near them.

Laws
- One server per directory, held by an advisory lock that the kernel drops when the process dies, however it dies.
- A file that does not look like ours is never opened for writing, so it is never changed.
- What has the name of a data file and is no regular file, a symbolic link included, is never opened at all. With a link
  SQLite would put its log beside the file that it leads to, and the server its own beside the link. The directory
  itself may be a link.

It does not read tables; that is tables.py.
"""

import fcntl
import os
import shutil
from pathlib import Path

from lessor.durable import file_kind
from lessor.durable.engine import DamagedError, DataDirError
from lessor.durable.schema import APPLICATION_ID

DATABASE_NAME = "lessor.db"
LOG_NAMES = ("lessor.log.0", "lessor.log.1")  # see file_log.py
LOG_ID_BYTES = 16
GIVEN_UP = b"lost"  # what a person writes into a file of the log to go without it
LOCK_NAME = "lessor.lock"
ETCD_DATABASE = Path("member", "snap", "db")  # in an etcd's data directory
SET_ASIDE = "damaged"  # the folder of tables that were made anew from a shared log
TABLE_SUFFIXES = ("-wal", "-shm", "-journal", "-sums", ".new", "")
# Every file that the server, or SQLite for it, opens by its name.
FILE_NAMES = (
    *(DATABASE_NAME + suffix for suffix in TABLE_SUFFIXES),
    *(name + suffix for name in LOG_NAMES for suffix in ("", ".new")),
    LOCK_NAME,
)

_SQLITE_MAGIC = b"SQLite format 3\x00"  # the first 16 bytes, which no write of SQLite ever changes
_HEADER_BYTES = 100
_APPLICATION_ID_AT = 68  # big-endian uint32 in the header


def cannot_use(path: Path, error: OSError) -> DataDirError:
    reason = error.strerror or str(error)
    return DataDirError(f"{path}: {reason}: give --data-dir a directory that this user may write to")


def prepare(data_dir: Path) -> None:
    """Makes the directory, readable by its owner only, unless it is there. Raises `DataDirError`."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(data_dir, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(13, "no permission to write here")
    except FileExistsError:
        raise DataDirError(f"{data_dir}: a file, not a directory: give --data-dir another path") from None
    except OSError as error:
        raise cannot_use(data_dir, error) from None


def refuse_irregular(data_dir: Path) -> None:
    """Raises DataDirError for a data file that is a FIFO, a socket, a directory, a device or a symbolic link."""
    for name in FILE_NAMES:
        path = data_dir / name
        try:
            kind = file_kind.irregular(path, follow=False)
        except OSError as error:
            raise cannot_use(path, error) from None
        if kind:
            remedy = "put the file back, or give --data-dir another directory"
            if kind == "a symbolic link":
                remedy = "put the file itself there; the whole directory may be a link"
            raise DataDirError(f"{path}: {kind} where a data file belongs: {remedy}")


def refuse_etcd(data_dir: Path, database: Path) -> None:
    """Raises DataDirError for an etcd's data directory: starting empty beside its data would look like their loss."""
    if (data_dir / "member").is_dir() and not database.exists():
        raise DataDirError(
            f"{data_dir}: holds the data of an etcd: make a directory of it with `lessor snapshot restore "
            f"{data_dir / ETCD_DATABASE} --skip-hash-check --data-dir ANOTHER`, and serve that one"
        )


def lock(data_dir: Path) -> int:
    """Takes the directory for this process; returns the open lock file. Raises `DataDirError` when it is taken.

    The file holds the holder's process id and stays behind afterwards: deleting it would let two servers lock two
    different files of the same name.
    """
    path = data_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_use(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f"process {holder}" if holder else "another process"
        message = f"{data_dir}: in use by another lessor ({who}): stop that one, or give --data-dir another directory"
        raise DataDirError(message) from None
    except OSError as error:
        os.close(descriptor)
        raise cannot_use(path, error) from None
    return descriptor


def unlock(descriptor: int) -> None:
    """Lets the directory go."""
    os.close(descriptor)


def exists(database: Path) -> bool:
    """Whether there is data. Raises `DataDirError` when what is there cannot be ours, or only half of it is left."""
    try:
        with database.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        for name in (database.name + "-wal", *LOG_NAMES):
            log = database.with_name(name)
            if log.exists() and log.stat().st_size > 0:
                what = f"{database}: missing, but its log {name} is there"
                remedy = "put the file back, or restore a backup into an empty directory"
                raise DamagedError(f"{what}: {remedy}", what) from None
        return False
    except OSError as error:
        raise cannot_use(database, error) from None
    if len(header) < _HEADER_BYTES or not header.startswith(_SQLITE_MAGIC):
        raise damaged(database, "it does not start as an SQLite database does")
    application_id = int.from_bytes(header[_APPLICATION_ID_AT : _APPLICATION_ID_AT + 4], "big")
    if application_id != APPLICATION_ID:
        raise DataDirError(f"{database}: another program's SQLite database: give --data-dir another directory")
    return True


def has_own_log(data_dir: Path) -> bool:
    """Whether the directory may be that of a server whose log stands nowhere else."""
    return any((data_dir / name).exists() and (data_dir / name).stat().st_size > 0 for name in LOG_NAMES)


def set_aside(database: Path) -> Path:
    """Moves the tables into a folder beside them, in the place of what was there before. Returns the folder."""
    folder = database.with_name(SET_ASIDE)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    # The file itself last: what SQLite finds beside a new one, it takes for a part of that.
    for suffix in TABLE_SUFFIXES:
        path = database.with_name(database.name + suffix)
        if path.exists():
            os.replace(path, folder / path.name)
    return folder


def log_missing(path: Path) -> DataDirError:
    return DataDirError(
        f"{path}: missing, and the newest writes may be in it alone: put the file back, or write the word "
        f"{GIVEN_UP.decode()} into a file of that name to go without them"
    )


def damaged(path: Path, what: str) -> DamagedError:
    text = f"{path}: damaged ({what})"
    return DamagedError(f"{text}: keep a copy of the directory, then restore a backup", text)


def sync_directory(directory: Path) -> None:
    """Makes a file's name durable, as fsync of the file itself does not."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
