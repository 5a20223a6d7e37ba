# SPDX-License-Identifier: Apache-2.0
"""The endless calls, keep_alive and watch, beside those of `_finite.py`.

Law: they are iterators that survive a lost connection. They run in the caller's task: nothing happens between two steps
of the loop, so take each step soon.

The parts of the client that make several calls (leases, locks, elections, discoveries) stand on `Calls`. `AsyncClient`
in `_async.py` is a `Calls` that also makes those parts.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._arguments import checked
from lessor.client._asker import HAS_LEADER
from lessor.client._caller import Backoff, Caller, passing
from lessor.client._enums import EventFilter
from lessor.client._errors import ConnectionLost, ServerError
from lessor.client._finite import FiniteCalls
from lessor.client._keeper import RENEWALS_PER_TTL
from lessor.client._login import token_refused
from lessor.client._requests import (
    Bytes,
    watch_request,
)
from lessor.client._watch import AsyncWatch, Follower

_LEASE_KEEP_ALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]


@checked
class Calls(FiniteCalls, Caller):
    """A caller with the calls of etcd's services as methods. See `AsyncClient`, which is one."""

    async def keep_alive(self, lease_id: int) -> AsyncGenerator[rpc.LeaseKeepAliveResponse, None]:
        """Renews a lease at once and then at every third of its TTL, yields each renewal, ends when the lease is gone.

        The renewals happen when the next item is asked for, so do not stay away longer than two thirds of the TTL. A
        lost connection is made again until the TTL has passed since the last renewal. Then ConnectionLost or
        CallTimeout is raised: the lease may be gone by then. Before the first renewal they are raised at once.
        """
        loop = self.channel.own_loop()
        give_up_at = loop.time()
        backoff = Backoff()
        credentials = self.credentials()
        while True:
            try:
                token = await credentials.metadata()
                async with self.channel.stream(_LEASE_KEEP_ALIVE, metadata=(*HAS_LEADER, *token)) as call:
                    while True:
                        sent_at = loop.time()
                        await call.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
                        async with asyncio.timeout(self._patience_s(give_up_at - sent_at)):
                            reply = cast(rpc.LeaseKeepAliveResponse | None, await call.receive())
                        if reply is None:
                            break  # the server ended the stream without an error: it is stopping
                        if reply.TTL <= 0:
                            return
                        give_up_at = sent_at + reply.TTL
                        backoff.reset()
                        credentials.accepted()
                        yield reply
                        await asyncio.sleep(sent_at + reply.TTL / RENEWALS_PER_TTL - loop.time())
            except TimeoutError:
                error: Exception = ConnectionLost(f"no answer to keepalives of lease {lease_id:016x}", endpoint="")
            except (ConnectionLost, ServerError) as lost:
                if isinstance(lost, ServerError):
                    if token_refused(lost) and credentials.renew():
                        continue
                    if not passing(lost):
                        raise
                error = lost
            else:
                error = ConnectionLost(f"the server ended the keepalives of lease {lease_id:016x}", endpoint="")
            if loop.time() >= give_up_at:
                raise error
            await asyncio.sleep(min(backoff.next_s(), max(give_up_at - loop.time(), 0.0)))

    def _patience_s(self, left_s: float) -> float:
        """How long to wait for one keepalive's answer when the lease has `left_s` seconds for certain."""
        return left_s if left_s > 0 else self._timeout_s if self._timeout_s is not None else 5.0

    # --- watch --------------------------------------------------------------------------------------------------

    async def watch(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        filters: Sequence[EventFilter | int] = (),
    ) -> AsyncGenerator[rpc.WatchResponse, None]:
        """Yields the server's responses about changes of a key or, as in `get`, a range: in order, none twice.

        start_revision   the first revision of interest, also a past one; 0: from now on
        prev_kv          each event has the key as it was before
        progress_notify  also yield, from time to time, a response without events: nothing is missing up to its
                         header.revision
        filters          EventFilters: kinds of event to leave out

        The events of one revision come in one response. A response with `canceled` is the last: the server ends the
        watch, with the reason in `cancel_reason`, or in `compact_revision` when the start is no longer in the history.
        After a lost connection the watch goes on where it was, however long that takes; only a first connection that
        cannot be made raises ConnectionLost.
        """
        follower = Follower(
            self, watch_request(key, range_end, prefix, start_revision, prev_kv, progress_notify, filters)
        )
        try:
            while True:
                response = await follower.next()
                if response.canceled or not response.created:
                    yield response
                if response.canceled:
                    return
        finally:
            follower.close()

    def events(
        self,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = False,
        filters: Sequence[EventFilter | int] = (),
    ) -> AsyncWatch:
        """Changes of a key or range, event by event; arguments as for `watch`, which yields the same as responses.

        async with client.events("service/", prefix=True) as watch:
            async for event in watch:
                print(event.type, event.kv.key, event.kv.value)
        """
        request = watch_request(key, range_end, prefix, start_revision, prev_kv, progress_notify, filters)
        return AsyncWatch(self, request)
