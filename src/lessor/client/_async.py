# SPDX-License-Identifier: Apache-2.0
"""The asynchronous client: the calls of `_calls.py`, and the objects that make several calls.

Laws
- `AsyncClient` adds to its calls what lasts longer than one of them: leases that renew themselves, locks, elections,
  registrations, discoveries. Each is an object of its own, whose work goes on in the background.
- No part of the client imports this module: what a part needs (the calls, a lease of its own) is an argument.
- `_sync.py` is generated from this file and its neighbours: what is public here is public there.

    async with AsyncClient("127.0.0.1:2379") as client, client.lease(30) as lease:
        await client.put("service/a", "10.0.0.7:80", lease_id=lease.id)
        ...
"""

import asyncio
import ssl as tls
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType

from lessor.client._admin import AsyncAuth, AsyncCluster, AsyncMaintenance
from lessor.client._arguments import checked
from lessor.client._calls import Calls
from lessor.client._candidacy import Candidacy
from lessor.client._channel import Channel
from lessor.client._discovery import AsyncDiscovery, AsyncRegistration
from lessor.client._election import AsyncElection
from lessor.client._errors import LeaseLost
from lessor.client._exchange import PING_AFTER_S, PING_ANSWER_S_MAX
from lessor.client._keeper import Keeper
from lessor.client._lease import AsyncLease
from lessor.client._lock import AsyncLock
from lessor.client._login import Login
from lessor.client._observed import Interceptor
from lessor.client._requests import Bytes
from lessor.client._txn import AsyncTxn


@checked
class AsyncClient(Calls):
    """A client for one etcd-compatible service. Connects at the first call; close it with `aclose` or `async with`.

    endpoints          "host:port", "http(s)://host:port" or "unix(s):///path", tried in order; a list, or separated by
                       commas. An endpoint that does not answer is left for the next one
    connect_timeout_s  longest wait for one endpoint to take the connection
    timeout_s          longest wait for the answer to a call, unless the call says otherwise; None: no limit
    ssl                how to speak TLS; see `tls_context` and `Channel`
    server_name        the name that the servers' certificates must have; "": the endpoint's host
    user, password     the user, where the service wants one; logs in at the first call, and again when its token is
                       refused
    token              a token that was got elsewhere, a JWT for one; calls carry it, and nobody logs in
    request_bytes_max, reply_bytes_max  the largest messages to send and to take; None: no limit but the server's
    ping_after_s       silence of the server, while calls wait, after which it is asked for a sign of life. Servers may
                       close the connection when this is less than 5 s
    ping_answer_s_max  longest wait for that sign; then the connection is given up
    interceptors       each is called with every call that answers once (an `Outgoing`), and returns a context manager:
                       the call is its block. For traces and metrics; streams are in `counters` alone

    Raises InvalidEndpoint. For tasks of one event loop; not for several threads.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "127.0.0.1:2379",
        *,
        connect_timeout_s: float = 2.0,
        timeout_s: float | None = 5.0,
        ssl: tls.SSLContext | None = None,
        server_name: str = "",
        user: str = "",
        password: str = "",
        token: str = "",
        request_bytes_max: int | None = None,
        reply_bytes_max: int | None = None,
        ping_after_s: float = PING_AFTER_S,
        ping_answer_s_max: float = PING_ANSWER_S_MAX,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        channel = Channel(
            endpoints,
            connect_timeout_s=connect_timeout_s,
            ssl=ssl,
            server_name=server_name,
            request_bytes_max=request_bytes_max,
            reply_bytes_max=reply_bytes_max,
            ping_after_s=ping_after_s,
            ping_answer_s_max=ping_answer_s_max,
        )
        super().__init__(channel, timeout_s, Login(user, password, asyncio.Lock(), token), interceptors)
        self._keeper = Keeper(self)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; calls that are underway fail, and leases are renewed no more.

        Leases that were not revoked live on until their TTL ends.
        """
        self._keeper.close()
        await super().aclose()

    # --- keys and leases ----------------------------------------------------------------------------------------

    def transaction(self) -> AsyncTxn:
        """A txn step by step: `await client.transaction().when(...).then(...).otherwise(...).commit()`."""
        return AsyncTxn(self)

    def lease(
        self, ttl_s: int, lease_id: int = 0, *, on_lost: Callable[[LeaseLost], object] | None = None
    ) -> AsyncLease:
        """A lease that renews itself: `async with client.lease(30) as lease:`. A client's leases share one stream.

        Renewed at every third of its TTL, over lost connections and restarts of the server; revoked when the block
        ends. It is lost when the server says so, or when no renewal was acknowledged for its TTL, counted from the
        instant when the last acknowledged one was sent. Then `on_lost` is called with the error, `lease.lost` is set,
        and each use of `lease.id` raises that error. `ttl_s` and `lease_id` as for `grant`. Let the TTL be several
        times `connect_timeout_s` where there are several endpoints.
        """
        return AsyncLease(self, self._keeper, ttl_s, lease_id, on_lost)

    # --- what is made of leases ---------------------------------------------------------------------------------

    def lock(self, name: Bytes, *, lease: AsyncLease | None = None, ttl_s: int = 30) -> AsyncLock:
        """A lock over all machines: `async with client.lock("jobs/42") as lock: use(lock.token)`.

        `lease`: the lock is lost when it ends; None: one of its own, of `ttl_s` seconds. A lease holds a lock once.
        A lock alone does not protect from a holder that stood still while its lease ended: use `lock.token`.
        """
        return AsyncLock(self._candidacy(name, lease, ttl_s))

    def election(self, name: Bytes, *, lease: AsyncLease | None = None, ttl_s: int = 30) -> AsyncElection:
        """An election: `campaign` in it, or `observe` it. Arguments as for `lock`; observing needs no lease."""
        return AsyncElection(self, self._candidacy(name, lease, ttl_s))

    def _candidacy(self, name: Bytes, lease: AsyncLease | None, ttl_s: int) -> Candidacy:
        return Candidacy(self, name, lease, partial(self.lease, ttl_s))

    def register(self, service: str, address: str, ttl_s: int = 10, *, value: Bytes = b"") -> AsyncRegistration:
        """Registers `address` as an instance of `service`, for as long as the block runs and this process lives.

        Writes the key `service/address`, attached to a lease of `ttl_s` seconds. When the lease is lost, it registers
        anew. `value`: whatever else others should know.
        """
        return AsyncRegistration(self, partial(self.lease, ttl_s), service, address, value)

    def discover(self, service: str) -> AsyncDiscovery:
        """The instances of `service`: a view that follows in the background, and an iterator of its changes."""
        return AsyncDiscovery(self, service)

    # --- servers ------------------------------------------------------------------------------------------------

    @property
    def maintenance(self) -> AsyncMaintenance:
        """Status, alarms, defragmentation and the other calls that keep a server well."""
        return AsyncMaintenance(self)

    @property
    def cluster(self) -> AsyncCluster:
        """The members of the cluster."""
        return AsyncCluster(self)

    @property
    def auth(self) -> AsyncAuth:
        """Users, roles and permissions."""
        return AsyncAuth(self)
