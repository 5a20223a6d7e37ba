# SPDX-License-Identifier: Apache-2.0
"""The tables of an engine on a shared log, which are a copy of it: with whose log they are used, and what becomes of
them when they are damaged, or when the log has less than they do.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lessor.durable import snapshot_file
from lessor.durable.engine import DamagedError, DataDirError, EngineError, HistoryError
from lessor.durable.file_engine import FileEngine
from lessor.durable.record import CHAIN_BYTES
from tests.memory_log import MemoryRecords
from tests.unit.durable.engine_rows import IDENTITY, batch, put
from tests.unit.replicated.test_engine import Times, content, engine_of, lead, started


def test_tables_are_only_used_with_their_own_log(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path / "a", kept, times)
    engine.commit(batch(1, events=[put(2, b"k", b"v")]))
    engine.flush()
    engine.backup(tmp_path / "backup")
    engine.close()
    with pytest.raises(DataDirError, match="start with --engine"):
        FileEngine(tmp_path / "a").open(IDENTITY)
    other = MemoryRecords()
    other.cluster_id = 7
    with pytest.raises(DataDirError, match="a copy of the log of cluster"):
        engine_of(tmp_path / "a", other, times).open(IDENTITY)
    # A backup of it is nobody's copy.
    (tmp_path / "b").mkdir()
    (tmp_path / "backup").rename(tmp_path / "b" / "lessor.db")
    alone = FileEngine(tmp_path / "b", sync=False)
    alone.open(IDENTITY)
    assert [row[3] for row in alone.load().events] == [b"v"]
    lead(alone)
    alone.close()
    with pytest.raises(DataDirError, match="the data of a server without --engine"):
        engine_of(tmp_path / "b", kept, times).open(IDENTITY)


def _zero_the_head(path: Path) -> None:
    path.write_bytes(bytes(200) + path.read_bytes()[200:])


def _flip_in_each_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(2_000, len(data), 4_096):
        data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        _zero_the_head,
        _flip_in_each_page,
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 8_192),
        lambda path: path.rename(path.with_name("lessor.db-wal")),
    ],
)
def test_a_damaged_copy_is_made_anew_and_stays_for_who_wants_to_look(
    tmp_path: Path,
    kept: MemoryRecords,
    times: Times,
    harm: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = started(tmp_path, kept, times)
    for number in range(1, 40):
        engine.commit(batch(number, events=[put(number + 1, b"k%d" % number, bytes(500))]))
    there = content(engine.load())
    engine.close()
    for _ in range(2):
        harm(tmp_path / "lessor.db")
        name = "lessor.db" if (tmp_path / "lessor.db").exists() else "lessor.db-wal"
        harmed = (tmp_path / name).read_bytes()
        again = started(tmp_path, kept, times)
        assert content(again.load()) == there
        again.close()
        assert (tmp_path / "damaged" / name).read_bytes() == harmed
    assert "restore a backup" not in " ".join(str(vars(each)) for each in caplog.records)


def test_what_may_be_the_only_data_is_never_set_aside(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    alone = FileEngine(tmp_path, sync=False)
    alone.open(IDENTITY)
    alone.close()
    _zero_the_head(tmp_path / "lessor.db")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(DamagedError, match="does not start as an SQLite database does"):
        engine_of(tmp_path, kept, times).open(IDENTITY)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_log_that_has_lost_records_is_noticed(tmp_path: Path, kept: MemoryRecords, times: Times) -> None:
    engine = started(tmp_path, kept, times)
    for number in range(1, 6):
        engine.commit(batch(number, events=[put(number + 1, b"k", b"v")]))
    engine.close()
    del kept.records[-2:]
    kept.chain = kept.records[-1][-CHAIN_BYTES:]
    with pytest.raises(DataDirError, match=r"lessor\.db: the log ends at record 4, and this node knows record 6"):
        engine_of(tmp_path, kept, times).open(IDENTITY)


def test_the_copy_has_all_that_a_log_has_lost_and_can_be_gone_on_from(
    tmp_path: Path, kept: MemoryRecords, times: Times
) -> None:
    engine = started(tmp_path / "copy", kept, times)
    for number in range(1, 6):
        engine.commit(batch(number, events=[put(number + 1, b"k%d" % number, b"v")]))
    del kept.records[-3:]
    kept.chain = kept.records[-1][-CHAIN_BYTES:]
    with pytest.raises(HistoryError, match="the log has lost record 6, which this node knows"):
        engine.commit(batch(6, events=[put(7, b"k6", b"v")]))
    with pytest.raises(EngineError, match="no write after a failed one"):
        engine.commit(batch(6, events=[put(7, b"k6", b"v")]))
    engine.close()  # before it the tables were behind
    snapshot_file.restore(tmp_path / "copy" / "lessor.db", tmp_path / "saved", skip_checksum=True)
    alone = FileEngine(tmp_path / "saved", sync=False)
    assert alone.open(IDENTITY).cluster_id == IDENTITY[0]
    assert [row[2] for row in alone.load().events] == [b"k1", b"k2", b"k3", b"k4", b"k5"]
    alone.close()
