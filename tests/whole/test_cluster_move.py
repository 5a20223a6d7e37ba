# SPDX-License-Identifier: Apache-2.0
"""`lessor cluster move` and `handover` with real servers: what clients find then, and moves that are killed."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.grpc_peer import GrpcPeer
from tests.linear.nemesis import LessorProcess
from tests.whole.test_move_leader import leads, member_id
from tests.whole.test_on_a_shared_log import put

pytestmark = pytest.mark.slow

STEPS = ("look", "copy", "arrive", "seal", "open")

# Kills itself when the step that is named first is done.
KILLED = """
import os, signal, sys
from lessor.cli.cluster_move import _source, _target
from lessor.replicated.moving import move
at, source, target = sys.argv[1:]
move(_source(source, True), _target(target, True), lambda name: name == at and os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[InProcessServer]:
    """Speaks the API of an etcd, so logs can stand in it."""
    with InProcessServer(clock=VirtualClock(flowing=True), data_dir=tmp_path / "logs") as server:
        yield server


def lessor(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "LESSOR_"))}
    command = [sys.executable, "-m", "lessor", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def moved(source: str, target: str) -> str:
    found = lessor("cluster", "move", "--engine-may-lose-commits", "--from", source, "--to", target)
    assert found.returncode == 0, found.stderr
    return found.stdout


def server_on(home: str, folder: Path) -> LessorProcess:
    if "://" not in home:
        return LessorProcess(Path(home), engine=[])
    return LessorProcess(folder, engine=[f"--engine={home}", "--engine-may-lose-commits"])


def history(peer: GrpcPeer) -> list[tuple[bytes, bytes, int]]:
    """All that a watch from revision 2 is sent first."""
    call = peer.channel.stream_stream(
        "/etcdserverpb.Watch/Watch", rpc.WatchRequest.SerializeToString, rpc.WatchResponse.FromString
    )
    request = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=2))
    stream: Any = call(iter([request]), timeout=20)
    found = []
    for reply in stream:
        found += [(event.kv.key, event.kv.value, event.kv.mod_revision) for event in reply.events]
        if found:
            stream.cancel()
            return found
    raise AssertionError("the watch has ended")


def auth(peer: GrpcPeer, method: str, request: Any, reply: Any) -> Any:
    path = f"/etcdserverpb.Auth/{method}"
    return peer.channel.unary_unary(path, type(request).SerializeToString, reply.FromString)(request, timeout=20)


def facts(peer: GrpcPeer) -> list[object]:
    lease: Any = peer.call(rpc.LeaseTimeToLiveRequest(ID=7, keys=True))
    kv: Any = peer.call(rpc.RangeRequest(key=b"a"))
    old: Any = peer.call(rpc.RangeRequest(key=b"a", revision=2))
    digest: Any = peer.call(rpc.HashKVRequest())
    users = auth(peer, "UserList", rpc.AuthUserListRequest(), rpc.AuthUserListResponse)
    assert 5000 < lease.TTL <= 6000
    return [
        kv.header.cluster_id,
        kv.header.revision,
        kv.kvs[0].value,
        old.kvs[0].value,
        digest.hash,
        lease.grantedTTL,
        list(lease.keys),
        list(users.users),
        history(peer),
    ]


def fill(peer: GrpcPeer) -> None:
    peer.call(put(b"a", b"1"))
    peer.call(rpc.LeaseGrantRequest(TTL=6000, ID=7))
    peer.call(put(b"leased", b"x", 7))
    peer.call(put(b"a", b"2"))
    auth(peer, "UserAdd", rpc.AuthUserAddRequest(name="ann", password="pw"), rpc.AuthUserAddResponse)


def test_from_one_node_to_an_engine_to_another_one_and_back(logs: InProcessServer, tmp_path: Path) -> None:
    homes = [
        str(tmp_path / "one"),
        f"etcd://{logs.address}/first",
        f"etcd://{logs.address}/second",
        str(tmp_path / "back"),
    ]
    found: list[object] = []
    for number, home in enumerate(homes):
        server = server_on(home, tmp_path / f"copy{number}")
        try:
            if number:
                text = moved(homes[number - 1], home)
                assert re.fullmatch(
                    rf"moved cluster [0-9a-f]+, \d+ kB, to {re.escape(home)}: start the servers on that\n", text
                )
            server.spawn()
            server.wait_until_leading()
            with GrpcPeer(server.endpoint) as peer:
                if not number:
                    fill(peer)
                    found = facts(peer)
                assert facts(peer) == found
        finally:
            server.kill() if number % 2 else server.terminate()  # both an orderly end and none come before a move
        if number:
            again = server_on(homes[number - 1], tmp_path / f"copy{number - 1}")
            again.spawn()
            assert again.has_ended() == 1
            said = again.data_dir.with_suffix(".log").read_text().splitlines()[-1]
            assert f"the data has moved to {home}: start the servers on that" in said
            elsewhere = ("--from", homes[number - 1], "--to", str(tmp_path / "elsewhere"))
            second = lessor("cluster", "move", "--engine-may-lose-commits", *elsewhere)
            assert second.returncode == 1
            assert f"Error: {homes[number - 1]}: the data has moved to {home}" in second.stderr


@pytest.mark.parametrize("at", STEPS)
def test_a_move_from_log_to_log_that_was_killed(logs: InProcessServer, tmp_path: Path, at: str) -> None:
    source, target = f"etcd://{logs.address}/old", f"etcd://{logs.address}/new"
    server = server_on(source, tmp_path / "a")
    server.spawn()
    server.wait_until_leading()
    with GrpcPeer(server.endpoint) as peer:
        fill(peer)
        expected = facts(peer)
    server.terminate()
    killed = subprocess.run([sys.executable, "-c", KILLED, at, source, target], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    if at != "open":
        moved(source, target)
    server = server_on(target, tmp_path / "b")
    server.spawn()
    try:
        server.wait_until_leading()
        with GrpcPeer(server.endpoint) as peer:
            assert facts(peer) == expected
    finally:
        server.terminate()


def test_handover_names_who_leads_then(logs: InProcessServer, tmp_path: Path) -> None:
    engine = [f"--engine=etcd://{logs.address}/log", "--engine-may-lose-commits"]
    servers = [LessorProcess(tmp_path / name, engine=[*engine, f"--name={name}"]) for name in ("n1", "n2")]
    try:
        servers[0].spawn()
        servers[0].wait_until_leading()
        servers[1].spawn()
        servers[1].wait_until_serving()
        ends = ["--endpoints", ",".join(server.endpoint for server in servers)]
        with GrpcPeer(servers[0].endpoint) as first, GrpcPeer(servers[1].endpoint) as second:
            ids = [member_id(first), member_id(second)]
            found = lessor("cluster", "handover", *ends)
            assert (found.stdout, found.stderr) == (f"n2 ({ids[1]:x}) leads, after n1 ({ids[0]:x})\n", "")
            assert leads(second)
            found = lessor("cluster", "handover", "n2", *ends)
            assert (found.returncode, found.stderr) == (1, f"Error: n2 ({ids[1]:x}) leads already\n")
            found = lessor("cluster", "handover", "n3", *ends)
            assert found.returncode == 1
            assert f"n3: no server of that name or id; those that follow: n1 ({ids[0]:x})" in found.stderr
            found = lessor("cluster", "handover", f"{ids[0]:x}", *ends)
            assert found.stdout == f"n1 ({ids[0]:x}) leads, after n2 ({ids[1]:x})\n"
    finally:
        for server in servers:
            server.terminate()
