# SPDX-License-Identifier: Apache-2.0
"""Any rows, in any batches, come back from the engine as they went in, whatever happens between.

Two properties. Rows of every shape survive a commit and a crash. And a compaction may be cut off after any step of
its sweep: what is left still says the same about every key.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.durable import sweep
from lessor.durable.file_engine import FileEngine
from lessor.state.journal import AlarmRow, Batch, EventRow, LeaseRow
from tests.unit.durable.engine_rows import rest, rest_a_step

INT64_MAX = 2**63 - 1
UINT64_MAX = 2**64 - 1
NOTHING_COMPACTED = -1

counts = st.integers(min_value=0, max_value=INT64_MAX)
ids = st.integers(min_value=1, max_value=INT64_MAX)
instants_s = st.floats(min_value=0, max_value=2.0**33, allow_nan=False)  # what the start accepts of a clock
keys = st.binary(min_size=1, max_size=40)
changes = st.tuples(keys, st.none() | st.binary(max_size=6_000), counts, counts, counts)
lease_rows = st.tuples(ids, st.integers(1, 9_000_000_000), instants_s, st.booleans())
alarm_rows = st.tuples(st.integers(1, UINT64_MAX), st.integers(1, 2), st.booleans())


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    revision, number, result = draw(ids) // 2, 0, []
    for _ in range(draw(st.integers(1, 6))):
        events: list[EventRow] = []
        for transaction in draw(st.lists(st.lists(changes, min_size=1, max_size=3), max_size=40)):
            revision += draw(st.integers(1, 3))
            events += [
                (revision, sub, key, value, create_revision, version, lease)
                for sub, (key, value, create_revision, version, lease) in enumerate(transaction)
            ]
        number += draw(st.integers(1, 3))
        result.append(
            make_batch(number, draw(instants_s), events, draw(st.lists(lease_rows)), draw(st.lists(alarm_rows)))
        )
    return result


def make_batch(
    number: int, now_s: float, events: list[EventRow], leases: list[LeaseRow], alarms: list[AlarmRow], **parts: Any
) -> Batch:
    empty: dict[str, Any] = {"compact_revision": None, "dead": [], "leases_touched": [], "clean": False}
    # A batch holds one row per lease and per alarm, as the journal makes it.
    return Batch(
        number,
        now_s,
        events=events,
        leases=list({row[0]: row for row in leases}.values()),
        alarms=list({row[:2]: row for row in alarms}.values()),
        **(empty | parts),
    )


@contextmanager
def opened(data_dir: Path) -> Iterator[FileEngine]:
    engine = FileEngine(data_dir)
    engine.open((1, 2))
    try:
        yield engine
    finally:
        engine.close()


def assert_holds(engine: FileEngine, committed: list[Batch]) -> None:
    loaded = engine.load()
    assert list(loaded.events) == [row for batch in committed for row in batch.events]
    leases = {row[0]: row for batch in committed for row in batch.leases}
    assert list(loaded.leases) == [leases[lease_id] for lease_id in sorted(leases) if not leases[lease_id][3]]
    alarms = {row[:2]: row for batch in committed for row in batch.alarms}
    assert set(loaded.alarms) == {row for row in alarms.values() if row[2]}
    assert loaded.meta.batch == committed[-1].number
    assert loaded.meta.clock_s == committed[-1].clock_s


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(batches(), st.data())
def test_rows_survive_a_crash(given_batches: list[Batch], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        alive, crashed, copy = Path(name, "alive"), Path(name, "crashed"), Path(name, "copy")
        copy.mkdir()
        crash_after = data.draw(st.integers(1, len(given_batches)), label="crash after")
        with opened(alive) as engine:
            for batch in given_batches[:crash_after]:
                engine.commit(batch)
            shutil.copytree(alive, crashed)
            engine.flush()
            engine.backup(copy / "lessor.db")
            for batch in given_batches[crash_after:]:
                engine.commit(batch)
            assert_holds(engine, given_batches)
        for directory in (crashed, copy):
            with opened(directory) as engine:
                assert_holds(engine, given_batches[:crash_after])
        with opened(alive) as engine:
            assert_holds(engine, given_batches)


# --- compaction -----------------------------------------------------------------------------------------------------

Transaction = list[tuple[bytes, bytes | None]]
transactions = st.lists(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([None, b"1", b"2"])), min_size=1, max_size=3
    ),
    min_size=1,
    max_size=30,
)


def rows_of(history: list[Transaction]) -> list[EventRow]:
    return [
        (revision, sub, key, value, revision, 1, 0)
        for revision, transaction in enumerate(history, start=2)
        for sub, (key, value) in enumerate(transaction)
    ]


def dead_rows(rows: list[EventRow], compact_revision: int) -> list[tuple[int, int]]:
    """Of the rows up to the compaction: all that a newer one covers, and tombstones."""
    newest = {row[2]: row for row in rows if row[0] <= compact_revision}
    return [row[:2] for row in rows if row[0] <= compact_revision and (newest[row[2]] != row or row[3] is None)]


def current_keys(rows: list[EventRow]) -> dict[bytes, bytes]:
    newest = {row[2]: row[3] for row in rows}
    return {key: value for key, value in newest.items() if value is not None}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(transactions, st.data())
def test_a_sweep_cut_off_anywhere_changes_no_key(history: list[Transaction], data: st.DataObject) -> None:
    rows = rows_of(history)
    compact_revision = data.draw(st.integers(2, 1 + len(history)), label="compact revision")
    dead = dead_rows(rows, compact_revision)
    shuffled = data.draw(st.permutations(dead), label="order in which they are named")
    rows_max = data.draw(st.integers(1, 5), label="rows_max")
    stop_after = data.draw(st.integers(0, 8), label="stop after")
    with tempfile.TemporaryDirectory() as name, patch.object(sweep, "SWEEP_ROWS_MAX", rows_max):
        alive = Path(name, "alive")
        with opened(alive) as engine:
            engine.commit(make_batch(1, 1.0, rows, [], []))
            engine.commit(make_batch(2, 2.0, [], [], [], compact_revision=compact_revision, dead=shuffled))
            engine.flush()
            while stop_after > 0 and rest_a_step(engine):
                stop_after -= 1
            shutil.copytree(alive, Path(name, "crashed"))
        with opened(Path(name, "crashed")) as engine:
            left = list(engine.load().events)
            assert current_keys(left) == current_keys(rows)
            assert set(left) >= {row for row in rows if row[:2] not in set(dead)}
            engine.commit(make_batch(3, 3.0, [], [], [], dead=[row[:2] for row in left if row[:2] in set(dead)]))
            rest(engine)
            assert list(engine.load().events) == [row for row in rows if row[:2] not in set(dead)]
