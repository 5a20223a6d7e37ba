# SPDX-License-Identifier: Apache-2.0
"""CRC-32C: the vectors of RFC 3720 B.4, and beside the loop over bits that the definition is."""

import random

import pytest

from lessor.etcd_file.crc32c import Crc32c


def of(*pieces: bytes) -> int:
    crc = Crc32c()
    for piece in pieces:
        crc.update(piece)
    return crc.value


def bit_by_bit(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_published_vectors() -> None:
    vectors = {
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
        bytes(range(31, -1, -1)): 0x113FDB5C,
        b"": 0,
    }
    assert {data: of(data) for data in vectors} == vectors


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 1_000, 4_099])
def test_sizes(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert of(data) == bit_by_bit(data)


def test_whole_blocks_and_pieces_of_any_size() -> None:
    chance = random.Random(1)
    data = chance.randbytes(1_048_576 + 70_001)
    cuts = sorted(chance.randrange(len(data)) for _ in range(300))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert of(*pieces) == of(data) == of(data[:1_000_000], b"", data[1_000_000:])
    # A changed bit changes it, wherever it is.
    assert of(data[:-1] + bytes([data[-1] ^ 1])) != of(data)
