# SPDX-License-Identifier: Apache-2.0
"""Lease events over lost connections: which are sent afterwards, that none is sent twice, when the client stops."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.base.errors import Code
from lessor.cli.lease_follow import Follower, Ledger, resumed
from lessor.client import AsyncClient, ClientError, ConnectionLost, ServerError
from lessor.testing.server import InProcessServer
from tests.whole.test_cli_beside_etcdctl import OURS
from tests.whole.test_cli_leases import TERMINAL

GRANTED, EXPIRED = leases_pb2.LeaseEvent.GRANTED, leases_pb2.LeaseEvent.EXPIRED
REVOKED, ENDED = leases_pb2.LeaseEvent.REVOKED, leases_pb2.LeaseEvent.ENDED
LOST = ConnectionLost("gone", endpoint="a:1")
WAIT_S_MAX = 20.0
WHEN = ("seen", "gap", "held")


def event(kind: leases_pb2.LeaseEvent.Type, lease_id: int, ttl_s: int = 60) -> leases_pb2.LeaseEvent:
    return leases_pb2.LeaseEvent(type=kind, ID=lease_id, TTL=ttl_s)


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_the_worked_example() -> None:
    ledger = Ledger()
    assert ledger.catch_up({1: 60, 2: 60}, []) == []
    assert ledger.catch_up({3: 9}, [event(REVOKED, 1)]) == [event(ENDED, 2), event(GRANTED, 3, 9)]
    assert ledger.living == {3: 9}


def test_an_id_that_has_another_ttl_is_another_lease() -> None:
    ledger = Ledger()
    ledger.catch_up({1: 60}, [])
    assert ledger.catch_up({1: 30}, []) == [event(ENDED, 1, 60), event(GRANTED, 1, 30)]


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(list(WHEN))), max_size=25), st.data())
def test_what_is_told_is_a_history_that_can_have_been(happened: list[tuple[int, str]], data: st.DataObject) -> None:
    """Each step grants a lease or, when it lives, ends it: seen over the first connection, in the gap, or held back."""
    happened = sorted(happened, key=lambda step: WHEN.index(step[1]))
    ledger, living, followed = Ledger(), set[int](), []
    ledger.catch_up({}, [])
    held: list[leases_pb2.LeaseEvent] = []
    looks = {lease_id: data.draw(st.integers(0, 9)) for lease_id in range(1, 5)}  # when the list looks at each
    listed: dict[int, int] = {}
    at_gap: set[int] | None = None
    lived_on = set[int]()
    for lease_id, when in happened:
        if when != "seen" and at_gap is None:
            at_gap, lived_on = set(living), set(living)
        if when == "held":
            listed.update((it, 60) for it, look in looks.items() if look == len(held) and it in living)
        step = event(EXPIRED if lease_id in living else GRANTED, lease_id)
        living ^= {lease_id}
        if when == "seen":
            ledger.note([step])
            followed.append(step)
        elif when == "held":
            held.append(step)
        else:
            lived_on.discard(lease_id)
    listed.update((it, 60) for it, look in looks.items() if look >= len(held) and it in living)
    unseen = ledger.catch_up(listed, held)
    assert set(ledger.living or {}) == living
    alive = set[int]()
    for step in [*followed, *unseen, *held]:
        assert (step.ID not in alive) == (step.type == GRANTED), "granted and ended in turns, nothing twice"
        alive ^= {step.ID}
    assert alive == living
    assert not lived_on & {step.ID for step in unseen}


# --- when to go on --------------------------------------------------------------------------------------------------


def attempts(*ends: ClientError | None) -> tuple[list[object], Callable[[], None]]:
    """Runs `resumed` over attempts that end so, None for one that cannot begin; what was said, and how it ended."""
    said: list[object] = []
    left = list(ends)

    async def attempt(begun: Callable[[], None]) -> None:
        end = left.pop(0)
        if end is None:
            raise LOST
        begun()
        said.append("begun")
        raise end

    def go() -> None:
        asyncio.run(resumed(attempt, lambda error: said.append(str(error))))

    return said, go


def test_a_loss_is_said_once_however_often_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("lessor.cli.tasks.sleep", sleep)
    slow = ServerError(Code.RESOURCE_EXHAUSTED, "read faster")
    said, go = attempts(LOST, None, None, LOST, slow, ServerError(Code.PERMISSION_DENIED, "no"))
    with pytest.raises(ServerError, match="no"):
        go()
    assert said == ["begun", "gone", "begun", "gone", "begun", "read faster", "begun"]
    assert waits[0] == waits[3] == waits[4] == 0  # the first attempt after a good one comes at once
    assert 0 < waits[1] < 0.1 <= waits[2] <= 0.2


def test_one_that_never_began_is_an_error() -> None:
    said, go = attempts(None)
    with pytest.raises(ConnectionLost):
        go()
    assert said == []


# --- over sockets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[InProcessServer]:
    with InProcessServer() as server:
        yield server


class Watching:
    """A Follower in a loop of its own, and what it tells."""

    def __init__(self, server: InProcessServer) -> None:
        self._server = server
        self.received: asyncio.Queue[leases_pb2.LeaseEvent | str] = asyncio.Queue()

    def _tell(self, response: leases_pb2.LeaseWatchResponse) -> None:
        for each in response.events:
            self.received.put_nowait(each)

    async def follow(self) -> None:
        async with self._server.async_client() as client:

            async def attempt(begun: Callable[[], None]) -> None:
                def well() -> None:
                    begun()
                    self.received.put_nowait("begun")

                await follower.follow(well)

            follower = Follower(client, self._tell)
            await resumed(attempt, lambda error: self.received.put_nowait("lost"))

    async def next(self) -> tuple[str, int] | str:
        async with asyncio.timeout(WAIT_S_MAX):
            what = await self.received.get()
        return what if isinstance(what, str) else (leases_pb2.LeaseEvent.Type.Name(what.type), what.ID)


def test_what_happened_while_there_was_no_connection_is_told_afterwards(server: InProcessServer) -> None:
    async def main() -> None:
        watching = Watching(server)
        server._apply(*(rpc_pb2.LeaseGrantRequest(ID=number, TTL=60) for number in (1, 2)))
        task = asyncio.create_task(watching.follow())
        assert await watching.next() == "begun"  # leases that were there before are not sent
        server._apply(rpc_pb2.LeaseGrantRequest(ID=3, TTL=60))
        assert await watching.next() == ("GRANTED", 3)
        with server.refuse_connections():
            server.drop_connections()
            assert await watching.next() == "lost"
            server._apply(rpc_pb2.LeaseRevokeRequest(ID=2), rpc_pb2.LeaseGrantRequest(ID=4, TTL=60))
        assert [await watching.next() for _ in range(3)] == ["begun", ("ENDED", 2), ("GRANTED", 4)]
        await asyncio.to_thread(server.stop)
        assert await watching.next() == "lost"
        await asyncio.to_thread(server.start)
        assert await watching.next() == "begun"
        server._apply(rpc_pb2.LeaseRevokeRequest(ID=1))
        assert await watching.next() == ("REVOKED", 1)
        assert watching.received.empty()
        task.cancel()

    asyncio.run(main())


def test_what_comes_while_the_list_is_made_waits_for_it(
    server: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only after a lost connection: at the beginning no event was sent before."""
    may_list = asyncio.Event()
    lease_list = AsyncClient.lease_list

    async def when_it_may(self: AsyncClient, **asked: Any) -> AsyncIterator[leases_pb2.LeaseListResponse]:
        await may_list.wait()
        async for page in lease_list(self, **asked):
            yield page

    monkeypatch.setattr(AsyncClient, "lease_list", when_it_may)

    def grant(lease_id: int) -> None:
        server._apply(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=60))

    async def until_watched() -> None:
        while not server.call(lambda: set(server.server.core.machine.lease_events.watchers)):
            await asyncio.sleep(0.001)

    async def main() -> None:
        watching = Watching(server)
        task = asyncio.create_task(watching.follow())
        await until_watched()
        grant(1)
        assert await watching.next() == ("GRANTED", 1)
        may_list.set()
        assert await watching.next() == "begun"
        may_list.clear()
        with server.refuse_connections():
            server.drop_connections()
            assert await watching.next() == "lost"
            grant(2)
        await until_watched()
        grant(3)
        assert watching.received.empty()
        may_list.set()
        assert [await watching.next() for _ in range(3)] == ["begun", ("GRANTED", 2), ("GRANTED", 3)]
        task.cancel()

    asyncio.run(main())


@pytest.mark.slow
def test_the_command_says_that_the_connection_is_lost_and_goes_on(server: InProcessServer) -> None:
    with command(server, "lease", "watch") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not server.call(lambda: set(server.server.core.machine.lease_events.watchers)):
            time.sleep(0.01)
        server._apply(rpc_pb2.LeaseGrantRequest(ID=1, TTL=60))
        assert process.stdout.readline() == b"lease 0000000000000001 granted, TTL(60s)\n"
        with server.refuse_connections():
            server.drop_connections()
            assert re.fullmatch(rb"connection lost, retrying: .+\n", process.stderr.readline())
            server._apply(rpc_pb2.LeaseRevokeRequest(ID=1))
        assert process.stdout.readline() == b"lease 0000000000000001 ended, TTL(60s)\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S_MAX) == 130
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


@pytest.mark.slow
def test_the_view_says_that_the_connection_is_lost_and_goes_on(server: InProcessServer) -> None:
    server._apply(rpc_pb2.LeaseGrantRequest(ID=0x51, TTL=60))
    with command(server, "top", "--interval", "50ms", terminal=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        seen = b""

        def until(text: bytes) -> None:
            nonlocal seen
            give_up_s = time.monotonic() + WAIT_S_MAX
            while text not in seen:
                assert time.monotonic() < give_up_s, seen
                piece = process.stdout.read(65_536) if process.stdout else b""
                assert piece, seen
                seen += piece
            seen = seen.partition(text)[2]

        until(b"1 leases  granted 0.0/s")
        with server.refuse_connections():
            server.drop_connections()
            until(b"connection lost, retrying\x1b[K")
            until(b"0000000000000051")  # what was shown last
        server._apply(rpc_pb2.LeaseGrantRequest(ID=0x52, TTL=60))
        until(b"2 leases  granted 0.0/s")
        process.stdin.write(b"q")
        process.stdin.flush()
        assert process.wait(WAIT_S_MAX) == 0


@contextmanager
def command(server: InProcessServer, *line: str, terminal: bool = False) -> Iterator["subprocess.Popen[bytes]"]:
    whole = [*([sys.executable, "-c", TERMINAL] if terminal else []), *OURS, *line, "--endpoints", server.address]
    with subprocess.Popen(
        whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()
