# SPDX-License-Identifier: Apache-2.0
"""Between the numbers of the model and those of a server under test.

A server that has lived counts its revisions from somewhere else, and draws its own lease ids. `Translator.request`
turns a generated request into one for the server, `Translator.reply` turns the reply back, so that it can be compared
with the model's: what must differ (ids of cluster and member, the term) is cleared, what has no order is sorted.
"""

from typing import Any, TypeVar

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc
from tests.model import Model

from .strategies import COMPACTED, CURRENT, NEAR, NEWEST_LEASE

AnyMessage = TypeVar("AnyMessage", bound=Message)

_REVISIONS = frozenset(
    {
        "revision",
        "create_revision",
        "mod_revision",
        "min_mod_revision",
        "max_mod_revision",
        "min_create_revision",
        "max_create_revision",
        "start_revision",
        "compact_revision",
    }
)
_LEASES = frozenset({"ID", "lease"})
_COUNTED_MAX = 1 << 49  # a "revision" beyond it is an extreme of its type, and stays


def change_numbers(message: Message, change: Any) -> None:
    """Puts change(field name, number) in the place of each number of the message and of those inside it."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                change_numbers(inner, change)
        elif field.name in _REVISIONS or field.name in _LEASES:
            changed = change(field.name, value)
            if changed != value:
                setattr(message, field.name, changed)


def copy_of(message: AnyMessage) -> AnyMessage:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


class Translator:
    """One server's revisions are the model's plus `offset`; its drawn lease ids are remembered beside the model's."""

    def __init__(self, model: Model, offset: int = 0) -> None:
        self.model = model
        self.offset = offset
        self.newest_lease = 0  # the model's name of the lease whose id was drawn last
        self._server_lease: dict[int, int] = {}
        self._model_lease: dict[int, int] = {}

    def drew(self, model_id: int, server_id: int) -> None:
        """Both granted the same lease, and each drew an id for it."""
        self.newest_lease = model_id
        self._server_lease[model_id] = server_id
        self._model_lease[server_id] = model_id

    def lease(self, server_id: int) -> int:
        """The model's name of the server's lease."""
        return self._model_lease.get(server_id, server_id)

    def placed(self, request: AnyMessage) -> AnyMessage:
        """The request with each placeholder replaced by the model's number of this moment."""

        def place(name: str, number: int) -> int:
            if name in _LEASES:
                return self.newest_lease if number == NEWEST_LEASE else number
            if abs(number - CURRENT) <= NEAR:
                return self.model.revision + number - CURRENT
            if abs(number - COMPACTED) <= NEAR:
                return self.model.compact_revision + number - COMPACTED
            return number

        copy = copy_of(request)
        change_numbers(copy, place)
        return copy

    def request(self, request: AnyMessage) -> AnyMessage:
        """A request in the model's numbers, in the server's."""

        def outward(name: str, number: int) -> int:
            if name in _LEASES:
                return self._server_lease.get(number, number)
            return number + self.offset if 0 < number < _COUNTED_MAX else number

        copy = copy_of(request)
        change_numbers(copy, outward)
        return copy

    def reply(self, reply: AnyMessage) -> AnyMessage:
        """A reply (or event) of the server in the model's numbers, ready to be compared."""

        def inward(name: str, number: int) -> int:
            if name in _LEASES:
                return self.lease(number)
            return number - self.offset if number > 0 else number

        copy = comparable(reply)
        change_numbers(copy, inward)
        return comparable(copy)


def comparable(reply: AnyMessage) -> AnyMessage:
    """A copy without what differs from server to server and from call to call."""
    copy: Any = copy_of(reply)
    if "header" in copy.DESCRIPTOR.fields_by_name and copy.HasField("header"):
        for field in ("cluster_id", "member_id", "raft_term"):
            copy.header.ClearField(field)
    if isinstance(copy, rpc.LeaseLeasesResponse):
        ids = sorted(lease.ID for lease in copy.leases)
        copy.ClearField("leases")
        copy.leases.extend(rpc.LeaseStatus(ID=number) for number in ids)
    if isinstance(copy, rpc.LeaseTimeToLiveResponse):
        ordered = sorted(copy.keys)
        copy.ClearField("keys")
        copy.keys.extend(ordered)
    return copy  # type: ignore[no-any-return]
