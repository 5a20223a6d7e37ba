# SPDX-License-Identifier: Apache-2.0
"""A client for etcd and everything that speaks its API.

import lessor.client

async def main():
    async with lessor.client.AsyncClient("127.0.0.1:2379") as client:
        lease = await client.grant(30)
        await client.put("service/a", "10.0.0.7:80", lease_id=lease.ID)

lessor.client.run(main())
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from lessor.client._async import FROM_KEY, AsyncClient, prefix_end
from lessor.client._channel import Channel
from lessor.client._connection import Call
from lessor.client._endpoint import Endpoint, parse_endpoint, parse_endpoints
from lessor.client._errors import (
    CallTimeout,
    ClientError,
    ConnectionLost,
    InvalidCertificate,
    InvalidEndpoint,
    LoginFailed,
    ServerError,
)
from lessor.client._tls import tls_context

__all__ = [
    "FROM_KEY",
    "AsyncClient",
    "Call",
    "CallTimeout",
    "Channel",
    "ClientError",
    "ConnectionLost",
    "Endpoint",
    "InvalidCertificate",
    "InvalidEndpoint",
    "LoginFailed",
    "ServerError",
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
