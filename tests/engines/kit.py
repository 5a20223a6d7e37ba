# SPDX-License-Identifier: Apache-2.0
"""Records for shared logs, and the way of one into a log. A record ends with a digest of all before, like real ones."""

import hashlib

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import LOOK, TRY, Placing, SharedLog, TakenError, UnknownError, UnreachableError

ZEROS = bytes(CHAIN_BYTES)
BYTES_MAX = 1_000_000


def record(text: str, chain: bytes, size_bytes: int = 0) -> bytes:
    """A record behind the one with this chain value; of `size_bytes` if that is more than it needs."""
    content = text.encode() + b"|" + chain
    content += bytes(max(size_bytes - len(content) - CHAIN_BYTES, 0))
    return content + hashlib.sha256(content).digest()[:CHAIN_BYTES]


def filled(log: SharedLog, count: int, size_bytes: int = 0) -> list[bytes]:
    """Appends records to an empty log."""
    chain, made = ZEROS, []
    for position in range(count):
        made.append(record(f"r{position + 1}", chain, size_bytes))
        log.append(position, chain, made[-1])
        chain = made[-1][-CHAIN_BYTES:]
    return made


def all_of(log: SharedLog, after: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while True:
        read = log.read(after + len(found), BYTES_MAX)
        found += read.records
        if after + len(found) == read.last:
            return found


def placed(log: SharedLog, placing: Placing, steps_max: int = 2_000) -> int:
    """Goes the way that `Placing` says; how it ended."""
    for _ in range(steps_max):
        if placing.next == TRY:
            placing.trying(0.0)
            try:
                log.append(placing.expect, placing.chain, placing.data)
            except TakenError:
                placing.refused()
            except UnknownError:
                placing.unknown()
            else:
                placing.accepted()
        elif placing.next == LOOK:
            placing.looking(0.0)
            try:
                found = log.read(placing.look_after, BYTES_MAX)
            except UnreachableError:
                continue
            placing.found(found)
        else:
            return placing.next
    raise AssertionError("not settled")
