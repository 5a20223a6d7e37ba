# SPDX-License-Identifier: Apache-2.0
"""The choice of an output format, and writing to stdout. `printer.py` says what a printer is.

Law: the format is chosen, and refused, before anything is asked of a server. (etcdctl refuses `table` for these
commands only after they have taken effect.)
"""

import sys

from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli.failure import BAD_FEATURE, Failure
from lessor.cli.printer import Printer
from lessor.cli.terminal import LAYOUT, escaped


class ProtobufPrinter:
    """Replies as they came over the wire, with nothing between them.

    Of a reply about leases etcdctl prints the header alone, an accident of its types; ours is the whole reply.
    """

    def grant(self, reply: rpc.LeaseGrantResponse) -> bytes:
        return reply.SerializeToString()

    def revoke(self, lease_id: int, reply: rpc.LeaseRevokeResponse) -> bytes:
        return reply.SerializeToString()

    def keep_alive(self, reply: rpc.LeaseKeepAliveResponse) -> bytes:
        return reply.SerializeToString()

    def lease_gone(self, lease_id: int) -> bytes:
        return b""

    def time_to_live(self, reply: rpc.LeaseTimeToLiveResponse, keys: bool) -> bytes:
        return reply.SerializeToString()

    def leases(self, reply: rpc.LeaseLeasesResponse) -> bytes:
        return reply.SerializeToString()

    def put(self, reply: rpc.PutResponse) -> bytes:
        return reply.SerializeToString()

    def get(self, reply: rpc.RangeResponse, value_only: bool = False) -> bytes:
        return reply.SerializeToString()

    def delete(self, reply: rpc.DeleteRangeResponse) -> bytes:
        return reply.SerializeToString()

    def txn(self, reply: rpc.TxnResponse) -> bytes:
        return reply.SerializeToString()

    def watch(self, reply: rpc.WatchResponse) -> bytes:
        return reply.SerializeToString()


def choose(output_format: str, *, hexadecimal: bool = False, decimal: bool = False, table: bool = False) -> Printer:
    """The printer of that name. Failure for an unknown name, and for `table`, which these replies do not have.

    `table`: it is taken, as a command that prints sentences only does; the printer is the simple one.

    `hexadecimal` is --hex, for byte strings of the simple format and ids of the fields format. `decimal` is --decimal,
    for lease ids that would be hexadecimal.
    """
    if output_format == "simple" or (table and output_format == "table"):
        from lessor.cli.print_simple import SimplePrinter

        return SimplePrinter(hexadecimal=hexadecimal, decimal=decimal, terminal=sys.stdout.isatty())
    if output_format == "json":
        from lessor.cli.print_json import JsonPrinter

        return JsonPrinter()
    if output_format == "fields":
        from lessor.cli.print_fields import FieldsPrinter

        return FieldsPrinter(hexadecimal=hexadecimal, decimal=decimal)
    if output_format == "protobuf":
        return ProtobufPrinter()
    if output_format == "table":
        raise Failure(BAD_FEATURE, "table not supported as output format")
    raise Failure(BAD_FEATURE, "unsupported output format")


def write(output: bytes) -> None:
    """Writes to stdout, at once: a program that reads a watch may wait for this line. A terminal gets no controls."""
    write_controls(escaped(output, LAYOUT) if sys.stdout.isatty() else output)


def write_controls(output: bytes) -> None:
    """The same for output that steers the terminal itself."""
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()
