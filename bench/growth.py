# SPDX-License-Identifier: Apache-2.0
"""How cost grows: the same things measured with 1,000, 10,000 and 100,000 leases with a key each, and with a million.

One server is filled from size to size, and killed and started again at each of them. Grants are revoked again; puts and
reads are of keys that are there, renewals of leases that are there; what expires is a thousand leases more. The client
is this process.
"""

import argparse
import gc
import random
import statistics
import sys

from bench import population
from bench.expiry import storm
from bench.h2_calls import Keepalives, UnaryCalls
from bench.harness import Node, memory_kib
from bench.load_loop import Report, run_for
from bench.memory_and_restart import restart_s
from bench.rows import Figures, Goal, Row, main
from lessor.api.proto import rpc_pb2

KINDS = {"grant": "/s", "put": "/s", "range": "/s", "keepalive": "/s", "expiry": "s", "restart": "s", "memory": "MiB"}
SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
CALLS = 3_000  # grants, puts; each three times
CONNECTIONS = 10
READ_CALLS = 4_096
EXPIRING = 1_000


def of_size(node: Node, ids: list[int], options: argparse.Namespace) -> Figures:
    address = node.address
    picked = random.sample(ids, min(len(ids), CALLS))
    granting, putting = [], []
    for _ in range(3):
        new = population.new_ids(CALLS)
        report = Report("grant", CONNECTIONS, 20)
        population.grant(address, new, report=report)
        granting.append(report.rate)
        population.revoke(address, new)
        report = Report("put", CONNECTIONS, 20)
        population.put_each(address, [(population.key_of(it), it) for it in picked], report)
        putting.append(report.rate)
    figures: Figures = {"grant": statistics.median(granting), "put": statistics.median(putting)}

    asked = random.choices(ids, k=READ_CALLS)
    requests = [rpc_pb2.RangeRequest(key=population.key_of(it)) for it in asked]

    def check(number: int, data: bytes) -> None:
        population.check_range(asked[number], data)

    reads = [UnaryCalls(address, 20, population.RANGE_PATH, requests, check) for _ in range(CONNECTIONS)]
    figures["range"] = rate(reads, options)
    share = len(picked) // CONNECTIONS
    renewing = [
        Keepalives(address, 64, population.TTL_S, picked[number * share : (number + 1) * share])
        for number in range(CONNECTIONS)
    ]
    figures["keepalive"] = rate(renewing, options)
    figures["expiry"] = storm(node, EXPIRING, probing=False)["last_delete_s"]
    figures["memory"] = memory_kib(node.pid) / 1024
    figures["restart"] = restart_s(node, len(ids))
    return figures


def rate(clients: list[UnaryCalls] | list[Keepalives], options: argparse.Namespace) -> float:
    report = Report("", len(clients), clients[0].in_flight)
    gc.collect()
    gc.disable()
    run_for(clients, report, options.warmup / 2, options.seconds / 2)
    gc.enable()
    for client in clients:
        client.close()
    return report.rate


def growth(node: Node, options: argparse.Namespace, sizes: tuple[str, ...]) -> Figures:
    figures: Figures = {}
    ids: list[int] = []
    for size in sizes:
        new = population.new_ids(max(int(SIZES[size] * options.scale), 1_000) - len(ids))
        population.populate(node.address, new)
        ids.extend(new)
        for kind, value in of_size(node, ids, options).items():
            figures[f"{kind}_{size}"] = value
    for kind, unit in KINDS.items():
        if "10k" in sizes and unit == "/s":
            figures[f"{kind}_kept"] = figures[f"{kind}_{sizes[-1]}"] / figures[f"{kind}_10k"]
    return figures


def growth_row(name: str, *sizes: str, huge: bool = False) -> Row:
    goals = [
        Goal(
            f"{kind}_kept",
            f"With {SIZES[sizes[-1]]:,} leases and keys: rate of {kind} to that with 10,000",
            "x",
            0,
            at_least=0.7,
        )
        for kind, unit in KINDS.items()
        if unit == "/s"
    ]
    goals.append(Goal(f"expiry_{sizes[-1]}", f"- {EXPIRING:,} leases due at once among them: last delete seen", "s"))
    goals.append(Goal(f"restart_{sizes[-1]}", "- kill -9 and back to serving", "s", 2.0))
    return Row(name, lambda node, options: growth(node, options, sizes), tuple(goals), rounds_max=1, huge=huge)


ROWS = (
    growth_row("growth", "1k", "10k", "100k"),
    growth_row("growth_1m", "1k", "10k", "100k", "1m", huge=True),
)

if __name__ == "__main__":
    sys.exit(main(ROWS))
