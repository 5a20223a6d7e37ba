# SPDX-License-Identifier: Apache-2.0
"""What every part of a client stands on: an asker, and the tasks that run for it.

Law: every task of the client is started here, and closing the client ends it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client._asker import Asker
from lessor.client._channel import Channel
from lessor.client._connection import Call
from lessor.client._errors import Blame, CallTimeout, ClientError, ConnectionLost, LeaseLost, ServerError
from lessor.client._login import Login
from lessor.client._observed import Interceptor

R = TypeVar("R")

RECONNECT_FIRST_S = 0.1  # wait before the second attempt to get a lost stream back; doubled each time ...
RECONNECT_S_MAX = 3.0  # ... up to this


class Caller(Asker):
    """An asker with tasks of its own. See `AsyncClient`, which is one."""

    channel: Channel

    def __init__(
        self, channel: Channel, timeout_s: float | None, login: Login, interceptors: Iterable[Interceptor] = ()
    ) -> None:
        super().__init__(channel, timeout_s, login, interceptors)
        self._tasks: set[asyncio.Task[None]] = set()
        self.watching: set[Call[Message]] = set()  # the streams of its watches

    async def request_progress(self) -> None:
        """Asks how far each watch of this client is. A watch yields a response without events once all was sent to it.

        A watch that has no connection at the moment yields none.
        """
        for call in tuple(self.watching):
            try:
                await call.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            except (ConnectionLost, ServerError):
                self.watching.discard(call)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` until it ends or the client is closed."""
        task = self.channel.own_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Ends what runs in the background and closes the connections; calls that are underway fail.

        Leases that were not revoked live on until their TTL ends.
        """
        if self._tasks:
            self.channel.own_loop()  # those of another loop cannot be awaited here
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.channel.aclose()


class Backoff:
    """The waits between attempts: longer each time, and random, so that not all clients of a server return at once."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def reset(self) -> None:
        self._next_s = 0.0

    def next_s(self, most_s: float = RECONNECT_S_MAX) -> float:
        """Seconds to wait, `most_s` at the most; 0 the first time: the connection was fine a moment ago."""
        wait_s, self._next_s = min(self._next_s, most_s), min(max(self._next_s * 2, RECONNECT_FIRST_S), RECONNECT_S_MAX)
        return wait_s * random.uniform(0.5, 1.0)


def passing(error: ClientError) -> bool:
    """Whether another attempt is worthwhile: the server is stopping, starting, away or without a leader."""
    if isinstance(error, ServerError):
        return error.code in (Code.UNAVAILABLE, Code.CANCELED)
    return isinstance(error, (ConnectionLost, CallTimeout))


async def insist(attempt: Callable[[], Awaitable[R]], check: Callable[[], object] = lambda: None) -> R:
    """Repeats `attempt`, which must be safe to repeat, until it succeeds. Returns its result.

    Raises an error that only the caller can mend, LeaseLost, and what `check` raises, which is called before each
    attempt.
    """
    backoff = Backoff()
    while True:
        check()
        try:
            return await attempt()
        except ClientError as error:
            if error.blame is Blame.CALLER or isinstance(error, LeaseLost):
                raise
        await asyncio.sleep(backoff.next_s())
