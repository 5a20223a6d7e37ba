# SPDX-License-Identifier: Apache-2.0
"""Automatic compaction: --auto-compaction-mode and --auto-compaction-retention.

- `revision`: every five minutes, all but the newest N revisions are compacted.
- `periodic`: history older than the retention is compacted. The revision is sampled ten times per retention. At each
  sample the store is compacted to the sample taken one retention ago.
"""

import asyncio
import logging
from collections import deque

from lessor.api.proto import rpc_pb2
from lessor.base.errors import EtcdError
from lessor.server.loop.core import Core
from lessor.server.options import Options

log = logging.getLogger("lessor")

REVISION_MODE_INTERVAL_S = 300.0
SAMPLES_PER_RETENTION = 10


class Compactor:
    """Compacts the store from time to time. The caller calls `start` once."""

    def __init__(self, core: Core, options: Options) -> None:
        self._core = core
        self._by_revision = options.auto_compaction_mode == "revision"
        self._retention = options.auto_compaction_retention
        self._samples: deque[int] = deque(maxlen=SAMPLES_PER_RETENTION + 1)

    @property
    def interval_s(self) -> float:
        return REVISION_MODE_INTERVAL_S if self._by_revision else self._retention / SAMPLES_PER_RETENTION

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._retention > 0:
            loop.call_later(self.interval_s, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(self.interval_s, self._tick, loop)
        self._core.turn.long_writes.after(self._compact)

    def _compact(self) -> None:
        target = self.target(self._core.machine.revision)
        if self._core.turn.halted:  # a server that follows is, and one that writes its release
            return  # who leads compacts, and this server sees it in the log
        if target is not None and target > max(self._core.machine.compact_revision, 1):
            try:
                self._core.machine.apply(rpc_pb2.CompactionRequest(revision=target), self._core.turn.now_s())
            except EtcdError as error:
                log.warning("automatic compaction refused", extra={"revision": target, "error": error.message})
            else:
                log.info("compacted", extra={"revision": target})
            self._core.turn.schedule()

    def target(self, revision: int) -> int | None:
        """The revision to compact to at a tick that finds the store at `revision`, or None while it is too early."""
        if self._by_revision:
            return revision - int(self._retention)
        self._samples.append(revision)
        return self._samples[0] if len(self._samples) == SAMPLES_PER_RETENTION + 1 else None
