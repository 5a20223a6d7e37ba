# SPDX-License-Identifier: Apache-2.0
"""The permission checker against an oracle that knows nothing but keys: it lists what a request needs, key by key.

Between two neighbouring ends of ranges all keys are alike, so it is enough to try each range's start and end.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import errors
from lessor.base.errors import EtcdError
from lessor.state import permissions
from lessor.state.auth import READ, READWRITE, WRITE
from lessor.state.machine import Identity, StateMachine
from lessor.state.permissions import Caller

OPEN = b"\0"
KEYS = [b"\0", b"a", b"a\0", b"aa", b"ab", b"b", b"b\xff", b"c", b"\xff", b"\xff\xff"]
LEASES = [1, 2, 3]
BYTES_MAX = 1 << 20

keys = st.sampled_from(KEYS)
Range = tuple[bytes, bytes]


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    """A key, or a range that holds some, as requests and permissions have them."""
    key = draw(keys)
    return key, draw(st.sampled_from([b"", OPEN, *(end for end in KEYS if end > key)]))


permission_lists = st.lists(st.tuples(ranges(), st.sampled_from([READ, WRITE, READWRITE])), max_size=6)
lease_ids = st.sampled_from([0, *LEASES, 99])
puts = st.builds(
    lambda key, lease, prev_kv: rpc.PutRequest(key=key, lease=lease, prev_kv=prev_kv), keys, lease_ids, st.booleans()
)
reads = st.builds(lambda where: rpc.RangeRequest(key=where[0], range_end=where[1]), ranges())
deletes = st.builds(
    lambda where, prev_kv: rpc.DeleteRangeRequest(key=where[0], range_end=where[1], prev_kv=prev_kv),
    ranges(),
    st.booleans(),
)
compares = st.lists(st.builds(lambda where: rpc.Compare(key=where[0], range_end=where[1]), ranges()), max_size=1)
_NAMES = {
    rpc.PutRequest: "request_put",
    rpc.RangeRequest: "request_range",
    rpc.DeleteRangeRequest: "request_delete_range",
    rpc.TxnRequest: "request_txn",
}


def operations(inner: st.SearchStrategy[Message]) -> st.SearchStrategy[list[rpc.RequestOp]]:
    def wrap(request: Message) -> rpc.RequestOp:
        wrapped: dict[str, Any] = {_NAMES[type(request)]: request}
        return rpc.RequestOp(**wrapped)

    return st.lists(inner.map(wrap), max_size=2)


def txns(inner: st.SearchStrategy[Message]) -> st.SearchStrategy[Message]:
    def build(compare: Any, success: Any, failure: Any) -> Message:
        return rpc.TxnRequest(compare=compare, success=success, failure=failure)

    return st.builds(build, compares, operations(inner), operations(inner))


flat = st.one_of(puts, reads, deletes)
requests = st.one_of(
    flat,
    txns(st.recursive(flat, txns, max_leaves=4)),
    st.builds(lambda number: rpc.LeaseRevokeRequest(ID=number), lease_ids),
    st.builds(lambda number: rpc.LeaseKeepAliveRequest(ID=number), lease_ids),
    st.builds(lambda number, shown: rpc.LeaseTimeToLiveRequest(ID=number, keys=shown), lease_ids, st.booleans()),
    st.just(rpc.LeaseLeasesRequest()),
    st.builds(lambda where: rpc.WatchCreateRequest(key=where[0], range_end=where[1]), ranges()),
    st.just(rpc.WatchCreateRequest()),
)

Need = tuple[str, bytes, bytes]


def needs(request: Any, hanging: dict[int, set[bytes]]) -> Iterator[Need]:
    """What a request needs: ("read" or "write", key, range_end)."""
    match request:
        case rpc.RangeRequest() | rpc.Compare():
            yield "read", request.key, request.range_end
        case rpc.WatchCreateRequest():
            yield "read", request.key or b"\0", request.range_end
        case rpc.PutRequest():
            yield "write", request.key, b""
            for key in hanging.get(request.lease, ()):
                yield "write", key, b""
            if request.prev_kv:
                yield "read", request.key, b""
        case rpc.DeleteRangeRequest():
            yield "write", request.key, request.range_end
            if request.prev_kv:
                yield "read", request.key, request.range_end
        case rpc.TxnRequest():
            for part in (*request.compare, *request.success, *request.failure):
                inner = getattr(part, part.WhichOneof("request")) if isinstance(part, rpc.RequestOp) else part
                yield from needs(inner, hanging)
        case rpc.LeaseRevokeRequest() | rpc.LeaseKeepAliveRequest():
            for key in hanging.get(request.ID, ()):
                yield "write", key, b""
        case rpc.LeaseTimeToLiveRequest():
            if request.keys:
                for key in hanging.get(request.ID, ()):
                    yield "read", key, b""
        case rpc.LeaseLeasesRequest():
            for hung in hanging.values():
                for key in hung:
                    yield "read", key, b""
        case _:
            raise AssertionError(request)


def holds(where: Range, key: bytes) -> bool:
    start, end = where
    if not end:
        return key == start
    return key >= start and (end == OPEN or key < end)


def allowed(need: Need, granted: list[tuple[Range, int]]) -> bool:
    """Whether each key that the need is about has a permission of its own."""
    right, key, range_end = need
    kinds = (READ, READWRITE) if right == "read" else (WRITE, READWRITE)
    spans = [where for where, kind in granted if kind in kinds]
    ends = {edge for where in spans for edge in where if edge not in (b"", OPEN)}
    tried = {key, *KEYS, *ends, *(edge + b"\0" for edge in ends), *(start + b"\0" for start, _ in spans), b"\xff" * 9}
    return all(any(holds(span, one) for span in spans) for one in tried if holds((key, range_end), one))


def machine_with(granted: list[tuple[Range, int]], hanging: dict[int, set[bytes]]) -> StateMachine:
    machine = StateMachine(Identity(1, 2, 3))
    auth = machine.auth
    for name in ("root", "u"):
        auth.add_user(name, b"", no_password=False)
    auth.grant_role("root", "root")
    for role in ("even", "odd"):
        auth.add_role(role)
        auth.grant_role("u", role)
    for index, ((key, range_end), kind) in enumerate(granted):
        auth.grant_permission(("even", "odd")[index % 2], (key, range_end, kind))
    for lease_id in LEASES:
        machine.apply(rpc.LeaseGrantRequest(ID=lease_id, TTL=60), 0.0)
        for key in hanging[lease_id]:
            machine.apply(rpc.PutRequest(key=key, lease=lease_id), 0.0)
    auth.enable()
    return machine


def verdict(machine: StateMachine, caller: permissions.Claimed, request: Message) -> str | None:
    try:
        permissions.check(machine, caller, request, BYTES_MAX)
    except EtcdError as error:
        return error.message
    return None


def distinct(granted: list[tuple[Range, int]]) -> list[tuple[Range, int]]:
    """The last permission on each range of a role counts."""
    kept: dict[tuple[int, Range], int] = {}
    for index, (where, kind) in enumerate(granted):
        kept[index % 2, where] = kind
    return [(where, kind) for (_, where), kind in kept.items()]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(permission_lists, st.lists(lease_ids, min_size=len(KEYS), max_size=len(KEYS)), requests)
def test_the_checker_agrees_with_the_oracle(
    granted: list[tuple[Range, int]], leased: list[int], request: Message
) -> None:
    hanging = {lease: {key for key, on in zip(KEYS, leased, strict=True) if on == lease} for lease in LEASES}
    machine = machine_with(granted, hanging)
    before = machine.revision, machine.journal.row_count
    said = verdict(machine, Caller("u", machine.auth.revision), request)
    if said == errors.DUPLICATE_KEY.message:
        return  # malformed, whoever asks
    expected = all(allowed(need, distinct(granted)) for need in needs(request, hanging))
    assert said == (None if expected else errors.PERMISSION_DENIED.message)
    assert verdict(machine, Caller("root", machine.auth.revision), request) is None
    assert (machine.revision, machine.journal.row_count) == before


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(requests)
def test_nobody_gets_nothing(request: Message) -> None:
    everything = [((b"\0", OPEN), READWRITE)]
    machine = machine_with(everything, {lease: {b"k%d" % lease} for lease in LEASES})
    said = verdict(machine, None, request)
    bad = verdict(machine, errors.INVALID_AUTH_TOKEN.error(), request)
    if said == errors.DUPLICATE_KEY.message:
        return
    asks = not isinstance(request, rpc.TxnRequest) or bool(list(needs(request, {})))
    assert said == (errors.USER_EMPTY.message if asks else None)
    assert bad == errors.INVALID_AUTH_TOKEN.message


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(requests)
def test_an_old_token_opens_no_key(request: Message) -> None:
    hanging = {lease: {b"k%d" % lease} for lease in LEASES}
    machine = machine_with([((b"\0", OPEN), READWRITE)], hanging)
    said = verdict(machine, Caller("u", machine.auth.revision - 1), request)
    if said == errors.DUPLICATE_KEY.message:
        return
    assert said == (errors.OLD_AUTH_REVISION.message if list(needs(request, hanging)) else None)
    gone = verdict(machine, Caller("gone", machine.auth.revision), request)
    assert gone == (errors.PERMISSION_DENIED.message if list(needs(request, hanging)) else None)


def test_every_method_has_a_rule_or_is_roots() -> None:
    """What is added to the API is closed to users until somebody decides otherwise."""
    machine = machine_with([((b"\0", OPEN), READWRITE)], {lease: set() for lease in LEASES})
    assert (
        verdict(machine, Caller("u", machine.auth.revision), rpc.SnapshotRequest()) == errors.PERMISSION_DENIED.message
    )
    assert (
        verdict(machine, Caller("u", machine.auth.revision), rpc.MemberAddRequest()) == errors.PERMISSION_DENIED.message
    )
    assert verdict(machine, Caller("gone", 9), rpc.DefragmentRequest()) == errors.USER_NOT_FOUND.message
    assert verdict(machine, Caller("", 9), rpc.DefragmentRequest()) == errors.USER_EMPTY.message
    # As in etcd, what root alone may do does not ask how old root's token is.
    assert verdict(machine, Caller("root", 1), rpc.DefragmentRequest()) is None


@pytest.mark.parametrize("request_", [rpc.PutRequest(key=b"k", value=b"x" * 99), rpc.DeleteRangeRequest(key=b"k" * 99)])
def test_size_and_space_are_refused_before_permissions_and_after_tokens(request_: Message) -> None:
    machine = machine_with([], {lease: set() for lease in LEASES})
    caller = Caller("u", machine.auth.revision)

    def said(claimed: permissions.Claimed, bytes_max: int) -> str:
        with pytest.raises(EtcdError) as raised:
            permissions.check(machine, claimed, request_, bytes_max)
        return raised.value.message

    assert said(caller, 50) == errors.REQUEST_TOO_LARGE.message
    assert said(errors.INVALID_AUTH_TOKEN.error(), 50) == errors.INVALID_AUTH_TOKEN.message
    assert said(caller, 500) == errors.PERMISSION_DENIED.message
    machine.state_for_alarm(2, 1, True)
    put = isinstance(request_, rpc.PutRequest)
    assert said(caller, 500) == (errors.NO_SPACE if put else errors.PERMISSION_DENIED).message
