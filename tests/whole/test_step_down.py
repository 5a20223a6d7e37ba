# SPDX-License-Identifier: Apache-2.0
"""A leader that was taken over follows, in the same process: nothing is shown that the log does not have."""

import asyncio
import contextlib
import gc
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.client import Client
from lessor.durable.engine import FIRST_TERM, FencedError
from lessor.durable.shared_log import UnknownError
from lessor.replicated.engine import ReplicatedEngine
from lessor.server import main
from lessor.server.command import parse
from lessor.server.loop.core import Core
from lessor.testing.server import InProcessServer
from lessor.testing.virtual_clock import VirtualClock
from tests.conformance.grpc_peer import GrpcPeer
from tests.linear.nemesis import LessorProcess
from tests.memory_log import MemoryLog, MemoryRecords
from tests.ports import free_port
from tests.whole.test_followers import server_on
from tests.whole.test_move_leader import leads, member_id, move
from tests.whole.test_on_a_shared_log import FAST, eventually, put


class InThread:
    """`main.run` in a thread of this process, on a log in memory. Implements `main.Signals`."""

    def __init__(self, kept: MemoryRecords, data_dir: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
        def engine(_: Any) -> ReplicatedEngine:
            return ReplicatedEngine(
                data_dir, lambda: MemoryLog(kept), FAST, urls=(f"http://{self.address}",), sync=False
            )

        monkeypatch.setattr(main, "_engine_of", engine)
        self.servers: list[weakref.ref[main.Server]] = []
        self.cores: list[weakref.ref[Core]] = []
        self.code: int | None = None
        self.address = f"127.0.0.1:{free_port()}"
        self._loop: asyncio.AbstractEventLoop | None = None
        url = f"http://{self.address}"
        self._options = parse(
            [f"--data-dir={data_dir}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}", *flags]
        )
        self._thread = threading.Thread(target=self._run)

    def starting(self) -> None:
        self._loop = None

    def install(self, loop: asyncio.AbstractEventLoop, server: main.Server) -> None:
        self._loop = loop
        self.cores.append(weakref.ref(server.core))
        self.servers.append(weakref.ref(server))

    def _run(self) -> None:
        self.code = main.run(self._options, self)

    @property
    def server(self) -> main.Server:
        found = self.servers[-1]()
        assert found is not None
        return found

    def __enter__(self) -> "InThread":
        self._thread.start()
        eventually(self._leads)
        return self

    def _leads(self) -> bool:
        server = self.servers[-1]() if self.servers else None
        return server is not None and bool(server.addresses) and not server.core.turn.following

    def stop(self) -> None:
        if self._thread.is_alive():
            self.request_stop()
            self._thread.join(20)

    def request_stop(self) -> None:
        eventually(lambda: self._loop is not None)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.server.request_stop)

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def process_as_before() -> Iterator[None]:
    """`run` sets up its process, which is that of the tests here."""
    thresholds, callbacks, interval_s = gc.get_threshold(), gc.callbacks.copy(), sys.getswitchinterval()
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.callbacks[:] = callbacks
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.enable()


@contextlib.contextmanager
def taken_over(
    one: InThread, kept: MemoryRecords, folder: Path, before_the_end: Callable[[GrpcPeer], None]
) -> Iterator[GrpcPeer]:
    """The first one's thread hangs in a call of the engine until another one leads and `before_the_end` returns.

    Yields a peer of the one that leads.
    """
    stuck, hanging = threading.Event(), one.server._committer._thread

    def stall() -> None:
        if threading.current_thread() is hanging:
            stuck.wait(20)
            raise UnknownError("cut")

    kept.before_append = stall
    two = server_on(kept, folder)
    try:
        two.start()
        with GrpcPeer(two.address) as peer:
            eventually(lambda: leads(peer))
            before_the_end(peer)
            stuck.set()
            yield peer
    finally:
        stuck.set()
        one.stop()
        two.close()


@pytest.mark.inside
def test_what_waits_at_one_that_was_taken_over_is_not_answered_and_what_comes_then_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = MemoryRecords()
    with (
        process_as_before(),
        InThread(kept, tmp_path / "a", monkeypatch) as one,
        GrpcPeer(one.address) as peer,
        ThreadPoolExecutor(2) as threads,
    ):
        peer.call(put(b"k", b"v"))
        asked: list[Any] = []

        def ask(other: GrpcPeer) -> None:
            other.call(put(b"k", b"kept"))
            asked.append(threads.submit(peer.call, rpc.RangeRequest(key=b"k", serializable=True)))
            time.sleep(0.2)  # a wrong server answers b"v" in this time
            asked.append(threads.submit(peer.call, put(b"k", b"lost")))
            time.sleep(0.1)
            assert not any(call.done() for call in asked)

        with taken_over(one, kept, tmp_path / "b", ask) as other:
            for call in asked:
                with pytest.raises(Exception, match="UNAVAILABLE"):
                    call.result(10)
            with GrpcPeer(one.address) as again:  # it waits until the server follows
                found: Any = again.call(rpc.RangeRequest(key=b"k"))
                assert (found.kvs[0].value, found.header.raft_term) == (b"kept", FIRST_TERM + 1)
                assert member_id(again) != member_id(other)
                again.call(rpc.RangeRequest(key=b"k", serializable=True))
            gc.collect()
            assert [core() is None for core in one.cores] == [True, False]
            one.stop()
            assert one.code == 0


@pytest.mark.inside
def test_one_that_is_to_end_ends_also_when_it_is_taken_over_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = MemoryRecords()
    with process_as_before(), InThread(kept, tmp_path / "a", monkeypatch) as one:

        def end(_: GrpcPeer) -> None:
            one.request_stop()
            eventually(lambda: not one.server.addresses)

        with taken_over(one, kept, tmp_path / "b", end):
            one._thread.join(10)
            assert (one.code, len(one.servers)) == (0, 1)


@pytest.mark.inside
def test_one_that_is_taken_over_while_it_starts_follows_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = MemoryRecords()
    start = main.Server.start

    async def taken_over_at_once(server: main.Server) -> None:
        monkeypatch.setattr(main.Server, "start", start)
        raise FencedError("another process")

    monkeypatch.setattr(main.Server, "start", taken_over_at_once)
    with process_as_before(), InThread(kept, tmp_path / "a", monkeypatch) as one, GrpcPeer(one.address) as peer:
        peer.call(put(b"k", b"v"))
        assert [core() is None for core in one.cores] == [True, False]


@pytest.mark.inside
def test_connections_that_come_while_it_starts_anew_wait_also_at_a_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, path = MemoryRecords(), tmp_path / "s"
    boot, may_boot = main.Server.boot, threading.Event()
    with (
        process_as_before(),
        InThread(kept, tmp_path / "a", monkeypatch, f"--listen-metrics-urls=unix://{path}") as one,
    ):

        def wait(server: main.Server) -> None:
            may_boot.wait(20)
            boot(server)

        with taken_over(one, kept, tmp_path / "b", lambda _: monkeypatch.setattr(main.Server, "boot", wait)):
            eventually(lambda: one.servers[0]() is None)
            with socket.socket(socket.AF_UNIX) as asked:
                asked.settimeout(10)
                asked.connect(str(path))
                asked.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
                may_boot.set()
                assert asked.recv(100).startswith(b"HTTP/1.0 200")
            with GrpcPeer(one.address) as peer:
                assert not leads(peer)
            one.stop()
            assert not path.exists()


def page(server: LessorProcess) -> str:
    with urllib.request.urlopen(f"http://{server.endpoint}/metrics", timeout=10) as answer:
        return bytes(answer.read()).decode()


def test_a_leader_that_stood_still_follows_in_the_same_process(tmp_path: Path) -> None:
    with InProcessServer(clock=VirtualClock(flowing=True), data_dir=tmp_path / "log") as log:
        engine = [f"--engine=etcd://{log.address}/log", "--engine-may-lose-commits"]
        servers = [LessorProcess(tmp_path / name, engine=engine) for name in ("a", "b", "c")]
        one, two, three = servers
        acknowledged: list[bytes] = []

        def write(server: LessorProcess, value: bytes) -> None:
            with contextlib.suppress(grpc.RpcError), GrpcPeer(server.endpoint) as peer:
                peer.call(put(b"k", value))
                acknowledged.append(value)

        try:
            one.spawn()
            one.wait_until_leading()
            for server in (two, three):
                server.spawn()
                server.wait_until_serving()
            pid = one.pid
            with ThreadPoolExecutor(2) as threads, Client(one.endpoint) as client:
                watching = threads.submit(events_until_the_end, client)
                for times in (1, 2):
                    write(one, b"before %d" % times)
                    with GrpcPeer(one.endpoint) as peer:
                        own = member_id(peer)
                        peer.call(put(b"k/beside", b"v"))
                        one.signal(signal.SIGSTOP)
                        in_flight = threads.submit(write, one, b"in flight %d" % times)
                        eventually(lambda: any(leads_now(server) for server in (two, three)))
                        write(two, b"meanwhile %d" % times)
                        one.signal(signal.SIGCONT)
                        one.wait_until_taken_over(times)
                    in_flight.result(30)
                    one.wait_until_serving()
                    write(one, b"after %d" % times)
                    assert (one.alive, one.pid) == (True, pid)
                    with GrpcPeer(one.endpoint) as peer:
                        assert (member_id(peer), leads(peer)) == (own, False)
                    counted = re.search(r"^lessor_step_downs_total (\S+)$", page(one), re.MULTILINE)
                    assert counted is not None
                    assert float(counted[1]) == times
                    if times == 1:
                        leader = next(server for server in (two, three) if leads_now(server))
                        with GrpcPeer(leader.endpoint) as peer:
                            move(peer, own)
                        one.wait_until_leading()
                write(three, b"end")
                seen = watching.result(30)
            with Client(three.endpoint) as client:
                history = events_until_the_end(client)
            assert seen == history
            values = [value for _, value in history]
            assert [value for value in values if value in acknowledged] == acknowledged
            for expected in (b"before 1", b"meanwhile 1", b"after 1", b"before 2", b"meanwhile 2", b"after 2", b"end"):
                assert expected in acknowledged
            assert one.terminate() == 0
        finally:
            for server in servers:
                if server.alive:
                    server.signal(signal.SIGCONT)
                    server.kill()


def events_until_the_end(client: Client) -> list[tuple[bytes, bytes]]:
    seen: list[tuple[bytes, bytes]] = []
    with client.watch(b"k", prefix=True, start_revision=1) as watch:
        for response in watch:
            seen += [(event.kv.key, event.kv.value) for event in response.events]
            if seen and seen[-1][1] == b"end":
                return seen
    raise AssertionError("the watch has ended")


def leads_now(server: LessorProcess) -> bool:
    with GrpcPeer(server.endpoint) as peer:
        return leads(peer)
