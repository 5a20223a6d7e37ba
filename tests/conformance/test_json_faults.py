# SPDX-License-Identifier: Apache-2.0
"""What the JSON gateway says of a body that it cannot read, letter by letter as etcd 3.6: what is wrong, and where."""

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lessor.gateway.json_faults import syntax_fault
from tests.conformance.subject import Subject

SYNTAX = [
    (b"0e", "unexpected EOF"),
    (b"1.", "unexpected EOF"),
    (b"1.e5", "invalid character 'e' after decimal point in numeric literal"),
    (b"{", "unexpected EOF"),
    (b'{"key":"YQ==', "unexpected EOF"),
    (b'{"key":"\\', "unexpected EOF"),
    (b"tru", "unexpected EOF"),
    (b"-", "unexpected EOF"),
    (b"}", "invalid character '}' looking for beginning of value"),
    (b'{"key":}', "invalid character '}' looking for beginning of value"),
    (b"\n x", "invalid character 'x' looking for beginning of value"),
    (b"[1,]", "invalid character ']' looking for beginning of value"),
    (b'{"lease":+1}', "invalid character '+' looking for beginning of value"),
    (b'{"key":NaN}', "invalid character 'N' looking for beginning of value"),
    (b'{"a":\x7f}', r"invalid character '\x7f' looking for beginning of value"),
    (b"\xef\xbb\xbf{}", "invalid character '\xef' looking for beginning of value"),
    (b'{"a":\xe2\x82\xac}', "invalid character '\xe2' looking for beginning of value"),
    (b"{x:1}", "invalid character 'x' looking for beginning of object key string"),
    (b"{'key':1}", r"invalid character '\'' looking for beginning of object key string"),
    (b'{"key":"YQ==",}', "invalid character '}' looking for beginning of object key string"),
    (b"{\x00}", r"invalid character '\x00' looking for beginning of object key string"),
    (b'{"a" "b"}', "invalid character '\"' after object key"),
    (b'{"key":"YQ==" "value":""}', "invalid character '\"' after object key:value pair"),
    (b'{"unknown":01}', "invalid character '1' after object key:value pair"),
    (b'{"unknown":1}', None),
    (b'{"a":[1 2]}', "invalid character '2' after array element"),
    (b'{"key":"a\\x"}', "invalid character 'x' in string escape code"),
    (b'{"key":"\\u12x4"}', r"invalid character 'x' in \u hexadecimal character escape"),
    (b'{"key":"YQ==\n"}', r"invalid character '\n' in string literal"),
    (b'{"a":"\x1f"}', r"invalid character '\x1f' in string literal"),
    (b'{"key":nul}', "invalid character '}' in literal null (expecting 'l')"),
    (b'{"a":falze}', "invalid character 'z' in literal false (expecting 's')"),
    (b'{"lease":--1}', "invalid character '-' in numeric literal"),
    (b'{"lease":1.}', "invalid character '}' after decimal point in numeric literal"),
    (b'{"lease":1e+}', "invalid character '}' in exponent of numeric literal"),
    (b'{"lease":-0x}', "invalid character 'x' after object key:value pair"),
]
VALUES = [
    ("put", b"[]", "proto: syntax error (line 1:1): unexpected token ["),
    ("put", b"\n null", "proto: syntax error (line 1:1): unexpected token null"),
    ("put", b'{"key":1}', "proto: (line 1:8): invalid value for bytes field key: 1"),
    ("put", b'\n {"key":"!"}', 'proto: (line 1:8): invalid value for bytes field key: "!"'),
    ("put", b'{\n  "key": 5\n}', "proto: (line 2:10): invalid value for bytes field key: 5"),
    ("put", b'{"key":"YQ==",\n "lease": {}}', "proto: (line 2:11): invalid value for int64 field lease: {"),
    ("put", b'{"lease":"\\u0041"}', 'proto: (line 1:10): invalid value for int64 field lease: "\\u0041"'),
    ("put", b'{"lease":1e400}', "proto: (line 1:10): invalid value for int64 field lease: 1e400"),
    ("put", b'{"key":"YQ==","prev_kv":1}', "proto: (line 1:25): invalid value for bool field prevKv: 1"),
    ("put", b'{"key":"YQ==","key":"YQ=="}', 'proto: (line 1:15): duplicate field "key"'),
    ("put", b'{"prevKv":true , "prev_kv":1}', 'proto: (line 1:18): duplicate field "prev_kv"'),
    ("put", b'{"a":[{},1,"}"],"a":2,"key":1}', "proto: (line 1:29): invalid value for bytes field key: 1"),
    ("put", b'{"\xc3\xa9":1,"key":1}', "proto: (line 1:14): invalid value for bytes field key: 1"),
    ("put", b'{"\xc3\xa9":"\xff","key":1}', "proto: syntax error (line 1:6): invalid UTF-8 in string"),
    ("put", b'{"\xff":1,"key":1}', "proto: syntax error (line 1:2): invalid UTF-8 in string"),
    ("range", b'{"sort_order":1.5}', "proto: (line 1:15): invalid value for enum field sortOrder: 1.5"),
    ("txn", b'{"compare":{}}', "proto: syntax error (line 1:12): unexpected token {"),
    ("txn", b'{"compare":[null]}', "proto: syntax error (line 1:13): unexpected token null"),
    ("txn", b'{"success":[{},"a"]}', 'proto: syntax error (line 1:16): unexpected token "a"'),
    ("txn", b'{"success":[{"request_put":{"key":1}}]}', "proto: (line 1:35): invalid value for bytes field key: 1"),
    (
        "txn",
        b'{"success":[{"request_put":{},"request_range":{}}]}',
        'proto: (line 1:31): error parsing "request_range", oneof etcdserverpb.RequestOp.request is already set',
    ),
    (
        "txn",
        b'{\n"compare": [ {}, \n  {"key": "YQ==",\n   "version": "zz"}]}',
        'proto: (line 4:15): invalid value for int64 field version: "zz"',
    ),
]


def said(subject: Subject, route: str, body: bytes) -> tuple[int, Any]:
    if not subject.like(3, 6):
        pytest.skip("3.5 has another JSON library")
    reply = subject.request("POST", "/v3/kv/" + route, body)
    message = reply.json().get("message")
    if message and not subject.is_lessor:  # which of two spaces Go's protobuf writes there depends on the build
        message = message.replace("proto:\u00a0", "proto: ")
    return reply.status, message


@pytest.mark.parametrize(("body", "text"), SYNTAX)
def test_a_body_that_is_no_json(subject: Subject, body: bytes, text: str | None) -> None:
    assert said(subject, "put", body) == (400, text or "etcdserver: key is not provided")
    assert syntax_fault(body.lstrip()) == text


@pytest.mark.parametrize(("route", "body", "text"), VALUES)
def test_a_value_that_its_field_cannot_hold(subject: Subject, route: str, body: bytes, text: str) -> None:
    assert said(subject, route, body) == (400, text)


@pytest.mark.parametrize("more", [b"zzz", b"\xff", b"{", b'{"key":1}'])
def test_what_follows_the_first_value_is_not_looked_at(subject: Subject, more: bytes) -> None:
    assert said(subject, "range", b'{"key":"YQ=="}' + more) == (200, None)


_LETTERS = st.sampled_from([*'{}[]:,"\\/ \n09.-+eEutrfalsn', "null", "true", '"a":', "\u00e9", "\\u0041"])
_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(value=_VALUES, at=st.integers(0, 60), dropped=st.integers(0, 3), letters=st.lists(_LETTERS, max_size=3))
def test_what_python_takes_for_json_has_no_fault_and_all_else_has_one(
    value: Any, at: int, dropped: int, letters: list[str]
) -> None:
    text = json.dumps(value, ensure_ascii=False)
    damaged = text[:at] + "".join(letters) + text[at + dropped :]
    damaged = damaged.lstrip(" \t\r\n")
    try:
        found, _ = json.JSONDecoder(parse_constant=_refuse).raw_decode(damaged)
        assume(type(found) not in (int, float))  # it takes `0` out of `0e`
        sound = True
    except ValueError:
        sound = False
    assert (syntax_fault(damaged.encode("utf-8", "surrogatepass")) is None) is sound


def _refuse(name: str) -> Any:
    raise ValueError(name)
