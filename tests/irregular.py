# SPDX-License-Identifier: Apache-2.0
"""Things that have a name in a directory and are no regular files."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _link_to_file(path: Path) -> None:
    target = path.parent.parent / "elsewhere"
    if path.exists():
        path.rename(target)
    else:
        target.touch()
    path.symlink_to(target)


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.parent.parent / "pipe")
    path.symlink_to("../pipe")


MAKERS: dict[str, Callable[[Path], None]] = {
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a directory": Path.mkdir,
    "a symbolic link to a file": _link_to_file,
    "a symbolic link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a symbolic link to a FIFO": _link_to_fifo,
    "a symbolic link to nothing": lambda path: path.symlink_to("nothing"),
}


def put(kind: str, path: Path) -> None:
    """Puts one there, in place of a file if there is one. The link to a file leads to that file, moved away."""
    if kind != "a symbolic link to a file":
        path.unlink(missing_ok=True)
    MAKERS[kind](path)


def seen(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a directory: mode, inode, and the content of regular files."""
    found: dict[str, tuple[int, int, bytes]] = {}
    for path in folder.iterdir():
        status = path.lstat()
        regular = path.is_file() and not path.is_symlink()
        found[path.name] = status.st_mode, status.st_ino, path.read_bytes() if regular else b""
    return found
