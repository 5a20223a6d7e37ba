# SPDX-License-Identifier: Apache-2.0
"""A program that does not outlive its parent."""

import os
import signal
import subprocess
import sys

import pytest

from lessor.cli import tether
from lessor.cli.local_engine import Account, tethered

BARE = [sys.executable, "-I", "-S"]
# Starts a tethered program that says its process id, and much later that it still runs; says its process id too.
PARENT = """
import os, subprocess, sys
python, tether = sys.argv[1:3]
lives = "import os, time; print(os.getpid(), flush=True); time.sleep(20); print('lives')"
program = [python, "-I", "-S", "-c", lives]
child = subprocess.Popen([python, "-I", "-S", tether, str(os.getpid()), "9", "-", *program])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([*BARE, "-c", PARENT, sys.executable, tether.__file__], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        # The program has the process id that its parent knows.
        assert len({parent.stdout.readline(), parent.stdout.readline()}) == 1
        parent.kill()
        # The child holds the other end: there is an end only when it is gone too.
        assert parent.stdout.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_it_does_not_begin_for_another_parent() -> None:
    line = [*BARE, tether.__file__, str(os.getppid()), "9", "-", sys.executable, "-c", "print('begun')"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the parent has ended\n")


def test_it_runs_the_program_with_its_arguments_and_its_exit_code() -> None:
    program = [*BARE, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", ""]
    done = subprocess.run(tethered(program, signal.SIGTERM), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "['a b', '']\n")


def test_a_program_that_is_not_there_is_one_line() -> None:
    done = subprocess.run(tethered(["/no/such"], signal.SIGTERM), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "cannot run /no/such: No such file or directory\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_gives_root_up() -> None:
    account = Account("nobody", 65534, 65534)
    who = ["/usr/bin/env", "sh", "-c", "id -u; id -g; id -G"]
    done = subprocess.run(tethered(who, signal.SIGTERM, account), capture_output=True, text=True)
    assert done.stdout.split() == ["65534"] * 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root can become another user")
def test_only_root_can_become_another_user() -> None:
    account = Account("nobody", 65534, 65534)
    done = subprocess.run(tethered(["/bin/sh"], signal.SIGTERM, account), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "cannot become the user 65534:65534: Operation not permitted\n")
