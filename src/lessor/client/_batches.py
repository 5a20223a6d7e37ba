# SPDX-License-Identifier: Apache-2.0
"""Iterators whose items come in batches: an item costs a step of the event loop only when the last batch is used up.

Law: giving up a wait (a timeout, a cancelled task) loses no item; the next call goes on from there.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

from lessor.client._arguments import checked
from lessor.client._errors import CallTimeout

T = TypeVar("T")


@checked
class AsyncBatches(Generic[T]):
    """Base class of the iterators. For one task at a time."""

    def __init__(self) -> None:
        self._ready: deque[T] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._ready:
            self._ready.extend(await self.more())
        return self._ready.popleft()

    async def next(self, *, timeout_s: float | None = None) -> T:
        """The next item; CallTimeout when none comes within `timeout_s` seconds (None: no limit). Safe to repeat."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.__anext__()
        except TimeoutError:
            raise CallTimeout(f"nothing within {timeout_s:g} s", timeout_s=timeout_s or 0.0) from None

    async def take(self) -> Sequence[T]:
        """All items that stand ready, at least one; waits as `__anext__` does."""
        ready = [await self.__anext__(), *self._ready]
        self._ready.clear()
        return ready

    async def more(self) -> Sequence[T]:
        """At least one more item. Raises StopAsyncIteration when there will be none."""
        raise NotImplementedError
