# SPDX-License-Identifier: Apache-2.0
"""TLS between a socket's transport and a connection: handshakes, then encryption.

Laws
- No connection gets bytes of its peer, and the server does not know of the connection, before the handshake is over and
  the client's certificate is accepted.
- Handshakes are slow: a signature takes as long as a hundred keepalives. So each turn of the event loop does one step
  of one handshake, and all other connections are served in between. The addresses whose handshakes wait for a step have
  turns, see loop/fair_queue.py.
- A peer that does not finish its handshake in time is dropped. When too many handshakes are under way at once, one of
  the address with the most of them is dropped, its oldest: one that makes progress is never the oldest for long.
- A peer that is refused gets a TLS alert, and the log says why.

Theory of operation. OpenSSL works on two memory buffers. Bytes from the socket go into `_incoming`; bytes that OpenSSL
wants to send come from `_outgoing`. `SecureTransport` is a protocol for the socket, and a transport for the connection
behind it, so that neither knows of the other. The event loop's own TLS is not used: it drops the alert that says why a
handshake failed, keeps 256 KiB per connection, and binds a listener to one context for good.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast

from lessor.base import limits
from lessor.base.tls_errors import reason_of
from lessor.server.loop.fair_queue import FairQueue, Peer
from lessor.server.loop.peer_address import address_of
from lessor.server.observe.logs import Sparing
from lessor.server.observe.shortages import HANDSHAKES, Shortages
from lessor.server.tls import peer
from lessor.server.tls.context import CredentialFiles

log = logging.getLogger("lessor")

_RECORD_BYTES = 16_384  # one TLS record holds at most so much, and so one read returns at most so much
_WRITE_BYTES = 1_048_576  # handed to OpenSSL in one call
_GONE = asyncio.Protocol()  # stands for the connection when it is over


class Handshakes:
    """All handshakes under way, on all listeners of a server. Loop thread only."""

    def __init__(
        self,
        files: CredentialFiles,
        allowed_hostnames: tuple[str, ...],
        name_clients: bool,
        shortages: Shortages | None = None,
    ) -> None:
        self.files = files
        self.allowed_hostnames = allowed_hostnames
        self.name_clients = name_clients
        self._under_way: dict[str, dict[SecureTransport, None]] = {}  # by address, oldest first
        self._under_way_count = 0
        self.refused_peers: set[SecureTransport] = set()  # peers that may still read the alert
        self._ready: FairQueue[SecureTransport] = FairQueue()  # bytes have come for them
        self._scheduled = False
        self._shortages = shortages or Shortages()
        self._logged = Sparing(limits.TLS_REFUSALS_LOGGED_PER_S_MAX, 1.0)

    def secured(self, accept: Callable[[str | None], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """A factory of protocols: TLS in front of the connections that `accept` makes.

        `accept` gets the common name of the client's verified certificate; None without --client-cert-auth.
        """
        return lambda: SecureTransport(self, accept)

    def close(self) -> None:
        """Drops the handshakes under way, and the peers that were refused."""
        under_way = [transport for each in self._under_way.values() for transport in each]
        for transport in [*under_way, *self.refused_peers]:
            transport.abort()

    # --- for the transports ---

    def begin(self, transport: "SecureTransport") -> None:
        """Counts a handshake. Cost: O(1); beyond the bound O(addresses)."""
        self._under_way.setdefault(transport.address, {})[transport] = None
        self._under_way_count += 1
        if self._under_way_count > limits.TLS_HANDSHAKES_MAX:
            self._shortages.reached(HANDSHAKES)
            crowd = max(self._under_way.values(), key=len)
            next(iter(crowd)).give_up("too many handshakes at once")

    def end(self, transport: "SecureTransport") -> None:
        """The handshake is over, however it ended. Does nothing the second time."""
        self._ready.discard(transport)
        of_address = self._under_way.get(transport.address, {})
        if transport in of_address:
            del of_address[transport]
            self._under_way_count -= 1
            if not of_address:
                del self._under_way[transport.address]

    def step_later(self, transport: "SecureTransport") -> None:
        self._ready.add(transport, Peer(transport, transport.address, ""))
        self._schedule()

    def _schedule(self) -> None:
        if self._ready and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        if self._ready:
            transport = self._ready.take()
            self._schedule()
            transport.step()

    def refused(self, remote: Any, reason: str) -> None:
        """Logs a connection that was refused, as etcd does. Of a flood of them it logs only a part each second."""
        unsaid = self._logged.take(asyncio.get_running_loop().time())
        if unsaid is None:
            return
        if unsaid:
            log.warning("rejected more connections on client endpoint", extra={"connections": unsaid})
        address = "{}:{}".format(*remote[:2]) if isinstance(remote, tuple) else "unix socket"
        log.warning("rejected connection on client endpoint", extra={"remote-addr": address, "error": reason})


class SecureTransport(asyncio.Protocol, asyncio.Transport):
    """One accepted socket: its protocol, and the transport of the connection behind it."""

    def __init__(self, handshakes: Handshakes, accept: Callable[[str | None], asyncio.Protocol]) -> None:
        super().__init__()
        self._handshakes = handshakes
        self._accept = accept
        self._connection: asyncio.Protocol = _GONE  # before the handshake is over
        self._socket: asyncio.Transport
        self.address = ""  # the peer's, see peer_address.py
        self._timer: asyncio.TimerHandle | None = None  # runs during the handshake, and after a refusal
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._revoked = frozenset[int]()
        self._closing = False

    # --- the socket's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)  # uvloop's has the methods of one, but not the class
        self.address = address_of(transport)
        self._timer = asyncio.get_running_loop().call_later(
            limits.TLS_HANDSHAKE_S_MAX, self.give_up, "the handshake took too long"
        )
        self._handshakes.begin(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._incoming.write(data)
        if self._timer is None:
            self._read()
        else:
            self._socket.pause_reading()  # one step at a time, so that the bytes that wait for it are bounded
            self._handshakes.step_later(self)

    def eof_received(self) -> bool:
        """The socket has ended, but TLS has not: nothing more can be sent on it."""
        if self._timer is not None and not self._closing:
            self._handshakes.refused(self._socket.get_extra_info("peername"), "EOF")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_handshake()
        self._handshakes.refused_peers.discard(self)
        self._closing = True
        connection, self._connection = self._connection, _GONE
        connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    # --- the handshake ---

    def step(self) -> None:
        """Takes the handshake as far as the bytes that have come allow. Called by `Handshakes`."""
        if self._closing or self._timer is None:
            return
        try:
            if self._tls is None:
                credentials = self._handshakes.files.current()
                self._revoked = credentials.revoked
                self._tls = credentials.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            self._socket.resume_reading()
            return
        except ssl.SSLError as error:
            self._refuse(reason_of(error))
            return
        self._send()
        try:
            name = peer.check(self._tls, self._revoked, self._handshakes.allowed_hostnames)
        except (peer.RefusedError, ValueError) as error:
            self._refuse(str(error))
            return
        self._end_handshake()
        self._connection = self._accept(name if self._handshakes.name_clients else None)
        self._connection.connection_made(self)
        self._socket.resume_reading()
        if self._incoming.pending:
            self._read()

    def give_up(self, reason: str) -> None:
        """Ends a handshake that has taken too long, or that is one too many."""
        self._refuse(reason)
        self._socket.abort()

    def _refuse(self, reason: str) -> None:
        """Refuses the peer: sends the alert that OpenSSL has made, and makes sure that it arrives."""
        self._handshakes.refused(self._socket.get_extra_info("peername"), reason)
        self._end_handshake()
        self._closing = True
        if self._socket.is_closing():
            return
        self._send()
        # A client of TLS 1.3 has sent its first request by now. To close a socket with unread data resets it, and a
        # reset overtakes the alert. So further bytes are read and dropped until the client closes too.
        with contextlib.suppress(OSError):  # the peer has reset it already, and some loops raise for that
            self._socket.write_eof()
        self._socket.resume_reading()
        self._handshakes.refused_peers.add(self)
        self._timer = asyncio.get_running_loop().call_later(limits.TLS_LINGER_S, self._socket.abort)

    def _end_handshake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._handshakes.end(self)

    # --- encryption ---

    def _read(self) -> None:
        tls, incoming = self._tls, self._incoming
        assert tls is not None
        pieces: list[bytes] = []
        ended = False
        try:
            while incoming.pending and not ended:
                piece = tls.read(_RECORD_BYTES)  # never less: the rest of a record would stay unread
                if piece:
                    pieces.append(piece)
                else:
                    ended = True  # the peer ends TLS
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError as error:
            self._end_with_alert(error)
            return
        if self._outgoing.pending:
            self._send()  # an answer of TLS itself, for instance when the peer changes its keys
        if pieces and not self._closing:
            self._connection.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if ended and not self._closing and not self._connection.eof_received():
            self.close()

    def _send(self) -> None:
        output = self._outgoing.read()
        if output:
            self._socket.write(output)

    def _end_with_alert(self, error: ssl.SSLError) -> None:
        """The peer has sent bytes that are not TLS: sends the alert, and closes."""
        log.debug("TLS connection failed", extra={"error": reason_of(error)})
        self._closing = True
        self._send()
        self._socket.close()

    # --- the connection's transport ---

    def write(self, data: Any) -> None:
        tls = self._tls
        if self._closing or tls is None:
            return
        try:
            sent = tls.write(data if len(data) <= _WRITE_BYTES else memoryview(data)[:_WRITE_BYTES])
            while sent < len(data):
                sent += tls.write(memoryview(data)[sent : sent + _WRITE_BYTES])
        except ssl.SSLError as error:
            self._end_with_alert(error)
            return
        self._socket.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """Sends the written bytes and the end of TLS, then closes. Does not wait for the peer to end TLS too."""
        if self._closing:
            return
        self._closing = True
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):  # the peer has not ended TLS yet, or the handshake is not over
                self._tls.unwrap()
            self._send()
        self._socket.close()

    def abort(self) -> None:
        self._closing = True
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._closing or self._socket.is_closing()

    def pause_reading(self) -> None:
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._socket.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._socket.get_extra_info(name, default)
