# SPDX-License-Identifier: Apache-2.0
"""Watches: the server's responses as they come, and events one by one; both over any number of connections.

Laws
- No event is lost and none comes twice: after a lost connection the watch begins behind the last revision that was
  handed over whole. Where the server has no history any more, it is an error and not a gap.
- Of what the server cut into fragments the events of one revision are put together first. Revisions that are whole are
  handed over before the last fragment is there: a response of history may have a thousand revisions.
- Giving up a wait loses nothing: what has arrived is kept for the next call.
- Nothing runs between two calls; what arrives meanwhile waits in the connection (up to INBOX_BYTES_MAX, after which the
  call is begun anew from history).
"""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import cast

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._asker import HAS_LEADER
from lessor.client._batches import AsyncBatches
from lessor.client._caller import Backoff, Caller, passing
from lessor.client._connection import Call
from lessor.client._errors import CallTimeout, ClientError, Compacted, ConnectionLost, ServerError, WatchCanceled
from lessor.client._login import watch_refused
from lessor.client._observed import LOG

_WATCH = BY_PATH["/etcdserverpb.Watch/Watch"]


class Follower:
    """One watch, for as long as somebody asks for its next response."""

    def __init__(self, caller: Caller, create: rpc.WatchCreateRequest) -> None:
        self.create = create
        self.created = False
        self._caller = caller
        self._credentials = caller.credentials()
        self._backoff = Backoff()
        self._call: Call[Message] | None = None
        self._part: rpc.WatchResponse | None = None  # what has come of a revision of which a fragment may follow
        self._loop: asyncio.AbstractEventLoop | None = None

    async def next(self) -> rpc.WatchResponse:
        """The next response: once the one with `created`, then those with events or progress, last a canceled one.

        Raises ConnectionLost, CallTimeout or ServerError until the watch is created, later only those that do not pass.
        """
        while True:
            try:
                response = await self._response()
            except (ConnectionLost, CallTimeout, ServerError) as error:
                self._leave(error)
                if not self.created or not passing(error):
                    raise
                response = None
            if response is None:
                self.close()
                self._caller.counters.resumed_watches += 1
                LOG.info("a watch begins anew at revision %d", self.create.start_revision)
                await asyncio.sleep(self._backoff.next_s())
                continue
            if watch_refused(response) and self._credentials.renew():
                self.close()
                continue
            self._credentials.accepted()
            self._backoff.reset()
            if response.canceled:
                return response
            if not response.created:
                self.create.start_revision = max(self.create.start_revision, _seen_until(response) + 1)
                return response
            # All changes from here on are the watch's, also if the connection is lost before the first one comes.
            self.create.start_revision = self.create.start_revision or response.header.revision + 1
            if not self.created:
                self.created = True
                return response

    def close(self) -> None:
        """Ends the call; `next` would begin another."""
        self._part = None
        if self._call is not None:
            self._caller.watching.discard(self._call)
            self._call.cancel()
            self._call = None

    def __del__(self) -> None:
        # Nobody will read what the server goes on sending.
        if self._call is not None and self._loop is not None and not self._loop.is_closed():
            self._caller.watching.discard(self._call)
            self._loop.call_soon_threadsafe(self._call.cancel)

    async def _response(self) -> rpc.WatchResponse | None:
        """One response, whole; None when the server has ended the stream without an error."""
        if self._call is None:
            token = await self._credentials.metadata()
            call = await self._caller.channel.start(_WATCH, metadata=(*HAS_LEADER, *token))
            self._call, self._loop = call, asyncio.get_running_loop()
            self._caller.watching.add(call)
            call.send_now([rpc.WatchRequest(create_request=self.create)])
        while True:
            response = cast(rpc.WatchResponse | None, await self._call.receive())
            if response is None:
                self._part = None
                return None
            if self._part is not None:
                self._part.events.extend(response.events)
                self._part.fragment = response.fragment
                response, self._part = self._part, None
            if response.fragment:
                self._part = _split_last_revision(response)
            if response.events or not response.fragment:
                response.fragment = False
                return response

    def _leave(self, error: ClientError) -> None:
        if isinstance(error, ServerError) and self._call is not None and passing(error):
            self._caller.channel.distrust_if_others(self._call)


class AsyncWatch(AsyncBatches[mvcc.Event]):
    """Changes of keys, one after the other: `async with client.events(...) as watch: async for event in watch: ...`

    When the block begins, the watch has begun at the server: each later write is yielded. It goes on over lost
    connections and restarts, without loss and without repetition. Raises Compacted when the changes that come next are
    no longer in the history (the connection was away for long, and somebody compacted meanwhile), WatchCanceled when
    the server ends the watch or does not allow it.
    """

    def __init__(self, caller: Caller, create: rpc.WatchCreateRequest) -> None:
        super().__init__()
        self._follower = Follower(caller, create)
        self._revision = create.start_revision - 1 if create.start_revision else 0
        self._end: WatchCanceled | None = None

    async def __aenter__(self) -> "AsyncWatch":
        while not self._follower.created:
            self._ready.extend(await self._step())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def revision(self) -> int:
        """All changes up to this revision have been handed over or stand ready; a later watch may begin behind it.

        Grows with each event, and with the server's progress reports where they were asked for.
        """
        return self._revision

    async def aclose(self) -> None:
        """Ends the watch at the server."""
        self._follower.close()

    async def more(self) -> Sequence[mvcc.Event]:
        """The events of the next response, at least one."""
        while not (events := await self._step()):
            pass
        return events

    async def _step(self) -> Sequence[mvcc.Event]:
        if self._end is not None:
            raise self._end
        response = await self._follower.next()
        if response.canceled:
            self._follower.close()
            wanted = self._follower.create.start_revision
            if response.compact_revision:
                self._end = Compacted(wanted, response.compact_revision)
            else:
                self._end = WatchCanceled(response.cancel_reason or "the server gave no reason")
            raise self._end
        self._revision = max(self._revision, self._follower.create.start_revision - 1)
        return response.events


def _split_last_revision(response: rpc.WatchResponse) -> rpc.WatchResponse:
    """Takes the events of the last revision out of a response; returns them as one."""
    events = response.events
    first = len(events)
    while first and events[first - 1].kv.mod_revision == events[-1].kv.mod_revision:
        first -= 1
    part = rpc.WatchResponse(header=response.header, watch_id=response.watch_id, events=events[first:])
    del events[first:]
    return part


def _seen_until(response: rpc.WatchResponse) -> int:
    """The revision up to which a watch has everything after this response.

    The header of one with events does not say it: history comes in pieces, whose headers all have the newest revision.
    """
    return response.events[-1].kv.mod_revision if response.events else response.header.revision
