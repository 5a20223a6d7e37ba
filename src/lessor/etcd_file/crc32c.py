# SPDX-License-Identifier: Apache-2.0
"""CRC-32C, the checksum that etcdutl prints of a file. The standard library has only that of another polynomial.

Theory of operation. A CRC is linear. With words of four bytes, w0 w1 w2 w3, and A for "goes on over four zero bytes",
it is A(A(A(A(w0) ^ w1) ^ w2) ^ w3). So two neighbours can become one, A(w0) ^ w1 and A(w2) ^ w3, of a row half as long
whose step is AA, and so on until one word is left. Each halving takes all its words at once: `bytes.translate` looks up
all first bytes, all second bytes and so on, and one xor of two long numbers adds them up. That is several times as fast
as a loop over the bytes.
"""

from functools import cache
from typing import Final

_POLYNOMIAL: Final = 0x82F6_3B78  # reversed: the lowest bit stands for the highest power
_BLOCK_BYTES: Final = 1_048_576  # 4 times a power of two
_ONES: Final = 0xFFFF_FFFF
_BYTES: Final = range(4)  # of a word


class Crc32c:
    """A checksum under way. Cost of `update`: about 20 ns a byte, and a block of memory."""

    def __init__(self) -> None:
        self._state = _ONES
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def update(self, data: bytes) -> None:
        self._rest.append(data)
        self._rest_bytes += len(data)
        if self._rest_bytes >= _BLOCK_BYTES:
            joined = b"".join(self._rest)
            whole = len(joined) - len(joined) % _BLOCK_BYTES
            for start in range(0, whole, _BLOCK_BYTES):
                self._state = _of_block(self._state, joined[start : start + _BLOCK_BYTES])
            self._rest = [joined[whole:]]
            self._rest_bytes = len(joined) - whole

    @property
    def value(self) -> int:
        """The checksum of all data up to here, uint32."""
        state = self._state
        rest = b"".join(self._rest)
        size = 4
        while len(rest) >= size:  # its largest part that can be halved to the end, and so on
            while size * 2 <= len(rest):
                size *= 2
            state = _of_block(state, rest[:size])
            rest = rest[size:]
            size = 4
        for byte in rest:
            state = _over_zeros(1, state ^ byte)
        return state ^ _ONES


def _of_block(state: int, block: bytes) -> int:
    """The state behind a block of 4 bytes, or 8, 16, and so on."""
    words = (state ^ int.from_bytes(block[:4], "little")).to_bytes(4, "little") + block[4:]
    zeros = 4
    while len(words) > 4:
        first = [words[of::8] for of in _BYTES]  # of each pair
        tables = _tables(zeros)
        halved = bytearray(len(words) // 2)
        for to in _BYTES:
            total = int.from_bytes(words[4 + to :: 8], "little")
            for of in _BYTES:
                total ^= int.from_bytes(first[of].translate(tables[of][to]), "little")
            halved[to::4] = total.to_bytes(len(first[0]), "little")
        words = bytes(halved)
        zeros *= 2
    return _over_zeros(4, int.from_bytes(words, "little"))


@cache
def _tables(zeros: int) -> list[list[bytes]]:
    """[of][to][byte]: what byte number `of` of a state adds to byte number `to` of the state that many zeros later."""
    tables = []
    for of in _BYTES:
        after = [0]
        for bit in range(8):
            later = _over_zeros(zeros, 1 << 8 * of + bit)
            after += [later ^ value for value in after]
        tables.append([bytes(value >> 8 * to & 0xFF for value in after) for to in _BYTES])
    return tables


def _over_zeros(zeros: int, state: int) -> int:
    """The state after so many zero bytes: a power of two, or 1."""
    if zeros == 1:
        for _ in range(8):
            state = state >> 1 ^ (_POLYNOMIAL if state & 1 else 0)
        return state
    if zeros <= 4:
        return _over_zeros(zeros // 2, _over_zeros(zeros // 2, state))
    half = _tables(zeros // 2)
    for _ in range(2):
        bytes_of = [state >> 8 * of & 0xFF for of in _BYTES]
        state = 0
        for to in _BYTES:
            for of in _BYTES:
                state ^= half[of][to][bytes_of[of]] << 8 * to
    return state
