# SPDX-License-Identifier: Apache-2.0
"""Lease renewals: many services that keep their leases alive, each stream with several leases in flight.

No server writes a row for each renewal, so this measures the path of a message through the server.
"""

import sys

from bench.harness import Claim, main

CLAIM = Claim(
    name="keepalive",
    text="LeaseKeepAlive, 10 streams x 64 in flight",
    load=("keepalive", "--streams", "10", "--in-flight", "64"),
    ratio_min=1.0,
)

if __name__ == "__main__":
    sys.exit(main(CLAIM))
