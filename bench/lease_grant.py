# SPDX-License-Identifier: Apache-2.0
"""Durable lease grants: each reply says that the lease is on disk, in ours as in etcd.

With one connection and one call in flight each grant pays for an fsync of its own; with 200 in flight a server may put
many into one: both do.
"""

import sys

from bench.rows import Row, load_row, main


def grants(connections: int, in_flight: int, times: float) -> Row:
    return load_row(
        f"lease_grant_{connections}x{in_flight}",
        f"LeaseGrant, {connections} x {in_flight}",
        times,
        *("grant", "--connections", str(connections), "--in-flight", str(in_flight)),
    )


ROWS = (grants(1, 1, 1.2), grants(10, 1, 1.5), grants(10, 20, 5), grants(200, 4, 4))

if __name__ == "__main__":
    sys.exit(main(ROWS))
