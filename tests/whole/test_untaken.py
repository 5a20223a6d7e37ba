# SPDX-License-Identifier: Apache-2.0
"""Requests over HTTP/2 whose peer has not taken the replies to earlier ones: they wait, in order, within bounds."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors, limits
from lessor.base.errors import Code
from lessor.server.loop.core import Core
from lessor.server.services.tokens import SimpleTokens
from lessor.server.transport.h2_session import H2Session
from lessor.testing.server import InProcessServer
from tests.conformance.raw_h2 import ACK, DATA, GOAWAY, PING, RST_STREAM, Outcome, RawH2, framed
from tests.in_process import in_process

PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
LARGE = b"large" + bytes(1_400_000)
ALL = rpc.RangeRequest(key=b"\0", range_end=b"\0")

UNTAKEN_BYTES_MAX = 100_000
VALUE = b"value" + bytes(40_000)
GET = framed(rpc.RangeRequest(key=b"k"))
KEPT_BYTES = len(GET) - 5 + limits.DEFERRED_REQUEST_BYTES  # of each request that waits


def put(server: InProcessServer, key: bytes, value: bytes) -> None:
    with RawH2(server.address) as connection:
        connection.call(PUT, framed(rpc.PutRequest(key=key, value=value)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    """With the limits as they are, and large values."""
    with in_process(Path(tmp_path_factory.mktemp("data"))) as running:
        put(running, b"large", LARGE)
        yield running


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    """Two replies may wait in a connection, and a third one is too much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CONNECTION_SEND_BYTES_MAX", UNTAKEN_BYTES_MAX)
        patch.setattr(limits, "READ_STEP_BYTES", 2 * UNTAKEN_BYTES_MAX)
        with in_process(Path(tmp_path_factory.mktemp("data"))) as running:
            put(running, b"k", VALUE)
            yield running


def taken(connection: RawH2, streams: list[int]) -> dict[int, Outcome]:
    """As `RawH2.outcomes`, with a client's flow control: what is read opens the windows again, by halves."""
    open_ones = set(streams)
    blocks: dict[int, list[dict[str, str]]] = {stream: [] for stream in streams}
    data = {stream: bytearray() for stream in streams}
    to_give = dict.fromkeys([0, *streams], 0)
    while open_ones:
        frame = connection.read()
        assert frame is not None
        assert frame.kind != GOAWAY
        if frame.kind == DATA and frame.payload:
            data[frame.stream] += frame.payload
            for of in (0, frame.stream):
                to_give[of] += len(frame.payload)
                if to_give[of] >= 32_768:
                    connection.give_window(of, to_give[of])
                    to_give[of] = 0
        elif frame.block:
            blocks[frame.stream].append(frame.block)
        if frame.ends:
            open_ones.discard(frame.stream)
    return {stream: Outcome(blocks[stream], bytes(data[stream])) for stream in streams}


def core_of(server: InProcessServer) -> Core:
    return server.server.core


def kept_bytes(server: InProcessServer) -> int:
    return server.call(lambda: core_of(server).unfinished.total_bytes)


def unread_bytes(server: InProcessServer) -> int:
    """The most that a connection keeps of replies."""

    def most() -> int:
        sessions = [one._session for one in server.server._connections]
        return max(session.unread_bytes for session in sessions if isinstance(session, H2Session))

    return server.call(most)


def requests(server: InProcessServer, path: str) -> int:
    """How many calls of a method have come to their end with a reply."""
    counts = core_of(server).metrics.handled
    return server.call(lambda: sum(n.n for (of, code), n in counts.items() if of.path == path and code == Code.OK))


def turns(server: InProcessServer) -> None:
    """Lets the server take twenty turns."""
    for _ in range(20):
        server.call(core_of(server).turn.schedule)


def until(server: InProcessServer, holds: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if holds():
            return
        turns(server)
    raise AssertionError("it does not come to that")


def ask(narrow: InProcessServer, connection: RawH2, count: int) -> list[int]:
    """Sends three gets of VALUE or more, and returns when they have been answered or wait for the peer."""
    before = requests(narrow, RANGE)
    streams = [connection.open(RANGE, GET) for _ in range(count)]
    read(connection)
    # The ping's answer may overtake a step, and replies of one turn count twice: the third get may have a turn to go.
    until(narrow, lambda: requests(narrow, RANGE) - before > UNTAKEN_BYTES_MAX // len(VALUE))
    return streams


def read(connection: RawH2) -> None:
    """Returns when the server has read all that was sent: it has answered a ping that came behind it."""
    connection.send(PING, 0, 0, b"all read")
    while True:
        frame = connection.read()
        assert frame is not None
        if frame.kind == PING and frame.flags & ACK:
            return


@pytest.mark.parametrize("count", [20, 60, 200])
def test_however_many_large_values_are_asked_for_at_once_all_are_answered(server: InProcessServer, count: int) -> None:
    get = framed(rpc.RangeRequest(key=b"large"))
    with RawH2(server.address) as connection:
        streams = [connection.open(RANGE, get) for _ in range(count)]
        outcomes = taken(connection, streams)
    for outcome in outcomes.values():
        assert outcome.status == (Code.OK, "")
        assert rpc.RangeResponse.FromString(outcome.data[5:]).kvs[0].value == LARGE
    assert kept_bytes(server) == 0


def test_long_reads_wait_too(server: InProcessServer) -> None:
    asked = framed(rpc.RangeRequest(key=b"large", range_end=b"m", sort_order=rpc.RangeRequest.DESCEND))
    put(server, b"large2", LARGE)
    with RawH2(server.address) as connection:
        streams = [connection.open(RANGE, asked) for _ in range(20)]
        outcomes = taken(connection, streams)
    assert {outcome.status for outcome in outcomes.values()} == {(Code.OK, "")}
    assert {len(outcome.data) // len(LARGE) for outcome in outcomes.values()} == {2}
    assert server.call(lambda: core_of(server).long_replies.idle)


def test_of_long_reads_no_more_are_made_than_the_peer_may_leave(server: InProcessServer) -> None:
    put(server, b"large2", LARGE)
    asked = framed(rpc.RangeRequest(key=b"large", range_end=b"m"))
    before = requests(server, RANGE)
    with RawH2(server.address, window=0) as connection:
        streams = [connection.open(RANGE, asked) for _ in range(20)]
        read(connection)
        until(server, lambda: requests(server, RANGE) - before > limits.CONNECTION_SEND_BYTES_MAX // (2 * len(LARGE)))
        made = requests(server, RANGE) - before
        turns(server)  # in which more could be made
        assert requests(server, RANGE) - before == made
        assert unread_bytes(server) <= limits.CONNECTION_SEND_BYTES_MAX + 3 * len(LARGE)
        assert not server.call(lambda: core_of(server).long_replies.idle)
        for stream in streams:
            connection.send(RST_STREAM, 0, stream, bytes(4))
        read(connection)
        assert server.call(lambda: core_of(server).long_replies.idle)
        assert unread_bytes(server) == 0
    with RawH2(server.address, window=0) as connection:
        before = requests(server, RANGE)
        for _ in range(20):
            connection.open(RANGE, asked)
        read(connection)
        until(server, lambda: requests(server, RANGE) - before == made)
        turns(server)
    put(server, b"other", b"")  # answered after the loss was seen
    assert server.call(lambda: core_of(server).long_replies.idle)


def test_long_reads_do_not_wait_for_each_others_requests(narrow: InProcessServer) -> None:
    for number in range(6):
        put(narrow, b"l%d" % number, VALUE)
    asked = framed(rpc.RangeRequest(key=b"l", range_end=b"m" + bytes(30_000)))
    with RawH2(narrow.address) as connection:
        streams = [connection.open(RANGE, asked) for _ in range(10)]
        outcomes = taken(connection, streams)
    assert {len(outcome.data) // len(VALUE) for outcome in outcomes.values()} == {6}
    assert kept_bytes(narrow) == 0


def test_long_bodies_that_have_waited_for_their_turn_wait_for_the_peer_too(narrow: InProcessServer) -> None:
    body = b'{"key":"aw==","range_end":"","count_only":false,"nobody_knows":"%b"}' % (b"x" * 80_000)
    before = requests(narrow, RANGE)
    with RawH2(narrow.address, window=0) as connection:
        streams = [connection.open("/v3/kv/range", body, content_type="application/json") for _ in range(8)]
        read(connection)
        until(narrow, lambda: kept_bytes(narrow) >= 4 * len(body))
        turns(narrow)  # a turn reads one such body
        assert 0 < requests(narrow, RANGE) - before <= UNTAKEN_BYTES_MAX // len(VALUE) + 1
        assert kept_bytes(narrow) >= 4 * len(body)
        for stream in streams:
            connection.give_window(stream, 100_000)
        outcomes = taken(connection, streams)
    assert [b'"kvs"' in outcome.data for outcome in outcomes.values()] == [True] * 8
    assert kept_bytes(narrow) == 0


def test_requests_in_json_and_pages_wait_too(server: InProcessServer) -> None:
    get = json.dumps({"key": base64.b64encode(b"large").decode()}).encode()
    with RawH2(server.address) as connection:
        streams = [connection.open("/v3/kv/range", get, content_type="application/json") for _ in range(20)]
        page = connection.open("/version", method="GET", content_type="text/plain")
        outcomes = taken(connection, [*streams, page])
    assert [outcome.blocks[0][":status"] for outcome in outcomes.values()] == ["200"] * 21
    assert {len(outcome.data) // len(LARGE) for outcome in outcomes.values()} == {0, 1}  # 4/3 of it in base64
    assert b"etcdserver" in outcomes[page].data


@pytest.mark.parametrize("count", [10, 300])
def test_a_peer_that_takes_nothing_costs_bounded_memory_and_a_reset_frees_it(
    narrow: InProcessServer, count: int
) -> None:
    before = requests(narrow, RANGE)
    with RawH2(narrow.address, window=0) as connection:
        streams = ask(narrow, connection, count)
        answered = requests(narrow, RANGE) - before
        assert answered == UNTAKEN_BYTES_MAX // len(VALUE) + 1  # what is one too many is noticed when it is there
        assert unread_bytes(narrow) <= UNTAKEN_BYTES_MAX + len(VALUE) + 100
        assert kept_bytes(narrow) == (count - answered) * KEPT_BYTES
        for stream in reversed(streams[answered:]):
            connection.send(RST_STREAM, 0, stream, bytes(4))
        read(connection)
        assert kept_bytes(narrow) == 0
        assert requests(narrow, RANGE) - before == answered
        connection.send(RST_STREAM, 0, streams[0], bytes(4))
        after = connection.open(PUT, framed(rpc.PutRequest(key=b"other")))
        connection.give_window(after, 1_000)
        assert connection.outcomes([after])[after].status == (Code.OK, "")


def test_what_waits_goes_on_in_its_order_when_others_are_reset(narrow: InProcessServer) -> None:
    with RawH2(narrow.address, window=0) as connection:
        first = ask(narrow, connection, 3)
        puts = [connection.open(PUT, framed(rpc.PutRequest(key=b"n%d" % number))) for number in range(20)]
        read(connection)
        assert kept_bytes(narrow) > 20 * limits.DEFERRED_REQUEST_BYTES
        for stream in first:
            connection.send(RST_STREAM, 0, stream, bytes(4))
        for stream in puts:
            connection.give_window(stream, 1_000)
        outcomes = connection.outcomes(puts)
    revisions = [rpc.PutResponse.FromString(outcomes[stream].data[5:]).header.revision for stream in puts]
    assert revisions == list(range(revisions[0], revisions[0] + 20))
    assert kept_bytes(narrow) == 0


def test_a_lost_connection_takes_what_waits_with_it(narrow: InProcessServer) -> None:
    before = requests(narrow, RANGE)
    with RawH2(narrow.address, window=0) as connection:
        ask(narrow, connection, 20)
        answered = requests(narrow, RANGE) - before
        assert kept_bytes(narrow) == (20 - answered) * KEPT_BYTES
    with RawH2(narrow.address) as connection:
        connection.call(PUT, framed(rpc.PutRequest(key=b"other")))  # answered after the loss was seen
    assert kept_bytes(narrow) == 0
    assert requests(narrow, RANGE) - before == answered


@pytest.mark.parametrize("as_json", [False, True], ids=["gRPC", "JSON"])
def test_the_deadline_of_a_request_that_waits_goes_on(narrow: InProcessServer, as_json: bool) -> None:
    path, body = ("/v3/kv/put", b'{"key":"bGF0ZQ=="}') if as_json else (PUT, framed(rpc.PutRequest(key=b"late")))
    content_type = "application/json" if as_json else "application/grpc"
    before = requests(narrow, PUT)
    with RawH2(narrow.address, window=0) as connection:
        streams = ask(narrow, connection, 3)
        late = connection.open(path, body, content_type=content_type, grpc_timeout="5S")
        connection.give_window(late, 1_000)
        read(connection)
        narrow.clock.jump(4.9)
        read(connection)
        assert kept_bytes(narrow) > 0
        narrow.clock.jump(0.2)
        outcome = connection.outcomes([late])[late]
        if as_json:
            assert json.loads(outcome.data)["code"] == Code.DEADLINE_EXCEEDED
        else:
            assert outcome.status[0] == Code.DEADLINE_EXCEEDED
        assert kept_bytes(narrow) == 0
        for stream in streams:
            connection.send(RST_STREAM, 0, stream, bytes(4))
        read(connection)
    assert requests(narrow, PUT) == before  # it was not carried out


def test_streams_go_on_beside_requests_that_wait(narrow: InProcessServer) -> None:
    lease = rpc.LeaseGrantRequest(ID=77, TTL=60)
    with RawH2(narrow.address, window=0) as connection:
        granted = connection.open("/etcdserverpb.Lease/LeaseGrant", framed(lease))
        connection.give_window(granted, 1_000)
        connection.outcomes([granted])
        ask(narrow, connection, 20)
        for number in (1, 2):  # the second time the stream is there already
            renewals = connection.open(KEEP_ALIVE, framed(rpc.LeaseKeepAliveRequest(ID=77)), end=number == 1)
            connection.give_window(renewals, 1_000)
            while (frame := connection.read()) is not None and frame.kind != DATA:
                pass
            assert frame is not None
            assert rpc.LeaseKeepAliveResponse.FromString(frame.payload[5:]).TTL == 60
        assert kept_bytes(narrow) > 0


def test_when_the_share_of_the_connection_is_used_up_the_last_request_is_refused(
    narrow: InProcessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawH2(narrow.address, window=0) as connection:
        streams = ask(narrow, connection, 3)
        monkeypatch.setattr(core_of(narrow).unfinished, "_connection_bytes_max", 10 * KEPT_BYTES)
        streams += [connection.open(RANGE, GET) for _ in range(11)]
        refused = connection.outcomes(streams[-1:])[streams[-1]].status
        assert refused[0] == Code.RESOURCE_EXHAUSTED
        assert kept_bytes(narrow) == 10 * KEPT_BYTES
        for stream in streams:
            connection.give_window(stream, 100_000)
        outcomes = taken(connection, streams[:-1])
        assert {outcome.status for outcome in outcomes.values()} == {(Code.OK, "")}


def test_a_page_that_waits_is_refused_like_a_call(narrow: InProcessServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawH2(narrow.address, window=0) as connection:
        ask(narrow, connection, 3)
        monkeypatch.setattr(core_of(narrow).unfinished, "_connection_bytes_max", limits.DEFERRED_REQUEST_BYTES)
        pages = [connection.open("/version", method="GET", content_type="text/plain") for _ in range(2)]
        for page in pages:
            connection.give_window(page, 1_000)
        refused = connection.outcomes(pages[1:])[pages[1]]
        assert refused.blocks[0][":status"] == "429"
        assert kept_bytes(narrow) == limits.DEFERRED_REQUEST_BYTES


def test_a_stranger_is_told_so_at_once_and_nothing_is_kept(narrow: InProcessServer) -> None:
    auth = core_of(narrow).auth

    def begin() -> str:
        if not auth.enabled:
            auth.add_user("root", b"", no_password=True)
            auth.grant_role("root", "root")
            auth.enable()
        tokens = core_of(narrow).tokens
        assert isinstance(tokens, SimpleTokens)
        return tokens.issue("root", auth.revision)

    token = narrow.call(begin)
    try:
        with RawH2(narrow.address, window=0) as connection:
            [connection.open(RANGE, GET, token=token) for _ in range(4)]
            read(connection)
            assert kept_bytes(narrow) == KEPT_BYTES
            nobody = connection.open(RANGE, GET)
            assert connection.outcomes([nobody])[nobody].status[1] == errors.USER_EMPTY.message
            thief = connection.open(RANGE, GET, token="nobodys")
            assert connection.outcomes([thief])[thief].status[1] == errors.INVALID_AUTH_TOKEN.message
            stranger = connection.open("/v3/kv/range", b'{"key":"aw=="}', content_type="application/json")
            connection.give_window(stranger, 1_000)
            body = connection.outcomes([stranger])[stranger].data
            assert json.loads(body)["message"] == errors.USER_EMPTY.message
            assert kept_bytes(narrow) == KEPT_BYTES
            # A login needs no token, so it waits like the requests of those who have one.
            connection.open(AUTHENTICATE, framed(rpc.AuthenticateRequest(name="root", password="x")))
            read(connection)
            assert kept_bytes(narrow) > KEPT_BYTES + limits.DEFERRED_REQUEST_BYTES
    finally:
        narrow.call(auth.disable)
