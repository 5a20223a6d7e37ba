# SPDX-License-Identifier: Apache-2.0
"""A client for etcd and everything that speaks its API, for threads (`Client`) and for asyncio (`AsyncClient`).

from lessor.client import Client

with Client("127.0.0.1:2379") as client, client.lease(30) as lease:
    client.put("service/a", "10.0.0.7:80", lease_id=lease.id)
    ...  # the lease is renewed in the background, and revoked at the end
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from lessor.api.proto.auth_pb2 import Permission
from lessor.api.proto.leases_pb2 import LeaseEvent, LeaseListRequest
from lessor.api.proto.mvcc_pb2 import Event, KeyValue
from lessor.client import op
from lessor.client._admin import AsyncAuth, AsyncCluster, AsyncMaintenance
from lessor.client._async import AsyncClient
from lessor.client._channel import Channel
from lessor.client._connection import Call
from lessor.client._discovery import AsyncDiscovery, AsyncRegistration, Change, Instance
from lessor.client._election import AsyncElection, Leader
from lessor.client._endpoint import Endpoint, parse_endpoint, parse_endpoints
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
    UsedAfterFork,
    WatchCanceled,
)
from lessor.client._lease import AsyncLease, AsyncLost
from lessor.client._lock import AsyncLock
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
    "Compacted",
    "ConnectionLost",
    "Discovery",
    "Election",
    "Endpoint",
    "Event",
    "Instance",
    "InvalidCertificate",
    "InvalidEndpoint",
    "Key",
    "KeyValue",
    "Leader",
    "Lease",
    "LeaseEvent",
    "LeaseListRequest",
    "LeaseLost",
    "Lock",
    "LoginFailed",
    "Lost",
    "Maintenance",
    "NotLeader",
    "OutcomeUnknown",
    "Permission",
    "Registration",
    "ServerError",
    "Txn",
    "UsedAfterFork",
    "Watch",
    "WatchCanceled",
    "op",
    "parse_endpoint",
    "parse_endpoints",
    "prefix_end",
    "run",
    "tls_context",
]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in an event loop of its own and returns its result. Ctrl-C cancels it, as KeyboardInterrupt."""
    return asyncio.run(main)
