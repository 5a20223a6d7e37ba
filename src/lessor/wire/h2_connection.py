# SPDX-License-Identifier: Apache-2.0
"""The receiving half of an HTTP/2 connection, for both roles: bytes in, events out (RFC 9113).

Laws
- `receive` never raises for a peer's bytes. After a fault in one stream the stream is reset, and the owner gets RESET.
  After a fault in the connection, the output ends with GOAWAY, and `closing` is set.
- The events do not depend on how the input is cut: a frame is handled when it is whole.
- An owner that wants steps gets the events of one large input in several: see `go_on`. So it can serve others between.
- Everything that a peer can repeat for free is counted against a limit of base/limits.py.
- This module does not know its role. Methods at the end of H2Connection stand for the differences; `h2.py` has them.

Theory of operation. `_frames` is one loop over the frames of the input. Calls consist of two kinds of frames: DATA for
a live stream, and HEADERS in one frame. The loop itself handles these, in local variables. Frames that are padded,
continued, late or wrong go through `_HANDLERS`. Received bytes are acknowledged when half of a window is used up: for
a stream at once, for the connection at the end of the input, unless too much output waits for this peer.
"""

from collections.abc import Callable
from typing import Any, Final

from lessor.base import limits
from lessor.wire import frames
from lessor.wire.frames import FRAME_HEADER_BYTES, ConnectionFault, ErrorCode
from lessor.wire.h2_headers import Head, HeaderDecoder
from lessor.wire.h2_limits import (
    ACK_PRICE,
    FRAME_PRICES,
    LATE_DATA_PRICE,
    SETTING_PRICE,
    STREAMS_PER_UNIT,
    UNKNOWN_FRAME_PRICE,
    Needless,
    RateLimit,
)
from lessor.wire.h2_send import ALL_BYTES, H2Sender
from lessor.wire.h2_stream import DATA, END, HEADERS, RESET, WHOLE, Event, Stream

_unpack: Final = frames.FRAME_HEADER.unpack_from
_STREAM_WINDOW_LOW_BYTES: Final = limits.H2_WINDOW_BYTES // 2
_CONNECTION_WINDOW_LOW_BYTES: Final = limits.H2_CONNECTION_WINDOW_BYTES // 2
_SEND_FRAME_BYTES_MAX: Final = limits.H2_SEND_FRAME_BYTES_MAX
_WHOLE_HEADERS_MASK: Final = frames.FLAG_END_HEADERS | frames.FLAG_PADDED | frames.FLAG_PRIORITY
_STEP_BYTES_PER_UNIT: Final = limits.H2_STEP_BYTES_PER_UNIT
_DRAIN_PING: Final = b"draining"


class _Block:
    """A header block whose CONTINUATION frames have not all come."""

    __slots__ = ("continuations", "end_stream", "parts", "size_bytes", "stream_id")

    def __init__(self, stream_id: int, end_stream: bool, part: bytes) -> None:
        self.stream_id = stream_id
        self.end_stream = end_stream
        self.parts = [part]
        self.size_bytes = len(part)
        self.continuations = 0


class H2Connection(H2Sender):
    """One connection, either role. Not used alone: see `H2Server` and `H2Client`."""

    __slots__ = (
        "_block",
        "_buffer",
        "_counted_id",
        "_decoder",
        "_draining",
        "_empty_frames",
        "_initial_send_window",
        "_joins_events",
        "_needed_bytes",
        "_needless",
        "_now_s",
        "_opened",
        "_recv_window",
        "_resets",
        "_rest",
        "_rest_at",
        "_settings",
        "_step_bytes",
        "_step_frames",
        "peer_header_list_bytes_max",
        "peer_leaving",
        "peer_streams_max",
        "ping_answer",
        "unread",
    )

    def __init__(self) -> None:
        super().__init__()
        self.peer_header_list_bytes_max = frames.UINT32_MAX  # SETTINGS_MAX_HEADER_LIST_SIZE, which is only advice
        self.peer_streams_max = frames.UINT32_MAX  # SETTINGS_MAX_CONCURRENT_STREAMS: binds the side that opens streams
        self.peer_leaving = False  # the peer has sent GOAWAY
        self.ping_answer = b""  # payload of the newest PING that the peer has answered
        self._decoder = HeaderDecoder()
        self._block: _Block | None = None
        self._initial_send_window = frames.WINDOW_BYTES_DEFAULT
        self._recv_window = limits.H2_CONNECTION_WINDOW_BYTES
        self._joins_events = False  # whether the owner gets WHOLE events
        self._opened = False
        self._draining = False
        self._buffer = bytearray()  # the beginning of a frame whose rest has not come
        self._needed_bytes = 0  # it is not looked at again before it has so many bytes
        self._now_s = 0.0  # when bytes came last
        self.unread = False  # whole frames have been received that are not handled yet: see `go_on`
        self._step_bytes = self._step_frames = ALL_BYTES
        self._rest = b""  # with `unread`: the input, handled up to `_rest_at`
        self._rest_at = 0
        self._resets = RateLimit(limits.H2_RESETS_PER_S_MAX)
        self._settings = RateLimit(limits.H2_SETTINGS_PER_S_MAX)
        self._empty_frames = RateLimit(limits.H2_EMPTY_FRAMES_PER_S_MAX)
        self._needless = Needless()
        self._counted_id = 0  # the streams up to here have earned their units

    # --- for the owner ------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float = 0.0) -> list[Event]:
        """Takes bytes from the socket, cut anywhere, and returns their events, in order.

        `now` (seconds, monotonic) is for the limits per second; if it never changes, the limits are for the whole life
        of the connection. Look at `has_output`, `closing` and `unread` afterwards. Never raises for bytes of the peer.
        """
        if self.closing:
            return []
        self._now_s = now
        if self.unread:
            self._rest = self._rest[self._rest_at :] + data
            self._rest_at = 0
            return []
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed_bytes:
                return []
            data = bytes(buffer)
            buffer.clear()
        return self._step(data, 0)

    def go_on(self, now: float = 0.0) -> list[Event]:
        """While `unread` is set: handles the next step of what has been received. Otherwise like `receive`."""
        if self.closing or not self.unread:
            return []
        self._now_s = now
        data, self._rest = self._rest, b""
        return self._step(data, self._rest_at)

    def send_ping(self, payload: bytes) -> None:
        """Sends a PING with `payload` (8 bytes). When the peer has answered, `ping_answer` is `payload`."""
        self._append(frames.frame(frames.PING, 0, 0, payload))

    def drain(self) -> None:
        """Ends the connection in order: the streams that are open finish, and `closing` is set after the last one.

        Sends GOAWAY twice (RFC 9113 6.8): first without a limit, so that calls which are already on their way are still
        served; then, when the peer has answered a PING, with the last stream that is served. The owner bounds the wait.
        """
        if not self._draining and not self.closing:
            self._draining = True
            self._append(frames.goaway_frame(frames.STREAM_ID_MAX, ErrorCode.NO_ERROR))
            self.send_ping(_DRAIN_PING)

    @property
    def draining(self) -> bool:
        """Whether it ends in order: see `drain`."""
        return self._draining

    # --- the loop -----------------------------------------------------------------------------------------------

    def _step(self, data: bytes, position: int) -> list[Event]:
        """Handles `data` from `position` on, for as long as a step is. Keeps the rest."""
        events: list[Event] = []
        self.unread = False
        try:
            if not self._opened:
                position = self._open(data)
            if self._opened:
                position = self._frames(data, position, events)
            if self._decoder.unpaid:
                self._spend(self._decoder.unpaid)
                self._decoder.unpaid = 0
        except ConnectionFault as fault:
            self.close(fault.code, fault.debug.encode())
            return events
        if self.unread:
            self._rest = data
            self._rest_at = position
        elif position < len(data):
            self._buffer += data[position:] if position else data
        return events

    def _open(self, data: bytes) -> int:
        """Checks the connection's first bytes. `_opened` stays False while they are too few."""
        preface = self._expected_preface()
        start = len(preface)
        if not data.startswith(preface) and not preface.startswith(data):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad connection preface")
        if len(data) < start + FRAME_HEADER_BYTES:
            self._needed_bytes = 0  # look again with each byte: a wrong preface is refused at once
            return 0
        length_and_kind, flags, _ = _unpack(data, start)
        if length_and_kind & 0xFF != frames.SETTINGS or flags & frames.FLAG_ACK:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._opened = True
        return start

    def _frames(self, data: bytes, position: int, events: list[Event]) -> int:
        """Handles the whole frames from `position` on, for as long as a step is. Returns where the rest begins."""
        streams, append = self._streams, events.append
        joins_events = self._joins_events
        frame_bytes_max = limits.H2_FRAME_BYTES_MAX
        data_end, taken = len(data), 0
        step_end = position + self._step_bytes
        last_start = min(step_end, data_end - FRAME_HEADER_BYTES)  # the last place where a frame may begin
        in_block = self._block is not None
        for _ in range(self._step_frames):
            payload_start = position + FRAME_HEADER_BYTES
            if position > last_start:
                self.unread = payload_start <= data_end
                self._needed_bytes = FRAME_HEADER_BYTES
                break
            length, flags, stream_id = _unpack(data, position)
            kind = length & 0xFF
            length >>= 8
            payload_end = payload_start + length
            if length > frame_bytes_max:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
            if payload_end > data_end:
                self._needed_bytes = FRAME_HEADER_BYTES + length
                break
            position = payload_end
            if (
                kind == frames.DATA
                and (stream := streams.get(stream_id)) is not None
                and 0 < length <= stream.recv_window
                and stream.body_left < 0
                and not (flags & frames.FLAG_PADDED or stream.remote_ended or in_block)
            ):
                taken += length
                payload = data[payload_start:payload_end]
                if flags & frames.FLAG_END_STREAM:
                    if joins_events and events and events[-1][1] is stream and events[-1][0] == HEADERS:
                        events[-1] = (WHOLE, stream, payload)
                        stream.remote_ended = True
                    else:
                        append((DATA, stream, payload))
                        self._end_remote(stream, events)
                else:
                    append((DATA, stream, payload))
                    stream.recv_window -= length
                    if stream.recv_window < _STREAM_WINDOW_LOW_BYTES:
                        self._grant_stream_credit(stream)
            elif kind == frames.HEADERS and flags & _WHOLE_HEADERS_MASK == frames.FLAG_END_HEADERS and not in_block:
                encoded = data[payload_start:payload_end]
                head = self._decoder.heads.get(encoded)
                if head is None:
                    head = self._decoder.decode(encoded)
                    step_end -= self._decoder.work * _STEP_BYTES_PER_UNIT
                    last_start = min(last_start, step_end)
                self._head_received(stream_id & frames.STREAM_ID_MAX, head, flags & frames.FLAG_END_STREAM, events)
            else:
                stream_id &= frames.STREAM_ID_MAX
                block = self._block
                if block is not None and (kind != frames.CONTINUATION or stream_id != block.stream_id):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
                if kind >= len(_HANDLERS):
                    self._spend(UNKNOWN_FRAME_PRICE)
                else:
                    self._spend(FRAME_PRICES[kind])
                    _HANDLERS[kind](self, flags, stream_id, data[payload_start:payload_end], events)
                in_block = self._block is not None
        else:
            self.unread = position < data_end
        if taken:
            self._take_connection_window(taken)
        return position

    # --- frames off the hot path --------------------------------------------------------------------------------

    def _data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        size = len(payload)  # flow control counts padding too, and streams that are closed
        self._take_connection_window(size)
        if flags & frames.FLAG_PADDED:
            payload = _unpadded(payload)
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_ended:
            self._frame_on_closed_stream(stream_id, events)
            return
        end_stream = flags & frames.FLAG_END_STREAM
        if not payload and not end_stream and self._empty_frames.exceeded(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many empty frames")
        if size > stream.recv_window:
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, events)
            return
        stream.recv_window -= size
        if stream.body_left >= 0:  # section 8.1.1: the body is exactly as long as announced
            left = stream.body_left - len(payload)
            if left < 0 or (end_stream and left):
                self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
                return
            stream.body_left = left
        if payload:
            events.append((DATA, stream, payload))
        if end_stream:
            self._end_remote(stream, events)
        elif stream.recv_window < _STREAM_WINDOW_LOW_BYTES:
            self._grant_stream_credit(stream)

    def _headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if flags & frames.FLAG_PADDED:
            payload = _unpadded(payload)
        self_dependent = False
        if flags & frames.FLAG_PRIORITY:
            if len(payload) < frames.PRIORITY_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            self_dependent = _dependency(payload) == stream_id
            payload = payload[frames.PRIORITY_BYTES :]
        if not stream_id or self_dependent:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0 or depending on itself")
        self._block = _Block(stream_id, bool(flags & frames.FLAG_END_STREAM), payload)
        if flags & frames.FLAG_END_HEADERS:
            self._finish_block(events)

    def _continuation(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block.parts.append(payload)
        block.size_bytes += len(payload)
        block.continuations += 1
        if block.continuations > limits.H2_CONTINUATIONS_MAX or block.size_bytes > limits.H2_HEADER_BLOCK_BYTES_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if flags & frames.FLAG_END_HEADERS:
            self._finish_block(events)

    def _finish_block(self, events: list[Event]) -> None:
        block = self._block
        assert block is not None
        self._block = None
        head = self._decoder.head(b"".join(block.parts))
        self._head_received(block.stream_id, head, block.end_stream, events)

    def _priority(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """PRIORITY is ignored, but must be well-formed (sections 5.3 and 6.3)."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != frames.PRIORITY_BYTES:
            code = ErrorCode.FRAME_SIZE_ERROR
        elif _dependency(payload) == stream_id:
            code = ErrorCode.PROTOCOL_ERROR
        else:
            return
        if stream_id not in self._streams:  # an idle stream cannot be reset
            raise ConnectionFault(code, "malformed PRIORITY")
        self._stream_error(stream_id, code, events)

    def _rst_stream(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != frames.UINT32_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        stream = self._streams.get(stream_id)
        if stream is None:
            self._refuse_idle(stream_id)
            return
        if not stream.answered and self._resets.exceeded(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")
        (stream.error_code,) = frames.UINT32.unpack(payload)
        self._forget(stream)
        events.append((RESET, stream, b""))

    def _settings_frame(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % frames.SETTING_BYTES or (flags & frames.FLAG_ACK and payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        if flags & frames.FLAG_ACK:
            self._spend(ACK_PRICE)
            return
        if self._settings.exceeded(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings")
        self._spend(len(payload) // frames.SETTING_BYTES * SETTING_PRICE)
        values: dict[int, int] = {}  # only the last value of each is applied, which bounds the work for a frame
        for identifier, value in frames.SETTING.iter_unpack(payload):
            self._check_setting(identifier, value)
            values[identifier] = value
        self._append(frames.frame(frames.SETTINGS, frames.FLAG_ACK, 0, b""))
        self._apply_settings(values)

    def _check_setting(self, identifier: int, value: int) -> None:
        if identifier == frames.SETTINGS_INITIAL_WINDOW_SIZE:
            if value > frames.WINDOW_BYTES_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
        elif identifier == frames.SETTINGS_MAX_FRAME_SIZE:
            if not frames.FRAME_BYTES_DEFAULT <= value <= frames.FRAME_BYTES_CEILING:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame size out of range")
        elif identifier == frames.SETTINGS_ENABLE_PUSH and value > self._peer_push_max():
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "push setting out of range")
        elif identifier == frames.SETTINGS_HEADER_TABLE_SIZE and value < frames.HEADER_TABLE_BYTES_DEFAULT:
            self._peer_shrank_table()

    def _apply_settings(self, values: dict[int, int]) -> None:
        self._send_frame_max = min(
            values.get(frames.SETTINGS_MAX_FRAME_SIZE, self._send_frame_max), _SEND_FRAME_BYTES_MAX
        )
        self.peer_streams_max = values.get(frames.SETTINGS_MAX_CONCURRENT_STREAMS, self.peer_streams_max)
        self.peer_header_list_bytes_max = values.get(
            frames.SETTINGS_MAX_HEADER_LIST_SIZE, self.peer_header_list_bytes_max
        )
        initial = values.get(frames.SETTINGS_INITIAL_WINDOW_SIZE, self._initial_send_window)
        change = initial - self._initial_send_window
        if change:
            self._spend(len(self._streams) // STREAMS_PER_UNIT)
            self._initial_send_window = initial
            for stream in self._streams.values():
                stream.send_window += change  # may become negative (section 6.9.2)
                if stream.send_window > frames.WINDOW_BYTES_MAX:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window too large")
            if change > 0 and self.queued_bytes:
                for stream in list(self._streams.values()):
                    if stream.pending is not None:
                        self._flush_stream(stream)

    def _push_promise(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """A client never sends one, and our SETTINGS forbid it to a server."""
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")

    def _ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != frames.PING_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if flags & frames.FLAG_ACK:
            self._spend(ACK_PRICE)
            self.ping_answer = payload
            if self._draining and payload == _DRAIN_PING and not self._last_call:
                self._append(frames.goaway_frame(self._last_peer_id, ErrorCode.NO_ERROR))
                self._set_last_call()
            return
        self._append(frames.frame(frames.PING, frames.FLAG_ACK, 0, payload))
        if self._too_many_pings():
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
        self._sent_since_ping = False

    def _goaway(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < frames.GOAWAY_HEAD_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 bytes")
        last_id, _ = frames.GOAWAY_HEAD.unpack_from(payload)
        self.peer_leaving = True
        self._peer_left(last_id & frames.STREAM_ID_MAX, events)

    def _window_update(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != frames.UINT32_BYTES:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = frames.UINT32.unpack(payload)[0] & frames.WINDOW_BYTES_MAX
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of zero")
            self._send_window += increment
            if self._send_window > frames.WINDOW_BYTES_MAX:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window too large")
            self._flush_waiting()
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            self._refuse_idle(stream_id)
        elif not increment:
            self._stream_error(stream_id, ErrorCode.PROTOCOL_ERROR, events)
        elif stream.send_window + increment > frames.WINDOW_BYTES_MAX:
            self._stream_error(stream_id, ErrorCode.FLOW_CONTROL_ERROR, events)
        else:
            stream.send_window += increment
            if stream.pending is not None:
                self._flush_stream(stream)

    # --- windows of ours ----------------------------------------------------------------------------------------

    def _take_connection_window(self, size: int) -> None:
        """The peer has used `size` bytes of the connection's window."""
        self._recv_window -= size
        if self._recv_window < _CONNECTION_WINDOW_LOW_BYTES:
            if self._recv_window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
            self._grant_connection_credit()

    def _grant_connection_credit(self) -> None:
        """Opens the connection's window again when half of it is used, unless the peer leaves its replies unread."""
        used = limits.H2_CONNECTION_WINDOW_BYTES - self._recv_window
        if used > _CONNECTION_WINDOW_LOW_BYTES and self.queued_bytes <= limits.CONNECTION_SEND_BYTES_MAX:
            self._recv_window += used
            self._append(frames.window_update_frame(0, used))

    def _grant_stream_credit(self, stream: Stream) -> None:
        self._append(frames.window_update_frame(stream.id, limits.H2_WINDOW_BYTES - stream.recv_window))
        stream.recv_window = limits.H2_WINDOW_BYTES

    # --- work that no call needs --------------------------------------------------------------------------------

    def _spend(self, price: int) -> None:
        """Takes the price of such work from the connection's allowance. Ends the connection when nothing is left."""
        if self._needless.spend(price):
            newest = self._newest_id()
            streams = (newest - self._counted_id) // 2
            self._counted_id = newest
            paid = self._needless.earn(self._now_s, streams, self._sent_pieces, self._sent_bytes)
            self._sent_pieces = self._sent_bytes = 0
            if not paid:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too much that no call needs")

    # --- streams ------------------------------------------------------------------------------------------------

    def _end_remote(self, stream: Stream, events: list[Event]) -> None:
        """The peer has ended its side."""
        stream.remote_ended = True
        events.append((END, stream, b""))
        if stream.local_ended and stream.pending is None:  # CLOSED; to ask for `state` would cost 5 % of a call
            self._forget(stream)

    def _stream_error(self, stream_id: int, code: ErrorCode, events: list[Event]) -> None:
        """The peer broke a rule on one stream: resets it."""
        self._count_misdeed()
        self._reset_id(stream_id, code)
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.error_code = code
            self._forget(stream)
            events.append((RESET, stream, b""))

    def _count_misdeed(self) -> None:
        """Counts an error of a stream like a reset by the peer: otherwise a peer could cause resets for free."""
        if self._resets.exceeded(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many stream errors")

    def _frame_on_closed_stream(self, stream_id: int, events: list[Event]) -> None:
        """DATA or HEADERS on a stream that is idle, HALF_CLOSED_REMOTE or CLOSED (section 5.1)."""
        self._refuse_idle(stream_id)
        if stream_id in self._own_resets:
            self._spend(LATE_DATA_PRICE)
        else:
            self._stream_error(stream_id, ErrorCode.STREAM_CLOSED, events)

    def _refuse_idle(self, stream_id: int) -> None:
        if not stream_id or self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame on an idle stream")

    def _set_last_call(self) -> None:
        self._last_call = True
        if not self._streams:
            self.closing = True

    # --- differences between the roles: h2.py has them -----------------------------------------------------------

    def _expected_preface(self) -> bytes:
        """The bytes that the peer sends before its first frame."""
        raise NotImplementedError

    def _head_received(self, stream_id: int, head: Head, end_stream: int, events: list[Event]) -> None:
        """A header block is complete and decoded; `stream_id` may be 0."""
        raise NotImplementedError

    def _newest_id(self) -> int:
        """The newest stream that one of the sides has opened."""
        raise NotImplementedError

    def _too_many_pings(self) -> bool:
        """Whether the ping that has just come is one too many. Counts it."""
        raise NotImplementedError

    def _is_idle(self, stream_id: int) -> bool:
        """Whether no stream with that id was opened yet, or none can be."""
        raise NotImplementedError

    def _peer_push_max(self) -> int:
        """The largest value of SETTINGS_ENABLE_PUSH that the peer may send."""
        raise NotImplementedError

    def _peer_left(self, last_id: int, events: list[Event]) -> None:
        """The peer has sent GOAWAY: of our streams it handles those up to `last_id`."""
        raise NotImplementedError


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def _dependency(payload: bytes) -> int:
    dependency: int = frames.UINT32.unpack_from(payload)[0] & frames.STREAM_ID_MAX
    return dependency


_Handler = Callable[[Any, int, int, bytes, list[Event]], None]
_HANDLERS: Final[tuple[_Handler, ...]] = (  # by frame type; unknown types are ignored (section 5.5)
    H2Connection._data,
    H2Connection._headers,
    H2Connection._priority,
    H2Connection._rst_stream,
    H2Connection._settings_frame,
    H2Connection._push_promise,
    H2Connection._ping,
    H2Connection._goaway,
    H2Connection._window_update,
    H2Connection._continuation,
)
