# SPDX-License-Identifier: Apache-2.0
"""The shared log in memory, with ways to trouble those who use it."""

from collections.abc import Callable
from typing import cast

from lessor.durable.log import LogError
from lessor.durable.shared_log import Found, UnreachableError
from tests.engines import memory


class MemoryRecords(memory.Store):
    """What the engine keeps. `before_append` and `after_append` are called in each append, and may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True
        self.reads = 0
        self.before_append: Callable[[], None] = lambda: None
        self.after_append: Callable[[], None] = lambda: None


class MemoryLog(memory.MemoryLog):
    """One process's way to them."""

    @property
    def _kept(self) -> MemoryRecords:
        return cast(MemoryRecords, self._store)

    def _check(self, error: type[LogError] = UnreachableError) -> None:
        super()._check(error)
        if not self._kept.up:
            raise error("the memory is away")

    def read(self, after: int, bytes_max: int) -> Found:
        self._kept.reads += 1
        return super().read(after, bytes_max)

    def append(self, expect: int, chain: bytes, data: bytes) -> None:
        self._kept.before_append()
        super().append(expect, chain, data)
        self._kept.after_append()
