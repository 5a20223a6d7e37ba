# SPDX-License-Identifier: Apache-2.0
"""Load programs in processes of their own, beside a bench that does something else meanwhile."""

import json
import subprocess
import sys
from types import TracebackType

from bench.harness import ROOT, Node
from bench.load_loop import WrongReplyError
from bench.rows import Figures

END_S_MAX = 130.0


class Paced:
    """bench/paced.py for as long as the block lasts; then `figures` are what it found."""

    def __init__(self, node: Node, *arguments: object) -> None:
        command = [sys.executable, "-m", "bench.paced", "--port", str(node.port), *map(str, arguments)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.figures: Figures = {}

    def __enter__(self) -> "Paced":
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise WrongReplyError(self._process.communicate()[1].strip())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        said, problem = self._process.communicate(timeout=END_S_MAX)
        if error is None:
            if self._process.returncode:
                raise WrongReplyError(problem.strip())
            self.figures = json.loads(said)
