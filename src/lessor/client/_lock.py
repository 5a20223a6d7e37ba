# SPDX-License-Identifier: Apache-2.0
"""A lock over all machines, and its fencing token, without which a lock protects nothing.

A lock is held as long as its lease lives. A holder that stands still (a full garbage collection, a suspended machine, a
pulled cable) does not notice when the lease ends and the next holder gets the lock: for a moment both believe that they
hold it. No lock service can prevent that. Only the thing that the lock guards can, by refusing the older of the two.
For that it needs the token: each holder's token is greater than those of all holders before it. Send the token with
every write, and let the receiver refuse a token smaller than the greatest that it has seen. Writes to the same etcd do
not need that: make `lock.mine` a condition of their txn.
"""

from types import TracebackType

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._arguments import checked
from lessor.client._candidacy import Candidacy
from lessor.client._lease import AsyncLease


@checked
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
        somebody deletes our key, or as calls do. Acquiring a lock that is held already returns the same token.
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
        """Whether the lock is certainly held at this moment, as far as this machine's clock can tell."""
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
        """The lease that the lock depends on: look at `lock.lease.lost`. ValueError before `acquire`."""
        return self._candidacy.lease
