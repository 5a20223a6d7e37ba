# SPDX-License-Identifier: Apache-2.0
"""What every call stands on: a channel, a user and a time limit. Nothing here imports asyncio; see `_service.py`.

Law: a call carries the user's token, and is made once more with a new one when the server refuses the first.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar, cast

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH, Method
from lessor.client._errors import ServerError
from lessor.client._login import Login, Token, token_refused
from lessor.client._observed import Counters, Interceptor, Outgoing, around
from lessor.client._service import Service

M = TypeVar("M", bound=Message)
R = TypeVar("R")

# Asks the server to end the stream when it has lost touch with its cluster, rather than to leave it silent.
HAS_LEADER = (("hasleader", "true"),)


class Default:
    """Stands for "as the client's own option says" where None has a meaning of its own."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default()
Timeout = float | None | Default


class Asker:
    """Asks a service, as a user. See `AsyncClient`, which is one."""

    def __init__(
        self, channel: Service, timeout_s: float | None, login: Login, interceptors: Iterable[Interceptor] = ()
    ) -> None:
        self.channel = channel
        self._interceptors = tuple(interceptors)
        self._timeout_s = timeout_s
        self._login = login

    async def call(self, method: str | Method, request: Message, *, timeout_s: Timeout = DEFAULT) -> Message:
        """Any unary call: `method` as "/etcdserverpb.Maintenance/Status" or out of the table of methods.

        Raises KeyError for a path that is not in the table; otherwise as all calls do.
        """
        known = BY_PATH[method] if isinstance(method, str) else method
        limit_s = self.limit_s(timeout_s)
        counters = self.channel.counters
        counters.calls += 1
        try:
            if self._interceptors:
                return await self._intercepted(known, request, limit_s)
            return await self.with_token(
                lambda token: self.channel.unary(known, request, timeout_s=limit_s, metadata=token), limit_s
            )
        except BaseException:
            counters.failed_calls += 1
            raise

    async def _intercepted(self, method: Method, request: Message, limit_s: float | None) -> Message:
        call = Outgoing(method.path, request)
        with around(self._interceptors, call):
            call.reply = reply = await self.with_token(
                lambda token: self.channel.unary(
                    method, call.request, timeout_s=limit_s, metadata=(*token, *call.metadata)
                ),
                limit_s,
            )
            return reply
        raise RuntimeError("an interceptor has swallowed the error of a call")

    @property
    def counters(self) -> Counters:
        """How often what has happened to this client: calls, errors, connections, renewals. Read it from any thread."""
        return self.channel.counters

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

    def credentials(self) -> "Credentials":
        """The credentials of one endless call."""
        return Credentials(self)


class Credentials:
    """The token of an endless call that is begun again and again. A refused one is replaced, but not twice in a row."""

    def __init__(self, caller: Asker) -> None:
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
