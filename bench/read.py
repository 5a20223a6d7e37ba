# SPDX-License-Identifier: Apache-2.0
"""Linearizable reads of one key, and of a lease's remaining time, at random of 10,000."""

import sys

from bench.rows import load_row, main

ROWS = (
    load_row("range_one_key", "Range of one key, 10 x 20", 2.5, "range"),
    load_row("lease_time_to_live", "LeaseTimeToLive, 10 x 20", 2.5, "time_to_live"),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
