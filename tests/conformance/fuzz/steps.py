# SPDX-License-Identifier: Apache-2.0
"""Shared by the areas of the fuzzer: the numbers of the moment in requests, and steps and answers that can be read.

A step is a NamedTuple of numbers, bytes and protobuf messages. `code_of` writes it as Python, so that what the fuzzer
found can be pasted into a test. Revisions in a step are placeholders (`tests/property/strategies.py`): `Now` replaces
them by the revisions that the server has reported last, which are the same on both sides until they differ.
"""

from typing import Any

from google.protobuf.message import Message

from lessor.api.proto import auth_pb2, election_pb2, lock_pb2, mvcc_pb2, rpc_pb2
from tests.conformance.grpc_peer import Failure
from tests.property.strategies import COMPACTED, CURRENT, NEAR, NEWEST_LEASE
from tests.property.translate import change_numbers, comparable, copy_of

# How code calls the modules of messages, and what is imported then.
PROTO = {
    "auth": "auth_pb2 as auth",
    "election_pb2": "election_pb2",
    "lock_pb2": "lock_pb2",
    "mvcc_pb2": "mvcc_pb2",
    "rpc": "rpc_pb2 as rpc",
}
_ALIASES = {
    module.DESCRIPTOR.name: alias
    for alias, module in zip(PROTO, (auth_pb2, election_pb2, lock_pb2, mvcc_pb2, rpc_pb2), strict=True)
}
IDS_DRAWN_MIN = 1 << 40  # an id that a server drew is larger, and those that the requests bring are smaller or extremes


class Now:
    """The revisions that one server has reported while a sequence runs."""

    def __init__(self, revision: int) -> None:
        self.current = self.compacted = revision

    def place(self, request: Message) -> Any:
        """The request with each placeholder replaced by the number of this moment."""

        def number_of(name: str, number: int) -> int:
            if number == NEWEST_LEASE:
                return 1
            if abs(number - CURRENT) <= NEAR:
                return self.current + number - CURRENT
            if abs(number - COMPACTED) <= NEAR:
                return self.compacted + number - COMPACTED
            return number

        copy = copy_of(request)
        change_numbers(copy, number_of)
        return copy

    def learn(self, request: Message, reply: Any) -> None:
        """Takes the revisions out of a reply."""
        if isinstance(reply, Failure):
            return
        header = getattr(reply, "header", None)
        self.current = max(self.current, header.revision if header else 0)
        if isinstance(request, rpc_pb2.CompactionRequest):
            self.compacted = max(self.compacted, request.revision)


def plain(reply: Any) -> Any:
    """An answer without what differs from server to server: ids, sizes, hashes, names, addresses."""
    if not isinstance(reply, Message):
        return reply
    copy: Any = comparable(reply)
    change_numbers(copy, lambda name, number: plain_lease(number) if name in ("ID", "lease") else number)
    match copy:
        case rpc_pb2.LeaseTimeToLiveResponse() if copy.TTL > 0:
            copy.TTL = 1  # a second may have begun on one side only
        case rpc_pb2.StatusResponse():
            copy = rpc_pb2.StatusResponse(isLearner=copy.isLearner, downgradeInfo=copy.downgradeInfo)
        case rpc_pb2.AlarmResponse():
            for alarm in copy.alarms:
                alarm.memberID = int(alarm.memberID > 5)
        case rpc_pb2.AuthenticateResponse():
            copy.token = "a token" if copy.token else ""
        case rpc_pb2.HashResponse():
            copy.hash = 0
        case rpc_pb2.HashKVResponse():
            copy.hash = copy.compact_revision = 0  # etcd's compaction goes on after its reply
        case _ if "members" in copy.DESCRIPTOR.fields_by_name:
            copy = type(copy)(members=[rpc_pb2.Member(isLearner=member.isLearner) for member in copy.members])
    return copy


def plain_lease(lease_id: int) -> int:
    """One number for all lease ids that servers draw: for a grant without an id, for a proclamation without a lease."""
    return IDS_DRAWN_MIN if IDS_DRAWN_MIN <= lease_id < (1 << 63) - 1 else lease_id


def code_of(value: Any) -> str:
    """The value as a Python expression."""
    if isinstance(value, Message):
        name = f"{_ALIASES[value.DESCRIPTOR.file.name]}.{value.DESCRIPTOR.full_name.split('.', 1)[1]}"
        return f"{name}({', '.join(f'{field.name}={_field(field, of)}' for field, of in value.ListFields())})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"{type(value).__name__}({', '.join(code_of(part) for part in value)})"
    if isinstance(value, list | tuple):
        inner = ", ".join(code_of(part) for part in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, bytes) and len(value) > 64 and len(set(value)) == 1:
        return f"{value[:1]!r} * {len(value)}"
    return repr(value)


def _field(field: Any, value: Any) -> str:
    return code_of(list(value)) if field.is_repeated else code_of(value)


def listing(steps: list[Any]) -> str:
    """The steps as a Python list, one a line."""
    return "[\n" + "".join(f"    {code_of(step)},\n" for step in steps) + "]"
