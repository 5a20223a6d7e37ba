# SPDX-License-Identifier: Apache-2.0
"""A txn step by step: conditions, the operations for when they hold, the operations for when they do not."""

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._arguments import checked
from lessor.client._asker import DEFAULT, Timeout
from lessor.client._calls import Calls


@checked
class AsyncTxn:
    """Gathers the parts of a txn, in any order; `commit` carries it out. Made by `client.transaction()`.

    reply = await client.transaction().when(Key("seat").missing).then(op.put("seat", "ann")).commit()
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._parts: tuple[list[rpc.Compare], list[rpc.RequestOp], list[rpc.RequestOp]] = ([], [], [])

    def when(self, *conditions: rpc.Compare) -> "AsyncTxn":
        """All of them must hold. Without conditions `then` is carried out."""
        self._parts[0].extend(conditions)
        return self

    def then(self, *steps: rpc.RequestOp) -> "AsyncTxn":
        """The steps for when they hold. Later steps see what earlier ones did."""
        self._parts[1].extend(steps)
        return self

    def otherwise(self, *steps: rpc.RequestOp) -> "AsyncTxn":
        """The steps for when they do not hold."""
        self._parts[2].extend(steps)
        return self

    async def commit(self, *, timeout_s: Timeout = DEFAULT) -> rpc.TxnResponse:
        """Carries it out, all at one instant; reply.succeeded says whether the conditions held."""
        return await self._calls.txn(*self._parts, timeout_s=timeout_s)
