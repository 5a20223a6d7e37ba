# SPDX-License-Identifier: Apache-2.0
"""Makes other conversations of those that clients have: from one number always the same one."""

import random

from tests.attack.conversations import CONVERSATIONS

CHANGES_MAX = 6
PIECE_BYTES_MAX = 300_000
_NUMBERS = (
    b"\0",
    b"\1",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0",
    b"\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff" * 4,
)


def mutated(number: int) -> list[bytes]:
    """The conversation of this number: pieces to be sent one by one."""
    dice = random.Random(number)
    pieces = list(dice.choice(CONVERSATIONS))
    for _ in range(dice.randint(1, CHANGES_MAX)):
        _CHANGES[dice.randrange(len(_CHANGES))](dice, pieces)
        if not pieces:
            pieces.append(b"\0")
    return pieces


def _spot(dice: random.Random, pieces: list[bytes]) -> tuple[int, int]:
    """(a piece, a place in it). Often in its first bytes, where the header of a frame is."""
    at = dice.randrange(len(pieces))
    size = len(pieces[at]) or 1
    return at, dice.randrange(min(size, 9)) if dice.random() < 0.5 else dice.randrange(size)


def _bit(dice: random.Random, pieces: list[bytes]) -> None:
    at, place = _spot(dice, pieces)
    piece = pieces[at]
    flipped = bytes((piece[place] ^ 1 << dice.randrange(8),)) if piece else b""
    pieces[at] = piece[:place] + flipped + piece[place + 1 :]


def _number(dice: random.Random, pieces: list[bytes]) -> None:
    at, place = _spot(dice, pieces)
    number = dice.choice(_NUMBERS)
    pieces[at] = pieces[at][:place] + number + pieces[at][place + len(number) :]


def _inserted(dice: random.Random, pieces: list[bytes]) -> None:
    at, place = _spot(dice, pieces)
    pieces[at] = pieces[at][:place] + dice.randbytes(dice.randint(1, 20)) + pieces[at][place:]


def _cut_out(dice: random.Random, pieces: list[bytes]) -> None:
    at, place = _spot(dice, pieces)
    pieces[at] = pieces[at][:place] + pieces[at][place + dice.randint(1, 20) :]


def _dropped(dice: random.Random, pieces: list[bytes]) -> None:
    del pieces[dice.randrange(len(pieces))]


def _repeated(dice: random.Random, pieces: list[bytes]) -> None:
    at = dice.randrange(len(pieces))
    times = min(dice.choice((2, 3, 50, 2_000)), PIECE_BYTES_MAX // (len(pieces[at]) or 1) + 1)
    pieces[at] *= times


def _swapped(dice: random.Random, pieces: list[bytes]) -> None:
    one, other = dice.randrange(len(pieces)), dice.randrange(len(pieces))
    pieces[one], pieces[other] = pieces[other], pieces[one]


def _ended(dice: random.Random, pieces: list[bytes]) -> None:
    at, place = _spot(dice, pieces)
    pieces[at] = pieces[at][:place]
    del pieces[at + 1 :]


def _spliced(dice: random.Random, pieces: list[bytes]) -> None:
    """Pieces of another conversation."""
    other = dice.choice(CONVERSATIONS)
    start = dice.randrange(len(other))
    at = dice.randrange(len(pieces) + 1)
    pieces[at:at] = other[start : start + dice.randint(1, 4)]


def _resized(dice: random.Random, pieces: list[bytes]) -> None:
    """A piece that was one frame becomes a frame of another size, with its header told so."""
    at = dice.randrange(len(pieces))
    piece = pieces[at]
    if len(piece) >= 9:
        size = dice.choice((0, 1, 3, 4, 5, 8, 100, 16_384, 16_385))
        pieces[at] = size.to_bytes(3, "big") + piece[3:9] + (piece[9:] + bytes(size))[:size]


def _restreamed(dice: random.Random, pieces: list[bytes]) -> None:
    """A frame goes to another stream."""
    at = dice.randrange(len(pieces))
    stream_id = dice.choice((0, 1, 2, 3, 5, 101, 0x7FFFFFFF, 0xFFFFFFFF))
    pieces[at] = pieces[at][:5] + stream_id.to_bytes(4, "big") + pieces[at][9:]


_CHANGES = (
    _bit,
    _number,
    _inserted,
    _cut_out,
    _dropped,
    _repeated,
    _swapped,
    _ended,
    _spliced,
    _resized,
    _restreamed,
)
