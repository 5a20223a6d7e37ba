# SPDX-License-Identifier: Apache-2.0
"""The output format for programs, `--write-out json`: one line of JSON for each reply.

It is not the gateway's JSON. etcdctl prints the structures of its Go client: numbers as numbers, byte strings in
base64, enums by number, zero values left out. Replies about leases and watch responses are different: they have
structures of their own, with other names, the header's fields in line, and zero values written.
"""

import base64
import json
from typing import Any

from google.protobuf.message import Message

from lessor.api.proto import rpc_pb2 as rpc


class JsonPrinter:
    def grant(self, reply: rpc.LeaseGrantResponse) -> bytes:
        return line({**plain(reply.header), "ID": reply.ID, "TTL": reply.TTL, "Error": reply.error})

    def revoke(self, lease_id: int, reply: rpc.LeaseRevokeResponse) -> bytes:
        return line(plain(reply))

    def keep_alive(self, reply: rpc.LeaseKeepAliveResponse) -> bytes:
        return line({**plain(reply.header), "ID": reply.ID, "TTL": reply.TTL})

    def lease_gone(self, lease_id: int) -> bytes:
        return b""

    def time_to_live(self, reply: rpc.LeaseTimeToLiveResponse, keys: bool) -> bytes:
        own = {"id": reply.ID, "ttl": reply.TTL, "granted-ttl": reply.grantedTTL}
        attached = [base64_text(key) for key in reply.keys]
        return line({**plain(reply.header), **own, "keys": attached or None})

    def leases(self, reply: rpc.LeaseLeasesResponse) -> bytes:
        return line({**plain(reply.header), "leases": [{"id": lease.ID} for lease in reply.leases]})

    def put(self, reply: rpc.PutResponse) -> bytes:
        return line(plain(reply))

    def get(self, reply: rpc.RangeResponse, value_only: bool = False) -> bytes:
        return line(plain(reply))

    def delete(self, reply: rpc.DeleteRangeResponse) -> bytes:
        return line(plain(reply))

    def txn(self, reply: rpc.TxnResponse) -> bytes:
        data = plain(reply)
        if reply.responses:
            data["responses"] = [{"Response": plain(operation)} for operation in reply.responses]
        return line(data)

    def watch(self, reply: rpc.WatchResponse) -> bytes:
        return line(
            {
                "Header": plain(reply.header),
                # Go prints the difference between no list and an empty one.
                "Events": None if _eventless(reply) else [plain(event) for event in reply.events],
                "CompactRevision": reply.compact_revision,
                "Canceled": reply.canceled,
                "Created": reply.created,
                "CancelReason": "",  # etcdctl has the field and never fills it
            }
        )


def _eventless(reply: rpc.WatchResponse) -> bool:
    """Whether this is the end of a watch."""
    return reply.canceled and not reply.events


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON data, in the order of its declaration and without zero values."""
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, Message):
            # A message inside can be absent, which is not the same as empty.
            if message.HasField(field.name):
                data[field.name] = plain(value)
        elif value:
            data[field.name] = _value(value)
    return data


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64_text(value)
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, (str, int, float)):
        return value
    return [_value(item) for item in value]  # a repeated field


def base64_text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def line(data: dict[str, Any]) -> bytes:
    """A reply's data as Go writes it."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    # Go escapes these five, for the sake of JSON inside HTML and JavaScript.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode() + b"\n"
