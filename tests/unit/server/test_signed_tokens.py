# SPDX-License-Identifier: Apache-2.0
"""Simple tokens that another server than the one that gave them judges, from the same rows."""

import base64
import re
import string
from typing import Any

import pytest
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from lessor.server.loop.token_uses import TokenUses
from lessor.server.services.signed_tokens import SignedTokens
from lessor.state.machine import Identity, StateMachine
from lessor.state.permissions import Caller
from lessor.state.replay import apply

TTL_S = 300.0


class Servers:
    """One that leads, and one that applies what it writes. They have a clock in common, and tell each other nothing."""

    def __init__(self, cluster_id: int = 1) -> None:
        self.time_s = 1000.0
        self.machines = [StateMachine(Identity(cluster_id, member, 1)) for member in (1, 2)]
        self.tokens = [
            SignedTokens(machine, lambda: self.time_s, TokenUses(lambda: self.time_s, TTL_S))
            for machine in self.machines
        ]
        self.leading, self.following = self.tokens
        for name in ("u", "v"):
            self.apply(rpc.AuthUserAddRequest(name=name, hashedPassword=hashed(f"hash of {name}")))

    def apply(self, request: Message) -> None:
        self.machines[0].apply(request, self.time_s)
        self.replicate()

    def replicate(self) -> None:
        apply(self.machines[1], self.machines[0].journal.seal(self.time_s))

    def issue(self, name: str = "u") -> str:
        token = self.leading.issue(name, 1)
        self.replicate()
        return token


def hashed(password: str) -> str:
    return base64.b64encode(password.encode()).decode()


def both(servers: Servers, token: str) -> list[Caller | None]:
    return [tokens.caller(token, 7) for tokens in servers.tokens]


def test_every_server_of_the_log_knows_a_token() -> None:
    servers = Servers()
    tokens = {servers.issue() for _ in range(10)}
    assert len(tokens) == 10
    for token in tokens:
        assert both(servers, token) == [Caller("u", 7)] * 2
        assert re.fullmatch(r"[A-Za-z0-9_=-]+\.[0-9a-f]{64}", token)  # fits into a header


def test_a_server_that_has_not_applied_the_key_knows_no_token() -> None:
    servers = Servers()
    token = servers.leading.issue("u", 1)
    assert servers.following.caller(token, 1) is None
    servers.replicate()
    assert servers.following.caller(token, 1) == Caller("u", 1)


@pytest.mark.parametrize("name", ["u", "v2", "w34"])  # the ends of base64
def test_no_letter_of_a_token_can_be_another(name: str) -> None:
    servers = Servers()
    servers.apply(rpc.AuthUserAddRequest(name=name, hashedPassword=hashed("hash"))) if name != "u" else None
    token = servers.issue(name)
    for at, letter in enumerate(token):
        for other in set(string.ascii_letters + string.digits + "-_+/=.\n ") - {letter}:
            assert servers.leading.caller(token[:at] + other + token[at + 1 :], 1) is None


def test_the_key_outlives_logins_and_no_user_shows_it() -> None:
    servers = Servers()
    token = servers.issue()
    servers.issue("v")
    assert both(servers, token) == [Caller("u", 7)] * 2
    for machine in servers.machines:
        reply: Any = machine.apply(rpc.AuthUserListRequest(), 0.0)
        assert list(reply.users) == ["u", "v"]


def test_a_new_password_or_the_end_of_a_user_ends_its_tokens_and_no_others() -> None:
    servers = Servers()
    one, other = servers.issue("u"), servers.issue("v")
    servers.apply(rpc.AuthUserChangePasswordRequest(name="u", hashedPassword=hashed("HASH OF u")))
    assert both(servers, one) == [None, None]
    one = servers.issue("u")
    servers.apply(rpc.AuthUserDeleteRequest(name="u"))
    assert both(servers, one) == [None, None]
    servers.apply(rpc.AuthUserAddRequest(name="u", hashedPassword=hashed("hash Of u")))
    assert both(servers, one) == [None, None]
    assert both(servers, other) == [Caller("v", 7)] * 2


def test_a_user_without_a_password_that_is_deleted_is_nobody() -> None:
    servers = Servers()
    servers.apply(rpc.AuthUserAddRequest(name="w", options={"no_password": True}))
    token = servers.issue("w")  # which no login does
    servers.apply(rpc.AuthUserDeleteRequest(name="w"))
    assert both(servers, token) == [None, None]


def test_other_changes_of_the_auth_data_end_no_token() -> None:
    servers = Servers()
    token = servers.issue()
    servers.apply(rpc.AuthRoleAddRequest(name="r"))
    servers.apply(rpc.AuthUserGrantRoleRequest(user="u", role="r"))
    servers.apply(rpc.AuthUserDeleteRequest(name="v"))
    assert both(servers, token) == [Caller("u", 7)] * 2


def test_switching_auth_off_ends_all_tokens() -> None:
    servers = Servers()
    servers.leading.forget_all()  # without a token there is nothing to end
    assert not servers.machines[0].auth.token_key
    tokens = [servers.issue(name) for name in ("u", "v")]
    servers.leading.forget_all()
    servers.replicate()
    assert [both(servers, token) for token in tokens] == [[None, None]] * 2
    assert both(servers, servers.issue()) == [Caller("u", 7)] * 2


def test_a_token_lives_as_long_as_it_is_used() -> None:
    servers = Servers()
    used, unused = servers.issue(), servers.issue()
    for _ in range(5):
        servers.time_s += 299
        assert servers.leading.caller(used, 1) == Caller("u", 1)
    assert servers.leading.caller(unused, 1) is None
    assert servers.following.caller(used, 1) is None  # nobody has told it
    assert servers.following.caller(unused, 1) is None


def test_a_token_that_was_given_just_now_is_known_without_a_word() -> None:
    servers = Servers()
    token = servers.issue()
    servers.time_s += TTL_S - 1
    assert servers.following.caller(token, 1) == Caller("u", 1)
    servers.time_s += TTL_S - 1
    assert servers.following.caller(token, 1) == Caller("u", 1)


def test_the_token_of_one_cluster_is_none_in_another_with_the_same_key_and_users() -> None:
    ours, theirs = Servers(1), Servers(2)
    token = ours.issue()
    for machine in theirs.machines:
        machine.auth.change_token_key(ours.machines[0].auth.token_key)
    assert both(theirs, token) == [None, None]
