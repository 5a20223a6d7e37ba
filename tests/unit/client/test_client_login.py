# SPDX-License-Identifier: Apache-2.0
"""A client with a user: when it logs in, and when again."""

import asyncio
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.errors import Code, ErrorText
from lessor.client import AsyncClient, LoginFailed, ServerError
from tests.unit.client.client_peer import Peer, PeerCall, run


class Guard:
    """A server that gives out tokens 1, 2, ... and takes the newest one only."""

    def __init__(self, refusal: ErrorText = errors.INVALID_AUTH_TOKEN) -> None:
        self.newest = 0
        self.logins = 0
        self.refusal = refusal
        self.password = "secret"
        self.auth_off = False

    def __call__(self, call: PeerCall, message: Any) -> None:
        if isinstance(message, rpc.AuthenticateRequest):
            self._log_in(call, message)
            return
        token = call.head.get(b"token")
        right = self.auth_off or token == b"%d" % self.newest
        if isinstance(message, rpc.WatchRequest):
            if right:
                call.reply(rpc.WatchResponse(header=rpc.ResponseHeader(revision=5), created=True))
                call.reply(rpc.WatchResponse(header=rpc.ResponseHeader(revision=6)))
            else:
                text = self.refusal.error().go_text
                call.reply(rpc.WatchResponse(created=True, canceled=True, watch_id=-1, cancel_reason=text))
            return
        if not right:
            call.finish(int(self.refusal.code), self.refusal.message)
            return
        call.reply(
            rpc.LeaseKeepAliveResponse(ID=1, TTL=30)
            if isinstance(message, rpc.LeaseKeepAliveRequest)
            else call.method.response()
        )
        if call.method.unary:
            call.finish()

    def _log_in(self, call: PeerCall, message: rpc.AuthenticateRequest) -> None:
        self.logins += 1
        assert call.head.get(b"token") is None
        if self.auth_off:
            call.finish(int(errors.AUTH_NOT_ENABLED.code), errors.AUTH_NOT_ENABLED.message)
        elif message.password != self.password:
            call.finish(int(errors.AUTH_FAILED.code), errors.AUTH_FAILED.message)
        else:
            self.newest += 1
            call.reply(rpc.AuthenticateResponse(token=str(self.newest)))
            call.finish()


def client_of(guard: Guard, user: str = "ann", password: str = "secret") -> AsyncClient:
    return Peer(guard).client(user=user, password=password)


def test_it_logs_in_once_and_shows_the_token() -> None:
    guard = Guard()

    async def main() -> None:
        async with client_of(guard) as client:
            await asyncio.gather(*(client.get("k") for _ in range(5)))
            await client.put("k", "v")

    run(main())
    assert guard.logins == 1


@pytest.mark.parametrize("refusal", [errors.INVALID_AUTH_TOKEN, errors.OLD_AUTH_REVISION, errors.USER_EMPTY])
def test_it_logs_in_again_when_the_token_is_refused(refusal: ErrorText) -> None:
    guard = Guard(refusal)

    async def main() -> None:
        async with client_of(guard) as client:
            await client.get("k")
            guard.newest = 100  # the server was started anew, say
            await asyncio.gather(*(client.get("k") for _ in range(5)))
            guard.newest = 200
            assert (await client.keep_alive_once(1)).TTL == 30

    run(main())
    assert guard.logins == 3


def test_a_token_of_the_callers_own_is_shown_and_nobody_logs_in() -> None:
    guard = Guard()
    guard.newest = 7

    async def main() -> None:
        async with Peer(guard).client(user="ann", password="secret", token="7") as client:
            await client.get("k")
            assert (await client.keep_alive_once(1)).TTL == 30
            assert not (await anext(client.watch("k"))).canceled
            guard.newest = 8
            with pytest.raises(ServerError, match="invalid auth token"):
                await client.get("k")
            assert (await anext(client.watch("k"))).canceled

    run(main())
    assert guard.logins == 0


def test_a_token_that_is_never_good_is_not_tried_for_ever() -> None:
    guard = Guard()
    log_in = guard._log_in

    def useless(call: PeerCall, message: Any) -> None:
        log_in(call, message)
        guard.newest += 1000

    guard._log_in = useless  # type: ignore[method-assign]

    async def main() -> None:
        async with client_of(guard) as client:
            with pytest.raises(ServerError, match="invalid auth token"):
                await client.get("k")
            with pytest.raises(ServerError, match="invalid auth token"):
                await anext(client.keep_alive(1))
            response = await anext(client.watch("k"))
            assert response.canceled

    run(main())
    assert guard.logins == 4  # the first, and one more for each call


def test_a_wrong_password_is_told() -> None:
    guard = Guard()

    async def main() -> None:
        async with client_of(guard, password="wrong") as client:
            for call in (
                client.get("k"),
                client.keep_alive_once(1),
                anext(client.keep_alive(1)),
                anext(client.watch("k")),
            ):
                with pytest.raises(LoginFailed, match="invalid user ID or password") as raised:
                    await call
                assert raised.value.code == Code.INVALID_ARGUMENT

    run(main())


def test_without_auth_no_token_is_shown_until_one_is_wanted() -> None:
    guard = Guard(errors.USER_EMPTY)
    guard.auth_off = True

    async def main() -> None:
        async with client_of(guard) as client:
            await client.get("k")
            await client.get("k")
            assert guard.logins == 1
            guard.auth_off = False
            await client.get("k")

    run(main())
    assert guard.logins == 2


def test_without_a_user_a_refusal_is_told() -> None:
    guard = Guard(errors.USER_EMPTY)

    async def main() -> None:
        async with client_of(guard, user="", password="") as client:
            with pytest.raises(ServerError, match="user name is empty"):
                await client.get("k")

    run(main())
    assert guard.logins == 0


def test_the_endless_calls_log_in_again() -> None:
    guard = Guard()

    async def main() -> None:
        async with client_of(guard) as client:
            await client.get("k")
            guard.newest = 100
            renewals = client.keep_alive(1)
            assert (await anext(renewals)).TTL == 30
            await renewals.aclose()
            guard.newest = 200
            watch = client.watch("k")
            assert (await anext(watch)).header.revision == 6
            await watch.aclose()

    run(main())
    assert guard.logins == 3
