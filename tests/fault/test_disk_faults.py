# SPDX-License-Identifier: Apache-2.0
"""Each call of the system that the data directory is made of fails once, or lies once, wherever in a load that is.

Method. A scripted load, from a directory that does not exist to an orderly stop, runs with the Nth call failing, for N
= 1, 2, 3 ... until it gets through. Only that call fails: the disk is well again behind it. The files are looked at as
a kill at that instant leaves them, and as closing leaves them. What was acknowledged is there, or the start is refused.

Calls that SQLite makes itself are out of reach: its statements fail in test_engine_faults.py.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from lessor.durable import upkeep
from lessor.durable.engine import DataDirError, EngineError
from lessor.durable.file_engine import FileEngine
from tests.fault.test_engine_faults import (
    IDENTITY,
    LAST_BATCH,
    Acknowledged,
    assert_whole,
    quick_dir,
    scripted_load,
    small_log,
)
from tests.faulty_disk import run_at_once

__all__ = ["quick_dir", "small_log"]  # fixtures

CALLS = (
    "open", "pwrite", "pread", "fsync", "fdatasync", "ftruncate", "posix_fallocate", "replace", "unlink", "mkdir",
    "chmod", "utime", "stat", "fstat",
)  # fmt: skip


class Fault:
    """The `at`th call fails or lies, as `kind` says.

    before, after: the call raises `error`, without having done anything or after it has done all.
    short: a write takes half of what it was given, and says so. Of the other calls none does.
    lost: a write, a sync or a cut does nothing and says that it did.
    """

    def __init__(self, at: int, kind: str, error: int) -> None:
        self.at = at
        self.kind = kind
        self.error = error
        self.calls = 0
        self.name = ""  # of the call that failed
        self.writes_after = 0

    def on(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls != self.at:
                self.writes_after += bool(self.name) and name == "pwrite"
                return real(*args, **options)
            self.name = name
            if self.kind == "lost":
                return self._lie(name, real, args, options)
            if self.kind == "short":
                if name == "pwrite":
                    descriptor, data, position = args
                    args = descriptor, data[: max(1, len(data) // 2)], position
                return real(*args, **options)
            if self.kind == "after":
                real(*args, **options)
            raise OSError(self.error, os.strerror(self.error))

        return call

    def _lie(self, name: str, real: Callable[..., Any], args: Any, options: Any) -> Any:
        if name == "pwrite":
            return len(args[1])
        return None if name in ("fsync", "fdatasync", "utime", "ftruncate") else real(*args, **options)


@contextmanager
def faulty(fault: Fault) -> Iterator[None]:
    calls: dict[str, Any] = {name: fault.on(name, getattr(os, name)) for name in CALLS}
    with patch.multiple(os, **calls), patch.object(io, "open", fault.on("io.open", io.open)):
        yield


def run(home: Path, fault: Fault) -> tuple[Acknowledged, str]:
    """The load, until it fails; what was acknowledged, and what the error says."""
    acknowledged, message = Acknowledged(), ""
    engine = FileEngine(home / "alive", start=run_at_once)
    with faulty(fault):
        try:
            scripted_load(engine, acknowledged)
            engine.sizes()
            engine.defragment()
            engine.sizes()
        except (DataDirError, EngineError) as error:
            message = str(error)
            assert message
            assert "\n" not in message
    if (home / "alive").exists():
        shutil.copytree(home / "alive", home / "killed")
    with faulty(fault):
        engine.close()
    return acknowledged, message


@pytest.mark.slow
@pytest.mark.usefixtures("small_log")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("kind", ["before", "after", "short"])
def test_each_call_fails_once_and_what_was_acknowledged_is_there(
    quick_dir: Path, kind: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WAL_PAGES_SYNC", 4)
    at, failed = 0, set()
    while True:
        at += 1
        home = quick_dir / str(at)
        home.mkdir()
        fault = Fault(at, kind, error)
        acknowledged, _ = run(home, fault)
        for name in ("killed", "alive"):
            if (home / name).exists():
                assert_whole(home / name, acknowledged)
        shutil.rmtree(home)
        if not fault.name:
            break
        failed.add(fault.name)
    assert acknowledged.batch == LAST_BATCH
    assert failed > {"open", "pwrite", "fsync", "posix_fallocate", "ftruncate", "replace", "mkdir", "io.open"}


@pytest.mark.slow
@pytest.mark.usefixtures("small_log")
def test_a_write_or_a_sync_that_is_lost_after_its_success_is_found_or_was_the_last_one(quick_dir: Path) -> None:
    """A write that the disk confirmed and did not make: nobody can tell the newest record from one that never was."""
    at, refused = 0, 0
    while True:
        at += 1
        home = quick_dir / str(at)
        home.mkdir()
        fault = Fault(at, "lost", 0)
        acknowledged, _ = run(home, fault)
        for name in ("killed", "alive"):
            if not (home / name).exists():
                continue
            shutil.copytree(home / name, home / "again")
            engine = FileEngine(home / "again")
            try:
                found = engine.open(IDENTITY).batch
            except DataDirError:
                refused += 1
                continue
            finally:
                engine.close()
                shutil.rmtree(home / "again")
            if found < acknowledged.batch:
                assert (fault.name, fault.writes_after, found) == ("pwrite", 0, acknowledged.batch - 1)
            else:
                assert_whole(home / name, acknowledged)
        shutil.rmtree(home)
        if not fault.name:
            break
    assert refused
