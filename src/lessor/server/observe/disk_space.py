# SPDX-License-Identifier: Apache-2.0
"""Looks at the free space below the data directory while the server serves, and tells when little is left.

Law: the log says so before a write fails, which ends the server. It looks every DISK_LOOK_S: a client that fills the
last DISK_FREE_BYTES_LOW in less time is not told of in time. The quota, --quota-backend-bytes, bounds the data itself.
"""

import asyncio
import os

from lessor.base import limits
from lessor.server.observe.metrics import Metrics
from lessor.server.observe.shortages import DISK_SPACE


class DiskSpace:
    """One per server. Loop thread only: asking a file system for its free space does not read the disk."""

    def __init__(self, folder: str, metrics: Metrics) -> None:
        self._folder = folder
        self._metrics = metrics
        self._every_s = limits.DISK_LOOK_S
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks now, and from then on as long as the loop runs."""
        self.look()
        self._timer = loop.call_later(self._every_s, self.start, loop)

    def look_every(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Looks now, and from then on every `seconds`."""
        if self._timer is not None:
            self._timer.cancel()
        self._every_s = seconds
        self.start(loop)

    def look(self) -> None:
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return  # whatever is wrong there, the next write says it
        free_bytes = found.f_bavail * found.f_frsize
        self._metrics.disk_free_bytes = free_bytes
        if free_bytes < limits.DISK_FREE_BYTES_LOW:
            self._metrics.shortages.reached(DISK_SPACE, free_bytes=free_bytes)
