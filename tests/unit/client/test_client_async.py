# SPDX-License-Identifier: Apache-2.0
"""AsyncClient against a server in memory, on a clock that jumps: what is asked, and how the endless calls go on."""

import asyncio
import errno
from typing import Any

import pytest

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import FROM_KEY, CallTimeout, ConnectionLost, ServerError
from tests.unit.client.client_peer import Peer, PeerCall, run


def empty(call: PeerCall, message: object) -> None:
    call.reply(call.method.response())
    call.finish()


@pytest.mark.parametrize(
    ("name", "args", "kinds", "request_"),
    [
        ("grant", (30,), {}, rpc.LeaseGrantRequest(TTL=30)),
        ("grant", (30, -5), {}, rpc.LeaseGrantRequest(TTL=30, ID=-5)),
        ("revoke", (9,), {}, rpc.LeaseRevokeRequest(ID=9)),
        ("time_to_live", (9,), {"keys": True}, rpc.LeaseTimeToLiveRequest(ID=9, keys=True)),
        ("leases", (), {}, rpc.LeaseLeasesRequest()),
        ("put", ("k", "\u00e9"), {"lease_id": 3}, rpc.PutRequest(key=b"k", value=b"\xc3\xa9", lease=3)),
        ("put", (b"k",), {"ignore_value": True}, rpc.PutRequest(key=b"k", ignore_value=True)),
        (
            "put",
            (b"k", b"v"),
            {"prev_kv": True, "ignore_lease": True},
            rpc.PutRequest(key=b"k", value=b"v", prev_kv=True, ignore_lease=True),
        ),
        ("get", ("k",), {"range_end": FROM_KEY}, rpc.RangeRequest(key=b"k", range_end=b"\0")),
        (
            "get",
            ("k",),
            {"limit": 2, "revision": 3, "sort_order": 2, "sort_target": 4, "serializable": True},
            rpc.RangeRequest(
                key=b"k", limit=2, revision=3, sort_order="DESCEND", sort_target="VALUE", serializable=True
            ),
        ),
        (
            "get",
            ("k",),
            {"keys_only": True, "count_only": True, "min_mod_revision": 1, "max_create_revision": 4},
            rpc.RangeRequest(key=b"k", keys_only=True, count_only=True, min_mod_revision=1, max_create_revision=4),
        ),
        (
            "delete",
            ("k",),
            {"range_end": "l", "prev_kv": True},
            rpc.DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True),
        ),
        (
            "txn",
            ([rpc.Compare(key=b"k")], [rpc.RequestOp(request_put=rpc.PutRequest(key=b"a"))]),
            {"failure": [rpc.RequestOp(request_range=rpc.RangeRequest(key=b"b"))]},
            rpc.TxnRequest(
                compare=[rpc.Compare(key=b"k")],
                success=[rpc.RequestOp(request_put=rpc.PutRequest(key=b"a"))],
                failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=b"b"))],
            ),
        ),
        ("compact", (7,), {"physical": True}, rpc.CompactionRequest(revision=7, physical=True)),
        ("call", ("/etcdserverpb.Maintenance/Status", rpc.StatusRequest()), {}, rpc.StatusRequest()),
    ],
)
def test_each_method_asks_what_it_says(name: str, args: Any, kinds: Any, request_: Any) -> None:
    peer = Peer(empty)

    async def main() -> object:
        async with peer.client() as client:
            return await getattr(client, name)(*args, **kinds)

    reply = run(main())
    (call,) = peer.calls
    assert call.messages == [request_]
    assert reply == call.method.response()


def test_the_timeout_of_a_call_overrides_that_of_the_client() -> None:
    peer = Peer(lambda call, message: None)

    async def main() -> None:
        async with peer.client(timeout_s=7) as client:
            for given, limit_s in (({}, 7), ({"timeout_s": 2}, 2)):
                with pytest.raises(CallTimeout) as caught:
                    await client.leases(**given)
                assert caught.value.timeout_s == limit_s
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3600):
                    await client.leases(timeout_s=None)

    run(main())


# --- keepalives -------------------------------------------------------------------------------------------------------


class Lessor:
    """Answers keepalives and notes when they came."""

    def __init__(self, ttl_s: int = 30) -> None:
        self.ttl_s = ttl_s
        self.renewed_at: list[float] = []
        self.peer = Peer(self.answer)

    def answer(self, call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        self.renewed_at.append(asyncio.get_running_loop().time())
        call.reply(rpc.LeaseKeepAliveResponse(ID=message.ID, TTL=self.ttl_s))

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.renewed_at, self.renewed_at[1:], strict=False)]


def test_a_lease_is_renewed_at_every_third_of_its_ttl_until_it_is_gone() -> None:
    lessor = Lessor()

    async def main() -> list[int]:
        ttls = []
        async with lessor.peer.client() as client:
            async for renewal in client.keep_alive(5):
                ttls.append(renewal.TTL)
                if len(ttls) == 4:
                    lessor.ttl_s = 0
        return ttls

    assert run(main()) == [30, 30, 30, 30]
    assert lessor.pauses == pytest.approx([10, 10, 10, 10])
    assert len(lessor.peer.calls) == 1  # one stream for all of them


def test_a_caller_that_takes_its_time_does_not_delay_the_renewal_further() -> None:
    lessor = Lessor()

    async def main() -> None:
        async with lessor.peer.client() as client:
            async for _ in client.keep_alive(5):
                await asyncio.sleep(4)
                if len(lessor.renewed_at) == 3:
                    break

    run(main())
    assert lessor.pauses == pytest.approx([10, 10])


def test_keepalives_survive_a_lost_connection() -> None:
    lessor = Lessor()

    async def main() -> None:
        async with lessor.peer.client() as client:
            async for _ in client.keep_alive(5):
                if len(lessor.renewed_at) == 2:
                    lessor.peer.connections[-1].lose()
                if len(lessor.renewed_at) == 4:
                    break

    run(main())
    assert len(lessor.peer.connections) == 2


def test_keepalives_of_a_server_that_stays_away_end_when_the_lease_may_be_gone() -> None:
    lessor = Lessor()

    async def main() -> float:
        async with lessor.peer.client() as client:
            with pytest.raises(ConnectionLost, match="connection refused"):  # noqa: PT012 - the loop is the subject
                async for _ in client.keep_alive(5):
                    lessor.peer.refuse = lambda endpoint: OSError(errno.ECONNREFUSED, "refused")
                    lessor.peer.connections[-1].lose()
        return asyncio.get_running_loop().time() - lessor.renewed_at[0]

    assert run(main()) == pytest.approx(30, abs=0.01)
    assert len(lessor.peer.dials) > 5


def test_keepalives_of_a_server_that_falls_silent_end_when_the_lease_may_be_gone() -> None:
    lessor = Lessor()

    async def main() -> float:
        async with lessor.peer.client() as client:
            with pytest.raises(ConnectionLost, match="no answer to keepalives of lease 0000000000000005"):  # noqa: PT012 - the loop is the subject
                async for _ in client.keep_alive(5):
                    lessor.peer.handler = lambda call, message: None
        return asyncio.get_running_loop().time() - lessor.renewed_at[0]

    assert run(main()) == pytest.approx(30, abs=0.01)


def test_without_a_server_keepalives_fail_at_once() -> None:
    lessor = Lessor()
    lessor.peer.refuse = lambda endpoint: OSError(errno.ECONNREFUSED, "refused")

    async def main() -> None:
        async with lessor.peer.client() as client:
            with pytest.raises(ConnectionLost):
                await anext(client.keep_alive(5))

    run(main())
    assert len(lessor.peer.dials) == 1


def test_keepalives_that_the_server_forbids_fail_at_once() -> None:
    peer = Peer(lambda call, message: call.finish(7, "etcdserver: permission denied"))

    async def main() -> None:
        async with peer.client() as client:
            with pytest.raises(ServerError, match="permission denied"):
                await anext(client.keep_alive(5))

    run(main())


def test_keep_alive_once() -> None:
    lessor = Lessor()

    async def main() -> None:
        async with lessor.peer.client() as client:
            assert (await client.keep_alive_once(5)).TTL == 30
            lessor.ttl_s = 0
            with pytest.raises(ServerError) as caught:
                await client.keep_alive_once(5)
            assert caught.value.code is Code.NOT_FOUND
            assert str(caught.value) == "etcdserver: requested lease not found"

    run(main())
    assert all(call.half_closed for call in lessor.peer.calls)


# --- watches ----------------------------------------------------------------------------------------------------------


def put_event(revision: int) -> mvcc.Event:
    return mvcc.Event(kv=mvcc.KeyValue(key=b"k", mod_revision=revision))


def response(revision: int, *events: mvcc.Event, **kinds: Any) -> rpc.WatchResponse:
    return rpc.WatchResponse(header=rpc.ResponseHeader(revision=revision), events=events, **kinds)


def watching(peer: Peer, count: int, **kinds: Any) -> list[rpc.WatchResponse]:
    """The first `count` responses of a watch of b"k", or all when it ends before."""

    async def main() -> list[rpc.WatchResponse]:
        responses = []
        async with peer.client() as client:
            watch = client.watch("k", **kinds)
            async for received in watch:
                responses.append(received)
                if len(responses) == count:
                    await watch.aclose()
        return responses

    return run(main())


def test_a_watch_asks_what_it_says_and_does_not_show_its_creation() -> None:
    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        call.reply(response(4, created=True))
        call.reply(response(5, put_event(5)))

    peer = Peer(answer)
    seen = watching(peer, 1, range_end=b"l", start_revision=3, prev_kv=True, progress_notify=True, filters=[1])
    assert seen == [response(5, put_event(5))]
    create = rpc.WatchCreateRequest(
        key=b"k",
        range_end=b"l",
        start_revision=3,
        prev_kv=True,
        progress_notify=True,
        filters=["NODELETE"],
        fragment=True,
    )
    assert peer.calls[0].messages == [rpc.WatchRequest(create_request=create)]
    assert peer.calls[0].reset  # left behind, so the server need not go on
    assert peer.calls[0].head.get(b"hasleader") == b"true"


def test_fragments_are_put_together() -> None:
    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        call.reply(response(4, created=True))
        call.reply(response(6, put_event(5), fragment=True))
        call.reply(response(6, put_event(6), fragment=True))
        call.reply(response(6, put_event(6)))
        call.reply(response(7, put_event(7)))

    # A revision is handed over when it is whole: history may come in a response of very many fragments.
    whole = response(6, put_event(6), put_event(6))
    assert watching(Peer(answer), 3) == [response(6, put_event(5)), whole, response(7, put_event(7))]


def test_an_empty_last_fragment_ends_a_response() -> None:
    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        call.reply(response(4, created=True))
        call.reply(response(6, put_event(5), fragment=True))
        call.reply(response(6))
        call.reply(response(7))

    assert watching(Peer(answer), 2) == [response(6, put_event(5)), response(7)]


def test_a_watch_goes_on_where_it_was_when_the_connection_is_lost() -> None:
    """Lost before anything, in the middle of a fragmented response, and after one; nothing is missed or repeated."""
    starts = []

    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        start = message.create_request.start_revision
        starts.append(start)
        turn = len(starts)
        call.reply(response(10, created=True))
        if turn == 2:
            # A piece of history: the header is ahead of the events.
            call.reply(response(99, put_event(11)))
            call.reply(response(99, put_event(12), fragment=True))
        if turn == 3:
            call.reply(response(12, put_event(12), put_event(12)))
        if turn == 4:
            call.reply(response(13, put_event(13)))
        asyncio.get_running_loop().call_later(1, call.connection.lose)

    expected = [
        response(99, put_event(11)),
        response(12, put_event(12), put_event(12)),
        response(13, put_event(13)),
    ]
    assert watching(Peer(answer), 3) == expected
    assert starts == [0, 11, 12, 13]


def test_a_watch_comes_back_however_long_the_server_is_away() -> None:
    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        call.reply(response(10, created=True))
        if len(peer.calls) == 1:
            away_until = asyncio.get_running_loop().time() + 3600
            peer.refuse = lambda endpoint: (
                OSError(errno.ECONNREFUSED, "no") if asyncio.get_running_loop().time() < away_until else None
            )
            asyncio.get_running_loop().call_later(1, call.connection.lose)
        else:
            call.reply(response(11, put_event(11)))

    peer = Peer(answer)
    assert watching(peer, 1) == [response(11, put_event(11))]
    assert 3600 / 3 <= len(peer.dials) <= 3600 / 1.5 + 10  # patiently


def test_progress_moves_the_place_to_go_on() -> None:
    starts = []

    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        starts.append(message.create_request.start_revision)
        call.reply(response(10, created=True))
        call.reply(response(20 * len(starts)))
        asyncio.get_running_loop().call_later(1, call.connection.lose)

    assert watching(Peer(answer), 2, start_revision=3) == [response(20), response(40)]
    assert starts == [3, 21]


@pytest.mark.parametrize(
    "last",
    [
        rpc.WatchResponse(header=rpc.ResponseHeader(), canceled=True, compact_revision=9),
        rpc.WatchResponse(header=rpc.ResponseHeader(), created=True, canceled=True, cancel_reason="mvcc: empty"),
    ],
)
def test_a_canceled_watch_says_so_and_ends(last: rpc.WatchResponse) -> None:
    def answer(call: PeerCall, message: rpc.WatchRequest) -> None:
        if not last.created:
            call.reply(response(10, created=True))
        call.reply(last)

    peer = Peer(answer)
    assert watching(peer, 99) == [last]
    assert len(peer.calls) == 1


def test_a_watch_that_the_server_forbids_fails() -> None:
    with pytest.raises(ServerError, match="no"):
        watching(Peer(lambda call, message: call.finish(16, "no")), 1)
