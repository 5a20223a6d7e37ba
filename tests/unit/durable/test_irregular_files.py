# SPDX-License-Identifier: Apache-2.0
"""A data file that is no file: each one, of each kind, ends the start with one line, and nothing is changed.

To open a FIFO waits for ever, so a test that fails here may hang. That is what it tries.
"""

from pathlib import Path

import pytest

from lessor.durable import directory, file_kind, snapshot_file
from lessor.durable.engine import DataDirError
from lessor.durable.file_engine import FileEngine
from tests.irregular import MAKERS, put, seen


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    engine = FileEngine(tmp_path / "data")
    engine.open((1, 2))
    engine.begin_term(1)
    engine.close()
    return tmp_path / "data"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", directory.FILE_NAMES)
def test_the_start_says_which_file_and_what_it_is(data_dir: Path, name: str, kind: str) -> None:
    put(kind, data_dir / name)
    before = seen(data_dir)
    with pytest.raises(DataDirError) as caught:
        FileEngine(data_dir).open((1, 2))
    text = str(caught.value)
    assert text.startswith(f"{data_dir / name}: {kind.partition(' to ')[0]} where a data file belongs: put the file")
    assert "\n" not in text
    assert seen(data_dir) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_so_it_is_in_an_empty_directory(tmp_path: Path, kind: str) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    put(kind, data_dir / directory.DATABASE_NAME)
    with pytest.raises(DataDirError, match="where a data file belongs"):
        FileEngine(data_dir).open((1, 2))
    assert [path.name for path in data_dir.iterdir()] == [directory.DATABASE_NAME]


def test_every_file_that_a_server_makes_is_looked_at(data_dir: Path) -> None:
    engine = FileEngine(data_dir)
    engine.open((1, 2))
    assert {path.name for path in data_dir.iterdir()} <= set(directory.FILE_NAMES)
    engine.close()


def test_the_directory_itself_may_be_a_link(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data_dir)
    engine = FileEngine(tmp_path / "link")
    engine.open((1, 2))
    engine.close()


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"a symbolic link to a file", "a symbolic link to nothing"}))
def test_no_snapshot_is_restored_from_what_is_no_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "saved"
    put(kind, path)
    with pytest.raises(DataDirError, match=r"saved: a .*, not a file: name a file that"):
        snapshot_file.restore(path, tmp_path / "new")
    with pytest.raises(DataDirError, match="not a file"):
        snapshot_file.check(path)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"a symbolic link to a file", "a symbolic link to nothing"}))
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "key"
    put(kind, path)
    with pytest.raises(OSError, match=r"it is a .*, not a file|[Nn]o such device"):
        file_kind.read_regular(path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "key"
    path.write_bytes(b"secret")
    put("a symbolic link to a file", path)
    assert file_kind.read_regular(path) == b"secret"
