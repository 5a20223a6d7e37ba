# SPDX-License-Identifier: Apache-2.0
"""A user's token: got with the password when first needed, and anew when the server refuses it.

Laws
- The password goes over the wire in Authenticate alone; calls carry the token.
- Calls that need a token at the same time share one login.
- Calls to a server whose auth is off carry no token, until it says that it wants one.
"""

from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.client._errors import LoginFailed, ServerError
from lessor.client._service import Service

_AUTHENTICATE = BY_PATH["/etcdserverpb.Auth/Authenticate"]
_NEW_TOKEN_HELPS = (errors.INVALID_AUTH_TOKEN, errors.OLD_AUTH_REVISION, errors.USER_EMPTY)
_TEXTS = frozenset(known.message for known in _NEW_TOKEN_HELPS)
_WATCH_TEXTS = frozenset(known.error().go_text for known in _NEW_TOKEN_HELPS)

Token = tuple[tuple[str, str], ...]


def token_refused(error: ServerError) -> bool:
    """Whether the refused call may succeed with a new token."""
    return error.message in _TEXTS


def watch_refused(response: rpc.WatchResponse) -> bool:
    """`token_refused`, for a watch."""
    return response.canceled and response.cancel_reason in _WATCH_TEXTS


class Login:
    """One user at one service. Without a name there is no user, and calls carry `given`, or no token.

    `lock`: lets one call at a time log in.
    """

    def __init__(self, user: str, password: str, lock: AbstractAsyncContextManager[Any], given: str = "") -> None:
        self._user = "" if given else user
        self._password = password
        self._given: Token = (("token", given),) if given else ()
        self._token: Token | None = None
        self._logging_in = lock

    @property
    def final(self) -> bool:
        """Whether no other token can be got: nobody logs in."""
        return not self._user

    async def token(self, channel: Service, timeout_s: float | None) -> Token:
        """The metadata that calls carry. Raises LoginFailed, or as any call."""
        if self.final:
            return self._given
        async with self._logging_in:
            if self._token is None:
                request = rpc.AuthenticateRequest(name=self._user, password=self._password)
                try:
                    reply = await channel.unary(_AUTHENTICATE, request, timeout_s=timeout_s)
                    channel.counters.logins += 1
                    self._token = (("token", cast(rpc.AuthenticateResponse, reply).token),)
                except ServerError as error:
                    if error.message != errors.AUTH_NOT_ENABLED.message:
                        raise LoginFailed(error.code, error.message) from None
                    self._token = ()
            return self._token

    def forget(self, token: Token) -> None:
        """The server refused this token. A newer one, which another call has got meanwhile, is kept."""
        if self._token == token:
            self._token = None
