# SPDX-License-Identifier: Apache-2.0
"""What kind of file a name stands for, found out without opening it: to open a FIFO waits for its other end.

Laws
- Nothing here waits, and nothing is changed.
"""

import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


def irregular(path: Path, *, follow: bool) -> str:
    """What is there instead of a regular file, in words; "" for a regular file, and where nothing is.

    `follow`: a symbolic link counts as what it leads to. Raises OSError where the name cannot be looked at.
    """
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return _kind_of(mode)


def _kind_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    return next((kind for matches, kind in _KINDS if matches(mode)), "something else")


def read_regular(path: Path) -> bytes:
    """The content of a regular file, or of one that a symbolic link leads to. Raises OSError for anything else.

    It is opened without waiting and looked at then, so a file that is replaced meanwhile cannot make it wait.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = _kind_of(os.fstat(descriptor).st_mode)
    if kind:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
