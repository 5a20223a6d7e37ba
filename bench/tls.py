# SPDX-License-Identifier: Apache-2.0
"""What TLS costs: handshakes, and the throughput of grants and keepalives with and without it, in ours and in etcd.

Each figure is the median of --runs runs; servers and ways take turns. A handshake is a whole one, with a new
connection, done by --clients processes at once; what one costs is the server's processor time divided by their number.

    python -m bench.tls --runs 3

prints one JSON object. It holds no claim; docs/decisions/0005-tls.md has figures, with the machine they are of.
"""

import argparse
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bench import harness
from lessor.wire.frames import PREFACE
from tests.certificates import Authority
from tests.ports import free_port

LOADS = {
    "grant": ("grant", "--connections", "10", "--in-flight", "20"),
    "keepalive": ("keepalive", "--streams", "10", "--in-flight", "64"),
}


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shake(port: int, authority: str, seconds: float, done: "multiprocessing.SimpleQueue[int]") -> None:
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols(["h2"])
    give_up, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < give_up:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure.sendall(PREFACE + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            secure.recv(1)  # the server's first frame: it has done its part
            count += 1
    done.put(count)


def handshakes(port: int, pid: int, authority: str, clients: int, seconds: float) -> dict[str, float]:
    done: multiprocessing.SimpleQueue[int] = multiprocessing.SimpleQueue()
    before, begin = cpu_s(pid), time.perf_counter()
    processes = [multiprocessing.Process(target=shake, args=(port, authority, seconds, done)) for _ in range(clients)]
    for process in processes:
        process.start()
    total = sum(done.get() for _ in processes)
    for process in processes:
        process.join()
    elapsed = time.perf_counter() - begin
    return {
        "handshakes_per_s": total / elapsed,
        "handshake_server_cpu_ms": 1e3 * (cpu_s(pid) - before) / total,
    }


def load(port: int, words: tuple[str, ...], seconds: float, authority: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.load", *words, "--port", str(port), "--seconds", str(seconds)]
    if authority:
        command += ["--cacert", authority]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=harness.ROOT)
    report = json.loads(done.stdout)
    return {"rate": report["rate"], "p99_ms": report["p99_ms"], "client_busy": report["client_busy"]}


def secured(server: harness.Server, port: int, folder: Path) -> harness.Server:
    """The same server with an https:// URL besides its own, and a certificate."""
    command = tuple(
        f"{part},https://127.0.0.1:{port}" if before == "--listen-client-urls" else part
        for before, part in zip(("", *server.command), server.command, strict=False)
    )
    files = ("--cert-file", str(folder / "server.pem"), "--key-file", str(folder / "server.key"))
    return harness.Server(server.name, server.version, (*command, *files))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    servers = [harness.ours()]
    if binary := harness.find_etcd():
        servers.append(harness.etcd(binary))
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority("bench")
        authority.write(folder / "ca.pem")
        authority.issue(folder, "server")
        trust = str(folder / "ca.pem")
        for _ in range(options.runs):
            for server in servers:
                secure_port = free_port()
                with harness.running(secured(server, secure_port, folder), folder) as (process, port):
                    for kind, words in LOADS.items():
                        for way, at, ca in (("plain", port, ""), ("tls", secure_port, trust)):
                            for figure, value in load(at, words, options.seconds, ca).items():
                                found[f"{server.name} {kind} {way} {figure}"].append(value)
                    shaken = handshakes(secure_port, process.pid, trust, options.clients, options.seconds)
                    for figure, value in shaken.items():
                        found[f"{server.name} {figure}"].append(value)
    versions = {server.name: server.version for server in servers}
    figures = {name: round(statistics.median(values), 3) for name, values in found.items()}
    print(json.dumps({"versions": versions, "runs": options.runs, "figures": figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
