# SPDX-License-Identifier: Apache-2.0
"""A client for etcd and everything that speaks its API, for threads (`Client`) and for asyncio (`AsyncClient`).

from lessor.client import Client

with Client("127.0.0.1:2379") as client, client.lease(30) as lease:
    client.put("service/a", "10.0.0.7:80", lease_id=lease.id)
    ...  # the lease is renewed in the background, and revoked at the end
"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lessor.api.proto.auth_pb2 import Permission
    from lessor.api.proto.leases_pb2 import LeaseEvent, LeaseListRequest
    from lessor.api.proto.mvcc_pb2 import Event, KeyValue
    from lessor.base.errors import Code
    from lessor.client import op
    from lessor.client._admin import AsyncAuth, AsyncCluster, AsyncMaintenance
    from lessor.client._async import AsyncClient
    from lessor.client._channel import Channel
    from lessor.client._connection import Call
    from lessor.client._discovery import AsyncDiscovery, AsyncRegistration, Change, Instance
    from lessor.client._election import AsyncElection, Leader
    from lessor.client._endpoint import Endpoint, parse_endpoint, parse_endpoints
    from lessor.client._enums import EventFilter, EventType, LeaseOrder, SortOrder, SortTarget
    from lessor.client._errors import (
        Blame,
        CallTimeout,
        ClientClosed,
        ClientError,
        Compacted,
        ConnectionLost,
        InvalidCertificate,
        InvalidEndpoint,
        LeaseLost,
        LoginFailed,
        NotLeader,
        OutcomeUnknown,
        ServerError,
        TooLarge,
        Trouble,
        UsedAfterFork,
        WatchCanceled,
        WrongLoop,
    )
    from lessor.client._lease import AsyncLease, AsyncLost
    from lessor.client._lock import AsyncLock
    from lessor.client._observed import Counters, Interceptor, Outgoing
    from lessor.client._requests import FROM_KEY, prefix_end
    from lessor.client._sync import (
        Auth,
        Client,
        Cluster,
        Discovery,
        Election,
        Lease,
        Lock,
        Lost,
        Maintenance,
        Registration,
        Txn,
        Watch,
    )
    from lessor.client._tls import tls_context
    from lessor.client._txn import AsyncTxn
    from lessor.client._watch import AsyncWatch
    from lessor.client.op import Key

__all__ = [
    "FROM_KEY",
    "AsyncAuth",
    "AsyncClient",
    "AsyncCluster",
    "AsyncDiscovery",
    "AsyncElection",
    "AsyncLease",
    "AsyncLock",
    "AsyncLost",
    "AsyncMaintenance",
    "AsyncRegistration",
    "AsyncTxn",
    "AsyncWatch",
    "Auth",
    "Blame",
    "Call",
    "CallTimeout",
    "Change",
    "Channel",
    "Client",
    "ClientClosed",
    "ClientError",
    "Cluster",
    "Code",
    "Compacted",
    "ConnectionLost",
    "Counters",
    "Discovery",
    "Election",
    "Endpoint",
    "Event",
    "EventFilter",
    "EventType",
    "Instance",
    "Interceptor",
    "InvalidCertificate",
    "InvalidEndpoint",
    "Key",
    "KeyValue",
    "Leader",
    "Lease",
    "LeaseEvent",
    "LeaseListRequest",
    "LeaseLost",
    "LeaseOrder",
    "Lock",
    "LoginFailed",
    "Lost",
    "Maintenance",
    "NotLeader",
    "OutcomeUnknown",
    "Outgoing",
    "Permission",
    "Registration",
    "ServerError",
    "SortOrder",
    "SortTarget",
    "TooLarge",
    "Trouble",
    "Txn",
    "UsedAfterFork",
    "Watch",
    "WatchCanceled",
    "WrongLoop",
    "op",
    "parse_endpoint",
    "parse_endpoints",
    "prefix_end",
    "run",
    "tls_context",
]

T = TypeVar("T")

if not TYPE_CHECKING:  # otherwise a name that does not exist would have a type

    def __getattr__(name: str) -> Any:
        """A name is imported when it is used first: a program that only asks once does not wait for asyncio."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import lessor.client.op
        from lessor.api.proto import auth_pb2, leases_pb2, mvcc_pb2
        from lessor.client import _endpoint, _enums, _errors, _observed, _requests

        if name == "op":
            return lessor.client.op
        homes = [_errors, _enums, _observed, _requests, _endpoint, lessor.client.op, mvcc_pb2, leases_pb2, auth_pb2]
        if name == "tls_context":
            from lessor.client import _tls

            homes = [_tls]
        elif not any(name in vars(home) for home in homes):
            from lessor.client import _channel, _connection, _sync

            homes = [_sync, _channel, _connection]  # the first has the names of the asynchronous client as well
        value = globals()[name] = next(vars(home)[name] for home in homes if name in vars(home))
        return value

    def __dir__() -> list[str]:
        return __all__


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in an event loop of its own and returns its result. Ctrl-C cancels it, as KeyboardInterrupt."""
    import asyncio

    return asyncio.run(main)
