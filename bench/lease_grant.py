# SPDX-License-Identifier: Apache-2.0
"""Durable lease grants: each reply says that the lease is on disk, in ours as in etcd.

200 grants wait at any time, so a server may put many into one fsync: both do.
"""

import sys

from bench.harness import Claim, main

CLAIM = Claim(
    name="lease_grant",
    text="LeaseGrant with fsync, 10 connections x 20 in flight",
    load=("grant", "--connections", "10", "--in-flight", "20"),
    ratio_min=3.0,
)

if __name__ == "__main__":
    sys.exit(main(CLAIM))
