# SPDX-License-Identifier: Apache-2.0
"""Which method is served by what: the checks that belong to the server, then the state machine.

Law: no state here. What a call decides lives in state/machine.py; what a stream remembers lives in keepalive.py and
watch.py. A method that is absent from the tables below answers UNIMPLEMENTED.
"""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError, Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import health_pb2
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.core import Core, StreamCall, StreamFactory, UnaryHandler, WaitingHandler
from lessor.server.services import auth, elections, leases, locks, maintenance, members
from lessor.server.services.keepalive import KeepAlive
from lessor.server.services.snapshot import SnapshotStream
from lessor.server.services.watch import WatchStream


def small(core: Core, request: Message) -> bytes:
    """Applies a request whose size needs no check."""
    return core.machine.apply_encoded(request, core.turn.now_s())


def long(core: Core, request: Message) -> bytes | Iterator[bytes]:
    """Applies a request whose reply may take long to make."""
    return core.machine.apply_in_pieces(request, core.turn.now_s())


def sized(core: Core, request: Message) -> bytes:
    """Applies a request that carries keys and values, within --max-request-bytes."""
    if request.ByteSize() > core.options.max_request_bytes:
        core.machine.check_form(request)  # as in etcd, what is wrong by itself is told first
        raise errors.REQUEST_TOO_LARGE.error()
    return core.machine.apply_encoded(request, core.turn.now_s())


def health_check(_core: Core, request: Any) -> bytes:
    if request.service:
        raise EtcdError(Code.NOT_FOUND, "unknown service")
    kinds = health_pb2.HealthCheckResponse
    return kinds(status=kinds.SERVING).SerializeToString()


class HealthWatch:
    """grpc.health.v1.Health/Watch: tells the status once; it changes only when the server goes, with the connection."""

    def __init__(self, _core: Core, call: StreamCall) -> None:
        self._call = call

    def on_messages(self, messages: list[bytes]) -> None:
        try:
            asked = health_pb2.HealthCheckRequest.FromString(messages[0]).service
        except DecodeError:
            raise errors.MALFORMED_IN_STREAM.error() from None
        kinds = health_pb2.HealthCheckResponse
        status = kinds(status=kinds.SERVICE_UNKNOWN if asked else kinds.SERVING)
        self._call.send([status.SerializeToString()])

    def on_requests_end(self) -> None: ...

    def on_gone(self) -> None: ...


def _by_method(table: dict[str, Any]) -> dict[Method, Any]:
    return {BY_PATH[path]: handler for path, handler in table.items()}


UNARY: dict[Method, UnaryHandler] = _by_method(
    {
        "/etcdserverpb.KV/Range": long,
        "/etcdserverpb.KV/Put": sized,
        "/etcdserverpb.KV/DeleteRange": sized,
        "/etcdserverpb.KV/Txn": sized,
        "/etcdserverpb.KV/Compact": small,
        "/etcdserverpb.Lease/LeaseGrant": small,
        "/etcdserverpb.Lease/LeaseRevoke": small,
        "/etcdserverpb.Lease/LeaseTimeToLive": long,
        "/etcdserverpb.Lease/LeaseLeases": long,
        "/etcdserverpb.Maintenance/Alarm": small,
        "/etcdserverpb.Maintenance/Status": maintenance.status,
        "/etcdserverpb.Maintenance/MoveLeader": maintenance.move_leader,
        "/etcdserverpb.Maintenance/Downgrade": maintenance.downgrade,
        "/etcdserverpb.Cluster/MemberList": members.member_list,
        "/etcdserverpb.Cluster/MemberAdd": members.member_add,
        "/etcdserverpb.Cluster/MemberRemove": members.member_remove,
        "/etcdserverpb.Cluster/MemberUpdate": members.member_update,
        "/etcdserverpb.Cluster/MemberPromote": members.member_promote,
        "/etcdserverpb.Auth/AuthEnable": auth.manage,
        "/etcdserverpb.Auth/AuthDisable": auth.manage,
        "/etcdserverpb.Auth/AuthStatus": auth.manage,
        "/etcdserverpb.Auth/UserGet": auth.manage,
        "/etcdserverpb.Auth/UserList": auth.manage,
        "/etcdserverpb.Auth/UserDelete": auth.manage,
        "/etcdserverpb.Auth/UserGrantRole": auth.manage,
        "/etcdserverpb.Auth/UserRevokeRole": auth.manage,
        "/etcdserverpb.Auth/RoleAdd": auth.manage,
        "/etcdserverpb.Auth/RoleGet": auth.manage,
        "/etcdserverpb.Auth/RoleList": auth.manage,
        "/etcdserverpb.Auth/RoleDelete": auth.manage,
        "/etcdserverpb.Auth/RoleGrantPermission": auth.manage,
        "/etcdserverpb.Auth/RoleRevokePermission": auth.manage,
        "/grpc.health.v1.Health/Check": health_check,
        "/v3lockpb.Lock/Unlock": locks.unlock,
        "/v3electionpb.Election/Proclaim": elections.proclaim,
        "/v3electionpb.Election/Leader": elections.leader,
        "/v3electionpb.Election/Resign": elections.resign,
    }
)
WAITING: dict[Method, WaitingHandler] = _by_method(
    {
        "/v3lockpb.Lock/Lock": locks.lock,
        "/v3electionpb.Election/Campaign": elections.campaign,
        "/lessorpb.Leases/List": leases.list_leases,
        "/etcdserverpb.Auth/Authenticate": auth.authenticate,
        "/etcdserverpb.Auth/UserAdd": auth.add_user,
        "/etcdserverpb.Auth/UserChangePassword": auth.change_password,
        "/etcdserverpb.Maintenance/Hash": maintenance.hash_all,
        "/etcdserverpb.Maintenance/HashKV": maintenance.hash_kv,
        "/etcdserverpb.Maintenance/Defragment": maintenance.defragment,
    }
)
STREAMS: dict[Method, StreamFactory] = _by_method(
    {
        "/etcdserverpb.Lease/LeaseKeepAlive": KeepAlive,
        "/etcdserverpb.Watch/Watch": WatchStream,
        "/etcdserverpb.Maintenance/Snapshot": SnapshotStream,
        "/grpc.health.v1.Health/Watch": HealthWatch,
        "/v3electionpb.Election/Observe": elections.Observe,
        "/lessorpb.Leases/Watch": leases.LeaseWatch,
    }
)
