# SPDX-License-Identifier: Apache-2.0
"""The server's side of a WebSocket: the handshake, messages cut anywhere, pings, goodbyes, garbage.

The client here is wsproto's, which the handshake does not use: what ours answers is checked by somebody else.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection, events

from lessor.wire import websocket
from lessor.wire.h1 import REQUEST, H1Connection, Request
from lessor.wire.websocket import WebSocket

# The key and the answer to it are those of RFC 6455, 1.3.
KEY, ACCEPT = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
FINE = {
    b"Host": b"h",
    b"Upgrade": b"websocket",
    b"Connection": b"keep-alive, Upgrade",
    b"Sec-WebSocket-Key": KEY,
    b"Sec-WebSocket-Version": b"13",
}


def asked(changes: dict[bytes, bytes | None] | None = None, verb: bytes = b"GET") -> tuple[H1Connection, Request]:
    """A connection that has received the request for a WebSocket."""
    headers = {name: value for name, value in {**FINE, **(changes or {})}.items() if value is not None}
    lines = b"".join(b"%b: %b\r\n" % header for header in headers.items())
    connection = H1Connection()
    received = connection.receive(b"%b /v3/watch HTTP/1.1\r\n%b\r\n" % (verb, lines))
    assert received[0][0] == REQUEST
    return connection, received[0][1]


def opened() -> tuple[WebSocket, WSConnection]:
    """Both ends, after the handshake."""
    client = WSConnection(ConnectionType.CLIENT)
    connection = H1Connection()
    request = connection.receive(client.send(events.Request(host="h", target="/v3/watch")))
    server = websocket.accept(request[0][1])
    assert server is not None
    client.receive_data(server.take_output())
    assert [type(event) for event in client.events()] == [events.AcceptConnection]
    return server, client


def heard(client: WSConnection, data: bytes) -> list[Any]:
    client.receive_data(data)
    return list(client.events())


# --- the handshake ----------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_the_standard() -> None:
    _, request = asked()
    assert websocket.wants_websocket(request)
    server = websocket.accept(request)
    assert server is not None
    head = server.take_output()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    assert b"Sec-WebSocket-Protocol" not in head
    assert server.token is None


@pytest.mark.parametrize(
    "changes",
    [
        {b"Sec-WebSocket-Key": None},
        {b"Sec-WebSocket-Key": b"c2hvcnQ="},
        {b"Sec-WebSocket-Key": b"not base64 at all!!!!!!!"},
        {b"Sec-WebSocket-Version": None},
        {b"Sec-WebSocket-Version": b"8"},
        {b"Connection": b"keep-alive"},
    ],
)
def test_a_request_that_breaks_the_rules_is_not_accepted(changes: dict[bytes, bytes | None]) -> None:
    _, request = asked(changes)
    assert websocket.wants_websocket(request)
    assert websocket.accept(request) is None


@pytest.mark.parametrize(
    ("changes", "verb"), [({b"Upgrade": None}, b"GET"), ({b"Upgrade": b"h2c"}, b"GET"), ({}, b"POST")]
)
def test_other_requests_want_no_websocket(changes: dict[bytes, bytes | None], verb: bytes) -> None:
    assert not websocket.wants_websocket(asked(changes, verb)[1])


def test_a_token_comes_in_the_subprotocols() -> None:
    server = websocket.accept(asked({b"Sec-WebSocket-Protocol": b"Bearer, QEeaTIfXTbQcSJnx.163"})[1])
    assert server is not None
    assert server.token == b"QEeaTIfXTbQcSJnx.163"
    assert b"\r\nSec-WebSocket-Protocol: Bearer\r\n" in server.take_output()


def test_what_follows_the_request_is_handed_over() -> None:
    connection, _ = asked()
    connection.receive(b"the first ")
    connection.receive(b"frames")
    assert connection.hand_over() == b"the first frames"
    assert not connection.closing
    assert connection.receive(b"GET / HTTP/1.1\r\n\r\n") == []


def test_only_a_whole_request_without_a_reply_can_be_handed_over() -> None:
    connection = H1Connection()
    with pytest.raises(RuntimeError):
        connection.hand_over()
    connection, _ = asked()
    connection.start(200, b"", None)
    with pytest.raises(RuntimeError):
        connection.hand_over()


# --- messages ---------------------------------------------------------------------------------------------------


def frames(client: WSConnection) -> bytes:
    """Three messages, one of them in two frames and one binary, with a ping in between."""
    return b"".join(
        [
            client.send(events.TextMessage(data='{"ID":"7"}')),
            client.send(events.TextMessage(data='{"a":"ä', message_finished=False)),
            client.send(events.Ping(payload=b"there?")),
            client.send(events.TextMessage(data='ö"}')),
            client.send(events.BytesMessage(data=b"\x00" * 300)),
        ]
    )


MESSAGES = '{"ID":"7"}\n{"a":"äö"}\n'.encode() + b"\x00" * 300 + b"\n"


def test_messages_cut_at_every_byte() -> None:
    whole = len(frames(opened()[1]))
    for cut in range(whole + 1):
        server, client = opened()
        data = frames(client)
        pieces = [*server.receive(data[:cut]), *server.receive(data[cut:])]
        assert b"".join(pieces) == MESSAGES
        assert heard(client, server.take_output()) == [events.Pong(payload=b"there?")]
        assert not server.closing


def test_messages_byte_by_byte() -> None:
    server, client = opened()
    pieces = [piece for byte in frames(client) for piece in server.receive(bytes([byte]))]
    assert b"".join(pieces) == MESSAGES


def test_a_long_message_comes_in_pieces_before_it_is_whole() -> None:
    server, client = opened()
    data = client.send(events.BytesMessage(data=b"x" * 1_000_000))
    early = b"".join(server.receive(data[:500_000]))
    assert len(early) > 400_000
    assert early + b"".join(server.receive(data[500_000:])) == b"x" * 1_000_000 + b"\n"


def test_what_is_sent_arrives() -> None:
    server, client = opened()
    server.send('{"result":"ü"}'.encode())
    server.send(b"{}")
    assert [event.data for event in heard(client, server.take_output())] == ['{"result":"ü"}', "{}"]


# --- goodbyes ---------------------------------------------------------------------------------------------------


def test_the_peers_goodbye_is_answered_after_what_came_before_it() -> None:
    server, client = opened()
    data = client.send(events.TextMessage(data="{}")) + client.send(events.CloseConnection(code=1000))
    for piece in server.receive(data):
        server.send(b"to " + piece.strip())
    assert server.closing
    message, goodbye = heard(client, server.take_output())
    assert message.data == "to {}"
    assert isinstance(goodbye, events.CloseConnection)
    assert goodbye.code == 1000


def test_after_a_goodbye_nothing_is_read_or_written() -> None:
    server, client = opened()
    server.close(1011, "x" * 500)
    server.send(b"too late")
    server.close()
    assert list(server.receive(client.send(events.TextMessage(data="{}")))) == []
    (goodbye,) = heard(client, server.take_output())
    assert (goodbye.code, goodbye.reason) == (1011, "x" * 123)


def test_what_follows_a_goodbye_of_ours_in_the_same_bytes_is_dropped() -> None:
    server, client = opened()
    data = client.send(events.TextMessage(data="1")) + client.send(events.TextMessage(data="2"))
    taken = []
    for piece in server.receive(data):
        taken.append(piece)
        server.close()
    assert taken == [b"1\n"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x81\x05hello",  # a client's frames are masked
        b"\xf1\x80\0\0\0\0",  # bits that no extension defined
        b"\x83\x80\0\0\0\0",  # an opcode that means nothing
        b"\x80\x80\0\0\0\0",  # a continuation of nothing
        b"\x81\x81\0\0\0\0\xff",  # text that is not UTF-8
        b"\x89\xfe\0\x80\0\0\0\0",  # a ping that is too long
        b"\x88\x81\0\0\0\0\x01",  # half a code
    ],
)
def test_a_breach_of_the_protocol_ends_the_connection(garbage: bytes) -> None:
    server, client = opened()
    assert b"".join(server.receive(garbage)) == b""
    assert server.closing
    (goodbye,) = heard(client, server.take_output())
    assert isinstance(goodbye, events.CloseConnection)
    assert goodbye.code in (1002, 1007)


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    server, _ = opened()
    for piece in pieces:
        for _ in server.receive(piece):
            pass
    server.take_output()
