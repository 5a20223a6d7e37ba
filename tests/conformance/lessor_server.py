# SPDX-License-Identifier: Apache-2.0
"""Lessor as its users run it: `lessor serve` in a process and a data directory of its own.

with LessorServer() as server:
    ...  # server.client_url is "http://127.0.0.1:PORT"
"""

import sys

from tests.conformance.server_process import ServerProcess
from tests.engine_flags import engine_flags


class LessorServer(ServerProcess):
    """One Lessor process. `flags` are added to its command line. TTLs are clamped as etcd clamps them."""

    min_lease_ttl_s = 2

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
            *engine_flags(self.data_dir),
            *self.flags,
        ]
