# SPDX-License-Identifier: Apache-2.0
"""Unary replies that take long to make: piece by piece, with all other calls served in between.

Laws
- One such reply is made at a time, and one piece of it in a turn, however many are asked for.
- At most LONG_REPLIES_MAX of them wait or are made. The reply to any further call is made at once, in one piece.
- The code that makes the pieces answers for their content: it was fixed when the call came in, or that code copes with
  changes. Here the pieces are only bytes. The call encodes them, as JSON for instance, in the same steps.
- A call whose peer went away is dropped, and its place with it.
- When its place comes, a call is refused if its peer has not taken the replies to earlier calls.

Does not do: cutting an encoded reply, as HTTP/2's flow control does; the reads of a Txn, which are made at once.
"""

import asyncio
from collections.abc import Iterator
from typing import Any, Protocol

from lessor.api.methods import Method
from lessor.base import limits
from lessor.server.loop.bugs import as_answer
from lessor.server.observe.shortages import LONG_REPLIES, Shortages


class Answered(Protocol):
    """The call that the reply is for; see UnaryCall."""

    method: Method

    def refuse_if_overfull(self) -> bool: ...

    def encode_pieces(self, pieces: Iterator[bytes]) -> Iterator[bytes | None]: ...

    def finish_encoded(self, payload: Any) -> None: ...


class LongReplies:
    """The long replies of a server. Each keeps the data that it shows: hence LONG_REPLIES_MAX."""

    __slots__ = ("_shortages", "_waiting", "lock")

    def __init__(self, shortages: Shortages) -> None:
        self._shortages = shortages
        self.lock = asyncio.Lock()
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Whether one more reply has to be made at once. It then counts among the bytes that its peer has not taken."""
        full = self._waiting >= limits.LONG_REPLIES_MAX
        if full:
            self._shortages.reached(LONG_REPLIES)
        return full

    def begin(self, call: Answered, pieces: Iterator[bytes]) -> "LongReply":
        """Answers `call` with all `pieces` joined, or with the EtcdError that is raised while a piece is made."""
        task = asyncio.get_running_loop().create_task(_make(self, call, pieces))
        self._waiting += 1
        task.add_done_callback(self._leave)
        return LongReply(task)

    def _leave(self, _task: "asyncio.Task[None]") -> None:
        self._waiting -= 1


class LongReply:
    """A call waits for this while its reply is made (call.Waiting)."""

    __slots__ = ("_task",)

    open_ended = False  # it ends when the reply is made

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self._task = task

    def on_gone(self) -> None:
        self._task.cancel()


async def _make(replies: LongReplies, call: Answered, pieces: Iterator[bytes]) -> None:
    # Not a method of LongReply: a cancelled task keeps this frame, which must not keep the object that keeps the task.
    payload: Any
    try:
        async with replies.lock:
            if call.refuse_if_overfull():
                return
            steps = call.encode_pieces(pieces)
            while (payload := next(steps)) is None:
                await asyncio.sleep(0)
    except Exception as error:
        payload = as_answer(error, call.method.path)
    call.finish_encoded(payload)
