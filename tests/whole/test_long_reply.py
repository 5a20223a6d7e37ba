# SPDX-License-Identifier: Apache-2.0
"""Replies with many parts: the same bytes as at once, and others are served in between."""

import asyncio
import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
from google.protobuf.message import Message

from lessor.api.methods import BY_PATH
from lessor.api.proto import leases_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.server.loop.core import Core
from lessor.server.loop.held import Held
from lessor.server.transport.grpc_calls import GrpcUnary, Route
from lessor.server.transport.http_calls import JsonUnary
from lessor.state.digest import KvDigest, hash_kv
from lessor.state.permissions import Caller
from lessor.testing.server import InProcessServer
from lessor.wire.grpc import frame
from tests.unit.server.lock_world import Call, LockWorld

pytestmark = pytest.mark.inside

RANGE = BY_PATH["/etcdserverpb.KV/Range"]
ALL = rpc.RangeRequest(key=b"\0", range_end=b"\0")
ASKED = (
    ALL,
    rpc.RangeRequest(key=b"\0", range_end=b"\0", keys_only=True),
    rpc.RangeRequest(key=b"\0", range_end=b"\0", limit=7, sort_order=rpc.RangeRequest.DESCEND),
    rpc.RangeRequest(key=b"k", range_end=b"l", revision=6),
    rpc.LeaseLeasesRequest(),
    rpc.LeaseTimeToLiveRequest(ID=1, keys=True),
)


@contextmanager
def steps_of(parts: int) -> Iterator[None]:
    """A step makes no more than so many parts of a reply."""
    with mock.patch.object(limits, "REPLY_PARTS_MAX", parts), mock.patch.object(limits, "READ_STEP_KEYS", parts):
        yield


def filled() -> LockWorld:
    world = LockWorld()
    for number in range(1, 11):
        world.lease(number, 600 - number)
        world.do(rpc.PutRequest(key=b"k%02d" % number, value=b"v", lease=1))
    return world


async def answered(call: Call, turns_max: int = 50) -> int:
    """Turns of the loop until there is an outcome."""
    for turn in range(turns_max):
        if call.outcome is not None:
            return turn
        await asyncio.sleep(0)
    raise AssertionError("no answer")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("parts_max", [1, 3, 9, 10])
def test_a_reply_in_pieces_shows_the_moment_of_its_first_step(asked: Message, parts_max: int) -> None:
    async def main() -> None:
        world = filled()
        wanted = world.machine.apply(asked, world.turn.now_s())
        with steps_of(parts_max):
            call = world.begin(asked)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            world.do(rpc.PutRequest(key=b"k03", value=b"other"))
            world.revoke(1)
            world.revoke(2)
            world.do(rpc.CompactionRequest(revision=world.machine.revision))
            await answered(call)
        assert call.outcome == wanted
        while world.machine.store.unswept:
            world.machine.store.sweep(1)

    asyncio.run(main())


def test_the_time_that_is_left_is_that_of_the_first_step_too() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            call = world.begin(rpc.LeaseTimeToLiveRequest(ID=1, keys=True))
            world.pass_time(50.0)
            world.machine.renew(1, world.turn.now_s())
            world.pass_time(2.0)
            await answered(call)
        assert (call.outcome.TTL, call.outcome.grantedTTL, len(call.outcome.keys)) == (597, 599, 10)

    asyncio.run(main())


def test_others_are_served_between_the_pieces_and_the_replies_take_turns() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            first, second, third = world.begin(ALL), world.begin(ALL), world.begin(ALL)
            assert world.do(rpc.RangeRequest(key=b"k01")).count == 1
            assert first.outcome is None
            assert await answered(first) >= 5 * 3 - 2
            assert second.outcome is third.outcome is None
            assert await answered(second) == 1
            assert await answered(third) == 1
            assert second.outcome == first.outcome == third.outcome

    asyncio.run(main())


def test_a_connection_with_many_calls_does_not_hold_up_another_one() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            greedy = [world.begin(ALL, held=world.held) for _ in range(20)]
            other = world.begin(ALL)
            await answered(other)
            assert len([call for call in greedy if call.outcome is not None]) == 1
            for call in greedy:
                await answered(call)

    asyncio.run(main())


@pytest.mark.parametrize(("address", "others"), [("same", 1), ("same", 7), ("other", 1), ("other", 100)])
def test_a_short_reply_waits_for_few_steps_of_long_ones(address: str, others: int) -> None:
    """Long replies of many connections: the short one waits for those of its own address, or for one at a time."""
    steps = [0]

    def without_end() -> Iterator[bytes]:
        while True:
            steps[0] += 1
            yield b""

    async def main() -> None:
        world = filled()
        greedy = [Call(world.core, ALL, Held("same")) for _ in range(others)]
        for call in greedy:
            call.waiting = world.core.long_replies.begin(call, without_end())
        for _ in range(50):
            await asyncio.sleep(0)
        with steps_of(2):
            short = world.begin(ALL, held=Held(address))
            steps[0] = 0
            turns = await answered(short, 10 * (others + 1))
        made = turns - steps[0]
        assert made >= 5
        assert steps[0] <= (made + 1) * (others if address == "same" else 1)
        for call in greedy:
            call.gone()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.core.long_replies.idle

    asyncio.run(main())


class Endless:
    """A stream whose peer takes all chunks at once. Implements long_reply.Stepped."""

    made_bytes = 0
    may_be_refused = False

    def __init__(self, core: Core, held: Held) -> None:
        self._replies, self._held = core.long_replies, held
        self.gone = False
        self.steps = 0
        self._replies.stand_last(held, self)

    def refuse(self, error: errors.EtcdError) -> None: ...

    def waits_for_peer(self, go_on: Callable[[], None]) -> bool:
        return False

    def step(self) -> bool:
        self.steps += 1
        self._replies.stand_last(self._held, self)
        return False


def test_a_stream_has_one_step_and_then_stands_behind_the_replies_and_streams_of_its_connection() -> None:
    async def main() -> None:
        world = filled()
        held = Held("one")
        streams = [Endless(world.core, held) for _ in range(5)]
        with steps_of(2):
            short = world.begin(ALL, held=held)
            await answered(short, 20)
            assert [stream.steps for stream in streams] == [1] * 5
            for _ in range(15):
                await asyncio.sleep(0)
        assert all(3 <= stream.steps <= 4 for stream in streams)
        for stream in streams:
            stream.gone = True
            stream.step = lambda: False  # type: ignore[method-assign]
        for _ in range(3):
            await asyncio.sleep(0)
        assert world.core.long_replies.idle

    asyncio.run(main())


def test_a_call_that_waits_counts_against_its_connection() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            calls = [world.begin(ALL, held=world.held) for _ in range(3)]
            assert world.held.size_bytes >= 3 * limits.LONG_REPLY_WAITING_BYTES
            calls[1].gone()
            for call in (calls[0], calls[2]):
                await answered(call)
            assert world.held.size_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shown", [ALL, rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0", prev_kv=True)])
@pytest.mark.parametrize("gone", [False, True], ids=["answered", "gone"])
def test_the_versions_that_a_writes_reply_keeps_count_against_its_connection(
    nested: bool, shown: Any, gone: bool
) -> None:
    async def main() -> None:
        world = filled()
        for number in range(1, 11):
            world.do(rpc.PutRequest(key=b"k%02d" % number, value=bytes(1_000)))
        is_range = isinstance(shown, rpc.RangeRequest)
        op = rpc.RequestOp(request_range=shown) if is_range else rpc.RequestOp(request_delete_range=shown)
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"a"))
        asked = rpc.TxnRequest(success=[put, op] if is_range else [op])
        if nested:
            asked = rpc.TxnRequest(success=[rpc.RequestOp(request_txn=asked)])
        with steps_of(2), mock.patch.object(limits, "READ_STEP_BYTES", 2_000):
            first = world.begin(ALL, held=world.held)
            call = world.begin(asked, held=world.held)
            world.loop.settle()  # the steps of the write
            assert world.held.size_bytes >= 10 * (1_000 + 3 + 8) + 2 * limits.LONG_REPLY_WAITING_BYTES
            world.turn.schedule()  # as the connection does
            world.settle()
            await answered(first)
            await asyncio.sleep(0)
            assert world.held.size_bytes >= 10 * (1_000 + 3 + 8)
            if gone:
                call.gone()
            for _ in range(20):
                await asyncio.sleep(0)
            world.settle()
            assert world.held.size_bytes == 0
            assert gone or call.outcome is not None

    asyncio.run(main())


@pytest.mark.parametrize(
    "asked", [ALL, rpc.LeaseLeasesRequest(), rpc.HashKVRequest(), rpc.HashRequest(), leases_pb2.LeaseListRequest()]
)
def test_rights_that_were_taken_away_meanwhile_count(asked: Message) -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            call = world.begin(asked)
            refusal = mock.Mock(side_effect=errors.PERMISSION_DENIED.error())
            with mock.patch.object(Call, "permit", refusal):
                await answered(call)
            assert call.error == errors.PERMISSION_DENIED.message

    asyncio.run(main())


@pytest.mark.parametrize("before", [False, True], ids=["auth off at first", "a role taken away"])
def test_a_list_of_leases_asks_for_the_rights_of_its_first_step(before: bool) -> None:
    async def main() -> None:
        world = filled()
        world.core.tokens = SimpleNamespace(caller=lambda token, revision: Caller("reader", revision))
        for request in (
            rpc.AuthUserAddRequest(name="root", options={"no_password": True}),
            rpc.AuthUserGrantRoleRequest(user="root", role="root"),
            rpc.AuthUserAddRequest(name="reader", options={"no_password": True}),
            rpc.AuthUserGrantRoleRequest(user="reader", role="root"),
        ):
            world.machine.apply(request, 0.0)
        if before:
            world.machine.apply(rpc.AuthEnableRequest(), 0.0)
        with mock.patch.object(Call, "token", b"any"):
            call = world.begin(leases_pb2.LeaseListRequest())
            assert call.outcome is None
            world.machine.apply(rpc.AuthUserRevokeRoleRequest(name="reader", role="root"), 0.0)
            if not before:
                world.machine.apply(rpc.AuthEnableRequest(), 0.0)
            for _ in range(5):
                await asyncio.sleep(0)
            world.settle()
            assert call.error == errors.PERMISSION_DENIED.message

    asyncio.run(main())


def test_a_write_is_answered_even_to_a_peer_that_takes_nothing() -> None:
    async def main() -> None:
        world = filled()
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=b"x"))
        with steps_of(2):
            call = world.begin(rpc.TxnRequest(success=[put, rpc.RequestOp(request_range=ALL)]))
            call.is_overfull = True
            world.loop.settle()  # the steps of the write
            for _ in range(30):
                await asyncio.sleep(0)
            world.settle()
            assert [kv.key for kv in call.outcome.responses[1].response_range.kvs][-1] == b"x"

    asyncio.run(main())


def test_digests_take_turns_too() -> None:
    async def main() -> None:
        world = filled()
        steps = 0
        step = KvDigest.step

        def noted(digest: KvDigest, keys_max: int) -> bool:
            nonlocal steps
            steps += 1
            return step(digest, 3)

        with mock.patch.object(KvDigest, "step", noted):
            calls = [world.begin(rpc.HashKVRequest()) for _ in range(9)]
            for turn in range(1, 20):
                await asyncio.sleep(0)
                assert steps <= turn
            for call in calls:
                await answered(call)
        assert {call.outcome.hash for call in calls} == {hash_kv(world.machine.store)}

    asyncio.run(main())


def test_a_reply_whose_peer_went_away_is_given_up() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            waiting, running, last = world.begin(ALL), world.begin(ALL), world.begin(ALL)
            for call in (waiting, running):
                assert call.waiting is not None
                call.waiting.on_gone()
                await asyncio.sleep(0)
            await answered(last)
            assert waiting.outcome is running.outcome is None

    asyncio.run(main())


def test_what_is_given_up_is_let_go_of_without_the_collector() -> None:
    def pieces() -> Iterator[bytes]:
        while True:
            yield b""

    async def main() -> None:
        world = filled()
        gone: list[weakref.ref[Any]] = []
        for _ in range(3):  # one that is made, one in line, and one that has not begun
            call, long = Call(world.core, ALL), pieces()
            call.waiting = world.core.long_replies.begin(call, long)
            gone += [weakref.ref(call), weakref.ref(long)]
            if len(gone) < 6:
                await asyncio.sleep(0)
            call.gone()
            del call, long
        for _ in range(5):
            await asyncio.sleep(0)
        assert [one() for one in gone] == [None] * 6
        await answered(world.begin(ALL))

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


class Session:
    """An HTTP/2 connection, as GrpcUnary sees it."""

    message_bytes_max = 1_000
    defers = False
    peer_common_name = None

    def __init__(self, core: Core) -> None:
        self.core = core
        self.held = Held()
        self.answers: list[bytes] = []

    def waits_for_peer(self, _go_on: Any) -> bool:
        return False

    def respond(self, _stream: Any, payload: bytes) -> None:
        self.answers.append(payload)


class Exchange:
    """An HTTP request with a JSON body, as JsonUnary sees it."""

    def defer(self, *_: Any) -> bool:
        return False

    def __init__(self) -> None:
        self.held = Held()
        self.answers: list[bytes] = []

    def waits_for_peer(self, _go_on: Any) -> bool:
        return False

    def reply(self, _status: int, _headers: Any, body: bytes) -> None:
        self.answers.append(body)


def begun(world: LockWorld, as_json: bool) -> tuple[Session | Exchange, Callable[[], None]]:
    """A range over all keys by one of the real calls; returns where its answer goes, and how its peer goes away."""
    if as_json:
        exchange = Exchange()
        json_call = JsonUnary(world.core, cast(Any, exchange), world.core.metrics.calls(RANGE, b"test"))
        json_call.on_body(b'{"key":"AA==","range_end":"AA=="}')
        json_call.on_end()
        return exchange, json_call.gone
    session = Session(world.core)
    stream = SimpleNamespace(head=None)
    grpc_call = GrpcUnary(cast(Any, session), cast(Any, stream), Route(world.core.metrics.calls(RANGE, b"test")))
    grpc_call.on_whole(frame(ALL.SerializeToString()))
    return session, grpc_call.gone


@pytest.mark.parametrize("as_json", [False, True], ids=["gRPC", "JSON"])
@pytest.mark.parametrize("held", [False, True], ids=["at once", "behind a commit"])
def test_a_peer_that_goes_away_at_any_step_leaves_nothing_behind(as_json: bool, held: bool) -> None:
    async def main() -> None:
        answered = []
        for gone_at in range(15):
            world = filled()
            with steps_of(2):
                where, go = begun(world, as_json)
                if held:
                    world.begin(rpc.PutRequest(key=b"later"))
                for step in range(14):
                    if step == gone_at:
                        go()
                    await asyncio.sleep(0)
                assert not held or not where.answers
                world.settle()
            await asyncio.sleep(0)
            assert world.core.long_replies.idle
            assert not world.machine.store._pinned
            assert not where.held.size_bytes
            answered.append(len(where.answers))
        assert answered[0] == 0
        assert answered[-1] == 1
        assert answered == sorted(answered)

    asyncio.run(main())


def test_reads_for_a_peer_that_takes_nothing_wait_and_hold_up_nobody_else() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            before, first, second = [world.begin(ALL, held=world.held) for _ in range(3)]
            first.is_overfull = True
            other = world.begin(ALL)
            await answered(before)
            await answered(other)
            late = world.begin(ALL, held=world.held)
            for _ in range(50):
                await asyncio.sleep(0)
            assert [call.outcome for call in (first, second, late)] == [None] * 3
            assert not world.core.long_replies.idle
            assert world.held.unmade_bytes == world.held.size_bytes > 3 * limits.LONG_REPLY_WAITING_BYTES
            assert first.go_on is not None
            first.is_overfull = False
            first.go_on()
            await answered(first)
            assert second.outcome is late.outcome is None
            await answered(late)
        assert first.outcome == second.outcome == late.outcome == other.outcome
        assert world.core.long_replies.idle
        assert world.held.unmade_bytes == world.held.size_bytes == 0

    asyncio.run(main())


def test_reads_that_wait_for_their_peer_are_dropped_with_it() -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2):
            calls = [world.begin(ALL, held=world.held) for _ in range(3)]
            calls[0].is_overfull = True
            for _ in range(5):
                await asyncio.sleep(0)
            for call in calls:
                call.gone()
            assert calls[0].go_on is not None
            calls[0].go_on()  # the connection is over
            await answered(world.begin(ALL))
            assert world.core.long_replies.idle
            assert world.held.unmade_bytes == world.held.size_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize("asked", [ALL, rpc.TxnRequest(success=[rpc.RequestOp(request_range=ALL)] * 2)])
def test_a_reply_that_is_too_large_is_refused(asked: Message) -> None:
    async def main() -> None:
        world = filled()
        with steps_of(2), mock.patch.object(limits, "REPLY_BYTES_MAX", 100):
            call = world.begin(asked)
            await answered(call)
        assert call.error == errors.REPLY_TOO_LARGE.message
        assert world.core.long_replies.idle

    asyncio.run(main())


def test_the_copies_that_nested_txns_cost_count_as_well() -> None:
    async def main() -> None:
        world = filled()
        asked = rpc.TxnRequest(success=[rpc.RequestOp(request_range=ALL)])
        size = len(world.machine.apply_encoded(asked, 0.0))
        with steps_of(2), mock.patch.object(limits, "REPLY_BYTES_MAX", 3 * size):
            for depth in range(6):
                call = world.begin(asked)
                await answered(call)
                assert call.error == (errors.REPLY_TOO_LARGE.message if depth > 2 else None)
                asked = rpc.TxnRequest(success=[rpc.RequestOp(request_txn=asked)])

    asyncio.run(main())


def test_what_goes_wrong_meanwhile_is_answered() -> None:
    def refused() -> Iterator[bytes]:
        yield b""
        raise errors.COMPACTED.error()

    def broken() -> Iterator[bytes]:
        yield b""
        raise ValueError("a bug")

    async def main() -> None:
        world = filled()
        for pieces, text in ((refused(), errors.COMPACTED.message), (broken(), "etcdserver: internal error")):
            call = Call(world.core, ALL)
            call.waiting = world.core.long_replies.begin(call, pieces)
            await answered(call)
            assert isinstance(call.outcome, errors.EtcdError)
            assert call.outcome.message.startswith(text)
            assert world.do(rpc.RangeRequest(key=b"k01")).count == 1

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v3/kv/range", "/v3/lessor/leases/list"])
def test_a_peer_that_sends_no_more_gets_its_reply(path: str) -> None:
    """Not so a lock's: whoever waits for another's doing without end has to stay."""
    body = b'{"key":"AA==","range_end":"AA=="}' if "range" in path else b"{}"
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with steps_of(2), InProcessServer() as server:
        for number in range(9):
            put = rpc.PutRequest(key=b"%d" % number)
            server.call(partial(server.server.core.machine.apply, put, 0.0))
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as peer:
            peer.sendall(head + body)
            peer.shutdown(socket.SHUT_WR)
            reply = b"".join(iter(lambda: peer.recv(65_536), b""))
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b'"revision":"10"' in reply
