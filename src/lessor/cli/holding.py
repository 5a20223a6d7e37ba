# SPDX-License-Identifier: Apache-2.0
"""`lessor lock` and `lessor elect`: hold a lock, or the lead, until Ctrl-C. Arguments, outputs, exit codes as etcdctl.

Laws
- The lock or the lead depends on a lease that is renewed all the while. When the command ends, in whichever way, the
  lease is revoked, so that the next in line does not wait for its TTL. (etcdctl leaves it behind.)
- Ctrl-C and SIGTERM end the wait, with an error because nothing was got, or the holding, without one. While a command
  runs under a lock they end nothing: the command gets them too, and the lock ends with it.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from lessor.api.proto import election_pb2, lock_pb2
from lessor.api.proto import rpc_pb2 as rpc
from lessor.cli import notation, printing
from lessor.cli.asking import ask
from lessor.cli.failure import BAD_ARGS, ERROR, Failure
from lessor.cli.notation import quote
from lessor.cli.options import Command, GoValue, settings_of
from lessor.cli.printer import Printer

if TYPE_CHECKING:
    from lessor.cli.tasks import Event, Task
    from lessor.client import AsyncClient

T = TypeVar("T")

LOCK_TTL_S = 10
DEFAULT_TTL_S = 60
TTL = GoValue("ttl", notation.ttl_s)


class Holding:
    """A lease that is renewed, and the two events that end the work under it: a signal, the end of the lease."""

    def __init__(self, lease_id: int, stop: "Event", renewing: "Task[None]", expired: str) -> None:
        self.lease_id = lease_id
        self._stop = stop
        self._renewing = renewing
        self._expired = expired

    async def unless_over(self, job: Coroutine[Any, Any, T]) -> T:
        """The job's result. Failure when a signal or the end of the lease comes before it."""
        from lessor.cli.tasks import first_of

        return await first_of(job, self._canceled(), self.expired())

    async def until_over(self) -> None:
        """Returns at a signal. Failure when the lease ends before."""
        from lessor.cli.tasks import first_of

        await first_of(self._signalled(), self.expired())

    async def expired(self) -> Any:
        """Waits for the end of the lease, and raises Failure then."""
        from lessor.cli.tasks import ended

        await ended(self._renewing)
        raise Failure(ERROR, self._expired)

    async def _signalled(self) -> None:
        await self._stop.wait()

    async def _canceled(self) -> Any:
        await self._stop.wait()
        raise Failure(ERROR, "context canceled")


@asynccontextmanager
async def holding(client: "AsyncClient", ttl_s: int, expired: str) -> AsyncIterator[Holding]:
    """A lease for exactly the block; `expired` is the text of the Failure when it ends before."""
    from lessor.base.errors import LEASE_NOT_FOUND
    from lessor.cli.tasks import beside, signals
    from lessor.client import ServerError

    with signals(signal.SIGINT, signal.SIGTERM) as stop:
        lease_id = (await client.grant(ttl_s if ttl_s > 0 else DEFAULT_TTL_S)).ID
        try:
            async with beside(_renew(client, lease_id)) as renewing:
                yield Holding(lease_id, stop, renewing, expired)
        finally:
            try:
                await client.revoke(lease_id)
            except ServerError as error:
                if error.message != LEASE_NOT_FOUND.message:
                    raise


async def _renew(client: "AsyncClient", lease_id: int) -> None:
    async for _ in client.keep_alive(lease_id):
        pass


# --- lock -----------------------------------------------------------------------------------------------------------


@click.command("lock", cls=Command)
@click.argument("args", nargs=-1, metavar="NAME [-- COMMAND [ARG]...]")
@click.option("--ttl", type=TTL, default=LOCK_TTL_S, show_default=True, help="How long the lock outlives a crash.")
@click.pass_context
def lock(ctx: click.Context, args: tuple[str, ...], ttl: int) -> None:
    """Wait for the lock NAME and hold it until Ctrl-C; with a COMMAND, until that ends, and with its exit code.

    The COMMAND finds ETCD_LOCK_KEY and ETCD_LOCK_REV in its environment. A lock is as good as its lease: what the
    command changes elsewhere should be guarded by that revision, which only grows from holder to holder.
    """
    if not args:
        raise Failure(BAD_ARGS, "lock takes a lock name argument and an optional command to execute")
    settings = settings_of(ctx)
    name, command = os.fsencode(args[0]), list(args[1:])
    # With a command to run there is nothing to print.
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal, table=bool(command))

    async def hold(client: "AsyncClient") -> None:
        async with holding(client, ttl, "session expired") as held:
            request = lock_pb2.LockRequest(name=name, lease=held.lease_id)
            call = client.call("/v3lockpb.Lock/Lock", request, timeout_s=None)
            locked = cast(lock_pb2.LockResponse, await held.unless_over(call))
            if command:
                await _run_under(held, locked, command)
            else:
                await _show(client, printer, locked.key, "lock lost on init")
                await held.until_over()

    ask(settings, hold)


async def _run_under(held: Holding, locked: lock_pb2.LockResponse, command: list[str]) -> None:
    """Failure, with the command's exit code, when the command fails."""
    from lessor.cli.tasks import beside, program

    variables = {"ETCD_LOCK_KEY": os.fsdecode(locked.key), "ETCD_LOCK_REV": str(locked.header.revision)}
    try:
        async with beside(_warn(held)):
            code = await program(command, variables)
    except FileNotFoundError:
        text = "executable file not found in $PATH" if "/" not in command[0] else "no such file or directory"
        raise Failure(ERROR, f"exec: {quote(os.fsencode(command[0]))}: {text}") from None
    except OSError as error:
        raise Failure(ERROR, f"fork/exec {command[0]}: {(error.strerror or str(error)).lower()}") from None
    if code < 0:
        raise Failure(255, f"signal: {(signal.strsignal(-code) or str(-code)).lower()}")
    if code:
        raise Failure(code, f"exit status {code}")


async def _warn(held: Holding) -> None:
    """Warns when the lease ends: the command goes on without its lock, and only the user knows what that means."""
    try:
        await held.expired()
    except Failure:
        print("Warning: the lock's lease ended before the command did; others may hold the lock now", file=sys.stderr)


async def _show(client: "AsyncClient", printer: Printer, key: bytes, gone: str) -> None:
    reply = await client.get(key)
    if not reply.kvs:
        raise Failure(ERROR, gone)
    printing.write(printer.get(reply))


# --- elect ----------------------------------------------------------------------------------------------------------


@click.command("elect", cls=Command)
@click.argument("args", nargs=-1, metavar="NAME [PROPOSAL]")
@click.option("-l", "--listen", is_flag=True, help="Do not stand; print who leads, and each who leads after.")
@click.pass_context
def elect(ctx: click.Context, args: tuple[str, ...], listen: bool) -> None:
    """Stand for the election NAME, print the key once elected, and lead until Ctrl-C."""
    if len(args) not in (1, 2):
        raise Failure(BAD_ARGS, "elect takes one election name argument and an optional proposal argument")
    if len(args) == 1 and not listen:
        raise Failure(BAD_ARGS, "no proposal argument but -l not set")
    if len(args) == 2 and listen:
        raise Failure(BAD_ARGS, "proposal given but -l is set")
    settings = settings_of(ctx)
    printer = printing.choose(settings.output_format, hexadecimal=settings.hexadecimal)
    name, *proposal = map(os.fsencode, args)

    async def campaign(client: "AsyncClient") -> None:
        async with holding(client, DEFAULT_TTL_S, "elect: session expired") as held:
            request = election_pb2.CampaignRequest(name=name, lease=held.lease_id, value=proposal[0])
            call = client.call("/v3electionpb.Election/Campaign", request, timeout_s=None)
            elected = cast(election_pb2.CampaignResponse, await held.unless_over(call))
            await _show(client, printer, elected.leader.key, "elect: session expired")
            await held.until_over()

    async def listening(client: "AsyncClient") -> None:
        from lessor.cli.tasks import first_of, signals

        with signals(signal.SIGINT, signal.SIGTERM) as stop:

            async def show() -> None:
                async for leader in leaders(client, name):
                    printing.write(printer.get(leader))

            async def stopped() -> None:
                await stop.wait()

            await first_of(stopped(), show())

    ask(settings, listening if listen else campaign)


async def leaders(client: "AsyncClient", name: bytes) -> AsyncIterator[rpc.RangeResponse]:
    """The leader, then each new leader and each proclamation, as replies with one key; never ends."""
    from lessor.client import prefix_end

    prefix = name + b"/"
    first_created: Any = {"limit": 1, "sort_order": rpc.RangeRequest.ASCEND, "sort_target": rpc.RangeRequest.CREATE}
    while True:
        reply = await client.get(prefix, range_end=prefix_end(prefix), **first_created)
        if reply.kvs:
            leader = rpc.RangeResponse(header=reply.header, kvs=reply.kvs)
        else:
            leader = await _first_put(client, prefix, reply.header.revision + 1)
        yield leader
        after = leader.header.revision + 1
        async for response in _events(client, leader.kvs[0].key, b"", after):
            for event in response.events:
                if event.type:
                    break
                yield rpc.RangeResponse(header=response.header, kvs=[event.kv])
            else:
                continue
            break


async def _first_put(client: "AsyncClient", prefix: bytes, start_revision: int) -> rpc.RangeResponse:
    from lessor.client import prefix_end

    async for response in _events(client, prefix, prefix_end(prefix), start_revision):
        for event in response.events:
            if not event.type:
                # The same response may have more events behind this one; the watch of this key is to see them.
                response.header.revision = event.kv.mod_revision
                return rpc.RangeResponse(header=response.header, kvs=[event.kv])
    raise AssertionError("a watch ends with an error")


async def _events(
    client: "AsyncClient", key: bytes, range_end: bytes, start_revision: int
) -> AsyncIterator[rpc.WatchResponse]:
    """The responses of a watch. Failure when the server ends it."""
    from contextlib import aclosing

    async with aclosing(client.watch(key, range_end=range_end, start_revision=start_revision)) as responses:
        async for response in responses:
            if response.canceled:
                raise Failure(ERROR, "elect: observer lost")
            yield response
