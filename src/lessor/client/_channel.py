# SPDX-License-Identifier: Apache-2.0
"""Remote calls to a service, for the tasks of an event loop: one connection for all of them.

Laws
- Nothing is connected before the first call, and nothing runs between calls: a channel has no tasks of its own.

Which endpoint is asked, and when a call is repeated: `_service.py`. Not here: what the calls mean (`_calls.py`), bytes
and streams (`_connection.py`).
"""

import asyncio
import ssl as tls
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.client._connection import Call, Connection
from lessor.client._endpoint import Endpoint
from lessor.client._errors import ClientClosed, WrongLoop
from lessor.client._exchange import PING_AFTER_S, PING_ANSWER_S_MAX, Metadata
from lessor.client._service import Service

SHUTDOWN_S_MAX = 2.0  # wait for the end of TLS from a server that we leave


class Channel(Service):
    """Calls to one service. Safe for any number of tasks of one event loop.

    endpoints          "host:port", "http(s)://host:port", "unix(s):///path"; a list, or separated by commas
    connect_timeout_s  longest wait for one endpoint to take the connection
    ssl                how to speak TLS; see `tls_context`. Endpoints without a scheme, and unix: ones, then speak it
                       too. None: https:// and unixs:// servers need a certificate that the machine trusts
    server_name        the name that the servers' certificates must have; "": the endpoint's host
    request_bytes_max, reply_bytes_max  the largest messages to send and to take; None: no limit but the server's
    ping_after_s, ping_answer_s_max     as for `AsyncClient`
    """

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        connect_timeout_s: float = 2.0,
        ssl: tls.SSLContext | None = None,
        server_name: str = "",
        request_bytes_max: int | None = None,
        reply_bytes_max: int | None = None,
        ping_after_s: float = PING_AFTER_S,
        ping_answer_s_max: float = PING_ANSWER_S_MAX,
    ) -> None:
        super().__init__(
            endpoints,
            connect_timeout_s=connect_timeout_s,
            ssl=ssl,
            server_name=server_name,
            request_bytes_max=request_bytes_max,
            reply_bytes_max=reply_bytes_max,
            ping_after_s=ping_after_s,
            ping_answer_s_max=ping_answer_s_max,
        )
        self._current: Connection | None = None
        self._connections: set[Connection] = set()  # also those that only finish their calls
        self._connecting = asyncio.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # whose this channel is, from its first use on

    def own_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs; WrongLoop when it is another one than at first, or none of asyncio's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoop("AsyncClient works in an event loop of asyncio, and none runs here; use Client") from None
        if self._loop is not loop:
            if self._loop is not None:
                text = "this client belongs to another event loop: make one in each loop, or use Client"
                raise WrongLoop(text)
            self._loop = loop
        return loop

    def now_s(self) -> float:
        return self.own_loop().time()

    async def start(
        self, method: Method, timeout_s: float | None = None, deadline: float | None = None, metadata: Metadata = ()
    ) -> Call[Message]:
        loop = self.own_loop()
        connection, left_s = self._current, timeout_s
        if connection is None or not connection.usable or self._closed:
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connected()
            except TimeoutError:
                raise self._no_connection(timeout_s) from None
            left_s = None if deadline is None else max(deadline - loop.time(), 0.0)
        return Call(connection, method, connection.headers(method, left_s, metadata), timeout_s, deadline)

    def distrust(self, call: Call[Any]) -> None:
        """The server behind this call does not serve: later calls begin with the next endpoint.

        Other calls on its connection are left alone; with the last of them it is closed.
        """
        connection = call.connection
        if connection is self._current:
            self._current = None
            self._first = (self._first + 1) % len(self.endpoints)
        connection.retire()

    async def aclose(self) -> None:
        """Closes all connections and waits for it. Calls that are underway fail, later ones raise ClientClosed."""
        if self._connections:
            self.own_loop()
        self._closed = True
        self._current = None
        for connection in list(self._connections):
            await connection.aclose()
        self._connections.clear()

    # --- connecting ---------------------------------------------------------------------------------------------

    async def _connected(self) -> Connection:
        self._refuse_if_closed()
        current = self._current
        if current is not None and current.usable:
            return current
        async with self._connecting:
            self._refuse_if_closed()
            if self._current is None or not self._current.usable:
                self._current = None
                self._connections = {connection for connection in self._connections if not connection.lost}
                connection: Connection = await self._connect()
                if self._closed:  # meanwhile
                    await connection.aclose()
                    self._refuse_if_closed()
                self._current = connection
                self._connections.add(connection)
            return self._current

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed")

    async def _open_in_time(self, endpoint: Endpoint) -> Connection:
        async with asyncio.timeout(self._connect_timeout_s):
            return await self._open(endpoint)

    async def _open(self, endpoint: Endpoint) -> Connection:
        loop = asyncio.get_running_loop()
        secure: dict[str, Any] = {}
        if endpoint.tls:
            name = self._server_name or endpoint.server_name
            secure = {"ssl": self._ssl, "server_hostname": name, "ssl_shutdown_timeout": SHUTDOWN_S_MAX}
        if endpoint.path:
            transport, connection = await loop.create_unix_connection(
                lambda: Connection(endpoint, *self._limits), endpoint.path, **secure
            )
        else:
            transport, connection = await loop.create_connection(
                lambda: Connection(endpoint, *self._limits), endpoint.host, endpoint.port, **secure
            )
        try:
            # A server refuses our certificate only after the handshake, and one that speaks TLS hangs up on plain
            # bytes. Until it has said its first word nothing is sent that it could carry out.
            await connection.heard()
        except BaseException:  # nobody waits any more, or it is lost
            transport.abort()
            raise
        return connection
