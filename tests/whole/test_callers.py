# SPDX-License-Identifier: Apache-2.0
"""Who a call comes from: its token, the client's certificate, or nobody; and that the loop goes on while it hashes."""

import threading
from pathlib import Path
from typing import Any, NamedTuple, cast

import bcrypt
import grpc
import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from lessor.server.services.tokens import Tokens
from lessor.state.permissions import Caller
from tests.in_process import in_process

CALL_S_MAX = 20.0


class Call(NamedTuple):
    """What a call says about who makes it."""

    token: bytes | None = None
    peer_common_name: str | None = None


def test_a_token_counts_before_a_certificate(tmp_path: Path) -> None:
    with in_process(tmp_path / "data") as running:
        core = running.server.core

        def look() -> None:
            token = cast(Tokens, core.tokens).issue("ann", 1).encode()
            assert core.claimed(Call()) is None
            assert core.claimed(Call(peer_common_name="bob")) == Caller("bob", core.auth.revision)
            assert core.claimed(Call(peer_common_name="")) == Caller("", core.auth.revision)
            assert core.claimed(Call(token)) == Caller("ann", core.auth.revision)
            assert core.claimed(Call(b"Bearer " + token, "bob")) == Caller("ann", core.auth.revision)
            for bad in (b"", b"x", b"\xff", b"bearer " + token, token + b" "):
                refused = core.claimed(Call(bad, "bob"))  # a bad token is not forgiven for the sake of a certificate
                assert isinstance(refused, EtcdError)
                assert refused.message == "etcdserver: invalid auth token"

        running.call(look)


def stub(channel: grpc.Channel, name: str) -> Any:
    method = BY_PATH[f"/etcdserverpb.{name}"]
    return channel.unary_unary(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def test_others_are_served_while_a_password_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    real = bcrypt.hashpw
    monkeypatch.setattr(bcrypt, "hashpw", lambda raw, salt: (may_go_on.wait(CALL_S_MAX), real(raw, salt))[1])
    with in_process(tmp_path / "data", "--bcrypt-cost=4") as running, grpc.insecure_channel(running.address) as channel:
        added = stub(channel, "Auth/UserAdd").future(rpc.AuthUserAddRequest(name="u", password="p"), timeout=CALL_S_MAX)
        stub(channel, "KV/Put")(rpc.PutRequest(key=b"k"), timeout=CALL_S_MAX)
        assert not added.done()
        assert list(stub(channel, "Auth/UserList")(rpc.AuthUserListRequest(), timeout=CALL_S_MAX).users) == []
        may_go_on.set()
        added.result()
        assert list(stub(channel, "Auth/UserList")(rpc.AuthUserListRequest(), timeout=CALL_S_MAX).users) == ["u"]


def test_a_right_lost_while_hashing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, may_go_on = threading.Event(), threading.Event()
    real = bcrypt.hashpw

    def hold(raw: bytes, salt: bytes) -> bytes:
        if raw == b"late":
            hashing.set()
            may_go_on.wait(CALL_S_MAX)
        return real(raw, salt)

    monkeypatch.setattr(bcrypt, "hashpw", hold)
    with in_process(tmp_path / "data", "--bcrypt-cost=4") as running, grpc.insecure_channel(running.address) as channel:

        def call(name: str, request: Any, token: str = "") -> Any:
            return stub(channel, f"Auth/{name}")(
                request, timeout=CALL_S_MAX, metadata=[("token", token)] if token else []
            )

        for name in ("root", "second"):
            call("UserAdd", rpc.AuthUserAddRequest(name=name, password=name))
            call("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=name, role="root"))
        call("AuthEnable", rpc.AuthEnableRequest())
        root = call("Authenticate", rpc.AuthenticateRequest(name="root", password="root")).token
        second = call("Authenticate", rpc.AuthenticateRequest(name="second", password="second")).token
        late = stub(channel, "Auth/UserAdd").future(
            rpc.AuthUserAddRequest(name="late", password="late"), timeout=CALL_S_MAX, metadata=[("token", second)]
        )
        assert hashing.wait(CALL_S_MAX)
        call("UserRevokeRole", rpc.AuthUserRevokeRoleRequest(name="second", role="root"), root)
        may_go_on.set()
        assert late.exception(CALL_S_MAX).details() == "etcdserver: permission denied"
        assert list(call("UserList", rpc.AuthUserListRequest(), root).users) == ["root", "second"]


def test_a_login_during_a_change_is_checked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password that was right when the check began is not good for a user who has a new one by then."""
    checking, may_go_on = threading.Event(), threading.Event()
    real = bcrypt.checkpw

    def hold(raw: bytes, hashed: bytes) -> bool:
        right = real(raw, hashed)
        if raw == b"old":
            checking.set()
            may_go_on.wait(CALL_S_MAX)
        return right

    monkeypatch.setattr(bcrypt, "checkpw", hold)
    with in_process(tmp_path / "data", "--bcrypt-cost=4") as running, grpc.insecure_channel(running.address) as channel:

        def call(name: str, request: Any, token: str = "") -> Any:
            return stub(channel, f"Auth/{name}")(
                request, timeout=CALL_S_MAX, metadata=[("token", token)] if token else []
            )

        call("UserAdd", rpc.AuthUserAddRequest(name="root", password="root"))
        call("UserAdd", rpc.AuthUserAddRequest(name="ann", password="old"))
        call("UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root"))
        call("AuthEnable", rpc.AuthEnableRequest())
        root = call("Authenticate", rpc.AuthenticateRequest(name="root", password="root")).token
        login = stub(channel, "Auth/Authenticate").future(
            rpc.AuthenticateRequest(name="ann", password="old"), timeout=CALL_S_MAX
        )
        assert checking.wait(CALL_S_MAX)
        call("UserChangePassword", rpc.AuthUserChangePasswordRequest(name="ann", password="new"), root)
        may_go_on.set()
        assert "invalid user ID or password" in login.exception(CALL_S_MAX).details()
