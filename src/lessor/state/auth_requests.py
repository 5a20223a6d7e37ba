# SPDX-License-Identifier: Apache-2.0
"""The requests about auth: from the message to `Auth`, and the reply.

Laws
- A handler returns the reply's fields after the header, or raises `EtcdError` with nothing done.
- The password of a request is never read: before the request comes here, the server puts the hash, in base64, into
  `hashedPassword` and empties `password`.

Does not do: Authenticate, which changes nothing here; the server answers it, because it has the tokens.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from lessor.api.proto import auth_pb2, rpc_pb2
from lessor.base import errors
from lessor.state.auth import Auth
from lessor.state.encode import nested
from lessor.state.journal import PermissionRow


def handlers(auth: Auth) -> dict[type[Message], Callable[[Any], bytes]]:
    """The handler of each type of request."""
    requests = AuthRequests(auth)
    return {
        rpc_pb2.AuthEnableRequest: requests.enable,
        rpc_pb2.AuthDisableRequest: requests.disable,
        rpc_pb2.AuthStatusRequest: requests.status,
        rpc_pb2.AuthUserAddRequest: requests.user_add,
        rpc_pb2.AuthUserGetRequest: requests.user_get,
        rpc_pb2.AuthUserListRequest: requests.user_list,
        rpc_pb2.AuthUserDeleteRequest: requests.user_delete,
        rpc_pb2.AuthUserChangePasswordRequest: requests.user_change_password,
        rpc_pb2.AuthUserGrantRoleRequest: requests.user_grant_role,
        rpc_pb2.AuthUserRevokeRoleRequest: requests.user_revoke_role,
        rpc_pb2.AuthRoleAddRequest: requests.role_add,
        rpc_pb2.AuthRoleGetRequest: requests.role_get,
        rpc_pb2.AuthRoleListRequest: requests.role_list,
        rpc_pb2.AuthRoleDeleteRequest: requests.role_delete,
        rpc_pb2.AuthRoleGrantPermissionRequest: requests.role_grant_permission,
        rpc_pb2.AuthRoleRevokePermissionRequest: requests.role_revoke_permission,
    }


class AuthRequests:
    """One method per request."""

    __slots__ = ("_auth",)

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    def enable(self, request: rpc_pb2.AuthEnableRequest) -> bytes:
        self._auth.enable()
        return b""

    def disable(self, request: rpc_pb2.AuthDisableRequest) -> bytes:
        self._auth.disable()
        return b""

    def status(self, request: rpc_pb2.AuthStatusRequest) -> bytes:
        auth = self._auth
        return rpc_pb2.AuthStatusResponse(enabled=auth.enabled, authRevision=auth.revision).SerializeToString()

    def user_add(self, request: rpc_pb2.AuthUserAddRequest) -> bytes:
        no_password = request.options.no_password
        self._auth.add_user(request.name, b"" if no_password else _hash_of(request), no_password=no_password)
        return b""

    def user_get(self, request: rpc_pb2.AuthUserGetRequest) -> bytes:
        return _names(self._auth.user(request.name).roles)

    def user_list(self, request: rpc_pb2.AuthUserListRequest) -> bytes:
        return _names(sorted(self._auth.users))

    def user_delete(self, request: rpc_pb2.AuthUserDeleteRequest) -> bytes:
        self._auth.delete_user(request.name)
        return b""

    def user_change_password(self, request: rpc_pb2.AuthUserChangePasswordRequest) -> bytes:
        no_password = self._auth.user(request.name).no_password
        self._auth.change_password(request.name, b"" if no_password else _hash_of(request))
        return b""

    def user_grant_role(self, request: rpc_pb2.AuthUserGrantRoleRequest) -> bytes:
        self._auth.grant_role(request.user, request.role)
        return b""

    def user_revoke_role(self, request: rpc_pb2.AuthUserRevokeRoleRequest) -> bytes:
        self._auth.revoke_role(request.name, request.role)
        return b""

    def role_add(self, request: rpc_pb2.AuthRoleAddRequest) -> bytes:
        self._auth.add_role(request.name)
        return b""

    def role_get(self, request: rpc_pb2.AuthRoleGetRequest) -> bytes:
        shown = [_permission(row) for row in self._auth.permissions_of(request.role)]
        return rpc_pb2.AuthRoleGetResponse(perm=shown).SerializeToString()

    def role_list(self, request: rpc_pb2.AuthRoleListRequest) -> bytes:
        return _names(sorted(self._auth.roles))

    def role_delete(self, request: rpc_pb2.AuthRoleDeleteRequest) -> bytes:
        self._auth.delete_role(request.role)
        return b""

    def role_grant_permission(self, request: rpc_pb2.AuthRoleGrantPermissionRequest) -> bytes:
        if not request.HasField("perm"):
            raise errors.PERMISSION_NOT_GIVEN.error()
        given = request.perm
        self._auth.grant_permission(request.name, (given.key, given.range_end, int(given.permType)))
        return b""

    def role_revoke_permission(self, request: rpc_pb2.AuthRoleRevokePermissionRequest) -> bytes:
        self._auth.revoke_permission(request.role, request.key, request.range_end)
        return b""


def _hash_of(request: rpc_pb2.AuthUserAddRequest | rpc_pb2.AuthUserChangePasswordRequest) -> bytes:
    """The hash that the server, or a client that hashes itself, has put into the request; b"" when there is none."""
    try:
        return base64.b64decode(request.hashedPassword, validate=True)
    except (binascii.Error, ValueError):
        raise errors.NO_PASSWORD_USER.error() from None  # etcd's answer to malformed base64


def _names(names: Iterable[str]) -> bytes:
    """Field 2 of the replies to UserGet, UserList and RoleList."""
    return b"".join([nested(b"\x12", name.encode()) for name in names])


def _permission(row: PermissionRow) -> auth_pb2.Permission:
    key, range_end, kind = row
    permission = auth_pb2.Permission(key=key, range_end=range_end)
    permission.permType = kind  # type: ignore[assignment]  # an open enum: any number is kept
    return permission
