# SPDX-License-Identifier: Apache-2.0
"""What went wrong with the disk, in one line that a person can act on: which file, what is wrong, what to do.

The same for SQLite's errors and for the system's own, which the log meets.
"""

import errno
import sqlite3
from pathlib import Path

from lessor.base.printable import escape_unprintable
from lessor.durable import directory
from lessor.durable.engine import DamagedError

_FULL = "the disk is full: free some space, then start again"
_FAILED = "the disk failed to read or write ({}): check the disk and the system log, then start again"
_NO_RIGHT = "{}: give the user that runs lessor the right to write the file and its directory"


def system_error(error: OSError, path: Path) -> str:
    """About a failed call of the system. `path` is named unless the error names another."""
    path = Path(error.filename) if error.filename else path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: {_FULL}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: {_NO_RIGHT.format(error.strerror)}"
    return f"{path}: {_FAILED.format(errno.errorcode.get(error.errno or 0, str(error)))}"


def locked(path: Path) -> str:
    return f"{path}: locked by another program: end the sqlite3 shell or backup that writes to it, then start again"


def one_line(text: str) -> str:
    """SQLite quotes the statement that made a table, and a damaged one may have any character."""
    return escape_unprintable(" ".join(text.split()), lambda char: f"\\x{ord(char):02x}")[:200]


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite has met a file that is not as it was written. All that we ask of a whole one it can do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if not code:  # not SQLite's own: a text that is no UTF-8
        return isinstance(error, sqlite3.OperationalError)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def damage(error: sqlite3.Error, path: Path) -> DamagedError:
    return directory.damaged(path, one_line(str(error)))


def sqlite_error(error: sqlite3.Error, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest the detail
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if code == sqlite3.SQLITE_FULL:
        return f"{path}: {_FULL}"
    if code == sqlite3.SQLITE_IOERR:
        return f"{path}: {_FAILED.format(name)}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return locked(path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{path}: {_NO_RIGHT.format(error)}"
    if is_damage(error):
        return str(damage(error, path))
    return f"{path}: {one_line(str(error))} ({name})"
