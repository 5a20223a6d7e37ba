# SPDX-License-Identifier: Apache-2.0
"""The engine, its log and its tables, in any order of commits, upkeep, syncs, crashes and restarts, against a dict.

The files of the log are tiny, so that both start over again and again, and grow; records of one size are frequent, so
that new ones fall exactly over old ones. Batches have all kinds of rows. After every crash, every loss of power and
every restart the engine must give what the model holds: all that was acknowledged, and of the write that was under way
all or nothing.

A sync ends when a step says so, or when the engine waits for it. `PowerLoss` knows what was synced.
"""

import errno
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.durable import directory, file_log, opening, sweep, upkeep
from lessor.durable.engine import EngineError
from lessor.durable.file_engine import FileEngine
from lessor.durable.record import CHAIN_BYTES, encode
from lessor.durable.sectors import SECTOR_BYTES, sectors_of
from lessor.state.journal import AuthRows, Batch, EventRow, LeaseRow
from tests.faulty_disk import Later, PowerLoss, log_file
from tests.property.test_engine_roundtrip import make_batch

SEGMENT_BYTES = 10 * SECTOR_BYTES
LOG_BYTES_MAX = 4 * SEGMENT_BYTES
STEPS = (
    "put", "put", "put", "grant", "grant and put", "bare", "large", "huge", "alarm", "user", "compact", "compact",
    "peer URLs", "clean", "term", "settle", "settle", "flush", "rest", "rest", "sync ends", "sync ends", "crash",
    "crash in a write", "power loss", "power loss", "power loss in a write", "reopen", "read on", "lock", "leave",
    "leave", "write beside", "write beside",
)  # fmt: skip


@contextmanager
def tiny_log(wal_pages_sync: int) -> Iterator[Path]:
    memory = Path("/dev/shm")
    with (
        patch.object(file_log, "SEGMENT_BYTES", SEGMENT_BYTES),
        patch.object(file_log, "LOG_BYTES_MAX", LOG_BYTES_MAX),
        patch.object(opening, "BUSY_S", 0.0),
        patch.object(upkeep, "FOLD_BYTES", 500),
        patch.object(upkeep, "WAL_PAGES_SYNC", wal_pages_sync),
        patch.object(upkeep, "FOLD_ROWS", 1),
        patch.object(sweep, "SWEEP_ROWS_MAX", 3),
        tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name,
    ):
        yield Path(name)


class Power(PowerLoss):
    """Counts how often each file of the log starts over and grows; can tear the next write."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.rounds: Counter[str] = Counter()
        self.torn_bytes: int | None = None  # how much of the next record gets through before the disk fails
        self.whole = False  # whether that record is whole all the same

    def write(self, descriptor: int, data: bytes | memoryview, position: int) -> int:
        if position == SECTOR_BYTES:
            self.rounds[log_file(descriptor)] += 1
        if self.torn_bytes is None:
            return super().write(descriptor, data, position)
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:
            file.seek(position)
            # What is missing may be there already: records end with zeros.
            self.whole = file.read(len(data))[self.torn_bytes :] == data[self.torn_bytes :]
        os.pwrite(descriptor, data[: self.torn_bytes], position)
        raise OSError(errno.EIO, "torn")

    def grow(self, descriptor: int, from_bytes: int, to_bytes: int) -> None:
        self.rounds["grown"] += 1
        super().grow(descriptor, from_bytes, to_bytes)


class Story:
    """An engine and the model of what it was given."""

    def __init__(self, home: Path, seed: int) -> None:
        self.home = home
        self.chance = random.Random(seed)
        self.runs = 0
        self.early_deaths = 0  # of starts, before their first record
        self.rounds: Counter[str] = Counter()
        self.starts: Counter[bool] = Counter()  # by whether pages could not be compared
        self.number = 0
        self.term = 0
        self.now_s = 0.0
        self.time_s = 0.0  # the time for upkeep
        self.clean = True  # as a new directory is
        self.events: list[EventRow] = []
        self.dead: set[tuple[int, int]] = set()  # named by compactions
        self.compacted = -1
        self.leases: dict[int, LeaseRow] = {}
        self.alarm = False
        self.peer_urls: tuple[str, ...] = ()
        self.users: dict[str, tuple[str, ...]] = {}
        self.auth_revision = 1
        self.engine = self.opened(home / "0")

    def opened(self, data_dir: Path) -> FileEngine:
        self.data_dir = data_dir
        self.people: list[sqlite3.Connection] = []  # with the sqlite3 shell: one who reads on and on, one who writes
        self.locked = False
        self.power = Power(data_dir)
        self.later = Later()
        engine = FileEngine(data_dir, connect=self.power.connect, disk=self.power, start=self.later.start)
        self.starts[engine.open((1, 2)).not_compared != ""] += 1
        return engine

    def batch(self, kind: str) -> Batch:
        number = self.number + self.chance.choice((1, 1, 1, 2))
        size = {"large": 1_000, "huge": SEGMENT_BYTES * 2}.get(kind, self.chance.choice((10, 10, 10, 60)))
        events: list[EventRow] = []
        if kind in ("put", "grant and put", "large", "huge", "alarm"):
            key, revision = self.chance.choice((b"a", b"b")), number * 2
            value = None if self.chance.random() < 0.1 else (b"%d" % number * size)[:size]
            events = [(revision, 0, key, value, revision, 1, 0)]
        leases: list[LeaseRow] = []
        if "grant" in kind:
            leases = [(self.chance.randint(1, 5), 60, number + 60.0, self.chance.random() < 0.3)]
        parts: dict[str, Any] = {}
        if kind == "peer URLs":
            parts["peer_urls"] = (f"http://{number}",)
        elif kind == "user":
            name = self.chance.choice("uvw")
            roles = tuple(self.chance.sample(("r", "s"), self.chance.randint(0, 2)))
            user = (name, b"hash", False, tuple(sorted(roles)), self.chance.random() < 0.3)
            parts["auth"] = AuthRows([user], switch=(True, 10 + number) if self.chance.random() < 0.5 else None)
        elif kind == "compact":
            # The oldest rows, as if each were covered by a newer one.
            dead = [row[:2] for row in self.events if row[:2] not in self.dead]
            parts["compact_revision"] = number * 2
            parts["dead"] = dead[: self.chance.randint(0, len(dead))]
            self.chance.shuffle(parts["dead"])
        alarms = [(1, 1, not self.alarm)] if kind == "alarm" else []
        return make_batch(number, number / 3, events, leases, alarms, clean=kind == "clean", **parts)

    def take_in(self, batch: Batch) -> None:
        self.number, self.now_s, self.clean = batch.number, batch.clock_s, batch.clean
        self.events += batch.events
        self.leases |= {row[0]: row for row in batch.leases}
        for _, _, self.alarm in batch.alarms:
            pass
        self.peer_urls = batch.peer_urls or self.peer_urls
        if batch.compact_revision is not None:
            self.compacted = batch.compact_revision
            self.dead.update(batch.dead)
        if batch.auth is not None:
            for name, _, _, roles, deleted in batch.auth.users.values():
                self.users.pop(name, None)
                if not deleted:
                    self.users[name] = roles
            if batch.auth.switch is not None:
                self.auth_revision = batch.auth.switch[1]

    def check(self) -> None:
        loaded = self.engine.load()
        # Dead rows go in their order, when the engine has time.
        found = list(loaded.events)
        assert [row for row in found if row[:2] not in self.dead] == [
            row for row in self.events if row[:2] not in self.dead
        ]
        assert set(found) <= set(self.events)
        assert list(loaded.leases) == sorted(row for row in self.leases.values() if not row[3])
        assert [row[2] for row in loaded.alarms] == [True] * self.alarm
        assert {name: row[3] for name, row in loaded.auth.users.items()} == self.users
        assert loaded.auth.switch == (self.auth_revision > 1, self.auth_revision)
        meta = loaded.meta
        assert (meta.batch, meta.clock_s, meta.clean, meta.term) == (self.number, self.now_s, self.clean, self.term)
        assert (meta.compact_revision, meta.peer_urls) == (self.compacted, self.peer_urls)

    def crash(self, *, power: bool) -> None:
        """Goes on with the files as they are at this instant, or as a loss of power leaves them."""
        self.runs += 1
        fresh = self.home / str(self.runs)
        shutil.copytree(self.data_dir, fresh)
        if power:
            (fresh / "lessor.db-shm").unlink()
            self.power.leave(fresh, self.chance)
        self.leave()
        self.rounds += self.power.rounds
        self.engine.close()
        shutil.rmtree(self.data_dir)
        if self.chance.random() < 0.2:
            self.write_beside(fresh)
        self.engine = self.opened(fresh)
        if self.chance.random() < 0.3:
            self.early_deaths += 1
            self.crash(power=power)
        self.check()

    def crash_in_a_write(self, *, power: bool) -> None:
        batch = self.batch(self.chance.choice(("grant and put", "large", "user")))
        size = sectors_of(len(encode(1, 1, bytes(CHAIN_BYTES), batch))) * SECTOR_BYTES
        self.power.torn_bytes = self.chance.choice((0, size, self.chance.randrange(size)))
        with pytest.raises(EngineError):
            self.engine.commit(batch)
        if self.power.whole:
            self.take_in(batch)
        self.crash(power=power)

    def person(self, statement: str) -> None:
        """Somebody begins a transaction and stays in it."""
        person = sqlite3.connect(self.data_dir / "lessor.db", isolation_level=None, timeout=0)
        self.people.append(person)
        person.execute(statement)
        person.execute("SELECT * FROM meta").fetchall()

    def write_beside(self, data_dir: Path) -> None:
        """Another program writes to the tables, copies SQLite's log or not, and closes, perhaps as the last one."""
        power = self.power if data_dir == self.data_dir else PowerLoss(data_dir)
        connection = power.connect(str(data_dir / "lessor.db"), isolation_level=None, timeout=0)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        with suppress(sqlite3.OperationalError):  # locked
            for _ in range(self.chance.randint(1, 3)):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("REPLACE INTO meta VALUES ('a note', ?)", (self.chance.random(),))
                connection.execute("COMMIT")
                if self.chance.random() < 0.5:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.close()

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
            self.crash(power=False)  # the log is full
        else:
            self.take_in(batch)

    def upkeep(self, idle: bool) -> None:
        """As after a commit; or as in a pause, a few steps of it, while others may hold the tables."""
        for _ in range(self.chance.randint(1, 8) if idle else 1):
            self.time_s += 20.0 if idle else 0.001
            self.engine.upkeep(self.time_s, idle)

    def step(self, kind: str) -> None:
        if kind in ("flush", "reopen", "load", "term"):  # these wait for those who write
            self.leave()
        if kind == "settle":
            self.upkeep(idle=False)
        elif kind == "rest":
            self.upkeep(idle=True)
        elif kind == "flush":
            self.engine.flush()
        elif kind == "term":
            self.term += self.chance.randint(1, 3)
            self.engine.begin_term(self.term)
            self.clean = False
        elif kind == "read on":
            self.person("BEGIN")
        elif kind == "lock":
            if not self.locked:
                self.person("BEGIN IMMEDIATE")
                self.locked = True
        elif kind == "leave":
            self.leave()
        elif kind == "write beside":
            self.write_beside(self.data_dir)
        elif kind == "sync ends":
            self.later.run()
        elif kind in ("crash", "power loss"):
            self.crash(power="power" in kind)
        elif "in a write" in kind:
            self.crash_in_a_write(power="power" in kind)
        elif kind == "reopen":
            self.rounds += self.power.rounds
            self.engine.close()
            self.engine = self.opened(self.data_dir)
            self.check()
        else:
            self.commit(kind)
        sizes = [(self.data_dir / name).stat().st_size for name in directory.LOG_NAMES]
        assert all(size >= SEGMENT_BYTES and size % SEGMENT_BYTES == 0 for size in sizes)
        assert sum(sizes) <= LOG_BYTES_MAX

    def run(self, steps: Sequence[str]) -> None:
        try:
            for step in steps:
                self.step(step)
            self.leave()
            self.check()
        finally:
            self.rounds += self.power.rounds
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
    "and files grow": ("put", "large", "huge", "settle", "sync ends") * 50 + ("rest", "power loss") * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("often", OFTEN)
@pytest.mark.parametrize("seed", range(2))
def test_a_long_story_in_which_both_files_start_over_many_times(often: str, seed: int) -> None:
    steps = random.Random(seed).choices([*STEPS, *OFTEN[often]], k=5_000)
    with tiny_log(1_000) as home:
        story = Story(home, seed)
        story.run(steps)
        # Each run begins in the first file, if it comes that far.
        assert story.rounds["lessor.log.0"] - (story.runs - story.early_deaths) > 20
        assert story.rounds["lessor.log.1"] > 20
        assert story.rounds["grown"] > 20
        assert story.starts[False] > 2 * story.starts[True] > 20
