# SPDX-License-Identifier: Apache-2.0
"""The two roles of an HTTP/2 connection, sans-IO: `H2Server` and `H2Client`. Other packages import this module.

    server = H2Server()
    for kind, stream, payload in server.receive(data_from_the_socket, now):
        if kind == END:
            server.send_response(stream, HEADERS_BLOCK, reply, TRAILERS_BLOCK)
    socket.write(server.take_output())
    if server.closing: close the socket after that

Laws
- Only the differences between the roles are here. Frames, windows and limits are in `h2_connection.py` and
  `h2_send.py`, header lists in `h2_headers.py`. Nothing here knows gRPC.
- A server's stream is closed when its response is sent. If the request has not ended by then, the rest of it is refused
  with RST_STREAM(NO_ERROR).

Stream ids. Nothing is kept of a closed stream. HEADERS on an old id are answered with STREAM_CLOSED if the id was used,
and with PROTOCOL_ERROR if the client passed over it (section 5.1.1). To know which, a server remembers the newest gaps
between ids. Clients number their streams 1, 3, 5 ... without gaps, so a few are enough.
"""

from typing import Final

from lessor.base import limits
from lessor.wire import frames
from lessor.wire.frames import ConnectionFault, ErrorCode
from lessor.wire.h2_connection import H2Connection
from lessor.wire.h2_headers import (
    REQUEST,
    RESPONSE,
    TOO_LARGE,
    Field,
    Head,
    encode_headers,
    header_list_bytes,
)
from lessor.wire.h2_headers import TRAILERS as TRAILERS_FORM
from lessor.wire.h2_keepalive import PAYLOAD, Keepalive, KeepaliveRules
from lessor.wire.h2_limits import LATE_FRAME_PRICE, NO_CALL_PRICE, RateLimit
from lessor.wire.h2_stream import DATA, END, HEADERS, RESET, TRAILERS, WHOLE, Event, Stream

__all__ = [
    "DATA",
    "END",
    "HEADERS",
    "RESET",
    "TRAILERS",
    "WHOLE",
    "ErrorCode",
    "Event",
    "Field",
    "H2Client",
    "H2Connection",
    "H2Server",
    "Head",
    "Stream",
    "encode_headers",
]

_HEADERS_TOO_LARGE: Final = encode_headers([(b":status", b"431")])
_SETTINGS: Final = [
    (frames.SETTINGS_INITIAL_WINDOW_SIZE, limits.H2_WINDOW_BYTES),
    (frames.SETTINGS_MAX_HEADER_LIST_SIZE, limits.H2_HEADER_LIST_BYTES_MAX),
]
_CONNECTION_WINDOW: Final = frames.window_update_frame(
    0, limits.H2_CONNECTION_WINDOW_BYTES - frames.WINDOW_BYTES_DEFAULT
)
_SERVER_OPENING: Final = (
    frames.settings_frame([(frames.SETTINGS_MAX_CONCURRENT_STREAMS, limits.H2_STREAMS_MAX), *_SETTINGS])
    + _CONNECTION_WINDOW
)
_CLIENT_OPENING: Final = (
    frames.PREFACE + frames.settings_frame([(frames.SETTINGS_ENABLE_PUSH, 0), *_SETTINGS]) + _CONNECTION_WINDOW
)


class H2Server(H2Connection):
    """The side that answers. Pass it every byte of the connection, the preface too."""

    __slots__ = (
        "_keepalive",
        "_next_peer_id",
        "_skipped_ids",
    )

    def __init__(
        self,
        rules: KeepaliveRules | None = None,
        now: float = 0.0,
        *,
        whole_requests: bool = False,
        step_bytes: int | None = None,
    ) -> None:
        """`now`: when the first bytes came, as in `receive`. `whole_requests`: whether the owner wants WHOLE events.

        `step_bytes`: the owner wants steps, see `go_on`. A step ends behind the frame in which it has so many bytes, or
        behind frame number H2_STEP_FRAMES. Long replies are sent in steps too, see `unsent`.
        """
        super().__init__()
        if step_bytes is not None:
            self._step_bytes, self._step_frames = step_bytes, limits.H2_STEP_FRAMES
            self._send_step_bytes = self._step_left = limits.SEND_STEP_BYTES
        self._joins_events = whole_requests
        self._now_s = now
        self._keepalive = Keepalive(rules or KeepaliveRules())
        self._next_peer_id = 1  # id of the next stream, if the client leaves no gap
        self._skipped_ids: list[tuple[int, int]] = []  # (first, last) of a gap
        self._append(_SERVER_OPENING)

    def look_after_peer(self, now: float) -> float:
        """Pings a peer that was silent for long. Returns in how many seconds to call again; 0: the peer is gone."""
        ping, wait_s = self._keepalive.next_step(now, self._now_s)
        if ping:
            self.send_ping(PAYLOAD)
        return wait_s

    def no_call(self, stream: Stream) -> None:
        """The owner could make no call of this stream's head: its work was for nothing. May end the connection."""
        head = stream.head
        assert head is not None
        work, head.work = head.work, 0
        try:
            self._spend(NO_CALL_PRICE + work)
        except ConnectionFault as fault:
            self.close(fault.code, fault.debug.encode())

    def _newest_id(self) -> int:
        return self._last_peer_id

    def _too_many_pings(self) -> bool:
        return self._keepalive.one_too_many(self._now_s, self._sent_since_ping, bool(self._streams))

    def _expected_preface(self) -> bytes:
        return frames.PREFACE

    def _head_received(self, stream_id: int, head: Head, end_stream: int, events: list[Event]) -> None:
        if stream_id < self._next_peer_id or not stream_id & 1:
            self._late_head(stream_id, head, end_stream, events)
            return
        if stream_id > self._next_peer_id:
            self._counted_id += stream_id - self._next_peer_id  # what was passed over earns nothing
            self._skipped_ids.append((self._next_peer_id, stream_id - 2))
            del self._skipped_ids[: -limits.H2_SKIPPED_IDS_MAX]
        self._last_peer_id = stream_id
        self._next_peer_id = stream_id + 2
        if (
            self._last_call
            or len(self._streams) >= limits.H2_STREAMS_MAX
            or self._heads_bytes + head.own_bytes > limits.H2_HEADS_BYTES_MAX
        ):
            if len(self._streams) >= limits.H2_STREAMS_MAX:
                self._spend(NO_CALL_PRICE)  # our SETTINGS have told the peer of that bound
            self._reset_id(stream_id, ErrorCode.REFUSED_STREAM)
            return
        if head.form != REQUEST or (end_stream and head.content_length > 0):
            if head.form == TOO_LARGE:
                self._answer_too_large(stream_id, head, end_stream)
            else:
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            return
        stream = Stream(stream_id, head, self._initial_send_window, limits.H2_WINDOW_BYTES)
        self._streams[stream_id] = stream
        self._heads_bytes += head.own_bytes
        events.append((HEADERS, stream, b""))
        if end_stream:
            self._end_remote(stream, events)
        else:
            stream.body_left = head.content_length

    def _late_head(self, stream_id: int, head: Head, end_stream: int, events: list[Event]) -> None:
        """HEADERS on a stream that is not new: the trailers of the request, or a mistake."""
        stream = self._streams.get(stream_id)
        if stream is None:
            if not stream_id & 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd ids")
            if stream_id in self._own_resets:
                self._spend(LATE_FRAME_PRICE + head.work)
                head.work = 0
                return
            if any(first <= stream_id <= last for first, last in self._skipped_ids):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream id lower than an earlier one")
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream.remote_ended:
            self._stream_error(stream_id, ErrorCode.STREAM_CLOSED, events)
        elif not end_stream or head.form != TRAILERS_FORM or stream.body_left > 0:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
        else:
            stream.trailers = head
            self._end_remote(stream, events)

    def _answer_too_large(self, stream_id: int, head: Head, end_stream: int) -> None:
        self._count_misdeed()  # its block took long to decode
        stream = Stream(stream_id, head, 0, 0)
        stream.remote_ended = bool(end_stream)
        self._streams[stream_id] = stream
        self.send_headers(stream, _HEADERS_TOO_LARGE, end_stream=True)

    def _half_closed_local(self, stream: Stream) -> None:
        self._reset_id(stream.id, ErrorCode.NO_ERROR)  # section 8.1: after a complete response
        self._forget(stream)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id >= self._next_peer_id or not stream_id & 1

    def _peer_push_max(self) -> int:
        return 1

    def _peer_left(self, last_id: int, events: list[Event]) -> None:
        self._set_last_call()


class H2Client(H2Connection):
    """The side that asks. Its first output begins with the preface."""

    __slots__ = (
        "_next_id",
        "_pings",
    )

    def __init__(self) -> None:
        super().__init__()
        self._pings = RateLimit(limits.H2_PINGS_PER_S_MAX)
        self._next_id = 1
        self._append(_CLIENT_OPENING)

    @property
    def can_start(self) -> bool:
        """Whether start_request is allowed: the connection stays open, and the peer allows one more stream."""
        return (
            not (self.closing or self._last_call or self._draining)
            and len(self._streams) < self.peer_streams_max
            and not self.spent
        )

    @property
    def spent(self) -> bool:
        """Whether no stream id is left: it takes another connection to start a request."""
        return self._next_id > frames.STREAM_ID_MAX

    @property
    def next_stream_id(self) -> int:
        """That of the stream which the next start_request opens."""
        return self._next_id

    def start_request(self, headers: list[Field] | bytes, end_stream: bool = False) -> Stream:
        """Opens a stream. `headers` are fields, pseudo-headers first, or a ready block from `encode_headers`.

        Raises RuntimeError when `can_start` is False, ValueError when the fields exceed the peer's limit on header
        lists.
        """
        if not self.can_start:
            raise RuntimeError("no stream to start: the peer is leaving or has as many as it allows")
        if not isinstance(headers, bytes):
            size_bytes = header_list_bytes(headers)
            if size_bytes > self.peer_header_list_bytes_max:
                raise ValueError(
                    f"header list of {size_bytes} bytes; the peer accepts {self.peer_header_list_bytes_max}"
                )
            headers = encode_headers(headers)
        stream = Stream(self._next_id, None, self._initial_send_window, limits.H2_WINDOW_BYTES)
        self._next_id += 2
        self._streams[stream.id] = stream
        self.send_headers(stream, headers, end_stream)
        return stream

    def _newest_id(self) -> int:
        return self._next_id

    def _too_many_pings(self) -> bool:
        return not self._sent_since_ping and self._pings.exceeded(self._now_s)

    def _expected_preface(self) -> bytes:
        return b""

    def _head_received(self, stream_id: int, head: Head, end_stream: int, events: list[Event]) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_ended:
            self._frame_on_closed_stream(stream_id, events)
        elif stream.head is not None:
            if not end_stream or head.form != TRAILERS_FORM or stream.body_left > 0:
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
            else:
                stream.trailers = head
                events.append((TRAILERS, stream, b""))
                self._end_remote(stream, events)
        elif head.form != RESPONSE:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
        elif head.status[:1] == b"1":  # an interim response: the final one follows
            if end_stream:
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
        else:
            stream.head = head
            self._heads_bytes += head.own_bytes
            events.append((HEADERS, stream, b""))
            if end_stream:  # for HEAD and 304 a length without a body is correct
                self._end_remote(stream, events)
            else:
                stream.body_left = head.content_length

    def _half_closed_local(self, stream: Stream) -> None:
        """The request is complete; the response is still to come."""

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id >= self._next_id or not stream_id & 1

    def _peer_push_max(self) -> int:
        return 0

    def _peer_left(self, last_id: int, events: list[Event]) -> None:
        """Streams above `last_id` were not handled. They are RESET with REFUSED_STREAM: a retry elsewhere is safe."""
        for stream_id in [stream_id for stream_id in self._streams if stream_id > last_id]:
            stream = self._streams[stream_id]
            stream.error_code = ErrorCode.REFUSED_STREAM
            self._forget(stream)
            events.append((RESET, stream, b""))
        self._set_last_call()
