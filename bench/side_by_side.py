# SPDX-License-Identifier: Apache-2.0
"""Runs a load that is about scale against ours and against etcd, in turn, and sets their figures side by side.

Where the other benches have a rate, these have a server in a state: so many connections or watchers, which cost memory
while they are there, and a latency. The bench's own file is the load too: it is started again with --port, says `ready`
when the state is reached and `done` with its figures, and goes when it is told to. What the server takes is read from
outside, at those moments.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import harness

Figures = dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=1, help="runs of each server")
    made.add_argument("--only", choices=(harness.OURS, harness.ETCD))
    made.add_argument("--directory", type=Path, default=harness.ROOT / "build" / "bench")
    made.add_argument("--no-result", action="store_true", help="leave no file in bench/results")
    made.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)  # this process is the load
    return made


def say(word: str, **figures: Any) -> None:
    """What the load tells the bench."""
    print(word, json.dumps(figures), flush=True)


def run(name: str, options: argparse.Namespace, cases: Mapping[str, Sequence[object]], per: int, load: str = "") -> int:
    """Runs each case (its name, its arguments for the load) on each server; memory is told by the `per`-th.

    `load`: the bench file that is the load, where it is not `name` itself.
    """
    servers = [] if options.only == harness.ETCD else [harness.ours()]
    if options.only != harness.OURS and (binary := harness.find_etcd()):
        servers.append(harness.etcd(binary))
    options.directory.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": harness.commit(),
        "machine": harness.machine(options.directory),
        "versions": {server.name: server.version for server in servers},
        "cases": {},
    }
    for case, arguments in cases.items():
        runs: dict[str, list[Figures]] = {server.name: [] for server in servers}
        for turn in range(options.rounds):
            for server in servers if turn % 2 == 0 else reversed(servers):
                figures = run_once(load or name, server, [str(each) for each in arguments], options.directory, per)
                runs[server.name].append(figures)
                print(f"{case:>12} {server.name:>8}  {json.dumps(figures)}", flush=True)
        result["cases"][case] = {"arguments": [str(each) for each in arguments], "runs": runs, "ratio": ratios(runs)}
    if not options.no_result:
        harness.RESULTS.mkdir(exist_ok=True)
        stamp = result["date"].replace(":", "").replace("+0000", "Z")
        path = harness.RESULTS / f"{stamp}-{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path.relative_to(harness.ROOT)}")
    return 0


def ratios(runs: Mapping[str, list[Figures]]) -> dict[str, float]:
    """Ours to etcd's, by the medians, for each figure that both have."""
    if not all(runs.get(name) for name in (harness.OURS, harness.ETCD)):
        return {}
    found = {}
    for figure in runs[harness.OURS][0]:
        ours, etcd = (statistics.median(each[figure] for each in runs[name]) for name in (harness.OURS, harness.ETCD))
        if etcd:
            found[figure] = round(ours / etcd, 3)
    return found


def run_once(name: str, server: harness.Server, arguments: list[str], directory: Path, per: int) -> Figures:
    with harness.running(server, directory) as (process, port):
        load_before = round(os.getloadavg()[0], 2)
        before_bytes = resident_bytes(process.pid)
        command = [sys.executable, "-m", f"bench.{name}", *arguments, "--port", str(port)]
        with subprocess.Popen(
            command, cwd=harness.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as load:
            try:
                figures = heard(load, "ready")
                figures["bytes_each"] = round((resident_bytes(process.pid) - before_bytes) / per)
                cpu_s = harness.cpu_s(process.pid)
                figures |= heard(load, "done")
                figures["server_cpu_s"] = round(harness.cpu_s(process.pid) - cpu_s, 2)
                figures["machine_load_before"] = load_before
                figures["server_mib"] = round(resident_bytes(process.pid) / 2**20, 1)
                load.communicate("go\n", timeout=60)
            finally:
                load.kill()
        return figures


def heard(load: "subprocess.Popen[str]", word: str) -> Figures:
    assert load.stdout is not None
    line = load.stdout.readline()
    said, _, figures = line.partition(" ")
    if said != word:
        raise SystemExit(f"the load ended instead of saying {word!r}")
    found: Figures = json.loads(figures)
    return found


def resident_bytes(pid: int) -> int:
    """What a process has in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
