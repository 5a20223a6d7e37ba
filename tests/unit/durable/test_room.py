# SPDX-License-Identifier: Apache-2.0
"""The room that values take in the tables: no size of values has a cliff, and a migration leaves no free room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.durable import opening
from lessor.durable.file_engine import FileEngine
from tests.unit.durable.engine_rows import batch, put
from tests.whole.test_old_directories import unpacked

# Around halves, thirds and quarters of a page of 4,096 bytes, and of what SQLite keeps of a long row in the page.
SIZES = [100, 300, 440, 900, 950, 1_000, 1_003, 1_040, 1_300, 1_500, 2_000, 2_040, 2_100, 3_000, 4_000, 4_100, 4_600]
SIZES += [6_000, 8_200, 20_000, 100_000, 1_000_000]
ROW_BYTES = 60  # of a row and its entry in the index, without key and value


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FileEngine]:
    engine = FileEngine(tmp_path / "data", sync=False)
    engine.open((1, 1))
    engine.begin_term(1)
    yield engine
    engine.close()


@pytest.mark.parametrize("size", SIZES)
def test_overwrites_take_at_most_twice_their_bytes(engine: FileEngine, size: int) -> None:
    """A row of just above half a page leaves the other half empty: that is the worst."""
    rows = max(min(400, 2_000_000 // size), 4)
    before = engine.sizes().in_use_bytes
    engine.commit(batch(1, events=[put(2 + row, b"key", bytes(size)) for row in range(rows)]))
    engine.flush()
    assert engine.sizes().in_use_bytes - before <= 2 * rows * (size + ROW_BYTES) + 4 * opening.PAGE_BYTES


@pytest.mark.parametrize("name", ["v1-clean", "v3-killed", "v4-clean"])
def test_an_old_directory_keeps_no_room_for_its_old_tables(name: str, tmp_path: Path) -> None:
    engine = FileEngine(unpacked(name, tmp_path))
    engine.open((1, 1))
    assert engine.sizes().in_use_bytes >= engine._tables._path.stat().st_size
    engine.close()
