# SPDX-License-Identifier: Apache-2.0
"""Unary replies that take long to make: piece by piece, with everybody else served in between.

Laws
- One such reply is made at a time, a piece of it a turn: however many are asked for, each turn makes one piece.
- What a reply shows was fixed when its call came in, or is the maker's care; here it is bytes only.
- A call whose peer went away is given up, and so is its place in the line.

Does not do: cutting a reply on its way out; HTTP/2's flow control does that.
"""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lessor.base.errors import EtcdError
from lessor.server.bugs import told

if TYPE_CHECKING:
    from lessor.server.core import Core, UnaryCall


class LongReply:
    """A call under way whose reply is the sum of `pieces`; asking for one may raise EtcdError, which answers then."""

    __slots__ = ("_task",)

    def __init__(self, core: "Core", call: "UnaryCall", pieces: Iterator[bytes]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._make(core, call, pieces))

    async def _make(self, core: "Core", call: "UnaryCall", pieces: Iterator[bytes]) -> None:
        outcome: bytes | EtcdError
        made = []
        try:
            async with core.long_replies:
                for piece in pieces:
                    made.append(piece)
                    await asyncio.sleep(0)
            outcome = b"".join(made)
        except Exception as error:
            outcome = told(error, call.method.path)
        core.finish(call, outcome)

    def on_gone(self) -> None:
        self._task.cancel()
