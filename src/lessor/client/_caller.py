# SPDX-License-Identifier: Apache-2.0
"""What every part of a client stands on: a channel, a user, a time limit, and the tasks that run for it.

Laws
- A call carries the user's token, and is made once more with a new one when the server refuses the first.
- Every task of the client is started here, and closing the client ends it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client._channel import Channel
from lessor.client._connection import Call
from lessor.client._errors import Blame, CallTimeout, ClientError, ConnectionLost, LeaseLost, ServerError
from lessor.client._login import Login, Token, token_refused

M = TypeVar("M", bound=Message)
R = TypeVar("R")

RECONNECT_FIRST_S = 0.1  # wait before the second attempt to get a lost stream back; doubled each time ...
RECONNECT_S_MAX = 3.0  # ... up to this

# Asks the server to end the stream when it has lost touch with its cluster, rather than to leave it silent.
HAS_LEADER = (("hasleader", "true"),)


class Default:
    """Stands for "as the client's own option says" where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default()
Timeout = float | None | Default


class Caller:
    """A channel with a user and a time limit. See `AsyncClient`, which is one."""

    def __init__(self, channel: Channel, timeout_s: float | None, login: Login) -> None:
        self.channel = channel
        self._timeout_s = timeout_s
        self._login = login
        self._tasks: set[asyncio.Task[None]] = set()
        self.watching: set[Call[Message]] = set()  # the streams of its watches

    async def call(self, method: str | Method, request: Message, *, timeout_s: Timeout = DEFAULT) -> Message:
        """Any unary call: `method` as "/etcdserverpb.Maintenance/Status" or out of the table of methods.

        Raises KeyError for a path that is not in the table; otherwise as all calls do.
        """
        known = BY_PATH[method] if isinstance(method, str) else method
        limit_s = self.limit_s(timeout_s)
        return await self.with_token(
            lambda token: self.channel.unary(known, request, timeout_s=limit_s, metadata=token), limit_s
        )

    async def ask(self, method: Method, request: Message, reply: type[M], timeout_s: Timeout) -> M:
        """`call`, with the type of the reply."""
        return cast(M, await self.call(method, request, timeout_s=timeout_s))

    def limit_s(self, timeout_s: Timeout) -> float | None:
        """The time limit of a call that was given `timeout_s`."""
        return self._timeout_s if isinstance(timeout_s, Default) else timeout_s

    async def with_token(self, attempt: Callable[[Token], Awaitable[R]], timeout_s: float | None) -> R:
        """Runs `attempt` with the user's token; once more with a new one when that is refused."""
        token = await self._login.token(self.channel, timeout_s)
        try:
            return await attempt(token)
        except ServerError as error:
            if self._login.final or not token_refused(error):
                raise
            self._login.forget(token)
        return await attempt(await self._login.token(self.channel, timeout_s))

    async def request_progress(self) -> None:
        """Asks how far each watch of this client is. A watch yields a response without events once all was sent to it.

        A watch that has no connection at the moment yields none.
        """
        for call in tuple(self.watching):
            try:
                await call.send(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            except (ConnectionLost, ServerError):
                self.watching.discard(call)

    def credentials(self) -> "Credentials":
        """The credentials of one endless call."""
        return Credentials(self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` until it ends or the client is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Ends what runs in the background and closes the connections; calls that are underway fail.

        Leases that were not revoked live on until their TTL ends.
        """
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.channel.aclose()


class Credentials:
    """The token of an endless call that is begun again and again. A refused one is replaced, but not twice in a row."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._token: Token = ()
        self._renewed = False  # whether the token is one that was got because the last was refused

    async def metadata(self) -> Token:
        """The metadata to begin the call with. Raises as logging in does."""
        self._token = await self._caller._login.token(self._caller.channel, self._caller._timeout_s)
        return self._token

    def accepted(self) -> None:
        self._renewed = False

    def renew(self) -> bool:
        """After a refusal: whether there is a point in another attempt, with another token."""
        if self._caller._login.final or self._renewed:
            return False
        self._caller._login.forget(self._token)
        self._renewed = True
        return True


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
