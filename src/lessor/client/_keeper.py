# SPDX-License-Identifier: Apache-2.0
"""Keeps leases alive: all leases of a client over one stream, in the background.

Laws
- A lease is safe until the instant when the last acknowledged renewal was sent, plus its TTL, on this machine's
  monotonic clock: the server began to count the TTL no sooner than that. At the end of that time the lease is reported
  lost, whatever the server says. A lease that was reported lost is never renewed again: its owner has acted on that.
- Each lease is renewed at a third of its TTL, or at random a little earlier, so that leases that began together spread.
- A renewal that is not answered soon is sent again on another connection, while there is time for it.
- Renewals are sent from a timer, not from a task that may wait for something else; a task only opens the stream and
  reads the answers.

How it works. `_queue` is a heap of (instant, lease): when to send the next renewal, or, while one is on its way, when
the lease is lost. An entry counts only while it is the lease's newest (`Kept.next_at`). Answers come in the order of
the requests, so `_unanswered` says which request an answer belongs to, and when that was sent.
"""

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import cast

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._asker import HAS_LEADER
from lessor.client._caller import RECONNECT_S_MAX, Backoff, Caller, passing
from lessor.client._connection import Call
from lessor.client._errors import ClientError, LeaseLost, ServerError
from lessor.client._login import token_refused
from lessor.client._observed import LOG

_KEEP_ALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]

RENEWALS_PER_TTL = 3  # one may be lost and one be late without the lease ending
JITTER = 0.2  # a renewal is sent up to this part of its interval earlier
# Wait for the answer to a renewal before another connection is tried, as a part of the TTL: three attempts fit
# between the first renewal that is not answered and the lease's end.
ANSWER_TTL_PART = 1 / 6
ANSWER_S_MIN, ANSWER_S_MAX = 0.25, 5.0


class Kept:
    """One lease as the keeper knows it."""

    __slots__ = ("due_at", "lease_id", "next_at", "on_lost", "over", "safe_until", "trouble", "ttl_s", "waiting")

    def __init__(self, lease_id: int, ttl_s: int, sent_at: float, on_lost: Callable[[LeaseLost], None]) -> None:
        self.lease_id = lease_id
        self.on_lost = on_lost
        self.over = False
        self.trouble = "the server did not answer"  # why it was not renewed, for the error's text
        self.next_at = 0.0
        self.renewed(ttl_s, sent_at)

    def renewed(self, ttl_s: int, sent_at: float) -> None:
        """The server has granted or renewed it for `ttl_s` seconds, asked at `sent_at`."""
        self.ttl_s = ttl_s
        self.safe_until = sent_at + ttl_s
        self.due_at = sent_at + ttl_s / RENEWALS_PER_TTL * random.uniform(1 - JITTER, 1.0)
        self.waiting = False  # a renewal is on its way

    @property
    def answer_s_max(self) -> float:
        return min(max(self.ttl_s * ANSWER_TTL_PART, ANSWER_S_MIN), ANSWER_S_MAX)


class Keeper:
    """All leases that a client keeps alive. For one event loop."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._leases: dict[int, Kept] = {}
        self._queue: list[tuple[float, int, Kept]] = []
        self._numbers = itertools.count()  # so that the heap never compares two leases
        self._unanswered: deque[tuple[Kept, float]] = deque()
        self._call: Call[Message] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, kept: Kept) -> None:
        """Begins to renew a lease that was just granted."""
        self._leases[kept.lease_id] = kept
        self._plan(kept, kept.due_at)
        if self._task is None or self._task.done():
            self._task = self._caller.spawn(self._run())
        self._arm()

    def drop(self, kept: Kept) -> None:
        """Stops renewing a lease: it was lost, or its owner revokes it."""
        kept.over = True
        if self._leases.get(kept.lease_id) is kept:
            del self._leases[kept.lease_id]
        if not self._leases and self._task is not None:
            self._task.cancel()
            self._task = None
            self._queue.clear()
            self._closed()
            self._arm()

    def gone(self, kept: Kept) -> None:
        """The server has said that this lease has ended."""
        if not kept.over:
            self._lose(kept, "the server says that it has ended")

    def close(self) -> None:
        """Stops renewing: each lease that is still kept is lost to its owner."""
        for kept in list(self._leases.values()):
            self.drop(kept)
            kept.on_lost(LeaseLost(kept.lease_id, "the client was closed"))

    # --- the timer ----------------------------------------------------------------------------------------------

    def _plan(self, kept: Kept, at: float) -> None:
        kept.next_at = at
        heapq.heappush(self._queue, (at, next(self._numbers), kept))

    def _arm(self) -> None:
        """Sets the timer to the next instant at which something is due."""
        at = min(self._queue[0][0] if self._queue else float("inf"), self._stalled_at())
        if self._timer is not None:
            if self._timer.when() == at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if at < float("inf"):
            self._timer = asyncio.get_running_loop().call_at(at, self._tick, at)

    def _stalled_at(self) -> float:
        """When to give up waiting for the answer that should come next."""
        if self._call is None or not self._unanswered:
            return float("inf")
        kept, sent_at = self._unanswered[0]
        return sent_at + kept.answer_s_max

    def _tick(self, at: float) -> None:
        self._timer = None
        now = max(asyncio.get_running_loop().time(), at)  # a timer may fire a little too early
        if now >= self._stalled_at() and self._call is not None:
            kept, sent_at = self._unanswered[0]
            kept.trouble = f"no answer within {now - sent_at:.1f} s from {self._call.connection.endpoint.text}"
            self._caller.channel.distrust(self._call)
            self._call.cancel()  # wakes the reader, which opens another
            self._closed()
        due = []
        while self._queue and self._queue[0][0] <= now:
            planned_at, _, kept = heapq.heappop(self._queue)
            if kept.over or kept.next_at != planned_at:
                continue
            if now >= kept.safe_until:
                self._lose(kept, f"it was not renewed in time: {kept.trouble}")
            else:
                if not kept.waiting:
                    due.append(kept)
                self._plan(kept, kept.safe_until)
        self._send(due, now)
        self._arm()

    def _lose(self, kept: Kept, reason: str) -> None:
        self.drop(kept)
        self._caller.counters.lost_leases += 1
        LOG.warning("lease %016x is lost: %s", kept.lease_id, reason)
        kept.on_lost(LeaseLost(kept.lease_id, reason))

    # --- the stream ---------------------------------------------------------------------------------------------

    def _send(self, due: list[Kept], now: float) -> None:
        if self._call is None or not due:
            return  # the next stream begins with them
        try:
            self._call.send_now(rpc.LeaseKeepAliveRequest(ID=kept.lease_id) for kept in due)
        except ClientError:
            return  # the reader gets the same error
        for kept in due:
            kept.waiting = True
            self._unanswered.append((kept, now))

    async def _run(self) -> None:
        backoff = Backoff()
        credentials = self._caller.credentials()
        while True:
            call: Call[Message] | None = None
            try:
                token = await credentials.metadata()
                call = await self._caller.channel.start(_KEEP_ALIVE, metadata=(*HAS_LEADER, *token))
                self._opened(call)
                async for reply in call:
                    credentials.accepted()
                    backoff.reset()
                    self._answered(cast(rpc.LeaseKeepAliveResponse, reply))
            except ClientError as error:
                if isinstance(error, ServerError) and token_refused(error) and credentials.renew():
                    continue
                if self._call is call:  # otherwise the timer has given the call up, and has noted why
                    self._failed(error, call)
            finally:
                if call is not None:
                    call.cancel()
                self._closed()
            await asyncio.sleep(backoff.next_s(self._pause_s_max()))

    def _opened(self, call: Call[Message]) -> None:
        self._call = call
        now = asyncio.get_running_loop().time()
        self._send([kept for kept in self._leases.values() if kept.due_at <= now < kept.safe_until], now)
        self._arm()

    def _closed(self) -> None:
        self._call = None
        for kept, _ in self._unanswered:
            kept.waiting = False
        self._unanswered.clear()

    def _answered(self, reply: rpc.LeaseKeepAliveResponse) -> None:
        if not self._unanswered or self._unanswered[0][0].lease_id != reply.ID:
            return  # an answer to no request of ours confirms nothing
        kept, sent_at = self._unanswered.popleft()
        if reply.TTL <= 0:
            self.gone(kept)
        if kept.over:
            return
        self._caller.counters.renewals += 1
        kept.renewed(reply.TTL, sent_at)
        self._plan(kept, kept.due_at)
        self._arm()

    def _failed(self, error: ClientError, call: Call[Message] | None) -> None:
        """The stream ended with an error. One that will not pass is about the lease whose answer was due."""
        if passing(error) or not self._unanswered:
            for kept in self._leases.values():
                kept.trouble = str(error)
            if call is not None and isinstance(error, ServerError):
                self._caller.channel.distrust_if_others(call)
        else:
            kept, sent_at = self._unanswered[0]
            kept.trouble = str(error)
            # The others go first from now on. This one is tried again later: its owner may have the permission by then.
            kept.due_at = sent_at + kept.ttl_s / RENEWALS_PER_TTL
            if kept.due_at < kept.safe_until:
                self._plan(kept, kept.due_at)
                self._arm()

    def _pause_s_max(self) -> float:
        """The longest wait before the next attempt, in seconds: a small part of the shortest TTL."""
        return min((kept.ttl_s / 12 for kept in self._leases.values()), default=RECONNECT_S_MAX)
