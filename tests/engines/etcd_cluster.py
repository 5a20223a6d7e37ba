# SPDX-License-Identifier: Apache-2.0
"""An etcd of three members on loopback, each a process that a test may kill or stop.

with EtcdCluster() as cluster:
    cluster.address       # of all, as an engine's address names them
    cluster.kill(cluster.leader())
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lessor.client import Client
from tests.conformance.etcd_server import etcd_binary
from tests.conformance.server_process import STOP_S_MAX, wait_until_healthy
from tests.ports import free_port

# Six times as fast as etcd's defaults: a test should not wait for an election longer than it must.
QUICK = ("--heartbeat-interval=50", "--election-timeout=300")


class EtcdCluster:
    """`flags` are added to the command line of each member."""

    def __init__(self, flags: Sequence[str] = QUICK, members: int = 3) -> None:
        binary = etcd_binary()
        assert binary is not None
        self._binary = binary
        self._flags = flags
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(members)]
        self._peers = [f"http://127.0.0.1:{free_port()}" for _ in range(members)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.folder = Path()

    @property
    def address(self) -> str:
        return ",".join(self.addresses)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="etcd-cluster-"))
        try:
            self._processes = [self._start(number) for number in range(len(self.addresses))]
            for number in range(len(self.addresses)):
                self._wait(number)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self._processes:
            process.wait(STOP_S_MAX)
        shutil.rmtree(self.folder, ignore_errors=True)

    def leader(self) -> int:
        """The number of the member that leads, as another member knows it."""
        for address in self.addresses:
            with Client(address) as client:
                leader = client.maintenance.status().leader
            for number, other in enumerate(self.addresses):
                with Client(other) as client:
                    if client.maintenance.status().header.member_id == leader:
                        return number
        raise RuntimeError("no member leads")

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].wait(STOP_S_MAX)

    def signal(self, number: int, signal_number: int) -> None:
        self._processes[number].send_signal(signal_number)

    def start_again(self, number: int) -> None:
        self._processes[number] = self._start(number)
        self._wait(number)

    def _wait(self, number: int) -> None:
        wait_until_healthy(f"http://{self.addresses[number]}", self._processes[number], self._log(number))

    def _log(self, number: int) -> Path:
        return self.folder / f"log{number}"

    def _start(self, number: int) -> "subprocess.Popen[bytes]":
        url, peer = f"http://{self.addresses[number]}", self._peers[number]
        initial = ",".join(f"n{other}={peer}" for other, peer in enumerate(self._peers))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with self._log(number).open("ab") as output:
            return subprocess.Popen(
                [
                    str(self._binary),
                    f"--name=n{number}",
                    f"--data-dir={self.folder / str(number)}",
                    f"--listen-client-urls={url}",
                    f"--advertise-client-urls={url}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster={initial}",
                    "--log-level=error",
                    *self._flags,
                ],
                stdout=output,
                stderr=output,
                env=environment,
            )
