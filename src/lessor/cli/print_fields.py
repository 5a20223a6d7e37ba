# SPDX-License-Identifier: Apache-2.0
"""The output format for line-by-line reading, `--write-out fields`: each field as `"Name" : value`.

Ids are decimal here, and hexadecimal under --hex; byte strings are quoted as Go does it.
"""

from collections.abc import Iterator

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli.notation import quote
from lessor.cli.printer import id_text, responses


class FieldsPrinter:
    def __init__(self, *, hexadecimal: bool = False, decimal: bool = False) -> None:
        self._hexadecimal = hexadecimal
        self._decimal = decimal

    def grant(self, reply: rpc.LeaseGrantResponse) -> bytes:
        return _lines(*self.header(reply.header), self._id(reply.ID), f'"TTL" : {reply.TTL}')

    def revoke(self, lease_id: int, reply: rpc.LeaseRevokeResponse) -> bytes:
        return _lines(*self.header(reply.header))

    def keep_alive(self, reply: rpc.LeaseKeepAliveResponse) -> bytes:
        return _lines(*self.header(reply.header), self._id(reply.ID), f'"TTL" : {reply.TTL}')

    def lease_gone(self, lease_id: int) -> bytes:
        return b""

    def time_to_live(self, reply: rpc.LeaseTimeToLiveResponse, keys: bool) -> bytes:
        return _lines(
            *self.header(reply.header),
            self._id(reply.ID),
            f'"TTL" : {reply.TTL}',
            f'"GrantedTTL" : {reply.grantedTTL}',
            *(f'"Key" : {quote(key)}' for key in reply.keys),
        )

    def leases(self, reply: rpc.LeaseLeasesResponse) -> bytes:
        return _lines(*self.header(reply.header), *(self._id(lease.ID) for lease in reply.leases))

    def put(self, reply: rpc.PutResponse) -> bytes:
        previous = self._pair("Prev", reply.prev_kv) if reply.HasField("prev_kv") else ()
        return _lines(*self.header(reply.header), *previous)

    def get(self, reply: rpc.RangeResponse, value_only: bool = False) -> bytes:
        return _lines(
            *self.header(reply.header),
            *(line for pair in reply.kvs for line in self._pair("", pair)),
            f'"More" : {str(reply.more).lower()}',
            f'"Count" : {reply.count}',
        )

    def delete(self, reply: rpc.DeleteRangeResponse) -> bytes:
        return _lines(
            *self.header(reply.header),
            f'"Deleted" : {reply.deleted}',
            *(line for pair in reply.prev_kvs for line in self._pair("Prev", pair)),
        )

    def txn(self, reply: rpc.TxnResponse) -> bytes:
        succeeded = f'"Succeeded" : {str(reply.succeeded).lower()}'
        return b"".join([_lines(*self.header(reply.header), succeeded), *responses(self, reply)])

    def watch(self, reply: rpc.WatchResponse) -> bytes:
        lines = [*self.header(reply.header)]
        for event in reply.events:
            lines.append(f'"Type" : {mvcc.Event.EventType.Name(event.type)}')
            if event.HasField("prev_kv"):
                lines += self._pair("Prev", event.prev_kv)
            lines += self._pair("", event.kv)
        return _lines(*lines)

    def header(self, header: rpc.ResponseHeader) -> Iterator[str]:
        return header_lines(header, self._hexadecimal)

    def _pair(self, prefix: str, pair: mvcc.KeyValue) -> Iterator[str]:
        yield f'"{prefix}Key" : {quote(pair.key)}'
        yield f'"{prefix}CreateRevision" : {pair.create_revision}'
        yield f'"{prefix}ModRevision" : {pair.mod_revision}'
        yield f'"{prefix}Version" : {pair.version}'
        yield f'"{prefix}Value" : {quote(pair.value)}'
        yield f'"{prefix}Lease" : {self._lease(pair.lease)}'

    def _id(self, number: int) -> str:
        return f'"ID" : {self._lease(number)}'

    def _lease(self, number: int) -> str:
        return id_text(number, decimal=self._decimal or not self._hexadecimal)


def _lines(*lines: str) -> bytes:
    return "".join(line + "\n" for line in lines).encode()


def header_lines(header: rpc.ResponseHeader, hexadecimal: bool) -> Iterator[str]:
    """The fields of a reply's header. The ids of a cluster and its members are unsigned and not padded."""
    number = "{:x}" if hexadecimal else "{}"
    yield '"ClusterID" : ' + number.format(header.cluster_id)
    yield '"MemberID" : ' + number.format(header.member_id)
    if header.revision > 0:
        yield f'"Revision" : {header.revision}'
    yield f'"RaftTerm" : {header.raft_term}'
