# SPDX-License-Identifier: Apache-2.0
"""Elections: one of several candidates leads, as long as its lease lives.

What `_lock.py` says about the holder of a lock is true of a leader too: use the token.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import NamedTuple

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import op
from lessor.client._arguments import checked
from lessor.client._calls import Calls
from lessor.client._candidacy import Candidacy
from lessor.client._errors import NotLeader
from lessor.client._lease import AsyncLease
from lessor.client._mirror import follow
from lessor.client._requests import Bytes, to_bytes


class Leader(NamedTuple):
    """The leader of an election."""

    value: bytes  # what the leader says about itself
    key: bytes
    token: int  # the fencing token: the key's create revision
    lease_id: int


@checked
class AsyncElection:
    """`election = client.election("scheduler")`, then `await election.campaign("host-1")`, or `observe()` only.

    As a block it resigns at its end.
    """

    def __init__(self, calls: Calls, candidacy: Candidacy) -> None:
        self._calls = calls
        self._candidacy = candidacy

    async def __aenter__(self) -> "AsyncElection":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.resign()

    async def campaign(self, value: Bytes = b"", *, timeout_s: float | None = None) -> int:
        """Waits until it leads, `timeout_s` seconds at the most (None: no limit); returns the fencing token.

        `value`: what others are to know of the leader, mostly its address. Raises CallTimeout (the candidacy is given
        up then), LeaseLost when the lease ends meanwhile, NotLeader when somebody deletes our key, or as calls do.
        """
        return await self._candidacy.win(to_bytes(value), timeout_s)

    async def proclaim(self, value: Bytes) -> None:
        """Changes the leader's value. Raises NotLeader when it does not lead (any more), LeaseLost, or as calls do."""
        mine = self._candidacy.mine
        put = op.put(self._candidacy.key, value, lease_id=self._candidacy.lease.id)
        if not (await self._calls.txn([mine], [put])).succeeded:
            self._candidacy.revision = 0
            raise NotLeader(f"{self._candidacy.key.decode(errors='replace')}: somebody deleted it")

    async def resign(self) -> None:
        """Lets the next candidate lead. Nothing happens when it does not lead."""
        if self._candidacy.revision:
            await self._candidacy.leave()

    async def leader(self) -> Leader | None:
        """The leader at this moment; None: nobody leads."""
        return _leader(await self._candidacy.first())

    async def observe(self) -> AsyncGenerator[Leader | None, None]:
        """The leader of now, then each new one and each new value; None while there is none. Needs no candidacy.

        Goes on over lost connections. Leaders that came and went while the server's history was compacted away are
        not shown.
        """
        last: Leader | None = None
        begun = False
        async with aclosing(follow(self._calls, self._candidacy.prefix)) as steps:
            async for keys, _ in steps:
                now = _leader(min(keys.values(), key=lambda kv: (kv.create_revision, kv.key), default=None))
                if now != last or not begun:
                    last, begun = now, True
                    yield now

    @property
    def token(self) -> int:
        """The leader's fencing token: the create revision of its key. Raises LeaseLost or NotLeader."""
        return self._candidacy.check()

    @property
    def leads(self) -> bool:
        """Whether it certainly leads at this moment, as far as this machine's clock can tell."""
        return bool(self._candidacy.revision) and self._candidacy.lease.alive

    @property
    def mine(self) -> rpc.Compare:
        """The condition, for a txn, that it still leads. Raises as `token` does."""
        return self._candidacy.mine

    @property
    def lease(self) -> AsyncLease:
        """The lease that the leadership depends on. ValueError before `campaign`."""
        return self._candidacy.lease


def _leader(kv: mvcc.KeyValue | None) -> Leader | None:
    return None if kv is None else Leader(kv.value, kv.key, kv.create_revision, kv.lease)
