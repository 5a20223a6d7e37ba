# SPDX-License-Identifier: Apache-2.0
"""A unary call that a coroutine answers.

Laws
- It is answered, whatever the coroutine raises.
- A call whose peer went away is not answered. Its work runs to its end.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from lessor.base.errors import EtcdError
from lessor.server.loop.bugs import told
from lessor.server.loop.core import Core, UnaryCall


class Later:
    """One such call (core.Waiting)."""

    _running: set["asyncio.Task[None]"] = set()  # noqa: RUF012 - shared on purpose: a loop holds its tasks weakly

    def __init__(self, core: Core, call: UnaryCall, work: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        """`work` returns the serialized reply or raises."""
        self._core = core
        self._call: UnaryCall | None = call
        task = asyncio.get_running_loop().create_task(self._answer(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, work: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        outcome: bytes | EtcdError
        try:
            outcome = await work()
        except Exception as error:
            outcome = told(error, self._call.method.path if self._call is not None else "")
        if self._call is not None:
            self._core.finish(self._call, outcome)

    def on_gone(self) -> None:
        self._call = None
