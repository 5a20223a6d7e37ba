# SPDX-License-Identifier: Apache-2.0
"""A lock over all machines, with the number that makes it worth something: the fencing token.

A lock is held as long as its lease lives. A holder that stands still - a full garbage collection, a suspended machine,
a cable that is pulled - does not notice when the lease ends and the next one gets the lock: for a moment both believe
that they hold it. No lock service can prevent that; only the thing that the lock guards can, by refusing the older of
two holders. The token is what it needs for that: each holder's is greater than those of all holders before it. Send it
along with every write, and let the receiver refuse a token smaller than the greatest it has seen. Writes to the same
etcd do not even need that: make `lock.mine` a condition of their txn.
"""

from types import TracebackType

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._candidacy import Candidacy
from lessor.client._lease import AsyncLease


class AsyncLock:
    """`async with client.lock("jobs/42") as lock:`; see the module for what it does and does not protect."""

    def __init__(self, candidacy: Candidacy) -> None:
        self._candidacy = candidacy

    async def __aenter__(self) -> "AsyncLock":
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()

    async def acquire(self, *, timeout_s: float | None = None) -> int:
        """Waits for the lock, `timeout_s` seconds at the most (None: no limit); returns the fencing token.

        First come, first served. Lost connections and restarts of the server cost time, not the place in the line.
        Raises CallTimeout (the place is given up then), LeaseLost when the lease ends meanwhile, NotLeader when
        somebody deletes our key, or as calls do. To acquire what one holds returns the same token.
        """
        return await self._candidacy.win(b"", timeout_s)

    async def try_acquire(self) -> bool:
        """Takes the lock if it is free at this moment; returns whether it was."""
        return await self._candidacy.enter(b"", wait=False)

    async def release(self) -> None:
        """Gives the lock to the next in the line. Nothing happens when it is not held.

        When the server cannot be reached it tries until the lease is over, and the lock with it.
        """
        if self._candidacy.revision:
            await self._candidacy.leave()

    @property
    def token(self) -> int:
        """The fencing token: the create revision of the lock's key. Raises LeaseLost or NotLeader when not held."""
        return self._candidacy.check()

    @property
    def held(self) -> bool:
        """Whether the lock is held for certain at this moment, as far as this machine's clock can tell."""
        return bool(self._candidacy.revision) and self._candidacy.lease.alive

    @property
    def key(self) -> bytes:
        """The lock's key. Raises as `token` does."""
        self._candidacy.check()
        return self._candidacy.key

    @property
    def mine(self) -> rpc.Compare:
        """The condition, for a txn, that the lock is still held. Raises as `token` does."""
        return self._candidacy.mine

    @property
    def lease(self) -> AsyncLease:
        """The lease that the lock stands and falls with: look at `lock.lease.lost`. ValueError before `acquire`."""
        return self._candidacy.lease
