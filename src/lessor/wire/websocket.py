# SPDX-License-Identifier: Apache-2.0
"""WebSocket, the server's side of one connection: bytes in, messages out; messages in, bytes out.

Laws
- No bytes of a peer raise an exception here. A breach of the protocol becomes a close frame and `closing`.
- A message is passed on in the pieces in which it arrives, so nothing here grows with its length. Pings are answered
  here.
- After `closing` nothing more is read or written: flush the output, then close the connection.
- A step takes WEBSOCKET_STEP_FRAMES frames: see `unread`. So the owner can serve others between two steps.

`accept` looks at an HTTP/1.1 request and answers it. The bytes after that request belong to the `WebSocket`. wsproto
does the framing. There are no extensions. A browser cannot set headers on these requests, so a token may come in the
list of subprotocols, as `Bearer, TOKEN`; it is in the attribute `token`.
"""

import base64
import hashlib
from collections.abc import Iterator
from typing import Final

from wsproto import events
from wsproto.connection import Connection, ConnectionType

from lessor.base import limits
from lessor.wire.h1 import Request

# Codes of close frames.
NORMAL: Final = 1000
BAD_MESSAGE: Final = 1007
INTERNAL: Final = 1011
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_SWITCHING: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
)
_KEY_BYTES: Final = 16
_VERSION: Final = b"13"
_REASON_BYTES_MAX: Final = 123  # a control frame holds 125 bytes, and the code takes two


class WebSocket:
    """One opened WebSocket. `token`: the token among the peer's subprotocols, or None.

    `unread`: frames that have been received wait for `go_on`.
    """

    __slots__ = ("_out", "_ws", "closing", "token", "unread")

    def __init__(self, answer: bytes, token: bytes | None) -> None:
        self._ws = Connection(ConnectionType.SERVER)
        self._out = [answer]
        self.token = token
        self.closing = False
        self.unread = False

    def receive(self, data: bytes) -> Iterator[bytes]:
        """Takes bytes cut anywhere; yields the pieces of messages in the next step.

        A newline after each message separates it from the next. Take all pieces. A message that is sent between two of
        them leaves before the answer to the rest of `data`. So a close frame in the same bytes does not cut off the
        replies to the messages before it.
        """
        if self.closing:
            return
        self._ws.receive_data(data)
        yield from self.go_on()

    def go_on(self) -> Iterator[bytes]:
        """The same without more bytes."""
        ws = self._ws
        frames = limits.WEBSOCKET_STEP_FRAMES
        self.unread = False
        for event in ws.events():
            if self.closing:  # closed by the caller, when it took the last piece
                return
            frames -= 1
            self.unread = not frames
            if isinstance(event, events.Message):
                raw = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                yield raw + b"\n" if event.message_finished else raw
            elif isinstance(event, events.Ping):
                self._out.append(ws.send(event.response()))
            elif isinstance(event, events.CloseConnection):  # the peer closes, or its bytes are wrong
                self._out.append(ws.send(event.response()))
                self.closing = True
            if self.unread:
                return

    def send(self, text: bytes) -> None:
        """One message of UTF-8 text."""
        if not self.closing:
            self._out.append(self._ws.send(events.TextMessage(data=text.decode())))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Sends a close frame. `reason` is cut to the bytes that the frame can hold."""
        if not self.closing:
            self.closing = True
            short = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
            self._out.append(self._ws.send(events.CloseConnection(code=code, reason=short or None)))

    def take_output(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        return data


def wants_websocket(request: Request) -> bool:
    """Whether a request asks for a WebSocket. `accept` checks that it asks in the right way."""
    return request.method == "GET" and b"websocket" in _words(request.get(b"upgrade"))


def accept(request: Request) -> WebSocket | None:
    """The WebSocket that a request opens, with the answer 101 in its output. None when it breaks RFC 6455, 4.2.1."""
    key = request.get(b"sec-websocket-key") or b""
    try:
        sound = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except ValueError:
        sound = False
    sound = sound and request.get(b"sec-websocket-version") == _VERSION
    if not sound or b"upgrade" not in _words(request.get(b"connection")):
        return None
    answer = _SWITCHING + base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    protocols = [word.strip() for word in (request.get(b"sec-websocket-protocol") or b"").split(b",")]
    token = protocols[1] if len(protocols) == 2 and protocols[0] == b"Bearer" else None
    if token is not None:
        answer += b"\r\nSec-WebSocket-Protocol: Bearer"
    return WebSocket(answer + b"\r\n\r\n", token)


def _words(value: bytes | None) -> list[bytes]:
    return [word.strip().lower() for word in (value or b"").split(b",")]
