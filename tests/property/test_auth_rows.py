# SPDX-License-Identifier: Apache-2.0
"""Any history of users and roles comes back from the data directory as it was in memory, wherever a crash cuts it."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import auth_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import EtcdError
from lessor.durable.file_engine import FileEngine
from lessor.state.auth import Auth
from lessor.state.machine import Identity, StateMachine
from lessor.state.replay import restore
from tests.unit.durable.engine_rows import rest

names = st.sampled_from(["root", "u", "é\0", ""])
roles = st.sampled_from(["root", "r", "s"])
keys = st.sampled_from([b"\0", b"a", b"b\xff", b""])


def permission(key: bytes, end: bytes, kind: int) -> auth_pb2.Permission:
    made = auth_pb2.Permission(key=key, range_end=end)
    made.permType = kind  # type: ignore[assignment]
    return made


requests = st.one_of(
    st.builds(lambda name: rpc.AuthUserAddRequest(name=name, hashedPassword="aGFzaA=="), names),
    st.builds(lambda name: rpc.AuthUserAddRequest(name=name, options=auth_pb2.UserAddOptions(no_password=True)), names),
    st.builds(lambda name: rpc.AuthUserDeleteRequest(name=name), names),
    st.builds(
        lambda name, word: rpc.AuthUserChangePasswordRequest(name=name, hashedPassword=word),
        names,
        st.sampled_from(["", "YQ=="]),
    ),
    st.builds(lambda name, role: rpc.AuthUserGrantRoleRequest(user=name, role=role), names, roles),
    st.builds(lambda name, role: rpc.AuthUserRevokeRoleRequest(name=name, role=role), names, roles),
    st.builds(lambda role: rpc.AuthRoleAddRequest(name=role), roles),
    st.builds(lambda role: rpc.AuthRoleDeleteRequest(role=role), roles),
    st.builds(
        lambda role, key, end, kind: rpc.AuthRoleGrantPermissionRequest(name=role, perm=permission(key, end, kind)),
        roles,
        keys,
        keys,
        st.integers(0, 3),
    ),
    st.builds(
        lambda role, key, end: rpc.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end), roles, keys, keys
    ),
    st.just(rpc.AuthEnableRequest()),
    st.just(rpc.AuthDisableRequest()),
    st.just(rpc.CompactionRequest(revision=2)),
)


def content(auth: Auth) -> tuple[Any, ...]:
    return {name: user.row() for name, user in auth.users.items()}, auth.roles, auth.enabled, auth.revision


def booted(folder: Path) -> tuple[FileEngine, StateMachine]:
    engine = FileEngine(folder)
    meta = engine.open((1, 2))
    machine = restore(Identity(1, 2, 3), engine.load())
    engine.begin_term(meta.term + 1)
    return engine, machine


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(requests, max_size=6), min_size=1, max_size=6))
def test_what_was_committed_comes_back(batches: list[list[Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        engine, machine = booted(Path(name))
        try:
            machine.apply(rpc.PutRequest(key=b"k"), 0.0)
            for batch in batches:
                for request in batch:
                    _try(machine, request)
                sealed = machine.journal.seal(0.0)
                engine.commit(sealed)
                rest(engine)
            engine.close()
            engine, copy = booted(Path(name))
            assert content(copy.auth) == content(machine.auth)
            for request in batches[0]:  # and it goes on alike
                assert _try(copy, request) == _try(machine, request)
            assert content(copy.auth) == content(machine.auth)
        finally:
            engine.close()


def _try(machine: StateMachine, request: Any) -> str | None:
    try:
        machine.apply(request, 0.0)
    except EtcdError as error:
        return error.message
    return None
