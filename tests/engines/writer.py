# SPDX-License-Identifier: Apache-2.0
"""One of several that race for every position of a log; also as a process: `python -m tests.engines.writer`.

Prints, as JSON, the positions at which it was told that its record is there. A record is the writer's name, its number,
and at its end the chain value, which is a digest of all before.
"""

import json
import sys

from lessor.durable.record import CHAIN_BYTES
from lessor.durable.shared_log import SharedLog, TakenError
from tests.engines.kit import PAGE_BYTES, ZEROS, record
from tests.engines.subjects import at_place


def race(log: SharedLog, name: str, upto: int) -> list[int]:
    """Appends whenever it sees a newest record below `upto`. Returns the positions that it won."""
    won: list[int] = []
    position, chain = 0, ZEROS
    while True:
        found = log.read(position, PAGE_BYTES)
        position += len(found.records)
        if found.records:
            chain = found.records[-1][-CHAIN_BYTES:]
        if position < found.last:
            continue
        if position >= upto:
            return won
        try:
            log.append(position, chain, record(f"{name} {position + 1}", chain))
        except TakenError:
            continue
        won.append(position + 1)


if __name__ == "__main__":
    kind, url, name, upto = sys.argv[1:]
    opened = at_place((kind, url))
    opened.open(1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(race(opened, name, int(upto))) + "\n")
    opened.close()
