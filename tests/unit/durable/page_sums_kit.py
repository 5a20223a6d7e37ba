# SPDX-License-Identifier: Apache-2.0
"""Directories whose page sums are tried: how to fill, leave, copy, damage and start them."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lessor.durable import file_log, opening
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import EventRow
from tests.faulty_disk import run_at_once
from tests.unit.durable.engine_rows import IDENTITY, batch, put

PAGE = opening.PAGE_BYTES
NAME = "lessor.db-sums"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_log, "SEGMENT_BYTES", 16_384)
    monkeypatch.setattr(opening, "BUSY_S", 0.05)


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory in memory where there is one: these tests make hundreds of databases."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def opened(data_dir: Path, **options: Any) -> FileEngine:
    engine = FileEngine(data_dir, start=run_at_once, **options)
    engine.open(IDENTITY)
    return engine


def fill(engine: FileEngine, numbers: range, size: int = 700) -> list[EventRow]:
    chance = random.Random(numbers.start)
    events: list[EventRow] = []
    for number in numbers:
        events += [put(number * 2, b"key%d" % number, chance.randbytes(size), sub) for sub in range(3)]
        engine.commit(batch(number, events=events[-3:]))
    engine.flush()
    return events


def start(data_dir: Path) -> tuple[list[EventRow], str]:
    """What a start finds: the events, and why nothing was compared."""
    engine = FileEngine(data_dir, start=run_at_once)
    try:
        meta = engine.open(IDENTITY)
        return list(engine.load().events), meta.not_compared
    finally:
        engine.close()


def copied(data_dir: Path, name: str) -> Path:
    left = data_dir.with_name(name)
    shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(data_dir, left)
    return left


def damage(path: Path, data: bytes) -> None:
    """As a disk does it: the time of the last change stays."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def flip(path: Path, at: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    damage(path, bytes(data))


def logged_pages(data_dir: Path) -> set[int]:
    """Those that have a frame in SQLite's log, or may have one."""
    if not (data_dir / "lessor.db-wal").exists():
        return set()
    data = (data_dir / "lessor.db-wal").read_bytes()
    heads = [data[at : at + 16] for at in range(32, len(data), 24 + PAGE)]
    return {int.from_bytes(head[:4], "big") for head in heads if head[8:] == data[16:24]}


def person(data_dir: Path, script: str) -> str:
    """Runs `script` in a process, with a connection `c`. It closes that, unless it ends with `die()`."""
    prelude = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect('lessor.db', isolation_level=None)\n"
        "def die(): sys.stdout.flush(); os._exit(0)\n"
        "def note(): c.execute('REPLACE INTO meta VALUES (?, ?)', ('a note', os.urandom(8)))\n"
        "def copy(): print(c.execute('PRAGMA wal_checkpoint(PASSIVE)').fetchone())\n"
    )
    command = [sys.executable, "-c", f"{prelude}{script}\nc.close()"]
    done = subprocess.run(command, cwd=data_dir, check=True, capture_output=True, text=True)
    return done.stdout


def stopped_of(engine: FileEngine) -> Path:
    engine.close()
    return engine._dir


def killed_of(engine: FileEngine) -> Path:
    left = copied(engine._dir, "killed")
    engine.close()
    return left
