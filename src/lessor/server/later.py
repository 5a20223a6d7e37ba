# SPDX-License-Identifier: Apache-2.0
"""A unary call that a coroutine answers.

Laws
- It is answered, whatever the coroutine raises.
- A call whose peer went away is not answered. Its work runs to its end, or is given up, as its owner says.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from lessor.base.errors import EtcdError
from lessor.server.bugs import told
from lessor.server.core import Core, UnaryCall


class Later:
    """One such call (core.Waiting)."""

    _running: set["asyncio.Task[None]"] = set()  # noqa: RUF012 - shared on purpose: a loop holds its tasks weakly

    def __init__(
        self, core: Core, call: UnaryCall, work: Callable[[], Coroutine[Any, Any, bytes]], *, gives_up: bool = False
    ) -> None:
        """`work` returns the serialized reply or raises. `gives_up`: whether it is cancelled when the peer goes."""
        self._core = core
        self._call: UnaryCall | None = call
        self._gives_up = gives_up
        self._task = asyncio.get_running_loop().create_task(self._answer(work))
        self._running.add(self._task)
        self._task.add_done_callback(self._running.discard)

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
        if self._gives_up:
            self._task.cancel()
