# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 stream, and the events that tell its owner about it.

Laws
- A stream is in its connection's table from its first HEADERS until both sides have ended it or one has reset it.
  Afterwards only its number is left: `local_ended` is set, so sending on it does nothing.
- Events are plain tuples (kind, stream, payload), because there are hundreds of thousands of them per second.
"""

from collections import deque
from typing import Any, Final

from lessor.wire.h2_headers import Head

HEADERS: Final = 1  # stream.head is there: a new request (server) or the response (client); payload empty
DATA: Final = 2  # payload: some bytes of the body, cut anywhere, never empty
TRAILERS: Final = 3  # client only: stream.trailers is there; payload empty
END: Final = 4  # the peer sends no more on this stream; payload empty
RESET: Final = 5  # the stream is gone, see stream.error_code; nothing more can be sent or will come; payload empty
# A server that was asked for it: HEADERS, DATA and END of a stream in one, where nothing else came between; payload:
# the whole body, never empty. So looks a unary call, and three events cost three times as much to pass on.
WHOLE: Final = 6

Event = tuple[int, "Stream", bytes]


class Stream:
    """One call. `owner` is the owner's own; everything else is only read by it.

    id             odd: the client opened it
    head           of the request (server) or of the response (client; None until it came)
    trailers       the peer's, when it sent some
    send_window    bytes the peer lets us send on this stream; negative after the peer lowered its setting
    queued_bytes   waiting for the peer's windows
    remote_ended   the peer will send no more
    local_ended    nothing more can be sent: we ended it (the end may be queued), or the stream was reset
    error_code     why it was reset
    """

    __slots__ = (
        "answered",
        "body_left",
        "error_code",
        "head",
        "id",
        "local_ended",
        "owner",
        "pending",
        "pending_end",
        "pending_trailers",
        "queued_bytes",
        "recv_window",
        "remote_ended",
        "send_window",
        "trailers",
    )

    def __init__(self, stream_id: int, head: Head | None, send_window: int, recv_window: int) -> None:
        self.id = stream_id
        self.head = head
        self.trailers: Head | None = None
        self.owner: Any = None
        self.send_window = send_window
        self.recv_window = recv_window  # bytes the peer may still send before we acknowledge
        self.body_left = -1  # bytes the peer's content-length still promises; -1: it did not announce any
        self.remote_ended = False
        self.local_ended = False
        self.answered = False  # we sent HEADERS
        self.error_code = 0
        self.queued_bytes = 0
        self.pending: deque[bytes | memoryview] | None = None  # data waiting for a window
        self.pending_end = False  # the last of it ends the stream ...
        self.pending_trailers: bytes | None = None  # ... unless this header block does

    def __repr__(self) -> str:
        return f"Stream({self.id})"
