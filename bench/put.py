# SPDX-License-Identifier: Apache-2.0
"""Durable puts: a service registers itself, with a key that goes with its lease; each key is new.

`put_own_lease`: each key has a lease of its own. `put_one_lease`: one lease takes 20,000 keys, and the last thousand
must not cost more than the first. `put_sustained`: 20,000 are a burst, which the batch log takes; these are ten times
as many, so that the tables have to follow.
"""

import argparse
import sys

from bench.harness import Node
from bench.rows import Figures, Goal, Row, load_row, main, run_load


def one_lease(node: Node, options: argparse.Namespace) -> Figures:
    figures = run_load(node.port, options, "put_one_lease")
    figures["last_to_first"] = figures["last_part_rate"] / figures["first_part_rate"]
    return figures


ROWS = (
    load_row("put_own_lease", "Put, each key its own lease, 10 x 20", 2.5, "put"),
    load_row("put_sustained", "- 200,000 of them", 0.0, "put", writes=200_000),
    Row(
        "put_one_lease",
        one_lease,
        (
            Goal("rate", "Put, 20,000 keys onto one lease, 10 x 20", "/s"),
            Goal("first_part_rate", "- the first thousand of them", "/s"),
            Goal("last_part_rate", "- the last thousand of them", "/s"),
            Goal("last_to_first", "- the last thousand's rate to the first's", "x", at_least=0.9),
        ),
        rounds_max=2,
    ),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
