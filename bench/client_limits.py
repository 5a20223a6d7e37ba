# SPDX-License-Identifier: Apache-2.0
"""What the load program itself can do: the same loads against a server that answers from nothing (bench/h2_null.py).

The null server is one process and may be the slower of the two; so what counts is the rate divided by the share of a
core that the client used. A figure of the table that is far below it is a server's, not the client's.
"""

import argparse
import subprocess
import sys

from bench.harness import Node
from bench.rows import Figures, Goal, Row, main, run_load

LOADS = {
    f"{kind}_{connections}x{in_flight}": (kind, "--connections", str(connections), "--in-flight", str(in_flight))
    for kind, connections, in_flight in (
        ("grant", 1, 1),
        ("grant", 10, 20),
        ("grant", 200, 4),
        ("keepalive", 10, 64),
        ("keepalive", 500, 1),
        ("keepalive", 2000, 1),
    )
}


def measure(_: Node, options: argparse.Namespace) -> Figures:
    figures: Figures = {}
    command = [sys.executable, "-m", "bench.h2_null", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as null:
        try:
            assert null.stdout is not None
            port = int(null.stdout.readline())
            for name, load in LOADS.items():
                found = run_load(port, options, *load)
                figures[f"{name}_could"] = found["client_could"]
                figures[f"{name}_rate"] = found["rate"]
        finally:
            null.kill()
    return figures


ROWS = (
    Row(
        "client_limits",
        measure,
        tuple(Goal(f"{name}_could", f"The load program, of a whole core: {name}", "/s") for name in LOADS),
        rounds_max=1,
        alone=True,
    ),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
