# SPDX-License-Identifier: Apache-2.0
"""Transactions that take a name: put a key with a lease if it is not there. Each does: the keys are new."""

import sys

from bench.rows import load_row, main

ROWS = (
    load_row("txn_create", "Txn create-if-absent with lease, 10 x 20", 2, "create"),
    load_row("txn_sustained", "- 200,000 of them", 0.0, "create", writes=200_000),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
