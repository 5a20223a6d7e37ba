# SPDX-License-Identifier: Apache-2.0
"""The compiled JSON codec equals protobuf's json_format, over random messages of all our types.

What is left out, because Go's protojson (which etcd uses) and Python's json_format differ there and the codec follows
Go: values that only one of them reads. `tests/unit/gateway/test_json_codec.py` holds those, row by row.
Here, what json_format writes is read by both, and both write the same.
"""

import base64
import json
import re
from typing import Any
from unittest import mock

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.methods import METHODS
from lessor.api.proto import mvcc_pb2, rpc_pb2
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_codec
from lessor.gateway.json_codec import decode, encode, encode_in_pieces
from lessor.gateway.stream import StreamDecoder, result_frame

CLASSES: list[type[Message]] = sorted(
    {cls for method in METHODS if method.routes for cls in (method.request, method.response)},
    key=lambda cls: cls.DESCRIPTOR.full_name,
)
LEVELS_MAX = 4

SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=7),
    FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=7),
}


def value_of(draw: st.DrawFn, field: FieldDescriptor, level: int) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return arguments(draw, field.message_type, level + 1)
    if field.type == FieldDescriptor.TYPE_ENUM:
        assert field.enum_type is not None
        return draw(st.sampled_from([*(value.number for value in field.enum_type.values), 77, -1]))
    return draw(SCALARS[field.type])


def arguments(draw: st.DrawFn, descriptor: Any, level: int = 1) -> dict[str, Any]:
    """Arguments of a message's constructor; of each oneof at most one member."""
    chosen: dict[str, Any] = {}
    unions = {union.name: draw(st.sampled_from([None, *union.fields])) for union in descriptor.oneofs}
    for field in descriptor.fields:
        union = field.containing_oneof
        if field.type == FieldDescriptor.TYPE_MESSAGE and level >= LEVELS_MAX:
            continue
        if unions[union.name] is not field if union else not draw(st.booleans()):
            continue
        if field.is_repeated:
            chosen[field.name] = [value_of(draw, field, level) for _ in range(draw(st.integers(0, 2)))]
        else:
            chosen[field.name] = value_of(draw, field, level)
    return chosen


@st.composite
def messages(draw: st.DrawFn, cls: type[Message] | None = None) -> Message:
    cls = cls or draw(st.sampled_from(CLASSES))
    return cls(**arguments(draw, cls.DESCRIPTOR))


def reference(message: Message, original_names: bool = True) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=original_names)


def cut(draw: st.DrawFn, message: Message) -> list[bytes]:
    """The message in pieces: fields in the order of their numbers, lists cut anywhere."""
    grains: list[Message] = []
    descriptor: Any = message.DESCRIPTOR
    for field in sorted(descriptor.fields, key=lambda field: field.number):
        if field.is_repeated:
            grains += [type(message)(**{field.name: [value]}) for value in getattr(message, field.name)]
        elif message.HasField(field.name) if field.has_presence else getattr(message, field.name):
            grains.append(type(message)(**{field.name: getattr(message, field.name)}))
    pieces = [b""]
    for grain in grains:
        if draw(st.booleans()):
            pieces.append(b"")
        pieces[-1] += grain.SerializeToString()
    return pieces


@st.composite
def messages_in_pieces(draw: st.DrawFn) -> tuple[Message, list[bytes]]:
    message = draw(messages())
    return message, cut(draw, message)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(messages_in_pieces())
def test_in_pieces_is_as_at_once(given_message: tuple[Message, list[bytes]]) -> None:
    message, pieces = given_message
    assert b"".join(encode_in_pieces(type(message), pieces)) == encode(message)
    with (
        mock.patch.object(json_codec, "_LONG_PIECE_BYTES", 3),
        mock.patch.object(json_codec, "_LIST_STEP", 2),
        mock.patch.object(json_codec, "_FEW", 1),
    ):
        assert b"".join(encode_in_pieces(type(message), pieces)) == encode(message)


def test_a_long_operation_of_a_txn_is_written_in_short_pieces() -> None:
    kvs = [mvcc_pb2.KeyValue(key=b"k%d" % number) for number in range(5_000)]
    reply = rpc_pb2.TxnResponse(
        responses=[rpc_pb2.ResponseOp(response_range=rpc_pb2.RangeResponse(kvs=kvs, count=5_000))]
    )
    texts = list(encode_in_pieces(rpc_pb2.TxnResponse, [reply.SerializeToString()]))
    assert b"".join(texts) == encode(reply)
    assert max(text.count(b'"key"') for text in texts) <= 500


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(messages())
def test_encode_equals_json_format(message: Message) -> None:
    expected = json.dumps(reference(message), separators=(",", ":"), ensure_ascii=False)
    assert encode(message) == expected.encode()


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(messages(), st.booleans(), st.booleans())
def test_decode_equals_json_format(message: Message, original_names: bool, ascii_only: bool) -> None:
    text = json.dumps(reference(message, original_names), ensure_ascii=ascii_only)
    decoded = decode(type(message), text.encode())
    assert decoded == message
    assert decoded == json_format.Parse(text, type(message)())
    # Equal messages may differ in which member of a oneof is set to zero, or in an empty message that is there.
    assert decoded.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=20), st.booleans(), st.booleans())
def test_every_spelling_of_base64(data: bytes, url_safe: bool, padded: bool) -> None:
    cls = next(method.request for method in METHODS if method.name == "Range")
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data)
    if not padded:
        text = text.rstrip(b"=")
    assert decode(cls, b'{"key":"%b"}' % text) == cls(key=data)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="AZaz09+/-_= \n", max_size=9))
def test_base64_is_read_by_the_rules_of_go(text: str) -> None:
    """Against those rules written as patterns: one alphabet, padded or not, line breaks inside ignored."""
    cls = next(method.request for method in METHODS if method.name == "Range")
    alphabet = "[A-Za-z0-9_-]" if re.search("[-_]", text) else "[A-Za-z0-9+/]"
    tail = "({0}{0}==|{0}{{3}}=)?" if len(text) % 4 == 0 else "({0}{0}|{0}{{3}})?"
    pattern = ("({0}{{4}})*" + tail).format(alphabet)
    valid = re.fullmatch(pattern, text.replace("\n", "")) is not None
    try:
        decode(cls, json.dumps({"key": text}).encode())
        accepted = True
    except EtcdError:
        accepted = False
    assert accepted is valid


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def almost_requests(draw: st.DrawFn) -> tuple[type[Message], bytes]:
    """JSON with known names and any values, sometimes cut or with a byte changed."""
    cls = draw(st.sampled_from(CLASSES))
    names = [name for field in cls.DESCRIPTOR.fields for name in (field.name, field.json_name)] or ["x"]
    value = draw(st.dictionaries(st.sampled_from(names), json_values, max_size=4))
    text = bytearray(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        text[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return cls, bytes(text)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(almost_requests())
def test_garbage_is_accepted_or_invalid_argument(request: tuple[type[Message], bytes]) -> None:
    cls, body = request
    refusal: EtcdError | None = None
    try:
        decode(cls, body)
    except EtcdError as error:
        refusal = error
    assert refusal is None or (refusal.code is Code.INVALID_ARGUMENT and len(refusal.message) < 400)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CLASSES).flatmap(lambda cls: st.lists(messages(cls), min_size=1, max_size=4)), st.data())
def test_streams_are_cut_anywhere(sent: list[Message], data: st.DataObject) -> None:
    """Whatever the pieces are, the same messages come out, in order."""
    cls = type(sent[0])
    space = st.text(" \t\r\n", max_size=2)
    body = "".join(data.draw(space) + encode(message).decode() for message in sent).encode() + b"\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    decoder = StreamDecoder(cls, 1_000_000, 1_000_000)
    received = []
    for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True):
        received += decoder.feed(body[start:stop])
    decoder.finish()
    assert decoder.error is None
    assert received == sent


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40) | st.text('{}[]"\\,: 1n', max_size=30).map(str.encode), st.integers(0, 40))
def test_stream_garbage_is_an_error_wherever_it_is_cut(body: bytes, cut: int) -> None:
    outcomes = []
    for pieces in ([body], [body[:cut], body[cut:]]):
        decoder = StreamDecoder(CLASSES[0], 30, 1_000)
        count = sum(len(decoder.feed(piece)) for piece in pieces)
        decoder.finish()
        outcomes.append((count, decoder.error and decoder.error.message))
    assert outcomes[0][0] == outcomes[1][0]
    assert (outcomes[0][1] is None) == (outcomes[1][1] is None)


@settings(max_examples=50, deadline=None)
@given(messages())
def test_a_result_frame_is_one_line(message: Message) -> None:
    frame = result_frame(message)
    assert frame.count(b"\n") == 1
    assert frame.endswith(b"\n")
    assert json.loads(frame) == {"result": reference(message)}
