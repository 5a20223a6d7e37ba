# SPDX-License-Identifier: Apache-2.0
"""The slowest calls: grants and keepalives at a fixed pace while everything else goes on at once.

What goes on, on a server that holds 20,000 leases with a key each: 1,000 puts/s, each seen by ten watchers; 5,000
leases with a key each that are due at once; a compaction of all history; a snapshot, read as fast as it goes. The pace
is the same for all servers, and far below what they can do: not throughput is measured, but who has to wait.
"""

import argparse
import sys
import time

from bench import population
from bench.h2_calls import SnapshotCall, call_all
from bench.harness import Node
from bench.load_loop import WrongReplyError
from bench.processes import Paced
from bench.rows import Figures, Goal, Row, main
from lessor.api.proto import rpc_pb2

HELD, DUE = 20_000, 5_000
DUE_TTL_S = 12  # the 5,000 are made, with their keys, in less
STORM_AT_S, COMPACT_AT_S, SNAPSHOT_AT_S, END_S = 2.0, 4.0, 6.0, 8.0


def measure(node: Node, options: argparse.Namespace) -> Figures:
    address = node.address
    population.populate(address, population.new_ids(max(int(HELD * options.scale), 1_000)))
    due = population.new_ids(max(int(DUE * options.scale), 1_000))
    population.populate(address, due, DUE_TTL_S)
    population.renew(address, due, DUE_TTL_S)
    begin = time.perf_counter() + DUE_TTL_S - STORM_AT_S

    def at(offset_s: float) -> None:
        time.sleep(max(begin + offset_s - time.perf_counter(), 0.0))

    at(-1.0)
    with Paced(node, "--puts", 1_000, "--watchers", 10):
        at(0.0)
        with Paced(node, "--grants", 100, "--keepalives", 500) as probe:
            at(COMPACT_AT_S)
            compact(node)
            at(SNAPSHOT_AT_S)
            snapshot_bytes = snapshot(node)
            at(END_S)
    figures = probe.figures
    until = time.perf_counter() + 60.0
    while (left := population.count_keys(address)) > max(int(HELD * options.scale), 1_000):
        if time.perf_counter() > until:
            raise WrongReplyError(f"{left} keys are left long after the storm")
        time.sleep(0.1)
    return {**figures, "snapshot_bytes": snapshot_bytes}


def compact(node: Node) -> None:
    revisions = []

    def noted(_: int, data: bytes) -> None:
        revisions.append(rpc_pb2.RangeResponse.FromString(data).header.revision)

    read = [rpc_pb2.RangeRequest(key=b"none")]
    call_all(node.address, population.RANGE_PATH, read, noted)
    request = [rpc_pb2.CompactionRequest(revision=revisions[0])]
    call_all(node.address, population.COMPACT_PATH, request, lambda _, data: None)


def snapshot(node: Node) -> int:
    call = SnapshotCall(node.address)
    while not call.done:
        call.read(time.perf_counter())
        call.refill(0.0)
    call.close()
    return call.size_bytes


CALLS = {"grant": "LeaseGrant", "keepalive": "LeaseKeepAlive"}
NAMES = {"p50": "p50", "p99": "p99", "p999": "p99.9"}
LATENCIES = [
    Goal(f"{kind}_{figure}_ms", f"Mixed load: {call}, {name}", "ms")
    for kind, call in CALLS.items()
    for figure, name in NAMES.items()
]
FAILED = Goal("keepalive_failed", "- keepalives that failed", "calls", at_most=0)
ROWS = (Row("tail", measure, (*LATENCIES, FAILED), rounds_max=2),)

if __name__ == "__main__":
    sys.exit(main(ROWS))
