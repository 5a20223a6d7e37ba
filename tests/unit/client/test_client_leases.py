# SPDX-License-Identifier: Apache-2.0
"""Leases that renew themselves, against a server in memory, on a clock that jumps: when they are renewed, and above all
when they are lost."""

import asyncio
import errno
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.errors import Code
from lessor.client import AsyncClient, AsyncLease, LeaseLost, ServerError
from tests.unit.client.client_peer import JumpingLoop, Peer, PeerCall, run

Answer = Callable[[PeerCall, rpc.LeaseKeepAliveRequest], None]


def now() -> float:
    return asyncio.get_running_loop().time()


class Lessor:
    """A server with leases: when they end by its own clock, and when each was renewed."""

    def __init__(self, ttl_s: int = 30) -> None:
        self.ttl_s = ttl_s
        self.peer = Peer(self.handle)
        self.deadlines: dict[int, float] = {}
        self.renewed_at: dict[int, list[float]] = {}
        self.revoked: list[int] = []
        self.keep: Answer = self.renew

    def handle(self, call: PeerCall, message: Any) -> None:
        if isinstance(message, rpc.LeaseGrantRequest):
            lease_id = message.ID or len(self.deadlines) + 1
            self.deadlines[lease_id] = now() + self.ttl_s
            call.reply(rpc.LeaseGrantResponse(ID=lease_id, TTL=self.ttl_s))
            call.finish()
        elif isinstance(message, rpc.LeaseRevokeRequest):
            self.revoked.append(message.ID)
            self.deadlines.pop(message.ID, None)
            call.reply(rpc.LeaseRevokeResponse())
            call.finish()
        else:
            self.keep(call, message)

    def renew(self, call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        """The answer of a server that is well."""
        ttl_s = self.ttl_s if self.deadlines.get(message.ID, 0.0) > now() else 0
        if ttl_s:
            self.deadlines[message.ID] = now() + ttl_s
            self.renewed_at.setdefault(message.ID, []).append(now())
        call.reply(rpc.LeaseKeepAliveResponse(ID=message.ID, TTL=ttl_s))

    @property
    def streams(self) -> list[PeerCall]:
        return [call for call in self.peer.calls if call.method.name == "LeaseKeepAlive"]

    def run(self, main: Callable[[AsyncClient], Coroutine[Any, Any, None]], endpoints: str = "127.0.0.1:1") -> None:
        async def session() -> None:
            async with self.peer.client(endpoints) as client:
                await main(client)

        run(session())


def silent(call: PeerCall, message: object) -> None:
    """Never answers."""


def test_all_leases_of_a_client_are_renewed_over_one_stream_at_about_a_third_of_their_ttl() -> None:
    lessor = Lessor(ttl_s=30)

    async def main(client: AsyncClient) -> None:
        begun = now()
        leases = [await client.lease(30).grant() for _ in range(20)]
        await asyncio.sleep(120)
        assert all(lease.alive for lease in leases)
        first = set()
        for lease in leases:
            times = [begun, *lessor.renewed_at[lease.id]]
            pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert all(8 - 1e-6 <= pause <= 10 + 1e-6 for pause in pauses)
            first.add(round(times[1], 3))
        assert len(first) > 10  # by chance, not all at once
        for lease in leases:
            await lease.revoke()

    lessor.run(main)
    assert len(lessor.streams) == 1
    assert sorted(lessor.revoked) == list(range(1, 21))


def test_a_lease_is_granted_when_the_block_begins_and_revoked_when_it_ends() -> None:
    lessor = Lessor()

    async def main(client: AsyncClient) -> None:
        lease = client.lease(30, 77)
        with pytest.raises(ValueError, match="not granted yet"):
            _ = lease.id
        async with lease as entered:
            assert entered is lease
            assert (lease.id, lease.ttl_s, lease.alive, lease.lost.is_set()) == (77, 30, True, False)
            with pytest.raises(ValueError, match="once"):
                await lease.grant()
        assert lessor.revoked == [77]
        assert not lease.alive
        assert not lease.lost.is_set()  # it was given back, not lost
        with pytest.raises(LeaseLost, match="revoked by its owner"):
            _ = lease.id
        assert await lease.revoke() is None

    lessor.run(main)
    assert lessor.revoked == [77]


def test_time_counts_from_when_the_request_was_sent() -> None:
    lessor = Lessor(ttl_s=30)

    async def main(client: AsyncClient) -> None:
        def slow(call: PeerCall, message: Any) -> None:
            asyncio.get_running_loop().call_later(4, Lessor.handle, lessor, call, message)

        lessor.peer.handler = slow
        lease = await client.lease(30).grant()
        assert lease.remaining_s == pytest.approx(26)  # the server gives it 30 from now, but who knows that

    lessor.run(main)


def test_a_lease_that_the_server_has_ended_is_lost_at_once_and_the_others_are_not() -> None:
    lessor = Lessor(ttl_s=30)
    losses: list[LeaseLost] = []

    async def main(client: AsyncClient) -> None:
        lease, other = await client.lease(30, on_lost=losses.append).grant(), await client.lease(30).grant()
        lease_id = lease.id
        del lessor.deadlines[lease_id]  # somebody revoked it
        begun = now()
        assert await lease.lost.wait(timeout_s=100)
        assert now() - begun <= 10
        for use in (lambda: lease.id, lease.check):
            with pytest.raises(LeaseLost, match="the server says that it has ended") as caught:
                use()
            assert caught.value.lease_id == lease_id
        await asyncio.sleep(100)
        assert other.alive
        assert [error.lease_id for error in losses] == [lease_id]
        asked = [message.ID for stream in lessor.streams for message in stream.messages]
        assert asked.count(lease_id) == 1  # and it is not renewed any more

    lessor.run(main)


def test_a_server_that_falls_silent_costs_the_lease_exactly_when_its_time_is_over() -> None:
    lessor = Lessor(ttl_s=30)

    async def main(client: AsyncClient) -> None:
        lease = await client.lease(30).grant()
        await asyncio.sleep(25)
        assert lease.alive
        last = lessor.renewed_at[lease.id][-1]
        lessor.keep = silent
        assert not await lease.lost.wait(timeout_s=last + 30 - now() - 0.001)
        assert lease.alive
        assert await lease.lost.wait(timeout_s=0.002)
        assert isinstance(lease.lost_error, LeaseLost)
        assert "not renewed in time: no answer within" in str(lease.lost_error)
        assert len(lessor.streams) > 3  # it tried other connections meanwhile
        # Lost is final, also when the server comes back and still knows the lease.
        lessor.deadlines[1] = now() + 1000
        lessor.keep = lessor.renew
        asked = sum(len(stream.messages) for stream in lessor.streams)
        await asyncio.sleep(100)
        assert lease.lost.is_set()
        assert sum(len(stream.messages) for stream in lessor.streams) == asked

    lessor.run(main)


def test_a_server_that_answers_late_renews_from_when_it_was_asked() -> None:
    lessor = Lessor(ttl_s=30)

    def late(call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        asyncio.get_running_loop().call_later(4, lessor.renew, call, message)

    async def main(client: AsyncClient) -> None:
        lease = await client.lease(30).grant()
        lessor.keep = late
        while 1 not in lessor.renewed_at:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert lease.remaining_s == pytest.approx(26, abs=0.1)

    lessor.run(main)


def test_lost_connections_and_a_server_that_is_away_for_a_while_cost_nothing() -> None:
    lessor = Lessor(ttl_s=30)

    async def main(client: AsyncClient) -> None:
        async with client.lease(30) as lease:
            for _ in range(20):
                lessor.peer.refuse = lambda endpoint: ConnectionRefusedError(errno.ECONNREFUSED, "")
                lessor.peer.connections[-1].lose()
                await asyncio.sleep(14)
                lessor.peer.refuse = lambda endpoint: None
                await asyncio.sleep(9)
            assert lease.alive

    lessor.run(main)


def test_a_server_that_stalls_is_left_for_another_in_time() -> None:
    lessor = Lessor(ttl_s=6)

    async def main(client: AsyncClient) -> None:
        async with client.lease(6) as lease:
            lessor.peer.connections[0].deaf = True
            await asyncio.sleep(60)
            assert lease.alive

    lessor.run(main, "10.0.0.1:1,10.0.0.2:1")
    assert lessor.peer.dials[:2] == ["10.0.0.1:1", "10.0.0.2:1"]


def test_a_server_without_a_leader_is_left_for_another() -> None:
    lessor = Lessor(ttl_s=30)

    def no_leader(call: PeerCall, message: object) -> None:
        if call.connection is lessor.peer.connections[0]:
            call.finish(Code.UNAVAILABLE, "etcdserver: no leader")
        else:
            lessor.renew(call, message)  # type: ignore[arg-type]

    async def main(client: AsyncClient) -> None:
        async with client.lease(30) as lease:
            lessor.keep = no_leader
            await asyncio.sleep(60)
            assert lease.alive

    lessor.run(main, "10.0.0.1:1,10.0.0.2:1")
    assert lessor.peer.dials == ["10.0.0.1:1", "10.0.0.2:1"]


def test_a_program_that_stood_still_knows_that_its_lease_is_over() -> None:
    """Before any timer runs, and whatever still lies in the socket's buffer."""
    lessor = Lessor(ttl_s=30)

    leases: list[AsyncLease] = []
    stopped = asyncio.Event()

    def stop(call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        lessor.renew(call, message)  # the answer is on its way; now the program stops for a minute
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        loop.jumping.now_s += 60
        assert not leases[0].alive
        assert leases[0].lost.is_set()
        with pytest.raises(LeaseLost):
            _ = leases[0].id
        lessor.keep = silent
        stopped.set()

    async def main(client: AsyncClient) -> None:
        lease = await client.lease(30).grant()
        leases.append(lease)
        lessor.keep = stop
        await stopped.wait()
        await asyncio.sleep(1)  # the answer is read, and says what was true then
        assert not lease.alive
        assert await lease.lost.wait(timeout_s=0)

    lessor.run(main)


def test_a_lease_that_may_not_be_renewed_harms_no_other() -> None:
    lessor = Lessor(ttl_s=30)
    denied = errors.PERMISSION_DENIED

    def guard(call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        if message.ID == 13:
            call.finish(denied.code, denied.message)
        else:
            lessor.renew(call, message)

    async def main(client: AsyncClient) -> None:
        lessor.keep = guard
        good = [await client.lease(30).grant() for _ in range(5)]
        bad = await client.lease(30, 13).grant()
        begun = now()
        assert await bad.lost.wait(timeout_s=100)
        assert now() - begun == pytest.approx(30)
        assert denied.message in str(bad.lost_error)
        await asyncio.sleep(300)
        assert all(lease.alive for lease in good)

    lessor.run(main)


def test_a_callback_that_fails_is_reported_and_disturbs_nothing() -> None:
    lessor = Lessor(ttl_s=30)
    reported: list[Any] = []

    def fail(error: LeaseLost) -> None:
        raise RuntimeError("the callback's own")

    async def main(client: AsyncClient) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        lease, other = await client.lease(30, on_lost=fail).grant(), await client.lease(30).grant()
        del lessor.deadlines[lease.id]
        await asyncio.sleep(100)
        assert [str(error) for error in reported] == ["the callback's own"]
        assert other.alive

    lessor.run(main)


def test_leaving_the_block_is_quiet_when_the_lease_or_the_server_is_gone() -> None:
    lessor = Lessor(ttl_s=30)

    async def main(client: AsyncClient) -> None:
        async with client.lease(30) as lease:
            del lessor.deadlines[lease.id]
            await lease.lost.wait()
        async with client.lease(30) as lease:
            lessor.peer.refuse = lambda endpoint: ConnectionRefusedError(errno.ECONNREFUSED, "")
            lessor.peer.connections[-1].lose()
            await asyncio.sleep(1)
        assert not lease.alive

    lessor.run(main)


def test_closing_the_client_ends_its_leases_for_their_owners() -> None:
    lessor = Lessor(ttl_s=30)
    lease: list[AsyncLease] = []

    async def main(client: AsyncClient) -> None:
        lease.append(await client.lease(30).grant())

    lessor.run(main)
    assert lease[0].lost.is_set()
    with pytest.raises(LeaseLost, match="the client was closed"):
        lease[0].check()
    assert lessor.revoked == []


def test_a_grant_that_fails_leaves_nothing_to_renew() -> None:
    lessor = Lessor(ttl_s=30)

    async def main(client: AsyncClient) -> None:
        exists = errors.LEASE_EXISTS
        lessor.peer.handler = lambda call, message: call.finish(exists.code, exists.message)
        lease = client.lease(30, 5)
        with pytest.raises(ServerError, match="lease already exists"):
            await lease.grant()
        assert await lease.revoke() is None
        await asyncio.sleep(100)

    lessor.run(main)
    assert lessor.streams == []


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["answer", "late", "silent", "cut", "deaf", "refuse", "unavailable", "stop"]),
        st.floats(0.01, 6.0),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(faults=FAULTS)
def test_whoever_believes_that_its_lease_lives_is_right(faults: list[tuple[str, float]]) -> None:
    """Whatever happens on the way, the client never trusts a lease longer than the server keeps it."""
    lessor = Lessor(ttl_s=6)
    script = iter(faults)

    def keep(call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        kind, seconds = next(script, ("answer", 0.0))
        loop = asyncio.get_running_loop()
        if kind == "late":
            loop.call_later(seconds, lessor.renew, call, message)
        elif kind == "cut":
            call.connection.lose()
        elif kind == "deaf":
            call.connection.deaf = True
        elif kind == "refuse":
            lessor.peer.refuse = lambda endpoint: ConnectionRefusedError(errno.ECONNREFUSED, "")
            loop.call_later(seconds, setattr, lessor.peer, "refuse", lambda endpoint: None)
            call.connection.lose()
        elif kind == "unavailable":
            call.finish(Code.UNAVAILABLE, "etcdserver: no leader")
        elif kind == "stop":
            lessor.renew(call, message)
            assert isinstance(loop, JumpingLoop)
            loop.jumping.now_s += seconds
        elif kind == "answer":
            lessor.renew(call, message)

    async def main(client: AsyncClient) -> None:
        leases = [await client.lease(6).grant() for _ in range(3)]
        lessor.keep = keep
        for _ in range(200):
            for number, lease in enumerate(leases, 1):
                if lease.alive:
                    assert lessor.deadlines[number] >= now()
                assert lease.alive is not lease.lost.is_set()
            await asyncio.sleep(0.25)

    lessor.run(main)
