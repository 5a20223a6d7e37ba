# SPDX-License-Identifier: Apache-2.0
"""The parts that the snapshots of a server share: their threads, their tasks, and the two ways to make a copy.

Laws
- A copy of the tables has a name only while it is written, because SQLite writes it. Only a kill in that time leaves a
  file behind. The next start removes it. A file of etcd's form never has a name.
- In a file of etcd's form no lease has less time left than was promised for it.

Theory of operation. Both ways run in a thread of their own. SQLite writes a copy of the tables without the interpreter.
A file of etcd's form is made in Python, in bursts with pauses. In a burst the loop gets the interpreter a switch
interval after it has asked for it. Because of the pauses the system hardly ever puts the thread aside while it has the
interpreter, also on a machine where many programs wait for a processor.

A lease's row says when it ends at the latest. On a server that leads, memory knows better: its deadline is looked up
there when the lease is written, from the copy's thread. That is one look at a dictionary and one at a number, each of
them whole. A deadline only ever moves later, and what remains is counted from when the copy began.
"""

import asyncio
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol, TypeVar, cast

from lessor.base import limits
from lessor.base.clock import MonotonicClock
from lessor.durable.engine import Engine, Loaded
from lessor.etcd_file import backend
from lessor.state.lease import Lease

T = TypeVar("T")

NAME = "snapshot-{}.tmp"
WRITE_BYTES = 256 * 1024  # of a file of etcd's form, gathered before they are written
# How long the making of such a file keeps the interpreter, and for how long it leaves it to others then.
BURST_S = 0.0003
PAUSE_S = 0.0003
_LOOK_ROWS = 16  # after so many rows it looks at the clock
_NOW_S: Final = MonotonicClock().now_s


def remove_leftovers(data_dir: Path) -> None:
    """Removes the copies that a killed server was writing. The caller holds the directory and does not serve yet."""
    for path in data_dir.glob(NAME.format("*") + "*"):
        path.unlink(missing_ok=True)


def copy(engine: Engine, path: Path, unwanted: Callable[[], bool]) -> BinaryIO:
    """A consistent copy of the tables, as an open file without a name. Blocks; raises EngineError, OSError.

    `unwanted`: whether the copy need not be finished.
    """
    try:
        engine.backup(path, unwanted)
        return path.open("rb")
    finally:
        path.unlink(missing_ok=True)


class Living(NamedTuple):
    """What memory knows of leases, on a server that leads."""

    lease: Callable[[int], Lease | None]  # by its id
    now_s: float  # on the data clock


def etcd_copy(engine: Engine, folder: Path, unwanted: Callable[[], bool], living: Living | None) -> BinaryIO:
    """The same in the form of etcd's data file; see `copy`. The file is in `folder`.

    `living` None: another server leads, and rows are all that is known of leases.
    """
    prefix, suffix = NAME.split("{}")  # where the system has no files without names: it has one for an instant
    made = tempfile.TemporaryFile(dir=folder, prefix=prefix, suffix=suffix, buffering=WRITE_BYTES)  # noqa: SIM115 - the caller closes it
    file = cast(BinaryIO, made)
    try:
        with engine.view(unwanted) as loaded:
            meta, auth = loaded.meta, loaded.auth
            enabled, auth_revision = auth.switch or (False, 1)
            content = backend.Content(
                raft_index=meta.batch,
                term=meta.term,
                compact_revision=meta.compact_revision,
                events=_paced(loaded.events),
                leases=_paced(_remaining(loaded, living)),
                alarms=loaded.alarms,
                users=auth.users.values(),
                roles=auth.roles.values(),
                auth_enabled=enabled,
                auth_revision=auth_revision,
            )
            backend.write(file, content)
    except BaseException:
        file.close()
        raise
    return file


def _paced(
    rows: Iterable[T], now_s: Callable[[], float] = _NOW_S, pause: Callable[[float], object] = time.sleep
) -> Iterator[T]:
    """The rows, with a pause after each burst: see above."""
    began_s, left = now_s(), _LOOK_ROWS
    for row in rows:
        yield row
        left -= 1
        if not left:
            left = _LOOK_ROWS
            if now_s() - began_s >= BURST_S:
                pause(PAUSE_S)
                began_s = now_s()


def _remaining(loaded: Loaded, living: Living | None) -> Iterator[backend.RemainingLease]:
    now_s = loaded.meta.clock_s if living is None else living.now_s
    for lease_id, ttl_s, deadline_s, _ in loaded.leases:
        lease = None if living is None else living.lease(lease_id)
        if lease is not None:
            deadline_s = lease.deadline_s
        yield lease_id, ttl_s, min(ttl_s, max(1, math.ceil(deadline_s - now_s)))


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
