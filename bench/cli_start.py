# SPDX-License-Identifier: Apache-2.0
"""What a short command of `lessor` costs beside the same one of etcdctl, on the same server:

    python -m bench.cli_start [--rounds 21] [--etcdctl /path/of/etcdctl]

Milliseconds of processor time, the start of the program included: least and median of the rounds, in turn. The first
line is an interpreter that does nothing.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.harness import find_etcd, ours, running

LINES = ("put a b", "get a", "lease grant 60", "lease list", "endpoint health")


def cpu_ms(command: list[str]) -> float:
    """Processor time of one run, which must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--etcdctl", help="by default the one beside the etcd of the benches")
    arguments = parser.parse_args()
    etcdctl = arguments.etcdctl or str(Path(find_etcd() or "etcd").with_name("etcdctl"))
    with tempfile.TemporaryDirectory() as folder, running(ours(), Path(folder)) as (_, port):
        endpoint = f"--endpoints=127.0.0.1:{port}"
        lessor = [sys.executable, "-m", "lessor"]
        programs = {"python -c pass": [sys.executable, "-c", "pass"]}
        for line in LINES:
            programs[f"lessor {line}"] = [*lessor, *line.split(), endpoint]
            programs[f"etcdctl {line}"] = [etcdctl, *line.split(), endpoint]
        taken: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(arguments.rounds + 1):  # the first writes bytecode
            for name, command in programs.items():
                taken[name].append(cpu_ms(command))
    print(f"load {os.getloadavg()[0]:.1f}")
    for name, each in taken.items():
        print(f"{name:28} {min(each[1:]):6.0f} {statistics.median(each[1:]):6.0f} ms")


if __name__ == "__main__":
    main()
