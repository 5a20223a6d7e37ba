# SPDX-License-Identifier: Apache-2.0
"""Bytes on disk for a history: one key overwritten again and again, with values of one size.

The figure is the size that Status tells, which is that of the database file, for each byte of the values. What stands
in a log for a while is not in it: etcd's log has the same entries once more, and so has ours.
"""

import argparse
import os
import sys
import time

import grpc

from bench.harness import Node
from bench.rows import Figures, Goal, Row, main
from lessor.api.proto import rpc_pb2

SIZES = {50: 3_000, 900: 3_000, 1_000: 3_000, 1_500: 3_000, 2_100: 3_000, 4_200: 2_000, 20_000: 500, 1_000_000: 10}
TIMES = 0.67  # etcd's bytes by ours: at most 1.5 times what etcd takes
IN_FLIGHT = 16
FOLLOWED_S = 1.5  # until the tables have followed


def overwrite(node: Node, _options: argparse.Namespace) -> Figures:
    figures: Figures = {}
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        put = channel.unary_unary("/etcdserverpb.KV/Put", rpc_pb2.PutRequest.SerializeToString)
        status = channel.unary_unary(
            "/etcdserverpb.Maintenance/Status",
            rpc_pb2.StatusRequest.SerializeToString,
            rpc_pb2.StatusResponse.FromString,
        )
        for size, times in SIZES.items():
            before = status(rpc_pb2.StatusRequest()).dbSizeInUse
            waiting = []
            for _ in range(times):
                waiting.append(put.future(rpc_pb2.PutRequest(key=b"key", value=os.urandom(size))))
                if len(waiting) == IN_FLIGHT:
                    waiting.pop(0).result()
            for call in waiting:
                call.result()
            time.sleep(FOLLOWED_S)
            figures[f"of_{size}"] = (status(rpc_pb2.StatusRequest()).dbSizeInUse - before) / (size * times)
    return figures


ROWS = (
    Row(
        "space",
        overwrite,
        tuple(Goal(f"of_{size}", f"Disk for a byte of a value of {size:,} bytes", "B", TIMES) for size in SIZES),
        rounds_max=1,
    ),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
