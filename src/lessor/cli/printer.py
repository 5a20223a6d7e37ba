# SPDX-License-Identifier: Apache-2.0
"""What a printer is (one output format, with a method for each kind of reply), and the parts that printers share.

Laws
- A printer turns a reply into bytes and does nothing else. Keys and values are bytes that need not be text, so whole
  outputs are bytes as well.
- The bytes are etcdctl's, to the letter: people's scripts read them.

The printers are in `print_simple.py`, `print_json.py`, `print_fields.py` and `printing.py`, which also chooses one.
"""

from typing import Protocol

from lessor.api.proto import rpc_pb2 as rpc


class Printer(Protocol):
    """One output format."""

    def grant(self, reply: rpc.LeaseGrantResponse) -> bytes: ...

    def revoke(self, lease_id: int, reply: rpc.LeaseRevokeResponse) -> bytes: ...

    def keep_alive(self, reply: rpc.LeaseKeepAliveResponse) -> bytes: ...

    def lease_gone(self, lease_id: int) -> bytes:
        """Printed when a lease that was kept alive has ended."""
        ...

    def time_to_live(self, reply: rpc.LeaseTimeToLiveResponse, keys: bool) -> bytes:
        """`keys`: whether keys were asked for; the output shows that even when there are none."""
        ...

    def leases(self, reply: rpc.LeaseLeasesResponse) -> bytes: ...

    def put(self, reply: rpc.PutResponse) -> bytes: ...

    def get(self, reply: rpc.RangeResponse, value_only: bool = False) -> bytes: ...

    def delete(self, reply: rpc.DeleteRangeResponse) -> bytes: ...

    def txn(self, reply: rpc.TxnResponse) -> bytes: ...

    def watch(self, reply: rpc.WatchResponse) -> bytes: ...


def responses(printer: Printer, reply: rpc.TxnResponse) -> list[bytes]:
    """The replies of a txn's operations, each as it is printed alone."""
    output = []
    for operation in reply.responses:
        if operation.HasField("response_put"):
            output.append(printer.put(operation.response_put))
        elif operation.HasField("response_range"):
            output.append(printer.get(operation.response_range))
        else:
            output.append(printer.delete(operation.response_delete_range))
    return output


def id_text(number: int, *, decimal: bool) -> str:
    """A lease id as people see it: sixteen hexadecimal digits (a negative one with its sign), or decimal."""
    return str(number) if decimal else f"{number:016x}"
