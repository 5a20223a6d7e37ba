# SPDX-License-Identifier: Apache-2.0
"""Unary replies that take long to make: piece by piece, with everybody else served in between.

Laws
- One such reply is made at a time, a piece of it a turn: however many are asked for, each turn makes one piece.
- What a reply shows was fixed when its call came in, or is the maker's care; here it is bytes only. The call turns them
  into what leaves, JSON say, in the same steps.
- A call whose peer went away is given up, and so is its place in the line.
- When its turn comes, a call is refused whose peer has not taken what it had asked for before.

Does not do: cutting a reply on its way out, HTTP/2's flow control does that; what a Txn reads.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lessor.base import limits
from lessor.server.loop.bugs import told

if TYPE_CHECKING:
    from lessor.server.loop.core import Core, UnaryCall


class Line:
    """Where such replies wait for their turn. Each keeps what it is to show, so no more than LONG_REPLIES_MAX wait."""

    __slots__ = ("_waiting", "lock")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether one more has to be made at once. Then it counts among what its peer has not taken, like any other."""
        return self._waiting >= limits.LONG_REPLIES_MAX

    def enter(self, task: "asyncio.Task[None]") -> None:
        self._waiting += 1
        task.add_done_callback(self._leave)

    def _leave(self, _task: "asyncio.Task[None]") -> None:
        self._waiting -= 1


class LongReply:
    """A call under way whose reply is the sum of `pieces`; asking for one may raise EtcdError, which answers then."""

    __slots__ = ("_task",)

    def __init__(self, core: "Core", call: "UnaryCall", pieces: Iterator[bytes]) -> None:
        self._task = asyncio.get_running_loop().create_task(_make(core, call, pieces))
        core.long_replies.enter(self._task)

    def on_gone(self) -> None:
        self._task.cancel()


async def _make(core: "Core", call: "UnaryCall", pieces: Iterator[bytes]) -> None:
    # No method: a task that was cancelled holds this frame, which must not hold who holds the task.
    payload: Any
    try:
        async with core.long_replies.lock:
            if call.refused():
                call.waiting = None
                return
            steps = call.encode_pieces(pieces)
            while (payload := next(steps)) is None:
                await asyncio.sleep(0)
    except Exception as error:
        payload = told(error, call.method.path)
    core.finish_encoded(call, payload)
