# SPDX-License-Identifier: Apache-2.0
"""Users, roles, tokens, and who may do what - in Lessor and in a real etcd.

The rules about leases are those of the newest 3.6; an older etcd is not asked about them.
"""

import re
from typing import Any

import pytest

from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import (
    BAD_LOGIN,
    BAD_TOKEN,
    BOTH,
    CHEAP,
    DENIED,
    NOBODY,
    READ,
    WRITE,
    As,
    new_name,
)
from tests.conformance.grpc_peer import Failure
from tests.conformance.lessor_server import ROOT_PASSWORD
from tests.conformance.subject import RUNNERS, running

MANAGEMENT = Failure(3, "etcdserver: invalid auth management")
USER_NOT_FOUND = Failure(9, "etcdserver: user name not found")
ROLE_NOT_FOUND = Failure(9, "etcdserver: role name not found")
LEASE_NOT_FOUND = Failure(5, "etcdserver: requested lease not found")
NO_PASSWORD = Failure(2, "auth: authentication failed, password was given for no password user")
ROOT_ONLY: list[Any] = [
    rpc.AuthEnableRequest(),
    rpc.AuthUserAddRequest(name="x", password="x"),
    rpc.AuthUserListRequest(),
    rpc.AuthUserDeleteRequest(name="root"),
    rpc.AuthUserChangePasswordRequest(name="root", password="x"),
    rpc.AuthUserGrantRoleRequest(user="root", role="root"),
    rpc.AuthUserRevokeRoleRequest(name="root", role="root"),
    rpc.AuthRoleAddRequest(name="x"),
    rpc.AuthRoleListRequest(),
    rpc.AuthRoleDeleteRequest(role="root"),
    rpc.AuthRoleGrantPermissionRequest(name="x", perm=auth.Permission(key=b"x")),
    rpc.AuthRoleRevokePermissionRequest(role="x", key=b"x"),
    rpc.AuthDisableRequest(),
    rpc.CompactionRequest(revision=1),
    rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, alarm=rpc.CORRUPT),
    rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, alarm=rpc.CORRUPT),
]


# --- the switch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RUNNERS)
def test_the_switch(kind: str) -> None:
    with running(kind, CHEAP) as subject:
        anybody = As(subject)
        assert anybody.call(rpc.AuthEnableRequest()) == Failure(9, "etcdserver: root user does not exist")
        assert anybody.call(rpc.AuthenticateRequest(name="a", password="a")) == Failure(
            9, "etcdserver: authentication is not enabled"
        )
        assert subject.post("/v3/auth/disable").status == 200
        status = anybody.do(rpc.AuthStatusRequest())
        assert (status.enabled, status.authRevision) == (False, 1)
        anybody.do(rpc.AuthUserAddRequest(name="root", password="r"))
        no_role = Failure(9, "etcdserver: root user does not have root role")
        assert anybody.call(rpc.AuthEnableRequest()) == no_role
        assert subject.post("/v3/auth/enable").status == 400
        anybody.do(rpc.AuthUserGrantRoleRequest(user="root", role="root"))  # a role that nobody added
        assert anybody.do(rpc.AuthRoleListRequest()).roles == []
        anybody.do(rpc.AuthEnableRequest())
        root = anybody.log_in("root", "r")
        root.do(rpc.AuthEnableRequest())
        status = root.do(rpc.AuthStatusRequest())
        assert (status.enabled, status.authRevision) == (True, 3)  # enabling is no change of the data
        assert anybody.call(rpc.RangeRequest(key=b"a")) == NOBODY
        root.do(rpc.AuthDisableRequest())
        anybody.do(rpc.RangeRequest(key=b"a"))
        if subject.like(3, 6):
            root.do(rpc.RangeRequest(key=b"a"))  # an old token does no harm now
        assert anybody.do(rpc.AuthStatusRequest()).authRevision == 4
        anybody.do(rpc.AuthEnableRequest())
        assert root.call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN  # disabling has ended all tokens


def test_replies_have_whole_headers(root: As) -> None:
    reply = root.do(rpc.AuthStatusRequest())
    expected = root.do(rpc.RangeRequest(key=b"a")).header
    assert reply.header == expected
    login = root.do(rpc.AuthenticateRequest(name="root", password=ROOT_PASSWORD))
    assert login.header == expected


# --- users ------------------------------------------------------------------------------------------------------------


def test_users_come_and_go(root: As) -> None:
    name = root.add_user()
    assert name in root.do(rpc.AuthUserListRequest()).users
    assert root.do(rpc.AuthUserGetRequest(name=name)).roles == []
    root.do(rpc.AuthUserDeleteRequest(name=name))
    assert name not in root.do(rpc.AuthUserListRequest()).users
    assert root.call(rpc.AuthUserGetRequest(name=name)) == USER_NOT_FOUND
    assert root.call(rpc.AuthUserDeleteRequest(name=name)) == USER_NOT_FOUND


def test_lists_are_in_order(root: As) -> None:
    for name in ("zz", "é", "Z", "aa"):
        root.do(rpc.AuthUserAddRequest(name=name, options=auth.UserAddOptions(no_password=True)))
        root.do(rpc.AuthRoleAddRequest(name=name))
    for reply in (root.do(rpc.AuthUserListRequest()).users, root.do(rpc.AuthRoleListRequest()).roles):
        assert list(reply) == sorted(reply, key=str.encode)
    for name in ("zz", "é", "Z", "aa"):
        root.do(rpc.AuthUserDeleteRequest(name=name))
        root.do(rpc.AuthRoleDeleteRequest(role=name))


def test_names_of_users_are_checked(root: As) -> None:
    name = root.add_user()
    taken = Failure(9, "etcdserver: user name already exists")
    assert root.call(rpc.AuthUserAddRequest(name=name, password="x")) == taken
    assert root.call(rpc.AuthUserAddRequest(name="", password="x")) == NOBODY
    assert root.call(rpc.AuthUserChangePasswordRequest(name=new_name(), password="x")) == USER_NOT_FOUND
    assert root.call(rpc.AuthUserGrantRoleRequest(user=new_name(), role="root")) == USER_NOT_FOUND
    assert root.call(rpc.AuthUserRevokeRoleRequest(name=new_name(), role="root")) == USER_NOT_FOUND


def test_roles_of_users(root: As) -> None:
    roles = sorted((root.add_role(), root.add_role(), "root"))
    name = root.add_user(*reversed(roles))
    assert list(root.do(rpc.AuthUserGetRequest(name=name)).roles) == roles
    revision = root.do(rpc.AuthStatusRequest()).authRevision
    root.do(rpc.AuthUserGrantRoleRequest(user=name, role=roles[0]))  # he has it
    assert root.do(rpc.AuthStatusRequest()).authRevision == revision
    root.do(rpc.AuthUserRevokeRoleRequest(name=name, role=roles[0]))
    assert root.do(rpc.AuthStatusRequest()).authRevision == revision + 1
    assert list(root.do(rpc.AuthUserGetRequest(name=name)).roles) == roles[1:]
    not_granted = Failure(9, "etcdserver: role is not granted to the user")
    assert root.call(rpc.AuthUserRevokeRoleRequest(name=name, role=roles[0])) == not_granted
    assert root.call(rpc.AuthUserRevokeRoleRequest(name=name, role=new_name())) == not_granted
    assert root.call(rpc.AuthUserGrantRoleRequest(user=name, role=new_name())) == ROLE_NOT_FOUND


def test_root_cannot_be_taken_away(root: As) -> None:
    assert root.call(rpc.AuthUserDeleteRequest(name="root")) == MANAGEMENT
    assert root.call(rpc.AuthRoleDeleteRequest(role="root")) == MANAGEMENT
    assert root.call(rpc.AuthUserRevokeRoleRequest(name="root", role="root")) == MANAGEMENT


# --- roles ------------------------------------------------------------------------------------------------------------


def test_roles_come_and_go(root: As) -> None:
    role = root.add_role((READ, b"a", b""))
    name = root.add_user(role)
    assert role in root.do(rpc.AuthRoleListRequest()).roles
    assert root.call(rpc.AuthRoleAddRequest(name=role)) == Failure(9, "etcdserver: role name already exists")
    assert root.call(rpc.AuthRoleAddRequest()) == Failure(3, "etcdserver: role name is empty")
    root.do(rpc.AuthRoleDeleteRequest(role=role))
    assert root.do(rpc.AuthUserGetRequest(name=name)).roles == []
    assert root.call(rpc.AuthRoleDeleteRequest(role=role)) == ROLE_NOT_FOUND
    assert root.call(rpc.AuthRoleGetRequest(role=role)) == ROLE_NOT_FOUND


def shown(root: As, role: str) -> list[tuple[bytes, bytes, int]]:
    return [(one.key, one.range_end, one.permType) for one in root.do(rpc.AuthRoleGetRequest(role=role)).perm]


def test_permissions_of_a_role(root: As) -> None:
    role = root.add_role((READ, b"m", b"n"), (BOTH, b"a", b""), (WRITE, b"x", b"\0"))
    assert shown(root, role) == [(b"a", b"", BOTH), (b"m", b"n", READ), (b"x", b"\0", WRITE)]
    root.grant(role, WRITE, b"m", b"n")
    assert shown(root, role)[1] == (b"m", b"n", WRITE)
    root.do(rpc.AuthRoleRevokePermissionRequest(role=role, key=b"m", range_end=b"n"))
    assert shown(root, role) == [(b"a", b"", BOTH), (b"x", b"\0", WRITE)]
    not_granted = Failure(9, "etcdserver: permission is not granted to the role")
    assert root.call(rpc.AuthRoleRevokePermissionRequest(role=role, key=b"a", range_end=b"b")) == not_granted
    assert root.call(rpc.AuthRoleRevokePermissionRequest(role=new_name(), key=b"a")) == ROLE_NOT_FOUND


@pytest.mark.parametrize(
    ("key", "range_end"), [(b"", b""), (b"", b"z"), (b"b", b"a"), (b"b", b"b"), (b"\1", b"\0\0"), (b"", b"\0")]
)
def test_ranges_without_keys_are_no_permission(newest: As, key: bytes, range_end: bytes) -> None:
    permission = auth.Permission(key=key, range_end=range_end)
    given = rpc.AuthRoleGrantPermissionRequest(name=newest.add_role(), perm=permission)
    assert newest.call(given) == MANAGEMENT
    assert newest.call(rpc.AuthRoleGrantPermissionRequest(name=new_name(), perm=permission)) == MANAGEMENT


def test_a_permission_has_to_be_given(root: As) -> None:
    given = rpc.AuthRoleGrantPermissionRequest(name=root.add_role())
    assert root.call(given) == Failure(3, "etcdserver: permission not given")
    given = rpc.AuthRoleGrantPermissionRequest(name=new_name(), perm=auth.Permission(key=b"a"))
    assert root.call(given) == ROLE_NOT_FOUND


def test_how_the_role_root_is_shown(newest: As) -> None:
    assert newest.call(rpc.AuthRoleGetRequest(role="root")) == ROLE_NOT_FOUND  # nobody needs to add it
    newest.do(rpc.AuthRoleAddRequest(name="root"))
    assert shown(newest, "root") == [(b"", b"\0", BOTH)]


def test_json(root: As) -> None:
    role, name = new_name(), new_name()
    assert root.post("/v3/auth/role/add", {"name": role}).status == 200
    body = {"name": role, "perm": {"permType": "READWRITE", "key": "YQ==", "range_end": "Yg=="}}
    assert root.post("/v3/auth/role/grant", body).status == 200
    assert root.post("/v3/auth/user/add", {"name": name, "password": "p"}).status == 200
    assert root.post("/v3/auth/user/grant", {"user": name, "role": role}).status == 200
    reply = root.post("/v3/auth/role/get", {"role": role}).json()
    assert reply["perm"] == [{"permType": "READWRITE", "key": "YQ==", "range_end": "Yg=="}]
    assert root.post("/v3/auth/user/get", {"name": name}).json()["roles"] == [role]
    login = root.subject.post("/v3/auth/authenticate", {"name": name, "password": "p"})
    user = As(root.subject, login.json()["token"])
    assert user.post("/v3/kv/put", {"key": "YQ==", "value": "YQ=="}).status == 200
    refused = user.post("/v3/kv/put", {"key": "Yg==", "value": "YQ=="})
    assert (refused.status, refused.json()["message"]) == (403, DENIED.text)
    asked = [who.post("/v3/auth/status") for who in (root, user, As(root.subject))]
    if root.subject.like(3, 7):
        assert [(reply.status, reply.json()["enabled"]) for reply in asked] == [(200, True)] * 3
    else:
        assert [reply.status for reply in asked] == [200, 403, 400]
        assert [reply.json()["message"] for reply in asked[1:]] == [DENIED.text, NOBODY.text]
    assert As(root.subject, "x.1").post("/v3/kv/range", {"key": "YQ=="}).status == 401
    refused = root.subject.post("/v3/auth/authenticate", {"name": name, "password": "q"})
    assert (refused.status, refused.json()["message"]) == (400, BAD_LOGIN.text)
    assert root.post("/v3/auth/user/changepw", {"name": name, "password": "q"}).status == 200
    assert root.post("/v3/auth/user/revoke", {"name": name, "role": role}).status == 200
    assert root.post("/v3/auth/role/revoke", {"role": role, "key": "YQ==", "range_end": "Yg=="}).status == 200
    assert root.post("/v3/auth/user/delete", {"name": name}).status == 200
    assert root.post("/v3/auth/role/delete", {"role": role}).status == 200
    assert name not in root.post("/v3/auth/user/list").json().get("users", [])


# --- passwords --------------------------------------------------------------------------------------------------------


def test_logging_in(root: As, nobody: As) -> None:
    name = root.add_user()
    assert nobody.call(rpc.AuthenticateRequest(name=name, password="wrong")) == BAD_LOGIN
    assert nobody.call(rpc.AuthenticateRequest(name=name)) == BAD_LOGIN
    assert nobody.call(rpc.AuthenticateRequest(name=new_name(), password="x")) == BAD_LOGIN
    assert nobody.call(rpc.AuthenticateRequest()) == BAD_LOGIN
    token = nobody.log_in(name, name).token
    assert token is not None
    assert re.fullmatch(r"[a-zA-Z]{16}\.[0-9]+", token)


def test_a_bad_token_does_not_keep_from_logging_in(root: As) -> None:
    assert As(root.subject, "bad.1").log_in("root", ROOT_PASSWORD).token


def test_a_user_by_certificate_has_no_password(root: As) -> None:
    name = new_name()
    root.do(rpc.AuthUserAddRequest(name=name, password="p", options=auth.UserAddOptions(no_password=True)))
    assert root.call(rpc.AuthenticateRequest(name=name, password="p")) == NO_PASSWORD
    root.do(rpc.AuthUserChangePasswordRequest(name=name, password="q"))
    assert root.call(rpc.AuthenticateRequest(name=name, password="q")) == NO_PASSWORD


def test_an_empty_password_is_a_password(root: As) -> None:
    name = new_name()
    root.do(rpc.AuthUserAddRequest(name=name))
    assert root.log_in(name, "").token
    assert root.call(rpc.AuthenticateRequest(name=name, password="x")) == BAD_LOGIN


def test_a_hash_sent_with_a_new_user_does_not_count(root: As) -> None:
    name = new_name()
    root.do(rpc.AuthUserAddRequest(name=name, hashedPassword="not base64"))
    assert root.log_in(name, "").token


def test_a_new_password_may_come_as_a_hash(root: As) -> None:
    import base64

    import bcrypt

    name = root.add_user()
    hashed = base64.b64encode(bcrypt.hashpw(b"secret", bcrypt.gensalt(4))).decode()
    root.do(rpc.AuthUserChangePasswordRequest(name=name, hashedPassword=hashed))
    assert root.call(rpc.AuthenticateRequest(name=name, password=name)) == BAD_LOGIN
    assert root.log_in(name, "secret").token
    bad = rpc.AuthUserChangePasswordRequest(name=name, hashedPassword="?")
    assert root.call(bad) == NO_PASSWORD
    assert root.log_in(name, "secret").token
    root.do(rpc.AuthUserChangePasswordRequest(name=name))  # neither: no password opens the door
    assert root.call(rpc.AuthenticateRequest(name=name)) == BAD_LOGIN


@pytest.mark.parametrize("password", ["pässwörd", "a\0b", "x" * 72])
def test_any_text_is_a_password(root: As, password: str) -> None:
    name = new_name()
    root.do(rpc.AuthUserAddRequest(name=name, password=password))
    assert root.log_in(name, password).token
    assert root.call(rpc.AuthenticateRequest(name=name, password=password[:-1])) == BAD_LOGIN


def test_a_password_that_bcrypt_would_cut_is_refused(newest: As) -> None:
    too_long = Failure(2, "bcrypt: password length exceeds 72 bytes")
    assert newest.call(rpc.AuthUserAddRequest(name=new_name(), password="x" * 73)) == too_long
    name = newest.add_user()
    assert newest.call(rpc.AuthUserChangePasswordRequest(name=name, password="x" * 73)) == too_long
    assert newest.log_in(name, name).token


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "x", "abcdefghijklmnop.1", "a.b.c", "abcdefghijklmnop.x"])
def test_bad_tokens(root: As, token: str) -> None:
    stranger = As(root.subject, token)
    for request in (
        rpc.RangeRequest(key=b"a"),
        rpc.PutRequest(key=b"a"),
        rpc.LeaseRevokeRequest(ID=1),
        rpc.AuthUserListRequest(),
        rpc.AuthUserGetRequest(name=""),
        rpc.CompactionRequest(revision=1),
    ):
        assert stranger.call(request) == BAD_TOKEN
    stream, reply = stranger.watch(b"a")
    stream.cancel()
    if root.subject.like(3, 6):
        assert (reply.created, reply.canceled, reply.watch_id) == (True, True, -1)
        assert reply.cancel_reason == "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"


def test_where_a_token_may_stand(newest: As) -> None:
    request = rpc.RangeRequest(key=b"a")
    token = newest.token or ""
    for good in (
        [("token", token)],
        [("authorization", token)],
        [("authorization", f"Bearer {token}")],
        [("token", f"Bearer {token}")],
        [("token", token), ("authorization", "bad")],
    ):
        assert not isinstance(newest.call(request, good), Failure)
    for bad in ([("token", "bad"), ("authorization", token)], [("authorization", f"bearer {token}")]):
        assert newest.call(request, bad) == BAD_TOKEN
    subject = newest.subject
    body = {"key": "YQ=="}
    assert subject.post("/v3/kv/range", body, Authorization=f"Bearer {token}").status == 200
    assert subject.post("/v3/kv/range", body, Grpc_Metadata_Token=token).status == 200
    assert subject.post("/v3/kv/range", body, Token=token).json()["message"] == NOBODY.text


def test_a_new_password_and_deletion_end_tokens(root: As) -> None:
    user = root.user_with((READ, b"a", b""))
    other = user.log_in(user.name, user.name)
    user.do(rpc.RangeRequest(key=b"a"))
    root.do(rpc.AuthUserChangePasswordRequest(name=user.name, password="new"))
    assert user.call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN
    assert other.call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN
    again = user.log_in(user.name, "new")
    again.do(rpc.RangeRequest(key=b"a"))
    root.do(rpc.AuthUserDeleteRequest(name=user.name))
    assert again.call(rpc.RangeRequest(key=b"a")) == BAD_TOKEN


def test_other_changes_do_not_end_tokens(root: As) -> None:
    user = root.user_with((READ, b"a", b""))
    root.add_role((READ, b"q", b""))
    root.add_user()
    user.do(rpc.RangeRequest(key=b"a"))


# --- who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", ROOT_ONLY, ids=lambda one: type(one).__name__)
def test_what_root_alone_may_do(root: As, nobody: As, request_: Any) -> None:
    if not root.subject.like(3, 6) and isinstance(request_, (rpc.CompactionRequest, rpc.AlarmRequest)):
        pytest.skip("an etcd that lets everybody do this")
    user = root.user_with((BOTH, b"\0", b"\0"))
    assert user.call(request_) == DENIED
    assert nobody.call(request_) == NOBODY


def test_who_may_ask_whether_auth_is_on(root: As, nobody: As) -> None:
    """Up to 3.6 root alone; since 3.7 everybody, with a token or without one."""
    request = rpc.AuthStatusRequest()
    user = root.user_with((BOTH, b"\0", b"\0"))
    answer = root.do(request)
    assert (answer.enabled, answer.authRevision > 0) == (True, True)
    asked = [user.call(request), nobody.call(request)]
    assert asked == ([answer, answer] if root.subject.like(3, 7) else [DENIED, NOBODY])
    assert As(root.subject, "bad.1").call(request) == BAD_TOKEN


def test_a_second_root(root: As) -> None:
    user = root.log_in(root.add_user("root", name=(name := new_name())), name)
    user.do(rpc.AuthUserListRequest())
    user.do(rpc.PutRequest(key=b"anything", prev_kv=True))
    root.do(rpc.AuthUserRevokeRoleRequest(name=name, role="root"))
    assert user.call(rpc.AuthUserListRequest()) == DENIED


@pytest.mark.parametrize(
    "request_",
    [
        rpc.LeaseGrantRequest(TTL=60),
        rpc.LeaseTimeToLiveRequest(ID=1),
        rpc.StatusRequest(),
        rpc.AlarmRequest(),
        rpc.MemberListRequest(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_everybody_with_a_token_may_do(newest: As, nobody: As, request_: Any) -> None:
    user = newest.user_with()
    assert not isinstance(user.call(request_), Failure)
    assert nobody.call(request_) == NOBODY
    assert As(newest.subject, "bad.1").call(request_) == BAD_TOKEN


def test_a_user_may_look_at_himself_and_his_roles(root: As, nobody: As) -> None:
    role = root.add_role((READ, b"a", b""))
    name = root.add_user(role)
    user = root.log_in(name, name)
    assert user.do(rpc.AuthUserGetRequest(name=name)).roles == [role]
    assert len(user.do(rpc.AuthRoleGetRequest(role=role)).perm) == 1
    assert user.call(rpc.AuthUserGetRequest(name="root")) == DENIED
    assert user.call(rpc.AuthUserGetRequest(name=new_name())) == DENIED
    assert user.call(rpc.AuthRoleGetRequest(role=root.add_role())) == DENIED
    assert nobody.call(rpc.AuthUserGetRequest(name=name)) == NOBODY
    assert nobody.call(rpc.AuthRoleGetRequest(role=role)) == NOBODY
    assert nobody.call(rpc.AuthUserGetRequest()) == USER_NOT_FOUND


def test_health_is_nobodys_secret(root: As) -> None:
    assert root.subject.request("GET", "/health").status == 200
    assert root.subject.request("GET", "/version").status == 200
