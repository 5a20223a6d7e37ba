# SPDX-License-Identifier: Apache-2.0
"""What every engine does with the tables that follow its log: the part of `Engine` that is not about the log.

Laws
- A record that is in the log is handed to `_upkeep`, in order, and comes into the tables from there.
- The directory is locked as long as the engine is open.

It does not: append, read a log, or begin a term. file_engine.py does, and the engine on a shared log.
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lessor.durable import directory, explain
from lessor.durable.engine import DamagedError, DataDirError, EngineError, Loaded, Meta, Sizes, TablesLockedError
from lessor.durable.first_failure import FirstFailure
from lessor.durable.opening import Connect, Connector
from lessor.durable.table_sync import Start, start_thread
from lessor.durable.tables import Tables
from lessor.durable.upkeep import Upkeep

UNFOLDED_ROWS_MAX: Final = 400_000  # rows that wait in memory for the tables: more, and the engine folds


class EngineOnTables:
    """The directory `data_dir` and the tables in it. `connect` and `start` stand in for others in tests."""

    def __init__(
        self, data_dir: Path, *, connect: Connect = sqlite3.connect, start: Start = start_thread, sync: bool = True
    ) -> None:
        """`sync` False: the tables never wait for the disk."""
        self._dir = data_dir
        self._path = data_dir / directory.DATABASE_NAME
        self._connector = Connector(connect, sync)
        self._start = start
        self._begin_anew()
        self._keep: Upkeep | None = None
        self._lock: int | None = None
        self._table_sizes = Sizes(0, 0)
        self._measured_at = -1  # `Tables.changes` when those sizes were true

    def _open_directory(self, open_rest: Callable[[], Meta]) -> Meta:
        """Takes the directory, and then calls `open_rest`. Raises what that raises, and lets go of everything then."""
        assert self._lock is None, "open once"
        self._begin_anew()  # it may have been closed
        try:
            directory.refuse_etcd(self._dir, self._path)
            directory.prepare(self._dir)
            directory.refuse_irregular(self._dir)
            self._lock = directory.lock(self._dir)
            return open_rest()
        except OSError as error:
            self._let_go()
            raise DataDirError(explain.system_error(error, self._dir)) from None
        except BaseException:
            self._let_go()
            raise

    def _begin_anew(self) -> None:
        """Knows nothing of the tables and of failures."""
        self._failure = FirstFailure(self._path)
        self._tables = Tables(self._path, self._connector, self._start, self._failure)

    def load(self) -> Loaded:
        self.flush()
        return self._tables.load()

    def make_anew(self, error: DamagedError) -> Meta:
        raise error

    @property
    def _upkeep(self) -> Upkeep:
        assert self._keep is not None, "the engine is not open"
        return self._keep

    def _for_good(self, work: Callable[[], None]) -> None:
        """For what a commit cannot do without: that the tables are locked is final too."""
        try:
            work()
        except TablesLockedError as error:
            raise self._failure.final(error) from error

    def upkeep(self, now_s: float, idle: bool) -> float | None:
        self._failure.refuse_after()
        return self._upkeep.step(now_s, idle)

    def flush(self) -> None:
        self._upkeep.flush()

    def sizes(self) -> Sizes:
        if self._measured_at != self._tables.changes:
            self._measured_at = self._tables.changes
            self._table_sizes = Sizes(self._tables.size_bytes(), self._tables.in_use_bytes())
        waiting = self._upkeep.unfolded.size_bytes
        return Sizes(self._table_sizes.total_bytes + waiting, self._table_sizes.in_use_bytes + waiting)

    def defragment(self) -> None:
        self._upkeep.finish_sweep()
        self._tables.defragment()

    def backup(self, path: Path, unwanted: Callable[[], bool] = lambda: False) -> None:
        self._tables.backup(path, unwanted)

    def view(self, unwanted: Callable[[], bool] = lambda: False) -> contextlib.AbstractContextManager[Loaded]:
        return self._tables.view(unwanted)

    def stop_backups(self) -> None:
        self._tables.stop_backups()

    def close(self) -> None:
        keep = self._keep
        if keep is not None and self._log_is_open() and self._failure.reason is None:
            with contextlib.suppress(EngineError):  # what is not in the tables is in the log
                keep.flush()
                self._tables.finish()
        self._let_go()

    def _log_is_open(self) -> bool:
        """Whether everything that opening does has been done."""
        raise NotImplementedError

    def _let_go(self) -> None:
        self._tables.close()
        self._keep = None
        self._close_log()
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            directory.unlock(descriptor)

    def _close_log(self) -> None:
        """Lets go of the log, if it is open."""
        raise NotImplementedError
