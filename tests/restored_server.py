# SPDX-License-Identifier: Apache-2.0
"""Lessor on a data directory that one of its commands has made out of an etcd's data.

with RestoredServer("snapshot", "restore", str(path)) as server:
    ...  # server.said is what the command has printed
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conformance.server_process import ServerProcess


class RestoredServer(ServerProcess):
    """`--data-dir` with a new directory is added to the command."""

    min_lease_ttl_s = 2
    ready_page = "version"

    def __init__(self, *made_by: str) -> None:
        super().__init__()
        self._made_by = made_by
        self.said = ""

    def __enter__(self) -> "RestoredServer":
        self.folder = Path(tempfile.mkdtemp(prefix="restored-"))
        try:
            self.said = lessor(*self._made_by, "--data-dir", str(self.data_dir))
            self.start_again()
        except BaseException:
            self.stop()
            raise
        return self

    def command(self) -> list[str]:
        urls = [f"--listen-client-urls={self.client_url}", f"--advertise-client-urls={self.client_url}"]
        return [sys.executable, "-m", "lessor", "serve", f"--data-dir={self.data_dir}", *urls]


def lessor(*args: str) -> str:
    """What the command prints. It has to succeed."""
    done = subprocess.run([sys.executable, "-m", "lessor", *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_same(seen: dict[str, Any], before: dict[str, Any]) -> None:
    """`seen`: of this server; `before`: of the etcd that the data comes from; both as tests/observed.py has it."""
    if "enabled" not in before["auth"]:  # 3.4 does not tell, but its users could log in
        assert seen["auth"].pop("enabled")
        assert seen["auth"].pop("revision") > 1
    for one in (seen, before):
        # etcd 3.6 and newer show a permission of role root, which may do everything without one.
        one["auth"]["roles"].pop("root", None)
    assert seen == before
