# SPDX-License-Identifier: Apache-2.0
"""One HTTP/2 stream, its states, and the events that its owner gets about it.

Laws
- A stream is in its connection's table from its first HEADERS until it is closed. Of a closed stream the connection
  keeps only the id. Its `local_ended` is set, so sending on it does nothing.
- `local_ended` and `remote_ended` are set once and never cleared.
- Events are plain tuples (kind, stream, payload), because there are hundreds of thousands of them per second.

States (RFC 9113 section 5.1). "Local" is this side, "remote" the peer. Our end counts when it is sent; until then it
waits with the data in `pending`, and the owner can send nothing more. `state` names what these attributes say:

    state                  local_ended  remote_ended  pending
    idle                   there is no Stream: nobody has used the id yet
    OPEN                   no           no            None, or data
    OPEN                   yes          no            data, and our end behind it
    HALF_CLOSED_REMOTE     no           yes           None, or data
    HALF_CLOSED_REMOTE     yes          yes           data, and our end behind it
    HALF_CLOSED_LOCAL      yes          no            None
    CLOSED                 yes          yes           None

    event                                  from                       to
    HEADERS come (server), are sent        idle                       OPEN
    (client: start_request)
    END_STREAM comes                       OPEN                       HALF_CLOSED_REMOTE
                                           HALF_CLOSED_LOCAL          CLOSED
    END_STREAM is sent                     OPEN                       HALF_CLOSED_LOCAL; a server then resets the stream
                                                                      with NO_ERROR: CLOSED
                                           HALF_CLOSED_REMOTE         CLOSED
    RST_STREAM comes or is sent            any but idle               CLOSED; `pending` is dropped
    GOAWAY comes (client), the id          OPEN, HALF_CLOSED_*        CLOSED; `pending` is dropped
    is above the last one it names

There is no push, so no stream is ever reserved. Frames on an idle or closed stream: `_is_idle` of the two roles and
`_frame_on_closed_stream`. Whether we have answered is no state of the RFC's: a peer's reset of a stream without an
answer counts against H2_RESETS_PER_S_MAX.
"""

from collections import deque
from typing import Any, Final

from lessor.wire.h2_headers import Head

HEADERS: Final = 1  # stream.head is set: a new request (server) or the response (client); payload empty
DATA: Final = 2  # payload: some bytes of the body, cut anywhere, never empty
TRAILERS: Final = 3  # client only: stream.trailers is set; payload empty
END: Final = 4  # the peer sends no more on this stream; payload empty
RESET: Final = 5  # the stream is closed, see stream.error_code; nothing more can be sent or will come; payload empty
# Only from a server with `whole_requests`: HEADERS, DATA and END of a stream in one event, when nothing came between
# them; payload: the whole body, never empty. A unary call looks like this, and it costs a third of three events.
WHOLE: Final = 6

Event = tuple[int, "Stream", bytes]

# The states, as the RFC spells them.
OPEN: Final = "open"
HALF_CLOSED_LOCAL: Final = "half-closed (local)"
HALF_CLOSED_REMOTE: Final = "half-closed (remote)"
CLOSED: Final = "closed"


class Stream:
    """One call. The owner sets `owner`; it only reads the other attributes.

    id             odd: the client opened it
    head           of the request (server) or of the response (client; None until it came)
    trailers       the peer's, when it sent some
    send_window    bytes that the peer lets us send on this stream; negative after the peer has lowered its setting
    queued_bytes   bytes that wait for the peer's windows
    wake_below     set by the owner: when no more than so many of them wait, the stream enters `drained` of the
                   connection, once; -1: never
    remote_ended   the peer will send no more, or the stream was reset
    local_ended    nothing more can be sent: we ended it (the end may wait in `pending`), or the stream was reset
    error_code     the code of the reset
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
        "pending_trailers",
        "queued_bytes",
        "recv_window",
        "remote_ended",
        "send_window",
        "trailers",
        "wake_below",
    )

    def __init__(self, stream_id: int, head: Head | None, send_window: int, recv_window: int) -> None:
        self.id = stream_id
        self.head = head
        self.trailers: Head | None = None
        self.owner: Any = None
        self.send_window = send_window
        self.recv_window = recv_window  # bytes that the peer may still send before we acknowledge
        self.body_left = -1  # bytes of the announced content-length that have not come; -1: none was announced
        self.remote_ended = False
        self.local_ended = False
        self.answered = False  # we have sent HEADERS
        self.error_code = 0
        self.queued_bytes = 0
        self.wake_below = -1
        # Data that waits for a window; never empty. With `local_ended` the last of it ends the stream ...
        self.pending: deque[bytes | memoryview] | None = None
        self.pending_trailers: bytes | None = None  # ... unless this header block does

    @property
    def state(self) -> str:
        """OPEN, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE or CLOSED. Too slow for each message."""
        if self.local_ended and self.pending is None:
            return CLOSED if self.remote_ended else HALF_CLOSED_LOCAL
        return HALF_CLOSED_REMOTE if self.remote_ended else OPEN

    def __repr__(self) -> str:
        return f"Stream({self.id}, {self.state})"
