# SPDX-License-Identifier: Apache-2.0
"""The directory of a cluster on this machine: whose it is, and who uses it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lessor.cli import local_directory
from lessor.cli.failure import Failure
from lessor.cli.local_directory import LOCK, MARK, Directory
from lessor.client import run


def use(path: Path, engine: str = "") -> str:
    """Uses the directory once, for that engine; returns the engine that it had."""

    async def used() -> str:
        async with Directory(path) as directory:
            before = directory.engine
            if engine:
                directory.belongs_to(engine)
            return before

    return run(used())


def refusal(path: Path) -> str:
    with pytest.raises(Failure) as caught:
        use(path)
    assert caught.value.exit_code == 1
    assert "\n" not in caught.value.text
    return caught.value.text


def test_a_new_one_is_made_and_remembers_its_engine(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert use(path) == ""
    assert use(path) == ""  # a run that broke off before it had chosen an engine
    assert use(path, "etcd") == ""
    assert use(path) == "etcd"
    assert path.stat().st_mode & 0o777 == 0o700


def test_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    text = refusal(tmp_path)
    assert "holds files that are not of a cluster" in text
    assert "choose another --data-dir" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert "is a file: choose another --data-dir" in refusal(tmp_path / "file")
    assert "choose another --data-dir" in refusal(tmp_path / "file" / "below")


@pytest.mark.parametrize("mark", ["", "[]", "{}", '{"format": 1}', "\x00"])
def test_a_mark_that_cannot_be_read(tmp_path: Path, mark: str) -> None:
    (tmp_path / MARK).write_text(mark)
    assert "holds files that are not of a cluster" in refusal(tmp_path)


def test_a_newer_one(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text('{"format": 2, "engine": "other"}')
    assert "is of a newer Lessor (format 2)" in refusal(tmp_path)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    async def twice() -> None:
        async with Directory(tmp_path), Directory(tmp_path):
            pass

    with pytest.raises(Failure, match=f"is in use by process {os.getpid()}: end it with Ctrl-C or SIGTERM, or choose"):
        run(twice())
    use(tmp_path)


HOLD = "import sys; sys.stdin.read()"


def test_what_a_killed_run_has_left_holds_the_lock_until_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    gone.wait()

    async def begun() -> "subprocess.Popen[bytes]":
        async with Directory(tmp_path) as directory:
            inherits = (directory.descriptor,)
            return subprocess.Popen([sys.executable, "-I", "-S", "-c", HOLD], stdin=subprocess.PIPE, pass_fds=inherits)

    with run(begun()) as left:
        (tmp_path / LOCK).write_text(f"{gone.pid}\n")
        monkeypatch.setattr(local_directory, "LEFT_S_MAX", 0.3)
        assert "is in use by processes of an earlier run that was killed" in refusal(tmp_path)
        monkeypatch.setattr(local_directory, "LEFT_S_MAX", 60.0)
        assert left.stdin is not None
        left.stdin.close()  # it ends some time during the next wait
        use(tmp_path)
