# SPDX-License-Identifier: Apache-2.0
"""The chunked transfer coding, in both directions: a decoder for request bodies, and the chunks of a reply.

Laws
- A line ends with CRLF, and a size is plain hexadecimal digits. With looser rules two readers could disagree about
  where the body ends.
- Extensions and trailers are read and dropped, within bounds, because our protocol uses neither.
- One call reads H1_STEP_LINES lines at most: a peer may send a line for each byte.

The body "ab" + "cde" with an extension and a trailer has these lines:

    2;note=x | ab | 3 | cde | 0 | Digest: 7 | (empty)
"""

import re

from lessor.base import limits
from lessor.wire.h1_head import RefusedError

SIZE_LINE_BYTES_MAX = limits.H1_CHUNK_SIZE_LINE_BYTES_MAX
# A size has 15 digits at most, so that a length stays within 60 bits.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n")

LAST_CHUNK = b"0\r\n\r\n"

_SIZE, _DATA, _DATA_END, _TRAILERS = range(4)


def chunk(data: bytes) -> bytes:
    """One chunk of a reply. `data` must not be empty, because an empty chunk ends the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class ChunkedDecoder:
    """Decodes one chunked body, which may arrive cut anywhere."""

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "done")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0  # bytes of the current chunk that are still to come
        self._line = b""  # the beginning of a line whose end has not come yet
        self._trailer_bytes = 0
        self.done = False

    def feed(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        """Decodes `data` from offset `at`; returns pieces of the body, and the offset of the first byte not used.

        That offset is before the end of `data` when the body is complete (`done`), or when a step is over: call again
        from there. Raises RefusedError (400) for a malformed chunk, and for a line or trailers that are too long.
        """
        pieces: list[bytes] = []
        size = len(data)
        lines = limits.H1_STEP_LINES
        while at < size and lines and not self.done:
            if self._state == _DATA:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _DATA_END
                continue
            end = data.find(b"\n", at)
            stop = size if end < 0 else end + 1
            line = self._line + data[at:stop]
            at = stop
            lines -= 1
            self._check_length(line)
            if end < 0:
                self._line = line
            else:
                self._line = b""
                self._take_line(line)
        return pieces, at

    def _check_length(self, line: bytes) -> None:
        if self._state == _TRAILERS:
            if self._trailer_bytes + len(line) > limits.H1_HEAD_BYTES_MAX:
                raise RefusedError(400, f"trailers of more than {limits.H1_HEAD_BYTES_MAX} bytes")
        elif len(line) > SIZE_LINE_BYTES_MAX:
            raise RefusedError(400, f"chunk size line of more than {SIZE_LINE_BYTES_MAX} bytes")

    def _take_line(self, line: bytes) -> None:
        if self._state == _SIZE:
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise RefusedError(400, "malformed chunk size")
            self._left = int(found[1], 16)
            self._state = _DATA if self._left else _TRAILERS
        elif self._state == _DATA_END:
            if line != b"\r\n":
                raise RefusedError(400, "chunk longer than its size")
            self._state = _SIZE
        elif line == b"\r\n":
            self.done = True
        elif _TRAILER.fullmatch(line) is None:
            raise RefusedError(400, "malformed trailer")
        else:
            self._trailer_bytes += len(line)
