# SPDX-License-Identifier: Apache-2.0
"""The parts that the snapshots of a server share: their threads, their tasks, and the way to make a copy.

Law: a copy's file has a name only while it is written. Only a kill in that time leaves a file behind. The next start
removes it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

from lessor.base import limits
from lessor.durable.engine import Engine

NAME = "snapshot-{}.tmp"


def remove_leftovers(data_dir: Path) -> None:
    """Removes the copies that a killed server was writing. The caller holds the directory and does not serve yet."""
    for path in data_dir.glob(NAME.format("*") + "*"):
        path.unlink(missing_ok=True)


def copy(engine: Engine, path: Path, unwanted: Callable[[], bool]) -> BinaryIO:
    """A consistent copy of the data, as an open file without a name. Blocks; raises EngineError, OSError.

    `unwanted`: whether the copy need not be finished.
    """
    try:
        engine.backup(path, unwanted)
        return path.open("rb")
    finally:
        path.unlink(missing_ok=True)


class Slow(Protocol):
    """A snapshot under way, as far as others may have to take its place; see snapshot.py."""

    stalled_s: float

    def give_up(self) -> None: ...


class Snapshots:
    """One per server."""

    def __init__(self, engine: Engine, data_dir: Path) -> None:
        self.engine = engine
        self.data_dir = data_dir
        # Threads of their own: a copy takes minutes, and other work waits for the loop's threads.
        self.threads = ThreadPoolExecutor(max_workers=limits.SNAPSHOTS_MAX, thread_name_prefix="snapshot")
        self.streams: set[Slow] = set()  # under way
        self.tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends the copies under way, whose calls have ended already, and waits until their files are gone."""
        self.engine.stop_backups()
        if self.tasks:
            await asyncio.wait(self.tasks)
        self.threads.shutdown(wait=True)

    def abandon(self) -> None:
        """Ends the copies under way. Their files vanish a moment later."""
        self.engine.stop_backups()
        self.threads.shutdown(wait=False, cancel_futures=True)
