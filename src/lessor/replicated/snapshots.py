# SPDX-License-Identifier: Apache-2.0
"""Keeps a shared log short: now and then the data as a whole goes into the engine, and old records are forgotten.

Laws
- A record is forgotten only when a snapshot in the engine has what was in it, and KEPT_RECORDS behind that one are left
  for those that are a little behind.
- Nothing here is waited for, and a failure costs room only: it is logged, and tried again later.

Theory of operation. A snapshot is a copy of the tables (`Tables.backup`), in pieces. It says itself up to which record
it goes. It is made in a thread of its own, which has its own way to the engine.

Does not do: deciding who leads; reading snapshots for more than a new copy (`fetch`).
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from lessor.base.limits import ENGINE_PIECE_BYTES
from lessor.durable import directory
from lessor.durable.engine import DataDirError, EngineError
from lessor.durable.log import LogError
from lessor.durable.opening import Connector, adopt
from lessor.durable.shared_log import SharedLog
from lessor.durable.tables import Tables

log = logging.getLogger("lessor")

LOG_BYTES: Final = 256 * 1024 * 1024  # of records, after which a snapshot is due
LOG_S: Final = 3600.0  # or after this time, if there was any record
RETRY_S: Final = 60.0
KEPT_RECORDS: Final = 10_000
_NAME: Final = "to-engine.tmp"


class Snapshots:
    """Of one leading process. All calls but those of its own thread come from the engine's."""

    def __init__(
        self, folder: Path, make_log: Callable[[], SharedLog], backup: Callable[[Path, Callable[[], bool]], None]
    ) -> None:
        """`backup` is that of the tables; `make_log` gives the thread its own way to the engine."""
        self._path = folder / _NAME
        self._make_log = make_log
        self._backup = backup
        self._bytes = 0
        self._due_s: float | None = None
        self._thread: threading.Thread | None = None
        self._failed = False
        self._closed = False

    def appended(self, size_bytes: int) -> None:
        self._bytes += size_bytes

    def look(self, now_s: float, idle: bool) -> None:
        """Begins a snapshot if one is due, of the tables as they are: what they lack stays in the log.

        `idle`: no commit waits. Under load that never rests a snapshot waits for twice as much.
        """
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._thread = None
            self._due_s = now_s + (RETRY_S if self._failed else LOG_S)
        if self._due_s is None:
            self._due_s = now_s + LOG_S
        if self._bytes < LOG_BYTES and (now_s < self._due_s or not self._bytes):
            return
        if (self._failed and now_s < self._due_s) or not (idle or self._bytes >= 2 * LOG_BYTES):
            return
        self._bytes = 0
        self._thread = threading.Thread(target=self._run, name="snapshot to engine", daemon=True)
        self._thread.start()

    def stand_by(self) -> None:
        """Ends a snapshot that is under way, without waiting for that: another process leads."""
        self._closed = True

    def begin_anew(self) -> None:
        """This process leads again."""
        self._closed = False
        self._bytes, self._due_s = 0, None

    def close(self) -> None:
        """Ends a snapshot that is under way, soon."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()

    # --- in the thread of its own ---

    def _run(self) -> None:
        shared = self._make_log()
        self._failed = True
        try:
            self._path.unlink(missing_ok=True)
            self._backup(self._path, lambda: self._closed)
            position = position_of(self._path)
            shared.open(1)  # it is there
            shared.put_snapshot(position, self._pieces())
            shared.trim(position - KEPT_RECORDS)
            self._failed = False
            log.info("snapshot in the engine", extra={"record": position, "bytes": self._path.stat().st_size})
        except (EngineError, DataDirError, LogError, OSError) as error:
            if not self._closed:
                log.warning("no snapshot in the engine; trying again later", extra={"reason": str(error)})
        finally:
            shared.close()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _pieces(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(ENGINE_PIECE_BYTES):
                if self._closed:
                    raise EngineError("the server stops")
                yield piece


def position_of(path: Path) -> int:
    """Up to which record a copy of the tables goes. Raises DataDirError."""
    tables = Tables.reading(path)
    try:
        return tables.position.record
    finally:
        tables.close()


def fetch(shared: SharedLog, connector: Connector, database: Path, member_id: int) -> bool:
    """Makes `database` out of the newest snapshot in the engine, if there is one.

    Raises LogError, DataDirError, OSError.
    """
    newest = shared.newest_snapshot()
    if newest is None:
        return False
    part = database.with_name(database.name + ".new")
    with part.open("wb") as file:
        part.chmod(0o600)  # values may be secrets
        for piece in newest[1]:
            file.write(piece)
    adopt(connector, part, member_id)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, database)
    directory.sync_directory(database.parent)
    return True
