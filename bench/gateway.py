# SPDX-License-Identifier: Apache-2.0
"""The JSON gateway: what curl and the clients without gRPC use; 20 connections that stay open, one call in flight."""

import sys

from bench.rows import load_row, main

ROWS = (
    load_row("gateway_grant", "JSON gateway, /v3/lease/grant, 20 connections", 2, "json_grant", "--connections", "20"),
    load_row("gateway_range", "JSON gateway, /v3/kv/range, 20 connections", 2, "json_range", "--connections", "20"),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
