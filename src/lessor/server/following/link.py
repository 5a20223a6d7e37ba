# SPDX-License-Identifier: Apache-2.0
"""A connection to the server that leads, and the calls that are passed on over it.

Laws
- A call of a link ends exactly once: with the leader's status, or with the loss of the link.
- Nothing is concluded from a loss: `Ended.reached` says whether the leader may have seen the call.
- The output of one loop step leaves in one write.
- No call begins before the other end has shown that it is the leader that the log names, and none while much waits for
  it.
- Streams are reset slowly: who resets many is cut off.

The messages are passed on as bytes. What they mean, and what to do after a loss, is follower.py's.
"""

import asyncio
import ssl
from collections import deque
from typing import Final, NamedTuple, Protocol, cast

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.client._endpoint import Endpoint
from lessor.cluster.proof import vouch
from lessor.durable.engine import Leader
from lessor.server.loop.call import AGAIN_HEADER, CALLER_HEADER, FORWARDED_HEADER, PassedAs
from lessor.wire import grpc, h2


class Shown(NamedTuple):
    """How a client shows who it is: at most one of the two."""

    token: bytes | None = None
    name: str | None = None  # in its certificate


NOBODY: Final = Shown()


class Ended(NamedTuple):
    """How a call has ended."""

    code: Code
    text: str
    lost: bool  # no status came
    reached: bool  # the leader may have carried the call out


class Owner(Protocol):
    """Gets what the leader answers."""

    def on_message(self, message: bytes) -> None: ...

    def on_ended(self, ended: Ended) -> None:
        """Called once; nothing comes after it."""
        ...


class LinkCall:
    """A call that was passed on."""

    __slots__ = ("_deframer", "_link", "_owner", "_stream")

    def __init__(self, link: "Link", stream: h2.Stream, owner: Owner) -> None:
        self._link = link
        self._stream = stream
        self._owner: Owner | None = owner
        self._deframer = grpc.Deframer(limits.LINK_MESSAGE_BYTES_MAX)
        stream.owner = self

    @property
    def queued_bytes(self) -> int:
        """Of messages that wait until the leader takes them."""
        return self._stream.queued_bytes

    def send(self, messages: list[bytes], *, last: bool = False) -> None:
        """Passes messages on; `last`: no more will come. Does nothing once the call has ended."""
        if self._owner is not None:
            self._link.h2.send_data(self._stream, b"".join(map(grpc.frame, messages)), end_stream=last)
            self._link.flush_soon()

    def cancel(self) -> None:
        """Nobody waits for the answer, and the leader is to stop. The owner hears no more."""
        if self._owner is not None:
            self._owner = None
            self._link.reset_later(self._stream)

    def abandon(self) -> None:
        """As `cancel`, for a call that ends soon by itself."""
        self._owner = None

    def finish(self) -> None:
        """As `cancel`, for a call that ends by itself when no more requests come."""
        if self._owner is not None:
            self.send([], last=True)
            self._owner = None

    # --- from the link ---

    def on_event(self, kind: int, data: bytes) -> None:
        owner = self._owner
        if owner is None:
            return
        if kind == h2.DATA:
            try:
                messages = self._deframer.feed(data)
            except EtcdError as error:
                self.cancel()
                owner.on_ended(Ended(error.code, error.message, lost=False, reached=True))
                return
            for message in messages:
                owner.on_message(message)
        elif kind == h2.END:
            self._owner = None
            owner.on_ended(Ended(*grpc.status_of(self._stream.head, self._stream.trailers), lost=False, reached=True))
        elif kind == h2.RESET:
            self.on_lost(reached=self._stream.error_code != h2.ErrorCode.REFUSED_STREAM)

    def on_lost(self, *, reached: bool = True) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.on_ended(Ended(Code.UNAVAILABLE, "the connection to the leader was lost", lost=True, reached=reached))


class Link:
    """An asyncio.Protocol. Connect it with `connect`."""

    def __init__(self, endpoint: Endpoint, leader: Leader) -> None:
        self.leader = leader  # whom the log names
        self.h2 = h2.H2Client()
        self.lost = False
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._full = False  # the transport has called its buffer full
        self._resets: deque[h2.Stream] = deque()
        self.verified = False  # set by the owner: the other end is the leader
        self.challenge = b""  # set by the owner: the leader's, for this connection
        self.heard_s = self._loop.time()  # when the leader sent something last

    @property
    def ready(self) -> bool:
        """Whether a call can be passed on now."""
        return (
            self.verified
            and not (self.lost or self._full)
            and self.h2.can_start
            and self.h2.queued_bytes <= limits.LINK_BACKLOG_BYTES_MAX
        )

    @property
    def silent_s(self) -> float:
        """For how long the leader has sent nothing."""
        return self._loop.time() - self.heard_s

    def start(
        self,
        path: str,
        owner: Owner,
        passed_as: PassedAs,
        caller: Shown = NOBODY,
        timeout_s: float | None = None,
        *,
        again: bool = False,
    ) -> LinkCall:
        """Begins a call; `ready` must hold, but for the first one.

        `passed_as`: how the leader is to know it. `caller`: its client, which was checked here. `again`: whether a
        leader may have carried it out in part.
        """
        headers: list[h2.Field] = [
            (b":method", b"POST"),
            (b":scheme", b"https" if self._endpoint.tls else b"http"),
            (b":path", path.encode()),
            (b":authority", self._endpoint.authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (FORWARDED_HEADER, b"%s:%d:%d" % (passed_as.nonce.hex().encode(), passed_as.counter, passed_as.epoch)),
        ]
        if again:
            headers.append((AGAIN_HEADER, b"1"))
        if caller.token is not None:
            headers.append((b"token", caller.token))
        elif caller.name is not None:
            said = vouch(self.leader.nonce, self.challenge, self.h2.next_stream_id, path, caller.name)
            headers.append((CALLER_HEADER, said))
        if timeout_s is not None:
            headers.append((b"grpc-timeout", grpc.format_timeout(timeout_s)))
        call = LinkCall(self, self.h2.start_request(h2.encode_headers(headers)), owner)
        self.flush_soon()
        return call

    def reset_later(self, stream: h2.Stream) -> None:
        self._resets.append(stream)
        if len(self._resets) == 1:
            self._loop.call_soon(self._reset_some)

    def _reset_some(self) -> None:
        for _ in range(min(len(self._resets), limits.LINK_RESETS_PER_STEP)):
            self.h2.reset(self._resets.popleft(), h2.ErrorCode.CANCEL)
        self.flush_soon()
        if self._resets and not self.lost:
            self._loop.call_later(0.01, self._reset_some)

    def flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._transport.is_closing() or self.lost:
            return
        if self.h2.has_output:
            self._transport.write(self.h2.take_output())
        if self.h2.closing:
            self._transport.close()

    def close(self) -> None:
        """Lets go of the leader. Calls under way are lost."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=limits.LINK_BACKLOG_BYTES_MAX)
        self.flush_soon()

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        for kind, stream, payload in self.h2.receive(data, self.heard_s):
            call: LinkCall | None = stream.owner
            if call is not None:
                call.on_event(kind, payload)
        self.flush_soon()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        for stream in self.h2.open_streams():
            call: LinkCall | None = stream.owner
            if call is not None:
                call.on_lost()


async def connect(endpoint: Endpoint, leader: Leader, context: ssl.SSLContext | None, timeout_s: float) -> Link:
    """A link to the server at `endpoint`, which should be `leader`. Raises OSError, TimeoutError or ssl.SSLError."""
    link = Link(endpoint, leader)
    loop = asyncio.get_running_loop()

    def made() -> asyncio.Protocol:
        return cast(asyncio.Protocol, link)

    async with asyncio.timeout(timeout_s):
        if endpoint.path:
            await loop.create_unix_connection(made, endpoint.path)
        elif endpoint.tls:
            await loop.create_connection(
                made, endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.server_name
            )
        else:
            await loop.create_connection(made, endpoint.host, endpoint.port)
    return link
