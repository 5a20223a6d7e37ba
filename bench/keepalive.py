# SPDX-License-Identifier: Apache-2.0
"""Lease renewals: many services that keep their leases alive; each connection has one stream, with so many in flight.

No server writes a row for each renewal, so this measures the path of a message through the server.
"""

import sys

from bench.rows import Row, load_row, main


def keepalives(connections: int, in_flight: int, times: float) -> Row:
    return load_row(
        f"keepalive_{connections}x{in_flight}",
        f"LeaseKeepAlive, {connections} x {in_flight}",
        times,
        *("keepalive", "--streams", str(connections), "--in-flight", str(in_flight)),
    )


ROWS = (keepalives(10, 64, 1.3), keepalives(500, 1, 1.5), keepalives(2000, 1, 1.3))

if __name__ == "__main__":
    sys.exit(main(ROWS))
