# SPDX-License-Identifier: Apache-2.0
"""The table of methods: their gRPC paths, HTTP routes and messages.

Law: a method exists for gRPC, the gateway, the client and the metrics because it is in this table; none of them keeps a
list of its own. The messages and the kind of streaming come from our .proto files. The HTTP routes are written here,
because the .proto files do not have them.
"""

from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from lessor.api.proto import election_pb2, following_pb2, health_pb2, leases_pb2, lock_pb2, rpc_pb2

# By "<Service>/<Method>": routes below the /v3 prefix, first the one to show to people.
_ROUTES: dict[str, tuple[str, ...]] = {
    "KV/Range": ("/kv/range",),
    "KV/Put": ("/kv/put",),
    "KV/DeleteRange": ("/kv/deleterange",),
    "KV/Txn": ("/kv/txn",),
    "KV/Compact": ("/kv/compaction",),
    "Watch/Watch": ("/watch",),
    "Lease/LeaseGrant": ("/lease/grant",),
    "Lease/LeaseRevoke": ("/lease/revoke", "/kv/lease/revoke"),
    "Lease/LeaseKeepAlive": ("/lease/keepalive",),
    "Lease/LeaseTimeToLive": ("/lease/timetolive", "/kv/lease/timetolive"),
    "Lease/LeaseLeases": ("/lease/leases", "/kv/lease/leases"),
    "Cluster/MemberAdd": ("/cluster/member/add",),
    "Cluster/MemberRemove": ("/cluster/member/remove",),
    "Cluster/MemberUpdate": ("/cluster/member/update",),
    "Cluster/MemberList": ("/cluster/member/list",),
    "Cluster/MemberPromote": ("/cluster/member/promote",),
    "Maintenance/Alarm": ("/maintenance/alarm",),
    "Maintenance/Status": ("/maintenance/status",),
    "Maintenance/Defragment": ("/maintenance/defragment",),
    "Maintenance/Hash": ("/maintenance/hash",),
    "Maintenance/HashKV": ("/maintenance/hashkv",),
    "Maintenance/Snapshot": ("/maintenance/snapshot",),
    "Maintenance/MoveLeader": ("/maintenance/transfer-leadership",),
    "Maintenance/Downgrade": ("/maintenance/downgrade",),
    "Auth/AuthEnable": ("/auth/enable",),
    "Auth/AuthDisable": ("/auth/disable",),
    "Auth/AuthStatus": ("/auth/status",),
    "Auth/Authenticate": ("/auth/authenticate",),
    "Auth/UserAdd": ("/auth/user/add",),
    "Auth/UserGet": ("/auth/user/get",),
    "Auth/UserList": ("/auth/user/list",),
    "Auth/UserDelete": ("/auth/user/delete",),
    "Auth/UserChangePassword": ("/auth/user/changepw",),
    "Auth/UserGrantRole": ("/auth/user/grant",),
    "Auth/UserRevokeRole": ("/auth/user/revoke",),
    "Auth/RoleAdd": ("/auth/role/add",),
    "Auth/RoleGet": ("/auth/role/get",),
    "Auth/RoleList": ("/auth/role/list",),
    "Auth/RoleDelete": ("/auth/role/delete",),
    "Auth/RoleGrantPermission": ("/auth/role/grant",),
    "Auth/RoleRevokePermission": ("/auth/role/revoke",),
    "Lock/Lock": ("/lock/lock",),
    "Lock/Unlock": ("/lock/unlock",),
    "Election/Campaign": ("/election/campaign",),
    "Election/Proclaim": ("/election/proclaim",),
    "Election/Leader": ("/election/leader",),
    "Election/Observe": ("/election/observe",),
    "Election/Resign": ("/election/resign",),
    "Leases/List": ("/lessor/leases/list",),
    "Leases/Watch": ("/lessor/leases/watch",),
}

# The prefixes of all routes. Clients of etcd 3.3 use /v3beta, and etcd still accepts it.
ROUTE_PREFIXES = ("/v3", "/v3beta")


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One remote procedure. Compared by identity: the table has exactly one object for each."""

    path: str  # the gRPC path, "/etcdserverpb.Lease/LeaseGrant"
    service: str  # "etcdserverpb.Lease"
    name: str  # "LeaseGrant"
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    routes: tuple[str, ...]  # without prefix, "/lease/grant"

    @property
    def unary(self) -> bool:
        return not (self.client_streaming or self.server_streaming)


def _methods_of(file: FileDescriptor) -> list[Method]:
    methods = []
    for service in file.services_by_name.values():
        for rpc in service.methods:
            # types-protobuf does not know these two properties of a method.
            kind: Any = rpc
            methods.append(
                Method(
                    path=f"/{service.full_name}/{rpc.name}",
                    service=service.full_name,
                    name=rpc.name,
                    request=message_factory.GetMessageClass(rpc.input_type),
                    response=message_factory.GetMessageClass(rpc.output_type),
                    client_streaming=kind.client_streaming,
                    server_streaming=kind.server_streaming,
                    routes=_ROUTES.get(f"{service.name}/{rpc.name}", ()),
                )
            )
    return methods


METHODS: tuple[Method, ...] = tuple(
    method
    for module in (rpc_pb2, lock_pb2, election_pb2, leases_pb2, following_pb2, health_pb2)
    for method in _methods_of(module.DESCRIPTOR)
)
BY_PATH: dict[str, Method] = {method.path: method for method in METHODS}
BY_ROUTE: dict[str, Method] = {
    prefix + route: method for method in METHODS for route in method.routes for prefix in ROUTE_PREFIXES
}
SERVICES: frozenset[str] = frozenset(method.service for method in METHODS)
