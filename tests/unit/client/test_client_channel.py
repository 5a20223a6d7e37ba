# SPDX-License-Identifier: Apache-2.0
"""The client's channel against a server in memory: one call at a time, and everything that can go wrong with it."""

import asyncio
import errno
import ssl
from pathlib import Path

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.errors import Code
from lessor.client import CallTimeout, Channel, ClientError, ConnectionLost, ServerError, tls_context
from lessor.client._errors import ClientClosed
from lessor.client._exchange import INBOX_BYTES_MAX
from lessor.wire.frames import PREFACE
from lessor.wire.grpc import frame, parse_timeout
from lessor.wire.h2 import ErrorCode
from tests.certificates import Authority
from tests.unit.client.client_peer import Peer, PeerCall, run

GRANT = BY_PATH["/etcdserverpb.Lease/LeaseGrant"]
RANGE = BY_PATH["/etcdserverpb.KV/Range"]
WATCH = BY_PATH["/etcdserverpb.Watch/Watch"]
KEEP_ALIVE = BY_PATH["/etcdserverpb.Lease/LeaseKeepAlive"]


def silent(call: PeerCall, message: object) -> None:
    """Never answers."""


def granted(call: PeerCall, message: rpc.LeaseGrantRequest) -> None:
    call.reply(rpc.LeaseGrantResponse(ID=7, TTL=message.TTL))
    call.finish()


def error_of(peer: Peer, method: object = GRANT, timeout_s: float | None = 5.0) -> ClientError:
    """The error that a call to this peer ends with."""

    async def main() -> ClientError:
        channel = peer.channel()
        assert hasattr(method, "request")
        with pytest.raises(ClientError) as caught:
            await channel.unary(method, method.request(), timeout_s=timeout_s)  # type: ignore[arg-type]
        await channel.aclose()
        return caught.value

    return run(main())


def test_a_unary_call_sends_what_grpc_asks_for() -> None:
    peer = Peer(granted)

    async def main() -> None:
        channel = peer.channel("10.0.0.1:2379")
        reply = await channel.unary(GRANT, rpc.LeaseGrantRequest(TTL=30), timeout_s=4, metadata=[("token", "secret")])
        assert reply == rpc.LeaseGrantResponse(ID=7, TTL=30)
        await channel.aclose()

    run(main())
    (call,) = peer.calls
    head = call.head
    assert (head.method, head.path, head.authority) == (b"POST", b"/etcdserverpb.Lease/LeaseGrant", b"10.0.0.1:2379")
    assert head.get(b"te") == b"trailers"
    assert head.get(b"content-type") == b"application/grpc"
    assert head.get(b"token") == b"secret"
    assert parse_timeout(head.get(b"grpc-timeout") or b"") == pytest.approx(4)
    assert call.messages == [rpc.LeaseGrantRequest(TTL=30)]
    assert call.half_closed


def test_without_a_timeout_none_is_sent() -> None:
    peer = Peer(granted)

    async def main() -> None:
        channel = peer.channel()
        await channel.unary(GRANT, rpc.LeaseGrantRequest())
        await channel.aclose()

    run(main())
    assert peer.calls[0].head.get(b"grpc-timeout") is None


def test_calls_share_one_connection_and_get_their_own_answers() -> None:
    peer = Peer(granted)

    async def main() -> list[int]:
        channel = peer.channel()
        requests = [rpc.LeaseGrantRequest(TTL=ttl_s) for ttl_s in range(1, 51)]
        replies = await asyncio.gather(*(channel.unary(GRANT, request) for request in requests))
        await channel.aclose()
        return [reply.TTL for reply in replies]  # type: ignore[attr-defined]

    assert run(main()) == list(range(1, 51))
    assert len(peer.connections) == 1


@pytest.mark.parametrize("after_reply", [False, True])
def test_a_server_error_has_code_and_text(after_reply: bool) -> None:
    def refuse(call: PeerCall, message: object) -> None:
        if after_reply:
            call.reply(rpc.LeaseGrantResponse())
        call.finish(9, "etcdserver: lease already exists, \u00e4hm 100%")

    error = error_of(Peer(refuse))
    assert isinstance(error, ServerError)
    assert error.code is Code.FAILED_PRECONDITION
    assert error.message == str(error) == "etcdserver: lease already exists, \u00e4hm 100%"
    assert not error.outcome_unknown


@pytest.mark.parametrize(
    ("code", "write_unknown"),
    [*((code, False) for code in (3, 5, 8, 9, 11, 12, 16)), *((code, True) for code in (1, 2, 4, 13, 14, 99))],
)
def test_after_an_error_that_may_come_midway_the_outcome_of_a_write_is_unknown(code: int, write_unknown: bool) -> None:
    def refuse(call: PeerCall, message: object) -> None:
        call.finish(code, "no")

    assert error_of(Peer(refuse)).outcome_unknown is write_unknown
    assert error_of(Peer(refuse), RANGE).outcome_unknown is False


def test_a_write_to_a_full_etcd_may_have_happened() -> None:
    """An etcd answers so also behind the write that has used up its space."""

    def refuse(call: PeerCall, message: object) -> None:
        call.finish(8, "etcdserver: mvcc: database space exceeded")

    assert error_of(Peer(refuse)).outcome_unknown
    assert not error_of(Peer(refuse), RANGE).outcome_unknown


def test_a_server_that_is_slow_costs_only_the_timeout() -> None:
    peer = Peer(silent)
    error = error_of(peer, timeout_s=4)
    assert isinstance(error, CallTimeout)
    assert error.timeout_s == 4
    assert str(error) == "no answer from 127.0.0.1:1 within 4 s"
    assert error.outcome_unknown
    assert peer.calls[0].reset  # the server need not go on
    assert not error_of(Peer(silent), RANGE).outcome_unknown


def test_a_server_that_keeps_the_deadline_first_is_a_timeout_too() -> None:
    def late(call: PeerCall, message: object) -> None:
        call.finish(4, "context deadline exceeded")

    assert isinstance(error_of(Peer(late)), CallTimeout)
    assert isinstance(error_of(Peer(late), timeout_s=None), ServerError)


def test_a_lost_connection_leaves_a_write_unknown_and_repeats_a_read() -> None:
    def lose_first(call: PeerCall, message: object) -> None:
        if len(peer.calls) == 1:
            call.connection.lose(ConnectionResetError("reset by peer"))
        else:
            call.reply(call.method.response())
            call.finish()

    peer = Peer(lose_first)
    error = error_of(peer)
    assert isinstance(error, ConnectionLost)
    assert error.outcome_unknown
    assert error.endpoint == "127.0.0.1:1"
    assert "reset by peer" in str(error)

    peer = Peer(lose_first)

    async def read() -> None:
        channel = peer.channel()
        assert await channel.unary(RANGE, rpc.RangeRequest(key=b"a")) == rpc.RangeResponse()
        await channel.aclose()

    run(read())
    assert len(peer.connections) == 2


def test_a_refused_stream_is_repeated_even_for_a_write() -> None:
    def refuse_first(call: PeerCall, message: object) -> None:
        if len(peer.calls) == 1:
            call.abort(ErrorCode.REFUSED_STREAM)
        else:
            granted(call, rpc.LeaseGrantRequest(TTL=1))

    peer = Peer(refuse_first)

    async def main() -> None:
        channel = peer.channel()
        await channel.unary(GRANT, rpc.LeaseGrantRequest(TTL=1))
        await channel.aclose()

    run(main())
    assert len(peer.calls) == 2


def test_a_server_that_refuses_forever_is_not_asked_forever() -> None:
    peer = Peer(lambda call, message: call.abort(ErrorCode.REFUSED_STREAM))
    error = error_of(peer)
    assert isinstance(error, ConnectionLost)
    assert not error.outcome_unknown
    assert len(peer.calls) == 2


def test_any_other_reset_leaves_a_write_unknown() -> None:
    error = error_of(Peer(lambda call, message: call.abort(ErrorCode.INTERNAL_ERROR)))
    assert isinstance(error, ConnectionLost)
    assert error.outcome_unknown
    assert "INTERNAL_ERROR" in str(error)


def test_after_goaway_a_new_connection_is_made_while_the_old_one_finishes() -> None:
    def drain_then_answer(call: PeerCall, message: rpc.LeaseGrantRequest) -> None:
        if len(peer.calls) == 1:
            call.connection.h2.drain()
            call.connection.flush()
            asyncio.get_running_loop().call_later(1, granted, call, message)
        else:
            granted(call, message)

    peer = Peer(drain_then_answer)

    async def main() -> None:
        channel = peer.channel()
        first = asyncio.create_task(channel.unary(GRANT, rpc.LeaseGrantRequest(TTL=1)))
        await asyncio.sleep(0.5)
        await channel.unary(GRANT, rpc.LeaseGrantRequest(TTL=2))
        assert not first.done()
        assert (await first) == rpc.LeaseGrantResponse(ID=7, TTL=1)
        await channel.aclose()

    run(main())
    assert len(peer.connections) == 2


def refused() -> OSError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")


def test_endpoints_are_tried_in_order_and_the_one_that_worked_first_next_time() -> None:
    peer = Peer(granted)
    peer.refuse = lambda endpoint: refused() if endpoint == "a:1" else None

    async def main() -> None:
        channel = peer.channel("a:1,b:2,c:3")
        await channel.unary(GRANT, rpc.LeaseGrantRequest())
        assert peer.dials == ["a:1", "b:2"]
        peer.connections[0].lose()
        await channel.unary(GRANT, rpc.LeaseGrantRequest())
        assert peer.dials == ["a:1", "b:2", "b:2"]
        await channel.aclose()

    run(main())


def test_an_error_that_says_nothing_is_told_in_words() -> None:
    """asyncio's, when the other end takes the beginning of a TLS handshake for something else."""
    peer = Peer(granted)
    peer.refuse = lambda endpoint: ConnectionResetError()

    async def main() -> None:
        channel = peer.channel("a:1")
        with pytest.raises(ConnectionLost, match="cannot connect to a:1: the connection was taken, and closed at once"):
            await channel.unary(GRANT, rpc.LeaseGrantRequest(), timeout_s=30)
        await channel.aclose()

    run(main())

    async def plain() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        channel = Channel(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", connect_timeout_s=30.0)
        with pytest.raises(ConnectionLost, match="in the TLS handshake; if it speaks no TLS, write http://"):
            await channel.unary(GRANT, rpc.LeaseGrantRequest(), timeout_s=30)
        await channel.aclose()
        server.close()

    asyncio.run(plain())


def test_when_no_endpoint_answers_the_error_names_each_with_its_reason() -> None:
    peer = Peer(granted)
    peer.refuse = lambda endpoint: refused() if endpoint == "a:1" else TimeoutError()

    async def main() -> None:
        channel = peer.channel("a:1,b:2")
        with pytest.raises(ConnectionLost) as caught:
            await channel.unary(GRANT, rpc.LeaseGrantRequest(), timeout_s=30)
        assert str(caught.value) == "cannot connect to a:1: connection refused; b:2: no connection within 2 s"
        assert not caught.value.outcome_unknown
        assert peer.dials == ["a:1", "b:2"]  # each once: trying again is the caller's decision
        await channel.aclose()

    run(main())


def test_the_timeout_of_a_call_includes_connecting() -> None:
    peer = Peer(granted)
    peer.refuse = lambda endpoint: TimeoutError()
    error = error_of(peer, timeout_s=1.5)
    assert isinstance(error, CallTimeout)
    assert str(error) == "no connection to 127.0.0.1:1 within 1.5 s"
    assert not error.outcome_unknown


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([(b":status", b"404")], Code.UNIMPLEMENTED),
        ([(b":status", b"503"), (b"content-type", b"text/html")], Code.UNAVAILABLE),
        ([(b":status", b"200"), (b"content-type", b"text/html")], Code.UNKNOWN),
        ([(b":status", b"200"), (b"content-type", b"application/grpc")], Code.UNKNOWN),
        ([(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-encoding", b"br")], Code.UNIMPLEMENTED),
    ],
)
def test_what_is_not_a_grpc_server_is_an_error(headers: list[tuple[bytes, bytes]], code: Code) -> None:
    error = error_of(Peer(lambda call, message: call.answer_http(headers)))
    assert isinstance(error, ServerError)
    assert error.code is code


@pytest.mark.parametrize("body", [frame(b"\xff\xff"), b"\x07\0\0\0\0", frame(b"") * 2])
def test_a_broken_reply_is_an_error(body: bytes) -> None:
    def broken(call: PeerCall, message: object) -> None:
        call.raw(body)
        call.finish()

    error = error_of(Peer(broken))
    assert isinstance(error, ServerError)
    assert error.code is Code.INTERNAL
    assert error.outcome_unknown


def test_no_reply_at_all_is_an_error() -> None:
    error = error_of(Peer(lambda call, message: call.finish()))
    assert isinstance(error, ServerError)
    assert "not exactly one reply" in error.message


def test_a_stream_goes_both_ways_and_ends_after_half_close() -> None:
    def echo(call: PeerCall, message: rpc.LeaseKeepAliveRequest) -> None:
        call.reply(rpc.LeaseKeepAliveResponse(ID=message.ID))

    peer = Peer(echo)

    async def main() -> None:
        channel = peer.channel()
        async with channel.stream(KEEP_ALIVE) as call:
            for number in (1, 2, 3):
                await call.send(rpc.LeaseKeepAliveRequest(ID=number))
                assert await call.receive() == rpc.LeaseKeepAliveResponse(ID=number)
            call.half_close()
            asyncio.get_running_loop().call_later(1, lambda: peer.calls[0].finish())
            assert [reply async for reply in call] == []
            assert await call.receive() is None
        assert not peer.calls[0].reset
        await channel.aclose()

    run(main())
    assert peer.calls[0].half_closed


def test_leaving_the_block_cancels_the_call_but_not_the_connection() -> None:
    peer = Peer(silent)

    async def main() -> None:
        channel = peer.channel()
        async with channel.stream(WATCH) as call:
            await call.send(rpc.WatchRequest())
        with pytest.raises(ServerError, match="canceled"):
            await call.receive()
        with pytest.raises(ServerError, match="canceled"):
            await call.send(rpc.WatchRequest())
        assert peer.calls[0].reset
        peer.handler = granted
        await channel.unary(GRANT, rpc.LeaseGrantRequest())
        await channel.aclose()

    run(main())
    assert len(peer.connections) == 1


def test_what_came_before_the_end_is_delivered_before_it() -> None:
    def two_then_lost(call: PeerCall, message: object) -> None:
        call.reply(rpc.WatchResponse(watch_id=1))
        call.reply(rpc.WatchResponse(watch_id=2))
        asyncio.get_running_loop().call_later(1, call.connection.lose)

    peer = Peer(two_then_lost)

    async def main() -> None:
        channel = peer.channel()
        async with channel.stream(WATCH) as call:
            await call.send(rpc.WatchRequest())
            await asyncio.sleep(2)
            assert await call.receive() == rpc.WatchResponse(watch_id=1)
            assert await call.receive() == rpc.WatchResponse(watch_id=2)
            with pytest.raises(ConnectionLost):
                await call.receive()
        await channel.aclose()

    run(main())


def test_a_canceled_task_cancels_its_call() -> None:
    peer = Peer(silent)

    async def main() -> None:
        channel = peer.channel()
        task = asyncio.create_task(channel.unary(GRANT, rpc.LeaseGrantRequest()))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert peer.calls[0].reset
        await channel.aclose()

    run(main())


def test_closing_fails_what_is_underway_and_refuses_what_comes_later() -> None:
    peer = Peer(silent)

    async def main() -> None:
        channel = peer.channel()
        task = asyncio.create_task(channel.unary(GRANT, rpc.LeaseGrantRequest()))
        await asyncio.sleep(1)
        await channel.aclose()
        with pytest.raises(ConnectionLost):
            await task
        with pytest.raises(RuntimeError, match="closed"):
            await channel.unary(GRANT, rpc.LeaseGrantRequest())

    run(main())


@pytest.mark.parametrize("turns", range(5))
def test_closing_while_a_connection_is_made_leaves_none(turns: int) -> None:
    peer = Peer(silent)

    async def main() -> None:
        channel = peer.channel()
        tasks = [asyncio.create_task(channel.unary(GRANT, rpc.LeaseGrantRequest())) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await channel.aclose()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, ClientClosed | ConnectionLost) for error in ended)
        assert not channel._connections

    run(main())


def test_a_sender_waits_for_a_server_that_does_not_read() -> None:
    peer = Peer(silent)
    big = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=bytes(600_000)))

    async def main() -> int:
        channel = peer.channel()
        sent = 0
        async with channel.stream(WATCH) as call:
            # The server's windows never open again: nobody hands it the bytes.
            await call.send(rpc.WatchRequest())
            peer.connections[0].write = lambda data: None  # type: ignore[method-assign]
            with pytest.raises(TimeoutError):  # noqa: PT012 - the loop is the subject
                async with asyncio.timeout(10):
                    while True:
                        await call.send(big)
                        sent += 1
        await channel.aclose()
        return sent

    assert 1 <= run(main()) <= 4


def test_who_does_not_read_loses_the_call_not_the_connection() -> None:
    count = INBOX_BYTES_MAX // 1_000_000 + 2
    response = rpc.WatchResponse(cancel_reason="x" * 1_000_000)

    def flood(call: PeerCall, message: object) -> None:
        if call.method is WATCH:
            for turn in range(count):
                asyncio.get_running_loop().call_later(turn, call.reply, response)
        else:
            granted(call, rpc.LeaseGrantRequest(TTL=3))

    peer = Peer(flood)

    async def main() -> None:
        channel = peer.channel()
        async with channel.stream(WATCH) as call:
            await call.send(rpc.WatchRequest())
            await asyncio.sleep(count)
            received = 0
            with pytest.raises(ConnectionLost, match="were not read"):  # noqa: PT012 - the loop is the subject
                while await call.receive() is not None:
                    received += 1
        assert 0 < received < count
        await channel.unary(GRANT, rpc.LeaseGrantRequest())
        await channel.aclose()

    run(main())
    assert len(peer.connections) == 1


def test_a_server_that_takes_no_bytes_holds_up_neither_a_call_beyond_its_time_nor_the_end() -> None:
    peer = Peer(silent)

    async def main() -> None:
        channel = peer.channel()
        with pytest.raises(CallTimeout):
            await channel.unary(GRANT, rpc.LeaseGrantRequest(TTL=30), timeout_s=1.0)
        call = await channel.start(GRANT, 1.0, asyncio.get_running_loop().time() + 1.0)
        peer.connections[-1].full = True
        peer.connections[-1].client.pause_writing()
        await call.send(rpc.LeaseGrantRequest(TTL=30), last=True)
        with pytest.raises(CallTimeout):
            await call.receive()
        await channel.aclose()

    run(asyncio.wait_for(main(), 100.0))


def test_a_request_waits_until_the_socket_takes_more() -> None:
    peer = Peer(silent)

    async def main() -> None:
        channel = peer.channel()
        call = await channel.start(GRANT)
        connection = call.connection
        connection.pause_writing()
        sending = asyncio.ensure_future(call.send(rpc.LeaseGrantRequest(TTL=30), last=True))
        await asyncio.sleep(10.0)
        assert not sending.done()
        connection.resume_writing()
        await sending
        call.cancel()
        await channel.aclose()

    run(asyncio.wait_for(main(), 100.0))


def test_a_server_that_says_nothing_behind_its_handshake_is_let_go(tmp_path: Path) -> None:
    authority = Authority("all")
    files = authority.issue(tmp_path, "localhost")
    speaks = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    speaks.load_cert_chain(files.certificate, files.key)

    async def main() -> None:
        begun, left = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(len(PREFACE))
            begun.set()
            await reader.read()
            left.set()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0, ssl=speaks)
        port = server.sockets[0].getsockname()[1]
        context = tls_context(ca_file=str(authority.write(tmp_path / "ca.pem")))
        channel = Channel(f"https://127.0.0.1:{port}", connect_timeout_s=30.0, ssl=context, server_name="localhost")
        calling = asyncio.ensure_future(channel.unary(GRANT, rpc.LeaseGrantRequest(TTL=30)))
        await begun.wait()
        calling.cancel()
        await asyncio.wait_for(left.wait(), 10.0)
        await channel.aclose()
        server.close()

    asyncio.run(main())
