# SPDX-License-Identifier: Apache-2.0
"""Candidacies: the places in a waiting line that locks and elections are made of.

Laws
- A place is the key `name/<lease id in hex>`, attached to that lease. The line is ordered by create revision; its first
  place holds the lock, or leads. Keys and order are those of etcd's own Lock and Election services and of its Go
  library, so that the candidates of all three can wait in one line.
- Each change is a txn under the condition "my key is still the one that I made". So it is safe to repeat after a lost
  connection, and a client that wrongly takes itself for the first cannot harm the one that is.
- Each candidate waits for the place before its own alone, so the end of a place wakes one candidate.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import LEASE_NOT_FOUND
from lessor.client import op
from lessor.client._caller import insist
from lessor.client._calls import Calls
from lessor.client._errors import CallTimeout, ClientError, Compacted, LeaseLost, NotLeader, ServerError
from lessor.client._lease import AsyncLease
from lessor.client._requests import Bytes, to_bytes
from lessor.client.op import Key

_CREATE = cast(int, rpc.RangeRequest.CREATE)
_ASCEND = cast(int, rpc.RangeRequest.ASCEND)
_DESCEND = cast(int, rpc.RangeRequest.DESCEND)


class Candidacy:
    """One place, attached to `lease` or, when that is None, to a lease of its own from `make_lease`."""

    def __init__(
        self, calls: Calls, name: Bytes, lease: AsyncLease | None, make_lease: Callable[[], AsyncLease]
    ) -> None:
        self.prefix = to_bytes(name) + b"/"
        self.revision = 0  # the place's create revision; 0 while there is none
        self.key = b""
        self._calls = calls
        self._lease = lease
        self._own: AsyncLease | None = None
        self._make_lease = make_lease

    @property
    def lease(self) -> AsyncLease:
        """The lease that the place depends on. ValueError while there is none."""
        lease = self._own or self._lease
        if lease is None:
            raise ValueError("there is no lease before the first attempt")
        return lease

    def check(self) -> int:
        """The place's create revision. Raises LeaseLost, or NotLeader when it is not held."""
        if not self.revision:
            raise NotLeader(f"{self.prefix.decode(errors='replace')}: not held")
        self.lease.check()
        return self.revision

    @property
    def mine(self) -> rpc.Compare:
        """The condition that the place is still there."""
        return Key(self.key).create_revision == self.check()

    async def enter(self, value: bytes, *, wait: bool) -> bool:
        """Takes a place; returns whether it is first. With `wait` it first waits until it is.

        When it is not first in the end it has left the line. Raises LeaseLost, NotLeader when somebody else deletes
        the place, or as calls do.
        """
        if self._lease is None and (self._own is None or not self._own.alive):
            self._own = await self._make_lease().grant()
        self.key = self.prefix + b"%x" % self.lease.id
        try:
            first = await insist(lambda: self._take(value), self.lease.check)
            if not first and wait:
                await self._until(self._first())
                first = True
        except BaseException:
            with suppress(ClientError):
                await self.leave()
            raise
        if not first:
            await self.leave()
        return first

    async def win(self, value: bytes, timeout_s: float | None) -> int:
        """`enter`, waiting for `timeout_s` seconds at the most (None: no limit); returns the place's create revision.

        CallTimeout when it is not first by then; it has left the line.
        """
        self._calls.channel.own_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await self.enter(value, wait=True)
        except TimeoutError:
            text = f"{self.prefix.decode(errors='replace')}: not first in the line within {timeout_s:g} s"
            raise CallTimeout(text, timeout_s=timeout_s or 0.0) from None
        return self.check()

    async def leave(self) -> None:
        """Leaves the line; waits until that is certain, for the lease's TTL at the most."""
        revision, self.revision = self.revision, 0
        own, self._own = self._own, None
        if own is not None:
            with suppress(ClientError):  # the lease ends by itself then, and the place with it
                await own.revoke()
        elif self.key and self._lease is not None and self._lease.alive:
            # Without a revision the place may be taken all the same, by a txn whose reply was lost. The key is this
            # lease's alone.
            still = Key(self.key).create_revision == revision if revision else Key(self.key).exists
            drop = [op.delete(self.key)]
            with suppress(LeaseLost):  # then the place is gone as well
                await self._until(insist(lambda: self._calls.txn([still], drop)))

    async def first(self) -> mvcc.KeyValue | None:
        """The key of the first place in the line, whoever holds it; None when the line is empty."""
        kvs = (await self._calls.get(self.prefix, prefix=True, sort_target=_CREATE, sort_order=_ASCEND, limit=1)).kvs
        return kvs[0] if kvs else None

    async def _take(self, value: bytes) -> bool:
        """Makes the place, or finds that it is there; returns whether it is first."""
        head = op.get(self.prefix, prefix=True, sort_target=_CREATE, sort_order=_ASCEND, limit=1)
        make = op.put(self.key, value, lease_id=self.lease.id)
        try:
            reply = await self._calls.txn([Key(self.key).missing], [make, head], [op.get(self.key), head])
        except ServerError as error:
            if error.message == LEASE_NOT_FOUND.message:
                self.lease._gone()  # sooner than the next renewal would show it
                self.lease.check()
            raise
        if reply.succeeded:
            self.revision = reply.header.revision
        else:
            mine = reply.responses[0].response_range.kvs[0]
            self.revision = mine.create_revision
            if mine.value != value:
                await self._calls.txn([self.mine], [op.put(self.key, value, lease_id=self.lease.id)])
        return reply.responses[1].response_range.kvs[0].key == self.key

    async def _first(self) -> None:
        """Returns when there is no place before ours any more."""
        while True:
            ahead = await insist(
                lambda: self._calls.get(
                    self.prefix,
                    prefix=True,
                    max_create_revision=self.revision - 1,
                    sort_target=_CREATE,
                    sort_order=_DESCEND,
                    limit=1,
                    keys_only=True,
                )
            )
            if not ahead.kvs:
                break
            with suppress(Compacted):  # we were away for long: look again
                await self._deleted(ahead.kvs[0].key, ahead.header.revision + 1)
        kvs = (await insist(lambda: self._calls.get(self.key, keys_only=True))).kvs
        if not kvs or kvs[0].create_revision != self.revision:
            self.revision = 0
            raise NotLeader(f"{self.key.decode(errors='replace')}: somebody deleted it while it waited")

    async def _deleted(self, key: bytes, start_revision: int) -> None:
        async with self._calls.events(key, start_revision=start_revision) as watch:
            async for event in watch:
                if event.type == mvcc.Event.DELETE:
                    return

    async def _until(self, work: Coroutine[Any, Any, object]) -> None:
        """Waits for `work`, but not longer than the lease lives: raises LeaseLost then."""
        lease = self.lease
        doing = asyncio.ensure_future(work)
        losing = asyncio.ensure_future(lease.lost.wait())
        try:
            await asyncio.wait({doing, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                lease.check()
        finally:
            for task in (doing, losing):
                task.cancel()
            await asyncio.gather(doing, losing, return_exceptions=True)
        doing.result()
