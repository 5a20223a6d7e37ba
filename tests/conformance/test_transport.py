# SPDX-License-Identifier: Apache-2.0
"""gRPC and HTTP/2 as etcd speaks them: paths, deadlines, compression, many streams, windows, and the end of a server.

What a peer does wrong costs it its stream; the tests see that the next call, on the same connection, is served.
"""

import gzip
import re
import socket
import struct
import time
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from lessor.api.proto import health_pb2
from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.raw_h2 import DATA, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, RawH2, framed
from tests.conformance.subject import OURS, RUNNERS, Subject, end_of, new_lease_id, running
from tests.conformance.watch_peer import WatchPeer
from tests.metrics_page import fresh

LEASE = "/etcdserverpb.Lease/"
WATCH = "/etcdserverpb.Watch/Watch"
GRANT = rpc.LeaseGrantRequest(TTL=60)
KEEPALIVE = rpc.LeaseKeepAliveRequest(ID=0x7E57)
SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"
OBSERVE = "/v3electionpb.Election/Observe"
HALF = framed(GRANT)[:-1]
NO_REQUEST = (13, "cardinality violation: received no request message from non-client-streaming RPC")
SEVERAL = (13, "cardinality violation: received multiple request messages for non-client-streaming RPC")


@pytest.fixture
def raw(subject: Subject) -> Any:
    with RawH2(subject.server.address) as connection:
        yield connection


def watch_of(key: bytes, **options: Any) -> rpc.WatchRequest:
    return rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, **options))


def watcher_count(subject: Subject) -> int:
    text = fresh(lambda: subject.request("GET", "/metrics").body.decode())
    found = re.search(r"^etcd_debugging_mvcc_watcher_total (\S+)$", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def wait_for_watchers(subject: Subject, count: int) -> None:
    """Returns once the server counts that many watchers: it learns of a cancel when its packet comes."""
    give_up_s = time.monotonic() + 10
    while watcher_count(subject) != count:
        assert time.monotonic() < give_up_s, f"{watcher_count(subject)} watchers left instead of {count}"
        time.sleep(0.005)


# --- what can be called -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etcdserverpb.KV/Nope", "unknown method Nope for service etcdserverpb.KV"),
        ("/etcdserverpb.KV/put", "unknown method put for service etcdserverpb.KV"),
        ("/etcdserverpb.KV/", "unknown method  for service etcdserverpb.KV"),
        ("/etcdserverpb.Nope/Put", "unknown service etcdserverpb.Nope"),
        ("/KV/Put", "unknown service KV"),
        ("/a/b/c", "unknown service a/b"),
        (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "unknown service grpc.reflection.v1alpha.ServerReflection",
        ),
    ],
)
def test_what_does_not_exist_is_unimplemented(raw: RawH2, path: str, text: str) -> None:
    assert raw.call(path, framed(GRANT)).status == (12, text)
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status == (0, "")


@pytest.mark.parametrize("path", ["/nope", "/"])
def test_a_path_without_a_method_is_malformed(subject: Subject, raw: RawH2, path: str) -> None:
    code = 12 if subject.like(3, 6) else 8  # 3.5 took it for an exhausted resource
    assert raw.call(path, framed(GRANT)).status == (code, f'malformed method name: "{path}"')


def test_an_unknown_streaming_method_is_unimplemented(subject: Subject) -> None:
    with grpc.insecure_channel(subject.server.address) as channel:
        replies = channel.stream_stream("/etcdserverpb.Lease/Nope")(iter([b""]), timeout=10)
        with pytest.raises(grpc.RpcError) as raised:
            next(replies)
    error: Any = raised.value
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto"])
def test_content_types_of_grpc(raw: RawH2, kind: str) -> None:
    outcome = raw.call(LEASE + "LeaseGrant", framed(GRANT), content_type=kind)
    assert outcome.status == (0, "")
    assert outcome.blocks[0]["content-type"].startswith("application/grpc")


def test_only_post_is_grpc(subject: Subject, raw: RawH2) -> None:
    lease_id = new_lease_id()
    body = framed(rpc.LeaseGrantRequest(ID=lease_id, TTL=60))
    outcome = raw.outcomes([stream := raw.open(LEASE + "LeaseGrant", body, method="GET")])[stream]
    if subject.like(3, 6):  # 3.5 only resets the stream
        assert outcome.status == (13, 'Received a HEADERS frame with :method "GET" which should be POST')
    assert not subject.alive(lease_id)


def test_health(subject: Subject) -> None:
    check = subject.stub("grpc.health.v1.Health/Check")
    assert check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    error: Any = raised.value
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "unknown service")


def test_health_can_be_watched(subject: Subject) -> None:
    replies = subject.stub("grpc.health.v1.Health/Watch")(iter([health_pb2.HealthCheckRequest()]), timeout=10)
    assert next(replies).status == health_pb2.HealthCheckResponse.SERVING
    replies.cancel()


# --- a reply's shape --------------------------------------------------------------------------------------------------


def test_a_reply_is_headers_data_trailers(raw: RawH2) -> None:
    outcome = raw.call(LEASE + "LeaseGrant", framed(GRANT))
    headers, trailers = outcome.blocks
    assert (headers[":status"], headers["content-type"]) == ("200", "application/grpc")
    assert trailers["grpc-status"] == "0"
    assert outcome.data[0] == 0
    assert rpc.LeaseGrantResponse.FromString(outcome.data[5:]).TTL == 60


def test_an_error_is_trailers_only(raw: RawH2) -> None:
    outcome = raw.call(LEASE + "LeaseRevoke", framed(rpc.LeaseRevokeRequest(ID=0x7E57)))
    (block,) = outcome.blocks
    assert (block[":status"], block["content-type"], outcome.data) == ("200", "application/grpc", b"")
    assert outcome.status == (5, "etcdserver: requested lease not found")


@pytest.mark.parametrize("garbage", [b"\xff\xff", b"\x08"])
def test_malformed_protobuf_costs_its_call(raw: RawH2, garbage: bytes) -> None:
    code, text = raw.call(LEASE + "LeaseGrant", framed(garbage)).status
    assert (code, text[:35]) == (13, "grpc: error unmarshalling request: ")
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status[0] == 0


@pytest.mark.parametrize("path", [WATCH, LEASE + "LeaseKeepAlive", OBSERVE, SNAPSHOT])
def test_malformed_protobuf_in_a_stream_costs_its_call(subject: Subject, raw: RawH2, path: str) -> None:
    stream = raw.open(path, framed(b"\xff\xff"), end=False)
    code, text = raw.outcomes([stream])[stream].status
    if subject.like(3, 6) or path in (OBSERVE, SNAPSHOT):
        assert (code, text[:46]) == (13, "grpc: failed to unmarshal the received message")
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status[0] == 0


@pytest.mark.parametrize("bad", [framed(b"\xff\xff"), framed(b"", flag=2)], ids=["no protobuf", "no frame"])
def test_a_malformed_request_of_a_stream_ends_it_after_the_replies_before(
    subject: Subject, raw: RawH2, bad: bytes
) -> None:
    lease_id = subject.grant(100)
    request = framed(rpc.LeaseKeepAliveRequest(ID=lease_id))
    outcome = raw.call(LEASE + "LeaseKeepAlive", request + request + bad + request)
    assert outcome.status[0] == 13
    size = len(outcome.data) // 2
    assert rpc.LeaseKeepAliveResponse.FromString(outcome.data[5:size]).TTL == 100
    assert outcome.data[:size] == outcome.data[size:]


@pytest.mark.parametrize("request_", [KEEPALIVE, watch_of(b"k")], ids=["keepalive", "watch"])
def test_a_message_too_large_ends_its_stream(subject: Subject, request_: Message) -> None:
    name = "etcdserverpb.Watch/Watch" if isinstance(request_, rpc.WatchRequest) else "etcdserverpb.Lease/LeaseKeepAlive"
    large: Message = watch_of(b"k" * 2_097_152)
    with grpc.insecure_channel(subject.server.address) as channel:
        stub = channel.stream_stream("/" + name, request_serializer=lambda message: message.SerializeToString())
        replies = stub(iter([large]), timeout=10)
        with pytest.raises(grpc.RpcError) as raised:
            next(replies)
    error: Any = raised.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == f"grpc: received message larger than max ({large.ByteSize()} vs. 2097152)"


def status_of(raw: RawH2, path: str, body: bytes) -> tuple[int, str]:
    """Of a call whose end comes in an empty frame: etcd never sees one that comes with the head."""
    stream = raw.open(path, body, end=False)
    raw.send(DATA, END_STREAM, stream)
    return raw.outcomes([stream])[stream].status


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (LEASE + "LeaseGrant", b"", (2, "EOF")),
        (LEASE + "LeaseGrant", HALF[:4], (2, "EOF")),
        (LEASE + "LeaseGrant", HALF[:5], (2, "unexpected EOF")),
        (LEASE + "LeaseGrant", HALF, (2, "unexpected EOF")),
        (LEASE + "LeaseKeepAlive", b"", (0, "")),
        (LEASE + "LeaseKeepAlive", HALF[:4], (0, "")),
        (LEASE + "LeaseKeepAlive", HALF, (13, "unexpected EOF")),
        (WATCH, HALF, (13, "unexpected EOF")),
        (SNAPSHOT, HALF, (13, "unexpected EOF")),
        (SNAPSHOT, framed(b"") + HALF, (13, "unexpected EOF")),
        (SNAPSHOT, HALF[:4], NO_REQUEST),
        (SNAPSHOT, b"", NO_REQUEST),
        (OBSERVE, b"", NO_REQUEST),
        ("/grpc.health.v1.Health/Watch", b"", NO_REQUEST),
        (OBSERVE, framed(b"") * 2, SEVERAL),
        (SNAPSHOT, framed(b"") * 2, SEVERAL),
    ],
)
def test_a_body_that_is_not_as_many_messages_as_the_call_takes(
    subject: Subject, raw: RawH2, path: str, body: bytes, status: tuple[int, str]
) -> None:
    if not subject.like(3, 6):
        pytest.skip("grpc-go did not look at most of this then")
    assert status_of(raw, path, body) == status
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status == (0, "")


@pytest.mark.parametrize("more", [b"", framed(GRANT), HALF, framed(b"\xff"), framed(b"", flag=2)])
@pytest.mark.parametrize("end", [True, False])
def test_a_unary_call_is_served_when_its_first_message_is_whole(
    subject: Subject, raw: RawH2, more: bytes, end: bool
) -> None:
    lease_id = new_lease_id()
    body = framed(rpc.LeaseGrantRequest(ID=lease_id, TTL=60))
    stream = raw.open(LEASE + "LeaseGrant", body + more, end=end)
    assert raw.outcomes([stream])[stream].status == (0, "")
    assert subject.alive(lease_id)
    assert raw.call(LEASE + "LeaseRevoke", framed(rpc.LeaseRevokeRequest(ID=lease_id))).status == (0, "")


def test_a_call_without_any_body_is_answered(subject: Subject, raw: RawH2) -> None:
    if not subject.is_lessor:
        pytest.skip("etcd waits for ever for a message when the head ends the stream")
    assert raw.call(LEASE + "LeaseGrant").status == (2, "EOF")
    assert raw.call(SNAPSHOT).status == NO_REQUEST


# --- compression ------------------------------------------------------------------------------------------------------


def test_gzip_is_accepted(subject: Subject, prefix: bytes) -> None:
    put = subject.stub("etcdserverpb.KV/Put")
    put(rpc.PutRequest(key=prefix, value=b"x" * 100_000), timeout=10, compression=grpc.Compression.Gzip)
    assert subject.get(prefix).value == b"x" * 100_000


def test_gzip_is_accepted_on_streams(subject: Subject) -> None:
    lease_id = subject.grant(100)
    stub = subject.stub("etcdserverpb.Lease/LeaseKeepAlive")
    requests = iter([rpc.LeaseKeepAliveRequest(ID=lease_id)] * 5)
    replies = list(stub(requests, timeout=10, compression=grpc.Compression.Gzip))
    assert [reply.TTL for reply in replies] == [100] * 5


def test_an_unknown_compression_is_unimplemented(raw: RawH2) -> None:
    outcome = raw.call(LEASE + "LeaseGrant", framed(GRANT), grpc_encoding="br")
    assert outcome.status == (12, 'grpc: Decompressor is not installed for grpc-encoding "br"')


def test_a_compressed_message_needs_its_encoding_named(raw: RawH2) -> None:
    outcome = raw.call(LEASE + "LeaseGrant", framed(gzip.compress(b""), flag=1))
    assert outcome.status == (13, "grpc: compressed flag set with identity or empty encoding")


@pytest.mark.slow
def test_a_compressed_message_is_measured_unpacked(subject: Subject, prefix: bytes) -> None:
    put = subject.stub("etcdserverpb.KV/Put")
    with pytest.raises(grpc.RpcError) as raised:
        put(rpc.PutRequest(key=prefix, value=b"x" * 12_000_000), timeout=10, compression=grpc.Compression.Gzip)
    error: Any = raised.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


# --- deadlines, cancelling --------------------------------------------------------------------------------------------


def test_a_deadline_that_has_passed(subject: Subject, raw: RawH2) -> None:
    code, text = raw.call(LEASE + "LeaseGrant", framed(GRANT), grpc_timeout="1n").status
    assert text == "context deadline exceeded"
    assert code == 4 or (code == 2 and not subject.like(3, 6))  # 3.5 does not always know its own error


def test_a_deadline_that_is_kept(raw: RawH2) -> None:
    for timeout in ("10S", "10000m", "1H", "99999999H"):
        assert raw.call(LEASE + "LeaseGrant", framed(GRANT), grpc_timeout=timeout).status[0] == 0


@pytest.mark.parametrize(
    ("timeout", "text"),
    [
        ("", 'transport: timeout string is too short: ""'),
        ("S", 'transport: timeout string is too short: "S"'),
        ("000000001S", 'transport: timeout string is too long: "000000001S"'),
        ("1x", 'transport: timeout unit is not recognized: "1x"'),
        ('"\\x', 'transport: timeout unit is not recognized: "\\"\\\\x"'),
        ("-1S", 'strconv.ParseUint: parsing "-1": invalid syntax'),
        ("1.5S", 'strconv.ParseUint: parsing "1.5": invalid syntax'),
    ],
)
@pytest.mark.parametrize("path", [LEASE + "LeaseGrant", WATCH])
def test_a_malformed_timeout_costs_its_call(subject: Subject, raw: RawH2, path: str, timeout: str, text: str) -> None:
    lease_id = new_lease_id()
    request: Message = rpc.LeaseGrantRequest(ID=lease_id, TTL=60) if path != WATCH else watch_of(b"k")
    outcome = raw.call(path, framed(request), grpc_timeout=timeout)
    if subject.like(3, 6):  # 3.5 only resets the stream
        assert outcome.status == (13, "malformed grpc-timeout: " + text)
    # The gRPC of 3.5 takes -1 for a number: that deadline has passed, and the call may have been carried out.
    assert not subject.alive(lease_id) or (timeout == "-1S" and not subject.like(3, 6))
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status[0] == 0


def test_a_deadline_of_no_time_has_passed(raw: RawH2) -> None:
    code, text = raw.call(LEASE + "LeaseGrant", framed(GRANT), grpc_timeout="0S").status
    assert (code in (2, 4), text) == (True, "context deadline exceeded")


def test_each_call_has_a_deadline_of_its_own(raw: RawH2) -> None:
    """Their heads differ in nothing else, and what a server remembers of one must not decide about the next."""
    for timeout, codes in (("20S", (0,)), ("0S", (2, 4)), ("19S", (0,)), ("0m", (2, 4)), ("18S", (0,))):
        code, _ = raw.call(LEASE + "LeaseGrant", framed(GRANT), grpc_timeout=timeout).status
        assert code in codes, timeout
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status[0] == 0


def test_each_stream_has_a_deadline_of_its_own(raw: RawH2) -> None:
    """As above. The long ones are still there when a short one that was begun later has ended."""
    body = framed(watch_of(b"k"))
    first = raw.open(WATCH, body, end=False, grpc_timeout="51m")
    raw.outcomes([first])
    long = [raw.open(WATCH, body, end=False, grpc_timeout=timeout) for timeout in ("20S", "19S")]
    short = raw.open(WATCH, body, end=False, grpc_timeout="52m")
    ended = set()
    while short not in ended:
        frame = raw.read()
        assert frame is not None
        if frame.ends:
            ended.add(frame.stream)
    assert not ended & set(long)


@pytest.mark.parametrize("path", [WATCH, LEASE + "LeaseKeepAlive"])
def test_the_deadline_of_a_stream_ends_it(subject: Subject, raw: RawH2, path: str) -> None:
    body = framed(watch_of(b"k") if path == WATCH else KEEPALIVE)
    before = watcher_count(subject)
    stream = raw.open(path, body, end=False, grpc_timeout="50m")
    outcome = raw.outcomes([stream])[stream]
    assert outcome.data
    # etcd 3.5 says 2 or 4, by the way its goroutines run; 3.6 may reset the stream instead.
    if subject.is_lessor:
        assert outcome.status == (4, "context deadline exceeded")
    wait_for_watchers(subject, before)


def test_a_client_sees_its_deadline(subject: Subject) -> None:
    stream = subject.conversation("etcdserverpb.Watch/Watch", timeout_s=0.05)
    stream.send(watch_of(b"k"))
    assert stream.read().created
    failure = stream.read()
    assert isinstance(failure, Failure)
    # Mostly it is the client's own clock that ends the call; etcd 3.5 may be first, and calls it unknown.
    assert failure.code == 4 or (failure.code == 2 and not subject.like(3, 6))
    stream.cancel()


def test_cancelling_a_call_removes_its_watchers(subject: Subject, prefix: bytes) -> None:
    before = watcher_count(subject)
    watch = WatchPeer(subject)
    with watch:
        for _ in range(5):
            watch.create(prefix)
        wait_for_watchers(subject, before + 5)
    wait_for_watchers(subject, before)


def test_cancelling_a_watcher_removes_it(subject: Subject, prefix: bytes) -> None:
    before = watcher_count(subject)
    with WatchPeer(subject) as watch:
        watch.create(prefix)
        watch.create(prefix)
        watch.cancel(1)
        assert watch.read().canceled
        wait_for_watchers(subject, before + 1)
    wait_for_watchers(subject, before)


def test_a_lost_connection_removes_its_watchers(subject: Subject, prefix: bytes) -> None:
    before = watcher_count(subject)
    with RawH2(subject.server.address) as connection:
        connection.open(WATCH, framed(watch_of(prefix)) * 3, end=False)
        wait_for_watchers(subject, before + 3)
    wait_for_watchers(subject, before)


def test_a_dropped_http_watch_removes_its_watcher(subject: Subject, prefix: bytes) -> None:
    before = watcher_count(subject)
    with subject.http_stream("/v3/watch", '{"create_request":{"key":"Zm9v"}}') as stream:
        assert stream.readline()
        wait_for_watchers(subject, before + 1)
    # What makes the server look: etcd may notice only when it writes.
    subject.put(b"foo")
    wait_for_watchers(subject, before)


# --- one connection ---------------------------------------------------------------------------------------------------


def test_many_streams_share_a_connection(raw: RawH2, subject: Subject) -> None:
    lease_id = subject.grant(100)
    body = framed(rpc.LeaseKeepAliveRequest(ID=lease_id))
    streams = [raw.open(LEASE + "LeaseKeepAlive", body, end=False) for _ in range(200)]
    assert raw.call(LEASE + "LeaseGrant", framed(GRANT)).status[0] == 0
    for stream in reversed(streams):
        raw.send(DATA, 1, stream, body)
    outcomes = raw.outcomes(streams)
    assert {outcome.status for outcome in outcomes.values()} <= {(0, "")}
    assert len(outcomes) == 200


def test_calls_of_many_clients(subject: Subject, prefix: bytes) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(RawH2(subject.server.address)) for _ in range(50)]
        puts = [framed(rpc.PutRequest(key=prefix + b"%d" % number)) for number in range(50)]
        path = "/etcdserverpb.KV/Put"
        streams = [connection.open(path, body) for connection, body in zip(connections, puts, strict=True)]
        for connection, stream in zip(connections, streams, strict=True):
            assert connection.outcomes([stream])[stream].status[0] == 0
    assert subject.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix), count_only=True)).count == 50


def test_a_reset_stream_leaves_the_others(raw: RawH2) -> None:
    doomed = raw.open(WATCH, framed(watch_of(b"k")), end=False)
    kept = raw.open(LEASE + "LeaseKeepAlive", framed(KEEPALIVE), end=False)
    raw.send(RST_STREAM, 0, doomed, struct.pack(">I", 8))
    raw.send(DATA, 1, kept, framed(KEEPALIVE))
    assert raw.outcomes([kept])[kept].status[0] == 0


def test_pings_are_answered(raw: RawH2) -> None:
    raw.open(WATCH, framed(watch_of(b"k")), end=False)
    raw.send(PING, 0, 0, b"12345678")
    while (frame := raw.read()) is not None and (frame.kind != PING or not frame.flags):
        assert frame.kind in (SETTINGS, HEADERS, DATA, PING, 8)
    assert frame is not None
    assert frame.payload == b"12345678"


@pytest.mark.parametrize("with_stream", [True, False])
def test_the_fourth_ping_in_a_row_is_answered_and_ends_the_connection(raw: RawH2, with_stream: bool) -> None:
    if with_stream:
        raw.outcomes([raw.open(LEASE + "LeaseGrant", framed(rpc.LeaseGrantRequest(TTL=-1)))])
        raw.open(WATCH, framed(b""), end=False)
    for _ in range(4):
        raw.send(PING, 0, 0, b"12345678")
    answers = []
    while (frame := raw.read()) is not None and frame.kind != GOAWAY:
        answers += [frame.payload] if frame.kind == PING and frame.flags else []
    assert answers == [b"12345678"] * 4
    assert frame is not None
    assert frame.payload[4:] == struct.pack(">I", 11) + b"too_many_pings"


def test_a_peer_without_window_waits_and_the_others_go_on(subject: Subject, prefix: bytes) -> None:
    subject.put(prefix, b"x" * 50_000)
    with RawH2(subject.server.address, window=1_000) as connection:
        path, body = "/etcdserverpb.KV/Range", framed(rpc.RangeRequest(key=prefix))
        stuck = connection.open(path, body)
        taken = 0
        while taken < 1_000:
            frame = connection.read()
            assert frame is not None
            taken += len(frame.payload) if frame.kind == DATA else 0
        assert taken == 1_000
        # A short reply on another stream has a window of its own.
        assert connection.call(LEASE + "LeaseGrant", framed(GRANT)).status[0] == 0
        connection.give_window(stuck, 100_000)
        assert len(connection.outcomes([stuck])[stuck].data) > 49_000


def test_what_is_no_protocol_is_cut_off(subject: Subject) -> None:
    host, _, port = subject.server.address.partition(":")
    # A reset is a way to be cut off, too.
    with (
        suppress(ConnectionResetError, BrokenPipeError),
        socket.create_connection((host, int(port)), timeout=10) as nonsense,
    ):
        nonsense.sendall(b"NONSENSE\r\n\0\r\n\r\n" * 10)
        while nonsense.recv(65_536):
            pass
    with suppress(ConnectionResetError, BrokenPipeError), RawH2(subject.server.address) as connection:
        # A frame beyond any size that was agreed on.
        connection.send(HEADERS, 4, 1, b"\0" * 100_000)
        while (frame := connection.read()) is not None and frame.kind != GOAWAY:
            pass
    assert subject.grant()


# --- a watcher that does not read -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_watcher_that_lags_behind_compaction_is_told(subject: Subject, prefix: bytes) -> None:
    """Each event once and in order as long as there is history, then a cancel that names the compact revision."""
    if not subject.is_lessor:
        pytest.skip("etcd keeps as much as it likes for a slow watcher, so there is no saying when it lags")
    count, value = 12, b"x" * 1_000_000
    with RawH2(subject.server.address, window=2**31 - 1) as connection:
        stream = connection.open(WATCH, framed(watch_of(prefix)), end=False)
        wait_for_created(connection)
        # The window of the connection stays at 64 KiB, so all this waits in the server, but not without bound.
        revisions = [subject.put(prefix, value) for _ in range(count)]
        subject.compact(revisions[-1])
        connection.give_window(0, 100_000_000)
        responses = read_watch(connection, stream)
    *before, last = responses
    seen = [event.kv.mod_revision for response in before for event in response.events]
    assert seen == revisions[: len(seen)]
    assert 0 < len(seen) < count
    assert (last.canceled, last.compact_revision, last.header.revision) == (True, revisions[-1], 0)
    subject.delete(prefix)


@pytest.mark.slow
def test_a_watcher_that_lags_catches_up(subject: Subject, prefix: bytes) -> None:
    count, value = 12, b"x" * 1_000_000
    with RawH2(subject.server.address, window=2**31 - 1) as connection:
        stream = connection.open(WATCH, framed(watch_of(prefix)), end=False)
        wait_for_created(connection)
        revisions = [subject.put(prefix, value) for _ in range(count)]
        connection.give_window(0, 100_000_000)
        connection.send(DATA, 0, stream, framed(watch_of(prefix, watch_id=7)))
        seen = []
        for response in iter_watch(connection, stream):
            seen += [event.kv.mod_revision for event in response.events if response.watch_id == 0]
            if seen[-1:] == revisions[-1:]:
                break
        assert seen == revisions
        # From here on it is live again.
        live = subject.put(prefix)
        for response in iter_watch(connection, stream):
            if response.events and response.watch_id == 0:
                assert [event.kv.mod_revision for event in response.events] == [live]
                break
    subject.delete(prefix)


def wait_for_created(connection: RawH2) -> None:
    while (frame := connection.read()) is not None and frame.kind != DATA:
        pass


def iter_watch(connection: RawH2, stream: int) -> Any:
    """The responses of a watch stream as they come."""
    data = b""
    while True:
        while len(data) < 5 or len(data) < 5 + int.from_bytes(data[1:5], "big"):
            frame = connection.read()
            assert frame is not None
            if frame.kind == DATA and frame.stream == stream:
                data += frame.payload
        size = 5 + int.from_bytes(data[1:5], "big")
        yield rpc.WatchResponse.FromString(data[5:size])
        data = data[size:]


def read_watch(connection: RawH2, stream: int) -> list[rpc.WatchResponse]:
    """Responses up to the first one that cancels."""
    responses = []
    for response in iter_watch(connection, stream):
        responses.append(response)
        if response.canceled:
            break
    return responses


# --- the end of a server ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNNERS)
def test_a_stopping_server_ends_streams_as_unavailable(kind: str) -> None:
    with running(kind) as subject, WatchPeer(subject) as watch:
        watch.create(b"k")
        keepalive = subject.keepalive()
        keepalive.send(KEEPALIVE)
        assert keepalive.read().ID == KEEPALIVE.ID
        subject.server.request_stop()
        failures = [watch.stream.read(), keepalive.read()]
        assert [failure.code for failure in failures] == [14, 14]
        if subject.is_lessor:  # etcd just hangs up, after as long as seven seconds
            assert {failure.text for failure in failures} == {"etcdserver: server stopped"}
            assert subject.server.wait() == 0
        keepalive.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("kind", OURS)
def test_a_stopping_server_ends_json_streams_with_an_error(kind: str) -> None:
    # etcd just hangs up.
    with running(kind) as subject, subject.http_stream("/v3/watch", '{"create_request":{}}') as stream:
        assert b'"created":true' in stream.readline()
        subject.server.request_stop()
        assert stream.readline() == b'{"error":{"code":14,"message":"etcdserver: server stopped"}}\n'
        assert stream.read() == b""


@pytest.mark.slow
@pytest.mark.parametrize("kind", OURS)
def test_a_stopping_server_keeps_what_it_acknowledged(kind: str, prefix: bytes) -> None:
    """Calls in hand get their reply or fail; after the restart all that got one is there, and what leases had left."""
    with running(kind) as subject:
        lease_id = subject.grant(1000, new_lease_id())
        put = subject.stub("etcdserverpb.KV/Put")
        calls = [put.future(rpc.PutRequest(key=prefix + b"%d" % number, lease=lease_id)) for number in range(500)]
        calls[0].result(10)
        subject.server.request_stop()
        acknowledged = {prefix + b"%d" % number for number, call in enumerate(calls) if call.exception(20) is None}
        assert subject.server.wait() == 0
        subject.server.start_again()
        with Subject(subject.server) as again:
            kept = {kv.key for kv in again.do(rpc.RangeRequest(key=prefix, range_end=end_of(prefix))).kvs}
            assert acknowledged
            assert acknowledged <= kept
            assert set(again.keys_of(lease_id)) == kept
            assert 980 <= again.do(rpc.LeaseTimeToLiveRequest(ID=lease_id)).TTL < 1000


def test_a_malformed_question_about_health_costs_its_stream_only(subject: Subject, raw: RawH2) -> None:
    assert raw.call("/grpc.health.v1.Health/Watch", b"\0\0\0\0\x01\x0a").status[0] in (13, 2)
    assert raw.call(LEASE + "LeaseGrant", framed(rpc.LeaseGrantRequest(ID=new_lease_id(), TTL=60))).status[0] == 0
