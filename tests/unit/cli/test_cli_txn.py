# SPDX-License-Identifier: Apache-2.0
"""What a line of a transaction means, and how lines are cut into words. What etcdctl makes of them: the ..._beside_ and
every_command tests; the expectations here are Go's rules for quoted text and the API's messages."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import words
from lessor.cli.failure import INVALID_INPUT, Failure
from lessor.cli.notation import quote
from lessor.cli.txn import comparison, operation


@given(st.binary())
def test_quoting_and_reading_back_is_the_same(raw: bytes) -> None:
    assert words.split(f"a {quote(raw)} b") == ["a", os.fsdecode(raw), "b"]
    assert words.quoted(f" {quote(raw)}rest") == (os.fsdecode(raw), "rest")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("  put\ta  b ", ["put", "a", "b"]),
        ("put 'a b' ''", ["put", "a b", ""]),
        (r'put "a\"b\\c\t" x', ["put", 'a"b\\c\t', "x"]),
        (r'"\x41\101\u4e2d\U0001f600"', ["AA\u4e2d\U0001f600"]),
        ('a"b"', ['a"b"']),
        ("it's", ["it's"]),
        ('"open', ["open"]),
        (r"'\n'", [r"\n"]),
    ],
)
def test_words(line: str, expected: list[str]) -> None:
    assert words.split(line) == expected


@pytest.mark.parametrize("escape", [r"\q", r"\400", r"\x4", r"\ud800", r"\U00110000", r"\'"])
def test_an_escape_that_does_not_exist(escape: str) -> None:
    with pytest.raises(ValueError, match="invalid syntax"):
        words.split(f'"{escape}"')


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('val("a") = "1"', rpc.Compare(target="VALUE", result="EQUAL", key=b"a", value=b"1")),
        ('value("") != ""', rpc.Compare(target="VALUE", result="NOT_EQUAL", key=b"", value=b"")),
        ('ver("a")  >  "-1" rest', rpc.Compare(target="VERSION", result="GREATER", key=b"a", version=-1)),
        (r'c("\xff") < "7"', rpc.Compare(target="CREATE", result="LESS", key=b"\xff", create_revision=7)),
        ("mod(`a`) = `8`", rpc.Compare(target="MOD", result="EQUAL", key=b"a", mod_revision=8)),
        ('lease("a") = "4d2"', rpc.Compare(target="LEASE", result="EQUAL", key=b"a", lease=1234)),
    ],
)
def test_a_comparison(line: str, expected: rpc.Compare) -> None:
    assert comparison(line) == expected
    # A number of 0 is a number too: the field is there.
    assert comparison('mod("a") = "0"').WhichOneof("target_union") == "mod_revision"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("mod", "malformed comparison: mod"),
        ('mod("a"', 'malformed comparison: mod("a"; got mod("a")  ""'),
        ('mod("a") =', 'malformed comparison: mod("a") =; got mod("a") = ""'),
        ('mod(a) = "1"', 'malformed comparison: mod(a) = "1"; got mod("")  ""'),
        ('no("a") = "1"', 'malformed comparison: no("a") = "1" (unknown target no)'),
        ('mod("a") = "x"', 'invalid txn compare request: mod("a") = "x"'),
        ('lease("a") = "xyz"', 'invalid txn compare request: lease("a") = "xyz"'),
        ('mod("a") == "1"', 'malformed comparison: mod("a") == "1" (unknown operator ==: use =, !=, < or >)'),
    ],
)
def test_a_line_that_is_no_comparison(line: str, text: str) -> None:
    with pytest.raises(Failure) as caught:
        comparison(line)
    assert (caught.value.exit_code, caught.value.text) == (INVALID_INPUT, text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("put a b", rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", value=b"b"))),
        (
            "put a b --lease=4d2 --prev-kv",
            rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", value=b"b", lease=1234, prev_kv=True)),
        ),
        ("p -- a -1", rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", value=b"-1"))),
        ("put a --ignore-value", rpc.RequestOp(request_put=rpc.PutRequest(key=b"a", ignore_value=True))),
        (
            "get a --prefix --limit 3 --count-only=false",
            rpc.RequestOp(request_range=rpc.RangeRequest(key=b"a", range_end=b"b", limit=3)),
        ),
        ('del "a b" c', rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=b"a b", range_end=b"c"))),
    ],
)
def test_an_operation(line: str, expected: rpc.RequestOp) -> None:
    assert operation(line) == expected


@pytest.mark.parametrize(
    ("line", "exit_code", "text"),
    [
        ("put", 3, "invalid txn compare request: put"),
        ("lease a", 3, "invalid txn request: lease a"),
        ("put a --bogus", 3, "invalid txn request: put a --bogus"),
        ("get a -w json", 3, "invalid txn request: get a -w json"),
        ("get a --help", 3, "invalid txn request: get a --help"),
        ("get a --limit x", 3, "invalid txn request: get a --limit x"),
        ("put a", 128, "put command needs 1 argument and input from stdin or 2 arguments"),
        ("get a --order up", 4, "bad sort order up"),
        (r'put "\q" a', 3, "invalid syntax"),
    ],
)
def test_a_line_that_is_no_operation(line: str, exit_code: int, text: str) -> None:
    with pytest.raises(Failure) as caught:
        operation(line)
    assert (caught.value.exit_code, caught.value.text) == (exit_code, text)
