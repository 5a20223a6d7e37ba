# SPDX-License-Identifier: Apache-2.0
"""The output format for people, `--write-out simple`: sentences about leases; keys and values on lines of their own.

Keys and values are written as the bytes that they are, or escaped under --hex. Keys are also escaped for a terminal;
what else a terminal must not get, printing.py escapes.
"""

from collections.abc import Callable, Iterable

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli.notation import hex_escaped
from lessor.cli.printer import id_text, responses
from lessor.cli.terminal import escaped


class SimplePrinter:
    def __init__(self, *, hexadecimal: bool = False, decimal: bool = False, terminal: bool = False) -> None:
        """`terminal`: whether the output goes to one."""
        self._hexadecimal = hexadecimal
        self._show_key: Callable[[bytes], bytes] = hex_escaped if hexadecimal else escaped if terminal else bytes
        self._show_keys_of_lease: Callable[[bytes], bytes] = escaped if terminal else bytes  # etcdctl: --hex or not
        self._decimal = decimal

    def grant(self, reply: rpc.LeaseGrantResponse) -> bytes:
        return f"lease {self._id(reply.ID)} granted with TTL({reply.TTL}s)\n".encode()

    def revoke(self, lease_id: int, reply: rpc.LeaseRevokeResponse) -> bytes:
        return f"lease {self._id(lease_id)} revoked\n".encode()

    def keep_alive(self, reply: rpc.LeaseKeepAliveResponse) -> bytes:
        return f"lease {self._id(reply.ID)} keepalived with TTL({reply.TTL})\n".encode()

    def lease_gone(self, lease_id: int) -> bytes:
        return f"lease {self._id(lease_id)} expired or revoked.\n".encode()

    def time_to_live(self, reply: rpc.LeaseTimeToLiveResponse, keys: bool) -> bytes:
        # A lease that is late to end may have a TTL of -1 too; only one that is gone was never granted a TTL.
        if reply.grantedTTL == 0 and reply.TTL == -1:
            return f"lease {self._id(reply.ID)} already expired\n".encode()
        text = f"lease {self._id(reply.ID)} granted with TTL({reply.grantedTTL}s), remaining({reply.TTL}s)".encode()
        if keys:
            text += b", attached keys([" + b" ".join(map(self._show_keys_of_lease, reply.keys)) + b"])"
        return text + b"\n"

    def leases(self, reply: rpc.LeaseLeasesResponse) -> bytes:
        lines = [f"found {len(reply.leases)} leases", *(self._id(lease.ID) for lease in reply.leases)]
        return "".join(line + "\n" for line in lines).encode()

    def put(self, reply: rpc.PutResponse) -> bytes:
        return b"OK\n" + (self._pairs([reply.prev_kv]) if reply.HasField("prev_kv") else b"")

    def get(self, reply: rpc.RangeResponse, value_only: bool = False) -> bytes:
        return self._pairs(reply.kvs, value_only)

    def delete(self, reply: rpc.DeleteRangeResponse) -> bytes:
        return b"%d\n" % reply.deleted + self._pairs(reply.prev_kvs)

    def txn(self, reply: rpc.TxnResponse) -> bytes:
        return b"\n".join([b"SUCCESS\n" if reply.succeeded else b"FAILURE\n", *responses(self, reply)])

    def watch(self, reply: rpc.WatchResponse) -> bytes:
        output = b""
        for event in reply.events:
            pairs = [event.prev_kv, event.kv] if event.HasField("prev_kv") else [event.kv]
            output += mvcc.Event.EventType.Name(event.type).encode() + b"\n" + self._pairs(pairs)
        return output

    def _id(self, number: int) -> str:
        return id_text(number, decimal=self._decimal)

    def _pairs(self, pairs: Iterable[mvcc.KeyValue], value_only: bool = False) -> bytes:
        lines = []
        for pair in pairs:
            if not value_only:
                lines.append(self._show_key(pair.key))
            lines.append(hex_escaped(pair.value) if self._hexadecimal else pair.value)
        return b"".join(line + b"\n" for line in lines)
