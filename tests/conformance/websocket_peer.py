# SPDX-License-Identifier: Apache-2.0
"""A WebSocket client for the tests, on wsproto."""

import json
import socket
from typing import Any

from wsproto import ConnectionType, WSConnection, events


class WebSocketPeer:
    """A WebSocket to one path of the server at `address` (host:port), for one `with` block.

    `opened` is the server's answer to the handshake.
    """

    def __init__(self, address: str, target: str, subprotocols: list[str] | None = None) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20)
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._events: list[Any] = []
        self._socket.sendall(self._ws.send(events.Request(host=host, target=target, subprotocols=subprotocols or [])))
        self.opened = self.read()

    def __enter__(self) -> "WebSocketPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *texts: str) -> None:
        self._socket.sendall(b"".join(self._ws.send(events.TextMessage(data=text)) for text in texts))

    def event(self, event: Any) -> None:
        self._socket.sendall(self._ws.send(event))

    def read(self) -> Any:
        """The next event; None when the server has closed the connection."""
        while not self._events:
            data = self._socket.recv(65_536)
            if not data:
                return None
            self._ws.receive_data(data)
            self._events += self._ws.events()
        return self._events.pop(0)

    def result(self) -> Any:
        """The next message, which has to be a result."""
        event = self.read()
        assert isinstance(event, events.TextMessage), event
        assert event.message_finished
        assert not event.data.endswith("\n")
        return json.loads(event.data)["result"]
