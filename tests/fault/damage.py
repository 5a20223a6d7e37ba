# SPDX-License-Identifier: Apache-2.0
"""Damages the files of a stopped server, one place at a time, and looks at what the next start makes of it.

By hand:  python -m tests.fault.damage --trials 2000 --seed 1

Method. One script of 300 acknowledged batches (keys, leases, alarms, users, roles, a compaction, and near the end users
no longer have to log in) is run once for each way in which a server may leave its directory:

    log only    killed; 95 batches are in the log alone
    folded      killed; everything is in SQLite's log too, where nothing was synced but at the start
    trimmed     killed; the log is trimmed; what was synced is in SQLite's log and not in its file: somebody reads on
    grown       killed; a burst has made a file of the log grow
    shrunk      killed; a burst had made a file of the log grow, and that room was given back
    first       killed in its first run, before SQLite's log was ever copied
    stopped     an orderly stop

A trial takes a copy, damages one file at one place, and starts. It does so as a disk does, which leaves the time of the
file's last change as it was. The copy is *served*, with everything that was acknowledged, or *refused* in one line. One
kind of damage cannot be seen, and has an outcome of its own:

- *looks unwritten*: a sector of the newest record is zero, or more than a bit of its last one is wrong. The newest
  batch is missing, and nothing else. A write that the disk never finished looks the same.

Everything else is *wrong*, and the exit code is 1 then.

Does not do: two damages at once; a disk that fails while it is used (test_disk_faults.py).
"""

import argparse
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

from lessor.durable import directory, file_log, upkeep
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from lessor.durable.sectors import SECTOR_BYTES, head_of
from lessor.server.role import IMPOSSIBLE_ROWS
from lessor.state.journal import AlarmRow, AuthRows, Batch, EventRow, LeaseRow
from lessor.state.machine import Identity
from lessor.state.replay import restore
from tests.faulty_disk import run_at_once
from tests.unit.durable.engine_rows import IDENTITY, batch, rest, settle

BATCHES: Final = 300
LOG_ONLY: Final = 95
COMPACTED_AT: Final = 150
SEGMENT_BYTES: Final = 256 * SECTOR_BYTES
DATABASE: Final = directory.DATABASE_NAME
EXPLAINED: Final = ("served", "refused", "looks unwritten")
FILES: Final = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-sums", *directory.LOG_NAMES)


def script() -> list[Batch]:
    """The batches, in their order."""
    chance = random.Random(12)
    batches: list[Batch] = []
    created: dict[bytes, tuple[int, int]] = {}
    revision = 1
    for number in range(1, BATCHES + 1):
        revision += 1
        events: list[EventRow] = []
        for sub, index in enumerate(sorted(chance.sample(range(40), chance.randint(1, 3)))):
            key = b"key%d" % index
            made, version = created.get(key, (revision, 0))
            created[key] = made, version + 1
            size = 20_000 if number % 50 == 0 else chance.choice((5, 100, 700))
            lease = number if number % 10 == 0 else 0
            events.append((revision, sub, key, chance.randbytes(size), made, version + 1, lease))
        parts: dict[str, object] = {"events": events}
        if number % 10 == 0:
            parts["leases"] = [(number, 600, number + 600.0, False)]
        if number == 100:
            role = ("r", ((b"a", b"", 0),), False)
            parts["auth"] = AuthRows([("root", b"hash", False, ("r",), False)], [role], (True, 3))
            parts["alarms"] = [(5, 1, True)]
        if number == BATCHES - 3:
            parts["auth"] = AuthRows([], [], (False, 4))
        if number == COMPACTED_AT:
            newest = {row[2]: row[:2] for one in batches for row in one.events}
            parts["compact_revision"] = revision - 1
            parts["dead"] = [row[:2] for one in batches for row in one.events if newest[row[2]] != row[:2]]
        batches.append(batch(number, **parts))
    return batches


@dataclass
class Expected:
    """What the next start has to give."""

    events: list[EventRow]
    dead: set[tuple[int, int]]
    leases: list[LeaseRow]
    alarms: list[AlarmRow]
    auth: AuthRows
    meta: tuple[object, ...]

    @classmethod
    def after(cls, batches: list[Batch], term: int) -> "Expected":
        dead = {row for one in batches for row in one.dead}
        events = [row for one in batches for row in one.events if row[:2] not in dead]
        leases = sorted(row for one in batches for row in one.leases)
        alarms = [row for one in batches for row in one.alarms]
        compacted = max((one.compact_revision or -1 for one in batches), default=-1)
        auth = AuthRows()
        for one in batches:
            if one.auth is not None:
                auth = AuthRows(
                    list(one.auth.users.values()) or list(auth.users.values()),
                    list(one.auth.roles.values()) or list(auth.roles.values()),
                    one.auth.switch,
                )
        newest = batches[-1]
        return cls(events, dead, leases, alarms, auth, (term, newest.number, newest.clock_s, compacted))


@dataclass
class Left:
    """A directory as one kind of stop leaves it."""

    name: str
    path: Path
    expected: Expected
    before_last: Expected  # the same without the newest batch
    newest_at: tuple[str, int, int]  # the newest record of the log: file, from, to


# --- the ways to leave a directory ----------------------------------------------------------------------------------


def _log_only(engine: FileEngine, batches: list[Batch]) -> None:
    for one in batches:
        engine.commit(one)
        if one.number <= BATCHES - LOG_ONLY:
            settle(engine)
        if one.number == BATCHES - LOG_ONLY:
            rest(engine)


def _folded(engine: FileEngine, batches: list[Batch]) -> None:
    for one in batches:
        engine.commit(one)
        engine.flush()


def _read_on(engine: FileEngine, person: sqlite3.Connection) -> None:
    """Begins to read, and does not end: SQLite's log does not start over."""
    rest(engine)
    person.execute("BEGIN")
    person.execute("SELECT count(*) FROM meta").fetchone()


def _trimmed(engine: FileEngine, batches: list[Batch]) -> None:
    """Somebody reads on from batch 200, so that what follows stays in SQLite's log."""
    with closing(sqlite3.connect(engine._path, isolation_level=None)) as person:
        for one in batches:
            engine.commit(one)
            if one.number == 200:
                _read_on(engine, person)
        engine._upkeep.make_room()
        _leave_now(engine)


def _grown(engine: FileEngine, batches: list[Batch]) -> None:
    for one in batches:
        engine.commit(one)
        if one.number == 180:
            rest(engine)


def _shrunk(engine: FileEngine, batches: list[Batch]) -> None:
    """The same from batch 100, with a burst behind it."""
    with closing(sqlite3.connect(engine._path, isolation_level=None)) as person:
        for one in batches:
            engine.commit(one)
            if one.number == 100:
                _read_on(engine, person)
            elif one.number in (102, 104):
                engine._upkeep.make_room()
        engine._upkeep.make_room()
        _leave_now(engine)


def _leave_now(engine: FileEngine) -> None:
    """Copies the directory as it is now, and not as it is when everybody has left it."""
    shutil.copytree(engine._dir, engine._dir.with_name("left"))


WAYS: Final[dict[str, Callable[[FileEngine, list[Batch]], None]]] = {
    "log only": _log_only,
    "folded": _folded,
    "trimmed": _trimmed,
    "grown": _grown,
    "shrunk": _shrunk,
    "first": _folded,
    "stopped": _folded,
}


@contextmanager
def small() -> Iterator[None]:
    """Files of the log of 128 KiB, and a fold after each batch."""
    with patch.object(file_log, "SEGMENT_BYTES", SEGMENT_BYTES), patch.object(upkeep, "FOLD_BYTES", 1_000):
        yield


def leave(home: Path, name: str) -> Left:
    """Runs the script, and leaves the directory that way."""
    left = home / name.replace(" ", "-")
    batches, term = script(), 1
    engine = FileEngine(home / "alive", start=run_at_once)
    engine.open(IDENTITY)
    if name != "first":
        engine.begin_term(term)
        engine.close()
        engine = FileEngine(home / "alive", start=run_at_once)
        engine.open(IDENTITY)
        term += 1
    engine.begin_term(term)
    WAYS[name](engine, batches)
    if name == "stopped":
        engine.close()
    if not (home / "left").exists():
        shutil.copytree(home / "alive", home / "left")
    (home / "left").rename(left)
    engine.close()
    shutil.rmtree(home / "alive")
    expected, before_last = Expected.after(batches, term), Expected.after(batches[:-1], term)
    return Left(name, left, expected, before_last, newest_record(left))


def newest_record(data_dir: Path) -> tuple[str, int, int]:
    """Where the newest record of the log stands: file, from, to."""
    found: dict[int, list[tuple[str, int]]] = {}
    for name in directory.LOG_NAMES:
        data = (data_dir / name).read_bytes()
        for at in range(SECTOR_BYTES, len(data), SECTOR_BYTES):
            head = head_of(data[at : at + SECTOR_BYTES])
            if head is not None:
                found.setdefault(head.number, []).append((name, at))
    sectors = found[max(found)]
    return sectors[0][0], sectors[0][1], sectors[-1][1] + SECTOR_BYTES


# --- damage ---------------------------------------------------------------------------------------------------------


def _flip(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _over(chance: random.Random, data: bytes, piece: bytes, align: int = 1) -> bytes:
    at = chance.randrange(0, max(1, len(data)), align)
    return (data[:at] + piece + data[at + len(piece) :])[: len(data)]


DAMAGES: Final[dict[str, Callable[[random.Random, bytes], bytes]]] = {
    "a bit": _flip,
    "a byte": lambda chance, data: _over(chance, data, chance.randbytes(1)),
    "bytes": lambda chance, data: _over(chance, data, chance.randbytes(chance.randint(2, 600))),
    "a sector of zeros": lambda chance, data: _over(chance, data, bytes(SECTOR_BYTES), SECTOR_BYTES),
    "a page of zeros": lambda chance, data: _over(chance, data, bytes(4_096), 4_096),
    "cut": lambda chance, data: data[: chance.randrange(len(data))],
    "cut at a sector": lambda chance, data: data[: chance.randrange(0, len(data), SECTOR_BYTES)],
    "longer": lambda chance, data: data + chance.randbytes(chance.randint(1, 5_000)),
}


@dataclass
class Trial:
    """One damage to one file."""

    left: Left
    file: str
    damage: str
    where: tuple[int, int]  # the bytes that differ: from, to
    outcome: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.left.name}, {self.file}, {self.damage}, bytes {self.where}: {self.outcome} {self.detail}"


def difference(before: bytes, after: bytes) -> tuple[int, int]:
    """From the first to behind the last byte that differs."""
    size = min(len(before), len(after))
    first = next((at for at in range(0, size, 64) if before[at : at + 64] != after[at : at + 64]), size)
    first = next((at for at in range(first, min(first + 64, size)) if before[at] != after[at]), size)
    if len(before) != len(after):
        return first, max(len(before), len(after))
    last = next((at for at in range(size, 0, -64) if before[max(at - 64, 0) : at] != after[max(at - 64, 0) : at]), 0)
    last = next((at for at in range(last, 0, -1) if before[at - 1] != after[at - 1]), first)
    return first, last


def start(data_dir: Path, left: Left) -> tuple[str, str]:
    """What a start makes of the directory: the outcome, and what is said of it."""
    engine = FileEngine(data_dir, start=run_at_once)
    try:
        meta = engine.open(IDENTITY)
        try:
            loaded = engine.load()
            events, leases, alarms = list(loaded.events), list(loaded.leases), list(loaded.alarms)
            restore(Identity(*IDENTITY, meta.term), engine.load())
        except IMPOSSIBLE_ROWS as error:
            return "refused", f"rows that cannot be, {error!r}"
        engine.begin_term(meta.term + 1)
    except DataDirError as error:
        return ("refused" if "\n" not in str(error) else "refused in more than a line"), str(error)
    except Exception:
        return "traceback", traceback.format_exc(limit=-4)
    finally:
        engine.close()

    def same_as(expected: Expected) -> bool:
        found = [row for row in events if row[:2] not in expected.dead]
        meta_rows = (meta.term, meta.batch, meta.clock_s, meta.compact_revision)
        return (found, leases, alarms, meta_rows) == (
            expected.events,
            expected.leases,
            expected.alarms,
            expected.meta,
        ) and (loaded.auth.users, loaded.auth.roles, loaded.auth.switch) == (
            expected.auth.users,
            expected.auth.roles,
            expected.auth.switch,
        )

    if same_as(left.expected):
        return "served", ""
    if same_as(left.before_last):
        return "without the newest", ""
    return "wrong", f"batch {meta.batch}, term {meta.term}, {len(events)} events"


def trial(left: Left, file: str, damage: str, chance: random.Random, work: Path) -> Trial:
    shutil.copytree(left.path, work)
    try:
        before = (work / file).read_bytes()
        after = DAMAGES[damage](chance, before)
        times = (work / file).stat()
        (work / file).write_bytes(after)
        os.utime(work / file, ns=(times.st_atime_ns, times.st_mtime_ns))
        where = difference(before, after)
        outcome, detail = start(work, left)
        if outcome == "without the newest":
            unseen = damage not in ("a bit", "cut", "cut at a sector", "longer") and covers(left, file, where)
            outcome = "looks unwritten" if unseen else "wrong"
        return Trial(left, file, damage, where, outcome, detail)
    finally:
        shutil.rmtree(work)


def covers(left: Left, file: str, where: tuple[int, int]) -> bool:
    """Whether the damage is in the newest record."""
    name, start_at, end = left.newest_at
    return file == name and where[0] < end and where[1] > start_at


def run(home: Path, trials: int, seed: int, files: list[str] | None = None) -> list[Trial]:
    """`trials` of them, spread evenly over the ways to leave a directory and its files."""
    chance = random.Random(seed)
    with small():
        lefts = [leave(home, name) for name in WAYS]
        for left in lefts:
            shutil.copytree(left.path, home / "whole")
            assert start(home / "whole", left) == ("served", ""), left.name
            shutil.rmtree(home / "whole")
        places = [
            (left, name)
            for left in lefts
            for name in files or FILES
            if (left.path / name).exists() and (left.path / name).stat().st_size
        ]
        done: list[Trial] = []
        while len(done) < trials:
            for left, name in places[: trials - len(done)]:
                done.append(trial(left, name, chance.choice(sorted(DAMAGES)), chance, home / "work"))
        return done


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", nargs="*", choices=FILES)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as home:
        done = run(Path(home), arguments.trials, arguments.seed, arguments.files)
    counted: Counter[tuple[str, str]] = Counter((one.file, one.outcome) for one in done)
    for (file, outcome), count in sorted(counted.items()):
        print(f"{file:16} {outcome:24} {count:6}")
    unexplained = [one for one in done if one.outcome not in EXPLAINED]
    for one in unexplained:
        print(one)
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
