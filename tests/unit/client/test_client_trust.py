# SPDX-License-Identifier: Apache-2.0
"""When the client leaves a server for another, what its errors say, and that a watch loses nothing by a timeout."""

import asyncio
import errno
from typing import Any

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import (
    AsyncClient,
    Blame,
    CallTimeout,
    ClientError,
    Compacted,
    ConnectionLost,
    LeaseLost,
    OutcomeUnknown,
    ServerError,
    WatchCanceled,
)
from tests.unit.client.client_peer import Peer, PeerCall, run

TWO = "10.0.0.1:1,10.0.0.2:1"
WATCH = BY_PATH["/etcdserverpb.Watch/Watch"]


def silent(call: PeerCall, message: object) -> None:
    """Never answers."""


def empty(call: PeerCall, message: object) -> None:
    call.reply(call.method.response())
    call.finish()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_server_that_says_nothing_is_left_after_the_first_timeout() -> None:
    peer = Peer(empty)

    async def main() -> None:
        async with peer.client(TWO) as client:
            await client.get("a")
            peer.connections[0].deaf = True
            with pytest.raises(CallTimeout) as caught:
                await client.put("a", timeout_s=1)
            assert caught.value.outcome_unknown
            await client.put("a", timeout_s=1)

    run(main())
    assert peer.dials == ["10.0.0.1:1", "10.0.0.2:1"]


def test_a_server_that_is_only_slow_is_not() -> None:
    def slow(call: PeerCall, message: object) -> None:
        if not isinstance(message, rpc.PutRequest):
            empty(call, message)

    peer = Peer(slow)

    async def main() -> None:
        async with peer.client(TWO) as client:
            waiting = asyncio.ensure_future(client.put("a", timeout_s=1))
            await asyncio.sleep(0.5)
            await client.get("a")
            with pytest.raises(CallTimeout):
                await waiting
            await client.get("a")

    run(main())
    assert peer.dials == ["10.0.0.1:1"]


@pytest.mark.parametrize(("method", "repeated"), [("get", True), ("put", False)])
def test_a_server_that_cannot_serve_is_left_and_a_read_is_asked_elsewhere(method: str, repeated: bool) -> None:
    def answer(call: PeerCall, message: object) -> None:
        if call.connection is peer.connections[0]:
            call.finish(Code.UNAVAILABLE, "etcdserver: no leader")
        else:
            empty(call, message)

    peer = Peer(answer)

    async def main() -> None:
        async with peer.client(TWO) as client:
            if not repeated:
                with pytest.raises(ServerError) as caught:
                    await getattr(client, method)("a")
                assert isinstance(caught.value, OutcomeUnknown)
                assert caught.value.blame is Blame.SERVER
            await getattr(client, method)("a")

    run(main())
    assert len(peer.calls) == 2
    assert peer.dials == ["10.0.0.1:1", "10.0.0.2:1"]


def test_when_none_can_serve_each_is_asked_once_more_and_the_error_told() -> None:
    peer = Peer(lambda call, message: call.finish(Code.UNAVAILABLE, "etcdserver: no leader"))

    async def main() -> None:
        async with peer.client(TWO) as client:
            with pytest.raises(ServerError, match="no leader"):
                await client.get("a")

    run(main())
    assert len(peer.calls) == 3


def test_a_server_that_is_left_is_closed_with_its_last_call() -> None:
    peer = Peer(silent)

    async def main() -> None:
        async with peer.client(TWO) as client:
            call = await client.channel.start(WATCH)
            await call.send(rpc.WatchRequest())
            client.channel.distrust(call)
            await asyncio.sleep(20)
            assert not peer.connections[0].closed  # it answers PINGs, and the call is still good
            call.cancel()
            await asyncio.sleep(1)
            assert peer.connections[0].closed
            peer.handler = empty
            await client.get("a")

    run(main())
    assert peer.dials == ["10.0.0.1:1", "10.0.0.2:1"]


def test_a_silent_server_is_asked_for_a_sign_of_life_and_given_up_without_one() -> None:
    peer = Peer(silent)

    async def main() -> None:
        async with peer.channel().stream(WATCH) as call:
            await call.send(rpc.WatchRequest())
            await asyncio.sleep(3600)  # it answers PINGs
            begun = now()
            peer.connections[0].deaf = True
            with pytest.raises(ConnectionLost, match="no sign of life for"):
                await call.receive()
            assert 5 <= now() - begun <= 15.1

    run(main())


def test_a_connection_without_calls_is_left_in_peace() -> None:
    peer = Peer(empty)

    async def main() -> None:
        async with peer.client() as client:
            await client.get("a")
            peer.connections[0].deaf = True
            await asyncio.sleep(3600)
            peer.connections[0].deaf = False
            await client.get("a")

    run(main())
    assert len(peer.connections) == 1


class Watched:
    """Answers a watch, and tells one event for each call of `tell`."""

    def __init__(self) -> None:
        self.peer = Peer(self.handle)
        self.revision = 10

    def handle(self, call: PeerCall, message: Any) -> None:
        header = rpc.ResponseHeader(revision=self.revision)
        call.reply(rpc.WatchResponse(header=header, created=True))

    def tell(self, *keys: bytes, **options: Any) -> None:
        response = rpc.WatchResponse(header=rpc.ResponseHeader(revision=self.revision), **options)
        for key in keys:
            self.revision += 1
            response.events.add().kv.key = key
            response.events[-1].kv.mod_revision = self.revision
        self.peer.calls[-1].reply(response)


def test_to_give_up_waiting_for_an_event_loses_none() -> None:
    watched = Watched()

    async def main() -> None:
        async with watched.peer.client() as client, client.events("a", prefix=True) as watch:
            for round_ in range(3):
                with pytest.raises(CallTimeout):
                    await watch.next(timeout_s=5)
                watched.tell(b"a%d" % round_, fragment=True)  # half of a response, when the caller gives up
                with pytest.raises(CallTimeout):
                    await watch.next(timeout_s=5)
                watched.tell(b"b%d" % round_)
                keys = [(await watch.next(timeout_s=5)).kv.key for _ in range(2)]
                assert keys == [b"a%d" % round_, b"b%d" % round_]
                assert watch.revision == watched.revision
                watched.peer.connections[-1].lose()

    run(main())
    starts = [call.messages[0].create_request.start_revision for call in watched.peer.calls]
    assert starts == [0, 13, 15]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"compact_revision": 40}, Compacted, "revision 11 is compacted; the history begins at 40"),
        ({"cancel_reason": "enough"}, WatchCanceled, "the watch was canceled: enough"),
        ({}, WatchCanceled, "no reason"),
    ],
)
def test_the_end_of_a_watch_is_an_error_that_stays(options: Any, error: type[ClientError], text: str) -> None:
    watched = Watched()

    async def main(client: AsyncClient) -> None:
        async with client.events("a") as watch:
            watched.tell(canceled=True, **options)
            for _ in range(2):
                with pytest.raises(error, match=text):
                    await watch.next()

    async def session() -> None:
        async with watched.peer.client() as client:
            await main(client)

    run(session())


def test_a_watch_that_is_dropped_ends_at_the_server() -> None:
    watched = Watched()

    async def main() -> None:
        async with watched.peer.client() as client:
            async with asyncio.timeout(5):
                watch = client.events("a")
                await watch.__aenter__()
            del watch
            await asyncio.sleep(1)
            assert watched.peer.calls[0].reset

    run(main())


def test_a_watch_needs_a_server_at_first() -> None:
    peer = Peer(silent)
    peer.refuse = lambda endpoint: ConnectionRefusedError(errno.ECONNREFUSED, "")

    async def main() -> None:
        async with peer.client() as client:
            with pytest.raises(ConnectionLost):
                await client.events("a").next(timeout_s=5)

    run(main())


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [True, False])
def test_one_class_finds_all_errors_whose_outcome_is_unknown(unknown: bool) -> None:
    made: list[ClientError] = [
        ServerError(Code.UNAVAILABLE, "no leader", outcome_unknown=unknown),
        ConnectionLost("gone", endpoint="here", outcome_unknown=unknown),
        CallTimeout("late", timeout_s=1.0, outcome_unknown=unknown),
    ]
    for error, kind in zip(made, (ServerError, ConnectionLost, CallTimeout), strict=True):
        assert isinstance(error, kind)
        assert error.outcome_unknown is unknown
        assert isinstance(error, OutcomeUnknown) is unknown
        assert type(error) is kind or unknown


@pytest.mark.parametrize(
    ("error", "blame"),
    [
        (ServerError(Code.NOT_FOUND, ""), "caller"),
        (ServerError(Code.PERMISSION_DENIED, ""), "caller"),
        (ServerError(Code.RESOURCE_EXHAUSTED, ""), "server"),
        (ServerError(Code.UNAVAILABLE, ""), "server"),
        (ConnectionLost("", endpoint=""), "network"),
        (CallTimeout("", timeout_s=1), "network"),
        (LeaseLost(1, ""), "network"),
        (Compacted(1, 2), "caller"),
        (WatchCanceled(""), "server"),
    ],
)
def test_each_error_names_who_can_help(error: ClientError, blame: str) -> None:
    assert error.blame == blame


def test_the_patience_with_a_silent_server_can_be_chosen() -> None:
    peer = Peer(silent)

    async def main() -> None:
        async with peer.channel(ping_after_s=60.0, ping_answer_s_max=7.0).stream(WATCH) as call:
            await call.send(rpc.WatchRequest())
            begun = now()
            peer.connections[0].deaf = True
            with pytest.raises(ConnectionLost, match="no sign of life for 67 s"):
                await call.receive()
            assert now() - begun == pytest.approx(67.0, abs=0.01)

    run(main())
