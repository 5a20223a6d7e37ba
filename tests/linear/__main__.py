# SPDX-License-Identifier: Apache-2.0
"""Kills servers under load and checks the histories, for as long as one likes: python -m tests.linear --kills 200.

Each history has `--each` kills on a data directory of its own. A history with findings is saved as a file, which
`--check FILE` checks again. To be run from the root of the repository.
"""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.conformance.proxy import Proxy
from tests.engine_flags import engine_flags
from tests.linear.check import findings
from tests.linear.driver import run
from tests.linear.history import History
from tests.linear.nemesis import EtcdProcess, LessorProcess, Nemesis, OneServer, OnOneLog, Process

KINDS = [*OnOneLog.KINDS, *OnOneLog.LINK_KINDS]


def show(found: list[str]) -> None:
    for finding in found[:10]:
        print("  ", finding)
    if len(found) > 10:
        print("  ", len(found) - 10, "more")


def servers(data_dir: Path, options: argparse.Namespace, stack: ExitStack) -> tuple[Nemesis, Process]:
    """What is struck, and the process whose log is shown."""
    if options.etcd is not None:
        etcd = EtcdProcess(data_dir, options.etcd)
        return OneServer(etcd), etcd
    if options.servers == 1:
        lessor = LessorProcess(data_dir)
        return OneServer(lessor), lessor
    url, *others = engine_flags(data_dir)
    address = re.search(r"[\w.]+:\d+", url)
    assert address is not None, "an engine with a port"
    links = [stack.enter_context(Proxy(address[0])) for _ in range(options.servers)]
    engines = [[url.replace(address[0], link.address), *others] for link in links]
    processes = [LessorProcess(data_dir.with_name(f"data{n}"), engine=engine) for n, engine in enumerate(engines)]
    return OnOneLog(*processes, kinds=options.only or KINDS, links=links), processes[0]


def _strikes(nemesis: Nemesis) -> str:
    if not isinstance(nemesis, OnOneLog):
        return f"{len(nemesis.disturbed)} strikes"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(nemesis.strikes.items()))
    return f"{nemesis.strikes.total()} strikes ({kinds})"


def one_history(seed: int, kills: int, options: argparse.Namespace) -> int:
    """Runs and checks one; returns the number of findings."""
    with tempfile.TemporaryDirectory(prefix="linear-") as folder, ExitStack() as stack:
        began_s = time.monotonic()
        data_dir = Path(folder) / "data"
        nemesis, server = servers(data_dir, options, stack)
        history = run(nemesis, kills, seed)
        ran_s = time.monotonic() - began_s
        found = findings(history, watches_lag=options.servers > 1)
        outcomes = Counter(op.outcome for op in history.ops)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(
            f"seed {seed}: {_strikes(nemesis)} in {ran_s:.0f} s, {len(history.ops)} calls ({counts}), "
            f"{len(history.events)} events, {len(history.sessions)} watches, "
            f"checked in {time.monotonic() - began_s - ran_s:.1f} s: {len(found)} findings",
            flush=True,
        )
        if found:
            show(found)
            kept = Path(tempfile.gettempdir()) / f"linear-{seed}.jsonl"
            history.save(kept)
            print("   saved as", kept, "; the log of the server:", server.log_text()[-2000:])
        return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.linear", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="in all")
    parser.add_argument("--each", type=int, default=20, help="kills of one history")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--etcd", type=Path, metavar="BINARY", help="try this etcd and not Lessor")
    parser.add_argument("--servers", type=int, default=1, help="so many on one log, which LESSOR_TEST_ENGINE names")
    parser.add_argument(
        "--only", choices=KINDS, action="append", help="with several servers: strikes of this kind, or these, only"
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="check a saved history and run nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no server is left behind
    if options.check is not None:
        found = findings(History.load(options.check), watches_lag=options.servers > 1)
        show(found)
        return 1 if found else 0
    failed, left, seed = 0, options.kills, options.seed
    while left > 0:
        failed += one_history(seed, min(left, options.each), options)
        left -= options.each
        seed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
