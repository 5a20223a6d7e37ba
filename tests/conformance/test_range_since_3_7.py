# SPDX-License-Identifier: Apache-2.0
"""Ranges of keys only since etcd 3.7, beside etcd 3.5, 3.6 and Lessor. RangeStream: test_range_stream.py."""

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.subject import Subject, end_of


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
