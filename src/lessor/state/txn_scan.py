# SPDX-License-Identifier: Apache-2.0
"""Counts the compares and operations of an encoded txn, before protobuf makes an object of each.

Laws
- A txn whose lists, all levels together, have no more than `most` compares and operations passes, if it is well formed
  and has no fields that are not in the API.
- The cost is bounded by `most`, however long the message is: what is inside a key or a value is not looked at.

Why: two bytes are an empty compare. Two MiB of them take protobuf 50 ms, to be refused then.

Does not do: checking the txn (txn.py), refusing what is malformed (protobuf does).
"""

from __future__ import annotations

from typing import Final

_FIELDS_PER_OPERATION: Final = 4  # that are looked at; an operation takes two, its own and that of its kind
_TXN_LISTS: Final = (1, 2, 3)  # compare, success, failure of a TxnRequest
_COMPARES: Final = 1
_NESTED_TXN: Final = 4  # request_txn of a RequestOp
_VARINT_BYTES_MAX: Final = 10


def too_many_operations(message: bytes, most: int) -> bool:
    """Whether a serialized TxnRequest has more than `most` compares and operations. Cost: O(most), 1 us each."""
    waiting = [(0, len(message), True)]  # stretches of the message, each the fields of a txn, or of an operation
    count = 0
    left = _FIELDS_PER_OPERATION * most
    while waiting:
        at, end, is_txn = waiting.pop()
        while at < end:
            left -= 1
            if left < 0:
                return True
            tag, at = _varint(message, at, end)
            kind = tag & 7
            if kind == 2:
                size, at = _varint(message, at, end)
                number, first, at = tag >> 3, at, at + size
                if at > end:
                    return False
                if is_txn and number in _TXN_LISTS:
                    count += 1
                    if count > most:
                        return True
                    if number != _COMPARES:
                        waiting.append((first, at, False))
                elif not is_txn and number == _NESTED_TXN:
                    waiting.append((first, at, True))
            elif kind == 0:
                _, at = _varint(message, at, end)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            else:
                return False
    return False


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The number, and where the next byte is. Behind `end` if it is cut short or too long."""
    number = shift = 0
    for index in range(at, min(at + _VARINT_BYTES_MAX, end)):
        byte = message[index]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, index + 1
        shift += 7
    return 0, end + 1
