# SPDX-License-Identifier: Apache-2.0
"""All data moves into each engine, on to another log of it, and out of it again; and a half-made move is repeated."""

from pathlib import Path

import pytest

from lessor.durable.engine import Loaded
from lessor.durable.file_engine import FileEngine
from lessor.replicated.moving import DirectorySource, DirectoryTarget, LogSource, LogTarget, MoveError, move
from tests.engines.subjects import Subject
from tests.unit.durable.engine_rows import IDENTITY, batch, put


class CutError(Exception):
    """Stands for the end of the process."""


def content(loaded: Loaded) -> list[object]:
    meta = loaded.meta
    counts = [meta.cluster_id, meta.batch, meta.clock_s, meta.clean, meta.compact_revision]
    return [*counts, list(loaded.events), list(loaded.leases), list(loaded.alarms)]


def test_into_an_engine_on_and_out(subject: Subject, tmp_path: Path) -> None:
    def target(name: str) -> LogTarget:
        return LogTarget(name, lambda: subject.log(name))

    def source(name: str) -> LogSource:
        return LogSource(name, lambda: subject.log(name))

    def cut(step: str) -> None:
        if step == "seal":
            raise CutError

    engine = FileEngine(tmp_path / "old", sync=False)
    engine.open(IDENTITY)
    engine.begin_term(2)
    large = [put(number, b"k%d" % number, bytes(60_000)) for number in range(2, 42)]  # several pieces of a snapshot
    engine.commit(batch(1, events=large, leases=[(7, 60, 52.5, False)], alarms=[(5, 1, True)], compact_revision=5))
    engine.commit(batch(2, clock_s=9.0, clean=True))
    engine.flush()
    expected = content(engine.load())
    engine.close()
    move(DirectorySource(tmp_path / "old"), target("one"))
    with pytest.raises(CutError):
        move(source("one"), target("two"), cut)
    move(source("one"), target("two"))
    with pytest.raises(MoveError, match="the data has moved to two"):
        move(source("one"), DirectoryTarget(tmp_path / "new"))
    with pytest.raises(MoveError, match="not empty"):
        move(source("two"), target("one"))
    move(source("two"), DirectoryTarget(tmp_path / "new"))
    engine = FileEngine(tmp_path / "new", sync=False)
    assert engine.open(IDENTITY).cluster_id == IDENTITY[0]
    assert content(engine.load()) == expected
    engine.close()
