# SPDX-License-Identifier: Apache-2.0
"""The states of a stream (RFC 9113 section 5.1), as the table in wire/h2_stream.py has them.

Law: a stream is in its connection's table exactly as long as it is not closed.
"""

from collections.abc import Callable

import pytest

from lessor.wire import frames
from lessor.wire.frames import ErrorCode
from lessor.wire.h2 import H2Client, H2Connection, H2Server, Stream
from lessor.wire.h2_stream import CLOSED, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE, OPEN
from tests.unit.wire.h2_pair import (
    REQUEST_BLOCK,
    RESPONSE_BLOCK,
    TRAILERS_BLOCK,
    data_frame,
    headers_frame,
    raw_client,
    raw_server,
)

Step = Callable[[H2Connection, Stream], object]

STEPS: dict[str, Step] = {
    "response head comes": lambda h2, stream: h2.receive(headers_frame(stream.id, False, RESPONSE_BLOCK)),
    "data comes": lambda h2, stream: h2.receive(data_frame(stream.id, b"to you")),
    "end comes": lambda h2, stream: h2.receive(data_frame(stream.id, b"", True)),
    "data and end come": lambda h2, stream: h2.receive(data_frame(stream.id, b"to you", True)),
    "trailers come": lambda h2, stream: h2.receive(headers_frame(stream.id, True, TRAILERS_BLOCK)),
    "reset comes": lambda h2, stream: h2.receive(frames.rst_stream_frame(stream.id, ErrorCode.CANCEL)),
    "goaway comes": lambda h2, stream: h2.receive(frames.goaway_frame(stream.id - 1, ErrorCode.NO_ERROR)),
    "goaway that names it comes": lambda h2, stream: h2.receive(frames.goaway_frame(stream.id, ErrorCode.NO_ERROR)),
    "window comes": lambda h2, stream: h2.receive(frames.window_update_frame(stream.id, 100)),
    "bad frame comes": lambda h2, stream: h2.receive(frames.window_update_frame(stream.id, 0)),
    "send head": lambda h2, stream: h2.send_headers(stream, RESPONSE_BLOCK),
    "send data": lambda h2, stream: h2.send_data(stream, b"to them"),
    "send end": lambda h2, stream: h2.send_data(stream, b"", end_stream=True),
    "send data and end": lambda h2, stream: h2.send_data(stream, b"to them", end_stream=True),
    "send trailers": lambda h2, stream: h2.send_headers(stream, TRAILERS_BLOCK, end_stream=True),
    "send all": lambda h2, stream: h2.send_response(stream, RESPONSE_BLOCK, b"to them", TRAILERS_BLOCK),
    "send reset": lambda h2, stream: h2.reset(stream, ErrorCode.CANCEL),
}
OPEN_WINDOW, NO_WINDOW = 65_535, 0


def opened(role: type[H2Connection], window_bytes: int, ended: bool = False) -> tuple[H2Connection, Stream]:
    """A connection with one stream; the peer lets us send so much on it."""
    settings = (frames.SETTINGS_INITIAL_WINDOW_SIZE, window_bytes)
    if role is H2Server:
        server = raw_server(settings)
        return server, server.receive(headers_frame(1, ended))[0][1]
    client = raw_client()
    client.receive(frames.settings_frame([settings]))
    return client, client.start_request(REQUEST_BLOCK, end_stream=ended)


@pytest.mark.parametrize(
    ("role", "window_bytes", "story"),
    [
        # a server: with the window open
        (H2Server, OPEN_WINDOW, [("data comes", OPEN), ("data and end come", HALF_CLOSED_REMOTE),
                                 ("send all", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("end comes", HALF_CLOSED_REMOTE), ("send head", HALF_CLOSED_REMOTE),
                                 ("send data", HALF_CLOSED_REMOTE), ("send trailers", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("trailers come", HALF_CLOSED_REMOTE), ("send data and end", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("send head", OPEN), ("send end", CLOSED)]),  # and is reset with NO_ERROR
        (H2Server, OPEN_WINDOW, [("send all", CLOSED), ("data comes", CLOSED), ("send data", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("reset comes", CLOSED), ("send all", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("end comes", HALF_CLOSED_REMOTE), ("reset comes", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("send reset", CLOSED), ("data and end come", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("end comes", HALF_CLOSED_REMOTE), ("data comes", CLOSED)]),  # STREAM_CLOSED
        (H2Server, OPEN_WINDOW, [("bad frame comes", CLOSED)]),
        (H2Server, OPEN_WINDOW, [("goaway comes", OPEN), ("send all", CLOSED)]),  # it is about our streams
        # a server: our end waits behind data
        (H2Server, NO_WINDOW, [("end comes", HALF_CLOSED_REMOTE), ("send all", HALF_CLOSED_REMOTE),
                               ("send data", HALF_CLOSED_REMOTE), ("window comes", CLOSED)]),
        (H2Server, NO_WINDOW, [("send data and end", OPEN), ("end comes", HALF_CLOSED_REMOTE),
                               ("window comes", CLOSED)]),
        (H2Server, NO_WINDOW, [("send all", OPEN), ("data comes", OPEN), ("window comes", CLOSED)]),
        (H2Server, NO_WINDOW, [("send data", OPEN), ("window comes", OPEN), ("send end", CLOSED)]),
        (H2Server, NO_WINDOW, [("send all", OPEN), ("reset comes", CLOSED), ("window comes", CLOSED)]),
        (H2Server, NO_WINDOW, [("send all", OPEN), ("send reset", CLOSED)]),
        # a client
        (H2Client, OPEN_WINDOW, [("send end", HALF_CLOSED_LOCAL), ("response head comes", HALF_CLOSED_LOCAL),
                                 ("data comes", HALF_CLOSED_LOCAL), ("trailers come", CLOSED)]),
        (H2Client, OPEN_WINDOW, [("response head comes", OPEN), ("data and end come", HALF_CLOSED_REMOTE),
                                 ("send data", HALF_CLOSED_REMOTE), ("send data and end", CLOSED)]),
        (H2Client, OPEN_WINDOW, [("send end", HALF_CLOSED_LOCAL), ("reset comes", CLOSED)]),
        (H2Client, OPEN_WINDOW, [("send end", HALF_CLOSED_LOCAL), ("send reset", CLOSED)]),
        (H2Client, OPEN_WINDOW, [("goaway comes", CLOSED), ("send data", CLOSED)]),
        (H2Client, OPEN_WINDOW, [("send end", HALF_CLOSED_LOCAL), ("goaway comes", CLOSED)]),
        (H2Client, OPEN_WINDOW, [("goaway that names it comes", OPEN), ("send end", HALF_CLOSED_LOCAL)]),
        (H2Client, NO_WINDOW, [("send data and end", OPEN), ("window comes", HALF_CLOSED_LOCAL)]),
        (H2Client, NO_WINDOW, [("send data and end", OPEN), ("response head comes", OPEN),
                               ("data and end come", HALF_CLOSED_REMOTE), ("window comes", CLOSED)]),
    ],
)  # fmt: skip
def test_what_moves_a_stream_and_where_to(
    role: type[H2Connection], window_bytes: int, story: list[tuple[str, str]]
) -> None:
    h2, stream = opened(role, window_bytes)
    assert stream.state == OPEN
    states = []
    for step, _ in story:
        STEPS[step](h2, stream)
        states.append((step, stream.state))
        assert (stream in h2.open_streams()) == (stream.state != CLOSED), step
    assert states == story


@pytest.mark.parametrize(("role", "state"), [(H2Server, HALF_CLOSED_REMOTE), (H2Client, HALF_CLOSED_LOCAL)])
def test_a_request_that_is_whole_with_its_head(role: type[H2Connection], state: str) -> None:
    _, stream = opened(role, OPEN_WINDOW, ended=True)
    assert stream.state == state
    assert repr(stream) == f"Stream(1, {state})"
