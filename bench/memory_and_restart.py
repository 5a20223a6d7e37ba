# SPDX-License-Identifier: Apache-2.0
"""What 100,000 leases with a key each take: memory, and the time to be back after kill -9.

Memory is what the server's resident memory grew by, as Linux counts it (VmRSS: mapped files too, which etcd's database
is); `anon_kib_per_lease` leaves files out. Back is when a linearizable read finds all keys, counted from the start of
the new process; a wrong number of keys ends the run.
"""

import argparse
import contextlib
import sys
import time

from bench import population
from bench.harness import Node, memory_kib
from bench.load_loop import WrongReplyError
from bench.rows import Figures, Goal, Row, main

LEASES = 100_000
SETTLE_S = 1.0
BACK_S_MAX = 300.0


def restart_s(node: Node, keys: int) -> float:
    """Kills the server, starts it again, and says how long it took until it had all keys."""
    node.kill()
    start = time.perf_counter()
    node.start()
    while time.perf_counter() < start + BACK_S_MAX:
        # Refused connections, and "no leader" of an etcd that has not elected itself.
        with contextlib.suppress(OSError, WrongReplyError):
            found = population.count_keys(node.address)
            if found != keys:
                raise SystemExit(f"{node.server.name} came back with {found} of {keys} keys")
            return time.perf_counter() - start
        time.sleep(0.005)
    raise SystemExit(f"{node.server.name} did not come back within {BACK_S_MAX:g} s")


def measure(node: Node, options: argparse.Namespace) -> Figures:
    count = max(int(LEASES * options.scale), 1_000)
    population.populate(node.address, population.new_ids(100))
    before = {field: memory_kib(node.pid, field) for field in ("VmRSS", "RssAnon")}
    population.populate(node.address, population.new_ids(count))
    time.sleep(SETTLE_S)
    grown = {field: memory_kib(node.pid, field) - before[field] for field in before}
    return {
        "kib_per_lease": grown["VmRSS"] / count,
        "anon_kib_per_lease": grown["RssAnon"] / count,
        "restart_s": restart_s(node, count + 100),
    }


ROWS = (
    Row(
        "memory_and_restart",
        measure,
        (
            Goal("kib_per_lease", "Memory per lease with one key, 100,000 of them", "KiB", 1.0),
            Goal("restart_s", "kill -9 and back to serving, 100,000 leases and keys", "s", 2.0),
        ),
        rounds_max=1,
    ),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
