# SPDX-License-Identifier: Apache-2.0
"""RangeStream, which etcd has since 3.7: chunks that joined are the reply of Range, and the errors of both calls."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.auth_peer import DENIED, NOBODY, READ, WRITE, As
from tests.conformance.grpc_peer import CALL_S_MAX, Failure
from tests.conformance.subject import Subject, end_of

Chunks = list[rpc.RangeResponse]


def has_it(subject: Subject) -> bool:
    """Lessor has it whichever etcd it answers as in other things."""
    return subject.is_lessor or subject.like(3, 7)


@pytest.fixture
def streaming(subject: Subject) -> Subject:
    if not has_it(subject):
        pytest.skip("an etcd of before RangeStream")
    return subject


@pytest.fixture
def streaming_root(root: As) -> As:
    if not has_it(root.subject):
        pytest.skip("an etcd of before RangeStream")
    return root


def begin(subject: Subject, request: rpc.RangeRequest, who: As | None = None) -> Any:
    """The grpcio call, which yields a RangeStreamResponse for each chunk."""
    stub = subject.channel.unary_stream(
        "/etcdserverpb.KV/RangeStream",
        request_serializer=rpc.RangeRequest.SerializeToString,
        response_deserializer=rpc.RangeStreamResponse.FromString,
    )
    return stub(request, timeout=CALL_S_MAX, metadata=[] if who is None else who.metadata)


def ended_with(error: grpc.RpcError) -> Failure:
    status: Any = error
    return Failure(status.code().value[0], status.details())


def range_stream(subject: Subject, request: rpc.RangeRequest, who: As | None = None) -> Chunks | Failure:
    try:
        return [reply.range_response for reply in begin(subject, request, who)]
    except grpc.RpcError as error:
        return ended_with(error)


def joined(chunks: Chunks | Failure) -> rpc.RangeResponse:
    assert not isinstance(chunks, Failure), chunks
    reply = rpc.RangeResponse()
    for chunk in chunks:
        reply.MergeFrom(chunk)
    return reply


def test_before_3_7_there_is_no_such_call(subject: Subject) -> None:
    if has_it(subject):
        pytest.skip("it has the call")
    wanted = Failure(12, "unknown method RangeStream for service etcdserverpb.KV")
    assert range_stream(subject, rpc.RangeRequest(key=b"k")) == wanted


def filled(subject: Subject, prefix: bytes) -> int:
    """Writes 60 keys, then others of them and deletes some; returns the revision in between."""
    for number in range(60):
        subject.put(prefix + b"%02d" % number, b"v" * number)
    between = subject.revision
    for number in range(0, 60, 7):
        subject.put(prefix + b"%02d" % number, b"other")
    for number in range(5, 60, 9):
        subject.delete(prefix + b"%02d" % number)
    return between


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"serializable": True},
        {"limit": 1},
        {"limit": 37},
        {"limit": 53},
        {"limit": 54},
        {"limit": 1_000},
        {"limit": -1},
        {"limit": (1 << 63) - 1},
        {"revision": 0},
        {"revision": 0, "limit": 37},
        {"revision": 0, "limit": 60},
        {"keys_only": True},
        {"count_only": True},
        {"count_only": True, "limit": 5},
        {"count_only": True, "revision": 0},
        {"sort_order": rpc.RangeRequest.ASCEND},
        {"sort_order": rpc.RangeRequest.ASCEND, "limit": 20},
        {"count_only": True, "sort_target": rpc.RangeRequest.VALUE},
        {"revision": -1},
    ],
    ids=repr,
)
def test_the_chunks_joined_are_the_reply_of_range(streaming: Subject, prefix: bytes, options: dict[str, Any]) -> None:
    """A revision of 0 stands for the one in between."""
    between = filled(streaming, prefix)
    if options.get("revision") == 0:
        options = {**options, "revision": between}
    request = rpc.RangeRequest(key=prefix, range_end=end_of(prefix), **options)
    chunks = range_stream(streaming, request)
    assert joined(chunks) == streaming.do(request)
    assert not isinstance(chunks, Failure)
    for chunk in chunks[:-1]:
        assert chunk.kvs
        assert (chunk.HasField("header"), chunk.more, chunk.count) == (False, False, 0)
    if len(chunks) > 1:
        assert chunks[-1].kvs


@pytest.mark.parametrize("key", [b"05", b"07", b"none"])
@pytest.mark.parametrize("options", [{}, {"keys_only": True}, {"count_only": True}, {"limit": 1}, {"revision": 0}])
def test_one_key_is_one_chunk(streaming: Subject, prefix: bytes, key: bytes, options: dict[str, Any]) -> None:
    between = filled(streaming, prefix)
    if "revision" in options:
        options = {"revision": between}
    request = rpc.RangeRequest(key=prefix + key, **options)
    assert range_stream(streaming, request) == [streaming.do(request)]


@pytest.mark.parametrize("end", [b"0", b"00", b"04"])
def test_a_range_of_few_keys_or_none_is_one_chunk(streaming: Subject, prefix: bytes, end: bytes) -> None:
    filled(streaming, prefix)
    request = rpc.RangeRequest(key=prefix + b"00", range_end=prefix + end)
    assert range_stream(streaming, request) == [streaming.do(request)]


def test_a_sort_target_without_an_order_sorts_few_keys(streaming: Subject, prefix: bytes) -> None:
    """Up to ten: beyond that etcd sorts chunk by chunk, and leaves keys out or sends them twice. Lessor does not."""
    filled(streaming, prefix)
    for end in [b"09"] if not streaming.is_lessor else [b"09", b"99"]:
        request = rpc.RangeRequest(key=prefix, range_end=prefix + end, sort_target=rpc.RangeRequest.VALUE)
        assert range_stream(streaming, request) == [streaming.do(request)]


NO_ORDER = Failure(12, "RangeStream does not support custom sort orders")
NO_BOUND = Failure(12, "RangeStream does not support revision filters")
NO_KEY = Failure(3, "etcdserver: key is not provided")
NO_SUCH_ORDER = Failure(3, "etcdserver: invalid sort option")
REFUSED: list[tuple[dict[str, Any], Failure]] = [
    ({"key": b""}, NO_KEY),
    ({"key": b"", "sort_order": 7, "min_mod_revision": 1}, NO_KEY),
    ({"sort_order": 7}, NO_SUCH_ORDER),
    ({"sort_target": -1}, NO_SUCH_ORDER),
    ({"sort_target": 5, "max_mod_revision": 1}, NO_SUCH_ORDER),
    ({"sort_order": 2}, NO_ORDER),
    ({"sort_order": 2, "sort_target": 3, "min_mod_revision": 1}, NO_ORDER),
    ({"sort_order": 1, "sort_target": 1}, NO_ORDER),
    ({"sort_order": 1, "sort_target": 4, "count_only": True}, NO_ORDER),
    ({"min_mod_revision": 1}, NO_BOUND),
    ({"max_mod_revision": 1}, NO_BOUND),
    ({"min_create_revision": -1}, NO_BOUND),
    ({"max_create_revision": 1, "revision": 1 << 40}, NO_BOUND),
    ({"revision": 1 << 40}, Failure(11, "etcdserver: mvcc: required revision is a future revision")),
    (
        {"revision": 1 << 40, "count_only": True},
        Failure(11, "etcdserver: mvcc: required revision is a future revision"),
    ),
]


@pytest.mark.parametrize(("options", "wanted"), REFUSED, ids=repr)
def test_what_is_refused(streaming: Subject, prefix: bytes, options: dict[str, Any], wanted: Failure) -> None:
    streaming.put(prefix)
    request = rpc.RangeRequest(**{"key": prefix, "range_end": end_of(prefix), **options})
    assert range_stream(streaming, request) == wanted


def test_a_compacted_revision_is_refused(streaming: Subject, prefix: bytes) -> None:
    old = streaming.put(prefix)
    kept = streaming.put(prefix, b"v")
    streaming.compact(kept)
    wanted = Failure(11, "etcdserver: mvcc: required revision has been compacted")
    assert range_stream(streaming, rpc.RangeRequest(key=prefix, revision=old)) == wanted
    assert joined(range_stream(streaming, rpc.RangeRequest(key=prefix, revision=kept))).kvs[0].value == b"v"


def large(subject: Subject, prefix: bytes) -> rpc.RangeRequest:
    """Writes more than any window: 20 MB. Returns the request for it."""
    for number in range(40):
        subject.put(prefix + b"%02d" % number, bytes(500_000))
    return rpc.RangeRequest(key=prefix, range_end=end_of(prefix))


def test_all_chunks_show_the_revision_of_the_first(streaming: Subject, prefix: bytes) -> None:
    request = large(streaming, prefix)
    wanted = streaming.do(request)
    replies: Iterator[Any] = begin(streaming, request)
    chunks = [next(replies).range_response]
    streaming.put(prefix + b"39", b"later")
    streaming.put(prefix + b"39more", b"later")
    streaming.delete(prefix + b"38")
    chunks += [reply.range_response for reply in replies]
    assert joined(chunks) == wanted


def test_a_stream_ends_when_its_revision_is_compacted_under_way(streaming: Subject, prefix: bytes) -> None:
    replies: Iterator[Any] = begin(streaming, large(streaming, prefix))
    next(replies)
    streaming.compact(streaming.put(prefix))
    with pytest.raises(grpc.RpcError) as ended:
        list(replies)
    assert ended_with(ended.value) == Failure(11, "etcdserver: mvcc: required revision has been compacted")


def test_a_stream_can_be_cancelled_under_way(streaming: Subject, prefix: bytes) -> None:
    request = large(streaming, prefix)
    replies = begin(streaming, request)
    next(replies)
    replies.cancel()
    with pytest.raises(grpc.RpcError):
        list(replies)
    assert joined(range_stream(streaming, request)).count == 40


def test_there_is_no_route_for_it(streaming: Subject) -> None:
    for path in ("rangestream", "range_stream", "range/stream"):
        assert streaming.post(f"/v3/kv/{path}", {"key": "aw=="}).status == 404


def test_it_needs_the_rights_of_range(streaming_root: As, prefix: bytes) -> None:
    root, subject = streaming_root, streaming_root.subject
    root.do(rpc.PutRequest(key=prefix, value=b"v"))
    reader = root.user_with((READ, prefix, end_of(prefix)))
    writer = root.user_with((WRITE, prefix, end_of(prefix)))
    request = rpc.RangeRequest(key=prefix, range_end=end_of(prefix))
    for who in (root, reader):
        assert joined(range_stream(subject, request, who)) == who.do(request)
    for old in (False, True):
        request.serializable = old
        assert range_stream(subject, request, writer) == DENIED
        assert range_stream(subject, request) == NOBODY
        assert range_stream(subject, rpc.RangeRequest(key=b"\0", range_end=b"\0", serializable=old), reader) == DENIED
    # What is wrong by itself is found before that.
    assert range_stream(subject, rpc.RangeRequest(key=prefix, sort_order=rpc.RangeRequest.DESCEND), writer) == NO_ORDER
    assert range_stream(subject, rpc.RangeRequest(), writer) == NO_KEY
    assert range_stream(subject, rpc.RangeRequest(key=prefix, revision=1 << 40), writer) == DENIED
