# SPDX-License-Identifier: Apache-2.0
"""Remote calls to a service that listens on one or several endpoints.

Laws
- Endpoints are tried in their order, beginning with the one that worked last. Proxies of the environment are ignored.
- A call that surely did not happen (the connection could not be made, or the server refused the stream) is repeated on
  another connection; a call that may have happened is repeated only when repetition changes nothing.
- An endpoint that does not answer, or says that it cannot serve, is left: later calls go to the next one.
- Nothing is connected before the first call, and nothing runs between calls: a channel has no tasks of its own.

Not here: what the calls mean (`_calls.py`), bytes and streams (`_connection.py`).
"""

import asyncio
import os
import socket
import ssl as tls
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.base.errors import Code
from lessor.base.tls_errors import reason_of
from lessor.client._connection import (
    MESSAGE_BYTES_MAX,
    PING_AFTER_S,
    PING_ANSWER_S_MAX,
    Call,
    Connection,
    Metadata,
)
from lessor.client._endpoint import Endpoint, parse_endpoints
from lessor.client._errors import CallTimeout, ClientClosed, ConnectionLost, ServerError
from lessor.client._tls import tls_context

SHUTDOWN_S_MAX = 2.0  # wait for the end of TLS from a server that we leave


class Channel:
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
        sizes = (request_bytes_max or MESSAGE_BYTES_MAX, reply_bytes_max or MESSAGE_BYTES_MAX)
        self._limits = (*sizes, ping_after_s, ping_answer_s_max)
        self.endpoints = parse_endpoints(endpoints)
        if ssl is not None:
            self.endpoints = tuple(each._replace(tls=each.tls or each.tls_optional) for each in self.endpoints)
        elif any(endpoint.tls for endpoint in self.endpoints):
            ssl = tls_context()
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        self._ssl = ssl
        self._server_name = server_name
        self._connect_timeout_s = connect_timeout_s
        self._first = 0  # index of the endpoint to try first
        self._current: Connection | None = None
        self._connections: set[Connection] = set()  # also those that only finish their calls
        self._connecting = asyncio.Lock()
        self._closed = False

    async def unary(
        self, method: Method, request: Message, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Message:
        """One request, one reply. `timeout_s`: longest wait, connecting included; None: no limit.

        Raises ServerError, ConnectionLost or CallTimeout; each says in `outcome_unknown` whether a write may have
        happened. Cost: one round trip; the first call also connects.
        """
        deadline = _deadline(timeout_s)
        attempts_left = len(self.endpoints)
        while True:
            call: Call[Message] | None = None
            try:
                call = await self.start(method, timeout_s, deadline, metadata)
                try:
                    await call.send(request, last=True)
                    reply = await call.receive()
                    # The status comes after the reply: without a good one the reply does not count.
                    if reply is None or await call.receive() is not None:
                        text = f"{method.name}: not exactly one reply"
                        raise ServerError(Code.INTERNAL, text, outcome_unknown=True)
                    return reply
                finally:
                    call.cancel()
            except ConnectionLost as error:
                # A proxy before a server that is gone takes each connection, and ends it: the next call goes elsewhere.
                if call is not None and call.unheard:
                    self.distrust(call)
                # Without a call no endpoint could be reached: they were all tried already.
                if error.outcome_unknown or not attempts_left or call is None:
                    raise
            except CallTimeout:
                if call is not None and call.unheard:
                    self.distrust(call)
                raise
            except ServerError as error:
                if error.code != Code.UNAVAILABLE or call is None or not self.distrust_if_others(call):
                    raise
                if error.outcome_unknown or not attempts_left:
                    raise
            attempts_left -= 1

    @asynccontextmanager
    async def stream(
        self, method: Method, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> AsyncIterator[Call[Message]]:
        """A call with messages in both directions, over when the block is left; see `Call`.

        `timeout_s` is for the whole call, connecting included; None: no limit. Raises ConnectionLost when no endpoint
        can be reached, CallTimeout.
        """
        call = await self.start(method, timeout_s, _deadline(timeout_s), metadata)
        try:
            yield call
        except CallTimeout:
            if call.unheard:
                self.distrust(call)
            raise
        finally:
            call.cancel()

    async def start(
        self, method: Method, timeout_s: float | None = None, deadline: float | None = None, metadata: Metadata = ()
    ) -> Call[Message]:
        """Opens a call, which its owner has to cancel. Its headers leave together with its first message.

        `deadline` is an instant on the loop's clock; `timeout_s` is the time until then, for the server and the error.
        """
        connection, left_s = self._current, timeout_s
        if connection is None or not connection.usable or self._closed:
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connected()
            except TimeoutError:
                names = ", ".join(endpoint.text for endpoint in self.endpoints)
                text = f"no connection to {names} within {timeout_s:g} s"
                raise CallTimeout(text, timeout_s=timeout_s or 0.0) from None
            left_s = None if deadline is None else max(deadline - asyncio.get_running_loop().time(), 0.0)
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

    def distrust_if_others(self, call: Call[Any]) -> bool:
        """`distrust`, if there is another endpoint; returns whether there is."""
        if len(self.endpoints) > 1:
            self.distrust(call)
        return len(self.endpoints) > 1

    async def aclose(self) -> None:
        """Closes all connections and waits for it. Calls that are underway fail, later ones raise ClientClosed."""
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
                connection = await self._connect()
                if self._closed:  # meanwhile
                    await connection.aclose()
                    self._refuse_if_closed()
                self._current = connection
                self._connections.add(connection)
            return self._current

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClientClosed("the client is closed")

    async def _connect(self) -> Connection:
        """To the first endpoint that takes the connection, in order, beginning with the one that worked last."""
        count = len(self.endpoints)
        reasons = []
        taken = False
        for turn in range(count):
            index = (self._first + turn) % count
            endpoint = self.endpoints[index]
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    connection = await self._open(endpoint)
            except TimeoutError:
                reasons.append(f"{endpoint.text}: no connection within {self._connect_timeout_s:g} s")
            except OSError as error:
                taken = taken or (isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError))
                closed = "the connection was closed"  # some errors of asyncio say nothing
                if endpoint.tls:
                    closed += " in the TLS handshake; perhaps the server speaks without TLS"
                reasons.append(f"{endpoint.text}: {_reason(error) or closed}")
            else:
                self._first = index
                return connection
        text = f"cannot connect to {'; '.join(reasons)}"
        raise ConnectionLost(text, endpoint=self.endpoints[self._first].text, taken=taken)

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
        if endpoint.tls:
            try:
                await connection.heard()  # a server refuses our certificate only after the handshake
            except BaseException:  # nobody waits any more, or it is lost
                transport.abort()
                raise
        return connection


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s


def _reason(error: OSError) -> str:
    """Why a connection could not be made, without the numbers and quotes that asyncio puts around it."""
    if isinstance(error, tls.SSLError):
        return reason_of(error)
    if isinstance(error, socket.gaierror) or not error.errno:
        return (error.strerror or str(error)).lower()
    return os.strerror(error.errno).lower()
