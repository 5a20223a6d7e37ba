# SPDX-License-Identifier: Apache-2.0
"""JSON as etcd 3.6 spells it. Each row of the tables below was observed on an etcd 3.6.16 with curl."""

import json
import sys
from binascii import b2a_base64
from typing import Any

import pytest
from google.protobuf.message import Message

from lessor.api.proto.auth_pb2 import Permission
from lessor.api.proto.mvcc_pb2 import Event, KeyValue
from lessor.api.proto.rpc_pb2 import (
    AlarmMember,
    AlarmRequest,
    AuthenticateRequest,
    AuthUserListResponse,
    Compare,
    HashKVResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    StatusResponse,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from lessor.base import limits
from lessor.base.errors import Code, EtcdError
from lessor.gateway import json_codec, json_faults
from lessor.gateway.json_codec import decode, encode, quoted
from lessor.gateway.stream import StreamDecoder, error_frame, result_frame
from lessor.server.options import Options


def refused(message_class: type[Message], body: bytes) -> str:
    with pytest.raises(EtcdError) as caught:
        decode(message_class, body)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


# --- out ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            LeaseGrantResponse(
                header=ResponseHeader(
                    cluster_id=17376908466636080180, member_id=351898220565275620, revision=3, raft_term=2
                ),
                ID=2586370216487969076,
                TTL=2,
            ),
            '{"header":{"cluster_id":"17376908466636080180","member_id":"351898220565275620","revision":"3",'
            '"raft_term":"2"},"ID":"2586370216487969076","TTL":"2"}',
        ),
        (LeaseTimeToLiveResponse(ID=12345, TTL=-1), '{"ID":"12345","TTL":"-1"}'),
        (LeaseTimeToLiveResponse(TTL=9, grantedTTL=10, keys=[b"foo", b""]),
         '{"TTL":"9","grantedTTL":"10","keys":["Zm9v",""]}'),
        (
            KeyValue(key=b"<<>&", create_revision=2, mod_revision=3, version=2, value=b"\xff\xef", lease=1),
            '{"key":"PDw+Jg==","create_revision":"2","mod_revision":"3","version":"2","value":"/+8=","lease":"1"}',
        ),
        (HashKVResponse(hash=1061777602, compact_revision=-1, hash_revision=5),
         '{"hash":1061777602,"compact_revision":"-1","hash_revision":"5"}'),
        (AlarmMember(memberID=1, alarm="CORRUPT"), '{"memberID":"1","alarm":"CORRUPT"}'),
        (StatusResponse(version="3.6.16", dbSize=20480, downgradeInfo={}),
         '{"version":"3.6.16","dbSize":"20480","downgradeInfo":{}}'),
        (AuthUserListResponse(users=['<a>&A\U0001f600\u2028\x7f"\\/\x01\b\t\r\n\f']),
         '{"users":["<a>&A\U0001f600\u2028\x7f\\"\\\\/\\u0001\\b\\t\\r\\n\\f"]}'),
        (WatchResponse(created=True), '{"created":true}'),
        (WatchResponse(watch_id=1, events=[Event(type="DELETE", kv=KeyValue(key=b"a", mod_revision=7)), Event(kv={})]),
         '{"watch_id":"1","events":[{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"7"}},{"kv":{}}]}'),
        (RangeResponse(), "{}"),
        # A member of a oneof is there even when it is zero, an enum without a name is a number.
        (Compare(key=b"k", lease=0), '{"key":"aw==","lease":"0"}'),
        (Compare(value=b""), '{"value":""}'),
        (RequestOp(request_txn={}), '{"request_txn":{}}'),
        (RangeRequest(sort_order=99), '{"sort_order":99}'),  # type: ignore[arg-type]
        (WatchCreateRequest(filters=["NOPUT", "NODELETE"]), '{"filters":["NOPUT","NODELETE"]}'),
        (Permission(permType="READWRITE"), '{"permType":"READWRITE"}'),
        # By number, not by name or by the order in the file.
        (Compare(range_end=b"z", result="NOT_EQUAL", version=-5),
         '{"result":"NOT_EQUAL","version":"-5","range_end":"eg=="}'),
    ],
)  # fmt: skip
def test_spelling(message: Message, text: str) -> None:
    assert encode(message) == text.encode()
    assert decode(type(message), text.encode()) == message


# --- in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ttl"),
    [
        ("100", 100), ('"100"', 100), ("1e2", 100), ('"1e2"', 100), ("1E+2", 100), ("100.0", 100), ('"1.0"', 1),
        ('"100e-1"', 10), ("0e99999", 0), ('"0e5000"', 0), ("-0", 0), ('"-0"', 0), ("null", 0), ("-7", -7),
        ('"9223372036854775807"', 2**63 - 1), ('"9223372036854775807.0"', 2**63 - 1),
        ("-9223372036854775808", -(2**63)), ("0.5e1", 5), ("123.45e2", 12345), ("1.20e1", 12),
    ],
)  # fmt: skip
def test_integers(value: str, ttl: int) -> None:
    assert decode(LeaseGrantRequest, b'{"TTL":%b}' % value.encode()) == LeaseGrantRequest(TTL=ttl)


@pytest.mark.parametrize(
    "value",
    [
        '"abc"', "1.5", '" 100"', '"100 "', '"0100"', '"+100"', '""', "true", "{", "[", '"9223372036854775808"',
        "9223372036854775808", "-9223372036854775809", '"1e20"', "1e99999", "1e999999999999999999999", '"0x10"',
        '"1_0"', '"\uff11\uff10\uff10"', "1e-1", '"1e"', '"."', '"-"', '"1.e1"',
    ],
)  # fmt: skip
def test_refused_integers(value: str) -> None:
    shown = value
    body = value + {"{": "}", "[": "]"}.get(value, "")
    message = refused(LeaseGrantRequest, b'{"TTL":%b}' % body.encode())
    assert message == f"proto: (line 1:8): invalid value for int64 field TTL: {shown}"


@pytest.mark.parametrize(
    ("value", "member_id"),
    [('"18446744073709551615"', 2**64 - 1), ("18446744073709551615", 2**64 - 1),
     ("1.8446744073709551615e19", 2**64 - 1), ("-1", None), ('"-1"', None), ("18446744073709551616", None)],
)  # fmt: skip
def test_unsigned_integers(value: str, member_id: int | None) -> None:
    body = b'{"memberID":%b}' % value.encode()
    if member_id is None:
        assert refused(AlarmRequest, body) == f"proto: (line 1:13): invalid value for uint64 field memberID: {value}"
    else:
        assert decode(AlarmRequest, body).memberID == member_id


@pytest.mark.parametrize("value", ["4294967295", '"4294967295"', "4294967295.0"])
def test_32_bit_integers(value: str) -> None:
    assert decode(HashKVResponse, b'{"hash":%b}' % value.encode()).hash == 2**32 - 1
    assert "uint32 field hash" in refused(HashKVResponse, b'{"hash":4294967296}')


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Zm9v", b"foo"), ("Zm8=", b"fo"), ("Zm8", b"fo"), ("_-8=", b"\xff\xef"), ("_-8", b"\xff\xef"),
        ("/+8=", b"\xff\xef"), ("Zg==", b"f"), ("Zg", b"f"), ("Zm9vZg-_", b"foof\x0f\xbf"), ("", b""),
        (r"Zm9v\n", b"foo"), (r"Zm\r\n9v\n\n", b"foo"), ("Zm9=", b"fo"), ("Zm9", b"fo"),
    ],
)  # fmt: skip
def test_base64(text: str, key: bytes) -> None:
    assert decode(RangeRequest, b'{"key":"%b"}' % text.encode()).key == key


@pytest.mark.parametrize(
    "text",
    [
        "!!", "_/8", "-+8=", "Zm 9v", "Zm9v=", "Zm9v====", "Zg=", "Zg=a", "====", "=", "Zm8=Zm8=", "Z", "Zm9vZ",
        r"Zm8=\n", r"Zm\n8", "Zm9\u00e9", "Zg===", "Zm8==",
    ],
)  # fmt: skip
def test_refused_base64(text: str) -> None:
    assert refused(RangeRequest, b'{"key":"%b"}' % text.encode()) == (
        f'proto: (line 1:8): invalid value for bytes field key: "{text}"'
    )


@pytest.mark.parametrize(
    ("value", "order"),
    [
        ('"DESCEND"', 2), ("2", 2), ("2.0", 2), ("null", 0), ("99", 99), ("-1", -1),
        # Names that nobody knows are skipped, as unknown fields are; a quoted number is such a name.
        ('"descend"', 0), ('"2"', 0),
    ],
)  # fmt: skip
def test_enums(value: str, order: int) -> None:
    assert decode(RangeRequest, b'{"sort_order":%b}' % value.encode()).sort_order == order


@pytest.mark.parametrize("value", ["99999999999", "1.5", "true"])
def test_refused_enums(value: str) -> None:
    message = refused(RangeRequest, b'{"sort_order":%b}' % value.encode())
    assert message == f"proto: (line 1:15): invalid value for enum field sortOrder: {value}"


def test_unknown_enum_names_drop_out_of_lists() -> None:
    request = decode(WatchCreateRequest, b'{"filters":["NOPUT",1,"x"]}')
    assert list(request.filters) == [0, 1]


@pytest.mark.parametrize(
    ("body", "request_"),
    [
        (b"", LeaseGrantRequest()),
        (b" \r\n\t ", LeaseGrantRequest()),
        (b"{}", LeaseGrantRequest()),
        (b' {"TTL" : 5 } ', LeaseGrantRequest(TTL=5)),
        (b'{"TTL":5} garbage', LeaseGrantRequest(TTL=5)),
        (b'{"TTL":5}{"TTL":6}', LeaseGrantRequest(TTL=5)),
        (b'{"TTL":5}//x', LeaseGrantRequest(TTL=5)),
        (b'{"ttl":5,"tTL":"x","":1,"[a]":1,"@type":"x"}', LeaseGrantRequest()),
        (b'{"nope":{"a":[1,2,{"b":null}]},"TTL":5}', LeaseGrantRequest(TTL=5)),
        (b'{"x":1,"x":2,"TTL":5}', LeaseGrantRequest(TTL=5)),
        (b'{"T\\u0054L":"5"}', LeaseGrantRequest(TTL=5)),
        (b'{"range_end":"AA=="}', RangeRequest(range_end=b"\0")),
        (b'{"rangeEnd":"AA=="}', RangeRequest(range_end=b"\0")),
        (b'{"remaining_TTL":"1"}', LeaseGrantRequest()),
        (b'{"compare":null,"success":[{"requestRange":{"key":"AA=="}}]}',
         TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"\0"))])),
        (b'{"success":[{"request_range":null}]}', TxnRequest(success=[RequestOp()])),
        (b'{"compare":[{"key":"Zm9v","value":null,"lease":0}]}', TxnRequest(compare=[Compare(key=b"foo", lease=0)])),
        (b'{"create_request":{}}', WatchRequest(create_request=WatchCreateRequest())),
        (b'{"progressRequest":{}}', WatchRequest(progress_request={})),
        (b'{"name":"<a>&\\u0041\\ud83d\\ude00"}', AuthenticateRequest(name="<a>&A\U0001f600")),
        (b'{"ID":1,"keys":true}', LeaseTimeToLiveRequest(ID=1, keys=True)),
        (b'{"ID":1,"keys":false}', LeaseTimeToLiveRequest(ID=1)),
    ],
)  # fmt: skip
def test_accepted(body: bytes, request_: Message) -> None:
    assert decode(type(request_), body) == request_


@pytest.mark.parametrize(
    ("message_class", "body", "message"),
    [
        (LeaseGrantRequest, b'{"TTL":', "unexpected EOF"),
        (LeaseGrantRequest, b'{"TTL":5', "unexpected EOF"),
        (LeaseGrantRequest, b'{"TTL":"5', "unexpected EOF"),
        (LeaseGrantRequest, b"[]", "proto: syntax error (line 1:1): unexpected token ["),
        (LeaseGrantRequest, b"null", "proto: syntax error (line 1:1): unexpected token null"),
        (LeaseGrantRequest, b'"x"', 'proto: syntax error (line 1:1): unexpected token "x"'),
        (LeaseGrantRequest, b"123", "proto: syntax error (line 1:1): unexpected token 123"),
        (LeaseGrantRequest, b"1.5", "proto: syntax error (line 1:1): unexpected token 1.5"),
        (LeaseGrantRequest, b"false", "proto: syntax error (line 1:1): unexpected token false"),
        (LeaseGrantRequest, b'{"TTL":100, "TTL":101}', 'proto: (line 1:13): duplicate field "TTL"'),
        (LeaseGrantRequest, b'{"TTL":null, "TTL":101}', 'proto: (line 1:14): duplicate field "TTL"'),
        (RangeRequest, b'{"range_end":"","rangeEnd":""}', 'proto: (line 1:17): duplicate field "rangeEnd"'),
        (Compare, b'{"value":"","lease":1}',
         'proto: (line 1:13): error parsing "lease", oneof etcdserverpb.Compare.target_union is already set'),
        (TxnRequest, b'{"compare":[null]}', "proto: syntax error (line 1:13): unexpected token null"),
        (TxnRequest, b'{"success":[{"requestRange":"x"}]}', 'proto: syntax error (line 1:29): unexpected token "x"'),
        (TxnRequest, b'{"success":[{"requestRange":{"key":"!"}}]}',
         'proto: (line 1:36): invalid value for bytes field key: "!"'),
        (RangeRequest, b'{"key":12}', "proto: (line 1:8): invalid value for bytes field key: 12"),
        (AuthenticateRequest, b'{"name":12}', "proto: (line 1:9): invalid value for string field name: 12"),
        (LeaseTimeToLiveRequest, b'{"keys":"true"}', 'proto: (line 1:9): invalid value for bool field keys: "true"'),
        (LeaseTimeToLiveRequest, b'{"keys":1}', "proto: (line 1:9): invalid value for bool field keys: 1"),
    ],
)  # fmt: skip
def test_refused(message_class: type[Message], body: bytes, message: str) -> None:
    assert refused(message_class, body) == message


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b'{"TTL":100,}', "'}' looking for beginning of object key string"),
        (b'{"nope":tru,"TTL":100}', "',' in literal true (expecting 'e')"),
        (b"{'TTL':100}", "'\\'' looking for beginning of object key string"),
        (b'{"TTL" 5}', "'5' after object key"),
        (b'{"TTL":5]', "']' after object key:value pair"),
        (b'{"TTL":01}', "'1' after object key:value pair"),
        (b'{\n"TTL":\n}', "'}' looking for beginning of value"),
        (b"}", "'}' looking for beginning of value"),
        (b"/*x*/{}", "'/' looking for beginning of value"),
        (b'{"TTL":"1\t0"}', "'\\t' in string literal"),
        (b'{"TTL":NaN}', "'N' looking for beginning of value"),
        (b'{"x":-Infinity}', "'I' in numeric literal"),
        (b'\xef\xbb\xbf{"TTL":5}', "'\xef' looking for beginning of value"),
        (b'{"x":"\xff"}', "syntax error (line 1:6): invalid UTF-8 in string"),
        ('{"TTL":5}'.encode("utf-16"), "'\xff' looking for beginning of value"),
        (b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "max depth"),
        (b'{"compare":{}}', "syntax error (line 1:12): unexpected token {"),
        (b'{"compare":[{"key":"","value":1}]}', "bytes field value"),
    ],
)  # fmt: skip
def test_refused_with_a_reason(body: bytes, part: str) -> None:
    message = refused(TxnRequest if b"compare" in body else LeaseGrantRequest, body)
    assert part in message
    assert len(message) < 300


def test_what_is_nested_as_deep_as_can_be_read_is_refused_like_any_other() -> None:
    limit = sys.getrecursionlimit()
    for depth in range(limit - 150, limit + 5):
        body = b'{"x":' + b"[" * depth + b"]" * depth + b',"TTL":{}}'
        assert refused(LeaseGrantRequest, body).startswith("proto: ")


@pytest.mark.parametrize(
    "body", [b'{"name":"\\ud83d","password":"x"}', b'{"name":"n","other":["\\uDE00"]}', b'{"\\ud83dname":"n"}']
)
def test_half_of_a_surrogate_pair(body: bytes) -> None:
    assert "half of a surrogate pair" in refused(AuthenticateRequest, body)


def test_a_whole_surrogate_pair() -> None:
    assert decode(AuthenticateRequest, b'{"name":"\\ud83d\\ude00"}').name == "\U0001f600"


def test_a_long_value_is_not_repeated_whole() -> None:
    assert len(refused(LeaseGrantRequest, b'{"TTL":"%b"}' % (b"x" * 100_000))) < 1_200


def test_nesting_is_bounded() -> None:
    def nested(levels: int) -> bytes:
        return b'{"success":[{"request_txn":' * levels + b"{}" + b"}]}" * levels

    within = (limits.JSON_NESTED_MESSAGES_MAX - 1) // 2
    request: Any = decode(TxnRequest, nested(within))
    assert encode(request) == nested(within)
    assert TxnRequest.FromString(request.SerializeToString()) == request
    assert "recursion" in refused(TxnRequest, nested(within + 1))


def every_op() -> dict[str, Any]:
    """A put and a range with all that can be said of them, as clients write it."""
    request = {field.name: "1" for field in RangeRequest.DESCRIPTOR.fields}
    request |= {"key": "YQ==", "range_end": "YQ==", "sort_order": "ASCEND", "sort_target": "KEY"}
    for name in ("serializable", "keys_only", "count_only"):
        request[name] = True  # type: ignore[assignment]
    return {"request_range": request}


def txn_of(ops: int) -> dict[str, Any]:
    compare = {"result": "EQUAL", "target": "VALUE", "key": "YQ==", "range_end": "YQ==", "value": "YQ=="}
    return {"compare": [compare] * ops, "success": [every_op()] * ops, "failure": [every_op()] * ops}


@pytest.mark.parametrize("ops_max", [1, 128, 10_000])
def test_a_txn_of_as_many_operations_as_may_be_is_read(ops_max: int) -> None:
    values_max = Options(max_txn_ops=ops_max).json_values_max
    request = decode(TxnRequest, json.dumps(txn_of(ops_max)).encode(), values_max)
    assert len(request.success) == ops_max
    assert request.failure[-1].request_range.keys_only


def test_txns_inside_a_txn_are_read() -> None:
    """As many puts as the two levels of a txn may have by default: 64 times 64, halved."""
    put = {"request_put": {"key": "YQ==", "value": "YQ=="}}
    inner = {"request_txn": {"success": [put] * 32}}
    text = json.dumps({"success": [inner] * 64}).encode()
    request = decode(TxnRequest, text, Options().json_values_max)
    assert len(request.success[-1].request_txn.success) == 32


@pytest.mark.parametrize("letter", [b"/", b"\\/", b"\\u002f"], ids=["plain", "escaped", "as a number"])
def test_a_value_of_the_largest_size_is_read(letter: bytes) -> None:
    value = b"\xff" * (limits.REQUEST_BYTES_MAX // 2)
    text = b'{"key":"YQ==","value":"%b"}' % b2a_base64(value, newline=False).replace(b"/", letter)
    assert decode(PutRequest, text, Options(max_txn_ops=1).json_values_max).value == value


VALUES_MAX = 1_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":[' + b"0," * (VALUES_MAX - 3) + b"0]}",
        b'{"x":[' + b'"",' * (VALUES_MAX - 3) + b"0]}",
        b'{"x":[' + b"[]," * (VALUES_MAX // 2 - 2) + b"[]]}",
        b'{"x":[' + b"{}," * (VALUES_MAX // 2 - 2) + b"{}]}",
        b'{"x":{' + b'"":0,' * (VALUES_MAX // 2 - 2) + b'"":0}}',
    ],
)
def test_names_and_values_are_bounded_whatever_they_are(body: bytes) -> None:
    assert decode(RangeRequest, body, VALUES_MAX) == RangeRequest()
    for more in (body.replace(b'"x":', b'"x":0,"y":'), body.replace(b'"x":', b'"x":[[0],') + b"]}"):
        with pytest.raises(EtcdError) as caught:
            decode(RangeRequest, more, VALUES_MAX)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert f"more than {VALUES_MAX} names and values" in caught.value.message


def test_a_body_with_too_many_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the place of a fault looked for in it."""
    monkeypatch.setattr(json_codec, "_scan", None)
    monkeypatch.setattr(json_faults, "syntax_fault", None)
    for end in (b"]}", b"!", b"\xff"):
        with pytest.raises(EtcdError, match="names and values"):
            decode(RangeRequest, b'{"x":[' + b"0," * VALUES_MAX + end, VALUES_MAX)


def test_a_number_of_very_many_digits_is_not_counted_out() -> None:
    body = b'{"x":[%b],"limit":1}' % b",".join([b"9" * 100_000] * 20)
    assert decode(RangeRequest, body).limit == 1
    assert "invalid value for int64 field limit: 9" in refused(RangeRequest, b'{"limit":%b}' % (b"9" * 100_000))


def test_quoted_never_fails() -> None:
    assert quoted('a"\ud83d') == b'"a\\"?"'


# --- streams ------------------------------------------------------------------------------------------------------


def test_frames() -> None:
    assert result_frame(WatchResponse(created=True)) == b'{"result":{"created":true}}\n'
    assert error_frame(EtcdError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")) == (
        b'{"error":{"code":4,"message":"context deadline exceeded"}}\n'
    )


def ids(messages: list[Any]) -> list[int]:
    return [message.ID for message in messages]


STREAM = b' {"ID":"1"}{"ID":2}  \n{"x":"}{\\"\\\\","y":[{"]":[]}],"ID":3}\r\n\t{}'


def test_stream_cut_at_every_offset() -> None:
    for cut in range(len(STREAM) + 1):
        decoder = StreamDecoder(LeaseKeepAliveRequest, 100, 1_000)
        messages = decoder.feed(STREAM[:cut]) + decoder.feed(STREAM[cut:])
        decoder.finish()
        assert ids(messages) == [1, 2, 3, 0]
        assert decoder.error is None


def test_stream_byte_by_byte() -> None:
    decoder = StreamDecoder(LeaseKeepAliveRequest, 100, 1_000)
    assert ids([message for byte in STREAM for message in decoder.feed(bytes([byte]))]) == [1, 2, 3, 0]


@pytest.mark.parametrize("share", [1, 2, 3])
def test_stream_in_shares(share: int) -> None:
    for cut in range(len(STREAM) + 1):
        decoder = StreamDecoder(LeaseKeepAliveRequest, 100, 1_000)
        messages = decoder.feed(STREAM[:cut], share)
        while decoder.waiting:
            more = decoder.feed(b"", share)
            assert len(more) <= share
            messages += more
        messages += decoder.feed(STREAM[cut:], 0)
        assert decoder.waiting == (decoder.unfinished_bytes > 0)
        messages += decoder.feed(b"")
        decoder.finish()
        assert ids(messages) == [1, 2, 3, 0]
        assert decoder.error is None


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        (b"x", Code.INVALID_ARGUMENT),
        (b',{"ID":2}', Code.INVALID_ARGUMENT),
        (b'[{"ID":2}]', Code.INVALID_ARGUMENT),
        (b"null", Code.INVALID_ARGUMENT),
        (b'{"ID":"x"}', Code.INVALID_ARGUMENT),
        (b'{"ID":2]', Code.INVALID_ARGUMENT),
        (b"\xff", Code.INVALID_ARGUMENT),
        (b'{"x":"' + b"a" * 100, Code.RESOURCE_EXHAUSTED),
        (b'{"x":"' + b"a" * 100 + b'"}', Code.RESOURCE_EXHAUSTED),
    ],
)
def test_stream_stops_at_what_is_no_request(tail: bytes, code: Code) -> None:
    for data in (b'{"ID":1}' + tail, None):
        decoder = StreamDecoder(LeaseKeepAliveRequest, 100, 1_000)
        if data is not None:
            messages = decoder.feed(data)
        else:
            messages = [message for byte in b'{"ID":1}' + tail for message in decoder.feed(bytes([byte]))]
        assert ids(messages) == [1]
        assert decoder.error is not None
        assert decoder.error.code is code
        assert decoder.feed(b'{"ID":9}') == []


def test_stream_that_ends_inside_an_object() -> None:
    for data in (b"{", b'{"ID":"', b'{"x":"\\'):
        decoder = StreamDecoder(LeaseKeepAliveRequest, 100, 1_000)
        assert decoder.feed(data) == []
        decoder.finish()
        assert decoder.error is not None
        assert decoder.error.message == "unexpected EOF"


def test_stream_with_an_object_of_too_many_brackets_stops_before_its_end() -> None:
    decoder = StreamDecoder(LeaseKeepAliveRequest, 1_000_000, VALUES_MAX)
    assert ids(decoder.feed(b'{"ID":1}{"x":[' + b"[" * VALUES_MAX)) == [1]
    assert decoder.error is not None
    assert decoder.error.code is Code.RESOURCE_EXHAUSTED


def test_stream_bounds_each_object_alone() -> None:
    decoder = StreamDecoder(LeaseKeepAliveRequest, 1_000_000, VALUES_MAX)
    assert ids(decoder.feed(b'{"x":[[],[]],"ID":1}' * VALUES_MAX)) == [1] * VALUES_MAX
    assert decoder.feed(b'{"x":[%b]}' % b",".join([b"0"] * VALUES_MAX)) == []
    assert decoder.error is not None
    assert decoder.error.code is Code.RESOURCE_EXHAUSTED


def test_stream_counts_a_long_object_as_several() -> None:
    decoder = StreamDecoder(LeaseKeepAliveRequest, 1_000_000, VALUES_MAX)
    for text in (b'"%b"' % (b"a" * 10 * limits.STREAM_REQUEST_BYTES), b"[" * 80 + b"]" * 80):
        long = b'{"ID":1,"x":%b}' % text
        assert len(decoder.feed(long * 100, 30)) == 3
        assert decoder.cost >= 30
        assert decoder.waiting
        decoder.drop()
