# SPDX-License-Identifier: Apache-2.0
"""The sending half of an HTTP/2 connection: frames out, within the peer's windows (RFC 9113 sections 5.2 and 6.9).

Laws
- Nothing is sent beyond the peer's stream window, connection window or frame size. Data that does not fit waits, in
  order, in its stream. Trailers wait behind their data.
- Sending on a closed stream does nothing: a reply may come after its caller has gone.
- The output is a list of bytes, which the owner takes at the end of its turn. Frames of one stream never change order.
- If the owner wants steps, SEND_STEP_BYTES of data that has waited enter the output at a time, and a frame more at
  most: see `unsent`.

Where data waits. A stream whose own window is used up keeps its queue until a WINDOW_UPDATE for it comes. A stream is
in `_waiting` when its own window is open and only the connection's is used up, or the step is over. When the
connection's window grows, or the next step comes, each stream there sends one frame in turn, so that a long reply does
not starve the others. No code goes through all streams, except when the peer changes its INITIAL_WINDOW_SIZE.
"""

import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from lessor.base import limits
from lessor.wire.frames import (
    CONTINUATION,
    FLAG_END_HEADERS,
    FLAG_END_STREAM,
    FRAME_BYTES_DEFAULT,
    FRAME_HEADER,
    HEADERS,
    WINDOW_BYTES_DEFAULT,
    goaway_frame,
    rst_stream_frame,
)
from lessor.wire.h2_stream import CLOSED, Stream

_pack: Final = FRAME_HEADER.pack
_ENDED: Final = FLAG_END_HEADERS | FLAG_END_STREAM
# RFC 7541 4.2: when a peer shrinks its table, our next block must say so. We use no table: size 0.
_TABLE_SIZE_ZERO: Final = b"\x20"
ALL_BYTES: Final = 1 << 60  # of a step, for an owner that wants no steps


Pack = Callable[..., bytes]


@lru_cache(maxsize=64)
def _forms(headers_block: bytes, trailers_block: bytes) -> tuple[Pack, bytes, Pack, bytes] | None:
    """How to pack the bytes before and behind the data of a response, each in one step. None: they are too long.

    Before the data: the first 5 bytes of a HEADERS frame, stream id, block, the header of a DATA frame. Behind it: the
    first 5 bytes of a HEADERS frame, stream id, trailers. The two steps take a third of the time of six. The cache
    works because there are few pairs of blocks.
    """
    if len(headers_block) + len(trailers_block) > FRAME_BYTES_DEFAULT:
        return None
    before = struct.Struct(f">5sI{len(headers_block)}sIBI")
    behind = struct.Struct(f">5sI{len(trailers_block)}s")
    head = (len(headers_block) << 8 | HEADERS).to_bytes(4, "big") + bytes((FLAG_END_HEADERS,))
    tail = (len(trailers_block) << 8 | HEADERS).to_bytes(4, "big") + bytes((_ENDED,))
    return before.pack, head, behind.pack, tail


class H2Sender:
    """The sending methods of a connection. Base of `H2Connection`; not used alone."""

    __slots__ = (
        "_append",
        "_heads_bytes",
        "_last_call",
        "_last_peer_id",
        "_out",
        "_own_resets",
        "_send_frame_max",
        "_send_step_bytes",
        "_send_window",
        "_sent_bytes",
        "_sent_pieces",
        "_sent_since_ping",
        "_step_left",
        "_streams",
        "_table_update",
        "_waiting",
        "closing",
        "drained",
        "queued_bytes",
    )

    def __init__(self) -> None:
        self.closing = False  # write take_output(), then close the socket; nothing else will happen
        self.queued_bytes = 0  # data of all streams that waits for the peer's windows
        self.drained: list[Stream] = []  # streams that have asked for it: see Stream.wake_below; the owner empties it
        self._out: list[bytes | memoryview] = []
        self._append = self._out.append
        self._streams: dict[int, Stream] = {}
        self._heads_bytes = 0  # memory that the peer's long header lists take, over all streams
        self._send_step_bytes = ALL_BYTES
        self._step_left = ALL_BYTES  # of data that has waited, until the output is taken
        self._waiting: dict[int, Stream] = {}  # have data and an open window, and wait for the connection's window
        self._own_resets: dict[int, None] = {}  # ids that we reset lately: frames for them may still be on their way
        self._send_window = WINDOW_BYTES_DEFAULT
        self._send_frame_max = FRAME_BYTES_DEFAULT
        self._table_update = b""  # goes in front of the next header block
        self._sent_since_ping = False
        self._sent_pieces = 0  # of output, since it was last counted as useful
        self._sent_bytes = 0
        self._last_call = False  # no new streams: the connection closes when the last one is over
        self._last_peer_id = 0  # id of the newest stream of the peer that we have looked at

    # --- output -------------------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether take_output() would return anything."""
        return bool(self._out)

    @property
    def active_streams(self) -> int:
        """The number of streams that are not closed."""
        return len(self._streams)

    def open_streams(self) -> list[Stream]:
        """The streams that are not closed."""
        return list(self._streams.values())

    @property
    def unsent(self) -> bool:
        """Whether data waits that the peer's windows allow, because the step was over: see `send_more`."""
        return bool(self._waiting) and self._send_window > 0

    def send_more(self) -> None:
        """The next step of what is `unsent` enters the output."""
        self._flush_waiting()

    def take_output(self) -> bytes:
        """All bytes to write to the socket now; b"" when there are none."""
        self._step_left = self._send_step_bytes
        out = self._out
        output = b"".join(out)
        self._sent_pieces += len(out)
        self._sent_bytes += len(output)
        out.clear()
        return output

    # --- for the owner ------------------------------------------------------------------------------------------

    def send_response(self, stream: Stream, headers_block: bytes, data: bytes, trailers_block: bytes) -> None:
        """Sends a whole response: HEADERS, one piece of DATA, and trailers that end the stream.

        The blocks come from `encode_headers`. Bytes that the peer's windows do not allow are queued. Cost: one append
        when everything fits.
        """
        size = len(data)
        forms = _forms(headers_block, trailers_block)
        if (
            size > stream.send_window
            or size > self._send_window
            or size > FRAME_BYTES_DEFAULT
            or forms is None
            or self._table_update
            or stream.local_ended
        ):
            self.send_headers(stream, headers_block)
            self.send_data(stream, data)
            self.send_headers(stream, trailers_block, end_stream=True)
            return
        stream_id = stream.id
        self._send_window -= size
        pack_before, head, pack_behind, tail = forms
        self._append(
            pack_before(head, stream_id, headers_block, size << 8, 0, stream_id)
            + data
            + pack_behind(tail, stream_id, trailers_block)
        )
        self._sent_since_ping = True
        stream.local_ended = True
        if stream.remote_ended and not self._last_call:
            del self._streams[stream_id]
        else:
            self._end_local(stream)

    def send_headers(self, stream: Stream, block: bytes, end_stream: bool = False) -> None:
        """Sends a block from `encode_headers`: the head, or, with `end_stream`, trailers or a response without body.

        Trailers wait behind data that is queued. A block larger than the peer's frames is continued in further frames.
        """
        if stream.local_ended:
            return
        stream.answered = True
        if end_stream:
            stream.local_ended = True
            if stream.pending is not None:
                stream.pending_trailers = block
                return
        self._emit_headers(stream.id, block, end_stream)
        if end_stream:
            self._end_local(stream)

    def send_data(self, stream: Stream, data: bytes, end_stream: bool = False) -> None:
        """Sends a piece of body of any size. Bytes that the peer's windows do not allow are queued: `queued_bytes`."""
        if stream.local_ended:
            return
        size = len(data)
        if (
            stream.pending is None
            and size <= stream.send_window
            and size <= self._send_window
            and size <= self._send_frame_max
        ):
            if size:
                stream.send_window -= size
                self._send_window -= size
            elif not end_stream:
                return
            self._append(_pack(size << 8, end_stream, stream.id) + data)
            self._sent_since_ping = True
            if end_stream:
                stream.local_ended = True
                self._end_local(stream)
            return
        self._queue(stream, data, end_stream)

    def reset(self, stream: Stream, error_code: int) -> None:
        """Closes the stream at once and drops its queue. Does nothing when it is closed already."""
        if stream.state != CLOSED:
            stream.error_code = error_code
            self._reset_id(stream.id, error_code)
            self._forget(stream)

    def drop_queue(self, stream: Stream) -> None:
        """Drops the data that waits for the peer's windows. Trailers that are sent next leave at once.

        The peer gets a body that is cut short, so the trailers have to say that the call has failed.
        """
        if stream.pending is not None and not stream.local_ended:
            stream.pending = None
            self._waiting.pop(stream.id, None)
            self._unqueue(stream, stream.queued_bytes)

    def close(self, error_code: int, debug: bytes = b"") -> None:
        """Sends GOAWAY and sets `closing`: the owner writes the output, then closes the socket.

        `debug` is text for the peer's log. The open streams get no events: their owner knows them.
        """
        if not self.closing:
            self._append(goaway_frame(self._last_peer_id, error_code, debug))
            self.closing = True

    # --- streams ------------------------------------------------------------------------------------------------

    def _end_local(self, stream: Stream) -> None:
        """END_STREAM was sent."""
        if stream.remote_ended:
            self._forget(stream)
        else:
            self._half_closed_local(stream)

    def _half_closed_local(self, stream: Stream) -> None:
        """The stream is HALF_CLOSED_LOCAL; a server closes it."""
        raise NotImplementedError

    def _forget(self, stream: Stream) -> None:
        """The stream becomes CLOSED: takes it out of the table and drops its queue."""
        if self._streams.pop(stream.id, None) is not None and stream.head is not None:
            self._heads_bytes -= stream.head.own_bytes
        stream.local_ended = stream.remote_ended = True
        if stream.pending is not None:
            stream.pending = None
            self._waiting.pop(stream.id, None)
            self._unqueue(stream, stream.queued_bytes)
        if self._last_call and not self._streams:
            self.closing = True

    def _reset_id(self, stream_id: int, error_code: int) -> None:
        self._append(rst_stream_frame(stream_id, error_code))
        own_resets = self._own_resets
        if len(own_resets) >= limits.H2_OWN_RESETS_MAX:
            del own_resets[next(iter(own_resets))]
        own_resets[stream_id] = None

    # --- frames and queues --------------------------------------------------------------------------------------

    def _emit_headers(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        if self._table_update:
            block = self._table_update + block
            self._table_update = b""
        self._sent_since_ping = True
        frame_max = self._send_frame_max
        if len(block) <= frame_max:
            self._append(
                _pack(len(block) << 8 | HEADERS, _ENDED if end_stream else FLAG_END_HEADERS, stream_id) + block
            )
            return
        self._append(_pack(frame_max << 8 | HEADERS, end_stream, stream_id) + block[:frame_max])
        for start in range(frame_max, len(block), frame_max):
            part = block[start : start + frame_max]
            last = start + frame_max >= len(block)
            self._append(_pack(len(part) << 8 | CONTINUATION, FLAG_END_HEADERS if last else 0, stream_id) + part)

    def _queue(self, stream: Stream, data: bytes, end_stream: bool) -> None:
        if stream.pending is None:
            stream.pending = deque()
        stream.pending.append(memoryview(data) if len(data) > self._send_frame_max else data)
        stream.queued_bytes += len(data)
        self.queued_bytes += len(data)
        if end_stream:
            stream.local_ended = True
        self._flush_stream(stream)

    def _flush_stream(self, stream: Stream) -> None:
        """Sends as much as the windows and the step allow. A stream that waits only for these is in `_waiting` then."""
        if stream.id in self._waiting:  # it has its turn there
            return
        while stream.pending is not None:
            if self._step_left <= 0:
                self._waiting[stream.id] = stream
                return
            if not self._flush_frame(stream):
                if stream.send_window > 0:
                    self._waiting[stream.id] = stream
                return

    def _flush_waiting(self) -> None:
        """The connection's window has grown, or a step begins: one frame for each waiting stream in turn."""
        waiting = self._waiting
        while waiting and self._send_window > 0 and self._step_left > 0:
            stream_id = next(iter(waiting))
            stream = waiting.pop(stream_id)
            self._flush_frame(stream)
            if stream.pending is not None and stream.send_window > 0:
                waiting[stream_id] = stream

    def _flush_frame(self, stream: Stream) -> bool:
        """Sends the next frame of a stream's queue, and its end behind the last one. False: no window is open."""
        pending = stream.pending
        assert pending is not None
        data = pending[0]
        size = len(data)
        room = min(stream.send_window, self._send_window, self._send_frame_max)
        if size > room and size:  # an empty frame needs no window, and passes even a negative one
            if room <= 0:
                return False
            pending[0] = data[room:]
            data = data[:room]
            size = room
        else:
            pending.popleft()
        stream.send_window -= size
        self._send_window -= size
        self._step_left -= size
        ends = not pending and stream.local_ended and stream.pending_trailers is None
        if size or ends:
            self._append(_pack(size << 8, ends, stream.id))
            self._append(data)
            self._sent_since_ping = True
        if not pending:
            stream.pending = None
            self._waiting.pop(stream.id, None)
            if stream.pending_trailers is not None:
                self._emit_headers(stream.id, stream.pending_trailers, True)
            if stream.local_ended:
                self._end_local(stream)
        self._unqueue(stream, size)
        return True

    def _unqueue(self, stream: Stream, size: int) -> None:
        stream.queued_bytes -= size
        self.queued_bytes -= size
        if stream.queued_bytes <= stream.wake_below:
            stream.wake_below = -1
            self.drained.append(stream)
        if self.queued_bytes <= limits.CONNECTION_SEND_BYTES_MAX:
            self._grant_connection_credit()

    def _grant_connection_credit(self) -> None:
        raise NotImplementedError

    def _peer_shrank_table(self) -> None:
        self._table_update = _TABLE_SIZE_ZERO
