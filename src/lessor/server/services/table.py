# SPDX-License-Identifier: Apache-2.0
"""The handler of each method.

Laws
- Nothing is decided here: state/machine.py decides what a request means. A handler adds the checks that belong to the
  server, of sizes for instance.
- There is no state here but the parts that the services of a server share.
- A method that is absent from the tables below answers UNIMPLEMENTED.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import health_pb2
from lessor.base import errors
from lessor.base.errors import Code, EtcdError
from lessor.server.loop.call import StreamCall, StreamFactory, UnaryHandler, WaitingHandler
from lessor.server.loop.core import Core, Handlers
from lessor.server.loop.turn import Turn
from lessor.server.options import Options
from lessor.server.services import elections, leases, maintenance, members
from lessor.server.services.auth import Auth
from lessor.server.services.followers import FollowStream
from lessor.server.services.keepalive import Renewals
from lessor.server.services.locks import Locks
from lessor.server.services.passwords import Passwords
from lessor.server.services.range_stream import RangeStreamCall
from lessor.server.services.snapshot import SnapshotStream
from lessor.server.services.snapshots import Snapshots
from lessor.server.services.tokens import Tokens
from lessor.server.services.waiting_lines import WaitingLines
from lessor.server.services.watch import Watches
from lessor.state.machine import Reply, StateMachine

# The calls that look at neither keys nor leases: they do not wait while a write takes effect in many steps.
_APART: Final = (
    "/grpc.health.v1.Health/Check",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Defragment",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/AuthStatus",
)


def apply(core: Core, request: Message) -> Reply:
    """Applies a request whose size needs no check. A reply that takes long to make comes in pieces."""
    return core.machine.apply_in_pieces(request, core.turn.now_s())


def apply_sized(core: Core, request: Message) -> Reply:
    """Applies a request that carries keys and values, within --max-request-bytes. The same otherwise."""
    if request.ByteSize() > core.options.max_request_bytes:
        core.machine.check_form(request)  # as in etcd, errors in the request itself come first
        raise errors.REQUEST_TOO_LARGE.error()
    return core.machine.apply_in_pieces(request, core.turn.now_s())


def health_check(_core: Core, request: Any) -> bytes:
    if request.service:
        raise EtcdError(Code.NOT_FOUND, "unknown service")
    kinds = health_pb2.HealthCheckResponse
    return kinds(status=kinds.SERVING).SerializeToString()


class HealthWatch:
    """grpc.health.v1.Health/Watch: sends the status once. It never changes: a stop of the server ends the stream."""

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

    def on_over(self) -> None: ...


class Services:
    """The parts in which the services of one server keep their state, and the table of their handlers."""

    def __init__(
        self,
        options: Options,
        machine: StateMachine,
        turn: Turn,
        tokens: Tokens,
        passwords: Passwords,
        snapshots: Snapshots,
    ) -> None:
        self.passwords = passwords
        self.snapshots = snapshots
        self.lines = WaitingLines(machine, turn, options.max_request_bytes)
        self._auth = Auth(tokens, passwords)
        self._locks = Locks(self.lines)
        self._elections = elections.Elections(self.lines)
        self._downgrades = maintenance.Downgrades()
        self._renewals = Renewals()
        self._watches = Watches(turn)

    def pass_on(self, core: Core) -> None:
        """Another server is to lead, and `core` passes calls on to it already: so do keepalive streams here.

        Watches, locks and elections, and long replies go on as they are: what they show, the log will bring.
        """
        self.lines.pass_on()
        self._renewals.pass_on(core.stream_handlers[BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]])
        for watch in list(core.machine.lease_events.watchers):
            watch.pass_on()

    def handlers(self) -> Handlers:
        apart = frozenset(BY_PATH[path] for path in _APART)
        return Handlers(_by_method(self._unary()), _by_method(self._waiting()), _by_method(self._streams()), apart)

    def _unary(self) -> dict[str, UnaryHandler]:
        return {
            "/etcdserverpb.KV/Range": apply,
            "/etcdserverpb.KV/Put": apply_sized,
            "/etcdserverpb.KV/DeleteRange": apply_sized,
            "/etcdserverpb.KV/Txn": apply_sized,
            "/etcdserverpb.KV/Compact": apply,
            "/etcdserverpb.Lease/LeaseGrant": apply,
            "/etcdserverpb.Lease/LeaseRevoke": apply,
            "/etcdserverpb.Lease/LeaseTimeToLive": apply,
            "/etcdserverpb.Lease/LeaseLeases": apply,
            "/etcdserverpb.Maintenance/Alarm": apply,
            "/etcdserverpb.Maintenance/Status": self._downgrades.status,
            "/etcdserverpb.Maintenance/MoveLeader": maintenance.move_leader,
            "/etcdserverpb.Maintenance/Downgrade": self._downgrades.downgrade,
            "/etcdserverpb.Cluster/MemberList": members.member_list,
            "/etcdserverpb.Cluster/MemberAdd": members.member_add,
            "/etcdserverpb.Cluster/MemberRemove": members.member_remove,
            "/etcdserverpb.Cluster/MemberUpdate": members.member_update,
            "/etcdserverpb.Cluster/MemberPromote": members.member_promote,
            "/etcdserverpb.Auth/AuthEnable": self._auth.manage,
            "/etcdserverpb.Auth/AuthDisable": self._auth.manage,
            "/etcdserverpb.Auth/AuthStatus": self._auth.manage,
            "/etcdserverpb.Auth/UserGet": self._auth.manage,
            "/etcdserverpb.Auth/UserList": self._auth.manage,
            "/etcdserverpb.Auth/UserDelete": self._auth.manage,
            "/etcdserverpb.Auth/UserGrantRole": self._auth.manage,
            "/etcdserverpb.Auth/UserRevokeRole": self._auth.manage,
            "/etcdserverpb.Auth/RoleAdd": self._auth.manage,
            "/etcdserverpb.Auth/RoleGet": self._auth.manage,
            "/etcdserverpb.Auth/RoleList": self._auth.manage,
            "/etcdserverpb.Auth/RoleDelete": self._auth.manage,
            "/etcdserverpb.Auth/RoleGrantPermission": self._auth.manage,
            "/etcdserverpb.Auth/RoleRevokePermission": self._auth.manage,
            "/grpc.health.v1.Health/Check": health_check,
            "/v3lockpb.Lock/Unlock": self._locks.unlock,
            "/v3electionpb.Election/Proclaim": self._elections.proclaim,
            "/v3electionpb.Election/Leader": self._elections.leader,
            "/v3electionpb.Election/Resign": self._elections.resign,
        }

    def _waiting(self) -> dict[str, WaitingHandler]:
        return {
            "/v3lockpb.Lock/Lock": self._locks.lock,
            "/v3electionpb.Election/Campaign": self._elections.campaign,
            "/lessorpb.Leases/List": leases.list_leases,
            "/etcdserverpb.Auth/Authenticate": self._auth.authenticate,
            "/etcdserverpb.Auth/UserAdd": self._auth.add_user,
            "/etcdserverpb.Auth/UserChangePassword": self._auth.change_password,
            "/etcdserverpb.Maintenance/Hash": maintenance.hash_all,
            "/etcdserverpb.Maintenance/HashKV": maintenance.hash_kv,
            "/etcdserverpb.Maintenance/Defragment": maintenance.defragment,
        }

    def _streams(self) -> dict[str, StreamFactory]:
        return {
            "/etcdserverpb.KV/RangeStream": RangeStreamCall,
            "/etcdserverpb.Lease/LeaseKeepAlive": self._renewals.open,
            "/etcdserverpb.Watch/Watch": self._watches.open,
            "/etcdserverpb.Maintenance/Snapshot": self._open_snapshot,
            "/grpc.health.v1.Health/Watch": HealthWatch,
            "/v3electionpb.Election/Observe": self._elections.observe,
            "/lessorpb.Leases/Watch": leases.LeaseWatch,
            "/lessorpb.Following/Follow": FollowStream,
        }

    def _open_snapshot(self, core: Core, call: StreamCall) -> SnapshotStream:
        return SnapshotStream(core, call, self.snapshots)


def _by_method(table: Mapping[str, Callable[..., Any]]) -> dict[Method, Callable[..., Any]]:
    return {BY_PATH[path]: handler for path, handler in table.items()}
