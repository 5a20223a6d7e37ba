# SPDX-License-Identifier: Apache-2.0
"""Lessor as its users run it: `lessor serve` in a process and a data directory of its own.

with LessorServer() as server:
    ...  # server.client_url is "http://127.0.0.1:PORT"
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.conformance.server_process import ServerProcess
from tests.engine_flags import AT_FOLLOWERS, engine_flags


class LessorServer(ServerProcess):
    """One Lessor process. `flags` are added to its command line. TTLs are clamped as etcd clamps them."""

    min_lease_ttl_s = 2

    def __init__(self, flags: Sequence[str] = ()) -> None:
        super().__init__(flags)
        self._leader: Leader | None = None

    def __enter__(self) -> Self:
        if not AT_FOLLOWERS:
            return super().__enter__()
        self.folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        self._leader = Leader(self)
        try:
            self._leader.__enter__()
            self.start_again()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        super().stop()
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.stop()

    @property
    def log_name(self) -> Path:
        """What the log in the engine is called after."""
        return self.data_dir

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "lessor",
            "serve",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--min-lease-ttl={self.min_lease_ttl_s}",
            *engine_flags(self.log_name),
            *self.flags,
        ]


class Leader(LessorServer):
    """The server that leads while the one under test follows it."""

    def __init__(self, follower: LessorServer) -> None:
        super().__init__(follower.flags)
        self._log_name = follower.log_name
        self.min_lease_ttl_s = follower.min_lease_ttl_s

    @property
    def log_name(self) -> Path:
        return self._log_name

    def __enter__(self) -> Self:
        return ServerProcess.__enter__(self)
