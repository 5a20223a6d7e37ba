# SPDX-License-Identifier: Apache-2.0
"""The mutation fuzzer as a command: `scripts/attack --minutes 30`.

Each round has a new server and conversations that no round had before. It stops at the first finding.
"""

import argparse
import os
import sys
import time

from tests.attack import rounds
from tests.conformance.lessor_server import LessorServer

ROUND = 1_000  # conversations


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/attack", description="Mutated conversations beside a client.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first", type=int, default=0, help="number of the first conversation; default 0")
    parser.add_argument("--server-path", default="", help="a folder with the package to attack, such as a compiled one")
    options = parser.parse_args()
    if options.server_path:  # of the server's process alone: this one has loaded its modules
        os.environ["PYTHONPATH"] = options.server_path
    ends_s = time.monotonic() + options.minutes * 60
    first, cut = options.first, 0
    while time.monotonic() < ends_s:
        with LessorServer() as server:
            try:
                cut += rounds.run(server, rounds.Watched(server), first, ROUND)
            except rounds.FindingError as found:
                print(f"{found}\nAgain: scripts/attack --first {first}")
                return 1
        first += ROUND
    print(f"nothing found in {first - options.first} conversations, {cut} of them cut off")
    return 0


if __name__ == "__main__":
    sys.exit(main())
