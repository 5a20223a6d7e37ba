# SPDX-License-Identifier: Apache-2.0
"""Every error of the KV and Lease services: code and text over gRPC, status and body over JSON. Nothing is changed.

Go clients recognise an error by its text, so it is compared to the letter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from tests.conformance.grpc_peer import Failure
from tests.conformance.subject import Subject

HTTP_STATUS = {3: 400, 5: 404, 8: 429, 9: 400, 11: 400}
PATHS: dict[type[Message], str] = {
    rpc.RangeRequest: "/v3/kv/range",
    rpc.PutRequest: "/v3/kv/put",
    rpc.DeleteRangeRequest: "/v3/kv/deleterange",
    rpc.TxnRequest: "/v3/kv/txn",
    rpc.CompactionRequest: "/v3/kv/compaction",
    rpc.LeaseGrantRequest: "/v3/lease/grant",
    rpc.LeaseRevokeRequest: "/v3/lease/revoke",
}
OPS_MAX = 128
TTL_S_MAX = 9_000_000_000

EMPTY_KEY = Failure(3, "etcdserver: key is not provided")
KEY_NOT_FOUND = Failure(3, "etcdserver: key not found")
VALUE_PROVIDED = Failure(3, "etcdserver: value is provided")
LEASE_PROVIDED = Failure(3, "etcdserver: lease is provided")
TOO_MANY_OPS = Failure(3, "etcdserver: too many operations in txn request")
DUPLICATE_KEY = Failure(3, "etcdserver: duplicate key given in txn request")
SORT_OPTION = Failure(3, "etcdserver: invalid sort option")
TOO_LARGE = Failure(3, "etcdserver: request is too large")
COMPACTED = Failure(11, "etcdserver: mvcc: required revision has been compacted")
FUTURE = Failure(11, "etcdserver: mvcc: required revision is a future revision")
TTL_TOO_LARGE = Failure(11, "etcdserver: too large lease TTL")
NO_SPACE = Failure(8, "etcdserver: mvcc: database space exceeded")
LEASE_NOT_FOUND = Failure(5, "etcdserver: requested lease not found")
LEASE_EXISTS = Failure(9, "etcdserver: lease already exists")

Make = Callable[[Subject, bytes], Message]


def put(key: bytes, value: bytes = b"", **options: Any) -> rpc.RequestOp:
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, **options))


def delete(key: bytes, range_end: bytes = b"") -> rpc.RequestOp:
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key, range_end=range_end))


def get(key: bytes, **options: Any) -> rpc.RequestOp:
    return rpc.RequestOp(request_range=rpc.RangeRequest(key=key, **options))


def txn(*success: rpc.RequestOp) -> rpc.TxnRequest:
    return rpc.TxnRequest(success=success)


def nested(*success: rpc.RequestOp) -> rpc.RequestOp:
    return rpc.RequestOp(request_txn=txn(*success))


def puts(prefix: bytes, count: int) -> list[rpc.RequestOp]:
    return [put(prefix + b"%d" % number) for number in range(count)]


def compacted(subject: Subject, prefix: bytes) -> int:
    """A revision that has just been compacted away; the one after it is the compacted revision."""
    revision = subject.put(prefix)
    subject.compact(subject.put(prefix))
    return revision


# What is asked, and how it fails. If a request has several faults, the one that is checked first is reported.
CASES: dict[str, tuple[Make, Failure]] = {
    "range without key": (lambda s, p: rpc.RangeRequest(), EMPTY_KEY),
    "range without key but with end": (lambda s, p: rpc.RangeRequest(range_end=b"z"), EMPTY_KEY),
    "put without key": (lambda s, p: rpc.PutRequest(value=b"v"), EMPTY_KEY),
    "delete without key": (lambda s, p: rpc.DeleteRangeRequest(), EMPTY_KEY),
    "txn: compare without key": (lambda s, p: rpc.TxnRequest(compare=[rpc.Compare()]), EMPTY_KEY),
    "txn: put without key": (lambda s, p: txn(put(b"")), EMPTY_KEY),
    "txn: range without key": (lambda s, p: txn(get(b"")), EMPTY_KEY),
    "txn: delete without key": (lambda s, p: txn(delete(b"")), EMPTY_KEY),
    "txn: put without key on the branch not taken": (lambda s, p: rpc.TxnRequest(failure=[put(b"")]), EMPTY_KEY),
    "txn: nested put without key": (lambda s, p: txn(nested(put(b""))), EMPTY_KEY),
    "txn: operation without content": (lambda s, p: txn(rpc.RequestOp()), KEY_NOT_FOUND),
    "put: ignore_value without the key": (lambda s, p: rpc.PutRequest(key=p, ignore_value=True), KEY_NOT_FOUND),
    "put: ignore_lease without the key": (lambda s, p: rpc.PutRequest(key=p, ignore_lease=True), KEY_NOT_FOUND),
    "txn: ignore_value without the key": (lambda s, p: txn(put(p, ignore_value=True)), KEY_NOT_FOUND),
    "txn: ignore_lease without the key": (lambda s, p: txn(put(p, ignore_lease=True)), KEY_NOT_FOUND),
    "put: ignore_value with value": (lambda s, p: rpc.PutRequest(key=p, value=b"v", ignore_value=True), VALUE_PROVIDED),
    "put: ignore_lease with lease": (lambda s, p: rpc.PutRequest(key=p, lease=7, ignore_lease=True), LEASE_PROVIDED),
    "txn: ignore_value with value": (lambda s, p: txn(put(p, b"v", ignore_value=True)), VALUE_PROVIDED),
    "txn: ignore_lease with lease": (lambda s, p: txn(put(p, lease=7, ignore_lease=True)), LEASE_PROVIDED),
    "put: value before lease": (
        lambda s, p: rpc.PutRequest(key=p, value=b"v", lease=7, ignore_value=True, ignore_lease=True),
        VALUE_PROVIDED,
    ),
    "put: key before value": (lambda s, p: rpc.PutRequest(value=b"v", ignore_value=True), EMPTY_KEY),
    "put: missing lease": (lambda s, p: rpc.PutRequest(key=p, lease=0x7E57), LEASE_NOT_FOUND),
    "put: missing lease before missing key": (
        lambda s, p: rpc.PutRequest(key=p, lease=0x7E57, ignore_value=True),
        LEASE_NOT_FOUND,
    ),
    "txn: missing lease": (lambda s, p: txn(put(p), put(p + b"2", lease=0x7E57)), LEASE_NOT_FOUND),
    "txn: missing key and missing lease": (
        lambda s, p: txn(put(p, lease=0x7E57, ignore_value=True)),
        KEY_NOT_FOUND,
    ),
    "txn: too many operations": (lambda s, p: txn(*puts(p, OPS_MAX + 1)), TOO_MANY_OPS),
    "txn: too many operations on the branch not taken": (
        lambda s, p: rpc.TxnRequest(failure=puts(p, OPS_MAX + 1)),
        TOO_MANY_OPS,
    ),
    "txn: too many compares": (
        lambda s, p: rpc.TxnRequest(compare=[rpc.Compare(key=p)] * (OPS_MAX + 1)),
        TOO_MANY_OPS,
    ),
    "txn: too many nested operations": (
        lambda s, p: txn(*puts(p, OPS_MAX - 2), nested(put(p + b"a"), put(p + b"b"))),
        TOO_MANY_OPS,
    ),
    "txn: too many operations before missing keys": (lambda s, p: txn(*[put(b"")] * (OPS_MAX + 1)), TOO_MANY_OPS),
    "txn: a key put twice": (lambda s, p: txn(put(p), put(p)), DUPLICATE_KEY),
    "txn: a key put and deleted": (lambda s, p: txn(put(p), delete(p)), DUPLICATE_KEY),
    "txn: a key put in a deleted range": (lambda s, p: txn(delete(p, p + b"\xff"), put(p + b"a")), DUPLICATE_KEY),
    "txn: a key put twice, once nested": (lambda s, p: txn(put(p), nested(put(p))), DUPLICATE_KEY),
    "txn: a key put in two nested txns": (lambda s, p: txn(nested(put(p)), nested(put(p))), DUPLICATE_KEY),
    "txn: a key put twice on the branch not taken": (
        lambda s, p: rpc.TxnRequest(failure=[put(p), put(p)]),
        DUPLICATE_KEY,
    ),
    "range at a compacted revision": (
        lambda s, p: rpc.RangeRequest(key=p, revision=compacted(s, p)),
        COMPACTED,
    ),
    "range at a future revision": (lambda s, p: rpc.RangeRequest(key=p, revision=s.revision + 1), FUTURE),
    "txn: range at a compacted revision": (lambda s, p: txn(get(p, revision=compacted(s, p))), COMPACTED),
    "txn: range at a negative revision": (lambda s, p: txn(get(p, revision=-(compacted(s, p) * 0 + 1))), COMPACTED),
    "txn: range at a future revision": (lambda s, p: txn(put(p), get(p, revision=s.revision + 5)), FUTURE),
    "compaction of what is compacted": (lambda s, p: rpc.CompactionRequest(revision=compacted(s, p) + 1), COMPACTED),
    "compaction of earlier": (lambda s, p: rpc.CompactionRequest(revision=compacted(s, p)), COMPACTED),
    "compaction at zero": (lambda s, p: rpc.CompactionRequest(revision=compacted(s, p) * 0), COMPACTED),
    "compaction at a negative revision": (lambda s, p: rpc.CompactionRequest(revision=-compacted(s, p)), COMPACTED),
    "compaction of the future": (lambda s, p: rpc.CompactionRequest(revision=s.revision + 1), FUTURE),
    "grant of an id in use": (lambda s, p: rpc.LeaseGrantRequest(ID=s.grant(), TTL=60), LEASE_EXISTS),
    "grant of a ttl too large": (lambda s, p: rpc.LeaseGrantRequest(TTL=TTL_S_MAX + 1), TTL_TOO_LARGE),
    "revoke of a missing lease": (lambda s, p: rpc.LeaseRevokeRequest(ID=0x7E57), LEASE_NOT_FOUND),
    "revoke of no lease": (lambda s, p: rpc.LeaseRevokeRequest(), LEASE_NOT_FOUND),
}
# Where etcd 3.7 checks in another order.
SINCE_3_7 = {"txn: missing key and missing lease": LEASE_NOT_FOUND}


def case_of(subject: Subject, prefix: bytes, case: str) -> tuple[Message, Failure]:
    """The request, and how it has to fail on this server."""
    make, wanted = CASES[case]
    return make(subject, prefix), SINCE_3_7.get(case, wanted) if subject.like(3, 7) else wanted


def state_of(subject: Subject) -> tuple[int, set[int]]:
    return subject.revision, {lease.ID for lease in subject.do(rpc.LeaseLeasesRequest()).leases}


def assert_unchanged(subject: Subject, before: tuple[int, set[int]]) -> None:
    """Short leases of other tests may have ended meanwhile; they have no keys."""
    revision, leases = state_of(subject)
    assert revision == before[0]
    assert leases <= before[1]


def as_json(subject: Subject, request: Message) -> tuple[int, Any]:
    """Sends a request by HTTP; returns status and body."""
    body = MessageToDict(request, preserving_proto_field_name=True)
    reply = subject.post(PATHS[type(request)], body)
    return reply.status, reply.json()


@pytest.mark.parametrize("case", CASES)
def test_over_grpc(subject: Subject, prefix: bytes, case: str) -> None:
    request, wanted = case_of(subject, prefix, case)
    before = state_of(subject)
    assert subject.call(request) == wanted
    assert_unchanged(subject, before)


@pytest.mark.parametrize("case", CASES)
def test_over_json(subject: Subject, prefix: bytes, case: str) -> None:
    request, wanted = case_of(subject, prefix, case)
    before = state_of(subject)
    status, body = as_json(subject, request)
    assert (status, body["code"], body["message"]) == (HTTP_STATUS[wanted.code], *wanted)
    # 3.5 calls it `error` too, 3.6 no more; Lessor has both for the clients of both.
    assert body.get("error") == (wanted.text if subject.is_lessor or not subject.like(3, 6) else None)
    assert_unchanged(subject, before)


@pytest.mark.parametrize("option", [{"sort_order": 3}, {"sort_target": 5}, {"sort_order": -1}])
def test_unknown_sort_options_are_refused(subject: Subject, prefix: bytes, option: dict[str, Any]) -> None:
    if not subject.like(3, 6):
        pytest.skip("3.5 sorts as it likes by an unknown order, and dies of an unknown target")
    assert subject.call(rpc.RangeRequest(key=prefix, **option)) == SORT_OPTION
    assert subject.call(txn(get(prefix, **option))) == SORT_OPTION


# --- what is just allowed ---------------------------------------------------------------------------------------------


def test_as_many_operations_as_allowed(subject: Subject, prefix: bytes) -> None:
    reply = subject.do(txn(*puts(prefix, OPS_MAX)))
    assert len(reply.responses) == OPS_MAX
    compares = [rpc.Compare(key=prefix, target=rpc.Compare.VERSION)] * OPS_MAX
    assert subject.do(rpc.TxnRequest(compare=compares)).succeeded


def test_nested_operations_have_what_the_outer_ones_leave(subject: Subject, prefix: bytes) -> None:
    subject.do(txn(*puts(prefix, OPS_MAX - 2), nested(put(prefix + b"a"))))
    assert subject.get(prefix + b"a") is not None


def test_both_branches_may_name_the_same_key(subject: Subject, prefix: bytes) -> None:
    assert subject.do(rpc.TxnRequest(success=[put(prefix)], failure=[put(prefix)])).succeeded
    inner = rpc.TxnRequest(success=[put(prefix)], failure=[put(prefix)])
    assert subject.do(txn(rpc.RequestOp(request_txn=inner))).succeeded


def test_deleted_ranges_may_overlap(subject: Subject, prefix: bytes) -> None:
    subject.put(prefix + b"a")
    reply = subject.do(txn(delete(prefix, prefix + b"z"), delete(prefix, prefix + b"b")))
    assert [response.response_delete_range.deleted for response in reply.responses] == [1, 0]


def test_compaction_at_the_current_revision(subject: Subject, prefix: bytes) -> None:
    revision = subject.put(prefix)
    subject.compact(revision)
    assert subject.do(rpc.RangeRequest(key=prefix, revision=revision)).count == 1


# --- no space ---------------------------------------------------------------------------------------------------------


@contextmanager
def out_of_space(subject: Subject) -> Iterator[None]:
    member = subject.do(rpc.RangeRequest(key=b"\0")).header.member_id
    alarm: dict[str, Any] = {"memberID": member, "alarm": rpc.NOSPACE}
    subject.do(rpc.AlarmRequest(action=rpc.AlarmRequest.ACTIVATE, **alarm))
    try:
        yield
    finally:
        subject.do(rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, **alarm))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: rpc.PutRequest(key=p),
        lambda p: rpc.LeaseGrantRequest(TTL=60),
        lambda p: txn(put(p)),
        lambda p: rpc.TxnRequest(failure=[put(p)]),
    ],
    ids=["put", "grant", "txn", "txn, other branch"],
)
def test_without_space_nothing_new_is_taken(subject: Subject, prefix: bytes, make: Callable[[bytes], Message]) -> None:
    with out_of_space(subject):
        request = make(prefix)
        before = state_of(subject)
        assert subject.call(request) == NO_SPACE
        status, body = as_json(subject, request)
        assert (status, body["code"], body["message"]) == (429, *NO_SPACE)
        assert_unchanged(subject, before)
    subject.do(request)


def test_without_space_everything_else_works(subject: Subject, prefix: bytes) -> None:
    lease_id = subject.grant()
    subject.put(prefix + b"a", lease=lease_id)
    subject.put(prefix + b"b")
    with out_of_space(subject):
        assert subject.get(prefix + b"a").lease == lease_id
        assert subject.do(rpc.LeaseKeepAliveRequest(ID=lease_id)).TTL == 600
        assert subject.keys_of(lease_id) == [prefix + b"a"]
        assert subject.do(txn(get(prefix + b"b"), delete(prefix + b"b"))).succeeded
        revision = subject.revoke(lease_id)
        subject.compact(revision)
        assert subject.revision == revision


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p, v: rpc.PutRequest(key=p, value=v), lambda p, v: txn(put(p, v))])
def test_a_request_too_large_is_refused(
    subject: Subject, prefix: bytes, make: Callable[[bytes, bytes], Message]
) -> None:
    request = make(prefix, b"x" * 1_572_865)
    assert subject.call(request) == TOO_LARGE
    assert as_json(subject, request)[0] == 400
    assert subject.get(prefix) is None


def test_a_request_of_nearly_the_bound_is_taken(subject: Subject, prefix: bytes) -> None:
    # etcd counts what it adds to a request as well, a few dozen bytes.
    subject.put(prefix, b"x" * 1_572_700)
    assert len(subject.get(prefix).value) == 1_572_700
    subject.delete(prefix)


def test_a_body_far_too_large_is_refused_with_a_reply(subject: Subject, prefix: bytes) -> None:
    """The peer is still sending when it is refused, and has to be able to read why."""
    body = '{"key":"YQ==","value":"' + "A" * 6_000_000 + '"}'
    reply = subject.post("/v3/kv/put", body)
    # etcd reads it all and then compares; Lessor stops where no JSON of an allowed message can end.
    assert reply.status == (413 if subject.is_lessor else 429)


def test_a_message_too_large_is_not_read(subject: Subject, prefix: bytes) -> None:
    request = rpc.PutRequest(key=prefix, value=b"x" * 2_097_152)
    size = request.ByteSize()
    assert subject.call(request) == Failure(8, f"grpc: received message larger than max ({size} vs. 2097152)")
    status, body = as_json(subject, request)
    assert (status, body["code"]) == (429, 8)
    assert body["message"] == f"grpc: received message larger than max ({size} vs. 2097152)"


@pytest.mark.parametrize("nested", [False, True])
def test_very_many_compares_in_few_bytes_are_too_many(subject: Subject, nested: bool) -> None:
    """Lessor counts them in the bytes, and makes no object of each."""
    flood = rpc.TxnRequest(compare=[rpc.Compare()] * 300_000)
    if nested:
        flood = rpc.TxnRequest(success=[rpc.RequestOp(request_txn=flood)])
    assert subject.call(flood) == TOO_MANY_OPS
