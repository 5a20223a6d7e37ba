# SPDX-License-Identifier: Apache-2.0
"""Requests of every method: those of KV with care, the others from the field table, whatever may be in a field."""

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from lessor.api.methods import METHODS, Method
from lessor.api.proto import election_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base.limits import LEASE_TTL_S_MAX
from tests.conformance.fuzz.pair import Side
from tests.property.strategies import (
    COMPACTED,
    CURRENT,
    INT64_MAX,
    INT64_MIN,
    KEYS,
    compactions,
    deletes,
    mostly,
    puts,
    ranges,
    telling_ranges,
    transactions,
)

# Leases are granted under these ids only, so that a lock is never asked for with a lease that exists: it might wait.
LEASES = (1, 2)
_TEXTS = ("", "u1", "r1", "root", "3.5.0", "http://127.0.0.1:1", "\0", "é", "a" * 300)
_NUMBERS = (0, 1, 2, 3, -1, 77, INT64_MAX, INT64_MIN, CURRENT, CURRENT + 1, CURRENT - 1, COMPACTED)
_UNSIGNED = (0, 1, 2, 77, (1 << 64) - 1)
# Not sent whole: a member more, or one that is elsewhere, and a real etcd stands still.
_NEVER = (rpc.MemberAddRequest, rpc.MemberUpdateRequest)
_WAIT = ("Lock", "Campaign", "Observe")

_KINDS: dict[type[Message], st.SearchStrategy[Any]] = {
    rpc.RangeRequest: st.one_of(ranges, telling_ranges()),
    rpc.PutRequest: puts,
    rpc.DeleteRangeRequest: deletes,
    rpc.TxnRequest: transactions(),
    rpc.CompactionRequest: compactions,
    rpc.LeaseGrantRequest: st.builds(
        rpc.LeaseGrantRequest,
        ID=st.sampled_from((0, *LEASES)),
        TTL=st.sampled_from((0, -1, 60, 100, LEASE_TTL_S_MAX, LEASE_TTL_S_MAX + 1, INT64_MAX)),
    ),
}


def _value(field: Any, depth: int) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return _of(field.message_type, depth - 1)
        case FieldDescriptor.TYPE_BYTES:
            return st.sampled_from((*KEYS, b""))
        case FieldDescriptor.TYPE_STRING:
            return st.sampled_from(_TEXTS)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_UINT64:
            return st.sampled_from(_UNSIGNED)
        case FieldDescriptor.TYPE_ENUM:
            return mostly(st.sampled_from([value.number for value in field.enum_type.values]), st.just(9), 10)
    return st.sampled_from(_NUMBERS)


@st.composite
def _of(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Message:
    """A message with about half of its fields set; of a oneof, the last one drawn stays."""
    fields: dict[str, Any] = {}
    for field in descriptor.fields:
        kind: Any = field
        if (field.type == FieldDescriptor.TYPE_MESSAGE and depth <= 0) or draw(st.booleans()):
            continue
        value = _value(field, depth)
        fields[field.name] = draw(st.lists(value, max_size=2)) if kind.is_repeated else draw(value)
    message: Message = message_factory.GetMessageClass(descriptor)(**fields)
    return message


def of(method: Method) -> st.SearchStrategy[Message]:
    """Requests of this method."""
    kind = _KINDS.get(method.request)
    return _of(method.request.DESCRIPTOR, depth=2) if kind is None else kind  # type: ignore[arg-type]


_RATES = {"etcdserverpb.KV": 6, "etcdserverpb.Lease": 3, "etcdserverpb.Auth": 2}
SENT = [
    method
    for method in METHODS
    for _ in range(_RATES.get(method.service, 1))
    if method.unary and not method.service.startswith(("grpc.", "lessorpb."))
]


def harmless(side: Side, method: Method, request: Message | None) -> bool:
    """Whether the request (None: not even we can read it) may be sent to both, and is answered at once."""
    if request is None:
        return True
    match request:
        case rpc.AlarmRequest():
            # An action that does not exist stops an etcd (docs/compatibility.md), and 3.5 is stopped by a kind of alarm
            # that does not exist.
            return 0 <= request.action <= 2 and 0 <= request.alarm <= 2
        case rpc.DowngradeRequest():
            return request.action != rpc.DowngradeRequest.ENABLE and not side.unsafe(request)
        case rpc.HashKVRequest():
            return request.revision >= 0 and not side.unsafe(request)  # negative: different (docs/compatibility.md)
        case election_pb2.ResignRequest():
            return request.leader.lease != 0  # etcd would grant a lease for it (docs/compatibility.md)
        case rpc.LeaseGrantRequest():
            return request.ID in (0, *LEASES)
    if method.name in _WAIT:
        return getattr(request, "lease", 0) not in (0, *LEASES)
    return not isinstance(request, _NEVER) and not side.unsafe(request)
