# SPDX-License-Identifier: Apache-2.0
"""A unary call that a coroutine answers.

Laws
- The call is answered, even if the coroutine raises an unforeseen exception.
- A call whose peer went away is not answered. The coroutine runs to its end.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from lessor.base.errors import EtcdError
from lessor.server.loop.bugs import as_answer
from lessor.server.loop.call import UnaryCall
from lessor.server.loop.core import Core


class Later:
    """One such call (call.Waiting)."""

    open_ended = True

    def __init__(self, core: Core, call: UnaryCall, work: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        """`work` returns the serialized reply or raises."""
        self._call: UnaryCall | None = call
        core.run(self._answer(work))

    async def _answer(self, work: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        outcome: bytes | EtcdError
        try:
            outcome = await work()
        except Exception as error:
            outcome = as_answer(error, self._call.method.path if self._call is not None else "")
        if self._call is not None:
            self._call.finish(outcome)

    def on_gone(self) -> None:
        self._call = None
