# SPDX-License-Identifier: Apache-2.0
"""The SQLite engine over its batch log, in any order of commits, folds, crashes and restarts, against a dict.

The files of the log are tiny, so that both start over again and again, and records of one size are frequent, so that
new ones fall exactly over old ones. After every crash and every restart the engine must give what the model holds: all
that was acknowledged, and of the write that was under way all or nothing.
"""

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.durable import batch_log, directory, sqlite
from lessor.durable.engine import EngineError
from lessor.durable.faulty import WriteFaults
from lessor.durable.sqlite import SqliteEngine
from lessor.state.journal import Batch, EventRow, LeaseRow
from tests.property.test_engine_roundtrip import make_batch

FILE_BYTES = 700
LOGGED_BYTES_MAX = 300
UNFOLDED_BYTES_MAX = FILE_BYTES - LOGGED_BYTES_MAX
STEPS = (
    "put", "put", "put", "grant", "grant and put", "bare", "large", "alarm", "clean", "settle", "settle", "fold",
    "collect", "crash", "crash in a write", "reopen",
)  # fmt: skip


@contextmanager
def tiny_log() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with (
        patch.object(batch_log, "FILE_BYTES", FILE_BYTES),
        patch.object(sqlite, "LOGGED_BYTES_MAX", LOGGED_BYTES_MAX),
        patch.object(sqlite, "UNFOLDED_BYTES_MAX", UNFOLDED_BYTES_MAX),
        patch.object(sqlite, "FOLD_BYTES", 200),
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
        self.leases: dict[int, LeaseRow] = {}
        self.torn_bytes: int | None = None  # how much of the next record gets through before the disk fails
        self.engine = self.opened(home / "0")

    def opened(self, data_dir: Path) -> SqliteEngine:
        self.data_dir = data_dir
        engine = SqliteEngine(data_dir, write=self.write)
        engine.open((1, 2))
        return engine

    def write(self, descriptor: int, data: memoryview, position: int) -> int:
        if position == 0:
            self.rounds[os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))] += 1
        if self.torn_bytes is not None:
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
        self.number, self.now_s, self.clean = batch.number, batch.now_s, batch.clean
        self.events += batch.events
        self.leases |= {row[0]: row for row in batch.leases}

    def check(self) -> None:
        loaded = self.engine.load()
        assert list(loaded.events) == self.events
        assert list(loaded.leases) == sorted(row for row in self.leases.values() if not row[3])
        assert (loaded.meta.batch, loaded.meta.uptime_s, loaded.meta.clean) == (self.number, self.now_s, self.clean)

    def crash(self) -> None:
        """Goes on with the files as they are at this instant."""
        self.runs += 1
        fresh = self.home / str(self.runs)
        shutil.copytree(self.data_dir, fresh)
        self.engine.close()
        shutil.rmtree(self.data_dir)
        self.torn_bytes = None
        self.engine = self.opened(fresh)
        self.check()

    def crash_in_a_write(self) -> None:
        batch = self.batch("grant and put")
        record_bytes = len(batch_log.encode(batch, self.number, bytes(batch_log.SALT_BYTES)))
        self.torn_bytes = self.chance.choice((0, record_bytes, self.chance.randrange(record_bytes)))
        whole = self.torn_bytes == record_bytes
        with pytest.raises(EngineError):
            self.engine.commit(batch)
        if whole and record_bytes <= LOGGED_BYTES_MAX:
            self.take_in(batch)
        self.crash()

    def collect(self) -> None:
        """Deletes the oldest row, as after a compaction, which folds first."""
        dead = self.events[:1]
        batch = make_batch(self.number + 1, self.now_s, [], [], [], compact_revision=self.number * 2)
        self.engine.commit(batch)
        self.take_in(batch)
        more = self.engine.collect([row[:2] for row in dead])
        while more:
            more = self.engine.collect()
        del self.events[:1]

    def step(self, kind: str) -> None:
        if kind == "settle":
            self.engine.settle()
        elif kind == "fold":
            self.engine.fold()
        elif kind == "collect":
            self.collect()
        elif kind == "crash":
            self.crash()
        elif kind == "crash in a write":
            self.crash_in_a_write()
        elif kind == "reopen":
            self.engine.close()
            self.engine = self.opened(self.data_dir)
            self.check()
        else:
            batch = self.batch(kind)
            self.engine.commit(batch)
            self.take_in(batch)
        for name in directory.LOG_NAMES:
            assert (self.data_dir / name).stat().st_size == FILE_BYTES
        assert self.engine._unfolded.size_bytes < UNFOLDED_BYTES_MAX + LOGGED_BYTES_MAX

    def run(self, steps: Sequence[str]) -> None:
        try:
            for step in steps:
                self.step(step)
            self.check()
        finally:
            self.engine.close()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=60), st.integers(0, 2**32))
def test_any_order_of_steps(steps: list[str], seed: int) -> None:
    with tiny_log() as home:
        Story(home, seed).run(steps)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_long_story_in_which_both_files_start_over_many_times(seed: int) -> None:
    # A settle after each put folds as much as comes in: never all, so that one file does not do.
    steps = random.Random(seed).choices([*STEPS, *("put", "settle") * 100], k=1_500)
    with tiny_log() as home:
        story = Story(home, seed)
        story.run(steps)
        assert all(story.rounds[name] - story.runs > 20 for name in directory.LOG_NAMES)
