# SPDX-License-Identifier: Apache-2.0
"""What tests/conftest.py promises, tried in test runs of their own: SIGINT, and what a test leaves behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each runs pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
# A Python that starts with SIGINT ignored keeps it so; any other has its own handler.
INTERRUPTED = """
import os, signal, subprocess, sys

ASK = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"

def test_a_child():
    assert subprocess.run([sys.executable, "-c", ASK]).returncode == 0

def test_itself():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")
    except KeyboardInterrupt:
        pass
"""
LEAVING = """
import gc, signal, sys

BEFORE = sys.getswitchinterval()

def test_that_leaves_a_handler():
    signal.signal(signal.SIGTERM, lambda *_: None)

def test_that_leaves_the_collector_off():
    gc.disable()

def test_that_leaves_another_interval():
    sys.setswitchinterval(1)

def test_after_them():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert gc.isenabled()
    assert sys.getswitchinterval() == BEFORE
"""


def outcome(folder: Path, text: str, *, with_conftest: bool, ignoring: bool) -> str:
    """The closing line of a test run over one file."""
    (folder / "test_tiny.py").write_text(text)
    if with_conftest:
        shutil.copy(CONFTEST, folder / "conftest.py")
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:lessor", "--rootdir", str(folder)]
    if ignoring:
        run = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *run]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*run, str(folder)], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.strip().splitlines()[-1].partition(" in ")[0]


@pytest.mark.parametrize("ignoring", [False, True], ids=["default", "ignored"])
def test_a_run_and_its_children_are_interrupted_however_it_was_started(tmp_path: Path, ignoring: bool) -> None:
    assert outcome(tmp_path, INTERRUPTED, with_conftest=True, ignoring=ignoring) == "2 passed"


def test_without_the_cure_they_are_not(tmp_path: Path) -> None:
    """Guards the test above: the run that it starts does begin with SIGINT ignored."""
    assert outcome(tmp_path, INTERRUPTED, with_conftest=False, ignoring=True) == "2 failed"


def test_what_is_left_behind_fails_its_test_alone(tmp_path: Path) -> None:
    assert outcome(tmp_path, LEAVING, with_conftest=True, ignoring=False) == "3 failed, 1 passed"
