# SPDX-License-Identifier: Apache-2.0
"""The engine of a single node: a log in the data directory, and the tables that follow it.

Laws
- A batch is one record in the log, whatever is in it and however large. `commit` returns when the log has it for good.
- The tables only follow the log. So does a new term: it is a record without rows.
- What opening finds in the log above the tables is folded, and synced, before the log is written to.
- The log has no record of another history than the tables: each names the chain value of the one before it.

Theory of operation. The log says what is durable, the tables what people, `backup` and `load` read. Between commits
the caller lets `upkeep` fold records into the tables, sync those, and trim the log up to there (upkeep.py). When the
log is full because nobody does, or nothing can be folded, a commit makes room itself, and waits.

This file knows the log by its interface (log.py) but for how its files are opened. Another log can take their place.

It does not: know SQL (tables.py, sweep.py, opening.py), sectors (file_log.py) or the form of a record (record.py).
"""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lessor.durable import directory, explain, opening, record
from lessor.durable.engine import DataDirError, EngineError, Loaded, Meta, Sizes, TablesLockedError
from lessor.durable.file_log import Disk, FileLog
from lessor.durable.first_failure import FirstFailure
from lessor.durable.log import Log, LogFullError
from lessor.durable.meta_rows import LogPosition
from lessor.durable.opening import FULL, Connect, Connector, Seen
from lessor.durable.record import CHAIN_BYTES, Changes, Record
from lessor.durable.table_sync import Start, start_thread
from lessor.durable.tables import Tables
from lessor.durable.upkeep import Upkeep
from lessor.state.journal import Batch, Rows

UNFOLDED_ROWS_MAX: Final = 400_000  # rows that wait in memory for the tables: more, and the commit folds


class FileEngine:
    """Implements `Engine` on the directory `data_dir`.

    `sync` False breaks the law of this file on purpose, for tests: the disk is never waited for, so a loss of power
    may lose everything. A crash of the process loses nothing.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        connect: Connect = sqlite3.connect,
        disk: Disk | None = None,
        start: Start = start_thread,
        sync: bool = True,
    ) -> None:
        """`connect`, `disk` and `start` stand in for sqlite3.connect, the system and a new thread in tests."""
        self._dir = data_dir
        self._path = data_dir / directory.DATABASE_NAME
        self._connector = Connector(connect, sync)
        self._disk = disk
        self._start = start
        self._sync = sync
        self._failure = FirstFailure(self._path)
        self._tables = Tables(self._path, self._connector, start, self._failure)
        self._open_log: Log | None = None
        self._keep: Upkeep | None = None
        self._lock: int | None = None
        self._batch = 0
        self._clock_s = 0.0
        self._term = 0
        self._record = 0  # number of the newest record in the log
        self._chain = bytes(CHAIN_BYTES)  # its chain value
        self._table_sizes = Sizes(0, 0)
        self._measured_at = -1  # `Tables.changes` when those sizes were true

    # --- open -------------------------------------------------------------------------------------------------------

    def open(self, new_identity: tuple[int, int]) -> Meta:
        assert self._lock is None, "open once"
        # One that was closed starts anew.
        self._failure = FirstFailure(self._path)
        self._tables = Tables(self._path, self._connector, self._start, self._failure)
        try:
            directory.refuse_etcd(self._dir, self._path)
            directory.prepare(self._dir)
            directory.refuse_irregular(self._dir)
            self._lock = directory.lock(self._dir)
            if not directory.exists(self._path):
                opening.create(self._connector, self._path, new_identity)
            return self._open()
        except OSError as error:
            self._let_go()
            raise DataDirError(explain.system_error(error, self._dir)) from None
        except BaseException:
            self._let_go()
            raise

    def _open(self) -> Meta:
        tables = self._tables
        # All that can be refused is found before anything is written.
        seen = opening.look(self._connector, self._path, tables.sums)
        log = self._log_files(seen)
        records = log.read(seen.log.record, seen.log.chain) if seen.log is not None else []
        meta, position = tables.open(seen)
        self._keep = Upkeep(tables, log)
        try:
            for one in records:
                self._keep.unfolded.add(one)
            self._keep.flush()
            # Before the log is touched: what a killed server folded last may be in the page cache alone.
            meta = tables.begin()
            self._open_log = log
            if log.begin(tables.folded):
                tables.keep_log_id(log.log_id)
        except EngineError as error:
            raise DataDirError(str(error)) from None
        self._stand_at(position, records)
        self._batch, self._clock_s, self._term = meta.batch, meta.clock_s, meta.term
        return meta._replace(not_compared=tables.sums.not_compared)

    def _log_files(self, seen: Seen) -> FileLog:
        log_id = seen.log.log_id if seen.log is not None else b""
        return FileLog(self._dir, log_id, self._disk, sync=self._sync, complete=seen.meta.clean)

    def _stand_at(self, position: LogPosition, records: list[Record]) -> None:
        self._record, self._chain = position.record, position.chain
        if records:
            self._record, self._chain = records[-1].number, records[-1].chain

    def load(self) -> Loaded:
        self.flush()
        return self._tables.load()

    # --- write ------------------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Log:
        assert self._open_log is not None, "the engine is not open"
        return self._open_log

    @property
    def _upkeep(self) -> Upkeep:
        assert self._keep is not None, "the engine is not open"
        return self._keep

    def begin_term(self, term: int) -> None:
        assert term > self._term, f"term {term} after {self._term}"
        before, self._term = self._term, term
        try:
            self._append(Changes(self._batch, self._clock_s))
        except BaseException:
            self._term = before
            raise
        # At once, and for good: tables that say that the last stop was orderly speak of a log that may be missing.
        self._for_good(lambda: self._upkeep.flush(FULL))

    def commit(self, batch: Batch) -> None:
        assert batch.number > self._batch, f"batch {batch.number} after {self._batch}"
        if self._upkeep.unfolded.rows >= UNFOLDED_ROWS_MAX:  # nobody calls `upkeep`, or it cannot fold
            self._for_good(self._upkeep.flush)
        self._append(batch)
        self._batch, self._clock_s = batch.number, batch.clock_s

    def _append(self, rows: Rows) -> None:
        upkeep = self._upkeep
        upkeep.trim()
        number = self._record + 1
        data = record.encode(number, self._term, self._chain, rows)
        try:
            self._append_record(data, number)
        except LogFullError:
            self._for_good(upkeep.make_room)
            self._append_record(data, number, last=True)
        previous, self._chain = self._chain, data[-CHAIN_BYTES:]
        self._record = number
        upkeep.committed(Record(number, self._term, previous, self._chain, rows, len(data)))

    def _append_record(self, data: bytes, number: int, *, last: bool = False) -> None:
        """Raises EngineError, and a LogFullError unless this is the last time."""
        self._failure.refuse_after()
        try:
            self._log.append(data, number)
        except LogFullError as error:
            if not last:
                raise
            self._failure.raise_for(error)
        except BaseException as error:
            self._failure.raise_for(error)

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

    # --- space ------------------------------------------------------------------------------------------------------

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

    def stop_backups(self) -> None:
        self._tables.stop_backups()

    # --- close ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        keep = self._keep
        if keep is not None and self._open_log is not None and self._failure.reason is None:
            with contextlib.suppress(EngineError):  # what is not in the tables is in the log
                keep.flush()
                self._tables.finish()
        self._let_go()

    def _let_go(self) -> None:
        self._tables.close()
        self._keep = None
        log, self._open_log = self._open_log, None
        if log is not None:
            log.close()
        descriptor, self._lock = self._lock, None
        if descriptor is not None:
            directory.unlock(descriptor)
