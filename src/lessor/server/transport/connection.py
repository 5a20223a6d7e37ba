# SPDX-License-Identifier: Apache-2.0
"""A client's connection: bytes from the socket to the protocol, the protocol's output back at the end of the turn.

Laws
- Bytes are processed as soon as they arrive. Only `flush`, which the turn calls, writes to a socket.
- A peer that does not read is not read from: beyond CONNECTION_SEND_BYTES_MAX unwritten bytes reading pauses. Further
  requests that have been read wait. So a few small requests for large replies cannot fill the memory.
- A connection gets one large read per turn. If a peer fills its socket as fast as it is emptied, libuv reads 32 times
  in a row, and all other connections would wait for seconds.
- The bytes of a read are handled in steps. What does not fit into the connection's share of the turn waits for the next
  turn, and no more is read until then. So a connection slows the others by a share of the turn, whatever it sends.
- When the open batch is full, a connection that brings more pauses until the batch is sealed (turn.py). It neither
  reads nor takes a further step of what it has read.
- A connection that is being closed waits for its peer to take the last bytes, but not for ever: CONNECTION_CLOSE_S_MAX.
- When a connection closes, its calls end: `gone` of each stream's owner is called once.

The first bytes decide between HTTP/2 and HTTP/1.1, which share each port, as in etcd. From then on a `Session` takes
the bytes: h2_session.py or h1_session.py, made by speak.py. This file knows sockets and turns, but neither protocol.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, cast

from lessor.base import limits
from lessor.base.errors import EtcdError
from lessor.server.loop.core import Core
from lessor.server.observe.shortages import BATCH_ROWS
from lessor.wire import sniff

LINGER_S = limits.CONNECTION_LINGER_S


class Session(Protocol):
    """One protocol on one connection. It never reads from the socket or writes to it: the connection does."""

    @property
    def begun(self) -> bool:
        """Whether the peer has sent enough to count as a client. It has HANDSHAKE_S_MAX for that."""
        ...

    @property
    def paused(self) -> bool:
        """Whether the session wants no more bytes for now."""
        ...

    @property
    def closing(self) -> bool:
        """Whether the socket has to be closed once the output is written."""
        ...

    @property
    def unsent(self) -> bool:
        """Whether there is more output than `take_output` gives at once."""
        ...

    @property
    def lingers(self) -> bool:
        """Whether the session closes while the peer may still be sending, so that it needs time to read the reason."""
        ...

    @property
    def unread(self) -> bool:
        """Whether `receive` or `go_on` has left something of the peer's bytes for the next step."""
        ...

    @property
    def share_s_max(self) -> float:
        """For how long at most its steps go on in one turn, after the first one."""
        ...

    def receive(self, data: bytes) -> None: ...

    def go_on(self) -> None:
        """While `unread`: handles the next step of the peer's bytes, some milliseconds at most."""
        ...

    def eof(self) -> bool:
        """The peer sends no more. Returns whether the socket stays open for a reply that is under way."""
        ...

    @property
    def unread_bytes(self) -> int:
        """The bytes of replies that are not in the socket's buffer yet."""
        ...

    def take_output(self) -> bytes:
        """The bytes to write at the end of the turn. The session forgets them."""
        ...

    def wake_drained(self) -> None:
        """The peer has taken some of the bytes that were written."""
        ...

    def drain(self, error: EtcdError) -> None:
        """Lets unary calls finish, ends streaming calls with `error`, closes after the last call."""
        ...

    def lost(self) -> None:
        """The socket has closed."""
        ...


def _ask_silent_peers(transport: asyncio.Transport) -> None:
    """Turns TCP keepalive on. Without it the calls and watches of a peer that vanished without a FIN stay for ever.

    Where a system lacks one of the options, its own timing holds. Cost: four system calls.
    """
    accepted = transport.get_extra_info("socket")
    if accepted is None or accepted.family not in (socket.AF_INET, socket.AF_INET6):
        return
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", limits.TCP_KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", limits.TCP_KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", limits.TCP_KEEPALIVE_PROBES),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            accepted.setsockopt(socket.IPPROTO_TCP, option, value)


class Connection:
    """One accepted socket. An asyncio.Protocol by its methods alone: inheriting would keep it from being compiled."""

    def __init__(
        self,
        core: Core,
        connections: "set[Connection]",
        speak: "Speak",
        peer_common_name: str | None = None,
        *,
        shows_data: bool = True,
    ) -> None:
        """`shows_data`: what is sent may be of the data, and waits while another server may lead."""
        self.core = core
        self._shows_data = shows_data
        self._connections = connections
        self._speak = speak
        self.transport: asyncio.Transport
        # The common name in the client's verified certificate, under --client-cert-auth: the user of its gRPC calls.
        self.peer_common_name = peer_common_name
        self._session: Session | None = None
        self._first_bytes = b""
        self._handshake: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._giving_up: asyncio.TimerHandle | None = None  # until when the peer has to take the last bytes
        self._batch_full = False
        self._unsent = False  # whether the transport has called its buffer full, and not yet drained
        self._had_its_turn = False
        self.reading = True

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        # The bound at which watches lag, not the larger one at which reading stops: a watch that lags waits for a
        # drained buffer, and the transport reports a drained buffer only if it has called it full before.
        transport.set_write_buffer_limits(high=limits.CONNECTION_BACKLOG_BYTES_MAX)
        _ask_silent_peers(transport)
        self._connections.add(self)
        if not self._shows_data:
            self.core.turn.shows_no_data(self)
        self.core.metrics.connections += 1
        loop = asyncio.get_running_loop()
        self._handshake = loop.call_later(limits.HANDSHAKE_S_MAX, transport.close)

    def data_received(self, data: bytes) -> None:
        session = self._session
        if session is None:
            self._first_bytes += data
            kind = sniff.sniff(self._first_bytes)
            if kind is None:
                return
            session = self._session = self._speak(self, kind)
            data, self._first_bytes = self._first_bytes, b""
        turn = self.core.turn
        turn.flush_later(self)  # before the first bytes are looked at, see Turn.schedule
        session.receive(data)
        if self._handshake is not None and session.begun:
            self._handshake.cancel()
            self._handshake = None
        unread = session.unread
        if unread:
            unread = self._work_off(session, turn.now_s())
        if turn.overloaded:
            self._wait_for_batch(unread)
        if len(data) >= limits.LARGE_READ_BYTES:
            self._had_its_turn = True
        if unread or self._batch_full or self._had_its_turn or self._unsent or session.paused or not self.reading:
            self._read_or_pause()

    def _work_off(self, session: Session, began_s: float) -> bool:
        """After a step: takes further ones until the connection has had its share of the turn. Returns `unread`."""
        turn = self.core.turn
        until_s = began_s + min(turn.share_s(self), session.share_s_max)
        while session.unread and turn.now_s() < until_s and not turn.overloaded:
            session.go_on()
        unread = session.unread
        if not unread:
            turn.caught_up(self)
        elif turn.overloaded:
            self._wait_for_batch(unread)
        else:
            turn.go_on_later(self)
        return unread

    def _wait_for_batch(self, unread: bool) -> None:
        """The open batch is full. `unread`: what has been read is not all handled."""
        if not self._batch_full:
            self._batch_full = True
            self.core.metrics.shortages.reached(BATCH_ROWS)
        self.core.turn.pause(self, unread)

    def go_on(self) -> None:
        """The next turn has come for the bytes that the last one has left."""
        session, turn = self._session, self.core.turn
        if session is None or self.transport.is_closing():
            turn.caught_up(self)  # leases may wait for it, and a closing socket may stay for long
            return
        turn.schedule()
        if session.unread and turn.overloaded:
            self._wait_for_batch(True)
            return
        began_s = turn.now_s()
        session.go_on()
        unread = self._work_off(session, began_s)
        turn.flush_later(self)
        if not unread:
            self._read_or_pause()

    def eof_received(self) -> bool:
        """Keeps the socket open while a reply to a request that came in whole is still under way."""
        return self._session is not None and self._session.eof()

    def pause_writing(self) -> None:
        self._unsent = True
        self._read_or_pause()

    def resume_writing(self) -> None:
        self._unsent = False
        self._read_or_pause()
        if self._session is not None:
            self._session.wake_drained()

    def resume_reading(self) -> None:
        """The full batch has been sealed."""
        self._batch_full = False
        if self._session is not None and self._session.unread:
            self.core.turn.go_on_later(self)
        else:
            self.core.turn.caught_up(self)  # leases may wait for what there was
        self._read_or_pause()

    def _read_or_pause(self) -> None:
        session = self._session
        peer_slow = self._unsent and self.transport.get_write_buffer_size() > limits.CONNECTION_SEND_BYTES_MAX
        busy = session is not None and (session.paused or session.unread)
        wanted = not (peer_slow or self._batch_full or self._had_its_turn or busy)
        if wanted is not self.reading and not self.transport.is_closing():
            self.reading = wanted
            self.transport.resume_reading() if wanted else self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._handshake, self._lingering, self._giving_up):
            if timer is not None:
                timer.cancel()
        self.core.turn.forget(self)
        self._connections.discard(self)
        self.core.metrics.connections -= 1
        # The session refers to us, too. Without this link both are freed at once, without the collector (main.py).
        session, self._session = self._session, None
        if session is not None:
            session.lost()

    # --- the server's ---

    def flush(self) -> None:
        self._had_its_turn = False
        session = self._session
        if session is None or self.transport.is_closing():
            return
        output = session.take_output()
        if output:
            self.transport.write(output)
        if self._unsent or not self.reading:
            self._read_or_pause()
        if session.closing:
            self._give_up_later()
            if not session.unsent:
                self._hang_up(session.lingers)

    @property
    def unread_bytes(self) -> int:
        """The bytes of replies that the peer has not taken; see loop/reply_memory.py."""
        session = self._session
        return 0 if session is None else session.unread_bytes + self.transport.get_write_buffer_size()

    def cut_off(self) -> None:
        self.transport.abort()

    def look(self) -> None:
        self.core.turn.flush_later(self)

    def end_now(self, _error: EtcdError) -> None:
        """A bug in making the output: the bytes that the peer would read next cannot be trusted."""
        self.transport.abort()

    def _hang_up(self, lingers: bool) -> None:
        """Ends the connection after its last bytes.

        Closing a socket that holds unread bytes resets it, and the peer loses the reply that names the error. So a peer
        that was sending when its session ended gets LINGER_S to stop and read. What it sends then is dropped.
        """
        if not lingers:
            self._close()
        elif self._lingering is None:
            if self.transport.can_write_eof():  # TLS has no end of one direction
                with contextlib.suppress(OSError):  # some loops raise if the peer has reset the connection already
                    self.transport.write_eof()
            self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self._close)

    def _close(self) -> None:
        """Closes the socket when the peer has taken what was written, or after a while without that."""
        self.transport.close()
        self._give_up_later()

    def _give_up_later(self) -> None:
        if self._giving_up is None:
            later = asyncio.get_running_loop().call_later
            self._giving_up = later(limits.CONNECTION_CLOSE_S_MAX, self.transport.abort)

    def drain(self, error: EtcdError) -> None:
        """Lets unary calls finish, ends streaming calls with `error`, closes after the last call."""
        if self._session is None:
            self.transport.close()
        else:
            self._session.drain(error)
            self.core.turn.flush_later(self)


Speak = Callable[[Connection, str], Session]  # makes a session; "h2" or "h1", by the first bytes
