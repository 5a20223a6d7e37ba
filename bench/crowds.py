# SPDX-License-Identifier: Apache-2.0
"""Rows about scale: not a rate but a server in a state, with so many connections or watchers.

They cost memory while they are there, and latency. The bench's own file is the load too: it is started again as
`python -m bench.NAME load --port N`, says `ready` when the state is reached and `done` with its figures, and goes when
it is told to. What the server takes is read from outside, at those moments.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bench import rows
from bench.harness import ROOT, Node, cpu_s, memory_kib
from bench.load_loop import WrongReplyError
from bench.rows import Figures, Goal, Row


def row(name: str, module: str, each: int, goals: Sequence[Goal], *load: object, rounds_max: int = 99) -> Row:
    """The row of a load in `module`. Memory is told by the `each`-th part."""

    def measure(node: Node, options: argparse.Namespace) -> Figures:
        before_kib = memory_kib(node.pid, "VmRSS")
        command = [sys.executable, "-m", f"bench.{module}", "load", "--port", str(node.port), *map(str, load)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                figures = _heard(process, "ready")
                figures["bytes_each"] = (memory_kib(node.pid, "VmRSS") - before_kib) * 1024 // each
                before_cpu_s = cpu_s(node.pid)
                figures |= _heard(process, "done")
                figures["load_cpu_s"] = round(cpu_s(node.pid) - before_cpu_s, 2)
                process.communicate("go\n", timeout=60)
            finally:
                process.kill()
        return figures

    return Row(name, measure, tuple(goals), rounds_max)


def say(word: str, **figures: Any) -> None:
    """What the load tells the bench."""
    print(word, json.dumps(figures), flush=True)


def main(of_rows: Sequence[Row], parser: argparse.ArgumentParser, load: Callable[[argparse.Namespace], None]) -> int:
    """Runs the rows; or, called so by one of them, the load with the arguments that `parser` reads."""
    if sys.argv[1:2] != ["load"]:
        return rows.main(of_rows)
    parser.add_argument("--port", type=int, required=True)
    load(parser.parse_args(sys.argv[2:]))
    return 0


def _heard(process: "subprocess.Popen[str]", word: str) -> Figures:
    assert process.stdout is not None
    said, _, figures = process.stdout.readline().partition(" ")
    if said != word:
        raise WrongReplyError(f"the load ended instead of saying {word!r}")
    found: Figures = json.loads(figures)
    return found
