# SPDX-License-Identifier: Apache-2.0
"""A service that listens on one or several endpoints: which of them is asked, and when a call is made once more.

Laws
- Endpoints are tried in their order, beginning with the one that worked last. Proxies of the environment are ignored.
- A call that surely did not happen (the connection could not be made, or the server refused the stream) is repeated on
  another connection; a call that may have happened is repeated only when repetition changes nothing.
- An endpoint that does not answer, or says that it cannot serve, is left: later calls go to the next one.
- Nothing here imports asyncio. The coroutines suspend where the channel below does: `Channel` in an event loop, and
  `BlockingChannel` never, so that a plain thread can run them.
"""

import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import Message

from lessor.api.methods import Method
from lessor.base.errors import Code
from lessor.base.tls_errors import is_of_tls, reason_of
from lessor.client._endpoint import Endpoint, parse_endpoints
from lessor.client._errors import CallTimeout, ConnectionLost, ServerError, Trouble
from lessor.client._exchange import MESSAGE_BYTES_MAX, PING_AFTER_S, PING_ANSWER_S_MAX, Metadata
from lessor.client._observed import LOG, Counters

if TYPE_CHECKING:
    import ssl as tls


class Started(Protocol):
    """A call that has been opened, on either kind of channel."""

    @property
    def unheard(self) -> bool: ...

    async def send(self, request: Message, *, last: bool = False) -> None: ...

    async def receive(self) -> Any: ...

    def cancel(self) -> None: ...


class Service(ABC):
    """The endpoints and how to speak to them. Arguments: see `Channel`."""

    def __init__(
        self,
        endpoints: str | Iterable[str],
        *,
        connect_timeout_s: float = 2.0,
        ssl: "tls.SSLContext | None" = None,
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
            from lessor.client._tls import tls_context  # not without need: a slow import

            ssl = tls_context()
        if ssl is not None:
            ssl.set_alpn_protocols(["h2"])
        self._ssl = ssl
        self._server_name = server_name
        self._connect_timeout_s = connect_timeout_s
        self.counters = Counters()
        self._first = 0  # index of the endpoint to try first

    async def unary(
        self, method: Method, request: Message, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> Message:
        """One request, one reply. `timeout_s`: longest wait, connecting included; None: no limit.

        Raises ServerError, ConnectionLost or CallTimeout; each says in `outcome_unknown` whether a write may have
        happened. Cost: one round trip; the first call also connects.
        """
        deadline = self._deadline(timeout_s)
        attempts_left = len(self.endpoints)
        while True:
            call: Started | None = None
            try:
                call = await self.start(method, timeout_s, deadline, metadata)
                try:
                    await call.send(request, last=True)
                    reply: Message | None = await call.receive()
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
            self.counters.repeated_calls += 1
            LOG.info("%s did not happen and is sent again", method.name)

    @asynccontextmanager
    async def stream(
        self, method: Method, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> AsyncIterator[Any]:
        """A call with messages in both directions, over when the block is left; see `Call`.

        `timeout_s` is for the whole call, connecting included; None: no limit. Raises ConnectionLost when no endpoint
        can be reached, CallTimeout.
        """
        call = await self.start(method, timeout_s, self._deadline(timeout_s), metadata)
        try:
            yield call
        except CallTimeout:
            if call.unheard:
                self.distrust(call)
            raise
        finally:
            call.cancel()

    @abstractmethod
    def now_s(self) -> float:
        """The clock of deadlines."""

    @abstractmethod
    async def start(
        self, method: Method, timeout_s: float | None = None, deadline: float | None = None, metadata: Metadata = ()
    ) -> Started:
        """Opens a call, which its owner has to cancel. Its headers leave together with its first message.

        `deadline` is an instant on the clock; `timeout_s` is the time until then, for the server and the error.
        """

    @abstractmethod
    def distrust(self, call: Any) -> None:
        """The server behind this call does not serve: later calls begin with the next endpoint."""

    def distrust_if_others(self, call: Any) -> bool:
        """`distrust`, if there is another endpoint; returns whether there is."""
        if len(self.endpoints) > 1:
            self.distrust(call)
        return len(self.endpoints) > 1

    @abstractmethod
    async def aclose(self) -> None:
        """Closes the connections."""

    # --- connecting ---------------------------------------------------------------------------------------------

    @abstractmethod
    async def _open_in_time(self, endpoint: Endpoint) -> Any:
        """Connects to one endpoint. Raises TimeoutError after `connect_timeout_s`, OSError for other reasons."""

    async def _open_once_more(self, endpoint: Endpoint) -> Any:
        """The same, and once more when the connection was taken and lost at once: a server that begins anew does so."""
        try:
            return await self._open_in_time(endpoint)
        except ConnectionRefusedError:
            raise
        except ConnectionError:
            return await self._open_in_time(endpoint)

    async def _connect(self) -> Any:
        """To the first endpoint that takes the connection, in order, beginning with the one that worked last."""
        count = len(self.endpoints)
        reasons, troubles = [], []
        taken = False
        for turn in range(count):
            index = (self._first + turn) % count
            endpoint = self.endpoints[index]
            try:
                connection = await self._open_once_more(endpoint)
            except TimeoutError:
                reasons.append(f"{endpoint.text}: no connection within {self._connect_timeout_s:g} s")
                troubles.append(Trouble.NONE)
            except OSError as error:
                taken = taken or (isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError))
                reason, trouble = diagnosis(error, endpoint)
                reasons.append(f"{endpoint.text}: {reason}")
                troubles.append(trouble)
            else:
                self._first = index
                connection.counters = self.counters
                self.counters.connections += 1
                LOG.info("connected to %s", endpoint.text)
                return connection
        text = f"cannot connect to {'; '.join(reasons)}"
        self.counters.failed_connections += 1
        LOG.warning("%s", text)
        trouble = troubles[0] if len(set(troubles)) == 1 else Trouble.NONE  # otherwise there is no one option to name
        raise ConnectionLost(text, endpoint=self.endpoints[self._first].text, taken=taken, trouble=trouble)

    def _no_connection(self, timeout_s: float | None) -> CallTimeout:
        names = ", ".join(endpoint.text for endpoint in self.endpoints)
        return CallTimeout(f"no connection to {names} within {timeout_s:g} s", timeout_s=timeout_s or 0.0)

    def _deadline(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self.now_s() + timeout_s


class ClosedEarlyError(ConnectionResetError):
    """The server took the connection and ended it before it said a word."""


# OpenSSL's names: of an answer that is no TLS, and of what a server says that refuses our certificate or wants one.
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"})
_OWN = re.compile("ALERT_(CERTIFICATE|(BAD|UNSUPPORTED|NO)_CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
# X509_V_ERR_...: the chain ends at none that is trusted; the certificate is for other hosts or addresses.
_UNKNOWN_CA = (2, 18, 19, 20, 21)
_WRONG_NAME = (62, 64)


def diagnosis(error: OSError, endpoint: Endpoint) -> tuple[str, Trouble]:
    """Why a connection could not be made, in words, and what is wrong with TLS if that is why."""
    if is_of_tls(error):
        name = getattr(error, "reason", None) or ""
        number = getattr(error, "verify_code", 0)
        if name in _NO_TLS:
            return "the server does not speak TLS", Trouble.NO_TLS
        if number in _UNKNOWN_CA:
            return reason_of(error), Trouble.UNKNOWN_CA
        if number in _WRONG_NAME:
            return reason_of(error), Trouble.WRONG_NAME
        if _OWN.search(name):
            return f"the server does not accept our certificate ({reason_of(error)})", Trouble.OWN_CERTIFICATE
        if "EOF" in name or type(error).__name__ == "SSLEOFError":
            return "the server closed the connection in the TLS handshake", Trouble.MAYBE_NO_TLS
        return reason_of(error), Trouble.NONE
    if isinstance(error, ClosedEarlyError):
        return "the connection was taken, and closed at once", Trouble.NONE if endpoint.tls else Trouble.MAYBE_TLS
    if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
        if endpoint.tls:
            return "the server closed the connection in the TLS handshake", Trouble.MAYBE_NO_TLS
        return "the connection was taken, and closed at once", Trouble.MAYBE_TLS
    if isinstance(error, socket.gaierror) or not error.errno:  # without the numbers that asyncio puts around it
        return (error.strerror or str(error)).lower() or "the connection was closed", Trouble.NONE
    return os.strerror(error.errno).lower(), Trouble.NONE
