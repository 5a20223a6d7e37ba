# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a connection tell its protocol, however they are cut."""

import pytest

from lessor.wire.frames import PREFACE
from lessor.wire.sniff import sniff


def test_preface_is_http2() -> None:
    assert sniff(PREFACE) == "h2"
    assert sniff(PREFACE + b"\x00\x00\x00\x04") == "h2"


def test_each_beginning_of_the_preface_needs_more_bytes() -> None:
    for length in range(len(PREFACE)):
        assert sniff(PREFACE[:length]) is None


def test_a_preface_that_goes_wrong_is_not_http2() -> None:
    for position in range(len(PREFACE)):
        wrong = PREFACE[:position] + b"\x00"
        assert sniff(wrong) == "h1"
        assert sniff(wrong + PREFACE[position + 1 :]) == "h1"


@pytest.mark.parametrize("first", [b"G", b"POST /v3/kv/range HTTP/1.1\r\n", b"PUT / HTTP/1.1\r\n", b"\x16\x03\x01"])
def test_everything_else_is_left_to_http1(first: bytes) -> None:
    assert sniff(first) == "h1"
