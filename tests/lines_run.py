# SPDX-License-Identifier: Apache-2.0
"""How much work a piece of code does, counted in lines that are run: the same on each machine, however busy.

Does not do: modules that are compiled, whose lines nobody sees.
"""

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


def lines_run(module: ModuleType, work: Callable[[], object]) -> int:
    """Calls `work`; returns how many lines of the module were run, each as often as it was."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
