# SPDX-License-Identifier: Apache-2.0
"""`lessor serve` as a process that cannot serve: its exit code and its one line."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lessor.server import command

pytestmark = pytest.mark.slow


def serve(*flags: str) -> tuple[int, str]:
    """The exit code, and all that was said."""
    run = [sys.executable, "-m", "lessor", "serve", *flags]
    done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    return done.returncode, done.stdout


def test_a_data_directory_that_cannot_be_served_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a directory")
    exit_code, output = serve("--data-dir", str(path))
    assert exit_code == command.EXIT_CANNOT_SERVE
    assert len(output.strip().splitlines()) == 1
    assert str(path) in output
    assert path.read_text() == "not a directory"


def test_a_unix_socket_that_another_server_serves_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        line = ["--data-dir", str(tmp_path / "data"), "--listen-client-urls", f"unix://{path}", "--log-level", "error"]
        exit_code, output = serve(*line)
        assert exit_code == command.EXIT_CANNOT_SERVE
        assert "is served by another process" in output
        assert path.is_socket()


@pytest.mark.parametrize("flag", ["--no-such", "--max-txn-ops=many", "--name=a/b", "--force-new-cluster"])
def test_a_wrong_flag_has_an_exit_code_of_its_own_which_supervisors_are_told_of(flag: str, tmp_path: Path) -> None:
    command_line = [sys.executable, "-m", "lessor", "serve", flag]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
