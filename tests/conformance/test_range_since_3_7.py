# SPDX-License-Identifier: Apache-2.0
"""Reading keys since etcd 3.7, beside etcd 3.5, 3.6 and Lessor: the call RangeStream, and ranges of keys only."""

from typing import Any

import grpc

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import CALL_S_MAX, Failure
from tests.conformance.subject import Subject, end_of


def range_stream(subject: Subject, request: rpc.RangeRequest) -> list[rpc.RangeResponse] | Failure:
    """The replies of RangeStream. Each has a RangeResponse in field 1, and nothing else, as a ResponseOp may have."""
    call: Any = subject.channel.unary_stream(
        "/etcdserverpb.KV/RangeStream",
        request_serializer=rpc.RangeRequest.SerializeToString,
        response_deserializer=rpc.ResponseOp.FromString,
    )
    try:
        return [reply.response_range for reply in call(request, timeout=CALL_S_MAX)]
    except grpc.RpcError as error:
        status: Any = error
        return Failure(status.code().value[0], status.details())


def test_range_stream(subject: Subject, prefix: bytes) -> None:
    """3.7 answers a range in one stream; before there is no such call."""
    for number in range(3):
        subject.put(prefix + b"%d" % number, b"v")
    request = rpc.RangeRequest(key=prefix, range_end=end_of(prefix))
    replies = range_stream(subject, request)
    if not subject.like(3, 7):
        assert replies == Failure(12, "unknown method RangeStream for service etcdserverpb.KV")
        return
    assert not isinstance(replies, Failure)
    wanted = subject.do(request)
    assert [kv for reply in replies for kv in reply.kvs] == list(wanted.kvs)
    assert (replies[-1].header, replies[-1].count) == (wanted.header, 3)
    ordered = rpc.RangeRequest(key=prefix, range_end=end_of(prefix), sort_order=rpc.RangeRequest.DESCEND)
    assert range_stream(subject, ordered) == Failure(12, "RangeStream does not support custom sort orders")
    bounded = rpc.RangeRequest(key=prefix, range_end=end_of(prefix), min_mod_revision=3)
    assert range_stream(subject, bounded) == Failure(12, "RangeStream does not support revision filters")


def test_a_range_of_keys_only_and_leases(subject: Subject, prefix: bytes) -> None:
    """3.7 looks at nothing but its index then, which has no leases, unless it sorts by value."""
    lease_id = subject.grant()
    revision = subject.put(prefix, b"v", lease=lease_id)
    asked = rpc.RangeRequest(key=prefix, keys_only=True)
    sorted_ = rpc.RangeRequest(
        key=prefix, range_end=end_of(prefix), keys_only=True,
        sort_target=rpc.RangeRequest.VALUE, sort_order=rpc.RangeRequest.DESCEND,
    )  # fmt: skip
    in_txn = rpc.TxnRequest(success=[rpc.RequestOp(request_range=asked)])
    (kv,) = subject.do(asked).kvs
    assert (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) == (prefix, b"", revision, revision, 1)
    assert kv.lease == (0 if subject.like(3, 7) else lease_id)
    assert list(subject.do(in_txn).responses[0].response_range.kvs) == [kv]
    assert [(each.key, each.value, each.lease) for each in subject.do(sorted_).kvs] == [(prefix, b"", lease_id)]
