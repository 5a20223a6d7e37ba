# SPDX-License-Identifier: Apache-2.0
"""Decodes the Huffman code of HPACK (RFC 7541 5.2) a byte at a time: 0.1 to 0.2 microseconds each.

The table of the `hpack` library leads from a state, which is the code read so far behind the last symbol, over half a
byte to the next one. Two such steps in a row are one over a byte. It is kept once it was taken: real header fields have
a few hundred. There are 65,536 at most, which a stranger may have us keep: about 10 MB.
"""

from typing import Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE

_BYTE_BITS: Final = 8
# By state and byte: the symbols that it completes, the next state, and whether a text may end there.
_STEPS: Final[dict[int, tuple[bytes, int, bool]]] = {}


def decode(code: bytes) -> bytes:
    """The text. Raises HPACKDecodingError for what is no Huffman code, or ends within a symbol."""
    state = 0
    complete = True
    text = []
    for byte in code:
        key = state << _BYTE_BITS | byte
        symbols, state, complete = _STEPS.get(key) or _take(key)
        text.append(symbols)
    if not complete:
        raise HPACKDecodingError("Huffman code that ends within a symbol")
    return b"".join(text)


def _take(key: int) -> tuple[bytes, int, bool]:
    state, byte = key >> _BYTE_BITS, key & 0xFF
    symbols = bytearray()
    flags = 0
    for half in (byte >> 4, byte & 0xF):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + half]
        if flags & HUFFMAN_FAIL:
            raise HPACKDecodingError("no Huffman code")
        if flags & HUFFMAN_EMIT_SYMBOL:
            symbols.append(symbol)
    step = _STEPS[key] = bytes(symbols), state, bool(flags & HUFFMAN_COMPLETE)
    return step
