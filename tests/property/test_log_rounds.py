# SPDX-License-Identifier: Apache-2.0
"""The SQLite engine over its batch log, in any order of commits, folds, syncs, crashes and restarts, against a dict.

The files of the log are tiny, so that both start over again and again, and records of one size are frequent, so that
new ones fall exactly over old ones. After every crash, every loss of power and every restart the engine must give what
the model holds: all that was acknowledged, and of the write that was under way all or nothing.

A sync ends when a step says so, or when the engine waits for it. `PowerLoss` knows what was synced.
"""

import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.durable import batch_log, directory, sqlite
from lessor.durable.engine import EngineError, TablesLockedError
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import Batch, EventRow, LeaseRow
from tests.faulty_disk import Later, PowerLoss, WriteFaults
from tests.property.test_engine_roundtrip import make_batch

FILE_BYTES = 700
LOGGED_BYTES_MAX = 300
STEPS = (
    "put", "put", "put", "grant", "grant and put", "bare", "large", "alarm", "clean", "settle", "settle", "fold",
    "fold step", "collect", "sync ends", "sync ends", "crash", "crash in a write", "power loss", "power loss",
    "power loss in a write", "reopen", "read on", "lock", "leave", "leave",
)  # fmt: skip


@contextmanager
def tiny_log(wal_pages_settle: int) -> Iterator[Path]:
    memory = Path("/dev/shm")
    with (
        patch.object(batch_log, "FILE_BYTES", FILE_BYTES),
        patch.object(sqlite, "LOGGED_BYTES_MAX", LOGGED_BYTES_MAX),
        patch.object(sqlite, "BUSY_S", 0.0),
        patch.object(sqlite, "FOLD_BYTES", 200),
        patch.object(sqlite, "WAL_PAGES_SETTLE", wal_pages_settle),
        patch.object(sqlite, "FOLD_ROWS", 1),
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name,
    ):
        yield Path(name)


class Story:
    """An engine and the model of what it was given."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.chance = random.Random(seed)
        self.runs = 0
        self.rounds: Counter[str] = Counter()
        self.number = 0
        self.now_s = 0.0
        self.clean = True  # as a new directory is
        self.events: list[EventRow] = []
        self.whole = False  # whether that record is whole all the same
        self.dead: set[tuple[int, int]] = set()
        self.lost_power = False
        self.leases: dict[int, LeaseRow] = {}
        self.torn_bytes: int | None = None  # how much of the next record gets through before the disk fails
        self.engine = self.opened(home / "0")

    def opened(self, data_dir: Path) -> FileEngine:
        self.data_dir = data_dir
        self.people: list[sqlite3.Connection] = []  # with the sqlite3 shell: one who reads on and on, one who writes
        self.locked = False
        self.power = PowerLoss(data_dir)
        self.later = Later()
        engine = FileEngine(data_dir, connect=self.power.connect, write=self.write, start=self.later.start)
        engine.open((1, 2))
        return engine

    def write(self, descriptor: int, data: memoryview, position: int) -> int:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if position == 0:
            self.rounds[path.name] += 1
        if self.torn_bytes is not None:
            # What is missing may be there already: old records end with the same bytes.
            there = path.read_bytes()[position : position + len(data)]
            self.whole = there[self.torn_bytes :] == data[self.torn_bytes :]
            return WriteFaults(1, written_max=self.torn_bytes).write(descriptor, data, position)
        return os.pwrite(descriptor, data, position)

    def batch(self, kind: str) -> Batch:
        number = self.number + self.chance.choice((1, 1, 1, 2))
        size = {"large": 400}.get(kind, self.chance.choice((10, 10, 10, 60)))
        events: list[EventRow] = []
        if kind not in ("grant", "bare", "clean"):
            key, revision = self.chance.choice((b"a", b"b")), number * 2
            value = None if self.chance.random() < 0.1 else b"%d" % number * size
            events = [(revision, 0, key, value, revision, 1, 0)]
        leases: list[LeaseRow] = []
        if "grant" in kind:
            leases = [(self.chance.randint(1, 5), 60, number + 60.0, self.chance.random() < 0.3)]
        alarms = [(1, 1, True)] if kind == "alarm" else []
        return make_batch(number, number / 3, events, leases, alarms, clean=kind == "clean")

    def take_in(self, batch: Batch) -> None:
        self.number, self.now_s, self.clean = batch.number, batch.clock_s, batch.clean
        self.events += batch.events
        self.leases |= {row[0]: row for row in batch.leases}

    def check(self) -> None:
        loaded = self.engine.load()
        # A loss of power may bring back what was deleted as superfluous: nobody was told of that.
        assert [row for row in loaded.events if not (self.lost_power and row[:2] in self.dead)] == self.events
        assert list(loaded.leases) == sorted(row for row in self.leases.values() if not row[3])
        assert (loaded.meta.batch, loaded.meta.clock_s, loaded.meta.clean) == (self.number, self.now_s, self.clean)

    def crash(self, *, power: bool) -> None:
        """Goes on with the files as they are at this instant, or as a loss of power leaves them."""
        self.runs += 1
        fresh = self.home / str(self.runs)
        shutil.copytree(self.data_dir, fresh)
        if power:
            self.lost_power = True
            (fresh / "lessor.db-shm").unlink()
            self.power.leave(fresh, self.chance)
        self.leave()
        self.engine.close()
        shutil.rmtree(self.data_dir)
        self.torn_bytes = None
        self.engine = self.opened(fresh)
        self.check()

    def crash_in_a_write(self, *, power: bool) -> None:
        batch = self.batch("grant and put")
        record_bytes = len(batch_log.encode(batch, self.number, bytes(batch_log.SALT_BYTES)))
        self.torn_bytes = self.chance.choice((0, record_bytes, self.chance.randrange(record_bytes)))
        with pytest.raises(EngineError):
            self.engine.commit(batch)
        if self.whole and record_bytes <= LOGGED_BYTES_MAX:
            self.take_in(batch)
        self.crash(power=power)

    def collect(self) -> None:
        """Deletes the oldest row, as after a compaction, which folds first."""
        dead = [row[:2] for row in self.events[:1]]
        self.dead.update(dead)
        batch = make_batch(self.number + 1, self.now_s, [], [], [], compact_revision=self.number * 2)
        self.engine.commit(batch)
        self.take_in(batch)
        more = self.engine.collect(dead)
        while more:
            more = self.engine.collect()
        del self.events[:1]

    def person(self, statement: str) -> None:
        """Somebody begins a transaction and stays in it."""
        person = sqlite3.connect(self.data_dir / "lessor.db", isolation_level=None, timeout=0)
        self.people.append(person)
        person.execute(statement)
        person.execute("SELECT * FROM meta").fetchall()

    def leave(self) -> None:
        while self.people:
            self.people.pop().close()
        self.locked = False

    def commit(self, kind: str) -> None:
        batch = self.batch(kind)
        try:
            self.engine.commit(batch)
        except EngineError as error:
            if not (self.locked and "locked by another program" in str(error)):
                raise
            self.crash(power=False)  # the log is full, or the batch is not for it
        else:
            self.take_in(batch)

    def step(self, kind: str) -> None:
        if kind in ("fold", "collect", "reopen", "load"):  # these wait for those who write
            self.leave()
        if kind == "settle":
            self.engine.settle()
        elif kind == "fold":
            self.engine.flush()
        elif kind == "read on":
            self.person("BEGIN")
        elif kind == "lock":
            if not self.locked:
                self.person("BEGIN IMMEDIATE")
                self.locked = True
        elif kind == "leave":
            self.leave()
        elif kind == "fold step":
            with suppress(TablesLockedError):
                self.engine.fold_step()
        elif kind == "sync ends":
            self.later.run()
        elif kind == "collect":
            self.collect()
        elif kind in ("crash", "power loss"):
            self.crash(power="power" in kind)
        elif "in a write" in kind:
            self.crash_in_a_write(power="power" in kind)
        elif kind == "reopen":
            self.engine.close()
            self.engine = self.opened(self.data_dir)
            self.check()
        else:
            self.commit(kind)
        for name in directory.LOG_NAMES:
            assert (self.data_dir / name).stat().st_size == FILE_BYTES

    def run(self, steps: Sequence[str]) -> None:
        try:
            for step in steps:
                self.step(step)
            self.leave()
            self.check()
        finally:
            self.leave()
            self.engine.close()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=60), st.integers(0, 2**32))
def test_any_order_of_steps(steps: list[str], seed: int) -> None:
    with tiny_log(12) as home:
        Story(home, seed).run(steps)


# A settle after each put folds as much as comes in: never all, so that one file does not do.
OFTEN = {
    "the log starts over": ("put", "settle") * 100,
    "and its files are synced in time": ("put", "settle", "sync ends") * 100,
    "and readers keep SQLite's log": ("put", "settle", "sync ends") * 70 + ("read on", "power loss") * 2,
    "and writers lock the tables": ("put", "settle", "sync ends") * 70
    + ("read on", "lock", "leave", "leave", "power loss") * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("often", OFTEN)
@pytest.mark.parametrize("seed", range(2))
def test_a_long_story_in_which_both_files_start_over_many_times(often: str, seed: int) -> None:
    steps = random.Random(seed).choices([*STEPS, *OFTEN[often]], k=1_500)
    with tiny_log(1_000) as home:
        story = Story(home, seed)
        story.run(steps)
        # Each run begins in the first file.
        assert story.rounds["lessor.log.0"] - story.runs > 20
        assert story.rounds["lessor.log.1"] > 20
