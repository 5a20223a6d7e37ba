# SPDX-License-Identifier: Apache-2.0
"""Looking after servers: maintenance, cluster and auth, as methods.

Laws
- As in `_calls.py`: a method is one call, and returns the server's reply as it came.
- The calls go to the server that the client is connected to. For a call about one server (status, defragment, alarms
  of a member) use a client with that one endpoint.
"""

from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.api.proto import auth_pb2 as auth
from lessor.api.proto import rpc_pb2 as rpc
from lessor.client._arguments import checked
from lessor.client._asker import DEFAULT, Timeout
from lessor.client._caller import Caller
from lessor.client._requests import Bytes, key_range

M = TypeVar("M", bound=Message)


class _Service:
    """The methods of one service of the API."""

    _name = ""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def _ask(self, name: str, request: Message, reply: type[M], timeout_s: Timeout) -> M:
        return await self._caller.ask(BY_PATH[f"/etcdserverpb.{self._name}/{name}"], request, reply, timeout_s)


@checked
class AsyncMaintenance(_Service):
    """The calls that keep a server well. `client.snapshot()` is not among them, because it is a stream."""

    _name = "Maintenance"

    async def status(self, *, timeout_s: Timeout = DEFAULT) -> rpc.StatusResponse:
        """Version, size and leader of this server, and its errors."""
        request = rpc.StatusRequest()
        return await self._ask("Status", request, rpc.StatusResponse, timeout_s)

    async def alarms(self, *, timeout_s: Timeout = DEFAULT) -> rpc.AlarmResponse:
        """The alarms of all members."""
        request = rpc.AlarmRequest(action=rpc.AlarmRequest.GET)
        return await self._ask("Alarm", request, rpc.AlarmResponse, timeout_s)

    async def alarm_activate(
        self, member_id: int, alarm: "rpc.AlarmType", *, timeout_s: Timeout = DEFAULT
    ) -> rpc.AlarmResponse:
        """Raises an alarm, as a server does by itself when it has no space or is corrupt."""
        request = rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, memberID=member_id, alarm=alarm)
        return await self._ask("Alarm", request, rpc.AlarmResponse, timeout_s)

    async def alarm_disarm(
        self, member_id: int, alarm: "rpc.AlarmType", *, timeout_s: Timeout = DEFAULT
    ) -> rpc.AlarmResponse:
        """Takes an alarm back; `alarms` has the member's id. Nothing happens when the alarm is not raised."""
        request = rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=member_id, alarm=alarm)
        return await self._ask("Alarm", request, rpc.AlarmResponse, timeout_s)

    async def defragment(self, *, timeout_s: Timeout = DEFAULT) -> rpc.DefragmentResponse:
        """Gives the space of deleted data back to the file system. Calls wait meanwhile; allow a long `timeout_s`."""
        request = rpc.DefragmentRequest()
        return await self._ask("Defragment", request, rpc.DefragmentResponse, timeout_s)

    async def hash_kv(self, revision: int = 0, *, timeout_s: Timeout = DEFAULT) -> rpc.HashKVResponse:
        """A number that is equal for equal data up to `revision` (0: now), on servers of one kind."""
        request = rpc.HashKVRequest(revision=revision)
        return await self._ask("HashKV", request, rpc.HashKVResponse, timeout_s)

    async def hash(self, *, timeout_s: Timeout = DEFAULT) -> rpc.HashResponse:
        """A number over the whole store, as this server keeps it."""
        request = rpc.HashRequest()
        return await self._ask("Hash", request, rpc.HashResponse, timeout_s)

    async def move_leader(self, target_id: int, *, timeout_s: Timeout = DEFAULT) -> rpc.MoveLeaderResponse:
        """Makes another member the leader. Only the leader carries it out."""
        request = rpc.MoveLeaderRequest(targetID=target_id)
        return await self._ask("MoveLeader", request, rpc.MoveLeaderResponse, timeout_s)

    async def downgrade(
        self, action: "rpc.DowngradeRequest.DowngradeAction", version: str = "", *, timeout_s: Timeout = DEFAULT
    ) -> rpc.DowngradeResponse:
        """Validates, enables or cancels a downgrade of the cluster to `version` (MAJOR.MINOR)."""
        request = rpc.DowngradeRequest(action=action, version=version)
        return await self._ask("Downgrade", request, rpc.DowngradeResponse, timeout_s)


@checked
class AsyncCluster(_Service):
    """The members of the cluster."""

    _name = "Cluster"

    async def member_list(self, *, linearizable: bool = True, timeout_s: Timeout = DEFAULT) -> rpc.MemberListResponse:
        """The members. `linearizable`: as the leader knows them; otherwise as this member remembers them."""
        request = rpc.MemberListRequest(linearizable=linearizable)
        return await self._ask("MemberList", request, rpc.MemberListResponse, timeout_s)

    async def member_add(
        self, peer_urls: Sequence[str], *, learner: bool = False, timeout_s: Timeout = DEFAULT
    ) -> rpc.MemberAddResponse:
        """Adds a member that will listen on `peer_urls`; a learner does not vote."""
        request = rpc.MemberAddRequest(peerURLs=peer_urls, isLearner=learner)
        return await self._ask("MemberAdd", request, rpc.MemberAddResponse, timeout_s)

    async def member_remove(self, member_id: int, *, timeout_s: Timeout = DEFAULT) -> rpc.MemberRemoveResponse:
        """Removes a member from the cluster."""
        request = rpc.MemberRemoveRequest(ID=member_id)
        return await self._ask("MemberRemove", request, rpc.MemberRemoveResponse, timeout_s)

    async def member_update(
        self, member_id: int, peer_urls: Sequence[str], *, timeout_s: Timeout = DEFAULT
    ) -> rpc.MemberUpdateResponse:
        """Changes where a member listens for its peers."""
        request = rpc.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
        return await self._ask("MemberUpdate", request, rpc.MemberUpdateResponse, timeout_s)

    async def member_promote(self, member_id: int, *, timeout_s: Timeout = DEFAULT) -> rpc.MemberPromoteResponse:
        """Lets a learner vote."""
        request = rpc.MemberPromoteRequest(ID=member_id)
        return await self._ask("MemberPromote", request, rpc.MemberPromoteResponse, timeout_s)


@checked
class AsyncAuth(_Service):
    """Users, roles and permissions. Passwords go over the wire as they are: use TLS."""

    _name = "Auth"

    async def enable(self, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthEnableResponse:
        """Switches auth on: from now on each call needs a user.

        FailedPrecondition: there is no user root with the role root.
        """
        request = rpc.AuthEnableRequest()
        return await self._ask("AuthEnable", request, rpc.AuthEnableResponse, timeout_s)

    async def disable(self, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthDisableResponse:
        """Switches auth off: everybody may do everything again."""
        request = rpc.AuthDisableRequest()
        return await self._ask("AuthDisable", request, rpc.AuthDisableResponse, timeout_s)

    async def status(self, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthStatusResponse:
        """Whether auth is on, and its revision."""
        request = rpc.AuthStatusRequest()
        return await self._ask("AuthStatus", request, rpc.AuthStatusResponse, timeout_s)

    async def user_add(
        self, name: str, password: str = "", *, no_password: bool = False, timeout_s: Timeout = DEFAULT
    ) -> rpc.AuthUserAddResponse:
        """Adds a user. `no_password`: one that can only log in with a client certificate."""
        request = rpc.AuthUserAddRequest(
            name=name, password=password, options=auth.UserAddOptions(no_password=no_password)
        )
        return await self._ask("UserAdd", request, rpc.AuthUserAddResponse, timeout_s)

    async def user_get(self, name: str, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthUserGetResponse:
        """The roles of a user."""
        request = rpc.AuthUserGetRequest(name=name)
        return await self._ask("UserGet", request, rpc.AuthUserGetResponse, timeout_s)

    async def user_list(self, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthUserListResponse:
        """The names of all users."""
        request = rpc.AuthUserListRequest()
        return await self._ask("UserList", request, rpc.AuthUserListResponse, timeout_s)

    async def user_delete(self, name: str, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthUserDeleteResponse:
        """Deletes a user; its tokens become invalid."""
        request = rpc.AuthUserDeleteRequest(name=name)
        return await self._ask("UserDelete", request, rpc.AuthUserDeleteResponse, timeout_s)

    async def user_change_password(
        self, name: str, password: str, *, timeout_s: Timeout = DEFAULT
    ) -> rpc.AuthUserChangePasswordResponse:
        """Changes a password; tokens that were got with the old one become invalid."""
        request = rpc.AuthUserChangePasswordRequest(name=name, password=password)
        return await self._ask("UserChangePassword", request, rpc.AuthUserChangePasswordResponse, timeout_s)

    async def user_grant_role(
        self, user: str, role: str, *, timeout_s: Timeout = DEFAULT
    ) -> rpc.AuthUserGrantRoleResponse:
        """Gives a user a role."""
        request = rpc.AuthUserGrantRoleRequest(user=user, role=role)
        return await self._ask("UserGrantRole", request, rpc.AuthUserGrantRoleResponse, timeout_s)

    async def user_revoke_role(
        self, user: str, role: str, *, timeout_s: Timeout = DEFAULT
    ) -> rpc.AuthUserRevokeRoleResponse:
        """Takes a role from a user."""
        request = rpc.AuthUserRevokeRoleRequest(name=user, role=role)
        return await self._ask("UserRevokeRole", request, rpc.AuthUserRevokeRoleResponse, timeout_s)

    async def role_add(self, role: str, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthRoleAddResponse:
        """Adds a role, without permissions."""
        request = rpc.AuthRoleAddRequest(name=role)
        return await self._ask("RoleAdd", request, rpc.AuthRoleAddResponse, timeout_s)

    async def role_get(self, role: str, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthRoleGetResponse:
        """The permissions of a role."""
        request = rpc.AuthRoleGetRequest(role=role)
        return await self._ask("RoleGet", request, rpc.AuthRoleGetResponse, timeout_s)

    async def role_list(self, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthRoleListResponse:
        """The names of all roles."""
        request = rpc.AuthRoleListRequest()
        return await self._ask("RoleList", request, rpc.AuthRoleListResponse, timeout_s)

    async def role_delete(self, role: str, *, timeout_s: Timeout = DEFAULT) -> rpc.AuthRoleDeleteResponse:
        """Deletes a role, and takes it from the users that have it."""
        request = rpc.AuthRoleDeleteRequest(role=role)
        return await self._ask("RoleDelete", request, rpc.AuthRoleDeleteResponse, timeout_s)

    async def role_grant_permission(
        self,
        role: str,
        permission: "auth.Permission.Type",
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        timeout_s: Timeout = DEFAULT,
    ) -> rpc.AuthRoleGrantPermissionResponse:
        """Lets a role READ, WRITE or READWRITE (`lessor.client.Permission.READ` ...) a key or range."""
        first, end = key_range(key, range_end, prefix)
        given = auth.Permission(permType=permission, key=first, range_end=end)
        request = rpc.AuthRoleGrantPermissionRequest(name=role, perm=given)
        return await self._ask("RoleGrantPermission", request, rpc.AuthRoleGrantPermissionResponse, timeout_s)

    async def role_revoke_permission(
        self,
        role: str,
        key: Bytes,
        *,
        range_end: Bytes = b"",
        prefix: bool = False,
        timeout_s: Timeout = DEFAULT,
    ) -> rpc.AuthRoleRevokePermissionResponse:
        """Takes a permission back; the range must be exactly the one that was granted."""
        first, end = key_range(key, range_end, prefix)
        request = rpc.AuthRoleRevokePermissionRequest(role=role, key=first, range_end=end)
        return await self._ask("RoleRevokePermission", request, rpc.AuthRoleRevokePermissionResponse, timeout_s)
