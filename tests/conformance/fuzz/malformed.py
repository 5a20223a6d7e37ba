# SPDX-License-Identifier: Apache-2.0
"""The area of malformed gRPC: request bytes that are damaged, and calls that are put together wrongly.

`Sent` damages the encoding of a request: cut, changed, lengthened, with fields that nobody knows or of the wrong type,
varints of eleven bytes, text that is not UTF-8. Where both sides refuse to read it, etcd's text is the wording of a Go
library and is not compared, the code is. Where protobuf's decoders disagree on what can be read (`disputed.py`), each
side has to answer, and the sequence ends, since only one may have done something.

`Framed` leaves the message alone and breaks what is around it: path, verb, content type, a length beyond the limit,
the flag in front of the message. The HTTP status counts only where there is no other.
"""

from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

from lessor.api.methods import BY_PATH, Method
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.fuzz import any_message
from tests.conformance.fuzz.disputed import disputed
from tests.conformance.fuzz.pair import Side
from tests.conformance.fuzz.steps import plain
from tests.conformance.grpc_peer import CALL_S_MAX, Failure
from tests.conformance.raw_h2 import RawH2, framed
from tests.property.strategies import mostly

# What follows is the wording of Go's libraries.
_GO_WORDING = ("grpc: error unmarshalling request: ",)


class Cut(NamedTuple):
    """The bytes from this place on are missing."""

    at: int

    def __call__(self, data: bytes) -> bytes:
        return data[: self.at % (len(data) + 1)]


class Change(NamedTuple):
    """One byte is another."""

    at: int
    byte: int

    def __call__(self, data: bytes) -> bytes:
        at = self.at % len(data) if data else 0
        return data[:at] + bytes((self.byte,)) + data[at + 1 :]


class Insert(NamedTuple):
    at: int
    extra: bytes

    def __call__(self, data: bytes) -> bytes:
        at = self.at % (len(data) + 1)
        return data[:at] + self.extra + data[at:]


class Append(NamedTuple):
    extra: bytes

    def __call__(self, data: bytes) -> bytes:
        return data + self.extra


class Sent(NamedTuple):
    path: str
    request: Any
    damages: list[Any]


class Framed(NamedTuple):
    """`size`: what is added to the length before the message. `headers`: pairs that replace or add."""

    path: str
    message: bytes
    flag: int
    size: int
    verb: str
    headers: dict[str, str]


def play(side: Side, steps: list[Any]) -> list[Any]:
    notes: list[Any] = []
    for step in steps:
        if isinstance(step, Framed):
            # The gRPC library of 3.5 has other codes for most of it.
            notes.append(None if side.old else _framed(side, step))
            continue
        data = side.now.place(step.request).SerializeToString(deterministic=True)
        for damage in step.damages:
            data = damage(data)
        method = BY_PATH[step.path]
        if not disputed(method.request.DESCRIPTOR, data):  # type: ignore[arg-type]
            notes.append(_sent(side, method, data))
            continue
        # A user whose name is no UTF-8 would stay in etcd: what lists it, nobody can read.
        if method.service != "etcdserverpb.Auth":
            _sent(side, method, data)
        break
    return notes


def _sent(side: Side, method: Method, data: bytes) -> Any:
    try:
        request: Message | None = method.request.FromString(data)
    except DecodeError:
        request = None
    if not any_message.harmless(side, method, request):
        return None
    call = side.subject.channel.unary_unary(method.path, response_deserializer=method.response.FromString)
    try:
        reply: Any = call(data, timeout=CALL_S_MAX)
    except grpc.RpcError as error:
        status: Any = error
        reply = Failure(status.code().value[0], _text(status.details()))
    side.now.learn(request or rpc.StatusRequest(), reply)
    return plain(reply)


def _framed(side: Side, step: Framed) -> Any:
    body = bytearray(framed(step.message, step.flag))
    body[1:5] = max(0, len(step.message) + step.size).to_bytes(4, "big")
    headers: Any = step.headers
    with RawH2(side.subject.server.address) as connection:
        stream = connection.open(step.path, bytes(body), method=step.verb, **headers)
        blocks: list[dict[str, str]] = []
        answered = b""
        while (frame := connection.read()) is not None:
            if frame.stream != stream:
                continue
            blocks += [frame.block] if frame.block else []
            answered += frame.payload if frame.kind == 0 else b""
            if frame.ends:
                break
    fields = {name: text for block in blocks for name, text in block.items()}
    return _note(fields, answered)


def _note(fields: dict[str, str], answered: bytes) -> Any:
    status = fields.get("grpc-status")
    if status is None:
        return fields.get(":status")
    return status, _text(fields.get("grpc-message", "")), bool(answered)


def _text(text: str) -> str:
    return next((known for known in _GO_WORDING if text.startswith(known)), text)


_EXTRAS = (
    b"\xff" * 10 + b"\x01",  # a varint of eleven bytes
    b"\x08" + b"\x80" * 9 + b"\x02",  # one that does not fit into 64 bits
    b"\x08" + b"\xff" * 9 + b"\x01",  # -1
    b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of -1
    b"\x0a\xff\xff\xff\xff\x0f",  # a length of four gigabytes
    b"\x0a\x02\xc3\x28",  # not UTF-8
    b"\x0a\x00",
    b"\x0d\x01\x00\x00\x00",  # field 1 as fixed32
    b"\x09\x01\x00\x00\x00\x00\x00\x00\x00",  # field 1 as fixed64
    b"\x0b\x0c",  # field 1 as a group
    b"\x0b\x08\x01\x0c",
    b"\x0c",  # the end of a group that never began
    b"\x0b",  # a group that never ends
    b"\x0f",  # a wire type that does not exist
    b"\x00\x00",  # field number 0
    b"\xfa\xff\xff\xff\x0f\x01x",  # field number 2^29 - 1
    b"\xf8\xff\xff\xff\x7f\x01",  # one beyond it
    b"\xa2\x06\x03abc",  # field 100, which nobody knows
    b"\xa0\x06\x96\x01",
    b"\xa3\x06\xa0\x06\x01\xa4\x06",  # an unknown group
    b"\x22\x03\x1a\x01x",
)
_places = st.integers(0, 40)
_damages = st.one_of(
    st.builds(Append, st.sampled_from(_EXTRAS)),
    st.builds(Insert, _places, st.sampled_from(_EXTRAS)),
    st.builds(Cut, _places),
    st.builds(Change, _places, st.one_of(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)), st.integers(0, 255))),
)
_sent_steps = st.sampled_from(any_message.SENT).flatmap(
    lambda method: st.builds(
        Sent,
        st.just(method.path),
        any_message.of(method),
        mostly(st.lists(_damages, min_size=1, max_size=3), st.just([]), 5),
    )
)
_PATHS = (
    "/",
    "//",
    "/x",
    "/x/y",
    "/x/y/z",
    "/etcdserverpb.KV/",
    "/etcdserverpb.KV/None",
    "/etcdserverpb.Nothing/Range",
    "/etcdserverpb.KV/Range/",
    "/etcdserverpb.kv/Range",
    "//etcdserverpb.KV/Range",
    "/v3/kv/range",
    "/a b/c",
)
_CONTENTS = (
    "application/grpc",
    "application/grpc+proto",
    "application/grpc+json",
    "application/grpc;charset=utf-8",
    "application/grpc+",
    "application/grpc;",
)
_TIMEOUTS = ("10S", "1H", "100000000S", "0n", "-1S", "S", "1", "10x", "", "1.5S", '1"S')
_headers = st.one_of(
    st.sampled_from(_CONTENTS).map(lambda text: {"content_type": text}),
    st.sampled_from(("10S", "1H", "100000000S", "0n", "-1S", "S", "1", "10x", "", "1.5S", '1"S')).map(
        lambda t: {"grpc_timeout": t}
    ),
    st.sampled_from(("identity", "gzip", "snappy", "deflate", "")).map(lambda text: {"grpc_encoding": text}),
    st.sampled_from(({"key_bin": "AAA"}, {"token": ""}, {"hasleader": "true"}, {"hasleader": "x"})),
)
_RANGE = Framed("/etcdserverpb.KV/Range", b"\x0a\x01a", 0, 0, "POST", {})
# One fault at a time: which of two faults is reported does not matter.
_framed_steps = st.one_of(
    st.sampled_from(_PATHS).map(lambda path: _RANGE._replace(path=path)),
    st.sampled_from((b"", b"\x0a")).map(lambda message: _RANGE._replace(message=message)),
    st.sampled_from((1, 2, 255)).map(lambda flag: _RANGE._replace(flag=flag)),
    st.sampled_from((-1, 1, 2, 3_000_000, (1 << 32) - 9)).map(lambda size: _RANGE._replace(size=size)),
    st.sampled_from(("GET", "PUT", "OPTIONS", "HEAD", "post")).map(lambda verb: _RANGE._replace(verb=verb)),
    _headers.map(lambda headers: _RANGE._replace(headers=headers)),
)
STEPS = st.integers(1, 10).flatmap(
    lambda size: st.lists(mostly(_sent_steps, _framed_steps, 4), min_size=size, max_size=size)
)
