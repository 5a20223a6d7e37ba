# SPDX-License-Identifier: Apache-2.0
"""A lease that renews itself, and reports to its owner when it is lost.

Laws
- "Alive" is decided by the clock at the moment of the question, not by whether some timer has run already.
- A lost lease stays lost. A server that comes back may still know it, but its owner has acted on the report.
- Leaving the block revokes the lease. Its keys are gone at once where the server can be reached, and after the TTL
  otherwise.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._arguments import checked
from lessor.client._asker import DEFAULT, Timeout
from lessor.client._calls import Calls
from lessor.client._errors import ClientError, LeaseLost
from lessor.client._keeper import Keeper, Kept


@checked
class AsyncLost:
    """Whether and when a lease was lost; `lease.lost`."""

    def __init__(self, lease: "AsyncLease") -> None:
        self._lease = lease
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """Whether the lease is lost. The clock decides, so it is right also after the program stood still."""
        return self._lease.lost_error is not None

    async def wait(self, *, timeout_s: float | None = None) -> bool:
        """Waits until the lease is lost, `timeout_s` seconds at the most (None: no limit); returns `is_set()`.

        A lease that its owner revokes is not lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        return self.is_set()


@checked
class AsyncLease:
    """`async with client.lease(30) as lease:`: granted when the block begins, renewed meanwhile, revoked at its end.

    Without a block: `lease = await client.lease(30).grant()`, and `await lease.revoke()`.
    """

    def __init__(
        self,
        calls: Calls,
        keeper: Keeper,
        ttl_s: int,
        lease_id: int,
        on_lost: Callable[[LeaseLost], object] | None,
    ) -> None:
        self._calls = calls
        self._keeper = keeper
        self._asked_ttl_s = ttl_s
        self._asked_id = lease_id
        self._on_lost = on_lost
        self._kept: Kept | None = None
        self._clock: Callable[[], float] = float
        self._error: LeaseLost | None = None
        self._revoked = False
        self._lost = AsyncLost(self)

    async def __aenter__(self) -> "AsyncLease":
        return await self.grant()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the server cannot be reached the lease ends by itself: nothing renews it any more.
        with suppress(ClientError):
            await self.revoke()

    def __repr__(self) -> str:
        if self._kept is None:
            return f"<lease, not granted yet: {self._asked_ttl_s} s>"
        state = "revoked" if self._revoked else "alive" if self.alive else "lost"
        return f"<lease {self._kept.lease_id:016x}, {self._kept.ttl_s} s, {state}>"

    async def grant(self, *, timeout_s: Timeout = DEFAULT) -> "AsyncLease":
        """Grants it and begins to renew it; returns itself. Raises as `client.grant` does, ValueError the second time.

        After an unknown outcome there may be a lease that nobody renews; it ends by itself.
        """
        if self._kept is not None:
            raise ValueError("a lease is granted once; make another")
        loop = self._calls.channel.own_loop()
        self._clock = loop.time  # bound to the loop; any thread may call it
        sent_at = loop.time()
        reply = await self._calls.grant(self._asked_ttl_s, self._asked_id, timeout_s=timeout_s)
        self._kept = Kept(reply.ID, reply.TTL, sent_at, self._is_lost)
        self._keeper.keep(self._kept)
        return self

    async def revoke(self, *, timeout_s: Timeout = DEFAULT) -> rpc.LeaseRevokeResponse | None:
        """Ends it and deletes its keys, in one revision. None when it was over already, or never granted.

        It is renewed no more from here on, whatever the outcome. Raises ConnectionLost, CallTimeout, ServerError.
        """
        if self._kept is None or self._revoked:
            return None
        self._keeper.drop(self._kept)
        was_lost = self.lost_error is not None
        self._revoked = not was_lost
        try:
            return await self._calls.revoke(self._kept.lease_id, timeout_s=timeout_s)
        except ClientError:
            if was_lost:
                return None
            raise

    @property
    def id(self) -> int:
        """The lease's id, for `put(..., lease_id=lease.id)`. Raises LeaseLost when it is not alive any more."""
        self.check()
        return self._granted().lease_id

    @property
    def ttl_s(self) -> int:
        """Seconds of its TTL, as the server granted or renewed it last; may be more than was asked for."""
        return self._granted().ttl_s

    @property
    def remaining_s(self) -> float:
        """Seconds for which it is certain to live on if no renewal succeeds any more; 0 when it is over."""
        if self._kept is None or self._kept.over:
            return 0.0
        return max(self._kept.safe_until - self._clock(), 0.0)

    @property
    def alive(self) -> bool:
        """Whether it certainly lives at this moment, as far as this machine's clock can tell."""
        return self.remaining_s > 0

    @property
    def lost(self) -> AsyncLost:
        """Set when the lease is lost: the server says so, or no renewal was acknowledged for its TTL."""
        return self._lost

    @property
    def lost_error(self) -> LeaseLost | None:
        """Why it is lost; None while it is not."""
        kept = self._kept
        if self._error is None and kept is not None and not kept.over and not self.alive:
            return LeaseLost(kept.lease_id, f"it was not renewed in time: {kept.trouble}")
        return self._error

    def check(self) -> None:
        """Raises LeaseLost when it is lost or revoked, ValueError before it is granted."""
        if self.lost_error is not None:
            raise self.lost_error
        kept = self._granted()
        if self._revoked:
            raise LeaseLost(kept.lease_id, "it was revoked by its owner")

    def _gone(self) -> None:
        """A call other than a renewal has shown that the server does not know the lease any more."""
        self._keeper.gone(self._granted())

    def _granted(self) -> Kept:
        if self._kept is None:
            raise ValueError("the lease is not granted yet: use it in a with block, or call grant()")
        return self._kept

    def _is_lost(self, error: LeaseLost) -> None:
        self._error = error
        self._lost._event.set()
        if self._on_lost is not None:
            asyncio.get_running_loop().call_soon(self._on_lost, error)  # its errors go to the loop, not to the keeper
