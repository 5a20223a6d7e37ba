# SPDX-License-Identifier: Apache-2.0
"""`lessor serve` in the tests' own process, up to the point where a server would be made."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lessor.server import command, main
from lessor.server.options import Options


@pytest.fixture
def logger_as_before() -> Iterator[None]:
    """`lessor serve` sets up the process's logger; other tests in this process want it as it was."""
    logger = logging.getLogger("lessor")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, _ = before
    logger.setLevel(before[2])


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, logger_as_before: None) -> Callable[..., tuple[Result, Options | None]]:
    """Runs the command with words and variables. Returns what came of it, and the options if it would serve."""

    def run(words: list[str], environment: dict[str, str] | None = None) -> tuple[Result, Options | None]:
        seen: list[Options] = []

        def serve(options: Options, _signals: Any) -> int:
            seen.append(options)
            return 0

        monkeypatch.setattr(main, "run", serve)
        result = CliRunner().invoke(command.serve, words, env=environment or {})
        return result, seen[0] if seen else None

    return run
