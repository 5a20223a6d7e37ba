# SPDX-License-Identifier: Apache-2.0
"""Huffman code of header fields: the same texts and refusals as the `hpack` library's, which decodes it bit by bit."""

from contextlib import suppress

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given
from hypothesis import strategies as st

from lessor.wire import huffman

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def peers(code: bytes) -> bytes | None:
    """The text that the library finds; None if it finds none."""
    with suppress(HPACKDecodingError):
        return bytes(decode_huffman(code))
    return None


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(range(256)))
def test_every_text_comes_back(text: bytes) -> None:
    assert huffman.decode(ENCODER.encode(text)) == text


def test_an_example_of_the_standard() -> None:
    assert huffman.decode(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")) == b"www.example.com"  # RFC 7541 C.4.1


@given(st.binary(max_size=40) | st.binary(max_size=20).map(lambda text: ENCODER.encode(text) + b"\xff"))
@example(b"\xff\xff\xff\xff")  # the code's end, which no text has
@example(b"\x1c\x64")
def test_what_is_no_code_is_refused_as_by_the_library(code: bytes) -> None:
    expected = peers(code)
    if expected is not None:
        assert huffman.decode(code) == expected
    else:
        with pytest.raises(HPACKDecodingError):
            huffman.decode(code)
