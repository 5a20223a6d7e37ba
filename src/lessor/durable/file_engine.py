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

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from lessor.durable import directory, opening, record
from lessor.durable.engine import (
    FIRST_TERM,
    FOLLOW_S,
    Answering,
    Begun,
    DataDirError,
    EngineError,
    Follow,
    Leader,
    LogEnd,
    Meta,
)
from lessor.durable.engine_on_tables import UNFOLDED_ROWS_MAX, EngineOnTables
from lessor.durable.file_log import Disk, FileLog
from lessor.durable.log import Log, LogFullError
from lessor.durable.meta_rows import LogPosition
from lessor.durable.opening import FULL, Connect, Seen
from lessor.durable.record import CHAIN_BYTES, Changes, Record
from lessor.durable.table_sync import Start, start_thread
from lessor.durable.upkeep import Upkeep
from lessor.state.journal import Batch, Rows


class FileEngine(EngineOnTables):
    """Implements `Engine` on the directory `data_dir`.

    `sync` False breaks the law of this file on purpose, for tests: the disk is never waited for, so a loss of power
    may lose everything. A crash of the process loses nothing.
    """

    answering: Answering | None = None
    leader: Leader | None = None
    end: LogEnd | None = None
    released: LogEnd | None = None
    look_again_s = FOLLOW_S
    hears_log = True
    claim_s = 0.0

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
        super().__init__(data_dir, connect=connect, start=start, sync=sync)
        self._disk = disk
        self._sync = sync
        self._open_log: Log | None = None
        self._batch = 0
        self._clock_s = 0.0
        self._term = 0
        self._clean = False
        self._record = 0  # number of the newest record in the log
        self._chain = bytes(CHAIN_BYTES)  # its chain value

    # --- open -------------------------------------------------------------------------------------------------------

    def open(self, new_identity: tuple[int, int]) -> Meta:
        return self._open_directory(lambda: self._open(new_identity))

    def _open(self, new_identity: tuple[int, int]) -> Meta:
        if not directory.exists(self._path):
            opening.create(self._connector, self._path, new_identity)
        tables = self._tables
        # All that can be refused is found before anything is written.
        seen = opening.look(self._connector, self._path, tables.sums)
        self._refuse(seen)
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
        self._batch, self._clock_s, self._term, self._clean = meta.batch, meta.clock_s, meta.term, meta.clean
        return meta._replace(not_compared=tables.sums.not_compared)

    def _refuse(self, seen: Seen) -> None:
        """Raises DataDirError for tables that are not to be served without a shared log."""
        if seen.mark is not None:
            raise DataDirError(f"{self._path}: {seen.mark.refusal}")
        if seen.shared:
            raise DataDirError(
                f"{self._path}: follows the log of a cluster: start with --engine, or give --data-dir a directory "
                "that `lessor snapshot restore` has made"
            )

    def _log_files(self, seen: Seen) -> FileLog:
        log_id = seen.log.log_id if seen.log is not None else b""
        return FileLog(self._dir, log_id, self._disk, sync=self._sync, complete=seen.meta.clean)

    def _stand_at(self, position: LogPosition, records: list[Record]) -> None:
        self._record, self._chain = position.record, position.chain
        if records:
            self._record, self._chain = records[-1].number, records[-1].chain

    def _log_is_open(self) -> bool:
        return self._open_log is not None

    def _close_log(self) -> None:
        log, self._open_log = self._open_log, None
        if log is not None:
            log.close()

    # --- write ------------------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Log:
        assert self._open_log is not None, "the engine is not open"
        return self._open_log

    def try_to_lead(self, follow: Follow) -> Begun:
        """Nobody else ever commits here, so `follow` is never called."""
        clean = self._clean
        self.begin_term(max(self._term + 1, FIRST_TERM))
        return Begun(self._term, self._clock_s, clean)

    def told(self, epoch: int, record: int, records: Sequence[bytes] = ()) -> None:
        """Nobody else leads."""

    def landed(self, after: int) -> Sequence[bytes]:
        return ()

    def name_successor(self, member_id: int, *, goes_on: bool) -> None:
        """Nobody else ever leads."""

    def name_dead(self, dead: Sequence[tuple[int, int]]) -> None:
        """Nobody else's batches are followed."""

    def stop_waiting(self) -> None:
        """Nothing here waits for others."""

    def begin_term(self, term: int) -> None:
        """Makes `term` (greater than the last one) durable and clears the clean mark. Raises `EngineError`."""
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
