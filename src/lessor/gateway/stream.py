# SPDX-License-Identifier: Apache-2.0
"""Streams of JSON in one HTTP request and its response: objects in, one frame per message out.

Laws
- In: objects follow each other with any white space between them, cut anywhere; no commas, no array around them.
- Out: each message is `{"result":{...}}` and a newline. An error ends the stream as `{"error":{...}}` and a newline;
  when nothing was sent before, the response has the error's HTTP status.
- The size of an incomplete object is bounded, and so is the number of its brackets. Each of its bytes is looked at
  twice at most.

Theory of operation. `StreamDecoder` looks only for brackets outside strings to find the end of an object, and hands the
whole object to the codec. Objects before a malformed one are delivered.
"""

import re
from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_codec

_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # up to its end, or to a backslash that nothing follows
_BETWEEN_BRACKETS = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)  # with the strings there
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_QUOTE, _OPEN = b'"{'
_OPENING = frozenset(b"{[")


def result_frame(message: Message) -> bytes:
    """One message of a streaming reply."""
    return b'{"result":' + json_codec.encode(message) + b"}\n"


def result_frame_in_pieces(message_class: type[Message], pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same of a long message, whose serialized form is the sum of `pieces`: see `json_codec.encode_in_pieces`."""
    yield b'{"result":'
    yield from json_codec.encode_in_pieces(message_class, pieces)
    yield b"}\n"


def error_frame(error: EtcdError) -> bytes:
    """The end of a streaming reply that failed."""
    return b'{"error":%b}\n' % status_object(error.code, error.message)


def status_object(code: int, message: str) -> bytes:
    """An error as etcd 3.6 spells it: `{"code":5,"message":"..."}`."""
    return b'{"code":%d,"message":%b}' % (code, json_codec.quoted(message))


def _after(letters: re.Pattern[bytes], buffer: bytearray, at: int) -> int:
    found = letters.match(buffer, at)
    assert found is not None  # the empty run, if nothing else
    return found.end()


class StreamDecoder:
    """Reads the requests of one stream. `error` is set for good by the first bytes that are not a request.

    `object_bytes_max`: of one object, in bytes of JSON. `values_max`: see json_codec.decode.
    """

    __slots__ = (
        "_at",
        "_buffer",
        "_class",
        "_depth",
        "_in_string",
        "_object_bytes_max",
        "_opened",
        "_values_max",
        "cost",
        "error",
        "waiting",
    )

    def __init__(self, message_class: type[Message], object_bytes_max: int, values_max: int) -> None:
        self._class = message_class
        self._object_bytes_max = object_bytes_max
        self._values_max = values_max
        self._buffer = bytearray()  # from the first byte of the incomplete object
        self._at = 0  # the bytes of the buffer that were looked at
        self._depth = 0  # open brackets after those
        self._opened = 0  # brackets that have been opened in the object
        self._in_string = False
        self.error: EtcdError | None = None
        self.waiting = False  # whether bytes wait that may hold whole objects
        self.cost = 0  # of the last `feed`, in requests of STREAM_REQUEST_BYTES

    @property
    def unfinished_bytes(self) -> int:
        """The bytes that are kept: of an incomplete object, or of objects that wait."""
        return len(self._buffer)

    def feed(self, data: bytes, cost_max: int | None = None) -> list[Message]:
        """Takes bytes of the body; returns the messages that they complete, in order. Does not raise: see `error`.

        Those beyond a cost of `cost_max` wait for the next call, whose `data` may be empty: see `waiting`.
        """
        messages: list[Message] = []
        self.waiting = False
        self.cost = 0
        if self.error is not None:
            return messages
        self._buffer += data
        try:
            while True:
                if cost_max is not None and self.cost >= cost_max:
                    self.waiting = bool(self._buffer)
                    return messages
                end = self._object_end()
                if not end:
                    break
                messages.append(json_codec.decode(self._class, bytes(self._buffer[:end]), self._values_max))
                del self._buffer[:end]
                self.cost += 1 + end // limits.STREAM_REQUEST_BYTES + self._opened // limits.STREAM_REQUEST_BRACKETS
                self._at = self._opened = 0
            if len(self._buffer) > self._object_bytes_max:
                self._refuse_size(len(self._buffer))
        except EtcdError as error:
            self.error = error.bare()  # its traceback would keep this decoder
            self._buffer.clear()
        return messages

    def finish(self) -> None:
        """Ends the body. Sets `error` if the body ended inside an object."""
        if self.error is None and self._buffer:
            self.error = EtcdError(Code.INVALID_ARGUMENT, "unexpected EOF")
            self._buffer.clear()

    def drop(self) -> None:
        """Forgets the bytes that are kept."""
        self._buffer.clear()
        self.waiting = False

    def _refuse_size(self, size: int) -> None:
        raise EtcdError(
            Code.RESOURCE_EXHAUSTED,
            f"grpc: received message larger than max ({size} vs. {self._object_bytes_max})",
        )

    def _object_end(self) -> int:
        """The offset after the first object of the buffer; 0 when it is not complete."""
        buffer = self._buffer
        if not self._at and not self._skip_space():
            return 0
        at, size = self._at, len(buffer)
        if self._in_string:
            at = _after(_IN_STRING, buffer, at)
            self._in_string = buffer[at : at + 1] != b'"'
            at += not self._in_string
        while not self._in_string:
            at = _after(_BETWEEN_BRACKETS, buffer, at)
            if at == size:
                break
            letter = buffer[at]
            at += 1
            if letter == _QUOTE:  # of a string that has not come in whole
                at = _after(_IN_STRING, buffer, at)
                self._in_string = True
            elif letter in _OPENING:
                self._depth += 1
                self._opened += 1
                json_codec.refuse_many_values(self._opened, self._values_max)
            else:
                self._depth -= 1
                if not self._depth:
                    if at > self._object_bytes_max:
                        self._refuse_size(at)
                    return at
        self._at = at
        return 0

    def _skip_space(self) -> bool:
        """Drops the space before an object. False when there is nothing else; raises when no object begins there."""
        found = _NOT_SPACE.search(self._buffer)
        if found is None:
            self._buffer.clear()
            return False
        start = found.start()
        if self._buffer[start] != _OPEN:
            token = bytes(self._buffer[start : start + 1]).decode("latin-1")
            raise EtcdError(
                Code.INVALID_ARGUMENT, f"proto: syntax error: unexpected token {token} where an object begins"
            )
        del self._buffer[:start]
        return True
