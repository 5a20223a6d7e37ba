# SPDX-License-Identifier: Apache-2.0
"""How many rows per second the engine makes durable, alone and beside a busy event loop, and how fast it loads.

Claims (docs/decisions/0003-sqlite-engine.md, 0007-batch-log.md, 0013-one-log.md): a batch of one row costs less wall
and CPU time in the log than in a transaction of its own; over 40,000 durable rows per second in batches of 200 or more;
a loop that never rests does not starve the commits; at least 500,000 rows per second loaded at boot.

    python bench/engine_commit.py [--dir DIR] [--rows N] [--repeat N]

Each line is the median of the repetitions. "busy" runs a second thread that holds the interpreter lock whenever it can,
as an event loop under load does. "log" is the engine as it is; "tables" brings each batch into the tables at once, and
syncs them, as an engine without a log would; "row by row" replaces, besides, the few large statements by one execution
per row. Rows per second contain all upkeep, the fold at the end too; the other figures are of `commit` alone, CPU time
that of its thread. DIR must be on the disk whose fsync counts: /dev/shm would measure nothing.
"""

import argparse
import contextlib
import platform
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lessor.durable import schema
from lessor.durable.engine import Meta
from lessor.durable.file_engine import FileEngine
from lessor.durable.opening import FULL
from lessor.state.journal import Batch, EventRow, LeaseRow

VALUE = b"v" * 64


def make_batch(number: int, rows: int, kind: str) -> Batch:
    first = number * rows
    events: list[EventRow] = [
        (first + row, 0, b"/svc/%09d" % (row * 7919), VALUE, first + row, 1, 7) for row in range(rows)
    ]
    leases: list[LeaseRow] = [(first + row, 60, 60.0, 0) for row in range(rows)]
    return Batch(
        number,
        float(number),
        events=events if kind == "event" else [],
        leases=leases if kind == "lease" else [],
        alarms=[],
        compact_revision=None,
        dead=[],
        leases_touched=[],
        clean=False,
    )


@contextlib.contextmanager
def busy_loop(busy: bool, switch_s: float) -> Iterator[None]:
    """A thread that wants the interpreter lock all the time, and how long the others wait before they ask for it."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1_000))

    before = sys.getswitchinterval()
    sys.setswitchinterval(switch_s)
    thread = threading.Thread(target=spin)
    if busy:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if busy:
            thread.join()
        sys.setswitchinterval(before)


def row_by_row(connection: sqlite3.Connection, statement: tuple[str, str], rows: Sequence[schema.Row]) -> None:
    connection.executemany(schema.rows_sql(statement, 1), rows)


class TablesEngine(FileEngine):
    """Commits to the tables; its log takes nothing."""

    def open(self, new_identity: tuple[int, int]) -> Meta:
        meta = super().open(new_identity)
        self._log.append = lambda record, number: None  # type: ignore[method-assign]
        return meta

    def commit(self, batch: Batch) -> None:
        super().commit(batch)
        self._upkeep.flush(FULL)


@contextlib.contextmanager
def opened(base: Path, made: type[FileEngine] = FileEngine) -> Iterator[FileEngine]:
    data_dir = Path(tempfile.mkdtemp(dir=base))
    engine = made(data_dir)
    engine.open((1, 2))
    engine.begin_term(1)
    try:
        yield engine
    finally:
        engine.close()
        shutil.rmtree(data_dir)


def commit_run(
    base: Path, made: type[FileEngine], kind: str, rows: int, count: int, busy: bool, switch_s: float
) -> tuple[float, ...]:
    """Rows per second; median and 99th percentile of a commit in milliseconds; its CPU time in microseconds."""
    batches = [make_batch(number, rows, kind) for number in range(1, count + 1)]
    took_s = []
    cpu_s = 0.0
    with opened(base, made) as engine, busy_loop(busy, switch_s):
        start_s = time.perf_counter()
        for batch in batches:
            before_s, cpu_before_s = time.perf_counter(), time.thread_time()
            engine.commit(batch)
            took_s.append(time.perf_counter() - before_s)
            cpu_s += time.thread_time() - cpu_before_s
            engine.upkeep(time.monotonic(), False)
        engine.flush()
        total_s = time.perf_counter() - start_s
    took_s.sort()
    p50_s, p99_s = took_s[len(took_s) // 2], took_s[len(took_s) * 99 // 100]
    return rows * count / total_s, p50_s * 1e3, p99_s * 1e3, cpu_s / count * 1e6


# How rows are executed, and by which engine.
VARIANTS: dict[str, tuple[Callable[..., None], type[FileEngine]]] = {
    "log": (schema.execute_rows, FileEngine),
    "tables": (schema.execute_rows, TablesEngine),
    "row by row": (row_by_row, TablesEngine),
}


def medians(runs: Sequence[tuple[float, ...]]) -> list[float]:
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def commits(base: Path, total_rows: int, repeat: int) -> None:
    print(
        f"{'loop':5} {'switch':>6} {'rows':5} {'batch':>6}  {'into':11} {'rows/s':>9} {'p50 ms':>7} {'p99 ms':>7}"
        f" {'cpu us':>7}"
    )
    for busy, switch_s in ((False, 0.005), (True, 0.005), (True, 0.0002)):
        for kind in ("lease", "event"):
            for rows in (1, 200, 1_000):
                # The slow corner would take minutes, and one-row batches are a matter of latency.
                total = min(total_rows, rows * 300, 3_000 if busy and switch_s > 0.001 else total_rows)
                runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in VARIANTS}
                for _ in range(repeat):  # in turn, so that a noisy machine is noisy for both
                    for name, (function, made) in VARIANTS.items():
                        schema.execute_rows = function
                        runs[name].append(commit_run(base, made, kind, rows, max(total // rows, 3), busy, switch_s))
                for name in VARIANTS:
                    rate, p50_ms, p99_ms, cpu_us = medians(runs[name])
                    print(
                        f"{'busy' if busy else 'idle':5} {switch_s * 1e3:3.1f} ms {kind:5} {rows:6}"
                        f"  {name:11} {rate:9,.0f} {p50_ms:7.2f} {p99_ms:7.2f} {cpu_us:7.0f}",
                        flush=True,
                    )
    schema.execute_rows, _ = VARIANTS["log"]


def loading(base: Path, rows: int, repeat: int) -> None:
    with opened(base) as engine:
        for number in range(1, rows // 10_000 + 1):
            engine.commit(make_batch(number, 10_000, "event"))
            engine.upkeep(time.monotonic(), False)

        runs = []
        for _ in range(repeat):
            start_s = time.perf_counter()
            count = sum(1 for _ in engine.load().events)
            runs.append((count / (time.perf_counter() - start_s),))
        (rate,) = medians(runs)
        print(
            f"load: {rate:,.0f} rows/s of {rows:,} events, {engine.sizes().total_bytes / rows:.0f} bytes each on disk"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Durable rows per second of the engine")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the databases go; default: here")
    parser.add_argument("--rows", type=int, default=40_000, help="rows of one run")
    parser.add_argument("--load-rows", type=int, default=1_000_000, help="rows loaded")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {platform.system()} {platform.release()},", end=" ")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    commits(options.dir, options.rows, options.repeat)
    loading(options.dir, options.load_rows, options.repeat)


if __name__ == "__main__":
    main()
