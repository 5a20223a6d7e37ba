# SPDX-License-Identifier: Apache-2.0
"""`lessor make-mirror`: copies keys to another server, and then each change, until it fails or Ctrl-C.

Laws
- The keys are copied as they were at one revision, and the changes are followed from that revision on: none is missed.
- The changes of one revision arrive together, in one txn (in several, when they are more than --max-txn-ops).
- Leases are not copied: at the destination a key is deleted when its deletion is mirrored.

Arguments and outputs are etcdctl's: every 30 seconds, the number of keys and changes written. With --rev, etcdctl
forgets the default of --dest-prefix; here the default is always --prefix.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from lessor.api.proto import mvcc_pb2 as mvcc
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import notation, printing
from lessor.cli.asking import ask, client_of
from lessor.cli.failure import BAD_ARGS, ERROR, Failure
from lessor.cli.options import FILE, INT64, Command, GoValue, credentials, settings_of
from lessor.cli.progress import progress
from lessor.cli.watch import why_canceled

if TYPE_CHECKING:
    from lessor.client import AsyncClient

PAGE_KEYS = 1_000  # keys asked for at a time
BATCH_BYTES_MAX = 1_000_000  # of keys and values in one txn; a server takes 1.5 MiB
REPORT_S = 30.0


def _count(text: str) -> int:
    number = notation.uint64(text, 10)
    if not number:
        raise ValueError("at least 1 operation must fit into a txn")
    return number


@click.command("make-mirror", cls=Command)
@click.argument("args", nargs=-1, metavar="DESTINATION")
@click.option("--prefix", default="", help="Only the keys that begin with this.")
@click.option("--dest-prefix", default="", help="What stands in its place at the destination (default: the same).")
@click.option("--no-dest-prefix", is_flag=True, help="Put nothing in its place.")
@click.option("--rev", type=INT64, default=0, help="Copy no keys, but all changes since this revision.")
@click.option(
    "--max-txn-ops", type=GoValue("uint", _count), default=128, show_default=True, help="Most changes in one txn."
)
@click.option("--dest-cacert", type=FILE, help="CA certificates (PEM) that the destination's must come from.")
@click.option("--dest-cert", type=FILE, help="Our own certificate (PEM), for the destination.")
@click.option("--dest-key", type=FILE, help="The key of that certificate (PEM).")
@click.option(
    "--dest-insecure-transport/--no-dest-insecure-transport",
    default=True,
    help="Without other flags for TLS, speak none to a destination that does not say https:// (default true).",
)
@click.option("--dest-user", default="", metavar="NAME[:PASSWORD]", help="Log in there as this user.")
@click.option("--dest-password", default="", metavar="PASSWORD", help="The password there; --dest-user is the name.")
@click.pass_context
def make_mirror(ctx: click.Context, /, args: tuple[str, ...], rev: int, max_txn_ops: int, **flags: Any) -> None:
    """Copy all keys to the server DESTINATION, and then each change, until Ctrl-C."""
    if len(args) != 1:
        raise Failure(BAD_ARGS, "make-mirror takes one destination argument")
    user, password = credentials(flags["dest_user"], flags["dest_password"], "Destination Password: ")
    settings = settings_of(ctx)
    printing.choose(settings.output_format, table=True)
    if flags["no_dest_prefix"] and flags["dest_prefix"]:
        text = "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one"
        raise Failure(BAD_ARGS, text)
    there = dataclasses.replace(
        settings,
        endpoints=(args[0],),
        server_name="",
        cacert=flags["dest_cacert"] or "",
        cert=flags["dest_cert"] or "",
        key=flags["dest_key"] or "",
        insecure_skip_tls_verify=False,
        insecure_transport=flags["dest_insecure_transport"],
        user=user,
        password=password,
    )
    prefix = os.fsencode(flags["prefix"])
    new_prefix = b"" if flags["no_dest_prefix"] else os.fsencode(flags["dest_prefix"]) or prefix

    async def copy(client: "AsyncClient") -> None:
        from lessor.cli.tasks import first_of

        async with client_of(there) as destination:
            mirror = Mirror(client, destination, prefix, new_prefix, max_txn_ops)
            await first_of(mirror.run(max(rev - 1, 0)), mirror.report())

    ask(settings, copy)


class Mirror:
    """Copies the keys below a prefix from one server to another."""

    def __init__(
        self, source: "AsyncClient", destination: "AsyncClient", prefix: bytes, new_prefix: bytes, ops_max: int
    ) -> None:
        from lessor.client import FROM_KEY, prefix_end

        self.written = 0  # keys and changes
        self._source = source
        self._destination = destination
        self._prefix = prefix
        self._new_prefix = new_prefix
        self._ops_max = ops_max
        self._range = (prefix, prefix_end(prefix)) if prefix else (b"\0", FROM_KEY)

    async def report(self) -> None:
        from lessor.cli.tasks import sleep

        while True:
            await sleep(REPORT_S)
            printing.write(b"%d\n" % self.written)

    async def run(self, seen_revision: int) -> None:
        """Copies all keys, unless those up to `seen_revision` are copied already, then the changes. Failure ends it."""
        await self.follow(seen_revision or await self.copy())

    async def copy(self) -> int:
        """Writes all keys as they are now; returns the revision of that."""
        key, range_end = self._range
        page = await self._source.get(key, range_end=range_end, limit=PAGE_KEYS)
        revision = page.header.revision
        with progress("copying", page.count) as done:
            while True:
                puts = [self._put(pair) for pair in page.kvs]
                for batch in batches(puts, self._ops_max, BATCH_BYTES_MAX):
                    await self._write(batch)
                    done(len(batch))
                if not page.more:
                    return revision
                after = page.kvs[-1].key + b"\0"
                page = await self._source.get(after, range_end=range_end, limit=PAGE_KEYS, revision=revision)

    async def follow(self, seen_revision: int) -> None:
        """Writes each change after a revision, for ever. Failure when the source ends the watch."""
        key, range_end = self._range
        async for response in self._source.watch(key, range_end=range_end, start_revision=seen_revision + 1):
            if response.canceled:
                raise Failure(ERROR, why_canceled(response))
            changes: dict[int, list[rpc.RequestOp]] = {}
            for event in response.events:
                change = self._delete(event.kv) if event.type else self._put(event.kv)
                changes.setdefault(event.kv.mod_revision, []).append(change)
            for together in changes.values():
                for batch in batches(together, self._ops_max, sys.maxsize):
                    await self._write(batch)

    async def _write(self, batch: Sequence[rpc.RequestOp]) -> None:
        await self._destination.txn(success=batch)
        self.written += len(batch)

    def _put(self, pair: mvcc.KeyValue) -> rpc.RequestOp:
        return rpc.RequestOp(request_put=rpc.PutRequest(key=self._renamed(pair.key), value=pair.value))

    def _delete(self, pair: mvcc.KeyValue) -> rpc.RequestOp:
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self._renamed(pair.key)))

    def _renamed(self, key: bytes) -> bytes:
        return self._new_prefix + key.removeprefix(self._prefix)


def batches(operations: Sequence[rpc.RequestOp], ops_max: int, bytes_max: int) -> Iterator[list[rpc.RequestOp]]:
    """The operations in order, in batches within both limits; one that is too large by itself is a batch by itself."""
    batch: list[rpc.RequestOp] = []
    size = 0
    for operation in operations:
        size += operation.ByteSize()
        if batch and (len(batch) == ops_max or size > bytes_max):
            yield batch
            batch, size = [], operation.ByteSize()
        batch.append(operation)
    if batch:
        yield batch
