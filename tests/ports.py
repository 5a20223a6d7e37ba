# SPDX-License-Identifier: Apache-2.0
"""TCP ports for servers that are told where to listen: the one home of `free_port`, for tests and benchmarks.

Laws
- No port is given twice by one process, and none by two processes of one user that live at the same time.
- A port lies outside the range from which the kernel takes ports for outgoing connections and for listeners without a
  wish, so that nobody is given it by chance between the draw and the server's start, or while a server restarts.
- Nobody listens on it at the moment of the draw.

The range is cut into blocks. A process owns a block while it holds the lock on the block's file, which the kernel gives
back when the process ends, however it ends. A process that has used up its block takes one more.

Not promised: a program that does not ask here may choose a number of the range by itself. What can bind to port 0 and
keep the socket needs none of this and should do that.
"""

import fcntl
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

LOWEST, HIGHEST = 10_000, 65_535
BLOCK_PORTS = 200
BLOCKS_MIN = 10  # fewer would not do for several test runs at a time
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
EPHEMERAL_ELSEWHERE = (49_152, 65_535)  # what IANA sets apart, where the kernel cannot be asked


class NoPortError(RuntimeError):
    """Every block is in use, or every port in them."""


def ephemeral_ports() -> tuple[int, int]:
    """The first and the last port that the kernel chooses by itself."""
    try:
        low, high = EPHEMERAL.read_text().split()
    except OSError:
        return EPHEMERAL_ELSEWHERE
    return int(low), int(high)


def outside(low: int, high: int) -> range:
    """The ports below the ephemeral ones, or above them, where that is more; all, where neither is enough."""
    most = max(range(LOWEST, low), range(high + 1, HIGHEST + 1), key=len)
    return most if len(most) >= BLOCKS_MIN * BLOCK_PORTS else range(LOWEST, HIGHEST + 1)


def unused(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Ports:
    """Draws from `ports`; the lock files are in `folder`. Any thread may draw."""

    def __init__(self, ports: range, folder: Path) -> None:
        self._ports = ports
        self._folder = folder
        self._lock = threading.Lock()
        self._drawn = self._draws()
        self._held: list[int] = []  # descriptors of the locked files

    def draw(self) -> int:
        """A free port. NoPortError when there is none; it is no use to try again while the other processes run."""
        with self._lock:
            port = next(self._drawn, None)
        if port is None:
            raise NoPortError(f"no free port is left in {self._ports}; the blocks are locked in {self._folder}")
        return port

    def close(self) -> None:
        """Gives the blocks to others. The process's end does the same."""
        with self._lock:
            self._drawn = iter(())
            for descriptor in self._held:
                os.close(descriptor)
            self._held.clear()

    def _draws(self) -> Iterator[int]:
        blocks = len(self._ports) // BLOCK_PORTS
        # Runs that follow each other begin in different blocks: a client that the last one left behind, and that still
        # tries to connect, meets nobody.
        first = os.getpid() % max(blocks, 1)
        for block in (*range(first, blocks), *range(first)):
            if self._take(block):
                yield from filter(unused, self._ports[block * BLOCK_PORTS : (block + 1) * BLOCK_PORTS])

    def _take(self, block: int) -> bool:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / str(self._ports[block * BLOCK_PORTS]), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held.append(descriptor)
        return True


_PORTS = Ports(outside(*ephemeral_ports()), Path(tempfile.gettempdir()) / f"lessor-ports-{os.getuid()}")
free_port = _PORTS.draw
