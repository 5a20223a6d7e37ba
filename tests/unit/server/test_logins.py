# SPDX-License-Identifier: Apache-2.0
"""Logging in: what a login may make the server keep, log and do before its password is checked."""

import asyncio
import logging
import sys
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.server.loop.call import UnaryCall, Waiting
from lessor.server.loop.fair_queue import Peer
from lessor.server.services.auth import Auth, FailedLogins
from lessor.server.services.passwords import Passwords
from tests.unit.server.lock_world import Call, LockWorld

pytestmark = pytest.mark.inside

LONG = "n" * (limits.AUTH_NAME_BYTES_MAX + 1)
# Fields that this server does not know stay in a message, so a message may be as large as its sender likes.
UNKNOWN_FIELD = b"\xa2\x06\x80\x89\x7a" + b"x" * 2_000_000


class Recorded:
    """Takes the place of the passwords: keeps what is handed to it."""

    def __init__(self) -> None:
        self.handed: list[tuple[Any, ...]] = []

    def hash(self, *handed: Any) -> Any:
        self.handed.append(handed)

    check = hash


def world_with_users() -> LockWorld:
    world = LockWorld()
    for request in (
        rpc.AuthUserAddRequest(name="root", hashedPassword="eA==", options={"no_password": True}),
        rpc.AuthUserAddRequest(name="bot", options={"no_password": True}),
        rpc.AuthRoleAddRequest(name="root"),
        rpc.AuthUserGrantRoleRequest(user="root", role="root"),
        rpc.AuthEnableRequest(),
    ):
        world.machine.apply(request, 0.0)
    return world


def begin(world: LockWorld, auth: Auth, request: Message) -> tuple[Call, Waiting | None]:
    call = Call(world.core, rpc.AuthenticateRequest())  # this one keeps its request
    handler: Any = {
        rpc.AuthenticateRequest: auth.authenticate,
        rpc.AuthUserAddRequest: auth.add_user,
        rpc.AuthUserChangePasswordRequest: auth.change_password,
    }[type(request)]
    return call, handler(world.core, cast(UnaryCall, call), request)


@pytest.mark.parametrize("kind", [rpc.AuthenticateRequest, rpc.AuthUserAddRequest, rpc.AuthUserChangePasswordRequest])
def test_a_name_that_nobody_can_have_is_refused_before_it_waits(kind: Any) -> None:
    world, passwords = world_with_users(), Recorded()
    auth = Auth(cast(Any, None), cast(Any, passwords))
    for name in (LONG, "é" * (limits.AUTH_NAME_BYTES_MAX // 2 + 1)):
        with pytest.raises(EtcdError, match="user or role name is longer than 32768 bytes"):
            begin(world, auth, kind(name=name, password="p"))
    assert not passwords.handed
    begin(world, auth, kind(name=LONG[1:], password="p"))
    assert passwords.handed


@pytest.mark.parametrize("request_", [rpc.AuthUserAddRequest(name=LONG), rpc.AuthRoleAddRequest(name=LONG)])
def test_no_user_or_role_gets_such_a_name(request_: Message) -> None:
    with pytest.raises(EtcdError, match=errors.NAME_TOO_LONG.message):
        LockWorld().machine.apply(request_, 0.0)


@pytest.mark.parametrize("kind", [rpc.AuthenticateRequest, rpc.AuthUserAddRequest, rpc.AuthUserChangePasswordRequest])
def test_a_call_that_waits_for_a_hash_keeps_nothing_of_its_request_but_the_name(kind: Any) -> None:
    world, passwords = world_with_users(), Recorded()
    auth = Auth(cast(Any, None), cast(Any, passwords))
    request = kind.FromString(kind(name="ann", password="p" * 72).SerializeToString() + UNKNOWN_FIELD)
    assert request.ByteSize() > 2_000_000
    references = sys.getrefcount(request)
    call, _ = begin(world, auth, request)
    assert sys.getrefcount(request) == references
    (handed,) = passwords.handed
    assert Peer(call.held, "", "ann") in handed


def test_a_long_password_is_cut_before_it_waits() -> None:
    world, passwords = world_with_users(), Recorded()
    begin(world, Auth(cast(Any, None), cast(Any, passwords)), rpc.AuthenticateRequest(name="ann", password="p" * 10**6))
    assert passwords.handed[0][0] == "p" * limits.PASSWORD_BYTES_MAX


def test_a_user_without_password_is_answered_as_etcd_does_and_an_unknown_one_as_a_wrong_password() -> None:
    async def main() -> None:
        world, passwords = world_with_users(), Passwords(4)
        auth = Auth(cast(Any, None), passwords)
        with pytest.raises(EtcdError, match="password was given for no password user"):
            begin(world, auth, rpc.AuthenticateRequest(name="bot", password="p"))
        unknown, _ = begin(world, auth, rpc.AuthenticateRequest(name="nobody", password="p"))
        while passwords.waiting:
            await asyncio.sleep(0)
        world.settle()
        assert unknown.error == errors.AUTH_FAILED.message
        passwords.close()

    asyncio.run(main())


def test_a_flood_of_failed_logins_writes_a_few_short_lines(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailedLogins()
    with caplog.at_level(logging.INFO, "lessor"):
        for number in range(1_000):
            failures.add("n" * 30_000, 5.0 + number / 1_000)
        assert len(caplog.records) == limits.FAILED_LOGINS_LOGGED_PER_S_MAX
        failures.add("ann", 6.5)
    told: list[Any] = caplog.records
    assert told[0].user == "n" * limits.LOGGED_NAME_CHARACTERS_MAX + "..."
    assert (told[-1].user, getattr(told[-1], "left-out-before")) == ("ann", 990)
