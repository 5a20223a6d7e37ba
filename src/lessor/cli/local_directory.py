# SPDX-License-Identifier: Apache-2.0
"""The directory of a cluster on this machine: whose it is, which engine's data it has, who uses it.

Laws
- It is one of ours, or new, or it is not touched: a directory with other files is refused.
- One run at a time. The lock is held by the run and by all processes that it has started, so a new run does not begin
  while one of them lives, even after the run itself was killed.
- The engine stays the one that the first run has chosen: the nodes' data belongs to its log.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from lessor.cli.failure import ERROR, Failure
from lessor.cli.tasks import sleep

MARK, LOCK = "cluster.json", "cluster.lock"
FORMAT = 1
LEFT_S_MAX = 10.0  # what a killed run has left behind ends by itself within this time
_OTHER = "choose another --data-dir"


class Directory:
    """`async with Directory(path) as directory:` makes it where there is none, and locks it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = ""  # the name of the engine whose data is here; "": none yet
        self.descriptor = -1  # of the lock; processes that inherit it hold the lock too

    async def __aenter__(self) -> Self:
        """Failure for a directory that cannot be used."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            strange = {entry.name for entry in self.path.iterdir()} - {LOCK, f"{MARK}.new"}
        except FileExistsError:
            raise Failure(ERROR, f"{self.path} is a file: {_OTHER}") from None
        except OSError as error:
            raise Failure(ERROR, f"{self.path}: {error.strerror}: {_OTHER}") from None
        if strange:
            self.engine = self._read_mark()
        await self._lock()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)

    def belongs_to(self, engine: str) -> None:
        """Notes the engine. Failure when the disk refuses."""
        if self.engine == engine:
            return
        fresh = self.path / f"{MARK}.new"
        try:
            fresh.write_text(json.dumps({"format": FORMAT, "engine": engine}) + "\n")
            fresh.rename(self.path / MARK)
        except OSError as error:
            raise Failure(ERROR, f"{self.path}: {error.strerror}: {_OTHER}") from None
        self.engine = engine

    def _read_mark(self) -> str:
        try:
            mark = json.loads((self.path / MARK).read_text())
            form, engine = mark["format"], mark["engine"]
        except PermissionError as error:
            raise Failure(ERROR, f"{self.path}: {error.strerror}: it is another user's; {_OTHER}") from None
        except (OSError, ValueError, TypeError, KeyError):
            text = f"{self.path} holds files that are not of a cluster that `lessor cluster --local` has made"
            raise Failure(ERROR, f"{text}: {_OTHER}") from None
        if form != FORMAT:
            raise Failure(ERROR, f"{self.path} is of a newer Lessor (format {form}): upgrade this one, or {_OTHER}")
        return str(engine)

    async def _lock(self) -> None:
        try:
            self.descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise Failure(ERROR, f"{self.path}: {error.strerror}: {_OTHER}") from None
        try:
            await self._wait_for_lock()
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)
        except BaseException:
            os.close(self.descriptor)
            raise

    async def _wait_for_lock(self) -> None:
        for _ in range(int(LEFT_S_MAX / 0.1)):
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self.descriptor, 32, 0).decode("ascii", "replace").strip()
                if _lives(holder):
                    text = f"{self.path} is in use by process {holder}: end it with Ctrl-C or SIGTERM"
                    raise Failure(ERROR, f"{text}, or {_OTHER}") from None
                await sleep(0.1)
            else:
                return
        text = f"{self.path} is in use by processes of an earlier run that was killed: end them (`ps` shows them)"
        raise Failure(ERROR, f"{text}, or {_OTHER}")


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
