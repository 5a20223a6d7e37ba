# SPDX-License-Identifier: Apache-2.0
"""Directories that Lessor must not serve from, beyond what the engine's own tests hold."""

from pathlib import Path

import pytest

from lessor.durable.engine import DataDirError
from lessor.durable.sqlite import SqliteEngine


def test_an_etcds_data_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "member" / "snap").mkdir(parents=True)
    with pytest.raises(DataDirError, match="holds the data of an etcd"):
        SqliteEngine(tmp_path).open((1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["member"]
