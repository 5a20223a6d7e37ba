# SPDX-License-Identifier: Apache-2.0
"""A server in the test's process, in real time and on a given directory, so that a test can hand it an engine."""

from pathlib import Path

from lessor.durable.engine import Engine
from lessor.durable.file_engine import FileEngine
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock


def in_process(data_dir: Path, *flags: str, engine: Engine | None = None) -> InProcessServer:
    """Serves for one `with` block."""
    return InProcessServer(
        *flags,
        clock=VirtualClock(flowing=True),
        data_dir=data_dir,
        make_engine=lambda path: engine or FileEngine(path),
    )
